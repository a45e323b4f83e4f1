// The ready machines of a partition, in memory, as bit sets: one bit per machine, one set per constraint that was ever asked. A set is computed
// with the plain matcher of libs/shared and kept, so the index cannot disagree with it; a repeated question costs a few word operations.
import type { ConstraintName, Constraints, Strategy } from '@muster/shared/allocation/constraints'
import { type Candidate, constraintNames, holds, type Place, type WhyNot, whyNot } from '@muster/shared/allocation/matcher'
import { costOf, scoreOf, tieBreak } from '@muster/shared/allocation/score'
import type { MachineRow } from '../db/machines.ts'

/** An offered machine is not offered again for so long while others are free: two requests should not chase one machine. */
const softOfferMs = 250
/** Distinct questions and constraint values remembered; beyond, the oldest is forgotten. 250 bytes each at 2,000 machines. */
const rememberedSets = 1000

interface Entry {
  candidate: Candidate
  version: number
  isReady: boolean
  /** Held, allocated or in use by somebody. */
  isTaken: boolean
  offeredUntil: number
}

interface Slots {
  /** By cost, then id: the first set bit is the best fit. */
  entries: Entry[]
  costs: Float64Array
  slotOf: Map<string, number>
  ready: Uint32Array
  sets: Map<string, Uint32Array>
}

export interface Question {
  requestId: string
  constraints: Constraints
  strategy: Strategy
  count: number
  /** `look` leaves the machines free for others. */
  purpose: 'take' | 'look'
  /** Machines that were just found taken. */
  except?: ReadonlySet<string>
  now: number
}

export interface Found {
  machines: { id: string; score: number; rack: string; zone: string }[]
  matching: number
  why?: WhyNot
}

export class Candidates {
  readonly #place: Place
  readonly #entries = new Map<string, Entry>()
  #slots: Slots | undefined
  readonly #taken = { rack: new Map<string, number>(), zone: new Map<string, number>(), partition: 0 }

  constructor(place: Place) {
    this.#place = place
  }

  get readyCount(): number {
    let count = 0
    for (const entry of this.#entries.values()) if (entry.isReady) count++
    return count
  }

  get size(): number {
    return this.#entries.size
  }

  /** The version of the row that is known, or undefined. */
  versionOf(id: string): number | undefined {
    return this.#entries.get(id)?.version
  }

  /** Takes over a row, unless a newer one is known. */
  put(row: MachineRow): void {
    const known = this.#entries.get(row.id)
    if (known && known.version > row.version) return
    const entry: Entry = {
      candidate: {
        id: row.id,
        hostname: row.hostname,
        arch: row.arch,
        cpus: row.cpus,
        memoryMib: row.memory_mib,
        pool: row.pool,
        zone: row.zone,
        rack: row.rack,
        tags: row.tags,
        disks: row.disks,
        interfaces: row.interfaces,
      },
      version: row.version,
      isReady: row.state === 'ready' && !row.locked && row.allocation_id === null,
      isTaken: row.allocation_id !== null,
      offeredUntil: known?.offeredUntil ?? 0,
    }
    this.#replace(known, entry)
  }

  /** Takes over that a machine was held; nothing else of it has changed. */
  putHeld({ id, version }: { id: string; version: number }): void {
    const known = this.#entries.get(id)
    if (known && known.version < version) this.#replace(known, { ...known, version, isReady: false, isTaken: true })
  }

  #replace(known: Entry | undefined, entry: Entry): void {
    const { id } = entry.candidate
    if (known) this.#countTaken(known, -1)
    this.#countTaken(entry, 1)
    this.#entries.set(id, entry)
    const slot = this.#slots?.slotOf.get(id)
    if (this.#slots && slot !== undefined && known && isSameHardware(known.candidate, entry.candidate)) {
      this.#slots.entries[slot] = entry
      setBit(this.#slots.ready, slot, entry.isReady)
    } else this.#slots = undefined
  }

  remove(id: string): void {
    const known = this.#entries.get(id)
    if (!known) return
    this.#countTaken(known, -1)
    this.#entries.delete(id)
    this.#slots = undefined
  }

  /** Forgets the sets computed so far: the partition can install something else now. */
  forgetSets(): void {
    this.#slots?.sets.clear()
  }

  /** The best machines for a question, best first; with fewer than `count`, why. */
  find(question: Question): Found {
    const slots = this.#build()
    const matching = this.#matching(slots, question)
    const count = countBits(matching)
    const picked =
      question.strategy === 'spread' || question.strategy === 'pack'
        ? this.#byCrowd(slots, matching, question)
        : this.#byCost(slots, matching, question)
    if (question.purpose === 'take') for (const entry of picked) entry.offeredUntil = question.now + softOfferMs
    const found: Found = {
      machines: picked.map(({ candidate }) => ({
        id: candidate.id,
        score: this.#score(candidate, question.strategy),
        rack: candidate.rack,
        zone: candidate.zone,
      })),
      matching: count,
    }
    if (count < question.count) found.why = whyNot(this.#ready(), question.constraints, this.#place)
    return found
  }

  *#ready(): Iterable<Candidate> {
    for (const entry of this.#entries.values()) if (entry.isReady) yield entry.candidate
  }

  #score(candidate: Candidate, strategy: Strategy): number {
    return scoreOf(candidate, strategy, {
      rack: this.#taken.rack.get(candidate.rack) ?? 0,
      zone: this.#taken.zone.get(candidate.zone) ?? 0,
      partition: this.#taken.partition,
    })
  }

  #countTaken(entry: Entry, by: 1 | -1): void {
    if (!entry.isTaken) return
    const { rack, zone } = entry.candidate
    this.#taken.rack.set(rack, (this.#taken.rack.get(rack) ?? 0) + by)
    this.#taken.zone.set(zone, (this.#taken.zone.get(zone) ?? 0) + by)
    this.#taken.partition += by
  }

