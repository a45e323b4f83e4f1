// An allocation over the federation: broadcast, choose, hold, remember the key, confirm. Nothing is ever allocated and given back: what is
// not confirmed expires in its partition, and whatever the answer says is certain.
import { type Backend, type CallContext, isStillAsking } from '@muster/server/backend'
import { explain, noMatch } from '@muster/shared/allocation/explanation'
import type { Limit } from '@muster/shared/allocation/quotas'
import type { Bus } from '@muster/shared/bus/bus'
import { type Allocation, type AllocationRequest, joinAllocations } from '@muster/shared/contract/allocations'
import type { Coverage } from '@muster/shared/contract/call'
import { durationMs } from '@muster/shared/duration'
import { Refusal } from '@muster/shared/errors'
import { newAllocationId } from '@muster/shared/ids'
import { type Machine, machine } from '@muster/shared/machine'
import { coverageOf } from '../coverage.ts'
import type { Limits } from '../limits.ts'
import { type Envelope, failureOf, type PartitionCalls, toldOf } from '../partition-calls.ts'
import { jittered, pause } from '../pause.ts'
import type { Presence } from '../presence.ts'
import { choose } from './choose.ts'
import { type Key, keyOf, type Recalled, recall, remember } from './keys.ts'
import { collectOffers, type Offers } from './offers.ts'
import { type Attempt, dropHolds, giveUp, holdPart, type Settled, settle } from './parts.ts'
import { type Beyond, beyond } from './quotas.ts'

export interface AllocatorOptions {
  readonly bus: Bus
  readonly presence: Presence
  readonly calls: PartitionCalls
  readonly limits: Limits
  readonly log: { warn(facts: object, text: string): void }
  readonly onLogGrowth: Backend['onLogGrowth']
  /** The quotas that bind an owner. */
  readonly quotasOf: (owner: string) => readonly Limit[]
}

export type AllocationOutput = Allocation & { coverage: Coverage }

/** Others take the offered machines first again and again only where machines are about to run out: then five rounds tell enough. */
const mostRounds = 5
const roundPauseMs = 20
/** Two that stand in each other's way of a quota both step back: the next time they must not come together again, and a hold and a count take some 20 ms. */
const crowdedPauseMs = 150

/**
 * Allocates. Refuses with `no-match` (and why), `quota-exceeded`, `nothing-allocated` (certainly nothing is), `key-reused`, `bus-away`, `deadline-passed`, or
 * `partition-silent`: then some part's fate is unknown, and `detail` says which and what to do.
 */
export async function allocate(options: AllocatorOptions, request: AllocationRequest, context: CallContext): Promise<AllocationOutput> {
  const quotas = options.quotasOf(context.caller.name)
  const looking = { ...options, quotas, request, context, envelope: options.calls.envelope(context) }
  if (request.dryRun) {
    refuseWithoutBus(options)
    return look(looking)
  }
  return run(await begin(looking))
}

function refuseWithoutBus({ bus }: AllocatorOptions): void {
  if (!bus.isConnected()) throw new Refusal('bus-away', `no link to the message bus (${bus.describe()}); nothing was allocated`)
}

interface Looking extends AllocatorOptions {
  readonly quotas: readonly Limit[]
  readonly request: AllocationRequest
  readonly context: CallContext
  readonly envelope: Envelope
}

interface Job extends Looking {
  readonly key: Key | undefined
}

/** A job, and what its key's record says. */
interface Begun extends Job {
  readonly recalled: Recalled
  /** Offers hold nothing, so they are on their way while the key is looked up. */
  readonly firstOffers: Promise<Offers>
  /** What stands against it by its quotas, before anything is held. */
  readonly firstCount: Promise<Beyond | undefined>
}

/**
 * Looks the key up. What is refused before that is done speaks for this attempt only: an earlier one with the key, whose answer was lost, may
 * stand. The refusal says so (`earlierAttempts: unknown`), so that nobody takes it for the end of the request.
 */
