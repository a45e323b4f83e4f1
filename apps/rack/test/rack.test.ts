/** Machines of the virtual rack living their lives against a partition that knows the protocol and nothing else. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { commands } from '@muster/drivers/ipmi/codec'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { Happening, HistoryEntry } from '../src/machine/boot.ts'
import { type MachineSpec, type Rack, type RackMachine, type RackOptions, startRack } from '../src/rack.ts'
import { order } from './bmc-console.ts'
import { type KnownMachine, startTestPartition, type TestPartition } from './rack-partition.ts'

const limitMs = 15_000
const on = [1]
const off = [0]

async function here(specs: Partial<MachineSpec>[], options: Partial<RackOptions> = {}): Promise<{ rack: Rack; partition: TestPartition }> {
  const partition = await startTestPartition()
  onTestFinished(async () => await partition[Symbol.asyncDispose]())
  const machines = specs.map((spec, index) => ({ index, bootUrl: partition.url, ...spec }))
  const rack = await startRack({ pace: 'instant', ...options, machines })
  onTestFinished(async () => await rack.close())
  return { rack, partition }
}

/** Waits for something in a machine's history: of all of it, or numbered above a mark. */
async function seen(machine: RackMachine, what: Happening, facts: HistoryEntry['facts'] = {}, after = 0): Promise<HistoryEntry> {
  const fits = (entry: HistoryEntry) => entry.what === what && Object.entries(facts).every(([name, value]) => entry.facts[name] === value)
  try {
    return await machine.until(fits, { signal: AbortSignal.timeout(limitMs), after })
  } catch (cause) {
    const told = machine.history.map(entry => `${entry.what} ${JSON.stringify(entry.facts)}`).join('\n')
    throw new Error(`${machine.name} never came to "${what}" ${JSON.stringify(facts)}:\n${told}`, { cause })
  }
}

/** A rack of one machine that has enlisted and is off again. */
async function enlisted(spec: Partial<MachineSpec> = {}, options: Partial<RackOptions> = {}) {
  const { rack, partition } = await here([spec], options)
  const [machine] = rack.machines as [RackMachine]
  await rack.powerOnAll()
  await seen(machine, 'power off', { by: 'itself' })
  const known = partition.machines.get(machine.bootMac) as KnownMachine
  return { rack, partition, machine, known }
}

/** Gives the machine work and powers it on over IPMI, as a partition would. Returns the mark before that. */
async function put(
  to: 'commissioning' | 'deploying' | 'rescue',
  { partition, machine }: { partition: TestPartition; machine: RackMachine },
) {
  const mark = machine.lastNumber
  partition.begin(machine.bootMac, to)
  expect((await order(machine.bmc, commands.chassisControl, on)).completionCode).toBe(0)
  return mark
}

