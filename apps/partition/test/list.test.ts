// Lists: every sort, both ways, with filters, page by page, against sorting in memory.
import { machineSorts } from '@muster/shared/contract/machines'
import type { Machine } from '@muster/shared/machine'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { addMachine, runPartition, type TestPartition } from './harness.ts'

let partition: TestPartition
const ends: (() => Promise<void>)[] = []
const pick = <T>(values: readonly T[], at: number) => values[at % values.length] as T
beforeAll(async () => {
  partition = await runPartition({}, end => void ends.push(end))
  // Times differ by microseconds only: a cursor carries milliseconds and must lose nobody.
  const start = Date.parse('2026-01-01T00:00:00.000Z')
  for (let at = 0; at < 60; at++) {
    const row = await addMachine(
      partition.core,
      {
        hostname: `${pick(['Web', 'db', 'a-1', 'z'], at * 7).toLowerCase()}-${(at * 13) % 60}`,
        state: pick(['ready', 'new', 'broken', 'retired'] as const, at),
        pool: pick(['p1', 'P2', 'p_3', 'p-4'], at * 3),
        zone: pick(['z1', 'z2'], at),
        rack: pick(['r1', 'r2', 'r3'], at),
        cpus: pick([4, 8, 16], at),
        memory_mib: pick([8192, 16_384, 9000], at * 5),
        tags: at % 3 === 0 ? ['gpu', 'fast'] : at % 5 === 0 ? ['fast'] : [],
        locked: at % 7 === 0,
        arch: at % 4 === 0 ? 'arm64' : 'amd64',
        attention_at: null,
        ...(at % 11 === 0 && { fault: { code: 'x', message: 'x', since: new Date(start).toISOString() } }),
      },
      {},
    )
    const micros = start + Math.floor(at / 6)
    await partition.sql`update machines set created_at = ${new Date(micros)}::timestamptz + ${at % 6} * interval '100 microseconds' where id = ${row.id}`
  }
})
afterAll(async () => {
  for (const end of ends.reverse()) await end()
})

type ListInput = NonNullable<Parameters<ReturnType<TestPartition['as']>['machines']['list']>[0]>

async function pages(input: ListInput, limit: number): Promise<Machine[]> {
  const items: Machine[] = []
  for (let cursor: string | undefined, page = 0; page < 100; page++) {
    const answer = await partition.as('rita').machines.list({ ...input, limit, ...(cursor !== undefined && { cursor }) })
    expect(answer.items.length).toBeLessThanOrEqual(limit)
    items.push(...answer.items)
    if (answer.nextCursor === null) return items
    cursor = answer.nextCursor
  }
  throw new Error('the list never ends')
}

function sorted(items: readonly Machine[], sort: string): string[] {
  const name = sort.replace(/^-/, '') as keyof Machine
  const sign = sort.startsWith('-') ? -1 : 1
  const compare = (a: unknown, b: unknown) => ((a as string) < (b as string) ? -1 : (a as string) > (b as string) ? 1 : 0)
  return [...items].sort((a, b) => sign * (compare(a[name], b[name]) || compare(a.id, b.id))).map(({ id }) => id)
}

const filters: { name: string; input: ListInput; fits: (machine: Machine) => boolean }[] = [
  { name: 'all', input: {}, fits: () => true },
  { name: 'any of states', input: { state: ['ready', 'broken'] }, fits: ({ state }) => state === 'ready' || state === 'broken' },
  { name: 'all of tags', input: { tag: ['gpu', 'fast'] }, fits: ({ tags }) => tags.includes('gpu') && tags.includes('fast') },
  {
    name: 'none of tags, in a pool',
    input: { notTag: ['gpu'], pool: ['p1', 'P2'] },
    fits: machine => !machine.tags.includes('gpu') && ['p1', 'P2'].includes(machine.pool),
  },
  {
    name: 'zone, rack, arch',
    input: { zone: ['z1'], rack: ['r1', 'r3'], arch: ['amd64'] },
    fits: machine => machine.zone === 'z1' && machine.rack !== 'r2' && machine.arch === 'amd64',
  },
  {
    name: 'locked, by part of a name',
    input: { locked: true, hostname: 'b-' },
    fits: ({ locked, hostname }) => locked && hostname.includes('b-'),
  },
  { name: 'with a fault', input: { fault: true }, fits: ({ fault }) => fault !== null },
  { name: 'nobody', input: { owner: 'nobody' }, fits: () => false },
]

