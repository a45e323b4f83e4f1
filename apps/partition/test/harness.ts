// What the partition's tests share: a database of its own, a core without loops, and a whole partition on a real port.

import { createHash, randomBytes } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { AuditLog } from '@muster/database/audit-log'
import { freshDatabase } from '@muster/embedded/test-postgres'
import { createSigner } from '@muster/server/global/signature'
import { createLog, type Log } from '@muster/server/log'
import { hashToken } from '@muster/server/tokens'
import { type Client, createClient } from '@muster/shared/client'
import type { Caller, Role } from '@muster/shared/contract/call'
import type { Event } from '@muster/shared/contract/events'
import { newMachineId } from '@muster/shared/ids'
import { onTestFinished } from 'vitest'
import { connect, type Sql } from '../src/db/connect.ts'
import { findMachine, insertMachine, type MachineRow, type NewMachine } from '../src/db/machines.ts'
import { migrate } from '../src/db/migrate.ts'
import { Bell } from '../src/domain/bell.ts'
import type { OriginRules } from '../src/domain/boot-origin.ts'
import { Catalogue } from '../src/domain/catalogue.ts'
import type { Core, Rules } from '../src/domain/core.ts'
import { GlobalCopy } from '../src/domain/global-copy.ts'
import { Memory } from '../src/domain/memory.ts'
import { sessionsHere } from '../src/domain/people.ts'
import { Seal } from '../src/domain/seal.ts'
import { startPartition } from '../src/partition.ts'

export const operator: Caller = { name: 'olga', role: 'operator' }

export const usualRules: Rules = {
  deadlinesMs: {},
  agentSilenceMs: 90_000,
  agentStartMs: 600_000,
  agentParameters: 'console=ttyS0',
  // Those who ask for it have an agent to do it.
  erase: 'none',
  tests: [],
  powerCheckMs: 30_000,
  powerChangeMs: 5_000,
  powerTransitionMs: 5_000,
  powerSoftMs: 10_000,
  powerRestartMs: 10_000,
  enlisted: 'keep as new',
  enlistedMost: 5_000,
  place: 'production',
}

/** Who ends with the test, or with the file where the test hooks are not there yet. */
type Ending = (end: () => Promise<void>) => void
const withTest: Ending = end => onTestFinished(end)

/** A migrated database of its own. */
export async function partitionDatabase(ending: Ending = withTest): Promise<string> {
  const database = await freshDatabase({ template: 'partition', migrate: async url => void (await migrate(url)) })
  ending(() => database.drop())
  return database.url
}

export interface TestCore extends Core {
  /** What was logged. */
  readonly lines: string[]
}

/** A core whose loops nobody runs: the test decides who looks when. */
export async function startCore(
  options: { rules?: Partial<Rules>; url?: string; connections?: number; folder?: string; key?: Buffer } = {},
  ending: Ending = withTest,
): Promise<TestCore> {
  const url = options.url ?? (await partitionDatabase(ending))
  const sql = connect(url, { name: 'test', connections: options.connections ?? 6 })
  ending(() => sql.end({ timeout: 5 }))
  const { log, lines } = listeningLog()
  const seal = new Seal(options.key ?? Buffer.alloc(32, 7))
  const certifier = createSigner(seal.certificateSeed(), 'erasure certificate')
  const catalogue = new Catalogue({ partition: 'lon1', folder: options.folder ?? virtualFiles(), log })
  const configuration = new GlobalCopy({ partition: 'lon1', sql, trustedKeys: [], log })
  return {
    partition: 'lon1',
    sql,
    seal,
    certifier,
    audit: new AuditLog({
      partition: 'lon1',
      server: 'test',
      run: act => act(sql),
      sign: text => certifier.as('audit log').sign(text),
      onTrouble: (error, text) => log.error({ err: error }, text),
    }),
    catalogue,
    memory: new Memory(catalogue),
    configuration,
    shared: undefined,
    sessions: sessionsHere({ seal, configuration, log }),
    rules: { ...usualRules, ...options.rules },
    log,
    bells: { engine: new Bell(), power: new Bell(), rotation: new Bell(), log: new Bell() },
    lines,
  }
}

