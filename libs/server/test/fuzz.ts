// Sends every route inputs made from its own schema, right ones and broken ones, and holds each answer against the contract. Works on any
// running server, so that the same fuzz goes over the model here and over real partitions and fronts in apps/rack.
import { type Call, commonErrors, outputOf } from '@muster/shared/contract/call'
import { type CallName, calls } from '@muster/shared/contract/contract'
import { type ErrorCode, errorTable, problemDocument } from '@muster/shared/errors'
import fc from 'fast-check'
import { type JsonSchema, jsonSchemaOf } from '../src/http/json-schema.ts'

export interface FuzzOptions {
  readonly url: string
  /** Of an admin, so that inputs are looked at and not only roles. */
  readonly token: string
  /** Every run can be repeated from it. */
  readonly seed: number
  /** Requests per route. */
  readonly runs: number
  /** Only these calls, e.g. to repeat a failure; all where left out. */
  readonly only?: readonly CallName[]
}

/** How often each status came, over all routes; and the codes of the refusals. */
export interface FuzzReport {
  readonly requests: number
  readonly statuses: Record<number, number>
  readonly codes: Partial<Record<ErrorCode, number>>
}

interface Attempt {
  readonly params: Record<string, string>
  readonly query: [name: string, value: string][]
  readonly body: string | undefined
  readonly headers: Record<string, string>
}

/** Longer than a server may take by its own promise (10 s and its grace). */
const answerLimitMs = 15_000

/**
 * Fuzzes all routes. Throws at the first answer that breaks the contract: a 500, a success that does not fit its schema, a problem document
 * that is none or that this call may not give. The message holds the request and the seed.
 */
export async function fuzzRoutes(options: FuzzOptions): Promise<FuzzReport> {
  const statuses: FuzzReport['statuses'] = {}
  const codes: FuzzReport['codes'] = {}
  let requests = 0
  for (const [name, call] of calls) {
    if (options.only && !options.only.includes(name)) continue
    const known = await knownThings(options)
    const property = fc.asyncProperty(attempts(call, known), async attempt => {
      const { status, code } = await send(call, attempt, options)
      requests++
      statuses[status] = (statuses[status] ?? 0) + 1
      if (code) codes[code] = (codes[code] ?? 0) + 1
    })
    // The server keeps what earlier requests did, so a smaller request after a failure would prove nothing: no shrinking.
    const outcome = await fc.check(property, { seed: options.seed, numRuns: options.runs, endOnFailure: true })
    if (outcome.failed)
      throw new Error(`fuzz of ${name}, seed ${options.seed}: ${(outcome.errorInstance as Error)?.message}`, {
        cause: outcome.errorInstance,
      })
  }
  return { requests, statuses, codes }
}

/** Names of things that exist, so that some requests reach past "not found". */
async function knownThings({ url, token }: FuzzOptions): Promise<{ machines: string[]; allocations: string[] }> {
  const idsAt = async (path: string) => {
    const response = await fetch(`${url}/api/v1${path}`, { headers: { authorization: `Bearer ${token}` } })
    if (!response.ok) throw new Error(`GET ${path}: ${response.status} ${await response.text()}`)
    return ((await response.json()) as { items: { id: string }[] }).items.map(({ id }) => id)
  }
  return { machines: await idsAt('/machines?limit=20'), allocations: await idsAt('/allocations?limit=20') }
}

function attempts(call: Call, known: { machines: string[]; allocations: string[] }): fc.Arbitrary<Attempt> {
  const schema = jsonSchemaOf(call.input, 'input')
  const ids = call.rest.path.startsWith('/allocations') ? known.allocations : known.machines
  const right = fieldsOf(schema, ids)
  const broken = fc.tuple(right, fc.array(breakage(schema), { minLength: 1, maxLength: 3 })).map(([fields, breakages]) => {
    for (const { name, value } of breakages) {
      if (value === undefined) delete fields[name]
      // Defined, not assigned: `__proto__` must become a field like any other.
      else Object.defineProperty(fields, name, { value, enumerable: true, writable: true, configurable: true })
    }
    return fields
  })
  const fields = fc.oneof({ weight: 3, arbitrary: right }, { weight: 2, arbitrary: broken })
  return fc.tuple(fields, howToSend).map(([input, how]) => attemptOf(call, input, how))
}

interface How {
  readonly lists: 'repeated' | 'commas'
  readonly body: 'whole' | 'cut' | 'junk'
  readonly headers: Record<string, string>
}

