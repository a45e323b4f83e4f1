// `muster machine commission`, `muster machine results` and `muster script list`.
import type { ScriptReport } from '@muster/shared/scripts'
import { expect, test } from 'vitest'
import { eachWithServer } from './ground.ts'
import type { Home } from './muster.ts'
import { aMachine, type TestServer, wholeCoverage } from './server.ts'

const id = 'lon1-4y3h7n'
let server: TestServer
let home: Home
eachWithServer((own, empty) => {
  server = own
  home = empty
  server.answers['machines.commission'] = () => aMachine({ state: 'commissioning' })
})

const sent = (name: string) => server.asked.filter(asked => asked.name === name).map(({ input }) => input)

test('a commissioning says which scripts and tests run, none of them, or nothing of it', async () => {
  const commission = (...words: string[]) => home.muster(['machine', 'commission', id, ...words])
  expect(await commission()).toMatchObject({ code: 0, stdout: `${id}  commissioning\n` })
  await commission('--test', 'memory', '--test', 'cpu', '--parameter', 'cpu.seconds=600', '--parameter', 'memory.limitMib=64')
  await commission('--no-tests', '--script', 'label', '--parameter', 'label.shelf="7"', '--parameter', 'label.deep=true')
  await commission('--no-scripts', '--no-tests')
  expect(sent('machines.commission')).toEqual([
    { id },
    { id, tests: ['memory', 'cpu'], parameters: { cpu: { seconds: 600 }, memory: { limitMib: 64 } } },
    { id, tests: [], scripts: ['label'], parameters: { label: { shelf: '7', deep: true } } },
    { id, tests: [], scripts: [] },
  ])
})

test('a parameter that says not of which script, or a name that is none, is a mistake of the command line', async () => {
  const wrong = await Promise.all(
    ['cpu=1', 'cpu.seconds', 'a.b.c=1'].map(text => home.muster(['machine', 'commission', id, '--parameter', text])),
  )
  for (const ended of wrong) expect(ended).toMatchObject({ code: 2, stderr: expect.stringContaining('memory.limitMib=64') })
  expect(await home.muster(['machine', 'commission', id, '--test', 'No Name'])).toMatchObject({
    code: 2,
    stderr: expect.stringContaining('tests'),
  })
  expect(sent('machines.commission')).toEqual([])
})

const reports: ScriptReport[] = [
  { script: 'disk-health', part: 'sdb', status: 'failed' as const, message: 'SMART says FAILED \u001b[31m', exitCode: 1 },
  { script: 'disk-health', part: 'sda', status: 'passed' as const, message: '', exitCode: 0 },
].map((facts, index) => ({
  ...{ id: 12 - index, at: '2026-01-02T03:04:05Z', machine: id, run: 'r1', kind: 'test' as const, seconds: 3, result: { wearPercent: 2 } },
  ...facts,
}))

test('results are those of the last commissioning; what a script wrote comes part by part, and cannot command the terminal', async () => {
  server.answers['machines.scriptResults'] = () => ({ items: reports, nextCursor: null })
  server.answers['machines.scriptOutput'] = ({ result }) => ({
    ...(reports.find(report => report.id === result) as ScriptReport),
    output: `of ${result}:\n\tfine \u001b[2J\n`,
  })
  const table = await home.muster(['machine', 'results', id])
  expect(table).toMatchObject({ code: 0, stdout: expect.stringMatching(/^disk-health +sdb +failed +3s +SMART says FAILED .\[31m$/m) })
  expect(table.stdout).not.toContain('\u001b')
  expect(await home.muster(['machine', 'results', id, '--all', '--limit', '5', '-o', 'name'])).toMatchObject({ stdout: '12\n11\n' })
  const log = await home.muster(['machine', 'results', id, '--log', 'disk-health'])
  expect(log.stdout).toBe(
    '==> disk-health on sda: passed\nof 11:\n\tfine \ufffd[2J\n==> disk-health on sdb: failed, SMART says FAILED \ufffd[31m\nof 12:\n\tfine \ufffd[2J\n',
  )
  expect(sent('machines.scriptResults')).toEqual([
    { id, run: 'latest', limit: 100 },
    { id, limit: 5 },
    { id, run: 'latest', script: 'disk-health', limit: 100 },
  ])
  const json = await home.muster(['machine', 'results', id, '--log', 'disk-health', '-o', 'json'])
  expect(JSON.parse(json.stdout).items[0]).toMatchObject({ id: 11, result: { wearPercent: 2 }, output: expect.stringContaining('of 11') })
  server.answers['machines.scriptResults'] = () => ({ items: [], nextCursor: null })
  expect((await home.muster(['machine', 'results', id])).stderr).toContain('No script has run')
})

test('scripts are listed with where they come from and what they take', async () => {
  server.answers['scripts.list'] = () => ({
    items: [
      {
        ...{
          name: 'memory',
          source: 'agent',
          title: 'Patterns',
          kind: 'test',
          on: 'machine',
          timeout: '70m',
          default: false,
          partitions: ['lon1'],
        },
        ...{ only: {}, parameters: { percent: { type: 'integer', default: 80, min: 1, max: 90, says: '' } } },
      },
      {
        ...{ name: 'raid', source: 'partition', title: 'Battery', kind: 'commissioning', on: 'disk', timeout: '2m', default: true },
        ...{ partitions: ['lon1', 'par2'], only: { vendor: 'Dell', diskKinds: ['hdd'] }, parameters: {} },
      },
    ],
    nextCursor: null,
    coverage: wholeCoverage,
  })
  const { stdout } = await home.muster(['script', 'list', '-o', 'wide'])
  expect(stdout).toMatch(/^memory +test +the machine +no +70m +agent +- +percent=80 +Patterns +lon1$/m)
  expect(stdout).toMatch(/^raid +commissioning +each disk +yes +2m +partition +Dell, hdd +- +Battery +lon1,par2$/m)
})
