// Grants by pool: a caller that is limited to pools sees, gets and changes machines of these pools, and its own.
import type { Caller } from '../contract/call.ts'
import type { Constraints } from './constraints.ts'

/** What may be offered to the caller: what was asked for, within its pools. An empty list of pools matches nothing. */
export function withinGrants(constraints: Constraints, { pools }: Pick<Caller, 'pools'>): Constraints {
  if (pools === undefined) return constraints
  return { ...constraints, pools: constraints.pools?.filter(pool => pools.includes(pool)) ?? [...pools] }
}

export function maySee({ name, pools }: Pick<Caller, 'name' | 'pools'>, machine: { pool: string; owner: string | null }): boolean {
  return pools === undefined || pools.includes(machine.pool) || machine.owner === name
}
