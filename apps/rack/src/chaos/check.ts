// The judge: a pure function from a history to a verdict. One rule per sentence of the promises; a rule says how much it looked at, so that
// an empty history is not mistaken for a good one.
import { type Attempt, finalOutcome, type History, type Request, wasAbandoned } from './history.ts'
import { replay, type Tenancy } from './tenancies.ts'

export interface Limits {
  /** How long a hold may live. */
  readonly holdMs: number
  /** Beyond {@link holdMs}: the engine looks twice a second, and machines are noisy. */
  readonly slackMs: number
  /** From the broker's return until every request that was in flight has its answer. */
  readonly brokerAnswerMs: number
  /** How far the database's clock readings and ours may lie apart: same host, so only what a read and a write take. */
  readonly clockMs: number
}

export const usualLimits: Limits = { holdMs: 15_000, slackMs: 3_000, brokerAnswerMs: 5_000, clockMs: 20 }

export interface Finding {
  readonly promise: string
  readonly rule: string
  /** How many things were looked at. */
  readonly looked: number
  readonly violations: readonly string[]
}

export interface Verdict {
  readonly findings: readonly Finding[]
  readonly violations: number
}

/** Judges a history. */
export function check(history: History, limits: Limits = usualLimits): Verdict {
  const facts = factsOf(history, limits)
  const findings = rules.map(({ promise, rule, judge }) => ({ promise, rule, ...judge(facts) }))
  return { findings, violations: findings.reduce((sum, { violations }) => sum + violations.length, 0) }
}

/** An allocation that a client was told it has. */
interface Acknowledged {
  readonly request: Request
  readonly allocation: string
  readonly machines: readonly string[]
  /** The client knows from here … */
  readonly from: number
  /** … and has not begun to give it back until here. */
  readonly to: number
  readonly release: History['releases'][number] | undefined
}

interface Facts extends History {
  readonly limits: Limits
  readonly acknowledged: readonly Acknowledged[]
  readonly tenancies: readonly Tenancy[]
  readonly breaks: readonly string[]
  /** `machine allocation` → its tenancy. */
  readonly tenancyOf: ReadonlyMap<string, Tenancy>
}

function factsOf(history: History, limits: Limits): Facts {
  const replays = history.partitions.map(replay)
  const tenancies = replays.flatMap(each => each.tenancies)
  const releases = new Map(history.releases.map(release => [release.allocation, release]))
  const acknowledged = history.requests.flatMap(request => {
    const first = request.attempts.find(({ outcome }) => outcome.kind === 'acknowledged')
    if (first?.outcome.kind !== 'acknowledged') return []
    const { allocation, machines } = first.outcome
    const release = releases.get(allocation)
    return [{ request, allocation, machines, from: first.endedAt, to: release?.requestedAt ?? Number.POSITIVE_INFINITY, release }]
  })
  return {
    ...history,
    limits,
    acknowledged,
    tenancies,
    breaks: replays.flatMap(each => each.breaks),
    tenancyOf: new Map(tenancies.map(tenancy => [`${tenancy.machine} ${tenancy.allocation}`, tenancy])),
  }
}

interface Rule {
  readonly promise: string
  readonly rule: string
  readonly judge: (facts: Facts) => Pick<Finding, 'looked' | 'violations'>
}

