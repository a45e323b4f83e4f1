// Holds and allocations: the only statements that make a machine somebody's. Each is one statement, so that no crash leaves it half done.
import type { Strategy } from '@muster/shared/allocation/constraints'
import type { Counted, CountedSet } from '@muster/shared/allocation/quotas'
import type { Key } from '@muster/shared/contract/page'
import type { Sql } from './connect.ts'
import { isSeenBy, type MachineRow, machineRow, type SeenBy } from './machines.ts'

export interface AllocationRow {
  id: string
  owner: string
  /** `dropped`: a hold that was never confirmed; nobody but a late confirm asks for it. */
  state: 'held' | 'confirmed' | 'released' | 'dropped'
  strategy: Strategy
  count: number
  note: string
  machine_ids: string[]
  created_at: Date
  expires_at: Date | null
}

export interface NewHold {
  allocation: string
  owner: string
  strategy: Strategy
  count: number
  note: string
  constraints: Record<string, unknown>
  createdAt: Date
  /** In the order of preference; as many as `wanted` of them are taken. */
  machines: string[]
  wanted: number
  holdMs: number
}

/**
 * Holds `wanted` of the machines, or none. Machines that another request is just taking are passed over. Answers the rows held; empty
 * where there were not enough, or the allocation's id exists.
 */
export function holdMachines(sql: Sql, hold: NewHold, moved: { from: string; to: string }): Promise<MachineRow[]> {
  return sql<MachineRow[]>`
    with wish as (select id, place from unnest(${hold.machines}::text[]) with ordinality as w (id, place)),
    free as materialized (
      select m.id from machines m join wish on wish.id = m.id
      where m.state = ${moved.from} and not m.locked and m.allocation_id is null
      order by wish.place limit ${hold.wanted} for update of m skip locked),
    enough as (select from (select count(*) as free from free) as counted where free = ${hold.wanted}),
    kept as (
      insert into allocations (id, owner, state, strategy, count, note, constraints, machine_ids, created_at, expires_at)
      select ${hold.allocation}, ${hold.owner}, 'held', ${hold.strategy}, ${hold.count}, ${hold.note}, ${sql.json(hold.constraints as never)},
        (select array_agg(id order by id) from free), ${hold.createdAt}, now() + ${hold.holdMs} * interval '1 millisecond'
      from enough on conflict (id) do nothing returning id, expires_at),
    held as (
      update machines m set state = ${moved.to}, state_since = now(), version = version + 1, updated_at = now(),
        owner = ${hold.owner}, allocation_id = kept.id, deadline_at = kept.expires_at, attention_at = kept.expires_at,
        fault = null, waiting_for = 'the confirmation', progress = null, step = 'start', last_request = 'hold', last_request_by = ${hold.owner}
      from free, kept where m.id = free.id returning m.*),
    noted as (
      insert into events (kind, machine_id, actor, data)
      select 'machine.moved', id, ${hold.owner}, jsonb_build_object('move', 'hold', 'from', ${moved.from}::text, 'to', ${moved.to}::text, 'allocation', ${hold.allocation}::text) from held)
    select ${machineRow(sql)} from held m join machine_power p on p.machine_id = m.id order by m.id`
}

/** A hold of one certain machine. */
export type SingleHold = Omit<NewHold, 'machines' | 'wanted'> & { machine: string }
export type Held = Pick<MachineRow, 'id' | 'version'> & { allocation_id: string }

/**
 * Several holds of one machine each, in one statement; each is carried out or not for itself. Answers what is held; missing are those whose
 * machine is not free, and those whose allocation's id exists.
 */
