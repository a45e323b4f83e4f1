// Subnets and addresses: nobody gets what another has, whoever asks at the same time and by whatever way.
import type { Refusal } from '@muster/shared/errors'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { saveNetworkServices } from '../src/db/network-services.ts'
import { reserveAddress } from '../src/domain/addresses.ts'
import { addMachine, allEvents, newMac, operator, partitionDatabase, runPartition, startCore, type TestPartition } from './harness.ts'

let partition: TestPartition
const ends: (() => Promise<void>)[] = []
beforeAll(async () => {
  partition = await runPartition({}, end => void ends.push(end))
})
afterAll(async () => {
  for (const end of ends.reverse()) await end()
})

let networks = 0
/** A subnet that no other test uses. */
async function newSubnet(options: { length?: number; vlan?: number; gateway?: string; reserved?: { from: string; to: string }[] } = {}) {
  const number = ++networks
  const network = `10.${number}.0`
  const { length = 24, gateway, ...rest } = options
  const given = { name: `net${number}`, cidr: `${network}.0/${length}`, ...(gateway !== undefined && { gateway: `${network}.${gateway}` }) }
  const reserved = (options.reserved ?? []).map(({ from, to }) => ({ from: `${network}.${from}`, to: `${network}.${to}` }))
  await partition.as('olga').subnets.put({ ...given, ...rest, reserved })
  return { name: given.name, at: (host: number | string) => `${network}.${host}` }
}

async function refusalOf(call: Promise<unknown>): Promise<Refusal> {
  const error = await call.then(
    () => undefined,
    (failure: Refusal) => failure,
  )
  if (!error) throw new Error('it was not refused')
  return error
}

/** What an operator asks for: nothing but what a test says. */
const blank = { aliases: [], note: '' }

