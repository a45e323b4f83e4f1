// What people do with machines through the partition's own API, and what they may not.
import { newAllocationId } from '@muster/shared/ids'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { MachineRow } from '../src/db/machines.ts'
import { addMachine, allEvents, movesOf, newMac, reread, runPartition, type TestPartition, until } from './harness.ts'
import { settingsOf, startBmcs, type VirtualMachine } from './virtual-bmc.ts'

let partition: TestPartition
let bmcs: readonly VirtualMachine[]
const ends: (() => Promise<void>)[] = []
beforeAll(async () => {
  const ending = (end: () => Promise<void>) => void ends.push(end)
  partition = await runPartition({ rules: { powerCheckMs: 200 } }, ending)
  bmcs = await startBmcs(4, {}, ending)
})
afterAll(async () => {
  for (const end of ends.reverse()) await end()
})

const nic = () => ({ mac: newMac() })
const add = (columns: Partial<MachineRow> = {}, driver: string | null = null) =>
  addMachine(partition.core, columns, { powerDriver: driver })
const owned = { owner: 'alice', allocation_id: 'a-0123456789bcdfgh' }

describe('creating a machine', () => {
  test('answers it as new, with what was left out filled in, and says so in the log', async () => {
    const mac = newMac()
    const made = await partition
      .as('olga')
      .machines.create({ interfaces: [{ mac: mac.toUpperCase().replaceAll(':', '-') }], tags: ['gpu', 'gpu'] })
    expect(made).toMatchObject({
      partition: 'lon1',
      hostname: made.id,
      state: 'new',
      power: 'unknown',
      arch: 'amd64',
      pool: 'default',
      tags: ['gpu'],
      interfaces: [{ mac }],
      version: 1,
      owner: null,
      powerDriver: null,
    })
    expect(await partition.as('rita').machines.get({ id: made.id })).toMatchObject({ id: made.id, inventory: null, powerSettings: null })
    await until(async () =>
      (await partition.as('rita').events.list({ machine: made.id })).items.some(({ kind }) => kind === 'machine.created'),
    )
  })

  test('refuses a name or an address that another machine has, and leaves nothing behind', async () => {
    const first = await partition.as('olga').machines.create({ hostname: 'web-1', interfaces: [nic()] })
    const count = async () => (await partition.sql`select from machines`).length
    const before = await count()
    await expect(partition.as('olga').machines.create({ hostname: 'web-1', interfaces: [nic()] })).rejects.toMatchObject({
      code: 'already-exists',
      message: expect.stringContaining('web-1'),
    })
    const mac = first.interfaces[0]?.mac as string
    await expect(partition.as('olga').machines.create({ interfaces: [nic(), { mac }] })).rejects.toMatchObject({ code: 'already-exists' })
    await expect(partition.as('olga').machines.create({ partition: 'par2', interfaces: [nic()] })).rejects.toMatchObject({
      code: 'not-found',
    })
    await expect(partition.as('alice').machines.create({ interfaces: [nic()] })).rejects.toMatchObject({ code: 'forbidden' })
    expect(await count()).toBe(before)
  })

  test('names the field of power settings that is wrong', async () => {
    const create = (powerDriver: string, powerSettings: Record<string, unknown>) =>
      partition.as('olga').machines.create({ interfaces: [nic()], powerDriver, powerSettings })
    await expect(create('telepathy', {})).rejects.toMatchObject({ code: 'invalid-input', facts: { errors: [{ field: 'powerDriver' }] } })
    await expect(create('ipmi', { address: 'bmc', user: 'a', password: 'b'.repeat(21) })).rejects.toMatchObject({
      facts: { errors: [{ field: 'powerSettings.password' }] },
    })
    await expect(create('ipmi', { address: 'bmc', user: 'a', password: 'b', colour: 'red' })).rejects.toMatchObject({
      facts: { errors: [{ field: 'powerSettings.colour', message: 'unknown field' }] },
    })
  })

  test('takes ports that share one address: bonds have that', async () => {
    const mac = newMac()
    const made = await partition.as('olga').machines.create({
      interfaces: [
        { mac, name: 'eth0' },
        { mac, name: 'bond0' },
      ],
    })
    expect(made.interfaces).toHaveLength(2)
  })
})

