// DHCP, TFTP and DNS: what dnsmasq is told, and a partition in a name space of its own that serves a network to machines in another.
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { isInNetwork } from '@muster/shared/network'
import fc from 'fast-check'
import { describe, expect, onTestFinished, test } from 'vitest'
import { readSettings } from '../src/config.ts'
import { deleteMachine } from '../src/db/machines.ts'
import { deleteDhcpHost, putSubnet, reserveAddress, setDhcpHost } from '../src/domain/addresses.ts'
import { dhcpRanges, dhcpShare, dnsmasqConfig, dnsmasqHosts, dnsmasqNames, loaders, shareOfRanges } from '../src/domain/dnsmasq.ts'
import { addMachine, operator, partitionDatabase, startCore, type TestCore } from './harness.ts'

const run = promisify(execFile)
const range = '10.98.0.100-10.98.0.199/24@10.98.0.254'

describe('what dnsmasq is told', () => {
  test('is compared whole: DHCP with and without a router, loaders by architecture that are there, DNS of a zone', () => {
    const services = {
      interfaces: ['eno1', 'bond0.20'],
      ranges: dhcpRanges.parse(`${range},172.16.0.10-172.16.3.250/22`),
      rule: 'alone' as const,
      zone: 'lon1.example.com',
      upstreams: ['9.9.9.9'],
      folder: '/var/lib/muster/network',
    }
    const place = {
      baseUrl: 'http://10.98.0.1:5250',
      files: '/srv/muster',
      user: 'muster',
      group: 'muster',
      present: new Set(['undionly.kpxe', 'snponly.efi']),
    }
    expect(dnsmasqConfig(services, place)).toBe(readFileSync(new URL('testdata/dnsmasq.conf', import.meta.url), 'utf8'))
    const [dark, every] = [
      dnsmasqConfig({ ...services, zone: undefined, upstreams: [] }, place),
      dnsmasqConfig(services, { ...place, present: new Set(loaders.map(({ file }) => file)) }),
    ]
    expect(dark).toContain('\nport=0\n')
    expect(dark).not.toContain('server=')
    expect(dnsmasqConfig({ ...services, rule: 'shared' }, place)).not.toContain('authoritative')
    expect(every).toContain('dhcp-boot=tag:!ipxe,tag:arm64,snponly-arm64.efi\n')
    expect(every).toContain('dhcp-boot=tag:!ipxe,tag:arm64http,http://10.98.0.1:5250/boot/files/loaders/snponly-arm64.efi\n')
  })

  test('has a line per machine, with all its addresses', () => {
    expect(dnsmasqHosts([{ hostname: 'node1', macs: ['52:54:00:00:00:01', '52:54:00:00:00:02'] }])).toBe(
      '52:54:00:00:00:01,52:54:00:00:00:02,node1\n',
    )
  })

  test('has a line per reserved address for who gets it by DHCP, and the names that lead to it for all', () => {
    const reserved = [
      { address: '10.98.0.5', mac: '52:54:00:00:00:03', names: ['cam', 'door'] },
      { address: '10.98.0.6', mac: '52:54:00:00:00:04', names: [] },
      { address: '10.98.0.7', mac: null, names: ['nas'] },
      { address: '2001:db8::5', mac: '52:54:00:00:00:03', names: ['cam6'] },
    ]
    expect(dnsmasqHosts([], reserved)).toBe('52:54:00:00:00:03,10.98.0.5,cam\n52:54:00:00:00:04,10.98.0.6\n')
    expect(dnsmasqNames(reserved, 'lab.example')).toBe(
      '10.98.0.5 cam.lab.example cam door.lab.example door\n10.98.0.7 nas.lab.example nas\n2001:db8::5 cam6.lab.example cam6\n',
    )
  })

  test.each([
    ['10.0.0.9-10.0.0.5/24', 'ends before it begins'],
    ['10.0.0.5-10.0.1.9/24', 'ends outside the network'],
    ['10.0.0.5-10.0.0.9/31', 'prefix'],
    ['10.0.0.5-10.0.0.900/24', 'is not FIRST-LAST'],
    ['10.0.0.5', 'is not FIRST-LAST'],
    ['10.0.0.5-10.0.0.9/24@10.0.1.1', 'router outside'],
    ['10.0.0.5-10.0.0.9/24@10.0.0.7', 'address of its router'],
    ['10.0.0.5-10.0.0.9/24,10.0.0.9-10.0.0.20/24', '10.0.0.5-10.0.0.9 and 10.0.0.9-10.0.0.20 overlap'],
  ])('a range that cannot be served is refused: %s', (text, why) => {
    expect(dhcpRanges.safeParse(text).error?.message).toContain(why)
  })

  test('replicas share every range: their parts are the whole, and none is in two', () => {
    const sizes = fc.array(fc.integer({ min: 1, max: 250 }), { minLength: 1, maxLength: 3 })
    fc.assert(
      fc.property(sizes, fc.integer({ min: 1, max: 9 }), (counts, of) => {
        const ranges = counts.map((count, index) => ({
          from: `10.${index}.0.1`,
          to: `10.${index}.0.${count}`,
          prefix: 24,
          gateway: undefined,
        }))
        const hosts = (all: typeof ranges) =>
          all.flatMap(({ from, to }) => {
            const [first, last] = [from, to].map(text => Number(text.split('.')[3])) as [number, number]
            return Array.from({ length: last - first + 1 }, (_, index) => `${from.slice(0, from.lastIndexOf('.'))}.${first + index}`)
          })
        const parts = Array.from({ length: of }, (_, index) => hosts(shareOfRanges(ranges, { part: index + 1, of }) as typeof ranges))
        expect(parts.flat().sort()).toEqual(hosts(ranges).sort())
      }),
    )
    expect(['2/1', '0/2', '1/0', 'half', '1/2/3'].filter(text => dhcpShare.safeParse(text).success)).toEqual([])
  })

  test('half a setting is refused, naming the other half', () => {
    const base = { MUSTER_PARTITION: 'lon1', DATABASE_URL: 'postgres://x', MUSTER_KEY: '07'.repeat(32), MUSTER_TOKENS_FILE: 'tokens.json' }
    expect(readSettings(base).settings.network).toBeUndefined()
    expect(() => readSettings({ ...base, MUSTER_DHCP_INTERFACES: 'eno1' })).toThrow(
      /MUSTER_DHCP_RANGES is not set.*\n.*MUSTER_URL is not set/,
    )
    expect(() => readSettings({ ...base, MUSTER_DHCP_RANGES: range })).toThrow('but not MUSTER_DHCP_INTERFACES')
    expect(() => readSettings({ ...base, MUSTER_DNS_UPSTREAMS: '9.9.9.9' })).toThrow('but not MUSTER_DNS_ZONE')
    const whole = { ...base, MUSTER_URL: 'http://10.98.0.1:5250', MUSTER_DHCP_INTERFACES: 'eno1,eno2', MUSTER_DHCP_RANGES: range }
    expect(readSettings(whole).settings.network).toMatchObject({ interfaces: ['eno1', 'eno2'], zone: undefined, rule: 'alone' })
    expect(readSettings({ ...whole, MUSTER_DHCP_SHARE: '2/2' }).settings.network).toMatchObject({
      ranges: [{ from: '10.98.0.150', to: '10.98.0.199' }],
      rule: 'shared',
    })
    const tiny = { ...whole, MUSTER_DHCP_RANGES: '10.98.0.5-10.98.0.5/24', MUSTER_DHCP_SHARE: '1/2' }
    expect(() => readSettings(tiny)).toThrow('MUSTER_DHCP_SHARE leaves nothing to give')
  })
})

