// One attempt at one batch: a signed POST, and what came of it. Headers and signature are those of the Standard Webhooks specification 1.0
// (standardwebhooks.com), so that receivers need no code of ours.
import { createHmac } from 'node:crypto'
import http, { type IncomingMessage } from 'node:http'
import https from 'node:https'
import { isIP } from 'node:net'
import type { Secret } from '@muster/shared/secret'
import { guardedLookup, isRefusedAddress, RefusedAddress } from './addresses.ts'

export interface Message {
  readonly url: string
  /** The same over all attempts: by it a receiver knows a message again. */
  readonly id: string
  readonly body: string
  /** The one in force, and during a change the one before it: the receiver has one of them. */
  readonly secrets: readonly Secret[]
}

/** `gone`: the receiver said that it wants nothing any more (410). Every other answer but 2xx may become one. */
export type PostOutcome =
  | { readonly kind: 'delivered' }
  /** `afterMs`: when the receiver wants to be asked again, where it said so. */
  | { readonly kind: 'failed'; readonly reason: string; readonly afterMs?: number }
  | { readonly kind: 'gone'; readonly reason: string }

/** More than this of an answer is not read. */
const answerBytesMax = 16_384
/** So much of it is told. */
const excerptLength = 160

/** Posts a message once. Answers what came of it, whatever that is; throws only when `signal` has ended it: then nothing is known. */
export async function post(message: Message, { limitMs, signal }: { limitMs: number; signal: AbortSignal }): Promise<PostOutcome> {
  const url = new URL(message.url)
  const limit = AbortSignal.timeout(limitMs)
  const failed = (got: string): PostOutcome => ({ kind: 'failed', reason: `POST ${url.origin}: ${got}` })
  try {
    const response = await send(url, message, AbortSignal.any([signal, limit]))
    const status = response.statusCode ?? 0
    if (status >= 200 && status <= 299) {
      readNoFurther(response)
      return { kind: 'delivered' }
    }
    const reason = `POST ${url.origin}: HTTP ${status}${redirectNote(status)}${said(await excerptOf(response))}`
    if (status === 410) return { kind: 'gone', reason }
    const afterMs = status === 429 || status === 503 ? retryAfterMs(response.headers['retry-after'], Date.now()) : undefined
    return { kind: 'failed', reason, ...(afterMs !== undefined && { afterMs }) }
  } catch (error) {
    if (signal.aborted) throw error
    if (limit.aborted) return failed(`no answer within ${limitMs / 1000} s`)
    const { code, message: text } = error as NodeJS.ErrnoException
    return failed(error instanceof RefusedAddress ? text : (code ?? text))
  }
}

/** What Retry-After says (RFC 9110, 10.2.3: seconds, or a date), in milliseconds from now; undefined where it says nothing that can be read. */
export function retryAfterMs(text: string | undefined, now: number): number | undefined {
  if (text === undefined) return undefined
  if (/^\d{1,9}$/.test(text)) return Number(text) * 1000
  const at = / GMT$/.test(text) ? Date.parse(text) : Number.NaN
  return Number.isNaN(at) ? undefined : Math.max(0, at - now)
}

/** The signature header: HMAC-SHA256 over id, time and body with each secret, with spaces between. */
function signaturesOf({ id, body, secrets }: Omit<Message, 'url'>, atSeconds: number): string {
  const keys = secrets.map(secret => Buffer.from(secret.reveal().slice('whsec_'.length), 'base64'))
  return keys.map(key => `v1,${createHmac('sha256', key).update(`${id}.${atSeconds}.${body}`).digest('base64')}`).join(' ')
}

async function send(url: URL, message: Message, signal: AbortSignal): Promise<IncomingMessage> {
  const host = url.hostname.replace(/^\[|\]$/g, '')
  if (isIP(host) !== 0 && isRefusedAddress(host)) throw new RefusedAddress(host)
  const atSeconds = Math.floor(Date.now() / 1000)
  const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>()
  const request = (url.protocol === 'https:' ? https : http).request(url, {
    method: 'POST',
    // A connection of its own: an attempt every second at most, and none that the receiver has closed meanwhile.
    agent: false,
    lookup: guardedLookup,
    signal,
    headers: {
      'content-type': 'application/json',
      'content-length': Buffer.byteLength(message.body),
      'user-agent': 'Muster',
      'webhook-id': message.id,
      'webhook-timestamp': String(atSeconds),
      'webhook-signature': signaturesOf(message, atSeconds),
    },
  })
  request.on('error', reject)
  request.on('response', resolve)
  request.end(message.body)
  return promise
}

/** The status has said it all; a connection that is cut in the middle of its answer looks like trouble to the receiver. */
function readNoFurther(response: IncomingMessage): void {
  let bytes = 0
  response.on('error', () => undefined)
  response.on('data', (chunk: Buffer) => {
    bytes += chunk.length
    if (bytes > answerBytesMax) response.destroy()
  })
}

async function excerptOf(response: IncomingMessage): Promise<string> {
  let text = ''
  for await (const chunk of response as AsyncIterable<Buffer>) {
    text += chunk.toString('utf8')
    if (text.length > answerBytesMax) break
  }
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is removed
  const line = text.replaceAll(/[\s\u0000-\u001f\u007f-\u009f]+/g, ' ').trim()
  return line.length > excerptLength ? `${line.slice(0, excerptLength)}…` : line
}

const redirectNote = (status: number) => (status >= 300 && status <= 399 ? ' (redirects are not followed; set the final address)' : '')
const said = (excerpt: string) => (excerpt === '' ? '' : `: ${excerpt}`)
