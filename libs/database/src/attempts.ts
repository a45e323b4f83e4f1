// Attempts that were refused at the door, counted until they are written down: whoever knocks a million times is a few entries of the audit log, not a million.
import type { RefusedAttempt } from '@muster/shared/audit'

export interface CountedAttempts extends RefusedAttempt {
  /** How many there were, of one kind. */
  readonly count: number
  /** Epoch milliseconds of the first. */
  readonly firstAt: number
}

/** An entry is written a minute after the first attempt; while they go on, after two minutes, four … and then every hour. */
const firstMs = 60_000
const longestMs = 3_600_000
/** Kinds (address, caller, reason) that are told apart at once. */
const mostKinds = 500
/** Kinds for which entries are written in a day; more than that are counted as one. An attacker with a botnet writes half a megabyte a day. */
const mostADay = 2_000
const dayMs = 24 * 3_600_000
const severalCalls = 'several calls'
const severalAddresses = 'several addresses'

interface Kind {
  attempts: CountedAttempts | undefined
  windowMs: number
  dueAt: number
}

/** Attempts that are counted, or given back. */
type Noted = RefusedAttempt & { readonly count?: number; readonly firstAt?: number }

export class Attempts {
  readonly #kinds = new Map<string, Kind>()
  #day = { since: 0, written: 0 }

  /** Counts attempts; `now` in epoch milliseconds. */
  note(attempt: Noted, now: number): void {
    const isTold = this.#kinds.has(keyOf(attempt)) || (this.#kinds.size < mostKinds && this.#left(now) > this.#kinds.size)
    const counted = isTold ? attempt : anybody(attempt)
    const key = keyOf(counted)
    const kind = this.#kinds.get(key) ?? { attempts: undefined, windowMs: firstMs, dueAt: now + firstMs }
    kind.attempts = joined(kind.attempts, counted, now)
    this.#kinds.set(key, kind)
  }

  /** What is to be written now, or all that was counted. Those are counted from 0 again; give back by {@link note} what could not be written. */
  take(now: number, which: 'due' | 'all'): CountedAttempts[] {
    const taken: CountedAttempts[] = []
    for (const [key, kind] of [...this.#kinds]) {
      if (which === 'due' && kind.dueAt > now) continue
      const { attempts } = kind
      if (attempts === undefined || (this.#left(now) <= 0 && attempts.from !== severalAddresses)) this.#kinds.delete(key)
      if (attempts === undefined) continue
      if (!this.#kinds.has(key)) {
        this.note(attempts, now)
        continue
      }
      taken.push(attempts)
      this.#day.written++
      kind.attempts = undefined
      kind.windowMs = Math.min(kind.windowMs * 2, longestMs)
      kind.dueAt = now + kind.windowMs
    }
    return taken
  }

  /** How many entries may still be written today. */
  #left(now: number): number {
    if (now - this.#day.since >= dayMs) this.#day = { since: now, written: 0 }
    return mostADay - this.#day.written
  }
}

const keyOf = ({ from, code, reason, caller }: RefusedAttempt) => JSON.stringify([from, code, reason, caller.name, caller.role])

/** One kind for all codes and callers: too many are told apart already. */
const anybody = ({ call }: RefusedAttempt): RefusedAttempt => ({
  call,
  caller: { name: 'anybody', role: 'public' },
  from: severalAddresses,
  code: 'too-many-requests',
  reason: 'more kinds of refused attempts than are told apart',
})

function joined(before: CountedAttempts | undefined, attempt: Noted, now: number): CountedAttempts {
  const { count = 1, firstAt = now } = attempt
  if (!before) return { ...attempt, count, firstAt }
  const call = before.call === attempt.call ? before.call : severalCalls
  return { ...before, call, count: before.count + count, firstAt: Math.min(before.firstAt, firstAt) }
}
