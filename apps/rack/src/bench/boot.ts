// P6: a whole partition's machines ask for their script at once, and files go out, beside nginx and a bare server of Node: the same texts, the same clients, in turns.
import { execFile, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { findProgram } from '@muster/embedded/find-program'
import { type Federation, freePorts, startFederation } from '../federation/federation.ts'
import { type Costs, costing, type Groups, postgresOf, postmasterOf } from './cpu.ts'
import { rounded } from './figures.ts'
import { fill, openFixture } from './fixture.ts'
import { Helper } from './helper.ts'
import { type Herd, herd } from './herd.ts'
import type { HerdFloor } from './herd-floor.ts'
import type { Plan } from './plan.ts'
import { type Goal, goalsText, table } from './table.ts'

const run = promisify(execFile)
const fileBytes = 32 * 2 ** 20
/** As many may be on their way in as the partition lets. */
const backlog = 4_096
/** Clients that fetch the file at once. */
const fetchers = 16
const herdRounds = 6
const fileRounds = 4

type Round = Herd & { costs: Costs }

interface HerdSide {
  url: URL
  paths: readonly string[]
  groups: Groups
}

interface Served {
  mibPerSecond: number
  cpuMicrosPerMib: number
}

/** What a measurement that brings its own servers answers. */
export interface Measured {
  text: string
  figures: Record<string, unknown>
  faults: string[]
}

/** Measures one partition with `plan.machines` machines. */
export async function measureBoot(plan: Plan, say: (line: string) => void): Promise<Measured> {
  const dataDir = mkdtempSync(path.join(tmpdir(), 'muster-bench-boot-'))
  const stops: (() => Promise<unknown> | unknown)[] = [() => rmSync(dataDir, { recursive: true, force: true })]
  try {
    say(`boot: a partition with ${plan.machines} machines`)
    const federation = await startFederation({ dataDir, partitions: 1, fronts: 0, machines: 0, port: 0, broker: 'always the embedded' })
    stops.push(() => federation.stop())
    const [partition] = federation.partitions as [Federation['partitions'][number]]
    const sql = openFixture(partition.databaseUrl)
    await fill(sql, 'p1', plan.machines)
    // Every other one has work to do, and so a token in its script.
    const { count: working } = await sql`update machines set state = 'rescue', run = gen_random_uuid() where hostname ~ '[02468]$'`
    const known = await sql<{ mac: string }[]>`select mac from macs order by mac`
    const [{ backend }] = (await sql`select pg_backend_pid() as backend`) as unknown as [{ backend: number }]
    const postmaster = postmasterOf(backend)
    await sql.end()
    const partitionPids = () => [partition.child.pid ?? 0]

    const macs = known.map(({ mac }) => mac)
    const sample = await (await fetch(`${partition.url}/boot/ipxe/${macs[0]}`)).text()
    const floor = new Helper<HerdFloor>(new URL('./herd-floor.ts', import.meta.url), 'the bare server')
    stops.push(() => floor.stop())
    const floorUrl = await floor.ask('start', sample)
    const files = path.join(dataDir, 'files')
    writeFileSync(path.join(files, 'bench.ipxe'), sample)
    writeFileSync(path.join(files, 'bench.img'), randomBytes(fileBytes))
    const folder = path.join(dataDir, 'nginx')
    mkdirSync(folder)
    const nginx = await startNginx(files, folder, say)
    if (nginx) stops.push(nginx.stop)

    const same = macs.map(() => '/bench.ipxe')
    const herds: Record<string, HerdSide> = {
      partition: {
        url: new URL(partition.url),
        paths: macs.map(mac => `/boot/ipxe/${mac}`),
        groups: { server: partitionPids, postgres: () => postgresOf(postmaster, () => true) },
      },
      'node:http': { url: new URL(floorUrl), paths: same, groups: { server: () => [floor.pid] } },
      ...(nginx && { nginx: { url: new URL(nginx.url), paths: same, groups: { server: nginx.pids } } }),
    }
    const scripts = await herdsInTurn(herds, say)
    const ours = scripts.partition as Summed
    const { lost } = ours
    const idle = working * herdRounds - ours.working

    const sides = [
      { name: 'partition', url: `${partition.url}/boot/files/bench.img`, pids: partitionPids },
      ...(nginx ? [{ name: 'nginx', url: `${nginx.url}/bench.img`, pids: nginx.pids }] : []),
    ]
    const served = new Map<string, Served[]>(sides.map(({ name }) => [name, []]))
    for (let round = 0; round < fileRounds; round++)
      for (const { name, url, pids } of sides) {
        say(`boot: files by ${name}`)
        served.get(name)?.push(await fetchedFrom(url, pids))
      }
    const mean = (name: string): Served | undefined => {
      const all = served.get(name)
      if (!all) return undefined
      const of = (pick: (one: Served) => number) => all.reduce((sum, one) => sum + pick(one), 0) / all.length
      return { mibPerSecond: rounded(of(one => one.mibPerSecond)), cpuMicrosPerMib: rounded(of(one => one.cpuMicrosPerMib)) }
    }
    const sent = { partition: mean('partition') as Served, nginx: mean('nginx') ?? null }
    const ratio = sent.nginx ? rounded(sent.partition.mibPerSecond / sent.nginx.mibPerSecond, 2) : null
    const rows = Object.entries(sent).flatMap(([name, one]) => (one ? [[name, one.mibPerSecond, one.cpuMicrosPerMib]] : []))
    const herdRows = Object.entries(scripts).map(([name, one]) => [
      name,
      one.p50Ms,
      one.p99Ms,
      one.bestP99Ms,
      one.lost,
      one.serverMicros,
      one.postgresMicros,
      one.clientMicros,
    ])
    const ratios = Object.entries(scripts).flatMap(([name, one]) =>
      one === ours ? [] : [{ name, p99: rounded(ours.p99Ms / one.p99Ms, 2), cpu: rounded(ours.serverMicros / one.serverMicros, 2) }],
    )
    const goals: Goal[] = [
      { goal: 'p99 of the scripts ≤ 200 ms', met: ours.p99Ms <= 200 },
      { goal: 'no script lost', met: lost === 0 },
      { goal: '≥ 0.5 of nginx’s throughput', met: ratio === null ? undefined : ratio >= 0.5 },
    ]
    const text = `P6  ${macs.length} machines ask for their script at once, ${herdRounds} times, ${working} of them with work to do, beside one text for all by a bare server of Node, and by nginx
${table(['scripts', 'p50 ms', 'p99 ms', 'best p99', 'lost', 'server µs', 'postgres µs', 'client µs'], herdRows)}
${ratios.map(({ name, p99, cpu }) => `  ${p99} of the p99 of ${name}, ${cpu} of its CPU`).join('\n')}
${table(['files', 'MiB/s', 'CPU µs/MiB'], rows)}
  ${ratio === null ? 'no nginx here (apt-get install nginx-light)' : `${ratio} of nginx’s throughput`}
${goalsText(goals)}`
    const figures = { machines: macs.length, working, rounds: herdRounds, scripts, ratios, files: sent, ofNginx: ratio, goals }
    const faults = [
      ...(lost > 0 ? [`boot: ${lost} scripts were lost`] : []),
      ...(idle !== 0 ? [`boot: of ${working * herdRounds} scripts of machines with work ${idle} had none`] : []),
    ]
    return { text, figures, faults }
  } finally {
    for (const stop of stops.reverse()) await stop()
  }
}

/** Each side in each round, so that what the neighbours do meets all of them. */
async function herdsInTurn(herds: Record<string, HerdSide>, say: (line: string) => void): Promise<Record<string, Summed>> {
  const rounds = Object.fromEntries(Object.keys(herds).map(name => [name, [] as Round[]]))
  for (let round = 0; round < herdRounds; round++) {
    say(`boot: the herd, ${round + 1} of ${herdRounds}`)
    for (const [name, { url, paths, groups }] of Object.entries(herds)) {
      const { result, costs } = await costing(groups, () => herd(url, paths))
      rounds[name]?.push({ ...result, costs })
    }
  }
  return Object.fromEntries(Object.entries(rounds).map(([name, each]) => [name, summed(each)]))
}

type Summed = ReturnType<typeof summed>

function summed(rounds: readonly Round[]) {
  const latencies = rounds.flatMap(({ latenciesMs }) => latenciesMs)
  const sum = (pick: (round: Round) => number) => rounds.reduce((total, round) => total + pick(round), 0)
  const each = (pick: (round: Round) => number) => rounded(sum(pick) / Math.max(1, latencies.length))
  return {
    p50Ms: rounded(percentile(latencies, 0.5)),
    p99Ms: rounded(percentile(latencies, 0.99)),
    /** Of the round with the fewest neighbours. */
    bestP99Ms: rounded(Math.min(...rounds.map(({ latenciesMs }) => percentile(latenciesMs, 0.99)))),
    lost: sum(({ lost }) => lost),
    working: sum(({ working }) => working),
    serverMicros: each(({ costs }) => costs.server ?? 0),
    postgresMicros: each(({ costs }) => costs.postgres ?? 0),
    clientMicros: each(({ clientMicros }) => clientMicros),
  }
}

function percentile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0
}

