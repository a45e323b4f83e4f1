// What follows in a federation from the documents about people: groups, their own passwords and SSH keys, quotas, pools; and licence keys. Three partitions and a front, for all of it.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { machineToken } from '@muster/partition/domain/machine-token'
import { newToken } from '@muster/server/tokens'
import { createClient } from '@muster/shared/client'
import { Refusal } from '@muster/shared/errors'
import type { DocumentKind } from '@muster/shared/global/documents'
import { hashPassword } from '@muster/shared/password'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { parse } from 'yaml'
import { makeReady, type Servers, startServers, until } from './servers.ts'

const names = ['one', 'two', 'three'] as const
const password = 'planted correct horse battery'
let servers: Servers
let hash: string

beforeAll(async () => {
  servers = await startServers(names)
  hash = await hashPassword(password)
})
afterAll(async () => {
  await servers?.[Symbol.asyncDispose]()
})

type Put = { kind: DocumentKind; name: string; document: Record<string, unknown> }[]

/** Puts documents, and waits until every partition has them. */
async function put(...documents: Put): Promise<void> {
  await taken((await servers.front.as.admin.config.change({ put: documents })).generation)
}

const taken = (generation: number) => until(() => servers.partitions.every(({ core }) => core.configuration.generation >= generation))

const user = (name: string, document: Record<string, unknown> = {}) => ({
  kind: 'user' as const,
  name,
  document: { role: 'user', password: hash, ...document },
})

const loginAt = async (url: string, name: string, word = password) =>
  createClient({ url, token: (await createClient({ url }).session.login({ user: name, password: word })).token })
const login = (name: string, word = password) => loginAt(servers.front.url, name, word)

/** The refusal that a call ends with; undefined where it is answered. */
const refusalOf = (asked: Promise<unknown>): Promise<Refusal | undefined> =>
  asked.then(
    () => undefined,
    error => {
      if (error instanceof Refusal) return error
      throw error
    },
  )
const codeOf = async (asked: Promise<unknown>) => (await refusalOf(asked))?.code

let macs = 0
/** Ready machines: so many at each of the partitions, in order. */
async function addMachines(counts: readonly number[], facts: { pool?: string; powerDriver?: 'manual' } = {}): Promise<string[]> {
  const made: string[] = []
  for (const [index, count] of counts.entries()) {
    const partition = servers.partitions[index] as Servers['partitions'][number]
    const ids: string[] = []
    for (let each = 0; each < count; each++) {
      const mac = `02:00:00:11:00:${(macs++).toString(16).padStart(2, '0')}`
      const machine = await servers.front.as.operator.machines.create({
        partition: partition.name,
        interfaces: [{ mac }],
        arch: 'amd64',
        ...facts,
      })
      ids.push(machine.id)
    }
    await makeReady(partition, ids)
    made.push(...ids)
  }
  return made
}

test("a user's groups widen what it may, at the front and at every partition, and no further when it leaves them", async () => {
  await put(user('alice', { role: 'read-only' }), {
    kind: 'group',
    name: 'lab',
    document: { members: ['alice'], role: 'operator', pools: ['lab'] },
  })
  const alice = await login('alice')
  const places = [servers.front.url, ...servers.partitions.map(({ url }) => url)]
  const token = (await createClient({ url: servers.front.url }).session.login({ user: 'alice', password })).token
  for (const url of places)
    expect((await createClient({ url, token }).session.whoami()).caller).toEqual({ name: 'alice', role: 'operator', pools: ['lab'] })
  const [inLab] = await addMachines([1], { pool: 'lab' })
  expect(await codeOf(alice.machines.commission({ id: inLab as string }))).toBe('no-power-driver')

  // A preview says what would be, in words for people.
  const dry = await servers.front.as.admin.config
    .change({
      put: [{ kind: 'group', name: 'lab', document: { members: ['alice', 'bob'] } }],
      dryRun: true,
    })
    .catch(error => error as Refusal)
  expect(dry).toMatchObject({ code: 'invalid-input', message: expect.stringContaining('its member bob does not exist') })
  expect(await codeOf(servers.front.as.admin.config.change({ delete: [{ kind: 'user', name: 'alice' }] }))).toBe('invalid-input')

  await put({ kind: 'group', name: 'lab', document: { members: [], role: 'operator', pools: ['lab'] } })
  for (const url of places)
    expect((await createClient({ url, token }).session.whoami()).caller).toEqual({ name: 'alice', role: 'read-only' })
})

