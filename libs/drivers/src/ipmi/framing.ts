/**
 * Datagrams on UDP 623: RMCP around ASF presence, IPMI v1.5 (only outside a session) and IPMI v2.0, plain or sealed (authenticated
 * and encrypted). Both directions, for a console and for a BMC. Nothing here throws on bytes from the network: what does not fit
 * comes back as a refusal with a reason (IPMI v2.0 13.1 to 13.6; facts 4.1).
 */
import { authcode, codesMatch, decryptPayload, encryptPayload, type SessionKeys } from './crypto.ts'

export const payloadTypes = {
  ipmi: 0x00,
  sol: 0x01,
  openSessionRequest: 0x10,
  openSessionResponse: 0x11,
  rakp1: 0x12,
  rakp2: 0x13,
  rakp3: 0x14,
  rakp4: 0x15,
} as const

/** Why a datagram was not taken. */
export interface Refusal {
  kind: 'refused'
  reason:
    | 'truncated'
    | 'not RMCP'
    | 'RMCP acknowledgement'
    | 'unknown class'
    | 'not a presence message'
    | 'unknown framing'
    | 'authenticated v1.5'
    | 'OEM payload'
    | 'not authenticated'
    | 'not encrypted'
    | 'wrong authcode'
    | 'wrong padding'
}

/** A plain IPMI v1.5 packet, outside any session: authentication type none. */
export interface V15Packet {
  kind: 'v1.5'
  sequence: number
  sessionId: number
  payload: Buffer
}

/** An IPMI v2.0 packet as it stands on the wire. If `authenticated`, believe nothing in it until `unseal` has accepted it. */
export interface V20Packet {
  kind: 'v2.0'
  payloadType: number
  encrypted: boolean
  authenticated: boolean
  /** The receiver's own session id; 0 outside a session. */
  sessionId: number
  sequence: number
  /** The payload as sent, still encrypted if `encrypted`. */
  payload: Buffer
  /** Everything after the RMCP header, authcode included. */
  body: Buffer
}

export type Datagram = V15Packet | V20Packet | { kind: 'ping'; tag: number } | { kind: 'pong'; tag: number; speaksIpmi: boolean } | Refusal

/** Reads one datagram's framing. Never throws; trailing bytes of v1.5 packets (the legacy pad) are ignored. */
export function parseDatagram(datagram: Buffer): Datagram {
  if (datagram.length < 4) return refused('truncated')
  if (datagram.readUInt8(0) !== rmcpVersion) return refused('not RMCP')
  const messageClass = datagram.readUInt8(3)
  if (messageClass & 0x80) return refused('RMCP acknowledgement')
  if (messageClass === classAsf) return parseAsf(datagram)
  if (messageClass !== classIpmi) return refused('unknown class')
  if (datagram.length < 5) return refused('truncated')
  const framing = datagram.readUInt8(4)
  if (framing === framingV20) return parseV20(datagram)
  return framing === framingNone ? parseV15(datagram) : refused(framing <= 5 ? 'authenticated v1.5' : 'unknown framing')
}

/** A v1.5 packet outside a session: session id and sequence 0, no authentication. The payload holds at most 255 bytes. */
export function encodeV15(payload: Buffer): Buffer {
  const bytes = 14 + payload.length
  // Some early network chips lose frames of these IP lengths; v1.5 sends one byte more (IPMI v1.5 12.9).
  const padBytes = legacyPadIpBytes.includes(bytes + 28) ? 1 : 0
  const datagram = Buffer.alloc(bytes + padBytes)
  writeRmcp(datagram, classIpmi)
  datagram.writeUInt8(payload.length, 13)
  payload.copy(datagram, 14)
  return datagram
}

/** A plain v2.0 packet. Outside a session (Open Session, RAKP) id and sequence are 0, which is the default. */
export function encodeV20(packet: { payloadType: number; payload: Buffer; sessionId?: number; sequence?: number }): Buffer {
  const datagram = Buffer.allocUnsafe(16 + packet.payload.length)
  writeV20Header(datagram, packet.payloadType, packet.sessionId ?? 0, packet.sequence ?? 0, packet.payload.length)
  packet.payload.copy(datagram, 16)
  return datagram
}

/** What goes into a sealed packet. `iv` is 16 random bytes, never used twice with the same keys. */
export interface Sealing {
  payloadType: number
  /** The receiver's session id. */
  sessionId: number
  /** This direction's session sequence number, never 0. */
  sequence: number
  payload: Buffer
  iv: Buffer
}

/** A packet inside a session: encrypted, then authenticated. With AES the trailer is always FF FF 02 07. */
export function seal(packet: Sealing, keys: SessionKeys): Buffer {
  const encrypted = encryptPayload(packet.payload, keys, packet.iv)
  const coveredEnd = 16 + encrypted.length + 4
  const datagram = Buffer.allocUnsafe(coveredEnd + keys.suite.authcodeBytes)
  writeV20Header(datagram, packet.payloadType | flagEncrypted | flagAuthenticated, packet.sessionId, packet.sequence, encrypted.length)
  encrypted.copy(datagram, 16)
  datagram.writeUInt32BE(0xffff0207, coveredEnd - 4)
  authcode(datagram.subarray(4, coveredEnd), keys).copy(datagram, coveredEnd)
  return datagram
}

