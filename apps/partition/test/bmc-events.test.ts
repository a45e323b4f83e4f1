// BMCs that tell of their own accord: what they post makes the partition look, and only that.
import { expect, test } from 'vitest'
import { addMachine, runPartition, until } from './harness.ts'
import { redfishSettingsOf, startBmcs, type VirtualMachine } from './virtual-bmc.ts'

/** A deployed machine with a Redfish BMC in a partition that would look at it twice in a minute. */
async function deployed() {
  const partition = await runPartition()
  const [bmc] = (await startBmcs(1, { speaks: 'redfish' })) as [VirtualMachine]
  const { id } = await addMachine(partition.core, { state: 'deployed', owner: 'alice', allocation_id: 'a-0123456789bcdfgh' })
  await partition.as('olga').machines.update({ id, powerDriver: 'redfish', powerSettings: redfishSettingsOf(bmc) })
  const shown = async () => (await partition.as('alice').machines.get({ id })).power
  await until(async () => (await shown()) === 'off' && bmc.redfish?.subscriptions.length === 1)
  const place = () => new URL(bmc.redfish?.subscriptions[0]?.destination ?? '').pathname
  return { partition, bmc, id, shown, place }
}

test('a button pressed by hand is seen at once, not when the schedule comes round', async () => {
  const { bmc, shown, partition, id } = await deployed()
  const before = performance.now()
  bmc.pressPower({ to: 'on' })
  await until(async () => (await shown()) === 'on')
  // The schedule would have looked after 15 s at the soonest: half of the shortest round.
  expect(performance.now() - before).toBeLessThan(10_000)
  expect(bmc.redfish?.told).toBe(1)
  // Its owner's business: seen, and left alone.
  expect(await partition.as('alice').machines.get({ id })).toMatchObject({ state: 'deployed', power: 'on' })
})

test('who does not know the address of a machine is told nothing and changes nothing; who knows it is not believed', async () => {
  const { partition, place, shown, id } = await deployed()
  const checkAt = async () => (await partition.sql`select check_at from machine_power where machine_id = ${id}`)[0]?.check_at as Date
  const planned = await checkAt()
  for (const guess of [
    place().slice(0, -1),
    `${place()}0`,
    `/bmc-events/${id}`,
    `/bmc-events/${id}.`,
    `/bmc-events/x.${place().split('.')[1]}`,
  ]) {
    expect(await partition.ask('POST', guess, { body: { Events: [] } })).toMatchObject({ status: 404 })
  }
  expect(await checkAt()).toEqual(planned)
  expect(await partition.ask('POST', place(), { body: 'not JSON, and it does not matter' })).toMatchObject({ status: 204 })
  expect((await checkAt()).getTime()).toBeLessThan(planned.getTime())
  expect(await shown()).toBe('off')
  expect(await partition.ask('POST', place(), { body: 'x'.repeat(1_000_001) })).toMatchObject({ status: 413 })
})

test('one who posts without end makes the partition look once in a second', async () => {
  const { partition, place, bmc } = await deployed()
  const requests = () => bmc.redfish?.counters.requests ?? 0
  const before = requests()
  const end = performance.now() + 3_000
  let posts = 0
  while (performance.now() < end) {
    await partition.ask('POST', place(), { body: {} })
    posts += 1
  }
  expect(posts).toBeGreaterThan(50)
  // A look is one request here; the login may have to be made anew.
  expect(requests() - before).toBeLessThan(10)
})
