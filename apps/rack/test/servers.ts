// Real partitions and fronts in the test's own process, on real databases and an in-process bus: what the contract suite and the fuzz run against.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { freshDatabase } from '@muster/embedded/test-postgres'
import { createFront } from '@muster/front/front'
import { migrateHome } from '@muster/front/global/db/generations'
import type { Home } from '@muster/front/global/home'
import type { PartitionSettings } from '@muster/partition/config'
import { migrate } from '@muster/partition/db/migrate'
import { type Core, defaultRules } from '@muster/partition/domain/core'
import { startPartition } from '@muster/partition/partition'
import { createLocalBroker } from '@muster/server/bus/local-bus'
import { tokensOfAll } from '@muster/server/global/people'
import { createSharedSealer } from '@muster/server/global/sealed'
import { createSigner } from '@muster/server/global/signature'
import { startDoor } from '@muster/server/http/door'
import { createLog, type Log } from '@muster/server/log'
import { hashToken, newToken, openTokens } from '@muster/server/tokens'
import type { Bus } from '@muster/shared/bus/bus'
import type { BusParty } from '@muster/shared/bus/permissions'
import { type Client, createClient } from '@muster/shared/client'
import type { Role } from '@muster/shared/contract/call'
import postgres from 'postgres'
import { writeVirtualFiles } from '../src/federation/files.ts'

const configSeed = '07'.repeat(32)
const configSigner = createSigner(configSeed)
const sharedKey = Buffer.alloc(32, 'shared')
const keyOf = (partition: string) => Buffer.alloc(32, partition)

/** The keys that the servers are started with, as those of the fronts and of a partition are. */
export const keysOfServers = (partition: string) => ({ configSeed: Buffer.from(configSeed, 'hex'), sharedKey, key: keyOf(partition) })

export const testRoles = ['read-only', 'user', 'operator', 'admin'] as const satisfies readonly Role[]

export interface Server {
  readonly url: string
  /** A client per role; `other` is a second user. */
  readonly as: Readonly<Record<(typeof testRoles)[number] | 'other', Client>>
  readonly tokens: Readonly<Record<string, string>>
}

export interface Servers extends AsyncDisposable {
  readonly partitions: readonly (Server & { name: string; core: Core; databaseUrl: string })[]
  readonly front: Server
  /** The front's. */
  readonly home: Home
  /** Of the database that fronts share. */
  readonly homeUrl: string
  /** Starts one more front beside the first. */
  anotherFront(name: string): Promise<Server>
}

/**
 * Starts `names` as partitions and one front over them. Every answer is checked against the contract. `busOf`: how each reaches the others; by default within
 * this process.
 */
