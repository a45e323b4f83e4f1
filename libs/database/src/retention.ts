// What is kept for a time only, and goes when that is over: in small batches, by one process at a time, off the way of everything else.
import { setTimeout as sleep } from 'node:timers/promises'
import { inTransaction, type Sql } from './connect.ts'

/** Removes one sort of rows that are past their time. */
export interface Rule {
  /** In the log and the metrics: `events`. */
  readonly what: string
  /** Removes at most `limit`; answers how many it was. Runs in a transaction of its own. */
  remove(sql: Sql, limit: number): Promise<number>
}

export interface RoundOptions {
  readonly rules: readonly Rule[]
  /** Runs a statement; throws where the database is away. */
  readonly run: <Answer>(act: (sql: Sql) => Promise<Answer>) => Promise<Answer>
  readonly signal: AbortSignal
  readonly limits?: Partial<RoundLimits>
}

export interface RoundLimits {
  /** Rows in one statement. */
  readonly batch: number
  /** Rows of one sort in a round; the rest goes in the next. */
  readonly rows: number
  /** A round ends after so many milliseconds, whatever is left. */
  readonly ms: number
  /** Between two batches, so that others get at the disk. */
  readonly pauseMs: number
}

/** With a round a minute: 14 million rows a day of each sort, ten times what a busy partition writes, in a twelfth of the time. */
const usualLimits: RoundLimits = { batch: 500, rows: 10_000, ms: 5_000, pauseMs: 20 }
/** Any number will do, so long as nothing else in the database takes it. */
const turnLock = 7_305_120

/**
 * Removes what is past its time, a batch of each sort in turn, so that a large backlog of one keeps nobody waiting. Where another process is at it, it
 * does nothing. Answers how many rows of each sort have gone.
 */
export async function removeOld({ rules, run, signal, limits: given }: RoundOptions): Promise<Record<string, number>> {
  const limits = { ...usualLimits, ...given }
  const endsAt = Date.now() + limits.ms
  const removed: Record<string, number> = {}
  let left = [...rules]
  while (left.length > 0) {
    const goOn: Rule[] = []
    for (const rule of left) {
      if (signal.aborted || Date.now() >= endsAt) return removed
      const count = await run(sql => inTurn(sql, turn => rule.remove(turn, limits.batch)))
      if (count === 'taken') return removed
      if (count === 0) continue
      const soFar = (removed[rule.what] ?? 0) + count
      removed[rule.what] = soFar
      if (count >= limits.batch && soFar < limits.rows) goOn.push(rule)
    }
    left = goOn
    if (left.length > 0) await sleep(limits.pauseMs, undefined, { signal }).catch(() => undefined) // the loop sees the signal
  }
  return removed
}

/** Of several processes one has the turn, until its transaction ends; the others do not wait. */
function inTurn<Answer>(sql: Sql, act: (sql: Sql) => Promise<Answer>): Promise<Answer | 'taken'> {
  return inTransaction(sql, async turn => {
    const [lock] = await turn<{ taken: boolean }[]>`select pg_try_advisory_xact_lock(${turnLock}) as taken`
    return lock?.taken ? act(turn) : 'taken'
  })
}
