// The typed client of the REST API, derived from the contract: `createClient({ url, token }).machines.list({ state: ['ready'] })`.
// It needs nothing but fetch.
import type { Call } from './contract/call.ts'
import { type CallName, type CallOutput, type CallRequest, type Contract, contract, type StreamName } from './contract/contract.ts'
import { durationMs } from './duration.ts'
import { type ErrorCode, errorTable, problemDocument, Refusal, refusalOf } from './errors.ts'
import { distrustOf } from './trust/distrust.ts'

/** The server did not answer, or what answered was not Muster (a proxy's error page). */
export class UnreachableError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = 'UnreachableError'
  }
}

export interface ClientOptions {
  /** Where the server is, e.g. `http://127.0.0.1:8080`; a path prefix is kept. */
  readonly url: string
  readonly token?: string
  readonly fetch?: typeof fetch
  /** The whole time a call may take, retries included; a call that asks to wait gets that time on top. Default 15 s. */
  readonly timeoutMs?: number
}

export interface CallOptions {
  readonly signal?: AbortSignal
  /** Default: a new one for each call that takes one, so that a retry is harmless. */
  readonly idempotencyKey?: string
  /** Appears in the server's log. */
  readonly requestId?: string
}

export interface StreamOptions {
  readonly signal?: AbortSignal
  /** Goes on behind this event. */
  readonly lastEventId?: string
}

export interface StreamEvent<Data> {
  /** The position behind this event: give it back as `lastEventId`. */
  readonly id: string
  readonly data: Data
}

type Method<Name extends CallName> = Name extends StreamName
  ? (input?: CallRequest<Name>, options?: StreamOptions) => AsyncGenerator<StreamEvent<CallOutput<Name>>, void>
  : Record<string, never> extends CallRequest<Name>
    ? (input?: CallRequest<Name>, options?: CallOptions) => Promise<CallOutput<Name>>
    : (input: CallRequest<Name>, options?: CallOptions) => Promise<CallOutput<Name>>

/** A method per call: throws {@link Refusal} where the server refuses, {@link UnreachableError} where nobody answers. */
export type Client = {
  readonly [Group in keyof Contract & string]: {
    readonly [Verb in keyof Contract[Group] & string]: `${Group}.${Verb}` extends CallName ? Method<`${Group}.${Verb}`> : never
  }
}

const apiPath = '/api/v1'
/** Attempts at one call, the first included. */
const mostAttempts = 5
const firstDelayMs = 100
const longestDelayMs = 5000
/** A stream sends a comment every 15 s; after two missed ones the line is dead, even where nobody closed it. */
const streamSilenceMs = 40_000

/** A client of one server. */
export function createClient(options: ClientOptions): Client {
  const groups = Object.entries(contract).map(([group, verbs]) => {
    const methods = Object.entries(verbs as Record<string, Call>).map(([verb, call]) => [verb, methodOf(call, options)])
    return [group, Object.fromEntries(methods)]
  })
  return Object.fromEntries(groups) as Client
}

function methodOf(call: Call, options: ClientOptions) {
  if (call.kind === 'stream') return (input: Input = {}, streaming: StreamOptions = {}) => stream(call, input, streaming, options)
  return (input: Input = {}, calling: CallOptions = {}) => send(call, input, calling, options)
}

type Input = Record<string, unknown>

/** Sends a call, again where that is harmless and may help: a GET, a POST that carries a key, and what was refused because too many came. */
async function send(call: Call, input: Input, calling: CallOptions, options: ClientOptions): Promise<unknown> {
  const { url, body } = requestOf(call, input, options.url)
  const headers = headersOf(options)
  if (body !== undefined) headers['content-type'] = 'application/json'
  if (calling.requestId !== undefined) headers['x-request-id'] = calling.requestId
  if (call.idempotency === 'key') headers['idempotency-key'] = calling.idempotencyKey ?? crypto.randomUUID()
  const isRepeatable = call.rest.method === 'GET' || call.idempotency === 'key'

  const deadline = Date.now() + (options.timeoutMs ?? 15_000) + waitOf(input)
  for (let attempt = 1; ; attempt++) {
    const leftMs = Math.max(1, deadline - Date.now())
    const limit = AbortSignal.timeout(leftMs)
    const signal = calling.signal ? AbortSignal.any([calling.signal, limit]) : limit
    try {
      const response = await fetchOrSay(options, url, { method: call.rest.method, headers, signal, ...(body !== undefined && { body }) })
      if (response.ok) return await answerOf(response, url)
      throw await refusalFrom(response, url)
    } catch (error) {
      // The caller's own change of mind comes back as what they aborted with.
      calling.signal?.throwIfAborted()
      const delayMs = delayOf(attempt, error) ?? (attempt > 1 && isOfThisAttempt(error) ? backOffOf(attempt) : undefined)
      const wasTurnedAway = error instanceof Refusal && error.code === 'too-many-requests'
      if (!(isRepeatable || wasTurnedAway) || attempt >= mostAttempts || delayMs === undefined || Date.now() + delayMs >= deadline)
        throw error
      await pause(delayMs, calling.signal)
    }
  }
}

