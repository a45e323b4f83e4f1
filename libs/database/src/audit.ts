// The statements of the audit log: entries are opened before their change, closed after it, and then numbered and chained. A log is a table in the database of a
// partition, or of the fronts.
import { refusedCall } from '@muster/shared/audit'
import type { Sql } from './connect.ts'

export interface OpenEntry {
  at: Date
  actor: string
  role: string
  origin: string
  via: string | null
  call: string
  target: string
  fields: string[]
  request_id: string
  /** Which process carries it out, to tell what it left open. */
  server: string
}

export interface AuditRow extends OpenEntry {
  id: number
  ended_at: Date
  outcome: string
  result: string | null
}

export interface ChainedRow extends AuditRow {
  seq: number
  hash: string
  signature: string | null
  signed_by: string | null
}

/** The ids of the new entries, in the order of `entries`. */
export async function openEntries(sql: Sql, entries: readonly OpenEntry[]): Promise<number[]> {
  const rows = await sql<{ id: number }[]>`
    insert into audit (at, actor, role, origin, via, call, target, fields, request_id, server)
    select (e->>'at')::timestamptz, e->>'actor', e->>'role', e->>'origin', e->>'via', e->>'call', e->>'target',
      array(select jsonb_array_elements_text(e->'fields')), e->>'request_id', e->>'server'
    from jsonb_array_elements(${sql.json(entries as never)}::jsonb) with ordinality as given(e, place)
    order by place
    returning id`
  return rows.map(({ id }) => id)
}

export interface Ending {
  id: number
  ended_at: Date
  outcome: string
  result: string | null
}

/** An entry that was chained meanwhile, as one whose server had gone, stays as it is. */
export async function closeEntries(sql: Sql, endings: readonly Ending[]): Promise<void> {
  await sql`
    update audit set ended_at = e.ended_at, outcome = e.outcome, result = e.result
    from jsonb_to_recordset(${sql.json(endings as never)}::jsonb) as e(id bigint, ended_at timestamptz, outcome text, result text)
    where audit.id = e.id and audit.seq is null`
}

/** An entry of attempts that are still being counted: until it ends its result is the outcome that it is going to have. */
export interface AttemptsEntry extends Omit<OpenEntry, 'fields'> {
  outcome: string
}

/** Begins entries of attempts, in the order of `entries`; answers their ids. */
export async function openAttempts(sql: Sql, entries: readonly AttemptsEntry[]): Promise<number[]> {
  const rows = await sql<{ id: number }[]>`
    insert into audit (at, actor, role, origin, via, call, target, fields, request_id, server, result)
    select (e->>'at')::timestamptz, e->>'actor', e->>'role', e->>'origin', e->>'via', e->>'call', e->>'target',
      '{}', e->>'request_id', e->>'server', e->>'outcome'
    from jsonb_array_elements(${sql.json(entries as never)}::jsonb) with ordinality as given(e, place)
    order by place
    returning id`
  return rows.map(({ id }) => id)
}

/** Brings entries of attempts up to date; `ended_at`: and ends them. Answers the ids of those that had not ended before. */
export async function countAttempts(
  sql: Sql,
  counts: readonly { id: number; target: string; ended_at: Date | null }[],
): Promise<Set<number>> {
  const rows = await sql<{ id: number }[]>`
    update audit set target = e.target, ended_at = e.ended_at,
      outcome = case when e.ended_at is not null then result end, result = case when e.ended_at is null then result end
    from jsonb_to_recordset(${sql.json(counts as never)}::jsonb) as e(id bigint, target text, ended_at timestamptz)
    where audit.id = e.id and seq is null and outcome is null
    returning audit.id`
  return new Set(rows.map(({ id }) => id))
}

/** Closes what processes have left open: those of `server`, which starts anew, or all that are older than any call may last. Attempts were refused, whoever counted them. */
export async function closeAbandoned(sql: Sql, which: { server: string } | { olderThanSeconds: number }): Promise<void> {
  await sql`
    update audit set ended_at = date_trunc('milliseconds', now()),
      outcome = case when call = ${refusedCall} then result else 'unknown' end, result = null
    where seq is null and outcome is null
      and ${'server' in which ? sql`server = ${which.server}` : sql`at < now() - make_interval(secs => ${which.olderThanSeconds})`}`
}

