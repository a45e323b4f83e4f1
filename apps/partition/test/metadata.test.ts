// What cloud-init reads: NoCloud over HTTP, with a token that is the machine's and this deployment's.
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { parse } from 'yaml'
import type { MachineRow } from '../src/db/machines.ts'
import { machineToken, type TokenPurpose } from '../src/domain/machine-token.ts'
import { deploymentContext } from '../src/domain/machines.ts'
import { addMachine, movesOf, newMac, reread, runPartition, type TestPartition, until } from './harness.ts'

let partition: TestPartition
const ends: (() => Promise<void>)[] = []
beforeAll(async () => {
  partition = await runPartition({}, end => void ends.push(end))
})
afterAll(async () => {
  for (const end of ends.reverse()) await end()
})

const owned = { owner: 'alice', allocation_id: 'a-0123456789bcdfgh' }
const files = ['meta-data', 'user-data', 'vendor-data', 'network-config'] as const
const tokenOf = (machine: { id: string; run: string | null }, purpose: TokenPurpose = 'metadata') =>
  machineToken(partition.core.seal, purpose, { id: machine.id, run: machine.run as string })
const read = (machine: { id: string; run: string | null }, file: string, purpose?: TokenPurpose) =>
  partition.ask('GET', `/metadata/${tokenOf(machine, purpose)}/${file}`)

async function deploying(columns: Partial<MachineRow> = {}, secrets: object = { userData: null, sshKeys: [] }): Promise<MachineRow> {
  const machine = await addMachine(partition.core, {
    state: 'deploying',
    run: 'r1',
    attention_at: null,
    deployment: { os: 'debian/12', startedAt: new Date().toISOString(), installedAt: null, deployedAt: null },
    ...owned,
    ...columns,
  })
  await partition.sql`update machines set deployment_secrets = ${partition.core.seal.seal(secrets, deploymentContext(machine.id))} where id = ${machine.id}`
  return reread(partition.core, machine.id)
}

