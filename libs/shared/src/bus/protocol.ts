// What fronts and partitions say to each other on the bus: subjects, envelopes, and the calls that only the bus has. Every message carries
// the protocol's version; no message carries the only copy of a fact.
import { z } from 'zod'
import { type ConstraintName, constraints, strategies } from '../allocation/constraints.ts'
import { constraintNames } from '../allocation/matcher.ts'
import { counted, countedSet } from '../allocation/quotas.ts'
import { allocation } from '../contract/allocations.ts'
import { caller } from '../contract/call.ts'
import { problemDocument } from '../errors.ts'
import { copyDigest, copyPart, copyQuestion } from '../global/copy.ts'
import { allocationId, machineId, partitionName, timestamp } from '../machine.ts'

export const protocolVersion = 1
const v = z.literal(protocolVersion)

export const subjects = {
  /** Notice of one partition, every {@link presenceEveryMs} and on change: {@link presence}. */
  presence: (partition: string) => `muster.v1.presence.${partition}`,
  /** Notice of a starting front: partitions answer with their presence at once. */
  presenceAsk: 'muster.v1.presence-ask',
  /** Question to all: {@link offerRequest} → {@link offer}. One replica of each partition answers (queue group = partition). */
  offer: 'muster.v1.offer',
  /** Question to one partition: {@link callRequest} → {@link callReply}. */
  call: (partition: string) => `muster.v1.call.${partition}`,
  /** Notice: the caller of these requests has gone. */
  cancel: 'muster.v1.cancel',
  /** Notice: the log of this partition has grown. */
  log: (partition: string) => `muster.v1.log.${partition}`,
  /** Notice of a front: this generation of the global configuration is in force. */
  configuration: 'muster.v1.config',
  /** Question to the fronts, of which one answers: {@link copyRequest} → {@link copyReply}. */
  configurationCopy: 'muster.v1.config.copy',
} as const

export const presenceEveryMs = 1000
/** A replica not heard of for so long is held absent: three missed notices and some delay. */
export const presenceLimitMs = 3500

export const presence = z.object({
  v,
  partition: partitionName,
  replica: z.string(),
  /** Rises with every start of a replica of this partition; offers of a replica's older epoch are dropped. */
  epoch: z.number().int(),
  version: z.string(),
  url: z.string(),
  /** `leaving`: the replica stops and wants no more work. */
  status: z.enum(['ready', 'leaving']),
  capacity: z.object({ ready: z.number().int(), total: z.number().int() }),
  /** Its copy of the global configuration, by which a front sees whether the database of the fronts was set back; absent where it has none. */
  configuration: z.object({ generation: z.number().int(), digest: copyDigest }).optional(),
})
export type Presence = z.infer<typeof presence>

/** Every question: who asks, for which request, and until when (epoch milliseconds) an answer is of use. */
const envelope = {
  v,
  id: z.string().max(64),
  deadline: z.number(),
  caller,
  /** Where the request came in: the client's address, and the front that passes it on. For the audit log. */
  origin: z.object({ address: z.string().max(100), front: z.string().max(100) }).optional(),
}

export const offerRequest = z.object({
  ...envelope,
  strategy: z.enum(strategies),
  count: z.number().int(),
  constraints,
  /** `look`: a dry run; the machine may be offered to others too. */
  purpose: z.enum(['take', 'look']),
})
export type OfferRequest = z.infer<typeof offerRequest>

const constraintName = z.enum(constraintNames as [ConstraintName, ...ConstraintName[]])
export const offer = z.object({
  v,
  partition: partitionName,
  replica: z.string(),
  epoch: z.number().int(),
  /** At most `count` machines, best first. Nothing is held. */
  machines: z.array(z.object({ id: machineId, score: z.number(), rack: z.string(), zone: z.string() })),
  /** How many ready machines match in all. */
  matching: z.number().int(),
  /** Present when fewer than `count` match. */
  why: z
    .object({
      considered: z.number().int(),
      removed: z.partialRecord(constraintName, z.number().int()),
      nearest: z.array(z.object({ machine: machineId, misses: z.array(constraintName) })),
    })
    .optional(),
})
export type Offer = z.infer<typeof offer>

export const callRequest = z.object({ ...envelope, call: z.string(), input: z.unknown() })
export type CallRequestMessage = z.infer<typeof callRequest>

