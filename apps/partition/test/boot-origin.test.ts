// Who is given a machine's boot script with its token, and who may speak with it: at the real door, asked from several addresses of this host.
import { type RequestOptions, request } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { readSettings } from '../src/config.ts'
import { putSubnet, reserveAddress } from '../src/domain/addresses.ts'
import { BootOrigins, bootTrusts, claimAll, originOf, weaknessesOf } from '../src/domain/boot-origin.ts'
import { leaseIn, leasesIn } from '../src/domain/dnsmasq.ts'
import { lookAtDue } from '../src/domain/engine.ts'
import { moveMachine } from '../src/domain/move.ts'
import { addMachine, newMac, operator, runPartition, startCore, type TestPartition, until } from './harness.ts'

const here = { proxies: ['127.0.0.1'] }
const partitions = {} as Record<(typeof bootTrusts)[number], TestPartition>
const ends: (() => Promise<void>)[] = []
beforeAll(async () => {
  for (const trust of bootTrusts) partitions[trust] = await runPartition({ bootOrigins: { ...here, trust } }, end => void ends.push(end))
})
afterAll(async () => {
  for (const end of ends.reverse()) await end()
})

/** A request from one of this host's addresses. */
const askFrom = (
  partition: TestPartition,
  from: string,
  path: string,
  { body = '', ...options }: RequestOptions & { body?: string } = {},
) =>
  new Promise<{ status: number | undefined; text: string }>((resolve, reject) => {
    const asking = request(`${partition.url}${path}`, { localAddress: from, agent: false, ...options }, answer => {
      let text = ''
      answer.on('data', more => (text += more)).on('end', () => resolve({ status: answer.statusCode, text }))
    })
    asking.on('error', reject).end(body)
  })
/** The script of a MAC address. */
const script = async (partition: TestPartition, mac: string, from: string, headers: Record<string, string> = {}) =>
  (await askFrom(partition, from, `/boot/ipxe/${mac}`, { headers })).text
/** What a machine's agent is answered: to the question for its job, or to a heartbeat. */
const agent = (partition: TestPartition, bearer: string | undefined, from: string, headers: Record<string, string> = {}) =>
  askFrom(partition, from, '/agent/job', { headers: { ...headers, authorization: `Bearer ${bearer}` } })
const beat = (partition: TestPartition, bearer: string | undefined, from: string) =>
  askFrom(partition, from, '/agent/signal', {
    method: 'POST',
    body: JSON.stringify({ status: 'working', step: 'cpu', message: '' }),
    headers: { authorization: `Bearer ${bearer}`, 'content-type': 'application/json' },
  })
const atWork = async (partition: TestPartition) => {
  const machine = await addMachine(partition.core, { state: 'commissioning', run: 'r1', attention_at: null })
  return { id: machine.id, mac: machine.interfaces[0]?.mac as string }
}
const token = /muster\.token=(\S+)/
const refusals = (partition: TestPartition, machine: string, kind = 'machine.boot-refused') =>
  partition.sql<{ actor: string; data: Record<string, unknown> }[]>`
    select actor, data from events where machine_id = ${machine} and kind = ${kind} order by id`

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

  test('who has the script of a machine at work is said, and an abort takes it away: the same work, ordered again, is for the machine', async () => {
    const partition = partitions.any
    const { machines } = partition.as('olga')
    const { id, interfaces } = await addMachine(partition.core, { state: 'ready' }, { powerDriver: 'manual' })
    const mac = interfaces[0]?.mac as string
    await machines.commission({ id })
    // Somebody looks at what the machine would boot.
    expect(await script(partition, mac, '127.0.0.66')).toMatch(token)
    expect(await script(partition, mac, '127.0.0.2')).not.toMatch(token)
    const stuck = await machines.explain({ id })
    expect(stuck.bootScriptGivenTo).toBe('127.0.0.66')
    expect(stuck.nextStep).toContain('127.0.0.66 was given its boot script and has not been heard since')
    await machines.abort({ id })
    expect((await machines.explain({ id })).bootScriptGivenTo).toBeUndefined()
    await machines.commission({ id })
    expect(await script(partition, mac, '127.0.0.2')).toMatch(token)
    expect((await machines.explain({ id })).bootScriptGivenTo).toBe('127.0.0.2')
  })

  test('whoever has the script and starts no agent loses it when the machine is powered on into the network once more', async () => {
    const core = await startCore({ rules: { agentStartMs: 1 } })
    const { id } = await addMachine(core, { state: 'commissioning', run: 'r1' }, { powerDriver: 'ipmi' })
    const claim = async (address: string) => (await claimAll(core, [{ id, run: 'r1', address, given: null }]))[0]
    await lookAtDue(core)
    expect(await claim('10.0.0.66')).toEqual({ kind: 'claimed' })
    expect(await claim('10.0.0.5')).toEqual({ kind: 'taken', by: '10.0.0.66' })
    await core.sql`update power_orders set state = 'done', started_at = now(), ended_at = now() where machine_id = ${id}`
    await core.sql`update machines set attention_at = now() where id = ${id}`
    await sleep(10)
    await lookAtDue(core)
    expect(await core.sql`select reason from power_orders where machine_id = ${id} order by id`).toMatchObject([
      { reason: '' },
      { reason: 'no sign of the agent' },
    ])
    expect(await claim('10.0.0.5')).toEqual({ kind: 'claimed' })
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
    expect(readSettings(base).settings.bootOrigins).toEqual({ trust: 'any', proxies: ['127.0.0.1', '::1'] })
    const beside = { ...base, MUSTER_URL: 'http://10.98.0.1', MUSTER_DHCP_INTERFACES: 'eno1', MUSTER_DHCP_PROXY: '10.98.0.0/24' }
    expect(readSettings(beside).settings.bootOrigins).toMatchObject({ trust: 'any' })
    const { MUSTER_DHCP_PROXY: _, ...served } = { ...beside, MUSTER_DHCP_RANGES: '10.98.0.5-10.98.0.9/24', MUSTER_DHCP_SHARE: '2/2' }
    expect(readSettings(served).settings.bootOrigins).toMatchObject({ trust: 'none' })
    expect(readSettings({ ...served, MUSTER_BOOT_TRUST: 'any' }).settings.bootOrigins).toMatchObject({ trust: 'any' })
    expect(() => readSettings({ ...base, MUSTER_BOOT_TRUST: 'all' })).toThrow('MUSTER_BOOT_TRUST')
  })
})