describe('a healthy machine', () => {
  test('enlists with its inventory and its BMC, and switches itself off', async () => {
    const { machine, known, partition } = await enlisted()
    expect(known.enlistment).toMatchObject({ hostname: 'r01u01', facts: { rack: 'r01', zone: 'z1', unit: 1 } })
    expect(known.enlistment.interfaces).toEqual(machine.inventory.interfaces)
    expect(known.enlistment.bmc).toEqual({
      driver: 'ipmi',
      settings: { address: `${machine.bmc.address}:${machine.bmc.port}`, user: 'muster', password: machine.bmc.password },
    })
    // What it said of its BMC is true.
    expect((await order(machine.bmc, commands.getChassisStatus)).data[0]).toBe(0x20)
    expect(partition.requests.slice(0, 4)).toEqual([
      `GET /boot/ipxe/${machine.bootMac}`,
      'GET /files/vmlinuz',
      'GET /files/initrd',
      'POST /agent/enlist',
    ])
  })

  test('is commissioned: inventory, steps with rising progress, done, off', async () => {
    const { machine, known, partition } = await enlisted()
    const since = await put('commissioning', { partition, machine })
    await seen(machine, 'power off', { by: 'itself' }, since)
    expect(known.state).toBe('ready')
    expect(known.inventory).toEqual(machine.inventory)
    expect(known.signals.at(-1)).toMatchObject({ status: 'done', progress: 100 })
    const progress = known.signals.map(said => said.progress ?? 0)
    expect(progress).toEqual(progress.toSorted((a, b) => a - b))
    expect(new Set(known.signals.map(said => said.step)).size).toBeGreaterThan(4)
  })

  test('is installed, boots from disk as told, reads its seed and phones home; a restart later it does so no more', async () => {
    const { machine, known, partition } = await enlisted()
    await put('deploying', { partition, machine })
    await seen(machine, 'phoned home')
    expect(known.state).toBe('deployed')
    expect(known.phoneHome).toEqual({
      instance_id: `${known.id}-${known.token}`,
      hostname: 'r01u01',
      fqdn: 'r01u01.localdomain',
      pub_key_ed25519: expect.stringMatching(/^ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43} root@r01u01$/),
    })
    expect(machine.disk).toMatchObject({ kind: 'installed', os: 'debian/12', instanceId: known.phoneHome?.instance_id })
    expect(machine).toMatchObject({ power: 'on', phase: 'operating system' })
    const what = machine.history.map(entry => entry.what)
    expect(what.indexOf('image written')).toBeLessThan(what.lastIndexOf('script'))
    const restarted = machine.lastNumber
    await order(machine.bmc, commands.chassisControl, [3])
    await seen(machine, 'os booted', {}, restarted)
    expect(machine.history.filter(entry => entry.what === 'phoned home')).toHaveLength(1)
  })

  test('stays up in rescue and is heard', async () => {
    const { machine, known, partition } = await enlisted()
    const since = await put('rescue', { partition, machine })
    for (let beat = 0, mark = since; beat < 3; beat++) mark = (await seen(machine, 'signal', { step: 'rescue' }, mark)).number
    expect(known.signals[2]).toMatchObject({ status: 'working', step: 'rescue' })
    expect(machine).toMatchObject({ power: 'on', phase: 'agent' })
    await order(machine.bmc, commands.chassisControl, off)
    await seen(machine, 'power off', { by: 'the BMC' }, since)
    expect(machine.phase).toBe('off')
  })

  test('at pace quick a commissioning takes a second or two', async () => {
    const { machine, partition } = await enlisted({}, { pace: 'quick' })
    const startedAt = Date.now()
    const since = await put('commissioning', { partition, machine })
    await seen(machine, 'signal', { status: 'done' }, since)
    expect(Date.now() - startedAt).toBeGreaterThan(500)
    expect(Date.now() - startedAt).toBeLessThan(10_000)
  })
})

describe('power', () => {
  test('an order takes effect a moment after the answer; a cycle goes through off', async () => {
    const { machine, partition } = await enlisted({}, { powerEffectMs: 60 })
    partition.begin(machine.bootMac, 'rescue')
    const orderedAt = Date.now()
    await order(machine.bmc, commands.chassisControl, on)
    expect(machine.power).toBe('off')
    const happened = await seen(machine, 'power on', { by: 'the BMC' })
    expect(happened.at - orderedAt).toBeGreaterThanOrEqual(55)
    await order(machine.bmc, commands.chassisControl, [2])
    const cycled = await seen(machine, 'power off', { by: 'the BMC' }, happened.number)
    await seen(machine, 'power on', { by: 'the BMC' }, cycled.number)
    expect(machine.bmc.counters).toMatchObject({ sessionsOpenMax: 1, controls: { on: 1, cycle: 1 } })
    expect(machine.bmc.sessionsOpen()).toBe(0)
  })

  test('lost during an install it leaves a disk that does not boot, and nothing more is said', async () => {
    const { machine, partition, known } = await enlisted()
    partition.image = Buffer.alloc(2_000_000, 7)
    partition.imageBytesPerSecond = 500_000
    const since = await put('deploying', { partition, machine })
    await seen(machine, 'signal', { step: 'download' }, since)
    while (machine.disk.kind === 'empty') await seen(machine, 'signal', { step: 'download' }, machine.lastNumber)
    await order(machine.bmc, commands.chassisControl, off)
    await seen(machine, 'power off', { by: 'the BMC' }, since)
    const signals = known.signals.length
    expect(machine.disk).toEqual({ kind: 'partial', os: 'debian/12' })
    const asked = partition.requests.length
    known.isInstalled = true
    const again = machine.lastNumber
    await order(machine.bmc, commands.chassisControl, on)
    await seen(machine, 'hung', { why: 'the disk was only partly written' }, again)
    expect(known.signals.length).toBe(signals)
    expect(partition.requests.length).toBe(asked + 1)
    expect(machine).toMatchObject({ power: 'on', phase: 'hung' })
  })

  test('the boot override of the BMC goes before the boot order, once', async () => {
    const { machine, partition } = await enlisted({ bootOrder: 'disk only' })
    const since = await (async () => {
      expect((await order(machine.bmc, commands.setBootOptions, [5, 0xa0, 0x04, 0, 0, 0])).completionCode).toBe(0)
      return await put('commissioning', { partition, machine })
    })()
    expect((await seen(machine, 'boot', {}, since)).facts.from).toBe('network')
    await seen(machine, 'power off', { by: 'itself' }, since)
    const again = machine.lastNumber
    await order(machine.bmc, commands.chassisControl, on)
    expect((await seen(machine, 'boot', {}, again)).facts.from).toBe('disk')
    await seen(machine, 'hung', { why: 'no operating system on the disk' }, again)
  })

  test('a soft off shuts a running system down and is lost on one that hangs', async () => {
    const { machine, partition } = await enlisted()
    const since = await put('rescue', { partition, machine })
    await seen(machine, 'signal', { step: 'rescue' }, since)
    await order(machine.bmc, commands.chassisControl, [5])
    await seen(machine, 'power off', { by: 'its operating system' }, since)
    partition.script = () => '#!ipxe\nexit\n'
    await order(machine.bmc, commands.chassisControl, on)
    await seen(machine, 'hung', {}, since)
    await order(machine.bmc, commands.chassisControl, [5])
    await new Promise(resolve => setTimeout(resolve, 50))
    expect(machine.power).toBe('on')
  })
})

