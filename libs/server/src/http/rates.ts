// How often one caller may ask. Generous: it is for the script that runs in a circle, not for accounting. A number per caller and a look at the clock; libraries
// for this answer by promises and keep a timer for each caller, which costs more than many a call.
import type { RateLimit } from './limits.ts'

/** Callers remembered at once; the one that came first is forgotten first. */
const mostCallers = 10_000
/** Callers that owe nothing are looked for so often at most. */
const sweepEveryMs = 1_000

export class Rates {
  readonly #intervalMs: number
  readonly #toleranceMs: number
  /** By caller: when it will owe nothing (the generic cell rate algorithm of ITU-T I.371). */
  readonly #evenAt = new Map<string, number>()
  #sweptAt = 0

  constructor({ perSecond, atOnce }: RateLimit) {
    this.#intervalMs = 1_000 / perSecond
    this.#toleranceMs = atOnce * this.#intervalMs
  }

  /** Counts a request of a caller. `now` in milliseconds. Answers for how long it has to wait instead; 0: not at all. */
  take(caller: string, now: number): number {
    const known = this.#evenAt.get(caller)
    const evenAt = Math.max(known ?? 0, now) + this.#intervalMs
    const overMs = evenAt - now - this.#toleranceMs
    // A thousandth: sums of fractions are not exact.
    if (overMs > 0.001) return overMs
    if (known === undefined && this.#evenAt.size >= mostCallers) this.#makeRoom(now)
    this.#evenAt.set(caller, evenAt)
    return 0
  }

  /** How many callers are remembered. */
  get callers(): number {
    return this.#evenAt.size
  }

  #makeRoom(now: number): void {
    if (now - this.#sweptAt >= sweepEveryMs) {
      this.#sweptAt = now
      for (const [caller, evenAt] of this.#evenAt) if (evenAt <= now) this.#evenAt.delete(caller)
    }
    for (const caller of this.#evenAt.keys()) {
      if (this.#evenAt.size < mostCallers) return
      this.#evenAt.delete(caller)
    }
  }
}
