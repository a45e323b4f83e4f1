// How often somebody was wrong of late: who guesses is refused for a while. Bounded, because an attacker has many addresses and names.

export interface FailureLimit {
  /** How many failures are let pass within the window. */
  readonly failures: number
  readonly windowMs: number
}

export interface FailuresOptions {
  readonly limit: FailureLimit
  /** The clock, in epoch milliseconds. */
  readonly now: () => number
  /** Told once when a key reaches the limit, so that it is in the log without a line per attempt. */
  readonly onLimit?: ((key: string) => void) | undefined
}

/** Keys remembered at once; the oldest is forgotten first. */
const mostKeys = 10_000

export class Failures {
  readonly #options: FailuresOptions
  readonly #known = new Map<string, { count: number; since: number }>()

  constructor(options: FailuresOptions) {
    this.#options = options
  }

  /** How long the key is still refused, in milliseconds; 0 when it is not. */
  refusedForMs(key: string): number {
    const { limit, now } = this.#options
    const known = this.#known.get(key)
    return known && known.count >= limit.failures ? Math.max(0, known.since + limit.windowMs - now()) : 0
  }

  count(key: string): void {
    const { limit, now, onLimit } = this.#options
    const known = this.#known.get(key)
    if (known && now() - known.since < limit.windowMs) {
      known.count++
      if (known.count === limit.failures) onLimit?.(key)
      return
    }
    this.#known.delete(key)
    if (this.#known.size >= mostKeys) this.#known.delete(this.#known.keys().next().value as string)
    this.#known.set(key, { count: 1, since: now() })
  }

  /** Takes one failure back: it was counted before its outcome was known. */
  forgive(key: string): void {
    const known = this.#known.get(key)
    if (known && known.count > 0) known.count--
  }
}