async function begin(looking: Looking): Promise<Begun> {
  const { presence, context, request } = looking
  const { idempotencyKey, caller, signal } = context
  try {
    refuseWithoutBus(looking)
    // A request without a key gets none of ours: nobody could ever ask for it again, so the record would be written for nothing.
    const key = idempotencyKey === undefined ? undefined : keyOf(presence, caller.name, idempotencyKey, request)
    const firstOffers = collect(looking, 'take')
    // Its failure is thrown where the offers are wanted, which may be never.
    firstOffers.catch(() => {})
    const firstCount = beforeHolding(looking)
    firstCount.catch(() => {})
    const recalled = key ? await recall({ ...looking, signal }, key) : nothingRecalled
    return { ...looking, key, recalled, firstOffers, firstCount }
  } catch (error) {
    throw asOfThisAttempt(error, context)
  }
}

/** The refusal, which does not deny that an earlier attempt with the same key may stand. */
function asOfThisAttempt(error: unknown, { idempotencyKey }: CallContext): unknown {
  if (idempotencyKey === undefined || !(error instanceof Refusal) || error.code === 'key-reused') return error
  const detail = `${error.message} by this attempt; what an earlier one with the same Idempotency-Key did is not known: repeat it`
  return new Refusal(error.code, detail, { ...error.facts, earlierAttempts: 'unknown' })
}

async function run(begun: Begun): Promise<AllocationOutput> {
  const { context, limits, request, recalled } = begun
  let job: Job = begun
  const waitMs = request.wait === undefined ? 0 : Math.min(durationMs(request.wait), limits.waitMs)
  const waitUntil = Math.min(Date.now() + waitMs, context.deadline - limits.callMs)
  const earlier = await settledOf(job, recalled)
  if (earlier) return earlier
  const over = await begun.firstCount
  // Nobody need hold machines to learn that.
  if (over?.kind === 'full') return twinOr(job, over)
  let replaces = recalled.atHome
  let offers = await begun.firstOffers
  const unclear = new Map<string, string>()
  for (let round = 1; ; round++) {
    const held = await hold(job, offers, unclear)
    if (held.kind === 'held') {
      const kept = await keep(job, held.attempt, { replaces, coverage: offers.coverage })
      if (kept.kind === 'confirmed') return kept.output
      replaces = kept.replaces
    }
    if (held.kind === 'beyond quota' && held.beyond.kind === 'full') return twinOr(job, held.beyond)
    job = goOn(job)
    const isMiss = held.kind === 'too-few' || round === mostRounds
    if (isMiss && Date.now() >= waitUntil) {
      if (held.kind === 'beyond quota') return twinOr(job, held.beyond)
      throw missed(job, offers, { held: held.kind, unclear })
    }
    if (isMiss) {
      await nextChance(job, waitUntil)
      unclear.clear()
      round = 0
    } else
      await pause(held.kind === 'beyond quota' ? Math.random() * crowdedPauseMs * round : jittered(roundPauseMs * round), context.signal)
    job = goOn(job)
    offers = await collectOnceMore(job, waitUntil)
  }
}

/** The answer of the first of the recorded attempts that stands. */
async function settledOf(job: Job, { records }: Recalled): Promise<AllocationOutput | undefined> {
  for (const record of records) {
    const settled = await settleRecorded(job, record)
    if (settled) return settled
  }
  return undefined
}

/** What fills a quota may be what this very request, sent twice, was given: then that is its answer. Else throws the refusal. */
async function twinOr(job: Job, { kind, refusal }: Beyond): Promise<AllocationOutput> {
  const { key, context } = job
  if (!key) throw refusal
  try {
    const twin = await settledOf(job, await recall({ ...job, signal: context.signal }, key))
    if (twin) return twin
  } catch (error) {
    throw asOfThisAttempt(error, context)
  }
  // Of the holds that are in the way one may be of an earlier attempt.
  throw kind === 'crowded' ? asOfThisAttempt(refusal, context) : refusal
}

function beforeHolding(looking: Looking): Promise<Beyond | undefined> {
  const { request, quotas, context } = looking
  return beyond({ ...looking, signal: context.signal }, quotas, { wanted: request.count, pools: request.constraints.pools })
}

const nothingRecalled: Recalled = { records: [], atHome: null }

function collect(job: Looking, purpose: 'take' | 'look'): Promise<Offers> {
  return collectOffers(job, { envelope: job.envelope, request: job.request, purpose, signal: job.context.signal })
}

