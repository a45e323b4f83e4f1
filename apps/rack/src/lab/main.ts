// `npm run lab`: computers with real firmware, in name spaces of their own, live through everything Muster does with a machine.
import { execFileSync } from 'node:child_process'
import { closeSync, cpSync, mkdirSync, openSync, readFileSync, rmSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { packageCache } from '@muster/agent/build'
import { imageCache, keptAgent } from '@muster/agent/built'
import { createClient } from '@muster/shared/client'
import { Command, Option } from 'commander'
import { table } from '../bench/table.ts'
import { type Federation, startFederation } from '../federation/federation.ts'
import { wholeNumber } from '../whole-number.ts'
import { type Acceleration, Computer, type ComputerOptions, type Firmware } from './computer.ts'
import { buildDebianImage } from './debian-image.ts'
import { type Disturbance, everyStep, type Moment, moments } from './disturbance.ts'
import { diskBytes, duringOf, type FaultName, type FaultOptions, faultDeadlines, faultNames, makeFaultImage, tellFaults } from './faults.ts'
import { whyNoLab } from './needs.ts'
import { describeSubnets, type NetworkKind, networkKinds, networkNeeds } from './networks.ts'
import { bmcAddress, lan, layNetwork, layVlan, runInside } from './place.ts'
import { type Layout, Mortal, rootOn, tellStory } from './story.ts'
import type { StepTime } from './teller.ts'

interface Arguments {
  machines: number
  firmware: Firmware[]
  layout: Layout[]
  network: NetworkKind[]
  rescue: boolean
  accel: Acceleration
  data: string
  killIn: Moment[]
  cutIn: Moment[]
  abortIn: Moment[]
  suffer: FaultName[]
  fault: FaultName[]
  full: boolean
  limit: number
  json: boolean
}

const program = new Command('npm run lab --')
  .description(
    'Boots computers made of QEMU, with real firmware, from an empty disk to a Debian one can log in to, and back. Needs root on Debian; leaves nothing behind but --data.',
  )
  .option('--machines <n>', 'how many, the kinds of firmware in turn', wholeNumber(1, 16), 2)
  .addOption(new Option('--firmware <kind...>', 'which kinds').choices(['bios', 'uefi']).default(['bios', 'uefi']))
  .addOption(
    new Option('--layout <kind...>', 'deploy a root tarball onto these, in turn, and not a whole disk')
      .choices(Object.keys(rootOn))
      .default([]),
  )
  .addOption(
    new Option('--network <kind...>', 'these have a network document, in turn: addresses chosen by the partition on a port, a VLAN, a bond')
      .choices([...networkKinds])
      .default([]),
  )
  .option('--rescue', 'each machine is put into the rescue system once, and back', false)
  .addOption(new Option('--accel <kind>', 'kvm needs /dev/kvm').choices(['kvm', 'tcg']).default('tcg', 'tcg, which works everywhere'))
  .option('--data <dir>', 'images stay there for the next time; consoles and logs are in its run/', '.muster/lab')
  .addOption(disturbing('--kill-in', 'kill -9 of the partition in the middle of these stages, or at these steps, of the first machine'))
  .addOption(disturbing('--cut-in', 'the power of each machine goes there, once for each'))
  .addOption(disturbing('--abort-in', 'what each machine does is aborted there, and ordered again'))
  .addOption(
    new Option('--suffer <fault...>', 'each machine suffers one of these first, in turn, and the same order is then carried out')
      .choices(faultNames.filter(name => duringOf(name) !== 'releasing'))
      .default([]),
  )
  .addOption(
    new Option('--fault <name...>', 'instead: what goes wrong, what is then said, and the way out; on one machine')
      .choices([...faultNames])
      .default([]),
  )
  .option('--full', 'the lives of machines, disturbed in these three ways at every step, and then every fault', false)
  .option('--limit <minutes>', 'for one step of one machine', wholeNumber(1, 120), 15)
  .option('--json', 'one line of JSON on standard output at the end', false)
  .addHelpText(
    'after',
    '\nExamples:\n  npm run lab\n  npm run lab -- --firmware uefi --machines 1 --kill-in commissioning write\n  npm run lab -- --firmware bios --machines 1 --cut-in download write seed erase --abort-in write\n  npm run lab -- --layout lvm raid1\n  npm run lab -- --network vlan bond --rescue\n  npm run lab -- --suffer truncated-image wrong-digest\n  npm run lab -- --fault no-dhcp full-disk',
  )

const args = program.parse().opts<Arguments>()
const dataDir = path.resolve(args.data)
const files = path.join(dataDir, 'files')
const runDir = path.join(dataDir, 'run')
/** How a lab ends that was asked to, as shells have it. */
const stopped = 130
const insideMark = 'MUSTER_LAB_INSIDE'
const startedAt = Date.now()
const say = (line: string) => process.stderr.write(`${String(Math.round((Date.now() - startedAt) / 1000)).padStart(4)} s  ${line}\n`)

try {
  process.exitCode = process.env[insideMark] === undefined ? await outside() : await inside(JSON.parse(process.env[insideMark]))
} catch (error) {
  say(`the lab failed: ${(error as Error).message}`)
  process.exitCode = 1
}

/** Checks what is needed, builds images, and goes inside. */
async function outside(): Promise<number> {
  const why = whyNoLab()
  if (why !== undefined) throw new Error(why)
  if (args.accel === 'kvm') closeSync(openSync('/dev/kvm', 'r+'))
  mkdirSync(dataDir, { recursive: true })
  const faults = args.full ? faultNames : args.fault
  const tellsLives = args.full || faults.length === 0
  say(`building the agent${tellsLives ? ' and a Debian to deploy' : ''}, unless there`)
  const network = args.network.some(kind => networkNeeds[kind].network === 'netplan') ? 'netplan' : 'networkd'
  // Side by side: each is at work with one processor.
  const [built, os] = await Promise.all([
    keptAgent({ arch: 'amd64', kernel: 'cloud', images: imageCache, cache: packageCache, say: line => say(`  the agent: ${line}`) }),
    tellsLives &&
      buildDebianImage({ files, form: args.layout.length > 0 ? 'tar' : 'disk', network, say: line => say(`  Debian: ${line}`) }),
  ])
  cpSync(built, path.join(files, 'agent/amd64'), { recursive: true })
  rmSync(runDir, { recursive: true, force: true })
  const parts: Inside[] = []
  if (os !== false) {
    const numbers = args.suffer.length > 0 ? Array.from({ length: args.machines }, (_, index) => index + 1) : []
    parts.push({ part: 'lives', os, spoilt: await Promise.all(numbers.map(number => makeFaultImage(files, number))), runDir })
  }
  if (faults.length > 0)
    parts.push({ part: 'faults', names: faults, image: await makeFaultImage(files, 1), runDir: path.join(runDir, 'faults') })
  // Ctrl-C is for everybody in the terminal; what is inside stops, and this process with it.
  process.on('SIGINT', () => undefined)
  let worst = 0
  for (const part of parts) {
    if (worst === stopped) break
    mkdirSync(part.runDir, { recursive: true })
    const env = { ...process.env, [insideMark]: JSON.stringify(part) }
    worst = Math.max(worst, await runInside(fileURLToPath(import.meta.url), process.argv.slice(2), env))
  }
  return worst
}

/** What is told inside: the lives of machines, with an image to spoil for each where they suffer, or what goes wrong with one. */
type Inside = { readonly runDir: string } & (
  | { readonly part: 'lives'; readonly os: string; readonly spoilt: readonly FaultOptions['image'][] }
  | { readonly part: 'faults'; readonly names: readonly FaultName[]; readonly image: FaultOptions['image'] }
)

/** Whatever is left when this process ends is killed with its name space. */
async function inside(told: Inside): Promise<number> {
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => process.exit(stopped))
  return told.part === 'lives' ? lives(told) : faults(told)
}

