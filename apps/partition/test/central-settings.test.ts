// Which settings hold: those of the document, else the server's. And when a subnet is as it is described.
import { describedSubnet } from '@muster/shared/contract/subnets'
import { payloadOf } from '@muster/shared/global/copy'
import { changed, noDocuments, readDocuments } from '@muster/shared/global/documents'
import { enlistedRules, erasePolicies } from '@muster/shared/machine'
import { networksOverlap } from '@muster/shared/network'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { keepGlobal } from '../src/db/global.ts'
import { putSubnet, reserveAddress } from '../src/domain/addresses.ts'
import { CentralSubnets, isAsDescribed, rulesWith } from '../src/domain/central-settings.ts'
import { type Core, defaultRules } from '../src/domain/core.ts'
import { operator, startCore } from './harness.ts'

const said = fc.record(
  { erase: fc.constantFrom(...erasePolicies), enlisted: fc.constantFrom(...enlistedRules), enlistedMost: fc.nat(1000) },
  { requiredKeys: [] },
)

test('what the document says counts, what it leaves out the server says, and nothing else changes', () => {
  fc.assert(
    fc.property(said, said, (server, document) => {
      const own = { ...defaultRules, ...server }
      expect(rulesWith(own, document)).toEqual({ ...own, ...document })
    }),
  )
  expect(rulesWith(defaultRules, undefined)).toEqual(defaultRules)
})

const wanted = describedSubnet.parse({
  cidr: '2001:db8::/64',
  gateway: '2001:db8::1',
  nameservers: ['2001:db8::53', '10.0.0.2'],
  reserved: [
    { from: '2001:db8::20', to: '2001:db8::2f', note: 'switches' },
    { from: '2001:db8::10', to: '2001:db8::1f' },
  ],
})

test('a subnet that only is written in another way is as described; any other difference is one', () => {
  const same = {
    ...wanted,
    cidr: '2001:0db8:0::/64',
    gateway: '2001:db8:0::1',
    nameservers: ['2001:db8:0:0::53', '10.0.0.2'],
    reserved: wanted.reserved.toReversed(),
    dynamic: [],
  }
  expect(isAsDescribed(same, wanted)).toBe(true)
  const others = [
    { cidr: '2001:db8::/63' },
    { vlan: 4 },
    { gateway: null },
    { nameservers: ['10.0.0.2', '2001:db8::53'] },
    { nameservers: ['2001:db8::53'] },
    { reserved: [] },
    { dynamic: [{ from: '10.0.0.5', to: '10.0.0.9', note: '' }] },
    { description: 'hall 2' },
  ]
  for (const other of others) expect(isAsDescribed({ ...same, ...other }, wanted)).toBe(false)
})

test('two networks overlap where they have an address in common, of one version', () => {
  expect(networksOverlap('10.0.0.0/16', '10.0.9.0/24')).toBe(true)
  expect(networksOverlap('10.0.9.0/24', '10.0.0.0/16')).toBe(true)
  expect(networksOverlap('10.0.0.0/24', '10.0.1.0/24')).toBe(false)
  expect(networksOverlap('10.0.0.0/24', '2001:db8::/64')).toBe(false)
})

const partition = {
  natsKey: `U${'A'.repeat(55)}`,
  operatingSystems: [],
  acceptedAt: '2026-01-01T00:00:00.000Z',
  subnets: { servers: { cidr: '10.0.0.0/24' } },
}

test('an unknown field of a subnet is refused where it is written, and left out where a newer front wrote it', () => {
  const newer = { ...partition, subnets: { servers: { cidr: '10.0.0.0/24', mtu: 9000 } } }
  expect(changed(noDocuments, { put: [{ kind: 'partition', name: 'lon1', document: newer }], delete: [] })).toMatchObject({
    problems: [{ field: 'put.0.document.subnets.servers.mtu', message: 'unknown field' }],
  })
  const { documents, ...left } = readDocuments({ partition: { lon1: newer } })
  // An older front writes nothing then: it would lose the field.
  expect(left).toEqual({ skipped: [], beyond: ['fields of partition lon1'] })
  expect(documents.partition.lon1?.subnets?.servers).toEqual(describedSubnet.parse({ cidr: '10.0.0.0/24' }))
})

test('subnets of one network that DHCP is to serve are refused where they are written', () => {
  const dynamic = [{ from: '10.0.0.10', to: '10.0.0.19' }]
  const written = (two: object) => ({
    ...partition,
    subnets: { one: { cidr: '10.0.0.0/24', vlan: 1, dynamic }, two: { cidr: '10.0.0.0/16', vlan: 2, ...two } },
  })
  const outcome = (two: object) => changed(noDocuments, { put: [{ kind: 'partition', name: 'lon1', document: written(two) }], delete: [] })
  expect(outcome({})).not.toHaveProperty('problems')
  expect(outcome({ dynamic: [{ from: '10.0.9.10', to: '10.0.9.19' }] })).toMatchObject({
    problems: [{ field: 'partition lon1', message: expect.stringContaining('both have dynamic ranges') }],
  })
})

