// The partition's copy of the global configuration.
import type { Sql } from './connect.ts'

export interface GlobalRow {
  generation: number
  payload: string
  signature: string
  signed_by: string
  taken_at: Date
}

export async function findGlobal(sql: Sql): Promise<GlobalRow | undefined> {
  const [row] = await sql<GlobalRow[]>`select generation, payload, signature, signed_by, taken_at from global_configuration`
  return row
}

/** The generation kept; 0 where there is none. */
export async function globalGeneration(sql: Sql): Promise<number> {
  const [row] = await sql<{ generation: number }[]>`select generation from global_configuration`
  return row?.generation ?? 0
}

/** Keeps the copy in the place of generation `instead` (0: of none), if it is newer than that. Answers whether it was. */
export async function keepGlobal(sql: Sql, copy: Omit<GlobalRow, 'taken_at'>, instead: number): Promise<'kept' | 'not newer'> {
  const rows = await sql`
    insert into global_configuration (generation, payload, signature, signed_by)
    values (${copy.generation}, ${copy.payload}, ${copy.signature}, ${copy.signed_by})
    on conflict (only_row) do update
      set generation = excluded.generation, payload = excluded.payload, signature = excluded.signature, signed_by = excluded.signed_by, taken_at = now()
      where global_configuration.generation = ${instead} and global_configuration.generation < excluded.generation
    returning generation`
  return rows.length === 1 ? 'kept' : 'not newer'
}
