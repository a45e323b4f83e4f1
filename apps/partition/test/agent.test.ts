// What machines say: enlistment, inventories, signals, and the tokens they say it with.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { MachineRow } from '../src/db/machines.ts'
import { machineToken, type TokenPurpose } from '../src/domain/machine-token.ts'
import { Seal } from '../src/domain/seal.ts'
import { addMachine, movesOf, newMac, reread, runPartition, type TestPartition, until, writeImage } from './harness.ts'

let partition: TestPartition
const ends: (() => Promise<void>)[] = []
beforeAll(async () => {
  partition = await runPartition({ rules: { place: 'lab' } }, end => void ends.push(end))
})
afterAll(async () => {
  for (const end of ends.reverse()) await end()
})

const hardware = (macs = [newMac()]) => ({
  arch: 'amd64',
  cpus: 16,
  memoryMib: 65_536,
  interfaces: macs.map(mac => ({ mac, name: 'eth0', speedMbps: 25_000 })),
  disks: [{ name: 'nvme0n1', sizeBytes: 2e12, kind: 'nvme' }],
  facts: { vendor: 'Acme', rack: 'r7', zone: 'z9' },
})
const add = (columns: Partial<MachineRow>) => addMachine(partition.core, { attention_at: null, ...columns })
const tokenOf = (machine: { id: string; run: string | null }, purpose: TokenPurpose = 'agent') =>
  machineToken(partition.core.seal, purpose, { id: machine.id, run: machine.run as string })
const post = (door: string, body: unknown, token?: string) =>
  partition.ask('POST', `/agent/${door}`, { body, ...(token !== undefined && { token }) })
const enlist = async (body: unknown) => {
  const answer = await post('enlist', body)
  return {
    status: answer.status,
    body: JSON.parse(answer.text) as { id: string; outcome: string; code?: string; errors?: { field: string }[] },
  }
}

