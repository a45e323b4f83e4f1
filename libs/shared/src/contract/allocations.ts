// Calls about allocations: ask for machines, look at what one has, give it back.
import { z } from 'zod'
import { type ConstraintName, constraints, strategies } from '../allocation/constraints.ts'
import { constraintNames } from '../allocation/matcher.ts'
import { allocationId, duration, machine, machineId, partitionName, timestamp } from '../machine.ts'
import { declareCall } from './call.ts'
import { releaseErase } from './machines.ts'
import { type Key, mergePages, pageInput, pageOf } from './page.ts'

/**
 * `confirmed`: all machines are yours. `partial`: fewer than were asked for, because some were released one by one, another partition has
 * the rest and does not answer, or a front died between two confirms (repeat the request with its key, or release).
 */
export const allocationStates = ['held', 'confirmed', 'partial', 'released'] as const

/** Why nothing, or too little, matched: over all partitions that answered. */
export const noMatchExplanation = z.object({
  /** Ready machines that were looked at. */
  considered: z.number().int(),
  /** Ready machines that match, where `count` asks for more than there are. */
  matching: z.number().int(),
  /** Per constraint, how many of them it refused. */
  removed: z.array(z.object({ constraint: z.enum(constraintNames as [ConstraintName, ...ConstraintName[]]), machines: z.number().int() })),
  nearest: z.array(z.object({ machine: machineId, misses: z.array(z.enum(constraintNames as [ConstraintName, ...ConstraintName[]])) })),
})
export type NoMatchExplanation = z.infer<typeof noMatchExplanation>

export const allocation = z.object({
  /** null in a dry run. */
  id: allocationId.nullable(),
  owner: z.string(),
  state: z.enum(allocationStates),
  strategy: z.enum(strategies),
  count: z.number().int(),
  note: z.string(),
  createdAt: timestamp,
  /** The machines; in a dry run, those that would be taken at this moment. */
  machines: z.array(machine),
  dryRun: z.boolean(),
  /** In a dry run: what was looked at. */
  explanation: noMatchExplanation.optional(),
})
export type Allocation = z.infer<typeof allocation>

/** Joins the parts that several partitions hold of one allocation. */
export function joinAllocations(a: Allocation, b: Allocation): Allocation {
  const machines = [...a.machines, ...b.machines].sort((x, y) => (x.id < y.id ? -1 : 1))
  return { ...a, machines, state: stateOfParts([a, b], machines.length) }
}

function stateOfParts(parts: readonly Allocation[], machines: number): Allocation['state'] {
  const [{ count }] = parts as [Allocation]
  if (parts.every(part => part.state === 'released')) return 'released'
  if (parts.some(part => part.state === 'confirmed' || part.state === 'partial')) return machines >= count ? 'confirmed' : 'partial'
  return 'held'
}

const allocationKey = (item: Allocation): Key => [item.createdAt, item.id ?? '']

const find = {
  kind: 'find' as const,
  merge: ({ answers }: { answers: readonly { answer: Allocation }[] }) => answers.map(({ answer }) => answer).reduce(joinAllocations),
}

export const allocationRequest = z.strictObject({
  strategy: z.enum(strategies).default('best'),
  count: z.number().int().min(1).max(100).default(1).describe('all or nothing'),
  constraints: constraints.default({}),
  dryRun: z.boolean().default(false).describe('explain and hold nothing; answers 201 with id null'),
  wait: duration.optional().describe('keep asking for so long as machines become ready, e.g. 10m (at most 1h)'),
  note: z.string().max(1000).default(''),
})
export type AllocationRequest = z.output<typeof allocationRequest>

export const allocations = {
  create: declareCall({
    summary: 'Allocate machines',
    description:
      'Asks every partition; the first or best offer wins, is held, then confirmed. Send an Idempotency-Key (1 to 128 visible ASCII characters): a retry ' +
      'with the same key, also through another front, gets the first answer. A refusal with `earlierAttempts: unknown` came before the key was looked up, or met holds of a quota: an earlier attempt, ' +
      'whose answer was lost, may stand; repeat it. 409 no-match explains what removed which machines, 409 quota-exceeded how many machines who has and may have.',
    rest: { method: 'POST', path: '/allocations' },
    status: 201,
    role: 'user',
    input: allocationRequest,
    answer: allocation,
    spread: { kind: 'best' },
    errors: ['no-match', 'quota-exceeded', 'key-reused', 'nothing-allocated'],
    idempotency: 'key',
  }),
  list: declareCall({
    summary: 'List allocations, oldest first; users see their own',
    rest: { method: 'GET', path: '/allocations' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({
      owner: z.string().max(100).optional(),
      state: z
        .array(z.enum(['held', 'confirmed', 'released']))
        .max(4)
        .optional(),
      partition: z.array(partitionName).max(100).optional(),
      ...pageInput,
    }),
    answer: pageOf(allocation),
    spread: {
      kind: 'gather',
      merge: (gathered, input) =>
        mergePages(gathered, { sort: 'createdAt', limit: input.limit, cursor: input.cursor, keyOf: allocationKey, join: joinAllocations }),
    },
    errors: [],
  }),
  get: declareCall({
    summary: 'One allocation',
    rest: { method: 'GET', path: '/allocations/{id}' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({ id: allocationId }),
    answer: allocation,
    spread: find,
    errors: ['not-found'],
  }),
  release: declareCall({
    summary: 'Release all machines of an allocation',
    rest: { method: 'POST', path: '/allocations/{id}/release' },
    status: 202,
    role: 'user',
    input: z.strictObject({ id: allocationId, erase: releaseErase }),
    answer: allocation,
    spread: find,
    errors: ['not-found', 'wrong-state', 'locked'],
  }),
}
export { allocationKey }
