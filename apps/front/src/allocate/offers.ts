// The broadcast: one question to all partitions, and the offers that come back in time. Nothing is held by an offer.

import { type Bus, BusError } from '@muster/shared/bus/bus'
import { type Offer, type OfferRequest, protocolVersion, subjects } from '@muster/shared/bus/protocol'
import type { AllocationRequest } from '@muster/shared/contract/allocations'
import type { Coverage } from '@muster/shared/contract/call'
import { Refusal } from '@muster/shared/errors'
import { coverageOf } from '../coverage.ts'
import { decodeJson, encodeJson } from '../json.ts'
import type { Limits } from '../limits.ts'
import type { Envelope } from '../partition-calls.ts'
import type { Presence } from '../presence.ts'

export interface Offers {
  /** In the order they came, one per partition. */
  readonly offers: readonly Offer[]
  readonly coverage: Coverage
}

export interface OfferAsking {
  readonly bus: Bus
  readonly presence: Presence
  readonly limits: Limits
  readonly log: { warn(facts: object, text: string): void }
}

type Line = Coverage['partitions'][number]

/**
 * Broadcasts the request and collects what comes: until every present partition has answered or, for `first`, one offers enough; at most
 * {@link Limits.offersMs}, and {@link Limits.offersQuietMs} after the last that came. Throws `bus-away`.
 */
export async function collectOffers(
  asking: OfferAsking,
  question: { envelope: Envelope; request: AllocationRequest; purpose: OfferRequest['purpose']; signal: AbortSignal },
): Promise<Offers> {
  const { bus, presence, limits, log } = asking
  const { envelope, request, purpose } = question
  const startedAt = performance.now()
  const data = encodeJson({
    v: protocolVersion,
    id: envelope.id,
    // Not the second that we listen: clocks differ by more than that, and a partition does not answer what is too late by its own.
    deadline: envelope.deadline,
    caller: envelope.caller,
    strategy: request.strategy,
    count: request.count,
    constraints: request.constraints,
    purpose,
  } satisfies OfferRequest)

  const expected = expectedOf(presence)
  const missing = new Set(expected)
  const offers: Offer[] = []
  const lines = new Map<string, Line>()
  let unreadable = 0
  let lastAt = 0
  const quiet = new AbortController()
  const giveUp = () => quiet.abort()
  question.signal.addEventListener('abort', giveUp, { once: true })
  let timer: NodeJS.Timeout | undefined
  const watchQuiet = () => {
    const restMs = lastAt + limits.offersQuietMs - performance.now()
    if (restMs <= 0) giveUp()
    else timer = setTimeout(watchQuiet, restMs)
  }

  const onAnswer = (answer: Uint8Array): 'more' | 'enough' => {
    lastAt = performance.now()
    const offer = readOffer(answer)
    if (!offer) {
      unreadable++
      return 'more'
    }
    const { partition, replica, epoch } = offer
    if (!presence.accepts(partition) || lines.has(partition)) return 'more'
    const line = { name: partition, ms: Math.round((lastAt - startedAt) * 10) / 10 }
    const isStale = presence.isStale(partition, replica, epoch)
    lines.set(partition, isStale ? { ...line, outcome: 'refused', reason: staleReason } : { ...line, outcome: 'answered' })
    missing.delete(partition)
    if (!isStale) offers.push(offer)
    if (expected.length > 0 && missing.size === 0) return 'enough'
    if (!isStale && request.strategy === 'first' && offer.machines.length >= request.count) return 'enough'
    timer ??= setTimeout(watchQuiet, limits.offersQuietMs)
    return 'more'
  }
  try {
    await bus.gather(subjects.offer, data, {
      timeoutMs: Math.min(limits.offersMs, envelope.deadline - Date.now()),
      signal: quiet.signal,
      onAnswer,
    })
  } catch (error) {
    if (!(error instanceof BusError)) throw error
    throw new Refusal('bus-away', `asking for offers: ${error.message}; nothing was allocated`, {}, { cause: error })
  } finally {
    clearTimeout(timer)
    question.signal.removeEventListener('abort', giveUp)
  }
  if (unreadable > 0) log.warn({ request: envelope.id, unreadable }, 'offers that cannot be read were dropped')

  const waitedMs = Math.round((performance.now() - startedAt) * 10) / 10
  for (const name of presence.known())
    if (!lines.has(name)) {
      const isAbsent = presence.standing(name) !== 'present'
      const reason = isAbsent
        ? presence.describe(name)
        : missing.size > 0 && isEnough(offers, request)
          ? 'another offer came first'
          : 'no offer in time'
      lines.set(name, { name, ms: waitedMs, outcome: 'silent', reason })
    }
  return { offers, coverage: coverageOf([...lines.values()]) }
}

/**
 * Whom to wait for: all but those known to be away. Where that is everybody, presence is more likely wrong than the whole federation gone.
 * Where no partition is known at all, nobody: then only silence tells that all have answered.
 */
function expectedOf(presence: Presence): readonly string[] {
  const known = presence.known()
  const likely = known.filter(partition => ['present', 'unheard'].includes(presence.standing(partition)))
  return likely.length > 0 ? likely : known
}

const staleReason = 'its offer came from a process that has been replaced'

function isEnough(offers: readonly Offer[], { strategy, count }: AllocationRequest): boolean {
  return strategy === 'first' && (offers.at(-1)?.machines.length ?? 0) >= count
}

/**
 * An offer, or undefined where it is none. Checked by hand: 50 offers come per allocation, and a schema would cost more than the parsing.
 */
export function readOffer(data: Uint8Array): Offer | undefined {
  const offer = decodeJson(data) as Offer | null | undefined
  if (typeof offer !== 'object' || offer === null || offer.v !== protocolVersion) return undefined
  const { partition, replica, epoch, machines, matching, why } = offer
  if (typeof partition !== 'string' || typeof replica !== 'string' || typeof epoch !== 'number') return undefined
  if (!Array.isArray(machines) || typeof matching !== 'number') return undefined
  for (const machine of machines) {
    if (typeof machine !== 'object' || machine === null) return undefined
    const { id, score, rack, zone } = machine
    if (typeof id !== 'string' || !Number.isFinite(score) || typeof rack !== 'string' || typeof zone !== 'string') return undefined
    if (id.lastIndexOf('-') !== partition.length || !id.startsWith(partition)) return undefined
  }
  if (why === undefined) return offer
  const { considered, removed, nearest } = why ?? {}
  const isWhy = typeof considered === 'number' && typeof removed === 'object' && removed !== null && Array.isArray(nearest)
  return isWhy && nearest.every(near => typeof near?.machine === 'string' && Array.isArray(near.misses)) ? offer : undefined
}
