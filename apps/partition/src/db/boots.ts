// Where boot scripts with tokens were given to, and which addresses DHCP gave to whom: what is known of who asks.
import type { Sql } from './connect.ts'

export interface BootClaim {
  id: string
  run: string
  address: string
  /** Where another address has had the script it counts while it is among these; null: it counts. */
  given: readonly string[] | null
}

/**
 * Notes that machines' scripts go to these addresses, one per machine. Answers in no order; `holder`: who had it before this statement. Neither claimed
 * nor held: the run is over, or another one is as fast.
 */
export function claimBoots(sql: Sql, claims: readonly BootClaim[]): Promise<{ id: string; is_claimed: boolean; holder: string | null }[]> {
  return sql<{ id: string; is_claimed: boolean; holder: string | null }[]>`
    with asked as (select * from jsonb_to_recordset(${sql.json(claims as never)}) as a (id text, run text, address text, given jsonb)),
    claimed as (
      insert into boots as b (machine_id, run, since, address)
      -- In one order, so that replicas do not wait for each other.
      select m.id, m.run, m.state_since, asked.address from asked join machines m on m.id = asked.id and m.run = asked.run order by m.id
      on conflict (machine_id) do update set run = excluded.run, since = excluded.since, address = excluded.address
      where (b.run, b.since) is distinct from (excluded.run, excluded.since) or b.address = excluded.address
        or exists (select from asked where asked.id = b.machine_id and jsonb_typeof(asked.given) = 'array' and not asked.given ? b.address)
      returning machine_id)
    select asked.id, claimed.machine_id is not null as is_claimed, b.address as holder
    from asked left join claimed on claimed.machine_id = asked.id
      left join machines m on m.id = asked.id and m.run = asked.run
      left join boots b on b.machine_id = m.id and b.run = m.run and b.since = m.state_since`
}

/** The address that has the script of a machine's run; undefined: none has. */
export async function holderOfBoot(sql: Sql, { id, run }: { id: string; run: string }): Promise<string | undefined> {
  const [row] = await sql<{ address: string }[]>`select address from boots where machine_id = ${id} and run = ${run}`
  return row?.address
}

/** The address that has the script of the machine's task of this moment; undefined: nobody has asked for it. */
export async function holderOfTask(sql: Sql, id: string): Promise<string | undefined> {
  const [row] = await sql<{ address: string }[]>`
    select b.address from boots b join machines m on m.id = b.machine_id and m.run = b.run and m.state_since = b.since where b.machine_id = ${id}`
  return row?.address
}

/** The machine's script is for the first who asks, again. */
export async function forgetBoot(sql: Sql, machine: string): Promise<void> {
  await sql`delete from boots where machine_id = ${machine}`
}

/** Notes that who asked for a machine's script, or as its agent, was refused. */
export async function noteRefusedOrigin(
  sql: Sql,
  { kind, machine, data }: { kind: RefusedOrigin; machine: string; data: { mac?: string; address: string; why: string; times: number } },
): Promise<void> {
  const actor = kind === 'machine.boot-refused' ? 'boot' : 'agent'
  await sql`insert into events (kind, machine_id, actor, data) values (${kind}, ${machine}, ${actor}, ${sql.json(data)})`
}

export type RefusedOrigin = 'machine.boot-refused' | 'machine.agent-refused'

/** Notes what DHCP gave, for so many seconds from now. */
export async function saveLeases(sql: Sql, leases: readonly { mac: string; address: string }[], seconds: number): Promise<void> {
  await sql`
    insert into dhcp_leases (mac, address, until)
    select distinct mac, address, clock_timestamp() + make_interval(secs => ${seconds}::float)
    from jsonb_to_recordset(${sql.json(leases as { mac: string; address: string }[])}) as l (mac text, address text)
    on conflict (mac, address) do update set until = excluded.until`
}

export function leasedTo(sql: Sql, macs: readonly string[]): Promise<{ mac: string; address: string }[]> {
  return sql<{ mac: string; address: string }[]>`
    select mac, address from dhcp_leases where mac = any(${macs as string[]}) and until > clock_timestamp()`
}

export async function forgetOldLeases(sql: Sql): Promise<void> {
  await sql`delete from dhcp_leases where until < clock_timestamp()`
}