describe('a subnet', () => {
  test('is created, described anew, listed and forgotten', async () => {
    const olga = partition.as('olga')
    const put = { name: 'servers', cidr: '172.16.4.0/22', vlan: 40, gateway: '172.16.4.1', nameservers: ['9.9.9.9'], description: 'hall 2' }
    const reserved = [{ from: '172.16.4.2', to: '172.16.4.9', note: 'switches' }]
    const made = await olga.subnets.put({ ...put, reserved })
    expect(made).toEqual({ ...put, reserved, dynamic: [], partition: 'lon1', used: 0 })
    const later = [
      { from: '172.16.4.2', to: '172.16.4.5', note: 'switches' },
      { from: '172.16.7.250', to: '172.16.7.254', note: '' },
    ]
    await olga.subnets.put({ ...put, reserved: later, description: 'hall 3' })
    expect(await partition.as('rita').subnets.get({ name: 'servers' })).toMatchObject({ reserved: later, description: 'hall 3' })
    expect((await partition.as('rita').subnets.list({})).items.map(({ name }) => name)).toContain('servers')
    expect((await refusalOf(partition.as('alice').subnets.delete({ name: 'servers' }))).code).toBe('forbidden')
    await olga.subnets.delete({ name: 'servers' })
    expect((await refusalOf(olga.subnets.get({ name: 'servers' }))).code).toBe('not-found')
    expect((await refusalOf(olga.subnets.get({ name: 'servers', partition: 'par2' }))).code).toBe('not-found')
  })

  test.for([
    [{ cidr: '10.0.0.5/24' }, 'cidr', 'host part is zero'],
    [{ cidr: '10.0.0.0/31' }, 'cidr', 'between 8 and 30'],
    [{ cidr: '2001:db8::/24' }, 'cidr', 'between 32 and 126'],
    [{ gateway: '10.0.1.1' }, 'gateway', 'is not in 10.0.0.0/24'],
    [{ gateway: '2001:db8::1' }, 'gateway', 'is not in 10.0.0.0/24'],
    [{ reserved: [{ from: '10.0.0.9', to: '10.0.0.5' }] }, 'reserved.0', 'ends before it begins'],
    [{ reserved: [{ from: '10.0.0.9', to: '10.0.1.5' }] }, 'reserved.0', 'is not in'],
    [
      {
        reserved: [
          { from: '10.0.0.9', to: '10.0.0.20' },
          { from: '10.0.0.5', to: '10.0.0.9' },
        ],
      },
      'reserved.0',
      'overlaps 10.0.0.5 to 10.0.0.9',
    ],
    [{ dynamic: [{ from: '10.0.0.9', to: '10.0.1.5' }] }, 'dynamic.0', 'is not in'],
    [{ dynamic: [{ from: '10.0.0.0', to: '10.0.0.5' }] }, 'dynamic.0', 'the address of the network itself'],
    [{ dynamic: [{ from: '10.0.0.9', to: '10.0.0.255' }] }, 'dynamic.0', 'the broadcast address'],
    [{ gateway: '10.0.0.7', dynamic: [{ from: '10.0.0.5', to: '10.0.0.9' }] }, 'dynamic.0', 'has the gateway, 10.0.0.7'],
    [{ cidr: '2001:db8::/64', dynamic: [{ from: '2001:db8::5', to: '2001:db8::9' }] }, 'dynamic.0', 'IPv4 only'],
    [
      { reserved: [{ from: '10.0.0.5', to: '10.0.0.9', note: 'switches' }], dynamic: [{ from: '10.0.0.9', to: '10.0.0.20', note: '' }] },
      'dynamic.0',
      '10.0.0.9 to 10.0.0.20 overlaps 10.0.0.5 to 10.0.0.9 (switches), which is reserved',
    ],
  ] as const)('that is wrong by itself is refused by field: %j', async ([wrong, field, why]) => {
    const call = partition.as('olga').subnets.put({ name: 'wrong', cidr: '10.0.0.0/24', ...(wrong as object) })
    const { code, facts } = await refusalOf(call)
    expect(code).toBe('invalid-input')
    expect(facts.errors).toContainEqual({ field, message: expect.stringContaining(why) })
  })

  test('that overlaps another of its VLAN is refused, naming both; on another VLAN it is not', async () => {
    const olga = partition.as('olga')
    await olga.subnets.put({ name: 'wide', cidr: '172.20.0.0/16', vlan: 7 })
    const refused = await refusalOf(olga.subnets.put({ name: 'narrow', cidr: '172.20.9.0/24', vlan: 7 }))
    expect(refused).toMatchObject({ code: 'already-exists', facts: { subnets: ['wide'] } })
    expect(refused.message).toBe('subnet narrow (172.20.9.0/24, VLAN 7) overlaps wide (172.20.0.0/16, VLAN 7)')
    await olga.subnets.put({ name: 'narrow', cidr: '172.20.9.0/24', vlan: 8 })
    await olga.subnets.put({ name: 'untagged', cidr: '172.20.9.0/24' })
    expect((await refusalOf(olga.subnets.put({ name: 'narrow', cidr: '172.20.9.0/24' }))).message).toContain('overlaps untagged')
  })

  test('in use stays where it is, and is not forgotten', async () => {
    const olga = partition.as('olga')
    const { name, at } = await newSubnet()
    await olga.addresses.reserve({ subnet: name, name: `printer-${name}` })
    expect((await refusalOf(olga.subnets.put({ name, cidr: '10.250.0.0/24' }))).code).toBe('wrong-state')
    expect((await refusalOf(olga.subnets.delete({ name }))).code).toBe('wrong-state')
    await olga.addresses.release({ subnet: name, address: at(1) })
    await olga.subnets.delete({ name })
  })
})