describe('by itself, without an admin,', () => {
  test('a user changes its password: the old one is asked for, other sessions end, and the answer is a new one', async () => {
    await put(user('bob'))
    const [here, there] = [await login('bob'), await login('bob')]
    const next = 'another planted battery'
    expect(await codeOf(here.session.password({ password: 'not the one in force', newPassword: next }))).toBe('unauthenticated')
    expect(await refusalOf(here.session.password({ password, newPassword: 'short' }))).toMatchObject({
      facts: { errors: [{ field: 'newPassword' }] },
    })
    const begun = await here.session.password({ password, newPassword: next })
    await taken(begun.generation)
    for (const { url } of [servers.front, ...servers.partitions])
      expect((await createClient({ url, token: begun.token }).session.whoami()).caller).toEqual({ name: 'bob', role: 'user' })
    for (const old of [here, there]) expect(await codeOf(old.session.whoami())).toBe('unauthenticated')
    expect(await codeOf(login('bob'))).toBe('unauthenticated')
    expect(await codeOf(login('bob', next))).toBeUndefined()
    // A partition keeps a copy; and who is in a tokens file has no password.
    const partition = servers.partitions[0] as Servers['partitions'][number]
    const local = await loginAt(partition.url, 'bob', next)
    expect(await codeOf(local.session.password({ password: next, newPassword: password }))).toBe('needs-front')
    expect(await codeOf(servers.front.as.user.session.password({ password, newPassword: next }))).toBe('not-found')
    const told = JSON.stringify([
      await servers.front.as.admin.config.diff({ from: begun.generation - 1 }),
      await servers.front.as.admin.config.history({}),
      await servers.front.as.admin.audit.fronts({}),
    ])
    expect(told).toContain('bob changed its password')
    for (const secret of [password, next]) expect(told).not.toContain(secret)
  })

  test('a user keeps SSH keys, which come onto what it deploys and into its rescue systems, beside the keys of the request', async () => {
    const key = (byte: number) => {
      const field = (bytes: Buffer) => Buffer.concat([Buffer.from([0, 0, 0, bytes.length]), bytes])
      return `ssh-ed25519 ${Buffer.concat([field(Buffer.from('ssh-ed25519')), field(Buffer.alloc(32, byte))]).toString('base64')}`
    }
    await put(user('carol'), user('mallory'))
    const carol = await login('carol')
    expect(await codeOf(carol.keys.put({ name: 'laptop', key: 'ssh-ed25519 AAAA' }))).toBe('invalid-input')
    await carol.keys.put({ name: 'desk', key: key(2) })
    const { generation } = await carol.keys.put({ name: 'laptop', key: `${key(1)} carol@laptop` })
    await taken(generation)
    expect((await carol.keys.list()).items.map(({ name }) => name)).toEqual(['desk', 'laptop'])
    expect((await (await login('mallory')).keys.list()).items).toEqual([])
    // A token that may do less must not become more by a key.
    const lesser = { user: 'carol', role: 'read-only', createdAt: new Date().toISOString(), expiresAt: '2099-01-01T00:00:00.000Z' }
    const { token, sha256 } = newToken()
    await put({ kind: 'token', name: 't-000000000001', document: { ...lesser, sha256 } })
    const limited = createClient({ url: servers.front.url, token })
    expect(await codeOf(limited.keys.put({ name: 'more', key: key(3) }))).toBe('forbidden')

    await addMachines([0, 1], { powerDriver: 'manual' })
    const { machines } = await carol.allocations.create({ constraints: { partitions: ['two'] } })
    const id = machines[0]?.id as string
    await carol.machines.deploy({ id, os: 'debian/12', sshKeys: [`${key(2)} given`, key(9)] })
    const partition = servers.partitions[1] as Servers['partitions'][number]
    const [row] = await partition.core.sql<{ run: string }[]>`select run from machines where id = ${id}`
    const metadata = machineToken(partition.core.seal, 'metadata', { id, run: row?.run as string })
    const seed = parse(await (await fetch(`${partition.url}/metadata/${metadata}/meta-data`)).text())
    expect(seed['public-keys']).toEqual([`${key(2)} given`, key(9), `${key(1)} carol@laptop`])

    await carol.machines.abort({ id })
    await carol.machines.rescue({ id })
    const [{ rescue_keys: keys } = { rescue_keys: [] as string[] }] = await partition.core.sql<{ rescue_keys: string[] }[]>`
      select rescue_keys from machines where id = ${id}`
    expect(keys).toEqual([key(2), `${key(1)} carol@laptop`])
    await taken((await carol.keys.delete({ name: 'desk' })).generation)
    expect(await codeOf(carol.keys.delete({ name: 'desk' }))).toBe('not-found')
    await carol.machines.exitRescue({ id })
    await carol.machines.deploy({ id, os: 'debian/12', ownKeys: false })
  })
})

