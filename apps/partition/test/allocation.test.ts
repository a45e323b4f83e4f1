// Holds, confirms and keys on real PostgreSQL: what is promised to several at once is given to one.
import type { BusCallInput } from '@muster/shared/bus/protocol'
import type { Caller } from '@muster/shared/contract/call'
import { Refusal } from '@muster/shared/errors'
import { newAllocationId } from '@muster/shared/ids'
import { beforeAll, describe, expect, test } from 'vitest'
import { allocateHere } from '../src/backend/allocate.ts'
import { claimDueMachines } from '../src/db/machines.ts'
import { confirm, drop, hold, offerFor } from '../src/domain/allocation.ts'
import { lookAtDue } from '../src/domain/engine.ts'
import { endHolds } from '../src/domain/move.ts'
import { decide } from '../src/domain/steps.ts'
import { addMachine, movesOf, reread, runPartition, startCore, type TestCore, type TestPartition, until } from './harness.ts'

const alice: Caller = { name: 'alice', role: 'user' }

const wishFor = (count: number, wish: Partial<BusCallInput<'allocation.hold'>> = {}): BusCallInput<'allocation.hold'> => ({
  allocation: newAllocationId(),
  createdAt: new Date().toISOString(),
  strategy: 'best',
  count,
  note: '',
  constraints: {},
  wanted: count,
  machines: [],
  ...wish,
})

const codeOf = (error: unknown) => (error instanceof Refusal ? error.code : String(error))
const refused = (promise: Promise<unknown>) => promise.then(() => 'carried out', codeOf)

async function ready(core: TestCore, count: number, columns: object = {}): Promise<string[]> {
  const ids: string[] = []
  for (let i = 0; i < count; i++) ids.push((await addMachine(core, { state: 'ready', ...columns })).id)
  return ids
}

const allocationsOf = async (core: TestCore) => {
  const rows = await core.sql<{ id: string; state: string }[]>`select id, state from allocations`
  return Object.fromEntries(rows.map(({ id, state }) => [id, state]))
}