describe('a dynamic range', () => {
  const range = (at: (host: number) => string, from: number, to: number) => ({ from: at(from), to: at(to), note: '' })

  test('is nobody’s: no address of it is chosen, reserved, or had by a document; and it takes nothing that somebody has', async () => {
    const olga = partition.as('olga')
    const { name, at } = await newSubnet({ gateway: '1' })
    const cidr = at('0/24')
    const machine = await addMachine(partition.core, { hostname: `dynamic-${name}` })
    const mac = machine.interfaces[0]?.mac as string
    const dynamic = [range(at, 2, 99), range(at, 102, 110)]
    const put = { name, cidr, gateway: at(1) }
    expect(await olga.subnets.put({ ...put, dynamic })).toMatchObject({ dynamic, used: 0 })
    // What is not said stays.
    expect(await olga.subnets.put({ ...put, description: 'hall 4' })).toMatchObject({ dynamic, description: 'hall 4' })
    const chosen = await Promise.all(['a', 'b', 'c'].map(host => olga.addresses.reserve({ subnet: name, name: `${host}-${name}` })))
    expect(chosen.map(({ address }) => address).sort()).toEqual([100, 101, 111].map(at))

    const asked = [
      () => olga.addresses.reserve({ subnet: name, address: at(50), machine: machine.id }),
      () => olga.dhcpHosts.set({ mac, address: at(50) }),
      () => olga.machines.setNetwork({ id: machine.id, document: { ethernets: { wan: { mac, addresses: [`${at(50)}/24`] } } } }),
    ]
    for (const call of asked) {
      const { code, message, facts } = await refusalOf(call())
      expect(code).toBe('already-taken')
      expect(message).toContain(`${at(50)} of subnet ${name} (${cidr}) for machine ${machine.id} "dynamic-${name}" (asked by olga): `)
      expect(message).toContain(`${at(2)} to ${at(99)} is given by DHCP to anybody`)
      expect(facts).toMatchObject({ holder: dynamic[0], asker: { machine: machine.id, mac, by: 'olga' } })
    }
    const taken = await refusalOf(olga.subnets.put({ ...put, dynamic: [range(at, 90, 105)] }))
    const holder = chosen.find(({ address }) => address === at(100))
    expect(taken).toMatchObject({
      code: 'already-taken',
      facts: { holder: { name: holder?.name, address: at(100) }, asker: { by: 'olga' } },
    })
    expect(taken.message).toBe(
      `the dynamic range ${at(90)} to ${at(105)} of subnet ${name} (asked by olga): ${holder?.name} (reserved by olga) has ${at(100)}`,
    )
    expect((await olga.subnets.get({ name })).dynamic).toEqual(dynamic)
    // Where the network moves away from them they are told of by field.
    for (const { address } of chosen) await olga.addresses.release({ subnet: name, address })
    const moved = await refusalOf(olga.subnets.put({ name, cidr: '10.251.0.0/24' }))
    expect(moved.facts.errors).toContainEqual({ field: 'dynamic.0', message: expect.stringContaining('is not in 10.251.0.0/24') })
    expect(await olga.subnets.put({ name, cidr: '10.251.0.0/24', dynamic: [] })).toMatchObject({ dynamic: [] })
  })

  test('is in one subnet of those that have the same network: DHCP could not tell their machines apart', async () => {
    const olga = partition.as('olga')
    const dynamic = [{ from: '172.21.0.10', to: '172.21.0.19', note: '' }]
    await olga.subnets.put({ name: 'v201', cidr: '172.21.0.0/24', vlan: 201, dynamic })
    const twin = { name: 'v202', cidr: '172.21.0.0/16', vlan: 202 }
    await olga.subnets.put(twin)
    const refused = await refusalOf(olga.subnets.put({ ...twin, dynamic: [{ from: '172.21.9.10', to: '172.21.9.19' }] }))
    expect(refused).toMatchObject({ code: 'already-exists', facts: { subnets: ['v201'] } })
    expect(refused.message).toBe(
      'dynamic ranges of subnet v202 (172.21.0.0/16, VLAN 202): v201 (172.21.0.0/24, VLAN 201) has some too, and DHCP tells networks apart by their addresses alone',
    )
  })

  test('is somebody’s or DHCP’s, never both, however many say so at the same time', async () => {
    const olga = partition.as('olga')
    for (let round = 0; round < 8; round++) {
      const { name, at } = await newSubnet()
      const machine = await addMachine(partition.core)
      const document = { ethernets: { wan: { mac: machine.interfaces[0]?.mac as string, addresses: [`${at(12)}/24`] } } }
      const outcomes = await Promise.allSettled([
        olga.subnets.put({ name, cidr: at('0/24'), dynamic: [range(at, 10, 19)] }),
        olga.addresses.reserve({ subnet: name, address: at(11), name: `race-${name}` }),
        olga.machines.setNetwork({ id: machine.id, document }),
      ])
      const codes = outcomes.flatMap(outcome => (outcome.status === 'rejected' ? [outcome.reason.code] : []))
      expect(new Set(codes)).toEqual(new Set(['already-taken']))
      const { dynamic } = await olga.subnets.get({ name })
      expect([dynamic?.length, (await olga.addresses.list({ subnet: name })).items.length > 0]).toEqual(
        outcomes[0]?.status === 'fulfilled' ? [1, false] : [0, true],
      )
    }
  })
})

