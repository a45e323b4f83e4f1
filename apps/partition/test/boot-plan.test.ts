// What a machine boots: the pure plan for every state, its text compared whole, and every file it names really served.
// MUSTER_REFRESH=1 writes the texts anew.
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { startPostgres } from '@muster/embedded/postgres'
import { type AgentMode, kernelArguments } from '@muster/shared/agent'
import { lifeCycle, type State, states } from '@muster/shared/life-cycle'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { agentParameters, type BootPlan, bootPlan, ipxeScript, usualAgentParameters } from '../src/domain/boot-plan.ts'
import { addMachine, newMac, runPartition, type TestPartition, until, virtualFiles } from './harness.ts'

const testdata = new URL('./testdata/', import.meta.url)

function expectText(name: string, text: string): void {
  const file = new URL(name, testdata)
  if (process.env.MUSTER_REFRESH === '1') {
    mkdirSync(testdata, { recursive: true })
    writeFileSync(file, text)
  }
  expect(text, name).toBe(readFileSync(file, 'utf8'))
}

const machine = (state: State, netboot = true, erase: 'quick' | null = null) => ({
  id: 'lon1-4y3h7n',
  state,
  netboot,
  erase,
  run: 'r1',
  arch: 'arm64' as const,
})
const everything = () => true

describe('the plan', () => {
  test('is made for every state', () => {
    const plans = Object.fromEntries(states.map(state => [state, bootPlan({ machine: machine(state), hasAgent: everything })]))
    const agent = (mode: AgentMode): BootPlan => ({ kind: 'agent', mode, arch: 'arm64', machine: { id: 'lon1-4y3h7n', run: 'r1' } })
    const disk = (state: State): BootPlan => ({ kind: 'disk', because: `state ${state}`, arch: 'arm64' })
    expect(plans).toEqual({
      ...Object.fromEntries(states.map(state => [state, disk(state)])),
      commissioning: agent('commission'),
      deploying: agent('install'),
      rescue: agent('rescue'),
    })
    // Whoever is to be on for the server's work boots the server's system; whoever is to be off, or is its user's, its disk.
    for (const state of states) expect(plans[state]?.kind === 'agent', state).toBe(lifeCycle[state].wantedPower === 'on')
  })

  test('is the disk once the system is installed, and enlistment for a stranger', () => {
    expect(bootPlan({ machine: machine('deploying', false), hasAgent: everything })).toEqual({
      kind: 'disk',
      because: 'state deploying',
      arch: 'arm64',
    })
    expect(bootPlan({ machine: undefined, hasAgent: everything })).toEqual({
      kind: 'agent',
      mode: 'enlist',
      arch: 'amd64',
      machine: null,
      isGuess: true,
    })
  })

  test("is a stranger's by its loader's word, and a known machine's by what its agent found", () => {
    const loaderArch = 'arm64'
    expect(bootPlan({ machine: undefined, loaderArch, hasAgent: everything })).toEqual({
      kind: 'agent',
      mode: 'enlist',
      arch: 'arm64',
      machine: null,
    })
    expect(bootPlan({ machine: { ...machine('rescue'), arch: 'amd64' }, loaderArch, hasAgent: everything })).toMatchObject({
      arch: 'amd64',
    })
    expect(bootPlan({ machine: undefined, loaderArch, hasAgent: arch => arch === 'amd64' })).toEqual({
      kind: 'unavailable',
      because: 'this partition has no agent image for arm64',
    })
  })

  test('is the agent while a machine that is given back has disks to erase', () => {
    const plan = bootPlan({ machine: machine('releasing', true, 'quick'), hasAgent: everything })
    expect(plan).toMatchObject({ kind: 'agent', mode: 'erase' })
  })

  test('says what is missing, but never to a machine that only wants its disk', () => {
    expect(bootPlan({ machine: machine('commissioning'), hasAgent: arch => arch === 'amd64' })).toEqual({
      kind: 'unavailable',
      because: 'this partition has no agent image for arm64',
    })
    expect(bootPlan({ machine: machine('deployed'), hasAgent: () => false })).toEqual({
      kind: 'disk',
      because: 'state deployed',
      arch: 'arm64',
    })
  })
})

