// What chaos could hit only by luck, brought about on purpose: late engines, late releases, late orders. Each found a bug once.
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { AuditLog } from '@muster/database/audit-log'
import { freshDatabase } from '@muster/embedded/test-postgres'
import { connect, type Sql } from '@muster/partition/db/connect'
import { claimDueMachines, findMachine } from '@muster/partition/db/machines'
import { migrate } from '@muster/partition/db/migrate'
import { findOrder, giveOrder, openOrders } from '@muster/partition/db/power'
import { drop } from '@muster/partition/domain/allocation'
import { Bell } from '@muster/partition/domain/bell'
import { Catalogue } from '@muster/partition/domain/catalogue'
import { type Core, defaultRules } from '@muster/partition/domain/core'
import { lookAtDue } from '@muster/partition/domain/engine'
import { GlobalCopy } from '@muster/partition/domain/global-copy'
import { Memory } from '@muster/partition/domain/memory'
import { confirmHold, holdMachines, moveMachine } from '@muster/partition/domain/move'
import { sessionsHere } from '@muster/partition/domain/people'
import type { Switchboard } from '@muster/partition/domain/power/switchboard'
import { runPowerWorker } from '@muster/partition/domain/power/worker'
import { Seal } from '@muster/partition/domain/seal'
import { createSigner } from '@muster/server/global/signature'
import { createLog } from '@muster/server/log'
import { newAllocationId } from '@muster/shared/ids'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { insertReadyMachines } from '../src/chaos/fixture.ts'
import { chance } from '../src/chaos/random.ts'

/** A partition without its loops: the test is the engine. */
let core: Core
let ends: (() => Promise<void>)[]

beforeAll(async () => {
  const database = await freshDatabase({ template: 'partition', migrate: url => migrate(url).then(() => {}) })
  const sql: Sql = connect(database.url, { name: 'chaos claims' })
  const log = createLog({ level: 'fatal', name: 'test' })
  const catalogue = new Catalogue({ partition: 'p1', folder: path.join('/tmp', 'muster-no-files'), log })
  const seal = new Seal(Buffer.alloc(32, 7))
  const certifier = createSigner(seal.certificateSeed(), 'erasure certificate')
  const configuration = new GlobalCopy({ partition: 'p1', sql, trustedKeys: [], log })
  core = {
    partition: 'p1',
    sql,
    seal,
    certifier,
    audit: new AuditLog({
      partition: 'p1',
      server: 'test',
      run: act => act(sql),
      sign: text => certifier.as('audit log').sign(text),
      onTrouble: error => log.error({ err: error }, 'audit'),
    }),
    catalogue,
    memory: new Memory(catalogue),
    configuration,
    shared: undefined,
    sessions: sessionsHere({ seal, configuration, log }),
    rules: defaultRules,
    log,
    bells: { engine: new Bell(), power: new Bell(), rotation: new Bell(), log: new Bell() },
  }
  ends = [() => sql.end(), () => database.drop()]
  await insertReadyMachines(database.url, { partition: 'p1', machines: 60, random: chance('claims', 1) })
})
afterAll(async () => {
  for (const end of ends ?? []) await end()
})

const readyMachines = async () =>
  (await core.sql<{ id: string }[]>`select id from machines where state = 'ready' and allocation_id is null`).map(({ id }) => id)

function holdFor(ms: number, machine: string, owner = 'somebody') {
  const patient: Core = { ...core, rules: { ...core.rules, deadlinesMs: { reserved: ms } } }
  const allocation = newAllocationId()
  const hold = {
    allocation,
    owner,
    strategy: 'best' as const,
    count: 1,
    note: '',
    constraints: {},
    createdAt: new Date(),
    machines: [machine],
    wanted: 1,
  }
  return holdMachines(patient, hold).then(() => allocation)
}

it('a hold that runs out leaves its machine as it was, at whatever moment the engine looks', async () => {
  const machines = await readyMachines()
  // Ends spread over every point of the engine's look, which is a few statements long.
  for (let round = 0; round < 4; round++) {
    await Promise.all(machines.map((machine, index) => holdFor(20 + index * 2, machine)))
    const until = Date.now() + 600
    while (Date.now() < until) await lookAtDue(core)
  }
  const rows =
    await core.sql`select id, state, allocation_id, owner, fault from machines where allocation_id is not null or state <> 'ready' or fault is not null`
  expect(rows).toEqual([])
  const held = await core.sql`select id from allocations where state = 'held'`
  expect(held).toEqual([])
})

