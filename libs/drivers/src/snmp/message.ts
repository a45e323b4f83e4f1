/** SNMP messages of version 1 (RFC 1157) and 2c (RFC 1901, 3416): Get, Set and their Response, the only three that switching an outlet takes. */
import { BerError, expectTlv, integerBytes, oidBytes, readInteger, readOid, readTlv, readUnsigned, tlv } from './ber.ts'

export type SnmpVersion = '1' | '2c'

export type SnmpValue =
  | { type: 'integer'; value: number }
  /** Counter32, Gauge32 or TimeTicks; read only. */
  | { type: 'unsigned'; value: number }
  | { type: 'null' }
  /** The agent of version 2c has no such thing. */
  | { type: 'absent' }
  /** Anything else, not looked into. */
  | { type: 'other'; tag: number }

export interface Binding {
  oid: string
  value: SnmpValue
}

export interface SnmpMessage {
  version: SnmpVersion
  community: Buffer
  type: 'get' | 'set' | 'response'
  requestId: number
  errorStatus: number
  /** The binding that caused the error, counted from 1; 0 for none. */
  errorIndex: number
  bindings: Binding[]
}

const tags = { integer: 0x02, octets: 0x04, null: 0x05, oid: 0x06, sequence: 0x30 } as const
const pduTags = { get: 0xa0, response: 0xa2, set: 0xa3 } as const
/** Counter32, Gauge32, TimeTicks. */
const unsignedTags: readonly number[] = [0x41, 0x42, 0x43]
/** noSuchObject, noSuchInstance, endOfMibView. */
const absentTags: readonly number[] = [0x80, 0x81, 0x82]
const versions: readonly SnmpVersion[] = ['1', '2c']

/** The datagram. RangeError for numbers beyond 32 bits, bad object identifiers, and values that are only ever read. */
export function encodeMessage(message: SnmpMessage): Buffer {
  const pdu = tlv(
    pduTags[message.type],
    integer(message.requestId),
    integer(message.errorStatus),
    integer(message.errorIndex),
    tlv(tags.sequence, ...message.bindings.map(({ oid, value }) => tlv(tags.sequence, tlv(tags.oid, oidBytes(oid)), valueBytes(value)))),
  )
  return tlv(tags.sequence, integer(versions.indexOf(message.version)), tlv(tags.octets, message.community), pdu)
}

const integer = (value: number) => tlv(tags.integer, integerBytes(value))

function valueBytes(value: SnmpValue): Buffer {
  if (value.type === 'integer') return integer(value.value)
  if (value.type === 'null') return tlv(tags.null)
  if (value.type === 'absent') return tlv(0x81)
  throw new RangeError(`a value of type ${value.type} is only read`)
}

/** The message in a datagram; what follows it is ignored. Throws BerError for everything that is none of the three. */
export function decodeMessage(datagram: Buffer): SnmpMessage {
  const message = expectTlv(datagram, tags.sequence)
  const version = expectTlv(message.content, tags.integer)
  const community = expectTlv(version.rest, tags.octets)
  const pdu = readTlv(community.rest)
  const type = (Object.keys(pduTags) as (keyof typeof pduTags)[]).find(name => pduTags[name] === pdu.tag)
  if (!type) throw new BerError(`message type 0x${pdu.tag.toString(16)}`)
  const requestId = expectTlv(pdu.content, tags.integer)
  const errorStatus = expectTlv(requestId.rest, tags.integer)
  const errorIndex = expectTlv(errorStatus.rest, tags.integer)
  return {
    version: versionOf(readInteger(version.content)),
    community: community.content,
    type,
    requestId: readInteger(requestId.content),
    errorStatus: readInteger(errorStatus.content),
    errorIndex: readInteger(errorIndex.content),
    bindings: [...bindingsOf(expectTlv(errorIndex.rest, tags.sequence).content)],
  }
}

function versionOf(number: number): SnmpVersion {
  const version = versions[number]
  if (version === undefined) throw new BerError(`SNMP version ${number}`)
  return version
}

function* bindingsOf(content: Buffer): Generator<Binding> {
  for (let left = content; left.length > 0; ) {
    const binding = expectTlv(left, tags.sequence)
    const oid = expectTlv(binding.content, tags.oid)
    yield { oid: readOid(oid.content), value: readValue(readTlv(oid.rest)) }
    left = binding.rest
  }
}

function readValue({ tag, content }: { tag: number; content: Buffer }): SnmpValue {
  if (tag === tags.integer) return { type: 'integer', value: readInteger(content) }
  if (unsignedTags.includes(tag)) return { type: 'unsigned', value: readUnsigned(content) }
  if (tag === tags.null) return { type: 'null' }
  return absentTags.includes(tag) ? { type: 'absent' } : { type: 'other', tag }
}
