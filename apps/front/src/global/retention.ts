// What the fronts keep for a time only: entries of their audit log, where a limit is set, partitions that asked and gave up, and join tokens that have expired.
import { setTimeout as sleep } from 'node:timers/promises'
import type { Caller } from '@muster/shared/contract/call'
import { durationMs } from '@muster/shared/duration'
import { Refusal } from '@muster/shared/errors'
import { removeOldJoins } from './db/joins.ts'
import { type Rule, removeOld } from './db/retention.ts'
import type { Home } from './home.ts'

export interface RetentionOptions {
  readonly home: Pick<Home, 'run' | 'audit' | 'newest' | 'change'>
  /** How long entries of the audit log are kept, milliseconds; undefined: for ever. */
  readonly keepAuditMs: number | undefined
  readonly log: { info(facts: object, text: string): void; warn(facts: object, text: string): void }
  readonly everyMs?: number
}

/** A join token that has expired stays in sight for a while: an admin wonders why a partition is refused. */
const keptTokensMs = durationMs('7d')
/** A partition asks every few seconds while it waits. */
const keptJoinsMs = durationMs('1d')
const usuallyEveryMs = 60_000
const itself: Caller = { name: 'retention', role: 'admin' }

/** Looks every minute or so until it is stopped. A front whose database is away does nothing, and says so once. */
export function startRetention(options: RetentionOptions): { stop: () => Promise<void> } {
  const { log, everyMs = usuallyEveryMs } = options
  const stopping = new AbortController()
  const { signal } = stopping
  const run = async () => {
    let trouble: string | undefined
    while (!signal.aborted) {
      // First of all, and with jitter: fronts that start together do not look together.
      await sleep(everyMs * (0.5 + Math.random()), undefined, { signal }).catch(() => undefined)
      if (signal.aborted) return
      const found = await look(options, signal).then(
        () => undefined,
        error => (error as Error).message,
      )
      if (found !== undefined && found !== trouble)
        log.warn({ trouble: found }, 'what is past its time could not be removed; it is tried again')
      trouble = found
    }
  }
  const running = run()
  return {
    stop: () => {
      stopping.abort()
      return running
    },
  }
}

/** One round. */
export async function look({ home, keepAuditMs, log }: RetentionOptions, signal: AbortSignal): Promise<void> {
  const rules: Rule[] = [
    { what: 'joins', remove: (sql, limit) => removeOldJoins(sql, { keepMs: keptJoinsMs, limit }) },
    ...(keepAuditMs === undefined
      ? []
      : [
          {
            what: 'audit',
            remove: (sql: Parameters<Rule['remove']>[0], limit: number) => home.audit.removeOld(sql, { keepMs: keepAuditMs, limit }),
          },
        ]),
  ]
  const removed = await removeOld({ rules, run: act => home.run(act), signal })
  if (Object.keys(removed).length > 0) log.info({ removed }, 'removed what was past its time')
  await removeExpiredTokens(home)
}

async function removeExpiredTokens(home: RetentionOptions['home']): Promise<void> {
  const newest = await home.newest()
  if (!newest) return
  const { generation, documents } = newest
  const before = Date.now() - keptTokensMs
  const expired = Object.entries(documents.join).filter(([, { expiresAt }]) => Date.parse(expiresAt) < before)
  if (expired.length === 0) return
  const change = { put: [], delete: expired.map(([name]) => ({ kind: 'join' as const, name })) }
  try {
    await home.change(itself, change, { expectedGeneration: generation, kind: 'write', note: `${expired.length} join tokens expired` })
  } catch (error) {
    // Somebody wrote meanwhile, another front perhaps just this: the next round sees.
    if (!(error instanceof Refusal && error.code === 'stale-version')) throw error
  }
}