describe('an address', () => {
  test('is the lowest free one: behind the gateway, reserved ranges, what DHCP gives to anybody, and what others have', async () => {
    const olga = partition.as('olga')
    const { name, at } = await newSubnet({ length: 28, gateway: '1', reserved: [{ from: '2', to: '4' }] })
    await saveNetworkServices(partition.sql, {
      replica: `z-${name}`,
      addresses: [],
      ranges: [{ from: at(6), to: at(9), prefix: 28, gateway: null }],
      beside: [],
      zone: null,
    })
    await partition.sql`insert into replicas (name, epoch, version, url) values (${`z-${name}`}, 1, '', '')`
    await olga.addresses.reserve({ subnet: name, address: at(11), name: 'eleven' })
    const given: string[] = []
    for (const host of ['a', 'b', 'c', 'd', 'e']) given.push((await olga.addresses.reserve({ subnet: name, name: `low-${host}` })).address)
    expect(given).toEqual([5, 10, 12, 13, 14].map(at))
    const full = await refusalOf(olga.addresses.reserve({ subnet: name, name: 'low-f' }))
    expect(full).toMatchObject({ code: 'already-taken', message: expect.stringContaining('all are taken') })
    await olga.addresses.release({ subnet: name, address: at(12) })
    expect((await olga.addresses.reserve({ subnet: name, name: 'low-f' })).address).toBe(at(12))
  })

  test('of IPv6 is chosen in a network of any size', async () => {
    const olga = partition.as('olga')
    await olga.subnets.put({ name: 'six', cidr: '2001:db8:7::/64', gateway: '2001:db8:7::1' })
    const first = await olga.addresses.reserve({ subnet: 'six', name: 'six-a' })
    expect(first).toMatchObject({ address: '2001:db8:7::2', place: '6-20010db8000700000000000000000002' })
    expect((await refusalOf(olga.addresses.reserve({ subnet: 'six', address: '2001:DB8:7:0::2', name: 'six-b' }))).code).toBe(
      'already-taken',
    )
  })

  test('is given once, and none is skipped, to however many ask two replicas at the same time', async () => {
    const url = await partitionDatabase()
    const replicas = await Promise.all([startCore({ url, connections: 10 }), startCore({ url, connections: 10 })])
    const [core] = replicas as readonly [(typeof replicas)[number], ...(typeof replicas)[number][]]
    await core.sql`insert into subnets (name, cidr, nameservers, description) values ('crowd', '10.0.0.0/24', '{}', '')`
    const asked = Array.from({ length: 300 }, (_, index) =>
      reserveAddress(replicas[index % 2] as typeof core, operator, { ...blank, subnet: 'crowd', name: `crowd-${index}` }),
    )
    const outcomes = await Promise.allSettled(asked)
    const given = outcomes.flatMap(outcome => (outcome.status === 'fulfilled' ? [outcome.value.address] : []))
    expect(new Set(given).size).toBe(254)
    expect(given).toHaveLength(254)
    const refused = outcomes.flatMap(outcome => (outcome.status === 'rejected' ? [outcome.reason.code] : []))
    expect(refused).toEqual(Array(46).fill('already-taken'))
  })

  test('is given once where people choose, others name addresses, and machines have them by their documents', async () => {
    const url = await partitionDatabase()
    const core = await startCore({ url, connections: 12 })
    const other = await runPartition({ databaseUrl: url })
    await other.as('olga').subnets.put({ name: 'mixed', cidr: '10.0.0.0/25' })
    const machines = await Promise.all(Array.from({ length: 20 }, () => addMachine(core)))
    const document = (machine: (typeof machines)[number], host: number) => ({
      ethernets: { wan: { mac: machine.interfaces[0]?.mac as string, addresses: [`10.0.0.${host}/25`] } },
    })
    const outcomes = await Promise.allSettled([
      ...Array.from({ length: 60 }, (_, index) => reserveAddress(core, operator, { ...blank, subnet: 'mixed', name: `mixed-${index}` })),
      ...machines.map((machine, index) => other.as('olga').machines.setNetwork({ id: machine.id, document: document(machine, index + 1) })),
      ...Array.from({ length: 20 }, (_, index) =>
        reserveAddress(core, operator, { ...blank, subnet: 'mixed', address: `10.0.0.${index + 1}`, name: `given-${index}` }),
      ),
    ])
    const refused = outcomes.flatMap(outcome => (outcome.status === 'rejected' ? [outcome.reason.code] : []))
    expect(new Set(refused)).toEqual(new Set(['already-taken']))
    // Who named no address got one.
    expect(outcomes.slice(0, 60).every(({ status }) => status === 'fulfilled')).toBe(true)
    const rows = await core.sql<{ address: string }[]>`select host(address) as address from addresses order by place`
    expect(rows).toHaveLength(outcomes.length - refused.length)
    // None was skipped.
    const hosts = rows.map(({ address }) => Number(address.split('.')[3]))
    expect(hosts.filter((host, index) => index > 0 && host > 20 && host !== (hosts[index - 1] as number) + 1)).toEqual([])
  })

  test('is chosen as a plain search would choose it', async () => {
    const core = await startCore()
    await core.sql`insert into subnets (name, cidr, nameservers, description) values ('plain', '10.0.0.0/27', '{}', '')`
    let names = 0
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(fc.integer({ min: 1, max: 30 }), { maxLength: 30 }),
        fc.option(fc.integer({ min: 1, max: 30 }), { nil: undefined }),
        fc.option(fc.tuple(fc.integer({ min: 1, max: 30 }), fc.integer({ min: 0, max: 9 })), { nil: undefined }),
        async (taken, gateway, range) => {
          await core.sql`delete from addresses`
          await core.sql`delete from subnet_ranges`
          await core.sql`update subnets set gateway = ${gateway === undefined ? null : `10.0.0.${gateway}`}`
          for (const host of taken)
            await core.sql`insert into addresses (subnet, address, source, actor) values ('plain', ${`10.0.0.${host}`}, 'reserved', 'x')`
          const last = range && Math.min(range[0] + range[1], 30)
          if (range) await core.sql`insert into subnet_ranges values ('plain', ${`10.0.0.${range[0]}`}, ${`10.0.0.${last}`}, '')`
          const isFree = (host: number) =>
            !taken.includes(host) && host !== gateway && !(range && range[0] <= host && host <= (last as number))
          const expected = Array.from({ length: 30 }, (_, index) => index + 1).find(isFree)
          const asked = reserveAddress(core, operator, { ...blank, subnet: 'plain', name: `plain-${++names}` })
          expect(
            await asked.then(
              ({ address }) => address,
              ({ code }) => code,
            ),
          ).toBe(expected === undefined ? 'already-taken' : `10.0.0.${expected}`)
        },
      ),
      { numRuns: 60 },
    )
  })

  test('that somebody has is refused with both owners named', async () => {
    const olga = partition.as('olga')
    const { name, at } = await newSubnet({ gateway: '254', reserved: [{ from: '200', to: '210' }] })
    const [one, two] = [await addMachine(partition.core, { hostname: 'one' }), await addMachine(partition.core, { hostname: 'two' })]
    const held = await olga.addresses.reserve({ subnet: name, address: at(5), machine: one.id })
    expect(held).toMatchObject({ machine: one.id, mac: one.interfaces[0]?.mac, name: 'one', source: 'reserved', by: 'olga' })
    const refused = await refusalOf(olga.addresses.reserve({ subnet: name, address: at(5), machine: two.id }))
    expect(refused).toMatchObject({
      code: 'already-taken',
      facts: { address: at(5), holder: { machine: one.id }, asker: { machine: two.id } },
    })
    expect(refused.message).toBe(
      `${at(5)} of subnet ${name} for machine ${two.id} "two" (asked by olga): machine ${one.id} "one" (reserved by olga) has it`,
    )
    const twice = await refusalOf(olga.addresses.reserve({ subnet: name, address: at(6), machine: one.id }))
    expect(twice).toMatchObject({ code: 'already-taken', facts: { holder: { address: at(5) }, asker: { machine: one.id, by: 'olga' } } })
    const cases = [
      [254, 'already-taken', "it is the gateway's"],
      [205, 'already-taken', 'is reserved in the subnet'],
      [0, 'invalid-input', 'the address of the network'],
      [255, 'invalid-input', 'the broadcast address'],
      ['9.9', 'invalid-input', /./],
    ] as const
    for (const [host, code, why] of cases) {
      const address = typeof host === 'number' ? at(host) : '10.255.9.9'
      const { code: got, message } = await refusalOf(olga.addresses.reserve({ subnet: name, address, machine: two.id }))
      expect(got).toBe(code)
      expect(message).toMatch(why)
    }
    // The machine is asked for again: it has what it had.
    expect(await olga.addresses.reserve({ subnet: name, machine: one.id })).toEqual(held)
    expect((await refusalOf(olga.addresses.reserve({ subnet: name, machine: two.id, mac: newMac() }))).code).toBe('invalid-input')
    expect((await refusalOf(olga.addresses.reserve({ subnet: 'nowhere', machine: two.id }))).code).toBe('not-found')
    expect((await refusalOf(olga.addresses.reserve({ subnet: name }))).code).toBe('invalid-input')
    // A machine that is forgotten has nothing any more.
    await olga.machines.delete({ id: one.id })
    expect((await olga.addresses.reserve({ subnet: name, address: at(5), machine: two.id })).machine).toBe(two.id)
  })

  test("has names that nothing else has: not another address, nor a machine's host name", async () => {
    const olga = partition.as('olga')
    const { name } = await newSubnet()
    await addMachine(partition.core, { hostname: 'node-with-name' })
    await olga.addresses.reserve({ subnet: name, name: 'nas', aliases: ['backup', 'files'] })
    const twice = await refusalOf(olga.addresses.reserve({ subnet: name, name: 'other', aliases: ['files'] }))
    expect(twice).toMatchObject({ code: 'already-taken', message: expect.stringContaining('nas (reserved by olga)') })
    const machine = await refusalOf(olga.addresses.reserve({ subnet: name, name: 'node-with-name' }))
    expect(machine).toMatchObject({ code: 'already-taken', message: expect.stringContaining('"node-with-name"') })
    const mac = newMac()
    const called = await refusalOf(olga.machines.create({ hostname: 'files', interfaces: [{ mac }] }))
    expect(called).toMatchObject({ code: 'already-exists', facts: { holder: { name: 'nas' }, asker: { mac } } })
    expect(called.message).toMatch(/^the name files for \S+ \(asked by olga\): it leads to \S+, which nas \(reserved by olga\) has$/)
    // Its own alias a machine may be called.
    const own = await addMachine(partition.core)
    await olga.addresses.reserve({ subnet: name, machine: own.id, aliases: ['its-alias'] })
    expect((await olga.machines.update({ id: own.id, hostname: 'its-alias' })).hostname).toBe('its-alias')
  })

  test('is listed by subnet, machine and MAC address, in the order of addresses, page by page', async () => {
    const olga = partition.as('olga')
    const { name, at } = await newSubnet()
    for (const host of [100, 9, 20]) await olga.addresses.reserve({ subnet: name, address: at(host), name: `list-${host}` })
    const seen: string[] = []
    let cursor: string | undefined
    do {
      const page = await partition.as('rita').addresses.list({ subnet: name, limit: 2, ...(cursor && { cursor }) })
      seen.push(...page.items.map(({ address }) => address))
      cursor = page.nextCursor ?? undefined
    } while (cursor)
    expect(seen).toEqual([9, 20, 100].map(at))
    const machine = await addMachine(partition.core)
    await olga.addresses.reserve({ subnet: name, machine: machine.id })
    expect((await olga.addresses.list({ machine: machine.id })).items).toHaveLength(1)
    expect((await olga.addresses.list({ mac: machine.interfaces[0]?.mac as string })).items).toMatchObject([{ machine: machine.id }])
    const kinds = async () => (await allEvents(partition)).filter(({ machine: of }) => of === machine.id).map(({ kind }) => kind)
    await expect.poll(kinds).toEqual(['machine.created', 'address.reserved'])
  })
})

