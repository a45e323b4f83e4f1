// Rotations of BMC passwords: asked for, claimed together with every switch they concern, written ahead, ended.
import type { Fault } from '@muster/shared/machine'
import type { Sql } from './connect.ts'
import type { PowerSwitch } from './power.ts'

export interface Rotation {
  id: number
  machine_id: string
  asked_by: string
  asked_at: Date
  state: 'queued' | 'running' | 'done' | 'failed'
  machine_ids: string[]
  candidates: Buffer | null
  replaced: string | null
  tries: number
  started_at: Date | null
  ended_at: Date | null
  fault: Fault | null
}

/** Asks for a rotation, or joins the one that is open for this machine or for the account that it shares. */
export async function giveRotation(sql: Sql, asked: { machine: string; askedBy: string }): Promise<Rotation> {
  for (;;) {
    const [row] = await sql<Rotation[]>`
      with joined as (
        select * from credential_rotations
        where state in ('queued', 'running') and (machine_id = ${asked.machine} or ${asked.machine} = any(machine_ids)) limit 1),
      given as (
        insert into credential_rotations (machine_id, asked_by) select ${asked.machine}, ${asked.askedBy} where not exists (select from joined)
        on conflict do nothing returning *),
      noted as (
        insert into events (kind, machine_id, actor, data)
        select 'credentials.rotation-ordered', machine_id, asked_by, jsonb_build_object('rotation', id) from given)
      select * from joined union all select * from given`
    // Nothing: another asked at the same moment, and its row is there by now.
    if (row) return row
  }
}

export async function findRotation(sql: Sql, id: number): Promise<Rotation | undefined> {
  const [row] = await sql<Rotation[]>`select * from credential_rotations where id = ${id}`
  return row
}

/** The latest rotation that concerns a machine, or undefined. */
export async function latestRotation(sql: Sql, machine: string): Promise<Rotation | undefined> {
  const [row] = await sql<Rotation[]>`
    select * from credential_rotations where machine_id = ${machine} or state = 'running' and ${machine} = any(machine_ids)
    order by id desc limit 1`
  return row
}

/** The marks of the passwords that the latest rotations of a machine's BMC have replaced, newest first. */
export function replacedPasswords(sql: Sql, machine: string, limit: number): Promise<{ id: number; replaced: string }[]> {
  return sql<{ id: number; replaced: string }[]>`
    select id, replaced from credential_rotations where ${machine} = any(machine_ids) and replaced is not null order by id desc limit ${limit}`
}

/** Those that are due, oldest first. One that waits lets power orders go first; one that runs goes before them. */
export function dueRotations(sql: Sql, limit: number): Promise<Rotation[]> {
  return sql<Rotation[]>`
    select * from credential_rotations r where state in ('queued', 'running') and again_at <= now()
      and (state = 'running' or not exists (
        select from power_orders o where o.machine_id = r.machine_id and o.state in ('queued', 'running')))
    order by id limit ${limit}`
}

/** Every switch of a driver: the account that each logs in with is in its settings. */
export function switchesOf(sql: Sql, driver: string): Promise<PowerSwitch[]> {
  return sql<PowerSwitch[]>`select * from machine_power where driver = ${driver} order by machine_id`
}

/**
 * Claims all these switches under one token, or none where somebody holds one of them: nobody else speaks to that BMC until the claim ends. Answers
 * them as they are now.
 */
export async function claimSwitches(sql: Sql, machines: readonly string[], claimMs: number): Promise<PowerSwitch[] | undefined> {
  const rows = await sql<PowerSwitch[]>`
    with free as materialized (
      select machine_id from machine_power where machine_id = any(${machines as string[]}) and (claimed_until is null or claimed_until < now())
      order by machine_id for update skip locked),
    token as materialized (select nextval('claim_tokens') as token where (select count(*) from free) = ${machines.length})
    update machine_power p set claim_token = token.token, claimed_until = now() + ${claimMs} * interval '1 millisecond'
    from free, token where p.machine_id = free.machine_id returning p.*`
  return rows.length === machines.length ? rows : undefined
}

export interface RotationClaim {
  readonly rotation: number
  readonly machines: readonly string[]
  readonly token: number
}

/** What must hold for a rotation's worker to write: it runs still, and the claim on all its switches is its own. */
const held = (sql: Sql, { rotation, machines, token }: RotationClaim) => sql`
  select r.id from credential_rotations r where r.id = ${rotation} and r.state in ('queued', 'running')
    and (select count(*) from machine_power p where p.machine_id = any(${machines as string[]}) and p.claim_token = ${token}
      and p.claimed_until > now()) = ${machines.length}`

