// Who is given a machine's boot script with its token: at the real door, asked from several addresses of this host.
import { request } from 'node:http'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { readSettings } from '../src/config.ts'
import { putSubnet, reserveAddress } from '../src/domain/addresses.ts'
import { bootTrusts, claimAll, originOf, weaknessesOf } from '../src/domain/boot-origin.ts'
import { leaseIn, leasesIn } from '../src/domain/dnsmasq.ts'
import { moveMachine } from '../src/domain/move.ts'
import { addMachine, operator, runPartition, type TestPartition, until } from './harness.ts'

const here = { served: [], proxies: ['127.0.0.1'] }
const partitions = {} as Record<(typeof bootTrusts)[number], TestPartition>
const ends: (() => Promise<void>)[] = []
beforeAll(async () => {
  for (const trust of bootTrusts) partitions[trust] = await runPartition({ bootOrigins: { ...here, trust } }, end => void ends.push(end))
})
afterAll(async () => {
  for (const end of ends.reverse()) await end()
})

/** The script of a MAC address, asked for from one of this host's addresses. */
const script = (partition: TestPartition, mac: string, from: string, headers: Record<string, string> = {}) =>
  new Promise<string>((resolve, reject) => {
    const asking = request(`${partition.url}/boot/ipxe/${mac}`, { localAddress: from, headers, agent: false }, answer => {
      let text = ''
      answer.on('data', more => (text += more)).on('end', () => resolve(text))
    })
    asking.on('error', reject).end()
  })
const atWork = async (partition: TestPartition) => {
  const machine = await addMachine(partition.core, { state: 'commissioning', run: 'r1', attention_at: null })
  return { id: machine.id, mac: machine.interfaces[0]?.mac as string }
}
const token = /muster\.token=(\S+)/
const refusals = (partition: TestPartition, machine: string) =>
  partition.sql<{ actor: string; data: Record<string, unknown> }[]>`
    select actor, data from events where machine_id = ${machine} and kind = 'machine.boot-refused' order by id`

