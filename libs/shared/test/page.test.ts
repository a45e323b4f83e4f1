// Paging over a federation: whatever the limits, and whoever is silent for a while, nobody loses or doubles an item.
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  compareKeys,
  decodeCursor,
  directionOf,
  encodeCursor,
  type Key,
  mergePages,
  type Page,
  pageFrom,
  positionOf,
} from '../src/contract/page.ts'
import { Refusal } from '../src/errors.ts'

interface Item {
  readonly id: string
  readonly value: string | number
}

const keyOf = (item: Item): Key => [item.value, item.id]

/** One partition's own list call. `short`: it may answer fewer than asked for, as one near a message's size limit does. */
function listOf(
  items: readonly Item[],
  name: string,
  call: { sort: string; limit: number; cursor: string | undefined; short: number },
): Page<Item> {
  const direction = directionOf(call.sort)
  const after = positionOf(decodeCursor(call.cursor, call.sort), name)
  const rest = items
    .filter(item => after === null || compareKeys(keyOf(item), after, direction) > 0)
    .sort((a, b) => compareKeys(keyOf(a), keyOf(b), direction))
  const limit = Math.max(1, call.limit - call.short)
  return pageFrom(rest.slice(0, limit + 1), { sort: call.sort, limit, keyOf })
}

const federation = fc
  .array(fc.array(fc.oneof(fc.constantFrom(1, 2, 3), fc.integer({ min: -5, max: 50 })), { maxLength: 12 }), { minLength: 1, maxLength: 5 })
  .map(partitions =>
    partitions.map((values, p) => ({
      name: `p${p}`,
      items: values.map((value, i): Item => ({ id: `p${p}-${String(i).padStart(6, '0')}`, value })),
    })),
  )

interface Reading {
  readonly partitions: { name: string; items: Item[] }[]
  readonly sort: string
  readonly limits: number[]
  /** Per page, which partitions are silent; afterwards none. */
  readonly silences: number[][]
  readonly short: number[]
}

/** Reads to the end; once the silences are over it goes on only while somebody may have more. */
function readAll({ partitions, sort, limits, silences, short }: Reading): { items: Item[]; pages: number } {
  const read: Item[] = []
  let cursor: string | undefined
  for (let page = 0; page < 500; page++) {
    const limit = limits[page % limits.length] as number
    const isSilent = (index: number) => silences[page]?.includes(index) ?? false
    const answers = partitions.flatMap(({ name, items }, index) =>
      isSilent(index)
        ? []
        : [{ partition: name, answer: listOf(items, name, { sort, limit, cursor, short: short[page % short.length] as number }) }],
    )
    const silent = partitions.filter((_, index) => isSilent(index)).map(({ name }) => name)
    const merged = mergePages({ answers, silent }, { sort, limit, cursor, keyOf })
    expect(merged.items.length).toBeLessThanOrEqual(limit)
    read.push(...merged.items)
    if (merged.nextCursor === null) return { items: read, pages: page + 1 }
    cursor = merged.nextCursor
  }
  throw new Error('the listing does not end')
}

