// What a partition does with its key file: it seals secrets at rest, and signs what only it may have said.
import { createHmac, createSecretKey, type KeyObject, timingSafeEqual } from 'node:crypto'
import { derivedKey, Sealer } from '@muster/server/seal'

export class Seal extends Sealer {
  /** Made once: with the bare bytes each signature makes one of its own, and costs six times as much. A herd has one signed for each script. */
  readonly #signingKey: KeyObject
  readonly #certificateSeed: Buffer
  readonly #sessionSeed: Buffer

  /** `key`: 32 bytes. Throws RangeError for any other length. */
  constructor(key: Buffer) {
    super(key, 'muster seal')
    this.#signingKey = createSecretKey(derivedKey(key, 'muster machine token'))
    this.#certificateSeed = derivedKey(key, 'muster erasure certificate')
    this.#sessionSeed = derivedKey(key, 'muster session')
  }

  /** A private key for signatures that others can check: 32 bytes, hex. The same for ever. */
  certificateSeed(): string {
    return this.#certificateSeed.toString('hex')
  }

  /** The same for the sessions that this partition begins. */
  sessionSeed(): string {
    return this.#sessionSeed.toString('hex')
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
