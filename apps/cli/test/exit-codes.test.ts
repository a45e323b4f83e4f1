// Scripts rely on the exit code: every kind of failure ends with its own.
import { readFileSync } from 'node:fs'
import { type ErrorCode, errorCodes, Refusal } from '@muster/shared/errors'
import { expect, test } from 'vitest'
import { exitOfError, exitTable, worstOf } from '../src/exit-codes.ts'
import { eachWithServer } from './ground.ts'
import type { Home } from './muster.ts'
import { aMachine, type TestServer, wholeCoverage } from './server.ts'

let server: TestServer
let home: Home
eachWithServer((own, empty) => {
  server = own
  home = empty
})

test.for<[ErrorCode, number]>([
  ['internal', 1],
  ['invalid-input', 2],
  ['not-found', 3],
  ['wrong-state', 4],
  ['locked', 4],
  ['forbidden', 6],
  ['partition-silent', 7],
  ['deadline-passed', 8],
])('a refusal %s ends with %i', async ([code, exit]) => {
  // An action, because a look is repeated by the client for what may pass.
  server.answers['machines.fix'] = () => {
    throw new Refusal(code, 'this is why')
  }
  const ended = await home.muster(['machine', 'fix', 'lon1-4y3h7n'])
  expect(ended.code).toBe(exit)
  expect(ended.stderr).toContain(`muster: fix lon1-4y3h7n: ${code}: this is why`)
  expect(ended.stdout).toBe('')
})

test('a wrong token, a server that is not there, a command that is not there', async () => {
  const [wrong, away, unknown, nothing, bad] = await Promise.all([
    home.muster(['whoami'], { env: { MUSTER_TOKEN: 'another' } }),
    home.muster(['whoami'], { env: { MUSTER_URL: 'http://127.0.0.1:1' } }),
    home.muster(['machine', 'lst']),
    home.muster([]),
    home.muster(['machine', 'get', 'lon1']),
  ])
  expect(wrong).toMatchObject({ code: 6, stderr: expect.stringContaining('hint: log in with') })
  expect(away).toMatchObject({ code: 7, stderr: expect.stringContaining('ECONNREFUSED') })
  expect(unknown).toMatchObject({ code: 2, stderr: expect.stringContaining('list') })
  expect(nothing).toMatchObject({ code: 2, stdout: expect.stringContaining('Exit codes:') })
  expect(bad).toMatchObject({ code: 2, stderr: expect.stringContaining('id: "lon1" is not a machine id') })
  expect(server.asked).toEqual([])
})

test('a mistake on the command line is a problem document too, where documents are wanted', async () => {
  const [unknown, missing, flag, format] = await Promise.all([
    home.muster(['machine', 'lst', '-o', 'json']),
    home.muster(['machine', '--output=ndjson']),
    home.muster(['-ojson', 'machine', 'list', '--limit', 'many']),
    home.muster(['machine', 'list', '-o', 'yaml']),
  ])
  const documentOf = ({ stderr }: { stderr: string }) => JSON.parse(stderr)
  for (const ended of [unknown, missing, flag]) {
    expect(ended).toMatchObject({ code: 2, stdout: '' })
    expect(documentOf(ended)).toMatchObject({ type: 'urn:muster:cli:usage', code: 'usage', retryable: false, hint: 'see --help' })
  }
  expect(documentOf(unknown).detail).toContain('Did you mean one of list, ls?')
  expect(documentOf(missing).detail).toBe('a subcommand is missing')
  expect(documentOf(flag).detail).toContain('"many" is not a whole number')
  expect(format).toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/^muster: option '-o, --output <format>' argument 'yaml' is invalid/),
  })
})

test('several machines: each has its outcome, and the worst is the exit code', async () => {
  server.answers['machines.lock'] = ({ id }) => {
    if (id === 'lon1-222222') throw new Refusal('not-found', 'no such machine')
    if (id === 'lon1-333333') throw new Refusal('partition-silent', 'lon1 did not answer')
    return aMachine({ id, locked: true })
  }
  const ids = ['lon1-111111', 'lon1-222222', 'lon1-333333']
  const { code, stdout, stderr } = await home.muster(['machine', 'lock', ...ids])
  expect({ code, stdout }).toEqual({ code: 7, stdout: 'lon1-111111  locked\n' })
  expect(stderr).toContain('lock lon1-222222: not-found')
  expect(stderr).toContain('lock lon1-333333: partition-silent')
  const json = await home.muster(['machine', 'lock', ...ids, '-o', 'json'])
  expect(JSON.parse(json.stdout).items).toHaveLength(1)
  expect(
    json.stderr
      .trim()
      .split('\n')
      .map(line => JSON.parse(line).code)
      .sort(),
  ).toEqual(['not-found', 'partition-silent'])
})

test('the worst of several endings, whatever their order', () => {
  expect(worstOf(['ok', 'failed-state', 'not-found'])).toBe('failed-state')
  expect(worstOf([])).toBe('ok')
})

test('every error of the table has an ending, and the README has every ending', () => {
  for (const code of errorCodes) expect(Object.keys(exitTable)).toContain(exitOfError[code])
  const readme = readFileSync(new URL('../README.md', import.meta.url), 'utf8')
  for (const { code, meaning } of Object.values(exitTable)) expect(readme).toContain(`| ${code} | ${meaning} |`)
})

test('a reader that has seen enough is no failure', async () => {
  server.answers['machines.list'] = ({ cursor }) => ({
    items: Array.from({ length: 200 }, () => aMachine({ note: 'x'.repeat(500) })),
    nextCursor: String(Number(cursor ?? 0) + 1),
    coverage: wholeCoverage,
  })
  const running = home.start(['machine', 'list', '--all', '-o', 'ndjson'])
  await running.seen('stdout', 'lon1-4y3h7n')
  running.closeStdout()
  expect(await running.ended).toMatchObject({ code: 0, stderr: '' })
})

test('Ctrl-C ends a wait with 130', async () => {
  server.answers['machines.commission'] = () => aMachine({ state: 'commissioning' })
  server.answers['machines.get'] = () => ({ ...aMachine({ state: 'commissioning' }), powerSettings: null, inventory: null })
  const running = home.start(['machine', 'commission', 'lon1-4y3h7n', '--wait'])
  await running.seen('stderr', 'commissioning')
  running.interrupt()
  expect((await running.ended).code).toBe(130)
})
