// The door of machines that have no address yet: dnsmasq as a child. It is told which machines and subnets there are whenever that changes, and
// started again when it ends. Everything it is told is written anew at each start, so that an empty folder is as good as an old one.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { userInfo } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { type AddressRow, allReserved } from '../db/addresses.ts'
import { leasedTo, saveLeases } from '../db/boots.ts'
import { networkHosts } from '../db/machines.ts'
import { subnetsWith } from '../db/subnets.ts'
import { Bell, runLoop } from '../domain/bell.ts'
import type { LeaseReader } from '../domain/boot-origin.ts'
import type { Core } from '../domain/core.ts'
import {
  dnsmasqConfig,
  dnsmasqHosts,
  dnsmasqNames,
  dnsmasqOptions,
  leaseIn,
  leaseSeconds,
  leasesIn,
  loaders,
  loadersFolder,
  type NetworkServices,
  networkFiles,
  type ReservedHost,
} from '../domain/dnsmasq.ts'

/** Many changes at once are one: told after so long without another, but not later than the cap. */
const gather = { quietMs: 250, capMs: 2_000 }
/** What another replica changed and this one was not told of is this late at the most. */
const lookEveryMs = 60_000
const againMs = { first: 1_000, limit: 30_000 }
/** Alive for so long, it had started well. */
const settledMs = 10_000
const stopMs = 5_000
/** Debian's package ipxe. */
const distribution = '/usr/lib/ipxe'

export class Dnsmasq {
  readonly #core: Core
  readonly #services: NetworkServices
  readonly #baseUrl: string
  readonly #bell = new Bell()
  /** Given, and not yet told to the other replicas. */
  readonly #given: { readonly bell: Bell; leases: { mac: string; address: string }[] } = { bell: new Bell(), leases: [] }
  /** Once it is up. */
  #child: ChildProcess | undefined
  #hosts: 'as it reads them when it starts' | 'changed since' = 'as it reads them when it starts'
  #lastLine = ''
  #problem: string | undefined = 'DHCP, TFTP and DNS: dnsmasq is not started yet'

  /** `baseUrl`: how machines reach this partition. */
  constructor(core: Core, services: NetworkServices, baseUrl: string) {
    this.#core = core
    this.#services = services
    this.#baseUrl = baseUrl
  }

  /** Why machines get no addresses; undefined where they do. */
  get problem(): string | undefined {
    return this.#problem
  }

  /** The log has grown: machines may have come, gone, or another name, and subnets another router. */
  changed(): void {
    this.#bell.ring()
  }

