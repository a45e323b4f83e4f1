// Reading the logs of a federation as one: no event is lost or doubled, and each partition's own order is kept.
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { endOfLog, endPage, type LogItem, type LogPage, mergeLogs, parsePosition, positionText, readUpTo } from '../src/contract/log.ts'

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
