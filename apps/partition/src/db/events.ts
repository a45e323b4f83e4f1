// The event log. A change inserts its events in its own statement, without a number; the sequencer numbers what is committed, so that a
// reader never sees a number before a lower one.
import type { State } from '@muster/shared/life-cycle'
import type { Stage } from '@muster/shared/stages'
import type { Sql } from './connect.ts'
import { isSeenBy, type SeenBy } from './machines.ts'

export interface EventRow {
  seq: number
  at: Date
  kind: string
  machine_id: string | null
  actor: string
  data: Record<string, unknown>
}

/** What a look at the log found. */
export interface LogLook {
  /** The log's last number. */
  lastSeq: number
  /** The first that this look has given, or null where it gave none. */
  firstGiven: number | null
  /** The machines of the events it has given numbers to, as their rows are: null where the machine is gone. */
  machines: { id: string; version: number | null }[]
}

/**
 * Numbers at most `limit` committed events, oldest first, and tells where the log ends. The head's row lock makes the replicas take turns: who
 * finds it taken numbers nothing and looks again. A machine's own events keep their order, because its row lock had ordered their ids.
 */
export async function numberEvents(sql: Sql, limit: number): Promise<LogLook> {
  const [look] = await sql<{ last_seq: number; first_given: number | null; machines: LogLook['machines'] }[]>`
    with locked as materialized (
      select last_seq from event_log where exists (select from events where seq is null) for update skip locked),
    -- The lock may be on a newer row than this statement's snapshot shows: then others have numbered what it takes for new.
    head as materialized (select locked.last_seq from locked join event_log as seen on seen.last_seq = locked.last_seq),
    batch as materialized (
      select id, row_number() over (order by id) as place from events where seq is null and exists (select from head) order by id limit ${limit}),
    given as (
      update events e set seq = head.last_seq + batch.place from batch, head where e.id = batch.id returning e.seq, e.machine_id),
    moved as (update event_log set last_seq = last_seq + (select count(*) from given) where exists (select from given))
    select coalesce((select max(seq) from given), (select last_seq from event_log)) as last_seq, (select min(seq) from given) as first_given,
      coalesce((
        select jsonb_agg(jsonb_build_object('id', id, 'version', version)) from (
          select distinct given.machine_id as id, m.version from given left join machines m on m.id = given.machine_id
          where given.machine_id is not null) as changed), '[]') as machines`
  return { lastSeq: look?.last_seq ?? 0, firstGiven: look?.first_given ?? null, machines: look?.machines ?? [] }
}

export interface WorkRow {
  state: State
  at: Date
  took: { seconds: number; stages?: Stage[] }
}

/** The last time that a machine ended each kind of work. */
export function lastWork(sql: Sql, machine: string): Promise<WorkRow[]> {
  return sql<WorkRow[]>`
    select distinct on (data ->> 'from') data ->> 'from' as state, at, data -> 'took' as took
    from events where machine_id = ${machine} and kind = 'machine.moved' and data ? 'took'
    order by data ->> 'from', id desc`
}

export async function lastSequenceNumber(sql: Sql): Promise<number> {
  const [row] = await sql<{ last_seq: number }[]>`select last_seq from event_log`
  return row?.last_seq ?? 0
}

/** Whether an event is of a machine that somebody may see now, or saw until it was deleted. One of no machine is not. */
const isOfSeen = (sql: Sql, who: SeenBy) => sql`(
  machine_id in (select m.id from machines m where ${isSeenBy(sql, who)}) or ${isEndIn(sql, who.pools)})`

/** The same for who has no machines of its own. */
export const isOfPools = (sql: Sql, pools: readonly string[]) => sql`(
  machine_id in (select id from machines where pool = any(${pools as string[]})) or ${isEndIn(sql, pools)})`

const isEndIn = (sql: Sql, pools: readonly string[]) => sql`(kind = 'machine.deleted' and data ->> 'pool' = any(${pools as string[]}))`

/** Events behind `after`, in the order of their numbers. */
export function listEvents(
  sql: Sql,
  options: {
    after: number
    limit: number
    machine?: string | undefined
    kind?: string | undefined
    /** Limits them to what one caller may see: of machines of these pools, and its own. */
    seenBy?: SeenBy | undefined
  },
): Promise<EventRow[]> {
  return sql<EventRow[]>`
    select seq, at, kind, machine_id, actor, data from events
    where seq > ${options.after}
      ${options.machine === undefined ? sql`` : sql`and machine_id = ${options.machine}`}
      ${options.kind === undefined ? sql`` : sql`and kind = ${options.kind}`}
      ${options.seenBy === undefined ? sql`` : sql`and (actor = ${options.seenBy.name} or ${isOfSeen(sql, options.seenBy)})`}
    order by seq limit ${options.limit}`
}

/** The machines that events behind `after` speak of, as their rows are, and the last number read: how a replica follows what others changed. */
export async function changedMachines(
  sql: Sql,
  after: number,
  limit: number,
): Promise<{ machines: LogLook['machines']; lastSeq: number; read: number }> {
  const rows = await sql<{ seq: number; id: string | null; version: number | null }[]>`
    select e.seq, e.machine_id as id, m.version from events e left join machines m on m.id = e.machine_id
    where e.seq > ${after} order by e.seq limit ${limit}`
  const machines = new Map(rows.flatMap(({ id, version }) => (id === null ? [] : [[id, { id, version }]])))
  return { machines: [...machines.values()], lastSeq: rows.at(-1)?.seq ?? after, read: rows.length }
}
