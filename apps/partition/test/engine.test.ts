// The engine and the power worker, killed at every point where a process can die, overtaken, frozen, and doubled. Real PostgreSQL, real BMCs: what
// counts is the row, and what the power of the machine really did.
import type { PowerSession } from '@muster/drivers/driver'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { changeMachine, claimDueMachines, type MachineRow, saveLook } from '../src/db/machines.ts'
import { claimChecks, claimOrders, endClaim, giveOrder, holdClaim } from '../src/db/power.ts'
import { enlist, receiveSignal, saveInventory } from '../src/domain/agent.ts'
import type { Core } from '../src/domain/core.ts'
import { lookAtDue } from '../src/domain/engine.ts'
import { receiveErasure } from '../src/domain/erase.ts'
import { phoneHome } from '../src/domain/first-boot.ts'
import { deploy, orderPower, requestMove } from '../src/domain/machines.ts'
import { holdMachines, moveMachine } from '../src/domain/move.ts'
import { Switchboard } from '../src/domain/power/switchboard.ts'
import { runPowerWorker } from '../src/domain/power/worker.ts'
import { storedPowerSettings } from '../src/domain/power-settings.ts'
import { receiveScriptResult } from '../src/domain/scripts.ts'
import { leavingRescue } from '../src/domain/steps.ts'
import { addMachine, movesOf, newMac, operator, reread, startCore, type TestCore, until } from './harness.ts'
import { mortalSql } from './mortal-sql.ts'
import { markOf, settingsOf, startBmcs, switchedSince, type VirtualMachine } from './virtual-bmc.ts'

/** A process that can be killed, or frozen, before any one of the things it does to the outside. */
class Life {
  #left: number
  readonly #how: 'killed' | 'frozen'
  readonly #thaw = Promise.withResolvers<void>()
  readonly reached = Promise.withResolvers<void>()
  isDead = false

  /** `at`: how many things it may do before. Infinity: it lives. */
  constructor(at: number, how: 'killed' | 'frozen' = 'killed') {
    this.#left = at
    this.#how = how
  }

  thaw(): void {
    this.#thaw.resolve()
  }

