// The partition's name, and its running processes.
import type { Sql } from './connect.ts'

export interface Identity {
  name: string
  key_check: Buffer
}

/** Writes the partition's name into an empty database; answers who it belongs to. */
export async function claimIdentity(sql: Sql, identity: Identity): Promise<Identity> {
  await sql`insert into partition_identity (name, key_check) values (${identity.name}, ${identity.key_check}) on conflict do nothing`
  const [row] = await sql<Identity[]>`select name, key_check from partition_identity`
  return row as Identity
}

export interface ReplicaRow {
  name: string
  epoch: number
  version: string
  seen_at: Date
}

/** Registers a starting replica under a fresh, higher epoch. */
export async function registerReplica(sql: Sql, replica: { name: string; version: string; url: string }): Promise<number> {
  const [row] = await sql<{ epoch: number }[]>`
    insert into replicas (name, epoch, version, url) values (${replica.name}, nextval('replica_epochs'), ${replica.version}, ${replica.url})
    on conflict (name) do update set epoch = excluded.epoch, version = excluded.version, url = excluded.url, seen_at = now()
    returning epoch`
  return (row as { epoch: number }).epoch
}

/** Says that the replica lives. `superseded`: another process has started under its name. */
export async function touchReplica(sql: Sql, replica: { name: string; epoch: number }): Promise<'current' | 'superseded'> {
  const rows = await sql`update replicas set seen_at = now() where name = ${replica.name} and epoch = ${replica.epoch} returning name`
  return rows.length === 1 ? 'current' : 'superseded'
}

/** Replicas seen within the last `seconds`. */
export function liveReplicas(sql: Sql, seconds: number): Promise<ReplicaRow[]> {
  return sql<ReplicaRow[]>`
    select name, epoch, version, seen_at from replicas where seen_at > now() - ${seconds} * interval '1 second' order by name`
}

export async function removeReplica(sql: Sql, replica: { name: string; epoch: number }): Promise<void> {
  await sql`delete from replicas where name = ${replica.name} and epoch = ${replica.epoch}`
}

/** Forgets replicas that have not been seen for `hours`: those that were killed could not sign off. */
export async function forgetOldReplicas(sql: Sql, hours: number): Promise<void> {
  await sql`delete from replicas where seen_at < now() - ${hours} * interval '1 hour'`
}