const rules: readonly Rule[] = [
  { promise: 'R1', rule: 'no machine is surely owned by two clients at once', judge: ownedOnce },
  { promise: 'R1', rule: 'the log gives a machine to one allocation at a time', judge: givenOnce },
  { promise: 'R1', rule: 'nobody has a machine in the log while a client surely owns it', judge: nobodyElse },
  { promise: 'R1', rule: 'an answer has as many machines as were asked for, each once', judge: whole },
  { promise: 'R2', rule: 'what was acknowledged is in the log before the answer', judge: acknowledgedIsLogged },
  { promise: 'R2', rule: 'what was acknowledged is in the rows', judge: acknowledgedIsStored },
  { promise: 'R2', rule: 'nothing is taken from a client before it gives it back', judge: keptUntilReleased },
  { promise: 'R2', rule: 'what was given back is given back', judge: releasedIsReleased },
  { promise: 'R4', rule: 'whatever was killed serves again', judge: servesAgain },
  { promise: 'R5', rule: 'after a restart of the broker every request in flight is answered in time', judge: brokerAnswers },
  { promise: 'R5', rule: 'no hold outlives its time while its partition is up', judge: holdsEnd },
  { promise: 'R8', rule: 'nothing is stuck past its deadline', judge: nothingOverdue },
  { promise: 'R16', rule: 'the log has no gap and nothing without a number', judge: dense },
  { promise: 'R16', rule: 'a machine’s events have numbers in the order in which they happened', judge: ordered },
  { promise: 'R16', rule: 'a consumer saw every event once, in order', judge: consumedWhole },
  { promise: 'keys', rule: 'a key gives one allocation, whoever asks and however often', judge: oneAllocationPerKey },
  { promise: 'keys', rule: 'a key makes at most one whole allocation, acknowledged or not', judge: oneWholePerKey },
  { promise: 'keys', rule: 'a request that was refused has nothing', judge: refusedHasNothing },
  { promise: 'keys', rule: 'every request ends with an answer', judge: everyRequestEnds },
  { promise: 'keys', rule: 'every refusal is one that faults or scarcity explain', judge: refusalsExplained },
  { promise: 'end', rule: 'every machine is free, or its owner is known', judge: noLeaks },
]

function ownedOnce({ acknowledged }: Facts) {
  const byMachine = new Map<string, Acknowledged[]>()
  for (const each of acknowledged) for (const machine of each.machines) push(byMachine, machine, each)
  const violations: string[] = []
  for (const [machine, owners] of byMachine) {
    owners.sort((a, b) => a.from - b.from)
    let last: Acknowledged | undefined
    for (const owner of owners) {
      if (owner.from >= owner.to) continue
      if (last && owner.from < last.to)
        violations.push(`${machine}: ${owner.allocation} from ${time(owner.from)}, ${last.allocation} until ${time(last.to)}`)
      if (!last || owner.to > last.to) last = owner
    }
  }
  return { looked: acknowledged.length, violations }
}

function givenOnce({ tenancies, breaks }: Facts) {
  return { looked: tenancies.length, violations: breaks }
}

function nobodyElse({ acknowledged, tenancies, limits }: Facts) {
  const byMachine = new Map<string, Tenancy[]>()
  for (const tenancy of tenancies) push(byMachine, tenancy.machine, tenancy)
  let looked = 0
  const violations: string[] = []
  for (const { allocation, machines, from, to } of acknowledged)
    for (const machine of machines) {
      looked++
      for (const other of byMachine.get(machine) ?? []) {
        if (other.allocation === allocation || other.heldAt >= to - limits.clockMs) continue
        if ((other.endedAt ?? Number.POSITIVE_INFINITY) > from + limits.clockMs)
          violations.push(`${machine} of ${allocation} was held for ${other.allocation} at ${time(other.heldAt)}`)
      }
    }
  return { looked, violations }
}

function whole({ acknowledged }: Facts) {
  const violations = acknowledged.flatMap(({ request, allocation, machines, from, to }) => {
    // A first answer that came after the release (a retry of what was given back) shows what is left.
    if (from >= to) return []
    const distinct = new Set(machines).size
    return distinct === request.count && machines.length === distinct
      ? []
      : [`${allocation}: asked ${request.count}, got ${machines.join(' ')}`]
  })
  return { looked: acknowledged.length, violations }
}

function acknowledgedIsLogged({ acknowledged, tenancyOf, limits }: Facts) {
  let looked = 0
  const violations: string[] = []
  for (const { allocation, machines, from } of acknowledged)
    for (const machine of machines) {
      looked++
      const at = tenancyOf.get(`${machine} ${allocation}`)?.confirmedAt
      if (at === undefined) violations.push(`${allocation}: the log knows nothing of ${machine}`)
      else if (at > from + limits.clockMs) violations.push(`${allocation}: ${machine} was confirmed ${ms(at - from)} after the answer`)
    }
  return { looked, violations }
}

