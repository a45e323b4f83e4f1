// Machines that people switch: their orders wait for a person, who says what was done.
import type { Sql } from './connect.ts'

/** The driver of machines that nobody but a person can switch. Its orders are not claimed by the worker. */
export const byHand = 'manual'

/**
 * Notes what a person says the power is now, and ends the orders that this fulfils: a cycle ends with on. The engine looks at the machine at
 * once. `not by hand`: the machine has a switch that can be asked, and is.
 */
export async function notePower(sql: Sql, said: { machine: string; power: 'on' | 'off'; by: string }): Promise<'noted' | 'not by hand'> {
  const rows = await sql`
    with before as (
      select machine_id, observed from machine_power where machine_id = ${said.machine} and driver = ${byHand} for update),
    noted as (
      update machine_power p set observed = ${said.power}, seen_at = now() from before
      where p.machine_id = before.machine_id returning p.machine_id, before.observed as was),
    ended as (
      update power_orders o set state = 'done', started_at = coalesce(o.started_at, now()), ended_at = now() from noted
      where o.machine_id = noted.machine_id and o.state in ('queued', 'running')
        and (o.action = ${said.power} or (o.action = 'cycle' and ${said.power} = 'on')) returning o.id),
    told as (
      insert into events (kind, machine_id, actor, data)
      select 'power.changed', machine_id, ${said.by}, jsonb_build_object('from', was, 'to', ${said.power}::text) from noted where was <> ${said.power}
      union all
      select 'power.order-ended', ${said.machine}, ${said.by}, jsonb_build_object('order', id, 'outcome', 'done') from ended),
    nudged as (update machines set attention_at = now() from noted where id = noted.machine_id)
    select from noted`
  return rows.length === 1 ? 'noted' : 'not by hand'
}
