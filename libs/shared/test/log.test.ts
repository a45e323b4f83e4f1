// Reading the logs of a federation as one: no event is lost or doubled, and each partition's own order is kept.
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  askedFor,
  endOfLog,
  endPage,
  goneOf,
  goneRefusal,
  type LogItem,
  type LogPage,
  mergeLogs,
  parsePosition,
  positionText,
  readUpTo,
} from '../src/contract/log.ts'
import { Refusal } from '../src/errors.ts'

interface Event extends LogItem {
  readonly kind: 'shown' | 'hidden'
}

/** One partition's own list call, which may filter. */
function listOf(events: readonly Event[], name: string, after: string | undefined, limit: number): LogPage<Event> {
  const from = readUpTo(parsePosition(after), name)
  if (from === endOfLog) return endPage(name, events.length)
  const items = events.filter(({ seq, kind }) => seq > from && kind === 'shown').slice(0, limit)
  const readTo = items.length === limit ? (items.at(-1)?.seq ?? from) : Math.max(from, events.length)
  return { items, nextCursor: `${name}:${readTo}` }
}

const kinds = fc.constantFrom<Event['kind']>('shown', 'hidden')
const logs = fc
  .array(fc.array(fc.record({ kind: kinds, pause: fc.integer({ min: 0, max: 3 }) }), { maxLength: 15 }), { minLength: 1, maxLength: 4 })
  .map(partitions =>
    partitions.map((entries, p) => {
      let at = 1000
      return entries.map(({ kind, pause }, i): Event => {
        at += pause
        return { partition: `p${p}`, seq: i + 1, at: String(at), kind }
      })
    }),
  )

describe('mergeLogs', () => {
  test('gives every event once, in each partition’s order, whatever is silent or hidden in between', () => {
    const silences = fc.array(fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 2 }), { maxLength: 8 })
    fc.assert(
      fc.property(logs, fc.integer({ min: 1, max: 6 }), silences, (partitions, limit, silent) => {
        const read: Event[] = []
        let after: string | undefined
        for (let page = 0, idle = 0; idle < 2; page++) {
          const isSilent = (index: number) => silent[page]?.includes(index) ?? false
          const answers = partitions.flatMap((events, p) =>
            isSilent(p) ? [] : [{ partition: `p${p}`, answer: listOf(events, `p${p}`, after, limit) }],
          )
          const merged = mergeLogs({ answers, silent: [] }, { after, limit })
          expect(merged.items.length).toBeLessThanOrEqual(limit)
          read.push(...merged.items)
          after = merged.nextCursor
          idle = merged.items.length === 0 && page >= silent.length ? idle + 1 : 0
        }
        partitions.forEach((events, p) => {
          expect(read.filter(({ partition }) => partition === `p${p}`)).toEqual(events.filter(({ kind }) => kind === 'shown'))
        })
        // Nothing is looked at again, hidden or not.
        const position = parsePosition(after)
        partitions.forEach((events, p) => {
          expect(readUpTo(position, `p${p}`)).toBe(events.length)
        })
      }),
      { numRuns: 500 },
    )
  })

  test('one page is in order of time', () => {
    fc.assert(
      fc.property(logs, partitions => {
        const answers = partitions.map((events, p) => ({ partition: `p${p}`, answer: listOf(events, `p${p}`, undefined, 100) }))
        const { items } = mergeLogs({ answers, silent: [] }, { limit: 100 })
        expect(items.map(({ at }) => at)).toEqual(items.map(({ at }) => at).sort())
      }),
    )
  })

  test('a reader who starts at the end learns where that is, and misses nothing afterwards', () => {
    const events = (name: string, count: number) =>
      Array.from({ length: count }, (_, i): Event => ({ partition: name, seq: i + 1, at: String(i), kind: 'shown' }))
    const answersAt = (counts: Record<string, number>, after: string) =>
      Object.entries(counts).map(([partition, count]) => ({ partition, answer: listOf(events(partition, count), partition, after, 10) }))
    const start = mergeLogs({ answers: answersAt({ p1: 3, p2: 0 }, 'end'), silent: [] }, { after: 'end', limit: 10 })
    expect(start.items).toEqual([])
    const next = mergeLogs({ answers: answersAt({ p1: 4, p2: 1 }, start.nextCursor), silent: [] }, { after: start.nextCursor, limit: 10 })
    expect(next.items.map(({ partition, seq }) => `${partition}:${seq}`).sort()).toEqual(['p1:4', 'p2:1'])
  })
})

describe('positions', () => {
  test('survive being written and read', () => {
    const position = new Map([
      ['*', 42],
      ['lon1', 7],
    ])
    expect(parsePosition(positionText(position))).toEqual(position)
    expect(readUpTo(parsePosition('lon1:7,end'), 'par2')).toBe(endOfLog)
    expect(() => parsePosition('lon1:x')).toThrow('is not a position')
  })
})

describe('a reader behind what was removed', () => {
  test('is told where to start, and loses its place in no other partition', () => {
    const refusal = goneRefusal('lon1:3,par2:7', [{ partition: 'lon1', after: 3, removedTo: 90 }])
    expect(refusal).toMatchObject({ code: 'gone', facts: { startAt: 'lon1:90,par2:7' } })
    expect(refusal.message).toBe('lon1 has removed its events up to 90, and 3 is the last read: what is between is lost')
    expect(goneRefusal('3', [{ partition: 'lon1', after: 3, removedTo: 90 }]).facts.startAt).toBe('3,lon1:90')
  })

  test('is one who named a place: whoever begins, begins with what is there', () => {
    const asks = (after: string | undefined) => askedFor(parsePosition(after), 'lon1')
    expect(['lon1:0', 'lon1:3', '3', 'par2:7,3'].map(asks)).toEqual([0, 3, 3, 3])
    expect([undefined, '0', 'par2:7'].map(asks)).toEqual([undefined, undefined, undefined])
  })

  test('hears it of a partition from that one alone, and no nonsense', () => {
    const gone = { partition: 'lon1', after: 3, removedTo: 90 }
    expect(goneOf(goneRefusal('3', [gone]), 'lon1')).toEqual(gone)
    expect(goneOf(goneRefusal('3', [gone]), 'par2')).toBeUndefined()
    for (const facts of [{}, { gone: 'all' }, { gone: [null] }, { gone: [{ ...gone, removedTo: '90' }] }])
      expect(goneOf(new Refusal('gone', 'it is', facts), 'lon1')).toBeUndefined()
    expect(goneOf(new Refusal('not-found', 'it is', { gone: [gone] }), 'lon1')).toBeUndefined()
  })
})
