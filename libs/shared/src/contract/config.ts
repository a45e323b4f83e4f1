// Calls about the global configuration: written through a front into the database the fronts share; every partition keeps a whole copy.
import { z } from 'zod'
import { difference, documentChange, documentKind, documentReference } from '../global/documents.ts'
import { partitionName, timestamp } from '../machine.ts'
import { declareCall, type Gathered } from './call.ts'
import { type Page, pageOf } from './page.ts'

/** One generation: who changed what, when. */
export const generation = z.object({
  generation: z.number().int(),
  changedAt: timestamp,
  changedBy: z.string(),
  note: z.string(),
})
export type Generation = z.infer<typeof generation>

/** What a partition holds. */
export const heldCopy = z.object({
  partition: partitionName,
  /** 0: none yet. */
  generation: z.number().int(),
  /** SHA-256 of the payload: two copies of one generation must agree. */
  digest: z.string().nullable(),
  takenAt: timestamp.nullable(),
  /** When a front last told what is newest; null: not since this partition started. */
  heardAt: timestamp.nullable(),
  /** Why it does not take what fronts offer, or what it cannot read; empty when all is well. */
  problems: z.array(z.string()),
})
export type HeldCopy = z.infer<typeof heldCopy>

const expectedGeneration = z.number().int().min(0).optional().describe('refuse when the configuration has changed since')
const dryRun = z.boolean().default(false).describe('show what would change, and change nothing')
const note = z.string().max(1000).default('').describe('why; kept in the history')

const changeAnswer = z.object({
  /** The generation written; for a dry run or a change that changes nothing, the one in force. */
  generation: z.number().int(),
  outcome: z.enum(['written', 'dry-run', 'nothing-to-do']),
  differences: z.array(difference),
  /** Secrets that the front made because none was given. They are shown this once. */
  secrets: z.array(z.object({ kind: documentKind, name: z.string(), field: z.string(), secret: z.string() })).default([]),
})

export const config = {
  get: declareCall({
    summary: 'The global configuration in force, or some of its documents',
    description:
      'A partition answers from its copy, a front from the database that the fronts share or, while that is away, from the newest copy it found.',
    rest: { method: 'GET', path: '/config' },
    status: 200,
    role: 'admin',
    input: z.strictObject({ kind: documentKind.optional(), name: z.string().max(100).optional() }),
    answer: z.object({
      ...generation.shape,
      changedAt: timestamp.nullable(),
      /** Where it was read. */
      source: z.string(),
      documents: z.array(z.object({ kind: documentKind, name: z.string(), document: z.record(z.string(), z.unknown()) })),
    }),
    spread: { kind: 'global' },
    errors: ['not-found'],
  }),
  change: declareCall({
    summary: 'Change the global configuration: put and delete documents, all of them or none',
    description:
      'A secret within a document (of a webhook) is sealed before it is kept, and never answered again; put without it, a document keeps the secret it has, and a new one is given one, which the answer says this once.',
    rest: { method: 'POST', path: '/config/changes' },
    status: 200,
    role: 'admin',
    input: z.strictObject({
      put: z.array(documentChange).max(10_000).default([]),
      delete: z.array(documentReference).max(10_000).default([]),
      expectedGeneration,
      dryRun,
      note,
    }),
    answer: changeAnswer,
    spread: { kind: 'global' },
    errors: ['needs-front', 'stale-version', 'home-lost', 'newer-release'],
  }),
  history: declareCall({
    summary: 'Who changed the global configuration, latest first',
    rest: { method: 'GET', path: '/config/history' },
    status: 200,
    role: 'admin',
    input: z.strictObject({ limit: z.number().int().min(1).max(1000).default(50) }),
    answer: z.object({ items: z.array(generation) }),
    spread: { kind: 'global' },
    errors: ['needs-front'],
  }),
  diff: declareCall({
    summary: 'What differs between two generations',
    rest: { method: 'GET', path: '/config/diff' },
    status: 200,
    role: 'admin',
    input: z.strictObject({
      from: z.number().int().min(0),
      to: z.number().int().min(0).optional().describe('the generation in force where left out'),
    }),
    answer: z.object({ from: z.number().int(), to: z.number().int(), differences: z.array(difference) }),
    spread: { kind: 'global' },
    errors: ['needs-front', 'not-found'],
  }),
  revert: declareCall({
    summary: 'Bring back an earlier generation, as a new one',
    rest: { method: 'POST', path: '/config/revert' },
    status: 200,
    role: 'admin',
    input: z.strictObject({ to: z.number().int().min(1), expectedGeneration, dryRun, note }),
    answer: changeAnswer,
    spread: { kind: 'global' },
    errors: ['needs-front', 'not-found', 'stale-version', 'home-lost'],
  }),
  refill: declareCall({
    summary: 'Fill a lost or outdated database of the fronts from the newest copy that a partition holds',
    description:
      'The generation jumps ahead, and every partition takes it, whatever it holds: nothing that was lost can come back as newer. Where the database was set back and written since, it says which of both histories is true.',
    rest: { method: 'POST', path: '/config/refill' },
    status: 200,
    role: 'admin',
    input: z.strictObject({
      note,
      wins: z
        .enum(['copy', 'database'])
        .default('copy')
        .describe('which is true where they say different things: the newest copy of a partition, or the database of the fronts'),
    }),
    answer: z.object({
      outcome: z.enum(['refilled', 'nothing-to-do']),
      /** The generation in force by now. */
      generation: z.number().int(),
      /** Whose copy it was, and which generation; null where there was nothing to do, and `partition` where the database won. */
      partition: partitionName.nullable(),
      from: z.number().int().nullable(),
    }),
    spread: { kind: 'global' },
    errors: ['needs-front', 'stale-version', 'newer-release'],
  }),
  copies: declareCall({
    summary: 'Which generation each partition holds',
    description:
      'A front says beside it which generation is in force, whose copy is of another history, and what those that do not answer held when they were last heard.',
    rest: { method: 'GET', path: '/config/copies' },
    status: 200,
    role: 'operator',
    input: z.strictObject({}),
    answer: pageOf(heldCopy).extend({
      /** What the front that was asked has in force; generation 0: nothing. A partition says nothing of it. */
      inForce: z.object({ generation: z.number().int(), digest: z.string().nullable(), changedAt: timestamp.nullable() }).optional(),
      /** The partitions whose copy is of another history than that. */
      another: z.array(partitionName).optional(),
      /** What partitions that did not answer held when this front last heard of them. */
      lastHeard: z.array(z.object({ partition: partitionName, generation: z.number().int(), digest: z.string() })).optional(),
    }),
    spread: {
      kind: 'gather',
      merge: ({ answers }: Gathered<Page<HeldCopy>>) => ({
        items: answers.flatMap(({ answer }) => answer.items).sort((a, b) => (a.partition < b.partition ? -1 : 1)),
        nextCursor: null,
      }),
    },
    errors: [],
  }),
}
