/** The receive window against the plainest model: a set of what was seen. */
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { ReceiveWindow } from '../src/ipmi/receive-window.ts'

test('takes each number once, also late and out of order, but not what is 32 or more behind', () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 120 }), { maxLength: 200 }), numbers => {
      const window = new ReceiveWindow()
      const seen = new Set([0])
      for (const number of numbers) {
        const wanted = !seen.has(number) && number > Math.max(...seen) - 32
        expect(window.take(number)).toBe(wanted)
        if (wanted) seen.add(number)
      }
    }),
  )
})

test('takes jumps ahead up to half the number space, and goes on beyond 32 bits', () => {
  const window = new ReceiveWindow()
  expect(window.take(1000)).toBe(true)
  expect(window.take(969)).toBe(true)
  expect(window.take(968)).toBe(false)
  expect(window.take(0x7fffff00)).toBe(true)
  expect(window.take(0xfffffff0)).toBe(false)
  expect(window.take(0xc0000000)).toBe(true)
  expect(window.take(0xfffffff0)).toBe(true)
  expect(window.take(0xffffffff)).toBe(true)
  expect(window.take(5)).toBe(true)
  expect(window.take(0xffffffff)).toBe(false)
  expect(window.take(0xfffffffe)).toBe(true)
})

test('never takes 0, which no session packet carries', () => {
  expect(new ReceiveWindow().take(0)).toBe(false)
})
