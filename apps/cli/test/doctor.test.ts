// `muster doctor net`: what it makes of what it sees, and a network with a real second DHCP server in name spaces of its own.
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import type { Address } from '@muster/shared/contract/addresses'
import type { DhcpServer } from '@muster/shared/contract/partitions'
import type { Subnet } from '@muster/shared/contract/subnets'
import fc from 'fast-check'
import { describe, expect, onTestFinished, test } from 'vitest'
import { encodeDiscover, parseOffer } from '../src/network/dhcp.ts'
import { rangeFindings } from '../src/network/findings.ts'
import { socketsIn } from '../src/network/ports.ts'
import { aHome } from './muster.ts'
import { startServer, token, wholeCoverage } from './server.ts'

const run = promisify(execFile)

const subnet: Subnet = {
  ...{
    partition: 'lon1',
    name: 'lab',
    cidr: '10.97.0.0/24',
    vlan: null,
    gateway: '10.97.0.254',
    nameservers: [],
    description: '',
    used: 0,
  },
  reserved: [{ from: '10.97.0.200', to: '10.97.0.210', note: 'switches' }],
}
const serverOf = (replica: string, from: string, to: string, prefix = 24): DhcpServer => ({
  ...{ replica, addresses: ['10.97.0.1'], beside: [], zone: null },
  ranges: [{ from, to, prefix, gateway: null }],
})
const address: Address = {
  ...{ id: 1, partition: 'lon1', subnet: 'lab', address: '10.97.0.105', source: 'document', machine: 'lon1-4y3h7n', mac: null },
  ...{ name: 'web1', aliases: [], note: '', by: 'olga', createdAt: '2026-01-02T03:04:05Z', place: '' },
}

describe('ranges', () => {
  const from = (first: string, last: string, prefix?: number) => [serverOf('a', `10.97.0.${first}`, `10.97.0.${last}`, prefix)]
  const routed = (gateway: string): DhcpServer => ({
    ...serverOf('a', '', ''),
    ranges: [{ from: '10.97.0.100', to: '10.97.0.199', prefix: 24, gateway }],
  })
  const dynamic: DhcpServer = {
    ...serverOf('a', '', ''),
    ranges: [{ from: '10.97.0.100', to: '10.97.0.149', prefix: 24, gateway: null, subnet: 'lab' }],
  }
  test.for([
    ['in nobody’s way', from('100', '199'), [], 'good', "in nobody's way"],
    ['in no subnet', [serverOf('a', '10.1.0.5', '10.1.0.9')], [], 'odd', 'in no subnet'],
    ['over a reserved range', from('100', '205'), [], 'bad', 'does not give out 10.97.0.200-10.97.0.210 (switches)'],
    ['over the gateway', from('211', '254'), [], 'bad', 'has the gateway of subnet lab, 10.97.0.254'],
    ['with another router', [routed('10.97.0.253')], [], 'bad', 'the gateway of subnet lab, 10.97.0.254, and not the router of the range'],
    ['with the same router', [routed('10.97.0.254')], [], 'good', "in nobody's way"],
    ['of another prefix', from('100', '199', 25), [], 'bad', 'its prefix is 25'],
    ['beyond the subnet', [serverOf('a', '10.97.0.220', '10.97.1.9', 23)], [], 'bad', 'beyond subnet lab'],
    ['over a static address', from('100', '199'), [address], 'bad', 'lon1-4y3h7n has 10.97.0.105 without DHCP'],
    ['over what DHCP gives to one', from('100', '199'), [{ ...address, source: 'reserved', mac: '52:54:00:00:00:01' }], 'good', 'nobody'],
    [
      'of two replicas',
      [...from('100', '150'), serverOf('b', '10.97.0.150', '10.97.0.199')],
      [],
      'bad',
      'replica b gives addresses that replica a',
    ],
    ['of the subnet, in nobody’s way', [dynamic], [], 'good', "in nobody's way"],
    ['of the subnet, over a static address', [dynamic], [address], 'bad', 'lon1-4y3h7n has 10.97.0.105 without DHCP'],
    [
      'of the subnet, and of a replica that does not know it',
      [dynamic, serverOf('b', '10.97.0.149', '10.97.0.160')],
      [],
      'bad',
      'replica b gives addresses that replica a',
    ],
  ] as const)('%s', ([, servers, held, verdict, words]) => {
    const findings = rangeFindings(servers, [subnet], held)
    expect(findings).toContainEqual(expect.objectContaining({ verdict, found: expect.stringContaining(words) }))
    if (verdict !== 'good') expect(findings.find(finding => finding.verdict === verdict)?.hint).toBeTruthy()
  })
})

