// Machines that only people can switch: their orders wait until somebody says that it was done, and the life cycle goes on with that.
import { afterAll, beforeAll, expect, test } from 'vitest'
import { addMachine, runPartition, type TestPartition, until } from './harness.ts'

let partition: TestPartition
const ends: (() => Promise<void>)[] = []
beforeAll(async () => {
  partition = await runPartition({}, end => void ends.push(end))
})
afterAll(async () => {
  for (const end of ends.reverse()) await end()
})

const owned = { owner: 'alice', allocation_id: 'a-0123456789bcdfgh' }
const manual = { powerDriver: 'manual' }

test('a deployed machine is switched by a person, who says so', async () => {
  const { id } = await addMachine(partition.core, { state: 'deployed', ...owned }, manual)
  const { order } = await partition.as('alice').machines.power({ id, action: 'on' })
  expect(order).toMatchObject({ state: 'queued', askedBy: 'alice' })
  expect((await partition.as('rita').machines.explain({ id })).nextStep).toContain('a person must switch it (on)')
  expect(await partition.as('alice').machines.confirmPower({ id, power: 'on' })).toMatchObject({
    power: 'on',
    powerSeenAt: expect.any(String),
  })
  expect((await partition.as('alice').machines.powerOrders({ id })).items).toMatchObject([{ action: 'on', state: 'done' }])
})

test('a machine is given back when a person says that it is off, and not before', async () => {
  const { id } = await addMachine(partition.core, { state: 'deployed', ...owned }, manual)
  await partition.as('alice').machines.release({ id })
  await until(async () => (await partition.as('rita').machines.explain({ id })).powerOrders.length === 1)
  // Saying that it is on does not end an order to switch it off.
  await partition.as('alice').machines.confirmPower({ id, power: 'on' })
  expect((await partition.as('rita').machines.get({ id })).state).toBe('releasing')
  await partition.as('alice').machines.confirmPower({ id, power: 'off' })
  await until(async () => (await partition.as('rita').machines.get({ id })).state === 'ready')
})

test('only who may, and only where there is no switch to ask', async () => {
  const byHand = await addMachine(partition.core, { state: 'deployed', ...owned }, manual)
  await expect(partition.as('bob').machines.confirmPower({ id: byHand.id, power: 'on' })).rejects.toMatchObject({ code: 'forbidden' })
  const switched = await addMachine(partition.core, { state: 'deployed', ...owned }, { powerDriver: null })
  await expect(partition.as('alice').machines.confirmPower({ id: switched.id, power: 'on' })).rejects.toMatchObject({ code: 'wrong-state' })
})

test('a driver that runs programs on the server is for labs only, and an enlisting machine can name none', async () => {
  const create = partition
    .as('olga')
    .machines.create({ interfaces: [{ mac: '02:00:00:00:aa:01' }], powerDriver: 'qemu', powerSettings: {} })
  await expect(create).rejects.toMatchObject({ code: 'invalid-input', message: expect.stringContaining('only a lab') })
  const body = { arch: 'amd64', cpus: 1, memoryMib: 1, interfaces: [{ mac: '02:00:00:00:aa:02' }], disks: [] }
  const bmc = { driver: 'webhook', settings: { queryUri: 'http://127.0.0.1:1/' } }
  const answer = await fetch(`${partition.url}/agent/enlist`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...body, bmc }),
  })
  expect(answer.status).toBe(422)
  expect(await answer.json()).toMatchObject({ errors: [{ field: 'bmc' }] })
})
