// The generations of the global configuration: the one thing that fronts keep, together.
import { connect, isDatabaseAway, isDatabaseGone, type Sql } from '@muster/database/connect'
import { migrate } from '@muster/database/migrate'

export { isDatabaseAway, isDatabaseGone, type Sql }

export interface GenerationRow {
  generation: number
  payload: string
  signature: string
  signed_by: string
  changed_at: Date
  changed_by: string
  note: string
}

/** SHA-256 of a generation's payload, hex. */
export interface DigestRow {
  generation: number
  digest: string
}

/** Brings the database at `url` to this release's schema. */
export async function migrateHome(url: string): Promise<void> {
  await migrate(url, new URL('./migrations/', import.meta.url))
}

/** Few statements, and all small: two connections serve a front. */
export function connectHome(url: string, name: string): Sql {
  return connect(url, { connections: 2, name })
}

/** The number of the generation in force; 0 in an empty database. */
export async function newestGeneration(sql: Sql): Promise<number> {
  const [row] = await sql<{ newest: number }[]>`select coalesce(max(generation), 0) as newest from generations`
  return (row as { newest: number }).newest
}

export async function findGeneration(sql: Sql, generation: number): Promise<GenerationRow | undefined> {
  const [row] = await sql<GenerationRow[]>`select * from generations where generation = ${generation}`
  return row
}

/** Writes a generation behind `expected`. `stale`: another one is in force by now. Of two at once, the primary key lets one through. */
export async function insertGeneration(sql: Sql, row: GenerationRow, digest: string, expected: number): Promise<'written' | 'stale'> {
  const rows = await sql`
    with written as (insert into generations (generation, payload, signature, signed_by, changed_at, changed_by, note)
    select ${row.generation}::bigint, ${row.payload}::text, ${row.signature}::text, ${row.signed_by}::text, ${row.changed_at}::timestamptz,
      ${row.changed_by}::text, ${row.note}::text
    where coalesce((select max(generation) from generations), 0) = ${expected}
    on conflict do nothing
    returning generation)
    insert into lineage (generation, digest) select generation, ${digest}::text from written
    on conflict (generation) do update set digest = excluded.digest
    returning generation`
  return rows.length === 1 ? 'written' : 'stale'
}

/** The digests of these generations, of those that are known. */
export function digestsOf(sql: Sql, generations: readonly number[]): Promise<DigestRow[]> {
  return sql`
    select generation, digest from lineage where generation = any(${[...generations]}::bigint[])
    union
    select generation, encode(sha256(convert_to(payload, 'UTF8')), 'hex') from generations where generation = any(${[...generations]}::bigint[])`
}

/** The digests of the generations between two, oldest first. */
export async function digestsBetween(sql: Sql, after: number, before: number): Promise<string[]> {
  const rows = await sql<DigestRow[]>`
    select generation, digest from lineage where generation > ${after} and generation < ${before} order by generation`
  return rows.map(({ digest }) => digest)
}

/** Latest first, without their texts. */
export function listGenerations(sql: Sql, limit: number): Promise<Omit<GenerationRow, 'payload' | 'signature' | 'signed_by'>[]> {
  return sql`select generation, changed_at, changed_by, note from generations order by generation desc limit ${limit}`
}

/** Forgets all but the latest `kept`. */
export async function forgetOldGenerations(sql: Sql, kept: number): Promise<void> {
  await sql`delete from generations where generation <= (select generation from generations order by generation desc offset ${kept} limit 1)`
}
