// The global configuration flows one way: written at any front, taken by every partition, kept when the centre is gone. Real databases; the
// partitions are cut off by taking their bus away.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { type FreshDatabase, freshDatabase } from '@muster/embedded/test-postgres'
import { createFront, type Front } from '@muster/front/front'
import { migrateHome } from '@muster/front/global/db/generations'
import type { Home } from '@muster/front/global/home'
import { migrate } from '@muster/partition/db/migrate'
import { type Core, defaultRules } from '@muster/partition/domain/core'
import { startPartition } from '@muster/partition/partition'
import { createLocalBroker, type LocalBroker } from '@muster/server/bus/local-bus'
import { digestOf, lineageAfter } from '@muster/server/global/lineage'
import { createSharedSealer } from '@muster/server/global/sealed'
import { createSigner } from '@muster/server/global/signature'
import { createLog } from '@muster/server/log'
import { hashToken, newToken } from '@muster/server/tokens'
import { createClient } from '@muster/shared/client'
import type { CallInput, CallName, CallOutput } from '@muster/shared/contract/contract'
import { Refusal } from '@muster/shared/errors'
import { readPayload, refillJump, type SignedCopy, signedCopy } from '@muster/shared/global/copy'
import { type DocumentKind, type Documents, documentKinds } from '@muster/shared/global/documents'
import postgres from 'postgres'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { chance } from '../src/chaos/random.ts'
import { until } from './servers.ts'

const signer = createSigner('07'.repeat(32))
const log = createLog({ level: 'fatal', name: 'test' })
const caller = { name: 'root', role: 'admin' as const }
let folder: string
let home: FreshDatabase
const databases = new Map<string, FreshDatabase>()
const names = ['one', 'two', 'three'] as const
type Name = (typeof names)[number]

beforeAll(async () => {
  folder = mkdtempSync(path.join(tmpdir(), 'muster-configuration-'))
  writeFileSync(path.join(folder, 'tokens.json'), '{"tokens":[]}')
  for (const name of names)
    databases.set(name, await freshDatabase({ template: 'partition', migrate: async url => void (await migrate(url)) }))
  home = await freshDatabase({ template: 'global', migrate: migrateHome })
})
afterAll(async () => {
  rmSync(folder, { recursive: true, force: true })
  for (const database of [home, ...databases.values()]) await database?.drop()
})

interface Running {
  url: string
  core: Core
  stop(): Promise<void>
  /** Ends without what it would still have written: its connections to its database break first, whatever is under way on them. */
  die(): Promise<void>
}