/** How long the input itself asks the server to wait, in milliseconds. */
function waitOf({ wait }: Input): number {
  try {
    return typeof wait === 'string' ? Math.min(durationMs(wait), 3_600_000) : 0
  } catch {
    // No duration: the server's refusal says so better.
    return 0
  }
}

/** How long to pause before the next attempt; undefined where no attempt would help. Jittered, so that clients do not come back as one. */
function delayOf(attempt: number, error: unknown): number | undefined {
  const jittered = backOffOf(attempt)
  // A certificate that is not trusted will not be a moment later.
  if (error instanceof UnreachableError) return distrustOf(error.cause) === undefined ? jittered : undefined
  if (!(error instanceof Refusal)) return undefined
  // What another asking may cure. A no-match or a stale version is an answer, for the caller to think about.
  const { status, retryable } = errorTable[error.code]
  if (retryable !== 'yes' || status === 409) return undefined
  return jittered + (retryAfter.get(error) ?? 0)
}

/** Jittered, in milliseconds. */
function backOffOf(attempt: number): number {
  return Math.min(firstDelayMs * 2 ** (attempt - 1), longestDelayMs) * (0.5 + Math.random())
}

/** Whether a refusal leaves open what came of an earlier attempt with the same key: it is no end of a call that was sent before. */
function isOfThisAttempt(error: unknown): boolean {
  return error instanceof Refusal && error.facts.earlierAttempts === 'unknown'
}

/** The pause a server asked for with a refusal, in milliseconds. */
const retryAfter = new WeakMap<Refusal, number>()

async function fetchOrSay(options: ClientOptions, url: string, request: RequestInit): Promise<Response> {
  try {
    return await (options.fetch ?? fetch)(url, request)
  } catch (cause) {
    throw new UnreachableError(`${request.method} ${url}: ${reasonOf(cause)}`, { cause })
  }
}

/** fetch says only "fetch failed"; why is in the cause. */
function reasonOf(error: unknown): string {
  const { message, cause } = error as Error
  return cause instanceof Error ? `${message}: ${cause.message}` : message
}

async function answerOf(response: Response, url: string): Promise<unknown> {
  if (response.status === 204) return null
  try {
    return await response.json()
  } catch (cause) {
    throw new UnreachableError(`${url} answered ${response.status} with what cannot be read: ${reasonOf(cause)}`, { cause })
  }
}

/** The refusal an answer speaks of. */
async function refusalFrom(response: Response, url: string): Promise<Refusal | UnreachableError> {
  const text = await response.text().catch(() => '')
  const refusal = refusalFromText(text, response.status)
  if (!refusal) return new UnreachableError(`${url} answered ${response.status} ${response.statusText}, and not as Muster does`)
  const seconds = Number(response.headers.get('retry-after') ?? Number.NaN)
  if (Number.isFinite(seconds)) retryAfter.set(refusal, seconds * 1000)
  return refusal
}

function refusalFromText(text: string, status: number): Refusal | undefined {
  let content: unknown
  try {
    content = JSON.parse(text)
  } catch {
    return undefined
  }
  const problem = problemDocument.safeParse(content)
  if (problem.success) return refusalOf(problem.data)
  // A newer server may know more codes: its status says enough.
  const newer = problemDocument.extend({ code: problemDocument.shape.type }).safeParse(content)
  if (!newer.success) return undefined
  const code = (Object.keys(errorTable) as ErrorCode[]).find(known => errorTable[known].status === status) ?? 'internal'
  return new Refusal(code, newer.data.detail, { code: newer.data.code })
}