describe('holds', () => {
  test('twenty at once of one machine have one winner, and nothing of the others stays', async () => {
    const core = await startCore({ connections: 20 })
    const [machine] = (await ready(core, 1)) as [string]
    const wishes = Array.from({ length: 20 }, () => wishFor(1, { machines: [machine] }))
    const ends = await Promise.all(wishes.map((wish, i) => refused(hold(core, { name: `user-${i}`, role: 'user' }, wish))))
    expect(ends.filter(end => end === 'carried out')).toHaveLength(1)
    expect(ends.filter(end => end === 'no-match')).toHaveLength(19)
    const row = await reread(core, machine)
    const winner = ends.indexOf('carried out')
    expect(row).toMatchObject({ state: 'reserved', owner: `user-${winner}`, allocation_id: wishes[winner]?.allocation })
    expect(Object.keys(await allocationsOf(core))).toEqual([wishes[winner]?.allocation])
    expect(await movesOf(core.sql, machine)).toEqual(['ready hold reserved'])
  })

  test('of many machines by many at once give each exactly what was asked for, or nothing at all', async () => {
    const core = await startCore({ connections: 16 })
    await ready(core, 20)
    const wishes = Array.from({ length: 16 }, () => wishFor(3))
    const ends = await Promise.all(wishes.map(wish => refused(hold(core, alice, wish))))
    const rows = await core.sql<{ allocation_id: string | null; machines: number }[]>`
      select allocation_id, count(*)::int as machines from machines group by allocation_id`
    const held = rows.filter(row => row.allocation_id !== null)
    for (const row of held) expect(row.machines).toBe(3)
    expect(held).toHaveLength(ends.filter(end => end === 'carried out').length)
    // No more than fit, and hardly fewer: six times three of twenty.
    expect(held.length).toBeLessThanOrEqual(6)
    expect(held.length).toBeGreaterThanOrEqual(4)
  })

  test('repeated with the same id find their machines held already', async () => {
    const core = await startCore()
    await ready(core, 3)
    const wish = wishFor(2)
    const first = await hold(core, alice, wish)
    const second = await hold(core, alice, wish)
    expect(second.map(({ id }) => id).sort()).toEqual(first.map(({ id }) => id).sort())
    expect((await core.sql`select from machines where state = 'reserved'`).length).toBe(2)
  })

  test('pass over what memory wrongly takes for free, and mend the memory', async () => {
    const core = await startCore()
    const [gone, locked, free] = (await ready(core, 3)) as [string, string, string]
    // Another replica was faster; this one has not read the log yet.
    await core.sql`update machines set state = 'deployed', owner = 'bob', allocation_id = 'a-0123456789bcdfgh', version = version + 1 where id = ${gone}`
    await core.sql`update machines set locked = true, version = version + 1 where id = ${locked}`
    expect(core.memory.candidates.readyCount).toBe(3)
    const rows = await hold(core, alice, wishFor(1, { machines: [gone] }))
    expect(rows.map(({ id }) => id)).toEqual([free])
    expect(await refused(hold(core, alice, wishFor(1, { machines: [gone, locked] })))).toBe('no-match')
    expect(core.memory.candidates.readyCount).toBe(0)
  })

  test('never take a machine that is locked, owned or not ready', async () => {
    const core = await startCore()
    await ready(core, 1, { locked: true })
    await ready(core, 1, { allocation_id: 'a-0123456789bcdfgh' })
    for (const state of ['new', 'commissioning', 'allocated', 'broken', 'retired', 'releasing'] as const) await addMachine(core, { state })
    const all = (await core.sql<{ id: string }[]>`select id from machines`).map(({ id }) => id)
    expect(await refused(hold(core, alice, wishFor(1, { machines: all })))).toBe('no-match')
    expect(await allocationsOf(core)).toEqual({})
  })

  test('that run out free their machines, whole and as they were, and cannot be confirmed ever after', async () => {
    const core = await startCore({ rules: { deadlinesMs: { reserved: 40 } } })
    await ready(core, 2)
    const wish = wishFor(2)
    const held = await hold(core, alice, wish)
    await new Promise(resolve => setTimeout(resolve, 60))
    expect(await refused(confirm(core, wish.allocation))).toBe('nothing-allocated')
    await lookAtDue(core)
    for (const { id } of held) {
      expect(await reread(core, id)).toMatchObject({ state: 'ready', owner: null, allocation_id: null, fault: null, deadline_at: null })
      expect(await movesOf(core.sql, id)).toEqual(['ready hold reserved', expect.stringMatching(/^reserved (expire|drop) ready$/)])
    }
    expect(core.memory.candidates.readyCount).toBe(2)
    for (let again = 0; again < 3; again++) expect(await refused(confirm(core, wish.allocation))).toBe('nothing-allocated')
    // Nor does a hold of the same id come to life again.
    expect(await refused(hold(core, alice, wish))).toBe('no-match')
    expect(await allocationsOf(core)).toEqual({ [wish.allocation]: 'dropped' })
  })

  test('that run out just as the engine looks are ended as holds, never as one machine of a hold', async () => {
    const core = await startCore({ rules: { deadlinesMs: { reserved: 20 } } })
    const [machine] = (await ready(core, 1)) as [string]
    await hold(core, alice, wishFor(1))
    await new Promise(resolve => setTimeout(resolve, 40))
    // The engine's look at expired holds came just before; its look at due machines comes just after.
    const [due] = await claimDueMachines(core.sql, { limit: 10, claimMs: 1 })
    expect(due?.id).toBe(machine)
    const outcome = decide({
      machine: due as never,
      order: undefined,
      own: undefined,
      ownCount: 0,
      now: new Date(),
      agentSilenceMs: 1000,
      agentStartMs: 1000,
    })
    expect(outcome.kind).toBe('wait')
    await new Promise(resolve => setTimeout(resolve, 20))
    await lookAtDue(core)
    expect(await reread(core, machine)).toMatchObject({ state: 'ready', owner: null, allocation_id: null, fault: null })
  })

  test('dropped before their time are free at once; dropping again, or what was never held, is harmless', async () => {
    const core = await startCore()
    await ready(core, 2)
    const wish = wishFor(2)
    await hold(core, alice, wish)
    expect(await drop(core, 'alice', { allocation: wish.allocation, confirmed: 'keep' })).toBe(2)
    expect(await drop(core, 'alice', { allocation: wish.allocation, confirmed: 'release' })).toBe(0)
    expect(await drop(core, 'alice', { allocation: newAllocationId(), confirmed: 'release' })).toBe(0)
    expect(await refused(confirm(core, wish.allocation))).toBe('nothing-allocated')
    expect((await core.sql`select from machines where state = 'ready' and owner is null`).length).toBe(2)
  })

  test('that end leave a machine that came on meanwhile to the engine, which switches it off', async () => {
    const core = await startCore()
    await addMachine(core, { state: 'ready', power: 'off' }, { powerDriver: 'ipmi' })
    const wish = wishFor(1)
    const [held] = (await hold(core, alice, wish)) as [{ id: string }]
    // As the monitor writes it; news of the power come once, when it changes.
    await core.sql`update machine_power set observed = 'on', seen_at = now() where machine_id = ${held.id}`
    await core.sql`update machines set attention_at = now() where id = ${held.id}`
    await lookAtDue(core)
    await drop(core, 'alice', { allocation: wish.allocation, confirmed: 'keep' })
    await lookAtDue(core)
    expect(await core.sql`select action from power_orders where machine_id = ${held.id}`).toEqual([{ action: 'off' }])
  })

  test('that expire and are confirmed in the same moment end one way, for all their machines', async () => {
    const core = await startCore({ connections: 10, rules: { deadlinesMs: { reserved: 30 } } })
    await ready(core, 12)
    const wishes = Array.from({ length: 6 }, () => wishFor(2))
    await Promise.all(wishes.map(wish => hold(core, alice, wish)))
    const ends = Promise.all(
      wishes.map(async (wish, i) => {
        await new Promise(resolve => setTimeout(resolve, 10 + i * 6))
        return await refused(confirm(core, wish.allocation))
      }),
    )
    for (let look = 0; look < 12; look++) {
      await endHolds(core, 'expired')
      await new Promise(resolve => setTimeout(resolve, 5))
    }
    const how = await ends
    await lookAtDue(core)
    for (const [i, wish] of wishes.entries()) {
      const mine = await core.sql<{ state: string }[]>`select state from machines where allocation_id = ${wish.allocation}`
      if (how[i] === 'carried out') expect(mine.map(({ state }) => state)).toEqual(['allocated', 'allocated'])
      else expect(mine).toEqual([])
    }
    expect((await core.sql`select from machines where state = 'reserved'`).length).toBe(0)
  })
})

