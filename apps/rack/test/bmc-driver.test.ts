/** The project's own power driver against virtual BMCs in trouble: two independent ends of one protocol, and a bad path between them. */
import { DriverError } from '@muster/drivers/driver'
import { openPower } from '@muster/drivers/drivers'
import { type OnTestFinishedHandler, test } from 'vitest'
import type { BmcFaults } from '../src/bmc/faults.ts'
import { type RackMachine, startRack } from '../src/rack.ts'
import { startTestPartition } from './rack-partition.ts'

/** Each test has BMC addresses of its own: the driver remembers by address how logins went. */
let nextIndex = 0

/** Machines that have nothing to boot: only their power matters. */
async function machines(
  count: number,
  faults: Partial<BmcFaults>,
  onTestFinished: (handler: OnTestFinishedHandler) => void,
): Promise<readonly RackMachine[]> {
  const partition = await startTestPartition()
  onTestFinished(async () => await partition[Symbol.asyncDispose]())
  partition.script = () => '#!ipxe\nexit\n'
  const specs = Array.from({ length: count }, () => ({ index: nextIndex++, bootUrl: partition.url, bmc: { faults } }))
  const rack = await startRack({ pace: 'instant', machines: specs })
  onTestFinished(async () => await rack.close())
  return rack.machines
}

function open({ bmc }: RackMachine) {
  const settings = { address: `${bmc.address}:${bmc.port}`, user: bmc.user, password: bmc.password }
  return openPower({ type: 'ipmi', settings })
}

// They wait more than they work: all at once.
test.concurrent('on a clean path: every order, one session per BMC, each command carried out once', async ({ expect, onTestFinished }) => {
  const all = await machines(20, {}, onTestFinished)
  await Promise.all(
    all.map(async machine => {
      await using power = open(machine)
      expect(await power.power()).toBe('off')
      expect(await power.capabilities.bootNext?.set({ device: 'network', firmware: 'uefi' })).toEqual({ kept: 'all' })
      await power.on()
      await expect.poll(() => power.power()).toBe('on')
      await power.cycle()
      await machine.until(entry => entry.what === 'power off', { signal: AbortSignal.timeout(5_000), after: 0 })
      await expect.poll(() => power.power()).toBe('on')
      await power.off({ how: 'hard' })
      await expect.poll(() => power.power()).toBe('off')
    }),
  )
  for (const { bmc } of all) {
    expect(bmc.counters).toMatchObject({ sessionsOpenMax: 1, loginsRefused: 0, controls: { on: 1, cycle: 1, off: 1 } })
    expect(bmc.sessionsOpen()).toBe(0)
  }
})

test.concurrent('5 % loss each way and 3 % duplicates: no order fails, none is carried out twice', async ({ expect, onTestFinished }) => {
  const all = await machines(40, { dropRate: 0.05, duplicateRate: 0.03 }, onTestFinished)
  await Promise.all(
    all.map(async machine => {
      await using power = open(machine)
      await power.on()
      await expect.poll(() => power.power(), { timeout: 20_000 }).toBe('on')
      await power.capabilities.reset?.().catch((error: unknown) => {
        // The one honest failure: the answer was lost for good and nobody can know.
        if (!(error instanceof DriverError) || error.outcome !== 'unknown') throw error
      })
      await power.off({ how: 'hard' })
      await expect.poll(() => power.power(), { timeout: 20_000 }).toBe('off')
    }),
  )
  expect(all.map(({ bmc }) => bmc.counters.controls.reset).every(count => count <= 1)).toBe(true)
})

test.concurrent('what is wrong is told by its kind', async ({ expect, onTestFinished }) => {
  const [silent, busy, wrong] = (await machines(3, {}, onTestFinished)) as [RackMachine, RackMachine, RackMachine]
  silent.bmc.faults.life = 'silent'
  busy.bmc.faults.busyRate = 1
  const kindOf = async (machine: RackMachine, password = machine.bmc.password) => {
    const settings = { address: `${machine.bmc.address}:${machine.bmc.port}`, user: machine.bmc.user, password }
    await using power = openPower({ type: 'ipmi', settings })
    return await power.power().catch((error: unknown) => (error instanceof DriverError ? error.kind : error))
  }
  expect(await Promise.all([kindOf(silent), kindOf(busy), kindOf(wrong, 'wrong')])).toEqual(['silent', 'busy', 'authentication'])
})

test.concurrent('a BMC that takes 1.5 to 3 s for each answer is slow, not gone', async ({ expect, onTestFinished }) => {
  const [slow] = (await machines(1, { latencyMs: [1_500, 3_000] }, onTestFinished)) as [RackMachine]
  await using power = open(slow)
  expect(await power.power()).toBe('off')
}, 60_000)

test.concurrent('a BMC that takes 0.4 to 1.5 s for each datagram has one login under way at a time', async ({ expect, onTestFinished }) => {
  const slow = await machines(6, { latencyMs: [400, 1_500] }, onTestFinished)
  await Promise.all(
    slow.map(async machine => {
      for (let time = 0; time < 2; time++) {
        await using power = open(machine)
        expect(await power.power()).toBe('off')
      }
    }),
  )
  expect(slow.map(({ bmc }) => bmc.counters.loginsUnderWayMax)).toEqual(slow.map(() => 1))
}, 60_000)
