// How far each webhook was told of the events, the batch that is being tried, and the batches that were given up. Whoever sends holds a claim on the
// webhook, and writes nothing once it is lost.

import type { Sql } from './connect.ts'
import { type EventRow, isOfPools } from './events.ts'

export interface WebhookCursor {
  webhook: string
  seq: number
  batch: string | null
  batch_to: number | null
  batch_kinds: string[] | null
  /** The numbers of its events, where the webhook was limited to pools when it was chosen; null: all of these kinds. */
  batch_seqs: number[] | null
  tries: number
  first_tried_at: Date | null
  again_at: Date
  delivered_at: Date | null
  failed_at: Date | null
  reason: string | null
}

export interface DeadLetter {
  id: number
  webhook: string
  batch: string
  after_seq: number
  to_seq: number
  kinds: string[]
  seqs: number[] | null
  tries: number
  reason: string
  first_tried_at: Date
  died_at: Date
  again_at: Date | null
  replay_tries: number
}

export interface WebhookClaim {
  readonly webhook: string
  readonly token: number
}

/**
 * One cursor for each of the webhooks of this generation: a new one begins at the end of the log, what is gone is forgotten with its dead letters.
 * Does nothing where another replica has taken a newer generation: that one's webhooks hold.
 */
export async function keepCursors(sql: Sql, { generation, names }: { generation: number; names: readonly string[] }): Promise<void> {
  await sql`
    with current as materialized (select from global_configuration where generation = ${generation}),
    gone as (delete from webhook_cursors where webhook <> all(${names as string[]}::text[]) and exists (select from current)),
    letters as (delete from webhook_dead_letters where webhook <> all(${names as string[]}::text[]) and exists (select from current))
    insert into webhook_cursors (webhook, seq)
    select name, last_seq from unnest(${names as string[]}::text[]) as name, event_log where exists (select from current)
    on conflict do nothing`
}

/** Those of the named for which there is something to do and nobody at it, the longest waiting first. */
export async function dueWebhooks(sql: Sql, { names, limit }: { names: readonly string[]; limit: number }): Promise<string[]> {
  const rows = await sql<{ webhook: string }[]>`
    select webhook from webhook_cursors c
    where webhook = any(${names as string[]}) and (claimed_until is null or claimed_until < now())
      and (again_at <= now() and (batch is not null or seq < (select last_seq from event_log))
        or exists (select from webhook_dead_letters d where d.webhook = c.webhook and d.again_at <= now()))
    order by again_at limit ${limit}`
  return rows.map(({ webhook }) => webhook)
}

/** Claims a webhook, where nobody holds it. `is_due`: whether its cursor is; a dead letter may be instead. */
export async function claimWebhook(
  sql: Sql,
  { webhook, claimMs }: { webhook: string; claimMs: number },
): Promise<(WebhookCursor & { claim_token: number; is_due: boolean }) | undefined> {
  const [row] = await sql<(WebhookCursor & { claim_token: number; is_due: boolean })[]>`
    update webhook_cursors set claim_token = nextval('claim_tokens'), claimed_until = now() + ${claimMs} * interval '1 millisecond'
    where webhook = ${webhook} and (claimed_until is null or claimed_until < now()) returning *, again_at <= now() as is_due`
  return row
}

export async function dropWebhookClaim(sql: Sql, { webhook, token }: WebhookClaim): Promise<void> {
  await sql`update webhook_cursors set claimed_until = null where webhook = ${webhook} and claim_token = ${token}`
}

const held = (sql: Sql, { webhook, token }: WebhookClaim) => sql`webhook = ${webhook} and claim_token = ${token} and claimed_until > now()`

/** Events behind `after` and up to `upTo` of which a webhook wants to hear, in order. `pools`: of machines of these pools only; undefined: all. */
export function wantedEvents(
  sql: Sql,
  {
    after,
    upTo,
    kinds,
    pools,
    limit,
  }: { after: number; upTo: number; kinds: readonly string[]; pools?: readonly string[] | undefined; limit: number },
): Promise<EventRow[]> {
  const patterns = kinds as string[]
  return sql<EventRow[]>`
    select seq, at, kind, machine_id, actor, data from events
    where seq > ${after} and seq <= ${upTo}
      and ('*' = any(${patterns}) or kind = any(${patterns})
        or exists (select from unnest(${patterns}::text[]) as pattern where pattern like '%.*' and starts_with(kind, left(pattern, -1))))
      ${pools === undefined ? sql`` : sql`and ${isOfPools(sql, pools)}`}
    order by seq limit ${limit}`
}

/** The events with these numbers, in order. */
export function eventsNumbered(sql: Sql, seqs: readonly number[]): Promise<EventRow[]> {
  return sql<
    EventRow[]
  >`select seq, at, kind, machine_id, actor, data from events where seq = any(${seqs as number[]}::bigint[]) order by seq`
}

/** Moves a cursor on over events that the webhook does not want. */
export async function skipTo(sql: Sql, claim: WebhookClaim, seq: number): Promise<'skipped' | 'lost'> {
  const rows =
    await sql`update webhook_cursors set seq = ${seq} where ${held(sql, claim)} and batch is null and seq < ${seq} returning webhook`
  return rows.length === 1 ? 'skipped' : 'lost'
}