describe('the seed', () => {
  test('is YAML that says who the machine is, what its user wants, and where to phone', async () => {
    const keys = ['ssh-ed25519 AAAA "quoted": # & *odd', 'ssh-rsa BBBB\ttab']
    const userData = '#cloud-config\npackages: [htop]\n# ü €\n'
    const machine = await deploying({ hostname: 'web-7' }, { userData, sshKeys: keys })
    expect(parse((await read(machine, 'meta-data')).text)).toEqual({
      'instance-id': `${machine.id}-r1`,
      'local-hostname': 'web-7',
      'public-keys': keys,
    })
    expect((await read(machine, 'user-data')).text).toBe(userData)
    const vendor = (await read(machine, 'vendor-data')).text
    expect(vendor).toMatch(/^#cloud-config\n/)
    const { url } = (parse(vendor) as { phone_home: { url: string } }).phone_home
    expect(url).toBe(`${partition.url}/metadata/${tokenOf(machine)}/phone-home`)
    const mac = machine.interfaces[0]?.mac
    expect(parse((await read(machine, 'network-config')).text)).toEqual({
      version: 2,
      ethernets: { port0: { match: { macaddress: mac }, dhcp4: true, optional: false } },
    })
  })

  test('without anything from the user is a config that does nothing', async () => {
    const machine = await deploying()
    expect(parse((await read(machine, 'user-data')).text)).toEqual({})
    expect(parse((await read(machine, 'meta-data')).text)).toMatchObject({ 'public-keys': [] })
  })

  test('has each port of the machine, only the first of which must come up', async () => {
    const machine = await deploying()
    await partition.sql`update machines set interfaces = ${partition.sql.json([{ mac: newMac() }, { mac: newMac() }])} where id = ${machine.id}`
    const { ethernets } = parse((await read(machine, 'network-config')).text) as { ethernets: Record<string, { optional: boolean }> }
    expect(Object.values(ethernets).map(({ optional }) => optional)).toEqual([false, true])
  })

  test('asks for a name that is not there with 404, as cloud-init expects', async () => {
    const machine = await deploying()
    for (const file of ['meta-data.json', 'nothing', '']) expect((await read(machine, file)).status, file).toBe(404)
  })
})

describe('the token', () => {
  test('is this deployment’s alone', async () => {
    const machine = await deploying()
    for (const [why, path] of [
      ['another run', tokenOf({ ...machine, run: 'r0' })],
      ['the agent’s', tokenOf(machine, 'agent')],
      ['another machine', tokenOf({ id: 'lon1-000000', run: 'r1' })],
      ['nonsense', 'nonsense'],
      ['an operator’s', partition.tokens.olga],
    ] as const)
      for (const file of files) expect((await partition.ask('GET', `/metadata/${path}/${file}`)).status, `${why} ${file}`).toBe(401)
    expect((await partition.ask('POST', `/metadata/${tokenOf(machine, 'agent')}/phone-home`)).status).toBe(401)
    expect((await partition.ask('GET', '/agent/job', { token: tokenOf(machine) })).status).toBe(401)
  })

  test('is dead from the moment of the release, whatever becomes of the machine', async () => {
    const machine = await deploying({ state: 'deployed', netboot: false })
    for (const file of files) expect((await read(machine, file)).status).toBe(200)
    await partition.as('alice').machines.release({ id: machine.id })
    for (const file of files) expect((await read(machine, file)).status).toBe(401)
    await until(async () => (await reread(partition.core, machine.id)).state === 'ready')
    for (const file of files) expect((await read(machine, file)).status).toBe(401)
    expect(await reread(partition.core, machine.id)).toMatchObject({ run: null, deployment: null, deployment_secrets: null, owner: null })
  })

  test('of the run before is dead when the machine is deployed again', async () => {
    const machine = await addMachine(
      partition.core,
      { state: 'allocated', run: 'r9', attention_at: null, ...owned },
      { powerDriver: 'manual' },
    )
    await partition.as('alice').machines.deploy({ id: machine.id, os: 'debian/12', userData: 'first' })
    const first = await reread(partition.core, machine.id)
    expect((await read(first, 'user-data')).text).toBe('first')
    expect((await read(machine, 'user-data')).status).toBe(401)
    await partition.as('alice').machines.abort({ id: machine.id })
    await partition.as('alice').machines.deploy({ id: machine.id, os: 'debian/12', userData: 'second' })
    const second = await reread(partition.core, machine.id)
    expect(second.run).not.toBe(first.run)
    expect((await read(first, 'user-data')).status).toBe(401)
    expect((await read(second, 'user-data')).text).toBe('second')
  })

  test('stays good through a rescue of a deployed machine', async () => {
    const machine = await deploying({ state: 'deployed', netboot: false })
    await partition.sql`update machine_power set driver = 'manual' where machine_id = ${machine.id}`
    await partition.as('alice').machines.rescue({ id: machine.id })
    expect((await read(machine, 'meta-data')).status).toBe(200)
    await partition.as('alice').machines.exitRescue({ id: machine.id })
    expect((await read(machine, 'meta-data')).status).toBe(200)
    expect(await reread(partition.core, machine.id)).toMatchObject({ state: 'deployed', netboot: false })
  })
})

test('reading changes nothing', async () => {
  const machine = await deploying()
  const rows = async () => [
    await partition.sql`select * from machines where id = ${machine.id}`,
    await partition.sql`select * from machine_power where machine_id = ${machine.id}`,
    await partition.sql`select kind from events where machine_id = ${machine.id}`,
  ]
  const before = await rows()
  for (const file of [...files, 'phone-home', 'nothing']) await read(machine, file)
  expect(await rows()).toEqual(before)
})

describe('phoning home', () => {
  const phone = (machine: { id: string; run: string | null }) =>
    partition.ask('POST', `/metadata/${tokenOf(machine)}/phone-home`, {
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
      body: `instance_id=${machine.id}&hostname=x`,
    })

  test('makes the machine deployed, once', async () => {
    const machine = await deploying({ netboot: false })
    for (let again = 0; again < 3; again++) expect((await phone(machine)).status).toBe(204)
    expect(await reread(partition.core, machine.id)).toMatchObject({
      state: 'deployed',
      deployment: { os: 'debian/12', deployedAt: expect.any(String) },
      deadline_at: null,
    })
    expect(await movesOf(partition.sql, machine.id)).toEqual(['deploying deployed deployed'])
  })

  test('before the installation is done, or after the deployment failed, moves nothing', async () => {
    const early = await deploying({ netboot: true })
    const late = await deploying({ state: 'failed_deployment', netboot: false })
    for (const machine of [early, late]) {
      expect((await phone(machine)).status).toBe(204)
      expect((await reread(partition.core, machine.id)).version).toBe(machine.version)
    }
  })
})
