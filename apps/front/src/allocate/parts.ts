// The parts of an allocation: held in their partitions, confirmed, or given back. What is not known for certain is said to be unknown.
import type { KeyRecord } from '@muster/shared/bus/protocol'
import type { Allocation, AllocationRequest } from '@muster/shared/contract/allocations'
import type { Refusal } from '@muster/shared/errors'
import { partitionOf } from '@muster/shared/ids'
import type { Limits } from '../limits.ts'
import type { Envelope, PartitionCalls, Reply } from '../partition-calls.ts'
import type { Part } from './choose.ts'
import { insist, isDefinite } from './insist.ts'

/** One try to get the machines, under one allocation id. */
export type Attempt = Pick<KeyRecord, 'allocation' | 'createdAt' | 'parts'>

export interface PartAsking {
  readonly calls: PartitionCalls
  readonly limits: Limits
  readonly envelope: Envelope
}

/** `refused`: certainly nothing is held there; `unknown`: perhaps something is, until it expires. */
export type HoldOutcome =
  | { readonly kind: 'held'; readonly partition: string; readonly machines: readonly { readonly id: string }[] }
  | { readonly kind: 'refused' | 'unknown'; readonly partition: string; readonly reason: string }
  /** The owner would have more there alone than it may have anywhere. */
  | { readonly kind: 'beyond quota'; readonly partition: string; readonly refusal: Refusal }

/** Holds one part: the machines named or, where some are gone, the next matches there. */
export async function holdPart(
  asking: PartAsking,
  hold: { allocation: string; createdAt: string; request: AllocationRequest; part: Part },
): Promise<HoldOutcome> {
  const { calls, limits, envelope } = asking
  const { allocation, createdAt, request, part } = hold
  const { partition, machines } = part
  const { strategy, count, note, constraints } = request
  const timeoutMs = Math.min(limits.callMs, envelope.deadline - Date.now())
  const input = { allocation, createdAt, strategy, count, note, constraints, wanted: machines.length, machines: [...machines] }
  const reply = await calls.askBus({ partition, envelope, timeoutMs }, 'allocation.hold', input)
  if (reply.kind === 'answered') {
    const held = reply.answer.machines
    if (held.length === machines.length && held.every(({ id }) => partitionOf(id) === partition))
      return { kind: 'held', partition, machines: held }
    return { kind: 'unknown', partition, reason: `it held ${held.length} machines where ${machines.length} were wanted` }
  }
  if (reply.kind === 'refused' && reply.refusal.code === 'quota-exceeded')
    return { kind: 'beyond quota', partition, refusal: reply.refusal }
  const isSure = isDefinite(reply) || (reply.kind === 'silent' && reply.heard === 'no')
  return { kind: isSure ? 'refused' : 'unknown', partition, reason: reasonOf(reply) }
}

/**
 * What became of an attempt. `gone`: it can never be confirmed, and nothing of it is left. `unknown`: nobody can say before these
 * partitions answer.
 */
export type Settled =
  | {
      readonly kind: 'confirmed'
      readonly parts: readonly { readonly ms: number; readonly part: Allocation; readonly partition: string }[]
    }
  | { readonly kind: 'gone'; readonly reasons: readonly string[] }
  | { readonly kind: 'unknown'; readonly silent: readonly string[]; readonly reasons: readonly string[] }

/** Confirms all parts. Where one is gone for good, gives up the others, so that nothing is ever left in half. Until epoch milliseconds. */
export async function settle(asking: PartAsking, attempt: Attempt, until: number): Promise<Settled> {
  const { allocation, parts } = attempt
  const startedAt = performance.now()
  const outcomes = await Promise.all(
    parts.map(async ({ partition }) => {
      const reply = await insist({ ...asking, partition, until }, 'allocation.confirm', { allocation })
      return { partition, reply, ms: performance.now() - startedAt }
    }),
  )
  const confirmed = outcomes.flatMap(({ partition, reply, ms }) =>
    reply.kind === 'answered' ? [{ partition, ms, part: reply.answer }] : [],
  )
  if (confirmed.length === parts.length) return { kind: 'confirmed', parts: confirmed }
  const gone = outcomes.filter(({ reply }) => reply.kind !== 'answered' && isDefinite(reply))
  const reasons = outcomes.flatMap(({ partition, reply }) => (reply.kind === 'answered' ? [] : [`${partition}: ${reasonOf(reply)}`]))
  if (gone.length === 0)
    return { kind: 'unknown', silent: outcomes.filter(({ reply }) => reply.kind !== 'answered').map(partitionName), reasons }
  const left = parts.filter(({ partition }) => !gone.some(each => each.partition === partition))
  const silent = await giveUp(asking, { allocation, parts: left })
  return silent.length === 0 ? { kind: 'gone', reasons } : { kind: 'unknown', silent, reasons }
}

/** Gives an attempt up for good: holds are dropped, what is confirmed is released. Answers the partitions that did not say it is done. */
export async function giveUp(asking: PartAsking, { allocation, parts }: Pick<Attempt, 'allocation' | 'parts'>): Promise<string[]> {
  const until = Date.now() + asking.limits.dropMs
  const silent = await Promise.all(
    parts.map(async ({ partition }) => {
      const reply = await insist({ ...asking, partition, until }, 'allocation.drop', { allocation, confirmed: 'release' })
      return reply.kind === 'answered' || (reply.kind === 'refused' && reply.refusal.code === 'not-found') ? [] : [partition]
    }),
  )
  return silent.flat()
}

/**
 * Gives holds back before they expire. One short try: what is not heard expires by itself. What is confirmed stays, because the attempt's
 * record may stand, and then a retry may have made it good in the meantime.
 */
export async function dropHolds(asking: PartAsking, allocation: string, partitions: readonly string[]): Promise<void> {
  const { calls, limits } = asking
  const envelope = { ...asking.envelope, deadline: Math.max(asking.envelope.deadline, Date.now() + limits.dropMs) }
  await Promise.all(
    partitions.map(partition =>
      calls.askBus({ partition, envelope, timeoutMs: limits.dropMs }, 'allocation.drop', { allocation, confirmed: 'keep' }),
    ),
  )
}

const partitionName = ({ partition }: { partition: string }) => partition

/** Why there is no answer, in words. */
export function reasonOf(reply: Exclude<Reply<unknown>, { kind: 'answered' }>): string {
  return reply.kind === 'refused' ? reply.refusal.message : reply.reason
}