describe('a quota', () => {
  const quota = (name: string, document: Record<string, unknown>) => ({ kind: 'quota' as const, name, document })
  const has = async (...owners: string[]) => {
    const counts = await Promise.all(
      servers.partitions.map(
        ({ core }) => core.sql<{ machines: number }[]>`select count(*) as machines from machines where owner = any(${owners})`,
      ),
    )
    return counts.reduce((sum, [row]) => sum + (row?.machines ?? 0), 0)
  }

  test('is counted over all partitions; a refusal says who has how many and may have how many', async () => {
    await addMachines([2, 2, 2], { pool: 'quoted' })
    await put(user('dora'), quota('dora', { user: 'dora', machines: 3 }))
    const dora = await login('dora')
    const wish = { constraints: { pools: ['quoted'] } }
    // Two in each partition: none of them alone has too many.
    await dora.allocations.create({ ...wish, count: 2 })
    const beyond = await refusalOf(dora.allocations.create({ ...wish, count: 2 }))
    expect(beyond).toMatchObject({
      code: 'quota-exceeded',
      message:
        'dora may have 3 machines at a time (quota dora), has 2 in all partitions that answer, and asks for 2 more; nothing was allocated',
      facts: { quota: 'dora', most: 3, has: 2, wanted: 2 },
    })
    expect(await codeOf(dora.allocations.create({ ...wish, count: 2, dryRun: true }))).toBe('quota-exceeded')
    expect(await has('dora')).toBe(2)
    // With a key, the same request again is the same answer, also where the quota is used up.
    const create = () => dora.allocations.create({ ...wish }, { idempotencyKey: 'the-last-one' })
    const [one, again] = await Promise.all([create(), create()])
    expect(again.id).toBe(one.id)
    expect((await create()).id).toBe(one.id)
    expect(await codeOf(dora.allocations.create({ ...wish }))).toBe('quota-exceeded')
    await dora.allocations.release({ id: one.id as string })
    expect(await codeOf(dora.allocations.create({ ...wish }))).toBeUndefined()
    expect(await has('dora')).toBe(3)
  })

  test('is not passed by many requests at two fronts at the same moment', async () => {
    const other = await servers.anotherFront('other')
    // More than requests, which hold one each: none finds nothing left.
    await addMachines([6, 6, 6], { pool: 'raced' })
    await put(user('emil'), user('frida'), { kind: 'group', name: 'racers', document: { members: ['emil', 'frida'] } })
    await put(quota('racers', { group: 'racers', pool: 'raced', machines: 4 }))
    // Asked for the configuration, a front looks whether there is a newer one.
    await other.as.admin.config.get({})
    const [emil, frida] = [await login('emil'), await loginAt(other.url, 'frida')]
    const wish = { constraints: { pools: ['raced'] } }
    const codes = await Promise.all(Array.from({ length: 16 }, (_, index) => codeOf((index % 2 ? emil : frida).allocations.create(wish))))
    // On a busy computer a partition may be slow to say what it has: then nothing is given either.
    for (const code of codes) expect([undefined, 'quota-exceeded', 'nothing-allocated']).toContain(code)
    expect(await has('emil', 'frida')).toBeLessThanOrEqual(4)
    expect(await has('emil', 'frida')).toBe(codes.filter(code => code === undefined).length)
    // What both stepped back from is there for the next who asks.
    while ((await codeOf(emil.allocations.create(wish))) !== 'quota-exceeded');
    expect(await has('emil', 'frida')).toBe(4)
    // Of another pool it says nothing.
    await addMachines([1], { pool: 'unquoted' })
    expect(await codeOf(emil.allocations.create({ constraints: { pools: ['unquoted'] } }))).toBeUndefined()
  })

  test('is kept by a partition alone, exactly, whoever else asks there at the same moment', async () => {
    await addMachines([8], { pool: 'alone' })
    await put(user('gil'), quota('everybody', { machines: 2, pool: 'alone' }), quota('gil', { user: 'gil', machines: 3, pool: 'alone' }))
    const partition = servers.partitions[0] as Servers['partitions'][number]
    const gil = await loginAt(partition.url, 'gil')
    const wish = { constraints: { pools: ['alone'] } }
    const codes = await Promise.all(Array.from({ length: 8 }, () => codeOf(gil.allocations.create(wish))))
    expect(codes.filter(code => code === undefined)).toHaveLength(3)
    expect(codes.filter(code => code === 'quota-exceeded')).toHaveLength(5)
    expect(await has('gil')).toBe(3)
    // Who has no quota of its own is bound by the one for everybody; also who has no document.
    const file = partition.as.user
    expect(await codeOf(file.allocations.create({ ...wish, count: 3 }))).toBe('quota-exceeded')
    expect(await codeOf(file.allocations.create({ ...wish, count: 2 }))).toBeUndefined()
  })
})

