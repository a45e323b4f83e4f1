/**
 * A network that loses one datagram in twenty, each way: a namespace of its own whose firewall drops them at random, hundreds of virtual BMCs, and the
 * driver of the partition. No read fails, neither with a login for each nor in sessions that stay open.
 */
import { existsSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Helper } from '../src/bench/helper.ts'
import type { PowerBmcs } from '../src/bench/power-bmcs.ts'
import { makePlace, type Place } from '../src/bench/power-place.ts'
import type { PowerPoller } from '../src/bench/power-poller.ts'

const lossRate = 0.05
const count = 300
const port = 6230
const account = { user: 'admin', password: 'secret' }
const suite = 17
const concurrency = 100

const reasons: string[] = []
const place: Place = await makePlace(line => reasons.push(line))
const missing = place.lose === undefined ? `${reasons.join('; ')} (apt-get install -y iproute2 iptables, as root)` : undefined
if (missing !== undefined) {
  await place.stop()
  if (process.env.CI) throw new Error(`${missing}; CI must prove this`)
  console.warn(`SKIPPED: ${missing}`)
}

describe.skipIf(missing !== undefined)('a network that loses datagrams', () => {
  const stops: (() => Promise<unknown>)[] = []
  let poller: Helper<PowerPoller>
  beforeAll(async () => {
    stops.push(() => place.stop())
    const bmcs = new Helper<PowerBmcs>(new URL('../src/bench/power-bmcs.ts', import.meta.url), 'the BMCs', place.through)
    stops.push(() => bmcs.stop())
    const addresses = await bmcs.ask('start', { count, network: 127, port, ...account })
    poller = new Helper<PowerPoller>(new URL('../src/bench/power-poller.ts', import.meta.url), 'the poller', place.through)
    stops.push(() => poller.stop())
    await poller.ask('prepare', { addresses: addresses.map(address => `${address}:${port}`), ...account, suite })
  }, 60_000)
  afterAll(async () => {
    for (let stop = stops.pop(); stop; stop = stops.pop()) await stop()
    expect(existsSync(`/var/run/netns/${place.through.at(-1)}`)).toBe(false)
  })

  test('no read fails that logs in for itself', async () => {
    await place.lose?.(lossRate)
    const polled = await poller.ask('fresh', concurrency)
    expect(polled.failures).toEqual(new Map())
    expect(polled.count).toBe(count)
  }, 150_000)

  test('no read fails in a session that is open', async () => {
    await place.lose?.(lossRate)
    for (let round = 0; round < 3; round++) expect((await poller.ask('live', concurrency)).failures).toEqual(new Map())
    await place.lose?.(0)
    await poller.ask('hangUp', undefined)
  }, 150_000)
})