describe('where DHCP is not ours', () => {
  test('the first address that asks has the script of a task, as often as it asks; others are refused, and it is told', async () => {
    const partition = partitions.any
    const { id, mac } = await atWork(partition)
    const first = token.exec(await script(partition, mac, '127.0.0.2'))?.[1]
    expect(first).toBeTruthy()
    expect(token.exec(await script(partition, mac, '127.0.0.2'))?.[1]).toBe(first)
    for (let time = 1; time <= 5; time++) {
      const refused = await script(partition, mac, '127.0.0.3')
      expect(refused).toContain('cannot boot over the network: another one has been given the work of this machine')
      expect(refused).not.toMatch(token)
      expect(refused).not.toContain('127.0.0.2')
    }
    // Five refusals, one event.
    expect([...(await refusals(partition, id))]).toEqual([
      { actor: 'boot', data: { mac, address: '127.0.0.3', why: '127.0.0.2 has been given it already', times: 1 } },
    ])
    expect(partition.lines.filter(line => line.includes(`the boot script of ${id} is not given to 127.0.0.3`))).toHaveLength(1)
    expect(token.exec(await script(partition, mac, '127.0.0.2'))?.[1]).toBe(first)
    await partition.core.audit.settled()
    const { items } = await until(async () => {
      const found = await partition.core.audit.list({ after: 0, limit: 100, actor: undefined, call: 'door.refused', target: undefined })
      return found.items.length > 0 && found
    })
    const target = 'boot, 5 times: another one has been given the work of this machine'
    expect(items).toMatchObject([{ from: '127.0.0.3', target, outcome: 'forbidden' }])

    // Its next task is for whoever is first then: it may have another address by now.
    await moveMachine(partition.core, { id, move: 'fail', actor: 'test', fault: { code: 'x-failed', message: 'x', hint: 'x' } })
    await moveMachine(partition.core, { id, move: 'commission', actor: 'test' })
    const next = token.exec(await script(partition, mac, '127.0.0.3'))?.[1]
    expect(next).toBeTruthy()
    expect(next).not.toBe(first)
    expect(await script(partition, mac, '127.0.0.2')).not.toMatch(token)
  })

  test('of many addresses that ask at once one has it', async () => {
    const partition = partitions.any
    const { mac } = await atWork(partition)
    const from = Array.from({ length: 12 }, (_, index) => `127.0.1.${index + 1}`)
    const texts = await Promise.all(from.map(address => script(partition, mac, address)))
    expect(texts.filter(text => token.test(text))).toHaveLength(1)
  })

  test('a machine that only wants its disk, or to enlist, is asked for nothing', async () => {
    const partition = partitions.none
    const { interfaces } = await addMachine(partition.core, { state: 'deployed' })
    expect(await script(partition, interfaces[0]?.mac as string, '127.0.0.9')).toContain('boot from disk')
    expect(await script(partition, '52:54:00:ee:ee:ee', '127.0.0.9')).toContain('Muster: enlist')
  })

  test('"reserved" gives it to who has its address reserved, "none" to nobody', async () => {
    const { reserved: partition, none } = partitions
    const subnet = { cidr: '127.0.7.0/24', vlan: null, gateway: null, nameservers: [], description: '', reserved: [] }
    await putSubnet(partition.core, operator, { name: 'loop', ...subnet })
    const { id, mac } = await atWork(partition)
    expect(await script(partition, mac, '127.0.7.5')).not.toMatch(token)
    await reserveAddress(partition.core, operator, { subnet: 'loop', address: '127.0.7.5', machine: id, aliases: [], note: '' })
    expect(await script(partition, mac, '127.0.7.5')).toMatch(token)
    expect(await script(partition, mac, '127.0.7.6')).toContain('this is not the address of the machine')
    expect((await refusals(partition, id))[0]?.data).toMatchObject({ why: `no address is reserved to ${mac}` })

    const other = await atWork(none)
    expect(await script(none, other.mac, '127.0.0.2')).toContain('this network is not trusted')
  })

  test('behind a reverse proxy the address is the one that the proxy tells; who is no proxy is not believed', async () => {
    const partition = partitions.any
    const { mac } = await atWork(partition)
    expect(await script(partition, mac, '127.0.0.1', { 'x-forwarded-for': '10.7.0.5' })).toMatch(token)
    expect(await script(partition, mac, '127.0.0.1', { 'x-forwarded-for': '10.7.0.6' })).not.toMatch(token)
    // Somebody who says that he is the machine: the proxy appends where he really is.
    expect(await script(partition, mac, '127.0.0.1', { 'x-forwarded-for': '10.7.0.5, 10.7.0.6' })).not.toMatch(token)
    expect(await script(partition, mac, '127.0.0.2', { 'x-forwarded-for': '10.7.0.5' })).not.toMatch(token)
    expect(await script(partition, mac, '127.0.0.1', { 'x-forwarded-for': '10.7.0.5' })).toMatch(token)
  })

  test('is a weakness in the status of a partition that believes whoever is first', async () => {
    const status = async (trust: (typeof bootTrusts)[number]) => partitions[trust].as('rita').partitions.get({ name: 'lon1' })
    expect(await status('any')).toMatchObject({
      status: 'ready',
      problems: [],
      weaknesses: [expect.stringContaining('MUSTER_BOOT_TRUST=any')],
    })
    for (const trust of ['reserved', 'none'] as const) expect((await status(trust)).weaknesses).toEqual([])
    expect(weaknessesOf({ ...here, served: ['10.0.0.0/24'], trust: 'any' })[0]).toContain('from outside of the networks')
  })

  test('is believed by default; where addresses are given here it is not', () => {
    const base = { MUSTER_PARTITION: 'lon1', DATABASE_URL: 'postgres://x', MUSTER_KEY: '07'.repeat(32), MUSTER_TOKENS_FILE: 'tokens.json' }
    expect(readSettings(base).settings.bootOrigins).toEqual({ served: [], trust: 'any', proxies: ['127.0.0.1', '::1'] })
    const beside = { ...base, MUSTER_URL: 'http://10.98.0.1', MUSTER_DHCP_INTERFACES: 'eno1', MUSTER_DHCP_PROXY: '10.98.0.0/24' }
    expect(readSettings(beside).settings.bootOrigins).toMatchObject({ served: [], trust: 'any' })
    const { MUSTER_DHCP_PROXY: _, ...served } = { ...beside, MUSTER_DHCP_RANGES: '10.98.0.5-10.98.0.9/24', MUSTER_DHCP_SHARE: '2/2' }
    expect(readSettings(served).settings.bootOrigins).toMatchObject({ served: ['10.98.0.5/24'], trust: 'none' })
    expect(readSettings({ ...served, MUSTER_BOOT_TRUST: 'any' }).settings.bootOrigins).toMatchObject({ trust: 'any' })
    expect(() => readSettings({ ...base, MUSTER_BOOT_TRUST: 'all' })).toThrow('MUSTER_BOOT_TRUST')
  })
})

