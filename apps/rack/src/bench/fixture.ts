// Machines as the benchmarks want them: ready, without a power driver (no BMC is asked anything), and ready again after each round.
import { connect, type Sql } from '@muster/partition/db/connect'
import type { AllocationRequest } from '@muster/shared/contract/allocations'

/** Three quarters of the machines match, and those of 8 cores fit best. */
export function request(strategy: AllocationRequest['strategy']): object {
  return { strategy, constraints: { arch: ['amd64'], cpus: 8, memoryMib: 16_384, zones: ['z1', 'z2'], notTags: ['old'] } }
}

export const matchingShare = 0.75

/** Puts `machines` ready machines into an empty, migrated database. */
export async function fill(sql: Sql, partition: string, machines: number): Promise<void> {
  await sql`
    with added as (
      insert into machines (id, hostname, state, arch, cpus, memory_mib, pool, zone, rack, tags, interfaces, disks)
      select ${partition}::text || '-' || lpad(to_hex(n), 6, '0'), ${partition}::text || '-host-' || n, 'ready', 'amd64',
        4 << (n % 4), 8192 << (n % 4), 'default', 'z' || (1 + n % 2), 'r' || (n % 40), array['gen' || (n % 5), 'lab'],
        jsonb_build_array(jsonb_build_object('mac', ${macPrefix(partition)}::text || ':' || lpad(to_hex(n / 256), 2, '0') || ':' || lpad(to_hex(n % 256), 2, '0'),
          'name', 'eth0', 'speedMbps', 10000, 'subnet', null, 'ip', null)),
        jsonb_build_array(jsonb_build_object('name', 'sda', 'serial', 's' || n, 'model', 'disk', 'sizeBytes', 960000000000, 'kind', 'ssd'))
      from generate_series(0, ${machines - 1}::integer) as n returning id, interfaces),
    addresses as (insert into macs (mac, machine_id) select interfaces -> 0 ->> 'mac', id from added)
    insert into machine_power (machine_id, driver, observed, seen_at) select id, null, 'off', now() from added`
  await sql`analyze`
}

function macPrefix(partition: string): string {
  const number = Number(partition.replace(/\D/g, ''))
  return `52:54:00:${number.toString(16).padStart(2, '0')}`
}

/** All machines ready again, all allocations and events gone. */
export async function reset(sql: Sql): Promise<void> {
  await sql`
    update machines set state = 'ready', state_since = now(), version = version + 1, owner = null, allocation_id = null, deadline_at = null,
      attention_at = null, claimed_until = null, claim_token = nextval('claim_tokens'), waiting_for = null, last_request = null, last_request_by = null
    where state <> 'ready'`
  await sql`truncate allocations, events`
  // Not left to autovacuum, which would come in the middle of a slice.
  await sql`vacuum machines`
}

/** What the rows say was allocated, to be compared with what clients were told. */
export async function allocatedRows(sql: Sql): Promise<{ machines: number; allocations: number; events: number }> {
  const [row] = await sql<{ machines: number; allocations: number; events: number }[]>`
    select (select count(*) from machines where state = 'allocated')::integer as machines,
      (select count(*) from allocations where state = 'confirmed')::integer as allocations,
      (select count(*) from events where data ->> 'to' = 'allocated')::integer as events`
  return row as { machines: number; allocations: number; events: number }
}

export const openFixture = (url: string) => connect(url, { connections: 1, name: 'bench fixture' })
