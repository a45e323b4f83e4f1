// What a deployment is given from files: user-data of any bytes, secrets, a network; and `muster machine network`.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { Refusal } from '@muster/shared/errors'
import { expect, test } from 'vitest'
import { eachWithServer } from './ground.ts'
import type { Home } from './muster.ts'
import { aMachine, type TestServer } from './server.ts'

const id = 'lon1-4y3h7n'
const mac = '52:54:00:12:34:56'
let server: TestServer
let home: Home
eachWithServer((own, empty) => {
  server = own
  home = empty
  server.answers['machines.deploy'] = () => aMachine({ state: 'deploying' })
})

const file = (name: string, content: string | Buffer) => {
  writeFileSync(join(home.folder, name), content)
  return name
}
const sent = () => server.asked.filter(({ name }) => name === 'machines.deploy').map(({ input }) => input)

test('user-data goes as it is: text as text, compressed as base64', async () => {
  const text = '#cloud-config\n# ü\n'
  const packed = gzipSync(text)
  for (const userData of [file('plain', text), file('packed', packed)])
    expect(await home.muster(['machine', 'deploy', id, '--os', 'debian/12', '--user-data', userData])).toMatchObject({ code: 0 })
  expect(sent()).toMatchObject([{ userData: text }, { userData: packed.toString('base64') }])
  const large = await home.muster(['machine', 'deploy', id, '--os', 'debian/12', '--user-data', file('large', 'x'.repeat(600_000))])
  expect(large).toMatchObject({ code: 2, stderr: expect.stringContaining('userData: is larger than 524288 bytes; compress it') })
})

test('a rescue takes the public keys of files, and no private one', async () => {
  server.answers['machines.rescue'] = () => aMachine({ state: 'rescue' })
  const keys = file('keys.pub', '# mine\nssh-ed25519 AAAA me@home\nssh-ed25519 BBBB me@work\n')
  expect(await home.muster(['machine', 'rescue', id, '--ssh-key', keys])).toMatchObject({ code: 0 })
  const asked = server.asked.filter(({ name }) => name === 'machines.rescue').map(({ input }) => input)
  expect(asked).toMatchObject([{ id, sshKeys: ['ssh-ed25519 AAAA me@home', 'ssh-ed25519 BBBB me@work'] }])
  const secret = file('key', '-----BEGIN OPENSSH PRIVATE KEY-----\n')
  expect(await home.muster(['machine', 'rescue', id, '--ssh-key', secret])).toMatchObject({ code: 2 })
})

test('secrets come from a file or the standard input, and no mistake shows them', async () => {
  const deploy = (secrets: string, stdin = '') =>
    home.muster(['machine', 'deploy', id, '--os', 'debian/12', '--data-source', 'maas', '--secrets', secrets], { stdin })
  expect(await deploy('-', '{"join": "hush"}')).toMatchObject({ code: 0 })
  expect(sent()).toMatchObject([{ secrets: { join: 'hush' }, dataSource: 'maas' }])
  for (const wrong of ['{"join": "hush"', '["hush"]', '{"bad name": "hush"}', '{"join": ["hush"]}']) {
    const ended = await deploy(file('wrong', wrong))
    expect(ended.code, wrong).toBe(2)
    expect(ended.stdout + ended.stderr, wrong).not.toContain('hush')
  }
})

test('a network is read from YAML, sent, and shown with what becomes of it', async () => {
  const text = `ethernets:\n  wan: { mac: ${mac}, addresses: [10.0.0.5/24] }\n`
  server.answers['machines.setNetwork'] = ({ document }) => ({ document, deployment: null, config: { version: 2, told: 'so' } })
  server.answers['machines.network'] = () => ({ document: null, deployment: null, config: { version: 2 } })
  const set = await home.muster(['machine', 'network', id, '--file', file('network.yaml', text)])
  expect(set).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(
      /# what was set for the machine\nethernets:\n {2}wan:[^#]*# what its cloud-init is told\nversion: 2\ntold: so\n/,
    ),
  })
  expect(server.asked.at(-1)).toMatchObject({
    name: 'machines.setNetwork',
    input: { document: { ethernets: { wan: { mac, addresses: ['10.0.0.5/24'] } } } },
  })
  await home.muster(['machine', 'network', id, '--clear'])
  expect(server.asked.at(-1)).toMatchObject({ name: 'machines.setNetwork', input: { document: null } })
  expect((await home.muster(['machine', 'network', id])).stdout).toContain('nothing: it asks by DHCP')
  expect(server.asked.at(-1)?.name).toBe('machines.network')
  await home.muster(['machine', 'deploy', id, '--os', 'debian/12', '--network', 'network.yaml'])
  expect(sent()).toMatchObject([{ network: { ethernets: { wan: { mac } } } }])
})

