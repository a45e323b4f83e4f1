// How a call is declared: once. The REST routes, the tRPC router, the OpenAPI document, the typed client, the docs and the way the call
// spreads over a federation are all read from the declaration.
import { z } from 'zod'
import type { ErrorCode } from '../errors.ts'
import { label, partitionName } from '../machine.ts'

/** Who may, weakest first: a stronger role may all a weaker one may. `public` needs no token. */
export const roles = ['public', 'read-only', 'user', 'operator', 'admin'] as const
export type Role = (typeof roles)[number]

export function mayAct(has: Role, needs: Role): boolean {
  return roles.indexOf(has) >= roles.indexOf(needs)
}

/** Who asks, as every backend sees it. `pools`: those it is limited to; all where left out. */
export const caller = z.strictObject({ name: z.string(), role: z.enum(roles), pools: z.array(label).readonly().optional() })
export type Caller = z.infer<typeof caller>

/** A caller of whom nothing is known. */
export const nobody: Caller = { name: 'anonymous', role: 'public' }

/** Whether both may the same. */
export function isSameCaller(one: Caller, other: Caller): boolean {
  if (one.name !== other.name || one.role !== other.role || one.pools?.length !== other.pools?.length) return false
  return one.pools?.every(pool => other.pools?.includes(pool)) ?? true
}

/** One line per partition asked: what it did, and how long it took. */
export const coverage = z.object({
  asked: z.number().int(),
  answered: z.number().int(),
  partitions: z.array(
    z.object({
      name: partitionName,
      outcome: z.enum(['answered', 'refused', 'silent']),
      ms: z.number(),
      /** Why it refused or is held silent. */
      reason: z.string().optional(),
    }),
  ),
})
export type Coverage = z.infer<typeof coverage>

/** What a merge gets: the bare answers of the partitions that answered, and the names of those that did not. */
export interface Gathered<Answer> {
  readonly answers: readonly { readonly partition: string; readonly answer: Answer }[]
  readonly silent: readonly string[]
}

/**
 * How a call spreads over a federation.
 * - `here`: whichever server is asked answers by itself.
 * - `owner`: the one partition that `of` names; undefined means that no partition can have it.
 * - `gather`: ask all, merge.
 * - `find`: ask all; those who know it answer, the others say not-found; merge.
 * - `each`: apply to all, one outcome per partition.
 * - `best`: an allocation: broadcast, hold, confirm.
 * - `global`: about the global configuration: a front answers from its home, a partition from its copy, or refuses with needs-front.
 */
export type Spread<Input, Answer> =
  | { readonly kind: 'here' }
  | { readonly kind: 'owner'; readonly of: (input: Input) => string | undefined }
  | { readonly kind: 'gather' | 'find' | 'each'; readonly merge: (gathered: Gathered<Answer>, input: Input) => Answer }
  | { readonly kind: 'best' }
  | { readonly kind: 'global' }

export interface Call<Input extends z.ZodType = z.ZodType, Answer extends z.ZodType = z.ZodType> {
  readonly summary: string
  readonly description?: string
  /** Path under /api/v1 with `{name}` parameters; parameters and query become fields of the input. */
  readonly rest: { readonly method: 'GET' | 'POST' | 'PATCH' | 'PUT' | 'DELETE'; readonly path: `/${string}` }
  /** Status of success. */
  readonly status: 200 | 201 | 202 | 204
  readonly role: Role
  readonly input: Input
  /** What one partition answers; clients of a spreading call (all but `here`, `owner` and `global`) get it with `coverage` added. */
  readonly answer: Answer
  readonly spread: Spread<z.output<Input>, z.output<Answer>>
  /** The refusals a client should expect, beside those every call has (malformed, unauthenticated, forbidden, invalid-input, internal …). */
  readonly errors: readonly ErrorCode[]
  /** `key`: takes an Idempotency-Key. */
  readonly idempotency?: 'key'
  /** `stream`: server-sent events; `answer` is one event. */
  readonly kind?: 'stream'
}

export type RestMethod = Call['rest']['method']

/**
 * A declared call. `Kind` keeps how it spreads in the type, so that the client's output knows whether there is a coverage; `Method`, so that
 * tRPC knows a query from a mutation.
 */
export type Declared<
  Input extends z.ZodType,
  Answer extends z.ZodType,
  Kind extends Spread<never, never>['kind'],
  Method extends RestMethod = RestMethod,
> = Call<Input, Answer> & { readonly spread: { readonly kind: Kind }; readonly rest: { readonly method: Method } }

export function declareCall<
  const Input extends z.ZodType,
  const Answer extends z.ZodType,
  const Kind extends Spread<never, never>['kind'],
  const Method extends RestMethod,
>(call: Declared<Input, Answer, Kind, Method>): Declared<Input, Answer, Kind, Method> {
  return call
}

/** Declares server-sent events: `answer` is one event. The type keeps that it is a stream. */
export function declareStream<const Input extends z.ZodType, const Answer extends z.ZodType>(
  call: Omit<Declared<Input, Answer, 'here', 'GET'>, 'kind'>,
): Declared<Input, Answer, 'here', 'GET'> & { readonly kind: 'stream' } {
  return { ...call, kind: 'stream' }
}

export type InputOf<C> = C extends Call<infer Input, z.ZodType> ? z.output<Input> : never
/** What a client may send: defaults may be left out. */
export type RequestOf<C> = C extends Call<infer Input, z.ZodType> ? z.input<Input> : never
export type AnswerOf<C> = C extends Call<z.ZodType, infer Answer> ? z.output<Answer> : never

/** Ways to spread in which one server answers for all, so that there is nobody to list. */
export type AnsweredByOne = 'here' | 'owner' | 'global'

/** Whether answers of this call carry a coverage. */
export function hasCoverage(call: Pick<Call, 'spread'>): boolean {
  return call.spread.kind !== 'here' && call.spread.kind !== 'owner' && call.spread.kind !== 'global'
}

/** The whole output schema of a call: its answer, with `coverage` where it spreads. */
export function outputOf(call: Call): z.ZodType {
  return hasCoverage(call) && call.answer instanceof z.ZodObject ? call.answer.extend({ coverage }) : call.answer
}

/** What every call may answer beside its own errors. */
export const commonErrors = [
  'malformed',
  'unauthenticated',
  'forbidden',
  'payload-too-large',
  'unsupported-media-type',
  'invalid-input',
  'too-many-requests',
  'internal',
  'not-ready',
  'database-away',
  'bus-away',
  'partition-silent',
  'deadline-passed',
] as const satisfies readonly ErrorCode[]

export const noInput = z.strictObject({})
