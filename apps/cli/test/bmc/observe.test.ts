// What is believed of an order: only what was seen.
import { DriverError, type PowerSession, type PowerState } from '@muster/drivers/driver'
import { expect, test } from 'vitest'
import { giveAndObserve, judge, type Order, StillWaiting } from '../../src/bmc/power.ts'

const error = (kind: 'silent' | 'refused', outcome: 'none' | 'unknown') =>
  new DriverError({ kind, tried: 'power on', target: 'test bmc', got: 'nothing', hint: 'Look.', outcome })

/** A switch that answers its orders with `given`, and shows `powers` one after the other, the last for ever. */
function observe(order: Order, given: Promise<void>, powers: readonly (PowerState | DriverError)[], waitMs = 3000) {
  let at = 0
  const power = async () => {
    const shown = powers[Math.min(at++, powers.length - 1)] as PowerState | DriverError
    if (shown instanceof DriverError) throw shown
    return shown
  }
  const act = () => given
  const close = async () => {}
  const session: PowerSession = {
    ...{ target: 'test bmc', power, on: act, off: act, cycle: act, capabilities: {}, close, [Symbol.asyncDispose]: close },
  }
  const told: string[] = []
  const tell = (text: string) => told.push(text)
  const ended = giveAndObserve(session, order, { waitMs, signal: new AbortController().signal, now: Date.now, tell })
  return { ended, told }
}

/** A rejection that its receiver handles later. */
function failing(reason: DriverError): Promise<void> {
  const promise = Promise.reject(reason)
  promise.catch(() => undefined)
  return promise
}

test('an order whose answer was lost is believed when its effect is seen, and else told as it ended', async () => {
  const lost = error('silent', 'unknown')
  const { ended, told } = observe('on', failing(lost), ['off', 'on'])
  expect(await ended).toMatchObject({ power: 'on' })
  expect(told).toEqual([lost.message, 'power off, not yet on'])
  await expect(observe('on', failing(lost), ['off'], 300).ended).rejects.toBe(lost)
})

test('an order that was surely not carried out is not waited for', async () => {
  const refused = error('refused', 'none')
  await expect(observe('on', failing(refused), ['on']).ended).rejects.toBe(refused)
  const silent = error('silent', 'none')
  await expect(observe('off', failing(silent), ['off']).ended).rejects.toBe(silent)
})

test('a look that fails for a moment is repeated; one that is refused ends the wait', async () => {
  const { ended, told } = observe('off', Promise.resolve(), [error('silent', 'none'), 'off'])
  expect(await ended).toMatchObject({ power: 'off' })
  expect(told).toEqual(['power on via test bmc: nothing'])
  const refused = error('refused', 'none')
  await expect(observe('off', Promise.resolve(), [refused]).ended).rejects.toBe(refused)
  await expect(observe('off', Promise.resolve(), ['on'], 300).ended).rejects.toBeInstanceOf(StillWaiting)
})

test('a cycle is done when it was seen off, when it began too long ago to be seen, and never on trust alone', () => {
  const look = { power: 'on', seenOff: false, sinceMs: 0, accepted: true } as const
  expect(judge('cycle', look)).toEqual({ kind: 'waiting', text: 'power on, not yet seen off' })
  expect(judge('cycle', { ...look, seenOff: true })).toEqual({ kind: 'done' })
  expect(judge('cycle', { ...look, sinceMs: 15_000 })).toEqual({ kind: 'done' })
  expect(judge('cycle', { ...look, sinceMs: 15_000, accepted: false })).toMatchObject({ kind: 'waiting' })
  expect(judge('soft', { ...look, power: 'unknown' })).toEqual({ kind: 'waiting', text: 'power unknown, not yet off' })
})
