// Power: what is known of each machine's switch, and the orders given to it.
import type { Fault } from '@muster/shared/machine'
import { byHand } from './by-hand.ts'
import { isDuplicate, type Sql } from './connect.ts'

export type PowerAction = 'on' | 'off' | 'cycle'

export interface PowerSwitch {
  machine_id: string
  driver: string | null
  settings: Record<string, unknown>
  secrets: Buffer | null
  observed: 'on' | 'off' | 'unknown'
  seen_at: Date | null
  fault: Fault | null
  failures: number
  claim_token: number
}

export interface PowerOrder {
  id: number
  machine_id: string
  action: PowerAction
  boot: 'network' | 'disk' | null
  asked_by: string
  asked_at: Date
  state: 'queued' | 'running' | 'done' | 'failed' | 'superseded'
  /** What the worker was about to do: `off`, or `on.again` with the rung of its ladder. */
  phase: string | null
  /** How to switch off. */
  how: 'soft' | 'hard'
  reason: string
  started_at: Date | null
  ended_at: Date | null
  fault: Fault | null
}

export async function findSwitch(sql: Sql, machine: string): Promise<PowerSwitch | undefined> {
  const [row] = await sql<PowerSwitch[]>`select * from machine_power where machine_id = ${machine}`
  return row
}

/**
 * Locks a machine's switch for the rest of the transaction. Whoever changes switch and machine takes the switch first, as the end of a claim
 * does: two orders of locking would end in a deadlock.
 */
export async function lockSwitch(sql: Sql, machine: string): Promise<void> {
  await sql`select from machine_power where machine_id = ${machine} for update`
}

/** Replaces driver and settings; what was observed through the old ones is forgotten. */
export async function saveSwitch(
  sql: Sql,
  machine: string,
  settings: { driver: string | null; settings: Record<string, unknown>; secrets: Buffer | null },
): Promise<void> {
  await sql`
    update machine_power set driver = ${settings.driver}, settings = ${sql.json(settings.settings as never)}, secrets = ${settings.secrets},
      observed = 'unknown', seen_at = null, fault = null, failures = 0, check_at = now()
    where machine_id = ${machine}`
}

export interface NewOrder {
  machine: string
  action: PowerAction
  boot: 'network' | 'disk' | null
  /** `soft`: ask the operating system first. Default hard. */
  how?: 'soft' | 'hard'
  askedBy: string
  /** Why, where it is not plain: `seen on, wanted off`. */
  reason?: string
}

/**
 * Gives an order. One equal to the order under way (or waiting) joins it; another one takes the place of the one waiting. Answers the
 * order that will be carried out. With the engine's claim on the machine: undefined, and no order, where the machine has moved on since.
 */
export function giveOrder(sql: Sql, order: NewOrder & { claimToken: number }): Promise<PowerOrder | undefined>
export function giveOrder(sql: Sql, order: NewOrder): Promise<PowerOrder>
export async function giveOrder(sql: Sql, order: NewOrder & { claimToken?: number }): Promise<PowerOrder | undefined> {
  const how = order.how ?? 'hard'
  // Locked: a move waits until the order is there, and an order until the move is.
  const allowed =
    order.claimToken === undefined
      ? sql`select ${order.machine}::text as machine_id`
      : sql`select id as machine_id from machines where id = ${order.machine} and claim_token = ${order.claimToken} for share`
  for (;;) {
    try {
      const [row] = await sql<PowerOrder[]>`
        with allowed as materialized (${allowed}),
        joined as (
          select power_orders.* from power_orders join allowed using (machine_id)
          where action = ${order.action} and boot is not distinct from ${order.boot} and how = ${how}
            and (state = 'queued' or state = 'running' and not exists (
              select from power_orders where machine_id = ${order.machine} and state = 'queued'))
          limit 1),
        replaced as (
          update power_orders o set state = 'superseded', ended_at = now() from allowed
          where o.machine_id = allowed.machine_id and o.state = 'queued' and not exists (select from joined) returning o.id),
        given as (
          insert into power_orders (machine_id, action, boot, how, asked_by, reason)
          select machine_id, ${order.action}, ${order.boot}::text, ${how}, ${order.askedBy}, ${order.reason ?? ''} from allowed
          -- Counting makes the insert wait for the update: only one order may wait.
          where not exists (select from joined) and (select count(*) from replaced) >= 0
          returning *),
        noted as (
          insert into events (kind, machine_id, actor, data)
          select 'power.ordered', ${order.machine}, ${order.askedBy},
            jsonb_build_object('action', ${order.action}::text, 'how', ${how}::text, 'order', id, 'reason', ${order.reason ?? ''}::text) from given
          union all
          select 'power.order-ended', ${order.machine}, ${order.askedBy}, jsonb_build_object('order', id, 'outcome', 'superseded') from replaced)
        select * from joined union all select * from given`
      return row
    } catch (error) {
      // Two orders at once: the other was written first, and this one takes its place or joins it.
      if (!isDuplicate(error, 'power_orders_queued')) throw error
    }
  }
}