describe('the address and names of one host', () => {
  test('are set, set otherwise, and deleted', async () => {
    const olga = partition.as('olga')
    const { name, at } = await newSubnet()
    const mac = newMac()
    const first = await olga.dhcpHosts.set({ mac, subnet: name, name: `cam-${name}`, aliases: [`door-${name}`] })
    expect(first).toMatchObject({ address: at(1), name: `cam-${name}`, aliases: [`door-${name}`], machine: null })
    const again = await olga.dhcpHosts.set({ mac, subnet: name, name: `cam-${name}`, aliases: [`door-${name}`] })
    expect({ ...again, id: 0, createdAt: '' }).toEqual({ ...first, id: 0, createdAt: '' })
    const moved = await olga.dhcpHosts.set({ mac, address: at(77), aliases: [`cam-${name}`] })
    expect(moved).toMatchObject({ subnet: name, address: at(77), name: null, aliases: [`cam-${name}`] })
    expect((await olga.addresses.list({ mac })).items).toEqual([moved])
    expect((await refusalOf(olga.dhcpHosts.set({ mac, address: '203.0.113.5' }))).code).toBe('not-found')
    expect((await olga.dhcpHosts.delete({ mac })).items).toEqual([moved])
    expect((await refusalOf(olga.dhcpHosts.delete({ mac }))).code).toBe('not-found')
  })
})

