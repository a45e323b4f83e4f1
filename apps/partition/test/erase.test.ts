// Giving a machine back: its disks are erased before anybody else can have it, and each erasure has a certificate. Real PostgreSQL, a real BMC; the test
// is the agent.
import { createVerifier } from '@muster/server/global/signature'
import { expect, test } from 'vitest'
import type { MachineRow } from '../src/db/machines.ts'
import { machineToken } from '../src/domain/machine-token.ts'
import { requestMove } from '../src/domain/machines.ts'
import { addMachine, runPartition, startCore, type TestPartition, until } from './harness.ts'
import { settingsOf, startBmcs, type VirtualMachine } from './virtual-bmc.ts'

const disks = [
  { name: 'sda', serial: 'S1', model: 'Disk', sizeBytes: 1e12, kind: 'ssd' as const },
  { name: 'nvme0n1', serial: 'N1', model: 'Fast', sizeBytes: 2e12, kind: 'nvme' as const },
]
const used = { state: 'deployed' as const, owner: 'alice', disks_used: true, run: 'r0' }

async function deployedIn(partition: TestPartition, columns: Partial<MachineRow> = {}): Promise<MachineRow> {
  const [bmc] = (await startBmcs(1)) as [VirtualMachine]
  bmc.pressPower({ to: 'on' })
  const machine = await addMachine(partition.core, { ...used, ...columns }, { disks })
  await partition.as('olga').machines.update({ id: machine.id, powerDriver: 'ipmi', powerSettings: settingsOf(bmc) })
  return machine
}

/** What the machine's loader is told; its agent's token, once that is for erasing. */
async function bootedFor(partition: TestPartition, machine: MachineRow): Promise<string> {
  return until(async () => {
    const { text } = await partition.ask('GET', `/boot/ipxe/${machine.interfaces[0]?.mac}`)
    return text.includes('muster.mode=erase') && /muster\.token=(\S+)/.exec(text)?.[1]
  })
}

const erasureOf = ({ name, serial, model, sizeBytes }: (typeof disks)[number]) => ({
  ...{ disk: name, serial, model, sizeBytes },
  ...{ outcome: 'discarded', samples: 64, seconds: 3 },
})
const say = (partition: TestPartition, token: string) => async (door: 'erasure' | 'signal', body: object) =>
  (await partition.ask('POST', `/agent/${door}`, { token, body })).status
const done = { status: 'done', step: 'erase', message: '2 disks erased', progress: 100 }

test('a machine that was used is nobody’s only when every disk has its certificate and it is off', async () => {
  const partition = await runPartition({ rules: { erase: 'quick' } })
  const machine = await deployedIn(partition)
  const { id } = machine
  const [alice, olga] = [partition.as('alice').machines, partition.as('olga').machines]
  await expect(alice.release({ id, erase: 'none' })).rejects.toMatchObject({ code: 'forbidden', message: expect.stringContaining('quick') })
  expect(await alice.release({ id })).toMatchObject({ state: 'releasing' })
  const token = await bootedFor(partition, machine)
  const tell = say(partition, token)
  expect(JSON.parse((await partition.ask('GET', '/agent/job', { token })).text)).toMatchObject({
    kind: 'erase',
    machine: id,
    method: 'quick',
  })
  await until(async () => (await olga.get({ id })).power === 'on')

  expect(await tell('erasure', erasureOf(disks[0] as never))).toBe(204)
  // Its end is not believed while a disk is missing.
  expect(await tell('signal', done)).toBe(204)
  expect(await olga.get({ id })).toMatchObject({
    state: 'failed_releasing',
    owner: 'alice',
    fault: { code: 'erase-failed', message: expect.stringContaining('nvme0n1') },
  })
  // Too late.
  expect(await tell('erasure', erasureOf(disks[1] as never))).toBe(409)

  await alice.release({ id, erase: 'full' })
  const again = await bootedFor(partition, machine)
  expect(again).not.toBe(token)
  const retell = say(partition, again)
  for (const each of [...disks, ...disks]) expect(await retell('erasure', { ...erasureOf(each), outcome: 'overwritten' })).toBe(204)
  expect(await retell('signal', done)).toBe(204)
  await until(async () => (await olga.get({ id })).state === 'ready')
  expect(await olga.get({ id })).toMatchObject({ owner: null, power: 'off', deployment: null, fault: null })

  const { items } = await olga.erasures({ id })
  expect(items.map(({ disk, outcome, owner, serial }) => [disk, outcome, owner, serial])).toEqual([
    ['nvme0n1', 'overwritten', 'alice', 'N1'],
    ['sda', 'overwritten', 'alice', 'S1'],
    ['sda', 'discarded', 'alice', 'S1'],
  ])
  const verifier = createVerifier([partition.core.certifier.publicKey], 'erasure certificate')
  for (const item of items) {
    verifier.check(item)
    expect(() => verifier.check({ ...item, payload: item.payload.replace('alice', 'bob') })).toThrow('not right')
  }
  await expect(partition.as('alice').machines.erasures({ id })).rejects.toMatchObject({ code: 'forbidden' })
  // Nothing to erase the second time: nobody had it in between.
  expect(await partition.sql`select disks_used, erase from machines where id = ${id}`).toEqual([{ disks_used: false, erase: null }])
})

