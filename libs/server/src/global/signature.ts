// Signatures: Ed25519 (RFC 8032). A partition takes no global configuration that does not bear a front's; erasure certificates bear the partition's;
// sessions of people the front's or the partition's.
import { createPrivateKey, createPublicKey, type KeyObject, sign, verify } from 'node:crypto'
import type { SignedCopy } from '@muster/shared/global/copy'
import { type Purpose, signedBytes } from '@muster/shared/signature'

// RFC 8410: what stands before the 32 bytes of a key in its DER form.
const privatePrefix = Buffer.from('302e020100300506032b657004220420', 'hex')
const publicPrefix = Buffer.from('302a300506032b6570032100', 'hex')

export interface Signer {
  /** The public key, hex: what partitions are told to trust. */
  readonly publicKey: string
  sign(payload: string): SignedCopy
  /** The same key for another purpose. */
  as(other: Purpose): Signer
}

/** `seed`: the private key, 32 bytes in hex. */
export function createSigner(seed: string, purpose: Purpose = 'global configuration'): Signer {
  const key = createPrivateKey({ key: Buffer.concat([privatePrefix, Buffer.from(seed, 'hex')]), format: 'der', type: 'pkcs8' })
  const publicKey = createPublicKey(key).export({ format: 'der', type: 'spki' }).subarray(publicPrefix.length).toString('hex')
  return {
    publicKey,
    as: other => createSigner(seed, other),
    sign: payload => ({ payload, signature: sign(null, signedBytes(purpose, payload), key).toString('base64'), key: publicKey }),
  }
}

export interface Verifier {
  /** Throws, saying why, where the copy was not signed by a key that is trusted. */
  check(copy: SignedCopy): void
}

/** `publicKeys`: those trusted, 32 bytes in hex each; several while a key is changed for another. */
export function createVerifier(publicKeys: readonly string[], purpose: Purpose = 'global configuration'): Verifier {
  const trusted = new Map<string, KeyObject>(
    publicKeys.map(hex => [
      hex,
      createPublicKey({ key: Buffer.concat([publicPrefix, Buffer.from(hex, 'hex')]), format: 'der', type: 'spki' }),
    ]),
  )
  return {
    check: ({ payload, signature, key }) => {
      const known = trusted.get(key)
      if (!known) throw new Error(`the ${purpose} is signed with the key ${key}, which is not trusted here`)
      if (!verify(null, signedBytes(purpose, payload), known, Buffer.from(signature, 'base64')))
        throw new Error(`the signature of the ${purpose} is not right: it was changed on its way, or forged`)
    },
  }
}
