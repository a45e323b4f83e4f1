// One contract, two backends: the same stories on a partition's own API, on a front over that one partition, and on a front over three. Real
// databases, real HTTP; machines are rows here, the rack's stories make them real.

import { setTimeout as sleep } from 'node:timers/promises'
import { Refusal, type Refusal as RefusalType } from '@muster/shared/errors'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { makeReady, type Server, type Servers, startServers, until } from './servers.ts'

/** The refusal a call ends with. */
async function refusalOf(call: Promise<unknown>): Promise<RefusalType> {
  try {
    await call
  } catch (error) {
    if (error instanceof Refusal) return error
    throw error
  }
  throw new Error('the call was not refused')
}

let macCount = 0
const newMac = () => `02:00:00:00:${(macCount >> 8).toString(16).padStart(2, '0')}:${(macCount++ & 0xff).toString(16).padStart(2, '0')}`

const targets = [
  { title: "a partition's own API", names: ['one1'], pick: (servers: Servers): Server => servers.partitions[0] as Server },
  { title: 'a front over one partition', names: ['two1'], pick: (servers: Servers): Server => servers.front },
  { title: 'a front over three partitions', names: ['three1', 'three2', 'three3'], pick: (servers: Servers): Server => servers.front },
]

describe.each(targets)('on $title', ({ names, pick }) => {
  let servers: Servers
  let server: Server
  const ready: string[] = []
  beforeAll(async () => {
    servers = await startServers(names)
    server = pick(servers)
    // Twelve machines, spread: sizes 2, 4, 6 … cores, two zones, some with a tag.
    for (let index = 0; index < 12; index++) {
      const partition = servers.partitions[index % names.length] as Servers['partitions'][number]
      const machine = await server.as.operator.machines.create({
        partition: partition.name,
        hostname: `m${String(index).padStart(2, '0')}`,
        interfaces: [{ mac: newMac(), speedMbps: 10_000, subnet: '10.0.0.0/24' }],
        disks: [{ name: 'sda', sizeBytes: 500e9, kind: index % 2 ? 'ssd' : 'hdd' }],
        cpus: 2 + index * 2,
        memoryMib: 4096 * (index + 1),
        zone: index % 2 ? 'z2' : 'z1',
        tags: index >= 9 ? ['gpu'] : [],
      })
      expect(machine).toMatchObject({ partition: partition.name, state: 'new', power: 'unknown' })
      ready.push(machine.id)
    }
    for (const partition of servers.partitions)
      await makeReady(
        partition,
        ready.filter(id => id.startsWith(`${partition.name}-`)),
      )
  })
  afterAll(async () => {
    await servers?.[Symbol.asyncDispose]()
  })

  test('a list is filtered, sorted and paged, and says who answered', async () => {
    const all = await server.as['read-only'].machines.list({ sort: '-cpus' })
    expect(all.items.map(({ cpus }) => cpus)).toEqual([24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2])
    expect(all.coverage).toMatchObject({ asked: names.length, answered: names.length })
    expect(all.coverage.partitions.map(({ name }) => name).sort()).toEqual(names)
    const seen: string[] = []
    let cursor: string | undefined
    do {
      const page = await server.as['read-only'].machines.list({ sort: 'hostname', zone: ['z1'], limit: 2, ...(cursor && { cursor }) })
      seen.push(...page.items.map(({ hostname }) => hostname))
      cursor = page.nextCursor ?? undefined
    } while (cursor)
    expect(seen).toEqual(['m00', 'm02', 'm04', 'm06', 'm08', 'm10'])
    expect((await server.as.admin.machines.list({ tag: ['gpu'], notTag: ['old'], state: ['ready'] })).items).toHaveLength(3)
    expect((await refusalOf(server.as.admin.machines.list({ cursor: 'nonsense' }))).code).toBe('invalid-input')
  })

  test('a query is read by its schema, and an unknown field is refused by name', async () => {
    const get = (query: string) =>
      fetch(`${server.url}/api/v1/machines?${query}`, { headers: { authorization: `Bearer ${server.tokens.admin}` } })
    const found = (await (await get('state=ready&tag=gpu&limit=100&sort=hostname')).json()) as { items: { hostname: string }[] }
    expect(found.items.map(({ hostname }) => hostname)).toEqual(['m09', 'm10', 'm11'])
    const refused = await get('colour=red')
    expect(refused.status).toBe(422)
    expect(refused.headers.get('content-type')).toContain('application/problem+json')
    expect(await refused.json()).toMatchObject({ code: 'invalid-input', errors: [{ field: 'colour' }] })
    expect((await fetch(`${server.url}/api/v1/machines`)).status).toBe(401)
  })

  test('a machine is created, changed under its version, locked, and deleted', async () => {
    const { operator } = server.as
    const machine = await operator.machines.create({ partition: names[0], interfaces: [{ mac: newMac() }], note: 'spare' })
    const changed = await operator.machines.update({ id: machine.id, version: machine.version, rack: 'r7', tags: ['a', 'b', 'a'] })
    expect(changed).toMatchObject({ rack: 'r7', tags: ['a', 'b'], version: machine.version + 1 })
    expect((await refusalOf(operator.machines.update({ id: machine.id, version: machine.version, rack: 'r8' }))).code).toBe('stale-version')
    await operator.machines.lock({ id: machine.id, reason: 'under test' })
    expect((await refusalOf(operator.machines.delete({ id: machine.id }))).message).toContain('under test')
    await operator.machines.unlock({ id: machine.id })
    await operator.machines.delete({ id: machine.id })
    expect((await refusalOf(operator.machines.get({ id: machine.id }))).code).toBe('not-found')
    expect((await refusalOf(operator.machines.get({ id: 'nowhere-123456' }))).code).toBe('not-found')
  })

  test('a subnet is of one partition, and its addresses are given once', async () => {
    const { operator } = server.as
    const [partition] = names as [string]
    for (const name of names) await operator.subnets.put({ partition: name, name: 'lab', cidr: '10.50.0.0/29' })
    const listed = await server.as['read-only'].subnets.list({})
    expect(listed.items.map(item => `${item.partition} ${item.name}`)).toEqual(names.map(name => `${name} lab`))
    expect(listed.coverage).toMatchObject({ asked: names.length, answered: names.length })
    expect((await refusalOf(operator.subnets.put({ partition: 'nowhere', name: 'lab', cidr: '10.50.0.0/29' }))).code).toBe('not-found')
    const machine = await operator.machines.create({ partition, interfaces: [{ mac: newMac() }] })
    // The machine says which partition is meant.
    const first = await operator.addresses.reserve({ subnet: 'lab', machine: machine.id })
    expect(first).toMatchObject({ partition, address: '10.50.0.1', machine: machine.id })
    const taken = await refusalOf(operator.addresses.reserve({ partition, subnet: 'lab', address: '10.50.0.1', name: 'printer' }))
    expect(taken).toMatchObject({ code: 'already-taken', facts: { holder: { machine: machine.id } } })
    for (const name of names) await operator.addresses.reserve({ partition: name, subnet: 'lab', name: 'nas' })
    const seen: string[] = []
    let cursor: string | undefined
    do {
      const page = await operator.addresses.list({ subnet: 'lab', limit: 2, ...(cursor && { cursor }) })
      seen.push(...page.items.map(item => `${item.address} ${item.partition}`))
      cursor = page.nextCursor ?? undefined
    } while (cursor)
    expect(seen).toEqual([...names.map(name => `10.50.0.1 ${name}`), `10.50.0.2 ${partition}`])
    await operator.machines.delete({ id: machine.id })
    for (const name of names) {
      const { items } = await operator.addresses.list({ partition: [name], subnet: 'lab' })
      for (const { address } of items) await operator.addresses.release({ partition: name, subnet: 'lab', address })
      await operator.subnets.delete({ partition: name, name: 'lab' })
    }
  })

  test('the network of a machine is said, shown, and refused by field', async () => {
    const { operator } = server.as
    const mac = newMac()
    const { id } = await operator.machines.create({ partition: names[0], interfaces: [{ mac }] })
    const document = (id: number) => ({
      ethernets: { eth0: { mac } },
      vlans: { lan: { id, link: 'eth0', addresses: ['10.0.0.5/24'] } },
    })
    const set = await operator.machines.setNetwork({ id, document: document(7) })
    expect(set.config).toMatchObject({ version: 2, vlans: { lan: { id: 7, link: 'eth0', addresses: ['10.0.0.5/24'] } } })
    expect(await server.as['read-only'].machines.network({ id })).toEqual(set)
    expect((await refusalOf(server.as.user.machines.setNetwork({ id, document: null }))).code).toBe('forbidden')
    const refused = await refusalOf(operator.machines.setNetwork({ id, document: document(5000) }))
    expect(refused.facts.errors).toMatchObject([{ field: 'document.vlans.lan.id' }])
    expect(await operator.machines.setNetwork({ id, document: null })).toMatchObject({
      document: null,
      config: { ethernets: { port0: { dhcp4: true } } },
    })
    await operator.machines.delete({ id })
  })

  test('two machines cannot have one hostname or one MAC', async () => {
    const mac = newMac()
    const first = await server.as.operator.machines.create({ partition: names[0], hostname: 'twin', interfaces: [{ mac }] })
    const again = (changes: object) =>
      server.as.operator.machines.create({ partition: names[0], interfaces: [{ mac: newMac() }], ...changes })
    expect((await refusalOf(again({ hostname: 'twin' }))).code).toBe('already-exists')
    expect((await refusalOf(again({ interfaces: [{ mac: mac.toUpperCase() }] }))).code).toBe('already-exists')
    await server.as.operator.machines.delete({ id: first.id })
  })

  test('what the life cycle forbids is refused with the state and the reason', async () => {
    const [id] = ready as [string]
    expect(await refusalOf(server.as.operator.machines.deploy({ id, os: 'debian/12' }))).toMatchObject({
      code: 'wrong-state',
      facts: { state: 'ready' },
    })
    expect((await refusalOf(server.as.operator.machines.commission({ id }))).code).toBe('no-power-driver')
    expect((await refusalOf(server.as.operator.machines.power({ id, action: 'on' }))).code).toBe('no-power-driver')
    expect((await refusalOf(server.as.user.machines.markBroken({ id }))).code).toBe('forbidden')
    const broken = await server.as.operator.machines.markBroken({ id, reason: 'it smokes' })
    expect(broken).toMatchObject({ state: 'broken', fault: { message: 'it smokes' } })
    const explained = await server.as['read-only'].machines.explain({ id })
    expect(explained).toMatchObject({ state: 'broken', lastFault: { message: 'it smokes' } })
    expect(explained.allowed).toContain('fix')
    expect((await server.as.operator.machines.fix({ id })).state).toBe('ready')
    // A retry whose first answer was lost joins.
    expect((await server.as.operator.machines.fix({ id })).state).toBe('ready')
  })

  test('the best offer is the smallest machine that fits', async () => {
    const taken = await server.as.user.allocations.create({ constraints: { cpus: 9 } })
    expect(taken).toMatchObject({
      state: 'confirmed',
      owner: 'user',
      count: 1,
      machines: [{ cpus: 10, state: 'allocated', owner: 'user' }],
    })
    expect(taken.coverage.answered).toBe(names.length)
    expect((await server.as.user.allocations.get({ id: taken.id as string })).machines).toHaveLength(1)
    expect((await refusalOf(server.as.other.allocations.release({ id: taken.id as string }))).code).toMatch(/forbidden|not-found/)
    await released(taken.id as string)
  })

  test('a key makes a retry get the first answer, and another request with it is refused', async () => {
    const key = { idempotencyKey: 'build-1' }
    const first = await server.as.user.allocations.create({ count: 2, strategy: 'spread' }, key)
    const again = await server.as.user.allocations.create({ count: 2, strategy: 'spread' }, key)
    expect(again.id).toBe(first.id)
    expect(again.machines.map(({ id }) => id)).toEqual(first.machines.map(({ id }) => id))
    expect((await refusalOf(server.as.user.allocations.create({ count: 1 }, key))).code).toBe('key-reused')
    // Keys are the caller's own.
    const others = await server.as.other.allocations.create({ count: 1 }, key)
    expect(others.id).not.toBe(first.id)
    await released(first.id as string)
    await released(others.id as string, 'other')
  })

  test('when nothing matches, the answer explains', async () => {
    const refusal = await refusalOf(
      server.as.user.allocations.create({ constraints: { tags: ['gpu'], zones: ['z1'], cpus: 23, pools: ['nobody-has-this'] } }),
    )
    expect(refusal.code).toBe('no-match')
    const { explanation, coverage } = refusal.facts as {
      explanation: { considered: number; removed: { constraint: string; machines: number }[]; nearest: { misses: string[] }[] }
      coverage: { answered: number }
    }
    expect(explanation.considered).toBe(12)
    expect(explanation.removed).toContainEqual({ constraint: 'pools', machines: 12 })
    expect(explanation.removed).toContainEqual({ constraint: 'tags', machines: 9 })
    expect(explanation.nearest).toHaveLength(3)
    expect(explanation.nearest[0]?.misses).toContain('pools')
    expect(coverage.answered).toBe(names.length)
    expect((await refusalOf(server.as.user.allocations.create({ constraints: { cpus: -1 } }))).facts.errors).toMatchObject([
      { field: 'constraints.cpus' },
    ])
    expect((await refusalOf(server.as.user.allocations.create({ count: 13 }))).code).toBe('no-match')
  })

  test('a dry run holds nothing', async () => {
    const look = await server.as.user.allocations.create({ dryRun: true, count: 3 })
    expect(look).toMatchObject({ id: null, dryRun: true })
    expect(look.machines).toHaveLength(3)
    expect((await server.as.user.machines.list({ state: ['ready'] })).items).toHaveLength(12)
  })

  test('a request that waits gets the machine that becomes ready', async () => {
    const all = await server.as.user.allocations.create({ count: 12 })
    const waiting = server.as.other.allocations.create({ wait: '20s' })
    await sleep(300)
    await released(all.id as string)
    const got = await waiting
    expect(got.machines).toHaveLength(1)
    await released(got.id as string, 'other')
  })

  test('tags, pools and zones are listed with their numbers, described, and forgotten', async () => {
    const gpu = (await server.as['read-only'].tags.list({})).items.find(({ name }) => name === 'gpu')
    expect(gpu).toMatchObject({ machines: 3, ready: 3 })
    await server.as.operator.pools.put({ name: 'lab', description: 'for tests' })
    expect(await server.as.operator.pools.get({ name: 'lab' })).toMatchObject({ description: 'for tests', machines: 0 })
    await server.as.operator.pools.delete({ name: 'lab' })
    expect((await refusalOf(server.as.operator.pools.get({ name: 'lab' }))).code).toBe('not-found')
    expect((await refusalOf(server.as.operator.zones.delete({ name: 'z1' }))).code).toBe('wrong-state')
    await server.as.operator.machines.update({ id: ready[0] as string, tags: ['passing'] })
    await server.as.operator.tags.delete({ name: 'passing' })
    expect((await server.as.operator.machines.get({ id: ready[0] as string })).tags).toEqual([])
  })

  test('events are listed from a position and streamed on from an id', async () => {
    // One that no story before has touched: what was just done may still be without its number, and so behind the end.
    const id = ready[7] as string
    const { nextCursor: start } = await server.as.admin.events.list({ after: 'end' })
    await server.as.operator.machines.update({ id, note: 'first' })
    await server.as.operator.machines.update({ id, note: 'second' })
    const stop = new AbortController()
    const seen: { id: string; seq: number }[] = []
    for await (const { id: position, data } of server.as.admin.events.stream(
      { machine: id },
      { lastEventId: start, signal: stop.signal },
    )) {
      seen.push({ id: position, seq: data.seq })
      expect(data).toMatchObject({ kind: 'machine.updated', machine: id, actor: 'operator' })
      if (seen.length === 2) break
    }
    stop.abort()
    const [first, second] = seen as [{ id: string; seq: number }, { id: string; seq: number }]
    expect(second.seq).toBe(first.seq + 1)
    const rest = await server.as.admin.events.list({ after: first.id, machine: id })
    expect(rest.items.map(({ seq }) => seq)).toEqual([second.seq])
  })

  test('partitions, their status, and what can be installed', async () => {
    const { items } = await server.as['read-only'].partitions.list({})
    expect(items.map(({ name, status }) => [name, status])).toEqual(names.map(name => [name, 'ready']))
    expect((await server.as['read-only'].partitions.get({ name: names[0] as string })).machines.ready).toBe(12 / names.length)
    expect((await server.as['read-only'].partitions.status({})).machines).toEqual({ ready: 12 })
    expect((await refusalOf(server.as.admin.partitions.get({ name: 'atlantis' }))).code).toBe('not-found')
    const systems = await server.as['read-only'].operatingSystems.list({})
    expect(systems.items).toContainEqual(expect.objectContaining({ name: 'debian/12', arch: 'amd64', available: true, partitions: names }))
    expect((await server.as.user.session.whoami({})).caller).toEqual({ name: 'user', role: 'user' })
  })

  /** Releases and waits until that is through. The machines themselves may be somebody else's by then: who waits for one takes it at once. */
  async function released(id: string, who: 'user' | 'other' = 'user'): Promise<void> {
    await server.as[who].allocations.release({ id })
    await until(async () => (await server.as[who].allocations.get({ id })).state === 'released')
  }
})