test('a dynamic range that no replica gives is told of', () => {
  const idle = { ...subnet, dynamic: [{ from: '10.97.0.20', to: '10.97.0.29', note: '' }] }
  expect(rangeFindings([serverOf('a', '10.97.0.100', '10.97.0.199')], [idle], [])).toMatchObject([
    { topic: 'range 10.97.0.20-10.97.0.29', verdict: 'bad', hint: expect.stringContaining('MUSTER_DHCP_INTERFACES') },
    { verdict: 'good' },
  ])
  expect(rangeFindings([serverOf('a', '10.97.0.20', '10.97.0.24')], [idle], [])).toMatchObject([{ verdict: 'good' }])
})

describe('DHCP', () => {
  test('an offer is read, whatever stands in it; what is no offer to us is not', () => {
    const facts = fc.record({
      server: fc.ipV4(),
      offered: fc.ipV4(),
      file: fc.stringMatching(/^[a-z.]{0,40}$/),
      padding: fc.integer({ min: 0, max: 9 }),
    })
    fc.assert(
      fc.property(facts, ({ server, offered, file, padding }) => {
        const bytes = (text: string) => text.split('.').map(Number)
        const message = Buffer.concat([
          encodeDiscover({ transaction: 7, mac: Buffer.alloc(6, 2) }).subarray(0, 240),
          Buffer.from([...Array(padding).fill(0), 53, 1, 2, 54, 4, ...bytes(server), 67, file.length, ...Buffer.from(file), 255]),
        ])
        message[0] = 2
        message.set(bytes(offered), 16)
        expect(parseOffer(message, { transaction: 7, from: '10.0.0.9' })).toEqual({
          ...{ server, from: '10.0.0.9', address: offered === '0.0.0.0' ? null : offered, bootFile: file === '' ? null : file },
        })
        expect(parseOffer(message, { transaction: 8, from: '10.0.0.9' })).toBeUndefined()
      }),
    )
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 600 }), noise => {
        const message = Buffer.concat([encodeDiscover({ transaction: 7, mac: Buffer.alloc(6, 2) }).subarray(0, 240), noise])
        message[0] = 2
        parseOffer(Buffer.from(noise), { transaction: 7, from: '10.0.0.9' })
        parseOffer(message, { transaction: 7, from: '10.0.0.9' })
      }),
    )
  })

  test("the kernel's table of sockets is read", () => {
    const line = '  77: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   102        0 21222 2 0000000000000000 0'
    expect(socketsIn(`header\n${line}\n`)).toEqual([{ port: 53, address: '127.0.0.53', inode: '21222', isListening: false }])
  })
})

const wants = ['/usr/sbin/dnsmasq', '/usr/bin/unshare']
const why = process.getuid?.() !== 0 ? 'no root' : wants.find(file => !existsSync(file))
if (why !== undefined && process.env.CI) throw new Error(`${why}; CI must prove that a foreign DHCP server is found`)
if (why !== undefined) console.warn(`SKIPPED: ${why}: finding a foreign DHCP server is NOT TESTED here`)

