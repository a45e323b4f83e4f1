/** The rack as a program: one ready line, buttons pressed once in a lifetime, a clean end. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { startTestPartition } from './rack-partition.ts'

const program = new URL('../src/main.ts', import.meta.url).pathname

interface Run {
  child: ChildProcess
  /** The first line of standard output. */
  ready: Promise<Record<string, unknown>>
  ended: Promise<{ code: number | null; errors: string }>
}

function run(...args: string[]): Run {
  const child = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
  onTestFinished(() => {
    child.kill('SIGKILL')
  })
  let output = ''
  let errors = ''
  const ready = Promise.withResolvers<Record<string, unknown>>()
  ready.promise.catch(() => {}) // not every test waits for it
  child.stdout.on('data', (text: Buffer) => {
    output += text
    const end = output.indexOf('\n')
    if (end >= 0 && output.startsWith('{')) ready.resolve(JSON.parse(output.slice(0, end)) as Record<string, unknown>)
  })
  child.stderr.on('data', (text: Buffer) => {
    errors += text
  })
  const ended = new Promise<{ code: number | null; errors: string }>(resolve => {
    child.once('close', code => {
      ready.reject(new Error(`the rack ended with ${code}: ${errors}`))
      resolve({ code, errors })
    })
  })
  return { child, ready: ready.promise, ended }
}

test('spreads machines, presses buttons, stops on SIGTERM, and presses none for known machines the next time', async () => {
  await using one = await startTestPartition()
  await using two = await startTestPartition()
  const data = await mkdtemp(path.join(tmpdir(), 'rack-main-'))
  onTestFinished(async () => await rm(data, { recursive: true, force: true }))
  const args = ['--machines', '5', '--partition', `p1=${one.url}`, '--partition', `p2=${two.url}`, '--data', data, '--seed', '5']
  const first = run(...args, '--pace', 'instant', '--spread', '50', '--sad', 'dead-bmc')
  expect(await first.ready).toMatchObject({
    event: 'ready',
    machines: 5,
    partitions: { p1: 3, p2: 2 },
    seed: 5,
    poweringOn: 5,
    sad: [{ name: 'dead-bmc', index: 4 }],
  })
  await expect.poll(() => one.machines.size + two.machines.size, { timeout: 10_000 }).toBe(5)
  // Let the answers arrive: a machine that was cut off before would rightly enlist again.
  await new Promise(resolve => setTimeout(resolve, 300))
  first.child.kill('SIGTERM')
  expect(await first.ended).toMatchObject({ code: 0 })
  const second = run(...args, '--pace', 'instant', '--json')
  expect(await second.ready).toMatchObject({ poweringOn: 0, bmc: (await first.ready).bmc })
  second.child.kill('SIGINT')
  const { code, errors } = await second.ended
  expect(code).toBe(0)
  expect(JSON.parse(errors)).toMatchObject({ message: 'stopping', signal: 'SIGINT' })
})

test('says what is wrong with its arguments', async () => {
  expect(await run('--machines', '5').ended).toMatchObject({ code: 1, errors: expect.stringContaining('--partition') })
  const partition = ['--partition', 'p1=http://127.0.0.1:9']
  expect(await run(...partition, '--sad', 'grumpy').ended).toMatchObject({
    code: 1,
    errors: expect.stringContaining('there are never-powers-on'),
  })
  expect(await run(...partition, '--machines', '1', '--sad', 'dead-bmc', '--sad', 'bad-disk').ended).toMatchObject({
    code: 1,
    errors: '2 sad machines are asked for, but only 1 machines\n',
  })
})
