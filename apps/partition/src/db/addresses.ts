// Addresses that somebody has, with the DNS names that lead to them. That each is given out once is a constraint of the table; who is refused by it
// finds the holder in the row.
import type { Sql } from './connect.ts'
import { isSeenBy, type MachineRow, type SeenBy } from './machines.ts'

export interface AddressRow {
  id: number
  subnet: string
  address: string
  place: string
  source: 'reserved' | 'document'
  /** The machine it was asked for, or the one that has the MAC address. */
  machine_id: string | null
  hostname: string | null
  mac: string | null
  /** Its DNS name, and its aliases. */
  name: string | null
  aliases: string[]
  note: string
  actor: string
  created_at: Date
}

const addressRow = (sql: Sql) => sql`
  a.id, a.subnet, host(a.address) as address, a.place, a.source, m.id as machine_id, m.hostname, a.mac, a.note, a.actor, a.created_at,
  (select name from dns_names where address_id = a.id and place = 0) as name,
  array(select name from dns_names where address_id = a.id and place > 0 order by place) as aliases`
const withMachine = (sql: Sql) =>
  sql`addresses a left join macs on macs.mac = a.mac left join machines m on m.id = coalesce(a.machine_id, macs.machine_id)`

export async function findAddress(sql: Sql, subnet: string, address: string): Promise<AddressRow | undefined> {
  const [row] = await sql<AddressRow[]>`
    select ${addressRow(sql)} from ${withMachine(sql)} where a.subnet = ${subnet} and a.address = ${address}::inet`
  return row
}

/** What is reserved for a MAC address, one per subnet. */
export function reservedFor(sql: Sql, mac: string): Promise<AddressRow[]> {
  return sql<AddressRow[]>`
    select ${addressRow(sql)} from ${withMachine(sql)} where a.mac = ${mac} and a.source = 'reserved' order by a.subnet`
}

/** Every reservation, by address: what DHCP and DNS are told. */
export function allReserved(sql: Sql): Promise<AddressRow[]> {
  return sql<AddressRow[]>`select ${addressRow(sql)} from ${withMachine(sql)} where a.source = 'reserved' order by a.place, a.id`
}

/** What a machine has, by whatever right. */
export function addressesOf(sql: Sql, machine: string): Promise<AddressRow[]> {
  return sql<AddressRow[]>`select ${addressRow(sql)} from ${withMachine(sql)} where m.id = ${machine}`
}

/** Which of these have a holder. */
export function heldAmong(sql: Sql, places: readonly { subnet: string; address: string }[]): Promise<AddressRow[]> {
  return sql<AddressRow[]>`
    select ${addressRow(sql)} from ${withMachine(sql)}
    where (a.subnet, a.address) in (
      select * from unnest(${places.map(({ subnet }) => subnet)}::text[], ${places.map(({ address }) => address)}::inet[]))
    order by a.address`
}

/** Which addresses of the subnet somebody has that are in one of its dynamic ranges, which is told with each. */
export function heldInDynamic(sql: Sql, subnet: string): Promise<(AddressRow & { range: string })[]> {
  return sql<(AddressRow & { range: string })[]>`
    select ${addressRow(sql)}, host(r.first) || ' to ' || host(r.last) as range
    from ${withMachine(sql)} join dynamic_ranges r on r.subnet = a.subnet and a.address between r.first and r.last
    where a.subnet = ${subnet} order by a.address`
}

/** The address that one of these DNS names leads to. */
export async function findByName(sql: Sql, names: readonly string[]): Promise<AddressRow | undefined> {
  const [row] = await sql<AddressRow[]>`
    select ${addressRow(sql)} from ${withMachine(sql)}
    where a.id in (select address_id from dns_names where name = any(${names as string[]})) order by a.id limit 1`
  return row
}

export interface AddressPage {
  filter: { subnet?: string | undefined; machine?: string | undefined; mac?: string | undefined }
  /** Begins the text that ends the order: `PREFIX-ID`. */
  prefix: string
  after: readonly [place: string, id: string] | null
  limit: number
  /** Of machines that this caller may not see there are no addresses; undefined: all are. */
  seenBy: SeenBy | undefined
}

/** At most `limit` behind `after`, by address. */
export function listAddresses(sql: Sql, { filter, prefix, after, limit, seenBy }: AddressPage): Promise<AddressRow[]> {
  const id = sql`(${prefix}::text || '-' || a.id) collate "C"`
  return sql<AddressRow[]>`
    select ${addressRow(sql)} from ${withMachine(sql)}
    where true
      ${filter.subnet === undefined ? sql`` : sql`and a.subnet = ${filter.subnet}`}
      ${filter.machine === undefined ? sql`` : sql`and m.id = ${filter.machine}`}
      ${filter.mac === undefined ? sql`` : sql`and a.mac = ${filter.mac}`}
      and (m.id is null or ${isSeenBy(sql, seenBy)})
      ${after === null ? sql`` : sql`and (a.place, ${id}) > (${after[0]}, ${after[1]})`}
    order by a.place, ${id} limit ${limit}`
}

export interface Reservation {
  subnet: string
  machine: string | null
  mac: string | null
  /** Undefined: its machine's host name will do. */
  name: string | undefined
  aliases: readonly string[]
  note: string
  actor: string
}