export function listeningLog(): { log: Log; lines: string[] } {
  const lines: string[] = []
  return { log: createLog({ level: 'debug', name: 'lon1', destination: { write: line => void lines.push(line) } }), lines }
}

let folder: string | undefined

/** Agents and images for both architectures, with true digests. One folder per worker. */
export function virtualFiles(): string {
  if (folder !== undefined) return folder
  const place = mkdtempSync(path.join(tmpdir(), 'muster-files-'))
  process.once('exit', () => rmSync(place, { recursive: true, force: true }))
  for (const arch of ['amd64', 'arm64']) {
    mkdirSync(path.join(place, 'agent', arch), { recursive: true })
    for (const name of ['vmlinuz', 'initrd']) writeFileSync(path.join(place, 'agent', arch, name), `${name} for ${arch}\n`)
    for (const os of ['debian/12', 'ubuntu/24.04']) writeImage(place, os, arch)
  }
  folder = place
  return place
}

/** Answers where its description is. */
export function writeImage(place: string, os: string, arch: string): string {
  const content = `${os} for ${arch}\n`
  const image = path.join(place, 'images', os, arch)
  mkdirSync(image, { recursive: true })
  writeFileSync(path.join(image, 'root.img'), content)
  const sha256 = createHash('sha256').update(content).digest('hex')
  const description = path.join(image, 'image.json')
  writeFileSync(description, JSON.stringify({ title: os, file: 'root.img', sha256, sizeBytes: content.length }))
  return description
}

let macs = 0
/** A MAC that no other machine of this worker has. */
export function newMac(): string {
  const number = ++macs
  return `52:54:00:${[16, 8, 0].map(shift => ((number >>> shift) & 255).toString(16).padStart(2, '0')).join(':')}`
}

/** Puts a machine into the database as it is described, whatever the life cycle says, and into memory. */
export async function addMachine(core: Core, columns: Partial<MachineRow> = {}, extra: Partial<NewMachine> = {}): Promise<MachineRow> {
  const id = columns.id ?? newMachineId(core.partition)
  await insertMachine(
    core.sql,
    {
      id,
      hostname: columns.hostname ?? id,
      arch: 'amd64',
      cpus: 8,
      memoryMib: 16_384,
      pool: 'default',
      zone: 'z1',
      rack: 'r1',
      tags: [],
      interfaces: [{ mac: newMac(), name: 'eth0', speedMbps: 10_000, subnet: null, ip: null }],
      disks: [{ name: 'sda', serial: '', model: '', sizeBytes: 1e12, kind: 'ssd' }],
      note: '',
      powerDriver: null,
      powerSettings: {},
      powerSecrets: null,
      ...extra,
    },
    { kind: 'machine.created', actor: 'test' },
  )
  const { power, power_seen_at: _, power_driver: __, ...own } = columns
  if (Object.keys(own).length > 0) await core.sql`update machines set ${core.sql(own as never)} where id = ${id}`
  if (power !== undefined) await core.sql`update machine_power set observed = ${power} where machine_id = ${id}`
  return await reread(core, id)
}

/** The row as it is; memory learns of it too. */
export async function reread(core: Core, id: string): Promise<MachineRow> {
  const row = await findMachine(core.sql, id)
  if (!row) throw new Error(`the machine ${id} is gone`)
  core.memory.put(row)
  return row
}

/** The moves of a machine, oldest first: `from move to`. */
export async function movesOf(sql: Sql, machine: string): Promise<string[]> {
  const rows = await sql<{ data: { from: string; move: string; to: string } }[]>`
    select data from events where machine_id = ${machine} and kind = 'machine.moved' order by id`
  return rows.map(({ data }) => `${data.from} ${data.move} ${data.to}`)
}

export interface TestPartition {
  readonly url: string
  readonly core: Core
  readonly sql: Sql
  readonly lines: string[]
  readonly tokens: Readonly<Record<'ada' | 'olga' | 'alice' | 'bob' | 'rita', string>>
  /** The typed client of one of five people: ada administers, olga operates, alice and bob use, rita reads. */
  as(name: keyof TestPartition['tokens']): Client
  /** A bare request; what comes back, as text. */
  ask(method: string, path: string, options?: { token?: string; body?: unknown; headers?: Record<string, string> }): Promise<Answer>
  stop(): Promise<void>
}

