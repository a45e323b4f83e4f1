// Secrets at rest: AES-256-GCM under a key that only servers have. A sealed value is bound to its place (the `context`), so that one cannot be
// pasted where another stands. Layout: version 1, IV 12 bytes, tag 16 bytes, ciphertext.
import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from 'node:crypto'

const version = 1
const ivBytes = 12
const tagBytes = 16

/** A key of its own for each use of one key. */
export function derivedKey(key: Buffer, use: string): Buffer {
  return Buffer.from(hkdfSync('sha256', key, '', use, 32))
}

export class Sealer {
  readonly #key: Buffer

  /** `key`: 32 bytes, of which the key for this `use` is made. Throws RangeError for any other length. */
  constructor(key: Buffer, use: string) {
    if (key.length !== 32) throw new RangeError(`a sealing key has 32 bytes, this one ${key.length}`)
    this.#key = derivedKey(key, use)
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
}