/** The statement that keeps the address of `candidate` for somebody, with its names and its event. Nothing is kept where it is taken. */
function keep(sql: Sql, reservation: Reservation, candidate: ReturnType<Sql>) {
  const { subnet, machine, mac, name, aliases, note, actor } = reservation
  const names = [...(name === undefined ? [] : [{ name, place: 0 }]), ...aliases.map((alias, index) => ({ name: alias, place: index + 1 }))]
  return sql<{ candidate: string | null; kept: string | null }[]>`
    with candidate as (${candidate}),
    kept as (
      insert into addresses (subnet, address, source, machine_id, mac, note, actor)
      select ${subnet}, address, 'reserved', ${machine}::text, ${mac}::text, ${note}, ${actor} from candidate
      on conflict do nothing returning id, address),
    named as (
      insert into dns_names (name, address_id, place)
      select n.name, kept.id, n.place from kept, jsonb_to_recordset(${sql.json(names)}) as n (name text, place integer)),
    noted as (
      insert into events (kind, machine_id, actor, data)
      select 'address.reserved', ${machine}::text, ${actor},
        jsonb_build_object('subnet', ${subnet}::text, 'address', host(address), 'mac', ${mac}::text, 'name', ${name ?? null}::text) from kept)
    select (select host(address) from candidate) as candidate, (select host(address) from kept) as kept`
}

/** Reserves a given address. `taken`: it, or another one of the subnet for this MAC address, has a holder. Throws 23505 (dns_names_pkey). */
export async function reserveGiven(sql: Sql, reservation: Reservation, address: string): Promise<'reserved' | 'taken'> {
  const [row] = await keep(sql, reservation, sql`select ${address}::inet as address`)
  return row?.kept === null ? 'taken' : 'reserved'
}

/**
 * Chooses the lowest address of the subnet that is free and reserves it, in one statement; those who choose take turns by lockSubnet. Not given out
 * are the network's own address, the broadcast address, the gateway, reserved ranges, and what DHCP gives to anybody. `full`: there is none; `again`:
 * a network document took it meanwhile, or the MAC address has one. Throws 23505 (dns_names_pkey).
 */
export async function reserveFree(sql: Sql, reservation: Reservation): Promise<{ address: string } | 'full' | 'again'> {
  const [row] = await keep(
    sql,
    reservation,
    sql`
      with here as (select host(cidr)::inet as network, host(broadcast(cidr))::inet as highest, cidr, gateway from subnets where name = ${reservation.subnet}),
      spans (first, last) as (
        select network, network from here
        union all select highest, highest from here where family(cidr) = 4
        union all select gateway, gateway from here where gateway is not null
        union all select first, last from subnet_ranges where subnet = ${reservation.subnet}
        union all select first, last from dynamic_ranges where subnet = ${reservation.subnet}
        union all select address, address from addresses where subnet = ${reservation.subnet}
        union all
          select (r ->> 'from')::inet, (r ->> 'to')::inet from network_services, jsonb_array_elements(ranges) as r, here
          where (r ->> 'from')::inet << here.cidr and coalesce(r ->> 'subnet', ${reservation.subnet}) = ${reservation.subnet}),
      -- Free addresses begin behind the end of a run of spans, and the lowest one is such a beginning.
      runs as (select max(last) over sorted as last, lead(first) over sorted as next from spans window sorted as (order by first, last))
      select runs.last + 1 as address from runs, here
      where runs.last < here.highest and (next is null or next > runs.last + 1) order by runs.last limit 1`,
  )
  if (!row || row.candidate === null) return 'full'
  return row.kept === null ? 'again' : { address: row.kept }
}

/** Forgets a reservation, with its names. Undefined where there is none. */
export async function releaseReserved(sql: Sql, place: { subnet: string; address: string }, actor: string): Promise<number | undefined> {
  const [row] = await sql<{ id: number }[]>`
    with gone as (
      delete from addresses where subnet = ${place.subnet} and address = ${place.address}::inet and source = 'reserved'
      returning id, subnet, address, machine_id),
    noted as (
      insert into events (kind, machine_id, actor, data)
      select 'address.released', machine_id, ${actor}, jsonb_build_object('subnet', subnet, 'address', host(address)) from gone)
    select id from gone`
  return row?.id
}

/** Makes way for a reservation of what a machine has by its network document. */
export async function takeOverDocument(sql: Sql, place: { subnet: string; address: string; machine: string }): Promise<void> {
  await sql`
    delete from addresses
    where subnet = ${place.subnet} and address = ${place.address}::inet and source = 'document' and machine_id = ${place.machine}`
}

/** Forgets what a machine has by its network documents, but for these. */
export async function keepDocumentAddresses(
  sql: Sql,
  machine: string,
  places: readonly { subnet: string; address: string }[],
): Promise<void> {
  await sql`
    delete from addresses where machine_id = ${machine} and source = 'document' and (subnet, address) not in (
      select * from unnest(${places.map(({ subnet }) => subnet)}::text[], ${places.map(({ address }) => address)}::inet[]))`
}

/** Records what machines have by their network documents; what has a holder is left out. Answers how many were recorded. */
export async function recordDocumentAddresses(
  sql: Sql,
  rows: readonly { subnet: string; address: string; machine: string; mac: string | null }[],
  actor: string,
): Promise<number> {
  const recorded = await sql`
    insert into addresses (subnet, address, source, machine_id, mac, actor)
    select subnet, address, 'document', machine, mac, ${actor}
    from jsonb_to_recordset(${sql.json(rows as never)}) as r (subnet text, address inet, machine text, mac text)
    -- Two who record the same addresses meet at the first, not crosswise.
    order by subnet, address
    on conflict (subnet, address) do nothing returning id`
  return recorded.length
}

export type Documented = Pick<MachineRow, 'id' | 'hostname' | 'network' | 'deployment_network'>

/** Machines that have a network document, by their id. */
export function documentedMachines(sql: Sql): Promise<Documented[]> {
  return sql<Documented[]>`
    select id, hostname, network, deployment_network from machines
    where network is not null or deployment_network is not null order by id`
}
