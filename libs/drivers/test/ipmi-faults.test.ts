/**
 * One fault at each step of a session between the driver and ipmi_sim: a datagram lost, doubled, late, out of order, or damaged. The
 * caller must not notice, or must be told the truth.
 */
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { DriverErrorKind } from '../src/driver.ts'
import { parseDatagram, payloadTypes } from '../src/ipmi/codec.ts'
import { ipmiDriver } from '../src/ipmi.ts'
import { type IpmiSim, startIpmiSim } from './ipmi-sim.ts'
import { needs } from './needs.ts'
import { type Direction, type Path, startUdpProxy } from './udp-proxy.ts'

/** Short, but with room for a busy machine: ipmi_sim answers within a millisecond, its chassis script within ten. */
const timers = {
  setupMs: 200,
  probeMs: 100,
  commandMs: 200,
  closeMs: 60,
  staleMs: 1500,
  commandLimitMs: 4000,
  halfOpenMs: 2000,
  portClosedMs: 50,
}

/** Longer than each first wait above, so that the late datagram meets the next attempt. */
const lateMs = 280

const steps = [
  'suites asked',
  'suites told',
  'Open Session request',
  'Open Session response',
  'RAKP 1',
  'RAKP 2',
  'RAKP 3',
  'RAKP 4',
  'status asked',
  'status told',
  'privilege asked',
  'privilege told',
  'power on ordered',
  'power on accepted',
  'second status asked',
  'second status told',
  'Close Session request',
  'Close Session response',
] as const
type Step = (typeof steps)[number]

const faults: Readonly<Record<string, (strike: Strike) => Path>> = {
  lost: strike => (datagram, direction) => (strike(datagram, direction) ? [] : now(datagram)),
  doubled: strike => (datagram, direction) => (strike(datagram, direction) ? [...now(datagram), ...now(datagram)] : now(datagram)),
  late: strike => (datagram, direction) => (strike(datagram, direction) ? [{ datagram, afterMs: lateMs }] : now(datagram)),
  'out of order': strike => {
    let held: { datagram: Buffer; direction: Direction } | undefined
    return (datagram, direction) => {
      if (strike(datagram, direction)) {
        held = { datagram, direction }
        return []
      }
      if (held?.direction !== direction) return now(datagram)
      const overtaken = held.datagram
      held = undefined
      return [...now(datagram), ...now(overtaken)]
    }
  },
  damaged: strike => (datagram, direction) => (strike(datagram, direction) ? now(flipLastBit(datagram)) : now(datagram)),
}

/**
 * RAKP messages carry no checksum that stands by itself: damage to their last byte, which is the name or a code, cannot be told from
 * wrong credentials. UDP's checksum guards them; here nothing does, and the caller must hear about it instead of being let in.
 */
const toldAs: Readonly<Record<string, Partial<Record<Step, DriverErrorKind>>>> = {
  damaged: { 'RAKP 1': 'authentication', 'RAKP 2': 'authentication', 'RAKP 4': 'authentication' },
}

needs('ipmi_sim').for(Object.keys(faults))('one datagram %s', fault => {
  // A process for each fault: ipmi_sim has 63 slots, and every case may leave one taken for half a minute.
  let sim: IpmiSim
  beforeAll(async () => {
    sim = await startIpmiSim()
  })
  afterAll(() => sim.stop())

  test.for(steps)('%s: the machine is switched on all the same, or the caller is told', { timeout: 15_000 }, async step => {
    await using proxy = await startUdpProxy(sim.port)
    let struck = false
    proxy.path = faults[fault]?.(stepWatcher(step, () => (struck = true))) ?? proxy.path
    const driver = ipmiDriver({ timers })
    const machine = driver.open(driver.settings.parse({ address: `127.0.0.1:${proxy.port}`, user: 'admin', password: 'secret' }))
    const work = async () => {
      expect(['on', 'off']).toContain(await machine.power())
      await machine.on()
      expect(await machine.power()).toBe('on')
    }
    const kind = toldAs[fault]?.[step]
    if (kind) await expect(work()).rejects.toMatchObject({ kind })
    else await work()
    await machine.close()
    expect(struck).toBe(true)
    if (!kind) expect(await sim.power()).toBe('on')
  })
})

needs('ipmi_sim')('a path that loses one datagram in twenty, each way', () => {
  let sim: IpmiSim
  beforeAll(async () => {
    sim = await startIpmiSim()
  })
  afterAll(() => sim.stop())

  test('lets every login with a switch and a status through', { timeout: 120_000 }, async () => {
    await using proxy = await startUdpProxy(sim.port)
    const seed = Date.now() % 1_000_000
    const random = randomNumbers(seed)
    proxy.path = datagram => (random() < 0.05 ? [] : now(datagram))
    const poll = async () => {
      // A session of its own driver for each, as 40 BMCs would have.
      const { settings, open } = ipmiDriver({ timers })
      await using machine = open(settings.parse({ address: `127.0.0.1:${proxy.port}`, user: 'admin', password: 'secret', suite: 3 }))
      await machine.on()
      return await machine.power()
    }
    const results: string[] = []
    for (let round = 0; round < 12; round++)
      results.push(...(await Promise.all(Array.from({ length: 10 }, () => poll().catch(error => error.message)))))
    expect(new Set(results), `seed ${seed}`).toEqual(new Set(['on']))
  })
})

type Strike = (datagram: Buffer, direction: Direction) => boolean

function now(datagram: Buffer) {
  return [{ datagram, afterMs: 0 }]
}

/** Repeatable random numbers from 0 to 1 (mulberry32). */
function randomNumbers(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

function flipLastBit(datagram: Buffer): Buffer {
  const damaged = Buffer.from(datagram)
  damaged.writeUInt8(damaged.readUInt8(damaged.length - 1) ^ 1, damaged.length - 1)
  return damaged
}

/** True for the first datagram of that step. */
function stepWatcher(step: Step, onStrike: () => void): Strike {
  const sealed = { 'to BMC': 0, 'to console': 0 }
  let done = false
  return (datagram, direction) => {
    if (stepOf(datagram, direction, sealed) !== step || done) return false
    done = true
    onStrike()
    return true
  }
}

const setupSteps: Readonly<Record<number, Step>> = {
  [payloadTypes.openSessionRequest]: 'Open Session request',
  [payloadTypes.openSessionResponse]: 'Open Session response',
  [payloadTypes.rakp1]: 'RAKP 1',
  [payloadTypes.rakp2]: 'RAKP 2',
  [payloadTypes.rakp3]: 'RAKP 3',
  [payloadTypes.rakp4]: 'RAKP 4',
}

/** Sealed packets cannot be read on the way: they are told by their number. */
const sealedSteps: Readonly<Record<Direction, Step[]>> = {
  'to BMC': ['status asked', 'privilege asked', 'power on ordered', 'second status asked', 'Close Session request'],
  'to console': ['status told', 'privilege told', 'power on accepted', 'second status told', 'Close Session response'],
}

function stepOf(datagram: Buffer, direction: Direction, sealed: Record<Direction, number>): Step | undefined {
  const packet = parseDatagram(datagram)
  if (packet.kind === 'v1.5') return direction === 'to BMC' ? 'suites asked' : 'suites told'
  if (packet.kind !== 'v2.0') return undefined
  if (!packet.authenticated) return setupSteps[packet.payloadType]
  sealed[direction] += 1
  return sealedSteps[direction][sealed[direction] - 1]
}
