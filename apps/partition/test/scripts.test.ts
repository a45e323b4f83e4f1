// Scripts of a commissioning: which a partition has, which are chosen, and what comes of what the agent tells. Real PostgreSQL; the test is the agent.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { ScriptResult } from '@muster/shared/scripts'
import { expect, onTestFinished, test } from 'vitest'
import type { MachineRow } from '../src/db/machines.ts'
import { machineToken } from '../src/domain/machine-token.ts'
import { addMachine, movesOf, reread, runPartition, type TestPartition } from './harness.ts'

const raid = `#!/bin/sh
# --- muster
# title: The RAID controller's battery
# kind: test
# timeout: 2m
# parameters:
#   leastPercent: { type: integer, default: 80, max: 100 }
#   controller: { type: text, default: all, choices: [all, first] }
# only: { vendor: Dell }
# ---
echo "$leastPercent"
`
/** As people are told to write one. */
const documented = /```sh\n(#!\/bin\/sh\n.*?)```/s.exec(
  readFileSync(new URL('../../../docs/scripts.md', import.meta.url), 'utf8'),
)?.[1] as string
const label = '# --- muster\n# title: Reads the label\n# kind: commissioning\n# timeout: 10s\n# ---\ntrue\n'

/** A folder of files with these scripts. */
function withScripts(scripts: Record<string, string>): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-scripts-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  mkdirSync(path.join(folder, 'scripts'))
  for (const [name, text] of Object.entries(scripts)) writeFileSync(path.join(folder, 'scripts', name), text)
  return folder
}

const disks = ['sda', 'nvme0n1'].map(name => ({ name, serial: `S-${name}`, model: '', sizeBytes: 1e12, kind: 'ssd' as const }))
const commissionable = (partition: TestPartition) => addMachine(partition.core, { attention_at: null }, { powerDriver: 'manual', disks })

/** How the agent of a machine that commissions speaks. */
function agentOf(partition: TestPartition, row: MachineRow) {
  const token = machineToken(partition.core.seal, 'agent', { id: row.id, run: row.run as string })
  const post = async (door: string, body: unknown) => (await partition.ask('POST', `/agent/${door}`, { token, body })).status
  return {
    job: async () => JSON.parse((await partition.ask('GET', '/agent/job', { token })).text),
    tell: (result: Partial<ScriptResult> & { script: string }) => post('script-result', { ...passed, ...result }),
    done: () => post('signal', { status: 'done', step: 'commission', message: '', progress: 100 }),
    post,
  }
}
const passed = { part: '', status: 'passed', exitCode: 0, seconds: 3, message: '', output: 'all well\n', result: null }

test('a partition has the scripts of its agent and those of its folder; what is wrong with one is logged, and the others stay', async () => {
  const partition = await runPartition({
    rules: { tests: ['disk-health'] },
    folder: withScripts({
      'raid-battery.sh': raid,
      'label.sh': label,
      'fans.sh': documented,
      'notes.txt': 'no script',
      'no-head.sh': '#!/bin/sh\ntrue\n',
      'memory.sh': label,
      'odd-field.sh': label.replace('kind:', 'colour: red\n# kind:'),
      'for-ever.sh': label.replace('10s', '7h'),
      'Large.sh': label,
      'large.sh': `${label}${'#'.repeat(70_000)}`,
    }),
  })
  const { items } = await partition.as('rita').scripts.list({})
  expect(items.map(({ name, kind, source, default: usual }) => [name, kind, source, usual])).toEqual([
    ['cpu', 'test', 'agent', false],
    ['disk-health', 'test', 'agent', true],
    ['disk-speed', 'test', 'agent', false],
    ['fans', 'test', 'partition', false],
    ['label', 'commissioning', 'partition', true],
    ['memory', 'test', 'agent', false],
    ['network', 'test', 'agent', false],
    ['raid-battery', 'test', 'partition', false],
  ])
  expect(items.at(-1)).toMatchObject({
    timeout: '2m',
    only: { vendor: 'Dell' },
    parameters: { leastPercent: { default: 80, min: 0, max: 100 } },
  })
  expect(JSON.stringify(items)).not.toContain('echo')
  const told = partition.lines.filter(line => line.includes('cannot be used'))
  // Once each, however often the folder is looked at.
  partition.core.catalogue.refresh()
  expect(partition.lines.filter(line => line.includes('cannot be used'))).toHaveLength(told.length)
  for (const name of ['no-head', 'memory', 'odd-field', 'for-ever', 'Large', 'large'])
    expect(
      told.some(line => line.includes(`scripts/${name}.sh`)),
      name,
    ).toBe(true)
})

