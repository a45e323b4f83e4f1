// A whole federation on one machine: PostgreSQL, a broker, partitions, fronts and the virtual rack, each a process of its own. What `npm start`
// shows, what the fault tests break, what the benchmarks measure.
import { randomBytes } from 'node:crypto'
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { findNatsServer, type NatsServer, startNatsServer } from '@muster/embedded/nats-server'
import { startPostgres } from '@muster/embedded/postgres'
import { createSigner } from '@muster/server/global/signature'
import { hashToken, newToken } from '@muster/server/tokens'
import postgres from 'postgres'
import { Child } from './child.ts'
import { writeVirtualFiles } from './files.ts'

export interface FederationOptions {
  dataDir: string
  partitions: number
  fronts?: number
  machines: number
  /** The first front's; partitions take the ten behind it and so on. 0: any free ports. */
  port: number
  /** Machines that misbehave, by name. */
  sad?: readonly string[]
  pace?: 'instant' | 'quick' | 'real'
  /** `off`: fast, and lost in a power cut: for tests. */
  sync?: 'on' | 'off'
  /** Settings for every partition beside the usual ones. */
  partitionEnv?: Readonly<Record<string, string>>
  /** `always the embedded`: the tests' way to the same broker everywhere. */
  broker?: 'as found' | 'always the embedded'
  /** What people are told while it starts. */
  say?: (line: string) => void
  onLoss?: (child: Child, how: string) => void
}

export interface Federation {
  readonly token: string
  readonly fronts: readonly { readonly url: string; readonly child: Child }[]
  readonly partitions: readonly { readonly name: string; readonly url: string; readonly databaseUrl: string; readonly child: Child }[]
  /** undefined: somebody else's, by NATS_URL. */
  readonly broker: Child | undefined
  readonly brokerText: string
  readonly rack: Child | undefined
  readonly nats: { readonly url: string; readonly token: string | undefined }
  /** Stops everything in order. Idempotent. */
  stop(): Promise<void>
}

const programs = {
  broker: new URL('../../../../libs/embedded/src/broker-main.ts', import.meta.url),
  partition: new URL('../../../partition/src/main.ts', import.meta.url),
  front: new URL('../../../front/src/main.ts', import.meta.url),
  rack: new URL('../main.ts', import.meta.url),
}

const host = '127.0.0.1'
/** Before a server that ended by itself is started again, like a service manager would. */
export const restartPauseMs = 1_000

/** Starts a federation. What was started before a failure is stopped again. */
export async function startFederation(options: FederationOptions): Promise<Federation> {
  const stops: (() => Promise<void>)[] = []
  const stop = async () => {
    for (let last = stops.pop(); last; last = stops.pop()) await last()
  }
  try {
    return await start(options, stops, stop)
  } catch (error) {
    await stop()
    throw error
  }
}