const key = fc.oneof(fc.stringMatching(/^[!-~]{1,128}$/), fc.constantFrom('', ' ', 'x'.repeat(200)))
const howToSend: fc.Arbitrary<How> = fc.record({
  lists: fc.constantFrom('repeated', 'commas'),
  body: fc.oneof(
    { weight: 20, arbitrary: fc.constant('whole' as const) },
    { weight: 1, arbitrary: fc.constantFrom('cut' as const, 'junk' as const) },
  ),
  headers: fc.oneof(
    { weight: 10, arbitrary: fc.constant({}) },
    {
      weight: 1,
      arbitrary: fc.oneof(
        key.map(value => ({ 'idempotency-key': value })),
        fc.stringMatching(/^[ -~]{0,80}$/).map(value => ({ 'x-request-id': value })),
        fc.constantFrom<Record<string, string>>({ 'content-type': 'text/xml' }, { 'content-type': 'application/json; charset=utf-8' }),
        fc.stringMatching(/^[ -~]{1,20}$/).map(value => ({ 'last-event-id': value })),
      ),
    },
  ),
})

function attemptOf(call: Call, input: Record<string, unknown>, how: How): Attempt {
  const rest = { ...input }
  const params: Record<string, string> = {}
  for (const [, name] of call.rest.path.matchAll(/\{(\w+)\}/g)) {
    params[name as string] = textOf(rest[name as string])
    delete rest[name as string]
  }
  const takesBody = call.rest.method !== 'GET' && call.rest.method !== 'DELETE'
  if (takesBody) {
    const whole = JSON.stringify(rest)
    const body = how.body === 'whole' ? whole : how.body === 'cut' ? whole.slice(0, -1) : '\u0000[]"'
    return { params, query: [], body, headers: { 'content-type': 'application/json', ...how.headers } }
  }
  const query = Object.entries(rest).flatMap(([name, value]): [string, string][] => {
    if (!Array.isArray(value)) return [[name, textOf(value)]]
    return how.lists === 'commas' ? [[name, value.map(textOf).join(',')]] : value.map(item => [name, textOf(item)])
  })
  return { params, query, body: undefined, headers: how.headers }
}

const textOf = (value: unknown): string => (typeof value === 'string' ? value : (JSON.stringify(value) ?? ''))

/** Fields that fit the schema, as far as a JSON Schema can say. */
function fieldsOf(schema: JsonSchema, ids: readonly string[]): fc.Arbitrary<Record<string, unknown>> {
  const fields = Object.entries(schema.properties ?? {}).map(([name, property]) => [name, namedField(name, property, ids)] as const)
  const required = (schema.required ?? []) as never[]
  return fc.record(Object.fromEntries(fields), { requiredKeys: required, noNullPrototype: true }) as fc.Arbitrary<Record<string, unknown>>
}

function namedField(name: string, schema: JsonSchema, ids: readonly string[]): fc.Arbitrary<unknown> {
  // Nobody wants to wait for a fuzz.
  if (name === 'wait') return fc.constantFrom('1ms', '20ms')
  if (name === 'id' && ids.length > 0) return fc.oneof(fc.constantFrom(...ids), valueFor(schema))
  // A position is text to the schema, and more to the log.
  if (name === 'after') return fc.constantFrom('0', '3', 'end', 'lon1:1', 'lon1:2,end')
  // Only the server makes cursors.
  if (name === 'cursor') return fc.constant(undefined)
  return valueFor(schema)
}

function valueFor(schema: JsonSchema): fc.Arbitrary<unknown> {
  if (schema.const !== undefined) return fc.constant(schema.const)
  if (schema.enum) return fc.constantFrom(...schema.enum)
  if (schema.anyOf) return fc.oneof(...schema.anyOf.map(valueFor))
  switch (schema.type) {
    case 'string':
      return schema.pattern
        ? fc.stringMatching(new RegExp(schema.pattern))
        : fc.string({ unit: 'grapheme', ...length(schema.minLength, schema.maxLength, 40) })
    case 'integer':
      return fc.integer({ min: schema.minimum ?? (schema.exclusiveMinimum ?? -1) + 1, max: Math.min(schema.maximum ?? 1000, 2 ** 31 - 1) })
    case 'number':
      return fc.double({
        min: schema.exclusiveMinimum === undefined ? (schema.minimum ?? 0) : 0.001,
        max: schema.maximum ?? 1e6,
        noNaN: true,
      })
    case 'boolean':
      return fc.boolean()
    case 'null':
      return fc.constant(null)
    case 'array':
      return fc.array(valueFor(schema.items ?? {}), length(schema.minItems, schema.maxItems, 3))
    case 'object': {
      if (schema.properties) return fieldsOf(schema, [])
      return fc.dictionary(fc.stringMatching(/^[a-z]{1,10}$/), fc.jsonValue({ maxDepth: 1 }), { maxKeys: 3, noNullPrototype: true })
    }
    default:
      return fc.jsonValue({ maxDepth: 2 })
  }
}