  async step<T>(act: () => PromiseLike<T>): Promise<T> {
    if (this.#left-- === 0) {
      this.reached.resolve()
      if (this.#how === 'frozen') await this.#thaw.promise
      else this.isDead = true
    }
    if (this.isDead) throw new Error('this process was killed')
    return await act()
  }
}

/** The same BMCs: every call is a step. */
function mortalBoard(board: Switchboard, life: Life): Switchboard {
  const mortal = (session: PowerSession): PowerSession => ({
    ...session,
    target: session.target,
    power: options => life.step(() => session.power(options)),
    on: options => life.step(() => session.on(options)),
    off: options => life.step(() => session.off(options)),
    capabilities: {
      ...session.capabilities,
      ...(session.capabilities.bootNext && {
        bootNext: {
          ...session.capabilities.bootNext,
          set: options => life.step(() => (session.capabilities.bootNext as never as { set: (o: unknown) => Promise<never> }).set(options)),
        },
      }),
    },
  })
  return {
    use: (power: never, act: (session: PowerSession) => Promise<unknown>) => board.use(power, session => act(mortal(session))),
  } as never as Switchboard
}

/** What a replica does until there is nothing to do: look, carry out orders, look. */
async function live(core: TestCore, board: Switchboard, life: Life): Promise<void> {
  const own: Core = { ...core, sql: mortalSql(core.sql, act => life.step(act)) }
  try {
    await lookAtDue(own)
    await carryOutOrders(core, own, mortalBoard(board, life), life)
    await lookAtDue(own)
  } catch (error) {
    if (!life.isDead) throw error
  }
}

/** The power worker until no order is open, or its process is dead. */
async function carryOutOrders(core: TestCore, own: Core, board: Switchboard, life: Life): Promise<void> {
  const stopping = new AbortController()
  const worker = runPowerWorker(own, board, stopping.signal)
  await until(async () => life.isDead || (await openOrders(core)) === 0, 20_000)
  stopping.abort()
  await worker
}

const openOrders = async (core: TestCore) => (await core.sql`select from power_orders where state in ('queued', 'running')`).length

/** Time passes until the claims of a dead process have run out. */
async function claimsRunOut(core: TestCore): Promise<void> {
  await core.sql`update machines set attention_at = case when attention_at >= claimed_until then now() else attention_at end, claimed_until = now() - interval '1 second' where claimed_until is not null`
  await core.sql`update machine_power set claimed_until = now() - interval '1 second' where claimed_until is not null`
}

/** A machine with that BMC. Its power is as the monitor would have seen it. */
async function machineWith(core: TestCore, bmc: VirtualMachine, columns: Partial<MachineRow>): Promise<MachineRow> {
  const row = await addMachine(core, { attention_at: null, ...columns })
  const stored = storedPowerSettings(core, row.id, 'ipmi', settingsOf(bmc))
  await core.sql`
    update machine_power set driver = 'ipmi', settings = ${core.sql.json(stored.settings as never)}, secrets = ${stored.secrets},
      observed = ${bmc.power}, seen_at = now(), check_at = now() + interval '1 hour' where machine_id = ${row.id}`
  return reread(core, row.id)
}

const deployment = {
  os: 'debian/12',
  dataSource: 'nocloud' as const,
  startedAt: new Date().toISOString(),
  installedAt: null,
  deployedAt: null,
}
const owned = { owner: 'alice', allocation_id: 'a-0123456789bcdfgh' }

interface Scenario {
  name: string
  from: Partial<MachineRow>
  before: 'on' | 'off'
  ask: (core: TestCore, machine: MachineRow) => Promise<unknown>
  /** What the power does, and nothing else. */
  power: ('on' | 'off')[]
  ends: Partial<MachineRow>
  moves: string[]
}

const signal = new AbortController().signal
const scenarios: Scenario[] = [
  {
    name: 'commissioning',
    from: { state: 'new' },
    before: 'on',
    ask: (core, { id }) => requestMove(core, operator, 'commission', { id }),
    power: ['off', 'on'],
    ends: { state: 'commissioning', waiting_for: 'the agent to finish commissioning', power: 'on' },
    moves: ['new commission commissioning'],
  },
  {
    name: 'deploying',
    from: { state: 'allocated', ...owned },
    before: 'off',
    ask: (core, { id }) => deploy(core, operator, { id, os: 'debian/12', sshKeys: [] }, () => undefined),
    power: ['on'],
    ends: { state: 'deploying', waiting_for: 'the agent to install', power: 'on' },
    moves: ['allocated deploy deploying'],
  },
  {
    name: 'releasing',
    from: { state: 'deployed', ...owned },
    before: 'on',
    ask: (core, { id }) => requestMove(core, operator, 'release', { id }),
    power: ['off'],
    ends: { state: 'ready', owner: null, allocation_id: null, run: null, deployment: null, power: 'off' },
    moves: ['deployed release releasing', 'releasing released ready'],
  },
  {
    name: 'leaving rescue',
    from: { state: 'rescue', origin_state: 'deployed', run: 'r0', deployment, ...owned },
    before: 'on',
    ask: (core, { id }) => requestMove(core, operator, 'exitRescue', { id }),
    power: ['off', 'on'],
    ends: { state: 'deployed', step: leavingRescue, run: 'r0', origin_state: null, power: 'on' },
    moves: ['rescue exitRescue deployed'],
  },
  ...(['on', 'off', 'cycle'] as const).map((action): Scenario => {
    const before = action === 'on' ? 'off' : 'on'
    return {
      name: `power ${action}`,
      from: { state: 'deployed', ...owned },
      before,
      ask: (core, { id }) => orderPower(core, operator, { id, action, how: 'hard' }, signal),
      power: action === 'cycle' ? ['off', 'on'] : [action],
      ends: { state: 'deployed', power: action === 'off' ? 'off' : 'on' },
      moves: [],
    }
  }),
]

describe('a process that dies before any one of its steps, and another that takes over', () => {
  test.concurrent.each(scenarios)('$name comes to its end once', { timeout: 120_000 }, async scenario => {
    const ends: (() => Promise<void>)[] = []
    const ending = (end: () => Promise<void>) => void ends.push(end)
    try {
      const core = await startCore({}, ending)
      const [bmc] = (await startBmcs(1, {}, ending)) as [VirtualMachine]
      let at = 0
      for (let isComplete = false; !isComplete; at++) {
        bmc.pressPower({ to: scenario.before } as never)
        const machine = await machineWith(core, bmc, scenario.from)
        const before = markOf(bmc)
        await scenario.ask(core, machine)
        // A dead process leaves its session behind; the BMC has few, so it is closed for it.
        const [board, next] = [new Switchboard(core), new Switchboard(core)]
        const life = new Life(at)
        await live(core, board, life)
        isComplete = !life.isDead
        await claimsRunOut(core)
        await board.close()
        await live(core, next, new Life(Number.POSITIVE_INFINITY))
        await next.close()

        const where = `${scenario.name}, killed before step ${at}`
        expect(switchedSince(bmc, before), where).toEqual(scenario.power)
        expect(await reread(core, machine.id), where).toMatchObject(scenario.ends)
        expect(await movesOf(core.sql, machine.id), where).toEqual(scenario.moves)
        const orders = await core.sql<{ state: string }[]>`select state from power_orders where machine_id = ${machine.id}`
        expect(orders, where).toEqual([{ state: 'done' }])
        const [open] = await core.sql`select claimed_until from machine_power where machine_id = ${machine.id}`
        expect(open?.claimed_until, where).toBeNull()
        await core.sql`delete from machines`
      }
      // Orders: about a dozen steps of the engine, and at least as many of the worker; fewer would mean that the killing does not work.
      expect(at).toBeGreaterThan(8)
    } finally {
      for (const end of ends.reverse()) await end()
    }
  })
})

interface Call {
  name: string
  from: Partial<MachineRow>
  /** What the agent says, with the row as it was when it said it first. */
  say: (core: Core, machine: MachineRow & { run: string }) => Promise<unknown>
  ends: Partial<MachineRow>
  /** Each once, however often it was said. */
  events: string[]
}

const run = 'r1'
const says = (status: 'working' | 'done' | 'failed', step: string) => ({ status, step, message: '', progress: 50 })
const hardware = (mac: string) => ({
  arch: 'amd64' as const,
  cpus: 16,
  memoryMib: 65_536,
  interfaces: [{ mac, name: 'eth9', speedMbps: 25_000, subnet: null, ip: null }],
  disks: [{ name: 'nvme0n1', serial: 's0', model: '', sizeBytes: 2e12, kind: 'nvme' as const }],
  facts: { vendor: 'Acme' },
})
const onDisk = { disk: 'sda', serial: '', model: '', sizeBytes: 1e12, outcome: 'discarded' as const, samples: 64, seconds: 1 }
const ofScript = { script: 'cpu', part: '', status: 'passed' as const, exitCode: 0, seconds: 1, message: '', output: '', result: null }
const installed = { ...deployment, installedAt: new Date().toISOString() }

const calls: Call[] = [
  {
    name: 'a step',
    from: { state: 'deploying', run, deployment, ...owned },
    say: (core, machine) => receiveSignal(core, machine, says('working', 'write')),
    ends: { state: 'deploying', waiting_for: 'the agent: write', progress: 50 },
    events: ['machine.step'],
  },
  {
    name: 'a result of a script',
    from: { state: 'commissioning', run, scripts: [{ name: 'cpu', parameters: {} }] },
    say: (core, machine) => receiveScriptResult(core, machine, ofScript),
    ends: { state: 'commissioning' },
    events: [],
  },
  {
    name: 'the end of a commissioning',
    from: { state: 'commissioning', run },
    say: (core, machine) => receiveSignal(core, machine, says('done', 'commission')),
    ends: { state: 'ready', fault: null },
    events: ['machine.moved'],
  },
  {
    name: 'a failure',
    from: { state: 'deploying', run, deployment, ...owned },
    say: (core, machine) => receiveSignal(core, machine, says('failed', 'write')),
    ends: { state: 'failed_deployment', fault: expect.objectContaining({ code: 'write-failed' }) },
    events: ['machine.moved'],
  },
  {
    name: 'the end of an installation',
    from: { state: 'deploying', run, deployment, ...owned },
    say: (core, machine) => receiveSignal(core, machine, says('done', 'install')),
    ends: { state: 'deploying', netboot: false, deployment: expect.objectContaining({ installedAt: expect.any(String) }) },
    events: ['machine.installed'],
  },
  {
    name: 'a first boot',
    from: { state: 'deploying', run, netboot: false, deployment: installed, ...owned },
    say: (core, machine) => phoneHome(core, machine),
    ends: { state: 'deployed', deployment: expect.objectContaining({ deployedAt: expect.any(String) }) },
    events: ['machine.moved'],
  },
  {
    name: 'an erased disk, and the end of the erasure',
    from: { state: 'releasing', run, erase: 'quick', disks_used: true, ...owned },
    say: async (core, machine) => {
      await receiveErasure(core, machine, onDisk).catch(error => {
        // What was said last time has been heard: nothing more is to be erased.
        if ((error as { code?: string }).code !== 'wrong-state') throw error
      })
      await receiveSignal(core, machine, says('done', 'erase'))
    },
    ends: { state: 'releasing', erase: null, disks_used: false },
    events: ['machine.erased'],
  },
]

describe('a process that dies before any statement of what an agent tells it, and another that is told again', () => {
  test('stores it once', { timeout: 60_000 }, async () => {
    const core = await startCore()
    for (const { name, from, say, ends, events } of calls) {
      let at = 0
      for (let isComplete = false; !isComplete; at++) {
        const machine = (await addMachine(core, { attention_at: null, ...from })) as MachineRow & { run: string }
        const life = new Life(at)
        await say({ ...core, sql: mortalSql(core.sql, act => life.step(act)) }, machine).catch(error => {
          if (!life.isDead) throw error
        })
        isComplete = !life.isDead
        // By the row as it is: the token leads there.
        await say(core, (await reread(core, machine.id)) as MachineRow & { run: string })
        const where = `${name}, killed before statement ${at}`
        expect(await reread(core, machine.id), where).toMatchObject(ends)
        const kinds = await core.sql<
          { kind: string }[]
        >`select kind from events where machine_id = ${machine.id} and kind <> 'machine.created'`
        expect(
          kinds.map(({ kind }) => kind),
          where,
        ).toEqual(events)
        const [kept] = await core.sql`
          select (select count(*)::integer from script_results where machine_id = ${machine.id}) as results,
            (select count(*)::integer from erasures where machine_id = ${machine.id}) as erasures`
        expect(kept, where).toEqual({ results: from.scripts ? 1 : 0, erasures: from.erase ? 1 : 0 })
        await core.sql`delete from machines`
      }
      expect(at, name).toBeGreaterThan(1)
    }
  })

  test('knows a machine that enlists once, with all that it found, and an inventory as a whole', { timeout: 60_000 }, async () => {
    const core = await startCore({ rules: { enlisted: 'commission', place: 'lab' } })
    const whole = async (mac: string) => {
      const [row] = await core.sql`
        select state, cpus, disks->0->>'name' as disk, facts, (select array_agg(mac order by mac) from macs where machine_id = m.id) as macs,
          (select array_agg(kind order by id) from events where machine_id = m.id and kind <> 'machine.created') as events
        from machines m left join inventories on machine_id = m.id where m.id = (select machine_id from macs where mac = ${mac})`
      return row
    }
    const all = { cpus: 16, disk: 'nvme0n1', facts: { vendor: 'Acme' } }
    const bmc = { driver: 'ipmi', settings: { address: '127.0.0.1:1', user: 'a', password: 'b' } }
    for (let at = 0, isComplete = false; !isComplete; at++) {
      const mac = newMac()
      const said = { ...hardware(mac), bmc }
      const life = new Life(at)
      const mortal: Core = { ...core, sql: mortalSql(core.sql, act => life.step(act)) }
      await enlist(mortal, said).catch(error => {
        if (!life.isDead) throw error
      })
      isComplete = !life.isDead
      await enlist(core, said)
      expect(await whole(mac), `killed before statement ${at}`).toEqual({
        ...all,
        ...{ state: 'commissioning', macs: [mac], events: ['machine.enlisted', 'machine.moved'] },
      })
    }
    for (let at = 0, isComplete = false; !isComplete; at++) {
      const machine = (await addMachine(core, { attention_at: null, state: 'commissioning', run })) as MachineRow & { run: string }
      const mac = newMac()
      const life = new Life(at)
      await saveInventory({ ...core, sql: mortalSql(core.sql, act => life.step(act)) }, machine, hardware(mac)).catch(error => {
        if (!life.isDead) throw error
      })
      isComplete = !life.isDead
      await saveInventory(core, await reread(core, machine.id), hardware(mac))
      expect(await whole(mac), `killed before statement ${at}`).toEqual({
        ...all,
        ...{ state: 'commissioning', macs: [mac], events: ['machine.inventory'] },
      })
    }
  })
})

describe('one worker among several', () => {
  const ends: (() => Promise<void>)[] = []
  let core: TestCore
  let bmcs: readonly VirtualMachine[]
  let board: Switchboard
  beforeAll(async () => {
    const ending = (end: () => Promise<void>) => void ends.push(end)
    core = await startCore({ connections: 12 }, ending)
    bmcs = await startBmcs(14, {}, ending)
    board = new Switchboard(core)
    ending(() => board.close())
  })
  afterAll(async () => {
    for (const end of ends.reverse()) await end()
  })

  test.each([
    ['before it claims', 0],
    ['before it asks what was ordered before', 1],
    ['before it looks', 3],
    ['between its last word and the cut', 5],
    ['before it notes that the power is cut', 8],
    ['before it ends its claim', 16],
  ])('that freezes %s and wakes too late writes nothing and switches nothing', async (_, at) => {
    const bmc = bmcs[0] as VirtualMachine
    bmc.pressPower({ to: 'on' })
    const machine = await machineWith(core, bmc, { state: 'deployed', ...owned })
    const before = markOf(bmc)
    await orderPower(core, operator, { id: machine.id, action: 'cycle', how: 'hard' }, signal)
    const life = new Life(at, 'frozen')
    const stopping = new AbortController()
    const frozen = runPowerWorker({ ...core, sql: mortalSql(core.sql, act => life.step(act)) }, mortalBoard(board, life), stopping.signal)
    await life.reached.promise
    await claimsRunOut(core)
    await carryOutOrders(core, core, board, new Life(Number.POSITIVE_INFINITY))
    expect(switchedSince(bmc, before)).toEqual(['off', 'on'])
    const ended = await core.sql`select * from power_orders where machine_id = ${machine.id}`
    const seen = await core.sql`select * from machine_power where machine_id = ${machine.id}`
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 60_000 })
    life.thaw()
    await new Promise(resolve => setTimeout(resolve, 300))
    stopping.abort()
    await frozen
    vi.useRealTimers()
    expect(switchedSince(bmc, before)).toEqual(['off', 'on'])
    expect(await core.sql`select * from power_orders where machine_id = ${machine.id}`).toEqual(ended)
    expect(await core.sql`select * from machine_power where machine_id = ${machine.id}`).toEqual(seen)
    await core.sql`delete from machines`
  })

