// What DHCP each replica serves: kept here because a replica answers for the others, and because an address is not to be given out twice.
import type { DhcpServer } from '@muster/shared/contract/partitions'
import type { Sql } from './connect.ts'

/** What a replica serves; neither ranges nor networks beside: nothing. */
export async function saveNetworkServices(sql: Sql, server: DhcpServer): Promise<void> {
  await sql`
    insert into network_services (replica, addresses, ranges, beside, zone)
    values (${server.replica}, ${server.addresses}, ${sql.json(server.ranges)}, ${server.beside ?? []}, ${server.zone})
    on conflict (replica) do update set addresses = excluded.addresses, ranges = excluded.ranges, beside = excluded.beside, zone = excluded.zone`
}

/** Forgets what replicas served that have ended. */
export async function forgetOldServices(sql: Sql): Promise<void> {
  await sql`delete from network_services where replica not in (select name from replicas)`
}

export function networkServices(sql: Sql): Promise<DhcpServer[]> {
  return sql<DhcpServer[]>`
    select replica, addresses, ranges, beside, zone from network_services where ranges <> '[]' or beside <> '{}' order by replica`
}