const length = (min = 0, max = Number.POSITIVE_INFINITY, usual: number) => ({
  minLength: min,
  maxLength: Math.max(min, Math.min(max, usual)),
})

/** Values that break things: kinds mixed up, limits passed, characters nobody expects. */
const nasty = fc.oneof(
  fc.constantFrom<unknown>(
    '',
    ' ',
    '\u0000',
    '\ud800',
    '../..',
    '%00',
    '%',
    '/',
    '?',
    '#',
    "'; drop table machines; --",
    '\u202e',
    'null',
    '-1',
    '1e999',
    'NaN',
  ),
  fc.constantFrom<unknown>(null, true, -1, 0, 1.5, 1e308, Number.MAX_SAFE_INTEGER, [], {}, [null], [[]], { a: 1 }),
  fc.constantFrom<unknown>(
    'x'.repeat(5000),
    Array.from({ length: 300 }, () => 'x'),
  ),
  fc.string({ unit: 'binary', maxLength: 30 }),
  fc.jsonValue({ maxDepth: 3 }),
)

function breakage(schema: JsonSchema): fc.Arbitrary<{ name: string; value: unknown }> {
  const names = Object.keys(schema.properties ?? {}).filter(name => name !== 'wait')
  const name = fc.oneof(
    ...(names.length > 0 ? [fc.constantFrom(...names)] : []),
    fc.constantFrom('colour', '__proto__', 'constructor', 'cursor', 'toString', ''),
  )
  return fc.record({ name, value: fc.oneof({ weight: 5, arbitrary: nasty }, { weight: 1, arbitrary: fc.constant(undefined) }) })
}

/** What a broken path may lead to beside the call's own errors. */
const routeErrors: readonly ErrorCode[] = ['not-found', 'method-not-allowed']

async function send(
  call: Call,
  { params, query, body, headers }: Attempt,
  { url, token }: FuzzOptions,
): Promise<{ status: number; code?: ErrorCode }> {
  const path = call.rest.path.replace(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent((params[name] ?? '').toWellFormed()))
  const search = query.length > 0 ? `?${new URLSearchParams(query)}` : ''
  const told = `${call.rest.method} ${path}${search} ${JSON.stringify(headers)} ${body?.slice(0, 2000) ?? ''}`
  const response = await fetch(`${url}/api/v1${path}${search}`, {
    method: call.rest.method,
    headers: { ...headers, authorization: `Bearer ${token}` },
    signal: AbortSignal.timeout(answerLimitMs),
    ...(body !== undefined && { body }),
  }).catch(cause => {
    throw new Error(`${told}: no answer: ${cause.message}: ${cause.cause?.message}`, { cause })
  })
  const fail = (why: string): never => {
    throw new Error(`${told}\n  → ${response.status}: ${why}`)
  }
  if (!response.headers.get('x-request-id')) fail('the answer has no x-request-id')
  if (response.ok && call.kind === 'stream') {
    if (response.headers.get('content-type') !== 'text/event-stream') fail('the answer is no event stream')
    await response.body?.cancel()
    return { status: response.status }
  }
  const text = await response.text()
  if (response.ok) {
    if (response.status !== call.status) fail(`it should be ${call.status}`)
    const parsed = outputOf(call).safeParse(text === '' ? null : JSON.parse(text))
    if (!parsed.success) fail(`the answer does not fit: ${parsed.error.message}`)
    return { status: response.status }
  }
  if (response.headers.get('content-type') !== 'application/problem+json') fail(`no problem document: ${text}`)
  const problem = problemDocument.safeParse(JSON.parse(text))
  if (!problem.success) return fail(`no problem document: ${text}`)
  const { code, status, errors } = problem.data
  if (code === 'internal') fail(text)
  if (status !== response.status || errorTable[code].status !== status) fail(`the status is not that of ${code}`)
  if (![...call.errors, ...commonErrors, ...routeErrors].includes(code)) fail(`${code} is not among the call's errors`)
  if (code === 'invalid-input' && !errors?.length) fail('an invalid input must name its fields')
  return { status, code }
}