  #build(): Slots {
    if (this.#slots) return this.#slots
    const entries = [...this.#entries.values()]
      .map(entry => ({ entry, cost: costOf(entry.candidate) }))
      .sort((a, b) => a.cost - b.cost || (a.entry.candidate.id < b.entry.candidate.id ? -1 : 1))
    const ready = new Uint32Array(Math.ceil(entries.length / 32))
    entries.forEach(({ entry }, slot) => {
      setBit(ready, slot, entry.isReady)
    })
    this.#slots = {
      entries: entries.map(({ entry }) => entry),
      costs: Float64Array.from(entries, ({ cost }) => cost),
      slotOf: new Map(entries.map(({ entry }, slot) => [entry.candidate.id, slot])),
      ready,
      sets: new Map(),
    }
    return this.#slots
  }

  #matching(slots: Slots, question: Question): Uint32Array {
    const matching = slots.ready.slice()
    narrow(matching, this.#suitable(slots, question.constraints))
    for (const id of question.except ?? []) {
      const slot = slots.slotOf.get(id)
      if (slot !== undefined) setBit(matching, slot, false)
    }
    return matching
  }

  /** The machines that satisfy all constraints, ready or not. The same question comes again and again, so its answer is kept whole as well. */
  #suitable(slots: Slots, constraints: Constraints): Uint32Array {
    return this.#remembered(slots, JSON.stringify(constraints), () => {
      const suitable = new Uint32Array(slots.ready.length).fill(0xffffffff)
      for (const name of constraintNames)
        if (constraints[name] !== undefined) narrow(suitable, this.#holding(slots, name, constraints[name]))
      return suitable
    })
  }

  /** The machines that satisfy one constraint. */
  #holding(slots: Slots, name: ConstraintName, value: unknown): Uint32Array {
    return this.#remembered(slots, `${name} ${JSON.stringify(value)}`, () => {
      const set = new Uint32Array(slots.ready.length)
      const only = { [name]: value } as Constraints
      for (const [slot, { candidate }] of slots.entries.entries()) if (holds(name, candidate, only, this.#place)) setBit(set, slot, true)
      return set
    })
  }

  #remembered({ sets }: Slots, key: string, compute: () => Uint32Array): Uint32Array {
    const known = sets.get(key)
    if (known) return known
    const set = compute()
    if (sets.size >= rememberedSets) sets.delete(sets.keys().next().value as string)
    sets.set(key, set)
    return set
  }

  /** Cheapest first. Among equals the request's hash says where to begin, so that requests spread over them. */
  #byCost(slots: Slots, matching: Uint32Array, question: Question): Entry[] {
    const picked: Entry[] = []
    const offeredToOthers: Entry[] = []
    let start = nextBit(matching, 0)
    while (start < slots.entries.length && picked.length < question.count) {
      const cost = slots.costs[start] as number
      let end = start + 1
      while (end < slots.entries.length && slots.costs[end] === cost) end++
      const first = start + (tieBreak(question.requestId, question.strategy) % (end - start))
      for (const [from, to] of [
        [first, end],
        [start, first],
      ] as const)
        for (let slot = nextBit(matching, from); slot < to && picked.length < question.count; slot = nextBit(matching, slot + 1)) {
          const entry = slots.entries[slot] as Entry
          if (question.purpose === 'take' && entry.offeredUntil > question.now) offeredToOthers.push(entry)
          else picked.push(entry)
        }
      start = nextBit(matching, end)
    }
    return [...picked, ...offeredToOthers].slice(0, question.count)
  }

  #byCrowd(slots: Slots, matching: Uint32Array, question: Question): Entry[] {
    const scored: { entry: Entry; score: number; isOffered: number; tie: number }[] = []
    for (let slot = nextBit(matching, 0); slot < slots.entries.length; slot = nextBit(matching, slot + 1)) {
      const entry = slots.entries[slot] as Entry
      scored.push({
        entry,
        score: this.#score(entry.candidate, question.strategy),
        isOffered: question.purpose === 'take' && entry.offeredUntil > question.now ? 1 : 0,
        tie: tieBreak(question.requestId, entry.candidate.id),
      })
    }
    scored.sort((a, b) => a.isOffered - b.isOffered || a.score - b.score || a.tie - b.tie)
    // Several machines of one answer should themselves be spread (or packed): the front re-scores, so give it more to choose from.
    return scored.slice(0, question.count).map(({ entry }) => entry)
  }
}