function acknowledgedIsStored({ acknowledged, partitions }: Facts) {
  const stored = new Map<string, Set<string>>()
  for (const { allocations } of partitions)
    for (const { id, state, machines } of allocations) {
      if (state !== 'confirmed' && state !== 'released') continue
      const known = stored.get(id) ?? new Set()
      for (const machine of machines) known.add(machine)
      stored.set(id, known)
    }
  const violations = acknowledged.flatMap(({ allocation, machines }) => {
    const known = stored.get(allocation)
    if (!known) return [`${allocation}: no partition has a row of it`]
    return machines.flatMap(machine => (known.has(machine) ? [] : [`${allocation}: its rows do not name ${machine}`]))
  })
  return { looked: acknowledged.length, violations }
}

function keptUntilReleased({ acknowledged, tenancyOf, limits }: Facts) {
  let looked = 0
  const violations: string[] = []
  for (const { allocation, machines, to } of acknowledged)
    for (const machine of machines) {
      const tenancy = tenancyOf.get(`${machine} ${allocation}`)
      if (!tenancy) continue
      looked++
      if (tenancy.endedAt !== undefined && tenancy.endedAt < to - limits.clockMs)
        violations.push(
          `${machine} of ${allocation}: ${tenancy.end} at ${time(tenancy.endedAt)}, ${to === Number.POSITIVE_INFINITY ? 'never asked for' : `asked for at ${time(to)}`}`,
        )
    }
  return { looked, violations }
}

function releasedIsReleased({ acknowledged, tenancyOf, releases, limits }: Facts) {
  const violations = releases.flatMap(({ allocation, refusals }) => refusals.map(refusal => `${allocation}: ${refusal}`))
  for (const { allocation, machines, release } of acknowledged) {
    if (release?.answeredAt === undefined) continue
    for (const machine of machines) {
      const endedAt = tenancyOf.get(`${machine} ${allocation}`)?.endedAt
      if (endedAt === undefined) violations.push(`${machine} of ${allocation}: released by its answer, not by the log`)
      else if (endedAt > release.answeredAt + limits.clockMs)
        violations.push(`${machine} of ${allocation}: released ${ms(endedAt - release.answeredAt)} after the answer`)
    }
  }
  return { looked: releases.length, violations }
}

function servesAgain({ faults }: Facts) {
  return {
    looked: faults.length,
    violations: faults.flatMap(({ target, from, to }) => (to === undefined ? [`${target}, broken at ${time(from)}`] : [])),
  }
}

/** The attempts that were under way when the broker went, or began while it was away. */
function attemptsAround(requests: readonly Request[], fault: { from: number; to?: number }): Attempt[] {
  const to = fault.to ?? Number.POSITIVE_INFINITY
  return requests.flatMap(({ attempts }) => attempts.filter(attempt => attempt.startedAt < to && attempt.endedAt > fault.from))
}

/** Attempts that met no other fault: what a front killed a second later did to them is not the broker's doing. */
export function attemptsAroundBroker({ requests, faults }: Pick<History, 'requests' | 'faults'>): { attempt: Attempt; backAt: number }[] {
  return faults.flatMap(fault => {
    const { kind, from, to } = fault
    if (kind !== 'broker' || to === undefined) return []
    const others = faults.filter(other => other !== fault)
    return attemptsAround(requests, { from, to })
      .filter(
        ({ startedAt, endedAt }) => !others.some(other => other.from <= endedAt && (other.to ?? Number.POSITIVE_INFINITY) >= startedAt),
      )
      .map(attempt => ({ attempt, backAt: to }))
  })
}

/**
 * What the machine itself makes slow: the longest answer that met no fault at all. On a machine with enough cores it is far below any limit; on a
 * starved one, a limit in seconds would judge the machine and not us.
 */
function slowestUntouchedMs({ requests, faults }: Pick<History, 'requests' | 'faults'>): number {
  let slowest = 0
  for (const { attempts } of requests)
    for (const { startedAt, endedAt } of attempts)
      if (!faults.some(({ from, to }) => from <= endedAt && (to ?? Number.POSITIVE_INFINITY) >= startedAt))
        slowest = Math.max(slowest, endedAt - startedAt)
  return slowest
}