/** By curl: what the client costs is the same for both. */
async function fetchedFrom(url: string, pids: () => readonly number[]): Promise<Served> {
  const startedAt = performance.now()
  const { costs } = await costing({ server: pids }, () =>
    Promise.all(
      Array.from({ length: fetchers }, () => run('curl', ['--silent', '--fail', '--max-time', '120', '--output', '/dev/null', url])),
    ),
  )
  const mib = (fetchers * fileBytes) / 2 ** 20
  return { mibPerSecond: mib / ((performance.now() - startedAt) / 1000), cpuMicrosPerMib: (costs.server ?? 0) / mib }
}

/** nginx with one worker, as the partition is one process; undefined where it is not installed. */
async function startNginx(root: string, folder: string, say: (line: string) => void) {
  const program = findProgram('nginx')
  if (program === undefined) {
    say('boot: no nginx to stand beside (apt-get install nginx-light)')
    return undefined
  }
  const [port] = await freePorts(1)
  const config = path.join(folder, 'nginx.conf')
  writeFileSync(
    config,
    `daemon off; master_process off; pid ${folder}/pid; error_log ${folder}/error.log;
events { worker_connections 4096; }
http { access_log off; sendfile on; client_body_temp_path ${folder}/b; proxy_temp_path ${folder}/p; fastcgi_temp_path ${folder}/f; uwsgi_temp_path ${folder}/u; scgi_temp_path ${folder}/s;
  server { listen 127.0.0.1:${port} backlog=${backlog}; root ${root}; } }
`,
  )
  const child = spawn(program, ['-c', config, '-p', folder], { stdio: 'ignore' })
  const ended = new Promise(resolve => child.once('exit', resolve))
  const url = `http://127.0.0.1:${port}`
  for (let tries = 0; ; tries++) {
    const answers = await fetch(url).then(
      () => true,
      () => false,
    )
    if (answers) break
    if (tries === 100 || child.exitCode !== null) throw new Error(`nginx did not start; see ${folder}/error.log`)
    await sleep(50)
  }
  const stop = async () => {
    child.kill('SIGTERM')
    await ended
  }
  return { url, pids: () => [child.pid ?? 0], stop }
}