const wants = ['/usr/sbin/dnsmasq', '/usr/bin/busybox', '/usr/lib/ipxe/snponly.efi', '/usr/bin/unshare']
const why = process.getuid?.() !== 0 ? 'no root' : wants.find(file => !existsSync(file))
if (why !== undefined && process.env.CI) throw new Error(`${why}; CI must prove that machines are given addresses`)
if (why !== undefined) console.warn(`SKIPPED: ${why}: DHCP, TFTP and DNS are NOT TESTED here`)

describe.skipIf(why !== undefined)('a network that a partition serves', { timeout: 120_000 }, () => {
  test('gives a machine an address, the loader for its firmware, then its script, and its name to others', async () => {
    const site = await openSite()
    const machine = await addMachine(site.core, { hostname: 'node1' })
    await site.serve()
    const mac = machine.interfaces[0]?.mac as string
    await site.told('node1')

    for (const [arch, file] of [
      ['0000', 'undionly.kpxe'],
      ['0007', 'snponly.efi'],
      ['0009', 'snponly.efi'],
    ] as const) {
      const lease = await site.ask(mac, ['-x', `0x5d:${arch}`])
      expect(lease).toMatchObject({ boot_file: file, subnet: '255.255.255.0', router: '10.98.0.254', hostname: 'node1' })
      expect(isInNetwork('10.98.0.0/24', lease.ip as string)).toBe(true)
      expect(await site.tftp(file)).toEqual(readFileSync(`/usr/lib/ipxe/${file}`))
    }
    // Its firmware speaks HTTP: the same file from the same folder.
    const http = await site.ask(mac, ['-x', '0x5d:0010'])
    expect(http.boot_file).toBe('http://10.98.0.1:5250/boot/files/loaders/snponly.efi')
    expect(await site.http(http.boot_file as string)).toEqual(readFileSync('/usr/lib/ipxe/snponly.efi'))
    // Now as iPXE.
    const ipxe = await site.ask(mac, ['-x', '0x5d:0007', '-x', '0xaf:b00101'])
    // biome-ignore lint/suspicious/noTemplateCurlyInString: iPXE's own variable
    expect(ipxe.boot_file).toBe('http://10.98.0.1:5250/boot/ipxe/${net0/mac}')
    const script = (await site.http(`http://10.98.0.1:5250/boot/ipxe/${mac}`)).toString()
    expect(script).toContain('#!ipxe')

    expect(await site.resolve('node1.lab.example')).toContain(ipxe.ip)
    // Nobody has seen this one: it is served too, and told to enlist.
    const stranger = await site.ask('52:54:00:aa:aa:aa', ['-x', '0x5d:0007'])
    expect(stranger.ip).not.toBe(ipxe.ip)
    expect(stranger.boot_file).toBe('snponly.efi')
  })

  test('follows its machines: a change is served within 3 s, 2,000 at once are told in one or two goes, and what is gone has no name', async () => {
    const site = await openSite()
    await site.serve()
    const late = await addMachine(site.core, { hostname: 'late' })
    const began = Date.now()
    await site.told('late')
    expect(Date.now() - began).toBeLessThan(3_000)
    const lease = await site.ask(late.interfaces[0]?.mac as string)
    expect(lease.hostname).toBe('late')

    const before = site.readings()
    await Promise.all(Array.from({ length: 2_000 }, (_, index) => addMachine(site.core, { hostname: `burst${index}` })))
    await site.told('burst1999')
    await site.settled()
    expect(site.readings() - before).toBeLessThanOrEqual(6)
    expect(
      site
        .hosts()
        .split('\n')
        .filter(line => line.includes('burst')),
    ).toHaveLength(2_000)

    expect(await deleteMachine(site.core.sql, late, 'olga')).toBe('deleted')
    for (const end = Date.now() + 5_000; site.hosts().includes(',late\n') && Date.now() < end; ) await sleep(50)
    await site.settled()
    const again = await site.ask(late.interfaces[0]?.mac as string)
    expect(again.hostname).not.toBe('late')
  })

  test('gives reserved addresses to whom they are reserved for, and answers their names, within 3 s', async () => {
    const site = await openSite()
    const { core } = site
    const machine = await addMachine(core, { hostname: 'node1' })
    const mac = machine.interfaces[0]?.mac as string
    await putSubnet(core, operator, {
      ...{ name: 'lab', cidr: '10.98.0.0/24', vlan: null, gateway: '10.98.0.254', nameservers: [], description: '' },
      reserved: [{ from: '10.98.0.1', to: '10.98.0.9', note: 'partition' }],
    })
    await site.serve()
    await site.told('node1')
    const before = await site.ask(mac)
    expect(before.ip).toMatch(/^10\.98\.0\.1\d\d$/)

    const began = Date.now()
    const { address } = await reserveAddress(core, operator, { subnet: 'lab', machine: machine.id, aliases: ['web'], note: '' })
    expect(address).toBe('10.98.0.10')
    await site.told('node1', `${mac},${address},`)
    expect(Date.now() - began).toBeLessThan(3_000)
    expect(await site.ask(mac)).toMatchObject({ ip: address, hostname: 'node1' })
    for (const name of ['node1.lab.example', 'web.lab.example']) expect(await site.resolve(name)).toContain(`Address: ${address}`)

    // A thing that Muster does not manage: one with a MAC address, one without.
    const camera = '52:54:00:ca:ca:ca'
    await setDhcpHost(core, operator, { mac: camera, address: '10.98.0.30', name: 'camera', aliases: [], note: '' })
    await reserveAddress(core, operator, { subnet: 'lab', address: '10.98.0.20', name: 'nas', aliases: ['files'], note: '' })
    await site.told('camera')
    expect(await site.ask(camera)).toMatchObject({ ip: '10.98.0.30', hostname: 'camera' })
    expect(await site.resolve('camera.lab.example')).toContain('Address: 10.98.0.30')
    await expect.poll(() => site.resolve('files.lab.example').catch(String), { timeout: 5_000 }).toContain('Address: 10.98.0.20')

    await deleteDhcpHost(core, operator, camera)
    await expect.poll(() => site.hosts(), { timeout: 5_000 }).not.toContain('camera')
    // A stranger again.
    expect((await site.ask(camera)).ip).toMatch(/^10\.98\.0\.1\d\d$/)
    await expect.poll(() => site.resolve('camera.lab.example').catch(String), { timeout: 5_000 }).not.toContain('Address: 10.')
  })

  test('is shared by two replicas: the same reservations, other addresses, and one serves on when the other has gone', async () => {
    const site = await openSite()
    const { core } = site
    const second = await site.secondReplica()
    const machine = await addMachine(core, { hostname: 'node1' })
    const mac = machine.interfaces[0]?.mac as string
    await putSubnet(core, operator, {
      ...{ name: 'lab', cidr: '10.98.0.0/24', vlan: null, gateway: '10.98.0.254', nameservers: [], description: '' },
      reserved: [],
    })
    await reserveAddress(core, operator, { subnet: 'lab', address: '10.98.0.30', machine: machine.id, aliases: [], note: '' })
    await site.serve('well', { MUSTER_DHCP_SHARE: '1/2' })
    await second.serve('well', { MUSTER_DHCP_SHARE: '2/2' })
    await site.told('node1', `${mac},10.98.0.30,`)
    const services = await core.sql<{ from: string; to: string }[]>`
      select r ->> 'from' as from, r ->> 'to' as to from network_services, jsonb_array_elements(ranges) r order by 1`
    expect([...services]).toEqual([
      { from: '10.98.0.100', to: '10.98.0.149' },
      { from: '10.98.0.150', to: '10.98.0.199' },
    ])
    expect((await site.ask(mac)).ip).toBe('10.98.0.30')
    const strangers = ['52:54:00:aa:00:01', '52:54:00:aa:00:02', '52:54:00:aa:00:03']
    for (const stranger of strangers) {
      const { ip, serverid } = await site.ask(stranger)
      const host = Number(ip?.split('.')[3])
      expect(host, `${serverid} gave ${ip}`).toBeGreaterThanOrEqual(serverid === '10.98.0.1' ? 100 : 150)
      expect(host, `${serverid} gave ${ip}`).toBeLessThanOrEqual(serverid === '10.98.0.1' ? 149 : 199)
    }
    await site.kill()
    expect(await site.ask(mac)).toMatchObject({ ip: '10.98.0.30', serverid: '10.98.0.2', hostname: 'node1' })
    expect(Number((await site.ask('52:54:00:aa:00:04')).ip?.split('.')[3])).toBeGreaterThanOrEqual(150)
  })

  test('comes back: after its dnsmasq was killed, after the partition was killed, and from an empty folder', async () => {
    const site = await openSite()
    const { interfaces } = await addMachine(site.core, { hostname: 'node1' })
    const mac = interfaces[0]?.mac as string
    await site.serve()
    await site.told('node1')
    const first = await site.ask(mac)
    process.kill(await site.dnsmasqPid(), 'SIGKILL')
    await site.started(2)
    expect(site.log()).toContain('dnsmasq ended with SIGKILL')
    expect(await site.ask(mac)).toMatchObject({ ip: first.ip, hostname: 'node1' })

    const orphan = await site.dnsmasqPid()
    await site.kill()
    for (const end = Date.now() + 5_000; existsSync(`/proc/${orphan}`) && Date.now() < end; ) await sleep(20)
    expect(existsSync(`/proc/${orphan}`)).toBe(false)
    rmSync(site.folder, { recursive: true })
    await site.serve()
    await site.told('node1')
    // Addresses come from the MAC address: the same again, even with its leases forgotten.
    expect(await site.ask(mac)).toMatchObject({ ip: first.ip, hostname: 'node1' })
  })

  test('that another server serves already is said in so many words, and tried again', async () => {
    const site = await openSite()
    const other = await site.otherServer()
    await site.serve('in vain')
    await expect
      .poll(() => site.log(), { timeout: 20_000 })
      .toMatch(/dnsmasq ended with \d+: failed to bind DHCP server socket: Address (already )?in use/)
    other.kill('SIGKILL')
    await site.started(1)
  })
})