async function faults({ names, image, runDir }: Inside & { part: 'faults' }): Promise<number> {
  await using stack = new AsyncDisposableStack()
  const [tap] = (await layNetwork(1)) as [string]
  const federation = await startLab(runDir, faultDeadlines)
  stack.defer(() => federation.stop())
  const client = createClient({ url: federation.fronts[0]?.url as string, token: federation.token })
  const [firmware = 'bios'] = args.firmware
  const computer = await installComputer({ index: 0, firmware, taps: [tap], folder: runDir, diskCount: 1, diskBytes })
  stack.use(computer)
  const ends = await tellFaults({ client, computer, image, names, stepLimitMs: args.limit * 60_000, say })
  const seconds = (ms: number) => `${(ms / 1000).toFixed(0)} s`
  const rows = ends.map(({ fault, code, ms }) => [fault, code, seconds(ms.failed), seconds(ms.mended)])
  process.stderr.write(`${table(['fault', 'said as', 'after', 'again, mended'], rows)}\n`)
  if (args.json) process.stdout.write(`${JSON.stringify({ faults: ends })}\n`)
  return 0
}

function installComputer(
  made: { index: number; taps: readonly [string, ...string[]] } & Pick<ComputerOptions, 'firmware' | 'folder' | 'diskCount' | 'diskBytes'>,
): Promise<Computer> {
  const { index, taps, ...parts } = made
  const [first, ...others] = taps
  const portOf = (tap: string, port: number) => ({ tap, mac: `52:54:00:99:0${port}:${(index + 1).toString(16).padStart(2, '0')}` })
  return Computer.install({
    ...parts,
    name: `${parts.firmware}${index + 1}`,
    ports: [portOf(first, 0), ...others.map((tap, place) => portOf(tap, place + 1))],
    bmcAddress: bmcAddress(index),
    memoryMib: 1024,
    acceleration: args.accel,
    log: (message, facts) => say(`${message} ${JSON.stringify(facts)}`),
  })
}

