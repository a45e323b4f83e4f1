// Who may come in: API tokens, of which only the SHA-256 is kept. A token is 256 random bits, so a plain fast hash is enough: there is
// nothing to guess, unlike with a password.
import { hash, randomBytes, timingSafeEqual } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { type Role, roles } from '@muster/shared/contract/call'
import { z } from 'zod'
import type { Log } from './log.ts'

/** A token as the server knows it. */
export interface TokenOwner {
  readonly name: string
  readonly role: Exclude<Role, 'public'>
  /** The pools it is limited to; all where left out. */
  readonly pools?: readonly string[]
}

/** Where the doors look tokens up. */
export interface Tokens {
  /** Whom the token belongs to, or undefined. */
  find(token: string): TokenOwner | undefined
  /** Why a token that was good once lets nobody in any more; undefined where it never was, or is good. */
  ended?(token: string): string | undefined
}

export const tokensFile = z.strictObject({
  tokens: z.array(
    z.strictObject({
      name: z.string().min(1).max(100),
      role: z.enum(roles).exclude(['public']),
      sha256: z.string().regex(/^[0-9a-f]{64}$/, 'is not a SHA-256 in lower-case hex'),
    }),
  ),
})
export type TokensFile = z.output<typeof tokensFile>

/** What to do where there is no tokens file. */
export const tokensFileHelp =
  'a file that says who may come in: {"tokens":[{"name":"admin","role":"admin","sha256":"…"}]}; a token is what `openssl rand -hex 32` prints, its sha256 what `printf %s TOKEN | sha256sum` does'

/** A new token of 256 bits, and what the tokens file keeps of it. */
export function newToken(): { token: string; sha256: string } {
  const token = randomBytes(32).toString('base64url')
  return { token, sha256: hashToken(token) }
}

/** SHA-256 of a token, in hex. */
export function hashToken(token: string): string {
  return hash('sha256', token)
}

/**
 * Tokens that do not change. The look-up is by hash: how long it takes tells about the hash of what was sent, from which nobody can steer
 * towards a hash that is kept; the comparison that decides is constant-time.
 */
export function tokensOf(file: TokensFile): Tokens {
  const byHash = new Map(file.tokens.map(({ name, role, sha256 }) => [sha256, { hash: Buffer.from(sha256, 'hex'), owner: { name, role } }]))
  return {
    find: token => {
      const hex = hashToken(token)
      const known = byHash.get(hex)
      return known && timingSafeEqual(known.hash, Buffer.from(hex, 'hex')) ? known.owner : undefined
    },
  }
}

/**
 * The tokens of a JSON file (`{"tokens":[{"name":"admin","role":"admin","sha256":"…"}]}`), read again within `everyMs` when it changes. A
 * file that becomes unreadable or wrong changes nothing and is logged: a slip of an editor must not lock everybody out. Throws when the
 * first reading fails.
 */
export function openTokens(options: { file: string; log: Log; everyMs?: number }): Tokens & { close: () => void } {
  const { file, log, everyMs = 1000 } = options
  let tokens = readTokens(file)
  let seen: string | undefined
  let isLooking = false
  const look = async () => {
    // A slow disk must not pile up looks.
    if (isLooking) return
    isLooking = true
    try {
      const { mtimeMs, size, ino } = await stat(file)
      const version = `${mtimeMs} ${size} ${ino}`
      if (version === seen) return
      seen = version
      tokens = readTokens(file)
    } catch (cause) {
      const reason = (cause as Error).message
      if (seen !== reason) log.error({ file }, `the tokens file cannot be used, the tokens before stay in force: ${reason}`)
      seen = reason
    } finally {
      isLooking = false
    }
  }
  const timer = setInterval(() => void look(), everyMs)
  timer.unref()
  return { find: token => tokens.find(token), close: () => clearInterval(timer) }
}

function readTokens(file: string): Tokens {
  let content: unknown
  try {
    content = JSON.parse(readFileSync(file, 'utf8'))
  } catch (cause) {
    const help = (cause as NodeJS.ErrnoException).code === 'ENOENT' ? `; MUSTER_TOKENS_FILE names ${tokensFileHelp}` : ''
    throw new Error(`read tokens from ${file}: ${(cause as Error).message}${help}`, { cause })
  }
  const parsed = tokensFile.safeParse(content)
  if (!parsed.success) throw new Error(`read tokens from ${file}: ${z.prettifyError(parsed.error)}`)
  return tokensOf(parsed.data)
}
