// The virtual rack: BMCs and machines that are not there, any number in one process, speaking the real protocols. Used by `npm start`,
// the tests and the benchmarks alike; what goes wrong in it is asked for by names (machine/sad.ts) and faults (bmc/faults.ts).
import type { Inventory } from '@muster/shared/agent'
import { hostnamePattern } from '@muster/shared/ids'
import { type Bmc, type BmcUser, startBmc } from './bmc/bmc.ts'
import { BootOptions } from './bmc/boot-options.ts'
import type { BmcCounters } from './bmc/controller.ts'
import type { BmcFaults } from './bmc/faults.ts'
import type { DiskContent, HistoryEntry, Phase } from './machine/boot.ts'
import { machineFacts, machineNameOf } from './machine/facts.ts'
import { HttpClient, openConnections, type Wire } from './machine/http.ts'
import { type BootOrder, Machine } from './machine/machine.ts'
import { type Pace, Pacer } from './machine/pace.ts'
import { seededBytes, seededRandom } from './machine/random.ts'
import { behaviourOf } from './machine/sad.ts'
import { type BmcLayout, type BmcPlace, bmcAddressOf, candidatePlaces } from './rack/addresses.ts'
import { type MemoryWriter, memoryWriter, readMemory, type SavedRack } from './rack/memory.ts'
import { type ServerCertificate, selfSignedCertificate } from './redfish/certificate.ts'
import { type Redfish, startRedfish } from './redfish/redfish.ts'

export interface MachineSpec {
  /** Where it stands, from 0; unique in the rack. Facts, MACs and BMC address follow from it and the rack's seed. */
  index: number
  /** A host name; `r01u01` and so on by default. The names of machine/sad.ts make it misbehave. */
  name?: string
  /** The partition's boot door: `http://127.0.0.1:8080`. */
  bootUrl: string
  /** Replaces parts of the generated inventory. */
  inventory?: Partial<Inventory>
  bootOrder?: BootOrder
  bmc?: { faults?: Partial<BmcFaults>; kg?: Buffer; users?: readonly BmcUser[] }
  /** What is between it and its partition; nothing where absent. */
  wire?: Wire
  /** `redfish`: its BMC has a Redfish service beside IPMI, on the TCP port of the same number, and the machine reports that. */
  speaks?: 'ipmi' | 'redfish'
}

export interface RackOptions {
  machines: readonly MachineSpec[]
  /** Decides all generated facts and passwords. Default 1. With a data directory, the seed it was first started with must stay. */
  seed?: number
  /** How the BMCs are laid out; what is not given is found free, and kept in the data directory. */
  bmc?: { layout?: BmcLayout; network?: number; port?: number }
  /** Default `quick`. */
  pace?: Pace
  /** From a chassis order to its effect; by the pace where absent. */
  powerEffectMs?: number
  /** How long boot flags stay valid without a chassis command. Default 60 s. */
  bootFlagsExpiryMs?: number
  /** Bytes read of a kernel or initrd at most. Default 1 MiB: thousands boot at once and throw them away. */
  bootFileMax?: number
  /** Disks, power states and BMC places survive there. Nothing is kept without it. */
  dataDir?: string
  log?: (message: string, facts: Readonly<Record<string, string | number>>) => void
}

/** One machine, as tests and people look at it. */
export interface RackMachine {
  readonly name: string
  readonly index: number
  readonly bootMac: string
  readonly inventory: Inventory
  readonly power: 'on' | 'off'
  readonly phase: Phase
  readonly disk: DiskContent
  /** Whether it ever enlisted, in this run or an earlier one. */
  readonly isEnlisted: 'yes' | 'no'
  /** What happened, oldest first: the last 300 entries. */
  readonly history: readonly HistoryEntry[]
  readonly bmc: {
    readonly address: string
    readonly port: number
    /** The first account. */
    readonly user: string
    readonly password: string
    /** May be changed at any time. */
    readonly faults: BmcFaults
    readonly counters: BmcCounters
    sessionsOpen(): number
    identify(): 'off' | 'timed' | 'on'
  }
  /** Undefined where it speaks IPMI only. */
  readonly redfish: Redfish | undefined
  /** The number of the newest history entry: a mark for `until`. */
  readonly lastNumber: number
  /** Resolves with the first history entry that fits, from now on or numbered above `after`; rejects when the signal fires. */
  until(fits: (entry: HistoryEntry) => boolean, options: { signal: AbortSignal; after?: number }): Promise<HistoryEntry>
  /** Presses the button; `boot: 'network'` holds the key for a network boot as well. */
  pressPower(options: { to: 'on'; boot?: 'network' } | { to: 'off' }): void
}

