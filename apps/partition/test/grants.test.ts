// Grants by pool: whoever is limited to pools sees, gets and changes machines of these pools and its own, and cannot tell that there are others.
import type { Caller } from '@muster/shared/contract/call'
import type { CallName } from '@muster/shared/contract/contract'
import { Refusal } from '@muster/shared/errors'
import { randomText } from '@muster/shared/ids'
import { networkDocument } from '@muster/shared/network'
import { beforeAll, describe, expect, test } from 'vitest'
import { handlers } from '../src/backend/handlers.ts'
import { LocalBackend } from '../src/backend/local.ts'
import { numberEvents } from '../src/db/events.ts'
import type { Core } from '../src/domain/core.ts'
import { addMachine, operator, startCore } from './harness.ts'

const lab: Caller = { name: 'lena', role: 'operator', pools: ['lab'] }
const labUser: Caller = { name: 'lou', role: 'user', pools: ['lab'] }
const nowhere: Caller = { name: 'nora', role: 'user', pools: [] }
const all: Caller = operator

let core: Core
let backend: LocalBackend

beforeAll(async () => {
  core = await startCore({}, () => undefined)
  const self = {
    replica: { name: 'a', epoch: 1 },
    version: '0',
    url: '',
    problems: () => [],
    settingsProblems: () => [],
    weaknesses: [],
    fetching: () => [],
    dhcp: () => [],
    whyAway: () => undefined,
    webhooks: { problems: new Map(), ring: () => undefined },
  }
  backend = new LocalBackend({ partition: 'lon1', handlers: handlers(core, self), readiness: () => [] })
})

const ask = (caller: Caller) => async (name: CallName, input: object) =>
  backend.call(name, input as never, {
    caller,
    again: () => caller,
    from: '192.0.2.1',
    requestId: randomText(8),
    deadline: Date.now() + 10_000,
    signal: AbortSignal.timeout(10_000),
  }) as Promise<unknown>

const codeOf = (asked: Promise<unknown>) =>
  asked.then(
    () => 'done',
    error => (error instanceof Refusal ? error.code : String(error)),
  )
const list = { sort: 'id', limit: 100 }
const wish = { strategy: 'best', count: 1, constraints: {}, dryRun: false, note: '' } as const
const ready = (pool: string) => addMachine(core, { pool, state: 'ready' })

describe('machines', () => {
  test('of other pools are not in lists, and not found by id', async () => {
    const [mine, other] = [await ready('lab'), await ready('prod')]
    const own = await addMachine(core, { pool: 'prod', state: 'allocated', owner: 'lena', allocation_id: 'a-000000000001' })
    const seen = async (caller: Caller) =>
      ((await ask(caller)('machines.list', list)) as { items: { id: string }[] }).items.map(({ id }) => id)
    expect(await seen(all)).toEqual(expect.arrayContaining([mine.id, other.id, own.id]))
    const limited = await seen(lab)
    expect(limited).toEqual(expect.arrayContaining([mine.id, own.id]))
    expect(limited).not.toContain(other.id)

    const calls: CallName[] = [
      'machines.get',
      'machines.explain',
      'machines.network',
      'machines.erasures',
      'machines.commission',
      'machines.retire',
      'machines.delete',
    ]
    for (const name of calls) {
      const outcome = await codeOf(ask(lab)(name, { id: other.id, limit: 10 }))
      expect(`${name} ${outcome}`).toBe(`${name} not-found`)
    }
    expect(await codeOf(ask(lab)('machines.get', { id: mine.id }))).toBe('done')
    // The same words as for a machine that is nowhere.
    const words = (id: string) => ask(lab)('machines.get', { id }).catch((error: Error) => error.message.replace(id, 'ID'))
    expect(await words(other.id)).toBe(await words('lon1-000000'))
  })

  test('do not leave the granted pools by a limited hand, nor come from elsewhere', async () => {
    const mine = await ready('lab')
    expect(await codeOf(ask(lab)('machines.update', { id: mine.id, pool: 'prod' }))).toBe('forbidden')
    const made = { pool: 'prod', interfaces: [], arch: 'amd64', cpus: 1, memoryMib: 1024 }
    expect(await codeOf(ask(lab)('machines.create', made))).toBe('forbidden')
    for (const name of ['tags.delete', 'pools.put', 'zones.delete', 'machines.start'] as const)
      expect(await codeOf(ask(lab)(name, { name: 'x', description: '' })), name).toBe('forbidden')
  })
})

