/** The Basic Encoding Rules (X.690) as far as SNMP needs them: definite lengths, integers of 32 bits, object identifiers. */

/** Bytes that are no BER, or none that SNMP allows. The message holds positions and tags, never content: a community may be in it. */
export class BerError extends Error {
  override readonly name = 'BerError'
}

export interface Tlv {
  tag: number
  content: Buffer
  /** What follows it. */
  rest: Buffer
}

/** Tag, length, content. */
export function tlv(tag: number, ...content: readonly Buffer[]): Buffer {
  const body = Buffer.concat(content)
  return Buffer.concat([Buffer.of(tag), lengthBytes(body.length), body])
}

function lengthBytes(length: number): Buffer {
  if (length < 0x80) return Buffer.of(length)
  const bytes = unsignedBytes(length)
  return Buffer.concat([Buffer.of(0x80 | bytes.length), bytes])
}

function unsignedBytes(value: number): Buffer {
  const bytes: number[] = []
  for (let left = value; left > 0; left = Math.floor(left / 256)) bytes.unshift(left % 256)
  return Buffer.from(bytes)
}

/** The first element of the bytes. Throws BerError. */
export function readTlv(bytes: Buffer): Tlv {
  const [tag, first] = bytes
  if (tag === undefined || first === undefined) throw new BerError('ends where an element should begin')
  if ((tag & 0x1f) === 0x1f) throw new BerError('a tag of more than one byte')
  const { length, start } = first < 0x80 ? { length: first, start: 2 } : longLength(bytes, first & 0x7f)
  if (start + length > bytes.length) throw new BerError(`an element of ${length} bytes in ${bytes.length - start}`)
  return { tag, content: bytes.subarray(start, start + length), rest: bytes.subarray(start + length) }
}

/** Some agents write lengths in more bytes than needed; four are enough for any datagram. */
function longLength(bytes: Buffer, count: number): { length: number; start: number } {
  if (count === 0 || count > 4 || bytes.length < 2 + count) throw new BerError('a length in an unusual form')
  return { length: bytes.readUIntBE(2, count), start: 2 + count }
}

/** The content of an element that must have that tag, and what follows it. Throws BerError. */
export function expectTlv(bytes: Buffer, tag: number): { content: Buffer; rest: Buffer } {
  const found = readTlv(bytes)
  if (found.tag !== tag) throw new BerError(`tag 0x${found.tag.toString(16)} where 0x${tag.toString(16)} is expected`)
  return found
}

/** The content of an INTEGER, in the fewest bytes. RangeError beyond 32 bits. */
export function integerBytes(value: number): Buffer {
  if (!Number.isInteger(value) || value < -0x8000_0000 || value > 0x7fff_ffff) throw new RangeError(`${value} does not fit 32 bits`)
  const bytes = Buffer.alloc(4)
  bytes.writeInt32BE(value)
  let start = 0
  // A leading byte that only repeats the sign of the next one says nothing.
  while (start < 3 && bytes[start] === (value < 0 ? 0xff : 0x00) && bytes.readInt8(start + 1) < 0 === value < 0) start++
  return bytes.subarray(start)
}

/** The value of a signed INTEGER of up to 32 bits. Throws BerError. */
export function readInteger(content: Buffer): number {
  if (content.length === 0 || content.length > 4) throw new BerError(`an integer of ${content.length} bytes`)
  return content.readIntBE(0, content.length)
}

/** The value of a Counter32, Gauge32 or TimeTicks: unsigned, so that a zero byte may stand before the four. Throws BerError. */
export function readUnsigned(content: Buffer): number {
  if (content.length === 0 || content.length > 5 || (content.length === 5 && content[0] !== 0)) {
    throw new BerError(`an unsigned integer of ${content.length} bytes`)
  }
  return content.readUIntBE(0, content.length)
}

const oidPattern = /^[0-2](\.\d{1,10}){1,127}$/
const arcMax = 0xffff_ffff

/** The content of an OBJECT IDENTIFIER written as `1.3.6.1`. RangeError for anything else. */
export function oidBytes(oid: string): Buffer {
  const arcs = oid.split('.').map(Number)
  const [first, second, ...rest] = arcs
  if (
    !oidPattern.test(oid) ||
    first === undefined ||
    second === undefined ||
    arcs.some(arc => arc > arcMax) ||
    (first < 2 && second > 39)
  ) {
    throw new RangeError(`"${oid}" is no object identifier`)
  }
  return Buffer.concat([first * 40 + second, ...rest].map(arcBytes))
}

/** Seven bits per byte, the highest bit set in all but the last. */
function arcBytes(arc: number): Buffer {
  const bytes = [arc % 128]
  for (let left = Math.floor(arc / 128); left > 0; left = Math.floor(left / 128)) bytes.unshift((left % 128) | 0x80)
  return Buffer.from(bytes)
}

/** The OBJECT IDENTIFIER as `1.3.6.1`. Throws BerError. */
export function readOid(content: Buffer): string {
  const arcs: number[] = []
  let arc = 0
  for (const byte of content) {
    arc = arc * 128 + (byte & 0x7f)
    // The first arc carries two numbers, so it may be up to 80 larger.
    if (arc > arcMax + 80) throw new BerError('an object identifier with an arc beyond 32 bits')
    if (byte & 0x80) continue
    arcs.push(arc)
    arc = 0
  }
  const [joined, ...rest] = arcs
  const last = content.at(-1)
  if (joined === undefined || last === undefined || last & 0x80) throw new BerError('an object identifier that does not end')
  const first = Math.min(2, Math.floor(joined / 40))
  return [first, joined - first * 40, ...rest].join('.')
}