describe('confirms', () => {
  test('may be repeated, and answer the same', async () => {
    const core = await startCore()
    await ready(core, 2)
    const wish = wishFor(2, { note: 'for the build' })
    await hold(core, alice, wish)
    const answers = await Promise.all([1, 2, 3].map(() => confirm(core, wish.allocation)))
    answers.push(await confirm(core, wish.allocation))
    for (const answer of answers) {
      expect(answer).toMatchObject({ id: wish.allocation, owner: 'alice', state: 'confirmed', count: 2, note: 'for the build' })
      expect(answer.machines.map(({ id }) => id)).toEqual(answers[0]?.machines.map(({ id }) => id))
    }
    for (const { id } of answers[0]?.machines ?? [])
      expect(await movesOf(core.sql, id)).toEqual(['ready hold reserved', 'reserved confirm allocated'])
  })

  test('that come after the release are answered as it stands, and start nothing anew', async () => {
    const core = await startCore()
    const [machine] = (await ready(core, 1)) as [string]
    const wish = wishFor(1)
    await hold(core, alice, wish)
    await confirm(core, wish.allocation)
    expect(await drop(core, 'alice', { allocation: wish.allocation, confirmed: 'keep' })).toBe(0)
    expect(await drop(core, 'alice', { allocation: wish.allocation, confirmed: 'release' })).toBe(1)
    await lookAtDue(core)
    expect(await reread(core, machine)).toMatchObject({ state: 'ready', owner: null })
    expect(await confirm(core, wish.allocation)).toMatchObject({ state: 'released', machines: [] })
    expect(await reread(core, machine)).toMatchObject({ state: 'ready', owner: null })
  })
})

describe('offers', () => {
  test('come from memory, hold nothing, and say why there are too few', async () => {
    const core = await startCore()
    await ready(core, 2)
    const ask = (cpus: number, count: number) =>
      offerFor(
        core,
        { name: 'a', epoch: 3 },
        {
          v: 1,
          id: 'r',
          deadline: Date.now() + 1000,
          caller: { name: 'alice', role: 'user' },
          strategy: 'best',
          count,
          constraints: { cpus },
          purpose: 'look',
        },
      )
    expect(ask(8, 1)).toMatchObject({ partition: 'lon1', replica: 'a', epoch: 3, matching: 2, machines: [{ score: 13 }] })
    expect(ask(8, 3).why).toEqual({ considered: 2, removed: {}, nearest: [] })
    expect(ask(9, 1)).toMatchObject({ machines: [], matching: 0, why: { considered: 2, removed: { cpus: 2 } } })
    expect(await core.sql`select from machines where state <> 'ready'`).toHaveLength(0)
  })
})

