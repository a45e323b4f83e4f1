// Stories of allocations under faults, made at random and checked by program: fronts and their clients against partitions that hear
// late, answer late, lose answers and are cut off. Told over any kind of partition; a failing story prints the seed that tells it again.
import { createLocalBroker, type LocalBroker } from '@muster/server/bus/local-bus'
import type { Strategy } from '@muster/shared/allocation/constraints'
import type { Bus } from '@muster/shared/bus/bus'
import { type Allocation, type AllocationRequest, allocationRequest } from '@muster/shared/contract/allocations'
import { Refusal } from '@muster/shared/errors'
import type { Machine } from '@muster/shared/machine'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { createFront, type Front } from '../src/front.ts'
import { createFaultyBus, type Fault, type FaultyBus } from './faulty-bus.ts'
import { type Backend, contextOf } from './harness.ts'

/** A kind of partition that the stories can be told over. */
export interface PartitionKind {
  /** Starts partitions on these buses; each with ready machines of so many cpus. Answers the way to stop them. */
  start(partitions: readonly { name: string; bus: Bus; cpus: readonly number[] }[]): Promise<() => Promise<void>>
  /** Runs a story to its end, under the clock that these partitions live by. */
  run<Value>(story: () => Promise<Value>): Promise<Value>
  readonly stories: number
  /** Stories told side by side, each in a federation of its own. */
  readonly atOnce: number
  /** How long holds live in these partitions. */
  readonly holdMs: number
  readonly timeoutMs: number
}

interface Ask {
  readonly at: number
  readonly front: number
  readonly limitMs: number
  /** Index of the template, which is also the key where `isKeyed`. */
  readonly template: number
}

interface Template {
  readonly isKeyed: boolean
  readonly count: number
  readonly strategy: Strategy
  /** How long after its answer an unkeyed allocation is given back. */
  readonly releaseAfter: number | undefined
}

interface Story {
  readonly partitions: readonly {
    readonly cpus: number[]
    readonly faults: Fault[]
    readonly cut: { at: number; forMs: number } | undefined
  }[]
  readonly templates: readonly Template[]
  readonly asks: readonly Ask[]
  /** When the first front loses its link for good. */
  readonly frontDiesAt: number | undefined
  /** The broker restarts. */
  readonly outage: { at: number; forMs: number } | undefined
}

const ms = (max: number) => fc.oneof(fc.integer({ min: 1, max: 60 }), fc.integer({ min: 1, max }))
const faultsFor = (holdMs: number): fc.Arbitrary<Fault> =>
  fc.oneof(
    { weight: 12, arbitrary: fc.constant<Fault>('none') },
    { weight: 2, arbitrary: fc.constant<Fault>('deaf') },
    { weight: 3, arbitrary: fc.constant<Fault>('mute') },
    { weight: 2, arbitrary: fc.record({ sick: fc.constantFrom('before' as const, 'after' as const) }) },
    { weight: 2, arbitrary: fc.record({ late: ms(holdMs + 1000) }) },
    { weight: 2, arbitrary: fc.record({ slow: ms(4000) }) },
  )
const rarely = <Value>(arbitrary: fc.Arbitrary<Value>) => fc.option(arbitrary, { freq: 3, nil: undefined })

const storiesFor = (holdMs: number): fc.Arbitrary<Story> =>
  fc.record({
    partitions: fc.array(
      fc.record({
        cpus: fc.array(fc.constantFrom(1, 2, 4), { maxLength: 4 }),
        faults: fc.array(faultsFor(holdMs), { maxLength: 40 }),
        cut: rarely(fc.record({ at: fc.integer({ min: 0, max: 6000 }), forMs: ms(10_000) })),
      }),
      { minLength: 2, maxLength: 3 },
    ),
    templates: fc.array(
      fc.record({
        isKeyed: fc.boolean(),
        count: fc.constantFrom(1, 1, 2, 3),
        strategy: fc.constantFrom<Strategy>('best', 'first', 'spread', 'pack'),
        releaseAfter: rarely(ms(3000)),
      }),
      { minLength: 1, maxLength: 4 },
    ),
    asks: fc.array(
      fc.record({
        at: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 4000 })),
        front: fc.integer({ min: 0, max: 1 }),
        limitMs: fc.integer({ min: 500, max: 12_000 }),
        template: fc.nat(),
      }),
      { minLength: 1, maxLength: 8 },
    ),
    frontDiesAt: rarely(ms(4000)),
    outage: rarely(fc.record({ at: fc.integer({ min: 0, max: 6000 }), forMs: ms(6000) })),
  })

/** What a client was told. */
interface Outcome {
  readonly ask: Ask
  readonly note: string
  readonly answer: Allocation | Refusal
  readonly answeredAt: number
  /** When it asked to give the machines back, whatever came of it. */
  releasedAt: number
}

