// The partition's place in its federation.
import type { Sql } from './connect.ts'

export interface MembershipRow {
  nats_seed: Buffer
  nats_url: string | null
  /** By whose certificates the bus is believed, PEM; null: by those that the computer knows. */
  nats_ca: string | null
  config_keys: string[]
  accepted_at: Date | null
}

/** Keeps the seed, unless there is one: of two replicas that start together, one makes the key of both. */
export async function keepSeed(sql: Sql, nats_seed: Buffer): Promise<void> {
  await sql`insert into membership (nats_seed) values (${nats_seed}) on conflict (only_row) do nothing`
}

export async function findMembership(sql: Sql): Promise<MembershipRow | undefined> {
  const [row] = await sql<MembershipRow[]>`select nats_seed, nats_url, nats_ca, config_keys, accepted_at from membership`
  return row
}

export async function keepAcceptance(sql: Sql, told: { nats_url: string; nats_ca: string | null; config_keys: string[] }): Promise<void> {
  await sql`update membership set nats_url = ${told.nats_url}, nats_ca = ${told.nats_ca}, config_keys = ${told.config_keys}, accepted_at = coalesce(accepted_at, now())`
}