describe('pools that the global configuration names', () => {
  test('are the only ones, everywhere; none goes while a machine is in it, and a preview says so', async () => {
    const { admin, operator } = servers.front.as
    await addMachines([1, 1], { pool: 'shelf' })
    const pool = (name: string, description = '') => ({ kind: 'pool' as const, name, document: { description } })
    const used = (await operator.pools.list()).items
      .filter(({ machines, name }) => machines > 0 && name !== 'default')
      .map(({ name }) => name)
    // What is in use cannot be left out.
    const others = used.filter(name => name !== 'shelf').map(name => pool(name))
    const refused = await refusalOf(admin.config.change({ put: others, dryRun: true }))
    expect(refused).toMatchObject({ code: 'invalid-input', message: expect.stringContaining('pool shelf: has 2 machines, in one, two') })
    // Grants and quotas speak of pools that there are.
    const broken = await refusalOf(admin.config.change({ put: used.filter(name => name !== 'raced').map(name => pool(name)) }))
    expect(broken?.message).toContain('quota racers: its pool raced does not exist')

    await put(...used.map(name => pool(name)), pool('web', 'in front'))
    const web = { name: 'web', description: 'in front', machines: 0, ready: 0 }
    for (const { as } of [servers.front, ...servers.partitions]) expect((await as.operator.pools.list()).items).toContainEqual(web)
    expect(await operator.pools.get({ name: 'web' })).toMatchObject(web)
    const machine = { interfaces: [{ mac: '02:00:00:12:00:01' }], arch: 'amd64' as const, partition: 'three' }
    expect(await refusalOf(operator.machines.create({ ...machine, pool: 'wep' }))).toMatchObject({
      code: 'invalid-input',
      facts: { errors: [{ field: 'pool', message: expect.stringContaining('there is no pool wep') }] },
    })
    // Nobody has sorted this one yet, and zones are each partition's own.
    const { id } = await operator.machines.create({ ...machine, zone: 'hall-9' })
    expect(await codeOf(operator.machines.update({ id, pool: 'wep' }))).toBe('invalid-input')
    expect(await codeOf(operator.machines.update({ id, pool: 'web' }))).toBeUndefined()
    expect(await codeOf(operator.pools.put({ name: 'more', description: '' }))).toBe('invalid-input')
    expect(await codeOf(operator.pools.delete({ name: 'web' }))).toBe('invalid-input')

    const gone = { delete: [{ kind: 'pool' as const, name: 'web' }] }
    expect((await refusalOf(admin.config.change(gone)))?.message).toContain('pool web: has 1 machines, in three')
    await operator.machines.update({ id, pool: 'default' })
    await taken((await admin.config.change(gone)).generation)
    expect((await operator.pools.list()).items.map(({ name }) => name)).not.toContain('web')
    // Where none is named, every partition has its own again.
    await taken((await admin.config.change({ delete: used.map(name => ({ kind: 'pool' as const, name })) })).generation)
    expect(await codeOf(operator.machines.update({ id, pool: 'wep' }))).toBeUndefined()
  })
})