const sleep = (duration: number) => new Promise<void>(resolve => setTimeout(resolve, duration))
/** A question may be heard so late that its hold begins only then. */
const latest = ({ partitions }: Story) =>
  Math.max(0, ...partitions.flatMap(({ faults }) => faults.map(each => (typeof each === 'object' && 'late' in each ? each.late : 0))))
const quietLog = { info: () => undefined, warn: () => undefined }

/** Declares the test. */
export function tellStories(kind: PartitionKind): void {
  test(
    'under random faults nothing is owned twice, lost, left held, or other than was said',
    async () => {
      await fc.assert(
        fc.asyncProperty(fc.array(storiesFor(kind.holdMs), { minLength: kind.atOnce, maxLength: kind.atOnce }), tales =>
          kind.run(async () => void (await Promise.all(tales.map(tale => tell(kind, tale))))),
        ),
        { numRuns: kind.stories },
      )
    },
    kind.timeoutMs,
  )
}

async function tell(kind: PartitionKind, tale: Story): Promise<void> {
  const broker = createLocalBroker()
  const names = tale.partitions.map((_, index) => `p${index + 1}`)
  const buses = names.map(() => createFaultyBus(broker.connect()))
  const stop = await kind.start(
    tale.partitions.map(({ cpus }, index) => ({ name: names[index] as string, bus: buses[index] as FaultyBus, cpus })),
  )
  const fronts = [openFront(kind, broker, names), openFront(kind, broker, names)]
  await sleep(20)
  const plans: NodeJS.Timeout[] = []
  const at = (time: number, act: () => void) => void plans.push(setTimeout(act, time))
  tale.partitions.forEach(({ faults, cut }, index) => {
    const bus = buses[index] as FaultyBus
    bus.plan(faults)
    if (cut) at(cut.at, () => bus.cutOff())
    if (cut) at(cut.at + cut.forMs, () => bus.heal())
  })
  const { outage } = tale
  if (outage) at(outage.at, () => broker.stop())
  if (outage) at(outage.at + outage.forMs, () => broker.start())
  if (tale.frontDiesAt !== undefined) at(tale.frontDiesAt, () => void fronts[0]?.bus.close())

  const outcomes = await Promise.all(tale.asks.map((ask, index) => live(tale, ask, index, fronts)))
  // And then the partition's own clock may look at holds only now and then.
  await sleep(latest(tale) + kind.holdMs + 2000)
  // Also what has not begun yet.
  for (const plan of plans) clearTimeout(plan)
  for (const bus of buses) bus.heal()
  broker.start()
  await sleep(kind.holdMs)
  const last = openFront(kind, broker, names)
  await sleep(2000)

  const world = await look(last.front.backend)
  checkWorld(world)
  checkClaims(tale, outcomes, world)
  await checkRetries(tale, outcomes, last.front.backend)
  checkWorld(await look(last.front.backend))

  for (const { front, bus } of [...fronts, last]) {
    front.stop()
    await bus.close()
  }
  await stop()
  for (const bus of buses) await bus.close()
}

function openFront(kind: PartitionKind, broker: LocalBroker, accepted: readonly string[]): { front: Front; bus: Bus } {
  const bus = broker.connect()
  return { bus, front: createFront({ name: 'front', version: '0.1.0', bus, accepted, log: quietLog, limits: { holdMs: kind.holdMs } }) }
}

/** One client: asks at its time, and may give back what it got. */
async function live(tale: Story, ask: Ask, index: number, fronts: readonly { front: Front }[]): Promise<Outcome> {
  const [number, template] = templateOf(tale, ask)
  const note = template.isKeyed ? `key-${number}` : `ask-${index}`
  const { backend } = (fronts[ask.front] as { front: Front }).front
  await sleep(ask.at)
  const gone = new AbortController()
  const limit = setTimeout(() => gone.abort(), ask.limitMs)
  const answer = await create(backend, template, note, { limitMs: ask.limitMs, signal: gone.signal })
  clearTimeout(limit)
  const outcome: Outcome = { ask, note, answer, answeredAt: Date.now(), releasedAt: Number.POSITIVE_INFINITY }
  if (!(answer instanceof Refusal) && !template.isKeyed && template.releaseAfter !== undefined) {
    await sleep(template.releaseAfter)
    outcome.releasedAt = Date.now()
    await backend.call('allocations.release', { id: answer.id as string }, contextOf()).catch(expectRefusal)
  }
  return outcome
}

function templateOf(tale: Story, ask: Ask): [number, Template] {
  const number = ask.template % tale.templates.length
  return [number, tale.templates[number] as Template]
}

