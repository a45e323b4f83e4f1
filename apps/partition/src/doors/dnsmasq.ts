// The door of machines that have no address yet: dnsmasq as a child. It is told which machines and subnets there are whenever that changes, and
// started again when it ends, or when it is to give other addresses: ranges it reads only then. Everything it is told is written anew at each start,
// so that an empty folder is as good as an old one.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { networkInterfaces, userInfo } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import type { PartitionStatus } from '@muster/shared/contract/partitions'
import { type AddressRow, allReserved, documentedMachines } from '../db/addresses.ts'
import { leasedTo, saveLeases } from '../db/boots.ts'
import { networkHosts } from '../db/machines.ts'
import { saveNetworkServices } from '../db/network-services.ts'
import { type SubnetRow, subnetsForDhcp } from '../db/subnets.ts'
import { Bell, runLoop } from '../domain/bell.ts'
import type { LeaseReader } from '../domain/boot-origin.ts'
import type { Core } from '../domain/core.ts'
import {
  type DhcpRange,
  dnsmasqConfig,
  dnsmasqHosts,
  dnsmasqNames,
  dnsmasqOptions,
  documentedHosts,
  leaseIn,
  leaseSeconds,
  leasesIn,
  loaders,
  loadersFolder,
  type NetworkServices,
  type NetworkSettings,
  networkFiles,
  networksOf,
  type ReservedHost,
  rangesInForce,
  shareOfRanges,
} from '../domain/dnsmasq.ts'

/** Many changes at once are one: told after so long without another, but not later than the cap. */
const gather = { quietMs: 250, capMs: 2_000 }
/** What another replica changed and this one was not told of is this late at the most. */
const lookEveryMs = 60_000
const againMs = { first: 1_000, limit: 30_000 }
/** Alive for so long, it had started well. */
const settledMs = 10_000
const stopMs = 5_000
/** Where loaders come from: what was built for arm64, of which Debian 12 has no loader; then Debian's package ipxe. */
const loaderSources = (files: string) => [path.join(files, 'agent/arm64'), '/usr/lib/ipxe']

export class Dnsmasq {
  readonly #core: Core
  readonly #settings: NetworkSettings
  readonly #replica: string
  readonly #place: { readonly baseUrl: string }
  /** What all replicas give together, and what of it this one does. */
  #whole: ReturnType<typeof rangesInForce> = { ranges: [], overruled: [] }
  #own: readonly DhcpRange[] = []
  /** The ranges that were announced last, and those that the child was started with. */
  #announced: string | undefined
  #spawned: { child: ChildProcess; ranges: string } | undefined
  #isForRanges = false
  readonly #bell = new Bell()
  /** Given, and not yet told to the other replicas. */
  readonly #given = { bell: new Bell(), leases: new Map<string, { mac: string; address: string }>() }
  /** Once it is up. */
  #child: ChildProcess | undefined
  #hosts: 'as it reads them when it starts' | 'changed since' = 'as it reads them when it starts'
  #lastLine = ''
  #problem: string | undefined = 'DHCP, TFTP and DNS: dnsmasq is not started yet'

  /** `replica`: its name; `place.baseUrl`: how machines reach this partition, from when it runs. */
  constructor(core: Core, settings: NetworkSettings, { replica, place }: { replica: string; place: { readonly baseUrl: string } }) {
    this.#core = core
    this.#settings = settings
    this.#replica = replica
    this.#place = place
  }

