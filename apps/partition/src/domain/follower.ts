// Numbers new events and follows the log: each replica learns from it what the others changed, and tells whoever streams that it has grown.
import { changedMachines, type LogLook, lastSequenceNumber, numberEvents } from '../db/events.ts'
import { allMachines, findMachines } from '../db/machines.ts'
import { Bell, runLoop } from './bell.ts'
import type { Core } from './core.ts'

/** Rows numbered, and read, in one go. */
const batch = 500
/** How often it looks when nobody rings: what other replicas changed is this late at the most. */
const lookEveryMs = 100
/** An allocation rings twice within milliseconds, and a look costs as much as half of one: so many milliseconds of changes share one. */
const gatherMs = 25

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
    const { log, bells } = this.#core
    const pause = new Bell()
    const look = async () => {
      await pause.wait(gatherMs, signal)
      bells.log.forget()
      return this.#look()
    }
    return runLoop({ name: 'log follower', bell: bells.log, everyMs: lookEveryMs - gatherMs, signal, log, look })
  }

  async #look(): Promise<'more' | 'idle'> {
    const { sql } = this.#core
    const { lastSeq, firstGiven, machines } = await numberEvents(sql, batch)
    const readBefore = this.#readUpTo
    if (lastSeq === readBefore) return 'idle'
    if (firstGiven === readBefore + 1) await this.#follow(machines, lastSeq)
    else {
      const changes = await changedMachines(sql, readBefore, batch)
      await this.#follow(changes.machines, changes.lastSeq)
    }
    return this.#readUpTo < lastSeq || lastSeq - readBefore >= batch ? 'more' : 'idle'
  }

  /** Own changes are in memory already, and of the others the rows are read. */
  async #follow(machines: LogLook['machines'], lastSeq: number): Promise<void> {
    const { sql, memory } = this.#core
    const unknown = machines
      .filter(({ id, version }) => version === null || version > (memory.candidates.versionOf(id) ?? 0))
      .map(({ id }) => id)
    if (unknown.length > 0) {
      const rows = await findMachines(sql, unknown)
      const found = new Set(rows.map(({ id }) => id))
      for (const row of rows) memory.put(row)
      for (const id of unknown) if (!found.has(id)) memory.remove(id)
    }
    this.#readUpTo = lastSeq
    this.#onGrowth(lastSeq)
  }
}