test('an address that DHCP has given to somebody else by now makes way for the new one', async () => {
  const { core } = partitions.any
  const { id } = await addMachine(core, { state: 'commissioning', run: 'r1', attention_at: null })
  const claim = async (address: string, given: string[]) => (await claimAll(core, [{ id, run: 'r1', address, given }]))[0]
  expect(await claim('10.0.0.5', ['10.0.0.5'])).toEqual({ kind: 'claimed' })
  // Two leases at once: the first counts.
  expect(await claim('10.0.0.6', ['10.0.0.5', '10.0.0.6'])).toEqual({ kind: 'taken', by: '10.0.0.5' })
  expect(await claim('10.0.0.6', ['10.0.0.6'])).toEqual({ kind: 'claimed' })
  // In one go with others: each its own outcome, of one machine one after the other.
  const other = await addMachine(core, { state: 'commissioning', run: 'r2', attention_at: null })
  const claims = [
    { id, run: 'r0', address: '10.0.0.6', given: null },
    { id: other.id, run: 'r2', address: '10.0.0.8', given: null },
    { id: other.id, run: 'r2', address: '10.0.0.9', given: null },
    { id, run: 'r1', address: '10.0.0.6', given: null },
    { id: other.id, run: 'r2', address: '10.0.0.8', given: null },
  ]
  expect(await claimAll(core, claims)).toEqual([
    { kind: 'over' },
    { kind: 'claimed' },
    { kind: 'taken', by: '10.0.0.8' },
    { kind: 'claimed' },
    { kind: 'claimed' },
  ])
})

test.for([
  ['no proxy', '10.0.0.9', undefined, '10.0.0.9'],
  ['a socket of both versions of IP', '::ffff:10.0.0.9', undefined, '10.0.0.9'],
  ['a proxy that tells nothing', '10.0.0.1', undefined, '10.0.0.1'],
  ['a proxy', '::ffff:10.0.0.1', '10.0.0.9', '10.0.0.9'],
  ['a proxy behind a proxy', '10.0.0.1', '10.0.0.9, 10.0.0.2', '10.0.0.9'],
  ['a liar behind a proxy', '10.0.0.1', '10.0.0.7, 10.0.0.9', '10.0.0.9'],
  ['a proxy that tells nonsense', '10.0.0.1', 'unknown', '10.0.0.1'],
  ['a liar', '10.0.0.9', '10.0.0.7', '10.0.0.9'],
] as const)('the origin of a request by %s', ([, peer, forwarded, origin]) => {
  expect(originOf(peer, forwarded, ['10.0.0.1', '10.0.0.2'])).toBe(origin)
})

test("dnsmasq's leases are read from its file and from its log", () => {
  const text = [
    '1795836917 52:54:00:00:00:bb 10.98.0.52 * 01:52:54:00:00:00:bb',
    '1795836000 52:54:00:00:00:bb 10.98.0.53 old *',
    '0 52:54:00:00:00:bb 10.98.0.54 forever ff:00',
    '1795836917 52:54:00:00:00:bc 10.98.0.55 other *',
    '',
    '179583',
  ].join('\n')
  expect(leasesIn(text, new Date(1_795_836_500_000))).toEqual(
    new Map([
      ['52:54:00:00:00:bb', ['10.98.0.52', '10.98.0.54']],
      ['52:54:00:00:00:bc', ['10.98.0.55']],
    ]),
  )
  expect(leaseIn('1616017000 DHCPACK(lan0) 10.98.0.52 52:54:00:00:00:bb node1')).toEqual({
    address: '10.98.0.52',
    mac: '52:54:00:00:00:bb',
  })
  for (const line of ['DHCPOFFER(lan0) 10.98.0.52 52:54:00:00:00:bb', 'DHCPACK(lan0) 52:54:00:00:00:bb', 'started'])
    expect(leaseIn(line)).toBeUndefined()
})