async function start(options: FederationOptions, stops: (() => Promise<void>)[], stop: () => Promise<void>): Promise<Federation> {
  const { dataDir, say = () => {} } = options
  mkdirSync(dataDir, { recursive: true })
  const logs = path.join(dataDir, 'logs')
  const { token, tokensFile } = adminToken(dataDir)
  const names = Array.from({ length: options.partitions }, (_, index) => `p${index + 1}`)
  const ports = await choosePorts(options.port, options.fronts ?? 1, names.length)
  const lossy = options.onLoss === undefined ? {} : { onLoss: options.onLoss }

  const databases = await startDatabases(options, [...names, globalName], stops)
  say(databases.text)
  const broker = await startBroker(options, dataDir, logs, lossy, stops)
  say(`broker: ${broker.text}`)

  const config = configKey(dataDir)
  const files = path.join(dataDir, 'files')
  writeVirtualFiles(files)
  const busEnv = { NATS_URL: broker.url, ...(broker.token !== undefined && { NATS_TOKEN: broker.token }) }
  const partitions = names.map((name, index) => {
    const url = `http://${host}:${ports.partitions[index]}`
    const databaseUrl = databases.url(name)
    const child = new Child({
      name: `partition ${name}`,
      program: programs.partition,
      logs,
      isReady: () => answers(`${url}/readyz`),
      env: {
        MUSTER_PARTITION: name,
        MUSTER_REPLICA: 'a',
        DATABASE_URL: databaseUrl,
        MUSTER_KEY_FILE: keyFile(dataDir, 'key'),
        MUSTER_SHARED_KEY_FILE: keyFile(dataDir, 'shared-key'),
        MUSTER_TOKENS_FILE: tokensFile,
        MUSTER_CONFIG_PUBLIC_KEY: config.publicKey,
        MUSTER_FILES: files,
        MUSTER_ENLISTED: 'commission',
        // Simulated machines bring their controllers with them.
        MUSTER_PLACE: 'lab',
        HOST: host,
        // Somebody may have set it for the command line, where it is the front's.
        MUSTER_URL: url,
        PORT: String(ports.partitions[index]),
        ...busEnv,
        ...options.partitionEnv,
      },
      ...lossy,
    })
    return { name, url, databaseUrl, child }
  })
  for (const { child } of partitions) stops.push(() => child.stop())
  await Promise.all(partitions.map(({ child }) => child.start()))
  say(`${partitions.length} partitions: ${partitions.map(({ name, url }) => `${name} ${url}`).join(', ')}`)

  const fronts = ports.fronts.map((port, index) => {
    const url = `http://${host}:${port}`
    const child = new Child({
      name: `front ${index + 1}`,
      program: programs.front,
      logs,
      isReady: () => answers(`${url}/readyz`),
      env: {
        MUSTER_NAME: `front${index + 1}`,
        MUSTER_PARTITIONS: names.join(','),
        MUSTER_TOKENS_FILE: tokensFile,
        MUSTER_CONFIG_KEY_FILE: config.file,
        MUSTER_SHARED_KEY_FILE: keyFile(dataDir, 'shared-key'),
        MUSTER_GLOBAL_DATABASE_URL: databases.url(globalName),
        HOST: host,
        PORT: String(port),
        ...busEnv,
      },
      ...lossy,
    })
    return { url, child }
  })
  for (const { child } of fronts) stops.push(() => child.stop())
  await Promise.all(fronts.map(({ child }) => child.start()))
  say(`front: ${fronts.map(({ url }) => url).join(', ')}`)

  const rack = options.machines === 0 ? undefined : rackChild(options, partitions, logs)
  if (rack) {
    stops.push(() => rack.stop())
    await rack.start()
    say(`virtual rack: ${options.machines} machines, each with a BMC of its own`)
  }
  return { token, fronts, partitions, broker: broker.child, brokerText: broker.text, rack, nats: broker, stop }
}

function rackChild(options: FederationOptions, partitions: readonly { name: string; url: string }[], logs: string): Child {
  return new Child({
    name: 'rack',
    program: programs.rack,
    args: [
      ...[
        '--machines',
        String(options.machines),
        '--data',
        path.join(options.dataDir, 'rack'),
        '--pace',
        options.pace ?? 'quick',
        '--json',
      ],
      ...partitions.flatMap(({ name, url }) => ['--partition', `${name}=${url}`]),
      ...(options.sad ?? []).flatMap(name => ['--sad', name]),
    ],
    logs,
    isReady: async lines => lines.some(line => line.includes('"event":"ready"')),
    ...(options.onLoss && { onLoss: options.onLoss }),
  })
}

/** A database per partition: on the server of DATABASE_URL, or on an embedded one. */
async function startDatabases(
  options: FederationOptions,
  names: readonly string[],
  stops: (() => Promise<void>)[],
): Promise<{ url: (partition: string) => string; text: string }> {
  const given = process.env.DATABASE_URL
  if (given !== undefined && given !== '') {
    const url = (name: string) => {
      const target = new URL(given)
      target.pathname = `/muster_${name}`
      return target.toString()
    }
    const sql = postgres(given, { max: 1, onnotice: () => {} })
    try {
      for (const name of names) {
        const [found] = await sql`select from pg_database where datname = ${`muster_${name}`}`
        if (!found) await sql`create database ${sql(`muster_${name}`)}`
      }
    } finally {
      await sql.end()
    }
    return { url, text: 'PostgreSQL: the server of DATABASE_URL' }
  }
  const server = await startPostgres({
    dir: path.join(options.dataDir, 'postgres'),
    maxConnections: 50 + names.length * 40,
    sync: options.sync ?? 'on',
  })
  stops.push(() => server.stop({ how: 'fast' }))
  for (const name of names) await server.createDatabase(name)
  return { url: name => server.url(name), text: `PostgreSQL: embedded, in ${server.dir}` }
}

/** NATS_URL, else a broker as a process of its own: nats-server where it is installed, else the embedded one. */
async function startBroker(
  options: FederationOptions,
  dataDir: string,
  logs: string,
  lossy: { onLoss?: NonNullable<FederationOptions['onLoss']> },
  stops: (() => Promise<void>)[],
): Promise<{ url: string; token: string | undefined; text: string; child: Child | undefined }> {
  const given = process.env.NATS_URL
  if (given !== undefined && given !== '' && options.broker !== 'always the embedded')
    return { url: given, token: process.env.NATS_TOKEN, text: 'the server of NATS_URL', child: undefined }
  const [port] = await freePorts(1)
  const token = randomBytes(32).toString('hex')
  const url = `nats://${host}:${port}`
  if (options.broker !== 'always the embedded' && findNatsServer() !== undefined) {
    const text = await keepNatsServer(options, { dir: path.join(dataDir, 'nats'), port: port as number, token }, stops)
    return { url, token, text, child: undefined }
  }
  const child = new Child({
    name: 'broker',
    program: programs.broker,
    logs,
    env: { MUSTER_BROKER_PORT: String(port), MUSTER_BROKER_TOKEN: token },
    isReady: async lines => lines.some(line => line.includes('"url"')),
    ...lossy,
  })
  stops.push(() => child.stop())
  await child.start()
  return { url, token, text: 'embedded (single host, core NATS only)', child }
}

