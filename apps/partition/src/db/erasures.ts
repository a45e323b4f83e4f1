// Erasure certificates: written once, never changed.
import type { Sql } from './connect.ts'

export interface ErasureRow {
  id: number
  machine_id: string
  run: string
  /** What tells the disk from the machine's others; its name is in the payload. */
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

/** What was said of the disks erased in a run. */
export async function erasuresOfRun(sql: Sql, machine: string, run: string): Promise<{ payload: string }[]> {
  return await sql<{ payload: string }[]>`select payload from erasures where machine_id = ${machine} and run = ${run}`
}

/** Latest first. */
export function listErasures(sql: Sql, machine: string, limit: number): Promise<ErasureRow[]> {
  return sql<ErasureRow[]>`select * from erasures where machine_id = ${machine} order by id desc limit ${limit}`
}
