/**
 * One HTTP request to a power switch: no redirects, nothing kept open, an answer of limited size, and a certificate that is looked at
 * before the first byte of a secret is sent.
 */
// Default imports, because msw replaces the functions of these module objects: named imports would keep the real ones.
import http, { type IncomingMessage } from 'node:http'
import https from 'node:https'
import { isIP, type Socket } from 'node:net'
import tls from 'node:tls'
import { z } from 'zod'
import { Failure } from './failure.ts'
import type { Turn } from './turns.ts'

/** The settings of every driver that speaks HTTPS: spread them into its schema. */
export const tlsSettings = {
  tlsVerify: z
    .boolean()
    .default(true)
    .describe('Check the certificate of an https address. Without the check anybody on the path can read the secrets and give orders'),
  tlsCa: z
    .string()
    .max(65_536)
    .refine(text => text.includes('-----BEGIN CERTIFICATE-----'), 'not a PEM certificate')
    .optional()
    .describe('Certificate authority to trust instead of the public ones: PEM text'),
  tlsFingerprint: z
    .string()
    .regex(/^([0-9a-fA-F]{2}:){31}[0-9a-fA-F]{2}$/, 'not a SHA-256 fingerprint: 32 pairs of hex digits with colons between')
    .optional()
    .describe('SHA-256 fingerprint of the one certificate to trust, self-signed or not, e.g. 4F:0A:… (32 pairs)'),
}

export interface TlsTrust {
  tlsVerify: boolean
  tlsCa?: string | undefined
  tlsFingerprint?: string | undefined
}

export interface HttpRequest {
  url: URL
  method: string
  headers: Readonly<Record<string, string>>
  body?: string
  trust: TlsTrust
  /** `order` for what must not be taken for undone once it may have been sent. */
  purpose: 'question' | 'order'
  /** The whole exchange. */
  limitMs?: number
}

export interface HttpAnswer {
  status: number
  /** Some servers put their reason here and nothing in the body. */
  statusText: string
  body: string
}

/** An answer longer than this is not from a power switch. Proxmox lists a cluster's thousands of machines in one. */
const bodyBytesMax = 8 * 1024 * 1024
/** A switch that is there answers in well under a second; some embedded ones take several. */
const exchangeMs = 10_000

/** Sends the request and reads the answer, whatever its status. Throws Failure when there is none. */
export async function exchange(turn: Turn, request: HttpRequest): Promise<HttpAnswer> {
  const limitMs = request.limitMs ?? exchangeMs
  const limit = AbortSignal.timeout(limitMs)
  const signal = AbortSignal.any([turn.signal, limit])
  let sent = false
  const outcome = () => (sent && request.purpose === 'order' ? 'unknown' : 'none')
  try {
    return await send(request, signal, () => {
      sent = true
    })
  } catch (error) {
    if (error instanceof Failure) throw error
    if (turn.signal.aborted) throw turn.stopped(outcome())
    if (limit.aborted) throw noAnswer(`no answer within ${limitMs / 1000} s`, outcome())
    throw failureOf(error as NodeJS.ErrnoException, outcome())
  }
}

function send({ url, method, headers, body, trust }: HttpRequest, signal: AbortSignal, sending: () => void): Promise<HttpAnswer> {
  const { promise, resolve, reject } = Promise.withResolvers<HttpAnswer>()
  const options = { method, headers: { ...headers, 'content-length': String(Buffer.byteLength(body ?? '')) }, signal }
  const secure = url.protocol === 'https:'
  const request = secure
    ? https.request(url, {
        ...options,
        createConnection: (_options, done) => void trustedSocket(url, trust, signal).then(socket => done(null, socket), done as never),
      })
    : http.request(url, { ...options, agent: false })
  request.on('socket', socket => {
    if (socket.connecting) socket.once('connect', sending)
    else sending()
  })
  request.on('error', reject)
  request.on('response', response => void bodyOf(response).then(answer => resolve(answer), reject))
  request.end(body)
  return promise
}

async function bodyOf(response: IncomingMessage): Promise<HttpAnswer> {
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of response as AsyncIterable<Buffer>) {
    bytes += chunk.length
    if (bytes > bodyBytesMax) {
      response.destroy()
      throw new Failure({
        kind: 'protocol',
        got: `an answer of more than ${bodyBytesMax} bytes`,
        hint: 'The address is not the one of a power switch.',
        outcome: 'unknown',
      })
    }
    chunks.push(chunk)
  }
  return { status: response.statusCode ?? 0, statusText: response.statusMessage ?? '', body: Buffer.concat(chunks).toString('utf8') }
}

/**
 * A TLS connection whose certificate has passed. Node's own check during a request would let bytes out before a pinned fingerprint
 * can be compared, and hides the fingerprint of a certificate that failed, which is what a person needs in order to pin it.
 */