function isSameHardware(a: Candidate, b: Candidate): boolean {
  if (a === b) return true
  return (
    a.hostname === b.hostname &&
    a.arch === b.arch &&
    a.cpus === b.cpus &&
    a.memoryMib === b.memoryMib &&
    a.pool === b.pool &&
    a.zone === b.zone &&
    a.rack === b.rack &&
    isSame(a.tags, b.tags) &&
    isSame(a.disks, b.disks) &&
    isSame(a.interfaces, b.interfaces)
  )
}

const isSame = (a: unknown, b: unknown) => a === b || JSON.stringify(a) === JSON.stringify(b)

function setBit(set: Uint32Array, slot: number, isSet: boolean): void {
  const word = slot >>> 5
  const mask = 1 << (slot & 31)
  set[word] = isSet ? (set[word] as number) | mask : (set[word] as number) & ~mask
}

/** Leaves in `set` what is in `other` too. */
function narrow(set: Uint32Array, other: Uint32Array): void {
  for (let word = 0; word < set.length; word++) set[word] = (set[word] as number) & (other[word] as number)
}

/** The first set bit at or behind `slot`; beyond the end where there is none. */
function nextBit(set: Uint32Array, slot: number): number {
  let word = slot >>> 5
  if (word >= set.length) return Number.MAX_SAFE_INTEGER
  let bits = (set[word] as number) & (-1 << (slot & 31))
  while (bits === 0) {
    word++
    if (word >= set.length) return Number.MAX_SAFE_INTEGER
    bits = set[word] as number
  }
  return (word << 5) + (31 - Math.clz32(bits & -bits))
}

function countBits(set: Uint32Array): number {
  let count = 0
  for (let word of set) {
    word -= (word >>> 1) & 0x55555555
    word = (word & 0x33333333) + ((word >>> 2) & 0x33333333)
    count += (((word + (word >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24
  }
  return count
}
