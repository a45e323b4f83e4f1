/**
 * The keys and codes of an IPMI v2.0 session: what both ends compute from the password and the six values of the RAKP exchange
 * (IPMI v2.0 13.28, 13.31, 13.32; facts 4.3).
 */
import { createCipheriv, createDecipheriv, createHmac, createSecretKey, type KeyObject, timingSafeEqual } from 'node:crypto'
import type { Suite } from './suites.ts'

/** Limits in bytes, not characters: UTF-8 is sent as it is. */
export const userBytesMax = 16
export const passwordBytesMax = 20
export const kgBytesMax = 20

/** Every value that goes into the hashes. Ids are unsigned 32-bit numbers. */
export interface Exchange {
  suite: Suite
  consoleId: number
  bmcId: number
  /** 16 random bytes of the console (Rm). */
  consoleRandom: Buffer
  /** 16 random bytes of the BMC (Rc). */
  bmcRandom: Buffer
  /** 16 bytes of the BMC's GUID as they were on the wire. */
  guid: Buffer
  /** The whole role byte of RAKP 1, bit 4 included: it is hashed as sent. */
  role: number
  /** The user name's bytes, 0 to 16 of them, not padded. */
  user: Buffer
}

export interface SessionKeys {
  suite: Suite
  sik: Buffer
  k1: Buffer
  k2: Buffer
  /** K1, which signs the packets. Key objects, because node:crypto needs 12 µs per call with a key in a buffer, and 2 with these. */
  signingKey: KeyObject
  /** The first 16 bytes of K2, which encrypt the packets. */
  encryptionKey: KeyObject
}

/** A password or K_g as a key: zero-padded to 20 bytes, for SHA-256 as well (all four implementations read agree). */
export function paddedKey(secret: Buffer): Buffer {
  if (secret.length > passwordBytesMax) throw new RangeError(`an IPMI key holds at most ${passwordBytesMax} bytes, got ${secret.length}`)
  const key = Buffer.alloc(passwordBytesMax)
  secret.copy(key)
  return key
}

/** HMAC(Kuid, SIDm | SIDc | Rm | Rc | GUID | role | length | name): how the BMC proves in RAKP 2 that it knows the password. */
export function rakp2Code(exchange: Exchange, passwordKey: Buffer): Buffer {
  return createHmac(exchange.suite.hash, passwordKey)
    .update(u32(exchange.consoleId))
    .update(u32(exchange.bmcId))
    .update(exchange.consoleRandom)
    .update(exchange.bmcRandom)
    .update(exchange.guid)
    .update(roleAndName(exchange))
    .digest()
}

/** HMAC(Kuid, Rc | SIDm | role | length | name): how the console proves in RAKP 3 that it knows the password. */
export function rakp3Code(exchange: Exchange, passwordKey: Buffer): Buffer {
  return createHmac(exchange.suite.hash, passwordKey)
    .update(exchange.bmcRandom)
    .update(u32(exchange.consoleId))
    .update(roleAndName(exchange))
    .digest()
}

/** HMAC(SIK, Rm | SIDc | GUID), cut to the suite's length: the RAKP 4 integrity check value. */
export function rakp4Check(exchange: Exchange, keys: SessionKeys): Buffer {
  return createHmac(exchange.suite.hash, keys.sik)
    .update(exchange.consoleRandom)
    .update(u32(exchange.bmcId))
    .update(exchange.guid)
    .digest()
    .subarray(0, exchange.suite.authcodeBytes)
}

/**
 * The session's keys. `kgKey` is the padded K_g; leave it out, or pass zeros, when none is set: then the password's key stands in.
 * K1 and K2 hash a constant of 20 bytes, not one hash block: all four implementations read agree against the spec's wording.
 */
export function deriveKeys(exchange: Exchange, passwordKey: Buffer, kgKey?: Buffer): SessionKeys {
  const sik = createHmac(exchange.suite.hash, kgKey?.some(byte => byte !== 0) ? kgKey : passwordKey)
    .update(exchange.consoleRandom)
    .update(exchange.bmcRandom)
    .update(roleAndName(exchange))
    .digest()
  const k1 = createHmac(exchange.suite.hash, sik).update(constant1).digest()
  const k2 = createHmac(exchange.suite.hash, sik).update(constant2).digest()
  return {
    suite: exchange.suite,
    sik,
    k1,
    k2,
    signingKey: createSecretKey(k1),
    encryptionKey: createSecretKey(k2.subarray(0, 16)),
  }
}

/** Compares two codes in constant time; codes of different length differ. */
export function codesMatch(a: Buffer, b: Buffer): boolean {
  return a.length === b.length && timingSafeEqual(a, b)
}

/** The authcode of a packet's covered bytes (from the 06 to the next-header byte), cut to the suite's length. */
export function authcode(covered: Buffer, keys: SessionKeys): Buffer {
  return createHmac(keys.suite.hash, keys.signingKey).update(covered).digest().subarray(0, keys.suite.authcodeBytes)
}

/** AES-128-CBC as IPMI wants it: 16 bytes of IV, then the payload padded with 01 02 .. n and n itself (IPMI v2.0 13.29). */
export function encryptPayload(payload: Buffer, keys: SessionKeys, iv: Buffer): Buffer {
  const padBytes = (16 - ((payload.length + 1) % 16)) % 16
  const padded = Buffer.allocUnsafe(payload.length + padBytes + 1)
  payload.copy(padded)
  for (let i = 0; i < padBytes; i++) padded.writeUInt8(i + 1, payload.length + i)
  padded.writeUInt8(padBytes, padded.length - 1)
  const cipher = createCipheriv('aes-128-cbc', keys.encryptionKey, iv).setAutoPadding(false)
  return Buffer.concat([iv, cipher.update(padded)])
}

/**
 * Undoes encryptPayload. Undefined when the length is not an IV and whole blocks, or the pad length exceeds 15. The pad's content is
 * not judged: the packet's authcode has been verified before, and some firmware writes other bytes there.
 */
export function decryptPayload(encrypted: Buffer, keys: SessionKeys): Buffer | undefined {
  if (encrypted.length < 32 || encrypted.length % 16 !== 0) return undefined
  const decipher = createDecipheriv('aes-128-cbc', keys.encryptionKey, encrypted.subarray(0, 16)).setAutoPadding(false)
  const padded = decipher.update(encrypted.subarray(16))
  const padBytes = padded.readUInt8(padded.length - 1)
  if (padBytes > 15) return undefined
  return padded.subarray(0, padded.length - 1 - padBytes)
}

const constant1 = Buffer.alloc(20, 1)
const constant2 = Buffer.alloc(20, 2)

function u32(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(4)
  bytes.writeUInt32LE(value)
  return bytes
}

function roleAndName(exchange: Exchange): Buffer {
  return Buffer.concat([Buffer.of(exchange.role, exchange.user.length), exchange.user])
}