export interface Answer {
  status: number
  headers: Headers
  text: string
}

const people: Record<keyof TestPartition['tokens'], Exclude<Role, 'public'>> = {
  ada: 'admin',
  olga: 'operator',
  alice: 'user',
  bob: 'user',
  rita: 'read-only',
}

/** A whole partition in this process: loops, doors and all, without a bus. */
export async function runPartition(
  options: {
    rules?: Partial<Rules>
    databaseUrl?: string
    folder?: string
    key?: Buffer
    sharedKey?: Buffer
    replica?: string
    partition?: string
    bootOrigins?: Omit<OriginRules, 'served'>
  } = {},
  ending: Ending = withTest,
): Promise<TestPartition> {
  const databaseUrl = options.databaseUrl ?? (await partitionDatabase(ending))
  const tokens = Object.fromEntries(Object.keys(people).map(name => [name, randomBytes(16).toString('hex')])) as TestPartition['tokens']
  const tokensFile = path.join(mkdtempSync(path.join(tmpdir(), 'muster-tokens-')), 'tokens.json')
  const entries = Object.entries(people).map(([name, role]) => ({ name, role, sha256: hashToken(tokens[name as 'olga']) }))
  writeFileSync(tokensFile, JSON.stringify({ tokens: entries }))
  const { log, lines } = listeningLog()
  const stops: (() => Promise<void> | void)[] = [() => rmSync(path.dirname(tokensFile), { recursive: true })]
  const stop = async () => {
    for (let last = stops.pop(); last; last = stops.pop()) await last()
  }
  ending(stop)
  const partition = options.partition ?? 'lon1'
  const running = await startPartition({
    settings: {
      partition,
      replica: options.replica ?? 'a',
      databaseUrl,
      connections: 8,
      nats: undefined,
      key: options.key ?? Buffer.alloc(32, 7),
      sharedKey: options.sharedKey,
      tokensFile,
      files: options.folder ?? virtualFiles(),
      host: '127.0.0.1',
      port: 0,
      url: undefined,
      bootOrigins: options.bootOrigins,
      rules: { ...usualRules, ...options.rules },
    },
    log,
    own: (_, end) => stops.push(end),
    onSuperseded: () => log.fatal('superseded'),
    check: 'answers',
  })
  return {
    url: running.url,
    core: running.core,
    sql: running.core.sql,
    lines,
    tokens,
    as: name => createClient({ url: running.url, token: tokens[name] }),
    ask: async (method, place, { token, body, headers = {} } = {}) => {
      const response = await fetch(`${running.url}${place}`, {
        method,
        headers: {
          ...(token !== undefined && { authorization: `Bearer ${token}` }),
          ...(body !== undefined && { 'content-type': 'application/json' }),
          ...headers,
        },
        ...(body !== undefined && { body: typeof body === 'string' ? body : JSON.stringify(body) }),
      })
      return { status: response.status, headers: response.headers, text: await response.text() }
    },
    stop,
  }
}

/** Asks until the answer is there. Fails with what it last saw. */
export async function until<T>(look: () => Promise<T | undefined | false>, limitMs = 20_000): Promise<T> {
  const end = Date.now() + limitMs
  for (;;) {
    const found = await look()
    if (found !== undefined && found !== false) return found
    if (Date.now() > end) throw new Error(`nothing came within ${limitMs} ms`)
    await new Promise(resolve => setTimeout(resolve, 25))
  }
}

/** Every event of the partition, from the start. */
export async function allEvents(partition: TestPartition): Promise<Event[]> {
  const items: Event[] = []
  for (let after: string | undefined; ; ) {
    const page = await partition.as('olga').events.list({ limit: 1000, ...(after !== undefined && { after }) })
    items.push(...page.items)
    if (page.items.length < 1000) return items
    after = page.nextCursor
  }
}