describe('changing a machine', () => {
  test('raises its version; an old version is refused', async () => {
    const { id } = await add()
    const first = await partition.as('olga').machines.update({ id, version: 1, note: 'one', pool: 'p2', tags: ['a', 'a', 'b'] })
    expect(first).toMatchObject({ version: 2, note: 'one', pool: 'p2', tags: ['a', 'b'] })
    await expect(partition.as('olga').machines.update({ id, version: 1, note: 'two' })).rejects.toMatchObject({
      code: 'stale-version',
      facts: { version: 2 },
    })
    expect(await partition.as('olga').machines.update({ id, note: 'three' })).toMatchObject({ version: 3, note: 'three', pool: 'p2' })
  })

  test('by many at once loses no change', async () => {
    const { id } = await add()
    const fields = ['note', 'pool', 'zone', 'rack', 'hostname'] as const
    await Promise.all(fields.map(field => partition.as('olga').machines.update({ id, [field]: `new-${field}` })))
    expect(await partition.as('olga').machines.get({ id })).toMatchObject({
      ...Object.fromEntries(fields.map(field => [field, `new-${field}`])),
      version: 6,
    })
  })

  test('is done whole or not at all: a name that is taken keeps the power settings as they were', async () => {
    await add({ hostname: 'taken' })
    const { id } = await add({}, 'manual')
    const before = await partition.sql`select driver, settings, secrets from machine_power where machine_id = ${id}`
    const settings = { powerDriver: 'ipmi', powerSettings: { address: '10.0.0.1', user: 'a', password: 'b' } }
    await expect(partition.as('olga').machines.update({ id, hostname: 'taken', ...settings })).rejects.toMatchObject({
      code: 'already-exists',
    })
    expect(await partition.sql`select driver, settings, secrets from machine_power where machine_id = ${id}`).toEqual(before)
    expect(await partition.as('olga').machines.update({ id, ...settings })).toMatchObject({ powerDriver: 'ipmi', power: 'unknown' })
  })
})

describe('deleting a machine', () => {
  test('works where nobody uses it, and only there', async () => {
    for (const state of ['new', 'failed_commissioning', 'ready', 'broken', 'retired'] as const) {
      const { id, interfaces } = await add({ state })
      await partition.as('olga').machines.delete({ id })
      await expect(partition.as('olga').machines.get({ id })).rejects.toMatchObject({ code: 'not-found' })
      expect(await partition.sql`select from macs where mac = ${interfaces[0]?.mac as string}`).toHaveLength(0)
    }
    for (const state of [
      'commissioning',
      'reserved',
      'allocated',
      'deploying',
      'failed_deployment',
      'deployed',
      'releasing',
      'rescue',
    ] as const) {
      const { id } = await add({ state, attention_at: null })
      await expect(partition.as('olga').machines.delete({ id }), state).rejects.toMatchObject({ code: 'wrong-state' })
    }
    const { id } = await add({ state: 'broken', ...owned })
    await expect(partition.as('olga').machines.delete({ id })).rejects.toMatchObject({ code: 'machine-owned' })
  })

  test('keeps its events', async () => {
    const { id } = await add()
    await partition.as('olga').machines.delete({ id })
    const kinds = await until(async () => {
      const { items } = await partition.as('olga').events.list({ machine: id })
      return items.some(({ kind }) => kind === 'machine.deleted') && items.map(({ kind }) => kind)
    })
    expect(kinds).toEqual(['machine.created', 'machine.deleted'])
  })
})

