// The event log. A change inserts its events in its own statement, without a number; the sequencer numbers what is committed, so that a
// reader never sees a number before a lower one.
import type { Sql } from './connect.ts'

export interface EventRow {
  seq: number
  at: Date
  kind: string
  machine_id: string | null
  actor: string
  data: Record<string, unknown>
}

/**
 * Numbers at most `limit` committed events, oldest first, and returns the last number of the log. The head's row lock makes the replicas take
 * turns; a machine's own events keep their order, because its row lock had ordered their ids.
 */
export async function numberEvents(sql: Sql, limit: number): Promise<{ numbered: number; lastSeq: number }> {
  return sql.begin(async transaction => {
    const [head] = await transaction<{ last_seq: number }[]>`select last_seq from event_log for update`
    const lastSeq = head?.last_seq ?? 0
    const rows = await transaction`
      with batch as (select id, row_number() over (order by id) as place from events where seq is null order by id limit ${limit})
      update events e set seq = ${lastSeq} + batch.place from batch where e.id = batch.id returning e.id`
    if (rows.length > 0) await transaction`update event_log set last_seq = ${lastSeq + rows.length}`
    return { numbered: rows.length, lastSeq: lastSeq + rows.length }
  })
}

/** Whether there is anything to number: cheap enough to ask ten times a second. */
export async function hasUnnumberedEvents(sql: Sql): Promise<boolean> {
  const rows = await sql`select from events where seq is null limit 1`
  return rows.length > 0
}

export async function lastSequenceNumber(sql: Sql): Promise<number> {
  const [row] = await sql<{ last_seq: number }[]>`select last_seq from event_log`
  return row?.last_seq ?? 0
}

/** Events behind `after`, in the order of their numbers. */
export function listEvents(
  sql: Sql,
  options: { after: number; limit: number; machine?: string | undefined; kind?: string | undefined },
): Promise<EventRow[]> {
  return sql<EventRow[]>`
    select seq, at, kind, machine_id, actor, data from events
    where seq > ${options.after}
      ${options.machine === undefined ? sql`` : sql`and machine_id = ${options.machine}`}
      ${options.kind === undefined ? sql`` : sql`and kind = ${options.kind}`}
    order by seq limit ${options.limit}`
}

/** The machines that events behind `after` speak of, and the last number read: how a replica's memory follows the log. */
export async function changedMachines(
  sql: Sql,
  after: number,
  limit: number,
): Promise<{ machines: string[]; lastSeq: number; read: number }> {
  const rows = await sql<{ seq: number; machine_id: string | null }[]>`
    select seq, machine_id from events where seq > ${after} order by seq limit ${limit}`
  const machines = [...new Set(rows.flatMap(row => (row.machine_id === null ? [] : [row.machine_id])))]
  return { machines, lastSeq: rows.at(-1)?.seq ?? after, read: rows.length }
}
