// What is kept for a time only: what goes, what must stay, and what those are told who come too late.
import { createHash } from 'node:crypto'
import type { AuditEntry } from '@muster/shared/audit'
import { ChainCheck, cutOf } from '@muster/shared/audit'
import { goneOf } from '@muster/shared/contract/log'
import type { Refusal } from '@muster/shared/errors'
import { isSignature } from '@muster/shared/signature'
import { expect, test } from 'vitest'
import { listEvents, numberEvents } from '../src/db/events.ts'
import { giveOrder } from '../src/db/power.ts'
import * as db from '../src/db/retention.ts'
import { type Keep, Retention } from '../src/domain/retention.ts'
import { addMachine, partitionDatabase, runPartition, startCore, type TestCore } from './harness.ts'

const day = 24 * 3_600_000
const forEver: Keep = { eventsMs: undefined, ordersMs: undefined, allocationsMs: undefined, auditMs: undefined }

function retentionOf(core: TestCore, keep: Partial<Keep>, limits = {}) {
  const removed: Record<string, number> = {}
  const onRemoved = (what: string, count: number) => {
    removed[what] = (removed[what] ?? 0) + count
  }
  const retention = new Retention(core, { keep: { ...forEver, ...keep }, audit: core.audit, onRemoved, limits: { pauseMs: 1, ...limits } })
  return { retention, removed, look: () => retention.look(new AbortController().signal) }
}

/** So many events that are `days` old, numbered. */
async function addEvents(core: Pick<TestCore, 'sql'>, count: number, days: number): Promise<void> {
  await core.sql`
    insert into events (at, kind, machine_id, actor, data)
    select now() - ${days} * interval '1 day', 'noise', null, 'x', '{}' from generate_series(1, ${count})`
  while ((await core.sql`select from events where seq is null limit 1`).length > 0) await numberEvents(core.sql, 500)
}

const seqs = async (core: Pick<TestCore, 'sql'>) => (await listEvents(core.sql, { after: 0, limit: 1000 })).map(({ seq }) => seq)

test('old events go in small batches, from the oldest on; what is left has no gap', async () => {
  const core = await startCore()
  await addEvents(core, 25, 40)
  await addEvents(core, 5, 1)
  // A late one among young ones stays: what is left begins with one number.
  await core.sql`update events set at = now() - interval '40 days' where seq = 28`
  const { look, removed } = retentionOf(core, { eventsMs: 30 * day }, { batch: 10, rows: 20 })
  await look()
  expect(removed).toEqual({ events: 20 })
  await look()
  expect(removed).toEqual({ events: 25 })
  expect(await seqs(core)).toEqual([26, 27, 28, 29, 30])
  expect(await db.removedEvents(core.sql)).toBe(25)
  await look()
  expect(removed).toEqual({ events: 25 })
})

test('two replicas that remove at once remove each once; one has the turn', async () => {
  const url = await partitionDatabase()
  const cores = await Promise.all([startCore({ url }), startCore({ url })])
  await addEvents(cores[0], 200, 40)
  const rounds = cores.map(core => retentionOf(core, { eventsMs: 30 * day }, { batch: 7 }))
  await Promise.all(rounds.map(({ look }) => look()))
  for (const { look } of rounds) await look()
  expect(rounds.reduce((sum, { removed }) => sum + (removed.events ?? 0), 0)).toBe(200)
  expect(await seqs(cores[0])).toEqual([])
  expect(await db.removedEvents(cores[0].sql)).toBe(200)
  // The numbers go on where they were.
  await addEvents(cores[0], 1, 0)
  expect(await seqs(cores[0])).toEqual([201])
})

test('what a webhook was not told of, or gave up, stays, and the status says for whom', async () => {
  const core = await startCore()
  await addEvents(core, 30, 40)
  await core.sql`insert into webhook_cursors (webhook, seq) values ('pager', 12), ('audit', 30)`
  await core.sql`
    insert into webhook_dead_letters (webhook, batch, after_seq, to_seq, kinds, tries, reason, first_tried_at)
    values ('audit', 'msg_1', 4, 9, '{*}', 3, 'HTTP 500', now())`
  const { look, retention } = retentionOf(core, { eventsMs: 30 * day })
  await look()
  expect((await seqs(core))[0]).toBe(5)
  expect(retention.problem).toMatch(/for webhooks that were not told of them: audit$/)
  await core.sql`delete from webhook_dead_letters`
  await look()
  expect((await seqs(core))[0]).toBe(13)
  expect(retention.problem).toMatch(/: pager$/)
  await core.sql`update webhook_cursors set seq = 30`
  await look()
  expect(await seqs(core)).toEqual([])
  expect(retention.problem).toBeUndefined()
})

