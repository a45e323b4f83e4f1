// What is measured: PostgreSQL, a broker, partitions in a few processes and a front, each group's CPU known by its processes.
import { randomBytes } from 'node:crypto'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { findNatsServer, startNatsServer } from '@muster/embedded/nats-server'
import { type Postgres, startPostgres } from '@muster/embedded/postgres'
import { migrate } from '@muster/partition/db/migrate'
import { hashToken, newToken } from '@muster/server/tokens'
import { Child } from '../federation/child.ts'
import { freePorts } from '../federation/federation.ts'
import { type Groups, postgresOf } from './cpu.ts'
import { fill, openFixture } from './fixture.ts'
import type { Floor } from './floor.ts'
import { Helper } from './helper.ts'
import type { Host } from './host.ts'
import type { LoadHelper } from './load.ts'

export interface RigOptions {
  /** The most partitions that any measurement wants. */
  partitions: number
  machines: number
  say: (line: string) => void
}

/** Processes that host the partitions, and as many for the floor's: two cores are busy with two. */
const hostProcesses = 2
/** Of each of many partitions; a partition by itself has its default. */
const connectionsOfMany = 4
const connectionsOfOne = 12

export interface Rig {
  readonly brokerText: string
  readonly postgresText: string
  readonly load: Helper<LoadHelper>
  readonly token: string
  /** Partitions p1 … pN and a front over them. */
  federate(partitions: number): Promise<Federated>
  /** One partition without bus or front. */
  single(): Promise<Single>
  /** The bare broadcast to so many, and the bare claim. */
  floor(subscribers: number, machines: number): Promise<RunningFloor>
  stop(): Promise<void>
}

interface Hosted {
  /** From here on: the partitions write their audit log, or do as if there were none. */
  audit(writes: 'written' | 'skipped'): Promise<void>
  /** All machines ready again. */
  reset(): Promise<void>
  /** What the rows say. */
  allocated(): Promise<{ machines: number; allocations: number; events: number }>
  readonly groups: Groups
  stop(): Promise<void>
}
export interface Federated extends Hosted {
  readonly url: string
}
export type Single = Federated

export interface RunningFloor {
  readonly asker: Helper<Floor>
  readonly groups: Groups
  stop(): Promise<void>
}

/** Starts what all measurements share. */
export async function startRig({ partitions, machines, say }: RigOptions): Promise<Rig> {
  const dir = mkdtempSync('/tmp/muster-bench-')
  // PostgreSQL does not run as root; its own account must be able to pass.
  chmodSync(dir, 0o711)
  const stops: (() => Promise<unknown>)[] = [async () => rmSync(dir, { recursive: true, force: true })]
  const stop = async () => {
    for (let last = stops.pop(); last; last = stops.pop()) await last()
  }
  try {
    const postgres = await startPostgres({
      dir: path.join(dir, 'postgres'),
      maxConnections: 60 + partitions * (connectionsOfMany + 2),
      log: say,
    })
    stops.push(() => postgres.stop())
    const broker = await startBroker(dir)
    stops.push(broker.stop)
    say(`broker: ${broker.text}`)
    await makeDatabases(postgres, { partitions, machines, say })
    const { token, tokensFile } = makeTokens(dir)
    const load = new Helper<LoadHelper>(new URL('./load.ts', import.meta.url), 'the load')
    stops.push(() => load.stop())
    const place: Place = { dir, postgres, broker, tokensFile, keyHex: randomBytes(32).toString('hex') }
    return {
      brokerText: broker.text,
      postgresText: 'embedded, on a Unix socket, synchronous commits',
      load,
      token,
      federate: count => federate(place, count),
      single: () => single(place),
      floor: (subscribers, floorMachines) => startFloor(place, subscribers, floorMachines),
      stop,
    }
  } catch (error) {
    await stop()
    throw error
  }
}

interface Place {
  dir: string
  postgres: Postgres
  broker: { url: string; token: string; pids: () => number[] }
  tokensFile: string
  keyHex: string
}

const floorDatabase = 'floor'
const nameOf = (index: number) => `p${index + 1}`

async function makeDatabases(postgres: Postgres, { partitions, machines, say }: RigOptions): Promise<void> {
  say(`making ${partitions} databases of ${machines} machines`)
  await postgres.createDatabase('migrated')
  await migrate(postgres.url('migrated'))
  for (let index = 0; index < partitions; index++) {
    const name = nameOf(index)
    await postgres.createDatabase(name, { template: 'migrated' })
    const sql = openFixture(postgres.url(name))
    await fill(sql, name, machines).finally(() => sql.end())
  }
  await postgres.createDatabase(floorDatabase)
}

function makeTokens(dir: string): { token: string; tokensFile: string } {
  const { token } = newToken()
  const tokensFile = path.join(dir, 'tokens.json')
  writeFileSync(tokensFile, JSON.stringify({ tokens: [{ name: 'admin', role: 'admin', sha256: hashToken(token) }] }), { mode: 0o600 })
  mkdirSync(path.join(dir, 'files'))
  return { token, tokensFile }
}

/** nats-server where it is installed, else the embedded broker, as a process of its own. */
async function startBroker(
  dir: string,
): Promise<{ url: string; token: string; text: string; pids: () => number[]; stop: () => Promise<void> }> {
  if (findNatsServer()) {
    const server = await startNatsServer({ dir: path.join(dir, 'nats') })
    return { url: server.url, token: server.token, text: 'nats-server', pids: () => [server.pid], stop: () => server.stop() }
  }
  const [port] = await freePorts(1)
  const token = randomBytes(32).toString('hex')
  const child = new Child({
    name: 'broker',
    program: new URL('../../../../libs/embedded/src/broker-main.ts', import.meta.url),
    logs: dir,
    env: { MUSTER_BROKER_PORT: String(port), MUSTER_BROKER_TOKEN: token },
    isReady: async lines => lines.some(line => line.includes('"url"')),
  })
  await child.start()
  return { url: `nats://127.0.0.1:${port}`, token, text: 'embedded', pids: () => [child.pid as number], stop: () => child.stop() }
}

