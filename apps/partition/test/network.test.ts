// The network that a machine is told: which documents are taken, what becomes of them (compared whole; MUSTER_REFRESH=1 writes it anew), and that
// cloud-init and netplan themselves take all of it.
import { execFile } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { type NetworkDocument, networkDocument } from '@muster/shared/network'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { parse } from 'yaml'
import { yaml } from '../src/domain/metadata.ts'
import { networkConfig } from '../src/domain/network-config.ts'
import { addMachine, newMac, reread, runPartition, type TestPartition } from './harness.ts'

const names = ['static', 'bond-vlans', 'bridge'] as const
const fileOf = (name: string) => new URL(`./testdata/network/${name}`, import.meta.url)
const documentOf = (name: string) =>
  parse(readFileSync(fileOf(`${name}.yaml`), 'utf8')) as Record<string, Record<string, Record<string, unknown>>>
const portsOf = (document: NetworkDocument) => Object.values(document.ethernets).map(({ mac }) => ({ mac }))
const rendered = (document: NetworkDocument) => yaml(networkConfig(portsOf(document), document))

function needsNetplan(): boolean {
  if (existsSync('/usr/lib/python3/dist-packages/cloudinit') && existsSync('/usr/sbin/netplan')) return false
  const message =
    'cloud-init or netplan is missing: whether they take the network is NOT TESTED here (apt-get install -y cloud-init netplan.io)'
  if (process.env.CI) throw new Error(message)
  console.warn(`SKIPPED: ${message}`)
  return true
}

interface Rendering {
  netplan: string
  eni: string
  refused: string | null
}