describe('enlisting', () => {
  test('makes a machine with what was found; again changes nothing', async () => {
    const found = { ...hardware(), hostname: 'r7u1', bmc: { driver: 'ipmi', settings: { address: '10.0.0.9', user: 'a', password: 'b' } } }
    const first = await enlist(found)
    expect(first).toMatchObject({ status: 201, body: { outcome: 'created' } })
    const { id } = first.body
    expect(await partition.as('olga').machines.get({ id })).toMatchObject({
      state: 'new',
      hostname: 'r7u1',
      cpus: 16,
      rack: 'r7',
      zone: 'z9',
      disks: [{ name: 'nvme0n1' }],
      powerDriver: 'ipmi',
      powerSettings: { address: '10.0.0.9', secrets: '***' },
      inventory: found.facts,
    })
    const before =
      await partition.sql`select m.*, p.settings, p.secrets from machines m join machine_power p on p.machine_id = m.id where id = ${id}`
    // Somebody without a token says other things of the same address.
    const again = await enlist({
      ...found,
      cpus: 1,
      hostname: 'evil',
      bmc: { driver: 'ipmi', settings: { address: '6.6.6.6', user: 'x', password: 'y' } },
    })
    expect(again).toMatchObject({ status: 200, body: { id, outcome: 'known' } })
    const after =
      await partition.sql`select m.*, p.settings, p.secrets from machines m join machine_power p on p.machine_id = m.id where id = ${id}`
    expect(after.map(row => ({ ...row, attention_at: 0, claim_token: 0, claimed_until: 0 }))).toEqual(
      before.map(row => ({ ...row, attention_at: 0, claim_token: 0, claimed_until: 0 })),
    )
  })

  test('of a BMC that the machine found in itself, operators see the address, and nothing uses it before they give it credentials', async () => {
    const bmc = { address: '10.9.0.7', mac: '52:54:00:bc:bc:07', ipmi: '2.0' }
    const { id } = (await enlist({ ...hardware(), facts: { vendor: 'Acme', bmc } })).body
    const seen = await partition.as('olga').machines.get({ id })
    expect(seen).toMatchObject({ state: 'new', powerDriver: null, powerSettings: {}, inventory: { vendor: 'Acme', bmc } })
    for (const tenant of ['alice', 'rita'] as const)
      expect((await partition.as(tenant).machines.get({ id })).inventory).toEqual({ vendor: 'Acme' })
    const powerSettings = { address: bmc.address, user: 'admin', password: 'secret' }
    await partition.as('olga').machines.update({ id, powerDriver: 'ipmi', powerSettings })
    expect(await partition.as('olga').machines.get({ id })).toMatchObject({
      powerDriver: 'ipmi',
      powerSettings: { address: '10.9.0.7', secrets: '***' },
    })
  })

  test('brings no settings of a controller outside a lab: an anonymous caller would have us log in anywhere, and switch off what answers', async () => {
    const production = await runPartition()
    const bmc = { driver: 'ipmi', settings: { address: '127.0.0.1', user: 'a', password: 'b' } }
    const refused = await production.ask('POST', '/agent/enlist', { body: { ...hardware(), bmc } })
    expect(refused.status).toBe(422)
    expect(JSON.parse(refused.text)).toMatchObject({ errors: [{ field: 'bmc', message: expect.stringContaining('MUSTER_PLACE=lab') }] })
    expect(await production.sql`select from machines`).toHaveLength(0)
  })

  test('by the same machine many times at once makes one', async () => {
    const found = hardware([newMac(), newMac()])
    const answers = await Promise.all(Array.from({ length: 8 }, () => enlist(found)))
    expect(new Set(answers.map(({ body }) => body.id)).size).toBe(1)
    expect(answers.filter(({ status }) => status === 201)).toHaveLength(1)
  })

  test('by many machines of one name at once makes them all', async () => {
    const answers = await Promise.all(Array.from({ length: 8 }, () => enlist({ ...hardware(), hostname: 'localhost' })))
    expect(answers.map(({ status }) => status)).toEqual(Array(8).fill(201))
    const named = await partition.sql`select from machines where hostname = 'localhost'`
    expect(named).toHaveLength(1)
    expect(new Set(answers.map(({ body }) => body.id)).size).toBe(8)
  })

  test('takes a machine whose ports share an address', async () => {
    const mac = newMac()
    expect((await enlist(hardware([mac, mac]))).status).toBe(201)
    expect((await enlist(hardware([mac]))).body.outcome).toBe('known')
  })

  test('refuses what makes no sense, by field', async () => {
    const good = hardware()
    for (const [name, field, body] of [
      ['no interfaces', 'interfaces', { ...good, interfaces: [] }],
      ['a wrong address', 'interfaces.0.mac', { ...good, interfaces: [{ mac: 'nonsense' }] }],
      ['an unknown field', 'colour', { ...good, colour: 'red' }],
      ['a wrong architecture', 'arch', { ...good, arch: 'z80' }],
      ['no cpus', 'cpus', { ...good, cpus: 0 }],
      ['a wrong name', 'hostname', { ...good, hostname: 'Not A Host' }],
      ['a driver that no machine finds in itself', 'bmc.driver', { ...good, bmc: { driver: 'telepathy', settings: {} } }],
      ['a driver’s wrong setting', 'powerSettings.user', { ...good, bmc: { driver: 'ipmi', settings: { address: 'a', password: 'b' } } }],
    ] as const) {
      const answer = await enlist(body)
      expect(answer.status, name).toBe(422)
      expect(
        answer.body.errors?.map(error => error.field),
        name,
      ).toContain(field)
    }
    expect((await post('enlist', '{"cut off')).status).toBe(400)
    expect((await post('enlist', JSON.stringify({ ...good, facts: { noise: 'x'.repeat(1_100_000) } }))).status).toBe(413)
    const nul = await post('enlist', { ...good, facts: { dmi: 'a\u0000b' } })
    expect(nul.status).toBe(422)
  })

  test('is refused once as many wait as may, and taken again when they were looked at; whoever is known is known', async () => {
    const full = await runPartition({ rules: { enlistedMost: 2 } })
    const announce = (body: unknown) => full.ask('POST', '/agent/enlist', { body })
    const [one, two, three] = [hardware(), hardware(), hardware()]
    for (const each of [one, two]) expect((await announce(each)).status).toBe(201)
    const refused = await announce(three)
    expect(refused.status).toBe(503)
    expect(JSON.parse(refused.text)).toMatchObject({
      code: 'overloaded',
      detail: expect.stringContaining('2 machines have enlisted and wait'),
    })
    expect((await announce(one)).status).toBe(200)
    await full.sql`update machines set state = 'ready'`
    expect((await announce(three)).status).toBe(201)
  })

  test('commissions where the partition is set so, also when it died in between', async () => {
    const eager = await runPartition({ rules: { enlisted: 'commission', place: 'lab' } })
    const found = { ...hardware(), bmc: { driver: 'ipmi', settings: { address: '127.0.0.1:1', user: 'a', password: 'b' } } }
    const ask = () => eager.ask('POST', '/agent/enlist', { body: found })
    const { id } = JSON.parse((await ask()).text) as { id: string }
    expect((await movesOf(eager.sql, id))[0]).toBe('new commission commissioning')
    await eager.sql`update machines set state = 'new', last_request = null, deadline_at = null, version = version + 1 where id = ${id}`
    await ask()
    expect((await movesOf(eager.sql, id)).filter(move => move === 'new commission commissioning')).toHaveLength(2)
    await eager.stop()
  })
})

