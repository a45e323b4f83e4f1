// The ladder of a power order: ask the operating system, press, press again, restart the BMC, press once more, then a person.
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { ladder, startAt } from '../src/domain/power/ladder.ts'

const limits = { softMs: 100, changeMs: 50, restartMs: 70 }

test('a soft off asks first, then presses, and a BMC that can be restarted is, once', () => {
  expect(ladder('off', 'soft', true, limits).map(({ name, act }) => `${name}: ${act}`)).toEqual([
    'soft: soft off',
    'first: hard off',
    'again: hard off',
    'restart: restart',
    'last: hard off',
  ])
  expect(ladder('off', 'hard', false, limits).map(({ act }) => act)).toEqual(['hard off', 'hard off'])
  expect(ladder('on', 'soft', false, limits).map(({ act }) => act)).toEqual(['on', 'on'])
})

test('every ladder is finite, names each rung once, and restarts the BMC at most once', () => {
  fc.assert(
    fc.property(
      fc.constantFrom('on' as const, 'off' as const),
      fc.constantFrom('soft' as const, 'hard' as const),
      fc.boolean(),
      (wanted, how, canRestart) => {
        const rungs = ladder(wanted, how, canRestart, limits)
        expect(rungs.every(({ limitMs }) => limitMs > 0)).toBe(true)
        expect(new Set(rungs.map(({ name }) => name)).size).toBe(rungs.length)
        expect(rungs.filter(({ act }) => act === 'restart').length).toBe(canRestart ? 1 : 0)
        // The two presses together have the time that a change may take.
        expect(rungs.filter(({ name }) => name === 'first' || name === 'again').reduce((sum, { limitMs }) => sum + limitMs, 0)).toBeCloseTo(
          limits.changeMs,
        )
        // Whoever takes over goes on where the other was, not from the start.
        for (const [index, { name }] of rungs.entries()) expect(startAt(rungs, name)).toBe(index)
        expect(startAt(rungs, undefined)).toBe(0)
      },
    ),
  )
})
