/**
 * What a BMC tells anybody without a session: its cipher suites and its authentication capabilities. Asked in IPMI v1.5 framing, because
 * some BMCs (and ipmi_sim) answer nothing else; one try each, and silence is never an error (facts 4.2, 4.3).
 */
import {
  type Command,
  commands,
  encodeRequest,
  encodeV15,
  type IpmiResponse,
  type Privilege,
  parseDatagram,
  parseResponse,
  parseSuiteRecords,
  privileges,
  type SuiteRecord,
} from './codec.ts'
import type { Link } from './link.ts'

/** Cipher suite records of the channel we are on, or undefined if the BMC does not say. Throws what Link.exchange throws. */
export async function askSuites(link: Link, options: { probeMs: number; signal: AbortSignal }): Promise<SuiteRecord[] | undefined> {
  const pages: Buffer[] = []
  // The index has 6 bits: a BMC that never sends a short page cannot hold us longer.
  for (let index = 0; index <= 0x3f; index++) {
    const reply = await askOutside(link, commands.getChannelCipherSuites, Buffer.of(thisChannel, 0x00, 0x80 | index), options)
    if (reply?.completionCode !== 0 || reply.data.length < 1) break
    pages.push(reply.data.subarray(1))
    if (reply.data.length < 17) break
  }
  return pages.length === 0 ? undefined : parseSuiteRecords(Buffer.concat(pages))
}

export interface AuthCapabilities {
  /** Whether IPMI v2.0 sessions are offered. */
  v20: boolean
  /** Whether the BMC says that a K_g is set. Asus, Sun, Intel and Vadatech boards lie about this and the next two. */
  kgSet: boolean
  anonymousUser: boolean
  nullUser: boolean
}

/**
 * Get Channel Authentication Capabilities, or undefined if the BMC does not answer. A BMC that refuses the v2.0 form of the question
 * (0xCC) is a v1.5 one. The flags are for reports only.
 */
export async function askAuthCapabilities(
  link: Link,
  options: { privilege: Privilege; probeMs: number; signal: AbortSignal },
): Promise<AuthCapabilities | undefined> {
  const data = Buffer.of(0x80 | thisChannel, privileges[options.privilege])
  const reply = await askOutside(link, commands.getChannelAuthCapabilities, data, options)
  if (reply?.completionCode === 0xcc) return { v20: false, kgSet: false, anonymousUser: false, nullUser: false }
  if (reply?.completionCode !== 0 || reply.data.length < 4) return undefined
  const types = reply.data.readUInt8(1)
  const status = reply.data.readUInt8(2)
  return {
    v20: (types & 0x80) !== 0 && (reply.data.readUInt8(3) & 0x02) !== 0,
    kgSet: (status & 0x20) !== 0,
    anonymousUser: (status & 0x01) !== 0,
    nullUser: (status & 0x02) !== 0,
  }
}

/** "The channel this arrives on". */
const thisChannel = 0x0e

function askOutside(
  link: Link,
  command: Command,
  data: Buffer,
  options: { probeMs: number; signal: AbortSignal },
): Promise<IpmiResponse | undefined> {
  const accept = (datagram: Buffer) => {
    const packet = parseDatagram(datagram)
    if (packet.kind !== 'v1.5' && !(packet.kind === 'v2.0' && packet.sessionId === 0 && packet.payloadType === 0)) return undefined
    const response = parseResponse(packet.payload)
    // Out of a session nothing but the checksum guards against damage.
    if (!response?.checksumsHold || response.netFn !== command.netFn + 1 || response.command !== command.command) return undefined
    // Pages of an earlier index must not be taken for this one, so the index is the rqSeq.
    return response.sequence === rqSeqOf(data) ? response : undefined
  }
  const datagram = encodeV15(encodeRequest({ ...command, sequence: rqSeqOf(data), data }))
  return link.exchange(datagram, { accept, waitMs: options.probeMs, signal: options.signal })
}

function rqSeqOf(data: Buffer): number {
  return data.readUInt8(data.length - 1) & 0x3f
}
