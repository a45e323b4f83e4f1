// Who had which machine when, read from a partition's log: the holds and allocations of each machine, in their order.
import type { LogEntry, PartitionRecord } from './history.ts'

/** A machine's time with one allocation: held, perhaps confirmed, perhaps ended. */
export interface Tenancy {
  readonly partition: string
  readonly machine: string
  readonly allocation: string
  readonly heldAt: number
  confirmedAt?: number
  /** The end of a hold (drop, expire), or the begin of a release. */
  endedAt?: number
  /** The move that ended it. */
  end?: string
}

export interface Replay {
  readonly tenancies: readonly Tenancy[]
  /** Moves that cannot follow on what came before. */
  readonly breaks: readonly string[]
}

/** Follows every machine through the log of its partition. */
export function replay({ name, log }: Pick<PartitionRecord, 'name' | 'log'>): Replay {
  const tenancies: Tenancy[] = []
  const breaks: string[] = []
  const stateOf = new Map<string, string>()
  const tenantOf = new Map<string, Tenancy>()
  const broken = (entry: LogEntry, why: string) => breaks.push(`${entry.machine} at ${name}:${entry.seq} (${entry.move}): ${why}`)

  for (const entry of log) {
    const { machine, move, from, to, allocation, at } = entry
    if (entry.kind !== 'machine.moved' || machine === null || move === undefined || to === undefined) continue
    const before = stateOf.get(machine)
    if (before !== undefined && before !== from) broken(entry, `it says from ${from}, and the move before led to ${before}`)
    stateOf.set(machine, to)
    const tenant = tenantOf.get(machine)
    switch (move) {
      case 'hold': {
        if (tenant) broken(entry, `held for ${allocation} while it belongs to ${tenant.allocation}`)
        const tenancy = { partition: name, machine, allocation: allocation ?? '', heldAt: at }
        tenancies.push(tenancy)
        tenantOf.set(machine, tenancy)
        break
      }
      case 'confirm':
        if (!tenant || tenant.allocation !== allocation)
          broken(entry, `confirmed for ${allocation}, held for ${tenant?.allocation ?? 'nobody'}`)
        else tenant.confirmedAt = at
        break
      case 'drop':
      case 'expire':
        if (from !== 'reserved') break
        if (!tenant || tenant.allocation !== (allocation ?? tenant.allocation))
          broken(entry, `ended for ${allocation}, held for ${tenant?.allocation ?? 'nobody'}`)
        if (tenant) end(tenant, entry)
        tenantOf.delete(machine)
        break
      case 'release':
        if (tenant && tenant.endedAt === undefined) end(tenant, entry)
        break
      case 'released':
        tenantOf.delete(machine)
        break
    }
  }
  return { tenancies, breaks }
}

function end(tenant: Tenancy, { at, move }: LogEntry): void {
  tenant.endedAt = at
  tenant.end = move as string
}