async function lives({ os, spoilt, runDir }: Inside & { part: 'lives' }): Promise<number> {
  await using stack = new AsyncDisposableStack()
  const portCounts = Array.from({ length: args.machines }, (_, index) => networkNeeds[inTurn(args.network, index) ?? 'static'].ports)
  const taps = await layNetwork(portCounts.reduce((sum, count) => sum + count, 0))
  const vlan = args.network.some(kind => kind !== 'static') ? await layVlan() : 'not wanted'
  if (vlan === 'unknown') say('the kernel here knows no VLANs (8021q): those of machines are looked at from within only')
  const federation = await startLab(runDir)
  stack.defer(() => federation.stop())
  const [partition] = federation.partitions as [Federation['partitions'][number]]
  const mortal = new Mortal(partition.child)
  const key = makeKey(runDir)
  const client = createClient({ url: federation.fronts[0]?.url as string, token: federation.token })
  if (args.network.length > 0) await describeSubnets(client, partition.name)
  const computers = await Promise.all(
    portCounts.map(async (count, index) => {
      const before = portCounts.slice(0, index).reduce((sum, each) => sum + each, 0)
      const own = taps.slice(before, before + count) as [string, ...string[]]
      const firmware = inTurn(args.firmware, index) as Firmware
      const diskCount = inTurn(args.layout, index) === 'raid1' ? 2 : 1
      const computer = await installComputer({ index, firmware, taps: own, folder: runDir, diskCount, diskBytes: 3 * 2 ** 30 })
      stack.use(computer)
      return computer
    }),
  )
  const ends = await Promise.allSettled(
    computers.map((computer, index) =>
      tellStory({
        client,
        computer,
        os,
        layout: inTurn(args.layout, index),
        network: inTurn(args.network, index),
        isOnVlan: vlan === 'laid',
        isRescued: args.rescue,
        fault: spoilt[index] && { name: inTurn(args.suffer, index) as FaultName, image: spoilt[index] },
        ...key,
        disturbances: disturbancesOf(index),
        partition: mortal,
        stepLimitMs: args.limit * 60_000,
        say,
      }),
    ),
  )
  return report(computers, ends)
}

