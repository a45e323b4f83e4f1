// P6: a whole partition's machines ask for their script at once, and files go out beside nginx: the same file, the same clients, in turns.
import { execFile, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { findProgram } from '@muster/embedded/find-program'
import { type Federation, freePorts, startFederation } from '../federation/federation.ts'
import { costing } from './cpu.ts'
import { rounded } from './figures.ts'
import { fill, openFixture } from './fixture.ts'
import { Helper } from './helper.ts'
import { type Herd, herd } from './herd.ts'
import type { HerdFloor } from './herd-floor.ts'
import type { Plan } from './plan.ts'
import { type Goal, goalsText, table } from './table.ts'

const run = promisify(execFile)
const fileBytes = 32 * 2 ** 20
/** Clients that fetch the file at once. */
const fetchers = 16
const herdRounds = 4

type Round = Herd & { cpuMicros: number }

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
    await sql.end()
    const partitionPids = () => [partition.child.pid ?? 0]

    const macs = known.map(({ mac }) => mac)
    const sample = await (await fetch(`${partition.url}/boot/ipxe/${macs[0]}`)).text()
    const floor = new Helper<HerdFloor>(new URL('./herd-floor.ts', import.meta.url), 'the bare server')
    stops.push(() => floor.stop())
    const floorUrl = await floor.ask('start', sample)
    const herds = {
      partition: { url: new URL(partition.url), pids: partitionPids, rounds: [] as Round[] },
      floor: { url: new URL(floorUrl), pids: () => [floor.pid], rounds: [] as Round[] },
    }
    say('boot: the herd')
    for (let round = 0; round < herdRounds; round++)
      for (const side of Object.values(herds)) {
        const { result, costs } = await costing({ server: side.pids }, () => herd(side.url, macs))
        side.rounds.push({ ...result, cpuMicros: costs.server ?? 0 })
      }
    const scripts = { partition: summed(herds.partition.rounds), floor: summed(herds.floor.rounds) }
    const { lost } = scripts.partition
    const idle = working * herdRounds - scripts.partition.working

    const folder = path.join(dataDir, 'federation-files')
    mkdirSync(folder)
    const file = path.join(dataDir, 'files', 'bench.img')
    writeFileSync(file, randomBytes(fileBytes))
    const nginx = await startNginx(path.join(dataDir, 'files'), folder, say)
    if (nginx) stops.push(nginx.stop)
    const sides = [
      { name: 'partition', url: `${partition.url}/boot/files/bench.img`, pids: partitionPids },
      ...(nginx ? [{ name: 'nginx', url: `${nginx.url}/bench.img`, pids: nginx.pids }] : []),
    ]
    const served = new Map<string, Served[]>(sides.map(({ name }) => [name, []]))
    for (let round = 0; round < Math.max(2, plan.rounds); round++)
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
    const files = { partition: mean('partition') as Served, nginx: mean('nginx') ?? null }
    const ratio = files.nginx ? rounded(files.partition.mibPerSecond / files.nginx.mibPerSecond, 2) : null
    const rows = Object.entries(files).flatMap(([name, one]) => (one ? [[name, one.mibPerSecond, one.cpuMicrosPerMib]] : []))
    const herdRows = Object.entries(scripts).map(([name, one]) => [name, one.p50Ms, one.p99Ms, one.maxMs, one.lost, one.cpuMicrosEach])
    const ofFloor = {
      p99: rounded(scripts.partition.p99Ms / scripts.floor.p99Ms, 2),
      cpu: rounded(scripts.partition.cpuMicrosEach / scripts.floor.cpuMicrosEach, 2),
    }
    const goals: Goal[] = [
      { goal: 'p99 of the scripts ≤ 200 ms', met: scripts.partition.p99Ms <= 200 },
      { goal: 'no script lost', met: lost === 0 },
      { goal: '≥ 0.5 of nginx’s throughput', met: ratio === null ? undefined : ratio >= 0.5 },
    ]
    const text = `P6  ${macs.length} machines ask for their script at once, ${herdRounds} times, ${working} of them with work to do, beside a bare node:http server
${table(['scripts', 'p50 ms', 'p99 ms', 'max ms', 'lost', 'CPU µs'], herdRows)}
  ${ofFloor.p99} of the bare server’s p99, ${ofFloor.cpu} of its CPU
${table(['files', 'MiB/s', 'CPU µs/MiB'], rows)}
  ${ratio === null ? 'no nginx here (apt-get install nginx-light)' : `${ratio} of nginx’s throughput`}
${goalsText(goals)}`
    const figures = { machines: macs.length, working, rounds: herdRounds, scripts, ofFloor, files, ofNginx: ratio, goals }
    const faults = [
      ...(lost > 0 ? [`boot: ${lost} scripts were lost`] : []),
      ...(idle !== 0 ? [`boot: of ${working * herdRounds} scripts of machines with work ${idle} had none`] : []),
    ]
    return { text, figures, faults }
  } finally {
    for (const stop of stops.reverse()) await stop()
  }
}

function summed(rounds: readonly Round[]) {
  const latencies = rounds.flatMap(({ latenciesMs }) => latenciesMs).sort((a, b) => a - b)
  const at = (share: number) => rounded(latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * share))] ?? 0)
  return {
    p50Ms: at(0.5),
    p99Ms: at(0.99),
    maxMs: at(1),
    lost: rounds.reduce((sum, each) => sum + each.lost, 0),
    working: rounds.reduce((sum, each) => sum + each.working, 0),
    cpuMicrosEach: rounded(rounds.reduce((sum, { cpuMicros }) => sum + cpuMicros, 0) / Math.max(1, latencies.length)),
  }
}

/** By curl: what the client costs is small, and the same for both. */
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
  server { listen 127.0.0.1:${port}; root ${root}; } }
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