/** Where a call goes: path parameters into the path, the rest into the query (GET, DELETE) or the body. */
function requestOf(call: Call, input: Input, base: string): { url: string; body?: string } {
  const rest = Object.fromEntries(Object.entries(input).filter(([, value]) => value !== undefined))
  const path = call.rest.path.replace(/\{(\w+)\}/g, (_, name: string) => {
    const value = rest[name]
    delete rest[name]
    return encodeURIComponent(String(value))
  })
  const url = `${base.replace(/\/+$/, '')}${apiPath}${path}`
  if (call.rest.method !== 'GET' && call.rest.method !== 'DELETE')
    return Object.keys(rest).length > 0 ? { url, body: JSON.stringify(rest) } : { url }
  const query = new URLSearchParams()
  for (const [name, value] of Object.entries(rest)) for (const item of [value].flat()) query.append(name, String(item))
  return { url: query.size > 0 ? `${url}?${query}` : url }
}

function headersOf({ token }: ClientOptions): Record<string, string> {
  return { accept: 'application/json', ...(token !== undefined && { authorization: `Bearer ${token}` }) }
}

function pause(delayMs: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer)
      reject(signal?.reason)
    }
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', stop)
      resolve()
    }, delayMs)
    signal?.addEventListener('abort', stop, { once: true })
  })
}

/**
 * Follows a stream without end, over broken lines: reconnects where it stood. Ends when `signal` aborts. Throws {@link Refusal} for what no
 * reconnect would cure (a token that is not valid, say).
 */
async function* stream(
  call: Call,
  input: Input,
  { signal, lastEventId }: StreamOptions,
  options: ClientOptions,
): AsyncGenerator<StreamEvent<never>> {
  const { url } = requestOf(call, input, options.url)
  let position = lastEventId
  for (let attempt = 1; !signal?.aborted; attempt++) {
    try {
      for await (const block of blocksOf(url, position, signal, options)) {
        attempt = 0
        if (block.id !== undefined) position = block.id
        if (block.data !== undefined) yield { id: position ?? '', data: JSON.parse(block.data) as never }
      }
    } catch (error) {
      if (signal?.aborted) return
      if (delayOf(Math.max(attempt, 1), error) === undefined) throw error
    }
    // Also after an orderly end: the server closes streams when it stops, and after an hour.
    await pause(delayOf(Math.max(attempt, 1), new UnreachableError('')) as number, signal).catch(() => undefined)
  }
}

interface Block {
  readonly id?: string
  readonly data?: string
}

/** The blocks of one connection. */
async function* blocksOf(
  url: string,
  lastEventId: string | undefined,
  signal: AbortSignal | undefined,
  options: ClientOptions,
): AsyncGenerator<Block> {
  const silence = new AbortController()
  const watch = () => setTimeout(() => silence.abort(), streamSilenceMs)
  let timer = watch()
  try {
    const headers = {
      ...headersOf(options),
      accept: 'text/event-stream',
      ...(lastEventId !== undefined && { 'last-event-id': lastEventId }),
    }
    const request = { method: 'GET', headers, signal: signal ? AbortSignal.any([signal, silence.signal]) : silence.signal }
    const response = await fetchOrSay(options, url, request)
    if (!response.ok || !response.body) throw await refusalFrom(response, url)
    const decoder = new TextDecoder()
    let text = ''
    const reader = response.body.getReader()
    try {
      for (;;) {
        const { value, done } = await readOrSay(reader, url)
        if (done) return
        clearTimeout(timer)
        timer = watch()
        text += decoder.decode(value, { stream: true })
        // Muster ends lines with \n alone, so a block ends with an empty line of that kind.
        const blocks = text.split('\n\n')
        text = blocks.pop() as string
        for (const block of blocks) yield blockOf(block)
      }
    } finally {
      // Also when the reader of this generator walks away: nothing stays open behind it.
      await reader.cancel().catch(() => undefined)
    }
  } finally {
    clearTimeout(timer)
  }
}

async function readOrSay(reader: ReadableStreamDefaultReader<Uint8Array>, url: string) {
  try {
    return await reader.read()
  } catch (cause) {
    throw new UnreachableError(`GET ${url}: the stream broke: ${reasonOf(cause)}`, { cause })
  }
}

/** One block of an event stream (WHATWG HTML, section 9.2.6), of which Muster uses `id` and `data`. */
function blockOf(text: string): Block {
  let id: string | undefined
  const data: string[] = []
  for (const line of text.split('\n')) {
    const [, name, value = ''] = /^(\w+):? ?(.*)$/s.exec(line) ?? []
    if (name === 'id') id = value
    else if (name === 'data') data.push(value)
  }
  return { ...(id !== undefined && { id }), ...(data.length > 0 && { data: data.join('\n') }) }
}
