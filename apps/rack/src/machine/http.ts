// How a machine fetches: kept-alive connections, an answer within a time, repetition with back-off where that can help, and everything
// gone at once when the power goes. node:http and not fetch, because a lost connection must be told apart from a refusal and a body must be cut.
import http, { type IncomingMessage } from 'node:http'
import https from 'node:https'
import type { Pacer } from './pace.ts'

/** The connections all machines of a rack share, as far as a server can tell machines apart only by what they say. */
export interface Connections {
  readonly http: http.Agent
  readonly https: https.Agent
  close(): void
}

/** Opens a pool of kept-alive connections. `freeMax`: how many stay open unused. */
export function openConnections({ freeMax }: { freeMax: number } = { freeMax: 64 }): Connections {
  // Most recently used first, so that a lull lets the others go.
  const options = { keepAlive: true, maxFreeSockets: freeMax, scheduling: 'lifo', timeout: silenceLimitMs } as const
  const agents = { http: new http.Agent(options), https: new https.Agent(options) }
  return {
    ...agents,
    close: () => {
      agents.http.destroy()
      agents.https.destroy()
    },
  }
}

/** A request failed. `status` is the server's answer; undefined where none came, 0 where the request could not even be sent. */
export class HttpFailure extends Error {
  override readonly name = 'HttpFailure'
  readonly status: number | undefined
  constructor(message: string, options: { status?: number; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.status = options.status
  }
}

export interface HttpRequest {
  method?: 'GET' | 'POST'
  url: string
  headers?: Readonly<Record<string, string>>
  body?: string
  signal: AbortSignal
}

/** What tests do to a machine's requests on their way: each may be held for as long as a promise is open, or lost by its rejection. */
export interface Wire {
  /** `before` it is sent; `after` it was answered, and the machine has not heard that. */
  pass(request: HttpRequest, side: 'before' | 'after'): Promise<void>
}

export interface HttpAnswer {
  status: number
  body: Buffer
  /** Whether the body was cut at `bodyMax`. */
  isCut: boolean
}

/** Attempts before a machine gives up. With the pace's back-off: about 2 minutes at `quick`, 15 at `real`, as real agents hold out. */
export const patientAttempts = 60
/**
 * For what has a second chance elsewhere: firmware tries the next device, cloud-init goes on without. About 10 s at `quick`, long enough
 * for a server to restart; 90 s at `real`.
 */
export const fewAttempts = 12

/** A connection that says nothing for so long is given up. */
const silenceLimitMs = 30_000
/** Scripts, jobs, seeds: none is near this. */
const textBytesMax = 1_048_576

/** One machine's client: the rack's connections, the machine's own pace. */
export class HttpClient {
  readonly #connections: Connections
  readonly #pacer: Pacer
  readonly #wire: Wire | undefined

  constructor(connections: Connections, pacer: Pacer, wire?: Wire) {
    this.#connections = connections
    this.#pacer = pacer
    this.#wire = wire
  }

  /**
   * One exchange with a small body, repeated up to `attempts` times while nothing or a 408, 425, 429 or 5xx comes back. Resolves for
   * every status below 400 and for those in `accept`; throws HttpFailure otherwise, AbortError when the power goes.
   */
  async ask(request: HttpRequest & { attempts: number; accept?: readonly number[] }): Promise<HttpAnswer> {
    return await this.retrying(request, async () => {
      const answer = await this.once(request, { bodyMax: textBytesMax })
      if (answer.status < 400 || request.accept?.includes(answer.status)) return answer
      throw new HttpFailure(`${describe(request)}: ${answer.status} ${shortText(answer.body)}`, { status: answer.status })
    })
  }

  /** Runs `attempt` until it succeeds, fails for good, or has failed `attempts` times. */
  async retrying<Result>({ attempts, signal }: { attempts: number; signal: AbortSignal }, attempt: () => Promise<Result>): Promise<Result> {
    for (let count = 1; ; count++) {
      try {
        return await attempt()
      } catch (error) {
        signal.throwIfAborted()
        if (count >= attempts || !isWorthRepeating(error)) throw error
        await this.#pacer.backOff(count, signal)
      }
    }
  }