  test('two engines and two workers at once give each machine one cycle, and each BMC one caller', async () => {
    const used = bmcs.slice(2)
    const machines = await Promise.all(used.map(bmc => machineWith(core, bmc, { state: 'new' })))
    const before = used.map(markOf)
    const stopping = new AbortController()
    const boards = [board, new Switchboard(core)] as const
    const workers = boards.map(each => runPowerWorker({ ...core, bells: { ...core.bells } }, each, stopping.signal))
    const looks = async () => {
      for (let look = 0; look < 8; look++) await lookAtDue(core)
    }
    await Promise.all([...machines.map(({ id }) => requestMove(core, operator, 'commission', { id })), looks(), looks()])
    await lookAtDue(core)
    await until(async () => (await openOrders(core)) === 0)
    await Promise.all([looks(), looks()])
    stopping.abort()
    await Promise.all(workers)
    await boards[1].close()
    for (const [i, machine] of machines.entries()) {
      expect(switchedSince(used[i] as VirtualMachine, before[i])).toEqual(['on'])
      expect(await core.sql`select state from power_orders where machine_id = ${machine.id}`).toEqual([{ state: 'done' }])
      expect((await reread(core, machine.id)).waiting_for).toBe('the agent to finish commissioning')
    }
    await core.sql`delete from machines`
  })

