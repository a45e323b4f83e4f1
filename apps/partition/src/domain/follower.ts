// Numbers new events and follows the log: each replica learns from it what the others changed, and tells whoever streams that it has grown.
import { changedMachines, hasUnnumberedEvents, lastSequenceNumber, numberEvents } from '../db/events.ts'
import { allMachines, findMachines } from '../db/machines.ts'
import { runLoop } from './bell.ts'
import type { Core } from './core.ts'

/** Rows numbered, and read, in one go. */
const batch = 500

export class LogFollower {
  readonly #core: Core
  readonly #onGrowth: (lastSeq: number) => void
  #readUpTo = 0

  /** `onGrowth` is called with the log's last number each time it has grown. */
  constructor(core: Core, onGrowth: (lastSeq: number) => void) {
    this.#core = core
    this.#onGrowth = onGrowth
  }

  get lastSeq(): number {
    return this.#readUpTo
  }

  /** Fills the memory of this replica from the rows. The position is read first: what changes meanwhile is read twice, never missed. */
  async start(): Promise<void> {
    this.#readUpTo = await lastSequenceNumber(this.#core.sql)
    for (const row of await allMachines(this.#core.sql)) this.#core.memory.put(row)
  }

  run(signal: AbortSignal): Promise<void> {
    return runLoop({
      name: 'log follower',
      bell: this.#core.bells.log,
      everyMs: 100,
      signal,
      log: this.#core.log,
      look: () => this.#look(),
    })
  }

  async #look(): Promise<'more' | 'idle'> {
    const { sql, memory } = this.#core
    if (await hasUnnumberedEvents(sql)) await numberEvents(sql, batch)
    const changes = await changedMachines(sql, this.#readUpTo, batch)
    if (changes.read === 0) return 'idle'
    const rows = await findMachines(sql, changes.machines)
    const found = new Set(rows.map(({ id }) => id))
    for (const row of rows) memory.put(row)
    for (const id of changes.machines) if (!found.has(id)) memory.remove(id)
    this.#readUpTo = changes.lastSeq
    this.#onGrowth(changes.lastSeq)
    return changes.read === batch ? 'more' : 'idle'
  }
}