export interface Rack extends AsyncDisposable {
  readonly seed: number
  readonly machines: readonly RackMachine[]
  readonly bmcPlace: BmcPlace
  /** The machine of this name. Throws where there is none. */
  machine(name: string): RackMachine
  /**
   * Somebody goes along the rack and presses the buttons of the machines that are off, with the key for a network boot held, in random
   * order over `spreadMs` (default 0). Resolves when the last was pressed, with how many; `only` picks machines.
   */
  powerOnAll(options?: { spreadMs?: number; only?: (machine: RackMachine) => boolean }): Promise<number>
  /** Stops machines where they are, closes BMCs, writes the memory. Again is harmless. */
  close(): Promise<void>
}

const bootFileMaxDefault = 1_048_576
/** IPMI v2.0 table 28-14. */
const bootFlagsExpiryMs = 60_000

/**
 * Starts a rack. Machines that were on when the data directory was last written boot again, as after a power cut. Throws where an
 * index or name comes twice, a name is no host name, the data directory was made with another seed, or no BMC address is free.
 */
export async function startRack(options: RackOptions): Promise<Rack> {
  const seed = options.seed ?? 1
  checkSpecs(options.machines)
  const remembered = options.dataDir === undefined ? undefined : await readMemory(options.dataDir)
  if (remembered && remembered.seed !== seed)
    throw new Error(`the rack in ${options.dataDir} was made with seed ${remembered.seed}, not ${seed}: its machines would all be others`)
  const connections = openConnections()
  const certificate = remembered?.certificate ?? selfSignedCertificate('muster-virtual-rack')
  const context: BuildContext = { options, seed, remembered, connections, certificate, changed: () => memory?.changed() }
  let memory: MemoryWriter | undefined
  let place: BmcPlace
  let entries: Entry[]
  try {
    ;({ place, entries } = await placeMachines(context))
  } catch (error) {
    connections.close()
    throw error
  }
  if (options.dataDir !== undefined) {
    const snapshot = () => snapshotOf({ seed, place, entries, remembered, certificate })
    memory = memoryWriter({ dir: options.dataDir, snapshot, log: options.log ?? (() => {}) })
    // At once, and not after the first change: a second start must find the same BMC addresses.
    memory.changed()
  }
  for (const { machine } of entries) machine.restorePower()
  return rackOf({ seed, place, entries, memory, connections })
}

interface Entry {
  readonly view: RackMachine
  readonly machine: Machine
  readonly bmc: Bmc
  readonly redfish: Redfish | undefined
  readonly bootOptions: BootOptions
  /** What the BMC itself must remember. */
  readonly memory: () => { bmcPassword?: string }
}

interface BuildContext {
  readonly options: RackOptions
  readonly seed: number
  readonly remembered: SavedRack | undefined
  readonly connections: ReturnType<typeof openConnections>
  readonly changed: () => void
  /** What every Redfish service of the rack shows: those of one maker often leave the factory with one certificate. */
  readonly certificate: ServerCertificate
}

function rackOf(parts: {
  seed: number
  place: BmcPlace
  entries: readonly Entry[]
  memory: MemoryWriter | undefined
  connections: ReturnType<typeof openConnections>
}): Rack {
  const { entries, connections, memory } = parts
  const machines = entries.map(({ view }) => view)
  const byName = new Map(machines.map(view => [view.name, view]))
  const closing = new AbortController()
  let closed: Promise<void> | undefined
  const close = () => {
    closed ??= (async () => {
      closing.abort()
      await Promise.all(entries.map(({ machine }) => machine.close()))
      await Promise.all(entries.flatMap(({ bmc, redfish }) => [bmc.close(), redfish?.close()]))
      connections.close()
      await memory?.close()
    })()
    return closed
  }
  return {
    seed: parts.seed,
    machines,
    bmcPlace: parts.place,
    machine: name => {
      const found = byName.get(name)
      if (!found) throw new Error(`there is no machine ${name} in this rack`)
      return found
    },
    powerOnAll: ({ spreadMs = 0, only = () => true } = {}) =>
      pressButtons(
        machines.filter(view => view.power === 'off' && only(view)),
        { spreadMs, signal: closing.signal },
      ),
    close,
    [Symbol.asyncDispose]: close,
  }
}

