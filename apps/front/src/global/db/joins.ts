// Partitions that have asked to take part and wait.
import type { Sql } from './generations.ts'

export interface JoinRow {
  name: string
  join_id: string
  nats_key: string
  version: string
  url: string
  operating_systems: string[]
  origin: string
  asked_at: Date
  seen_at: Date
}

/** Writes down that a partition asks. One token asks for one: under another name, or with another key, it replaces what it asked before. */
export async function putJoin(sql: Sql, row: Omit<JoinRow, 'asked_at' | 'seen_at'>): Promise<void> {
  await sql`
    with others as (delete from joins where join_id = ${row.join_id} and name <> ${row.name})
    insert into joins ${sql(row)}
    on conflict (name) do update set join_id = excluded.join_id, nats_key = excluded.nats_key, version = excluded.version, url = excluded.url,
      operating_systems = excluded.operating_systems, origin = excluded.origin, seen_at = now(),
      asked_at = case when joins.nats_key = excluded.nats_key then joins.asked_at else now() end`
}

export async function findJoin(sql: Sql, name: string): Promise<JoinRow | undefined> {
  const [row] = await sql<JoinRow[]>`select * from joins where name = ${name}`
  return row
}

/** Who asked within so many seconds, by name. */
export function listJoins(sql: Sql, seconds: number): Promise<JoinRow[]> {
  return sql<JoinRow[]>`select * from joins where seen_at > now() - make_interval(secs => ${seconds}) order by name`
}

export async function deleteJoin(sql: Sql, name: string): Promise<void> {
  await sql`delete from joins where name = ${name}`
}

/** Removes at most `limit` that have not asked for so many milliseconds. Answers how many. */
export async function removeOldJoins(sql: Sql, { keepMs, limit }: { keepMs: number; limit: number }): Promise<number> {
  const rows = await sql`
    delete from joins where name in (
      select name from joins where seen_at < now() - ${keepMs} * interval '1 millisecond' order by seen_at limit ${limit}) returning name`
  return rows.length
}