test('a licence key comes to the machines that are deployed with its operating system, and is shown to nobody', async () => {
  const key = 'PLANTED-LICENCE "quoted" $(not run) KEY'
  const licence = (name: string, os: string) => ({ kind: 'licence' as const, name, document: { operatingSystems: [os], key } })
  await put(licence('debian', 'debian/12'), licence('other', 'ubuntu/24.04'), user('hana'))
  await addMachines([0, 0, 1], { powerDriver: 'manual', pool: 'licensed' })
  const hana = await login('hana')
  const id = (await hana.allocations.create({ constraints: { pools: ['licensed'] } })).machines[0]?.id as string
  await hana.machines.deploy({ id, os: 'debian/12' })
  const { core, url } = servers.partitions[2] as Servers['partitions'][number]
  const [row] = await core.sql<{ run: string }[]>`select run from machines where id = ${id}`
  const metadata = machineToken(core.seal, 'metadata', { id, run: row?.run as string })
  const vendor = await (await fetch(`${url}/metadata/${metadata}/vendor-data`)).text()
  expect(vendor).not.toContain('/other')

  // What cloud-init would run, in a folder of this test.
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-licences-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  const script = (/Content-Type: text\/x-shellscript.*\n\n([\s\S]*?)\n--/.exec(vendor)?.[1] ?? '').replace('/etc/muster/licences', folder)
  execFileSync('/bin/sh', { input: script })
  expect(readdirSync(folder)).toEqual(['debian'])
  expect(readFileSync(path.join(folder, 'debian'), 'utf8')).toBe(key)
  expect(statSync(path.join(folder, 'debian')).mode & 0o777).toBe(0o600)

  const { admin } = servers.front.as
  const shown = JSON.stringify([
    await admin.config.get({}),
    await admin.config.diff({ from: 0 }),
    await admin.audit.fronts({}),
    await admin.machines.get({ id }),
  ])
  expect(shown).toContain('"licence"')
  expect(shown).not.toContain('PLANTED-LICENCE')
  expect(
    await codeOf(admin.config.change({ put: [{ kind: 'licence', name: 'none', document: { operatingSystems: ['debian/12'] } }] })),
  ).toBe('invalid-input')
})