/** The orders of a machine, latest first: what was asked, by whom, and what came of it. */
export function listOrders(sql: Sql, machine: string, limit: number): Promise<PowerOrder[]> {
  return sql<PowerOrder[]>`select * from power_orders where machine_id = ${machine} order by id desc limit ${limit}`
}

/** The latest order of each machine that has one, by the machine's id. */
export async function latestOrders(sql: Sql, machines: readonly string[]): Promise<Map<string, PowerOrder>> {
  const rows = await sql<PowerOrder[]>`
    select o.* from jsonb_array_elements_text(${sql.json(machines as string[])}) as w (id) cross join lateral (
      select * from power_orders where machine_id = w.id order by id desc limit 1) o`
  return new Map(rows.map(order => [order.machine_id, order]))
}

/** The latest order that the engine gave to each machine at or after its `state_since`, and how many it gave; none where it gave none. */
export async function latestOrdersOfEngine(
  sql: Sql,
  machines: readonly { id: string; state_since: Date }[],
): Promise<Map<string, { order: PowerOrder; count: number }>> {
  const wished = machines.map(({ id, state_since }) => ({ id, since: state_since.toISOString() }))
  // A Date has milliseconds, the row's time has microseconds.
  const rows = await sql<(PowerOrder & { given: number })[]>`
    select o.* from jsonb_to_recordset(${sql.json(wished)}) as w (id text, since timestamptz) cross join lateral (
      select *, count(*) over () as given from power_orders
      where machine_id = w.id and asked_by = 'engine' and asked_at >= date_trunc('milliseconds', w.since)
      order by id desc limit 1) o`
  return new Map(rows.map(({ given, ...order }) => [order.machine_id, { order, count: given }]))
}

export async function findOrder(sql: Sql, id: number): Promise<PowerOrder | undefined> {
  const [row] = await sql<PowerOrder[]>`select * from power_orders where id = ${id}`
  return row
}

/** Orders waiting or under way, oldest first. */
export function openOrders(sql: Sql, machine: string): Promise<PowerOrder[]> {
  return sql<PowerOrder[]>`select * from power_orders where machine_id = ${machine} and state in ('queued', 'running') order by id`
}

/** Not in the middle of a rotation: a login with the wrong one of two passwords may lock the account. For a query of machine_power as `p`. */
const passwordIsKnown = (sql: Sql) => sql`
  not exists (select from credential_rotations r where r.state = 'running' and p.machine_id = any(r.machine_ids))`

/** An order to carry out, with the switch it goes to, claimed. */
export type ClaimedOrder = PowerOrder & { switch: PowerSwitch }

/**
 * Takes orders whose switch nobody holds: those that wait, and those whose worker died (their claim has run out). The claim is on the
 * switch, so that no second caller speaks to that BMC. `limit` of BMCs that answered last time, `troubled` of those that did not: as many if absent.
 */