describe.skipIf(why !== undefined)('on the host of a partition', { timeout: 120_000 }, () => {
  test('a second DHCP server is named, and gone when it is stopped; so is who has the port', async () => {
    const site = await openSite()
    const ours = await site.dhcpServer('here', '10.97.0.100,10.97.0.199')
    const other = await site.dhcpServer('there', '10.97.0.50,10.97.0.60', ['--dhcp-boot=their.efi'])

    const two = await site.doctor()
    expect(two.stdout).toMatch(/^good {2}DHCP on lan0 +10\.97\.0\.1 is replica a: it offers address 10\.97\.0\.1\d\d/m)
    expect(two.stdout).toMatch(
      /^bad {3}DHCP on lan0 +10\.97\.0\.2 is not this partition's: it offers address 10\.97\.0\.(5\d|60) and boot file their\.efi$/m,
    )
    expect(two.stdout).toContain('hint: find it (ip neighbour show 10.97.0.2;')
    expect(two.stdout).toMatch(/^good {2}port 67\/udp +DHCP: the partition's dnsmasq has it$/m)
    expect(two.code).toBe(1)

    await ended(other)
    const one = await site.doctor(['-o', 'json'])
    expect(JSON.parse(one.stdout)).toMatchObject({ ending: 'ok' })
    expect(one.code).toBe(0)

    await ended(ours)
    const squatter = await site.squatter()
    const none = await site.doctor()
    expect(none.stdout).toMatch(new RegExp(`^bad {3}port 67/udp +DHCP: .+ \\(process ${squatter.pid}\\) has 0\\.0\\.0\\.0:67$`, 'm'))
    expect(none.stdout).toMatch(/^bad {3}DHCP on lan0 +the partition does not answer/m)
    expect(none.code).toBe(1)

    const powerless = await site.doctor([], ['setpriv', '--inh-caps=-all', '--bounding-set=-all'])
    expect(powerless.stdout).toMatch(/^odd {3}DHCP on lan0 +not looked at: asking needs root/m)
  })

  test('beside a DHCP server that gives the addresses, that one is expected, and missed when it is gone', async () => {
    const site = await openSite({ ...serverOf('a', '10.97.0.100', '10.97.0.199'), ranges: [], beside: ['10.97.0.0/24'] })
    await site.dhcpServer('here', '10.97.0.0,proxy,255.255.255.0', ['--pxe-service=7,Muster,snponly.efi'])
    const other = await site.dhcpServer('there', '10.97.0.50,10.97.0.60')
    const both = await site.doctor(['--wait', '5s'])
    expect(both.stdout).toMatch(/^good {2}DHCP on lan0 +10\.97\.0\.1 is replica a: it offers no address/m)
    expect(both.stdout).toMatch(
      /^good {2}DHCP on lan0 +10\.97\.0\.2 gives the addresses, as it should: it offers address 10\.97\.0\.(5\d|60)$/m,
    )
    expect(both.code, both.stdout).toBe(0)

    await ended(other)
    const alone = await site.doctor(['--wait', '2s'])
    expect(alone.stdout).toMatch(/^bad {3}DHCP on lan0 +nobody offers addresses, and the partition gives none here/m)
    expect(alone.code).toBe(1)

    await site.dhcpServer('there', '10.97.0.50,10.97.0.60', ['--dhcp-boot=their.efi'])
    const twice = await site.doctor(['--wait', '5s'])
    expect(twice.stdout).toMatch(
      /^bad {3}DHCP on lan0 +10\.97\.0\.2 says what to boot, as the partition does here: .+ boot file their\.efi$/m,
    )
    expect(twice.code).toBe(1)
  })
})

async function ended(child: ChildProcess): Promise<void> {
  child.kill('SIGKILL')
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
}

/** Two name spaces with a cable between them: the host of a partition, 10.97.0.1, and another host, 10.97.0.2. */
async function openSite(served = serverOf('a', '10.97.0.100', '10.97.0.199')) {
  const base = mkdtempSync(path.join(tmpdir(), 'muster-doctor-'))
  const spaces = { here: `muster-d-${path.basename(base).slice(-6)}`, there: `muster-e-${path.basename(base).slice(-6)}` }
  const ip = (...words: string[]) => run('ip', words)
  const children: ChildProcess[] = []
  for (const space of Object.values(spaces)) await ip('netns', 'add', space)
  onTestFinished(async () => {
    for (const child of children) await ended(child)
    for (const space of Object.values(spaces)) await ip('netns', 'delete', space)
    rmSync(base, { recursive: true, force: true })
  })
  await ip('-n', spaces.here, 'link', 'add', 'lan0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', spaces.there)
  for (const [space, device, own] of [
    [spaces.here, 'lan0', '10.97.0.1/24'],
    [spaces.there, 'eth0', '10.97.0.2/24'],
  ] as const) {
    await ip('-n', space, 'address', 'add', own, 'dev', device)
    for (const name of [device, 'lo']) await ip('-n', space, 'link', 'set', name, 'up')
  }

  /** A child in a name space, once it has written `ready`. */
  const start = async (place: keyof typeof spaces, words: readonly string[], ready: string): Promise<ChildProcess> => {
    const child = spawn('ip', ['netns', 'exec', spaces[place], ...words], { stdio: ['ignore', 'pipe', 'pipe'] })
    children.push(child)
    let text = ''
    for (const stream of [child.stdout, child.stderr]) stream?.on('data', more => (text += more))
    await expect.poll(() => text, { timeout: 20_000 }).toContain(ready)
    return child
  }

  // The server is in our name space; a socket in a file is in all of them.
  const server = await startServer()
  const pipe = path.join(base, 'server.sock')
  const outside = createServer(caller => {
    const onward = connect(Number(new URL(server.url).port), '127.0.0.1')
    caller.pipe(onward).pipe(caller)
    for (const end of [caller, onward]) end.on('error', () => undefined)
  }).listen(pipe)
  const home = aHome({ MUSTER_URL: 'http://127.0.0.1:5999', MUSTER_TOKEN: token })
  onTestFinished(async () => {
    outside.close()
    home[Symbol.dispose]()
    await server[Symbol.asyncDispose]()
  })
  const inside = `require('node:net').createServer(c => { const u = require('node:net').connect(${JSON.stringify(pipe)}); c.pipe(u).pipe(c); for (const e of [c, u]) e.on('error', () => {}) }).listen(5999, '127.0.0.1', () => console.log('ready'))`
  await start('here', [process.execPath, '-e', inside], 'ready')
  server.answers['session.whoami'] = () => ({
    caller: { name: 'olga', role: 'operator' },
    server: { kind: 'partition', name: 'lon1', version: '0.1.0' },
  })
  server.answers['partitions.dhcp'] = () => ({ servers: [served] })
  server.answers['subnets.list'] = () => ({ items: [subnet], nextCursor: null, coverage: wholeCoverage })
  server.answers['addresses.list'] = () => ({ items: [], nextCursor: null, coverage: wholeCoverage })

  return {
    doctor: (words: readonly string[] = [], as: readonly string[] = []) =>
      home.muster(['doctor', 'net', ...words], { by: ['ip', 'netns', 'exec', spaces.here, ...as] }),
    /** A dnsmasq; the one of `here` is as a partition writes it. */
    dhcpServer: (place: keyof typeof spaces, range: string, more: readonly string[] = []) => {
      const config = path.join(base, `${place}.conf`)
      const first = place === 'here' ? '# Written by Muster at each start; changes are lost.' : '#'
      writeFileSync(config, `${first}\nport=0\nbind-dynamic\nexcept-interface=lo\nlog-facility=-\ndhcp-range=${range}\n`)
      const own = [`--dhcp-leasefile=${base}/${place}.leases`, '--user=root', ...more]
      return start(place, ['/usr/sbin/dnsmasq', '--keep-in-foreground', `--conf-file=${config}`, ...own], 'started')
    },
    /** Another program at the port of DHCP. */
    squatter: () =>
      start('here', [process.execPath, '-e', "require('node:dgram').createSocket('udp4').bind(67, () => console.log('ready'))"], 'ready'),
  }
}
