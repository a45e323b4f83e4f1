/**
 * The whole federation, each server a process of its own, and a rack of machines that live real lives in it: by the front's API, from enlisting to
 * being given back; the sad ones each to the fault that names their cause.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Client, createClient } from '@muster/shared/client'
import type { State } from '@muster/shared/life-cycle'
import type { Machine } from '@muster/shared/machine'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { type Federation, type FederationOptions, startFederation } from '../src/federation/federation.ts'
import { sadNames } from '../src/machine/sad.ts'

const healthy = Array.from({ length: 8 }, (_, index) => `r01u${String(index + 1).padStart(2, '0')}`)
const limitMs = 90_000

const dataDir = mkdtempSync(path.join(tmpdir(), 'muster-story-'))
const options: FederationOptions = {
  dataDir,
  partitions: 2,
  machines: healthy.length + sadNames.length,
  sad: sadNames,
  port: 0,
  pace: 'instant',
  sync: 'off',
  broker: 'always the embedded',
  partitionEnv: {
    // The slow BMC needs half a minute for a power cycle; nobody phones home later than a few seconds.
    MUSTER_DEADLINES: 'commissioning=80s,deploying=12s',
    MUSTER_AGENT_SILENCE: '6s',
    MUSTER_POWER_CHANGE: '6s',
    MUSTER_POWER_CHECK: '2s',
  },
}
let federation: Federation
let client: Client

beforeAll(async () => {
  federation = await startFederation(options)
  client = createClient({ url: federation.fronts[0]?.url as string, token: federation.token })
}, limitMs)
afterAll(async () => {
  await federation.stop()
  rmSync(dataDir, { recursive: true, force: true })
}, limitMs)

async function machineCalled(name: string): Promise<Machine | undefined> {
  const { items } = await client.machines.list({ hostname: name })
  return items.find(({ hostname }) => hostname === name)
}

/** Waits until the machine is in that state; fails at once where it ends in another one for good. */
async function comesTo(name: string, state: State, fits: (machine: Machine) => boolean = () => true): Promise<Machine> {
  const until = Date.now() + limitMs
  for (;;) {
    const machine = await machineCalled(name)
    if (machine?.state === state && fits(machine)) return machine
    const told = machine
      ? `${machine.state}, power ${machine.power}, waiting for ${machine.waitingFor}, fault ${JSON.stringify(machine.fault)}`
      : 'unknown'
    if (Date.now() > until) throw new Error(`${name} did not come to ${state}: ${told}`)
    if (machine?.state.startsWith('failed_') && machine.state !== state) throw new Error(`${name} failed on its way to ${state}: ${told}`)
    await sleep(100)
  }
}

const isOff = ({ power }: Machine) => power === 'off'

async function allocated(name: string): Promise<{ allocation: string; id: string }> {
  const got = await client.allocations.create({ constraints: { hostnames: [name] } })
  return { allocation: got.id as string, id: got.machines[0]?.id as string }
}

const movesOf = async (id: string) => {
  const { items } = await client.events.list({ machine: id, kind: 'machine.moved' })
  return items.map(({ data }) => data.move)
}

