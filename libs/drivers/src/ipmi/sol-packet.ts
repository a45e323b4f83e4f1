/** Serial over LAN on the wire: the payload of SOL packets, both ways (IPMI v2.0 15.9), and what activation says (24.1). */

export interface SolPacket {
  /** 1 to 15 with characters, one more with each new packet; 0 for an acknowledgement alone. */
  sequence: number
  /** The packet this acknowledges; 0: none. */
  acknowledged: number
  /** How many characters of that packet were taken. */
  accepted: number
  flags: number
  data: Buffer
}

/** To the BMC: operations. */
export const solOperation = { nack: 0x40, break: 0x10 } as const
/** From the BMC: status. */
export const solStatus = { nack: 0x40, unavailable: 0x20, deactivated: 0x10, overrun: 0x08, break: 0x04 } as const

export const solHeadBytes = 4
const lastSolSequence = 15

/** The number behind `sequence`: 1 follows 15, because 0 means that there are no characters. */
export const nextSolSequence = (sequence: number) => (sequence % lastSolSequence) + 1

export function encodeSol({ sequence, acknowledged, accepted, flags, data }: SolPacket): Buffer {
  return Buffer.concat([Buffer.of(sequence & 0x0f, acknowledged & 0x0f, accepted & 0xff, flags), data])
}

/** Undefined where the payload is too short to be one. */
export function parseSol(payload: Buffer): SolPacket | undefined {
  if (payload.length < solHeadBytes) return undefined
  return {
    sequence: payload.readUInt8(0) & 0x0f,
    acknowledged: payload.readUInt8(1) & 0x0f,
    accepted: payload.readUInt8(2),
    flags: payload.readUInt8(3),
    data: payload.subarray(solHeadBytes),
  }
}

/** Activate Payload: SOL, instance 1, encrypted and authenticated; alerts of a shared serial line go on. */
export const solActivation = Buffer.of(0x01, 0x01, 0xc8, 0, 0, 0)
export const solDeactivation = Buffer.of(0x01, 0x01, 0, 0, 0, 0)

/** Completion codes of Activate Payload beyond the general ones. */
export const solActivationCodes = { heldByOther: 0x80, disabled: 0x81, limit: 0x82, noEncryption: 0x83 } as const

export interface SolGrant {
  /** The largest payload that the BMC takes, head included. */
  inboundBytes: number
  port: number
}

/** What Activate Payload grants; undefined where the answer is too short. */
export function parseSolGrant(data: Buffer): SolGrant | undefined {
  if (data.length < 10) return undefined
  return { inboundBytes: data.readUInt16LE(4), port: data.readUInt16LE(8) }
}

export function encodeSolGrant({ inboundBytes, outboundBytes, port }: SolGrant & { outboundBytes: number }): Buffer {
  const data = Buffer.alloc(12)
  data.writeUInt16LE(inboundBytes, 4)
  data.writeUInt16LE(outboundBytes, 6)
  data.writeUInt16LE(port, 8)
  data.writeUInt16LE(0xffff, 10) // no VLAN
  return data
}