async function pressButtons(machines: readonly RackMachine[], options: { spreadMs: number; signal: AbortSignal }): Promise<number> {
  const pressed = await Promise.all(
    machines.map(async machine => {
      if (options.spreadMs > 0) await abortableDelay(Math.random() * options.spreadMs, options.signal)
      if (options.signal.aborted) return 0
      machine.pressPower({ to: 'on', boot: 'network' })
      return 1
    }),
  )
  return pressed.reduce<number>((sum, one) => sum + one, 0)
}

/** Resolves after `ms`, or at once when the signal fires. */
async function abortableDelay(ms: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, ms)
  const stop = () => resolve()
  signal.addEventListener('abort', stop, { once: true })
  await promise
  clearTimeout(timer)
  signal.removeEventListener('abort', stop)
}

/** Builds all machines at the first place whose addresses are free. A place that was given or remembered is the only one tried. */
async function placeMachines(context: BuildContext): Promise<{ place: BmcPlace; entries: Entry[] }> {
  const { bmc } = context.options
  const remembered = context.remembered?.bmc
  const places = remembered ? [remembered] : candidatePlaces({ layout: 'address each', ...bmc }, process.pid)
  for (const place of places) {
    const entries = await buildAt(place, context)
    if (entries) return { place, entries }
  }
  const tried = places.map(({ layout, network, port }) =>
    layout === 'address each' ? `127.${network}.0.0/16 port ${port}` : `port ${port} up`,
  )
  throw new Error(
    `no BMC addresses are free: tried ${tried.slice(0, 3).join(', ')}${tried.length > 3 ? ` and ${tried.length - 3} more` : ''}${
      remembered ? '; partitions know these BMCs by their remembered addresses: end whoever holds them' : ''
    }`,
  )
}

/** All machines with their BMCs listening, or undefined where an address was taken. Rejects for every other trouble. */
async function buildAt(place: BmcPlace, context: BuildContext): Promise<Entry[] | undefined> {
  const entries: Entry[] = []
  const giveUp = async () => {
    await Promise.all(entries.flatMap(({ bmc, redfish }) => [bmc.close(), redfish?.close()]))
  }
  try {
    for (const spec of context.options.machines) entries.push(await buildMachine(spec, place, context))
    return entries
  } catch (error) {
    await giveUp()
    if ((error as NodeJS.ErrnoException).code === 'EADDRINUSE') return undefined
    throw error
  }
}

