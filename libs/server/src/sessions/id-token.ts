// ID tokens of OpenID Connect providers, checked by jose: made by that issuer, for this client, just now, and signed with a key it publishes.
// Discovery and keys are fetched with limits and kept for a while, so that a provider is asked rarely and nobody can have it asked often.
import { Refusal } from '@muster/shared/errors'
import { isSafeUrl, type ProviderDocument } from '@muster/shared/global/documents'
import {
  createRemoteJWKSet,
  customFetch,
  decodeJwt,
  decodeProtectedHeader,
  errors,
  type JWTPayload,
  jwtVerify,
  type RemoteJWKSet,
} from 'jose'
import { z } from 'zod'

/** Asymmetric ones only: with a shared secret, whoever can check could forge; `none` is no signature. */
const algorithms = ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'ES512', 'EdDSA', 'Ed25519']
const fetchLimitMs = 4_000
const largestDocumentBytes = 512 * 1024
/** A provider's discovery document is looked at again after this time, as its keys are. */
const keptMs = 600_000
/** An unknown key, or a provider that failed, is no reason to ask more often than this. */
const cooldownMs = 30_000
const failedMs = 3_000
/** An ID token is exchanged when it is made; an older one was lying somewhere. */
const oldestToken = '10m'
const clockSkewSeconds = 60

interface Known {
  readonly at: number
  readonly keys: Promise<RemoteJWKSet>
  hasFailed: boolean
}

export class IdTokens {
  readonly #now: () => number
  /** By issuer: no more than there are documents, and few of those. */
  readonly #known = new Map<string, Known>()

  constructor(now: () => number) {
    this.#now = now
  }

  /** The claims of an ID token. Throws `unauthenticated` saying what is wrong with it, or `provider-away`. */
  async check(
    name: string,
    provider: ProviderDocument,
    { idToken, nonce }: { idToken: string; nonce: string | undefined },
  ): Promise<JWTPayload> {
    const { issuer, clientId } = provider
    try {
      // What no key could make right is refused before anybody is asked for keys.
      if (!algorithms.includes(decodeProtectedHeader(idToken).alg ?? '')) throw new Error('it is not signed in a way that is taken here')
      if (decodeJwt(idToken).iss !== issuer) throw new Error(`it is not from ${issuer}`)
      const { payload } = await jwtVerify(idToken, await this.#keysOf(issuer), {
        algorithms,
        issuer,
        audience: provider.audience ?? clientId,
        requiredClaims: ['sub', 'iat', 'exp'],
        maxTokenAge: oldestToken,
        clockTolerance: clockSkewSeconds,
        currentDate: new Date(this.#now()),
      })
      // OpenID Connect Core 3.1.3.7: who asked for the token, where it is for several.
      const isForSeveral = Array.isArray(payload.aud) && payload.aud.length > 1
      if ((payload.azp !== undefined || isForSeveral) && payload.azp !== clientId) throw new Error('another client asked for it')
      if (nonce !== undefined && payload.nonce !== nonce) throw new Error('its nonce is another')
      return payload
    } catch (error) {
      throw refusalOf(error, `log in with the ID token of ${name}`)
    }
  }

  #keysOf(issuer: string): Promise<RemoteJWKSet> {
    const known = this.#known.get(issuer)
    const ageMs = known ? this.#now() - known.at : 0
    if (known && ageMs < (known.hasFailed ? failedMs : keptMs)) return known.keys
    const fresh: Known = { at: this.#now(), keys: discover(issuer), hasFailed: false }
    fresh.keys.catch(() => {
      fresh.hasFailed = true
    })
    this.#known.set(issuer, fresh)
    return fresh.keys
  }
}

const discovery = z.object({ issuer: z.string(), jwks_uri: z.string() })

/** The keys of a provider, by what it says of itself (OpenID Connect Discovery 1.0). */
async function discover(issuer: string): Promise<RemoteJWKSet> {
  const url = `${issuer.replace(/\/$/, '')}/.well-known/openid-configuration`
  const response = await limitedFetch(url, {})
  if (response.status !== 200) throw new Unreachable(`${url} answered ${response.status}`)
  const found = discovery.safeParse(await response.json().catch(() => undefined))
  if (!found.success) throw new Unreachable(`${url} is no description of a provider`)
  const { issuer: own, jwks_uri: keys } = found.data
  if (own !== issuer) throw new Unreachable(`${url} speaks for ${own}`)
  if (!isSafeUrl(keys)) throw new Unreachable(`${url} has its keys at ${keys}, which is no https URL`)
  return createRemoteJWKSet(new URL(keys), {
    timeoutDuration: fetchLimitMs,
    cooldownDuration: cooldownMs,
    cacheMaxAge: keptMs,
    [customFetch]: (target, init) => limitedFetch(target, init),
  })
}

/** The provider, not the token, is at fault. */
class Unreachable extends Error {}

/** A fetch that follows nobody elsewhere, and neither waits nor reads for ever. */
async function limitedFetch(url: string, init: RequestInit): Promise<Response> {
  const limit = AbortSignal.timeout(fetchLimitMs)
  try {
    const response = await fetch(url, { ...init, redirect: 'error', signal: init.signal ? AbortSignal.any([init.signal, limit]) : limit })
    const chunks: Uint8Array<ArrayBuffer>[] = []
    let size = 0
    for await (const chunk of (response.body ?? []) as AsyncIterable<Uint8Array<ArrayBuffer>>) {
      size += chunk.byteLength
      if (size > largestDocumentBytes) throw new Error(`more than ${largestDocumentBytes} bytes came`)
      chunks.push(chunk)
    }
    return new Response(new Blob(chunks), { status: response.status, headers: response.headers })
  } catch (error) {
    const { message, cause } = error as Error
    throw new Unreachable(`${url}: ${cause instanceof Error ? `${message}: ${cause.message}` : message}`, { cause: error })
  }
}

function refusalOf(error: unknown, tried: string): Refusal {
  const { message } = error as Error
  const isAway = error instanceof Unreachable || error instanceof errors.JWKSTimeout || error instanceof errors.JWKSInvalid
  // jose names what it asked for where keys do not come, with this very class and nothing more precise.
  const isOdd = error instanceof errors.JOSEError && error.code === 'ERR_JOSE_GENERIC'
  if (isAway || isOdd)
    return new Refusal('provider-away', `${tried}: this server asked the provider and got no answer: ${message}`, {}, { cause: error })
  return new Refusal('unauthenticated', `${tried}: ${message}`, { hint: 'log in again: muster login' }, { cause: error })
}