/** A nats-server that is started again when it ends by itself, where the other servers are too. Answers what it is. */
async function keepNatsServer(
  { say = () => {}, onLoss }: FederationOptions,
  place: { dir: string; port: number; token: string },
  stops: (() => Promise<void>)[],
): Promise<string> {
  let server: NatsServer | undefined
  let isStopped = false
  const start = async () => {
    server = await startNatsServer({ ...place, ...(onLoss && { onLoss: how => void startAgain(how) }) })
    if (isStopped) await server.stop()
    return server
  }
  const startAgain = async (how: string): Promise<void> => {
    if (isStopped) return
    say(`nats-server: ${how}; starting it again`)
    await sleep(restartPauseMs)
    if (!isStopped) await start().catch(error => startAgain((error as Error).message))
  }
  stops.push(async () => {
    isStopped = true
    await server?.stop()
  })
  return (await start()).describe()
}

/** The admin's token: made at the first start, then the same. Only its hash is in the file that the servers read. */
function adminToken(dataDir: string): { token: string; tokensFile: string } {
  const file = path.join(dataDir, 'token')
  const tokensFile = path.join(dataDir, 'tokens.json')
  if (!existsSync(file)) writeFileSync(file, `${newToken().token}\n`, { mode: 0o600 })
  const token = readFileSync(file, 'utf8').trim()
  if (!existsSync(tokensFile))
    writeFileSync(tokensFile, `${JSON.stringify({ tokens: [{ name: 'admin', role: 'admin', sha256: hashToken(token) }] }, null, 2)}\n`, {
      mode: 0o600,
    })
  return { token, tokensFile }
}

/** The database of the global configuration beside those of the partitions: no partition is called so. */
const globalName = 'global_configuration'

/** The key that signs the global configuration: the front has it, the partitions know its public half. */
function configKey(dataDir: string): { file: string; publicKey: string } {
  const file = keyFile(dataDir, 'configuration-key')
  return { file, publicKey: createSigner(readFileSync(file, 'utf8').trim()).publicKey }
}

/** The key that seals secrets at rest: made at the first start; without it the BMC passwords in the databases are lost. */
function keyFile(dataDir: string, name: string): string {
  const file = path.join(dataDir, name)
  if (!existsSync(file)) writeFileSync(file, `${randomBytes(32).toString('hex')}\n`, { mode: 0o600 })
  chmodSync(file, 0o600)
  return file
}

const portsBetween = 10

async function choosePorts(port: number, fronts: number, partitions: number): Promise<{ fronts: number[]; partitions: number[] }> {
  if (port === 0) {
    const free = await freePorts(fronts + partitions)
    return { fronts: free.slice(0, fronts), partitions: free.slice(fronts) }
  }
  const wanted = {
    fronts: Array.from({ length: fronts }, (_, index) => port + index),
    partitions: Array.from({ length: partitions }, (_, index) => port + portsBetween + index),
  }
  for (const one of [...wanted.fronts, ...wanted.partitions])
    if (!(await isFree(one))) throw new Error(`port ${one} is in use on ${host}; choose another range with --port`)
  return wanted
}

/** Free ports, as far as that can be known: they are not held until they are used. */
export async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(Array.from({ length: count }, () => listenOn(0)))
  const ports = servers.map(server => (server.address() as { port: number }).port)
  await Promise.all(servers.map(server => new Promise(resolve => server.close(resolve))))
  return ports
}

function listenOn(port: number) {
  return new Promise<ReturnType<typeof createServer>>((resolve, reject) => {
    const server = createServer()
    server.once('error', reject)
    server.listen(port, host, () => resolve(server))
  })
}

async function isFree(port: number): Promise<boolean> {
  try {
    const server = await listenOn(port)
    await new Promise(resolve => server.close(resolve))
    return true
  } catch {
    return false
  }
}

async function answers(url: string): Promise<boolean> {
  const response = await fetch(url, { signal: AbortSignal.timeout(2_000) })
  await response.arrayBuffer()
  return response.ok
}