  /** Runs until the signal, and ends what it started. */
  async run(signal: AbortSignal): Promise<void> {
    const { log } = this.#core
    // Beside another DHCP server nothing hangs on who the machines are.
    if (this.#services.rule === 'proxy') return this.#supervise(signal)
    const loop = { name: 'machines for dnsmasq', bell: this.#bell, everyMs: lookEveryMs, signal, log, look: () => this.#tellHosts(signal) }
    const telling = { ...loop, name: 'leases for other replicas', bell: this.#given.bell, look: () => this.#tellLeases() }
    await Promise.all([this.#supervise(signal), runLoop(loop), ...(this.#services.rule === 'shared' ? [runLoop(telling)] : [])])
  }

  async #supervise(signal: AbortSignal): Promise<void> {
    let pauseMs: number = againMs.first
    while (!signal.aborted) {
      const began = Date.now()
      const ending = await this.#runOnce(signal).catch((error: Error) => error.message)
      if (signal.aborted) return
      if (Date.now() - began > settledMs) pauseMs = againMs.first
      this.#problem = `DHCP, TFTP and DNS: ${ending}`
      this.#core.log.error({ againMs: pauseMs }, `${this.#problem}; it is started again`)
      await sleep(pauseMs * (0.75 + Math.random() / 2), undefined, { signal }).catch(() => undefined)
      pauseMs = Math.min(pauseMs * 2, againMs.limit)
    }
  }

  /** One life of dnsmasq. Answers, or throws, how it ended. */
  async #runOnce(signal: AbortSignal): Promise<string> {
    const { folder } = this.#services
    mkdirSync(folder, { recursive: true })
    const present = takeLoaders(this.#core.catalogue.folder)
    const config = path.join(folder, networkFiles.config)
    const place = { baseUrl: this.#baseUrl, files: this.#core.catalogue.folder, user: userInfo().username, group: ownGroup(), present }
    replaceFile(config, dnsmasqConfig(this.#services, place))
    // Those of the last time are better than none, while the database is away.
    for (const file of [networkFiles.hosts, networkFiles.names].map(name => path.join(folder, name)))
      if (!existsSync(file)) writeFileSync(file, '')
    // Those of other ranges are worse.
    const [options, plain] = [path.join(folder, networkFiles.options), dnsmasqOptions(this.#services.ranges)]
    if (!existsSync(options) || firstLine(readFileSync(options, 'utf8')) !== firstLine(plain)) replaceFile(options, plain)
    // The kernel ends it when this process dies, however it dies: an orphan would keep the port.
    const words = ['--pdeathsig', 'TERM', 'dnsmasq', '--keep-in-foreground', `--conf-file=${config}`]
    const child = spawn('setpriv', words, { stdio: ['ignore', 'ignore', 'pipe'] })
    this.#lastLine = ''
    this.#hosts = 'as it reads them when it starts'
    createInterface({ input: child.stderr }).on('line', line => this.#heard(line, child))
    const stop = () => {
      child.kill('SIGTERM')
      setTimeout(() => child.kill('SIGKILL'), stopMs).unref()
    }
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
    }
  }

  /** dnsmasq's own words go to our log; what it says last before it ends is why. */
  #heard(line: string, child: ChildProcess): void {
    const text = line.replace(/^dnsmasq(-\w+)?(\[\d+\])?: /, '')
    this.#lastLine = text
    this.#core.log.debug({ dnsmasq: text }, 'dnsmasq')
    const lease = this.#services.rule === 'shared' ? leaseIn(text) : undefined
    if (lease) {
      this.#given.leases.push(lease)
      this.#given.bell.ring()
    }
    if (!text.startsWith('started')) return
    this.#problem = undefined
    this.#child = child
    if (this.#hosts === 'changed since') child.kill('SIGHUP')
  }

  async #tellLeases(): Promise<'idle'> {
    const leases = this.#given.leases.splice(0)
    if (leases.length > 0) await saveLeases(this.#core.sql, leases, leaseSeconds)
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
    if ((await this.#writeHosts()) === 'same') return 'idle'
    // The signal would end one that is not up yet.
    this.#hosts = 'changed since'
    this.#child?.kill('SIGHUP')
    return 'idle'
  }

  async #writeHosts(): Promise<'changed' | 'same'> {
    const { folder, zone, ranges } = this.#services
    mkdirSync(folder, { recursive: true })
    const { sql } = this.#core
    const [machines, rows, subnets] = await Promise.all([
      networkHosts(sql),
      allReserved(sql),
      subnetsWith(
        sql,
        ranges.map(({ from }) => from),
      ),
    ])
    const reserved = rows.map(reservedHost)
    const texts = [
      [networkFiles.hosts, dnsmasqHosts(machines, reserved)],
      [networkFiles.names, zone === undefined ? '' : dnsmasqNames(reserved, zone)],
      [networkFiles.options, dnsmasqOptions(ranges, subnets)],
    ] as const
    const changed = texts.filter(([name, text]) => replaceIfOther(path.join(folder, name), text) === 'changed')
    return changed.length > 0 ? 'changed' : 'same'
  }
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

/** Takes the distribution's loaders where there are none of the operator's own. Answers those that are there. Throws where there is none. */
function takeLoaders(files: string): Set<string> {
  const folder = path.join(files, loadersFolder)
  mkdirSync(folder, { recursive: true })
  for (const name of new Set(loaders.map(({ file }) => file))) {
    const [own, given] = [path.join(folder, name), path.join(distribution, name)]
    if (existsSync(own) || !existsSync(given)) continue
    copyFileSync(given, `${own}.new`)
    renameSync(`${own}.new`, own)
  }
  const present = new Set(readdirSync(folder))
  if (!loaders.some(({ file }) => present.has(file)))
    throw new Error(`no loader is in ${folder}; install the package ipxe, or put ${loaders.map(({ file }) => file).join(', ')} there`)
  return present
}