describe('a server in trouble', () => {
  test('503s are asked again; a refused enlistment ends switched off', async () => {
    const { rack, partition } = await here([{}])
    const [machine] = rack.machines as [RackMachine]
    partition.refuseWith.push(503, 503, 503)
    await rack.powerOnAll()
    await seen(machine, 'enlisted')
    partition.begin(machine.bootMac, 'commissioning')
    await seen(machine, 'power off')
    const since = machine.lastNumber
    partition.script = () =>
      `#!ipxe\nkernel ${partition.url}/files/k muster.url=${partition.url} muster.mode=commission muster.token=dead\nboot\n`
    await order(machine.bmc, commands.chassisControl, on)
    expect((await seen(machine, 'job refused', {}, since)).facts.why).toContain('401')
    await seen(machine, 'power off', { by: 'itself' }, since)
  })

  test('a partition that is away is asked again until it is back', async () => {
    const { url, ...early } = await startTestPartition()
    await early[Symbol.asyncDispose]()
    await using rack = await startRack({ pace: 'instant', machines: [{ index: 0, bootUrl: url }] })
    const [machine] = rack.machines as [RackMachine]
    await rack.powerOnAll()
    expect((await seen(machine, 'network boot failed')).facts.why).toContain('ECONNREFUSED')
    await using _partition = await startTestPartition({ port: Number(new URL(url).port) })
    await seen(machine, 'enlisted')
  })

  test('a wrong image ends in a failed signal that says so', async () => {
    const { machine, partition, known } = await enlisted()
    partition.claimedSha256 = 'ab'.repeat(32)
    const since = await put('deploying', { partition, machine })
    await seen(machine, 'signal', { status: 'failed' }, since)
    expect(known.signals.at(-1)).toMatchObject({
      status: 'failed',
      step: 'download',
      message: expect.stringMatching(/has SHA-256 .*, not abab/),
    })
    expect(machine.disk.kind).toBe('partial')
    expect(machine.power).toBe('on')
  })
})

describe('sad machines', () => {
  test('never-powers-on: the order is accepted, nothing happens; the button works', async () => {
    const { machine } = await enlisted({ name: 'never-powers-on' })
    expect((await order(machine.bmc, commands.chassisControl, on)).completionCode).toBe(0)
    await new Promise(resolve => setTimeout(resolve, 100))
    expect(machine.power).toBe('off')
  })

  test('dies-in-commissioning falls silent half way; fails-commissioning says why', async () => {
    const { rack, partition } = await here([{ name: 'dies-in-commissioning' }, { name: 'fails-commissioning-2' }])
    await rack.powerOnAll()
    for (const machine of rack.machines) await seen(machine, 'power off')
    const [silent, failing] = rack.machines as [RackMachine, RackMachine]
    await put('commissioning', { partition, machine: silent })
    await put('commissioning', { partition, machine: failing })
    await seen(silent, 'fell silent')
    expect(silent.power).toBe('on')
    expect(partition.machines.get(silent.bootMac)?.state).toBe('commissioning')
    await seen(failing, 'signal', { status: 'failed' })
    expect(partition.machines.get(failing.bootMac)?.state).toBe('failed')
  })

  test('bad-disk fails to write; never-phones-home boots and says nothing', async () => {
    const { rack, partition } = await here([{ name: 'bad-disk' }, { name: 'never-phones-home' }])
    await rack.powerOnAll()
    for (const machine of rack.machines) await seen(machine, 'power off')
    const [bad, mute] = rack.machines as [RackMachine, RackMachine]
    await put('deploying', { partition, machine: bad })
    await put('deploying', { partition, machine: mute })
    await seen(bad, 'signal', { status: 'failed' })
    expect(partition.machines.get(bad.bootMac)?.signals.at(-1)?.message).toContain('Input/output error')
    await seen(mute, 'os booted')
    await new Promise(resolve => setTimeout(resolve, 50))
    expect(partition.machines.get(mute.bootMac)?.phoneHome).toBeUndefined()
  })

  test('wrong-password reports another than its BMC has; dead-bmc is silent; slow-bmc takes its time', async () => {
    const { rack, partition } = await here([{ name: 'wrong-password' }, { name: 'dead-bmc' }, { name: 'slow-bmc' }])
    await rack.powerOnAll()
    for (const machine of rack.machines) await seen(machine, 'power off')
    const [wrong, dead, slow] = rack.machines as [RackMachine, RackMachine, RackMachine]
    const reported = partition.machines.get(wrong.bootMac)?.enlistment.bmc?.settings as { password: string }
    expect(reported.password).not.toBe(wrong.bmc.password)
    await expect(order({ ...wrong.bmc, password: reported.password }, commands.getChassisStatus)).rejects.toThrow('rakp2 with status -2')
    expect(dead.bmc.faults.life).toBe('silent')
    expect(slow.bmc.faults.latencyMs).toEqual([1_500, 3_000])
  })
})

