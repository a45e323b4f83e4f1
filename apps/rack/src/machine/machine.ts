// A machine that is not there: a power switch, a firmware with a boot order, a disk, and whatever runs in it. Its BMC orders it about
// through the Chassis interface; losing power ends at once everything that was going on.
import { setTimeout as sleep } from 'node:timers/promises'
import type { ChassisControl } from '@muster/drivers/ipmi/codec'
import type { Inventory } from '@muster/shared/agent'
import type { BootOptions } from '../bmc/boot-options.ts'
import type { Chassis } from '../bmc/command-table.ts'
import { runAgent } from './agent.ts'
import type { Boot, DiskContent, Ending, FoundBmc, Happening, HistoryEntry, Phase } from './boot.ts'
import type { MachineFacts } from './facts.ts'
import type { HttpClient } from './http.ts'
import { networkBoot } from './network-boot.ts'
import { bootOperatingSystem } from './operating-system.ts'
import type { Pacer } from './pace.ts'
import type { Behaviour } from './sad.ts'

export type BootOrder = 'network first' | 'disk only'

/** What survives the rack's restart. */
export interface SavedMachine {
  power: 'on' | 'off'
  disk: DiskContent
  /** Whether it ever told a partition about itself. */
  isEnlisted: 'yes' | 'no'
}

export interface MachineOptions {
  name: string
  facts: MachineFacts
  /** What the agent reports; the facts' own where nothing else is said. */
  inventory?: Inventory | undefined
  behaviour: Behaviour
  bootUrl: string
  bootOrder: BootOrder
  bootOptions: BootOptions
  bmc: () => FoundBmc
  bootFileMax: number
  pacer: Pacer
  http: HttpClient
  /** The serial line, towards whoever listens there; nobody where left out. */
  serial?: (text: string) => void
  /** Called after each change of the power. */
  powerChanged?: () => void
  saved?: SavedMachine | undefined
  /** Epoch milliseconds. */
  now: () => number
  /** Called after each change of what SavedMachine holds. */
  changed: () => void
  log: (message: string, facts: Readonly<Record<string, string | number>>) => void
}

/** Enough for several commissionings and deployments; the oldest entries go first. */
const historyMax = 300
/** How often a firmware with nothing to boot goes round its boot order before it stops at "no bootable device". */
const bootRoundsMax = 100
/** A worker looks 150 ms after its order, then ever more rarely. */
const shortestLifeMs = 500

/** One machine. It starts switched off; `restorePower` brings it to where it was saved. */
export class Machine implements Chassis {
  readonly name: string
  readonly facts: MachineFacts
  readonly inventory: Inventory
  readonly #options: MachineOptions
  readonly #history: HistoryEntry[] = []
  #lastNumber = 0
  readonly #watchers = new Set<(entry: HistoryEntry) => void>()
  #power: 'on' | 'off'
  #phase: Phase = 'off'
  #disk: DiskContent
  #isEnlisted: 'yes' | 'no'
  /** Ends with the power. */
  #run = new AbortController()
  #living: Promise<void> = Promise.resolve()
  /** Chassis orders accepted and not yet carried out, oldest first. */
  readonly #orders: { order: ChassisControl; afterMs: number }[] = []
  #orderTimer: NodeJS.Timeout | undefined
  /** A key held at power on: goes before the boot order, after the BMC's override. */
  #pressedFor: 'network' | undefined
  #isClosed = false

  constructor(options: MachineOptions) {
    this.#options = options
    this.name = options.name
    this.facts = options.facts
    this.inventory = options.inventory ?? options.facts.inventory
    this.#power = 'off'
    this.#disk = options.saved?.disk ?? { kind: 'empty' }
    this.#isEnlisted = options.saved?.isEnlisted ?? 'no'
  }

  /** What the BMC's power sensor reads. */
  power(): 'on' | 'off' {
    return this.#power
  }

  /** Where it is between power on and off. */
  get phase(): Phase {
    return this.#phase
  }

  /** What is on the first disk. */
  get disk(): DiskContent {
    return this.#disk
  }

  /** What happened, oldest first: the last 300 entries. */
  get history(): readonly HistoryEntry[] {
    return this.#history
  }

  /** Whether it ever enlisted. */
  get isEnlisted(): 'yes' | 'no' {
    return this.#isEnlisted
  }

