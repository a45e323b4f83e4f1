// Idempotency keys whose home is this partition: which attempt won.
import type { KeyRecord } from '@muster/shared/bus/protocol'
import type { Sql } from './connect.ts'

export async function findKey(sql: Sql, key: string): Promise<KeyRecord | null> {
  const [row] = await sql<{ record: KeyRecord }[]>`select record from idempotency_keys where key = ${key}`
  return row?.record ?? null
}

/**
 * Writes the record if there is none, or in place of the record of allocation `replaces`. Answers the record that stands afterwards.
 */
export async function rememberKey(sql: Sql, record: KeyRecord, replaces: string | null): Promise<KeyRecord> {
  const [written] = await sql<{ record: KeyRecord }[]>`
    insert into idempotency_keys as k (key, allocation_id, record) values (${record.key}, ${record.allocation}, ${sql.json(record)})
    on conflict (key) do update set allocation_id = excluded.allocation_id, record = excluded.record, created_at = now()
      where k.allocation_id = ${replaces}::text
    returning record`
  if (written) return written.record
  const standing = await findKey(sql, record.key)
  if (!standing) throw new Error(`the record of key ${record.key} went away while it was read; keys are kept for a week`)
  return standing
}