async function buildMachine(spec: MachineSpec, place: BmcPlace, context: BuildContext): Promise<Entry> {
  const { options, seed, changed } = context
  const log = options.log ?? (() => {})
  const name = spec.name ?? machineNameOf(spec.index)
  const behaviour = behaviourOf(name)
  const facts = machineFacts({ seed, index: spec.index })
  const saved = context.remembered?.machines[facts.bootMac]
  const random = seededRandom('pace', seed, spec.index)
  const pacer = new Pacer(options.pace ?? 'quick', { random, powerEffectMs: options.powerEffectMs })
  const users = (spec.bmc?.users ?? [usualUser(seed, spec.index)]).map(user => ({ ...user }))
  const [account] = users
  if (!account) throw new Error(`the BMC of ${name} has no account`)
  const firstPassword = account.password
  account.password = saved?.bmcPassword ?? firstPassword
  const { address, port } = bmcAddressOf(place, spec.index)
  const bootOptions = new BootOptions({ expiryMs: options.bootFlagsExpiryMs ?? bootFlagsExpiryMs, saved: saved?.bootOptions, changed })
  let bmc: Bmc | undefined
  let redfish: Redfish | undefined
  const machine = new Machine({
    name,
    facts,
    inventory: spec.inventory && { ...facts.inventory, ...spec.inventory },
    behaviour,
    bootUrl: spec.bootUrl,
    bootOrder: spec.bootOrder ?? 'network first',
    bootOptions,
    bmc: () => ({
      address: `${address}:${port}`,
      user: account.name,
      password: account.password,
      redfish: spec.speaks === 'redfish' ? { url: `https://${address}:${port}`, fingerprint: context.certificate.fingerprint } : undefined,
    }),
    bootFileMax: options.bootFileMax ?? bootFileMaxDefault,
    pacer,
    http: new HttpClient(context.connections, pacer, spec.wire),
    serial: text => bmc?.serialOutput(Buffer.from(text)),
    powerChanged: () => redfish?.powerChanged(),
    saved,
    now: Date.now,
    changed,
    log,
  })
  bmc = await startBmc({
    address,
    port,
    users,
    passwordSet: changed,
    kg: spec.bmc?.kg,
    guid: Buffer.from(facts.uuid.replaceAll('-', ''), 'hex'),
    chassis: machine,
    bootOptions,
    serial: { typed: characters => machine.typed(characters.toString()) },
    faults: { ...behaviour.bmc, ...spec.bmc?.faults },
    random,
    log,
  })
  redfish =
    spec.speaks === 'redfish'
      ? await startRedfish({
          address,
          port,
          users,
          passwordSet: changed,
          uuid: facts.uuid,
          chassis: machine,
          bootOptions,
          certificate: context.certificate,
        }).catch(async error => {
          await bmc?.close()
          throw error
        })
      : undefined
  const memory = () => ({ ...(account.password !== firstPassword && { bmcPassword: account.password }) })
  return { machine, bmc, redfish, bootOptions, memory, view: viewOf(machine, bmc, redfish, account) }
}

function viewOf(machine: Machine, bmc: Bmc, redfish: Redfish | undefined, account: BmcUser): RackMachine {
  return {
    name: machine.name,
    index: machine.facts.index,
    bootMac: machine.facts.bootMac,
    inventory: machine.inventory,
    get power() {
      return machine.power()
    },
    get phase() {
      return machine.phase
    },
    get disk() {
      return machine.disk
    },
    get isEnlisted() {
      return machine.isEnlisted
    },
    get history() {
      return machine.history
    },
    get lastNumber() {
      return machine.lastNumber
    },
    bmc: {
      address: bmc.address,
      port: bmc.port,
      user: account.name,
      get password() {
        return account.password
      },
      faults: bmc.faults,
      get counters() {
        return bmc.counters
      },
      sessionsOpen: () => bmc.sessionsOpen(),
      identify: () => bmc.identify(),
    },
    redfish,
    until: (fits, options) => machine.until(fits, options),
    pressPower: options => machine.pressPower(options),
  }
}

/** Every BMC has a password of its own, as it should be. */
function usualUser(seed: number, index: number): BmcUser {
  return { name: 'muster', password: seededBytes(8, 'bmc password', seed, index).toString('hex'), privilege: 'ADMINISTRATOR' }
}

function snapshotOf(parts: {
  seed: number
  place: BmcPlace
  entries: readonly Entry[]
  remembered: SavedRack | undefined
  certificate: ServerCertificate
}): SavedRack {
  const machines = parts.entries.map(({ machine, bootOptions, memory }) => {
    return [machine.facts.bootMac, { ...machine.saved(), bootOptions: bootOptions.saved(), ...memory() }] as const
  })
  // Machines that are not started this time stay in the memory: a smaller rack today must not wipe the others' disks.
  const { seed, place: bmc, remembered, certificate } = parts
  return { version: 1, seed, bmc, certificate, machines: { ...remembered?.machines, ...Object.fromEntries(machines) } }
}

function checkSpecs(specs: readonly MachineSpec[]): void {
  const indices = new Set<number>()
  const names = new Set<string>()
  for (const { index, name = machineNameOf(index) } of specs) {
    if (!Number.isInteger(index) || index < 0) throw new RangeError(`${index} is no machine index`)
    if (!hostnamePattern.test(name)) throw new Error(`"${name}" is no host name`)
    if (indices.has(index)) throw new Error(`two machines have index ${index}`)
    if (names.has(name)) throw new Error(`two machines are called ${name}`)
    indices.add(index)
    names.add(name)
  }
}