/** What cloud-init writes for each text, and whether netplan takes it. */
async function renderings(texts: readonly string[]): Promise<Rendering[]> {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-network-'))
  try {
    const script = fileURLToPath(new URL('cloud-init.py', import.meta.url))
    const words = [script, folder, 'network', JSON.stringify(texts)]
    const { stdout } = await promisify(execFile)('/usr/bin/python3', words, { timeout: 170_000, maxBuffer: 64 * 1024 * 1024 })
    return JSON.parse(stdout) as Rendering[]
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

describe('a document', () => {
  test.for(names)('%s becomes what it says', name => {
    const text = rendered(networkDocument.parse(documentOf(name)))
    const file = fileOf(`${name}.network-config`)
    if (process.env.MUSTER_REFRESH === '1') writeFileSync(file, text)
    expect(text).toBe(readFileSync(file, 'utf8'))
  })

  const wrong: [
    why: string,
    name: (typeof names)[number],
    change: (document: ReturnType<typeof documentOf>) => void,
    field: string,
    says: RegExp,
  ][] = [
    ['an unknown member', 'static', d => Object.assign(d, { colour: 'red' }), 'colour', /./],
    ['an unknown setting', 'static', d => Object.assign(d.ethernets?.eth0 ?? {}, { gateway: '10.0.0.1' }), 'ethernets.eth0.gateway', /./],
    ['no port', 'bond-vlans', d => Object.assign(d.bonds?.bond0 ?? {}, { interfaces: [] }), 'bonds.bond0.interfaces', /./],
    [
      'a member that is not there',
      'bond-vlans',
      d => Object.assign(d.bonds?.bond0 ?? {}, { interfaces: ['left', 'eth9'] }),
      'bonds.bond0.interfaces.1',
      /"eth9" is no device/,
    ],
    [
      'a member of two',
      'bond-vlans',
      d => Object.assign(d, { bridges: { br0: { interfaces: ['left'] } } }),
      'bridges.br0.interfaces.0',
      /member of "bond0" already/,
    ],
    [
      'a VLAN on a member',
      'bond-vlans',
      d => Object.assign(d.vlans?.storage ?? {}, { link: 'left' }),
      'vlans.storage.link',
      /put the VLAN on that/,
    ],
    [
      'a VLAN on a VLAN',
      'bond-vlans',
      d => Object.assign(d.vlans?.storage ?? {}, { link: 'bond0.200' }),
      'vlans.storage.link',
      /cannot be made of/,
    ],
    [
      'an address on a member',
      'bond-vlans',
      d => Object.assign(d.ethernets?.left ?? {}, { dhcp4: true }),
      'ethernets.left.dhcp4',
      /belongs on "bond0"/,
    ],
    ['a VLAN id out of range', 'bond-vlans', d => Object.assign(d.vlans?.storage ?? {}, { id: 4095 }), 'vlans.storage.id', /1 to 4094/],
    [
      'a VLAN twice',
      'bond-vlans',
      d => Object.assign(d.vlans?.storage ?? {}, { id: 200 }),
      'vlans.bond0.200.id',
      /same link \(vlans.storage.id\)/,
    ],
    [
      'an address twice',
      'bond-vlans',
      d => Object.assign(d.vlans?.storage ?? {}, { addresses: ['10.0.0.5/16'] }),
      'vlans.storage.addresses.0',
      /bonds.bond0.addresses.0/,
    ],
    [
      'an address twice, written otherwise',
      'static',
      d => Object.assign(d.ethernets?.eth1 ?? {}, { addresses: ['2001:0db8:0::0005/64'] }),
      'ethernets.eth1.addresses.0',
      /there twice/,
    ],
    [
      'an address without its length',
      'static',
      d => Object.assign(d.ethernets?.eth0 ?? {}, { addresses: ['10.0.0.5'] }),
      'ethernets.eth0.addresses.0',
      /prefix length/,
    ],
    [
      'a gateway elsewhere',
      'static',
      d => Object.assign(d.ethernets?.eth0 ?? {}, { gateway4: '10.0.1.1' }),
      'ethernets.eth0.gateway4',
      /none of the addresses/,
    ],
    [
      'two default routes',
      'bond-vlans',
      d => Object.assign(d.vlans?.storage ?? {}, { gateway4: '10.1.0.1' }),
      'vlans.storage.gateway4',
      /"bond0" has the default route/,
    ],
    [
      'a port twice',
      'static',
      d => Object.assign(d.ethernets?.eth1 ?? {}, { mac: '52-54-00-00-00-01' }),
      'ethernets.eth1.mac',
      /another port/,
    ],
    [
      'a name too long',
      'static',
      d => Object.assign(d.ethernets ?? {}, { abcdefghijklmnop: { mac: newMac() } }),
      'ethernets.abcdefghijklmnop',
      /./,
    ],
    [
      'a name with a meaning',
      'static',
      d => Object.assign(d.ethernets ?? {}, { lo: { mac: newMac() } }),
      'ethernets.lo',
      /meaning of its own/,
    ],
    ['a name twice', 'bond-vlans', d => Object.assign(d.vlans ?? {}, { left: { id: 5, link: 'bond0' } }), 'vlans.left', /another device/],
    [
      'a circle',
      'bridge',
      d => Object.assign(d, { vlans: { v7: { id: 7, link: 'br7' } } }),
      'bridges.br7.interfaces.0',
      /itself made of "br7"/,
    ],
    [
      'LACP without LACP',
      'bridge',
      d => Object.assign(d.bonds?.bond0 ?? {}, { lacpRate: 'fast' }),
      'bonds.bond0.lacpRate',
      /802.3ad, not active-backup/,
    ],
    [
      'a primary that is no member',
      'bridge',
      d => Object.assign(d.bonds?.bond0 ?? {}, { primary: 'br0' }),
      'bonds.bond0.primary',
      /no member/,
    ],
    ['an MTU too small for IPv6', 'static', d => Object.assign(d.ethernets?.eth0 ?? {}, { mtu: 1200 }), 'ethernets.eth0.mtu', /1280/],
    [
      'a route of mixed versions',
      'static',
      d => Object.assign(d.ethernets?.eth1 ?? {}, { routes: [{ to: '10.9.0.0/16', via: 'fe80::1' }] }),
      'ethernets.eth1.routes.0.via',
      /another IP version/,
    ],
  ]
  test.for(wrong)('with %s is refused by field', ([, name, change, field, says]) => {
    const document = documentOf(name)
    change(document)
    const { error } = networkDocument.safeParse(document)
    const issues = (error?.issues ?? []).flatMap(({ path: at, message, ...issue }) =>
      issue.code === 'unrecognized_keys'
        ? issue.keys.map(key => ({ field: [...at, key].join('.'), message }))
        : [{ field: at.join('.'), message }],
    )
    expect(issues).toContainEqual({ field, message: expect.stringMatching(says) })
  })
})

describe.skipIf(needsNetplan())('cloud-init and netplan', () => {
  test('take what is written, and write what was meant', async () => {
    const texts = names.map(name => readFileSync(fileOf(`${name}.network-config`), 'utf8'))
    const nothingSaid = yaml(networkConfig([{ mac: newMac() }, { mac: newMac() }], null))
    const [fixed, bond, bridge, dhcp] = await renderings([...texts, nothingSaid])
    expect([fixed?.refused, bond?.refused, bridge?.refused, dhcp?.refused]).toEqual([null, null, null, null])
    // And netplan is one that refuses.
    const [odd] = await renderings([(texts[1] ?? '').replace('802.3ad', 'some-mode')])
    expect(odd?.refused).toMatch(/unknown bond mode 'some-mode'/)
    for (const line of [
      'address 10.0.0.5/24',
      'gateway 10.0.0.1',
      'address 2001:db8::5/64',
      'gateway 2001:db8::1',
      'mtu 9000',
      'dns-search example.org lab.example.org',
    ])
      expect(fixed?.eni).toContain(line)
    for (const line of [
      'bond-mode 802.3ad',
      'bond-lacp-rate fast',
      'bond-master bond0',
      'vlan-raw-device bond0',
      'vlan_id 100',
      'iface bond0.200 inet dhcp',
    ])
      expect(bond?.eni).toContain(line)
    for (const line of ['bridge_ports bond0', 'bridge_ports v7', 'bond-primary eth0', 'iface br7 inet dhcp'])
      expect(bridge?.eni).toContain(line)
    expect((parse(fixed?.netplan ?? '') as { network: object }).network).toEqual(parse(texts[0] ?? ''))
    expect(dhcp?.eni).toMatch(/inet dhcp/)
  })

  test('take every document that is taken here', async () => {
    const documents = fc.sample(anyDocument, { numRuns: 400, seed: 7 }).flatMap(document => networkDocument.safeParse(document).data ?? [])
    // The search would prove nothing were most of them refused.
    expect(documents.length).toBeGreaterThan(100)
    const some = documents.slice(0, 60)
    const answers = await renderings(some.map(rendered))
    const refused = answers.flatMap(({ refused: why }, index) => (why === null ? [] : [{ why, document: some[index] }]))
    expect(refused).toEqual([])
    // What is set must be there, not only parse.
    for (const [index, { eni }] of answers.entries())
      for (const device of Object.values({
        ...some[index]?.ethernets,
        ...some[index]?.bonds,
        ...some[index]?.vlans,
        ...some[index]?.bridges,
      }))
        for (const address of device.addresses) expect(eni).toContain(`address ${address}`)
  }, 180_000)
})

/** Documents of up to four ports, most of them sensible: members are taken from what is there, addresses differ. */
const anyDocument = fc.integer({ min: 1, max: 4 }).chain(ports => {
  let numbers = 0
  const number = () => fc.constant(null).map(() => ++numbers)
  const onDevice = fc.record(
    {
      mtu: fc.integer({ min: 1280, max: 9216 }),
      dhcp4: fc.boolean(),
      dhcp6: fc.boolean(),
      nameservers: fc.uniqueArray(fc.constantFrom('10.9.9.9', '8.8.8.8', '2001:db8::53'), { maxLength: 3 }),
      search: fc.uniqueArray(fc.constantFrom('example.org', 'a.b', 'x'), { maxLength: 3 }),
      addresses: fc.array(
        number().chain(n => fc.constantFrom(`10.${n % 250}.${n >> 8}.7/24`, `2001:db8:${n.toString(16)}::7/64`)),
        { maxLength: 3 },
      ),
    },
    { requiredKeys: [] },
  )
  const routed = onDevice.chain(device => {
    const via4 = device.addresses?.find(text => text.includes('.'))?.replace('.7/24', '.1')
    const routes =
      via4 === undefined
        ? fc.constant([])
        : fc.array(fc.record({ to: fc.constantFrom('172.16.0.0/12', '192.168.7.0/24'), via: fc.constant(via4) }), { maxLength: 1 })
    return fc
      .record({ device: fc.constant(device), routes, gateway: fc.option(fc.constant(via4), { nil: undefined, freq: 4 }) })
      .map(all => ({
        ...all.device,
        routes: all.routes,
        ...(all.gateway !== undefined && { gateway4: all.gateway }),
      }))
  })
  const names = Array.from({ length: ports }, (_, index) => `eth${index}`)
  const half = Math.ceil(ports / 2)
  const bonded = fc.boolean()
  return fc
    .record({
      isBonded: bonded,
      isBridged: fc.boolean(),
      onPorts: fc.array(routed, { minLength: ports, maxLength: ports }),
      onMaster: fc.array(routed, { minLength: 3, maxLength: 3 }),
      mode: fc.constantFrom('balance-rr', 'active-backup', 'balance-xor', 'broadcast', '802.3ad', 'balance-tlb', 'balance-alb'),
      monitorMs: fc.constantFrom(50, 100, 200),
      upDelayMs: fc.constantFrom(0, 200, 1000),
      hashPolicy: fc.constantFrom('layer2', 'layer2+3', 'layer3+4', 'encap2+3', 'encap3+4'),
      extra: fc.constantFrom('lacpRate', 'adSelect', 'minLinks', 'hashPolicy', 'primary', 'none'),
      vlans: fc.uniqueArray(fc.integer({ min: 1, max: 4094 }), { maxLength: 3 }),
      stp: fc.boolean(),
      forwardDelaySeconds: fc.integer({ min: 2, max: 30 }),
    })
    .map(all => {
      const members = all.isBonded ? names.slice(0, half) : []
      const bridged = all.isBridged ? names.slice(half) : []
      const extras: Record<string, object> = {
        lacpRate: { lacpRate: 'slow' },
        adSelect: { adSelect: 'bandwidth' },
        minLinks: { minLinks: 1 },
        hashPolicy: { hashPolicy: all.hashPolicy },
        primary: { primary: members[0] },
      }
      const top = all.isBonded ? 'bond0' : bridged.includes('eth0') ? 'br0' : 'eth0'
      return {
        ethernets: Object.fromEntries(
          names.map((name, index) => [
            name,
            {
              mac: `52:54:00:00:01:0${index}`,
              ...(members.includes(name) || bridged.includes(name) ? { mtu: all.onPorts[index]?.mtu } : all.onPorts[index]),
            },
          ]),
        ),
        ...(members.length > 0 && {
          bonds: {
            bond0: {
              interfaces: members,
              mode: all.mode,
              monitorMs: all.monitorMs,
              upDelayMs: all.upDelayMs,
              ...extras[all.extra],
              ...all.onMaster[0],
            },
          },
        }),
        ...(bridged.length > 0 && {
          bridges: { br0: { interfaces: bridged, stp: all.stp, forwardDelaySeconds: all.forwardDelaySeconds, ...all.onMaster[1] } },
        }),
        vlans: Object.fromEntries(all.vlans.map((id, index) => [`v${id}`, { id, link: top, ...(index === 0 && all.onMaster[2]) }])),
      }
    })
})

describe('the network of a machine', () => {
  let partition: TestPartition
  const ends: (() => Promise<void>)[] = []
  beforeAll(async () => {
    partition = await runPartition({}, end => void ends.push(end))
  })
  afterAll(async () => {
    for (const end of ends.reverse()) await end()
  })
  const owned = { owner: 'alice', allocation_id: 'a-0123456789bcdfgh' }
  const on = (mac: string, address: string) => ({ ethernets: { wan: { mac, addresses: [address] } } })

  test('is set by operators, seen by all, and told to the next deployment', async () => {
    const machine = await addMachine(partition.core, { state: 'allocated', attention_at: null, ...owned }, { powerDriver: 'manual' })
    const { id } = machine
    const mac = machine.interfaces[0]?.mac as string
    await expect(partition.as('alice').machines.setNetwork({ id, document: null })).rejects.toMatchObject({ code: 'forbidden' })
    await expect(partition.as('olga').machines.setNetwork({ id, document: on(newMac(), '10.0.0.5/24') })).rejects.toMatchObject({
      code: 'invalid-input',
      facts: { errors: [{ field: 'document.ethernets.wan.mac', message: expect.stringContaining(`it has ${mac}`) }] },
    })
    const set = await partition.as('olga').machines.setNetwork({ id, document: on(mac, '10.0.0.5/24') })
    expect(set.config).toEqual({
      version: 2,
      ethernets: { wan: { match: { macaddress: mac }, 'set-name': 'wan', addresses: ['10.0.0.5/24'] } },
    })
    expect(await partition.as('rita').machines.network({ id })).toEqual(set)

    // The owner's word counts for this deployment.
    await partition.as('alice').machines.deploy({ id, os: 'debian/12', network: on(mac, '10.0.0.6/24') })
    const row = await reread(partition.core, id)
    expect((await partition.as('rita').machines.network({ id })).config).toMatchObject({
      ethernets: { wan: { addresses: ['10.0.0.6/24'] } },
    })
    expect(row.deployment_network).not.toBeNull()
    await partition.as('alice').machines.abort({ id })
    expect(await partition.as('rita').machines.network({ id })).toEqual({ ...set, deployment: null })
  })

  test('that names a port which is gone stops the next deployment, by field', async () => {
    const machine = await addMachine(partition.core, { state: 'allocated', attention_at: null, ...owned }, { powerDriver: 'manual' })
    await partition.as('olga').machines.setNetwork({ id: machine.id, document: on(machine.interfaces[0]?.mac as string, '10.0.0.5/24') })
    await partition.sql`update machines set interfaces = ${partition.sql.json([{ mac: newMac() }])} where id = ${machine.id}`
    await expect(partition.as('alice').machines.deploy({ id: machine.id, os: 'debian/12' })).rejects.toMatchObject({
      facts: { errors: [{ field: 'network.ethernets.wan.mac' }] },
    })
  })
})