async function create(
  backend: Backend,
  template: Template,
  note: string,
  context: { limitMs: number; signal?: AbortSignal },
): Promise<Allocation | Refusal> {
  const request: AllocationRequest = allocationRequest.parse({ count: template.count, strategy: template.strategy, note })
  const key = template.isKeyed ? { idempotencyKey: note } : {}
  try {
    return await backend.call('allocations.create', request, contextOf({ ...context, ...key }))
  } catch (error) {
    return expectRefusal(error)
  }
}

function expectRefusal(error: unknown): Refusal {
  if (error instanceof Refusal) return error
  throw error
}

/** What stands in the partitions, by the API. */
interface World {
  readonly machines: readonly Machine[]
  readonly allocations: ReadonlyMap<string, Allocation>
}

async function look(backend: Backend): Promise<World> {
  const machines = await backend.call('machines.list', { sort: 'id', limit: 1000 }, contextOf())
  const allocations = await backend.call('allocations.list', { limit: 1000 }, contextOf())
  expect(machines.coverage.answered).toBe(machines.coverage.asked)
  return { machines: machines.items, allocations: new Map(allocations.items.map(item => [item.id as string, item])) }
}

/** No hold survives, and every machine that is taken belongs to an allocation that stands. */
function checkWorld({ machines, allocations }: World): void {
  for (const machine of machines) {
    expect(machine.state, machine.id).not.toBe('reserved')
    if (machine.allocation === null) continue
    const allocation = allocations.get(machine.allocation)
    expect(allocation?.machines.map(({ id }) => id)).toContain(machine.id)
    expect(allocation?.machines.length).toBeLessThanOrEqual(allocation?.count ?? 0)
  }
}

const machinesOf = (allocation: Allocation) => allocation.machines.map(({ id }) => id)

function checkClaims(tale: Story, outcomes: readonly Outcome[], world: World): void {
  const owned = (note: string) =>
    [...world.allocations.values()].filter(allocation => allocation.note === note && allocation.state !== 'released').flatMap(machinesOf)

  for (const outcome of outcomes) {
    const { note, answer, ask } = outcome
    const [, template] = templateOf(tale, ask)
    const others = outcomes.filter(other => other !== outcome && other.note === note)
    if (answer instanceof Refusal) {
      // Another request with the same key may have got what this one did not.
      if (template.isKeyed && others.length > 0) continue
      if (answer.code !== 'partition-silent') expect(owned(note), `${answer.code}: ${answer.message}`).toEqual([])
      else if (!template.isKeyed) {
        const perhaps = (answer.facts.machines as string[] | undefined) ?? []
        for (const id of owned(note)) expect(perhaps, answer.message).toContain(id)
      }
      continue
    }
    expect(answer.machines).toHaveLength(template.count)
    expect(answer.state).toBe('confirmed')
    if (outcome.releasedAt === Number.POSITIVE_INFINITY)
      expect(owned(note).sort(), 'acknowledged and lost').toEqual(machinesOf(answer).sort())
  }

  // Nobody is told that a machine is his while another has been told the same and has not given it back.
  const spans = outcomes.flatMap(({ answer, answeredAt, releasedAt }) =>
    answer instanceof Refusal
      ? []
      : machinesOf(answer).map(machine => ({ machine, allocation: answer.id, from: answeredAt, to: releasedAt })),
  )
  for (const a of spans)
    for (const b of spans)
      if (a.machine === b.machine && a.allocation !== b.allocation)
        expect(a.from < b.to && b.from < a.to, `${a.machine} owned twice`).toBe(false)
}

/** Once all is well, a retry of each key is definite, equals every answer given before, and is all there is under that key. */
async function checkRetries(tale: Story, outcomes: readonly Outcome[], backend: Backend): Promise<void> {
  for (const [number, template] of tale.templates.entries()) {
    const note = `key-${number}`
    const before = outcomes.filter(outcome => outcome.note === note)
    if (!template.isKeyed || before.length === 0) continue
    const retry = await create(backend, template, note, { limitMs: 10_000 })
    const acknowledged = before.flatMap(({ answer }) => (answer instanceof Refusal ? [] : [answer]))
    if (retry instanceof Refusal) {
      expect(retry.code, retry.message).toBe('no-match')
      expect(acknowledged).toEqual([])
    } else {
      for (const answer of acknowledged) expect([answer.id, machinesOf(answer)]).toEqual([retry.id, machinesOf(retry)])
      expect(retry.machines).toHaveLength(template.count)
    }
    const { machines, allocations } = await look(backend)
    const owned = machines.filter(({ allocation }) => allocation !== null && allocations.get(allocation)?.note === note).map(({ id }) => id)
    expect(owned).toEqual(retry instanceof Refusal ? [] : machinesOf(retry))
  }
}