test('a front over one partition answers as the partition does', async () => {
  await using servers = await startServers(['solo'])
  const [partition] = servers.partitions as [Servers['partitions'][number]]
  const machine = await partition.as.operator.machines.create({ interfaces: [{ mac: newMac() }], tags: ['x'] })
  await makeReady(partition, [machine.id])
  const paths = [
    'machines?sort=-cpus&limit=1',
    `machines/${machine.id}`,
    `machines/${machine.id}/explain`,
    'machines/solo-000000',
    'machines?limit=0',
    'subnets',
    'subnets/nowhere?partition=solo',
    'addresses',
    'partitions/solo/dhcp',
    'tags',
    'pools',
    'zones/default',
    'zones/nowhere',
    'allocations',
    'allocations/a-000000000000',
    'events?limit=5',
    'partitions/solo',
    'status',
    'operating-systems',
  ]
  for (const path of paths) {
    const [own, federated] = await Promise.all([partition, servers.front].map(server => answerOf(server, path)))
    expect({ path, ...federated }).toEqual({ path, ...own })
  }
  const noMatch = await Promise.all(
    [partition, servers.front].map(server =>
      answerOf(server, 'allocations', { method: 'POST', body: JSON.stringify({ constraints: { tags: ['y'] } }) }),
    ),
  )
  expect(noMatch[1]).toEqual(noMatch[0])
})

/** Status and body, without what differs by nature: times taken, and when a replica was last seen. */
async function answerOf(server: Server, path: string, init: RequestInit = {}): Promise<{ status: number; body: unknown }> {
  const headers = { authorization: `Bearer ${server.tokens.admin}`, 'content-type': 'application/json' }
  const response = await fetch(`${server.url}/api/v1/${path}`, { ...init, headers })
  const body: unknown = JSON.parse(await response.text(), (key, value) => (key === 'ms' ? 0 : key === 'seenAt' ? 'then' : value))
  return { status: response.status, body }
}