/** The end of the chain, locked: of two processes that chain, one waits. */
export async function lockEnd(sql: Sql): Promise<{ seq: number; hash: string } | undefined> {
  await sql`select pg_advisory_xact_lock(7305119)`
  const [row] = await sql<{ seq: number; hash: string }[]>`
    select seq, encode(hash, 'hex') as hash from audit where seq is not null order by seq desc limit 1`
  return row
}

/** Entries that have ended and are not in the chain yet, oldest end first. */
export function endedEntries(sql: Sql, limit: number): Promise<AuditRow[]> {
  return sql<AuditRow[]>`
    select id, at, actor, role, origin, via, call, target, fields, request_id, server, ended_at, outcome, result
    from audit where seq is null and outcome is not null order by ended_at, id limit ${limit} for update`
}

export async function chainEntries(
  sql: Sql,
  links: readonly { id: number; seq: number; hash: string; signature: string | null; signed_by: string | null }[],
): Promise<void> {
  await sql`
    update audit set seq = e.seq, hash = decode(e.hash, 'hex'), signature = e.signature, signed_by = e.signed_by
    from jsonb_to_recordset(${sql.json(links as never)}::jsonb) as e(id bigint, seq bigint, hash text, signature text, signed_by text)
    where audit.id = e.id`
}

export interface AuditFilter {
  after: number
  limit: number
  actor: string | undefined
  call: string | undefined
  target: string | undefined
}

export function listEntries(sql: Sql, { after, limit, actor, call, target }: AuditFilter): Promise<ChainedRow[]> {
  return sql<ChainedRow[]>`
    select id, at, actor, role, origin, via, call, target, fields, request_id, server, ended_at, outcome, result,
      seq, encode(hash, 'hex') as hash, signature, signed_by
    from audit where seq > ${after}
      ${actor === undefined ? sql`` : sql`and actor = ${actor}`}
      ${call === undefined ? sql`` : sql`and call = ${call}`}
      ${target === undefined ? sql`` : sql`and target = ${target}`}
    order by seq limit ${limit}`
}

/** The number of the last entry in the chain; 0 before the first. */
export async function lastEntry(sql: Sql): Promise<number> {
  const [row] = await sql<{ seq: number }[]>`select coalesce(max(seq), 0) as seq from audit`
  return (row as { seq: number }).seq
}

/** Where the log begins and ends: numbers of the entries that are there; undefined where there are none. */
export async function extentOfLog(sql: Sql): Promise<{ first: number; last: number } | undefined> {
  const [row] = await sql<{ first: number | null; last: number | null }[]>`select min(seq) as first, max(seq) as last from audit`
  return row && row.first !== null && row.last !== null ? { first: row.first, last: row.last } : undefined
}

/** When the entry of a number ended, and its hash. */
export async function entryNumbered(sql: Sql, seq: number): Promise<{ ended_at: Date; hash: string } | undefined> {
  const [row] = await sql<{ ended_at: Date; hash: string }[]>`select ended_at, encode(hash, 'hex') as hash from audit where seq = ${seq}`
  return row
}

/** The last entry that says that what is older was cut off. */
export async function lastCut(sql: Sql): Promise<{ seq: number; ended_at: Date; target: string } | undefined> {
  const [row] = await sql<{ seq: number; ended_at: Date; target: string }[]>`
    select seq, ended_at, target from audit where call = 'audit.cut' and seq is not null order by seq desc limit 1`
  return row
}

/** Adds an entry to the chain at once. */
export async function addToChain(sql: Sql, { id: _, ...row }: ChainedRow): Promise<void> {
  await sql`insert into audit ${sql({ ...row, hash: Buffer.from(row.hash, 'hex') })}`
}

/** Removes the oldest entries, up to that number and at most `limit`. Answers how many. */
export async function removeEntries(sql: Sql, { upTo, limit }: { upTo: number; limit: number }): Promise<number> {
  const rows = await sql`
    delete from audit where seq in (select seq from audit where seq <= ${upTo} order by seq limit ${limit}) returning seq`
  return rows.length
}
