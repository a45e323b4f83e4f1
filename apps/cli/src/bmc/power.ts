// One order to a BMC, and looking until the power is as ordered: drivers promise only that the BMC has accepted it.
import { setTimeout as sleep } from 'node:timers/promises'
import { DriverError, type PowerSession, type PowerState } from '@muster/drivers/driver'

export const orders = ['on', 'off', 'cycle', 'soft'] as const
export type Order = (typeof orders)[number]

/** How long a look goes on where nobody says: an operating system may take minutes to shut down. */
export const patience: { readonly [order in Order]: string } = { on: '30s', off: '30s', cycle: '1m', soft: '5m' }

/** What was seen after an order. */
export interface Observed {
  readonly power: PowerState
  readonly waitedMs: number
  /** Whether a cycle was seen going through off; undefined for other orders. */
  readonly seenOff?: boolean
}

/** How the power stands against what was ordered. */
export type Verdict = { readonly kind: 'done' } | { readonly kind: 'waiting'; readonly text: string }

/** BMCs take up to 15 s to begin; a cycle whose off was not seen by then happened between two looks, or never. */
const beginsWithinMs = 15_000

/** A cycle is off for a second or more: looks this close do not miss it. */
const lookMs = 400

/** The last look gets a moment even where the time is nearly up. */
const leastLookMs = 1000

/**
 * Judges one look. `sinceMs` counts from the order; `seenOff` says whether the machine was off then or since; `accepted` is false where the
 * BMC's answer was lost, so that a cycle counts only when it is seen.
 */
export function judge(order: Order, look: { power: PowerState; seenOff: boolean; sinceMs: number; accepted: boolean }): Verdict {
  const wanted = order === 'off' || order === 'soft' ? 'off' : 'on'
  if (look.power !== wanted) return { kind: 'waiting', text: `power ${look.power}, not yet ${wanted}` }
  const mayHaveBeenMissed = look.accepted && look.sinceMs >= beginsWithinMs
  if (order === 'cycle' && !look.seenOff && !mayHaveBeenMissed) return { kind: 'waiting', text: 'power on, not yet seen off' }
  return { kind: 'done' }
}

/** Gives the order; resolves when the BMC has accepted it. */
export function give(session: PowerSession, order: Order): Promise<void> {
  if (order === 'on') return session.on()
  if (order === 'cycle') return session.cycle()
  return session.off({ how: order === 'soft' ? 'soft' : 'hard' })
}

/** The time to wait ran out. */
export class StillWaiting extends Error {
  override readonly name = 'StillWaiting'
}

/**
 * Gives the order and looks until the power is as ordered. A BMC that is silent or busy for a moment is looked at again, and an order whose
 * answer was lost is believed as far as its effect is seen. Throws DriverError for an order that was surely not carried out or whose effect
 * was not seen, and for what waiting does not mend; StillWaiting when the BMC accepted the order and `waitMs` have passed.
 */
export async function giveAndObserve(
  session: PowerSession,
  order: Order,
  options: { waitMs: number; signal: AbortSignal; now: () => number; tell: (text: string) => void },
): Promise<Observed> {
  const { waitMs, signal, now, tell } = options
  // A machine that is off needs not be seen going off.
  let seenOff = order === 'cycle' && (await session.power()) === 'off'
  const doubt = await doubtAbout(give(session, order))
  if (doubt) tell(doubt.message)
  const givenAt = now()
  const look = async (): Promise<Observed | string> => {
    // A BMC that falls silent must not stretch the wait by its own long timeouts.
    const end = AbortSignal.timeout(Math.max(leastLookMs, givenAt + waitMs - now()))
    try {
      const power = await session.power({ signal: end })
      seenOff ||= power === 'off'
      const sinceMs = now() - givenAt
      const verdict = judge(order, { power, seenOff, sinceMs, accepted: doubt === undefined })
      return verdict.kind === 'waiting' ? verdict.text : { power, waitedMs: sinceMs, ...(order === 'cycle' && { seenOff }) }
    } catch (error) {
      if (!(error instanceof DriverError) || signal.aborted) throw error
      if (error.retryable) return error.message
      if (error.kind === 'cancelled' && end.aborted) return `power not seen: ${session.target} does not answer`
      throw error
    }
  }
  for (;;) {
    const seen = await look()
    if (typeof seen !== 'string') return seen
    tell(seen)
    const leftMs = givenAt + waitMs - now()
    if (leftMs <= 0) throw doubt ?? new StillWaiting(seen)
    await sleep(Math.min(lookMs, leftMs), undefined, { signal })
  }
}

/** The error of an order that may have been carried out all the same; undefined where it was accepted. All other errors are thrown. */
async function doubtAbout(given: Promise<void>): Promise<DriverError | undefined> {
  try {
    await given
    return undefined
  } catch (error) {
    if (error instanceof DriverError && error.outcome === 'unknown' && error.retryable) return error
    throw error
  }
}
