// The event log: dense numbers whoever counts, each machine's own order, and readers who miss nothing.
import { setTimeout as sleep } from 'node:timers/promises'
import type { Event } from '@muster/shared/contract/events'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { connect, type Sql } from '../src/db/connect.ts'
import { lastSequenceNumber, listEvents, numberEvents } from '../src/db/events.ts'
import { changeMachine } from '../src/db/machines.ts'
import { giveOrder } from '../src/db/power.ts'
import { LogFollower } from '../src/domain/follower.ts'
import { addMachine, allEvents, movesOf, partitionDatabase, reread, runPartition, startCore, type TestPartition, until } from './harness.ts'

const hasUnnumberedEvents = async (sql: Sql) => (await sql`select from events where seq is null limit 1`).length > 0

const change = async (core: { sql: Sql }, id: string, version: number, texts: string[]) =>
  changeMachine(core.sql, { id, version, patch: {}, actor: 'x', events: texts.map(text => ({ kind: 'noise', data: { text } })) })

describe('two sequencers and many writers at once', () => {
  test('give dense numbers, each once, each machine in its own order; a follower sees everything', { timeout: 60_000 }, async () => {
    const core = await startCore({ connections: 12 })
    const machines = await Promise.all(Array.from({ length: 6 }, () => addMachine(core, {})))
    const writing = machines.map(async ({ id, version }, who) => {
      for (let n = 0; n < 30; n++) {
        // Slow transactions too: their events get ids early and are seen late.
        if (who === 0 && n % 5 === 0)
          await core.sql.begin(async sql => {
            await sql`insert into events (kind, machine_id, actor, data) values ('noise', ${id}, 'x', ${sql.json({ text: `${n}` })})`
            await sleep(15)
          })
        else {
          const row = await reread(core, id)
          await change(core, id, Math.max(row.version, version), [`${n}`])
        }
      }
    })
    let isWriting = true
    const sequencer = async () => {
      while (isWriting || (await hasUnnumberedEvents(core.sql))) {
        await numberEvents(core.sql, 7)
        await sleep(1)
      }
    }
    const followed: number[] = []
    const follow = async () => {
      let position = 0
      while (isWriting || (await hasUnnumberedEvents(core.sql)) || position < (await lastSequenceNumber(core.sql))) {
        const rows = await listEvents(core.sql, { after: position, limit: 11 })
        followed.push(...rows.map(({ seq }) => seq))
        position = rows.at(-1)?.seq ?? position
        await sleep(1)
      }
    }
    const counting = Promise.all([sequencer(), sequencer(), follow()])
    await Promise.all(writing)
    isWriting = false
    await counting

    const rows = await core.sql<{ seq: number; id: number; machine_id: string; kind: string; data: { text: string } }[]>`
      select seq, id, machine_id, kind, data from events order by seq`
    expect(rows).toHaveLength(6 + 6 * 30)
    expect(rows.map(({ seq }) => seq)).toEqual(rows.map((_, index) => index + 1))
    expect(followed).toEqual(rows.map(({ seq }) => seq))
    expect(await lastSequenceNumber(core.sql)).toBe(rows.length)
    for (const { id } of machines) {
      const own = rows.filter(row => row.machine_id === id && row.kind === 'noise').map(({ data }) => Number(data.text))
      expect(own).toEqual(Array.from({ length: 30 }, (_, n) => n))
    }
  })

  test('have nothing to number twice, and stop where nothing is left', async () => {
    const core = await startCore()
    const machine = await addMachine(core, {})
    await change(core, machine.id, machine.version, ['a', 'b', 'c'])
    expect(await numberEvents(core.sql, 2)).toMatchObject({ lastSeq: 2 })
    expect(await numberEvents(core.sql, 2)).toMatchObject({ lastSeq: 4 })
    expect(await numberEvents(core.sql, 2)).toMatchObject({ lastSeq: 4 })
    expect(await hasUnnumberedEvents(core.sql)).toBe(false)
    expect((await listEvents(core.sql, { after: 0, limit: 10 })).map(({ data }) => data.text)).toEqual([undefined, 'a', 'b', 'c'])
  })

  test('a change that is rolled back leaves neither event nor gap', async () => {
    const core = await startCore()
    const machine = await addMachine(core, {})
    await core.sql
      .begin(async sql => {
        await change({ sql: sql as never }, machine.id, machine.version, ['lost'])
        throw new Error('no')
      })
      .catch(() => {})
    await change(core, machine.id, machine.version, ['kept'])
    // A stale version changes nothing and says nothing.
    expect(await change(core, machine.id, machine.version, ['stale'])).toBeUndefined()
    await numberEvents(core.sql, 100)
    expect((await listEvents(core.sql, { after: 0, limit: 10 })).map(({ seq, data }) => [seq, data.text])).toEqual([
      [1, undefined],
      [2, 'kept'],
    ])
  })
})

test('a replica’s memory follows what another one does', async () => {
  const url = await partitionDatabase()
  const [here, there] = [await startCore({ url }), await startCore({ url })]
  const old = await addMachine(here, { state: 'ready' })
  const follower = new LogFollower(there, () => {})
  await follower.start()
  expect(there.memory.candidates.readyCount).toBe(1)
  const stopping = new AbortController()
  const running = follower.run(stopping.signal)

  const fresh = await addMachine(here, { state: 'ready' })
  await until(async () => there.memory.candidates.readyCount === 2)
  await here.sql`update machines set locked = true, version = version + 1 where id = ${fresh.id}`
  await here.sql`insert into events (kind, machine_id, actor, data) values ('machine.locked', ${fresh.id}, 'x', '{}')`
  await until(async () => there.memory.candidates.readyCount === 1)
  await here.sql`delete from machines where id = ${old.id}`
  await here.sql`insert into events (kind, machine_id, actor, data) values ('machine.deleted', ${old.id}, 'x', '{}')`
  await until(async () => there.memory.candidates.size === 1)
  expect(there.memory.bootFacts(old.interfaces[0]?.mac ?? '')).toBeUndefined()
  expect(there.memory.bootFacts(fresh.interfaces[0]?.mac ?? '')).toMatchObject({ id: fresh.id })
  stopping.abort()
  await running
})

