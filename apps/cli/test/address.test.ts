// `muster subnet` and `muster address`: what is asked of the server, and what people read.
import { Refusal } from '@muster/shared/errors'
import { expect, test } from 'vitest'
import { eachWithServer } from './ground.ts'
import type { Home } from './muster.ts'
import { type TestServer, wholeCoverage } from './server.ts'

let server: TestServer
let home: Home
eachWithServer((own, empty) => {
  server = own
  home = empty
})

const subnet = {
  ...{ partition: 'lon1', name: 'servers', cidr: '10.0.0.0/24', vlan: 40, gateway: '10.0.0.1', nameservers: ['9.9.9.9'] },
  reserved: [{ from: '10.0.0.2', to: '10.0.0.9', note: 'switches' }],
  ...{ description: 'hall 2', used: 3 },
}
const address = {
  ...{ id: 7, partition: 'lon1', subnet: 'servers', address: '10.0.0.10', source: 'reserved' as const, machine: null, mac: null },
  ...{ name: 'nas', aliases: ['files'], note: '', by: 'olga', createdAt: '2026-01-02T03:04:05Z', place: '4-0a00000a' },
}

test('a subnet is created with what is said, and changed only in what is said', async () => {
  let known = false
  server.answers['subnets.get'] = () => {
    if (!known) throw new Refusal('not-found', 'there is no subnet servers')
    return subnet
  }
  server.answers['subnets.put'] = ({ partition: _, ...input }) => ({ ...input, partition: 'lon1', used: 0 })
  const nothing = await home.muster(['subnet', 'set', 'servers', '--vlan', '40'])
  expect(nothing).toMatchObject({ code: 2, stderr: expect.stringContaining('say its network with --cidr') })
  const made = await home.muster(
    'subnet set servers --cidr 10.0.0.0/24 --vlan 40 --reserved 10.0.0.2-10.0.0.9=switches --reserved 10.0.0.250-10.0.0.254'.split(' '),
  )
  expect(made).toMatchObject({ code: 0, stdout: expect.stringMatching(/Reserved +10\.0\.0\.2-10\.0\.0\.9=switches/) })
  known = true
  const changed = await home.muster(['subnet', 'set', 'servers', '--vlan', 'none', '--nameserver', 'none', '--description', 'hall 3'])
  expect(changed).toMatchObject({ code: 0, stderr: '' })
  const puts = server.asked.filter(({ name }) => name === 'subnets.put').map(({ input }) => input)
  expect(puts).toEqual([
    {
      ...{ name: 'servers', cidr: '10.0.0.0/24', vlan: 40, gateway: null, nameservers: [], description: '' },
      reserved: [
        { from: '10.0.0.2', to: '10.0.0.9', note: 'switches' },
        { from: '10.0.0.250', to: '10.0.0.254', note: '' },
      ],
    },
    {
      ...{ name: 'servers', cidr: '10.0.0.0/24', vlan: null, gateway: '10.0.0.1', nameservers: [], description: 'hall 3' },
      reserved: subnet.reserved,
    },
  ])
})

test('dynamic ranges are said, shown, taken away, and left alone where they are not said', async () => {
  const dynamic = [{ from: '10.0.0.100', to: '10.0.0.199', note: '' }]
  server.answers['subnets.get'] = () => ({ ...subnet, dynamic })
  server.answers['subnets.put'] = ({ partition: _, ...input }) => ({ ...subnet, dynamic, ...input })
  server.answers['subnets.list'] = () => ({ items: [{ ...subnet, dynamic }], nextCursor: null, coverage: wholeCoverage })
  const said = await home.muster('subnet set servers --dynamic 10.0.0.100-10.0.0.149=a --dynamic 10.0.0.150-10.0.0.199'.split(' '))
  expect(said.stdout).toMatch(/^Dynamic +10\.0\.0\.100-10\.0\.0\.149=a\nDynamic +10\.0\.0\.150-10\.0\.0\.199$/m)
  await home.muster('subnet set servers --dynamic none'.split(' '))
  await home.muster('subnet set servers --vlan 41'.split(' '))
  const puts = server.asked.filter(({ name }) => name === 'subnets.put').map(({ input }) => (input as { dynamic?: unknown }).dynamic)
  expect(puts).toEqual([
    [
      { from: '10.0.0.100', to: '10.0.0.149', note: 'a' },
      { from: '10.0.0.150', to: '10.0.0.199', note: '' },
    ],
    [],
    undefined,
  ])
  expect((await home.muster(['subnet', 'list', '-o', 'wide'])).stdout).toContain('10.0.0.100-10.0.0.199 ')
})