export async function claimOrders(sql: Sql, options: { limit: number; troubled?: number; claimMs: number }): Promise<ClaimedOrder[]> {
  const isOpen = sql`p.driver is distinct from ${byHand} and (p.claimed_until is null or p.claimed_until < now()) and ${passwordIsKnown(sql)}
        and exists (select from power_orders o where o.machine_id = p.machine_id and o.state in ('queued', 'running'))`
  const rows = await sql<((PowerOrder | { id: null }) & { power: PowerSwitch })[]>`
    with usual as (
      select p.machine_id from machine_power p where p.failures = 0 and ${isOpen} limit ${options.limit} for update of p skip locked),
    troubled as (
      select p.machine_id from machine_power p where p.failures > 0 and ${isOpen}
      limit ${options.troubled ?? options.limit} for update of p skip locked),
    free as (select machine_id from usual union all select machine_id from troubled),
    claimed as (
      update machine_power p set claim_token = nextval('claim_tokens'), claimed_until = now() + ${options.claimMs} * interval '1 millisecond'
      from free where p.machine_id = free.machine_id returning p.*),
    next_order as (
      select distinct on (o.machine_id) o.id from power_orders o join claimed on claimed.machine_id = o.machine_id
      where o.state in ('queued', 'running') order by o.machine_id, o.state = 'running' desc),
    started as (
      update power_orders o set state = 'running', started_at = coalesce(started_at, now()) from next_order n
      where o.id = n.id and o.state in ('queued', 'running') returning o.*)
    select started.*, row_to_json(claimed.*) as power from claimed left join started on claimed.machine_id = started.machine_id`
  const orders: ClaimedOrder[] = []
  for (const { power, ...order } of rows) {
    if (order.id !== null) orders.push({ ...order, switch: revive(power) })
    // Its order was replaced, or had ended, just now: whatever waits there must not wait for a claim that nobody uses.
    else await dropClaim(sql, { machine: power.machine_id, token: power.claim_token })
  }
  return orders
}

/** A row that went through JSON: its bytea is hex text, its times are texts. */
function revive(row: PowerSwitch): PowerSwitch {
  const secrets = row.secrets as unknown as string | null
  return { ...row, secrets: secrets === null ? null : Buffer.from(secrets.slice(2), 'hex'), seen_at: row.seen_at && new Date(row.seen_at) }
}

/** Prolongs the claim and notes what is about to be done. `lost`: the claim has run out and another may act: do nothing. */
export async function holdClaim(
  sql: Sql,
  claim: { machine: string; token: number; claimMs: number; order?: number; phase?: string },
): Promise<'ours' | 'lost'> {
  const rows = await sql`
    with kept as (
      update machine_power set claimed_until = now() + ${claim.claimMs} * interval '1 millisecond'
      where machine_id = ${claim.machine} and claim_token = ${claim.token} and claimed_until > now() returning machine_id),
    noted as (
      update power_orders set phase = ${claim.phase ?? null} from kept where id = ${claim.order ?? null}::bigint and ${claim.phase ?? null}::text is not null)
    select from kept`
  return rows.length === 1 ? 'ours' : 'lost'
}

/** Lets go of a switch without having anything to say of it; its order, if one runs, stays for the next worker. */
export async function dropClaim(sql: Sql, claim: { machine: string; token: number }): Promise<void> {
  await sql`update machine_power set claimed_until = null where machine_id = ${claim.machine} and claim_token = ${claim.token}`
}

/** What the order that waits behind the running one is to do, or undefined. */
export async function queuedAction(sql: Sql, machine: string): Promise<PowerAction | undefined> {
  const [row] = await sql<{ action: PowerAction }[]>`select action from power_orders where machine_id = ${machine} and state = 'queued'`
  return row?.action
}

/** Orders of a machine that ended within the last `withinMs` and may have acted towards that power, whatever became of them. */
export async function actedOrders(
  sql: Sql,
  options: { machine: string; except: number; towards: 'on' | 'off'; withinMs: number },
): Promise<{ phase: string; how: 'soft' | 'hard'; endedAgoMs: number }[]> {
  return await sql<{ phase: string; how: 'soft' | 'hard'; endedAgoMs: number }[]>`
    select phase, how, (extract(epoch from now() - ended_at) * 1000)::float8 as "endedAgoMs" from power_orders
    where machine_id = ${options.machine} and id <> ${options.except} and phase like ${`${options.towards}.%`} and state <> 'done'
      and ended_at > now() - ${options.withinMs} * interval '1 millisecond'`
}

export interface Observation {
  machine: string
  token: number
  /** What the BMC said, or why it said nothing. */
  power: 'on' | 'off' | 'unknown' | null
  fault: Fault | null
  /** When to look again, in milliseconds. */
  againMs: number
  /** The same for a machine on its way somewhere: its power is news. */
  inTransitionMs: number
}

