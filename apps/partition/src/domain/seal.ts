// Secrets at rest: AES-256-GCM under the partition's key file. A sealed value is bound to its place (the `context`), so that a row's secret
// cannot be pasted into another row. Layout: version 1, IV 12 bytes, tag 16 bytes, ciphertext.
import { createCipheriv, createDecipheriv, createHmac, hkdfSync, randomBytes, timingSafeEqual } from 'node:crypto'

const version = 1
const ivBytes = 12
const tagBytes = 16

export class Seal {
  readonly #key: Buffer
  readonly #signingKey: Buffer
  readonly #certificateSeed: Buffer

  /** `key`: 32 bytes. Throws RangeError for any other length. */
  constructor(key: Buffer) {
    if (key.length !== 32) throw new RangeError(`a sealing key has 32 bytes, this one ${key.length}`)
    this.#key = Buffer.from(hkdfSync('sha256', key, '', 'muster seal', 32))
    this.#signingKey = Buffer.from(hkdfSync('sha256', key, '', 'muster machine token', 32))
    this.#certificateSeed = Buffer.from(hkdfSync('sha256', key, '', 'muster erasure certificate', 32))
  }

  /** A private key for signatures that others can check: 32 bytes, hex. The same for ever. */
  certificateSeed(): string {
    return this.#certificateSeed.toString('hex')
  }

  /** Seals a JSON value for `context`, e.g. `power lon1-4y3h7n`. */
  seal(value: unknown, context: string): Buffer {
    const iv = randomBytes(ivBytes)
    const cipher = createCipheriv('aes-256-gcm', this.#key, iv).setAAD(Buffer.from(context))
    const text = Buffer.concat([cipher.update(JSON.stringify(value)), cipher.final()])
    return Buffer.concat([Buffer.of(version), iv, cipher.getAuthTag(), text])
  }

  /** Opens what {@link seal} made for the same context. Throws where the key, the context or a byte is another. */
  open(sealed: Buffer, context: string): unknown {
    if (sealed[0] !== version || sealed.length < 1 + ivBytes + tagBytes)
      throw new Error(`the sealed value of "${context}" has an unknown form`)
    const iv = sealed.subarray(1, 1 + ivBytes)
    const tag = sealed.subarray(1 + ivBytes, 1 + ivBytes + tagBytes)
    const decipher = createDecipheriv('aes-256-gcm', this.#key, iv).setAAD(Buffer.from(context)).setAuthTag(tag)
    try {
      return JSON.parse(Buffer.concat([decipher.update(sealed.subarray(1 + ivBytes + tagBytes)), decipher.final()]).toString())
    } catch (error) {
      throw new Error(`the sealed value of "${context}" does not open with this key file`, { cause: error })
    }
  }

  /** 32 characters that only this key can make for `text`. */
  sign(text: string): string {
    return createHmac('sha256', this.#signingKey).update(text).digest('base64url').slice(0, 32)
  }

  isSignature(signature: string, text: string): boolean {
    const wanted = Buffer.from(this.sign(text))
    const given = Buffer.from(signature)
    return given.length === wanted.length && timingSafeEqual(given, wanted)
  }
}