describe('the token of a task', () => {
  test('is of no use from an address that is reserved for somebody else, or for nobody', async () => {
    const partition = partitions.reserved
    const subnet = { cidr: '127.0.9.0/24', vlan: null, gateway: null, nameservers: [], description: '', reserved: [] }
    await putSubnet(partition.core, operator, { name: 'work', ...subnet })
    const { id, mac } = await atWork(partition)
    await reserveAddress(partition.core, operator, { subnet: 'work', address: '127.0.9.5', machine: id, aliases: [], note: '' })
    const bearer = token.exec(await script(partition, mac, '127.0.9.5'))?.[1]
    expect(await agent(partition, bearer, '127.0.9.5')).toMatchObject({ status: 200 })
    expect(await beat(partition, bearer, '127.0.9.5')).toMatchObject({ status: 204 })
    for (let time = 1; time <= 3; time++) {
      const stolen = await agent(partition, bearer, '127.0.9.6')
      expect(stolen.status).toBe(403)
      expect(stolen.text).toContain('this is not the address of the machine that the token was given to')
      expect(stolen.text).not.toContain('127.0.9.5')
      expect(await beat(partition, bearer, '127.0.9.6')).toMatchObject({ status: 403 })
    }
    const why = 'its boot script was given to 127.0.9.5'
    expect([...(await refusals(partition, id, 'machine.agent-refused'))]).toEqual([
      { actor: 'agent', data: { address: '127.0.9.6', why, times: 1 } },
    ])
    expect(partition.lines.filter(line => line.includes(`the agent of ${id} is not heard from 127.0.9.6: ${why}`))).toHaveLength(1)
    // The machine works on, and the proxy is believed here as it is for scripts.
    expect(await beat(partition, bearer, '127.0.9.5')).toMatchObject({ status: 204 })
    expect(await agent(partition, bearer, '127.0.0.1', { 'x-forwarded-for': '127.0.9.5' })).toMatchObject({ status: 200 })
    expect(await agent(partition, bearer, '127.0.9.6', { 'x-forwarded-for': '127.0.9.5' })).toMatchObject({ status: 403 })
    await partition.core.audit.settled()
    const entries = () => partition.core.audit.list({ after: 0, limit: 100, actor: undefined, call: 'door.refused', target: undefined })
    await until(async () =>
      (await entries()).items.some(
        ({ from, target }) => from === '127.0.9.6' && target.startsWith('agent, 7 times: this is not the address'),
      ),
    )
  })

  test('is good from anywhere where nobody knows whose an address is', async () => {
    const partition = partitions.any
    const { mac } = await atWork(partition)
    const bearer = token.exec(await script(partition, mac, '127.0.0.2'))?.[1]
    // Its agent asked another DHCP server by another name, and has another address than its firmware had.
    for (const from of ['127.0.0.2', '127.0.0.3']) expect(await beat(partition, bearer, from)).toMatchObject({ status: 204 })
  })

  test('goes on when the machine has another lease, or speaks from another of its ports; not from an address that is leased to another', async () => {
    const { core } = partitions.any
    const ports = [newMac(), newMac()]
    const interfaces = ports.map((mac, at) => ({ mac, name: `eth${at}`, speedMbps: 1000, subnet: null, ip: null }))
    const row = await addMachine(core, { state: 'commissioning', run: 'r1', attention_at: null }, { interfaces })
    const machine = { ...row, run: 'r1' }
    const leases = new Map([[ports[0], ['10.0.0.5']]])
    const readings: string[] = []
    const origins = new BootOrigins(core, { served: ['10.0.0.1/24'], trust: 'any', proxies: [] }, async macs => {
      readings.push(...macs)
      return macs.map(mac => leases.get(mac) ?? [])
    })
    const speaks = (address: string) =>
      origins.checkAgent(machine, address).then(
        () => 'heard',
        ({ code }) => code,
      )
    expect(await origins.grant({ id: row.id, run: 'r1', mac: ports[0] as string, address: '10.0.0.5' })).toEqual({ kind: 'granted' })
    for (const address of ['10.0.0.6', '192.0.2.9']) expect(await speaks(address), address).toBe('forbidden')
    expect(await speaks('10.0.0.5')).toBe('heard')
    // Its lease ran out while it worked, and it has another one.
    leases.set(ports[0], ['10.0.0.6'])
    expect(await speaks('10.0.0.5')).toBe('heard')
    expect(await speaks('10.0.0.6')).toBe('heard')
    leases.set(ports[1], ['10.0.0.7'])
    expect(await speaks('10.0.0.7')).toBe('heard')
    expect(await speaks('10.0.0.8')).toBe('forbidden')
    // Who was heard a moment ago is not looked up again.
    expect(await speaks('10.0.0.7')).toBe('heard')
    const before = readings.length
    for (let time = 1; time <= 100; time++) expect(await speaks('10.0.0.7')).toBe('heard')
    expect(readings).toHaveLength(before)
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