  /** One exchange, not repeated. The body is read up to `bodyMax` bytes and cut there. Throws HttpFailure where no answer came. */
  async once(request: HttpRequest, { bodyMax }: { bodyMax: number }): Promise<HttpAnswer> {
    const response = await this.#send(request)
    const chunks: Buffer[] = []
    let bytes = 0
    const isCut = await consume(request, response, chunk => {
      chunks.push(chunk.subarray(0, bodyMax - bytes))
      bytes += chunk.length
      return bytes > bodyMax ? 'stop' : 'more'
    })
    return { status: response.statusCode ?? 0, body: Buffer.concat(chunks), isCut }
  }

  /**
   * Fetches a body of any size chunk by chunk, not repeated. `take` may stop it. Throws HttpFailure for any status but 200, for a
   * connection lost on the way and for a body shorter than announced.
   */
  async download(request: HttpRequest, take: (chunk: Buffer) => 'more' | 'stop'): Promise<void> {
    const response = await this.#send(request)
    if (response.statusCode !== 200) {
      response.destroy()
      throw new HttpFailure(`${describe(request)}: ${response.statusCode}`, { status: response.statusCode ?? 0 })
    }
    await consume(request, response, take)
  }

  async #send(request: HttpRequest): Promise<IncomingMessage> {
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>()
    if (!/^https?:/.test(request.url) || !URL.canParse(request.url))
      throw new HttpFailure(`${describe(request)}: is not an http URL`, { status: 0 })
    const url = new URL(request.url)
    const body = request.body === undefined ? undefined : Buffer.from(request.body)
    await this.#onTheWay(request, 'before')
    const options = {
      method: request.method ?? 'GET',
      headers: { 'user-agent': 'muster-rack', ...request.headers, ...(body && { 'content-length': body.length }) },
      signal: request.signal,
      timeout: silenceLimitMs,
    }
    const outgoing =
      url.protocol === 'https:'
        ? https.request(url, { ...options, agent: this.#connections.https })
        : http.request(url, { ...options, agent: this.#connections.http })
    outgoing.on('response', resolve)
    outgoing.on('timeout', () => outgoing.destroy(new Error(`nothing heard for ${silenceLimitMs} ms`)))
    outgoing.on('error', cause =>
      reject(request.signal.aborted ? cause : new HttpFailure(`${describe(request)}: ${cause.message || cause.name}`, { cause })),
    )
    outgoing.end(body)
    const response = await promise
    try {
      await this.#onTheWay(request, 'after')
    } catch (error) {
      response.destroy()
      throw error
    }
    return response
  }

  /** Waits until the wire lets it through. Throws HttpFailure where it is lost there, AbortError when the power goes. */
  async #onTheWay(request: HttpRequest, side: 'before' | 'after'): Promise<void> {
    if (!this.#wire) return
    const { signal } = request
    const { promise: powerGoes, reject } = Promise.withResolvers<never>()
    const stop = () => reject(signal.reason)
    if (signal.aborted) stop()
    signal.addEventListener('abort', stop, { once: true })
    try {
      await Promise.race([this.#wire.pass(request, side), powerGoes])
    } catch (cause) {
      signal.throwIfAborted()
      throw new HttpFailure(`${describe(request)}: the connection broke`, { cause })
    } finally {
      signal.removeEventListener('abort', stop)
    }
  }
}

/** Reads a response to its end or until `take` says stop; resolves whether it was stopped. */
async function consume(request: HttpRequest, response: IncomingMessage, take: (chunk: Buffer) => 'more' | 'stop'): Promise<boolean> {
  try {
    for await (const chunk of response) if (take(chunk as Buffer) === 'stop') return true
    return false
  } catch (cause) {
    request.signal.throwIfAborted()
    throw new HttpFailure(`${describe(request)}: the connection broke before the end of the answer`, { cause })
  }
}

function isWorthRepeating(error: unknown): boolean {
  if (!(error instanceof HttpFailure)) return false
  return error.status === undefined || error.status >= 500 || [408, 425, 429].includes(error.status)
}

function describe(request: HttpRequest): string {
  return `${request.method ?? 'GET'} ${request.url}`
}

/** The start of a refusal's body: enough to understand it in a history. */
function shortText(body: Buffer): string {
  return body.subarray(0, 300).toString('utf8').replaceAll(/\s+/g, ' ')
}
