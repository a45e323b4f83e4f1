// The agent's running of scripts by itself: its shell, with busybox for every program as in its image, on this computer; the test is the partition.
import { execFileSync, spawn } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { findProgram } from '@muster/embedded/find-program'
import { builtInScripts, type JobScript, type ParameterValue, parametersOf, type ScriptResult, scriptResult } from '@muster/shared/scripts'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { missingPrograms } from './needs.ts'

const missing = missingPrograms(['busybox', 'curl', 'jq'], 'busybox-static curl jq')
const root = fileURLToPath(new URL('../root/muster/', import.meta.url))

let folder: string
let run: string
let server: Server
let url: string
beforeEach(async () => {
  folder = mkdtempSync(path.join(tmpdir(), 'muster-scripts-'))
  run = path.join(folder, 'run')
  const bin = path.join(folder, 'bin')
  for (const place of [run, bin]) mkdirSync(place)
  const busybox = findProgram('busybox') as string
  for (const applet of execFileSync(busybox, ['--list'], { encoding: 'utf8' }).split('\n').filter(Boolean))
    if (applet !== 'busybox') symlinkSync(busybox, path.join(bin, applet))
  for (const program of ['curl', 'jq']) symlinkSync(findProgram(program) as string, path.join(bin, program))
  server = createServer((_, response) => response.end('ok'))
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
})
afterEach(async () => {
  server.closeAllConnections()
  await new Promise(resolve => server.close(resolve))
  rmSync(folder, { recursive: true, force: true })
})

const inventory = {
  disks: [
    { name: 'sda', kind: 'ssd' },
    { name: 'nvme0n1', kind: 'nvme' },
  ],
  interfaces: [{ name: 'lo' }],
  facts: { dmi: { systemVendor: 'Dell Inc.' } },
}

const own = (name: string, text: string, more: Partial<JobScript> = {}): JobScript => ({
  ...{ name, kind: 'test', on: 'machine', timeoutSeconds: 30, parameters: {}, only: {}, text },
  ...more,
})

function builtIn(name: string, parameters: Record<string, ParameterValue> = {}): JobScript {
  const head = builtInScripts[name]
  if (!head) throw new Error(`there is no script ${name}`)
  const { values, problems } = parametersOf(head, parameters)
  expect(problems).toEqual([])
  return { name, kind: head.kind, on: head.on, timeoutSeconds: 60, parameters: values, only: head.only, text: null }
}

/** A program that the agent would find in its image. */
function program(name: string, text: string): void {
  const file = path.join(folder, 'bin', name)
  rmSync(file, { force: true })
  writeFileSync(file, `#!/bin/sh\n${text}`)
  chmodSync(file, 0o755)
}