it('a late release does not take the machine from its next owner', async () => {
  const [machine] = (await readyMachines()) as [string]
  const first = await holdFor(15_000, machine, 'first')
  await confirmHold(core, first)
  await moveMachine(core, { id: machine, move: 'release', actor: 'first', allocation: first })
  await lookAtDue(core)
  const second = await holdFor(15_000, machine, 'second')
  await confirmHold(core, second)

  // The slow half of a release: it had read that the machine belongs to the first allocation.
  const late = await moveMachine(core, { id: machine, move: 'release', actor: 'first', allocation: first })
  expect(late.outcome).toBe('late')
  expect(await findMachine(core.sql, machine)).toMatchObject({ state: 'allocated', allocation_id: second, owner: 'second' })

  await drop(core, 'second', { allocation: second, confirmed: 'release' })
  expect(await findMachine(core.sql, machine)).toMatchObject({ state: 'releasing' })
  await lookAtDue(core)
})

it('an engine that slept between its look and its order gives no order', async () => {
  const [machine] = (await readyMachines()) as [string]
  await core.sql`update machine_power set driver = 'ipmi', observed = 'on' where machine_id = ${machine}`
  await core.sql`update machines set attention_at = now() where id = ${machine}`
  const claim = async () =>
    (await claimDueMachines(core.sql, { limit: 1_000, claimMs: 1 })).find(({ id }) => id === machine)?.claim_token as number
  const seen = await claim()
  // Meanwhile the machine goes on: it wants its power off no longer.
  await moveMachine(core, { id: machine, move: 'rescue', actor: 'operator' })

  const order = { machine, action: 'off', boot: null, askedBy: 'engine', claimToken: seen } as const
  expect(await giveOrder(core.sql, order)).toBeUndefined()
  expect(await openOrders(core.sql, machine)).toEqual([])

  await core.sql`update machines set attention_at = now() where id = ${machine}`
  expect(await giveOrder(core.sql, { ...order, claimToken: await claim() })).toMatchObject({ state: 'queued' })
})

/** The core with a line to its database that breaks, once, at the statement that contains `text`, as soon as it is told to. */
function breakable(text: string): { core: Core; breakNext: () => void } {
  let isArmed = false
  const sql = new Proxy(core.sql, {
    apply(target, self, args: [readonly string[]]) {
      if (!isArmed || !Array.isArray(args[0]) || !args[0].join('').includes(text)) return Reflect.apply(target, self, args)
      isArmed = false
      return Promise.reject(Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' }))
    },
  })
  const breakNext = () => {
    isArmed = true
  }
  return { core: { ...core, sql }, breakNext }
}

it('a power order does not fail because the database was away for a moment', async () => {
  const [machine] = (await readyMachines()) as [string]
  await core.sql`update machine_power set driver = 'ipmi', observed = 'on' where machine_id = ${machine}`
  const line = breakable('claimed_until = now() +')
  let power: 'on' | 'off' = 'on'
  const session = {
    target: 'a switch',
    capabilities: {},
    // Between the look at the BMC and the act.
    power: async () => {
      if (power === 'on') line.breakNext()
      return power
    },
    off: async () => {
      power = 'off'
    },
  }
  const board = {
    use: (_: unknown, act: (session: unknown) => unknown) => act(session),
    session: async () => session,
  } as unknown as Switchboard
  const stopping = new AbortController()
  const order = await giveOrder(core.sql, { machine, action: 'off', boot: null, askedBy: 'engine' })
  const work = runPowerWorker(line.core, board, stopping.signal)
  try {
    await expect.poll(() => findOrder(core.sql, order.id).then(found => found?.state)).toBe('running')
    await sleep(300)
    expect(await findOrder(core.sql, order.id)).toMatchObject({ state: 'running', fault: null })
    // The claim runs out, here at once, and whoever takes the order over brings it to its end.
    power = 'off'
    await core.sql`update machine_power set claimed_until = now() where machine_id = ${machine}`
    await expect.poll(() => findOrder(core.sql, order.id).then(found => found?.state), { timeout: 5_000 }).toBe('done')
  } finally {
    stopping.abort()
    await work
  }
})