  test('keeps its conversation through an order that takes longer than conversations are kept', async () => {
    const [slow] = (await startBmcs(1, { powerEffectMs: 700 })) as [VirtualMachine]
    const machine = await machineWith(core, slow, { state: 'deployed', ...owned })
    const impatient = new Switchboard(core, { idleMs: 100 })
    await orderPower(core, operator, { id: machine.id, action: 'on', how: 'hard' }, signal)
    await carryOutOrders(core, core, impatient, new Life(Number.POSITIVE_INFINITY))
    await impatient.close()
    expect(await core.sql`select state, fault from power_orders where machine_id = ${machine.id}`).toEqual([{ state: 'done', fault: null }])
    await core.sql`delete from machines`
  })

  /** The history of a machine's switch, in words. */
  async function statesOf(core: TestCore, machine: string): Promise<string[]> {
    const rows = await core.sql<
      { action: string; state: string }[]
    >`select action, state from power_orders where machine_id = ${machine} order by id`
    return rows.map(({ action, state }) => `${action} ${state}`)
  }

  test('that is asked to stop lets go at once, and the next one goes on where it was', async () => {
    const [bmc] = (await startBmcs(1, { powerEffectMs: 600 })) as [VirtualMachine]
    bmc.pressPower({ to: 'on' })
    const before = markOf(bmc)
    const machine = await machineWith(core, bmc, { state: 'deployed', ...owned })
    await orderPower(core, operator, { id: machine.id, action: 'cycle', how: 'hard' }, signal)
    const stopping = new AbortController()
    const first = runPowerWorker(core, board, stopping.signal)
    await until(async () => bmc.bmc.counters.controls.off === 1)
    stopping.abort()
    await first
    expect(await core.sql`select claimed_until from machine_power where machine_id = ${machine.id}`).toEqual([{ claimed_until: null }])
    await carryOutOrders(core, core, board, new Life(Number.POSITIVE_INFINITY))
    expect(switchedSince(bmc, before)).toEqual(['off', 'on'])
    expect(await core.sql`select state from power_orders where machine_id = ${machine.id}`).toEqual([{ state: 'done' }])
    await core.sql`delete from machines`
  })

