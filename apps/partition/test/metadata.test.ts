// What cloud-init reads: NoCloud over HTTP, with a token that is the machine's and this deployment's.

import { gzipSync } from 'node:zlib'
import { userDataLimitBytes } from '@muster/shared/cloud-init'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { parse } from 'yaml'
import type { MachineRow } from '../src/db/machines.ts'
import { machineToken, type TokenPurpose } from '../src/domain/machine-token.ts'
import { type DeploymentSecrets, metadataCredentials, readUserData, sealDeployment } from '../src/domain/metadata.ts'
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

async function deploying(
  columns: Partial<MachineRow> = {},
  secrets: DeploymentSecrets = { userData: null, sshKeys: [] },
): Promise<MachineRow> {
  const machine = await addMachine(partition.core, {
    state: 'deploying',
    run: 'r1',
    attention_at: null,
    deployment: { os: 'debian/12', startedAt: new Date().toISOString(), installedAt: null, deployedAt: null },
    ...owned,
    ...columns,
  })
  await partition.sql`update machines set deployment_secrets = ${sealDeployment(partition.core, machine.id, secrets)} where id = ${machine.id}`
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
      secrets_url: `${partition.url}/metadata/${tokenOf(machine)}/secrets`,
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

  test('too large is refused with what to do about it', async () => {
    const machine = await addMachine(partition.core, { state: 'allocated', attention_at: null, ...owned }, { powerDriver: 'manual' })
    const deploy = (userData: string) => partition.as('alice').machines.deploy({ id: machine.id, os: 'debian/12', userData })
    // In bytes, not in characters.
    await expect(deploy('€'.repeat(userDataLimitBytes / 3 + 1))).rejects.toMatchObject({
      code: 'invalid-input',
      message: expect.stringMatching(/^userData: is larger than 524288 bytes; compress it/),
    })
    const largest = `#!/bin/sh\n${'x'.repeat(userDataLimitBytes - 10)}`
    expect(await deploy(largest)).toMatchObject({ state: 'deploying' })
    expect((await read(await reread(partition.core, machine.id), 'user-data')).text).toBe(largest)
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
    expect(await reread(partition.core, machine.id)).toMatchObject({ run: null, deployment: null, owner: null })
    expect(await partition.sql`select deployment_secrets from machines where id = ${machine.id}`).toMatchObject([
      { deployment_secrets: null },
    ])
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

test('a row is read with every column but its secrets, which may be large, and who holds it', async () => {
  const found = await partition.sql<
    { name: string }[]
  >`select column_name as name from information_schema.columns where table_name = 'machines'`
  const unread = ['deployment_secrets', 'claimed_until']
  const names = found.map(({ name }) => name).filter(name => !unread.includes(name))
  expect(Object.keys(await deploying()).sort()).toEqual([...names, 'power', 'power_seen_at', 'power_driver'].sort())
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

  test('keeps the SSH host keys that came with it, and only what is one', async () => {
    const machine = await deploying({ netboot: false })
    const key = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAsd'
    await partition.ask('POST', `/metadata/${tokenOf(machine)}/phone-home`, {
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
      body: new URLSearchParams({
        pub_key_ed25519: `${key} root@web-7\n`,
        pub_key_rsa: 'N/A',
        pub_key_ecdsa: '<script>',
        pub_key_dsa: 'x',
      }).toString(),
    })
    expect((await reread(partition.core, machine.id)).deployment?.hostKeys).toEqual([key])
    const odd = await deploying({ netboot: false })
    const headers = { 'content-type': 'multipart/form-data; boundary=none' }
    expect((await partition.ask('POST', `/metadata/${tokenOf(odd)}/phone-home`, { headers, body: 'no form' })).status).toBe(204)
    expect(await reread(partition.core, odd.id)).toMatchObject({ state: 'deployed' })
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

describe('user-data in base64', () => {
  const base64 = (text: string | Buffer) => Buffer.from(text).toString('base64')

  test('is taken for what it encodes', () => {
    expect(readUserData(base64('#!/bin/sh\n'))).toEqual({ userData: '#!/bin/sh\n' })
    // As `base64` prints it: in lines.
    const long = `#cloud-config\n${'# filler\n'.repeat(20)}`
    expect(readUserData(base64(long).replace(/.{76}/g, '$&\n'))).toEqual({ userData: long })
    const packed = gzipSync('#cloud-config\n{}\n')
    expect(readUserData(base64(packed))).toEqual({ userData: base64(packed), userDataEncoding: 'base64' })
  })

  test('is only what is user-data when decoded; every other text stays as it is', () => {
    for (const text of ['#cloud-config\n{}\n', 'abcd', 'password', base64('just words'), 'Content-Type: x', 'IyE=x', '####', ' '])
      expect(readUserData(text), text).toEqual({ userData: text })
    expect(readUserData(undefined)).toEqual({ userData: null })
    expect(readUserData('')).toEqual({ userData: null })
  })
})

describe('a secret of the deployment', () => {
  const take = (machine: { id: string; run: string | null }, name: string, purpose?: TokenPurpose) =>
    partition.ask('POST', `/metadata/${tokenOf(machine, purpose)}/secrets/${name}`)

  test('is handed out once, and the event says so without telling it', async () => {
    const machine = await deploying({ netboot: false }, { userData: null, sshKeys: [], oneTime: { join: 'abc-123', other: 'x' } })
    const answers = await Promise.all(Array.from({ length: 6 }, () => take(machine, 'join')))
    expect(answers.filter(({ status }) => status === 200).map(({ text }) => text)).toEqual(['abc-123'])
    expect(answers.filter(({ status }) => status === 409)).toHaveLength(5)
    expect(JSON.parse((await take(machine, 'join')).text)).toMatchObject({ code: 'already-taken' })
    expect((await take(machine, 'other')).text).toBe('x')
    const events =
      await partition.sql`select data from events where machine_id = ${machine.id} and kind = 'machine.secret-taken' order by id`
    expect(events.map(({ data }) => data)).toEqual([{ name: 'join' }, { name: 'other' }])
  })

  test('is not for the agent, nor for reading, nor under another name', async () => {
    const secrets = { userData: null, sshKeys: [], oneTime: { join: 'abc' } }
    const machine = await deploying({ netboot: false }, secrets)
    expect((await take(machine, 'join', 'agent')).status).toBe(401)
    expect((await read(machine, 'secrets/join')).status).toBe(404)
    for (const name of ['toString', '__proto__', 'join2']) expect((await take(machine, name)).status, name).toBe(404)
    const early = await deploying({ netboot: true }, secrets)
    expect((await take(early, 'join')).status).toBe(409)
    expect((await take(machine, 'join')).text).toBe('abc')
  })

  test('of a deploy call is sealed, and never shown', async () => {
    const machine = await addMachine(partition.core, { state: 'allocated', attention_at: null, ...owned }, { powerDriver: 'manual' })
    const answer = await partition.as('alice').machines.deploy({ id: machine.id, os: 'debian/12', secrets: { join: 'hush-hush-hush' } })
    const shown = [
      answer,
      await partition.as('olga').machines.get({ id: machine.id }),
      await partition.as('olga').machines.explain({ id: machine.id }),
    ]
    const rows = await partition.sql`select m.*, encode(deployment_secrets, 'escape') as sealed from machines m where id = ${machine.id}`
    const events = await partition.sql`select * from events where machine_id = ${machine.id}`
    expect(JSON.stringify([shown, rows, events])).not.toContain('hush-hush-hush')
    expect(partition.lines.join('\n')).not.toContain('hush-hush-hush')
  })
})

describe('reports of the first boot', () => {
  const report = (machine: { id: string; run: string | null }, body: unknown, purpose?: TokenPurpose) =>
    partition.ask('POST', `/metadata/${tokenOf(machine, purpose)}/report`, { body })
  const reportsOf = (id: string) =>
    partition.sql`select data from events where machine_id = ${id} and kind = 'machine.cloud-init' order by id`

  test('sent together become one change, and files in them are dropped', async () => {
    const machine = await deploying({ netboot: false })
    const content = 'c2VjcmV0IGxvZw=='
    const answers = await Promise.all(
      Array.from({ length: 60 }, (_, index) =>
        report(machine, {
          event_type: 'finish',
          origin: 'cloudinit',
          name: `modules-config/config-${index}\0`,
          description: 'x'.repeat(5000),
          timestamp: 1.5,
          result: 'SUCCESS',
          level: 'INFO',
          files: [{ path: `/var/log/${index}.log`, encoding: 'base64', content }],
        }),
      ),
    )
    expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([204]))
    await until(async () => (await reread(partition.core, machine.id)).deployment?.firstBoot?.step)
    const events = await reportsOf(machine.id)
    expect(events.reduce((sum, { data }) => sum + data.reports, 0)).toBe(60)
    expect(events.length).toBeLessThan(6)
    expect(JSON.stringify(events)).not.toContain(content)
    expect(JSON.stringify(events).length).toBeLessThan(20_000)
  })

  test('that make no sense are refused; those of an ended run, or of an agent, too', async () => {
    const machine = await deploying({ netboot: false })
    for (const wrong of [{}, [], null, { event_type: 'start' }, { event_type: 'boom', name: 'x' }, { event_type: 'finish', name: 7 }])
      expect((await report(machine, wrong)).status, JSON.stringify(wrong)).toBe(422)
    expect((await report(machine, '{"cut')).status).toBe(400)
    const good = { event_type: 'start', name: 'modules-final', description: '' }
    expect((await report(machine, good, 'agent')).status).toBe(401)
    expect((await report({ ...machine, run: 'r0' }, good)).status).toBe(401)
    expect((await report(machine, good)).status).toBe(204)
  })

  test('before the system is installed, or after the deployment failed, change nothing', async () => {
    for (const machine of [await deploying({ netboot: true }), await deploying({ state: 'failed_deployment', netboot: false })]) {
      expect((await report(machine, { event_type: 'finish', name: 'modules-final', result: 'FAIL' })).status).toBe(204)
      expect((await reread(partition.core, machine.id)).version).toBe(machine.version)
    }
  })

  test('of a failure after phoning home are the deployed machine’s fault', async () => {
    const machine = await deploying({ netboot: false })
    await partition.ask('POST', `/metadata/${tokenOf(machine)}/phone-home`)
    await report(machine, { event_type: 'finish', name: 'modules-final/config-scripts-user', result: 'FAIL' })
    await report(machine, { event_type: 'finish', name: 'modules-final', result: 'FAIL' })
    const fault = { code: 'cloud-init-failed', message: expect.stringContaining('modules-final/config-scripts-user') }
    const row = await reread(partition.core, machine.id)
    expect(row).toMatchObject({ state: 'deployed', fault, deployment: { firstBoot: { failures: ['modules-final/config-scripts-user'] } } })
  })

  test('of a boot after the first was cut off take its failures back', async () => {
    const machine = await deploying({ netboot: false })
    const finish = (name: string, result: string) => report(machine, { event_type: 'finish', name, result })
    await finish('modules-config/config-ntp', 'FAIL')
    expect((await reread(partition.core, machine.id)).fault).toMatchObject({ code: 'cloud-init-failed' })
    await finish('modules-config/config-ntp', 'SUCCESS')
    await finish('modules-final', 'SUCCESS')
    expect(await reread(partition.core, machine.id)).toMatchObject({
      state: 'deployed',
      fault: null,
      deployment: { firstBoot: { failures: [] } },
    })
  })

  test('whose end was stored by a replica that died before the move are heard again', async () => {
    const machine = await deploying({ netboot: false })
    const end = {
      step: 'modules-final',
      description: '',
      failures: [],
      reportedAt: new Date().toISOString(),
      endedAt: new Date().toISOString(),
    }
    await partition.sql`update machines set deployment = deployment || ${partition.sql.json({ firstBoot: end })} where id = ${machine.id}`
    await report(machine, { event_type: 'finish', name: 'modules-final', result: 'SUCCESS' })
    expect(await reread(partition.core, machine.id)).toMatchObject({ state: 'deployed' })
  })

  test('tell why a deployment ended at its deadline', async () => {
    const silent = await deploying({ netboot: false })
    const failing = await deploying({ netboot: false })
    await report(silent, { event_type: 'start', name: 'init-network/config-growpart', description: 'growing' })
    await report(failing, { event_type: 'finish', name: 'init-network', result: 'FAIL' })
    await until(async () => (await reread(partition.core, silent.id)).waiting_for?.includes('growpart'))
    for (const { id } of [silent, failing])
      await partition.sql`update machines set deadline_at = now(), attention_at = now(), version = version + 1 where id = ${id}`
    partition.core.bells.engine.ring()
    for (const { id } of [silent, failing]) await until(async () => (await reread(partition.core, id)).state === 'failed_deployment')
    expect((await reread(partition.core, silent.id)).fault).toMatchObject({
      code: 'deadline-passed',
      message: expect.stringContaining('its cloud-init is at init-network/config-growpart (growing)'),
    })
    expect((await reread(partition.core, failing.id)).fault).toMatchObject({
      code: 'cloud-init-failed',
      message: expect.stringMatching(/failed: init-network; it never phoned home$/),
    })
  })
})

describe('the metadata service of MAAS', () => {
  const authorization = (machine: { id: string; run: string | null }) => {
    const { consumerKey, tokenKey, tokenSecret } = metadataCredentials(
      partition.core,
      { id: machine.id, run: machine.run as string },
      partition.url,
    )
    return `OAuth oauth_nonce="1", oauth_version="1.0",oauth_timestamp="${Math.floor(Date.now() / 1000)}", oauth_signature_method="PLAINTEXT", oauth_consumer_key="${consumerKey}", oauth_token="${tokenKey}", oauth_signature="%26${tokenSecret}"`
  }
  const get = (machine: { id: string; run: string | null }, place: string) =>
    partition.ask('GET', `/MAAS/metadata${place}`, { headers: { authorization: authorization(machine) } })
  const post = (machine: { id: string; run: string | null }, place: string, form: Record<string, string> | FormData) =>
    fetch(`${partition.url}/MAAS/metadata${place}`, {
      method: 'POST',
      headers: { authorization: authorization(machine) },
      body: form instanceof FormData ? form : new URLSearchParams(form),
    })

  test('serves each file under both versions, with slashes doubled or not', async () => {
    const machine = await deploying({ hostname: 'web-8' }, { userData: '#!/bin/sh\n', sshKeys: ['ssh-rsa A', 'ssh-rsa B'] })
    for (const [place, text] of [
      ['', '2012-03-01\nlatest'],
      ['/2012-03-01/', 'meta-data\nuser-data'],
      ['/latest/meta-data/', 'instance-id\nlocal-hostname\npublic-keys\nvendor-data'],
      ['/2012-03-01/meta-data/instance-id', `${machine.id}-r1`],
      ['//latest//meta-data//local-hostname', 'web-8'],
      ['/2012-03-01/meta-data/public-keys', 'ssh-rsa A\nssh-rsa B'],
      ['//2012-03-01/user-data', '#!/bin/sh\n'],
    ] as const)
      expect(await get(machine, place), place).toMatchObject({ status: 200, text })
    const none = await get(await deploying(), '/2012-03-01/meta-data/public-keys')
    expect([none.status, none.text, none.headers.get('content-type')]).toEqual([200, '', expect.stringContaining('text/plain')])
    for (const place of ['/2011-01-01/meta-data/instance-id', '/2012-03-01/meta-data/x509', '/2012-03-01/maas-scripts', '/latest/toString'])
      expect((await get(machine, place)).status, place).toBe(404)
  })

  test('gives nothing to who does not sign, whatever they know', async () => {
    const machine = await deploying({ netboot: false }, { userData: 'SECRET', sshKeys: [] })
    const before = machine.version
    for (const [method, place] of [
      ['GET', '/'],
      ['GET', `/latest/by-id/${machine.id}/?op=get_preseed`],
      ['GET', `/latest/by-id/${machine.id}/?op=netboot_off`],
      ['POST', `/latest/by-id/${machine.id}/?op=netboot_off`],
      ['GET', '/latest/enlist-preseed/?op=get_enlist_preseed'],
      ['GET', `/latest/by-mac/${machine.interfaces[0]?.mac}/user-data`],
      ['GET', '/enlist/2012-03-01/meta-data/instance-id'],
      ['GET', '/latest/user-data'],
      ['POST', '/latest/?op=netboot_off'],
      ['POST', `/status/${machine.id}`],
    ] as const) {
      const answer = await partition.ask(method, `/MAAS/metadata${place}`)
      expect([answer.status, place]).toEqual([401, place])
      expect(answer.headers.get('date')).toBeTruthy()
      expect(answer.headers.get('www-authenticate')).toMatch(/^OAuth /)
      expect(answer.text).not.toContain('SECRET')
    }
    // Nor to a machine that signs for itself and asks for another, or for more.
    const other = await deploying()
    expect((await get(other, `/latest/by-id/${machine.id}/?op=get_preseed`)).status).toBe(404)
    expect((await post(other, `/latest/by-id/${machine.id}/`, { op: 'netboot_off' })).status).toBe(404)
    expect((await post(other, `/status/${machine.id}`, {})).status).toBe(401)
    expect((await post(other, '/latest/', { op: 'netboot_on' })).status).toBe(400)
    expect((await reread(partition.core, machine.id)).version).toBe(before)
  })

  test('takes the credentials of this run alone, and a clock that is not far off', async () => {
    const machine = await deploying()
    const good = authorization(machine)
    const ask = (header: string) => partition.ask('GET', '/MAAS/metadata/latest/user-data', { headers: { authorization: header } })
    const stamp = /oauth_timestamp="\d+"/
    for (const [why, header] of [
      ['another run', authorization({ ...machine, run: 'r0' })],
      ['the consumer’s secret filled in', good.replace('"%26', '"x%26')],
      ['another method', good.replace('PLAINTEXT', 'HMAC-SHA1')],
      ['another version', good.replace('"1.0"', '"2.0"')],
      ['an old clock', good.replace(stamp, 'oauth_timestamp="12345"')],
      ['no time at all', good.replace(stamp, 'oauth_timestamp="soon"')],
      ['a broken escape', good.replace('%26', '%2')],
      ['a bearer', `Bearer ${tokenOf(machine)}`],
      [
        'the agent’s token in parts',
        good.replace(tokenOf(machine).split('.')[2] as string, tokenOf(machine, 'agent').split('.')[2] as string),
      ],
    ] as const)
      expect((await ask(header)).status, why).toBe(401)
    // RFC 5849, 3.1: PLAINTEXT may leave out time and nonce. Nothing else is wrong with it.
    expect((await ask(good.replace(stamp, 'x="1"'))).status).toBe(404)
    expect((await ask(good)).status).toBe(404)
  })

  test('hears signals as clients send them, with files that are dropped', async () => {
    const machine = await deploying({ netboot: true })
    expect((await post(machine, '/2012-03-01/', { op: 'netboot_off' })).status).toBe(200)
    expect(await reread(partition.core, machine.id)).toMatchObject({
      state: 'deploying',
      netboot: false,
      deployment: { installedAt: expect.any(String) },
    })
    const form = new FormData()
    form.set('op', 'signal')
    form.set('status', 'OK')
    form.set('00-log.out', new Blob(['log']), '00-log.out')
    for (let again = 0; again < 2; again++) expect((await post(machine, '//latest/', form)).status).toBe(200)
    expect(await movesOf(partition.sql, machine.id)).toEqual(['deploying deployed deployed'])

    const failing = await deploying({ netboot: false })
    expect((await post(failing, '/latest/?op=signal', { status: 'BOOM' })).status).toBe(400)
    expect((await post(failing, '/latest/?op=signal', { status: 'FAILED', error: 'no root\0 disk' })).status).toBe(200)
    expect(await reread(partition.core, failing.id)).toMatchObject({
      state: 'failed_deployment',
      fault: { code: 'first-boot-failed', message: 'no root disk' },
    })
  })

  test('answers whatever it is sent, signed or not, with what a client can understand', async () => {
    const machine = await deploying({ netboot: false }, { userData: 'x', sshKeys: [] })
    const good = authorization(machine)
    const before = await partition.sql`select version, state from machines where id = ${machine.id}`
    const word = fc.constantFrom(
      'latest',
      '2012-03-01',
      'meta-data',
      'user-data',
      'status',
      machine.id,
      '..',
      '%2e%2e',
      '%00',
      '',
      'by-id',
      'x'.repeat(300),
    )
    const header = fc.oneof(
      fc.constant(good),
      fc.string({ unit: fc.constantFrom(...'OAuth _="%26,.&\\t') }).map(text => `OAuth ${text}`),
      fc
        .constantFrom('oauth_signature', 'oauth_token', 'oauth_timestamp', 'oauth_version')
        .map(name => good.replace(new RegExp(`${name}="[^"]*"`), `${name}="%"`)),
    )
    const type = fc.constantFrom(
      'application/json',
      'multipart/form-data',
      'multipart/form-data; boundary=x',
      'application/x-www-form-urlencoded',
      'text/plain',
    )
    const body = fc.oneof(
      fc.string({ maxLength: 60 }),
      fc.constantFrom('op=signal', 'op=signal&status=%00', 'op=toString', '--x\r\n', '{"event_type":"start"}'),
    )
    await fc.assert(
      fc.asyncProperty(
        fc.array(word, { maxLength: 5 }),
        header,
        type,
        body,
        fc.boolean(),
        async (words, authorization, contentType, text, isPost) => {
          const place = `/MAAS/metadata/${words.join('/')}`
          const answer = await (isPost
            ? partition.ask('POST', place, { headers: { authorization, 'content-type': contentType }, body: text })
            : partition.ask('GET', place, { headers: { authorization } }))
          expect(answer.status, `${place} ${answer.text}`).toBeLessThan(500)
          if (answer.status < 300) expect(answer.headers.get('cache-control')).toBe('no-store')
        },
      ),
      { numRuns: 400 },
    )
    expect(await partition.sql`select version, state from machines where id = ${machine.id}`).toEqual(before)
  })

  test('changes nothing by being read', async () => {
    const machine = await deploying({ netboot: false }, { userData: 'x', sshKeys: [] })
    const before = await partition.sql`select * from machines where id = ${machine.id}`
    for (const place of [
      '/',
      '/latest/',
      '/latest/meta-data/instance-id',
      '/latest/meta-data/vendor-data',
      '/latest/user-data?op=netboot_off',
    ])
      expect((await get(machine, place)).status, place).toBe(200)
    expect(await partition.sql`select * from machines where id = ${machine.id}`).toEqual(before)
  })
})
