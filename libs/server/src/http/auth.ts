// Who asks: the bearer token of a request, and a limit on wrong tokens per address.
import type { Caller } from '@muster/shared/contract/call'
import { Refusal } from '@muster/shared/errors'
import { type FailureLimit, Failures } from '../failures.ts'
import type { TokenOwner, Tokens } from '../tokens.ts'

export interface Authenticator {
  /** Whom the Authorization header speaks for. Throws `unauthenticated`, or `too-many-requests` for an address that was wrong too often. */
  authenticate(authorization: string | undefined, address: string): Caller
  /** Whom the header of one that was let in speaks for by now. Counts nothing, whatever its address sends. Throws `unauthenticated`. */
  again(authorization: string | undefined): Caller
}

export interface AuthenticatorOptions {
  readonly tokens: Tokens
  readonly limit?: FailureLimit
  /** The clock, in epoch milliseconds. */
  readonly now?: () => number
  /** Told once when an address reaches the limit, so that it is in the log without a line per attempt. */
  readonly onLimit?: (address: string) => void
}

/** A person mistypes a few times and a stale script retries; more than this is neither. */
const usualLimit: FailureLimit = { failures: 20, windowMs: 60_000 }
/** Addresses remembered per token as places it was right from. */
const mostProven = 1000

const bearer = /^Bearer ([\x21-\x7e]{1,1024})$/i

const tokenIn = (authorization: string | undefined) => (authorization === undefined ? undefined : bearer.exec(authorization)?.[1])

/**
 * Authenticates by bearer token. An address over the limit is refused without regard to what it sends, except for tokens that were right from
 * there before: behind one address there may be many people, and one stale script must not lock the others out.
 */
export function createAuthenticator(options: AuthenticatorOptions): Authenticator {
  const { tokens, limit = usualLimit, now = Date.now, onLimit } = options
  const failures = new Failures({ limit, now, onLimit })
  const provenFrom = new WeakMap<TokenOwner, Set<string>>()

  const unknown = (token: string | undefined) => {
    // Whoever has a token that was good is no guesser.
    const ended = token === undefined ? undefined : tokens.ended?.(token)
    return ended === undefined
      ? { isGuess: true, refusal: new Refusal('unauthenticated', 'the token is not known here') }
      : { isGuess: false, refusal: new Refusal('unauthenticated', ended, { hint: 'log in again: muster login' }) }
  }

  return {
    again: authorization => {
      const token = tokenIn(authorization)
      const owner = token === undefined ? undefined : tokens.find(token)
      if (!owner) throw unknown(token).refusal
      return owner
    },
    authenticate: (authorization, address) => {
      // No token at all is no guess, so it does not count.
      if (authorization === undefined) throw new Refusal('unauthenticated', 'send a token: Authorization: Bearer <token>')
      const token = tokenIn(authorization)
      const owner = token === undefined ? undefined : tokens.find(token)
      let proven = owner && provenFrom.get(owner)
      if (owner && proven?.has(address)) return owner

      const waitMs = failures.refusedForMs(address)
      if (waitMs > 0) throw tooMany(waitMs)
      if (!owner) {
        const { isGuess, refusal } = unknown(token)
        if (isGuess) failures.count(address)
        throw refusal
      }
      if (!proven || proven.size >= mostProven) {
        proven = new Set()
        provenFrom.set(owner, proven)
      }
      proven.add(address)
      return owner
    },
  }
}

function tooMany(waitMs: number): Refusal {
  return new Refusal('too-many-requests', `too many wrong tokens came from this address; try again in ${Math.ceil(waitMs / 1000)} s`, {
    retryAfterMs: waitMs,
  })
}
