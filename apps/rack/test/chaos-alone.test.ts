// R3: a partition needs nobody. Its front and its broker are killed under load; on its own API a user of the global configuration has machines allocated,
// booted, installed, told who they are (metadata), switched and given back as before, and not one call fails; then it is killed itself, and starts and works
// with nobody there. When they are back, they find everything as it is, and nothing has to be mended.
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { newToken } from '@muster/server/tokens'
import { type Client, createClient } from '@muster/shared/client'
import type { Machine } from '@muster/shared/machine'
import { afterAll, beforeAll, expect, it, vi } from 'vitest'
import { type Federation, startFederation } from '../src/federation/federation.ts'

const machines = 6
const workers = 4
const cyclesBefore = 1
const cyclesAfter = 4
const cyclesAfterItsOwnRestart = 2

let federation: Federation
let dataDir: string
/** On the partition's own API: an admin of the tokens file, and a user whom only the global configuration knows. */
let admin: Client
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
  const patient = { timeout: 60_000, interval: 200 }
  admin = createClient({ url: partition.url, token: federation.token })
  await vi.waitFor(async () => expect((await admin.partitions.status({})).machines.ready).toBe(machines), patient)
  const { token, sha256 } = newToken()
  const times = { createdAt: new Date().toISOString(), expiresAt: '2099-01-01T00:00:00.000Z' }
  const [front] = federation.fronts as [Federation['fronts'][number]]
  await createClient({ url: front.url, token: federation.token }).config.change({
    put: [
      { kind: 'user', name: 'una', document: { role: 'user' } },
      { kind: 'token', name: 't-000000000001', document: { user: 'una', role: 'user', sha256, ...times } },
    ],
  })
  client = createClient({ url: partition.url, token })
  await vi.waitFor(() => client.session.whoami(), patient)
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

it('without front and broker every call of a partition’s own API goes on as before, also when it was killed itself', {
  timeout: 400_000,
}, async () => {
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

  // Its own turn. Nobody can tell it anything when it comes back.
  const [partition] = federation.partitions as [Federation['partitions'][number]]
  await partition.child.kill()
  await partition.child.start()
  const again = Array.from({ length: workers }, async () => {
    for (let left = cyclesAfterItsOwnRestart; left > 0; left--) {
      await cycle()
      cycles++
    }
  })
  await Promise.all(again)
  expect([front.child.isRunning, federation.broker?.isRunning]).toEqual([false, false])
  const status = await admin.partitions.status({})
  expect(status).toMatchObject({
    machines: { ready: machines },
    overdue: 0,
    faulty: 0,
    problems: [{ problem: expect.stringContaining('not on the bus') }],
  })

  const rowsOf = async (from: Client) =>
    (await from.machines.list({})).items.map(({ id, state, owner, version }) => ({ id, state, owner, version }))
  const before = await rowsOf(admin)
  const copies = await admin.config.copies({})
  const held = copies.items.map(({ generation, digest }) => ({ generation, digest }))
  expect(held).toHaveLength(1)
  await federation.broker?.start()
  await front.child.start()
  const there = createClient({ url: front.url, token: federation.token })
  const patient = { timeout: 60_000, interval: 200 }
  await vi.waitFor(async () => expect((await admin.partitions.status({})).problems).toEqual([]), patient)
  await vi.waitFor(async () => expect(await rowsOf(there)).toEqual(before), patient)
  expect((await admin.config.copies({})).items).toMatchObject(held)
})
