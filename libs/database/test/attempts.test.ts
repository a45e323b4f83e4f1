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

/** A log in memory: what it tells of each entry, and which have ended. */
class Entries {
  readonly attempts = new Attempts()
  readonly all: CountedAttempts[] = []
  readonly #ended = new Set<number>()

  /** Brings the log up to date; answers what ended by it. */
  write(now: number, ending: 'due' | 'all' = 'due'): CountedAttempts[] {
    return this.attempts.untold(now, ending).flatMap(each => {
      const id = each.id ?? this.all.length
      expect(this.#ended).not.toContain(id)
      this.all[id] = each.attempts
      this.attempts.told(each, id, now)
      if (each.ends) this.#ended.add(id)
      return each.ends ? [each.attempts] : []
    })
  }
}

test('a minute of one address is one entry, which says how many and when', () => {
  const log = new Entries()
  for (let second = 0; second < 17; second++) log.attempts.note(attempt('192.0.2.1'), start + second * 1000)
  log.attempts.note(attempt('192.0.2.2', 'session.login'), start + 20_000)
  expect(log.write(start + 59_999)).toEqual([])
  expect(log.write(start + minute)).toEqual([{ ...attempt('192.0.2.1'), count: 17, firstAt: start }])
  expect(log.write(start + 80_000)).toMatchObject([{ from: '192.0.2.2', call: 'session.login', count: 1 }])
})

test('what was counted is in the log at once, in an entry that goes on', () => {
  const log = new Entries()
  for (let second = 0; second < 50; second++) {
    log.attempts.note(attempt('192.0.2.1'), start + second * 1000)
    log.write(start + second * 1000)
    expect(log.all).toMatchObject([{ count: second + 1 }])
  }
  expect(log.attempts.untold(start + 50_000, 'due')).toEqual([])
})

test('an entry that somebody else has ended is not counted again: what it does not tell is in the next', () => {
  const log = new Entries()
  log.attempts.note(attempt('192.0.2.1'), start)
  log.write(start)
  log.attempts.note(attempt('192.0.2.1'), start + 1)
  const [each] = log.attempts.untold(start + 1, 'due')
  log.attempts.ended(each as NonNullable<typeof each>, start + 1)
  expect(log.attempts.untold(start + 1, 'due')).toMatchObject([{ id: undefined, attempts: { count: 1 } }])
})

test('who knocks all day is some thirty entries', () => {
  const log = new Entries()
  for (let second = 0; second < 24 * 3600; second += 5) {
    log.attempts.note(attempt('192.0.2.1', second % 2 === 0 ? 'machines.list' : 'events.list'), start + second * 1000)
    log.write(start + second * 1000)
  }
  log.write(start + 24 * 3_600_000, 'all')
  expect(total(log.all)).toBe(17_280)
  expect(log.all.length).toBeLessThan(35)
  expect(log.all.at(-1)?.call).toBe('several calls')
})

test('a hundred thousand addresses are no more than two thousand entries and some; none is left out of the count', () => {
  const log = new Entries()
  for (let index = 0; index < 100_000; index++) {
    const now = start + index * 700
    log.attempts.note(attempt(`2001:db8::${index.toString(16)}`), now)
    if (index % 3 === 0) log.write(now)
  }
  log.write(start + 100_000 * 700, 'all')
  expect(total(log.all)).toBe(100_000)
  expect(log.all.length).toBeLessThan(2_100)
  expect(log.all.at(-1)).toMatchObject({ from: 'several addresses' })
})

test('whatever comes when, and whenever writing fails, the log tells each once, and all but what came since it was written', () =>
  fc.assert(
    fc.property(fc.array(fc.record({ who: fc.nat(20), afterMs: fc.nat(200_000), isWritten: fc.boolean() }), { maxLength: 200 }), steps => {
      const log = new Entries()
      let now = start
      for (const [index, { who, afterMs, isWritten }] of steps.entries()) {
        now += afterMs
        log.attempts.note(attempt(`192.0.2.${who}`), now)
        if (isWritten) log.write(now)
        else log.attempts.untold(now, 'due') // and nothing came of it
        if (isWritten) expect(total(log.all)).toBe(index + 1)
      }
      log.write(now, 'all')
      expect(total(log.all)).toBe(steps.length)
      expect(log.attempts.untold(now, 'all')).toEqual([])
    }),
  ))