  /** Why machines get no addresses; undefined where they do. */
  get problem(): string | undefined {
    if (this.#problem !== undefined || this.#settings.rule === 'proxy' || this.#own.length > 0) return this.#problem
    const { part, of } = this.#settings.share
    return this.#whole.ranges.length > 0
      ? `DHCP gives no addresses here: no range has enough for part ${part} of ${of} (MUSTER_DHCP_SHARE)`
      : 'DHCP gives no addresses: no subnet has a dynamic range (muster subnet set NAME --dynamic FROM-TO), and MUSTER_DHCP_RANGES is not set'
  }

  /** Networks, with prefix length, where this partition's DHCP gives the addresses. */
  get networks(): readonly string[] {
    return networksOf(this.#whole.ranges)
  }

  /** What this replica gives to anybody, and what of its settings does not count. */
  get given(): NonNullable<PartitionStatus['dhcp']> {
    return [
      ...this.#own.map(({ from, to, subnet = null }) => ({ from, to, subnet, overruledBy: null })),
      ...this.#whole.overruled.map(({ range: { from, to }, by }) => ({ from, to, subnet: null, overruledBy: by })),
    ]
  }

  /** The log has grown: machines may have come, gone, or another name, and subnets another router. */
  changed(): void {
    this.#bell.ring()
  }

  /** Reads which ranges count. Answers the subnets that there is something to tell of. */
  async takeRanges(): Promise<SubnetRow[]> {
    const { ranges, share, rule } = this.#settings
    if (rule === 'proxy') return []
    const networks = ranges.map(({ from }) => from)
    const rows = await subnetsForDhcp(this.#core.sql, networks)
    this.#whole = rangesInForce(ranges, rows)
    this.#own = shareOfRanges(this.#whole.ranges, share)
    return rows
  }

  /** Says what it gives to the other replicas, and to who chooses addresses; once the replica is known. */
  async announce(): Promise<void> {
    const { beside, zone = null, interfaces } = this.#settings
    const ranges = this.#own.map(({ gateway = null, subnet = null, ...range }) => ({ ...range, gateway, subnet }))
    const text = JSON.stringify(ranges)
    if (text === this.#announced) return
    const addresses = addressesOn(interfaces)
    await saveNetworkServices(this.#core.sql, { replica: this.#replica, addresses, ranges, beside: [...beside], zone })
    this.#announced = text
  }

  /** Runs until the signal, and ends what it started. */
  async run(signal: AbortSignal): Promise<void> {
    const { log } = this.#core
    // Beside another DHCP server nothing hangs on who the machines are.
    if (this.#settings.rule === 'proxy') return this.#supervise(signal)
    const loop = { name: 'machines for dnsmasq', bell: this.#bell, everyMs: lookEveryMs, signal, log, look: () => this.#tellHosts(signal) }
    const telling = { ...loop, name: 'leases for other replicas', bell: this.#given.bell, look: () => this.#tellLeases() }
    await Promise.all([this.#supervise(signal), runLoop(loop), ...(this.#settings.rule === 'shared' ? [runLoop(telling)] : [])])
  }

  async #supervise(signal: AbortSignal): Promise<void> {
    let pauseMs: number = againMs.first
    while (!signal.aborted) {
      const began = Date.now()
      const ending = await this.#runOnce(signal).catch((error: Error) => error.message)
      if (signal.aborted) return
      if (this.#isForRanges) {
        this.#isForRanges = false
        this.#core.log.info({ ranges: this.#own }, 'dnsmasq is started again: it gives other addresses')
        continue
      }
      if (Date.now() - began > settledMs) pauseMs = againMs.first
      this.#problem = `DHCP, TFTP and DNS: ${ending}`
      this.#core.log.error({ againMs: pauseMs }, `${this.#problem}; it is started again`)
      await sleep(pauseMs * (0.75 + Math.random() / 2), undefined, { signal }).catch(() => undefined)
      pauseMs = Math.min(pauseMs * 2, againMs.limit)
    }
  }

  /** One life of dnsmasq. Answers, or throws, how it ended. */
  async #runOnce(signal: AbortSignal): Promise<string> {
    const { folder } = this.#settings
    const ranges = this.#own
    mkdirSync(folder, { recursive: true })
    const present = takeLoaders(this.#core.catalogue.folder)
    const config = path.join(folder, networkFiles.config)
    const place = {
      baseUrl: this.#place.baseUrl,
      files: this.#core.catalogue.folder,
      user: userInfo().username,
      group: ownGroup(),
      present,
    }
    replaceFile(config, dnsmasqConfig({ ...this.#settings, ranges }, place))
    // Those of the last time are better than none, while the database is away.
    for (const file of [networkFiles.hosts, networkFiles.names].map(name => path.join(folder, name)))
      if (!existsSync(file)) writeFileSync(file, '')
    // Those of other ranges are worse.
    const [options, plain] = [path.join(folder, networkFiles.options), dnsmasqOptions(ranges)]
    if (!existsSync(options) || firstLine(readFileSync(options, 'utf8')) !== firstLine(plain)) replaceFile(options, plain)
    // The kernel ends it when this process dies, however it dies: an orphan would keep the port.
    const words = ['--pdeathsig', 'TERM', 'dnsmasq', '--keep-in-foreground', `--conf-file=${config}`]
    const child = spawn('setpriv', words, { stdio: ['ignore', 'ignore', 'pipe'] })
    this.#spawned = { child, ranges: spansText(ranges) }
    this.#lastLine = ''
    this.#hosts = 'as it reads them when it starts'
    createInterface({ input: child.stderr }).on('line', line => this.#heard(line, child))
    const stop = () => end(child)
    signal.addEventListener('abort', stop, { once: true })
    try {
      const [code, killer] = await once(child, 'exit')
      return `dnsmasq ended with ${killer ?? code}${this.#lastLine && `: ${this.#lastLine}`}`
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      throw new Error(`setpriv (package util-linux) cannot be started: ${code}`, { cause: error })
    } finally {
      signal.removeEventListener('abort', stop)
      this.#child = undefined
      this.#spawned = undefined
    }
  }

  /** dnsmasq's own words go to our log; what it says last before it ends is why. */
  #heard(line: string, child: ChildProcess): void {
    const text = line.replace(/^dnsmasq(-\w+)?(\[\d+\])?: /, '')
    this.#lastLine = text
    this.#core.log.debug({ dnsmasq: text }, 'dnsmasq')
    const lease = this.#settings.rule === 'shared' ? leaseIn(text) : undefined
    if (lease) {
      this.#given.leases.set(`${lease.mac} ${lease.address}`, lease)
      this.#given.bell.ring()
    }
    if (!text.startsWith('started')) return
    this.#problem = undefined
    this.#child = child
    if (this.#hosts === 'changed since') child.kill('SIGHUP')
  }

  async #tellLeases(): Promise<'idle'> {
    const { leases } = this.#given
    const told = [...leases]
    if (told.length === 0) return 'idle'
    await saveLeases(
      this.#core.sql,
      told.map(([, lease]) => lease),
      leaseSeconds,
    )
    // Not before: another replica that was not told would refuse these machines their scripts. What was renewed meanwhile is told again.
    for (const [key, lease] of told) if (leases.get(key) === lease) leases.delete(key)
    return 'idle'
  }

  /** Waits until nothing has changed for a moment, then tells. */
  async #tellHosts(signal: AbortSignal): Promise<'idle'> {
    const last = Date.now() + gather.capMs
    while (!signal.aborted) {
      const began = Date.now()
      const leftMs = Math.min(gather.quietMs, last - began)
      if (leftMs <= 0) break
      await this.#bell.wait(leftMs, signal)
      if (Date.now() - began >= leftMs) break
    }
    const outcome = await this.#writeHosts()
    if (this.#spawned && this.#spawned.ranges !== spansText(this.#own)) {
      this.#isForRanges = true
      end(this.#spawned.child)
      return 'idle'
    }
    if (outcome === 'same') return 'idle'
    this.#core.log.debug('dnsmasq is told what changed')
    // The signal would end one that is not up yet.
    this.#hosts = 'changed since'
    this.#child?.kill('SIGHUP')
    return 'idle'
  }

  async #writeHosts(): Promise<'changed' | 'same'> {
    const { folder, zone } = this.#settings
    mkdirSync(folder, { recursive: true })
    const { sql } = this.#core
    const [machines, rows, documented, subnets] = await Promise.all([
      networkHosts(sql),
      allReserved(sql),
      zone === undefined ? [] : documentedMachines(sql),
      this.takeRanges(),
    ])
    await this.announce()
    const reserved = rows.map(reservedHost)
    const named = [...reserved, ...documentedHosts(documented, reserved)]
    const texts = [
      [networkFiles.hosts, dnsmasqHosts(machines, reserved)],
      [networkFiles.names, zone === undefined ? '' : dnsmasqNames(named, zone)],
      [networkFiles.options, dnsmasqOptions(this.#own, subnets)],
    ] as const
    const changed = texts.filter(([name, text]) => replaceIfOther(path.join(folder, name), text) === 'changed')
    return changed.length > 0 ? 'changed' : 'same'
  }
}

/** What dnsmasq reads only when it starts. */
const spansText = (ranges: readonly DhcpRange[]) => ranges.map(({ from, to, prefix }) => `${from}-${to}/${prefix}`).join()

function end(child: ChildProcess): void {
  child.kill('SIGTERM')
  setTimeout(() => child.kill('SIGKILL'), stopMs).unref()
}

/** This host's own addresses on interfaces. */
function addressesOn(interfaces: readonly string[]): string[] {
  const known = networkInterfaces()
  return interfaces.flatMap(name => (known[name] ?? []).map(({ address }) => address))
}

/** The addresses that DHCP has given to MAC addresses: this replica's dnsmasq, and those that share its networks. */
export function leaseReader({ sql }: Pick<Core, 'sql'>, { folder, rule }: NetworkServices): LeaseReader {
  const file = path.join(folder, networkFiles.leases)
  return async macs => {
    const text = await readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
      // Nothing was given yet.
      if (error.code === 'ENOENT') return ''
      throw error
    })
    const own = leasesIn(text, new Date())
    const others = rule === 'shared' ? await leasedTo(sql, macs) : []
    return macs.map(mac => [...(own.get(mac) ?? []), ...others.filter(other => other.mac === mac).map(({ address }) => address)])
  }
}

/** A machine's host name leads to its address where it has no other name there. */
const reservedHost = ({ address, mac, name, hostname, aliases }: AddressRow): ReservedHost => ({
  address,
  mac,
  names: [...[name ?? hostname].flatMap(first => first ?? []), ...aliases],
})

function replaceIfOther(file: string, text: string): 'changed' | 'same' {
  if (existsSync(file) && readFileSync(file, 'utf8') === text) return 'same'
  replaceFile(file, text)
  return 'changed'
}

const firstLine = (text: string) => text.slice(0, text.indexOf('\n'))

function ownGroup(): string {
  return execFileSync('id', ['-gn'], { encoding: 'utf8' }).trim()
}

function replaceFile(file: string, text: string): void {
  writeFileSync(`${file}.new`, text)
  renameSync(`${file}.new`, file)
}

/** Takes loaders where there are none of the operator's own. Answers those that are there. Throws where there is none. */
function takeLoaders(files: string): Set<string> {
  const folder = path.join(files, loadersFolder)
  mkdirSync(folder, { recursive: true })
  for (const name of new Set(loaders.map(({ file }) => file))) {
    const own = path.join(folder, name)
    if (existsSync(own)) continue
    const given = loaderSources(files)
      .map(source => path.join(source, name))
      .find(file => existsSync(file))
    if (given === undefined) continue
    // A link, so that the next release of the package is served too.
    rmSync(`${own}.new`, { force: true })
    symlinkSync(given, `${own}.new`)
    renameSync(`${own}.new`, own)
  }
  // A link that leads nowhere any more is none.
  const present = new Set(readdirSync(folder).filter(name => existsSync(path.join(folder, name))))
  if (!loaders.some(({ file }) => present.has(file)))
    throw new Error(`no loader is in ${folder}; install the package ipxe, or put ${loaders.map(({ file }) => file).join(', ')} there`)
  return present
}
