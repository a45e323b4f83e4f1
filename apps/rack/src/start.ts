// `npm start`: a whole federation in one folder. Shows what it does, then where everything is; Ctrl-C stops all of it.
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { createClient } from '@muster/shared/client'
import { Command } from 'commander'
import type { Child } from './federation/child.ts'
import { type Federation, restartPauseMs, startFederation } from './federation/federation.ts'
import { sadNames } from './machine/sad.ts'
import { wholeNumber } from './whole-number.ts'

interface Arguments {
  partitions: number
  machines: number
  port: number
  data: string
  sad: string[]
  json: boolean
}

/** Machines that are not ready by then are shown as they are: the federation itself works. */
const readyLimitMs = 180_000
/** So long without news, and nothing commissioning: what is missing was deleted, and what is new waits for a person. */
const quietMs = 10_000

const program = new Command('npm start --')
  .description(
    'Starts a whole Muster federation on this machine, with a virtual rack of machines that enlist, commission and become ready.',
  )
  .option('--partitions <n>', 'how many partitions', wholeNumber(1, 50), 3)
  .option('--machines <n>', 'how many virtual machines, spread over them', wholeNumber(0, 20_000), 60)
  .option('--port <p>', "the front's port; partitions take those from P+10; 0: any free ones", wholeNumber(0, 65_000), 5240)
  .option('--data <dir>', 'where everything is kept', '.muster')
  .option('--sad <name>', `a machine that misbehaves (${sadNames.join(', ')}); repeat`, (name, before: string[]) => [...before, name], [])
  .option('--json', 'one line of JSON on standard output once all is ready', false)
  .addHelpText(
    'after',
    '\nExamples:\n  npm start\n  npm start -- --machines 200 --sad slow-bmc --sad never-powers-on\n  npm start -- --data /srv/muster --port 6000 --json',
  )

const args = program.parse().opts<Arguments>()
const dataDir = path.resolve(args.data)
const say = (line: string) => process.stderr.write(`${line}\n`)

let federation: Federation | undefined
let isStopping = false
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => void stop(signal))

try {
  takeFolder()
  say(`Starting Muster in ${dataDir} …`)
  federation = await startFederation({ ...args, dataDir, say: line => say(`  ${line}`), onLoss: restart })
  // The stop came while it started.
  if (isStopping) await federation.stop()
  else await welcome(federation)
} catch (error) {
  if (!isStopping) {
    say(`Muster did not start: ${(error as Error).message}`)
    await federation?.stop()
    leaveFolder()
    process.exit(1)
  }
}

async function stop(signal: NodeJS.Signals): Promise<void> {
  if (isStopping) return
  isStopping = true
  say(`\n${signal === 'SIGINT' ? 'Ctrl-C' : signal}: stopping …`)
  // While it starts there is nothing to stop in order yet: children die with us.
  await federation?.stop()
  leaveFolder()
  say('Stopped. The next start finds the same machines.')
  process.exit(0)
}

function restart(child: Child, how: string): void {
  if (isStopping) return
  say(`${child.name} ended (${how}); starting it again`)
  void sleep(restartPauseMs)
    .then(() => (isStopping ? undefined : child.start()))
    .catch(error => {
      if (!isStopping) restart(child, (error as Error).message)
    })
}

async function welcome({ fronts, partitions, token, rack }: Federation): Promise<void> {
  const [front] = fronts as [Federation['fronts'][number]]
  writeFileSync(path.join(dataDir, 'cli.json'), `${JSON.stringify({ url: front.url, token }, null, 2)}\n`, { mode: 0o600 })
  if (rack) await machinesReady(front.url, token)
  if (isStopping) return
  if (args.json) {
    const line = { ready: true, front: front.url, partitions: partitions.map(({ name, url }) => ({ name, url })), token }
    process.stdout.write(`${JSON.stringify(line)}\n`)
    return
  }
  const muster =
    args.data === '.muster' ? './muster' : `MUSTER_URL=${front.url} MUSTER_TOKEN_FILE=${path.join(args.data, 'token')} ./muster`
  process.stdout.write(`
Muster is running.

  API     ${front.url}/api/v1          (Authorization: Bearer TOKEN)
  Docs    ${front.url}/api/v1/docs
  Token   ${token}
  Logs    ${path.join(args.data, 'logs')}

Try, in another terminal:

  ${muster} machine list
  ${muster} allocate --cpus 8 --deploy debian/12 --wait 2m
  ${muster} event tail
  curl -H "Authorization: Bearer $(cat ${path.join(args.data, 'token')})" ${front.url}/api/v1/status

Ctrl-C stops everything; the next start finds the same machines.
`)
}

/** Waits until every machine has become ready (or is in use, or has failed), showing how far they are. */
async function machinesReady(url: string, token: string): Promise<void> {
  const client = createClient({ url, token })
  const until = Date.now() + readyLimitMs
  let shown = ''
  let shownAt = Date.now()
  while (!isStopping && Date.now() < until) {
    const { machines } = await client.partitions.status({})
    const total = Object.values(machines).reduce((sum, count) => sum + count, 0)
    const underWay = (machines.new ?? 0) + (machines.commissioning ?? 0)
    const text = `${total} of ${args.machines} machines enlisted, ${underWay} under way, ${machines.ready ?? 0} ready${machines.failed_commissioning ? `, ${machines.failed_commissioning} failed` : ''}`
    if (text !== shown) {
      showProgress(text)
      shown = text
      shownAt = Date.now()
    }
    if (total >= args.machines && underWay === 0) break
    if (total > 0 && !machines.commissioning && Date.now() - shownAt > quietMs) break
    await sleep(500)
  }
  if (process.stderr.isTTY) process.stderr.write('\n')
}

function showProgress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[2K  ${text}`)
  else say(`  ${text}`)
}

/** Two federations in one folder would fight over one database. */
function takeFolder(): void {
  mkdirSync(dataDir, { recursive: true })
  const lock = path.join(dataDir, 'lock')
  const holder = existsSync(lock) ? Number(readFileSync(lock, 'utf8')) : undefined
  // A container's processes get the same numbers each time: one that was killed left ours.
  if (holder !== undefined && holder !== process.pid && isAlive(holder))
    throw new Error(`${args.data} is in use by process ${holder}; stop that, or choose another --data`)
  writeFileSync(lock, String(process.pid))
}

function leaveFolder(): void {
  const lock = path.join(dataDir, 'lock')
  if (existsSync(lock) && readFileSync(lock, 'utf8') === String(process.pid)) rmSync(lock)
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}