describe('a lock', () => {
  test('stops every change a person asks for, and none of what the machine does', async () => {
    const { id } = await add({ state: 'deployed', ...owned }, 'manual')
    expect(await partition.as('alice').machines.lock({ id, reason: 'demo at noon' })).toMatchObject({ locked: true })
    const version = (await reread(partition.core, id)).version
    const olga = partition.as('olga').machines
    const asks = {
      update: () => olga.update({ id, note: 'x' }),
      release: () => olga.release({ id }),
      rescue: () => olga.rescue({ id }),
      markBroken: () => olga.markBroken({ id }),
      power: () => olga.power({ id, action: 'off' }),
    }
    for (const [name, ask] of Object.entries(asks))
      await expect(ask(), name).rejects.toMatchObject({ code: 'locked', message: expect.stringContaining('demo at noon') })
    await expect(olga.delete({ id: (await add({ state: 'ready', locked: true })).id })).rejects.toMatchObject({ code: 'locked' })
    expect((await reread(partition.core, id)).version).toBe(version)
    expect(await olga.explain({ id })).toMatchObject({ allowed: [], nextStep: 'nothing until it is unlocked (demo at noon)' })
    await expect(partition.as('bob').machines.unlock({ id })).rejects.toMatchObject({ code: 'forbidden' })
    // Again is harmless.
    expect((await partition.as('alice').machines.unlock({ id })).version).toBe(version + 1)
    expect((await partition.as('alice').machines.unlock({ id })).version).toBe(version + 1)
    expect(await olga.markBroken({ id, reason: 'smoke' })).toMatchObject({
      state: 'broken',
      fault: { code: 'marked-broken', message: 'smoke' },
    })
  })
})

describe('who may', () => {
  test('that is broken is explained with what may be asked of it, which depends on whether it is somebody’s', async () => {
    const nobodys = await add({ state: 'broken' })
    const hers = await add({ state: 'broken', owner: 'alice', allocation_id: newAllocationId() })
    const { explain } = partition.as('olga').machines
    expect((await explain({ id: nobodys.id })).allowed).toEqual(['fix', 'retire'])
    expect((await explain({ id: hers.id })).allowed).toEqual(['release'])
  })

  test('users touch what they own, and nothing else', async () => {
    const mine = await add({ state: 'deployed', ...owned }, 'manual')
    const free = await add({ state: 'ready' }, 'manual')
    for (const [id, name] of [
      [mine.id, 'bob'],
      [free.id, 'bob'],
    ] as const) {
      const { machines } = partition.as(name)
      const asks = {
        release: () => machines.release({ id }),
        rescue: () => machines.rescue({ id }),
        lock: () => machines.lock({ id }),
        power: () => machines.power({ id, action: 'on' }),
      }
      for (const [verb, ask] of Object.entries(asks))
        await expect(ask(), verb).rejects.toMatchObject({ code: expect.stringMatching(/forbidden|wrong-state/) })
    }
    for (const verb of ['commission', 'markBroken', 'fix', 'retire', 'restore'] as const)
      await expect(partition.as('alice').machines[verb]({ id: mine.id }), verb).rejects.toMatchObject({ code: 'forbidden' })
    await expect(partition.as('rita').machines.lock({ id: mine.id })).rejects.toMatchObject({ code: 'forbidden' })
    expect(await movesOf(partition.sql, mine.id)).toEqual([])
    expect(await partition.as('alice').machines.release({ id: mine.id })).toMatchObject({ state: 'releasing' })
  })

  test('a move in the wrong state is refused with where it would be possible', async () => {
    const { id } = await add({ state: 'ready' })
    await expect(partition.as('olga').machines.release({ id })).rejects.toMatchObject({
      code: 'wrong-state',
      facts: { state: 'ready' },
      message: expect.stringContaining('is not possible in state ready; it is in allocated'),
    })
    await expect(partition.as('olga').machines.commission({ id })).rejects.toMatchObject({ code: 'no-power-driver' })
  })

  test('a request sent twice is carried out once', async () => {
    const { id } = await add({ state: 'ready' })
    const answers = await Promise.all(Array.from({ length: 6 }, () => partition.as('olga').machines.markBroken({ id })))
    expect(new Set(answers.map(({ state }) => state))).toEqual(new Set(['broken']))
    expect(await movesOf(partition.sql, id)).toEqual(['ready markBroken broken'])
  })
})