/** Cut off: a partition with a bus of its own, on which nobody else is. It is started again, as after a crash. */
async function start(name: Name, broker: LocalBroker | 'cut off'): Promise<Running> {
  const own: (() => Promise<void> | void)[] = []
  const bus = (broker === 'cut off' ? createLocalBroker() : broker).connect()
  own.push(() => bus.close())
  const { url, core } = await startPartition({
    settings: {
      partition: name,
      replica: 'a',
      databaseUrl: (databases.get(name) as FreshDatabase).url,
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
    own: (_, stop) => void own.push(stop),
    onSuperseded: () => undefined,
  })
  return {
    url,
    core,
    stop: async () => {
      for (const stop of own.reverse()) await stop()
    },
    die: async () => {
      await loseConnections(name)
      // What a part cannot say goodbye to any more, a killed one does not either.
      for (const stop of own.reverse()) await Promise.resolve(stop()).catch(() => undefined)
    },
  }
}

const stops: (() => Promise<void>)[] = []
afterEach(async () => {
  for (let stop = stops.pop(); stop; stop = stops.pop()) await stop()
})

function openFront(broker: LocalBroker, databaseUrl: string | undefined, key = signer): Front {
  const bus = broker.connect()
  const front = createFront({
    name: 'front',
    version: '0',
    bus,
    accepted: names,
    log,
    global: { databaseUrl, signer: key, trustedKeys: [], sealer: createSharedSealer(Buffer.alloc(32, 'shared')) },
  })
  stops.push(async () => {
    await front.stop()
    await bus.close()
  })
  return front
}

async function call<Called extends CallName>(front: Front, name: Called, input: CallInput<Called>): Promise<CallOutput<Called>> {
  const deadline = Date.now() + 10_000
  const context = { caller, again: () => caller, from: '192.0.2.1', requestId: 'test', deadline, signal: AbortSignal.timeout(10_000) }
  return front.backend.call(name, input, context)
}

const refilling = { note: '', wins: 'copy' as const }
const writing = { put: [], delete: [], dryRun: false, note: '' }
const putUser = (name: string, document: Record<string, unknown> = { role: 'user' }) => ({
  ...writing,
  put: [{ kind: 'user' as const, name, document }],
})

async function refusalOf(asked: Promise<unknown>): Promise<Refusal> {
  const error = await asked.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  if (error instanceof Refusal) return error
  throw new Error('it was not refused', { cause: error })
}

/** The generation that a partition's database holds; 0: none. */
async function copyOf(name: Name): Promise<number> {
  const sql = postgres((databases.get(name) as FreshDatabase).url, { max: 1 })
  try {
    const [row] = await sql<{ generation: string | null }[]>`select max(generation) as generation from global_configuration`
    return Number(row?.generation ?? 0)
  } finally {
    await sql.end()
  }
}

/** Ends a partition's connections to its database at once, whatever is under way on them: all that the database sees of kill -9. */
async function loseConnections(name: Name): Promise<void> {
  const sql = postgres((databases.get(name) as FreshDatabase).url, { max: 1 })
  try {
    await sql`select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`
  } finally {
    await sql.end()
  }
}

/** The newest generation in the database that fronts share, as a front wrote it. */
const copyInHome = () => copyIn(home.url)

async function copyIn(url: string): Promise<string | undefined> {
  const sql = postgres(url, { max: 1 })
  try {
    const [row] = await sql`select payload, signature, signed_by as key from generations order by generation desc limit 1`
    return row && JSON.stringify(row)
  } finally {
    await sql.end()
  }
}

async function putInHome({ payload, signature, key }: SignedCopy, generation: number): Promise<void> {
  const sql = postgres(home.url, { max: 1 })
  try {
    await sql`
      insert into generations (generation, payload, signature, signed_by, changed_at, changed_by, note)
      values (${generation}, ${payload}, ${signature}, ${key}, now(), 'newer', '')`
    await sql`insert into lineage (generation, digest) values (${generation}, ${digestOf(payload)})`
  } finally {
    await sql.end()
  }
}

async function makeAnew(url: string): Promise<void> {
  const name = new URL(url).pathname.slice(1)
  const sql = postgres(process.env.MUSTER_TEST_POSTGRES as string, { max: 1 })
  try {
    await sql`drop database ${sql(name)} with (force)`
    await sql`create database ${sql(name)}`
  } finally {
    await sql.end()
  }
}

const [madeAt, endsAt, hash] = ['2026-01-01T00:00:00.000Z', '2126-01-01T00:00:00.000Z', '0'.repeat(64)]
const oneOfEach = Object.entries({
  user: { role: 'user' },
  group: { members: ['it'] },
  token: { user: 'it', role: 'user', sha256: hash, createdAt: madeAt, expiresAt: endsAt },
  pool: { description: 'in front' },
  zone: {},
  quota: { user: 'it', machines: 3 },
  partition: { natsKey: `U${'A'.repeat(55)}`, operatingSystems: [], acceptedAt: madeAt },
  join: { sha256: hash, createdAt: madeAt, expiresAt: endsAt },
  webhook: { url: 'http://127.0.0.1:9/', status: 'paused', secret: `whsec_${Buffer.alloc(24, 'w').toString('base64')}` },
  image: { os: 'debian/12', title: 'Debian 12', url: 'http://127.0.0.1:9/', sha256: hash },
  licence: { operatingSystems: ['sles/15'], key: 'XXXX-YYYY' },
  oidc: { issuer: 'https://issuer.example', clientId: 'muster' },
} satisfies Record<DocumentKind, object>).map(([kind, document]) => ({
  kind: kind as DocumentKind,
  name: { token: 't-00000000000b', join: 'j-00000000000b', partition: 'one' }[kind] ?? 'it',
  document,
}))

const within = async (ms: number, isSo: () => boolean | Promise<boolean>) => {
  const startedAt = Date.now()
  while (!(await isSo())) {
    if (Date.now() - startedAt > ms) throw new Error(`not so within ${ms} ms`)
    await new Promise(resolve => setTimeout(resolve, 20))
  }
}

describe('the global configuration', () => {
  test('a token made at a front works at every partition, with the weaker role, until it is revoked; a front does nothing more', async () => {
    const broker = createLocalBroker()
    const partitions = await Promise.all(names.map(name => start(name, broker)))
    for (const partition of partitions) stops.push(partition.stop)
    const front = openFront(broker, home.url)
    const { token } = newToken()
    const [createdAt, expiresAt] = [new Date().toISOString(), new Date(Date.now() + 3_600_000).toISOString()]
    const document = { user: 'alice', role: 'admin', sha256: hashToken(token), createdAt, expiresAt }
    const written = await call(front, 'config.change', {
      ...putUser('alice', { role: 'operator' }),
      put: [...putUser('alice', { role: 'operator' }).put, { kind: 'token', name: 't-00000000000a', document }],
    })
    expect(written).toMatchObject({ outcome: 'written', differences: [{ what: 'added' }, { what: 'added' }] })
    await within(5_000, () => partitions.every(({ core }) => core.configuration.generation === written.generation))
    for (const { url } of partitions) {
      const client = createClient({ url, token })
      expect((await client.session.whoami()).caller).toEqual({ name: 'alice', role: 'operator' })
      expect((await refusalOf(client.config.get())).code).toBe('forbidden')
    }
    const copies = await call(front, 'config.copies', {})
    expect(copies.items.map(({ partition, generation }) => [partition, generation])).toEqual(
      [...names].sort().map(name => [name, written.generation]),
    )
    expect(new Set(copies.items.map(({ digest }) => digest)).size).toBe(1)

    const revoked = await call(front, 'config.change', { ...writing, delete: [{ kind: 'token', name: 't-00000000000a' }] })
    await within(5_000, () => partitions.every(({ core }) => core.configuration.generation === revoked.generation))
    for (const { url } of partitions) expect((await refusalOf(createClient({ url, token }).session.whoami())).code).toBe('unauthenticated')
  })

  test('is previewed, compared and set back; of two changes that expect one generation only one is written', async () => {
    const broker = createLocalBroker()
    const [front, other] = [openFront(broker, home.url), openFront(broker, home.url)]
    const { generation } = await call(front, 'config.change', putUser('carol'))
    expect(await call(front, 'config.change', { ...putUser('dave'), dryRun: true })).toMatchObject({ generation, outcome: 'dry-run' })
    expect(await call(front, 'config.change', putUser('carol'))).toMatchObject({ generation, outcome: 'nothing-to-do' })
    const race = await Promise.allSettled(
      [front, other].map((each, index) => call(each, 'config.change', { ...putUser(`racer${index}`), expectedGeneration: generation })),
    )
    expect(race.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected'])
    // Without an expectation both are written, one behind the other.
    const both = await Promise.all([front, other].map((each, index) => call(each, 'config.change', putUser(`runner${index}`))))
    expect(both.map(each => each.generation).sort()).toEqual([generation + 2, generation + 3])
    const back = await call(front, 'config.revert', { to: generation, dryRun: false, note: '' })
    expect(back).toMatchObject({ outcome: 'written', generation: generation + 4 })
    expect((await call(other, 'config.diff', { from: generation })).differences).toEqual([])
    const { items } = await call(front, 'config.history', { limit: 2 })
    expect(items).toMatchObject([
      { generation: generation + 4, changedBy: 'root', note: `back to generation ${generation}` },
      { generation: generation + 3 },
    ])
    expect((await refusalOf(call(front, 'config.revert', { to: 999_999, dryRun: false, note: '' }))).code).toBe('not-found')
    expect((await refusalOf(call(front, 'config.change', putUser('Bad Name')))).facts.errors).toMatchObject([{ field: 'put.0.name' }])
  })

  test('what a front of a newer release wrote is not lost by an older one: it refuses to write, until one that knows does, or it is set back', async () => {
    const broker = createLocalBroker()
    const front = openFront(broker, home.url)
    const { generation } = await call(front, 'config.change', putUser('erin'))
    const { payload } = signedCopy.parse(JSON.parse((await copyInHome()) as string))
    const { documents, ...head } = JSON.parse(payload) as { documents: { user: object } }
    const newer = { ...documents, user: { ...documents.user, erin: { role: 'user', shoeSize: 43 } }, planet: { mars: {} } }
    const lineage = lineageAfter({ payload, content: readPayload(payload).content }, generation + 1)
    await putInHome(signer.sign(JSON.stringify({ ...head, generation: generation + 1, lineage, documents: newer })), generation + 1)
    const refusal = await refusalOf(call(front, 'config.change', putUser('frank')))
    expect(refusal).toMatchObject({ code: 'newer-release' })
    expect(refusal.message).toContain('documents of kind planet, fields of user erin')
    expect((await refusalOf(call(front, 'config.change', { ...putUser('frank'), dryRun: true }))).code).toBe('newer-release')
    // It serves what it can read.
    expect((await call(front, 'config.get', { kind: 'user', name: 'erin' })).generation).toBe(generation + 1)
    expect(await call(front, 'config.revert', { to: generation, dryRun: false, note: '' })).toMatchObject({ outcome: 'written' })
    expect(await call(front, 'config.change', putUser('frank'))).toMatchObject({ outcome: 'written' })
  })

  test('a copy that no trusted key signed, or an older one, is refused; the partition says so and keeps what it has', async () => {
    const broker = createLocalBroker()
    const partition = await start('one', broker)
    stops.push(partition.stop)
    const front = openFront(broker, home.url)
    await call(front, 'config.change', putUser('before-the-forgery'))
    await within(5_000, () => partition.core.configuration.content?.documents.user['before-the-forgery'] !== undefined)
    const { configuration } = partition.core
    const generation = configuration.generation
    const mine = signedCopy.parse(JSON.parse(configuration.text as string))
    const { content } = readPayload(mine.payload)
    const resigned = (change: object, by = signer) => by.sign(JSON.stringify({ format: 1, ...content, ...change }))
    await expect(configuration.take(resigned({ generation: generation + 1 }, createSigner('66'.repeat(32))))).rejects.toThrow('not trusted')
    await expect(configuration.take({ ...mine, payload: mine.payload.replace('root', 'toor') })).rejects.toThrow('not right')
    expect(await configuration.take(resigned({ generation: generation - 1 }))).toBe('not newer')
    await expect(configuration.take(resigned({ note: 'another' }))).rejects.toThrow('another configuration under generation')
    expect(configuration.describe()).toMatchObject({ generation, problems: [expect.stringContaining('refill')] })
    expect(configuration.generation).toBe(generation)
  })

  test('a partition that is cut off goes on with its copy, also after a restart, and takes what is newer within ten seconds of its return', async () => {
    const broker = createLocalBroker()
    const front = openFront(broker, home.url)
    const first = await start('two', broker)
    const { generation } = await call(front, 'config.change', putUser('kept'))
    await within(5_000, () => first.core.configuration.generation === generation)
    await first.stop()
    const alone = await start('two', 'cut off')
    expect(alone.core.configuration.content?.documents.user).toHaveProperty('kept')
    await call(front, 'config.change', putUser('missed'))
    await alone.stop()
    const back = await start('two', broker)
    stops.push(back.stop)
    await within(10_000, () => back.core.configuration.content?.documents.user.missed !== undefined)
  })

  test('a front without its database serves from the newest copy; a lost database is written only after a refill, and nothing is lost', async () => {
    const broker = createLocalBroker()
    const partitions = await Promise.all(names.map(name => start(name, broker)))
    for (const partition of partitions) stops.push(partition.stop)
    const front = openFront(broker, home.url)
    const { generation } = await call(front, 'config.change', putUser('precious'))
    await within(5_000, () => partitions.every(({ core }) => core.configuration.generation === generation))

    const reader = openFront(broker, undefined)
    await within(10_000, () => reader.home?.content?.generation === generation)
    expect((await call(reader, 'config.get', { kind: 'user', name: 'precious' })).source).toContain('the copy of partition')
    expect((await refusalOf(call(reader, 'config.change', putUser('more')))).code).toBe('not-ready')

    const wiped = await freshDatabase({ template: 'global', migrate: migrateHome })
    stops.push(() => wiped.drop())
    const heir = openFront(broker, wiped.url)
    await within(10_000, () => heir.home?.content?.generation === generation)
    const refused = await refusalOf(call(heir, 'config.change', putUser('too-early')))
    expect(refused).toMatchObject({ code: 'home-lost', message: expect.stringContaining('muster config refill') })
    const refilled = await call(heir, 'config.refill', refilling)
    expect(refilled).toMatchObject({ generation: generation + refillJump, from: generation })
    await within(5_000, () => partitions.every(({ core }) => core.configuration.generation === refilled.generation))
    for (const { core } of partitions) expect(core.configuration.content?.documents.user).toHaveProperty('precious')
    expect(await call(heir, 'config.refill', refilling)).toMatchObject({ outcome: 'nothing-to-do', generation: refilled.generation })
    expect(await call(heir, 'config.change', putUser('later'))).toMatchObject({ outcome: 'written', generation: refilled.generation + 1 })
    // The old database, were it found again, holds less: once its front has heard of that, it writes nothing until it has been refilled too.
    // What it wrote before is refused by every partition.
    await within(10_000, async () => {
      const error = await call(front, 'config.change', putUser('stale')).then(
        () => undefined,
        (reason: unknown) => reason,
      )
      return error instanceof Refusal && error.message.includes('set back')
    })
    for (const { core } of partitions) expect(core.configuration.content?.documents.user).not.toHaveProperty('stale')
  })

  test('partitions take nothing of a history that began in a database that was set back; fronts write no more of it once they hear of that, until an admin says which is true', async () => {
    const broker = createLocalBroker()
    await using own = await freshDatabase({ template: 'global', migrate: migrateHome })
    const put = (front: Front, name: string) => call(front, 'config.change', putUser(name))
    const users = (documents: object = {}) =>
      Object.keys(documents)
        .filter(name => /^[a-z]$/.test(name))
        .join()
    const startBoth = async () => {
      const both = await Promise.all((['one', 'two'] as const).map(name => start(name, broker)))
      const stop = async () => void (await Promise.all(both.map(partition => partition.stop())))
      const usersOf = () => both.map(({ core }) => users(core.configuration.content?.documents.user)).join(' ')
      const hold = (generation: number) => within(10_000, () => both.every(({ core }) => core.configuration.generation === generation))
      return { both, stop, usersOf, hold }
    }
    const killFront = () => stops.pop()?.()
    // The fronts' database comes back from an old backup while no partition is within reach, and is written.
    const setBack = async (generation: number) => {
      const sql = postgres(own.url, { max: 1 })
      await sql`delete from generations where generation > ${generation}`
      await sql`delete from lineage where generation > ${generation}`
      await sql.end()
    }
    let partitions = await startBoth()
    let front = openFront(broker, own.url)
    const empty = (await call(front, 'config.refill', refilling)).generation
    for (const name of ['a', 'b', 'c']) await put(front, name)
    await partitions.hold(empty + 3)
    await killFront()
    await partitions.stop()
    await setBack(empty + 1)

    front = openFront(broker, own.url)
    for (const name of ['x', 'y', 'z']) await put(front, name)
    expect(front.home?.content?.generation).toBe(empty + 4)
    partitions = await startBoth()
    await within(10_000, () => partitions.both.every(({ core }) => core.configuration.describe().problems.join().includes('set back')))
    const [first] = partitions.both
    const offered = { ...signedCopy.parse(JSON.parse((await copyIn(own.url)) as string)), links: [] }
    await expect(first?.core.configuration.take(offered)).rejects.toThrow('does not follow')
    expect(partitions.usersOf()).toBe('a,b,c a,b,c')
    expect(await refusalOf(put(front, 'w'))).toMatchObject({ code: 'home-lost', message: expect.stringContaining('--database-wins') })
    const seen = await call(front, 'config.copies', {})
    expect(seen).toMatchObject({ inForce: { generation: empty + 4 }, another: expect.arrayContaining(['one', 'two']) })
    const refilled = await call(front, 'config.refill', refilling)
    expect(refilled).toMatchObject({ outcome: 'refilled', from: empty + 3, generation: empty + 4 + refillJump })
    await partitions.hold(refilled.generation)
    expect(partitions.usersOf()).toBe('a,b,c a,b,c')
    await within(10_000, () => partitions.both.every(({ core }) => core.configuration.describe().problems.length === 0))

    await put(front, 'd')
    await put(front, 'e')
    await partitions.hold(refilled.generation + 2)
    await killFront()
    await setBack(refilled.generation + 1)
    // With partitions in reach, a front that has just started notices before it writes.
    front = openFront(broker, own.url)
    expect((await refusalOf(put(front, 'v'))).code).toBe('home-lost')
    await killFront()
    await partitions.stop()
    front = openFront(broker, own.url)
    await put(front, 'u')
    partitions = await startBoth()
    stops.push(partitions.stop)
    await within(10_000, () => partitions.both.every(({ core }) => core.configuration.describe().problems.join().includes('set back')))
    const won = await call(front, 'config.refill', { ...refilling, wins: 'database' })
    expect(won).toMatchObject({ outcome: 'refilled', partition: null, from: refilled.generation + 2 })
    await put(front, 't')
    await partitions.hold(won.generation + 1)
    expect(partitions.usersOf()).toBe('a,b,c,d,u,t a,b,c,d,u,t')
  }, 60_000)

  // R14. In full: MUSTER_MANY=1.
  const changes = process.env.MUSTER_MANY ? 1_000 : 120
  test(`${changes} changes, partitions stopped, killed and cut off at random: generations never fall, and all are equal at the end`, {
    timeout: changes * 1_000,
  }, async () => {
    const seed = Date.now() % 1_000_000
    const random = chance('configuration', seed)
    const broker = createLocalBroker()
    await using own = await freshDatabase({ template: 'global', migrate: migrateHome })
    // Its home is empty while the partitions may hold copies of the tests before: as after a loss.
    const held = (await Promise.all(names.map(copyOf))).some(generation => generation > 0)
    const front = openFront(broker, own.url)
    const running = new Map<Name, Running>()
    for (const name of names) running.set(name, await start(name, broker))
    if (held) {
      await within(10_000, () => (front.home?.content?.generation ?? 0) > 0)
      await call(front, 'config.refill', refilling)
    }
    const tally = { changes: 0, stops: 0, kills: 0, 'starts cut off': 0, looks: 0 }
    const fallen: string[] = []
    const highest = new Map<Name, number>()
    const look = () => {
      for (const [name, { core }] of running) {
        const { generation } = core.configuration
        const before = highest.get(name) ?? 0
        if (generation < before) fallen.push(`${name} fell from ${before} to ${generation} at change ${tally.changes}`)
        highest.set(name, generation)
        tally.looks++
      }
    }
    for (; tally.changes < changes; tally.changes++) {
      const document = { role: 'user', displayName: `change ${tally.changes}` }
      const change = call(front, 'config.change', putUser(`user${tally.changes % 20}`, document))
      if (random() < 0.1) {
        const name = names[Math.floor(random() * names.length)] as Name
        const dies = random() < 0.5
        tally[dies ? 'kills' : 'stops']++
        // While the change comes down: whatever is under way breaks off there.
        const one = running.get(name) as Running
        await (dies ? one.die() : one.stop())
        const isCutOff = random() < 0.5
        if (isCutOff) tally['starts cut off']++
        running.set(name, await start(name, isCutOff ? 'cut off' : broker))
      }
      await change
      look()
    }
    for (const name of names) {
      await running.get(name)?.stop()
      const back = await start(name, broker)
      stops.push(back.stop)
      running.set(name, back)
    }
    look()
    const last = front.home?.content?.generation
    await within(20_000, () => [...running.values()].every(({ core }) => core.configuration.generation === last))
    const digests = new Set([...running.values()].map(({ core }) => core.configuration.describe().digest))
    const figures = `${JSON.stringify({ ...tally, fallen: fallen.length, 'different copies at the end': digests.size })}, seed ${seed}`
    process.stdout.write(`configuration: ${figures}\n`)
    expect(fallen, figures).toEqual([])
    expect(digests.size, figures).toBe(1)
    expect(Math.min(tally.stops, tally.kills, tally['starts cut off']), figures).toBeGreaterThan(0)
  })

  test('a database that is dropped and made anew under running fronts is refilled without a restart, with every document as it was, sealed ones too', async () => {
    const broker = createLocalBroker()
    await using own = await freshDatabase({ template: 'global', migrate: migrateHome })
    const partition = await start('one', broker)
    stops.push(partition.stop)
    const [front, other] = [openFront(broker, own.url), openFront(broker, own.url)]
    await call(front, 'config.refill', refilling)
    const { generation } = await call(front, 'config.change', { ...writing, put: oneOfEach })
    await within(5_000, () => partition.core.configuration.generation === generation && other.home?.content?.generation === generation)
    const before = front.home?.content?.documents as Documents
    expect(documentKinds.filter(kind => Object.keys(before[kind]).length === 0)).toEqual([])

    await makeAnew(own.url)
    expect((await refusalOf(call(other, 'config.change', putUser('too-early')))).code).toBe('home-lost')
    const refilled = await call(front, 'config.refill', refilling)
    expect(refilled).toMatchObject({ outcome: 'refilled', from: generation })
    await within(5_000, () => [partition.core.configuration, other.home].every(each => each?.content?.generation === refilled.generation))
    for (const { content } of [partition.core.configuration, front.home as Home, other.home as Home])
      expect(content?.documents).toEqual(before)
    // What is lost with the database is the history, and the fronts' audit log.
    expect((await call(other, 'config.history', { limit: 10 })).items.map(each => each.generation)).toEqual([refilled.generation])
    expect(await call(other, 'config.change', putUser('after-the-drop'))).toMatchObject({
      outcome: 'written',
      generation: refilled.generation + 1,
    })
  }, 60_000)

  test('a partition without a trusted key takes nothing, and says why', async () => {
    const sql = postgres((databases.get('three') as FreshDatabase).url, { max: 1 })
    await sql`delete from global_configuration`
    await sql.end()
    const broker = createLocalBroker()
    const front = openFront(broker, home.url, createSigner('55'.repeat(32)))
    const partition = await start('three', broker)
    stops.push(partition.stop)
    expect(front.home?.content).toBeUndefined()
    await until(() => partition.core.configuration.describe().heardAt !== null)
    expect(partition.core.configuration.generation).toBe(0)
  })
})