test('a commissioning runs the scripts of the partition and the tests of its rule, or those that are named, with checked parameters', async () => {
  const partition = await runPartition({
    rules: { tests: ['disk-health', 'gone'] },
    folder: withScripts({ 'label.sh': label, 'raid-battery.sh': raid }),
  })
  const olga = partition.as('olga').machines
  const machine = await commissionable(partition)
  const { id } = machine
  const chosen = async () => (await reread(partition.core, id)).scripts.map(({ name }) => name)

  await expect(olga.commission({ id, tests: ['label'] })).rejects.toMatchObject({
    code: 'invalid-input',
    message: expect.stringContaining('commissioning script'),
  })
  await expect(olga.commission({ id, tests: ['magic'] })).rejects.toMatchObject({
    message: expect.stringMatching(/magic is no script .* cpu, disk-health/),
  })
  for (const [parameters, field] of [
    [{ cpu: { seconds: 0 } }, 'parameters.cpu.seconds'],
    [{ cpu: { minutes: 1 } }, 'parameters.cpu.minutes'],
    [{ cpu: { seconds: true } }, 'parameters.cpu.seconds'],
    [{ memory: { percent: 10 } }, 'parameters.memory'],
    [{ 'raid-battery': { controller: 'last' } }, 'parameters.raid-battery.controller'],
  ] as const)
    await expect(olga.commission({ id, tests: ['cpu', 'raid-battery'], parameters }), field).rejects.toMatchObject({
      facts: { errors: [{ field }] },
    })
  expect((await reread(partition.core, id)).state).toBe('new')

  await olga.commission({ id })
  expect(await chosen()).toEqual(['label', 'disk-health'])
  expect(partition.lines.some(line => line.includes('a test gone, which is not here'))).toBe(true)
  await olga.abort({ id })

  const parameters = { cpu: { seconds: 5 } }
  await olga.commission({ id, scripts: [], tests: ['cpu', 'raid-battery', 'cpu'], parameters })
  expect(await chosen()).toEqual(['cpu', 'raid-battery'])
  const row = await reread(partition.core, id)
  expect(await agentOf(partition, row).job()).toMatchObject({
    kind: 'commission',
    scripts: [
      { name: 'cpu', kind: 'test', on: 'machine', timeoutSeconds: 4200, parameters: { seconds: 5 }, text: null },
      {
        name: 'raid-battery',
        only: { vendor: 'Dell' },
        timeoutSeconds: 120,
        parameters: { leastPercent: 80, controller: 'all' },
        text: raid,
      },
    ],
  })
  // There is time for them: half of the usual half hour, and what they may take beyond it.
  const minutes = ((row.deadline_at as Date).getTime() - row.state_since.getTime()) / 60_000
  expect(minutes).toBeCloseTo(30 + 70 + 2 - 15, 1)
  // Again the same joins; with others it is said that it does not.
  await olga.commission({ id, scripts: [], tests: ['cpu', 'raid-battery'], parameters })
  await expect(olga.commission({ id, tests: [] })).rejects.toMatchObject({
    code: 'wrong-state',
    message: expect.stringContaining('other scripts'),
  })
  await expect(partition.as('alice').machines.commission({ id })).rejects.toMatchObject({ code: 'forbidden' })
})

test('what the agent tells is kept once, and only of what runs and of parts that there are', async () => {
  const partition = await runPartition()
  const olga = partition.as('olga').machines
  const { id } = await commissionable(partition)
  await olga.commission({ id, tests: ['disk-health', 'cpu'] })
  const agent = agentOf(partition, await reread(partition.core, id))
  const result = { healthy: true, wearPercent: 3, attributes: [1, 2] }
  expect(await agent.tell({ script: 'disk-health', part: 'sda', result })).toBe(204)
  expect(await agent.tell({ script: 'disk-health', part: 'sda', status: 'failed', exitCode: 1, message: 'another word' })).toBe(204)
  expect(await agent.tell({ script: 'disk-health', part: 'nvme0n1', status: 'skipped', exitCode: 77, message: 'it has no SMART' })).toBe(
    204,
  )
  expect(await agent.tell({ script: 'cpu', output: 'x'.repeat(65_536) })).toBe(204)
  for (const [why, status, body] of [
    ['a script that does not run', 409, { script: 'memory' }],
    ['a part that is not there', 422, { script: 'cpu', part: 'sdz' }],
    ['more than fits', 422, { script: 'cpu', part: 'sda', output: 'x'.repeat(65_537) }],
    ['a large structure', 422, { script: 'cpu', part: 'sda', result: { noise: 'x'.repeat(20_000) } }],
    ['a field that is none', 422, { script: 'cpu', part: 'sda', colour: 'red' }],
    ['a status that is none', 422, { script: 'cpu', part: 'sda', status: 'fine' }],
  ] as const)
    expect(await agent.tell(body as never), why).toBe(status)
  expect((await partition.ask('POST', '/agent/script-result', { body: { ...passed, script: 'cpu' } })).status).toBe(401)

  const { items } = await olga.scriptResults({ id })
  expect(items.map(({ script, kind, part, status, message, result: found }) => [script, kind, part, status, message, found])).toEqual([
    ['cpu', 'test', '', 'passed', '', null],
    ['disk-health', 'test', 'nvme0n1', 'skipped', 'it has no SMART', null],
    ['disk-health', 'test', 'sda', 'passed', '', result],
  ])
  expect(items[0]).not.toHaveProperty('output')
  const [cpu] = items
  expect(await olga.scriptOutput({ id, result: cpu?.id as number })).toMatchObject({ script: 'cpu', output: 'x'.repeat(65_536) })
  await expect(olga.scriptOutput({ id, result: 1_000_000 })).rejects.toMatchObject({ code: 'not-found' })
  await expect(partition.as('alice').machines.scriptResults({ id })).rejects.toMatchObject({ code: 'forbidden' })
  const first = await olga.scriptResults({ id, script: 'disk-health', limit: 1 })
  const second = await olga.scriptResults({ id, script: 'disk-health', limit: 1, cursor: first.nextCursor as string })
  expect([first, second].map(page => page.items.map(({ part }) => part))).toEqual([['nvme0n1'], ['sda']])
  expect(second.nextCursor).toBeNull()

  expect(await agent.done()).toBe(204)
  expect(await reread(partition.core, id)).toMatchObject({ state: 'ready', fault: null })
  // Its run is over.
  expect(await agent.tell({ script: 'cpu', part: 'sda' })).toBe(409)
  expect(await agent.done()).toBe(204)
  expect(await movesOf(partition.sql, id)).toEqual(['new commission commissioning', 'commissioning commissioned ready'])
})