describe('the script', () => {
  const common = { baseUrl: 'http://10.1.0.2:5250', agentParameters: usualAgentParameters }
  test.each([
    ['enlist', undefined, null],
    ['commission', machine('commissioning'), 'lon1-4y3h7n.r1.signature'],
    ['install', machine('deploying'), 'lon1-4y3h7n.r1.signature'],
    ['erase', machine('releasing', true, 'quick'), 'lon1-4y3h7n.r1.signature'],
    ['rescue', machine('rescue'), 'lon1-4y3h7n.r1.signature'],
    ['disk', machine('deployed'), null],
  ] as const)('for %s is this text', (name, facts, token) => {
    expectText(`${name}.ipxe`, ipxeScript(bootPlan({ machine: facts, hasAgent: everything }), { ...common, token }))
  })

  test('for a stranger that says that it is arm64 is this text', () => {
    const plan = bootPlan({ machine: undefined, loaderArch: 'arm64', hasAgent: everything })
    expectText('enlist-arm64.ipxe', ipxeScript(plan, { ...common, token: null }))
  })

  test('of a stranger that says nothing asks again with its architecture, also where nothing is there for the one that was guessed', () => {
    const plan = bootPlan({ machine: undefined, hasAgent: arch => arch === 'arm64' })
    expectText('unavailable-guess.ipxe', ipxeScript(plan, { ...common, token: null }))
  })

  test('for a machine whose files are missing is this text', () => {
    expectText('unavailable.ipxe', ipxeScript(bootPlan({ machine: machine('rescue'), hasAgent: () => false }), { ...common, token: null }))
  })

  test.each([
    'console=tty0 console=ttyS1,115200n8 earlycon=uart8250,io,0x2f8,115200',
    'mitigations=off -v isolcpus=1-3,5 memmap=64K@0x18690000 pci=nomsi',
  ])('hands these parameters to the agent’s kernel: %s', words => {
    const plan = bootPlan({ machine: undefined, hasAgent: everything })
    const text = ipxeScript(plan, { ...common, agentParameters: agentParameters.parse(words), token: null })
    expect(text).toContain(` ${words} || goto again\n`)
  })

  test.each([
    ['', 'single spaces'],
    ['two  spaces', 'single spaces'],
    ['quiet\nshell', 'single spaces'],
    ['quiet || shell', 'single spaces'],
    [`seed=$\{net0/mac}`, 'single spaces'],
    ['name="a b"', 'single spaces'],
    ['quiet;', 'single spaces'],
    ['quiet # rest', 'single spaces'],
    ['quiet -- single', 'single spaces'],
    ['größe=1', 'single spaces'],
    ['muster.url=http://10.1.0.9', 'says itself'],
    ['quiet initrd=other', 'says itself'],
    ['a'.repeat(1025), 'expected string to have <=1024 characters'],
  ])('takes no such parameters: %j', (words, why) => {
    expect(agentParameters.safeParse(words).error?.issues.map(({ message }) => message)).toEqual([expect.stringContaining(why)])
  })
})

