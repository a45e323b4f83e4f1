// How partitions become part of a federation, over a real nats-server that lets in whom the front tells it: asked with a token, accepted by an admin, retired, taken back,
// and accepted anew after the loss of a disk. A partition that is not accepted works by itself.
import { execFile, spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { OutgoingMessage } from 'node:http'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { findProgram } from '@muster/embedded/find-program'
import { natsUrlIn } from '@muster/embedded/nats-server'
import { freshDatabase } from '@muster/embedded/test-postgres'
import { createFront, type Front } from '@muster/front/front'
import { BrokerFile } from '@muster/front/global/broker-file'
import { migrateHome } from '@muster/front/global/db/generations'
import { migrate } from '@muster/partition/db/migrate'
import { defaultRules } from '@muster/partition/domain/core'
import { type RunningPartition, startPartition } from '@muster/partition/partition'
import { connectNats } from '@muster/server/bus/nats-bus'
import { tokensOfAll } from '@muster/server/global/people'
import { createSigner } from '@muster/server/global/signature'
import { startDoor } from '@muster/server/http/door'
import { createLog } from '@muster/server/log'
import { hashToken, newToken, openTokens } from '@muster/server/tokens'
import { inboxOf } from '@muster/shared/bus/permissions'
import { type Client, createClient } from '@muster/shared/client'
import { randomText } from '@muster/shared/ids'
import { hashPassword } from '@muster/shared/password'
import { Secret } from '@muster/shared/secret'
import { createUser } from '@nats-io/nkeys'
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from 'vitest'
import { writeVirtualFiles } from '../src/federation/files.ts'

const program = findProgram('nats-server')
if (program === undefined && process.env.CI) throw new Error('no nats-server on PATH; CI must prove enrolment')
if (program === undefined) console.warn('SKIPPED: no nats-server on PATH: enrolment is NOT TESTED here')

const log = createLog({ level: 'fatal', name: 'test' })
const { token: adminToken } = newToken()
const stops: (() => Promise<void> | void)[] = []
let folder: string
let front: { url: string; admin: Client; front: Front }

beforeAll(async () => {
  if (program === undefined) return
  folder = mkdtempSync(path.join(tmpdir(), 'muster-enrolment-'))
  stops.push(() => rmSync(folder, { recursive: true, force: true }))
  writeFileSync(
    path.join(folder, 'tokens.json'),
    JSON.stringify({ tokens: [{ name: 'admin', role: 'admin', sha256: hashToken(adminToken) }] }),
  )
  writeVirtualFiles(path.join(folder, 'files'))
  front = await startFront(program)
}, 60_000)
afterAll(async () => {
  for (let stop = stops.pop(); stop; stop = stops.pop()) await stop()
}, 60_000)

/** nats-server as deploy/README.md says, and a front that tells it who may come in. */
async function startFront(natsServer: string): Promise<typeof front> {
  const key = createUser()
  const nkey = new TextDecoder().decode(key.getSeed())
  const file = path.join(folder, 'auth.conf')
  const broker = new BrokerFile({ file, pidFile: path.join(folder, 'nats.pid'), fronts: [key.getPublicKey()], log })
  writeFileSync(
    path.join(folder, 'nats.conf'),
    `listen: "127.0.0.1:-1"\npid_file: "${folder}/nats.pid"\nports_file_dir: "${folder}"\ninclude ./auth.conf\n`,
  )
  // Before anybody is accepted, the front alone may come in.
  writeFileSync(file, `authorization: ${JSON.stringify({ users: [{ nkey: key.getPublicKey() }] })}\n`)
  const server = spawn(natsServer, ['-c', path.join(folder, 'nats.conf')], { stdio: 'ignore' })
  stops.push(() => void server.kill('SIGKILL'))
  const natsUrl = await vi.waitUntil(() => natsUrlIn(path.join(folder, `nats-server_${server.pid}.ports`)), { timeout: 10_000 })
  const bus = await connectNats({ url: natsUrl, nkey, inbox: inboxOf({ kind: 'front' }), name: 'front', log })
  stops.push(() => bus.close())
  const home = await freshDatabase({ template: 'global', migrate: migrateHome })
  stops.push(() => home.drop())
  const signer = createSigner('09'.repeat(32))
  const made = createFront({
    name: 'front',
    version: '0',
    bus,
    accepted: undefined,
    log,
    global: { databaseUrl: home.url, signer, trustedKeys: [], natsUrl },
    broker,
  })
  stops.push(() => made.stop())
  const tokens = openTokens({ file: path.join(folder, 'tokens.json'), log })
  stops.push(() => tokens.close())
  const door = await startDoor({
    backend: made.backend,
    audit: made.audit,
    tokens: tokensOfAll([tokens, made.tokens]),
    log,
    version: '0',
    port: 0,
    check: 'answers',
  })
  stops.push(() => door.close())
  return { url: door.url, admin: createClient({ url: door.url, token: adminToken }), front: made }
}

interface Partition extends RunningPartition {
  readonly databaseUrl: string
  readonly admin: Client
  problems(): Promise<string[]>
  /** What its log says of why it is not part of the federation, oldest first. */
  readonly told: readonly string[]
  stop(): Promise<void>
}

async function startOne(name: string, token: string, options: { databaseUrl?: string; frontUrl?: string } = {}): Promise<Partition> {
  let databaseUrl = options.databaseUrl
  if (databaseUrl === undefined) {
    const database = await freshDatabase({ template: 'partition', migrate: async url => void (await migrate(url)) })
    stops.push(() => database.drop())
    databaseUrl = database.url
  }
  const own: (() => Promise<void> | void)[] = []
  const stop = async () => {
    for (let end = own.pop(); end; end = own.pop()) await end()
  }
  stops.push(stop)
  const told: string[] = []
  const note = (line: string) => {
    const { msg } = JSON.parse(line) as { msg: string }
    if (msg.startsWith('not part of the federation')) told.push(msg)
  }
  const running = await startPartition({
    settings: {
      partition: name,
      replica: 'a',
      databaseUrl,
      connections: 6,
      nats: undefined,
      key: Buffer.alloc(32, name),
      join: { url: options.frontUrl ?? front.url, token: new Secret(token) },
      tokensFile: path.join(folder, 'tokens.json'),
      files: path.join(folder, 'files'),
      host: '127.0.0.1',
      port: 0,
      url: undefined,
      rules: defaultRules,
    },
    log: createLog({ level: 'warn', name, destination: { write: note } }),
    own: (_, end) => own.push(end),
    onSuperseded: () => undefined,
    check: 'answers',
  })
  const admin = createClient({ url: running.url, token: adminToken })
  return { ...running, databaseUrl, admin, told, problems: async () => (await admin.partitions.get({ name })).problems, stop }
}

/** As `muster partition token create` makes it. */
async function joinToken(more: Record<string, unknown> = {}): Promise<string> {
  const { token, sha256 } = newToken()
  const [createdAt, expiresAt] = [new Date(), new Date(Date.now() + 3_600_000)].map(date => date.toISOString())
  const document = { sha256, createdAt, expiresAt, ...more }
  await front.admin.config.change({ put: [{ kind: 'join', name: `j-${randomText(12)}`, document }] })
  return token
}

const subnet = (cidr: string, more: { gateway?: string; description?: string } = {}) => ({
  cidr,
  vlan: null,
  gateway: null,
  nameservers: [],
  reserved: [],
  description: '',
  ...more,
})

/** The settings of the acceptance are in force; what the document says is changed there, and what cannot be so is told until it can. */
async function settingsHold(par2: Partition, problem: string): Promise<void> {
  expect((await par2.admin.partitions.get({ name: 'par2' })).rules).toEqual([
    { rule: 'erase', value: 'full', from: 'document' },
    { rule: 'enlisted', value: 'keep as new', from: 'server' },
    { rule: 'enlistedMost', value: '5000', from: 'server' },
  ])
  expect(par2.core.rules.erase).toBe('full')
  const [held] = (await front.admin.config.copies({})).items.filter(({ partition }) => partition === 'par2')
  expect(held?.problems).toEqual([problem])
  expect((await par2.admin.subnets.list({})).items.map(({ name }) => name)).toEqual(['own', 'servers'])
  for (const change of [par2.admin.subnets.put({ name: 'servers', cidr: '10.9.0.0/24' }), par2.admin.subnets.delete({ name: 'servers' })])
    await expect(change).rejects.toMatchObject({ code: 'invalid-input' })

  // One whose addresses somebody has stays where it is, and is described anew where that takes nothing from anybody.
  await par2.admin.addresses.reserve({ subnet: 'servers', address: '10.1.0.9', name: 'nas' })
  await putSettings({ servers: subnet('10.3.0.0/24') })
  const moved =
    /cannot be so here: move subnet servers from 10.1.0.0\/24, untagged to 10.3.0.0\/24, untagged: 1 of its addresses are in use/
  await vi.waitUntil(async () => (await par2.problems()).some(text => moved.test(text)), patient)
  await putSettings({ servers: subnet('10.1.0.0/24', { description: 'hall 2' }), own: subnet('10.2.0.0/24') })
  await vi.waitUntil(async () => (await par2.admin.subnets.get({ name: 'own' })).cidr === '10.2.0.0/24', patient)
  expect(await par2.admin.subnets.get({ name: 'servers' })).toMatchObject({ description: 'hall 2', gateway: null, used: 1 })
  // What the document is silent of the server says, and a subnet that it names no more is the partition's own again.
  await putSettings(undefined)
  await vi.waitUntil(() => par2.core.rules.erase === 'quick', patient)
  expect(await par2.admin.subnets.put({ name: 'servers', cidr: '10.1.0.0/24' })).toMatchObject({ used: 1 })
  await vi.waitUntil(async () => (await par2.problems()).length === 1, patient)
}

/** Writes the document of par2 anew, as an admin does later; nothing given: without settings. */
async function putSettings(subnets: Record<string, ReturnType<typeof subnet>> | undefined): Promise<void> {
  const [known] = (await front.admin.config.get({ kind: 'partition', name: 'par2' })).documents
  const { subnets: _, erase, ...rest } = known?.document ?? {}
  const document = subnets === undefined ? rest : { ...rest, erase, subnets }
  await front.admin.config.change({ put: [{ kind: 'partition', name: 'par2', document }] })
}

const cli = fileURLToPath(new URL('../../cli/src/main.ts', import.meta.url))

/** What the command line says, asked of a partition by an admin. */
async function muster(partition: Partition, words: readonly string[]): Promise<string> {
  const { PATH, NODE_COMPILE_CACHE } = process.env
  const env = { PATH, NODE_COMPILE_CACHE, HOME: folder, MUSTER_URL: partition.url, MUSTER_TOKEN: adminToken }
  return (await promisify(execFile)(process.execPath, [cli, ...words], { env, cwd: folder, timeout: 30_000 })).stdout
}

const heard = (name: string) => front.front.presence.standing(name) === 'present'
const patient = { timeout: 30_000, interval: 50 }

test.skipIf(program === undefined)('a federation is made, grows, loses a partition and takes it back', { timeout: 180_000 }, async () => {
  // The first is accepted by itself, with what it can install and nothing else.
  const lon1 = await startOne('lon1', await joinToken())
  await vi.waitUntil(() => heard('lon1'), patient)
  const [first] = (await front.admin.config.get({ kind: 'partition' })).documents
  expect(first).toMatchObject({
    name: 'lon1',
    document: { status: 'accepted', operatingSystems: ['debian/12', 'debian/13', 'ubuntu/24.04'] },
  })
  // Its token is used up, and the configuration reaches it by the bus.
  expect((await front.admin.config.get({ kind: 'join' })).documents).toEqual([])
  await vi.waitUntil(() => lon1.core.configuration.content?.documents.partition.lon1 !== undefined, patient)

  // The next waits: it works by itself meanwhile, and says what it waits for.
  const par2 = await startOne('par2', await joinToken({ partition: 'par2' }))
  const [pending] = await vi.waitUntil(async () => {
    const { items } = await front.admin.enrolment.list()
    return items.length > 0 && items
  }, patient)
  expect(pending).toMatchObject({ name: 'par2', url: par2.url, from: '127.0.0.1', remark: '' })
  expect(await vi.waitUntil(async () => (await par2.problems())[0], patient)).toMatch(
    /^not part of the federation: asked to take part with the key U[A-Z2-7]{55}: it waits for an admin: muster partition accept$/,
  )
  await vi.waitUntil(async () => (await par2.problems())[0] === par2.told.at(-1), patient)
  expect(heard('par2')).toBe(false)
  expect((await front.admin.partitions.list({})).items.map(({ name }) => name)).toEqual(['lon1'])

  // Accepted with what it may install, that and nothing else, and with its settings; a dry run says what it would be and changes nothing.
  const [servers, storage] = [subnet('10.1.0.0/24', { gateway: '10.1.0.1' }), subnet('10.2.0.0/24')]
  await par2.admin.subnets.put({ name: 'own', cidr: '10.2.0.0/16' })
  const acceptance = {
    name: 'par2',
    operatingSystems: ['debian/12', 'debian/99'],
    natsKey: pending?.natsKey as string,
    erase: 'full' as const,
    subnets: { servers, storage },
  }
  const { generation } = await front.admin.config.get({ kind: 'partition' })
  expect(await front.admin.enrolment.accept({ ...acceptance, dryRun: true })).toMatchObject({
    generation,
    outcome: 'dry-run',
    differences: [
      { kind: 'partition', name: 'par2', what: 'added', after: { erase: 'full', subnets: { servers: { gateway: '10.1.0.1' } } } },
      { kind: 'join', what: 'removed' },
    ],
  })
  expect((await front.admin.enrolment.list()).items).toHaveLength(1)
  await expect(front.admin.enrolment.accept({ ...acceptance, subnets: { servers, twin: subnet('10.1.0.128/25') } })).rejects.toMatchObject({
    code: 'invalid-input',
    message: 'partition par2: its subnet twin (10.1.0.128/25) overlaps its subnet servers',
  })
  await front.admin.enrolment.accept(acceptance)
  await vi.waitUntil(() => heard('par2'), patient)
  await vi.waitUntil(() => par2.core.catalogue.missing.length > 0, patient)
  const overlap =
    'the global configuration describes a subnet that cannot be so here: subnet storage (10.2.0.0/24, untagged) overlaps own (10.2.0.0/16, untagged)'
  await vi.waitUntil(async () => (await par2.problems()).length === 2, patient)
  expect(await par2.problems()).toEqual(['debian/99 was selected for this partition, and its files are not here', overlap])
  await settingsHold(par2, overlap)
  const shown = (await par2.admin.operatingSystems.list({})).items.filter(({ available }) => available)
  expect([...new Set(shown.map(({ name }) => name))]).toEqual(['debian/12'])
  await vi.waitUntil(() => !par2.core.catalogue.installable.get('amd64')?.has('ubuntu/24.04'), patient)
  expect(await front.admin.enrolment.list()).toMatchObject({ items: [] })

  // Whom a front lets in it lets in too, by the keys it was told of.
  const password = await hashPassword('a long enough password')
  await front.admin.config.change({ put: [{ kind: 'user', name: 'zoe', document: { role: 'operator', password } }] })
  const { token: session } = await createClient({ url: front.url }).session.login({ user: 'zoe', password: 'a long enough password' })
  const zoe = createClient({ url: par2.url, token: session })
  const who = await vi.waitUntil(() => zoe.session.whoami().catch(() => undefined), patient)
  expect(who?.caller).toEqual({ name: 'zoe', role: 'operator' })

  // It remembers: after a restart it needs neither token nor front to be on the bus.
  await par2.stop()
  await vi.waitUntil(() => !heard('par2'), patient)
  const again = await startOne('par2', 'no token any more', { databaseUrl: par2.databaseUrl, frontUrl: 'http://127.0.0.1:9' })
  await vi.waitUntil(() => heard('par2'), patient)

  // Retired: fronts ask it no more, the bus lets it in no more, its own API goes on; accepting it takes it back.
  await front.admin.enrolment.retire({ name: 'par2' })
  await vi.waitUntil(() => !front.front.presence.known().includes('par2'), patient)
  expect((await front.admin.partitions.list({})).items.map(({ name }) => name)).toEqual(['lon1'])
  expect((await again.admin.partitions.get({ name: 'par2' })).name).toBe('par2')
  await front.admin.enrolment.accept({ name: 'par2', operatingSystems: ['debian/12'], erase: 'full' })
  await vi.waitUntil(() => heard('par2'), patient)

  // A lost disk: the same name with another key is not the same partition, until an admin says so, by that key.
  await again.stop()
  const anew = await startOne('par2', await joinToken())
  const [taken] = await vi.waitUntil(async () => {
    const waiting = (await front.admin.enrolment.list()).items
    return waiting.length > 0 && waiting
  }, patient)
  expect(taken?.remark).toMatch(/^the name is taken, by the partition with the key U/)
  expect((await vi.waitUntil(async () => (await anew.problems())[0], patient)) as string).toContain('the name is taken')
  expect(anew.told).toEqual([expect.stringContaining('the name is taken')])
  await expect(front.admin.enrolment.accept({ name: 'par2', operatingSystems: ['debian/12'] })).rejects.toMatchObject({
    code: 'already-exists',
  })
  await front.admin.enrolment.accept({ name: 'par2', operatingSystems: ['debian/12'], natsKey: taken?.natsKey as string })
  await vi.waitUntil(() => heard('par2'), patient)
  // What this acceptance did not say of its settings is as the one before said.
  await vi.waitUntil(() => anew.core.rules.erase === 'full', patient)
})

test.skipIf(program === undefined)(
  'what is wrong is told where the partition shows its problems, and once in its log',
  { timeout: 120_000 },
  async () => {
    const sent = vi.spyOn(OutgoingMessage.prototype, 'end')
    onTestFinished(() => sent.mockRestore())
    const asks = (name: string) =>
      sent.mock.calls.filter(([body]) => /"token":/.test(String(body)) && String(body).includes(`"name":"${name}"`)).length
    const tell = async (partition: Partition) => (await vi.waitUntil(async () => (await partition.problems())[0], patient)) as string
    const unreachable = await startOne('rom1', 'any', { frontUrl: 'http://127.0.0.1:9' })
    expect(await tell(unreachable)).toMatch(/^not part of the federation: the front at http:\/\/127\.0\.0\.1:9 cannot be reached: /)
    const stranger = await startOne('rom2', 'nobody gave this token')
    expect(await tell(stranger)).toMatch(
      /refused: the join token is not known here, was used, or has expired: muster partition token create$/,
    )
    const other = await startOne('rom3', await joinToken({ partition: 'rom4' }))
    expect(await tell(other)).toMatch(/refused: this join token is for a partition rom4, not for rom3$/)
    expect(await muster(stranger, ['partition', 'status', 'rom2'])).toMatch(
      /Problem +not part of the federation: .* the join token is not known here/,
    )
    // Each goes on asking, and says it once.
    await vi.waitUntil(() => ['rom1', 'rom2', 'rom3'].every(name => asks(name) >= 2), patient)
    const told = { unreachable: unreachable.told, stranger: stranger.told, other: other.told }
    expect(told).toEqual({
      unreachable: [expect.stringContaining(' cannot be reached: ')],
      stranger: [expect.stringContaining(' the join token is not known here')],
      other: [expect.stringContaining(' this join token is for a partition rom4, not for rom3')],
    })
    // Nobody of them is heard, or waits.
    expect((await front.admin.enrolment.list()).items).toEqual([])
    expect(front.front.presence.known()).not.toContain('rom1')

    const refused = await startOne('rom5', await joinToken())
    await vi.waitUntil(async () => (await front.admin.enrolment.list()).items.length > 0, patient)
    await front.admin.enrolment.refuse({ name: 'rom5' })
    await vi.waitUntil(async () => (await refused.problems())[0]?.includes('the join token is not known here'), patient)
  },
)
