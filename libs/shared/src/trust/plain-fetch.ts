// As much of fetch as the client of the contract uses, on node:http, which takes an authority to believe; and 6 ms of each start of the command line instead of the 50 ms of the built-in one (measured:
// loading it and compiling its WebAssembly parser), a third of what a command may take.
import type { IncomingMessage, RequestOptions } from 'node:http'

/**
 * A drop-in for the client's `fetch` option: texts as bodies, no redirects (a token is not carried elsewhere), no compression. `ca`: the authority, PEM, whose
 * certificates are taken, and no others; the computer's own where it is undefined.
 */
export function plainFetch(ca?: string): typeof fetch {
  return ((input, init = {}) => send(new URL(String(input)), init, ca)) as typeof fetch
}

function send(url: URL, { method = 'GET', headers, body, signal }: RequestInit, ca: string | undefined): Promise<Response> {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted()
    const options: RequestOptions & { ca?: string } = {
      method,
      headers: headers as Record<string, string>,
      ...(signal && { signal }),
      ...(ca !== undefined && { ca }),
    }
    // Not imported: an import of node:http reads all its exports, and one of them (WebSocket) loads the built-in fetch after all.
    const http = process.getBuiltinModule(url.protocol === 'https:' ? 'node:https' : 'node:http')
    const request = http.request(url, options, message => resolve(responseOf(message)))
    request.on('error', error => reject(signal?.aborted ? signal.reason : withMessage(error)))
    request.end(body === null ? undefined : body)
  })
}

/** A name with several addresses fails with one error for all of them, and that one says nothing itself. */
function withMessage(error: Error): Error {
  if (error.message !== '' || !(error instanceof AggregateError)) return error
  return new Error(error.errors.map(({ message }: Error) => message).join('; '), { cause: error })
}

/** The members of Response that the client reads. */
function responseOf(message: IncomingMessage): Response {
  const status = message.statusCode ?? 0
  const text = async () => Buffer.concat(await message.toArray()).toString()
  const response = {
    ok: status >= 200 && status < 300,
    status,
    statusText: message.statusMessage ?? '',
    headers: { get: (name: string) => message.headers[name.toLowerCase()]?.toString() ?? null },
    text,
    json: async () => JSON.parse(await text()),
    body: { getReader: () => readerOf(message) },
  }
  return response as unknown as Response
}

function readerOf(message: IncomingMessage) {
  const chunks = message[Symbol.asyncIterator]() as AsyncIterator<Buffer, undefined>
  return {
    read: async () => {
      const { value, done } = await chunks.next()
      return done ? { done: true, value: undefined } : { done: false, value }
    },
    cancel: async () => {
      message.destroy()
    },
  }
}
