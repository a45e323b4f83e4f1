// The bus door: what a partition says to fronts, whatever the size of its answers and the moment of its end.
import { createLocalBroker } from '@muster/server/bus/local-bus'
import { protocolVersion, subjects } from '@muster/shared/bus/protocol'
import type { CallAnswer, CallName } from '@muster/shared/contract/contract'
import type { Disk } from '@muster/shared/machine'
import { expect, onTestFinished, test } from 'vitest'
import { handlers } from '../src/backend/handlers.ts'
import { LocalBackend } from '../src/backend/local.ts'
import { type BusDoor, openBusDoor } from '../src/doors/bus.ts'
import { addMachine, operator, startCore, type TestCore, until } from './harness.ts'

/** A partition's bus door with nothing around it, and a front's way to ask it. */
async function openDoor(): Promise<{
  core: TestCore
  door: BusDoor
  ask: <Name extends CallName>(call: Name, input: object) => Promise<{ ok?: CallAnswer<Name>; problem?: { code: string } }>
}> {
  const core = await startCore()
  const broker = createLocalBroker()
  const replica = { name: 'a', epoch: 1 }
  const self = {
    replica,
    version: '0.0.0',
    url: 'http://127.0.0.1:1',
    problems: () => [],
    settingsProblems: () => [],
    weaknesses: [],
    fetching: () => [],
    dhcp: () => [],
    whyAway: () => undefined,
    webhooks: { problems: new Map(), ring: () => undefined },
  }
  const backend = new LocalBackend({ partition: core.partition, handlers: handlers(core, self), readiness: () => [] })
  const bus = broker.connect()
  const door = openBusDoor({ core, bus, backend, replica, version: self.version, url: self.url, log: core.log })
  const front = broker.connect()
  onTestFinished(async () => {
    await door.close()
    await Promise.all([bus.close(), front.close()])
  })
  const ask = async (call: string, input: object) => {
    const envelope = { v: protocolVersion, id: `front~${call}`, deadline: Date.now() + 60_000, caller: operator }
    const data = new TextEncoder().encode(JSON.stringify({ ...envelope, call, input }))
    return JSON.parse(new TextDecoder().decode(await front.request(subjects.call(core.partition), data, { timeoutMs: 60_000 })))
  }
  await until(async () => (await ask('session.whoami', {}).catch(() => undefined)) !== undefined)
  return { core, door, ask }
}

test('a page too large for the bus is answered in part, with the way to go on: a full list misses no machine', async () => {
  const { core, ask } = await openDoor()
  const disks: Disk[] = Array.from({ length: 200 }, (_, index) => ({
    name: `sd${index}`,
    serial: `serial-number-${index}`,
    model: 'A disk of a storage server with a long name',
    sizeBytes: 16e12,
    kind: 'hdd',
  }))
  const wanted: string[] = []
  for (let index = 0; index < 80; index++) wanted.push((await addMachine(core, {}, { disks })).id)
  const seen: string[] = []
  let pages = 0
  for (let cursor: string | null | undefined; cursor !== null; pages++) {
    const { ok, problem } = await ask('machines.list', { limit: 1000, ...(cursor && { cursor }) })
    expect(problem).toBeUndefined()
    seen.push(...(ok?.items.map(({ id }) => id) ?? []))
    cursor = ok?.nextCursor ?? null
  }
  expect(seen).toEqual(wanted.sort())
  expect(pages).toBeGreaterThan(1)
})

test('a door that closes does not wait for those who wait: they are answered as things stand', async () => {
  const { core, door, ask } = await openDoor()
  const { id } = await addMachine(core, { state: 'deployed' }, { powerDriver: 'ipmi' })
  const waiting = ask('machines.power', { id, action: 'on', wait: '50s' })
  await until(async () => (await core.sql`select from power_orders`).length > 0)
  const startedAt = performance.now()
  await door.close()
  expect(performance.now() - startedAt).toBeLessThan(5_000)
  expect(await waiting).toMatchObject({ ok: { id, order: { action: 'on', state: 'queued' } } })
})