function trustedSocket(url: URL, trust: TlsTrust, signal: AbortSignal): Promise<Socket> {
  const { promise, resolve, reject } = Promise.withResolvers<Socket>()
  const host = url.hostname.replace(/^\[|\]$/g, '')
  const socket = tls.connect({
    host,
    port: Number(url.port || 443),
    ...(isIP(host) ? {} : { servername: host }),
    ...(trust.tlsCa && { ca: trust.tlsCa }),
    rejectUnauthorized: false,
    ALPNProtocols: ['http/1.1'],
  })
  const abort = () => socket.destroy(signal.reason)
  const settle = () => signal.removeEventListener('abort', abort)
  signal.addEventListener('abort', abort, { once: true })
  if (signal.aborted) abort()
  socket.once('error', error => {
    settle()
    reject(error)
  })
  socket.once('secureConnect', () => {
    settle()
    const shown = socket.getPeerCertificate().fingerprint256 ?? 'none'
    const distrust = reasonForDistrust(trust, { shown, error: socket.authorizationError })
    if (distrust) {
      socket.destroy()
      reject(distrust)
    } else resolve(socket)
  })
  return promise
}

function reasonForDistrust(trust: TlsTrust, seen: { shown: string; error: Error | string | null | undefined }): Failure | undefined {
  if (trust.tlsFingerprint) {
    if (seen.shown.toUpperCase() === trust.tlsFingerprint.toUpperCase()) return undefined
    return new Failure({
      kind: 'authentication',
      got: `another certificate than the pinned one: SHA-256 ${seen.shown}`,
      hint: 'The certificate was renewed, or somebody stands in between. Compare with the switch itself before pinning the new one.',
    })
  }
  if (!trust.tlsVerify || !seen.error) return undefined
  return new Failure({
    kind: 'authentication',
    got: `its certificate is not trusted (${String(seen.error)}); SHA-256 ${seen.shown}`,
    hint: 'Give the certificate authority in tlsCa, or compare that fingerprint with the switch itself and pin it in tlsFingerprint.',
  })
}

function failureOf(error: NodeJS.ErrnoException, outcome: 'none' | 'unknown'): Failure {
  const code = error.code ?? error.message
  if (code === 'ENOTFOUND' || code === 'EAI_AGAIN') return noAnswer(`its name is not known (${code})`, outcome)
  if (code === 'ECONNREFUSED') return noAnswer('nothing listens there (connection refused)', outcome)
  if (code.startsWith('HPE_') || code.startsWith('ERR_SSL') || code === 'EPROTO') {
    return new Failure({
      kind: 'protocol',
      got: `the answer is not ${code.startsWith('HPE_') ? 'HTTP' : 'TLS'} (${code})`,
      hint: 'Check the address, its port, and whether it begins with http or https.',
      outcome,
      cause: error,
    })
  }
  return noAnswer(`the connection failed (${code})`, outcome)
}

function noAnswer(got: string, outcome: 'none' | 'unknown'): Failure {
  return new Failure({
    kind: 'silent',
    got,
    outcome,
    hint: 'Check the address, and that it can be reached from the partition. After an order, observe the power state before trying again.',
  })
}

/** The Failure an answer other than 2xx stands for. `said` is what the server gave as its reason, already free of secrets. */
export function refusal(answer: HttpAnswer, said: string, purpose: HttpRequest['purpose']): Failure {
  const row = statusKinds.find(({ from, to }) => answer.status >= from && answer.status <= to) ?? oddStatus
  const outcome = purpose === 'order' && row.kind === 'protocol' ? 'unknown' : 'none'
  return new Failure({ kind: row.kind, got: `HTTP ${answer.status}${said && ` (${said})`}`, hint: row.hint, outcome })
}

const oddStatus = { kind: 'protocol', hint: 'The server failed or is no power switch; its own log knows more.' } as const
const busyHint = 'The server has too much to do or is restarting. Try again in a minute.'

/** First match. */
const statusKinds = [
  {
    from: 300,
    to: 399,
    kind: 'refused',
    hint: 'Redirects are not followed, because they would carry the secrets along. Give the final address.',
  },
  { from: 401, to: 401, kind: 'authentication', hint: 'Check the token, or the user and password.' },
  { from: 403, to: 403, kind: 'privilege', hint: 'The account is known, but may not do this. Give it the right to switch power.' },
  { from: 408, to: 408, kind: 'busy', hint: busyHint },
  { from: 423, to: 423, kind: 'busy', hint: busyHint },
  { from: 429, to: 429, kind: 'busy', hint: busyHint },
  { from: 400, to: 499, kind: 'refused', hint: 'Check the addresses in the power settings.' },
  { from: 503, to: 503, kind: 'busy', hint: busyHint },
] as const

/** The beginning of a text for a message, on one line, with each of the secrets replaced. */
export function excerpt(text: string, secrets: readonly (string | undefined)[]): string {
  let shown = text
  // Longest first, so that one secret inside another leaves no rest.
  for (const secret of secrets
    .filter((value): value is string => value !== undefined && value !== '')
    .toSorted((a, b) => b.length - a.length)) {
    shown = shown.replaceAll(secret, '***')
  }
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is removed
  const line = shown.replaceAll(/[\s\u0000-\u001f\u007f]+/g, ' ').trim()
  return line.length > excerptMax ? `${line.slice(0, excerptMax)}…` : line
}

const excerptMax = 160

/** An `http` or `https` address without user, password or fragment in it. */
export function isHttpUrl(text: string): boolean {
  const url = URL.parse(text)
  return url !== null && /^https?:$/.test(url.protocol) && url.username === '' && url.password === '' && url.hash === ''
}

/** The `authorization` header's value for a user and password. */
export function basicAuthorization(user: string, password: string): string {
  return `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`
}