test('what an agent could not erase is told by disk, and an operator may give the machine on all the same', async () => {
  const partition = await runPartition({ rules: { erase: 'quick' } })
  const machine = await deployedIn(partition)
  const { id } = machine
  const olga = partition.as('olga').machines
  await olga.release({ id })
  const tell = say(partition, await bootedFor(partition, machine))
  await tell('signal', { status: 'failed', step: 'erase', message: 'write to /dev/sda: Input/output error', progress: 0 })
  expect(await olga.get({ id })).toMatchObject({
    state: 'failed_releasing',
    fault: { code: 'erase-failed', message: expect.stringContaining('/dev/sda') },
  })
  await olga.release({ id, erase: 'none' })
  await until(async () => (await olga.get({ id })).state === 'ready')
  // Its disks still hold what they held: the next release owes it.
  expect(await partition.sql`select disks_used from machines where id = ${id}`).toEqual([{ disks_used: true }])
})

test('a machine that never had a system is given back at once; one that was used and cannot be started, only by an operator', async () => {
  const partition = await runPartition({ rules: { erase: 'full' } })
  const olga = partition.as('olga').machines
  const unused = await deployedIn(partition, { state: 'allocated', disks_used: false })
  const bare = await addMachine(partition.core, used)
  await olga.release({ id: bare.id })
  await until(async () => (await olga.get({ id: bare.id })).state === 'failed_releasing')
  expect(await olga.get({ id: bare.id })).toMatchObject({
    owner: 'alice',
    fault: { code: 'erase-failed', message: expect.stringContaining('no power driver'), hint: expect.stringContaining('--erase none') },
  })
  await olga.release({ id: bare.id, erase: 'none' })
  await olga.release({ id: unused.id })
  for (const { id } of [unused, bare]) {
    await until(async () => (await olga.get({ id })).state === 'ready')
    expect(await olga.erasures({ id })).toEqual({ items: [] })
  }
})

test('an agent that never appears is a fault that names the way it should have come', async () => {
  const partition = await runPartition({ rules: { erase: 'quick', agentStartMs: 300 } })
  const { id } = await deployedIn(partition)
  const olga = partition.as('olga').machines
  await olga.release({ id })
  await until(async () => (await olga.get({ id })).state === 'failed_releasing')
  expect((await olga.get({ id })).fault).toMatchObject({ code: 'agent-missing', hint: expect.stringContaining('DHCP') })
})