/**
 * Ends a claim with what was observed; a change of power is an event. `order` ends too, with its outcome. Only the claim's holder
 * may: a worker that slept writes nothing. The engine looks at the machine at once when an order ended or the power changed.
 */
export async function endClaim(
  sql: Sql,
  seen: Observation,
  order?: { id: number; state: 'done' | 'failed' | 'superseded'; fault: Fault | null },
): Promise<'ended' | 'lost'> {
  const rows = await sql`
    with before as (select machine_id, observed from machine_power where machine_id = ${seen.machine} and claim_token = ${seen.token} for update),
    ended as (
      update machine_power p set claimed_until = null, check_at = now() + interval '1 millisecond' * case
          when exists (select from machines m where m.id = p.machine_id and m.deadline_at is not null and m.state <> 'reserved')
          then least(${seen.againMs}::float8, ${seen.inTransitionMs}::float8) else ${seen.againMs}::float8 end,
        observed = coalesce(${seen.power}::text, p.observed), seen_at = case when ${seen.power}::text is null then p.seen_at else now() end,
        fault = ${seen.fault === null ? null : sql.json(seen.fault)}, failures = case when ${seen.fault === null} then 0 else p.failures + 1 end
      from before where p.machine_id = before.machine_id returning p.machine_id, before.observed as was, p.observed as is_now),
    closed as (
      update power_orders set state = ${order?.state ?? null}, ended_at = now(), fault = ${order?.fault ? sql.json(order.fault) : null}
      from ended where id = ${order?.id ?? null}::bigint returning id),
    noted as (
      insert into events (kind, machine_id, actor, data)
      select 'power.changed', machine_id, 'monitor', jsonb_build_object('from', was, 'to', is_now) from ended where was <> is_now
      union all
      select 'power.order-ended', machine_id, 'worker', jsonb_build_object('order', id, 'outcome', ${order?.state ?? ''}::text) from ended, closed),
    nudged as (
      update machines set attention_at = now() from ended
      where id = ended.machine_id and (was <> is_now or exists (select from closed)))
    select from ended`
  return rows.length === 1 ? 'ended' : 'lost'
}

/** The monitor looks at this machine now, unless it was looked at within the last `quietMs`. */
export async function hurryCheck(sql: Sql, machine: string, quietMs: number): Promise<'hurried' | 'no such machine'> {
  const rows = await sql`
    update machine_power set check_at = least(check_at, greatest(now(), coalesce(seen_at, now()) + ${quietMs} * interval '1 millisecond'))
    where machine_id = ${machine} and driver is not null returning machine_id`
  return rows.length === 1 ? 'hurried' : 'no such machine'
}

/**
 * Switches that the monitor should read now, claimed; those with an order are the worker's. `prompt` of those that answered last time, `patient` of
 * those that did not, or that are known as slow: `slow` are machine ids.
 */
export function claimChecks(
  sql: Sql,
  options: { prompt: number; patient: number; slow: readonly string[]; claimMs: number },
): Promise<(PowerSwitch & { is_patient: boolean })[]> {
  // What a person said of a machine that nobody can ask stands until a person says otherwise.
  const isDue = sql`driver is not null and driver <> ${byHand} and check_at <= now() and (claimed_until is null or claimed_until < now())
        and ${passwordIsKnown(sql)}
        and not exists (select from power_orders o where o.machine_id = p.machine_id and o.state in ('queued', 'running'))`
  const isPatient = sql`(failures > 0 or machine_id = any(${options.slow as string[]}::text[]))`
  return sql<(PowerSwitch & { is_patient: boolean })[]>`
    with prompt as (
      select machine_id, false as is_patient from machine_power p where ${isDue} and not ${isPatient}
      order by check_at limit ${options.prompt} for update skip locked),
    patient as (
      select machine_id, true as is_patient from machine_power p where ${isDue} and ${isPatient}
      order by check_at limit ${options.patient} for update skip locked)
    update machine_power p set claim_token = nextval('claim_tokens'), claimed_until = now() + ${options.claimMs} * interval '1 millisecond'
    from (select * from prompt union all select * from patient) due where p.machine_id = due.machine_id returning p.*, due.is_patient`
}