async function startHosts(
  place: Place,
  options: { names: string[]; nats: boolean; connections: number; stops: (() => Promise<unknown>)[] },
) {
  const { names, stops } = options
  const count = Math.min(hostProcesses, names.length)
  const hosts = Array.from({ length: count }, (_, index) => {
    const helper = new Helper<Host>(new URL('./host.ts', import.meta.url), `partitions ${index + 1}`)
    stops.push(() => helper.stop())
    return { helper, partitions: names.filter((_, place) => place % count === index) }
  })
  const urls = await Promise.all(
    hosts.map(({ helper, partitions }) =>
      helper.ask('start', {
        partitions: partitions.map(name => ({ name, databaseUrl: place.postgres.url(name) })),
        nats: options.nats ? { url: place.broker.url, token: place.broker.token } : undefined,
        tokensFile: place.tokensFile,
        files: path.join(place.dir, 'files'),
        keyHex: place.keyHex,
        connections: options.connections,
      }),
    ),
  )
  const helpers = hosts.map(({ helper }) => helper)
  return {
    urls: urls.flat(),
    pids: () => helpers.map(({ pid }) => pid),
    audit: async (writes: 'written' | 'skipped') => {
      await Promise.all(helpers.map(helper => helper.ask('audit', writes)))
    },
    reset: async () => {
      await Promise.all(helpers.map(helper => helper.ask('reset', undefined)))
    },
    allocated: async () => {
      const rows = await Promise.all(helpers.map(helper => helper.ask('allocated', undefined)))
      return rows.reduce((a, b) => ({
        machines: a.machines + b.machines,
        allocations: a.allocations + b.allocations,
        events: a.events + b.events,
      }))
    },
  }
}

async function federate(place: Place, partitions: number): Promise<Federated> {
  const stops: (() => Promise<unknown>)[] = []
  const names = Array.from({ length: partitions }, (_, index) => nameOf(index))
  const hosts = await startHosts(place, { names, nats: true, connections: connectionsOfMany, stops })
  const [port] = await freePorts(1)
  const url = `http://127.0.0.1:${port}`
  const front = new Child({
    name: `front over ${partitions}`,
    program: new URL('../../../front/src/main.ts', import.meta.url),
    logs: place.dir,
    env: {
      MUSTER_NAME: 'bench',
      // One caller is all the load there is.
      MUSTER_REQUESTS_PER_SECOND: '0',
      MUSTER_PARTITIONS: names.join(','),
      MUSTER_TOKENS_FILE: place.tokensFile,
      HOST: '127.0.0.1',
      PORT: String(port),
      NATS_URL: place.broker.url,
      NATS_TOKEN: place.broker.token,
      LOG_LEVEL: 'warn',
    },
    isReady: async () => {
      const response = await fetch(`${url}/readyz`)
      return response.ok && (await response.text()).includes(`${partitions} of ${partitions} present`)
    },
  })
  stops.push(() => front.stop())
  await front.start()
  return {
    url,
    reset: hosts.reset,
    audit: hosts.audit,
    allocated: hosts.allocated,
    groups: {
      front: () => [front.pid as number],
      partitions: hosts.pids,
      broker: place.broker.pids,
      postgres: () => postgresOf(place.postgres.pid, database => database !== floorDatabase),
    },
    stop: () => stopAll(stops),
  }
}

async function single(place: Place): Promise<Single> {
  const stops: (() => Promise<unknown>)[] = []
  const hosts = await startHosts(place, { names: [nameOf(0)], nats: false, connections: connectionsOfOne, stops })
  return {
    url: hosts.urls[0] as string,
    reset: hosts.reset,
    audit: hosts.audit,
    allocated: hosts.allocated,
    groups: { partition: hosts.pids, postgres: () => postgresOf(place.postgres.pid, database => database !== floorDatabase) },
    stop: () => stopAll(stops),
  }
}

async function startFloor(place: Place, subscribers: number, machines: number): Promise<RunningFloor> {
  const stops: (() => Promise<unknown>)[] = []
  const start = () => {
    const helper = new Helper<Floor>(new URL('./floor.ts', import.meta.url), 'the floor')
    stops.push(() => helper.stop())
    return helper
  }
  const { url, token } = place.broker
  const parts = subscribers === 0 ? [] : Array.from({ length: Math.min(hostProcesses, subscribers) }, start)
  const share = subscribers / Math.max(1, parts.length)
  await Promise.all(
    parts.map((part, index) => part.ask('subscribe', { url, token, from: Math.round(share * index), to: Math.round(share * (index + 1)) })),
  )
  const asker = start()
  await asker.ask('prepare', {
    broker: subscribers === 0 ? undefined : { url, token },
    subscribers,
    databaseUrl: place.postgres.url(floorDatabase),
    machines,
  })
  return {
    asker,
    groups: {
      asker: () => [asker.pid],
      subscribers: () => parts.map(({ pid }) => pid),
      broker: place.broker.pids,
      postgres: () => postgresOf(place.postgres.pid, database => database === floorDatabase),
    },
    stop: () => stopAll(stops),
  }
}

async function stopAll(stops: (() => Promise<unknown>)[]): Promise<void> {
  for (let last = stops.pop(); last; last = stops.pop()) await last()
}