/** Two name spaces with a cable between them: the partition's, with dnsmasq and the address 10.98.0.1, and the machines'. */
async function openSite() {
  const base = mkdtempSync(path.join(tmpdir(), 'muster-net-'))
  const [here, there] = ['p', 'm'].map(side => `muster-${side}-${path.basename(base).slice(-6)}`) as [string, string]
  const ip = (...words: string[]) => run('ip', words)
  const within = (place: string) => ['ip', 'netns', 'exec', place] as const
  for (const place of [here, there]) await ip('netns', 'add', place)
  onTestFinished(async () => {
    partition?.kill('SIGKILL')
    for (const place of [here, there]) {
      const { stdout } = await ip('netns', 'pids', place)
      for (const pid of stdout.split('\n').filter(Boolean)) process.kill(Number(pid), 'SIGKILL')
      await ip('netns', 'delete', place)
    }
    rmSync(base, { recursive: true, force: true })
  })
  await ip('-n', here, 'link', 'add', 'lan0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', there)
  for (const [place, device] of [
    [here, 'lan0'],
    [here, 'lo'],
    [there, 'eth0'],
    [there, 'lo'],
  ] as const)
    await ip('-n', place, 'link', 'set', device, 'up')
  await ip('-n', here, 'address', 'add', '10.98.0.1/24', 'dev', 'lan0')

  const url = await partitionDatabase()
  const core: TestCore = await startCore({ url })
  const folder = path.join(base, 'network')
  const tokens = path.join(base, 'tokens.json')
  writeFileSync(tokens, '{"tokens":[]}')
  let partition: ChildProcess | undefined
  let log = ''

  const serve = async (how: 'well' | 'in vain' = 'well', more: Record<string, string> = {}) => {
    partition = await serveIn(here, how, more)
  }
  const serveIn = async (place: string, how: 'well' | 'in vain', more: Record<string, string>): Promise<ChildProcess> => {
    const [program, ...words] = [...within(place), process.execPath, fileURLToPath(new URL('../src/main.ts', import.meta.url))]
    const child = spawn(program as string, words, {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {
        PATH: `${process.env.PATH}:/usr/sbin`,
        MUSTER_PARTITION: 'lon1',
        DATABASE_URL: url,
        MUSTER_KEY: '07'.repeat(32),
        MUSTER_TOKENS_FILE: tokens,
        MUSTER_FILES: path.join(base, 'files'),
        MUSTER_NETWORK_DIR: folder,
        MUSTER_DHCP_INTERFACES: 'lan0',
        MUSTER_DHCP_RANGES: range,
        MUSTER_DNS_ZONE: 'lab.example',
        MUSTER_URL: 'http://10.98.0.1:5250',
        HOST: '0.0.0.0',
        LOG_LEVEL: 'debug',
        ...more,
      },
    })
    const startsBefore = starts()
    for (const stream of [child.stdout, child.stderr])
      createInterface({ input: stream as NodeJS.ReadableStream }).on('line', line => {
        log += `${line}\n`
      })
    if (how === 'well') await started(startsBefore + 1)
    return child
  }
  const count = (pattern: RegExp) => (log.match(pattern) ?? []).length
  const starts = () => count(/"dnsmasq":"started/g)
  const started = (times: number) => expect.poll(starts, { timeout: 20_000 }).toBeGreaterThanOrEqual(times)
  const hosts = () => (existsSync(path.join(folder, 'hosts')) ? readFileSync(path.join(folder, 'hosts'), 'utf8') : '')
  const readings = () => count(/"dnsmasq":"read [^"]*\/hosts/g)

  /** Asks for an address as the firmware with this MAC address. Answers what udhcpc tells its script. */
  const ask = async (mac: string, options: readonly string[] = []): Promise<Record<string, string>> => {
    await ip('-n', there, 'link', 'set', 'eth0', 'down')
    await ip('-n', there, 'address', 'flush', 'dev', 'eth0')
    await ip('-n', there, 'link', 'set', 'eth0', 'address', mac, 'up')
    const script = path.join(base, 'lease.sh')
    writeFileSync(script, `#!/bin/sh\n[ "$1" = bound ] || exit 0\nip address add "$ip/$mask" dev "$interface"\nenv >${base}/lease\n`, {
      mode: 0o755,
    })
    const [program, ...words] = within(there)
    const udhcpc = ['busybox', 'udhcpc', '-i', 'eth0', '-n', '-q', '-f', '-t', '8', '-T', '1', '-O', 'hostname', '-s', script, ...options]
    await run(program, [...words, ...udhcpc], { timeout: 30_000 })
    const lines = readFileSync(path.join(base, 'lease'), 'utf8').split('\n')
    return Object.fromEntries(lines.map(line => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]))
  }
  const asMachine = async (...command: string[]) => {
    const [program, ...words] = within(there)
    return (await run(program, [...words, ...command], { encoding: 'buffer', timeout: 20_000, maxBuffer: 2 ** 24 })).stdout
  }

  return {
    core,
    folder,
    serve,
    started,
    ask,
    hosts,
    readings,
    log: () => log,
    kill: async () => {
      partition?.kill('SIGKILL')
      if (partition) await once(partition, 'exit')
    },
    /** The host of another replica, 10.98.0.2, on the same cable. */
    secondReplica: async () => {
      const other = here.replace('-p-', '-q-')
      let child: ChildProcess | undefined
      await ip('netns', 'add', other)
      onTestFinished(async () => {
        child?.kill('SIGKILL')
        for (const pid of (await ip('netns', 'pids', other)).stdout.split('\n').filter(Boolean)) process.kill(Number(pid), 'SIGKILL')
        await ip('netns', 'delete', other)
      })
      // The cable becomes one end of a switch.
      await ip('-n', here, 'link', 'set', 'lan0', 'down')
      await ip('-n', here, 'address', 'flush', 'dev', 'lan0')
      await ip('-n', here, 'link', 'set', 'lan0', 'name', 'cable')
      await ip('-n', here, 'link', 'add', 'lan0', 'type', 'bridge')
      await ip('-n', here, 'link', 'add', 'cable2', 'type', 'veth', 'peer', 'name', 'lan0', 'netns', other)
      for (const cable of ['cable', 'cable2']) await ip('-n', here, 'link', 'set', cable, 'master', 'lan0', 'up')
      for (const [place, own] of [
        [here, '10.98.0.1/24'],
        [other, '10.98.0.2/24'],
      ] as const) {
        await ip('-n', place, 'address', 'add', own, 'dev', 'lan0')
        for (const device of ['lan0', 'lo']) await ip('-n', place, 'link', 'set', device, 'up')
      }
      const own = { MUSTER_REPLICA: 'second', MUSTER_URL: 'http://10.98.0.2:5250', MUSTER_NETWORK_DIR: path.join(base, 'network2') }
      return {
        serve: async (how: 'well' | 'in vain', more: Record<string, string>) => {
          child = await serveIn(other, how, { ...own, ...more })
        },
      }
    },
    /** Until dnsmasq has read that there is a machine of this name, behind `line`. */
    told: async (name: string, line = ',') => {
      await expect.poll(() => hosts().includes(`${line}${name}\n`), { timeout: 20_000, interval: 20 }).toBe(true)
      await sleep(200)
    },
    /** Until nothing more is on its way. */
    settled: () => sleep(2_500),
    tftp: async (file: string) => {
      await asMachine('busybox', 'tftp', '-g', '-r', file, '-l', path.join(base, file), '10.98.0.1')
      return readFileSync(path.join(base, file))
    },
    http: (address: string) => asMachine('curl', '-fsS', address),
    resolve: async (name: string) => (await asMachine('busybox', 'nslookup', '-type=a', name, '10.98.0.1')).toString(),
    dnsmasqPid: async () => {
      const { stdout } = await ip('netns', 'pids', here)
      const pids = stdout.split('\n').filter(Boolean)
      const found = pids.find(pid => readFileSync(`/proc/${pid}/cmdline`, 'utf8').startsWith('dnsmasq'))
      if (found === undefined) throw new Error(`no dnsmasq is among ${pids}`)
      return Number(found)
    },
    otherServer: async () => {
      const [program, ...words] = within(here)
      const child = spawn(program, [...words, process.execPath, '-e', "require('node:dgram').createSocket('udp4').bind(67)"], {
        stdio: 'ignore',
      })
      await expect
        .poll(() => execFileSync('ip', ['netns', 'exec', here, 'cat', '/proc/net/udp'], { encoding: 'utf8' }), { timeout: 10_000 })
        .toContain(':0043 ')
      return child
    },
  }
}