describe('the rack', { timeout: limitMs + 10_000 }, () => {
  test('enlists, commissions, and is ready, with what is really in it', async () => {
    const machines = await Promise.all(healthy.map(name => comesTo(name, 'ready', isOff)))
    for (const machine of machines) {
      expect(machine).toMatchObject({ rack: 'r01', fault: null, owner: null, deadline: null })
      expect(machine.cpus).toBeGreaterThan(0)
      expect(machine.disks.length).toBeGreaterThan(0)
      expect(await movesOf(machine.id)).toEqual(['commission', 'commissioned'])
      const { items } = await client.machines.scriptResults({ id: machine.id, run: 'latest' })
      expect(items.map(({ script, part, status }) => [script, part, status]).reverse()).toEqual(
        machine.disks.map(({ name }) => ['disk-health', name, 'passed']),
      )
    }
    // The rack has both kinds of BMC, and each machine told its own.
    expect(new Set(machines.map(({ powerDriver }) => powerDriver))).toEqual(new Set(['ipmi', 'redfish']))
    // Neighbours stand in different partitions.
    expect(new Set(machines.map(({ partition }) => partition))).toEqual(new Set(['p1', 'p2']))
  })

  const failed = (code: string, message: RegExp) => ({
    code,
    message: expect.stringMatching(message),
    hint: expect.stringMatching(/\w{4}/),
  })
  test.each([
    [
      'never-powers-on',
      'failed_commissioning',
      failed('power-unchanged', /power on via ipmi 127\.\S+: accepted, but it still reads off after on, then on/),
    ],
    ['dies-in-commissioning', 'failed_commissioning', failed('agent-silent', /last heard \d+ s ago/)],
    ['fails-commissioning', 'failed_commissioning', failed('memory-failed', /3 errors at .* on DIMM A2/)],
    ['fails-a-test', 'failed_commissioning', failed('script-failed', /^test disk-health failed on \S+: simulated: SMART/)],
    ['wrong-password', 'failed_commissioning', failed('power-authentication', /via ipmi 127\./)],
    ['dead-bmc', 'failed_commissioning', failed('power-silent', /via ipmi 127\./)],
    ['never-phones-home', 'ready', null],
    ['bad-disk', 'ready', null],
    ['first-boot-fails', 'ready', null],
    ['erase-fails', 'ready', null],
  ] as const)('%s ends %s, and says why', async (name, state, fault) => {
    const machine = await comesTo(name, state)
    if (fault === null) expect(machine.fault).toBeNull()
    else {
      expect(machine.fault).toMatchObject(fault)
      const told = await client.machines.explain({ id: machine.id })
      expect(told.lastFault).toMatchObject(fault)
      expect(told.allowed).toEqual(['commission', 'markBroken', 'retire'])
    }
  })

  test('whose test failed can be read, is tested again by what is named, and is ready where nothing is tested', async () => {
    const { id } = (await machineCalled('fails-a-test')) as Machine
    const { items: failures } = await client.machines.scriptResults({ id })
    const failure = failures.find(({ status }) => status === 'failed')
    expect(await client.machines.scriptOutput({ id, result: failure?.id as number })).toMatchObject({
      part: failure?.part,
      output: expect.stringContaining('SMART overall health'),
    })
    await client.machines.commission({ id, tests: ['cpu', 'disk-speed', 'network'], parameters: { cpu: { seconds: 1 } } })
    const tested = await comesTo('fails-a-test', 'failed_commissioning')
    expect(tested.fault).toMatchObject({ code: 'script-failed', message: 'test cpu failed: simulated: an error was found' })
    const { items } = await client.machines.scriptResults({ id, run: 'latest' })
    expect(new Set(items.map(({ script }) => script))).toEqual(new Set(['cpu', 'disk-speed', 'network']))
    expect(items.filter(({ script }) => script === 'network')).toHaveLength(tested.interfaces.length)
    await client.machines.commission({ id, tests: [] })
    await comesTo('fails-a-test', 'ready', isOff)
  })

  let late: { allocation: string; id: string }
  test('that never phones home is waited for, and says so', async () => {
    late = await allocated('never-phones-home')
    await client.machines.deploy({ id: late.id, os: 'debian/13' })
    const { id } = late
    expect(await client.machines.explain({ id })).toMatchObject({
      state: 'deploying',
      deadline: expect.any(String),
      nextStep: expect.stringContaining('it waits for'),
    })
  })

  test('is allocated, deployed, used and given back: several machines at once', async () => {
    const got = await client.allocations.create({
      count: 4,
      strategy: 'spread',
      constraints: { hostnames: healthy, os: 'debian/12' },
    })
    expect(got).toMatchObject({ state: 'confirmed', coverage: { asked: 2, answered: 2 } })
    expect(new Set(got.machines.map(({ partition }) => partition)).size).toBe(2)
    const { machines } = got
    await Promise.all(
      machines.map(({ id }) =>
        client.machines.deploy({ id, os: 'debian/12', userData: '#cloud-config\n{}\n', sshKeys: ['ssh-ed25519 AAAA'] }),
      ),
    )
    for (const { hostname } of machines) {
      const machine = await comesTo(hostname, 'deployed', ({ power }) => power === 'on')
      expect(machine.deployment).toMatchObject({ os: 'debian/12', installedAt: expect.any(String), deployedAt: expect.any(String) })
      const times = [
        machine.deployment?.startedAt,
        ...(machine.deployment?.steps ?? []).map(({ at }) => at),
        machine.deployment?.installedAt,
      ]
      // At this pace some steps are over before they are told.
      expect(times.length).toBeGreaterThan(2)
      expect(times).toEqual(times.toSorted())
    }
    const { id } = machines[0] as Machine
    expect(await client.machines.power({ id, action: 'cycle', wait: '20s' })).toMatchObject({ power: 'on', state: 'deployed' })

    await client.allocations.release({ id: got.id as string })
    for (const { hostname: name } of machines)
      expect(await comesTo(name, 'ready', isOff)).toMatchObject({ owner: null, allocation: null, deployment: null, fault: null })
    expect(await client.allocations.get({ id: got.id as string })).toMatchObject({ state: 'released', machines: [] })
    expect((await movesOf(id)).slice(2)).toEqual(['hold', 'confirm', 'deploy', 'deployed', 'release', 'released'])
    const { items } = await client.machines.erasures({ id })
    const disks = (await client.machines.get({ id })).disks.map(({ serial }) => serial)
    expect(items.map(({ serial, outcome, owner }) => [serial, outcome, owner])).toEqual(
      disks.map(serial => [serial, 'discarded', 'admin']).reverse(),
    )
  })

  test('whose disk is bad fails the deployment with the disk’s own words, and can be given back', async () => {
    const { allocation, id } = await allocated('bad-disk')
    await client.machines.deploy({ id, os: 'debian/12' })
    const machine = await comesTo('bad-disk', 'failed_deployment')
    expect(machine).toMatchObject({
      owner: 'admin',
      allocation,
      fault: failed('write-failed', /write to \/dev\/\S+: Input\/output error at byte \d+/),
    })
    await comesTo('bad-disk', 'failed_deployment', isOff)
    await client.allocations.release({ id: allocation })
    await comesTo('bad-disk', 'ready')
  })

  test('whose disk cannot be erased is kept back and named, until somebody decides', async () => {
    const { allocation, id } = await allocated('erase-fails')
    await client.machines.deploy({ id, os: 'debian/12' })
    await comesTo('erase-fails', 'deployed')
    await client.allocations.release({ id: allocation })
    const machine = await comesTo('erase-fails', 'failed_releasing')
    expect(machine).toMatchObject({ owner: 'admin', fault: failed('erase-failed', /write to \/dev\/\S+: Input\/output error/) })
    await client.machines.release({ id, erase: 'none' })
    await comesTo('erase-fails', 'ready')
  })

  test('whose first boot fails in a step is deployed, and its fault names the step', async () => {
    const { allocation, id } = await allocated('first-boot-fails')
    await client.machines.deploy({ id, os: 'debian/12' })
    const machine = await comesTo('first-boot-fails', 'deployed', ({ fault }) => fault !== null)
    expect(machine.fault).toMatchObject(failed('cloud-init-failed', /steps of the first boot failed: modules-final\/config-scripts-user/))
    await client.allocations.release({ id: allocation })
    await comesTo('first-boot-fails', 'ready')
  })

  test('goes to rescue and comes back to where it was: ready, allocated and deployed', async () => {
    const name = 'r01u01'
    const there = async () => {
      const { id } = (await machineCalled(name)) as Machine
      await client.machines.rescue({ id })
      await comesTo(name, 'rescue', ({ power, waitingFor }) => power === 'on' && waitingFor !== null && waitingFor.includes('rescue'))
      await client.machines.exitRescue({ id })
    }
    await there()
    await comesTo(name, 'ready', isOff)
    const { allocation, id } = await allocated(name)
    await there()
    expect(await comesTo(name, 'allocated', isOff)).toMatchObject({ allocation, owner: 'admin' })
    // An image made for MAAS reads the same facts in its own way.
    await client.machines.deploy({ id, os: 'ubuntu/24.04', dataSource: 'maas' })
    const { deployment } = await comesTo(name, 'deployed', machine => Boolean(machine.deployment?.firstBoot?.endedAt))
    expect(deployment).toMatchObject({ dataSource: 'maas', firstBoot: { step: 'modules-final', failures: [] } })
    await there()
    expect(await comesTo(name, 'deployed', ({ power }) => power === 'on')).toMatchObject({ allocation, deployment: { os: 'ubuntu/24.04' } })
    await client.allocations.release({ id: allocation })
    await comesTo(name, 'ready', isOff)
  })

  test('is taken out of service, mended, and locked', async () => {
    const name = 'r01u02'
    const { id } = (await machineCalled(name)) as Machine
    expect(await client.machines.markBroken({ id, reason: 'smells of smoke' })).toMatchObject({
      state: 'broken',
      fault: { message: 'smells of smoke' },
    })
    await expect(allocated(name)).rejects.toMatchObject({ code: 'no-match' })
    expect(await client.machines.fix({ id })).toMatchObject({ state: 'ready', fault: null })
    await client.machines.lock({ id, reason: 'audit' })
    await expect(client.machines.commission({ id })).rejects.toMatchObject({ code: 'locked', message: expect.stringContaining('audit') })
    await expect(allocated(name)).rejects.toMatchObject({ code: 'no-match' })
    await client.machines.unlock({ id })
    await client.machines.commission({ id })
    await comesTo(name, 'ready', ({ waitingFor }) => waitingFor === null)
    // Aborted in the middle, it is new, and off.
    await client.machines.commission({ id })
    await client.machines.abort({ id })
    await comesTo(name, 'new', isOff)
    await client.machines.commission({ id })
    await comesTo(name, 'ready', isOff)
  })

  test('that never phones home is late, and the fault names what was waited for', async () => {
    const machine = await comesTo('never-phones-home', 'failed_deployment', isOff)
    expect(machine.fault).toMatchObject(
      failed('deadline-passed', /the first boot of the installed system to phone home; its cloud-init is at modules-final/),
    )
    await client.allocations.release({ id: late.allocation })
    await comesTo('never-phones-home', 'ready', isOff)
  })

  test('whose BMC is slow is ready all the same', async () => {
    expect(await comesTo('slow-bmc', 'ready')).toMatchObject({ fault: null })
  })

  test('is the same after a restart of everything', async () => {
    const { allocation, id } = await allocated('r01u03')
    await client.machines.deploy({ id, os: 'debian/12' })
    await comesTo('r01u03', 'deployed', ({ power }) => power === 'on')
    const all = async () =>
      (await client.machines.list({ limit: 1000 })).items.map(machine => [
        machine.id,
        machine.hostname,
        machine.state,
        machine.allocation,
        machine.interfaces[0]?.mac,
      ])
    const before = await all()
    await federation.stop()
    federation = await startFederation(options)
    client = createClient({ url: federation.fronts[0]?.url as string, token: federation.token })
    expect(await all()).toEqual(before)
    expect(await comesTo('r01u03', 'deployed', ({ power }) => power === 'on')).toMatchObject({ id, allocation })
    // And it works on.
    await client.allocations.release({ id: allocation })
    await comesTo('r01u03', 'ready', isOff)
    const { items } = await client.events.list({ machine: id, kind: 'machine.moved', limit: 1000 })
    expect(items.at(-1)?.data.move).toBe('released')
  })
})