describe('a rack with a memory', () => {
  async function folder(): Promise<string> {
    const dir = await mkdtemp(path.join(tmpdir(), 'rack-'))
    onTestFinished(async () => await rm(dir, { recursive: true, force: true }))
    return dir
  }

  test('finds the same machines, disks, powers and BMC addresses; what was on boots again', async () => {
    const dataDir = await folder()
    const { rack, partition, machine } = await enlisted({}, { dataDir, seed: 7 })
    await put('deploying', { partition, machine })
    await seen(machine, 'phoned home')
    await rack.close()
    await using again = await startRack({
      pace: 'instant',
      seed: 7,
      dataDir,
      machines: [0, 1].map(index => ({ index, bootUrl: partition.url })),
    })
    const [same, another] = again.machines as [RackMachine, RackMachine]
    expect(same).toMatchObject({
      bootMac: machine.bootMac,
      inventory: machine.inventory,
      disk: machine.disk,
      isEnlisted: 'yes',
      power: 'on',
    })
    expect(same.bmc).toMatchObject({ address: machine.bmc.address, port: machine.bmc.port, password: machine.bmc.password })
    expect(another).toMatchObject({ disk: { kind: 'empty' }, isEnlisted: 'no', power: 'off' })
    await seen(same, 'os booted')
    expect(same.history.some(entry => entry.what === 'phoned home')).toBe(false)
  })

  test('refuses another seed, and a file it cannot understand, instead of wiping the disks', async () => {
    const dataDir = await folder()
    await using rack = await startRack({ machines: [{ index: 0, bootUrl: 'http://127.0.0.1:9' }], dataDir })
    await rack.close()
    await expect(startRack({ machines: [], dataDir, seed: 2 })).rejects.toThrow('was made with seed 1, not 2')
    await writeFile(path.join(dataDir, 'rack.json'), '{"version":')
    await expect(startRack({ machines: [], dataDir })).rejects.toThrow('makes no sense')
    expect(await readFile(path.join(dataDir, 'rack.json'), 'utf8')).toBe('{"version":')
  })

  test('two racks side by side take different addresses; the same ones are an error', async () => {
    const machines = [{ index: 0, bootUrl: 'http://127.0.0.1:9' }]
    await using first = await startRack({ machines })
    await using second = await startRack({ machines })
    expect(second.machines[0]?.bmc.address).not.toBe(first.machines[0]?.bmc.address)
    const { network, port } = first.bmcPlace
    await expect(startRack({ machines, bmc: { network, port } })).rejects.toThrow(
      `no BMC addresses are free: tried 127.${network}.0.0/16 port ${port}`,
    )
    await using ports = await startRack({
      machines: [0, 1].map(index => ({ index, bootUrl: 'http://127.0.0.1:9' })),
      bmc: { layout: 'port each' },
    })
    expect(ports.machines.map(machine => machine.bmc.port)).toEqual([ports.bmcPlace.port, ports.bmcPlace.port + 1])
  })
})

test('a hundred machines enlist and are commissioned at once', async () => {
  const { rack, partition } = await here(Array.from({ length: 100 }, () => ({})))
  expect(await rack.powerOnAll({ spreadMs: 200 })).toBe(100)
  await Promise.all(rack.machines.map(machine => seen(machine, 'power off')))
  expect(partition.machines.size).toBe(100)
  await Promise.all(rack.machines.map(machine => put('commissioning', { partition, machine })))
  await Promise.all(rack.machines.map(machine => seen(machine, 'signal', { status: 'done' })))
  expect([...partition.machines.values()].every(known => known.state === 'ready')).toBe(true)
})
