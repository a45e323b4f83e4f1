/**
 * The six payloads that set up a session: Open Session request and response, RAKP 1 to 4. Each can be built and parsed, so that a
 * console and a BMC share them. Parsers return undefined for bytes that do not fit, never throw (IPMI v2.0 13.17 to 13.24; facts
 * 4.3). Numbers are little-endian; ids are unsigned 32-bit numbers, chosen by the end they name.
 */
import { userBytesMax } from './crypto.ts'
import type { Algorithms } from './suites.ts'

export const privileges = { USER: 2, OPERATOR: 3, ADMINISTRATOR: 4 } as const
export type Privilege = keyof typeof privileges

/**
 * Bit 4 of the role byte: find the account by name alone. Without it the BMC wants name and level to match an account exactly, and
 * an administrator asking for OPERATOR is refused.
 */
export const roleNameOnly = 0x10

export interface OpenSessionRequest {
  tag: number
  /** The level asked for, 2 to 4: the real one, because some boards hash with this value instead of RAKP 1's. */
  privilege: number
  consoleId: number
  algorithms: Algorithms
}

/**
 * An answer of the BMC that refuses: `status` is never 0. Boards cut such answers short, so only these two are sure. Tell it from an
 * acceptance by the field it lacks: `'code' in answer`.
 */
export interface Refused {
  tag: number
  status: number
}

export interface OpenSessionResponse {
  tag: number
  status: 0
  privilege: number
  consoleId: number
  bmcId: number
  algorithms: Algorithms
}

export interface Rakp1 {
  tag: number
  bmcId: number
  /** 16 bytes. */
  consoleRandom: Buffer
  /** Privilege and roleNameOnly. */
  role: number
  /** 0 to 16 bytes. */
  user: Buffer
}

export interface Rakp2 {
  tag: number
  status: 0
  consoleId: number
  /** 16 bytes. */
  bmcRandom: Buffer
  /** 16 bytes. */
  guid: Buffer
  /** Length by suite; boards that get the length wrong exist, so the receiver compares. */
  code: Buffer
}

export interface Rakp3 {
  tag: number
  /** 0, or why the console gives up: then there is no code, and the BMC frees its half of the session. */
  status: number
  bmcId: number
  code: Buffer
}

export interface Rakp4 {
  tag: number
  status: 0
  consoleId: number
  /** The integrity check value; length by suite. */
  check: Buffer
}

/** Open Session request, 32 bytes. */
export function encodeOpenSessionRequest(request: OpenSessionRequest): Buffer {
  const payload = Buffer.alloc(32)
  payload.writeUInt8(request.tag, 0)
  payload.writeUInt8(request.privilege, 1)
  payload.writeUInt32LE(request.consoleId, 4)
  writeAlgorithms(payload, 8, request.algorithms)
  return payload
}

export function parseOpenSessionRequest(payload: Buffer): OpenSessionRequest | undefined {
  if (payload.length < 32) return undefined
  return {
    tag: payload.readUInt8(0),
    privilege: payload.readUInt8(1),
    consoleId: payload.readUInt32LE(4),
    algorithms: readAlgorithms(payload, 8),
  }
}

/** Open Session response: 36 bytes, or 8 for a refusal. */
export function encodeOpenSessionResponse(response: OpenSessionResponse | (Refused & { consoleId: number })): Buffer {
  if (!('bmcId' in response)) return encodeRefusal(response)
  const payload = Buffer.alloc(36)
  payload.writeUInt8(response.tag, 0)
  payload.writeUInt8(response.privilege, 2)
  payload.writeUInt32LE(response.consoleId, 4)
  payload.writeUInt32LE(response.bmcId, 8)
  writeAlgorithms(payload, 12, response.algorithms)
  return payload
}

export function parseOpenSessionResponse(payload: Buffer): OpenSessionResponse | Refused | undefined {
  const refusal = parseRefusal(payload)
  if (refusal) return refusal
  if (payload.length < 36) return undefined
  return {
    tag: payload.readUInt8(0),
    status: 0,
    privilege: payload.readUInt8(2),
    consoleId: payload.readUInt32LE(4),
    bmcId: payload.readUInt32LE(8),
    algorithms: readAlgorithms(payload, 12),
  }
}

/** RAKP 1: 28 bytes and the name, which is not padded because OpenBMC checks the exact length. */
export function encodeRakp1(rakp: Rakp1): Buffer {
  const payload = Buffer.alloc(28 + rakp.user.length)
  payload.writeUInt8(rakp.tag, 0)
  payload.writeUInt32LE(rakp.bmcId, 4)
  rakp.consoleRandom.copy(payload, 8, 0, 16)
  payload.writeUInt8(rakp.role, 24)
  payload.writeUInt8(rakp.user.length, 27)
  rakp.user.copy(payload, 28)
  return payload
}

