import { expect, test } from 'vitest'
import { endOfLog, endPage, mergeLogs, parsePosition, positionText, readUpTo } from '../src/contract/log.ts'

const item = (partition: string, seq: number) => ({ partition, seq, at: `2026-01-01T00:00:0${seq}.000Z` })

test('the end of the log is a position, alone or for the partitions not named', () => {
  expect(readUpTo(parsePosition('end'), 'lon1')).toBe(endOfLog)
  const position = parsePosition('lon1:42,end')
  expect([readUpTo(position, 'lon1'), readUpTo(position, 'par2')]).toEqual([42, endOfLog])
  expect(positionText(position)).toBe('lon1:42,end')
  expect(() => parsePosition('lon1:end')).toThrow('is not a position')
})

test('a reader who starts at the end learns where it is, and misses nothing from there on', () => {
  const first = mergeLogs(
    {
      answers: [
        { partition: 'lon1', answer: endPage('lon1', 42) },
        { partition: 'par2', answer: endPage('par2', 0) },
      ],
      silent: ['rom3'],
    },
    { after: 'end', limit: 10 },
  )
  expect(first.items).toEqual([])
  const position = parsePosition(first.nextCursor)
  // One that was silent is read from its own end when it is back: its past is not new.
  expect(['lon1', 'par2', 'rom3'].map(name => readUpTo(position, name))).toEqual([42, 0, endOfLog])

  const next = mergeLogs(
    {
      answers: [
        { partition: 'lon1', answer: endPage('lon1', 42) },
        { partition: 'par2', answer: { items: [item('par2', 1)], nextCursor: 'par2:1' } },
        { partition: 'rom3', answer: endPage('rom3', 7) },
      ],
      silent: [],
    },
    { after: first.nextCursor, limit: 10 },
  )
  expect(next.items).toEqual([item('par2', 1)])
  expect(['lon1', 'par2', 'rom3'].map(name => readUpTo(parsePosition(next.nextCursor), name))).toEqual([42, 1, 7])
})