describe('the agent’s token', () => {
  test('opens its own machine’s job, and dies with its run', async () => {
    const machine = await add({ state: 'commissioning', run: 'r1' })
    const job = await partition.ask('GET', '/agent/job', { token: tokenOf(machine) })
    expect(JSON.parse(job.text)).toEqual({ kind: 'commission', machine: machine.id, heartbeatMs: 5000, scripts: [] })
    for (const [why, token] of [
      ['none', undefined],
      ['nonsense', 'nonsense'],
      ['another run', tokenOf({ ...machine, run: 'r0' })],
      ['another purpose', tokenOf(machine, 'metadata')],
      ['another machine', tokenOf({ id: 'lon1-000000', run: 'r1' })],
      ['another key', machineToken(new Seal(Buffer.alloc(32, 9)), 'agent', { id: machine.id, run: 'r1' })],
      ['a longer one', `${tokenOf(machine)}.x`],
      ['an operator’s', partition.tokens.olga],
    ] as const) {
      const answer = await partition.ask('GET', '/agent/job', token === undefined ? {} : { token })
      expect([answer.status, JSON.parse(answer.text).code], why).toEqual([401, 'unauthenticated'])
    }
    // Nor does it open anything else.
    expect((await partition.ask('GET', '/api/v1/machines', { token: tokenOf(machine) })).status).toBe(401)
    await partition.as('olga').machines.abort({ id: machine.id })
    expect((await partition.ask('GET', '/agent/job', { token: tokenOf(machine) })).status).toBeGreaterThanOrEqual(400)
  })

  test('of an installation names an image that is there, with its digest', async () => {
    const machine = await add({
      state: 'deploying',
      run: 'r1',
      hostname: 'web-9',
      deployment: { os: 'debian/12', startedAt: new Date().toISOString(), installedAt: null, deployedAt: null },
    })
    const job = JSON.parse((await partition.ask('GET', '/agent/job', { token: tokenOf(machine) })).text)
    expect(job).toMatchObject({
      kind: 'install',
      hostname: 'web-9',
      os: 'debian/12',
      seedUrl: `${partition.url}/metadata/${tokenOf(machine, 'metadata')}/`,
    })
    expect(job).toMatchObject({ dataSource: 'nocloud' })
    expect(job).not.toHaveProperty('metadata')
    const image = Buffer.from(await (await fetch(job.image.url)).arrayBuffer())
    expect(image.length).toBe(job.image.sizeBytes)
    const digest = await crypto.subtle.digest('SHA-256', image)
    expect(Buffer.from(digest).toString('hex')).toBe(job.image.sha256)
  })
})