test('whoever would go on behind what was removed is told so, and where to start', async () => {
  const partition = await runPartition()
  const { core } = partition
  const before = (await partition.as('rita').events.list({ limit: 1000 })).items.length
  await addEvents(core, 20, 40)
  const end = before + 20
  await core.sql`update events set at = now() - interval '40 days'`
  while ((await db.removeOldEvents(core.sql, { keepMs: 30 * day, limit: 9 })) > 0);
  await addEvents(core, 3, 0)
  const rita = partition.as('rita')
  for (const after of ['lon1:3', 'lon1:0', '3', `lon1:${end - 1}`]) {
    const refusal = await rita.events.list({ after }).catch((error: Refusal) => error)
    expect(refusal).toMatchObject({ code: 'gone', facts: { hint: expect.stringContaining(`lon1:${end}`) } })
    expect(goneOf(refusal as Refusal, 'lon1')).toMatchObject({ partition: 'lon1', removedTo: end })
  }
  // At the door of the stream too, before anything else is told.
  const response = await fetch(`${partition.url}/api/v1/events/stream`, {
    headers: { authorization: `Bearer ${partition.tokens.rita}`, 'last-event-id': 'lon1:3' },
  })
  expect(response.status).toBe(410)
  expect(await response.json()).toMatchObject({ code: 'gone', startAt: `lon1:${end}` })
  for (const after of [undefined, '0', `lon1:${end}`])
    expect((await rita.events.list({ ...(after !== undefined && { after }) })).items.map(({ seq }) => seq)).toEqual([
      end + 1,
      end + 2,
      end + 3,
    ])
})

test('power orders go after their time, but never the last of a machine, nor what the engine still looks at', async () => {
  const core = await startCore()
  const { id } = await addMachine(core, {})
  const give = async (askedBy: string) => {
    const { id: order } = await giveOrder(core.sql, { machine: id, action: 'on', boot: null, askedBy })
    await core.sql`
      update power_orders set state = 'done', asked_at = now() - interval '40 days', ended_at = now() - interval '40 days' where id = ${order}`
    return order
  }
  await core.sql`update machines set state_since = now() - interval '50 days' where id = ${id}`
  await give('olga')
  const engine = await give('engine')
  await give('olga')
  const last = await give('olga')
  const { look, removed } = retentionOf(core, { ordersMs: 30 * day })
  await look()
  expect((await core.sql<{ id: number }[]>`select id from power_orders order by id`).map(row => row.id)).toEqual([engine, last])
  await core.sql`update machines set state_since = now() where id = ${id}`
  await look()
  expect((await core.sql<{ id: number }[]>`select id from power_orders`).map(row => row.id)).toEqual([last])
  expect(removed).toEqual({ orders: 3 })
})

test('allocations go so long after their release; those in use, and young ones, stay', async () => {
  const core = await startCore()
  const add = (id: string, state: string, created: number) => core.sql`
    insert into allocations (id, owner, state, strategy, count, note, constraints, machine_ids, created_at)
    values (${id}, 'alice', ${state}, 'best', 1, '', '{}', '{}', now() - ${created} * interval '1 day')`
  await add('used', 'confirmed', 400)
  await add('released', 'released', 400)
  await add('dropped', 'dropped', 2)
  await core.sql`insert into idempotency_keys (key, allocation_id, record, created_at) values ('old', 'x', '{}', now() - interval '8 days'), ('new', 'y', '{}', now())`
  const { look, removed } = retentionOf(core, { allocationsMs: 90 * day })
  await look()
  // It was released just now, as far as anybody knows.
  expect(removed).toEqual({ holds: 1, keys: 1 })
  await core.sql`update allocations set ended_at = ended_at - interval '91 days'`
  await look()
  expect(removed).toEqual({ holds: 1, keys: 1, allocations: 1 })
  expect((await core.sql<{ id: string }[]>`select id from allocations`).map(row => row.id)).toEqual(['used'])
})

const checks = {
  sha256: (text: string) => createHash('sha256').update(text).digest('hex'),
  isSigned: (text: string, seal: { signature: string; key: string }) => isSignature('audit log', text, seal),
}

