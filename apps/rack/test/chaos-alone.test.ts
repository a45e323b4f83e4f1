// R3: a partition needs nobody. Its front and its broker are killed under load; on its own API machines are allocated, installed, switched and
// given back as before, and not one call fails.
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Client, createClient } from '@muster/shared/client'
import type { Machine } from '@muster/shared/machine'
import { afterAll, beforeAll, expect, it, vi } from 'vitest'
import { type Federation, startFederation } from '../src/federation/federation.ts'

const machines = 6
const workers = 4
const cyclesBefore = 1
const cyclesAfter = 4

let federation: Federation
let dataDir: string
let client: Client

beforeAll(async () => {
  dataDir = mkdtempSync(path.join('/tmp', 'muster-alone-'))
  // PostgreSQL's user must be able to walk in, or its data goes elsewhere and stays there.
  chmodSync(dataDir, 0o711)
  federation = await startFederation({
    dataDir,
    partitions: 1,
    machines,
    port: 0,
    pace: 'instant',
    sync: 'off',
    broker: 'always the embedded',
  })
  const [partition] = federation.partitions as [Federation['partitions'][number]]
  client = createClient({ url: partition.url, token: federation.token })
  await vi.waitFor(async () => expect((await client.partitions.status({})).machines.ready).toBe(machines), {
    timeout: 60_000,
    interval: 200,
  })
}, 120_000)
afterAll(async () => {
  await federation?.stop()
  rmSync(dataDir, { recursive: true, force: true })
})

async function until(machine: string, state: Machine['state']): Promise<Machine> {
  const limit = Date.now() + 60_000
  for (;;) {
    const seen = await client.machines.get({ id: machine })
    if (seen.state === state) return seen
    if (seen.fault || Date.now() > limit)
      throw new Error(`${machine} is ${seen.state}, not ${state}: ${seen.fault?.message ?? seen.waitingFor}`)
    await sleep(50)
  }
}

/** Everything a machine goes through for its user, told by the partition alone. */
async function cycle(): Promise<void> {
  const allocation = await client.allocations.create({ constraints: { os: 'debian/12' } })
  const [machine] = allocation.machines as [Machine]
  await client.machines.deploy({ id: machine.id, os: 'debian/12', userData: '#cloud-config\n' })
  const deployed = await until(machine.id, 'deployed')
  expect(deployed.deployment?.deployedAt).toBeTruthy()
  const switched = await client.machines.power({ id: machine.id, action: 'cycle', wait: '30s' })
  expect(switched.power).toBe('on')
  await client.allocations.release({ id: allocation.id as string })
  const free = await until(machine.id, 'ready')
  expect(free).toMatchObject({ allocation: null, owner: null })
}

it('without front and broker every call of a partition’s own API goes on as before', { timeout: 300_000 }, async () => {
  let cycles = 0
  let areAway = false
  const work = Array.from({ length: workers }, async () => {
    for (let left = cyclesBefore; left > 0 || !areAway; left--) {
      await cycle()
      cycles++
    }
    for (let left = cyclesAfter; left > 0; left--) {
      await cycle()
      cycles++
    }
  })
  await expect.poll(() => cycles, { timeout: 60_000, interval: 50 }).toBeGreaterThan(0)
  const [front] = federation.fronts as [Federation['fronts'][number]]
  await front.child.kill()
  await federation.broker?.kill()
  areAway = true
  await Promise.all(work)

  expect(cycles).toBeGreaterThanOrEqual(workers * (cyclesBefore + cyclesAfter))
  expect(federation.broker?.isRunning).toBe(false)
  const status = await client.partitions.status({})
  expect(status).toMatchObject({ machines: { ready: machines }, overdue: 0, faulty: 0, problems: [] })
})
