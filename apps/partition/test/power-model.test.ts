// The power engine against a plain model of what it promises: random orders of several people and the engine, workers that die or freeze at any
// step, BMCs that fail in every way they know. The database is real and so are the claims; only the times are small. MUSTER_POWER_SEQUENCES and
// MUSTER_POWER_SEED choose how much and which; what runs beside what is chance each time.
import { setTimeout as sleep } from 'node:timers/promises'
import { DriverError, type PowerSession } from '@muster/drivers/driver'
import { expect, test } from 'vitest'
import type { Sql } from '../src/db/connect.ts'
import { giveOrder, type NewOrder, type PowerOrder } from '../src/db/power.ts'
import type { Core } from '../src/domain/core.ts'
import { runPowerMonitor } from '../src/domain/power/monitor.ts'
import type { Switchboard } from '../src/domain/power/switchboard.ts'
import { type Pace, runPowerWorker } from '../src/domain/power/worker.ts'
import { addMachine, startCore, type TestCore } from './harness.ts'
import { mortalSql } from './mortal-sql.ts'

const sequences = Number(process.env.MUSTER_POWER_SEQUENCES ?? 1_000)
const seed = Number(process.env.MUSTER_POWER_SEED ?? Date.now() % 1_000_000)
/** Sequences under way at once, each with a machine of its own: most of a sequence is waiting. */
const atOnce = 120
const workers = 3
/** A claim is far longer than any call to a BMC here, as it is in earnest. */
const pace: Pace = {
  claimMs: 1_500,
  changeLook: { firstMs: 8, limitMs: 40 },
  troublePauses: { busy: [10, 20, 40], other: [10, 20] },
}
const rules = { powerChangeMs: 250, powerSoftMs: 150, powerRestartMs: 120, powerCheckMs: 3_000, powerTransitionMs: 3_000 }
/** From an accepted order to its effect: shorter than the engine's limits, as the limits are chosen in earnest. */
const effectMs = { usual: 25, slow: 80, softly: 120 }

/** Most deaths find dozens of orders under way: with much shorter lives none would ever come to its end. */
const lifeSteps = { least: 20, most: 2_500 }