describe('the boot door', () => {
  let partition: TestPartition
  const ends: (() => Promise<void>)[] = []
  beforeAll(async () => {
    partition = await runPartition({}, end => void ends.push(end))
  })
  afterAll(async () => {
    for (const end of ends.reverse()) await end()
  })
  const script = async (mac: string) => (await partition.ask('GET', `/boot/ipxe/${mac}`)).text

  test('serves every file that its scripts name, and the images of its jobs', async () => {
    for (const arch of ['amd64', 'arm64'] as const) {
      const { interfaces } = await addMachine(partition.core, { state: 'commissioning', run: 'r1', arch, attention_at: null })
      const text = await script(interfaces[0]?.mac as string)
      const names = [...text.matchAll(/(http:\S+\/boot\/files\/\S+)/g)].map(match => match[1] as string)
      expect(names).toHaveLength(2)
      for (const name of names) {
        const answer = await fetch(name)
        expect(answer.status, name).toBe(200)
        expect(await answer.text()).toBe(readFileSync(path.join(virtualFiles(), name.replace(/.*\/boot\/files\//, '')), 'utf8'))
      }
    }
    for (const image of partition.core.catalogue.images) {
      const answer = await partition.ask('GET', `/boot/files/${image.path}`)
      expect([answer.status, answer.text.length]).toEqual([200, image.sizeBytes])
    }
  })

  test('takes an address in any usual way of writing it, and refuses what is none', async () => {
    const mac = newMac()
    const enlisting = await script(mac)
    expect(enlisting).toContain(`${kernelArguments.mode}=enlist`)
    expect(enlisting).not.toContain(kernelArguments.token)
    for (const way of [mac.toUpperCase(), mac.replaceAll(':', '-'), mac.replaceAll(':', '')]) expect(await script(way)).toBe(enlisting)
    expect((await partition.ask('GET', `/boot/ipxe?mac=${mac}`)).text).toBe(enlisting)
    expect((await partition.ask('GET', `/boot/ipxe/${mac}?arch=arm64`)).text).toContain('/boot/files/agent/arm64/vmlinuz')
    expect((await partition.ask('GET', `/boot/ipxe/${mac}?arch=vax`)).text).toBe(enlisting)
    for (const wrong of ['nonsense', '52:54', '%00', '..%2f..%2fetc%2fpasswd']) {
      const answer = await partition.ask('GET', `/boot/ipxe/${wrong}`)
      expect(answer.status, wrong).toBe(422)
      expect(JSON.parse(answer.text)).toMatchObject({ code: 'invalid-input', errors: [{ field: 'mac' }] })
    }
  })

  test('gives no file from beside its folder', async () => {
    writeFileSync(path.join(path.dirname(virtualFiles()), 'muster-outside'), 'planted')
    for (const way of [
      '../muster-outside',
      '..%2fmuster-outside',
      '%2e%2e/muster-outside',
      'agent/../../muster-outside',
      'agent/amd64/..%5c..%5c..%5cmuster-outside',
      '/etc/passwd',
    ])
      expect((await partition.ask('GET', `/boot/files/${way}`)).text, way).not.toMatch(/planted|root:/)
    rmSync(path.join(path.dirname(virtualFiles()), 'muster-outside'))
  })

  test('changes nothing in any table, but for who has the script of a machine at work', async () => {
    const { sql, core, ask } = partition
    const working = await addMachine(core, { state: 'commissioning', run: 'r1', attention_at: null })
    const deployed = await addMachine(core, { state: 'deployed', run: 'r1', attention_at: null })
    const macOf = (row: typeof working) => row.interfaces[0]?.mac as string
    const place = `/boot/ipxe/${macOf(working)}`
    // The partition says every few seconds that it lives, whoever asks.
    const tables = await sql<{ name: string }[]>`
      select tablename as name from pg_tables where schemaname = 'public' and tablename <> 'replicas' order by 1`
    expect(tables.length).toBeGreaterThan(20)
    const contents = async () => {
      const each = tables.map(
        async ({ name }) => [name, (await sql`select t::text from ${sql(name)} t order by 1`).map(row => row.t)] as const,
      )
      return Object.fromEntries(await Promise.all(each))
    }
    const changedSince = async (before: Awaited<ReturnType<typeof contents>>) => {
      const after = await contents()
      return Object.keys(after).filter(name => JSON.stringify(after[name]) !== JSON.stringify(before[name]))
    }
    // The events of the machines made here are numbered a moment later.
    await until(async () => (await sql`select from events where seq is null limit 1`).length === 0)
    const before = await contents()
    expect(await script(newMac())).toContain('Muster: enlist')
    expect(await script(macOf(deployed))).toContain('boot from disk')
    expect(await ask('HEAD', place)).toMatchObject({ status: 200, text: '' })
    expect((await ask('HEAD', '/boot/ipxe/nonsense')).status).toBe(422)
    expect((await ask('GET', '/boot/files/agent/amd64/vmlinuz')).status).toBe(200)
    expect(await changedSince(before)).toEqual([])
    expect((await partition.as('rita').machines.explain({ id: working.id })).bootScriptGivenTo).toBeUndefined()

    const given = await script(macOf(working))
    expect(await changedSince(before)).toEqual(['boots'])
    const holder = await contents()
    // The same each time, and its work may be read as often as it likes.
    expect(await script(macOf(working))).toBe(given)
    const token = /muster\.token=(\S+)/.exec(given)?.[1]
    const job = await fetch(`${partition.url}/agent/job`, { headers: { authorization: `Bearer ${token}` } })
    expect(await job.json()).toMatchObject({ kind: 'commission', machine: working.id })
    expect(await changedSince(holder)).toEqual([])
  })
})

test('a machine boots from its disk while the database is away; one with work is told to ask again', { timeout: 60_000 }, async () => {
  const dir = mkdtempSync(path.join(tmpdir(), 'muster-away-'))
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }))
  const server = await startPostgres({ dir, sync: 'off' })
  onTestFinished(() => server.stop({ how: 'immediate' }))
  await server.createDatabase('lon1')
  const partition = await runPartition({ databaseUrl: server.url('lon1') })
  const deployed = await addMachine(partition.core, { state: 'deployed', run: 'r1', attention_at: null })
  const working = await addMachine(partition.core, { state: 'commissioning', run: 'r1', attention_at: null })
  const boot = async (mac: string) => {
    const started = Date.now()
    const answer = await partition.ask('GET', `/boot/ipxe/${mac}`)
    // A loader waits some seconds before it gives up.
    expect(Date.now() - started).toBeLessThan(4000)
    return answer
  }
  const macOf = (row: typeof deployed) => row.interfaces[0]?.mac as string
  const before = (await boot(macOf(deployed))).text
  expect(before).toContain('exit')

  await server.stop({ how: 'fast' })
  for (let again = 0; again < 3; again++) {
    expect(await boot(macOf(deployed))).toMatchObject({ status: 200, text: before })
    for (const mac of [macOf(working), newMac()]) {
      const { status, text } = await boot(mac)
      expect(status).toBe(200)
      expect(text).toBe(
        `#!ipxe\necho Muster: the partition cannot look this machine up just now; asking again\nsleep 5\nchain ${partition.url}/boot/ipxe/${mac}\n`,
      )
    }
  }
  const refusal = await partition
    .as('olga')
    .machines.get({ id: deployed.id })
    .catch(error => error)
  expect(refusal).toMatchObject({ code: 'database-away' })
  await until(async () => (await partition.ask('GET', '/readyz')).status === 503)
  expect((await partition.ask('GET', '/healthz')).status).toBe(200)

  // It is back by itself when the database is.
  expect(existsSync(dir)).toBe(true)
  const again = await startPostgres({ dir, sync: 'off' })
  onTestFinished(() => again.stop({ how: 'immediate' }))
  await until(async () => (await partition.ask('GET', '/readyz')).status === 200, 20_000)
  expect((await boot(macOf(working))).text).toContain(`${kernelArguments.mode}=commission`)
  expect(await partition.as('olga').machines.markBroken({ id: deployed.id })).toMatchObject({ state: 'broken' })
  await partition.stop()
})
