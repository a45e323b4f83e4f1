/**
 * The cipher suites we speak, as a table. Only 3 and 17: both authenticate, protect and encrypt. Suites 0, 1, 2, 6-8, 15 and 16
 * leave one of these out and are absent on purpose (IPMI v2.0 table 22-20; facts 4.2).
 */

export type SuiteId = 3 | 17

/** The three algorithm numbers of an Open Session exchange (IPMI v2.0 tables 13-17, 13-18, 13-19). */
export interface Algorithms {
  authentication: number
  integrity: number
  confidentiality: number
}

export interface Suite extends Readonly<Algorithms> {
  readonly id: SuiteId
  /** The name of the hash in node:crypto. */
  readonly hash: 'sha1' | 'sha256'
  /** Length in bytes of the codes in RAKP 2 and RAKP 3: the whole HMAC. */
  readonly rakpCodeBytes: 20 | 32
  /** Length in bytes of the RAKP 4 integrity check value and of each packet's authcode: a truncated HMAC. */
  readonly authcodeBytes: 12 | 16
}

export const suites: Readonly<Record<SuiteId, Suite>> = {
  3: { id: 3, hash: 'sha1', authentication: 1, integrity: 1, confidentiality: 1, rakpCodeBytes: 20, authcodeBytes: 12 },
  17: { id: 17, hash: 'sha256', authentication: 3, integrity: 4, confidentiality: 1, rakpCodeBytes: 32, authcodeBytes: 16 },
}

/**
 * Our suite with exactly these algorithms, or undefined. Suites are judged by algorithms, never by id: firmware exists that offers
 * "17" with other algorithms (ipmitool#363).
 */
export function suiteOfAlgorithms(algorithms: Algorithms): Suite | undefined {
  return Object.values(suites).find(
    suite =>
      suite.authentication === algorithms.authentication &&
      suite.integrity === algorithms.integrity &&
      suite.confidentiality === algorithms.confidentiality,
  )
}

/** One record of Get Channel Cipher Suites: an id and every algorithm it may be used with. */
export interface SuiteRecord {
  id: number
  /** IANA enterprise number, of OEM suites only. */
  enterprise?: number
  authentication: number[]
  integrity: number[]
  confidentiality: number[]
}

/**
 * Reads the joined pages of Get Channel Cipher Suites (IPMI v2.0 22.15.1). Records start with C0 (id) or C1 (id, 3 bytes IANA);
 * the two top bits of the bytes after say which algorithm they name. Bytes that fit nowhere are skipped; a cut record at the end
 * is dropped.
 */
export function parseSuiteRecords(bytes: Buffer): SuiteRecord[] {
  const records: SuiteRecord[] = []
  let at = 0
  while (at < bytes.length) {
    const start = bytes.readUInt8(at)
    const headBytes = start === 0xc0 ? 2 : start === 0xc1 ? 5 : 0
    if (headBytes === 0) {
      at += 1
      continue
    }
    if (at + headBytes > bytes.length) break
    const record: SuiteRecord = { id: bytes.readUInt8(at + 1), authentication: [], integrity: [], confidentiality: [] }
    if (start === 0xc1) record.enterprise = bytes.readUIntLE(at + 2, 3)
    at += headBytes
    for (; at < bytes.length && bytes.readUInt8(at) < 0xc0; at++) {
      const byte = bytes.readUInt8(at)
      const list = byte < 0x40 ? record.authentication : byte < 0x80 ? record.integrity : record.confidentiality
      list.push(byte & 0x3f)
    }
    records.push(record)
  }
  return records
}

/** The bytes of suite records, the way a BMC lists them: the inverse of parseSuiteRecords. Algorithm numbers are 0 to 63. */
export function encodeSuiteRecords(records: readonly SuiteRecord[]): Buffer {
  const bytes: number[] = []
  for (const record of records) {
    if (record.enterprise === undefined) bytes.push(0xc0, record.id)
    else bytes.push(0xc1, record.id, record.enterprise & 0xff, (record.enterprise >> 8) & 0xff, (record.enterprise >> 16) & 0xff)
    for (const algorithm of record.authentication) bytes.push(algorithm & 0x3f)
    for (const algorithm of record.integrity) bytes.push(0x40 | (algorithm & 0x3f))
    for (const algorithm of record.confidentiality) bytes.push(0x80 | (algorithm & 0x3f))
  }
  return Buffer.from(bytes)
}

/** Our suites among the records, strongest first. */
export function suitesOffered(records: readonly SuiteRecord[]): SuiteId[] {
  const offers = (suite: Suite) =>
    records.some(
      record =>
        record.enterprise === undefined &&
        record.authentication.includes(suite.authentication) &&
        record.integrity.includes(suite.integrity) &&
        record.confidentiality.includes(suite.confidentiality),
    )
  return ([17, 3] as const).filter(id => offers(suites[id]))
}