/** While there is time to wait, a bus that is away is waited for too. */
async function collectOnceMore(asked: Job, waitUntil: number): Promise<Offers> {
  for (let job = asked; ; job = goOn(job)) {
    try {
      return await collect(job, 'take')
    } catch (error) {
      if (!(error instanceof Refusal) || error.code !== 'bus-away' || Date.now() >= waitUntil) throw error
    }
    await pause(jittered(job.limits.lookEveryMs), job.context.signal)
  }
}

/** The job as it may go on: as whom its caller is by now. Throws where nobody may ask any more, `deadline-passed` where nobody waits. */
function goOn(job: Job): Job {
  const { context, envelope } = job
  const caller = context.again()
  if (context.signal.aborted || Date.now() >= context.deadline)
    throw new Refusal('deadline-passed', 'the caller has gone, or its time ran out; nothing was allocated')
  return { ...job, envelope: { ...envelope, caller: toldOf(caller) } }
}

type Held =
  | { readonly kind: 'held'; readonly attempt: Attempt }
  | { readonly kind: 'beyond quota'; readonly beyond: Beyond }
  | { readonly kind: 'too-few' | 'outrun' | 'unclear' }

/**
 * Holds the whole or nothing, under an id of its own. A partition that has not what it offered is replaced by the next best offers. One
 * whose answer is unclear is not asked again by this request (`unclear`), and the id is not used again: a hold that comes to be late must
 * not become part of what is confirmed.
 */
async function hold(job: Job, { offers }: Offers, unclear: Map<string, string>): Promise<Held> {
  const { request, envelope } = job
  const allocation = newAllocationId()
  const createdAt = new Date().toISOString()
  const parts: Attempt['parts'] = []
  const holds: string[] = []
  let left = offers.filter(({ partition }) => !unclear.has(partition))
  let missing = request.count
  let kind: 'too-few' | 'outrun' | 'unclear' = 'too-few'
  let over: Beyond | undefined
  while (missing > 0) {
    const chosen = choose(left, { count: missing, strategy: request.strategy, requestId: envelope.id })
    if (!chosen) break
    const outcomes = await Promise.all(chosen.map(part => holdPart(job, { allocation, createdAt, request, part })))
    for (const outcome of outcomes) {
      const { partition } = outcome
      if (outcome.kind === 'held' || outcome.kind === 'unknown') holds.push(partition)
      if (outcome.kind === 'held') {
        parts.push({ partition, machines: outcome.machines.map(({ id }) => id) })
        missing -= outcome.machines.length
      } else if (outcome.kind === 'unknown') unclear.set(partition, outcome.reason)
      else if (outcome.kind === 'beyond quota') over = (await beforeHolding(job)) ?? { kind: 'crowded', refusal: outcome.refusal }
    }
    left = left.filter(({ partition }) => !chosen.some(part => part.partition === partition))
    kind = outcomes.some(outcome => outcome.kind === 'unknown') ? 'unclear' : 'outrun'
    if (kind === 'unclear' || over) break
  }
  const isWhole = missing === 0 && kind !== 'unclear' && !over && !job.context.signal.aborted
  if (isWhole) over = await beyond({ ...job, signal: job.context.signal }, job.quotas, { wanted: request.count, allocation })
  // What was offered to one who has less by now, or nothing, is not kept: the next round looks anew, or ends.
  if (isWhole && !over && isStillAsking(job.context, envelope.caller)) return { kind: 'held', attempt: { allocation, createdAt, parts } }
  await dropHolds(job, allocation, holds)
  return over ? { kind: 'beyond quota', beyond: over } : { kind }
}

type Kept = { readonly kind: 'confirmed'; readonly output: AllocationOutput } | { readonly kind: 'gone'; readonly replaces: string | null }