test('dynamic ranges come and go with the description, and move with their subnets', async () => {
  const core = await startCore()
  const central = new CentralSubnets(core)
  const ranges = async () => [...(await core.sql`select subnet, host(first) as first from dynamic_ranges order by subnet`)]
  const served = (network: string) => ({ cidr: `${network}.0/24`, dynamic: [{ from: `${network}.10`, to: `${network}.19` }] })
  await describe(core, { a: served('10.0.1'), b: served('10.0.2') })
  await central.look()
  await describe(core, { a: served('10.0.2'), b: served('10.0.1') })
  await central.look()
  expect([central.problems, await ranges()]).toEqual([
    [],
    [
      { subnet: 'a', first: '10.0.2.10' },
      { subnet: 'b', first: '10.0.1.10' },
    ],
  ])
  await describe(core, { a: { cidr: '10.0.2.0/24' }, b: served('10.0.1') })
  await central.look()
  expect([central.problems, await ranges()]).toEqual([[], [{ subnet: 'b', first: '10.0.1.10' }]])
})

/** Puts these subnets into force, as if a front had given them. */
async function describe(core: Core, subnets: Record<string, object>) {
  const put = [{ kind: 'partition' as const, name: 'lon1', document: { ...partition, subnets } }]
  const outcome = changed(noDocuments, { put, delete: [] })
  if ('problems' in outcome) throw new Error(JSON.stringify(outcome.problems))
  const generation = core.configuration.generation + 1
  const payload = payloadOf({ generation, changedAt: new Date().toISOString(), changedBy: 'test', note: '', documents: outcome.documents })
  await keepGlobal(core.sql, { generation, payload, signature: '', signed_by: '' }, core.configuration.generation)
  await core.configuration.reload()
}

test('subnets come to be as they are described, once, whatever the order; none is deleted', async () => {
  const core = await startCore()
  const central = new CentralSubnets(core)
  const networks = async () => {
    const rows = await core.sql<{ name: string; cidr: string }[]>`select name, cidr::text as cidr from subnets order by name`
    return rows.map(({ name, cidr }) => `${name} ${cidr}`)
  }
  const events = async () => (await core.sql`select from events where kind = 'subnet.changed' and actor = 'configuration'`).length
  await describe(core, { wide: wanted, a: { cidr: '10.0.0.0/24' }, b: { cidr: '10.0.1.0/24' }, c: { cidr: '10.0.2.0/24' } })
  await central.look()
  await central.look()
  expect([await networks(), await events()]).toEqual([['a 10.0.0.0/24', 'b 10.0.1.0/24', 'c 10.0.2.0/24', 'wide 2001:db8::/64'], 4])

  // Each moves to where the next one was.
  await describe(core, { a: { cidr: '10.0.1.0/24' }, b: { cidr: '10.0.2.0/24' }, c: { cidr: '10.0.3.0/24' } })
  await central.look()
  expect(central.problems).toEqual([])
  expect(await networks()).toEqual(['a 10.0.1.0/24', 'b 10.0.2.0/24', 'c 10.0.3.0/24', 'wide 2001:db8::/64'])

  // Two change places, however they are meant; one that cannot be at all is told of.
  await describe(core, { a: { cidr: '10.0.2.0/24' }, b: { cidr: '10.0.1.0/24' }, d: { cidr: '10.0.4.0/24', description: 'a\0b' } })
  await central.look()
  expect(central.problems).toEqual([expect.stringContaining('the character NUL')])
  expect(await networks()).toEqual(['a 10.0.2.0/24', 'b 10.0.1.0/24', 'c 10.0.3.0/24', 'wide 2001:db8::/64'])

  // So do three in a circle, beside one that the partition's own is in the way of.
  await putSubnet(core, operator, { name: 'own', ...describedSubnet.parse({ cidr: '10.0.8.0/21' }) })
  const moved = ['a 10.0.1.0/24', 'b 10.0.3.0/24', 'c 10.0.2.0/24', 'own 10.0.8.0/21', 'wide 2001:db8::/64']
  const circle = { a: { cidr: '10.0.1.0/24' }, b: { cidr: '10.0.3.0/24' }, c: { cidr: '10.0.2.0/24' } }
  await describe(core, { ...circle, d: { cidr: '10.0.9.0/24' } })
  await central.look()
  expect(central.problems).toEqual([expect.stringMatching(/subnet d \(10.0.9.0\/24, untagged\) overlaps own /)])
  expect(await networks()).toEqual(moved)

  // Not while somebody has an address of one: neither is lost, both are told of, and an end is found.
  await reserveAddress(core, operator, { subnet: 'a', name: 'nas', aliases: [], note: '' })
  await describe(core, { a: { cidr: '10.0.3.0/24' }, b: { cidr: '10.0.1.0/24' } })
  await central.look()
  expect(central.problems).toEqual([
    expect.stringContaining('move subnet a from 10.0.1.0/24, untagged to 10.0.3.0/24, untagged: 1 of its addresses are in use'),
    expect.stringContaining('subnet b (10.0.1.0/24, untagged) overlaps a'),
  ])
  expect(await networks()).toEqual(moved)
  expect(core.lines.filter(line => line.includes('cannot be so here'))).toHaveLength(4)
  await describe(core, {})
  await central.look()
  expect([central.problems, await networks()]).toEqual([[], moved])
})