/** Runs these scripts; answers what was told of each, in order, as the partition would read it, and where the agent said it stood. */
async function runScripts(scripts: JobScript[], env: Record<string, string> = {}): Promise<{ told: ScriptResult[]; stood: string[] }> {
  writeFileSync(path.join(run, 'job'), JSON.stringify({ kind: 'commission', scripts }))
  writeFileSync(path.join(run, 'inventory'), JSON.stringify(inventory))
  const text = `TOKEN=planted-token; . "$1/scripts.sh"; say() { :; }; fail() { echo "failed: $*" >&2; exit 9; }
    stand() { echo "$1 | $2 | $3" >>"$RUN/stood"; }; ask() { cat "$3" >>"$RUN/all"; }
    : >"$RUN/all"; : >"$RUN/stood"; run_scripts; echo "$total $bad"`
  const child = spawn(path.join(folder, 'bin/sh'), ['-c', text, 'sh', root], {
    cwd: folder,
    env: { PATH: path.join(folder, 'bin'), RUN: run, SCRIPTS: path.join(root, 'scripts'), URL: url, ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let said = ''
  child.stdout.on('data', (chunk: Buffer) => (said += chunk))
  const code = await new Promise<number | null>(resolve => child.on('close', resolve))
  expect(code).toBe(0)
  const told = JSON.parse(`[${readFileSync(path.join(run, 'all'), 'utf8').replace(/^\}\n\{/gm, '},{')}]`) as unknown[]
  const results = told.map(each => scriptResult.parse(each))
  expect(said.trim()).toBe(`${scripts.length} ${results.filter(({ status }) => status === 'failed' || status === 'timed-out').length}`)
  return { told: results, stood: readFileSync(path.join(run, 'stood'), 'utf8').trim().split('\n') }
}

/** A process that nobody has taken leave of yet is dead all the same. */
function isAlive(pid: string): boolean {
  if (!existsSync(`/proc/${pid}/stat`)) return false
  return !/^\d+ \(.*\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
}

const short = ({ script, part, status, exitCode, message }: ScriptResult) => [script, part, status, exitCode, message]

test('every script that the partition offers is in the image, uses what it says that it takes, and no other is there', () => {
  const files = readdirSync(path.join(root, 'scripts'))
  expect(files.sort()).toEqual(
    Object.keys(builtInScripts)
      .map(name => `${name}.sh`)
      .sort(),
  )
  for (const [name, { parameters }] of Object.entries(builtInScripts))
    for (const parameter of Object.keys(parameters))
      expect(readFileSync(path.join(root, 'scripts', `${name}.sh`), 'utf8'), `${name} and ${parameter}`).toMatch(
        new RegExp(`\\$${parameter}\\b`),
      )
})

test.skipIf(missing !== undefined)(
  'a script runs on each part that it concerns, is given what it takes, and how it ends is told with what it wrote and found',
  async () => {
    const { told, stood } = await runScripts([
      own('each-disk', 'echo "on $PART with $word, $count, $deep"; [ "$PART" = sda ] || { echo "no good"; exit 3; }', {
        on: 'disk',
        parameters: { word: "it's $HOME; `id`\n", count: 7, deep: true },
      }),
      own('only-nvme', 'echo "{\\"part\\": \\"$PART\\"}" >"$RESULT"', { on: 'disk', only: { diskKinds: ['nvme'] } }),
      own('only-hdd', 'true', { on: 'disk', only: { diskKinds: ['hdd'] } }),
      own('of-dell', 'echo "$URL $(pwd) $SCRATCH"', { only: { vendor: 'dell' } }),
      own('of-others', 'true', { only: { vendor: 'Acme' } }),
      own('cannot-say', 'echo "this one is virtual"; exit 77', { kind: 'commissioning' }),
      own('tells-no-token', 'env; set'),
    ])
    expect(told.map(short)).toEqual([
      ['each-disk', 'sda', 'passed', 0, ', 7, true'],
      ['each-disk', 'nvme0n1', 'failed', 3, 'no good'],
      ['only-nvme', 'nvme0n1', 'passed', 0, ''],
      ['only-hdd', '', 'skipped', null, 'the machine has no such disk'],
      ['of-dell', '', 'passed', 0, `${url} ${run}/scratch ${run}/scratch`],
      ['of-others', '', 'skipped', null, 'the system is made by Dell Inc., not Acme'],
      ['cannot-say', '', 'skipped', 77, 'this one is virtual'],
      ['tells-no-token', '', 'passed', 0, expect.any(String)],
    ])
    expect(told[0]?.output).toBe("on sda with it's $HOME; `id`\n, 7, true\n")
    expect(told.map(({ result }) => result).slice(0, 3)).toEqual([null, null, { part: 'nvme0n1' }])
    expect(JSON.stringify(told)).not.toContain('planted-token')
    expect(stood.slice(0, 3)).toEqual([
      'each-disk | test script 1 of 7, on sda | 20',
      'each-disk | test script 1 of 7, on nvme0n1 | 25',
      'only-nvme | test script 2 of 7, on nvme0n1 | 31',
    ])
  },
  120_000,
)

test.skipIf(missing !== undefined)(
  'a script that does not end is ended with all it started; one that leaves something behind holds nobody up',
  async () => {
    const began = Date.now()
    // Each says which process it leaves behind.
    const leave = (name: string, how: string) =>
      `${how} sh -c 'echo $$ >${folder}/left.${name}; exec sleep 1000' & until [ -s ${folder}/left.${name} ]; do :; done`
    const { told } = await runScripts([
      own('sleeps', `trap "" TERM; echo began; ${leave('sleeps', '')}; sleep 1000`, { timeoutSeconds: 1 }),
      own('daemon', `${leave('daemon', '')}; echo left`),
      own('escapes', `${leave('escapes', 'setsid')}; echo away`),
    ])
    expect(told.map(short)).toEqual([
      ['sleeps', '', 'timed-out', null, 'it took longer than 1 s; it wrote last: began'],
      ['daemon', '', 'passed', 0, 'left'],
      ['escapes', '', 'passed', 0, 'away'],
    ])
    expect(Date.now() - began).toBeLessThan(30_000)
    const left = told.map(({ script }) => readFileSync(path.join(folder, `left.${script}`), 'utf8').trim())
    expect(left.filter(pid => isAlive(pid))).toEqual([])
  },
  120_000,
)

test.skipIf(missing !== undefined)(
  'whatever a script writes is bounded and can be told',
  async () => {
    const { told } = await runScripts([
      own('talks', 'yes "a line of text" | head -c 3000000; printf "\\377\\000\\033[2J last words"'),
      own('no-json', 'echo "{" >"$RESULT"'),
      own('a-list', 'echo "[1]" >"$RESULT"'),
      own('much', `printf '{"noise": "' >"$RESULT"; head -c 20000 /dev/zero | tr '\\000' x >>"$RESULT"; echo '"}' >>"$RESULT"`),
      own('long-line', 'head -c 5000 /dev/zero | tr "\\000" x; exit 1'),
    ])
    expect(told.map(({ status, result }) => [status, result])).toEqual([
      ['passed', null],
      ['passed', null],
      ['passed', null],
      ['passed', null],
      ['failed', null],
    ])
    expect(told[0]?.output.length).toBeGreaterThan(65_000)
    expect(told[0]?.output).toMatch(/a line of text\na line.*\ufffd.\[2J last words$/s)
    for (const index of [1, 2, 3]) expect(told[index]?.output).toContain('is no JSON object')
    expect(told[4]?.message).toBe('x'.repeat(900))
  },
  120_000,
)

test.skipIf(missing !== undefined)(
  'a script that this image has not is told of',
  async () => {
    const { told } = await runScripts([own('quantum', '', { text: null })])
    expect(told.map(short)).toEqual([['quantum', '', 'failed', null, expect.stringContaining('its image is older')]])
  },
  120_000,
)

test.skipIf(missing !== undefined)(
  'processors, memory and network of a healthy computer pass, and say in numbers what they found',
  async () => {
    const { told } = await runScripts([
      builtIn('cpu', { seconds: 1 }),
      builtIn('memory', { limitMib: 64 }),
      builtIn('network', { requests: 3 }),
    ])
    expect(
      told.map(({ script, part, status }) => [script, part, status]),
      JSON.stringify(told),
    ).toEqual([
      ['cpu', '', 'passed'],
      ['memory', '', 'passed'],
      ['network', 'lo', 'passed'],
    ])
    const [cpu, memory, network] = told.map(({ result }) => result as Record<string, number>)
    expect(cpu).toMatchObject({ wrong: 0 })
    expect(cpu?.rounds).toBeGreaterThan(0)
    expect(memory).toMatchObject({ patterns: 5, wrong: 0 })
    expect(memory?.testedMib).toBeGreaterThan(0)
    expect(network).toMatchObject({ reached: true, lossPercent: 0 })
  },
  120_000,
)

test.skipIf(missing !== undefined)(
  'a processor that computes wrongly, memory that forgets and a partition that is not reached fail',
  async () => {
    // What a broken computer would answer. Busybox prefers its own programs to any in the path, but not to functions.
    const broken = (name: string, lie: string, parameters: Record<string, ParameterValue>): JobScript => ({
      ...builtIn(name, parameters),
      text: `${lie}\n${readFileSync(path.join(root, 'scripts', `${name}.sh`), 'utf8')}`,
    })
    await new Promise(resolve => server.close(resolve))
    const { told } = await runScripts([
      broken('cpu', 'sha256sum() { cat >/dev/null; echo "00000000  -"; }', { seconds: 1 }),
      broken('memory', 'cmp() { cat >/dev/null; echo "- $2 differ: char 7, line 1"; return 1; }', { limitMib: 8 }),
      builtIn('network', { requests: 2 }),
    ])
    await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
    expect(told.map(({ script, status }) => [script, status])).toEqual([
      ['cpu', 'failed'],
      ['memory', 'failed'],
      ['network', 'failed'],
    ])
    expect(told[0]?.output).toMatch(/processor 0: SHA-256 of zeros is 00000000/)
    expect(told[1]?.output).toContain('differ: char 7')
    expect(told[2]).toMatchObject({ message: expect.stringContaining(url), result: { reached: false } })
  },
  120_000,
)

test.skipIf(missing !== undefined)(
  'disks: what they say of themselves is judged, one that cannot say is skipped, and reading one is timed',
  async () => {
    const say = (disk: string, answer: object) => writeFileSync(path.join(folder, `${disk}.json`), JSON.stringify(answer))
    program('smartctl', `for last in "$@"; do :; done; cat "${folder}/\${last##*/}.json"; exit 4`)
    say('sda', {
      smart_status: { passed: true },
      temperature: { current: 34 },
      power_on_time: { hours: 4711 },
      ata_smart_attributes: { table: [{ id: 5, raw: { value: 3 } }] },
    })
    say('nvme0n1', {
      smart_status: { passed: true },
      nvme_smart_health_information_log: { critical_warning: 0, percentage_used: 91, media_errors: 0 },
    })
    const healthy = await runScripts([builtIn('disk-health')])
    expect(healthy.told.map(({ part, status, result }) => [part, status, result])).toEqual([
      ['sda', 'passed', { healthy: true, temperatureC: 34, powerOnHours: 4711, reallocatedSectors: 3 }],
      ['nvme0n1', 'passed', { healthy: true, wearPercent: 91, criticalWarning: 0, mediaErrors: 0 }],
    ])
    expect((await runScripts([builtIn('disk-health', { wearPercentMax: 90 })])).told[1]).toMatchObject({
      status: 'failed',
      message: 'nvme0n1 is worn by 91 %, more than 90 %',
    })
    say('sda', { smart_status: { passed: false } })
    say('nvme0n1', { smartctl: { messages: [{ string: 'Unable to detect device type', severity: 'error' }] } })
    const sick = await runScripts([builtIn('disk-health')])
    expect(sick.told.map(short)).toEqual([
      ['disk-health', 'sda', 'failed', 1, 'sda says that it fails'],
      ['disk-health', 'nvme0n1', 'skipped', 77, 'the disk does not say how it is'],
    ])

    writeFileSync(path.join(folder, 'sda'), Buffer.alloc(8 * 2 ** 20, 1))
    const DEVICES = folder
    const { told } = await runScripts([builtIn('disk-speed', { sizeMib: 4 })], { DEVICES })
    expect(told.map(({ part, status, result }) => [part, status, result])).toEqual([
      ['sda', 'passed', { readMib: 4, seconds: expect.any(Number), mibPerSecond: expect.any(Number) }],
      ['nvme0n1', 'failed', null],
    ])
    const slow = await runScripts([builtIn('disk-speed', { sizeMib: 4, leastMibPerSecond: 100_000 })], { DEVICES })
    expect(slow.told[0]).toMatchObject({ status: 'failed', message: expect.stringContaining('less than 100000 MiB/s') })
  },
  120_000,
)