/** A generator of numbers from 0 to 1 that gives the same for the same seed (mulberry32). */
function randomOf(start: number): () => number {
  let state = start >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

const moods = ['works', 'silent', 'busy', 'refuses', 'swallows', 'slow', 'loses replies'] as const
type Mood = (typeof moods)[number]
type Power = 'on' | 'off'

/** A BMC with a machine behind it, and a record of what really happened. */
class ModelBmc {
  mood: Mood = 'works'
  actionsAtOnceMax = 0
  readonly turns: { at: number; to: Power }[] = []
  readonly session: PowerSession
  readonly #random: () => number
  #actions = 0
  #power: Power
  #silentUntil = 0
  /** Accepted and not yet in effect, in the order accepted. */
  readonly #pending: { at: number; to: Power }[] = []

  constructor(random: () => number) {
    this.#random = random
    this.#power = random() < 0.5 ? 'on' : 'off'
    const canRestart = random() < 0.5
    const canBoot = random() < 0.5
    const hears = random() < 0.6
    const close = async () => {}
    this.session = {
      target: 'the model',
      power: () => this.#call('look', () => {}).then(() => this.power),
      on: () => this.#call('act', () => this.#accept('on', this.#lagMs())),
      off: ({ how }) =>
        this.#call('act', () => {
          if (how === 'hard') this.#accept('off', this.#lagMs())
          else if (hears) this.#accept('off', random() * effectMs.softly)
        }),
      cycle: () => Promise.reject(new Error('the engine makes a cycle of off and on')),
      capabilities: {
        ...(canBoot && {
          bootNext: {
            set: async () => {
              await this.#call('act', () => {})
              return { kept: 'all' }
            },
            read: async () => undefined,
            clear: async () => {},
          },
        }),
        ...(canRestart && {
          restartController: () =>
            this.#call('restart', () => {
              this.#silentUntil = Date.now() + 30
              if (random() < 0.5 && this.mood === 'swallows') this.mood = 'works'
            }),
        }),
      },
      close,
      [Symbol.asyncDispose]: close,
    }
  }

  get power(): Power {
    const now = Date.now()
    for (let next = this.#pending[0]; next && next.at <= now; next = this.#pending[0]) {
      this.#pending.shift()
      if (next.to !== this.#power) this.turns.push(next)
      this.#power = next.to
    }
    return this.#power
  }

  /** When all that was accepted has come to pass. */
  async settled(): Promise<void> {
    const last = this.#pending.at(-1)
    if (last) await sleep(Math.max(0, last.at - Date.now()) + 1)
  }

  #accept(to: Power, lagMs: number): void {
    this.#pending.push({ at: Math.max(this.#pending.at(-1)?.at ?? 0, Date.now() + lagMs), to })
  }

  #lagMs(): number {
    return this.#random() * (this.mood === 'slow' ? effectMs.slow : effectMs.usual)
  }

  async #call(kind: 'look' | 'act' | 'restart', happens: () => void): Promise<void> {
    const mood = Date.now() < this.#silentUntil ? 'silent' : this.mood
    if (kind !== 'look') this.actionsAtOnceMax = Math.max(this.actionsAtOnceMax, ++this.#actions)
    try {
      await sleep(mood === 'slow' ? 10 + this.#random() * 40 : mood === 'silent' ? 15 : this.#random() * 3)
      if (mood === 'silent') throw trouble('silent', 'none')
      if (mood === 'busy') throw trouble('busy', 'none')
      if (mood === 'refuses' && kind !== 'look') throw trouble('refused', 'none')
      if (mood !== 'swallows' || kind === 'restart') happens()
      if (mood !== 'loses replies' || this.#random() < 0.4) return
      await sleep(8)
      throw trouble('silent', 'unknown')
    } finally {
      if (kind !== 'look') this.#actions--
    }
  }
}

const trouble = (kind: 'silent' | 'busy' | 'refused', outcome: 'none' | 'unknown') =>
  new DriverError({ kind, outcome, tried: 'something', target: 'the model', got: kind, hint: 'none' })

/** A process: after so many steps it dies, or is frozen for longer than its claims last. */
class Life {
  isDead = false
  readonly ended = Promise.withResolvers<void>()
  #left: number
  readonly #end: 'dies' | 'freezes'
  #frozen: Promise<unknown> | undefined

  constructor(steps: number, end: 'dies' | 'freezes') {
    this.#left = steps
    this.#end = end
  }

  /** A statement: the process may stop before it is sent, or before its answer is looked at. */
  async statement<T>(run: () => PromiseLike<T>): Promise<T> {
    await this.#step()
    const answer = await run()
    await this.#step()
    return answer
  }

  /**
   * A call to a BMC: the process may die before, or before it hears of its end. It does not freeze here: between its last look at the clock and the
   * wire nobody can stop a process from being late.
   */
  async call<T>(run: () => Promise<T>): Promise<T> {
    this.#checkAlive()
    const answer = await run()
    this.#checkAlive()
    return answer
  }

  async #step(): Promise<void> {
    if (--this.#left === 0) {
      if (this.#end === 'dies') this.isDead = true
      else this.#frozen = sleep(pace.claimMs * 1.6)
      void (this.#frozen ?? Promise.resolve()).then(() => this.ended.resolve())
    }
    this.#checkAlive()
    await this.#frozen
  }

  #checkAlive(): void {
    if (this.isDead) throw new Error('this process was killed')
  }
}

function mortalSession(session: PowerSession, life: Life): PowerSession {
  const { bootNext, restartController } = session.capabilities
  return {
    ...session,
    power: options => life.call(() => session.power(options)),
    on: options => life.call(() => session.on(options)),
    off: options => life.call(() => session.off(options)),
    capabilities: {
      ...(bootNext && { bootNext: { ...bootNext, set: options => life.call(() => bootNext.set(options)) } }),
      ...(restartController && { restartController: options => life.call(() => restartController(options)) }),
    },
  }
}

type Fleet = Map<string, ModelBmc>

const boardOver = (fleet: Fleet, life?: Life) =>
  ({
    use: (power: { machine_id: string }, act: (session: PowerSession) => Promise<unknown>) => {
      const bmc = fleet.get(power.machine_id) as ModelBmc
      return act(life ? mortalSession(bmc.session, life) : bmc.session)
    },
  }) as never as Switchboard

/** One place of a worker: a process after the other, until the signal. Answers how many ended before their time, and how. */
async function keepWorking(core: TestCore, fleet: Fleet, random: () => number, signal: AbortSignal) {
  const ends = { dies: 0, freezes: 0 }
  const stopped = new Promise<'stopped'>(resolve => signal.addEventListener('abort', () => resolve('stopped'), { once: true }))
  while (!signal.aborted) {
    const end = random() < 0.75 ? 'dies' : 'freezes'
    const life = new Life(Math.ceil(lifeSteps.least + random() * (lifeSteps.most - lifeSteps.least)), end)
    const own: Core = { ...core, sql: mortalSql(core.sql, act => life.statement(act)) }
    const stopping = new AbortController()
    const worker = runPowerWorker(own, boardOver(fleet, life), stopping.signal, pace)
    if ((await Promise.race([life.ended.promise, stopped])) !== 'stopped') ends[end]++
    stopping.abort()
    await worker
  }
  return ends
}

/** The ids of orders that are not ended, looked up for all at once. */
class OpenOrders {
  readonly #sql: Sql
  #next: Promise<Set<number>> | undefined

  constructor(sql: Sql) {
    this.#sql = sql
  }

  async untilEnded(order: number, limitMs: number): Promise<PowerOrder> {
    const limit = Date.now() + limitMs
    while ((await this.#look()).has(order)) {
      if (Date.now() < limit) continue
      const rows = await this.#sql`
        select o.*, p.*, now() from machine_power p join power_orders o using (machine_id)
        where machine_id = (select machine_id from power_orders where id = ${order})`
      throw new Error(`order ${order} has not ended in ${limitMs} ms: ${JSON.stringify(rows)}`)
    }
    const [row] = await this.#sql<PowerOrder[]>`select * from power_orders where id = ${order}`
    return row as PowerOrder
  }

  #look(): Promise<Set<number>> {
    this.#next ??= sleep(40).then(async () => {
      this.#next = undefined
      const rows = await this.#sql<{ id: number }[]>`select id from power_orders where state in ('queued', 'running')`
      return new Set(rows.map(({ id }) => id))
    })
    return this.#next
  }
}

const endsIn = ({ action }: { action: string }): Power => (action === 'off' ? 'off' : 'on')
const people = ['alice', 'bob', 'olga', 'engine']

/** One sequence: orders in any order while the BMC fails in any way, then a last word to one that works, and what must be true then. */
async function play(core: TestCore, fleet: Fleet, open: OpenOrders, number: number): Promise<void> {
  const random = randomOf(seed * 1_000_003 + number)
  const pick = <T>(from: readonly T[]) => from[Math.floor(random() * from.length)] as T
  const bmc = new ModelBmc(random)
  const machine = await addMachine(core, { state: 'deployed', owner: 'alice', attention_at: null })
  const where = `sequence ${number} of seed ${seed}, ${machine.id}`
  fleet.set(machine.id, bmc)
  await core.sql`update machine_power set driver = 'model' where machine_id = ${machine.id}`
  const asked = new Map<number, Pick<NewOrder, 'action' | 'boot' | 'how'> & { by: string[] }>()

  const ask = async (): Promise<number | undefined> => {
    const action = pick(['on', 'off', 'cycle'] as const)
    const boot = action === 'off' || random() < 0.7 ? null : pick(['network', 'disk'] as const)
    const wish = { machine: machine.id, action, boot, how: random() < 0.3 ? ('soft' as const) : ('hard' as const), askedBy: pick(people) }
    if (wish.askedBy === 'engine') {
      // The machine has moved on since the engine looked: nothing may come of that look.
      const overtaken = await giveOrder(core.sql, { ...wish, claimToken: machine.claim_token - 1 })
      expect(overtaken, where).toBeUndefined()
    }
    const order = await (wish.askedBy === 'engine'
      ? giveOrder(core.sql, { ...wish, claimToken: machine.claim_token })
      : giveOrder(core.sql, wish))
    core.bells.power.ring()
    if (!order) throw new Error(`${where}: the engine's order was not taken`)
    const known = asked.get(order.id) ?? { ...wish, by: [] }
    expect({ ...order }, where).toMatchObject({ action, boot, how: wish.how })
    known.by.push(wish.askedBy)
    asked.set(order.id, known)
    return order.id
  }

  const rounds = 2 + Math.floor(random() * 4)
  for (let round = 0; round < rounds; round++) {
    bmc.mood = random() < 0.45 ? 'works' : pick(moods)
    await Promise.all(Array.from({ length: random() < 0.7 ? 1 : 3 }, ask))
    await sleep(pick([0, 10, 40, 120]) * random())
  }

  bmc.mood = 'works'
  const worksSince = Date.now()
  let last: PowerOrder
  do {
    last = await open.untilEnded((await ask()) as number, 60_000)
    // It had joined one that began while the BMC failed: that may fail, and is asked for again.
  } while (last.state === 'failed' && (last.started_at as Date).getTime() <= worksSince)
  await bmc.settled()
  const [seen] = await core.sql<{ observed: string }[]>`select observed from machine_power where machine_id = ${machine.id}`
  const orders = await core.sql<PowerOrder[]>`select * from power_orders where machine_id = ${machine.id} order by id`
  const events = await core.sql<{ kind: string; data: { order: number; outcome?: string } }[]>`
    select kind, data from events where machine_id = ${machine.id} and kind in ('power.ordered', 'power.order-ended')`
  const story = `${where}\n${orders.map(tell).join('\n')}\n${bmc.turns.map(({ at, to }) => `${at} ${to}`).join('\n')}`

  // The last word.
  expect(last.state, story).toBe('done')
  expect(bmc.power, story).toBe(endsIn(last))
  expect(seen?.observed, story).toBe(endsIn(last))
  // One at a time, whoever asked and whichever worker.
  expect(bmc.actionsAtOnceMax, story).toBeLessThanOrEqual(1)
  // Nothing lost, nothing invented: every order is in the history with who asked first, ended, and told once.
  expect(orders.map(({ id }) => id).sort(), story).toEqual([...asked.keys()].sort())
  // Ids are given before rows are: of orders given at once the later may have the smaller.
  const begunOrders = orders.filter(order => order.started_at !== null).sort((a, b) => Number(a.started_at) - Number(b.started_at))
  for (const order of orders) {
    expect(['done', 'failed', 'superseded'], story).toContain(order.state)
    expect(order.ended_at, story).not.toBeNull()
    expect(asked.get(order.id)?.by, story).toContain(order.asked_by)
    const told = events.filter(({ data }) => data.order === order.id).map(({ kind, data }) => `${kind} ${data.outcome ?? ''}`)
    expect(told.sort(), story).toEqual([`power.order-ended ${order.state}`, 'power.ordered '])
    if (order.state === 'failed') expect(order.fault, story).not.toBeNull()
    // An order that waited is replaced by another only: an equal one joins it. Both are written in one statement, at one time.
    if (order.started_at === null)
      expect(
        orders.some(other => Number(other.asked_at) === endOf(order) && wishOf(other) !== wishOf(order)),
        story,
      ).toBe(true)
    // One that was under way is cut short only by one that wanted another power, though that may be replaced itself the next moment.
    else if (order.state === 'superseded')
      expect(
        orders.some(
          other => endsIn(other) !== endsIn(order) && Number(other.asked_at) <= endOf(order) && endOf(other) > Number(order.started_at),
        ),
        story,
      ).toBe(true)
    const during = (from: Date | null, until: Date | null | undefined, to: Power) =>
      bmc.turns.filter(
        turn => turn.to === to && turn.at > (from?.getTime() ?? 0) + 1 && turn.at < (until?.getTime() ?? Number.POSITIVE_INFINITY),
      )
    // A cycle cuts the power once, however often it is taken over.
    if (order.action === 'cycle' && order.started_at !== null)
      expect(during(order.started_at, order.ended_at, 'off').length, story).toBeLessThanOrEqual(1)
    // What is called done stays so until another order begins.
    if (order.state === 'done') {
      const begun = begunOrders[begunOrders.indexOf(order) + 1]
      expect(during(order.ended_at, begun?.started_at, endsIn(order) === 'on' ? 'off' : 'on'), story).toEqual([])
    }
  }
  await core.sql`delete from machines where id = ${machine.id}`
  fleet.delete(machine.id)
}

const wishOf = ({ action, boot, how }: PowerOrder) => `${action} ${boot} ${how}`
const endOf = ({ ended_at }: PowerOrder) => Number(ended_at)

const tell = (order: PowerOrder) =>
  `${order.id} ${order.action} ${order.how} by ${order.asked_by}: ${order.state} ${order.phase ?? ''} ${order.started_at?.getTime() ?? 'never'}–${order.ended_at?.getTime() ?? 'open'} ${order.fault?.code ?? ''}`

test(`${sequences} random histories of orders, crashes and bad BMCs end as the last order wants`, {
  timeout: 60_000 + sequences * 250,
}, async () => {
  const core = await startCore({ rules, connections: 16 })
  const fleet: Fleet = new Map()
  const stopping = new AbortController()
  const crew = Array.from({ length: workers }, (_, place) => keepWorking(core, fleet, randomOf(seed + place), stopping.signal))
  const monitor = runPowerMonitor(core, boardOver(fleet), stopping.signal)
  const open = new OpenOrders(core.sql)
  const startedAt = performance.now()
  try {
    let next = 0
    const strand = async () => {
      while (next < sequences) await play(core, fleet, open, next++)
    }
    await Promise.all(Array.from({ length: atOnce }, strand))
    const stumbles = core.lines.filter(line => /"level":(50|60|"error"|"fatal")/.test(line) && !line.includes('this process was killed'))
    expect(stumbles).toEqual([])
  } finally {
    stopping.abort()
    await monitor
    const ends = (await Promise.all(crew)).reduce((a, b) => ({ dies: a.dies + b.dies, freezes: a.freezes + b.freezes }))
    const seconds = Math.round((performance.now() - startedAt) / 1000)
    const abandoned = core.lines.filter(line => line.includes('its claim will run out')).length
    console.info(
      `seed ${seed}: ${sequences} sequences in ${seconds} s; ${ends.dies} workers died, ${ends.freezes} froze, ${abandoned} orders were left half done`,
    )
  }
})
