// A client's line to one front: plain HTTP with kept connections. Not the client of libs/shared: that one repeats by itself, and here every
// single attempt is to be seen.
import { Agent, request } from 'node:http'

export interface Reply {
  readonly status: number
  readonly body: unknown
}

/** The line broke: nobody can say whether the front acted. */
export class BrokenLine extends Error {}

class Silence extends Error {}

export interface Line {
  /** Rejects with BrokenLine; with another error when `signal` fires or the server says nothing: then it may still be at work. */
  post(path: string, body: unknown, options?: { key?: string; signal?: AbortSignal }): Promise<Reply>
  close(): void
}

/** Longer than any server takes to answer (10 s and its grace): silence beyond means that it hangs. */
const silenceMs = 20_000

/** Opens a line; connections are made when needed. */
export function openLine(url: string, token: string): Line {
  const agent = new Agent({ keepAlive: true, maxSockets: 256 })
  const { hostname, port } = new URL(url)
  const post: Line['post'] = (path, body, { key, signal } = {}) =>
    new Promise((resolve, reject) => {
      const text = JSON.stringify(body)
      const headers = {
        authorization: `Bearer ${token}`,
        'content-type': 'application/json',
        'content-length': Buffer.byteLength(text),
        ...(key !== undefined && { 'idempotency-key': key }),
      }
      const broke = (error: Error) =>
        reject(
          error.name === 'AbortError' || error instanceof Silence ? error : new BrokenLine(`${url}: ${error.message}`, { cause: error }),
        )
      const asking = request(
        { agent, hostname, port, method: 'POST', path: `/api/v1${path}`, headers, timeout: silenceMs, ...(signal && { signal }) },
        answer => {
          const parts: Buffer[] = []
          answer.on('data', part => parts.push(part))
          answer.on('error', broke)
          answer.on('end', () => {
            try {
              resolve({ status: answer.statusCode ?? 0, body: JSON.parse(Buffer.concat(parts).toString() || 'null') })
            } catch (error) {
              broke(error as Error)
            }
          })
        },
      )
      asking.on('error', broke)
      asking.on('timeout', () => asking.destroy(new Silence(`${url}: silent for ${silenceMs / 1000} s`)))
      asking.end(text)
    })
  return { post, close: () => agent.destroy() }
}
