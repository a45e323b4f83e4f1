// What the doors read of a request: headers, where it came from, and a bounded JSON body.
import type { HttpBindings } from '@hono/node-server'
import { Refusal, wrongFields } from '@muster/shared/errors'
import type { Context } from 'hono'
import { checkCharacters } from './plan.ts'

export type DoorEnv = { Bindings: HttpBindings }
export type DoorContext = Context<DoorEnv>

/** What a request may carry: user-data of 1 MB in JSON, and room for the rest. */
export const bodyLimitBytes = 1.5 * 1024 * 1024

/** One header as Node holds it; the Headers object would be built for nothing. Of repeated headers, what HTTP says to make of them. */
export function header(c: DoorContext, name: string): string | undefined {
  const value = c.env.incoming.headers[name]
  return Array.isArray(value) ? value.join(', ') : value
}

/** Where the request came from: the address at the other end of the connection. */
export function addressOf(incoming: Pick<HttpBindings['incoming'], 'socket'>): string {
  return incoming.socket.remoteAddress ?? 'unknown'
}

/** Whether the request comes with a body, empty ones aside. */
export function carriesBody(c: DoorContext): boolean {
  const { headers } = c.env.incoming
  return headers['transfer-encoding'] !== undefined || (headers['content-length'] ?? '0') !== '0'
}

/** Throws `unsupported-media-type` where the body is not plain JSON. */
export function checkMediaType(c: DoorContext): void {
  const type = header(c, 'content-type')
  if (type === undefined || !/^application\/json\s*(?:;|$)/i.test(type))
    throw new Refusal('unsupported-media-type', `the body is ${type ?? 'of no stated type'}; send Content-Type: application/json`)
  const encoding = header(c, 'content-encoding')
  if (encoding !== undefined && encoding !== 'identity')
    throw new Refusal('unsupported-media-type', `the body is encoded as ${encoding}; send it as it is`)
}

const decoder = new TextDecoder('utf-8', { fatal: true })
/** Escapes by which a JSON text can carry a character that {@link checkCharacters} refuses; everything else costs one look. */
const suspiciousEscape = /\\u(?:0000|[dD][89a-fA-F])/

/** The JSON object of the body; empty where there is none. */
export async function readBody(c: DoorContext): Promise<Record<string, unknown>> {
  if (!carriesBody(c)) return {}
  checkMediaType(c)
  const bytes = await readBytes(c)
  let text: string
  try {
    text = decoder.decode(bytes)
  } catch (cause) {
    throw new Refusal('malformed', 'the body is not UTF-8', {}, { cause })
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new Refusal('malformed', `the body is not JSON: ${(cause as Error).message}`, {}, { cause })
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    const message = 'must be a JSON object'
    throw wrongFields([{ field: '(input)', message }])
  }
  if (suspiciousEscape.test(text)) checkCharacters(value)
  return value as Record<string, unknown>
}

/** The bytes of the body. Throws `payload-too-large` before more than the limit is held. */
export async function readBytes(c: DoorContext): Promise<ArrayBuffer | Uint8Array> {
  const length = header(c, 'content-length')
  // Node's parser holds a stated length to be true, so reading needs no count of its own.
  if (length !== undefined) {
    if (Number(length) > bodyLimitBytes) throw tooLarge()
    return c.req.raw.arrayBuffer()
  }
  const chunks: Uint8Array[] = []
  let size = 0
  for await (const chunk of c.req.raw.body ?? []) {
    size += chunk.byteLength
    if (size > bodyLimitBytes) throw tooLarge()
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

function tooLarge(): Refusal {
  return new Refusal('payload-too-large', `the body is larger than ${bodyLimitBytes} bytes`, { limitBytes: bodyLimitBytes })
}