function brokerAnswers({ requests, faults, limits }: Facts) {
  const around = attemptsAroundBroker({ requests, faults })
  const limitMs = Math.max(limits.brokerAnswerMs, 2 * slowestUntouchedMs({ requests, faults }))
  const violations = around.flatMap(({ attempt: { endedAt, outcome }, backAt }) => {
    if (endedAt > backAt + limitMs) return [`answered ${ms(endedAt - backAt)} after the broker was back: ${outcome.kind}`]
    if (outcome.kind === 'unknown' && outcome.how === 'broken') return [`the line broke while the front lived: ${outcome.detail}`]
    return []
  })
  return { looked: around.length, violations }
}

function holdsEnd({ tenancies, faults, limits, endedAt: readAt }: Facts) {
  const allowed = limits.holdMs + limits.slackMs
  const violations: string[] = []
  for (const { partition, machine, allocation, heldAt, confirmedAt, endedAt } of tenancies) {
    const until = confirmedAt ?? endedAt ?? readAt
    if (until - heldAt <= allowed) continue
    // While its partition was down nobody could end it; the time to do so starts when it is back.
    const down = faults.filter(({ target }) => target === `partition ${partition}` || target === 'postgres')
    const downMs = down.reduce((sum, { from, to = readAt }) => sum + Math.max(0, Math.min(to, until) - Math.max(from, heldAt)), 0)
    if (until - heldAt - downMs > allowed || confirmedAt !== undefined)
      violations.push(`${machine} for ${allocation}: ${ms(until - heldAt)}, of which its partition was down ${ms(downMs)}`)
  }
  return { looked: tenancies.length, violations }
}

function nothingOverdue({ overdue, partitions }: Facts) {
  return { looked: partitions.reduce((sum, { machines }) => sum + machines.length, 0), violations: overdue }
}

function dense({ partitions }: Facts) {
  const violations: string[] = []
  for (const { name, log, lastSeq, unnumbered } of partitions) {
    if (unnumbered > 0) violations.push(`${name}: ${unnumbered} events never got a number`)
    if (log.length !== lastSeq) violations.push(`${name}: the log's head says ${lastSeq}, it has ${log.length} events`)
    log.forEach(({ seq }, index) => {
      const before = log[index - 1]?.seq ?? 0
      if (seq !== before + 1) violations.push(`${name}: ${seq} follows on ${before}`)
    })
  }
  return { looked: partitions.reduce((sum, { log }) => sum + log.length, 0), violations }
}

function ordered({ partitions }: Facts) {
  const violations: string[] = []
  let looked = 0
  for (const { name, log } of partitions) {
    const last = new Map<string, number>()
    for (const { machine, id, seq, kind } of log) {
      // What the monitor sees of a BMC and what people do to its machine are written side by side: only each kind has an order.
      if (machine === null || !kind.startsWith('machine.')) continue
      looked++
      if (id < (last.get(machine) ?? 0)) violations.push(`${name}:${seq} of ${machine} was written before the event numbered before it`)
      last.set(machine, id)
    }
  }
  return { looked, violations }
}

function consumedWhole({ consumed, partitions }: Facts) {
  const violations: string[] = []
  for (const { partition, seqs } of consumed) {
    const lastSeq = partitions.find(({ name }) => name === partition)?.lastSeq ?? 0
    const wrong = seqs.findIndex((seq, index) => seq !== index + 1)
    if (wrong >= 0) violations.push(`${partition}: after ${seqs[wrong - 1] ?? 0} came ${seqs[wrong]}`)
    else if (seqs.length !== lastSeq) violations.push(`${partition}: the consumer saw ${seqs.length} of ${lastSeq}`)
  }
  return { looked: consumed.reduce((sum, { seqs }) => sum + seqs.length, 0), violations }
}

