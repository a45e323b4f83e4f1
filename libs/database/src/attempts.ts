// Attempts that were refused at the door, counted until they are written down: whoever knocks a million times is a few entries of the audit log, not a million.
import type { RefusedAttempt } from '@muster/shared/audit'

export interface CountedAttempts extends RefusedAttempt {
  /** How many there were, of one kind. */
  readonly count: number
  /** Epoch milliseconds of the first. */
  readonly firstAt: number
}

/** An entry is begun at once and ends a minute after its first attempt; while they go on, another one after two minutes, four … and then every hour. */
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
  /** The entry that these attempts are in already, and how many of them it tells. */
  entry: { readonly id: number; readonly tells: number } | undefined
  windowMs: number
  dueAt: number
}

/** Attempts of which the log does not tell all yet, or whose entry is to end. */
export interface Untold {
  readonly key: string
  readonly attempts: CountedAttempts
  /** Their entry, where there is one. */
  readonly id: number | undefined
  readonly ends: boolean
}

/** Attempts that are counted, or counted as another kind. */
type Noted = RefusedAttempt & { readonly count?: number; readonly firstAt?: number }

export class Attempts {
  readonly #kinds = new Map<string, Kind>()
  #day = { since: 0, written: 0 }

  /** Counts attempts; `now` in epoch milliseconds. */
  note(attempt: Noted, now: number): void {
    const isTold = this.#kinds.has(keyOf(attempt)) || (this.#kinds.size < mostKinds && this.#left(now) > this.#kinds.size)
    const counted = isTold ? attempt : anybody(attempt)
    const key = keyOf(counted)
    const kind = this.#kinds.get(key) ?? { attempts: undefined, entry: undefined, windowMs: firstMs, dueAt: now + firstMs }
    kind.attempts = joined(kind.attempts, counted, now)
    this.#kinds.set(key, kind)
  }

  /** What is to be written now; entries end when they are due, or `all` of them. Say by {@link told} what was written. */
  untold(now: number, ending: 'due' | 'all'): Untold[] {
    const isDue = ({ dueAt }: Kind) => ending === 'all' || dueAt <= now
    let left = this.#left(now)
    for (const [key, kind] of [...this.#kinds]) {
      const { attempts, entry } = kind
      if (attempts === undefined && isDue(kind)) this.#kinds.delete(key)
      if (attempts === undefined || entry !== undefined || attempts.from === severalAddresses || left-- > 0) continue
      this.#kinds.delete(key)
      this.note(attempts, now)
    }
    return [...this.#kinds].flatMap(([key, kind]) => {
      const { attempts, entry } = kind
      if (attempts === undefined || (!isDue(kind) && attempts.count === entry?.tells)) return []
      return [{ key, attempts, id: entry?.id, ends: isDue(kind) }]
    })
  }

  /** These are in the log now, in the entry `id`. Those that were counted since are untold. */
  told({ key, attempts: { count }, ends }: Untold, id: number, now: number): void {
    const kind = this.#kinds.get(key)
    if (kind?.attempts === undefined) return
    if (kind.entry === undefined) this.#day.written++
    kind.entry = { id, tells: count }
    if (ends) this.#begin(kind, now)
  }

  /** The entry of these has ended without us; what it does not tell is for another one. */
  ended({ key }: Untold, now: number): void {
    const kind = this.#kinds.get(key)
    if (kind) this.#begin(kind, now)
  }

  /** Begins another entry of a kind, with what the one before does not tell. */
  #begin(kind: Kind, now: number): void {
    const rest = (kind.attempts?.count ?? 0) - (kind.entry?.tells ?? 0)
    kind.attempts = kind.attempts && rest > 0 ? { ...kind.attempts, count: rest, firstAt: now } : undefined
    kind.entry = undefined
    kind.windowMs = Math.min(kind.windowMs * 2, longestMs)
    kind.dueAt = now + kind.windowMs
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