export function parseRakp1(payload: Buffer): Rakp1 | undefined {
  if (payload.length < 28) return undefined
  const userBytes = payload.readUInt8(27)
  if (userBytes > userBytesMax || payload.length < 28 + userBytes) return undefined
  return {
    tag: payload.readUInt8(0),
    bmcId: payload.readUInt32LE(4),
    consoleRandom: payload.subarray(8, 24),
    role: payload.readUInt8(24),
    user: payload.subarray(28, 28 + userBytes),
  }
}

/** RAKP 2: 40 bytes and the code, or 8 for a refusal. */
export function encodeRakp2(rakp: Rakp2 | (Refused & { consoleId: number })): Buffer {
  if (!('code' in rakp)) return encodeRefusal(rakp)
  const payload = Buffer.alloc(40 + rakp.code.length)
  payload.writeUInt8(rakp.tag, 0)
  payload.writeUInt32LE(rakp.consoleId, 4)
  rakp.bmcRandom.copy(payload, 8, 0, 16)
  rakp.guid.copy(payload, 24, 0, 16)
  rakp.code.copy(payload, 40)
  return payload
}

export function parseRakp2(payload: Buffer): Rakp2 | Refused | undefined {
  const refusal = parseRefusal(payload)
  if (refusal) return refusal
  if (payload.length < 40) return undefined
  return {
    tag: payload.readUInt8(0),
    status: 0,
    consoleId: payload.readUInt32LE(4),
    bmcRandom: payload.subarray(8, 24),
    guid: payload.subarray(24, 40),
    code: payload.subarray(40),
  }
}

/** RAKP 3: 8 bytes and the code. */
export function encodeRakp3(rakp: Rakp3): Buffer {
  const payload = Buffer.alloc(8 + rakp.code.length)
  payload.writeUInt8(rakp.tag, 0)
  payload.writeUInt8(rakp.status, 1)
  payload.writeUInt32LE(rakp.bmcId, 4)
  rakp.code.copy(payload, 8)
  return payload
}

export function parseRakp3(payload: Buffer): Rakp3 | undefined {
  if (payload.length < 8) return undefined
  return { tag: payload.readUInt8(0), status: payload.readUInt8(1), bmcId: payload.readUInt32LE(4), code: payload.subarray(8) }
}

/** RAKP 4: 8 bytes and the integrity check value, or 8 for a refusal. */
export function encodeRakp4(rakp: Rakp4 | (Refused & { consoleId: number })): Buffer {
  if (!('check' in rakp)) return encodeRefusal(rakp)
  const payload = Buffer.alloc(8 + rakp.check.length)
  payload.writeUInt8(rakp.tag, 0)
  payload.writeUInt32LE(rakp.consoleId, 4)
  rakp.check.copy(payload, 8)
  return payload
}

export function parseRakp4(payload: Buffer): Rakp4 | Refused | undefined {
  const refusal = parseRefusal(payload)
  if (refusal) return refusal
  if (payload.length < 8) return undefined
  return { tag: payload.readUInt8(0), status: 0, consoleId: payload.readUInt32LE(4), check: payload.subarray(8) }
}

function encodeRefusal(refusal: Refused & { consoleId: number }): Buffer {
  const payload = Buffer.alloc(8)
  payload.writeUInt8(refusal.tag, 0)
  payload.writeUInt8(refusal.status, 1)
  payload.writeUInt32LE(refusal.consoleId, 4)
  return payload
}

/** Refusals of 2 and of 8 bytes are both seen: only tag and status count. */
function parseRefusal(payload: Buffer): Refused | undefined {
  if (payload.length < 2 || payload.readUInt8(1) === 0) return undefined
  return { tag: payload.readUInt8(0), status: payload.readUInt8(1) }
}

/** Three records of 8 bytes: type, 0, 0, length 8, algorithm, 0, 0, 0. */
function writeAlgorithms(payload: Buffer, at: number, algorithms: Algorithms): void {
  const numbers = [algorithms.authentication, algorithms.integrity, algorithms.confidentiality]
  for (const [type, number] of numbers.entries()) {
    payload.writeUInt8(type, at + 8 * type)
    payload.writeUInt8(8, at + 8 * type + 3)
    payload.writeUInt8(number, at + 8 * type + 4)
  }
}

function readAlgorithms(payload: Buffer, at: number): Algorithms {
  return {
    authentication: payload.readUInt8(at + 4) & 0x3f,
    integrity: payload.readUInt8(at + 12) & 0x3f,
    confidentiality: payload.readUInt8(at + 20) & 0x3f,
  }
}
