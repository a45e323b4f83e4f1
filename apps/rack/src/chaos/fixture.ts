// Machines for a run beyond those of the virtual rack: rows written straight into a partition's database, `ready`, without a power driver.
// The one place outside apps/partition that writes its tables: through the API such a machine stays `new`, because commissioning needs power.
// What is to be tested here is who gets which machine; releasing these costs no call to a BMC, so that there is time for many allocations.
import { newMachineId } from '@muster/shared/ids'
import postgres from 'postgres'
import type { Chance } from './random.ts'

const sizes = [4, 8, 16, 32] as const

/** Inserts ready machines; the event of each lets the running replicas learn of it. */
export async function insertReadyMachines(
  database: string,
  { partition, machines, random }: { partition: string; machines: number; random: Chance },
): Promise<void> {
  const sql = postgres(database, { max: 1, onnotice: () => {} })
  try {
    for (let index = 0; index < machines; index++) {
      const id = newMachineId(partition)
      const cpus = random.pick(sizes)
      const tags = [`t${random.between(0, 4)}`, `t${random.between(0, 4)}`].filter((tag, place, all) => all.indexOf(tag) === place)
      await sql`
        with added as (
          insert into machines (id, hostname, state, arch, cpus, memory_mib, pool, zone, rack, tags)
          values (${id}, ${id}, 'ready', 'amd64', ${cpus}, ${cpus * 4096}, 'default', ${`z${random.between(1, 3)}`},
            ${`r${random.between(1, 6)}`}, ${tags})
          returning id),
        power as (insert into machine_power (machine_id, observed) select id, 'off' from added)
        insert into events (kind, machine_id, actor, data) select 'machine.created', id, 'fixture', '{"state":"ready"}' from added`
    }
  } finally {
    await sql.end()
  }
}