describe('the partition’s own API', () => {
  let partition: TestPartition
  beforeAll(async () => {
    partition = await runPartition({}, end => () => end())
    return () => partition.stop()
  })
  const freed = async () => {
    await partition.sql`update machines set state = 'retired', owner = null, allocation_id = null, deadline_at = null, version = version + 1`
    for (const { id } of await partition.sql<{ id: string }[]>`select id from machines`) await reread(partition.core, id)
  }
  const addReady = async (count: number, columns: object = {}) => {
    const ids: string[] = []
    for (let i = 0; i < count; i++) ids.push((await addMachine(partition.core, { state: 'ready', attention_at: null, ...columns })).id)
    return ids
  }

  test('allocates the best fit, and explains a refusal', async () => {
    await freed()
    const [small] = await addReady(1)
    await addReady(1, { cpus: 64 })
    const got = await partition.as('alice').allocations.create({ constraints: { cpus: 4 } })
    expect(got).toMatchObject({ owner: 'alice', state: 'confirmed', machines: [{ id: small, state: 'allocated', owner: 'alice' }] })
    expect(got.coverage).toMatchObject({ asked: 1, answered: 1, partitions: [{ name: 'lon1', outcome: 'answered' }] })
    const refusal = await partition
      .as('alice')
      .allocations.create({ count: 2 })
      .catch(error => error)
    expect(refusal).toMatchObject({ code: 'no-match', facts: { explanation: { considered: 1, matching: 1 } } })
    expect(await partition.sql`select from machines where state = 'reserved'`).toHaveLength(0)
  })

  test('a dry run takes nothing and promises nothing', async () => {
    await freed()
    const [machine] = await addReady(1)
    const before = await partition.sql`select * from machines where id = ${machine as string}`
    const told = await partition.as('alice').allocations.create({ dryRun: true })
    expect(told).toMatchObject({ id: null, dryRun: true, machines: [{ id: machine, state: 'ready' }] })
    expect(await partition.sql`select * from machines where id = ${machine as string}`).toEqual(before)
  })

  test('a key brings the first answer again, also after the machines are given back', async () => {
    await freed()
    await addReady(3)
    const ask = (note = 'a') => partition.as('alice').allocations.create({ note }, { idempotencyKey: 'order-1' })
    const first = await ask()
    const second = await ask()
    expect(second.id).toBe(first.id)
    expect(second.machines.map(({ id }) => id)).toEqual(first.machines.map(({ id }) => id))
    await expect(ask('b')).rejects.toMatchObject({ code: 'key-reused' })
    // Somebody else's key of the same name is another key.
    const others = await partition.as('bob').allocations.create({ note: 'a' }, { idempotencyKey: 'order-1' })
    expect(others.id).not.toBe(first.id)
    await partition.as('alice').allocations.release({ id: first.id as string })
    await until(async () => (await partition.as('alice').allocations.get({ id: first.id as string })).state === 'released')
    expect(await ask()).toMatchObject({ id: first.id, state: 'released', machines: [] })
  })

  test('the same key for two requests at once allocates for one of them, and refuses the other', async () => {
    for (let round = 0; round < 5; round++) {
      await freed()
      await addReady(4)
      const ask = (note: string) => partition.as('alice').allocations.create({ note }, { idempotencyKey: `two-${round}` })
      const ends = await Promise.all(
        ['a', 'b', 'c'].map(note =>
          ask(note).then(
            got => got.note,
            error => error.code,
          ),
        ),
      )
      expect(ends.filter(end => end === 'key-reused')).toHaveLength(2)
      for (const [index, end] of ends.entries()) if (end !== 'key-reused') expect(end).toBe(['a', 'b', 'c'][index])
      expect(await partition.sql`select from machines where owner = 'alice'`).toHaveLength(1)
    }
  })

  test('the same key many times at once makes one allocation', async () => {
    await freed()
    await addReady(10)
    const answers = await Promise.all(
      Array.from({ length: 8 }, () => partition.as('alice').allocations.create({ count: 2 }, { idempotencyKey: 'at-once' })),
    )
    expect(new Set(answers.map(({ id }) => id)).size).toBe(1)
    for (const { machines } of answers) expect(machines).toHaveLength(2)
    expect(await partition.sql`select from machines where state = 'allocated'`).toHaveLength(2)
    expect(await partition.sql`select from machines where state = 'reserved'`).toHaveLength(0)
  })

  test('the same key twice at once, where there is one machine only: a retry brings both the same', async () => {
    for (let round = 0; round < 5; round++) {
      await freed()
      const [machine] = await addReady(1)
      const ask = () =>
        partition
          .as('alice')
          .allocations.create({ wait: '2s' }, { idempotencyKey: `one-${round}` })
          .then(({ machines }) => machines[0]?.id)
      expect(await Promise.all([ask(), ask(), ask()])).toEqual([machine, machine, machine])
    }
  })

  test('a key whose hold was never confirmed starts anew', async () => {
    await freed()
    await addReady(2)
    const first = await partition.as('alice').allocations.create({}, { idempotencyKey: 'lost' })
    // As if the process had died between the record and the confirm, and the hold had run out.
    await partition.sql`update allocations set state = 'dropped' where id = ${first.id}`
    await partition.sql`update machines set state = 'ready', owner = null, allocation_id = null, version = version + 1 where allocation_id = ${first.id}`
    const second = await partition.as('alice').allocations.create({}, { idempotencyKey: 'lost' })
    expect(second).toMatchObject({ state: 'confirmed', machines: [{ state: 'allocated' }] })
    expect(second.id).not.toBe(first.id)
    expect((await partition.as('alice').allocations.create({}, { idempotencyKey: 'lost' })).id).toBe(second.id)
  })

  test('a request may wait for a machine that becomes ready', async () => {
    await freed()
    const waiting = partition.as('alice').allocations.create({ wait: '10s' })
    await new Promise(resolve => setTimeout(resolve, 100))
    const [machine] = await addReady(1)
    expect((await waiting).machines.map(({ id }) => id)).toEqual([machine])
    await expect(partition.as('alice').allocations.create({ wait: '600ms' })).rejects.toMatchObject({ code: 'no-match' })
  })

  test('a request whose client has gone takes nothing, and keeps nothing', async () => {
    const core = await startCore()
    const gone = new AbortController()
    const alice = { name: 'alice', role: 'user' } as const
    const ask = (signal: AbortSignal) =>
      allocateHere(
        core,
        { name: 'a', epoch: 1 },
        { strategy: 'best', count: 1, constraints: {}, dryRun: false, note: '', wait: '10s' },
        { caller: alice, again: () => alice, from: '192.0.2.1', requestId: 'r', deadline: Date.now() + 20_000, signal },
      )
    const waiting = refused(ask(gone.signal))
    await new Promise(resolve => setTimeout(resolve, 50))
    const [machine] = (await ready(core, 1)) as [string]
    gone.abort()
    expect(await waiting).toBe('deadline-passed')
    expect(await reread(core, machine)).toMatchObject({ state: 'ready', owner: null })
    // One that goes while its machine is being held: nobody will ever ask for this allocation again.
    const leaving = new AbortController()
    const held = refused(ask(leaving.signal))
    leaving.abort()
    expect(await held).toBe('deadline-passed')
    expect((await reread(core, machine)).state).not.toBe('allocated')
  })

  test('a release stops before the first machine where one of them cannot go', async () => {
    await freed()
    await addReady(3)
    const got = await partition.as('alice').allocations.create({ count: 3 })
    const states = () =>
      partition.sql<{ state: string }[]>`select state from machines where allocation_id = ${got.id} order by id`.then(rows =>
        rows.map(({ state }) => state),
      )
    const last = got.machines[2]?.id as string
    await partition.sql`update machines set state = 'deploying', version = version + 1 where id = ${last}`
    await expect(partition.as('alice').allocations.release({ id: got.id as string })).rejects.toMatchObject({ code: 'wrong-state' })
    expect(await states()).toEqual(got.machines.map(({ id }) => (id === last ? 'deploying' : 'allocated')))
    await partition.sql`update machines set state = 'allocated', locked = true, version = version + 1 where id = ${last}`
    await expect(partition.as('alice').allocations.release({ id: got.id as string })).rejects.toMatchObject({ code: 'locked' })
    expect(await states()).toEqual(['allocated', 'allocated', 'allocated'])
    await partition.sql`update machines set locked = false, version = version + 1 where id = ${last}`
    await expect(partition.as('bob').allocations.release({ id: got.id as string })).rejects.toMatchObject({ code: 'forbidden' })
    await partition.as('alice').allocations.release({ id: got.id as string })
    await until(async () => (await states()).length === 0)
    expect(await partition.as('alice').allocations.get({ id: got.id as string })).toMatchObject({
      state: 'released',
      count: 3,
      machines: [],
    })
  })
})