export function holdSingles(sql: Sql, holds: SingleHold[], moved: { from: string; to: string }): Promise<Held[]> {
  return sql<Held[]>`
    -- Of those who wish for the same machine, one. JSON, because of arrays the planner makes a plan each time, for each length its own.
    with wish as (
      select distinct on (machine) * from jsonb_to_recordset(${sql.json(holds as never)}) as w (
        allocation text, machine text, owner text, strategy text, count integer, note text, constraints jsonb, "createdAt" timestamptz, "holdMs" integer)
      order by machine),
    free as materialized (
      select m.id, wish.* from machines m join wish on wish.machine = m.id
      where m.state = ${moved.from} and not m.locked and m.allocation_id is null for update of m skip locked),
    -- In the order of their ids, so that two statements with the same ids wait for each other instead of both.
    kept as (
      insert into allocations (id, owner, state, strategy, count, note, constraints, machine_ids, created_at, expires_at)
      select allocation, owner, 'held', strategy, count, note, constraints, array[id], "createdAt", now() + "holdMs" * interval '1 millisecond'
      from free order by allocation on conflict (id) do nothing returning id, owner, expires_at, machine_ids),
    held as (
      update machines m set state = ${moved.to}, state_since = now(), version = version + 1, updated_at = now(),
        owner = kept.owner, allocation_id = kept.id, deadline_at = kept.expires_at, attention_at = kept.expires_at,
        fault = null, waiting_for = 'the confirmation', progress = null, step = 'start', last_request = 'hold', last_request_by = kept.owner
      from kept where m.id = kept.machine_ids[1] returning m.id, m.version, m.owner, m.allocation_id),
    noted as (
      insert into events (kind, machine_id, actor, data)
      select 'machine.moved', id, owner, jsonb_build_object('move', 'hold', 'from', ${moved.from}::text, 'to', ${moved.to}::text, 'allocation', allocation_id) from held)
    select id, version, allocation_id from held`
}

/** A confirmed allocation and its machines. */
export interface Confirmed {
  allocation: Omit<AllocationRow, 'machine_ids' | 'expires_at'>
  machines: MachineRow[]
}

/**
 * Confirms holds, each whole or not at all. Answers those confirmed, by their ids; missing are those that are no holds in time. Attention is
 * drawn to machines only where the engine would do something: nothing to a machine that is off, or has no switch.
 */
export async function confirmHolds(
  sql: Sql,
  allocations: readonly string[],
  moved: { from: string; to: string },
): Promise<Map<string, Confirmed>> {
  type Row = MachineRow & { of_strategy: Strategy; of_count: number; of_note: string; of_created_at: Date }
  const rows = await sql<Row[]>`
    with asked as (
      select id from allocations where id = any(${allocations as string[]}) and state = 'held' and expires_at > now() order by id for update),
    kept as (update allocations a set state = 'confirmed', expires_at = null from asked where a.id = asked.id returning a.*),
    taken as (
      update machines m set state = ${moved.to}, state_since = now(), version = version + 1, updated_at = now(),
        deadline_at = null,
        -- The hold left attention at its end; anything else there is a nudge, perhaps by news of the power that this statement's snapshot lacks.
        attention_at = case when m.attention_at = m.deadline_at and (p.driver is null or p.observed = 'off') then null else now() end,
        waiting_for = null, last_request = 'confirm', last_request_by = kept.owner
      from kept, machine_power p where m.allocation_id = kept.id and m.state = ${moved.from} and p.machine_id = m.id
      returning ${machineRow(sql)}, kept.strategy as of_strategy, kept.count as of_count, kept.note as of_note, kept.created_at as of_created_at),
    noted as (
      insert into events (kind, machine_id, actor, data)
      select 'machine.moved', id, owner, jsonb_build_object('move', 'confirm', 'from', ${moved.from}::text, 'to', ${moved.to}::text, 'allocation', allocation_id) from taken)
    select * from taken order by id`
  const confirmed = new Map<string, Confirmed>()
  for (const { of_strategy, of_count, of_note, of_created_at, ...machine } of rows) {
    const id = machine.allocation_id as string
    const known = confirmed.get(id)
    if (known) known.machines.push(machine)
    else {
      const { owner } = machine as { owner: string }
      const allocation = {
        id,
        owner,
        state: 'confirmed',
        strategy: of_strategy,
        count: of_count,
        note: of_note,
        created_at: of_created_at,
      } as const
      confirmed.set(id, { allocation, machines: [machine] })
    }
  }
  return confirmed
}

/**
 * Ends holds: one by its id, or all whose time has passed. Their machines are as before the hold. Answers the machines freed.
 * `move` is the word for the event: drop or expire.
 */