test('a script that fails or runs out of time fails the commissioning, and the fault names it and the part', async () => {
  const partition = await runPartition()
  const olga = partition.as('olga').machines
  const { id } = await commissionable(partition)
  await olga.commission({ id, tests: ['disk-health', 'memory'] })
  const agent = agentOf(partition, await reread(partition.core, id))
  await agent.tell({ script: 'disk-health', part: 'sda' })
  await agent.tell({ script: 'disk-health', part: 'nvme0n1', status: 'failed', exitCode: 1, message: 'SMART says FAILED' })
  await agent.tell({ script: 'memory', status: 'timed-out', exitCode: null, message: 'it took longer than 4200 s' })
  // Which script is at work is seen meanwhile.
  await agent.post('signal', { status: 'working', step: 'memory', message: 'test 2 of 2', progress: 50 })
  expect(await olga.get({ id })).toMatchObject({ waitingFor: 'the agent: memory (test 2 of 2)', progress: 50 })
  expect(await agent.done()).toBe(204)
  expect(await olga.get({ id })).toMatchObject({
    state: 'failed_commissioning',
    fault: {
      code: 'script-failed',
      message: 'test disk-health failed on nvme0n1: SMART says FAILED; test memory timed out: it took longer than 4200 s',
      hint: `see what it wrote: muster machine results ${id} --log disk-health`,
    },
  })

  // Mended, and tested again: what was then is told apart from what is now.
  await olga.commission({ id, tests: ['disk-health'] })
  const again = agentOf(partition, await reread(partition.core, id))
  for (const { name } of disks) await again.tell({ script: 'disk-health', part: name })
  await again.done()
  expect(await olga.get({ id })).toMatchObject({ state: 'ready', fault: null })
  expect((await olga.scriptResults({ id })).items).toHaveLength(5)
  const latest = await olga.scriptResults({ id, run: 'latest' })
  expect(latest.items.map(({ status }) => status)).toEqual(['passed', 'passed'])
  expect((await olga.scriptResults({ id, run: latest.items[0]?.run as string })).items).toEqual(latest.items)
})

test('an agent that knows no scripts is not believed, and old results are forgotten', async () => {
  const partition = await runPartition()
  const olga = partition.as('olga').machines
  const { id } = await commissionable(partition)
  for (let count = 0; count < 12; count++) {
    await olga.commission({ id, tests: ['cpu'] })
    const agent = agentOf(partition, await reread(partition.core, id))
    await agent.tell({ script: 'cpu', seconds: count })
    await agent.done()
  }
  const { items } = await olga.scriptResults({ id })
  expect(items.map(({ seconds }) => seconds)).toEqual([11, 10, 9, 8, 7, 6, 5, 4, 3, 2])

  await olga.commission({ id, tests: ['cpu', 'memory'] })
  const old = agentOf(partition, await reread(partition.core, id))
  await old.tell({ script: 'cpu' })
  await old.done()
  expect(await olga.get({ id })).toMatchObject({
    state: 'failed_commissioning',
    fault: { code: 'script-missing', message: expect.stringContaining('nothing of memory'), hint: expect.stringContaining('older') },
  })
  await olga.delete({ id })
  expect(await partition.sql`select from script_results where machine_id = ${id}`).toEqual([])
})

test('a machine that enlists where machines are commissioned at once gets the tests of the rule', async () => {
  const partition = await runPartition({ rules: { enlisted: 'commission', tests: ['disk-health'], place: 'lab' } })
  const body = {
    arch: 'amd64',
    cpus: 4,
    memoryMib: 4096,
    interfaces: [{ mac: '52:54:00:77:00:01' }],
    disks,
    bmc: { driver: 'ipmi', settings: { address: '127.0.0.1:1', user: 'a', password: 'b' } },
  }
  const { id } = JSON.parse((await partition.ask('POST', '/agent/enlist', { body })).text) as { id: string }
  expect(await reread(partition.core, id)).toMatchObject({ scripts: [{ name: 'disk-health', parameters: { wearPercentMax: 100 } }] })
})