describe('deploying', () => {
  test('needs an operating system that can be installed there', async () => {
    const { id } = await add({ state: 'allocated', arch: 'arm64', ...owned }, 'manual')
    await expect(partition.as('alice').machines.deploy({ id, os: 'plan9/4' })).rejects.toMatchObject({
      code: 'not-installable',
      message: 'partition lon1 cannot install plan9/4 on arm64: its image is not here, and no document describes one',
      facts: { available: ['debian/12', 'ubuntu/24.04'] },
    })
    expect(await movesOf(partition.sql, id)).toEqual([])
  })

  test('asked again with another system is refused, with the same it joins', async () => {
    const { id } = await add({ state: 'allocated', attention_at: null, ...owned }, 'manual')
    const { deploy } = partition.as('alice').machines
    const first = await deploy({ id, os: 'debian/12' })
    expect(first).toMatchObject({ state: 'deploying', deployment: { os: 'debian/12', installedAt: null } })
    await deploy({ id, os: 'debian/12' })
    await expect(deploy({ id, os: 'ubuntu/24.04' })).rejects.toMatchObject({ code: expect.stringMatching(/wrong-state/) })
    // The order waits for a person, and says so.
    await until(async () => (await partition.as('alice').machines.explain({ id })).powerOrders.length === 1)
    expect((await partition.as('alice').machines.explain({ id })).nextStep).toMatch(
      /a person must switch it \(cycle, booting from the network\)/,
    )
  })
})

describe('power', () => {
  const settings = (bmc: VirtualMachine) => ({ powerDriver: 'ipmi', powerSettings: settingsOf(bmc) })
  const deployed = async (bmc: VirtualMachine) => {
    const { id } = await add({ state: 'deployed', ...owned })
    await partition.as('olga').machines.update({ id, ...settings(bmc) })
    return id
  }

  test('of a deployed machine is its owner’s business; what was seen is what is shown', async () => {
    const id = await deployed(bmcs[0] as VirtualMachine)
    expect(await partition.as('alice').machines.power({ id, action: 'on', wait: '10s' })).toMatchObject({ power: 'on' })
    expect(bmcs[0]?.power).toBe('on')
    expect(await partition.as('alice').machines.power({ id, action: 'cycle', wait: '10s' })).toMatchObject({ power: 'on' })
    expect(await partition.as('alice').machines.power({ id, action: 'off', wait: '10s' })).toMatchObject({ power: 'off' })
    expect(bmcs[0]?.power).toBe('off')
    // Pressed by hand: the monitor sees it, and leaves a deployed machine alone.
    bmcs[0]?.pressPower({ to: 'on' })
    await until(async () => (await partition.as('alice').machines.get({ id })).power === 'on')
    await new Promise(resolve => setTimeout(resolve, 300))
    expect(bmcs[0]?.power).toBe('on')
  })

  test('of a machine that nobody uses is off, and is switched off where it is not', async () => {
    const [, bmc] = bmcs as [VirtualMachine, VirtualMachine]
    bmc.pressPower({ to: 'on' })
    const { id } = await add({ state: 'ready' })
    await partition.as('olga').machines.update({ id, ...settings(bmc) })
    await until(async () => bmc.power === 'off')
    await expect(partition.as('olga').machines.power({ id, action: 'on' })).rejects.toMatchObject({
      code: 'wrong-state',
      message: expect.stringContaining('is to be off'),
    })
    await until(async () => (await partition.as('olga').machines.get({ id })).power === 'off')
    bmc.pressPower({ to: 'on' })
    await until(async () => bmc.power === 'off')
  })

  test('of a machine whose BMC does not answer: the order fails with what was tried, on what', { timeout: 60_000 }, async () => {
    const bmc = bmcs[2] as VirtualMachine
    const id = await deployed(bmc)
    await partition.as('olga').machines.update({ id, powerDriver: 'ipmi', powerSettings: { ...settingsOf(bmc), password: 'wrong' } })
    expect((await partition.as('alice').machines.power({ id, action: 'on', wait: '30s' })).order).toMatchObject({
      state: 'failed',
      askedBy: 'alice',
      fault: { code: 'power-authentication', hint: expect.any(String) },
    })
    // Where a BMC is and what it is called is an operator's business.
    const told = async (who: 'alice' | 'olga' | 'rita') =>
      JSON.stringify([
        await partition.as(who).machines.get({ id }),
        await partition.as(who).machines.explain({ id }),
        await partition.as(who).machines.powerOrders({ id }),
        await partition.as(who).events.list({ machine: id }),
      ])
    expect(await told('olga')).toContain(bmc.bmc.address)
    expect(await told('alice')).not.toContain(bmc.bmc.address)
    expect(await told('rita')).not.toContain(bmc.bmc.address)
    expect((await partition.as('alice').machines.powerOrders({ id })).items).toMatchObject([
      { action: 'on', state: 'failed', askedBy: 'alice' },
    ])
    expect(await partition.as('olga').machines.explain({ id })).toMatchObject({
      lastFault: { code: 'power-authentication', hint: expect.any(String) },
    })
    // Right settings, and it works again.
    await partition.as('olga').machines.update({ id, ...settings(bmc) })
    expect(await partition.as('alice').machines.power({ id, action: 'on', wait: '20s' })).toMatchObject({ power: 'on' })
  })

  test('without a driver is refused', async () => {
    const { id } = await add({ state: 'deployed', ...owned })
    await expect(partition.as('alice').machines.power({ id, action: 'on' })).rejects.toMatchObject({ code: 'no-power-driver' })
  })
})