/** Remembers the attempt under the key, where there is one, and confirms it; or confirms the attempt that was remembered before it. */
async function keep(job: Job, attempt: Attempt, asked: { replaces: string | null; coverage: Coverage }): Promise<Kept> {
  const { key, context, limits } = job
  const { allocation, createdAt, parts } = attempt
  if (!key) return confirmUnkeyed(job, attempt, asked.coverage)
  const record = { key: key.text, requestHash: key.requestHash, allocation, createdAt, parts }
  const standing = await remember({ ...job, signal: context.signal }, key, record, asked.replaces)
  if (standing instanceof Refusal || standing.allocation !== allocation) await dropHolds(job, allocation, parts.map(nameOf))
  if (standing instanceof Refusal) throw standing
  const isOurs = standing.allocation === allocation
  const until = isOurs ? holdEnd(job, attempt) : Date.now() + limits.settleMs
  const settled = await settle(job, standing, Math.min(until, lastMoment(job)))
  if (settled.kind === 'unknown') throw unknownButKeyed(standing, settled)
  if (settled.kind === 'gone') return { kind: 'gone', replaces: standing.allocation }
  return { kind: 'confirmed', output: outputOf(settled, isOurs ? asked.coverage : coverageOfParts(settled)) }
}

/** The answer of an attempt on record, or undefined where it is gone and a new one may be made. */
async function settleRecorded(job: Job, record: Attempt): Promise<AllocationOutput | undefined> {
  const until = Math.max(holdEnd(job, record), Date.now() + job.limits.settleMs)
  const settled = await settle(job, record, Math.min(until, lastMoment(job)))
  if (settled.kind === 'unknown') throw unknownButKeyed(record, settled)
  return settled.kind === 'confirmed' ? outputOf(settled, coverageOfParts(settled)) : undefined
}

/** Without a key nobody can ask again, so what cannot be confirmed in full is given up, and so is what nobody waits for any more. */
async function confirmUnkeyed(job: Job, attempt: Attempt, coverage: Coverage): Promise<Kept> {
  const settled = await settle(job, attempt, Math.min(holdEnd(job, attempt), lastMoment(job)))
  const isOrphan = job.context.signal.aborted
  if (settled.kind === 'confirmed' && !isOrphan) return { kind: 'confirmed', output: outputOf(settled, coverage) }
  if (settled.kind === 'gone') return { kind: 'gone', replaces: null }
  const silent = await giveUp(job, attempt)
  if (silent.length > 0) throw unknownAndUnkeyed(attempt, silent)
  if (isOrphan) throw new Refusal('deadline-passed', 'the caller has gone, or its time ran out; what was allocated was released')
  const { reasons } = settled as Extract<Settled, { kind: 'unknown' }>
  throw new Refusal('nothing-allocated', `the allocation could not be confirmed (${reasons.join('; ')}); all of it was given back`)
}

const nameOf = ({ partition }: { partition: string }) => partition

/** When the holds of an attempt have run out in their partitions, in epoch milliseconds. */
function holdEnd({ limits }: Job, { createdAt }: Attempt): number {
  return Date.parse(createdAt) + limits.holdMs
}

/** There must be time left to give back what cannot be confirmed. */
function lastMoment({ context, limits }: Job): number {
  return context.deadline - limits.dropMs
}

type Confirmed = Extract<Settled, { kind: 'confirmed' }>

function outputOf({ parts }: Confirmed, coverage: Coverage): AllocationOutput {
  return { ...parts.map(({ part }) => part).reduce(joinAllocations), coverage }
}

/** Where an attempt on record is answered, nobody was asked but those who have its parts. */
function coverageOfParts({ parts }: Confirmed): Coverage {
  return coverageOf(parts.map(({ partition, ms }) => ({ name: partition, outcome: 'answered' as const, ms: Math.round(ms * 10) / 10 })))
}

function unknownButKeyed({ allocation }: Attempt, { silent, reasons }: Extract<Settled, { kind: 'unknown' }>): Refusal {
  const detail = `whether ${allocation} stands is known only to ${silent.join(', ')}: ${reasons.join('; ')}. Repeat the request with the same Idempotency-Key`
  return new Refusal('partition-silent', detail, { allocation, silent })
}

function unknownAndUnkeyed({ allocation, parts }: Attempt, silent: readonly string[]): Refusal {
  const machines = parts.filter(({ partition }) => silent.includes(partition)).flatMap(part => part.machines)
  const detail =
    `${silent.join(', ')} did not answer after the machines were held. Either ${machines.join(', ')} belong to ${allocation} now, or to nobody ` +
    `in a few seconds; all else was given back. Look at ${allocation} when they answer again, and release it`
  return new Refusal('partition-silent', detail, { allocation, silent, machines })
}