describe("a machine's static addresses", () => {
  const on = (mac: string, ...addresses: string[]) => ({ ethernets: { wan: { mac, addresses } } })
  const macOf = (machine: { interfaces: { mac: string }[] }) => machine.interfaces[0]?.mac as string

  test('are its own from the moment its document has them, until it has not', async () => {
    const olga = partition.as('olga')
    const { name, at } = await newSubnet({ gateway: '254' })
    const [one, two] = [await addMachine(partition.core, { hostname: `s1-${name}` }), await addMachine(partition.core)]
    await olga.machines.setNetwork({ id: one.id, document: on(macOf(one), `${at(1)}/24`, `${at(9)}/24`, '203.0.113.9/24') })
    expect((await olga.addresses.list({ machine: one.id })).items).toMatchObject([
      { address: at(1), source: 'document', mac: macOf(one) },
      { address: at(9), source: 'document' },
    ])
    const refused = await refusalOf(olga.machines.setNetwork({ id: two.id, document: on(macOf(two), `${at(9)}/24`) }))
    expect(refused).toMatchObject({
      code: 'already-taken',
      facts: { address: at(9), holder: { machine: one.id }, asker: { machine: two.id, mac: macOf(two) } },
    })
    expect(refused.message).toBe(
      `${at(9)} of subnet ${name} for machine ${two.id} (asked by olga): machine ${one.id} "s1-${name}" (by its network document) has it`,
    )
    expect((await olga.machines.network({ id: two.id })).document).toBeNull()
    expect((await refusalOf(olga.machines.setNetwork({ id: two.id, document: on(macOf(two), `${at(254)}/24`) }))).message).toContain(
      'gateway',
    )
    expect((await olga.addresses.reserve({ subnet: name, name: `s2-${name}` })).address).toBe(at(2))
    expect((await refusalOf(olga.addresses.release({ subnet: name, address: at(9) }))).code).toBe('wrong-state')
    // Reserved for the machine that has it: it stays the machine's when it is given back, for the document still has it.
    await olga.addresses.reserve({ subnet: name, address: at(9), machine: one.id })
    await olga.addresses.release({ subnet: name, address: at(9) })
    expect((await olga.addresses.list({ machine: one.id })).items).toMatchObject([
      { address: at(1) },
      { address: at(9), source: 'document' },
    ])
    await olga.machines.setNetwork({ id: one.id, document: null })
    await olga.machines.setNetwork({ id: two.id, document: on(macOf(two), `${at(9)}/24`) })
    expect((await olga.addresses.list({ subnet: name })).items).toMatchObject([{ address: at(2) }, { address: at(9), machine: two.id }])
  })

  test('of a deployment go with it, and are refused to a second one', async () => {
    const olga = partition.as('olga')
    const { name, at } = await newSubnet()
    const owned = { state: 'allocated', owner: 'alice', allocation_id: 'a-0123456789bcdfgh', attention_at: null } as const
    const [one, two] = [
      await addMachine(partition.core, owned, { powerDriver: 'manual' }),
      await addMachine(partition.core, owned, { powerDriver: 'manual' }),
    ]
    const deploy = (machine: typeof one) =>
      partition.as('alice').machines.deploy({ id: machine.id, os: 'debian/12', network: on(macOf(machine), `${at(7)}/24`) })
    await olga.machines.setNetwork({ id: one.id, document: on(macOf(one), `${at(6)}/24`) })
    await deploy(one)
    expect((await olga.addresses.list({ subnet: name })).items).toMatchObject([{ address: at(6) }, { address: at(7), machine: one.id }])
    expect((await refusalOf(deploy(two))).code).toBe('already-taken')
    expect((await olga.machines.get({ id: two.id })).state).toBe('allocated')
    await partition.as('alice').machines.abort({ id: one.id })
    expect((await olga.addresses.list({ subnet: name })).items).toMatchObject([{ address: at(6), machine: one.id }])
    await deploy(two)
  })

  test('are recorded in a subnet that comes later; two that have the same are named', async () => {
    const olga = partition.as('olga')
    const [one, two] = [await addMachine(partition.core), await addMachine(partition.core)]
    await olga.machines.setNetwork({ id: one.id, document: on(macOf(one), '192.168.77.5/24') })
    await olga.machines.setNetwork({ id: two.id, document: on(macOf(two), '192.168.77.5/24') })
    const put = { name: 'late', cidr: '192.168.77.0/24' }
    const refused = await refusalOf(olga.subnets.put(put))
    expect(refused).toMatchObject({ code: 'already-taken', facts: { holders: [one.id, two.id].sort() } })
    await olga.machines.setNetwork({ id: two.id, document: null })
    expect((await olga.subnets.put(put)).used).toBe(1)
    expect((await olga.addresses.list({ subnet: 'late' })).items).toMatchObject([{ address: '192.168.77.5', machine: one.id }])
  })

  test('are in the subnet of their VLAN, where several have the same network', async () => {
    const olga = partition.as('olga')
    for (const vlan of [101, 102]) await olga.subnets.put({ name: `v${vlan}`, cidr: '192.168.9.0/24', vlan })
    const machine = await addMachine(partition.core)
    const vlans = {
      v101: { id: 101, link: 'wan', addresses: ['192.168.9.5/24'] },
      v102: { id: 102, link: 'wan', addresses: ['192.168.9.6/24'] },
    }
    await olga.machines.setNetwork({ id: machine.id, document: { ...on(macOf(machine)), vlans } })
    expect((await olga.addresses.list({ machine: machine.id })).items).toMatchObject([
      { address: '192.168.9.5', subnet: 'v101' },
      { address: '192.168.9.6', subnet: 'v102' },
    ])
  })
})
