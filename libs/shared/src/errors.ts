// The one table of errors: code → HTTP status, whether the same call may succeed later, and what it means. Every refusal of
// Muster, on every door, is one of these; docs/generated/errors.md is printed from here.
import { z } from 'zod'

export const errorTable = {
  malformed: { status: 400, retryable: 'no', title: 'The request cannot be read' },
  unauthenticated: { status: 401, retryable: 'no', title: 'A valid token is needed' },
  forbidden: { status: 403, retryable: 'no', title: 'This token may not do that' },
  'not-found': { status: 404, retryable: 'no', title: 'There is no such thing' },
  'method-not-allowed': { status: 405, retryable: 'no', title: 'This path does not take that method' },
  'wrong-state': { status: 409, retryable: 'no', title: 'The machine is in a state that does not allow this' },
  locked: { status: 409, retryable: 'no', title: 'The machine is locked' },
  'machine-owned': { status: 409, retryable: 'no', title: 'The machine belongs to an allocation' },
  'already-exists': { status: 409, retryable: 'no', title: 'That exists already' },
  'already-taken': { status: 409, retryable: 'no', title: 'It is handed out once, and was' },
  'stale-version': { status: 409, retryable: 'yes', title: 'It was changed by somebody else meanwhile' },
  'no-match': { status: 409, retryable: 'yes', title: 'No machine matches' },
  'quota-exceeded': { status: 409, retryable: 'no', title: 'The quota is used up' },
  'needs-front': { status: 409, retryable: 'no', title: 'Only a front can do this' },
  'home-lost': { status: 409, retryable: 'no', title: 'The database of the global configuration was lost or set back' },
  'newer-release': { status: 409, retryable: 'no', title: 'A newer release wrote what this one would lose' },
  'key-reused': { status: 409, retryable: 'no', title: 'This Idempotency-Key was used for another request' },
  gone: { status: 410, retryable: 'no', title: 'It was kept for a time, and that is over' },
  'payload-too-large': { status: 413, retryable: 'no', title: 'Too large' },
  'unsupported-media-type': { status: 415, retryable: 'no', title: 'The body must be JSON' },
  'invalid-input': { status: 422, retryable: 'no', title: 'The input is not valid' },
  'not-installable': { status: 422, retryable: 'no', title: 'That operating system cannot be installed there' },
  'no-power-driver': { status: 422, retryable: 'no', title: 'The machine has no power settings' },
  'too-many-requests': { status: 429, retryable: 'yes', title: 'Too many requests' },
  internal: { status: 500, retryable: 'yes', title: 'Muster made a mistake' },
  'not-yet-installable': { status: 503, retryable: 'yes', title: 'That operating system cannot be installed there yet' },
  'not-ready': { status: 503, retryable: 'yes', title: 'The server is not ready' },
  'database-away': { status: 503, retryable: 'yes', title: 'The database does not answer' },
  'bus-away': { status: 503, retryable: 'yes', title: 'The message bus is not connected' },
  overloaded: { status: 503, retryable: 'yes', title: 'The server has too much to do just now' },
  'provider-away': { status: 503, retryable: 'yes', title: 'The identity provider does not answer' },
  'partition-silent': { status: 503, retryable: 'yes', title: 'The partition does not answer' },
  'nothing-allocated': { status: 503, retryable: 'yes', title: 'Nothing was allocated' },
  'deadline-passed': { status: 504, retryable: 'yes', title: 'The time for this request ran out' },
} as const satisfies Record<string, { status: number; retryable: 'yes' | 'no'; title: string }>

export type ErrorCode = keyof typeof errorTable
export const errorCodes = Object.keys(errorTable) as ErrorCode[]

/** One field that was refused: its path in the input (`constraints.disks.0.sizeGb`) and why. */
export const fieldError = z.object({ field: z.string(), message: z.string() })
export type FieldError = z.infer<typeof fieldError>

/** RFC 9457 problem document. Facts beyond the standard members stand beside them (`explanation`, `coverage`, `state` …). */
export const problemDocument = z
  .object({
    type: z.string(),
    title: z.string(),
    status: z.number().int(),
    detail: z.string(),
    code: z.enum(errorCodes as [ErrorCode, ...ErrorCode[]]),
    retryable: z.boolean(),
    errors: z.array(fieldError).optional(),
  })
  .loose()
export type ProblemDocument = z.infer<typeof problemDocument>

/** An expected refusal. `detail` says what was tried, on what, and what came back; `facts` go into the problem document. */
export class Refusal extends Error {
  readonly code: ErrorCode
  readonly facts: Record<string, unknown>
  constructor(code: ErrorCode, detail: string, facts: Record<string, unknown> = {}, options?: ErrorOptions) {
    super(detail, options)
    this.name = 'Refusal'
    this.code = code
    this.facts = facts
  }
}

/** The problem document of a refusal. */
export function problemOf(refusal: Refusal): ProblemDocument {
  const row = errorTable[refusal.code]
  return {
    ...refusal.facts,
    type: `urn:muster:error:${refusal.code}`,
    title: row.title,
    status: row.status,
    detail: refusal.message,
    code: refusal.code,
    retryable: row.retryable === 'yes',
  }
}

const standardMembers = new Set(['type', 'title', 'status', 'detail', 'code', 'retryable'])

/** The refusal a problem document speaks of: the way back from the wire. */
export function refusalOf(problem: ProblemDocument): Refusal {
  const facts = Object.fromEntries(Object.entries(problem).filter(([name]) => !standardMembers.has(name)))
  return new Refusal(problem.code, problem.detail, facts)
}

/** The refusal for an input that did not pass its schema; names every field. */
export function invalidInput(error: z.ZodError): Refusal {
  const errors = error.issues.flatMap(issue =>
    issue.code === 'unrecognized_keys'
      ? issue.keys.map(key => ({ field: [...issue.path, key].join('.'), message: 'unknown field' }))
      : [{ field: issue.path.join('.') || '(input)', message: issue.message }],
  )
  return wrongFields(errors)
}

/** The refusal for fields that pass their schema and cannot be so all the same; names every one. */
export function wrongFields(errors: readonly { readonly field: string; readonly message: string }[]): Refusal {
  return new Refusal('invalid-input', errors.map(({ field, message }) => `${field}: ${message}`).join('; '), { errors })
}