async function reportOf(entries: readonly AuditEntry[]) {
  const check = new ChainCheck(checks)
  for (const entry of entries) await check.add(entry)
  return check.report()
}

const wholeLog = (core: Pick<TestCore, 'audit'>) =>
  core.audit.list({ after: 0, limit: 1000, actor: undefined, call: undefined, target: undefined }).then(({ items }) => items)

async function addEntries(core: TestCore, count: number, days: number): Promise<void> {
  const [row] = await core.sql<{ seq: number }[]>`select coalesce(max(seq), 0) as seq from audit`
  await core.sql`
    insert into audit (at, actor, role, origin, call, target, fields, request_id, server, ended_at, outcome)
    select t, 'alice', 'user', '192.0.2.1', 'machines.lock', 'lon1-4y3h7n', '{}', 'r' || n, 'test', t, 'ok'
    from generate_series(1, ${count}) as n, date_trunc('milliseconds', now() - ${days} * interval '1 day' + n * interval '1 second') as t`
  while ((await core.audit.chain()) === 'more');
  expect((await core.sql<{ seq: number }[]>`select max(seq) as seq from audit`)[0]?.seq).toBe((row?.seq ?? 0) + count)
}

test('the audit log is kept for ever, unless somebody says how long; then it is cut, and says so itself, signed', async () => {
  const core = await startCore()
  await addEntries(core, 30, 800)
  await addEntries(core, 5, 1)
  await retentionOf(core, {}).look()
  expect(await wholeLog(core)).toHaveLength(35)

  const { look, removed } = retentionOf(core, { auditMs: 730 * day }, { batch: 10, rows: 20 })
  const before = await wholeLog(core)
  await look()
  expect(removed).toEqual({ audit: 20 })
  // Half removed, and whole for every reader.
  const entries = await wholeLog(core)
  expect(entries.map(({ seq }) => seq)).toEqual([31, 32, 33, 34, 35, 36])
  const cut = entries.at(-1) as AuditEntry
  expect(cut).toMatchObject({ actor: 'retention', call: 'audit.cut', outcome: 'ok', seal: { signature: expect.any(String) } })
  expect(cutOf(cut)).toEqual({ seq: 30, hash: before[29]?.hash })
  expect(await reportOf(entries)).toMatchObject({ problem: undefined, cut: { seq: 30 }, seq: 36 })
  // Whoever read on while it was cut sees a gap that is accounted for.
  expect((await reportOf([...before.slice(0, 10), ...entries])).problem).toBeUndefined()
  await look()
  expect(removed).toEqual({ audit: 30 })
  expect(await wholeLog(core)).toEqual(entries)

  // Another cut, of the first one's entry too, a day later at the earliest.
  await addEntries(core, 4, 0)
  await core.sql`update audit set ended_at = ended_at - interval '800 days' where seq < 36`
  await look()
  expect(removed).toEqual({ audit: 30 })
  await core.audit.removeOld(core.sql, { keepMs: 730 * day, limit: 100, apartMs: 0 })
  expect((await wholeLog(core)).map(({ seq }) => seq)).toEqual([36, 37, 38, 39, 40, 41])
  expect((await reportOf(await wholeLog(core))).problem).toBeUndefined()
})

test('a log that was cut by somebody else is found out', async () => {
  const core = await startCore()
  await addEntries(core, 10, 800)
  await addEntries(core, 5, 1)
  await retentionOf(core, { auditMs: 730 * day }).look()
  const entries = await wholeLog(core)
  expect((await reportOf(entries)).problem).toBeUndefined()
  // More was taken away than the cut speaks of.
  expect((await reportOf(entries.slice(1))).problem).toBe('entries 1 to 11 are missing')
  // What speaks of it was taken away.
  const without = entries.filter(({ call }) => call !== 'audit.cut')
  expect((await reportOf(without)).problem).toBe('entries 1 to 10 are missing')
  // The first that is left says something else.
  const [first, ...rest] = entries as [AuditEntry, ...AuditEntry[]]
  expect((await reportOf([{ ...first, actor: 'mallory' }, ...rest])).problem).toBe('entries 1 to 10 are missing')
  // A cut that nobody signed.
  const last = rest.at(-1) as AuditEntry
  const forged = { ...last, target: last.target.replace('up to 10', 'up to 11') }
  expect((await reportOf([...rest.slice(0, -1), forged])).problem).toMatch(/missing|not what was written/)
})