  test('a second order joins an equal one, replaces one that waits, and ends one that wants another power', async () => {
    const machine = await machineWith(core, bmcs[1] as VirtualMachine, { state: 'deployed', ...owned })
    const order = (action: 'on' | 'off' | 'cycle') => giveOrder(core.sql, { machine: machine.id, action, boot: null, askedBy: 'alice' })
    const [first, same] = [await order('on'), await order('on')]
    expect(same.id).toBe(first.id)
    const [claimed] = await claimOrders(core.sql, { limit: 1, claimMs: 10_000 })
    expect(claimed).toMatchObject({ id: first.id, state: 'running' })
    expect((await order('on')).id).toBe(first.id)
    const other = await order('off')
    expect(other.id).not.toBe(first.id)
    // Replaced while it waits: the last word is what waits, and what it replaced stays in the history.
    const last = await order('cycle')
    expect(last.id).not.toBe(other.id)
    expect(await statesOf(core, machine.id)).toEqual(['on running', 'off superseded', 'cycle queued'])
    expect(await claimOrders(core.sql, { limit: 5, claimMs: 10_000 })).toEqual([])
    await core.sql`delete from machines`
  })

  test('a running order is cut short only by one that wants another power', async () => {
    const [bmc] = (await startBmcs(1, { powerEffectMs: 400 })) as [VirtualMachine]
    bmc.pressPower({ to: 'on' })
    const before = markOf(bmc)
    const machine = await machineWith(core, bmc, { state: 'deployed', ...owned })
    const order = (action: 'on' | 'off' | 'cycle') => orderPower(core, operator, { id: machine.id, action, how: 'hard' }, signal)
    const running = () => until(async () => (await core.sql`select from power_orders where state = 'running'`).length > 0)
    const stopping = new AbortController()
    const worker = runPowerWorker(core, board, stopping.signal)

    await order('cycle')
    await running()
    // On is what the cycle ends with anyway: it waits its turn.
    await order('on')
    await until(async () => (await openOrders(core)) === 0)
    expect(await statesOf(core, machine.id)).toEqual(['cycle done', 'on done'])
    expect(switchedSince(bmc, before)).toEqual(['off', 'on'])

    await order('cycle')
    await running()
    await order('off')
    await until(async () => (await openOrders(core)) === 0)
    expect((await statesOf(core, machine.id)).slice(2)).toEqual(['cycle superseded', 'off done'])
    expect(bmc.power).toBe('off')
    stopping.abort()
    await worker
    await core.sql`delete from machines`
  })
})

