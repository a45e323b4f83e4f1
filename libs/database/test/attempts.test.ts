// Attempts that were refused: every one is counted, and however many there are, few entries are written.
import type { RefusedAttempt } from '@muster/shared/audit'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { Attempts, type CountedAttempts } from '../src/attempts.ts'

const minute = 60_000
const start = Date.parse('2026-11-28T00:00:00.000Z')
const attempt = (from: string, call = 'machines.list'): RefusedAttempt => ({
  call,
  caller: { name: 'anonymous', role: 'public' },
  from,
  code: 'unauthenticated',
  reason: 'the token is not known here',
})
const total = (entries: readonly CountedAttempts[]) => entries.reduce((sum, { count }) => sum + count, 0)

test('a minute of one address is one entry, which says how many and when', () => {
  const attempts = new Attempts()
  for (let second = 0; second < 17; second++) attempts.note(attempt('192.0.2.1'), start + second * 1000)
  attempts.note(attempt('192.0.2.2', 'session.login'), start + 20_000)
  expect(attempts.take(start + 59_999, 'due')).toEqual([])
  expect(attempts.take(start + minute, 'due')).toEqual([{ ...attempt('192.0.2.1'), count: 17, firstAt: start }])
  expect(attempts.take(start + 80_000, 'due')).toMatchObject([{ from: '192.0.2.2', call: 'session.login', count: 1 }])
})

test('who knocks all day is some thirty entries', () => {
  const attempts = new Attempts()
  const entries: CountedAttempts[] = []
  for (let second = 0; second < 24 * 3600; second += 5) {
    attempts.note(attempt('192.0.2.1', second % 2 === 0 ? 'machines.list' : 'events.list'), start + second * 1000)
    entries.push(...attempts.take(start + second * 1000, 'due'))
  }
  entries.push(...attempts.take(start + 24 * 3_600_000, 'all'))
  expect(total(entries)).toBe(17_280)
  expect(entries.length).toBeLessThan(35)
  expect(entries.at(-1)?.call).toBe('several calls')
})

test('a hundred thousand addresses are no more than two thousand entries and some; none is left out of the count', () => {
  const attempts = new Attempts()
  const entries: CountedAttempts[] = []
  for (let index = 0; index < 100_000; index++) {
    const now = start + index * 700
    attempts.note(attempt(`2001:db8::${index.toString(16)}`), now)
    entries.push(...attempts.take(now, 'due'))
  }
  entries.push(...attempts.take(start + 100_000 * 700, 'all'))
  expect(total(entries)).toBe(100_000)
  expect(entries.length).toBeLessThan(2_100)
  expect(entries.at(-1)).toMatchObject({ from: 'several addresses' })
})

test('whatever comes when, and is given back after a failure, is counted once', () =>
  fc.assert(
    fc.property(fc.array(fc.record({ who: fc.nat(20), afterMs: fc.nat(200_000), fails: fc.boolean() }), { maxLength: 200 }), steps => {
      const attempts = new Attempts()
      let now = start
      let written = 0
      for (const { who, afterMs, fails } of steps) {
        now += afterMs
        attempts.note(attempt(`192.0.2.${who}`), now)
        const taken = attempts.take(now, 'due')
        if (fails) for (const each of taken) attempts.note(each, now)
        else written += total(taken)
      }
      expect(written + total(attempts.take(now, 'all'))).toBe(steps.length)
    }),
  ))
