// What the partition keeps for a time only, and for how long. It goes once a minute, by one replica, in small batches.
import type { AuditLog } from '@muster/database/audit-log'
import { type RoundLimits, type Rule, removeOld } from '@muster/database/retention'
import { durationMs } from '@muster/shared/duration'
import type { Sql } from '../db/connect.ts'
import * as db from '../db/retention.ts'
import type { Core } from './core.ts'

/** Milliseconds; undefined: for ever. */
export interface Keep {
  readonly eventsMs: number | undefined
  /** Power orders, after their end. */
  readonly ordersMs: number | undefined
  /** Allocations, after their release. Longer than Idempotency-Keys: a retry is answered with the allocation of its first attempt. */
  readonly allocationsMs: number | undefined
  readonly auditMs: number | undefined
}

export const usualKeep: Keep = {
  eventsMs: durationMs('30d'),
  ordersMs: durationMs('30d'),
  allocationsMs: durationMs('90d'),
  auditMs: undefined,
}

/** How long a key is remembered, and a hold that nobody confirmed. */
export const keptKeysMs = durationMs('7d')
const keptHoldsMs = durationMs('1d')

export interface RetentionOptions {
  readonly keep: Keep
  /** The audit log's own connections are for entries; these rows go by those of everybody. */
  readonly audit: AuditLog
  readonly onRemoved: (what: string, count: number) => void
  readonly limits?: Partial<RoundLimits>
}

export class Retention {
  readonly #core: Pick<Core, 'sql' | 'log'>
  readonly #options: RetentionOptions
  #problem: string | undefined

  constructor(core: Pick<Core, 'sql' | 'log'>, options: RetentionOptions) {
    this.#core = core
    this.#options = options
  }

  /** What keeps rows here beyond their time, in words; undefined: nothing does. */
  get problem(): string | undefined {
    return this.#problem
  }

  /** One round. */
  async look(signal: AbortSignal): Promise<void> {
    const { sql, log } = this.#core
    const { keep, limits, onRemoved } = this.#options
    const removed = await removeOld({ rules: this.#rules(), run: act => act(sql), signal, ...(limits && { limits }) })
    for (const [what, count] of Object.entries(removed)) onRemoved(what, count)
    if (Object.keys(removed).length > 0) log.info({ removed }, 'removed what was past its time')
    this.#problem = keep.eventsMs === undefined ? undefined : await this.#heldBy(keep.eventsMs)
  }

  #rules(): Rule[] {
    const { keep, audit } = this.#options
    const rule = (
      what: string,
      keepMs: number | undefined,
      remove: (sql: Sql, age: { keepMs: number; limit: number }) => Promise<number>,
    ) => (keepMs === undefined ? [] : [{ what, remove: (sql: Sql, limit: number) => remove(sql, { keepMs, limit }) }])
    return [
      ...rule('keys', keptKeysMs, db.removeOldKeys),
      ...rule('holds', keptHoldsMs, db.removeDroppedHolds),
      ...rule('events', keep.eventsMs, db.removeOldEvents),
      ...rule('orders', keep.ordersMs, db.removeOldOrders),
      ...rule('allocations', keep.allocationsMs, async (sql, age) => {
        await db.markReleased(sql, age.limit)
        return db.removeOldAllocations(sql, age)
      }),
      ...rule('audit', keep.auditMs, (sql, age) => audit.removeOld(sql, age)),
    ]
  }

  /** A day late is no trouble: a webhook tries as long. */
  async #heldBy(keepMs: number): Promise<string | undefined> {
    const held = await db.heldEvents(this.#core.sql, keepMs + durationMs('1d'))
    return (
      held &&
      `events since ${held.since.toISOString()} are kept beyond their time for webhooks that were not told of them: ${held.webhooks.join(', ')}`
    )
  }
}
