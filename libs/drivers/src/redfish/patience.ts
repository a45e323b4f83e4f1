/** How long a request is repeated while the service says that it is busy: pauses that double, some chance in them, and a budget. */
import type { Answer } from './answer.ts'
import type { Meaning } from './meanings.ts'
import type { Timers } from './timers.ts'

export class Patience {
  readonly #timers: Timers
  readonly #now: () => number
  readonly #startedAt: number
  /** Repeats so far. */
  repeats = 0

  constructor({ timers, now }: { timers: Timers; now: () => number }) {
    this.#timers = timers
    this.#now = now
    this.#startedAt = now()
  }

  /** Milliseconds to wait before the next try, or undefined where another would not help or the budget is spent. */
  next(answer: Answer, meaning: Meaning): number | undefined {
    if (meaning.again !== 'soon' && meaning.again !== 'after POST') return undefined
    const budgetMs = meaning.again === 'soon' ? this.#timers.busyMs : this.#timers.postMs
    const doubled = this.#timers.retryMs * 2 ** Math.min(this.repeats, 10)
    const spread = Math.min(doubled, this.#timers.retryAfterMaxMs) * (0.75 + 0.25 * Math.random())
    const waitMs = Math.min(retryAfterMs(answer) ?? spread, this.#timers.retryAfterMaxMs)
    if (this.#now() - this.#startedAt + waitMs > budgetMs) return undefined
    this.repeats += 1
    return waitMs
  }
}

/** Retry-After in milliseconds, of seconds or a date (RFC 9110 10.2.3); undefined where it is missing or makes no sense. */
export function retryAfterMs(answer: Answer): number | undefined {
  const value = answer.headers['retry-after']
  if (value === undefined) return undefined
  if (/^\d+$/.test(value)) return Number(value) * 1000
  const at = Date.parse(value)
  return Number.isNaN(at) ? undefined : Math.max(0, at - Date.now())
}