describe('a look that is overtaken', () => {
  const claimed = async (core: TestCore) => {
    await core.sql`update machines set attention_at = now()`
    const [row] = await claimDueMachines(core.sql, { limit: 1, claimMs: 30_000 })
    return row as MachineRow
  }
  const rest = (row: MachineRow) =>
    saveLook(core.sql, { id: row.id, claimToken: row.claim_token, version: row.version, waitingFor: null, attentionMs: null })
  let core: TestCore
  const ends: (() => Promise<void>)[] = []
  beforeAll(async () => {
    core = await startCore({}, end => void ends.push(end))
  })
  afterAll(async () => {
    for (const end of ends.reverse()) await end()
  })
  const due = async () => (await core.sql`select from machines where attention_at <= now() and claimed_until is null`).length

  test('by news of the power does not put the machine to rest', async () => {
    const machine = await addMachine(core, { state: 'ready', power: 'off' }, { powerDriver: 'ipmi' })
    const look = await claimed(core)
    const [check] = await claimChecks(core.sql, { prompt: 1, patient: 1, slow: [], claimMs: 1000 })
    await endClaim(core.sql, {
      machine: machine.id,
      token: check?.claim_token as number,
      power: 'on',
      fault: null,
      againMs: 60_000,
      inTransitionMs: 60_000,
    })
    await rest(look)
    expect(await due()).toBe(1)
    await lookAtDue(core)
    // Nobody uses a ready machine: it is switched off.
    expect(await core.sql`select action from power_orders where machine_id = ${machine.id}`).toEqual([{ action: 'off' }])
    await core.sql`delete from machines`
  })

  test('by what the agent says does not overwrite it', async () => {
    const machine = await addMachine(core, { state: 'deploying', run: 'r1', last_signal_at: new Date(), waiting_for: 'the agent: write' })
    const look = await claimed(core)
    await receiveSignal(core, machine, { status: 'done', step: 'install', message: '' })
    await saveLook(core.sql, {
      id: look.id,
      claimToken: look.claim_token,
      version: look.version,
      waitingFor: 'the agent: write',
      attentionMs: 15_000,
    })
    expect(await reread(core, machine.id)).toMatchObject({
      netboot: false,
      waiting_for: 'the first boot of the installed system to phone home',
    })
    expect(await due()).toBe(1)
    await core.sql`delete from machines`
  })

  test('by a move, or by a hold, stores nothing', async () => {
    const machine = await addMachine(core, { state: 'ready' })
    const look = await claimed(core)
    await moveMachine(core, { id: machine.id, move: 'markBroken', actor: 'olga' })
    expect(await rest(look)).toBe('stale')
    expect(await due()).toBe(1)
    await core.sql`delete from machines`

    const other = await addMachine(core, { state: 'ready' })
    const second = await claimed(core)
    await holdMachines(core, {
      allocation: 'a-1123456789bcdfgh',
      owner: 'alice',
      strategy: 'best',
      count: 1,
      note: '',
      constraints: {},
      createdAt: new Date(),
      machines: [other.id],
      wanted: 1,
    })
    await rest(second)
    expect(await reread(core, other.id)).toMatchObject({
      state: 'reserved',
      waiting_for: 'the confirmation',
      attention_at: expect.any(Date),
    })
    await core.sql`delete from machines`
  })

  test('by another replica after its claim ran out stores nothing', async () => {
    await addMachine(core, { state: 'ready' })
    const first = await claimed(core)
    await claimsRunOut(core)
    const second = await claimed(core)
    expect(second.claim_token).toBeGreaterThan(first.claim_token)
    expect(await rest(first)).toBe('stale')
    expect((await core.sql`select from machines where claimed_until > now()`).length).toBe(1)
    expect(await rest(second)).toBe('saved')
    await core.sql`delete from machines`
  })

  test('of a process that died is made again when its claim has run out', async () => {
    await addMachine(core, { state: 'ready' })
    await core.sql`update machines set attention_at = now()`
    await claimDueMachines(core.sql, { limit: 1, claimMs: 50 })
    expect(await claimDueMachines(core.sql, { limit: 1, claimMs: 50 })).toEqual([])
    await new Promise(resolve => setTimeout(resolve, 80))
    expect(await claimDueMachines(core.sql, { limit: 1, claimMs: 50 })).toHaveLength(1)
    await core.sql`delete from machines`
  })

  test('the same holds for the power: an old claim neither prolongs, notes nor ends anything', async () => {
    const machine = await addMachine(core, { state: 'ready', power: 'off' }, { powerDriver: 'ipmi' })
    const order = await giveOrder(core.sql, { machine: machine.id, action: 'on', boot: null, askedBy: 'alice' })
    const [old] = await claimOrders(core.sql, { limit: 1, claimMs: 10_000 })
    await core.sql`update machine_power set claimed_until = now() - interval '1 second'`
    const [fresh] = await claimOrders(core.sql, { limit: 1, claimMs: 10_000 })
    expect(fresh?.switch.claim_token).toBeGreaterThan(old?.switch.claim_token as number)
    const oldClaim = { machine: machine.id, token: old?.switch.claim_token as number }
    expect(await holdClaim(core.sql, { ...oldClaim, claimMs: 10_000, order: order.id, phase: 'on' })).toBe('lost')
    const said = { ...oldClaim, power: 'on' as const, fault: null, againMs: 1000, inTransitionMs: 1000 }
    expect(await endClaim(core.sql, said, { id: order.id, state: 'done', fault: null })).toBe('lost')
    expect(await core.sql`select state, phase, ended_at from power_orders`).toEqual([{ state: 'running', phase: null, ended_at: null }])
    expect(await core.sql`select observed from machine_power`).toEqual([{ observed: 'off' }])
    await core.sql`delete from machines`
  })

  test('an order that ended just before it was claimed again is not carried out twice', async () => {
    const machine = await addMachine(core, { state: 'deployed', ...owned }, { powerDriver: 'ipmi' })
    await giveOrder(core.sql, { machine: machine.id, action: 'cycle', boot: null, askedBy: 'alice' })
    const [old] = await claimOrders(core.sql, { limit: 1, claimMs: 1 })
    await new Promise(resolve => setTimeout(resolve, 10))
    // The claimer has looked already when the order ends, and comes to its row only then.
    const isLocked = Promise.withResolvers<void>()
    const mayEnd = Promise.withResolvers<void>()
    const ending = core.sql.begin(async sql => {
      await sql`update power_orders set state = 'done' where id = ${old?.id as number}`
      isLocked.resolve()
      await mayEnd.promise
    })
    await isLocked.promise
    const claiming = claimOrders(core.sql, { limit: 1, claimMs: 1 })
    const blocked = () => core.sql`select from pg_locks where not granted`
    await Promise.race([claiming, until(async () => (await blocked()).length > 0)])
    mayEnd.resolve()
    await ending
    expect(await claiming).toEqual([])
    expect(await core.sql`select claimed_until from machine_power`).toEqual([{ claimed_until: null }])
    expect(await claimOrders(core.sql, { limit: 1, claimMs: 1 })).toEqual([])
    expect(await core.sql`select state from power_orders`).toEqual([{ state: 'done' }])
    await core.sql`delete from machines`
  })
})

