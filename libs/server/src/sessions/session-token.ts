// A session's token: what it says, signed (Ed25519), so that whoever trusts the key needs nobody to check it. It says who and until when; what
// that person may do is looked up at every call.
import { durationMs } from '@muster/shared/duration'
import { z } from 'zod'
import type { Signer, Verifier } from '../global/signature.ts'

export const longestSessionMs = durationMs('24h')

/** Short names, because it travels with every request. Strict: a field that this release does not know might limit what the session may do. */
const payload = z
  .strictObject({
    /** The user's name. */
    u: z.string().min(1).max(64),
    /** The mark of the user's sessions when it began; empty where there was none. */
    m: z.string().max(20),
    /** Epoch seconds. */
    i: z.number().int().min(0),
    e: z.number().int().min(0),
    /** The provider that said who it is; with the group it was let in by, where it has no document of its own. */
    p: z.string().min(1).max(31).optional(),
    g: z.string().min(1).max(100).optional(),
  })
  .refine(({ p, g }) => g === undefined || p !== undefined, 'a group is of a provider')
  .refine(({ i, e }) => e > i && (e - i) * 1000 <= longestSessionMs, 'lasts longer than any session')

export interface Session {
  readonly user: string
  readonly mark: string
  /** Epoch milliseconds, in whole seconds. */
  readonly startedAt: number
  readonly expiresAt: number
  /** Who said who it is, where that was an OpenID Connect provider. */
  readonly provider?: string
  /** The group that its role is that of, where there is no document of the user. */
  readonly group?: string
}

/** `ms1.<payload>.<public key>.<signature>`, each in base64url. */
const form = /^ms1\.([A-Za-z0-9_-]{1,800})\.([A-Za-z0-9_-]{43})\.([A-Za-z0-9_-]{86})$/

const toBase64Url = (bytes: Buffer) => bytes.toString('base64url')
const fromBase64Url = (text: string) => Buffer.from(text, 'base64url')

export function sessionToken({ user, mark, startedAt, expiresAt, provider, group }: Session, signer: Signer): string {
  const said: z.input<typeof payload> = { u: user, m: mark, i: startedAt / 1000, e: expiresAt / 1000, p: provider, g: group }
  const { payload: text, key, signature } = signer.sign(JSON.stringify(said))
  const parts = [Buffer.from(text), Buffer.from(key, 'hex'), Buffer.from(signature, 'base64')]
  return ['ms1', ...parts.map(toBase64Url)].join('.')
}

/** What a token says, where a trusted key signed it; undefined for anything else. Whether it has expired is not looked at. */
export function readSessionToken(token: string, verifier: Verifier): Session | undefined {
  const parts = form.exec(token)
  if (!parts) return undefined
  const [text, key, signature] = parts.slice(1).map(part => fromBase64Url(part as string)) as [Buffer, Buffer, Buffer]
  try {
    verifier.check({ payload: text.toString(), key: key.toString('hex'), signature: signature.toString('base64') })
    const { u, m, i, e, p, g } = payload.parse(JSON.parse(text.toString()))
    const from = { ...(p !== undefined && { provider: p }), ...(g !== undefined && { group: g }) }
    return { user: u, mark: m, startedAt: i * 1000, expiresAt: e * 1000, ...from }
  } catch {
    return undefined // why is nobody's business who sends such a token
  }
}