describe('npm start', { timeout: limitMs }, () => {
  const program = new URL('../src/start.ts', import.meta.url).pathname

  async function started(): Promise<{ child: ChildProcess; front: string; pids: number[]; data: string }> {
    const data = mkdtempSync(path.join(tmpdir(), 'muster-start-'))
    const child = spawn(process.execPath, [program, '--partitions', '1', '--machines', '2', '--port', '0', '--data', data, '--json'], {
      stdio: ['ignore', 'pipe', 'ignore'],
    })
    onTestFinished(async () => {
      child.kill('SIGKILL')
      await sleep(500)
      rmSync(data, { recursive: true, force: true })
    })
    let text = ''
    const line = await new Promise<string>((resolve, reject) => {
      child.stdout?.setEncoding('utf8').on('data', (part: string) => {
        text += part
        if (text.includes('\n')) resolve(text)
      })
      child.once('exit', code => reject(new Error(`start.ts ended with ${code}`)))
    })
    const { front, ready } = JSON.parse(line) as { front: string; ready: boolean }
    expect(ready).toBe(true)
    return { child, front, pids: descendantsOf(child.pid as number), data }
  }

  /** Every process below, by the system's own account. */
  function descendantsOf(root: number): number[] {
    const rows = execFileSync('ps', ['-e', '-o', 'pid=,ppid='], { encoding: 'utf8' }).trim().split('\n')
    const parents = rows.map(row => row.trim().split(/\s+/).map(Number) as [number, number])
    const found = [root]
    for (const parent of found) for (const [pid, ppid] of parents) if (ppid === parent) found.push(pid)
    return found
  }

  const alive = (pids: readonly number[]) =>
    pids.filter(pid => existsSync(`/proc/${pid}`) && !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8')))

  test.each([
    ['Ctrl-C', 'SIGINT', 20_000],
    ['kill -9', 'SIGKILL', 20_000],
  ] as const)('leaves no process behind after %s', async (_, signal, withinMs) => {
    const { child, front, pids } = await started()
    expect((await fetch(`${front}/readyz`)).status).toBe(200)
    // Front, partition, broker, rack, and PostgreSQL's own.
    expect(pids.length).toBeGreaterThan(6)
    const ended = new Promise<[number | null, NodeJS.Signals | null]>(resolve => child.once('exit', (code, how) => resolve([code, how])))
    process.kill(child.pid as number, signal)
    expect(await ended).toEqual(signal === 'SIGINT' ? [0, null] : [null, 'SIGKILL'])
    const until = Date.now() + withinMs
    while (alive(pids).length > 0 && Date.now() < until) await sleep(100)
    expect(alive(pids)).toEqual([])
    await expect(fetch(`${front}/readyz`)).rejects.toThrow()
  })
})
