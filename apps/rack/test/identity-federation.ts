// A front and two partitions with their own doors, for people to log in at: real databases, a bus in this process.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { freshDatabase } from '@muster/embedded/test-postgres'
import { createFront } from '@muster/front/front'
import { migrateHome } from '@muster/front/global/db/generations'
import { migrate } from '@muster/partition/db/migrate'
import { type Core, defaultRules } from '@muster/partition/domain/core'
import { startPartition } from '@muster/partition/partition'
import { createLocalBroker, type LocalBroker } from '@muster/server/bus/local-bus'
import { tokensOfAll } from '@muster/server/global/people'
import { createSigner } from '@muster/server/global/signature'
import { startDoor } from '@muster/server/http/door'
import { createLog } from '@muster/server/log'
import { hashToken, tokensOf } from '@muster/server/tokens'
import { type Client, createClient } from '@muster/shared/client'
import { Refusal } from '@muster/shared/errors'
import type { DocumentKind } from '@muster/shared/global/documents'
import { onTestFinished } from 'vitest'
import { until } from './servers.ts'

export const adminToken = 'planted-token-of-the-admin'
/** A change of the global configuration is in force everywhere within so long. */
const promisedMs = 5_000
const names = ['one', 'two'] as const
type Name = (typeof names)[number]
const signer = createSigner('07'.repeat(32))

export interface RunningPartition {
  readonly url: string
  readonly core: Core
  stop(): Promise<void>
}

export interface Federation {
  /** Of the front. */
  readonly url: string
  readonly admin: Client
  readonly partitions: Readonly<Record<Name, RunningPartition>>
  /** What was logged, by all. */
  readonly lines: readonly string[]
  /** Starts a partition again. `cut off`: on a bus of its own, where there is nobody else. */
  start(name: Name, where: 'connected' | 'cut off'): Promise<RunningPartition>
  /** Puts a document; answers the generation. */
  put(kind: DocumentKind, name: string, document: Record<string, unknown>): Promise<number>
  /** Resolves once both partitions hold that generation, within the time that is promised: else it rejects. */
  taken(generation: number): Promise<void>
  /** Who a token lets in at a server. */
  who(at: string, token: string): Promise<{ name: string; role: string }>
}

/** Starts all of it for one test. */
export async function startFederation(): Promise<Federation> {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-identity-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  writeFileSync(path.join(folder, 'tokens.json'), '{"tokens":[]}')
  const lines: string[] = []
  const log = createLog({ level: 'debug', name: 'test', destination: { write: line => void lines.push(line) } })
  const fresh = async (kind: 'partition' | 'global') => {
    const database = await (kind === 'global'
      ? freshDatabase({ template: 'global', migrate: migrateHome })
      : freshDatabase({ template: 'partition', migrate: async url => void (await migrate(url)) }))
    onTestFinished(() => database.drop())
    return database
  }
  const databases = { one: await fresh('partition'), two: await fresh('partition') }
  const home = await fresh('global')
  const broker = createLocalBroker()

  const start = async (name: Name, own: LocalBroker): Promise<RunningPartition> => {
    const ends: (() => Promise<void> | void)[] = []
    const bus = own.connect()
    ends.push(() => bus.close())
    const { url, core } = await startPartition({
      settings: {
        partition: name,
        replica: 'a',
        databaseUrl: databases[name].url,
        connections: 4,
        nats: undefined,
        key: Buffer.alloc(32, name),
        tokensFile: path.join(folder, 'tokens.json'),
        configKeys: [signer.publicKey],
        files: folder,
        host: '127.0.0.1',
        port: 0,
        url: undefined,
        rules: defaultRules,
      },
      log,
      bus,
      check: 'answers',
      own: (_, stop) => void ends.push(stop),
      onSuperseded: () => undefined,
    })
    const stop = async () => {
      for (let end = ends.pop(); end; end = ends.pop()) await end()
    }
    onTestFinished(stop)
    return { url, core, stop }
  }
  const partitions = { one: await start('one', broker), two: await start('two', broker) }

  const bus = broker.connect()
  const global = { databaseUrl: home.url, signer, trustedKeys: [] }
  const front = createFront({ name: 'front', version: '0', bus, accepted: names, log, global })
  const file = tokensOf({ tokens: [{ name: 'root', role: 'admin', sha256: hashToken(adminToken) }] })
  const tokens = tokensOfAll([file, front.tokens])
  const door = await startDoor({ backend: front.backend, audit: front.audit, tokens, log, version: '0', port: 0, check: 'answers' })
  onTestFinished(async () => {
    await door.close()
    await front.stop()
    await bus.close()
  })

  const admin = createClient({ url: door.url, token: adminToken })
  return {
    url: door.url,
    admin,
    partitions,
    lines,
    start: (name, where) => start(name, where === 'connected' ? broker : createLocalBroker()),
    put: async (kind, name, document) => (await admin.config.change({ put: [{ kind, name, document }] })).generation,
    taken: generation =>
      until(() => Object.values(partitions).every(({ core }) => core.configuration.generation >= generation), promisedMs),
    who: async (at, token) => (await createClient({ url: at, token }).session.whoami()).caller,
  }
}

/** The code that a call is refused with, or `answered`. */
export function codeOf(asked: Promise<unknown>): Promise<string> {
  return asked.then(
    () => 'answered',
    (error: unknown) => (error instanceof Refusal ? error.code : String(error)),
  )
}