test('an aborted release says by whom and what is left, its agent is heard no more, and the next release begins anew', async () => {
  const partition = await runPartition({ rules: { erase: 'quick' } })
  const machine = await deployedIn(partition)
  const { id } = machine
  const [alice, olga] = [partition.as('alice').machines, partition.as('olga').machines]
  await alice.release({ id })
  const tell = say(partition, await bootedFor(partition, machine))
  await until(async () => (await olga.get({ id })).power === 'on')
  await tell('erasure', erasureOf(disks[0] as never))
  await expect(partition.as('bob').machines.abort({ id })).rejects.toMatchObject({ code: 'forbidden' })
  expect(await olga.abort({ id })).toMatchObject({
    state: 'failed_releasing',
    owner: 'alice',
    fault: {
      code: 'release-aborted',
      message: 'olga aborted the release; not erased: nvme0n1',
      hint: expect.stringContaining('release it again'),
    },
  })
  // A repeat joins; what the agent says is nobody's word any more, and its power goes.
  expect(await olga.abort({ id })).toMatchObject({ state: 'failed_releasing' })
  expect([await tell('signal', done), await tell('erasure', erasureOf(disks[1] as never))]).toEqual([401, 401])
  await until(async () => (await olga.get({ id })).power === 'off')
  expect(await partition.sql`select disks_used from machines where id = ${id}`).toEqual([{ disks_used: true }])

  await alice.release({ id })
  const retell = say(partition, await bootedFor(partition, machine))
  // The first disk's certificate is of the run that was aborted.
  await retell('erasure', erasureOf(disks[1] as never))
  await retell('signal', done)
  expect((await olga.get({ id })).fault).toMatchObject({ code: 'erase-failed', message: expect.stringContaining('sda') })
})

test.each([
  [{ erase: null, disks_used: true }, 'its disks were not to be erased'],
  [{ erase: null, disks_used: false }, 'its disks hold nothing of an owner'],
  [{ erase: 'full' as const, disks_used: true, disks: [] }, 'not erased: any disk (none of it is known)'],
])('the fault of an aborted release: %o', async (columns, says) => {
  const core = await startCore()
  const { id } = await addMachine(core, { ...used, state: 'releasing', ...columns })
  const { state, fault } = await requestMove(core, { name: 'olga', role: 'operator' }, 'abort', { id })
  expect([state, fault?.message]).toEqual(['failed_releasing', `olga aborted the release; ${says}`])
})

test('disks of one serial number need a certificate each, by their names within the controller; names that change at a boot change nothing', async () => {
  const partition = await runPartition({ rules: { erase: 'quick' } })
  const disk = (name: string, serial: string) => ({ name, serial, model: 'Disk', sizeBytes: 1e12, kind: 'nvme' as const })
  const erased = async (known: ReturnType<typeof disk>[], told: ReturnType<typeof disk>[]) => {
    const machine = await addMachine(
      partition.core,
      { ...used, state: 'releasing', erase: 'quick', run: 'r1', attention_at: null },
      { disks: known },
    )
    const tell = say(partition, machineToken(partition.core.seal, 'agent', { id: machine.id, run: 'r1' }))
    for (const each of told) expect(await tell('erasure', erasureOf(each as never))).toBe(204)
    await tell('signal', done)
    const { state, fault } = await partition.as('olga').machines.get({ id: machine.id })
    return fault?.message ?? state
  }
  const spaces = [disk('nvme0n1', 'N1'), disk('nvme0n2', 'N1')]
  expect(await erased(spaces, spaces.slice(0, 1))).toContain('did not say that it erased nvme0n2')
  expect(await erased(spaces, [disk('nvme1n1', 'N1'), disk('nvme1n1', 'N1')])).toContain('nvme0n2')
  expect(await erased(spaces, [disk('nvme1n2', 'N1'), disk('nvme1n1', 'N1')])).toBe('releasing')
  // The power went after the first; at the next boot the other one had its name.
  const pair = [disk('sda', 'S1'), disk('sdb', 'S2')]
  expect(await erased(pair, [disk('sda', 'S1'), disk('sda', 'S2')])).toBe('releasing')
  // Nobody knows which disks an adopted machine has: its agent must have found one.
  expect(await erased([], [])).toContain('did not say that it erased any disk')
  expect(await erased([], pair)).toBe('releasing')
})
