// Does a machine satisfy the constraints? The plain, obviously right answer; apps/partition's index gives the same one faster and
// is tested against this. Explanations ("what removed whom, who nearly matched") are computed here too.
import type { Disk, NetworkInterface } from '../machine.ts'
import type { ConstraintName, Constraints } from './constraints.ts'

/** The facts of a machine that constraints speak of. */
export interface Candidate {
  readonly id: string
  readonly hostname: string
  readonly arch: string
  readonly cpus: number
  readonly memoryMib: number
  readonly pool: string
  readonly zone: string
  readonly rack: string
  readonly tags: readonly string[]
  readonly disks: readonly Pick<Disk, 'sizeBytes' | 'kind'>[]
  readonly interfaces: readonly Pick<NetworkInterface, 'speedMbps' | 'subnet'>[]
}

/** What a partition is, to constraints: its name and, per architecture, what it can deploy (`amd64` → `debian/12` …). */
export interface Place {
  readonly partition: string
  readonly installable: ReadonlyMap<string, ReadonlySet<string>>
}

const bytesPerGb = 1e9

/**
 * Can every wish have things of its own? `wishes[i]` lists which things suit wish i; true where all can be served at once.
 * Kuhn's algorithm; wishes and things are tens at most, so its cubic bound does not matter.
 */
function canServeAll(wishes: readonly (readonly number[])[]): boolean {
  const takenBy = new Map<number, number>()
  const serve = (wish: number, tried: Set<number>): boolean =>
    (wishes[wish] as readonly number[]).some(thing => {
      if (tried.has(thing)) return false
      tried.add(thing)
      const holder = takenBy.get(thing)
      if (holder !== undefined && !serve(holder, tried)) return false
      takenBy.set(thing, wish)
      return true
    })
  return wishes.every((_, wish) => serve(wish, new Set()))
}

function canHaveEach<Thing, Wish extends { count: number }>(
  things: readonly Thing[],
  wishes: readonly Wish[],
  suits: (thing: Thing, wish: Wish) => boolean,
): boolean {
  const total = wishes.reduce((sum, wish) => sum + wish.count, 0)
  if (total > things.length) return false
  return canServeAll(
    wishes.flatMap(wish => {
      const suitable = things.flatMap((thing, index) => (suits(thing, wish) ? [index] : []))
      return Array.from({ length: wish.count }, () => suitable)
    }),
  )
}

type Check<Name extends ConstraintName> = (machine: Candidate, wanted: NonNullable<Constraints[Name]>, place: Place) => boolean

/** One line per constraint; the order is the order of explanations. */
const checks: { readonly [Name in ConstraintName]-?: Check<Name> } = {
  partitions: (_, wanted, place) => wanted.includes(place.partition),
  notPartitions: (_, unwanted, place) => !unwanted.includes(place.partition),
  machines: (machine, wanted) => wanted.includes(machine.id),
  hostnames: (machine, wanted) => wanted.includes(machine.hostname),
  arch: (machine, wanted) => (wanted as string[]).includes(machine.arch),
  os: (machine, wanted, place) => place.installable.get(machine.arch)?.has(wanted) ?? false,
  pools: (machine, wanted) => wanted.includes(machine.pool),
  notPools: (machine, unwanted) => !unwanted.includes(machine.pool),
  zones: (machine, wanted) => wanted.includes(machine.zone),
  notZones: (machine, unwanted) => !unwanted.includes(machine.zone),
  racks: (machine, wanted) => wanted.includes(machine.rack),
  notRacks: (machine, unwanted) => !unwanted.includes(machine.rack),
  tags: (machine, wanted) => wanted.every(tag => machine.tags.includes(tag)),
  notTags: (machine, unwanted) => !unwanted.some(tag => machine.tags.includes(tag)),
  cpus: (machine, least) => machine.cpus >= least,
  memoryMib: (machine, least) => machine.memoryMib >= least,
  disks: (machine, wishes) =>
    canHaveEach(
      machine.disks,
      wishes,
      (disk, wish) => disk.sizeBytes >= (wish.sizeGb ?? 0) * bytesPerGb && (wish.kind === undefined || disk.kind === wish.kind),
    ),
  interfaces: (machine, wishes) =>
    canHaveEach(
      machine.interfaces,
      wishes,
      (port, wish) => port.speedMbps >= (wish.speedMbps ?? 0) && (wish.subnet === undefined || port.subnet === wish.subnet),
    ),
}

export const constraintNames = Object.keys(checks) as ConstraintName[]

/** Whether one named constraint holds (true where it was not asked for). */
export function holds(name: ConstraintName, machine: Candidate, wanted: Constraints, place: Place): boolean {
  const value = wanted[name]
  return value === undefined || (checks[name] as Check<ConstraintName>)(machine, value as never, place)
}

/** The constraints `machine` misses, in the order of the table; empty where it matches. */
export function misses(machine: Candidate, wanted: Constraints, place: Place): ConstraintName[] {
  return constraintNames.filter(name => !holds(name, machine, wanted, place))
}

export function isMatch(machine: Candidate, wanted: Constraints, place: Place): boolean {
  return constraintNames.every(name => holds(name, machine, wanted, place))
}

export interface NearMiss {
  readonly machine: string
  readonly misses: ConstraintName[]
}

/** Why nothing (or not enough) matched in one partition. */
export interface WhyNot {
  /** Machines that were ready. */
  readonly considered: number
  /** Per constraint, how many of them it alone refuses or helps to refuse. */
  readonly removed: Partial<Record<ConstraintName, number>>
  /** The three machines that miss the fewest constraints. */
  readonly nearest: NearMiss[]
}

export const nearestShown = 3

/** Explains a refusal over the machines that were ready. */
export function whyNot(ready: Iterable<Candidate>, wanted: Constraints, place: Place): WhyNot {
  const removed: Partial<Record<ConstraintName, number>> = {}
  const near: NearMiss[] = []
  let considered = 0
  for (const machine of ready) {
    considered++
    const missed = misses(machine, wanted, place)
    for (const name of missed) removed[name] = (removed[name] ?? 0) + 1
    if (missed.length > 0) near.push({ machine: machine.id, misses: missed })
  }
  return { considered, removed, nearest: nearestOf(near) }
}

/** The nearest misses of several partitions, or of one. */
export function nearestOf(near: readonly NearMiss[]): NearMiss[] {
  return [...near].sort((a, b) => a.misses.length - b.misses.length || (a.machine < b.machine ? -1 : 1)).slice(0, nearestShown)
}