/** The problem comes first: an unknown `ok` may be absent, so the other order would take every problem for an answer. */
export const callReply = z.union([z.object({ v, problem: problemDocument }), z.object({ v, ok: z.unknown() })])
export type CallReply = z.infer<typeof callReply>

export const configurationNotice = z.object({ v, generation: z.number().int() })
/** `digest`: SHA-256 of the payload that the asker has under the generation `have`. */
export const copyRequest = z.object({ v, ...copyQuestion.shape, digest: copyDigest.optional() })
/** `another`: the fronts have something else under the generation `have`; no copy of theirs follows from the asker's. */
export const copyReply = z.object({ v, ...copyPart.shape, another: z.boolean().optional() })

export const cancelNotice = z.object({ v, ids: z.array(z.string()) })
export const logNotice = z.object({ v, partition: partitionName, lastSeq: z.number().int() })

/** What the home partition of an Idempotency-Key remembers: which attempt won. */
export const keyRecord = z.object({
  /** `<caller>:<key>`, the caller's name escaped: at most nine characters for each of a hundred. */
  key: z.string().max(1100),
  /** SHA-256 of the request: the same key with another request is refused. */
  requestHash: z.string(),
  allocation: allocationId,
  createdAt: timestamp,
  parts: z.array(z.object({ partition: partitionName, machines: z.array(machineId) })),
})
export type KeyRecord = z.infer<typeof keyRecord>

/**
 * Calls that only fronts make, over the bus, and a partition's own API makes of itself. Names share the space of the contract's.
 * - `hold`: `ready → reserved` for `wanted` machines, the named ones first, else the next matches; none or all of `wanted`. Refuses with no-match, and with
 *   quota-exceeded where the owner would have more here than it may have anywhere.
 *   At most one per allocation id and partition: a front takes a new id where it does not know what became of a hold.
 * - `confirm`: `reserved → allocated`, all or nothing; idempotent; refuses with nothing-allocated when the hold is gone, and that is final.
 *   A part that was confirmed once is answered as it stands, also after its release: a late retry must not start anew.
 * - `drop`: gives a hold back before its time. What is confirmed already is released (the allocation is given up for good) or kept: a
 *   front that does not know whether its key record stands must not take away what a retry has confirmed meanwhile. Idempotent.
 * - `config.copy`: a part of the global configuration that the partition keeps, for a front whose own database is away or lost.
 * - `quota.count`: how many machines each set of owners has here, holds included, as it is in the database at that moment: a hold that was answered
 *   before the question is in it. A front asks when it has held its own.
 * - `recall`: the record of a key, or null. `remember`: insert if absent, or replace the record of allocation `replaces`; answers with what stands.
 */
export const busCalls = {
  'allocation.hold': {
    input: z.strictObject({
      allocation: allocationId,
      createdAt: timestamp,
      strategy: z.enum(strategies),
      count: z.number().int(),
      note: z.string(),
      constraints,
      wanted: z.number().int().min(1),
      machines: z.array(machineId),
    }),
    answer: z.object({ machines: z.array(z.object({ id: machineId })) }),
  },
  'allocation.confirm': { input: z.strictObject({ allocation: allocationId }), answer: allocation },
  'allocation.drop': {
    input: z.strictObject({ allocation: allocationId, confirmed: z.enum(['release', 'keep']) }),
    answer: z.object({ dropped: z.number().int() }),
  },
  'config.copy': { input: z.strictObject(copyQuestion.shape), answer: copyPart },
  'quota.count': {
    input: z.strictObject({ of: z.array(countedSet).max(100), allocation: allocationId.optional() }),
    /** In the order of the question. */
    answer: z.object({ counts: z.array(counted) }),
  },
  'key.recall': { input: z.strictObject({ key: z.string() }), answer: keyRecord.nullable() },
  'key.remember': { input: z.strictObject({ record: keyRecord, replaces: allocationId.nullable() }), answer: keyRecord },
} as const
export type BusCallName = keyof typeof busCalls
export type BusCallInput<Name extends BusCallName> = z.output<(typeof busCalls)[Name]['input']>
export type BusCallAnswer<Name extends BusCallName> = z.output<(typeof busCalls)[Name]['answer']>