describe('a list of machines', () => {
  test.each(machineSorts.flatMap(sort => [sort, `-${sort}` as const]))('by %s, page by page, is what sorting gives', async sort => {
    const all = (await partition.as('rita').machines.list({ limit: 1000 })).items
    expect(all).toHaveLength(60)
    for (const { name, input, fits } of filters) {
      const wanted = sorted(all.filter(fits), sort)
      expect(
        (await pages({ ...input, sort }, 7)).map(({ id }) => id),
        name,
      ).toEqual(wanted)
    }
    expect((await pages({ sort }, 1)).map(({ id }) => id)).toEqual(sorted(all, sort))
  })

  test('refuses the cursor of another sort, and one that nobody gave out', async () => {
    const { nextCursor } = await partition.as('rita').machines.list({ sort: 'cpus', limit: 5 })
    const list = (input: ListInput) => partition.as('rita').machines.list(input)
    await expect(list({ sort: 'hostname', cursor: nextCursor as string })).rejects.toMatchObject({
      code: 'invalid-input',
      facts: { errors: [{ field: 'cursor' }] },
    })
    await expect(list({ cursor: 'bm9uc2Vuc2U' })).rejects.toMatchObject({ code: 'invalid-input' })
    const forged = (sort: string, after: unknown) =>
      Buffer.from(JSON.stringify({ sort, after: [after, 'lon1-x'], behind: {} })).toString('base64url')
    for (const [sort, after] of [
      ['cpus', 'many'],
      ['createdAt', 'yesterday'],
      ['memoryMib', 1.5],
      ['cpus', 1e300],
      ['hostname', 'a\u0000b'],
    ] as const)
      await expect(list({ sort, cursor: forged(sort, after) }), `${sort} ${after}`).rejects.toMatchObject({ code: 'invalid-input' })
  })

  test('loses nobody who was there from start to end, whatever comes and goes meanwhile', async () => {
    const before = (await partition.as('rita').machines.list({ limit: 1000 })).items.map(({ id }) => id)
    let isReading = true
    const noise = (async () => {
      while (isReading) {
        const { id } = await addMachine(partition.core, { pool: `p${Math.floor(Math.random() * 9)}`, attention_at: null })
        await partition.sql`delete from machines where id = ${id}`
      }
    })()
    for (const sort of ['pool', '-createdAt', 'id'] as const) {
      const seen = (await pages({ sort }, 3)).map(({ id }) => id)
      expect(seen.filter(id => before.includes(id)).sort(), sort).toEqual([...before].sort())
      expect(new Set(seen).size).toBe(seen.length)
    }
    isReading = false
    await noise
  })

  test('asks nobody where the filter names another partition', async () => {
    expect(await partition.as('rita').machines.list({ partition: ['par2'] })).toEqual({
      items: [],
      nextCursor: null,
      coverage: { asked: 0, answered: 0, partitions: [] },
    })
    expect((await partition.as('rita').machines.list({ partition: ['par2', 'lon1'] })).items).toHaveLength(60)
  })

  test('finds a machine by any way of writing its address', async () => {
    const [machine] = (await partition.as('rita').machines.list({ limit: 1 })).items as [Machine]
    const mac = machine.interfaces[0]?.mac.toUpperCase().replaceAll(':', '-') as string
    expect((await partition.as('rita').machines.list({ mac })).items.map(({ id }) => id)).toEqual([machine.id])
  })
})

test('tags, pools and zones are counted, described and forgotten', async () => {
  const { tags, pools } = partition.as('olga')
  expect((await tags.list({})).items.map(({ name, machines }) => [name, machines])).toEqual([
    ['fast', 28],
    ['gpu', 20],
  ])
  expect(await pools.put({ name: 'empty', description: 'nobody yet' })).toMatchObject({ machines: 0, description: 'nobody yet' })
  await expect(pools.delete({ name: 'p1' })).rejects.toMatchObject({ code: 'wrong-state' })
  await pools.delete({ name: 'empty' })
  await expect(pools.get({ name: 'empty' })).rejects.toMatchObject({ code: 'not-found' })
  await tags.delete({ name: 'gpu' })
  expect((await partition.as('rita').machines.list({ tag: ['gpu'] })).items).toEqual([])
  expect((await tags.list({})).items.map(({ name }) => name)).toEqual(['fast'])
})

test('a text with a NUL is refused, wherever it comes in', async () => {
  const nul = 'a\u0000b'
  const olga = partition.as('olga')
  const [machine] = (await olga.machines.list({ limit: 1 })).items as [Machine]
  for (const ask of [
    () => olga.machines.list({ hostname: nul }),
    () => olga.events.list({ kind: nul }),
    () => olga.machines.update({ id: machine.id, note: nul }),
    () => olga.machines.lock({ id: machine.id, reason: nul }),
    () => olga.allocations.create({ note: nul }),
  ])
    await expect(ask()).rejects.toMatchObject({ code: expect.stringMatching(/invalid-input|malformed|no-match/) })
})