describe('allocations', () => {
  const take = (caller: Caller, constraints: object = {}) =>
    ask(caller)('allocations.create', { ...wish, constraints }) as Promise<{ id: string; machines: { pool: string }[] }>

  test('take from the granted pools only, whatever is asked for', async () => {
    for (let count = 0; count < 3; count++) await ready('prod')
    const [one, two] = [await ready('lab'), await ready('lab')]
    const free = core.memory.candidates.readyCount
    expect(free).toBeGreaterThan(4)
    const taken: string[] = []
    for (;;) {
      const outcome = await take(labUser).catch(error => error as Refusal)
      if (outcome instanceof Refusal) {
        expect(outcome.code).toBe('no-match')
        // What it cannot have it is not told of.
        expect(JSON.stringify(outcome.facts)).not.toContain('lon1-')
        break
      }
      taken.push(...outcome.machines.map(({ pool }) => pool))
    }
    expect(taken.length).toBeGreaterThanOrEqual(2)
    expect(new Set(taken)).toEqual(new Set(['lab']))
    expect(await codeOf(take(labUser, { pools: ['prod'] }))).toBe('no-match')
    expect(await codeOf(take(nowhere))).toBe('no-match')
    expect([one.pool, two.pool]).toEqual(['lab', 'lab'])
  })

  test('of others are seen where they hold a machine of a granted pool', async () => {
    await ready('lab')
    await ready('prod')
    const [inLab, inProd] = [await take(all, { pools: ['lab'] }), await take(all, { pools: ['prod'] })]
    expect(await codeOf(ask(lab)('allocations.get', { id: inLab.id }))).toBe('done')
    expect(await codeOf(ask(lab)('allocations.get', { id: inProd.id }))).toBe('not-found')
    const { items } = (await ask(lab)('allocations.list', { limit: 100 })) as { items: { id: string }[] }
    expect(items.map(({ id }) => id)).toContain(inLab.id)
    expect(items.map(({ id }) => id)).not.toContain(inProd.id)
  })
})

describe('numbers', () => {
  const status = (caller: Caller) =>
    ask(caller)('partitions.get', { name: 'lon1' }) as Promise<{ machines: Record<string, number>; overdue: number; faulty: number }>
  const labels = async (caller: Caller, kind: 'tags' | 'pools' | 'zones') =>
    ((await ask(caller)(`${kind}.list`, {})) as { items: { name: string; machines: number; ready: number }[] }).items

  test("of machines and labels are of what may be seen: the granted pools, and machines of one's own", async () => {
    const before = { all: await status(all), lab: await status(lab), nowhere: await status(nowhere) }
    expect(before.nowhere).toMatchObject({ machines: {}, overdue: 0, faulty: 0 })
    const facts = { tags: ['counted'], zone: 'hall-9' }
    await addMachine(core, { ...facts, pool: 'lab', state: 'broken', fault: { code: 'x', detail: 'x' } as never })
    await addMachine(core, { ...facts, pool: 'prod', state: 'ready', tags: ['counted', 'secret'] })
    await addMachine(core, { ...facts, pool: 'attic', state: 'deployed', owner: 'lena', allocation_id: 'a-000000000009' })
    await addMachine(core, { ...facts, pool: 'cellar', state: 'new' })
    const now = { all: await status(all), lab: await status(lab) }
    const more = (which: 'all' | 'lab', state: string) => (now[which].machines[state] ?? 0) - (before[which].machines[state] ?? 0)
    expect(['broken', 'ready', 'deployed', 'new'].map(state => more('all', state))).toEqual([1, 1, 1, 1])
    expect(['broken', 'ready', 'deployed', 'new'].map(state => more('lab', state))).toEqual([1, 0, 1, 0])
    expect(now.lab.faulty - before.lab.faulty).toBe(1)
    expect(await ask(nowhere)('partitions.status', {})).toMatchObject({ machines: {}, overdue: 0, faulty: 0 })
    expect(await ask(nowhere)('partitions.list', {})).toMatchObject({ items: [{ machines: {} }] })

    expect((await labels(all, 'zones')).find(({ name }) => name === 'hall-9')).toMatchObject({ machines: 4, ready: 1 })
    expect((await labels(lab, 'zones')).find(({ name }) => name === 'hall-9')).toMatchObject({ machines: 2, ready: 0 })
    expect(await ask(lab)('tags.get', { name: 'counted' })).toMatchObject({ machines: 2, ready: 0 })
    expect(await codeOf(ask(lab)('tags.get', { name: 'secret' }))).toBe('not-found')
    // Nobody is told of a pool that it has nothing in.
    expect((await labels(lab, 'pools')).map(({ name }) => name)).toEqual(expect.arrayContaining(['attic', 'lab']))
    expect((await labels(lab, 'pools')).map(({ name }) => name)).not.toContain('cellar')
    expect(await codeOf(ask(lab)('pools.get', { name: 'cellar' }))).toBe('not-found')
    expect(await labels(nowhere, 'pools')).toEqual([])
  })
})