test('subnets are listed, shown and deleted', async () => {
  server.answers['subnets.list'] = () => ({ items: [subnet], nextCursor: null, coverage: wholeCoverage })
  server.answers['subnets.get'] = () => subnet
  server.answers['subnets.delete'] = () => subnet
  const [list, get, gone] = await Promise.all([
    home.muster(['subnet', 'list', '--partition', 'lon1']),
    home.muster(['subnet', 'get', 'servers', '-o', 'json']),
    home.muster(['subnet', 'delete', 'servers', '--partition', 'lon1']),
  ])
  expect(list.stdout).toMatch(/^servers +lon1 +10\.0\.0\.0\/24 +40 +10\.0\.0\.1 +3 +hall 2$/m)
  expect(JSON.parse(get.stdout)).toEqual(subnet)
  expect(gone.stdout).toBe('subnet servers deleted\n')
})

test('an address is reserved, listed and released; who has a taken one is told', async () => {
  server.answers['addresses.list'] = () => ({ items: [address], nextCursor: null, coverage: wholeCoverage })
  server.answers['addresses.reserve'] = ({ address: asked }) => {
    if (asked === '10.0.0.11') throw new Refusal('already-taken', '10.0.0.11 of subnet servers for nas: machine lon1-4y3h7n has it')
    return address
  }
  server.answers['addresses.release'] = () => address
  const [list, reserved, taken, nobody, released] = await Promise.all([
    home.muster(['address', 'list', '--subnet', 'servers']),
    home.muster(['address', 'reserve', 'servers', '--name', 'nas', '--alias', 'files']),
    home.muster(['address', 'reserve', 'servers', '10.0.0.11', '--name', 'nas']),
    home.muster(['address', 'reserve', 'servers', '10.0.0.12']),
    home.muster(['address', 'release', 'servers', '10.0.0.10']),
  ])
  expect(list.stdout).toMatch(/^10\.0\.0\.10 +servers +lon1 +- +nas,files +- +olga/m)
  expect(reserved.stdout).toBe('10.0.0.10  reserved in servers  nas,files\n')
  expect(taken).toMatchObject({ code: 4, stderr: expect.stringContaining('machine lon1-4y3h7n has it') })
  expect(nobody).toMatchObject({ code: 2, stderr: expect.stringContaining('say whom it is for') })
  expect(released.stdout).toContain('released in servers')
  expect(server.asked.find(({ name }) => name === 'addresses.reserve')?.input).toMatchObject({ subnet: 'servers', name: 'nas' })
})

test('the address and names of one host are set and deleted', async () => {
  const host = { ...address, mac: '52:54:00:12:34:56' }
  server.answers['dhcpHosts.set'] = () => host
  server.answers['dhcpHosts.delete'] = () => ({ items: [host] })
  const set = await home.muster('address set-host 52-54-00-12-34-56 --address 10.0.0.10 --name nas --alias files'.split(' '))
  const gone = await home.muster(['address', 'delete-host', '52:54:00:12:34:56'])
  expect(set.stdout).toBe('10.0.0.10  reserved in servers  52:54:00:12:34:56  nas,files\n')
  expect(gone.stdout).toContain('released in servers')
  expect(server.asked.map(({ input }) => input)).toEqual([
    { mac: '52:54:00:12:34:56', address: '10.0.0.10', name: 'nas', aliases: ['files'], note: '' },
    { mac: '52:54:00:12:34:56' },
  ])
})