describe('an installation for the data source of MAAS', () => {
  test('carries the keys that its metadata is signed with', async () => {
    const machine = await add({
      state: 'deploying',
      run: 'r1',
      deployment: { os: 'debian/12', dataSource: 'maas', startedAt: new Date().toISOString(), installedAt: null, deployedAt: null },
    })
    const job = JSON.parse((await partition.ask('GET', '/agent/job', { token: tokenOf(machine) })).text)
    const [consumerKey, tokenKey, tokenSecret] = tokenOf(machine, 'metadata').split('.')
    expect(job).toMatchObject({
      dataSource: 'maas',
      metadata: { url: `${partition.url}/MAAS/metadata/`, consumerKey, tokenKey, tokenSecret },
    })
  })

  test('is what the image says, unless the deploy call says otherwise', async () => {
    const folder = mkdtempSync(path.join(tmpdir(), 'muster-files-'))
    onTestFinished(() => rmSync(folder, { recursive: true }))
    const file = writeImage(folder, 'ubuntu/22.04', 'amd64')
    writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, 'utf8')), dataSource: 'maas' }))
    writeImage(folder, 'debian/12', 'amd64')
    const place = await runPartition({ folder })
    const sourceOf = async (os: string, dataSource?: 'nocloud') => {
      const owned = { owner: 'alice', allocation_id: 'a-0123456789bcdfgh', attention_at: null }
      const { id } = await addMachine(place.core, { state: 'allocated', ...owned }, { powerDriver: 'manual' })
      return (await place.as('alice').machines.deploy({ id, os, ...(dataSource && { dataSource }) })).deployment?.dataSource
    }
    expect([await sourceOf('ubuntu/22.04'), await sourceOf('debian/12'), await sourceOf('ubuntu/22.04', 'nocloud')]).toEqual([
      'maas',
      'nocloud',
      'nocloud',
    ])
    await place.stop()
  })
})

describe('an inventory', () => {
  test('replaces what was known of the hardware, but not what people set', async () => {
    const mac = newMac()
    const machine = await add({ state: 'commissioning', run: 'r1', pool: 'p7', tags: ['mine'] })
    await partition.sql`update machines set interfaces = ${partition.sql.json([{ mac, name: 'x', speedMbps: 0, subnet: '10.0.0.0/24', ip: '10.0.0.5' }])} where id = ${machine.id}`
    expect((await post('inventory', hardware([mac, newMac()]), tokenOf(machine))).status).toBe(204)
    expect(await reread(partition.core, machine.id)).toMatchObject({
      cpus: 16,
      memory_mib: 65_536,
      pool: 'p7',
      tags: ['mine'],
      state: 'commissioning',
      interfaces: [{ mac, name: 'eth0', subnet: '10.0.0.0/24', ip: '10.0.0.5' }, { subnet: null }],
    })
    expect((await partition.ask('GET', `/boot/ipxe/${mac}`)).text).toContain('commission')
  })

  test('with an address of another machine is refused, and that one keeps it', async () => {
    const other = await add({ state: 'ready' })
    const machine = await add({ state: 'commissioning', run: 'r1' })
    const foreign = other.interfaces[0]?.mac as string
    const own = machine.interfaces[0]?.mac as string
    const answer = await post('inventory', hardware([foreign]), tokenOf(machine))
    expect([answer.status, JSON.parse(answer.text).code]).toEqual([409, 'already-exists'])
    const macs = await partition.sql`select mac, machine_id from macs where mac in (${foreign}, ${own}) order by mac`
    expect(macs.map(({ machine_id }) => machine_id)).toEqual([other.id, machine.id])
    expect(await reread(partition.core, machine.id)).toMatchObject({ cpus: 8, version: machine.version })
  })

  test('outside of commissioning changes nothing, and neither does a malformed one', async () => {
    for (const state of ['deployed', 'ready', 'rescue', 'broken'] as const) {
      const machine = await add({ state, run: 'r1' })
      expect((await post('inventory', hardware(), tokenOf(machine))).status, state).toBe(409)
      expect((await reread(partition.core, machine.id)).cpus).toBe(8)
    }
    const machine = await add({ state: 'commissioning', run: 'r1' })
    for (const wrong of [
      {},
      [],
      null,
      { ...hardware(), cpus: '16' },
      { ...hardware(), disks: [{ name: 'a', sizeBytes: -1, kind: 'ssd' }] },
    ])
      expect((await post('inventory', wrong, tokenOf(machine))).status, JSON.stringify(wrong)).toBe(422)
    expect((await post('inventory', `{"arch":"${'x'.repeat(1_100_000)}"}`, tokenOf(machine))).status).toBe(413)
    expect((await reread(partition.core, machine.id)).version).toBe(machine.version)
  })
})