/** The partition is killed for all of them; the first is enough to say when. */
function disturbancesOf(index: number): Disturbance[] {
  const all = args.full ? everyStep(args.layout.length > 0 ? 'tar' : 'disk') : undefined
  const planned = (how: Disturbance['how'], chosen: readonly Moment[]) => (all ?? chosen).map(at => ({ how, at }))
  return [...(index === 0 ? planned('kill', args.killIn) : []), ...planned('cut', args.cutIn), ...planned('abort', args.abortIn)]
}

function disturbing(flag: string, what: string): Option {
  return new Option(`${flag} <stage or step...>`, what).choices(moments).default([])
}

/** Undefined where there are none. */
function inTurn<Kind>(kinds: readonly Kind[], index: number): Kind | undefined {
  return kinds[index % kinds.length]
}

function report(computers: readonly Computer[], ends: readonly PromiseSettledResult<readonly StepTime[]>[]): number {
  const rows = computers.map((computer, index) => {
    const end = ends[index] as PromiseSettledResult<readonly StepTime[]>
    return end.status === 'fulfilled'
      ? { machine: computer.name, outcome: 'done' as const, steps: end.value }
      : { machine: computer.name, outcome: 'failed' as const, error: (end.reason as Error).message, console: computer.consoleFile }
  })
  for (const row of rows.filter(({ outcome }) => outcome === 'failed')) {
    say(`${row.machine} failed: ${row.error}`)
    say(
      `its console (${row.console}) ends:\n${computers
        .find(({ name }) => name === row.machine)
        ?.console()
        .slice(-1500)}`,
    )
  }
  const done = rows.filter(({ outcome }) => outcome === 'done')
  const steps = [...new Set(done.flatMap(({ steps: times = [] }) => times.map(({ step }) => step)))]
  const seconds = (ms = 0) => `${(ms / 1000).toFixed(0)} s`
  if (done.length > 0)
    process.stderr.write(
      `${table(
        ['machine', ...steps],
        done.map(({ machine, steps: times = [] }) => [machine, ...steps.map(step => seconds(times.find(time => time.step === step)?.ms))]),
      )}\n`,
    )
  if (args.json) process.stdout.write(`${JSON.stringify({ lab: rows })}\n`)
  return done.length === rows.length ? 0 : 1
}

/** A front, a partition, its PostgreSQL and a broker; machines reach the partition over the lab's switch. */
async function startLab(runDir: string, more: Readonly<Record<string, string>> = {}): Promise<Federation> {
  const port = 5240
  return startFederation({
    dataDir: path.join(runDir, 'federation'),
    partitions: 1,
    machines: 0,
    port,
    sync: 'off',
    broker: 'always the embedded',
    say: line => say(line),
    partitionEnv: {
      HOST: '0.0.0.0',
      MUSTER_URL: `http://${lan.address}:${port + 10}`,
      MUSTER_FILES: files,
      MUSTER_NETWORK_DIR: path.join(runDir, 'network'),
      MUSTER_DHCP_INTERFACES: lan.bridge,
      MUSTER_DHCP_RANGES: `${lan.dynamic.from}-${lan.dynamic.to}/${lan.prefix}`,
      MUSTER_DNS_ZONE: lan.zone,
      LOG_LEVEL: 'debug',
      MUSTER_ENLISTED: 'keep as new',
      MUSTER_PLACE: 'production',
      // Emulated processors, and several of them on two real ones.
      MUSTER_AGENT_SILENCE: '5m',
      MUSTER_AGENT_START: '5m',
      ...more,
    },
  })
}

function makeKey(runDir: string): { keyFile: string; publicKey: string } {
  const keyFile = path.join(runDir, 'key')
  execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-C', 'lab', '-f', keyFile])
  return { keyFile, publicKey: readFileSync(`${keyFile}.pub`, 'utf8').trim() }
}