/** Writes both passwords down, and that from now on the BMC may know either. */
export async function writeAhead(sql: Sql, claim: RotationClaim, candidates: Buffer): Promise<'written' | 'lost'> {
  const rows = await sql`
    update credential_rotations set state = 'running', started_at = coalesce(started_at, now()), machine_ids = ${claim.machines as string[]},
      candidates = ${candidates} where id in (${held(sql, claim)}) and state in ('queued', 'running') returning id`
  return rows.length === 1 ? 'written' : 'lost'
}

/** Prolongs the claim before the BMC is spoken to again. */
export async function holdSwitches(sql: Sql, claim: RotationClaim, claimMs: number): Promise<'ours' | 'lost'> {
  const rows = await sql`
    update machine_power set claimed_until = now() + ${claimMs} * interval '1 millisecond'
    where machine_id = any(${claim.machines as string[]}) and claim_token = ${claim.token} and exists (${held(sql, claim)}) returning machine_id`
  return rows.length === claim.machines.length ? 'ours' : 'lost'
}

/** It is not known yet which password is true: tried again later, the claim given back. */
export async function putOff(sql: Sql, claim: RotationClaim, fault: Fault, againMs: number): Promise<void> {
  await sql`
    with later as (
      update credential_rotations set tries = tries + 1, again_at = now() + ${againMs} * interval '1 millisecond', fault = ${sql.json(fault)}
      where id in (${held(sql, claim)}))
    update machine_power set claimed_until = null where machine_id = any(${claim.machines as string[]}) and claim_token = ${claim.token}`
}

/** Lets go without having anything to say. */
export async function dropSwitches(sql: Sql, claim: RotationClaim): Promise<void> {
  await sql`
    update machine_power set claimed_until = null where machine_id = any(${claim.machines as string[]}) and claim_token = ${claim.token}`
}

/**
 * Ends a rotation and forgets both passwords. `done`: every switch gets its secrets with the new one, in this one statement; `replaced` is the mark by
 * which the old one is known again. The monitor looks at the switches at once.
 */
export async function endRotation(
  sql: Sql,
  claim: RotationClaim,
  ending: { state: 'done'; secrets: ReadonlyMap<string, Buffer>; replaced: string } | { state: 'failed'; fault: Fault },
): Promise<'ended' | 'lost'> {
  // As text: the database library knows no array of bytea.
  const secrets = ending.state === 'done' ? claim.machines.map(machine => (ending.secrets.get(machine) as Buffer).toString('base64')) : []
  const fault = ending.state === 'failed' ? sql.json(ending.fault) : null
  const replaced = ending.state === 'done' ? ending.replaced : null
  const rows = await sql`
    with held as materialized (${held(sql, claim)}),
    changed as (
      update machine_power p set secrets = decode(given.secrets, 'base64'), fault = null, failures = 0
      from held, unnest(${claim.machines.slice(0, secrets.length)}::text[], ${secrets}::text[]) as given (machine_id, secrets)
      where p.machine_id = given.machine_id returning p.machine_id),
    ended as (
      update credential_rotations r set state = ${ending.state}, ended_at = now(), candidates = null, fault = ${fault}, replaced = ${replaced}
      from held where r.id = held.id and r.state in ('queued', 'running') and (select count(*) from changed) = ${secrets.length} returning r.*),
    noted as (
      insert into events (kind, machine_id, actor, data)
      select 'credentials.rotation-ended', machine, 'worker', jsonb_build_object('rotation', id, 'outcome', state, 'askedBy', asked_by)
      from ended, unnest(${claim.machines as string[]}::text[]) as machine)
    select id from ended`
  if (rows.length === 0) return 'lost'
  await dropSwitches(sql, claim)
  return 'ended'
}

/**
 * Somebody sets the power settings of a machine anew: gives up a rotation that has not begun, or cannot find out which password is true. `goes on`:
 * one is in the middle of its work, and its new password must not be lost.
 */
export async function giveUpRotation(sql: Sql, machine: string): Promise<'none is open' | 'goes on'> {
  await sql`
    with ended as (
      update credential_rotations set state = 'failed', ended_at = now(), candidates = null
      where (machine_id = ${machine} or ${machine} = any(machine_ids)) and (state = 'queued' or state = 'running' and fault is not null) returning *)
    insert into events (kind, machine_id, actor, data)
    select 'credentials.rotation-ended', machine_id, 'person', jsonb_build_object('rotation', id, 'outcome', 'settings replaced', 'askedBy', asked_by)
    from ended`
  const open = await sql`select from credential_rotations where state = 'running' and ${machine} = any(machine_ids)`
  return open.length === 0 ? 'none is open' : 'goes on'
}