export function endHolds(
  sql: Sql,
  which: { allocation: string } | 'expired',
  moved: { move: string; from: string; to: string },
): Promise<{ id: string; allocation_id: string }[]> {
  return sql<{ id: string; allocation_id: string }[]>`
    with ended as (
      update allocations set state = 'dropped', expires_at = null
      where state = 'held' and ${which === 'expired' ? sql`expires_at <= now()` : sql`id = ${which.allocation}`} returning id, owner),
    freed as (
      update machines m set state = ${moved.to}, state_since = now(), version = version + 1, updated_at = now(),
        owner = null, allocation_id = null, deadline_at = null,
        -- As in confirmHolds: news of the power that came during the hold, or just before it, are still to be looked at.
        attention_at = case when m.attention_at = m.deadline_at and (p.driver is null or p.observed = 'off') then null else now() end,
        waiting_for = null, last_request = null, last_request_by = null
      from ended, machine_power p where m.allocation_id = ended.id and m.state = ${moved.from} and p.machine_id = m.id returning m.id, ended.id as allocation_id, ended.owner),
    noted as (
      insert into events (kind, machine_id, actor, data)
      select 'machine.moved', id, owner, jsonb_build_object('move', ${moved.move}::text, 'from', ${moved.from}::text, 'to', ${moved.to}::text, 'allocation', allocation_id) from freed)
    select id, allocation_id from freed`
}

/** How many machines the owners have, in a pool or in all; of them those `held` by any request, and those of one allocation. What was given back and is being erased is nobody's. */
export async function countOwned(sql: Sql, { owners, pool }: CountedSet, allocation: string | null): Promise<Counted> {
  const [row] = await sql<Counted[]>`
    select count(*) as machines, count(*) filter (where state = 'reserved') as held, count(*) filter (where allocation_id = ${allocation}) as own
    from machines
    where owner = any(${owners as string[]}) and state not in ('releasing', 'failed_releasing')
      ${pool === undefined ? sql`` : sql`and pool = ${pool}`}`
  return row as Counted
}

/** Until the end of the transaction nobody else holds machines under these quotas. In one order, so that two who want the same never wait for each other. */
export async function lockQuotas(sql: Sql, names: readonly string[]): Promise<void> {
  await sql`
    select pg_advisory_xact_lock(7305170, number) from (
      select distinct hashtext(name) as number from unnest(${names as string[]}::text[]) as q (name) order by 1) as wanted`
}

/** Marks the allocation released when none of its machines is left. */
export async function closeAllocation(sql: Sql, allocation: string): Promise<void> {
  await sql`
    update allocations set state = 'released'
    where id = ${allocation} and state = 'confirmed' and not exists (select from machines where allocation_id = ${allocation})`
}

/** Confirmed allocations that have no machine left: a crash between a machine's release and {@link closeAllocation} leaves one. */
export async function closeEmptyAllocations(sql: Sql): Promise<void> {
  await sql`
    update allocations a set state = 'released'
    where state = 'confirmed' and not exists (select from machines where allocation_id = a.id)`
}

export async function findAllocation(sql: Sql, id: string): Promise<AllocationRow | undefined> {
  const [row] = await sql<AllocationRow[]>`
    select id, owner, state, strategy, count, note, machine_ids, created_at, expires_at from allocations where id = ${id}`
  return row
}

export interface AllocationPage {
  owner?: string | undefined
  states?: readonly string[] | undefined
  /** Limits the list to what one caller may see: its own, and those with a machine of these pools. */
  seenBy?: SeenBy | undefined
  after: Key | null
  limit: number
}

export function listAllocations(sql: Sql, page: AllocationPage): Promise<AllocationRow[]> {
  return sql<AllocationRow[]>`
    select id, owner, state, strategy, count, note, machine_ids, created_at, expires_at from allocations
    where state <> 'dropped'
      ${page.owner === undefined ? sql`` : sql`and owner = ${page.owner}`}
      ${page.seenBy === undefined ? sql`` : sql`and (owner = ${page.seenBy.name} or exists (select from machines m where m.allocation_id = allocations.id and ${isSeenBy(sql, page.seenBy)}))`}
      ${page.states === undefined ? sql`` : sql`and state = any(${page.states as string[]})`}
      ${page.after === null ? sql`` : sql`and (created_at, id) > (${new Date(page.after[0])}, ${page.after[1]})`}
    order by created_at, id limit ${page.limit}`
}

/** The machines that belong to these allocations now. */
export function machinesOfAllocations(sql: Sql, allocations: readonly string[]): Promise<MachineRow[]> {
  return sql<MachineRow[]>`
    select ${machineRow(sql)} from machines m join machine_power p on p.machine_id = m.id
    where m.allocation_id = any(${allocations as string[]}) order by m.id`
}