describe('signals', () => {
  const say = (machine: MachineRow, status: 'working' | 'done' | 'failed', more: object = {}) =>
    post('signal', { status, step: 'memory', ...more }, tokenOf(machine)).then(({ status: code }) => code)

  test('are shown as they come; a step is an event, a heartbeat is not', async () => {
    const machine = await add({ state: 'commissioning', run: 'r1' })
    for (const progress of [10, 20, 30]) expect(await say(machine, 'working', { progress })).toBe(204)
    expect(await reread(partition.core, machine.id)).toMatchObject({
      waiting_for: 'the agent: memory',
      progress: 30,
      last_signal_at: expect.any(Date),
    })
    const steps = await partition.sql`select from events where machine_id = ${machine.id} and kind = 'machine.step'`
    expect(steps).toHaveLength(1)
  })

  test('end a commissioning once', async () => {
    const machine = await add({ state: 'commissioning', run: 'r1' })
    expect(await say(machine, 'done')).toBe(204)
    const before = await reread(partition.core, machine.id)
    // A lost answer makes the agent say it again; a heartbeat may come late.
    for (const status of ['done', 'working', 'failed'] as const) await say(machine, status)
    expect(await reread(partition.core, machine.id)).toMatchObject({
      state: 'ready',
      version: before.version,
      fault: null,
      waiting_for: before.waiting_for,
    })
    expect(await movesOf(partition.sql, machine.id)).toEqual(['commissioning commissioned ready'])
  })

  test('of a failure are the fault, with the agent’s own words', async () => {
    const machine = await add({ state: 'commissioning', run: 'r1' })
    expect(await say(machine, 'failed', { message: 'DIMM A2 is broken' })).toBe(204)
    expect(await reread(partition.core, machine.id)).toMatchObject({
      state: 'failed_commissioning',
      fault: { code: 'memory-failed', message: 'DIMM A2 is broken', hint: expect.any(String) },
    })
    const before = await reread(partition.core, machine.id)
    await say(machine, 'working')
    await say(machine, 'failed', { message: 'again' })
    expect(await reread(partition.core, machine.id)).toMatchObject({ version: before.version, fault: before.fault })
  })

  test('of the rescue system come after its job, which names who may log in; leaving it forgets them', async () => {
    const machine = await add({ state: 'ready', power_driver: 'manual' })
    await partition.as('olga').machines.update({ id: machine.id, powerDriver: 'manual', powerSettings: {} })
    await partition.as('olga').machines.rescue({ id: machine.id, sshKeys: ['ssh-ed25519 AAAA me@home\n'] })
    await expect(partition.as('olga').machines.rescue({ id: machine.id, sshKeys: ['two\nlines'] })).rejects.toMatchObject({
      code: 'invalid-input',
    })
    const inRescue = await reread(partition.core, machine.id)
    const job = await partition.ask('GET', '/agent/job', { token: tokenOf(inRescue) })
    expect(JSON.parse(job.text)).toMatchObject({ kind: 'rescue', sshKeys: ['ssh-ed25519 AAAA me@home'] })
    await say(inRescue, 'working', { step: 'rescue', message: 'waiting for you: ssh root@10.0.0.5' })
    expect((await partition.as('olga').machines.get({ id: machine.id })).waitingFor).toContain('ssh root@10.0.0.5')
    await partition.as('olga').machines.exitRescue({ id: machine.id })
    expect(await reread(partition.core, machine.id)).toMatchObject({ state: 'ready', rescue_keys: [] })
  })

  test('of the rescue system come from a machine that was adopted too, which nobody here had ever given a token', async () => {
    const machine = await add({ state: 'new', run: null, power_driver: 'manual' })
    await partition.as('olga').machines.update({ id: machine.id, powerDriver: 'manual', powerSettings: {} })
    await partition.as('olga').machines.adopt({ id: machine.id })
    await partition.as('olga').machines.rescue({ id: machine.id })
    expect((await partition.ask('GET', `/boot/ipxe/${machine.interfaces[0]?.mac}`)).text).toContain('muster.mode=rescue')
    const inRescue = await reread(partition.core, machine.id)
    await say(inRescue, 'working', { step: 'rescue', message: 'waiting for you: ssh root@10.0.0.5' })
    expect((await partition.as('olga').machines.get({ id: machine.id })).waitingFor).toContain('ssh root@10.0.0.5')
    await partition.as('olga').machines.exitRescue({ id: machine.id })
    expect(await reread(partition.core, machine.id)).toMatchObject({ state: 'deployed', run: null })
    expect((await partition.ask('GET', '/agent/job', { token: tokenOf(inRescue) })).status).toBe(401)
  })

  test('of an installation turn network boot off, once', async () => {
    const machine = await add({
      state: 'deploying',
      run: 'r1',
      deployment: { os: 'debian/12', startedAt: new Date().toISOString(), installedAt: null, deployedAt: null },
    })
    for (const step of ['download', 'download', 'write']) await say(machine, 'working', { step })
    const { deployment } = await reread(partition.core, machine.id)
    expect(deployment?.steps?.map(({ step }) => step)).toEqual(['download', 'write'])
    expect(await say(machine, 'done')).toBe(204)
    const installed = await reread(partition.core, machine.id)
    expect(installed).toMatchObject({ state: 'deploying', netboot: false, deployment: { installedAt: expect.any(String) } })
    await say(machine, 'done')
    await say(machine, 'working')
    expect(await reread(partition.core, machine.id)).toMatchObject({
      version: installed.version,
      deployment: installed.deployment,
      waiting_for: installed.waiting_for,
    })
    expect(await partition.sql`select from events where machine_id = ${machine.id} and kind = 'machine.installed'`).toHaveLength(1)
    // The machine restarts while the network still comes first.
    expect((await partition.ask('GET', `/boot/ipxe/${machine.interfaces[0]?.mac}`)).text).toContain('boot from disk')
  })

  test('of an installation leave in the log how long each stage took, and those that a power loss repeated twice', async () => {
    const ago = (seconds: number) => new Date(Date.now() - seconds * 1000).toISOString()
    const machine = await add({
      state: 'deploying',
      run: 'r1',
      deployment: { os: 'debian/12', startedAt: ago(90), installedAt: null, deployedAt: null },
    })
    await partition.sql`update machines set state_since = now() - interval '90 s' where id = ${machine.id}`
    for (const step of ['download', 'download', 'write', 'download', 'write'])
      expect((await post('signal', { status: 'working', step }, tokenOf(machine))).status).toBe(204)
    await post('signal', { status: 'done', step: 'install' }, tokenOf(machine))
    expect((await partition.ask('POST', `/metadata/${tokenOf(machine, 'metadata')}/phone-home`)).status).toBe(204)
    expect(await reread(partition.core, machine.id)).toMatchObject({ state: 'deployed' })
    const [event] = await partition.sql<{ data: { took: { seconds: number; stages: { stage: string; seconds: number }[] } } }[]>`
      select data from events where machine_id = ${machine.id} and kind = 'machine.moved'`
    const { seconds, stages } = (event as { data: { took: { seconds: number; stages: { stage: string; seconds: number }[] } } }).data.took
    expect(stages.map(({ stage }) => stage)).toEqual(['power', 'download', 'write', 'download', 'write', 'first boot'])
    expect(stages[0]?.seconds).toBeGreaterThanOrEqual(90)
    // Each is rounded by itself.
    expect(Math.abs(stages.reduce((sum, stage) => sum + stage.seconds, 0) - seconds)).toBeLessThanOrEqual(3)
    // Of other work by the machine there is a number only, and the last counts.
    await partition.as('olga').machines.release({ id: machine.id })
    await until(async () => (await reread(partition.core, machine.id)).state === 'ready')
    expect(await partition.as('rita').machines.explain({ id: machine.id })).toMatchObject({
      lastWork: [
        { state: 'deploying', endedAt: expect.any(String), seconds, stages },
        { state: 'releasing', seconds: expect.any(Number) },
      ],
    })
  })

  test('that make no sense are refused', async () => {
    const machine = await add({ state: 'commissioning', run: 'r1' })
    for (const wrong of [
      {},
      { status: 'fine', step: 'x' },
      { status: 'done' },
      { status: 'done', step: 'x', progress: 101 },
      { status: 'done', step: 'x', extra: 1 },
    ])
      expect((await post('signal', wrong, tokenOf(machine))).status, JSON.stringify(wrong)).toBe(422)
    expect((await reread(partition.core, machine.id)).version).toBe(machine.version)
  })
})
