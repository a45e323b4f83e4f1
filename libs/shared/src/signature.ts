// What is signed in Muster, and how one checks it: Ed25519 (RFC 8032) over a text that begins with its purpose, so that a signature made for something else is none here.

export type Purpose = 'global configuration' | 'erasure certificate' | 'audit log' | 'session'

/** The bytes that are signed. */
export function signedBytes(purpose: Purpose, payload: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(`muster ${purpose}\n${payload}`)
}

/** Whether `signature` (base64) over `payload` was made with the private half of `key` (hex). */
export async function isSignature(
  purpose: Purpose,
  payload: string,
  { signature, key }: { signature: string; key: string },
): Promise<boolean> {
  const raw = Uint8Array.from(key.match(/../g) ?? [], pair => Number.parseInt(pair, 16))
  const given = Uint8Array.from(atob(signature), character => character.charCodeAt(0))
  const publicKey = await crypto.subtle.importKey('raw', raw, 'Ed25519', false, ['verify'])
  return crypto.subtle.verify('Ed25519', publicKey, given, signedBytes(purpose, payload))
}