test('secrets that were planted appear in no answer, no event and no log line', { timeout: 30_000 }, async () => {
  const plants = ['planted-bmc-secret', 'planted-kg-secret', 'planted-user-data', 'planted-ssh-key', 'planted-token']
  const bmc = bmcs[3] as VirtualMachine
  const wrong = { ...settingsOf(bmc), password: plants[0], kg: plants[1] }
  const answers: unknown[] = []
  const { machines } = partition.as('olga')
  const made = await machines.create({ interfaces: [nic()], powerDriver: 'ipmi', powerSettings: wrong })
  const { id } = made
  answers.push(made, await machines.get({ id }), await machines.explain({ id }), await machines.list({}))
  answers.push(await machines.update({ id, note: 'x', powerDriver: 'ipmi', powerSettings: wrong }))
  answers.push(
    await machines
      .update({ id, powerDriver: 'ipmi', powerSettings: { ...wrong, port: 'x' } })
      .catch(error => ({ ...error.facts, message: error.message })),
  )
  await partition.sql`update machines set state = 'allocated', owner = 'alice', allocation_id = 'a-0123456789bcdfgh' where id = ${id}`
  answers.push(
    await partition
      .as('alice')
      .machines.deploy({ id, os: 'debian/12', userData: `#cloud-config\n# ${plants[2]}`, sshKeys: [plants[3] as string] }),
  )
  // The power does not answer to this password: fault, event and log line speak of it.
  await until(async () => (await reread(partition.core, id)).state === 'failed_deployment', 20_000)
  answers.push(await machines.get({ id }), await machines.explain({ id }), await partition.as('alice').machines.get({ id }))
  const bad = await partition.ask('GET', `/metadata/${plants[4]}/user-data`)
  answers.push(bad.text, (await partition.ask('GET', '/api/v1/session', { token: plants[4] as string })).text)
  answers.push(
    await allEvents(partition),
    (await partition.ask('GET', '/metrics')).text,
    (await partition.ask('GET', '/healthz')).text,
    partition.lines,
  )
  const everything = JSON.stringify(answers)
  for (const plant of plants) expect(everything, plant).not.toContain(plant)
  // Shown as being there, to operators; users do not see the BMC at all.
  expect((await machines.get({ id })).powerSettings).toMatchObject({ address: `${bmc.bmc.address}:${bmc.bmc.port}`, secrets: '***' })
  expect((await partition.as('alice').machines.get({ id })).powerSettings).toBeNull()
  // In the rows they are sealed.
  const rows = JSON.stringify([
    await partition.sql`select settings, encode(secrets, 'escape') as s from machine_power`,
    await partition.sql`select encode(deployment_secrets, 'escape') as s, deployment from machines`,
  ])
  for (const plant of plants) expect(rows, plant).not.toContain(plant)
})
