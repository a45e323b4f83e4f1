// A server that speaks the contract for tests: real paths and real schemas, answers from a table of functions in this process.
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type Call, outputOf } from '@muster/shared/contract/call'
import { type CallInput, type CallName, type CallOutput, calls } from '@muster/shared/contract/contract'
import type { Event } from '@muster/shared/contract/events'
import { invalidInput, type ProblemDocument, problemOf, Refusal } from '@muster/shared/errors'
import { type Machine, machine as machineSchema } from '@muster/shared/machine'
import type { z } from 'zod'

export const token = 'planted-secret-token-0123456789'

export type Answers = {
  [Name in CallName]?: (input: CallInput<Name>, facts: { key: string | undefined }) => CallOutput<Name> | Promise<CallOutput<Name>>
}

export interface TestServer extends AsyncDisposable {
  readonly url: string
  /** Every call that arrived, with its input as the schema read it. */
  readonly asked: { name: CallName; input: Record<string, unknown>; key: string | undefined }[]
  /** Answers by call name; a test sets what it needs. */
  readonly answers: Answers
  /** Sends an event to every open stream. */
  send(event: Event): void
  /** Breaks every open stream. */
  breakStreams(): void
  /** The positions that streams were opened behind. */
  readonly streamsFrom: (string | undefined)[]
}

export const wholeCoverage = { asked: 1, answered: 1, partitions: [{ name: 'lon1', outcome: 'answered' as const, ms: 3 }] }

/** A machine as the API shows it, ready where nothing else is said. */
export function aMachine(facts: Partial<Machine> = {}): Machine {
  return machineSchema.parse({
    id: 'lon1-4y3h7n',
    partition: 'lon1',
    hostname: 'web1',
    state: 'ready',
    stateSince: '2026-01-02T03:04:05Z',
    power: 'off',
    powerSeenAt: '2026-01-02T03:04:05Z',
    arch: 'amd64',
    cpus: 16,
    memoryMib: 65_536,
    pool: 'default',
    zone: 'hall-2',
    rack: 'r7',
    tags: ['gpu'],
    interfaces: [{ mac: '52:54:00:12:34:56', name: 'eno1', speedMbps: 10_000 }],
    disks: [{ name: 'sda', sizeBytes: 480e9, kind: 'ssd' }],
    owner: null,
    allocation: null,
    locked: false,
    waitingFor: null,
    progress: null,
    deadline: null,
    fault: null,
    deployment: null,
    powerDriver: 'ipmi',
    note: '',
    version: 3,
    createdAt: '2026-01-01T00:00:00Z',
    updatedAt: '2026-01-02T03:04:05Z',
    ...facts,
  })
}

/** An event of lon1. */
export function anEvent(seq: number, facts: Partial<Event> = {}): Event {
  return {
    partition: 'lon1',
    seq,
    at: '2026-01-02T03:04:05Z',
    kind: 'machine.moved',
    machine: 'lon1-4y3h7n',
    actor: 'engine',
    data: { to: 'ready' },
    ...facts,
  }
}

/** Starts a server on a free port. */
export async function startServer(): Promise<TestServer> {
  const asked: TestServer['asked'] = []
  const answers: Answers = {
    'session.whoami': () => ({ caller: { name: 'ann', role: 'admin' }, server: { kind: 'front', name: 'front1', version: '0.1.0' } }),
    'events.list': ({ after }) => ({ items: [], nextCursor: after === 'end' ? 'lon1:7' : (after ?? 'lon1:7'), coverage: wholeCoverage }),
  }
  const streams = new Set<ServerResponse>()
  const streamsFrom: (string | undefined)[] = []

  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    const { name, call, input } = await readCall(request)
    if (call.role !== 'public' && request.headers.authorization !== `Bearer ${token}`)
      throw new Refusal('unauthenticated', 'the token is not valid')
    const key = request.headers['idempotency-key']?.toString()
    asked.push({ name, input, key })
    if (call.kind === 'stream') {
      streamsFrom.push(request.headers['last-event-id']?.toString())
      response.writeHead(200, { 'content-type': 'text/event-stream' }).write(': open\n\n')
      streams.add(response)
      return
    }
    const given = await (answers[name] as ((input: unknown, facts: { key: string | undefined }) => unknown) | undefined)?.(input, { key })
    if (given === undefined) throw new Refusal('not-found', `the test has no answer for ${name}`)
    // An answer the contract does not allow would make a test prove nothing.
    const output = outputOf(call).parse(given)
    if (call.status === 204) response.writeHead(204).end()
    else response.writeHead(call.status, { 'content-type': 'application/json' }).end(JSON.stringify(output))
  }

  const server: Server = createServer((request, response) => {
    answer(request, response).catch((error: unknown) => {
      const refusal = error instanceof Refusal ? error : new Refusal('internal', String(error))
      const problem: ProblemDocument = problemOf(refusal)
      response.writeHead(problem.status, { 'content-type': 'application/problem+json' }).end(JSON.stringify(problem))
    })
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked,
    answers,
    streamsFrom,
    send: event => {
      for (const stream of streams) stream.write(`id: ${event.partition}:${event.seq}\ndata: ${JSON.stringify(event)}\n\n`)
    },
    breakStreams: () => {
      for (const stream of streams) stream.destroy()
      streams.clear()
    },
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections()
      await new Promise(resolve => server.close(resolve))
    },
  }
}

/** The call a request means, with its input through the real schema. */
async function readCall(request: IncomingMessage): Promise<{ name: CallName; call: Call; input: Record<string, unknown> }> {
  const url = new URL(request.url ?? '/', 'http://test')
  for (const [name, call] of calls) {
    if (call.rest.method !== request.method) continue
    const pattern = new RegExp(`^/api/v1${call.rest.path.replace(/\{(\w+)\}/g, '(?<$1>[^/]+)')}$`)
    const match = pattern.exec(url.pathname)
    if (!match) continue
    const text = (await request.toArray()).map(String).join('')
    const body = text === '' ? {} : (JSON.parse(text) as object)
    const fromPath = Object.fromEntries(Object.entries(match.groups ?? {}).map(([field, text]) => [field, decodeURIComponent(text)]))
    const parsed = call.input.safeParse({ ...readQuery(url, call), ...body, ...fromPath })
    if (!parsed.success) throw invalidInput(parsed.error)
    return { name, call, input: parsed.data as Record<string, unknown> }
  }
  throw new Refusal('not-found', `${request.method} ${url.pathname} is no path of the contract`)
}

/** Texts of a query as the schema wants them: repeated ones are lists, numbers and booleans are read. */
function readQuery(url: URL, call: Call): Record<string, unknown> {
  const shape = (call.input as z.ZodObject).shape
  return Object.fromEntries(
    [...new Set(url.searchParams.keys())].map(name => {
      const given = url.searchParams.getAll(name)
      const candidates = [given, given[0], Number(given[0]), given[0] === 'true']
      return [name, candidates.find(candidate => (shape[name] as z.ZodType | undefined)?.safeParse(candidate).success) ?? given[0]]
    }),
  )
}
