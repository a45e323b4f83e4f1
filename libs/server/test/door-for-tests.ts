// A door over the model, on a real port, with one token per role.
import type { Role } from '@muster/shared/contract/call'
import { onTestFinished } from 'vitest'
import { type DoorOptions, type ListenOptions, startDoor } from '../src/http/door.ts'
import { createLog } from '../src/log.ts'
import { hashToken, tokensOf } from '../src/tokens.ts'
import { blank, type ModelBackend, modelBackend } from './model-backend.ts'

export type TokenRole = Exclude<Role, 'public'>
export const tokenRoles = ['read-only', 'user', 'operator', 'admin'] as const satisfies readonly TokenRole[]

/** The token of each role in these tests. */
export const tokenOf = (role: TokenRole) => `token-of-${role}`

export const testTokens = tokensOf({ tokens: tokenRoles.map(role => ({ name: role, role, sha256: hashToken(tokenOf(role)) })) })

export interface TestDoor {
  readonly url: string
  readonly backend: ModelBackend
  readonly lines: string[]
  readonly close: () => Promise<void>
  /** Sends a request to the API as `role` (admin where left out), and reads the answer as JSON. */
  send(method: string, path: string, options?: SendOptions): Promise<{ status: number; headers: Headers; body: unknown }>
}

export interface SendOptions {
  readonly role?: TokenRole | 'none'
  readonly body?: unknown
  readonly headers?: Record<string, string>
}

/** Opens a door for one test or file; it closes with the test where `owner` is left out. */
export async function testDoor(
  options: Partial<DoorOptions & ListenOptions> & { backend?: ModelBackend } = {},
  owner: 'test' | 'caller' = 'test',
): Promise<TestDoor> {
  const backend = options.backend ?? modelBackend()
  const lines: string[] = []
  const log = createLog({ level: 'debug', name: backend.name, destination: { write: line => void lines.push(line) } })
  const door = await startDoor({ tokens: testTokens, log, version: '0.1.0', check: 'answers', port: 0, ...options, backend })
  if (owner === 'test') onTestFinished(() => door.close())
  return {
    url: door.url,
    backend,
    lines,
    close: door.close,
    send: async (method, path, { role = 'admin', body, headers = {} } = {}) => {
      const response = await fetch(`${door.url}/api/v1${path}`, {
        method,
        headers: {
          ...(role !== 'none' && { authorization: `Bearer ${tokenOf(role)}` }),
          ...(body !== undefined && { 'content-type': 'application/json' }),
          ...headers,
        },
        ...(body !== undefined && { body: typeof body === 'string' ? body : JSON.stringify(body) }),
      })
      const text = await response.text()
      return { status: response.status, headers: response.headers, body: text === '' ? undefined : JSON.parse(text) }
    },
  }
}

/** Puts ready machines into a model: `lon1-00000a`, `lon1-00000b` … */
export function addReady(backend: ModelBackend, count: number): string[] {
  return Array.from({ length: count }, (_, index) => {
    const id = `${backend.name}-${index.toString(36).padStart(6, '0')}`
    backend.machines.set(id, { ...blank(id, backend.name), state: 'ready' })
    return id
  })
}
