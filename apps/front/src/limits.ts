// How long a front waits for what, in milliseconds. Tests make them short; nothing else does.
import { durationMs } from '@muster/shared/duration'
import { lifeCycle } from '@muster/shared/life-cycle'

export interface Limits {
  /** One call of one partition: far above what a healthy one needs, far below what people take for broken. */
  readonly callMs: number
  /** A question to a partition that is held silent: presence may be wrong, but nobody should wait for a corpse. */
  readonly silentTryMs: number
  /** Collecting offers, at the most. */
  readonly offersMs: number
  /** Collecting offers: how long one may be missing after the last that came. */
  readonly offersQuietMs: number
  /** How long a hold lives in its partition: the deadline of `reserved`. */
  readonly holdMs: number
  /** Remembering a key: short enough that the holds are still there when it fails, and are given back. */
  readonly rememberMs: number
  /** Settling an attempt of somebody else whose hold has run out: every answer is final by then. */
  readonly settleMs: number
  /** Giving back holds that would expire anyway. */
  readonly dropMs: number
  /** A pause before the next try of a call that got no answer: from the first to the second, doubling, with jitter. */
  readonly retryMs: readonly [number, number]
  /** `wait`: the longest pause between two looks, and the shortest, however much goes on. */
  readonly lookEveryMs: number
  readonly lookAtMostEveryMs: number
  /** `wait` itself. */
  readonly waitMs: number
}

export const defaultLimits: Limits = {
  callMs: 2000,
  silentTryMs: 250,
  offersMs: 1000,
  offersQuietMs: 300,
  holdMs: durationMs(lifeCycle.reserved.deadline as string),
  rememberMs: 3000,
  settleMs: 3000,
  dropMs: 500,
  retryMs: [50, 400],
  lookEveryMs: 2000,
  lookAtMostEveryMs: 250,
  waitMs: durationMs('1h'),
}
