// What leaves the partition's tables when its time is over. Each statement removes at most `limit` rows, found by an index, and says how many.
import type { Sql } from './connect.ts'

interface Age {
  /** Older than so many milliseconds. */
  readonly keepMs: number
  readonly limit: number
}

/** Up to which number events are gone; 0: none is. */
export async function removedEvents(sql: Sql): Promise<number> {
  const [row] = await sql<{ removed_to: number }[]>`select removed_to from event_retention`
  return row?.removed_to ?? 0
}

/** Removes the oldest events, never one that a webhook has yet to be told of. What is left is without a gap, and event_retention says where it begins. */
export async function removeOldEvents(sql: Sql, { keepMs, limit }: Age): Promise<number> {
  const [row] = await sql<{ removed: number }[]>`
    with begin as materialized (select removed_to from event_retention for update),
    wanted as materialized (
      select least(last_seq, (select min(seq) from webhook_cursors), (select min(after_seq) from webhook_dead_letters)) as behind from event_log),
    -- Subqueries, not joins: so the index is read from the first that is there, and no further than the limit.
    oldest as materialized (
      select seq, at from events where seq > (select removed_to from begin) and seq <= (select behind from wanted) order by seq limit ${limit}),
    -- Times do not rise with the numbers exactly: the first that stays ends the batch.
    stays as (select min(seq) as seq from oldest where at >= now() - ${keepMs} * interval '1 millisecond'),
    cut as materialized (select max(oldest.seq) as seq from oldest, stays where stays.seq is null or oldest.seq < stays.seq),
    gone as (delete from events where seq > (select removed_to from begin) and seq <= (select seq from cut) returning seq),
    moved as (update event_retention set removed_to = cut.seq from cut where cut.seq is not null)
    select count(*) as removed from gone`
  return row?.removed ?? 0
}

/** Which webhooks keep events from being removed though they are older than that, and since when these are; undefined: none does. */
export async function heldEvents(sql: Sql, keepMs: number): Promise<{ webhooks: string[]; since: Date } | undefined> {
  const [row] = await sql<{ webhooks: string[] | null; since: Date }[]>`
    select e.at as since, (
      select array_agg(distinct webhook order by webhook) from (
        select webhook from webhook_cursors where seq < e.seq
        union all select webhook from webhook_dead_letters where after_seq < e.seq) as behind) as webhooks
    from (select events.seq, events.at from events, event_retention where events.seq > removed_to order by events.seq limit 1) as e
    where e.at < now() - ${keepMs} * interval '1 millisecond'`
  return row?.webhooks ? { webhooks: row.webhooks, since: row.since } : undefined
}

/**
 * Removes power orders that have ended, except the last of each machine and those the engine gave since the machine is in its state: it looks at these
 * to decide what to do next.
 */
export async function removeOldOrders(sql: Sql, { keepMs, limit }: Age): Promise<number> {
  const rows = await sql`
    delete from power_orders where id in (
      select o.id from power_orders o join machines m on m.id = o.machine_id
      where o.ended_at < now() - ${keepMs} * interval '1 millisecond'
        and exists (select from power_orders later where later.machine_id = o.machine_id and later.id > o.id)
        and not (o.asked_by = 'engine' and o.asked_at >= m.state_since)
      order by o.ended_at limit ${limit}) returning id`
  return rows.length
}

/** Writes down when allocations ended that were released just now. Answers how many. */
export async function markReleased(sql: Sql, limit: number): Promise<number> {
  const rows = await sql`
    update allocations set ended_at = now() where id in (
      select id from allocations where state = 'released' and ended_at is null limit ${limit} for update skip locked) returning id`
  return rows.length
}

export async function removeOldAllocations(sql: Sql, { keepMs, limit }: Age): Promise<number> {
  const rows = await sql`
    delete from allocations where id in (
      select id from allocations where state = 'released' and ended_at < now() - ${keepMs} * interval '1 millisecond'
      order by ended_at limit ${limit}) returning id`
  return rows.length
}

/** Holds that were dropped stay for a while, so that a late confirm learns that its hold is gone. */
export async function removeDroppedHolds(sql: Sql, { keepMs, limit }: Age): Promise<number> {
  const rows = await sql`
    delete from allocations where id in (
      select id from allocations where state = 'dropped' and created_at < now() - ${keepMs} * interval '1 millisecond'
      order by created_at limit ${limit}) returning id`
  return rows.length
}

/** A retry with an Idempotency-Key after that is a new request. */
export async function removeOldKeys(sql: Sql, { keepMs, limit }: Age): Promise<number> {
  const rows = await sql`
    delete from idempotency_keys where key in (
      select key from idempotency_keys where created_at < now() - ${keepMs} * interval '1 millisecond' order by created_at limit ${limit})
    returning key`
  return rows.length
}
