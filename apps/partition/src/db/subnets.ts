// Subnets, the addresses of them that are not given out, and those that DHCP gives to anybody.
import type { Sql } from './connect.ts'

export interface AddressRange {
  from: string
  to: string
  note: string
}

export interface SubnetRow {
  name: string
  cidr: string
  vlan: number | null
  gateway: string | null
  nameservers: string[]
  description: string
  reserved: AddressRange[]
  dynamic: AddressRange[]
  used: number
}

const rangesFrom = (sql: Sql, table: 'subnet_ranges' | 'dynamic_ranges') => sql`coalesce((
    select jsonb_agg(jsonb_build_object('from', host(first), 'to', host(last), 'note', note) order by first)
    from ${sql(table)} where subnet = s.name), '[]')`
const subnetRow = (sql: Sql) => sql`
  s.name, s.cidr::text as cidr, s.vlan, host(s.gateway) as gateway, s.nameservers, s.description,
  ${rangesFrom(sql, 'subnet_ranges')} as reserved, ${rangesFrom(sql, 'dynamic_ranges')} as dynamic,
  (select count(*) from addresses where subnet = s.name) as used`

export async function findSubnet(sql: Sql, name: string): Promise<SubnetRow | undefined> {
  const [row] = await sql<SubnetRow[]>`select ${subnetRow(sql)} from subnets s where s.name = ${name}`
  return row
}

/**
 * Makes those who choose among its addresses take turns until the transaction ends. Who records a certain address is not held up: the reference of its
 * row needs the subnet's key only. What is read in the same statement would be as it was before the turn; so the subnet is read in the next one.
 */
export async function lockSubnet(sql: Sql, name: string): Promise<void> {
  await sql`select from subnets where name = ${name} for no key update`
}

/** The subnets whose networks have one of these addresses, of every VLAN. */
export function subnetsWith(sql: Sql, addresses: readonly string[]): Promise<SubnetRow[]> {
  return sql<SubnetRow[]>`
    select ${subnetRow(sql)} from subnets s
    where exists (select from unnest(${addresses as string[]}::inet[]) as ip (address) where s.cidr >> ip.address) order by s.name`
}

/** What DHCP is to know of: the subnets that have dynamic ranges, or one of these addresses. */
export function subnetsForDhcp(sql: Sql, addresses: readonly string[]): Promise<SubnetRow[]> {
  return sql<SubnetRow[]>`
    select ${subnetRow(sql)} from subnets s
    where exists (select from dynamic_ranges where subnet = s.name)
      or exists (select from unnest(${addresses as string[]}::inet[]) as ip (address) where s.cidr >> ip.address) order by s.name`
}

/** Subnets of other VLANs that share an address with this one, where this one and they have dynamic ranges. */
export function servedOverlapping(sql: Sql, name: string): Promise<SubnetRow[]> {
  return sql<SubnetRow[]>`
    select ${subnetRow(sql)} from subnets one, subnets s
    where one.name = ${name} and s.name <> one.name and s.cidr && one.cidr
      and exists (select from dynamic_ranges where subnet = one.name) and exists (select from dynamic_ranges where subnet = s.name)
    order by s.name`
}

/** Subnets of the VLAN that share an address with the network, beside the one of that name. */
export function subnetsOverlapping(sql: Sql, subnet: { name: string; cidr: string; vlan: number | null }): Promise<SubnetRow[]> {
  return sql<SubnetRow[]>`
    select ${subnetRow(sql)} from subnets s
    where s.cidr && ${subnet.cidr}::cidr and s.vlan is not distinct from ${subnet.vlan}::integer and s.name <> ${subnet.name} order by s.name`
}

/** By name, at most `limit` behind `after`; `inclusive`: and that one too. */
export function listSubnets(sql: Sql, page: { after: string | null; from: 'behind' | 'at'; limit: number }): Promise<SubnetRow[]> {
  const { after } = page
  const start = after === null ? sql`` : page.from === 'at' ? sql`where s.name >= ${after}` : sql`where s.name > ${after}`
  return sql<SubnetRow[]>`select ${subnetRow(sql)} from subnets s ${start} order by s.name limit ${page.limit}`
}

/** Nobody writes a machine until the transaction ends: a network document that is set meanwhile would not be recorded in the new subnet. */
export async function holdMachineWrites(sql: Sql): Promise<void> {
  await sql`lock table machines in share row exclusive mode`
}

/** Subnets may overlap until the transaction ends: those that change places have to. */
export async function letOverlap(sql: Sql): Promise<void> {
  await sql`set constraints subnets_overlap deferred`
}

/** Creates or changes it. Where another one of its VLAN has some of its addresses, 23P01 (subnets_overlap) is thrown: here, or where {@link letOverlap} was said, by the commit. */
export async function putSubnet(sql: Sql, subnet: Omit<SubnetRow, 'reserved' | 'dynamic' | 'used'>, actor: string): Promise<void> {
  await sql`
    with kept as (
      insert into subnets (name, cidr, vlan, gateway, nameservers, description)
      values (${subnet.name}, ${subnet.cidr}::cidr, ${subnet.vlan}, ${subnet.gateway}::inet, ${subnet.nameservers}, ${subnet.description})
      on conflict (name) do update set cidr = excluded.cidr, vlan = excluded.vlan, gateway = excluded.gateway,
        nameservers = excluded.nameservers, description = excluded.description
      returning name, cidr)
    insert into events (kind, actor, data)
    select 'subnet.changed', ${actor}, jsonb_build_object('subnet', name, 'cidr', cidr::text) from kept`
}

/** Its ranges of that kind are these. */
export async function replaceRanges(
  sql: Sql,
  subnet: string,
  { table, ranges }: { table: 'subnet_ranges' | 'dynamic_ranges'; ranges: readonly AddressRange[] },
): Promise<void> {
  await sql`
    with given as (select * from jsonb_to_recordset(${sql.json(ranges as never)}) as r ("from" inet, "to" inet, note text)),
    gone as (delete from ${sql(table)} where subnet = ${subnet} and not exists (select from given where given.from = first))
    insert into ${sql(table)} (subnet, first, last, note) select ${subnet}, "from", "to", note from given
    on conflict (subnet, first) do update set last = excluded.last, note = excluded.note`
}

/** Forgets it unless an address of it is reserved; those of network documents are forgotten with it. Who asks holds both of the locks above. */
export async function deleteSubnet(sql: Sql, name: string, actor: string): Promise<'deleted' | 'in use'> {
  const rows = await sql`
    with held as (delete from addresses where subnet = ${name} and source = 'document'
      and not exists (select from addresses where subnet = ${name} and source = 'reserved')),
    gone as (delete from subnets where name = ${name}
      and not exists (select from addresses where subnet = ${name} and source = 'reserved') returning name)
    insert into events (kind, actor, data) select 'subnet.deleted', ${actor}, jsonb_build_object('subnet', name) from gone returning id`
  return rows.length === 1 ? 'deleted' : 'in use'
}