test('events are those of machines that may be seen, and their end is told too', async () => {
  const [mine, other] = [await ready('lab'), await ready('prod')]
  await core.sql`update events set seq = id where seq is null`
  await core.sql`update event_log set last_seq = (select max(seq) from events)`
  const seen = async (caller: Caller) =>
    ((await ask(caller)('events.list', { limit: 1000 })) as { items: { machine: string }[] }).items.map(({ machine }) => machine)
  expect(await seen(all)).toEqual(expect.arrayContaining([mine.id, other.id]))
  expect(await seen(lab)).toContain(mine.id)
  expect(await seen(lab)).not.toContain(other.id)

  for (const { id } of [mine, other]) await ask(all)('machines.delete', { id })
  await numberEvents(core.sql, 1000)
  expect(await seen(lab)).toContain(mine.id)
  expect(await seen(lab)).not.toContain(other.id)
})

describe('addresses', () => {
  test('of machines in other pools are in no list, nobody of them is named, and none is given by who is limited', async () => {
    const [mine, other] = [await ready('lab'), await ready('prod')]
    const olga = ask(all)
    await olga('subnets.put', {
      name: 'wire',
      cidr: '10.60.0.0/24',
      vlan: null,
      gateway: null,
      nameservers: [],
      reserved: [],
      description: '',
    })
    for (const machine of [mine, other]) await olga('addresses.reserve', { subnet: 'wire', machine: machine.id, aliases: [], note: '' })
    const listed = (await ask(lab)('addresses.list', { limit: 100 })) as { items: { machine: string }[] }
    expect(listed.items.map(({ machine }) => machine)).toEqual([mine.id])
    expect(await codeOf(ask(lab)('addresses.reserve', { subnet: 'wire', name: 'mine', aliases: [], note: '' }))).toBe('forbidden')
    expect(await codeOf(ask(lab)('subnets.delete', { name: 'wire' }))).toBe('forbidden')

    const wanting = await ready('lab')
    const document = networkDocument.parse({
      ethernets: { wan: { mac: wanting.interfaces[0]?.mac as string, addresses: ['10.60.0.2/24'] } },
    })
    const refusals = [lab, all].map(caller =>
      ask(caller)('machines.setNetwork', { id: wanting.id, document }).then(
        () => 'done',
        (error: Refusal) => `${error.code} ${error.message} ${JSON.stringify(error.facts)}`,
      ),
    )
    const [veiled, open] = (await Promise.all(refusals)) as [string, string]
    expect(veiled).toContain("already-taken 10.60.0.2 of subnet wire is somebody else's")
    expect(veiled).not.toContain(other.id)
    expect(open).toContain(other.id)
  })
})