function oneAllocationPerKey({ requests }: Facts) {
  let looked = 0
  const violations = requests.flatMap(({ key, attempts }) => {
    const answers = attempts.flatMap(({ outcome }) => (outcome.kind === 'acknowledged' ? [outcome] : []))
    if (answers.length > 1) looked += answers.length
    const ids = new Set(answers.map(({ allocation }) => allocation))
    if (ids.size > 1) return [`${key}: ${[...ids].join(', ')}`]
    const wholes = new Set(answers.flatMap(({ machines }) => (machines.length === 0 ? [] : [[...machines].sort().join(' ')])))
    // A retry after the release of some machines sees fewer, never others.
    const [most = ''] = [...wholes].sort((a, b) => b.length - a.length)
    return [...wholes].every(some => some.split(' ').every(machine => most.split(' ').includes(machine)))
      ? []
      : [`${key}: ${[...wholes].join(' / ')}`]
  })
  return { looked, violations }
}

/** The allocations of each note whose every machine was confirmed at some time: those that somebody could have been told of. */
function wholeByNote({ partitions, tenancies }: Facts): Map<string, Set<string>> {
  const confirmed = new Map<string, number>()
  for (const { allocation, confirmedAt } of tenancies)
    if (confirmedAt !== undefined) confirmed.set(allocation, (confirmed.get(allocation) ?? 0) + 1)
  const byNote = new Map<string, Set<string>>()
  for (const { allocations } of partitions)
    for (const { id, note, count } of allocations) {
      if ((confirmed.get(id) ?? 0) < count) continue
      const known = byNote.get(note) ?? new Set()
      byNote.set(note, known.add(id))
    }
  return byNote
}

function oneWholePerKey(facts: Facts) {
  const byNote = wholeByNote(facts)
  const violations = [...byNote].flatMap(([note, ids]) => (ids.size > 1 ? [`${note}: ${[...ids].join(', ')}`] : []))
  return { looked: byNote.size, violations }
}

function refusedHasNothing(facts: Facts) {
  const byNote = wholeByNote(facts)
  const refused = facts.requests.filter(request => finalOutcome(request)?.kind === 'refused' && !wasAbandoned(request))
  const violations = refused.flatMap(({ key, attempts }) => {
    const ids = byNote.get(key)
    return ids ? [`${key}: ${[...ids].join(', ')} in spite of ${attempts.map(({ outcome }) => outcome.kind).join(', ')}`] : []
  })
  return { looked: refused.length, violations }
}

function everyRequestEnds({ requests }: Facts) {
  const violations = requests.flatMap(request => {
    const outcome = finalOutcome(request)
    if (outcome === undefined) return [`${request.key}: never asked`]
    return outcome.kind === 'unknown' ? [`${request.key}: ${outcome.detail}`] : []
  })
  return { looked: requests.length, violations }
}

const explained: ReadonlySet<string> = new Set([
  'no-match',
  'nothing-allocated',
  'partition-silent',
  'bus-away',
  'database-away',
  'deadline-passed',
  'not-ready',
])

function refusalsExplained({ requests }: Facts) {
  let looked = 0
  const violations: string[] = []
  for (const { key, attempts } of requests)
    for (const { outcome } of attempts) {
      if (outcome.kind === 'acknowledged' || (outcome.kind === 'unknown' && outcome.how !== 'told')) continue
      looked++
      if (!explained.has(outcome.detail.split(':', 1)[0] as string)) violations.push(`${key}: ${outcome.detail}`)
    }
  return { looked, violations }
}

function noLeaks({ partitions, acknowledged }: Facts) {
  const kept = new Set(acknowledged.filter(({ release }) => release === undefined).map(({ allocation }) => allocation))
  const machines = partitions.flatMap(partition => partition.machines)
  const violations = machines.flatMap(({ id, state, allocation }) => {
    if (state === 'ready' && allocation === null) return []
    if (allocation !== null && kept.has(allocation)) return []
    return [`${id} is ${state}, of ${allocation ?? 'nobody'}`]
  })
  for (const { allocation, release } of acknowledged)
    if (release && release.answeredAt === undefined) violations.push(`${allocation} could not be given back`)
  return { looked: machines.length, violations }
}

function push<Key, Value>(map: Map<Key, Value[]>, key: Key, value: Value): void {
  const known = map.get(key)
  if (known) known.push(value)
  else map.set(key, [value])
}

const time = (at: number) => (Number.isFinite(at) ? new Date(at).toISOString().slice(11, 23) : 'for ever')
const ms = (duration: number) => `${Math.round(duration)} ms`
