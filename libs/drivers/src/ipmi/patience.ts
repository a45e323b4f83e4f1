/**
 * How long a login waits, and how often it begins anew. Nobody can tell a lost datagram from a slow BMC, but what a BMC answered, in this login or
 * before, tells its pace; and an answer to an attempt that was given up shows that it is slow, not gone.
 */
import type { Timers } from './timers.ts'

export interface Pace {
  /** The slowest answer of the last login that succeeded, in milliseconds. */
  paceMs?: number
}

/** A BMC computes hashes for RAKP 2 and 4: four times its slowest answer so far is a lot, and twice is not. */
const slack = 4
/** The wait grows with each attempt up to this many times the first. */
const growthMax = 4
/** The shortest first wait for a BMC that has shown how fast it is. */
const quickestMs = 400

export class Patience {
  readonly #timers: Timers
  readonly #pace: Pace
  readonly #now: () => number
  readonly #startedAt: number
  /** Questions that were given up, by what would answer them. */
  readonly #givenUp = new Map<string, number>()
  #attempt = 0
  #slowestMs = 0
  #isHeard = false

  constructor(timers: Timers, pace: Pace, now: () => number) {
    this.#timers = timers
    this.#pace = pace
    this.#now = now
    this.#startedAt = now()
  }

  get attempt(): number {
    return this.#attempt
  }

  nextAttempt(): void {
    this.#attempt += 1
  }

  /** When the login ends, whatever happens: later for a BMC that was heard, which is there and has a bad path or is slow. */
  get deadline(): number {
    return this.#startedAt + (this.#isHeard ? this.#timers.heardLoginMs : this.#timers.loginMs)
  }

  /** The wait for one answer, in milliseconds. It may grow while one waits. */
  get waitMs(): number {
    const { paceMs } = this.#pace
    const { setupMs } = this.#timers
    // A fast BMC may be slower today: twice the slack, as long as that is short. A slow one gets what it needs.
    const first = paceMs === undefined ? setupMs : Math.max(quickestMs, slack * paceMs, Math.min(setupMs, 2 * slack * paceMs))
    return Math.max(first * Math.min(this.#attempt, growthMax), slack * this.#slowestMs)
  }

  answered(ms: number): void {
    this.#isHeard = true
    this.#slowestMs = Math.max(this.#slowestMs, ms)
  }

  givenUp(answer: string, sentAt: number): void {
    this.#givenUp.set(answer, sentAt)
  }

  /** An answer that is not to the question of now: where it is to one that was given up, it tells how slow the BMC is. */
  stray(answer: string): void {
    const sentAt = this.#givenUp.get(answer)
    if (sentAt === undefined) return
    this.#givenUp.delete(answer)
    this.answered(this.#now() - sentAt)
  }

  /** The login succeeded: the next one begins with what was learnt. */
  remember(): void {
    this.#pace.paceMs = this.#slowestMs
  }
}
