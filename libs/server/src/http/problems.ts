// Refusals as HTTP answers (RFC 9457), and the headers every answer of the API carries.
import { errorTable, problemOf, type Refusal } from '@muster/shared/errors'

/** On every answer of the API: never guessed at, never cached, never framed. */
export const apiHeaders = {
  'x-content-type-options': 'nosniff',
  'cache-control': 'no-store',
  'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
  'referrer-policy': 'no-referrer',
} as const

/** The answer that carries a refusal. `allow` goes with method-not-allowed. */
export function problemResponse(refusal: Refusal, requestId: string, more: Record<string, string> = {}): Response {
  const { status, retryable } = errorTable[refusal.code]
  const headers: Record<string, string> = { ...apiHeaders, 'content-type': 'application/problem+json', 'x-request-id': requestId, ...more }
  if (status === 401) headers['www-authenticate'] = 'Bearer realm="muster"'
  if (retryable === 'yes' && (status === 503 || status === 429)) headers['retry-after'] = String(retryAfterSeconds(refusal))
  return new Response(JSON.stringify(problemOf(refusal)), { status, headers })
}

/** What a refusal says by its fact `retryAfterMs`, in whole seconds; one second where it says nothing. */
function retryAfterSeconds({ facts: { retryAfterMs } }: Refusal): number {
  return typeof retryAfterMs === 'number' ? Math.max(1, Math.ceil(retryAfterMs / 1000)) : 1
}