test('a network that cannot be is refused by field, before it is sent and after', async () => {
  const twice = `ethernets:\n  a: { mac: ${mac} }\n  b: { mac: ${mac} }\n`
  const before = await home.muster(['machine', 'network', id, '--file', file('twice.yaml', twice)])
  expect(before).toMatchObject({ code: 2, stderr: expect.stringContaining('document.ethernets.b.mac') })
  expect(await home.muster(['machine', 'network', id, '--file', file('odd.yaml', 'a: [')])).toMatchObject({
    code: 2,
    stderr: expect.stringContaining('odd.yaml'),
  })
  expect(server.asked.filter(({ name }) => name === 'machines.setNetwork')).toEqual([])
  server.answers['machines.setNetwork'] = () => {
    const errors = [{ field: 'document.ethernets.a.mac', message: 'no interface has it' }]
    throw new Refusal('invalid-input', 'document.ethernets.a.mac: no interface has it', { errors })
  }
  const after = await home.muster(['machine', 'network', id, '--file', file('good.yaml', `ethernets: { a: { mac: ${mac} } }\n`)])
  expect(after).toMatchObject({ code: 2, stderr: expect.stringContaining('no interface has it') })
})

test('a machine shows how long each step took, how its first boot went and its SSH host keys as ssh would', async () => {
  const deployment = {
    os: 'debian/12',
    startedAt: '2026-01-02T03:03:00Z',
    steps: [
      { step: 'download', at: '2026-01-02T03:03:20Z' },
      { step: 'write', at: '2026-01-02T03:03:35Z' },
    ],
    installedAt: '2026-01-02T03:04:05Z',
    deployedAt: '2026-01-02T03:05:05Z',
    firstBoot: {
      step: 'modules-final',
      description: '',
      failures: ['modules-final/config-x'],
      reportedAt: '2026-01-02T03:04:05Z',
      endedAt: '2026-01-02T03:04:05Z',
    },
    hostKeys: ['ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJrYgxpLkiMnWmVlpgt7fVOR7WHmpMhXZCCgcZbtHP4X'],
  }
  server.answers['machines.get'] = () => ({ ...aMachine({ state: 'deployed', deployment }), powerSettings: null, inventory: null })
  const { stdout } = await home.muster(['machine', 'get', id])
  expect(stdout).toMatch(/Took +125 s: power 20 s, download 15 s, write 30 s, first boot 60 s\n/)
  expect(stdout).toMatch(/First boot +over; failed: modules-final\/config-x\n/)
  expect(stdout).toMatch(/SSH host key +ssh-ed25519 SHA256:[A-Za-z0-9+/]{43}\n/)
})

test('--wait asks again while the image is on its way, says what it waits for, and stops at what will not come', async () => {
  const why = 'partition lon1 cannot install debian/12 on amd64 yet: its image bookworm is being fetched, 412 MiB so far'
  let asked = 0
  server.answers['machines.deploy'] = () => {
    if (++asked === 1) throw new Refusal('not-yet-installable', why)
    return aMachine({ state: 'deploying' })
  }
  server.answers['machines.get'] = () => ({ ...aMachine({ state: 'deployed' }), powerSettings: null, inventory: null })
  const done = await home.muster(['machine', 'deploy', id, '--os', 'debian/12', '--wait', '1m'])
  expect([done.code, asked, done.stderr.includes(`${id}: waiting: ${why}`)]).toEqual([0, 2, true])

  server.answers['machines.deploy'] = () => {
    throw new Refusal('not-yet-installable', why)
  }
  // Nobody waits who was not told to; who was, no longer than that.
  const atOnce = await home.muster(['machine', 'deploy', id, '--os', 'debian/12'])
  expect([atOnce.code, atOnce.stderr.includes('waiting:'), atOnce.stderr.includes(why)]).toEqual([4, false, true])
  expect(await home.muster(['machine', 'deploy', id, '--os', 'debian/12', '--wait', '300ms'])).toMatchObject({
    code: 4,
    stderr: expect.stringContaining(why),
  })
})