describe('deadlines', () => {
  const late = async (core: TestCore, columns: Partial<MachineRow>) => {
    const machine = await addMachine(core, { attention_at: new Date(), deadline_at: new Date(Date.now() - 1000), ...columns })
    await lookAtDue(core)
    return reread(core, machine.id)
  }

  test('a machine that is late fails with what it waited for, and what a person can do', async () => {
    const core = await startCore()
    const agentless = { waiting_for: 'the agent to finish commissioning', run: 'r1' }
    expect(await late(core, { state: 'commissioning', ...agentless })).toMatchObject({
      state: 'failed_commissioning',
      deadline_at: null,
      fault: {
        code: 'deadline-passed',
        message: 'commissioning took longer than it may; it was waiting for the agent to finish commissioning',
        hint: expect.stringContaining('console'),
      },
    })
    const mute = { netboot: false, waiting_for: 'the first boot of the installed system to phone home', run: 'r2', ...owned }
    expect(await late(core, { state: 'deploying', ...mute })).toMatchObject({
      state: 'failed_deployment',
      owner: 'alice',
      fault: { code: 'deadline-passed', message: expect.stringContaining('phone home') },
    })
    expect(await late(core, { state: 'releasing', ...owned })).toMatchObject({
      state: 'failed_releasing',
      owner: 'alice',
      fault: { code: 'deadline-passed', message: expect.stringContaining('the engine') },
    })
  })

  test('an agent that falls silent is held dead long before the deadline', async () => {
    const core = await startCore({ rules: { agentSilenceMs: 1000 } })
    const machine = await addMachine(core, {
      state: 'commissioning',
      run: 'r1',
      deadline_at: new Date(Date.now() + 60_000),
      last_signal_at: new Date(Date.now() - 5000),
    })
    const order = await giveOrder(core.sql, { machine: machine.id, action: 'cycle', boot: 'network', askedBy: 'engine' })
    await core.sql`update power_orders set state = 'done' where id = ${order.id}`
    await core.sql`update machines set attention_at = now()`
    await lookAtDue(core)
    expect(await reread(core, machine.id)).toMatchObject({
      state: 'failed_commissioning',
      fault: { code: 'agent-silent', message: expect.stringMatching(/last heard [56] s ago/), hint: expect.any(String) },
    })
  })

  test('what is to be done next is looked at when it falls due, not a look later', async () => {
    const core = await startCore()
    const machine = await addMachine(core, {
      state: 'commissioning',
      run: 'r1',
      deadline_at: new Date(Date.now() + 3000),
      attention_at: new Date(),
    })
    await lookAtDue(core)
    const row = await reread(core, machine.id)
    expect(row.attention_at?.getTime()).toBeLessThanOrEqual((row.deadline_at?.getTime() as number) + 50)
  })

  test('a version that changed meanwhile is tried again, not lost', async () => {
    const core = await startCore()
    const machine = await addMachine(core, { state: 'ready' })
    const noise = async () => {
      for (let change = 0; change < 15; change++) {
        const row = await reread(core, machine.id)
        await changeMachine(core.sql, { id: row.id, version: row.version, patch: { note: `${change}` }, actor: 'x', events: [] })
      }
    }
    await Promise.all([noise(), moveMachine(core, { id: machine.id, move: 'markBroken', actor: 'olga' })])
    expect(await reread(core, machine.id)).toMatchObject({ state: 'broken' })
    expect(await movesOf(core.sql, machine.id)).toEqual(['ready markBroken broken'])
  })
})