describe('mergePages', () => {
  const readings = fc.record({
    partitions: federation,
    sort: fc.constantFrom('cpus', '-cpus'),
    limits: fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1, maxLength: 4 }),
    silences: fc.array(fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 3 }), { maxLength: 8 }),
    short: fc.array(fc.integer({ min: 0, max: 4 }), { minLength: 1, maxLength: 3 }),
  })

  test('gives every item once, in order, when all answer', () => {
    fc.assert(
      fc.property(readings, reading => {
        const { items } = readAll({ ...reading, silences: [] })
        const direction = directionOf(reading.sort)
        const sorted = reading.partitions.flatMap(partition => partition.items).sort((a, b) => compareKeys(keyOf(a), keyOf(b), direction))
        expect(items).toEqual(sorted)
      }),
      { numRuns: 500 },
    )
  })

  test('gives every item of those that always answer once and in order; one that was silent loses nothing once it is back', () => {
    fc.assert(
      fc.property(readings, reading => {
        const { items, pages } = readAll(reading)
        expect(new Set(items).size).toBe(items.length)
        const direction = directionOf(reading.sort)
        const silences = reading.silences.slice(0, pages)
        reading.partitions.forEach((partition, index) => {
          const own = items.filter(({ id }) => id.startsWith(`${partition.name}-`))
          const sorted = [...partition.items].sort((a, b) => compareKeys(keyOf(a), keyOf(b), direction))
          // A listing ends when all that answer are at their end; who was silent on that last page may have more.
          const wasSilentAtTheEnd = silences[pages - 1]?.includes(index) ?? false
          expect(own).toEqual(wasSilentAtTheEnd ? sorted.slice(0, own.length) : sorted)
        })
        const always = reading.partitions.filter((_, index) => !silences.some(silent => silent.includes(index)))
        const ofThose = items.filter(({ id }) => always.some(({ name }) => id.startsWith(`${name}-`)))
        expect(ofThose).toEqual([...ofThose].sort((a, b) => compareKeys(keyOf(a), keyOf(b), direction)))
      }),
      { numRuns: 1000 },
    )
  })

  test('a partition that one front does not know keeps its place in the cursor', () => {
    const cursor = encodeCursor({ sort: 'cpus', after: [5, 'p1-000005'], behind: { p2: [1, 'p2-000001'], p3: null } })
    const answers = [{ partition: 'p1', answer: { items: [{ id: 'p1-000006', value: 6 }], nextCursor: 'more' } }]
    const { nextCursor } = mergePages({ answers, silent: [] }, { sort: 'cpus', limit: 1, cursor, keyOf })
    expect(decodeCursor(nextCursor as string, 'cpus')).toEqual({
      sort: 'cpus',
      after: [6, 'p1-000006'],
      behind: { p2: [1, 'p2-000001'], p3: null },
    })
  })

  test('joins the parts that several partitions hold of one thing', () => {
    fc.assert(
      fc.property(
        fc.array(fc.uniqueArray(fc.integer({ min: 0, max: 20 })), { minLength: 1, maxLength: 4 }),
        fc.integer({ min: 1, max: 5 }),
        (partitions, limit) => {
          interface Part {
            readonly id: string
            readonly holders: string[]
          }
          const key = (part: Part): Key => [part.id, part.id]
          const holdersOf = new Map<string, string[]>()
          const lists = partitions.map((numbers, p) =>
            numbers.map(number => {
              const id = String(number).padStart(2, '0')
              holdersOf.set(id, [...(holdersOf.get(id) ?? []), `p${p}`])
              return { id, holders: [`p${p}`] }
            }),
          )
          const read: Part[] = []
          let cursor: string | undefined
          do {
            const answers = lists.map((list, p) => {
              const after = positionOf(decodeCursor(cursor, 'id'), `p${p}`)
              const rest = list
                .filter(part => after === null || compareKeys(key(part), after, 'ascending') > 0)
                .sort((a, b) => (a.id < b.id ? -1 : 1))
              return { partition: `p${p}`, answer: pageFrom(rest.slice(0, limit + 1), { sort: 'id', limit, keyOf: key }) }
            })
            const join = (a: Part, b: Part) => ({ id: a.id, holders: [...a.holders, ...b.holders].sort() })
            const merged = mergePages({ answers, silent: [] }, { sort: 'id', limit, cursor, keyOf: key, join })
            read.push(...merged.items)
            cursor = merged.nextCursor ?? undefined
          } while (cursor !== undefined)
          expect(read).toEqual([...holdersOf].sort(([a], [b]) => (a < b ? -1 : 1)).map(([id, holders]) => ({ id, holders })))
        },
      ),
    )
  })
})

describe('decodeCursor', () => {
  test('refuses what is no cursor, and a cursor of another sort', () => {
    expect(() => decodeCursor('nonsense', 'id')).toThrow(Refusal)
    expect(() => decodeCursor(encodeCursor({ sort: 'cpus', after: null, behind: {} }), 'id')).toThrow('belongs to sort=cpus')
  })
})
