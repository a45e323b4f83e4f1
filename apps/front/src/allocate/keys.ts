// Idempotency keys: which attempt won is remembered by one partition, the key's home, so that any front finds it again.
import { createHash } from 'node:crypto'
import { homesOf } from '@muster/shared/allocation/score'
import type { KeyRecord } from '@muster/shared/bus/protocol'
import type { AllocationRequest } from '@muster/shared/contract/allocations'
import { Refusal } from '@muster/shared/errors'
import type { Limits } from '../limits.ts'
import type { Envelope, PartitionCalls, Reply } from '../partition-calls.ts'
import type { Presence } from '../presence.ts'
import { insist } from './insist.ts'

/** The first candidates are asked for a key: where the accepted partitions changed by one since, its old home is among them. */
const candidatesAsked = 3

export interface KeyAsking {
  readonly calls: PartitionCalls
  readonly presence: Presence
  readonly limits: Limits
  readonly envelope: Envelope
  readonly signal: AbortSignal
}

export interface Key {
  /** `<caller>:<key>`, the caller's name escaped so that no other caller's key reads the same. */
  readonly text: string
  readonly requestHash: string
  readonly home: string
  readonly candidates: readonly string[]
}

/** The key of a request. Throws `partition-silent` where no partition is known that could keep it. */
export function keyOf(presence: Presence, callerName: string, idempotencyKey: string, request: AllocationRequest): Key {
  const text = `${encodeURIComponent(callerName)}:${idempotencyKey}`
  const candidates = homesOf(text, presence.known()).slice(0, candidatesAsked)
  const [home] = candidates
  if (home === undefined)
    throw new Refusal('partition-silent', 'no partition is known yet that could keep the Idempotency-Key; nothing was allocated')
  return { text, requestHash: hashOf(request), home, candidates }
}

/** What is on record for a key. */
export interface Recalled {
  /** The records found, newest first. */
  readonly records: readonly KeyRecord[]
  /** The allocation whose record stands at the home: what a new attempt has to replace. */
  readonly atHome: string | null
}

/**
 * Asks the candidates for the key. Throws `nothing-allocated` where the home is silent: without it nobody can know whether this is a
 * retry. The other candidates matter only after a change of the accepted partitions, so their silence stops nobody; otherwise each
 * silent partition would cost three times its share of the keys.
 */
export async function recall(asking: KeyAsking, key: Key): Promise<Recalled> {
  const { calls, presence, limits, envelope, signal } = asking
  const replies = await Promise.all(
    key.candidates.map(partition => {
      const limitMs = presence.standing(partition) === 'silent' ? limits.silentTryMs : limits.callMs
      const question = { calls, limits, envelope, partition, signal }
      if (partition === key.home) return insist({ ...question, until: Date.now() + limitMs }, 'key.recall', { key: key.text })
      return calls.askBus({ partition, envelope, timeoutMs: limitMs, signal }, 'key.recall', { key: key.text })
    }),
  )
  const [atHome] = replies as [(typeof replies)[number]]
  if (atHome.kind !== 'answered') throw homeIsSilent(key, presence, atHome)
  const records = replies.flatMap(reply => (reply.kind === 'answered' && reply.answer ? [reply.answer] : []))
  for (const record of records) if (isReused(key, record)) throw reused(record)
  return { records: records.sort((a, b) => (a.createdAt > b.createdAt ? -1 : 1)), atHome: atHome.answer?.allocation ?? null }
}

/** Records the attempt at the home, in place of allocation `replaces`; answers what stands, which may be another's, or the refusal. */
export async function remember(asking: KeyAsking, key: Key, record: KeyRecord, replaces: string | null): Promise<KeyRecord | Refusal> {
  const { calls, presence, limits, envelope } = asking
  const until = Math.min(Date.now() + limits.rememberMs, envelope.deadline)
  const reply = await insist({ calls, limits, envelope, partition: key.home, until }, 'key.remember', { record, replaces })
  if (reply.kind !== 'answered') return homeIsSilent(key, presence, reply)
  return isReused(key, reply.answer) ? reused(reply.answer) : reply.answer
}

function homeIsSilent(key: Key, presence: Presence, reply: Exclude<Reply<unknown>, { kind: 'answered' }>): Refusal {
  const reason = reply.kind === 'refused' ? reply.refusal.message : reply.reason
  const detail = `${key.home} keeps this Idempotency-Key and gave no answer: ${reason} (${presence.describe(key.home)}); nothing was allocated`
  return new Refusal('nothing-allocated', detail, { partition: key.home })
}

function isReused(key: Key, record: KeyRecord): boolean {
  return record.requestHash !== key.requestHash
}

function reused(record: KeyRecord): Refusal {
  const facts = { allocation: record.allocation, usedAt: record.createdAt }
  return new Refusal('key-reused', `this Idempotency-Key was used at ${record.createdAt} for another request`, facts)
}

/** SHA-256 over the request with its fields in order of their names, whatever order the client chose. */
export function hashOf(request: AllocationRequest): string {
  return createHash('sha256').update(canonical(request)).digest('hex')
}

function canonical(value: unknown): string {
  return JSON.stringify(value, (_, item: unknown) =>
    typeof item === 'object' && item !== null && !Array.isArray(item)
      ? Object.fromEntries(Object.entries(item).sort(([a], [b]) => (a < b ? -1 : 1)))
      : item,
  )
}