  /** What a restart must find again. */
  saved(): SavedMachine {
    return { power: this.#power, disk: this.#disk, isEnlisted: this.#isEnlisted }
  }

  /** The number of the newest history entry; 0 before the first. */
  get lastNumber(): number {
    return this.#lastNumber
  }

  /**
   * Resolves with the first entry that fits, from now on or of those numbered above `after`. Rejects with the signal's reason when that
   * fires first.
   */
  async until(fits: (entry: HistoryEntry) => boolean, options: { signal: AbortSignal; after?: number }): Promise<HistoryEntry> {
    const { signal, after = this.#lastNumber } = options
    signal.throwIfAborted()
    const past = this.#history.find(entry => entry.number > after && fits(entry))
    if (past) return past
    const { promise, resolve, reject } = Promise.withResolvers<HistoryEntry>()
    const stop = () => reject(signal.reason)
    const watch = (entry: HistoryEntry) => {
      if (fits(entry)) resolve(entry)
    }
    signal.addEventListener('abort', stop, { once: true })
    this.#watchers.add(watch)
    try {
      return await promise
    } finally {
      this.#watchers.delete(watch)
      signal.removeEventListener('abort', stop)
    }
  }

  /**
   * An order from the BMC. Its effect follows after the pace's power effect time; orders given meanwhile queue up behind it. Anything but on and
   * off is in the wrong state while the machine is off.
   */
  control(order: ChassisControl): 'accepted' | 'wrong-state' {
    if (this.#power === 'off' && order !== 'on' && order !== 'off') return 'wrong-state'
    this.note('order', { order })
    if (order === 'on' && this.#options.behaviour.powerOrders === 'on is ignored') return 'accepted'
    const { powerEffectMs, cycleOffMs } = this.#options.pacer
    this.#orders.push({ order: order === 'cycle' ? 'off' : order, afterMs: powerEffectMs })
    if (order === 'cycle') this.#orders.push({ order: 'on', afterMs: cycleOffMs })
    this.#scheduleOrder()
    return 'accepted'
  }

  /** Somebody at the machine presses the power button, perhaps with the key for a network boot held. Clears the BMC's override. */
  pressPower(options: { to: 'on'; boot?: 'network' } | { to: 'off' }): void {
    if (options.to === 'off') {
      this.#switchOff('the power button')
      return
    }
    this.#options.bootOptions.buttonPressed()
    this.#pressedFor = options.boot
    this.#switchOn('the power button')
  }

  /** Mains power is back and the machine goes on as it was: on if it was on. For the start of the rack. */
  restorePower(): void {
    if (this.#options.saved?.power === 'on') this.#switchOn('restored mains power')
  }

  /** The rack closes: everything stops where it is, the saved power state stays. */
  async close(): Promise<void> {
    this.#isClosed = true
    clearTimeout(this.#orderTimer)
    this.#run.abort()
    await this.#living
  }

  /** Writes down what happened and wakes those who wait for it. */
  note(what: Happening, facts: HistoryEntry['facts'] = {}): void {
    const entry = { number: ++this.#lastNumber, at: this.#options.now(), what, facts }
    this.#history.push(entry)
    if (this.#history.length > historyMax) this.#history.shift()
    if (what === 'enlisted') {
      this.#isEnlisted = 'yes'
      this.#options.changed()
    }
    for (const watch of [...this.#watchers]) watch(entry)
    if (this.#power === 'on') this.#options.serial?.(`${[what, ...Object.values(facts)].join(' ')}\r\n`)
  }

  /** Somebody types on the serial console: what they type comes back, and a line gets a prompt, as from a system that runs. */
  typed(characters: string): void {
    if (this.#power === 'off') return
    const echo = characters.replaceAll('\r', '\r\n')
    this.#options.serial?.(characters.includes('\r') ? `${echo}${this.name} ${this.#phase}> ` : echo)
  }

  #scheduleOrder(): void {
    const [next] = this.#orders
    if (this.#orderTimer || !next || this.#isClosed) return
    this.#orderTimer = setTimeout(() => {
      this.#orderTimer = undefined
      this.#orders.shift()
      this.#carryOut(next.order)
      this.#scheduleOrder()
    }, next.afterMs)
  }

  #carryOut(order: ChassisControl): void {
    if (order === 'on') this.#switchOn('the BMC')
    if (order === 'off') this.#switchOff('the BMC')
    if (order === 'reset' && this.#power === 'on') this.#restart('the BMC')
    if (order === 'soft') this.#shutDown()
  }

  #switchOn(by: string): void {
    if (this.#power === 'on' || this.#isClosed) return
    this.#power = 'on'
    this.note('power on', { by })
    this.#options.changed()
    this.#options.powerChanged?.()
    this.#start()
  }

  #switchOff(by: string): void {
    if (this.#power === 'off') return
    this.#power = 'off'
    this.#phase = 'off'
    this.#run.abort()
    this.note('power off', { by })
    this.#options.changed()
    this.#options.powerChanged?.()
  }

  #restart(by: string): void {
    this.#run.abort()
    this.note('reboot', { by })
    this.#start()
  }

  /** A polite request: only a running system hears it, and it takes its time. */
  #shutDown(): void {
    if (this.#phase !== 'operating system' && this.#phase !== 'agent') return
    const { signal } = this.#run
    this.#options.pacer.stage('shutDown', signal).then(
      () => this.#switchOff('its operating system'),
      () => {}, // power went another way first
    )
  }

  #start(): void {
    const run = new AbortController()
    this.#run = run
    const before = this.#living
    this.#living = (async () => {
      await before
      try {
        await this.#live(run.signal)
      } catch (error) {
        if (run.signal.aborted) return
        // A mistake of the rack itself: the machine stands still and says so, and the other machines go on.
        this.#enter('hung', run.signal)
        const why = error instanceof Error ? (error.stack ?? error.message) : String(error)
        this.note('mistake', { why })
        this.#options.log('virtual machine stopped on an error', { machine: this.name, error: why })
      }
    })()
  }

  /** From power on to whatever ends it. */
  async #live(signal: AbortSignal): Promise<void> {
    const boot = this.#bootContext(signal)
    let ending: Ending = 'reboot'
    while (ending === 'reboot') {
      ending = await this.#bootOnce(boot)
      signal.throwIfAborted()
      if (ending === 'reboot') this.note('reboot', { by: 'itself' })
    }
    if (ending !== 'power-off') return
    // No computer is on and off again between two looks at its BMC.
    await sleep(shortestLifeMs, undefined, { signal })
    this.#switchOff('itself')
  }

  async #bootOnce(boot: Boot): Promise<Ending> {
    for (let round = 1; round <= bootRoundsMax; round++) {
      boot.enter('firmware')
      await boot.pacer.stage('firmware', boot.signal)
      const source = this.#bootSource()
      boot.note('boot', { from: source, round })
      if (source === 'disk') return await this.#bootDisk(boot)
      const outcome = await networkBoot(boot)
      if (outcome.kind === 'kernel') return await runAgent(boot, outcome.arguments)
      if (outcome.kind === 'disk') return await this.#bootDisk(boot)
      if (outcome.kind === 'reboot' || outcome.kind === 'power-off') return outcome.kind
      if (outcome.kind === 'waits') return this.#hang(boot, `the boot script waits for a person: ${outcome.command}`)
      boot.note('network boot failed', { why: outcome.reason })
      // The next device of the boot order; where that has nothing either, real firmware starts over.
      if (this.#disk.kind === 'installed') return await this.#bootDisk(boot)
      await boot.pacer.backOff(round, boot.signal)
    }
    return this.#hang(boot, `no bootable device after ${bootRoundsMax} rounds`)
  }

  /** The BMC's override, else the key somebody held, else the boot order. */
  #bootSource(): 'network' | 'disk' {
    const override = this.#options.bootOptions.takeForBoot(this.#options.now())
    const pressed = this.#pressedFor
    this.#pressedFor = undefined
    if (override?.device === 'network') return 'network'
    if (override?.device === 'disk' || override?.device === 'safeDisk') return 'disk'
    return pressed ?? (this.#options.bootOrder === 'network first' ? 'network' : 'disk')
  }

  async #bootDisk(boot: Boot): Promise<Ending> {
    const disk = this.#disk
    if (disk.kind === 'installed') {
      await bootOperatingSystem(boot, disk)
      return 'stay'
    }
    return this.#hang(boot, disk.kind === 'empty' ? 'no operating system on the disk' : 'the disk was only partly written')
  }

  #hang(boot: Boot, why: string): Ending {
    boot.enter('hung')
    boot.note('hung', { why })
    return 'stay'
  }

  #enter(phase: Phase, signal: AbortSignal): void {
    // A stage that has not yet noticed the loss of power must not bring the machine back to life.
    if (!signal.aborted) this.#phase = phase
  }

  #bootContext(signal: AbortSignal): Boot {
    const { behaviour, bootUrl, bmc, bootFileMax, pacer, http } = this.#options
    const machine = this
    return {
      name: this.name,
      facts: this.facts,
      inventory: this.inventory,
      behaviour,
      bootUrl,
      bmc: bmc(),
      bootFileMax,
      pacer,
      http,
      signal,
      get disk() {
        return machine.#disk
      },
      writeDisk: content => {
        if (signal.aborted) return
        this.#disk = content
        this.#options.changed()
      },
      enter: phase => this.#enter(phase, signal),
      note: (what, facts) => {
        if (!signal.aborted) this.note(what, facts)
      },
    }
  }
}