describe('readers of the log', () => {
  let partition: TestPartition
  let second: TestPartition
  let sql: Sql
  const ends: (() => Promise<void>)[] = []
  beforeAll(async () => {
    const ending = (end: () => Promise<void>) => void ends.push(end)
    const databaseUrl = await partitionDatabase(ending)
    // Two replicas on one database: both number, both read.
    partition = await runPartition({ databaseUrl, replica: 'a' }, ending)
    second = await runPartition({ databaseUrl, replica: 'b' }, ending)
    sql = connect(databaseUrl, { name: 'test', connections: 2 })
    ending(() => sql.end())
  })
  afterAll(async () => {
    for (const end of ends.reverse()) await end()
  })

  test('page through all of it, from either replica, and find by machine and kind', async () => {
    const machines = await Promise.all(Array.from({ length: 5 }, () => addMachine(partition.core, {})))
    for (const { id } of machines) await partition.as('olga').machines.lock({ id, reason: 'audit' })
    await until(async () => !(await hasUnnumberedEvents(sql)))
    const all = await allEvents(partition)
    expect(all.map(({ seq }) => seq)).toEqual(all.map((_, index) => index + 1))
    expect(await allEvents(second)).toEqual(all)

    const paged: Event[] = []
    for (let after: string | undefined; ; ) {
      const page = await second.as('rita').events.list({ limit: 3, ...(after !== undefined && { after }) })
      paged.push(...page.items)
      if (page.items.length === 0) break
      after = page.nextCursor
    }
    expect(paged).toEqual(all)
    const machine = machines[0] as { id: string }
    const own = await partition.as('rita').events.list({ machine: machine.id })
    expect(own.items.map(({ kind, actor }) => `${kind} by ${actor}`)).toEqual(['machine.created by test', 'machine.locked by olga'])
    const locks = await partition.as('rita').events.list({ kind: 'machine.locked', limit: 2 })
    expect(locks.items).toHaveLength(2)
    // What the filter hides is not read again.
    const rest = await partition.as('rita').events.list({ kind: 'machine.locked', after: locks.nextCursor })
    expect(rest.items).toHaveLength(3)
    expect(rest.nextCursor).toBe(`lon1:${all.length}`)
  })

  test('start at the end with `end`, and then see only what is new', async () => {
    await until(async () => !(await hasUnnumberedEvents(sql)))
    const end = await partition.as('rita').events.list({ after: 'end' })
    expect(end.items).toEqual([])
    const machine = await addMachine(partition.core, {})
    const fresh = await until(async () => {
      const page = await partition.as('rita').events.list({ after: end.nextCursor })
      return page.items.length > 0 && page.items
    })
    expect(fresh).toMatchObject([{ kind: 'machine.created', machine: machine.id }])
    await expect(partition.as('rita').events.list({ after: 'yesterday' })).rejects.toMatchObject({ code: 'invalid-input' })
  })

  test('stream what the other replica does, and go on where they were cut off', { timeout: 20_000 }, async () => {
    const stopping = new AbortController()
    const seen: string[] = []
    let last = ''
    await until(async () => !(await hasUnnumberedEvents(sql)))
    const end = await second.as('rita').events.list({ after: 'end' })
    const reading = (async () => {
      for await (const { id, data } of second.as('rita').events.stream({ after: end.nextCursor }, { signal: stopping.signal })) {
        seen.push(data.machine ?? '')
        last = id
        if (seen.length === 3) return
      }
    })()
    const ids: string[] = []
    for (let n = 0; n < 3; n++) ids.push((await addMachine(partition.core, {})).id)
    await reading
    expect(seen).toEqual(ids)
    const missed = [(await addMachine(partition.core, {})).id, (await addMachine(partition.core, {})).id]
    for await (const { data } of partition.as('rita').events.stream({}, { signal: stopping.signal, lastEventId: last })) {
      expect(data.machine).toBe(missed.shift())
      if (missed.length === 0) break
    }
    stopping.abort()
  })

  test('find one event per move, order and change of power', async () => {
    const machine = await addMachine(partition.core, { state: 'ready' }, { powerDriver: 'manual' })
    await partition.as('olga').machines.markBroken({ id: machine.id, reason: 'smoke' })
    await partition.as('olga').machines.markBroken({ id: machine.id, reason: 'smoke' })
    await giveOrder(partition.sql, { machine: machine.id, action: 'off', boot: null, askedBy: 'olga' })
    expect(await movesOf(partition.sql, machine.id)).toEqual(['ready markBroken broken'])
    await partition.as('olga').machines.confirmPower({ id: machine.id, power: 'off' })
    const items = await until(async () => {
      const page = await partition.as('rita').events.list({ machine: machine.id })
      return page.items.some(({ kind }) => kind === 'power.order-ended') && page.items
    })
    // One statement wrote the last two: their order is its own.
    expect(items.slice(0, 3).map(({ kind }) => kind)).toEqual(['machine.created', 'machine.moved', 'power.ordered'])
    expect(
      items
        .slice(3)
        .map(({ kind }) => kind)
        .sort(),
    ).toEqual(['power.changed', 'power.order-ended'])
    expect(items[1]).toMatchObject({ actor: 'olga', data: { move: 'markBroken', from: 'ready', to: 'broken', reason: 'smoke' } })
  })
})