export async function startServers(
  names: readonly string[],
  busOf?: (party: BusParty) => Promise<Bus>,
  log: Log = createLog({ level: 'error', name: 'test' }),
): Promise<Servers> {
  const stops: (() => Promise<void> | void)[] = []
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-servers-'))
  stops.push(() => rmSync(folder, { recursive: true, force: true }))
  const secrets = Object.fromEntries([...testRoles, 'other'].map(name => [name, newToken().token]))
  const tokensFile = path.join(folder, 'tokens.json')
  const tokens = Object.entries(secrets).map(([name, token]) => ({
    name,
    role: name === 'other' ? 'user' : name,
    sha256: hashToken(token),
  }))
  writeFileSync(tokensFile, JSON.stringify({ tokens }))
  const files = path.join(folder, 'files')
  writeVirtualFiles(files)
  const broker = createLocalBroker()
  const server = (url: string): Server => ({
    url,
    tokens: secrets,
    as: Object.fromEntries(Object.entries(secrets).map(([name, token]) => [name, createClient({ url, token })])) as Server['as'],
  })

  const partitions: Servers['partitions'][number][] = []
  for (const name of names) {
    const database = await freshDatabase({ template: 'partition', migrate: async url => void (await migrate(url)) })
    stops.push(() => database.drop())
    const bus = (await busOf?.({ kind: 'partition', name })) ?? broker.connect()
    stops.push(() => bus.close())
    const own: (() => Promise<void> | void)[] = []
    stops.push(async () => {
      for (let stop = own.pop(); stop; stop = own.pop()) await stop()
    })
    const { url, core } = await startPartition({
      settings: settingsFor(name, database.url, tokensFile, files),
      log,
      bus,
      own: (_, stop) => own.push(stop),
      onSuperseded: () => {
        throw new Error(`${name} was superseded`)
      },
      check: 'answers',
    })
    partitions.push({ ...server(url), name, core, databaseUrl: database.url })
  }

  const home = await freshDatabase({ template: 'global', migrate: migrateHome })
  stops.push(() => home.drop())
  const openFront = async (name: string) => {
    const bus = (await busOf?.({ kind: 'front' })) ?? broker.connect()
    const front = createFront({
      name,
      version: '0.0.0',
      bus,
      accepted: names,
      log,
      global: { databaseUrl: home.url, signer: configSigner, trustedKeys: [], sealer: createSharedSealer(sharedKey) },
    })
    const opened = openTokens({ file: tokensFile, log })
    const door = await startDoor({
      backend: front.backend,
      audit: front.audit,
      tokens: tokensOfAll([opened, front.tokens]),
      log,
      version: '0.0.0',
      port: 0,
      check: 'answers',
    })
    stops.push(
      () => bus.close(),
      () => front.stop(),
      () => opened.close(),
      () => door.close(),
    )
    await until(() => names.every(name => front.presence.standing(name) === 'present'))
    return { server: server(door.url), home: front.home as Home }
  }
  const first = await openFront('front')
  return {
    partitions,
    front: first.server,
    home: first.home,
    anotherFront: async name => (await openFront(name)).server,
    homeUrl: home.url,
    [Symbol.asyncDispose]: async () => {
      for (let stop = stops.pop(); stop; stop = stops.pop()) await stop()
    },
  }
}

function settingsFor(partition: string, databaseUrl: string, tokensFile: string, files: string): PartitionSettings {
  return {
    partition,
    replica: 'a',
    databaseUrl,
    connections: 6,
    nats: undefined,
    key: keyOf(partition),
    sharedKey,
    tokensFile,
    configKeys: [configSigner.publicKey],
    files,
    host: '127.0.0.1',
    port: 0,
    url: undefined,
    rules: { ...defaultRules, erase: 'none', powerCheckMs: 60_000, powerChangeMs: 5_000 },
  }
}

/** Makes machines ready without an agent, as a fixture: the story tests make them so in earnest. */
export async function makeReady(server: { databaseUrl: string; core: Core }, ids: readonly string[]): Promise<void> {
  const { candidates } = server.core.memory
  const sql = postgres(server.databaseUrl, { max: 1 })
  try {
    const moved = await sql<{ id: string; version: number }[]>`
      with changed as (update machines set state = 'ready', version = version + 1 where id = any(${ids as string[]}) returning id, version),
      told as (insert into events (kind, machine_id, actor, data) select 'machine.moved', id, 'fixture', '{}' from changed)
      select id, version::integer from changed`
    server.core.bells.log.ring()
    // Each by its version: how many are ready may rise by machines that others give back at the same moment.
    await until(() => moved.every(({ id, version }) => (candidates.versionOf(id) ?? 0) >= version))
  } finally {
    await sql.end()
  }
}

/** Waits until `isSo`, twenty seconds at most where nothing else is promised: machines are busy. */
export async function until(isSo: () => boolean | Promise<boolean>, limitMs = 20_000): Promise<void> {
  const limit = Date.now() + limitMs
  while (!(await isSo())) {
    if (Date.now() > limit) throw new Error(`waited ${limitMs / 1000} s in vain`)
    await new Promise(resolve => setTimeout(resolve, 10))
  }
}
