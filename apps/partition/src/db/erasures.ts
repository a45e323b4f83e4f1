// Erasure certificates: written once, never changed.
import type { Sql } from './connect.ts'

export interface ErasureRow {
  id: number
  machine_id: string
  run: string
  disk: string
  at: Date
  payload: string
  signature: string
  key: string
}

/** Keeps a certificate; the first of a disk in a run stays. */
export async function insertErasure(sql: Sql, row: Omit<ErasureRow, 'id'>): Promise<void> {
  await sql`insert into erasures ${sql(row)} on conflict (machine_id, run, disk) do nothing`
}

/** The disks erased in a run, by name. */
export async function erasedDisks(sql: Sql, machine: string, run: string): Promise<string[]> {
  const rows = await sql<{ disk: string }[]>`select disk from erasures where machine_id = ${machine} and run = ${run} order by disk`
  return rows.map(({ disk }) => disk)
}

/** Latest first. */
export function listErasures(sql: Sql, machine: string, limit: number): Promise<ErasureRow[]> {
  return sql<ErasureRow[]>`select * from erasures where machine_id = ${machine} order by id desc limit ${limit}`
}