/**
 * The plain payload of a packet inside a session, or why it is refused. Both flags are demanded: a reply without protection in a
 * protected session is somebody else's. The authcode is found from the end and the pad length byte believed, not recomputed:
 * OpenBMC writes four pad bytes where none are needed.
 */
export function unseal(packet: V20Packet, keys: SessionKeys): { kind: 'payload'; payload: Buffer } | Refusal {
  if (!packet.authenticated) return refused('not authenticated')
  if (!packet.encrypted) return refused('not encrypted')
  const coveredEnd = packet.body.length - keys.suite.authcodeBytes
  const payloadEnd = headerBytes + packet.payload.length
  if (coveredEnd < payloadEnd + 2) return refused('truncated')
  if (!codesMatch(authcode(packet.body.subarray(0, coveredEnd), keys), packet.body.subarray(coveredEnd))) return refused('wrong authcode')
  if (payloadEnd + packet.body.readUInt8(coveredEnd - 2) + 2 !== coveredEnd) return refused('wrong padding')
  const payload = decryptPayload(packet.payload, keys)
  return payload ? { kind: 'payload', payload } : refused('wrong padding')
}

/** An ASF presence ping. `tag` is 0 to 254. Some boards never answer: it is no test of life. */
export function encodePing(tag: number): Buffer {
  return Buffer.concat([asfHead, Buffer.of(0x80, tag, 0, 0)])
}

/** The answer to a presence ping, saying that IPMI and ASF 1.0 are spoken here. */
export function encodePong(tag: number): Buffer {
  const data = Buffer.alloc(16)
  data.writeUInt32BE(asfEnterprise, 0)
  data.writeUInt8(0x81, 8)
  return Buffer.concat([asfHead, Buffer.of(0x40, tag, 0, data.length), data])
}

const rmcpVersion = 6
const classAsf = 6
const classIpmi = 7
const framingNone = 0
const framingV20 = 6
const flagEncrypted = 0x80
const flagAuthenticated = 0x40
/** Bytes from the 06 to the payload length, both included. */
const headerBytes = 12
const legacyPadIpBytes = [56, 84, 112, 128, 156]
const asfEnterprise = 0x11be
const asfHead = Buffer.from('0600ff06000011be', 'hex')

function refused(reason: Refusal['reason']): Refusal {
  return { kind: 'refused', reason }
}

/** Sequence FF asks for no acknowledgement; any other value is dropped by some BMCs. */
function writeRmcp(datagram: Buffer, messageClass: number): void {
  datagram.writeUInt32BE(0x0600ff00 | messageClass, 0)
}

function writeV20Header(datagram: Buffer, typeAndFlags: number, sessionId: number, sequence: number, payloadBytes: number): void {
  writeRmcp(datagram, classIpmi)
  datagram.writeUInt8(framingV20, 4)
  datagram.writeUInt8(typeAndFlags, 5)
  datagram.writeUInt32LE(sessionId, 6)
  datagram.writeUInt32LE(sequence, 10)
  datagram.writeUInt16LE(payloadBytes, 14)
}

function parseAsf(datagram: Buffer): Datagram {
  if (datagram.length < 12) return refused('truncated')
  const tag = datagram.readUInt8(9)
  // The one big-endian number in all of IPMI over LAN.
  if (datagram.readUInt32BE(4) !== asfEnterprise) return refused('not a presence message')
  if (datagram.readUInt8(8) === 0x80) return { kind: 'ping', tag }
  if (datagram.readUInt8(8) !== 0x40) return refused('not a presence message')
  return { kind: 'pong', tag, speaksIpmi: datagram.length > 20 && (datagram.readUInt8(20) & 0x80) !== 0 }
}

function parseV15(datagram: Buffer): Datagram {
  if (datagram.length < 14) return refused('truncated')
  const payloadBytes = datagram.readUInt8(13)
  if (datagram.length < 14 + payloadBytes) return refused('truncated')
  return {
    kind: 'v1.5',
    sequence: datagram.readUInt32LE(5),
    sessionId: datagram.readUInt32LE(9),
    payload: datagram.subarray(14, 14 + payloadBytes),
  }
}

function parseV20(datagram: Buffer): Datagram {
  if (datagram.length < 16) return refused('truncated')
  const typeAndFlags = datagram.readUInt8(5)
  if ((typeAndFlags & 0x3f) === 0x02) return refused('OEM payload')
  const payloadBytes = datagram.readUInt16LE(14)
  if (datagram.length < 16 + payloadBytes) return refused('truncated')
  return {
    kind: 'v2.0',
    payloadType: typeAndFlags & 0x3f,
    encrypted: (typeAndFlags & flagEncrypted) !== 0,
    authenticated: (typeAndFlags & flagAuthenticated) !== 0,
    sessionId: datagram.readUInt32LE(6),
    sequence: datagram.readUInt32LE(10),
    payload: datagram.subarray(16, 16 + payloadBytes),
    body: datagram.subarray(4),
  }
}