/** Why the request ends without machines. */
function missed(
  { request }: Job,
  { offers, coverage }: Offers,
  why: { held: Held['kind']; unclear: ReadonlyMap<string, string> },
): Refusal {
  if (coverage.answered === 0) return nobodyOffered(coverage)
  if (why.unclear.size > 0) {
    const reasons = [...why.unclear].map(([partition, reason]) => `${partition}: ${reason}`).join('; ')
    return new Refusal('nothing-allocated', `machines were offered, but not held in time (${reasons}); nothing was allocated`, { coverage })
  }
  if (why.held !== 'too-few') {
    const detail = `machines match, but none could be kept in ${mostRounds} rounds: others were faster; nothing was allocated`
    return new Refusal('nothing-allocated', detail, { coverage })
  }
  return noMatchIn({ offers, coverage }, request)
}

function noMatchIn({ offers, coverage }: Offers, { count }: AllocationRequest): Refusal {
  const refusal = noMatch(count, explain(offers))
  return new Refusal(refusal.code, refusal.message, { ...refusal.facts, coverage })
}

function nobodyOffered(coverage: Coverage): Refusal {
  const reasons = coverage.partitions.slice(0, 5).map(({ name, reason }) => `${name}: ${reason}`)
  const rest = coverage.asked > 5 ? ` and ${coverage.asked - 5} more` : ''
  const detail = coverage.asked === 0 ? 'no partition is known yet' : `no partition made an offer: ${reasons.join('; ')}${rest}`
  return new Refusal('partition-silent', `${detail}; nothing was allocated`, { coverage })
}

/** Returns when machines may have become ready: something changed somewhere, or some time passed. */
async function nextChance({ presence, onLogGrowth, limits, context }: Job, until: number): Promise<void> {
  const changed = new AbortController()
  const stops = [presence.onChange(() => changed.abort()), onLogGrowth(() => changed.abort())]
  const enough = AbortSignal.any([changed.signal, context.signal])
  await pause(Math.min(jittered(limits.lookAtMostEveryMs), until - Date.now()), context.signal)
  await pause(Math.min(jittered(limits.lookEveryMs), until - Date.now()), enough)
  for (const stop of stops) stop()
}

/** A dry run: what would be taken at this moment, and why not more. */
async function look(looking: Looking): Promise<AllocationOutput> {
  const { request, context, envelope, calls, limits, presence } = looking
  const counting = beforeHolding(looking)
  const { offers, coverage } = await collect(looking, 'look')
  if (coverage.answered === 0) throw nobodyOffered(coverage)
  const chosen = choose(offers, { count: request.count, strategy: request.strategy, requestId: envelope.id })
  if (!chosen) throw noMatchIn({ offers, coverage }, request)
  const over = await counting
  if (over) throw over.refusal
  const getMachine = async (partition: string, id: string): Promise<Machine> => {
    const call = 'machines.get'
    const timeoutMs = Math.min(limits.callMs, context.deadline - Date.now())
    const question = { partition, envelope, timeoutMs, signal: context.signal }
    const reply = await calls.ask(question, calls.encode(envelope, call, { id }))
    if (reply.kind !== 'answered') throw failureOf(partition, call, reply, presence.describe(partition))
    const parsed = machine.safeParse(reply.answer) // takes away what only a machine's own page shows
    if (!parsed.success) throw failureOf(partition, call, { kind: 'garbled', reason: 'its answer is malformed' }, '')
    return parsed.data
  }
  const found = await Promise.all(chosen.flatMap(({ partition, machines }) => machines.map(id => getMachine(partition, id))))
  return {
    id: null,
    owner: context.caller.name,
    state: 'released',
    strategy: request.strategy,
    count: request.count,
    note: request.note,
    createdAt: new Date().toISOString(),
    machines: found.sort((a, b) => (a.id < b.id ? -1 : 1)),
    dryRun: true,
    explanation: explain(offers),
    coverage,
  }
}