/** Writes down what is about to be sent for the first time, so that every try sends the same under the same id. */
export async function openBatch(
  sql: Sql,
  claim: WebhookClaim,
  batch: { id: string; to: number; kinds: readonly string[]; seqs: readonly number[] | null },
): Promise<'opened' | 'lost'> {
  const rows = await sql`
    update webhook_cursors set batch = ${batch.id}, batch_to = ${batch.to}, batch_kinds = ${batch.kinds as string[]},
      batch_seqs = ${batch.seqs as number[] | null}::bigint[], tries = 0, first_tried_at = now()
    where ${held(sql, claim)} and batch is null returning webhook`
  return rows.length === 1 ? 'opened' : 'lost'
}

/** The batch has arrived: the cursor goes on behind it. */
export async function closeBatch(sql: Sql, claim: WebhookClaim): Promise<'closed' | 'lost'> {
  const rows = await sql`
    update webhook_cursors set seq = batch_to, batch = null, batch_to = null, batch_kinds = null, batch_seqs = null, tries = 0, first_tried_at = null, again_at = now(),
      delivered_at = now(), reason = null
    where ${held(sql, claim)} and batch is not null returning webhook`
  return rows.length === 1 ? 'closed' : 'lost'
}

/** The batch did not arrive, and is tried again after `againMs`. */
export async function putOffBatch(sql: Sql, claim: WebhookClaim, { reason, againMs }: { reason: string; againMs: number }): Promise<void> {
  await sql`
    update webhook_cursors set tries = tries + 1, again_at = now() + ${againMs} * interval '1 millisecond', failed_at = now(), reason = ${reason}
    where ${held(sql, claim)} and batch is not null`
}

/**
 * Gives the batch up: it becomes a dead letter, and the cursor goes on behind it after `againMs`. `full`: there are `most` dead letters already; nothing
 * is changed then. Numbers that are not behind the cursor are of an earlier batch: a process of the release before left them.
 */
export async function giveUpBatch(
  sql: Sql,
  claim: WebhookClaim,
  { reason, againMs, most }: { reason: string; againMs: number; most: number },
): Promise<'given up' | 'full'> {
  const rows = await sql`
    with open as materialized (
      select * from webhook_cursors where ${held(sql, claim)} and batch is not null
        and (select count(*) from webhook_dead_letters where webhook = ${claim.webhook}) < ${most} for update),
    dead as (
      insert into webhook_dead_letters (webhook, batch, after_seq, to_seq, kinds, seqs, tries, reason, first_tried_at)
      select webhook, batch, seq, batch_to, batch_kinds, case when batch_seqs[1] > seq then batch_seqs end, tries + 1, ${reason}::text, first_tried_at from open)
    update webhook_cursors c set seq = c.batch_to, batch = null, batch_to = null, batch_kinds = null, batch_seqs = null, tries = 0, first_tried_at = null,
      again_at = now() + ${againMs} * interval '1 millisecond', failed_at = now(), reason = ${reason}
    from open where c.webhook = open.webhook returning c.webhook`
  return rows.length === 1 ? 'given up' : 'full'
}

/** The dead letter of a webhook that is to be sent again now, the oldest first. */
export async function dueDeadLetter(sql: Sql, webhook: string): Promise<DeadLetter | undefined> {
  const [row] = await sql<DeadLetter[]>`
    select * from webhook_dead_letters where webhook = ${webhook} and again_at <= now() order by id limit 1`
  return row
}

/** A dead letter has arrived after all. */
export async function forgetDeadLetter(sql: Sql, claim: WebhookClaim, id: number): Promise<'forgotten' | 'lost'> {
  const rows = await sql`
    with held as (update webhook_cursors set delivered_at = now() where ${held(sql, claim)} returning webhook)
    delete from webhook_dead_letters d using held where d.webhook = held.webhook and d.id = ${id} returning d.id`
  return rows.length === 1 ? 'forgotten' : 'lost'
}

/** It did not arrive this time either: tried again after `againMs`, or dead again where that is null. */
export async function putOffDeadLetter(
  sql: Sql,
  claim: WebhookClaim,
  { id, reason, againMs }: { id: number; reason: string; againMs: number | null },
): Promise<void> {
  await sql`
    update webhook_dead_letters d set tries = d.tries + 1, replay_tries = d.replay_tries + 1, reason = ${reason},
      again_at = now() + ${againMs}::double precision * interval '1 millisecond'
    from webhook_cursors c where d.id = ${id} and c.webhook = d.webhook and c.webhook = ${claim.webhook} and c.claim_token = ${claim.token}
      and c.claimed_until > now()`
}

/** Has the dead letters of a webhook sent again. Answers how many there are; those on their way already go on. */
export async function replayDeadLetters(sql: Sql, webhook: string): Promise<number> {
  const [row] = await sql<{ letters: number }[]>`
    with asked as (
      update webhook_dead_letters set again_at = now(), replay_tries = 0 where webhook = ${webhook} and again_at is null returning id)
    select count(*) as letters from webhook_dead_letters where webhook = ${webhook}`
  return row?.letters ?? 0
}

/** The dead letters of a webhook, or of all, the oldest first. */
export function listDeadLetters(sql: Sql, { webhook, limit }: { webhook: string | undefined; limit: number }): Promise<DeadLetter[]> {
  return sql<DeadLetter[]>`
    select * from webhook_dead_letters ${webhook === undefined ? sql`` : sql`where webhook = ${webhook}`} order by died_at, id limit ${limit}`
}

export interface WebhookStanding extends WebhookCursor {
  last_seq: number
  dead_letters: number
}

/** How each webhook stands. */
export function listCursors(sql: Sql): Promise<WebhookStanding[]> {
  return sql<WebhookStanding[]>`
    select c.*, l.last_seq, (select count(*) from webhook_dead_letters d where d.webhook = c.webhook) as dead_letters
    from webhook_cursors c, event_log l order by c.webhook`
}
