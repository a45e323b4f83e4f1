// Allocation in one partition: offers from memory, holds and confirms in the database. A front asks these over the bus; the partition's own API
// runs the same three steps by itself (a federation of one).
import { withinGrants } from '@muster/shared/allocation/grants'
import type { NearMiss } from '@muster/shared/allocation/matcher'
import { beyondQuota, type Counted, type CountedSet, type Limit, limitsFor } from '@muster/shared/allocation/quotas'
import type { BusCallAnswer, BusCallInput, KeyRecord, Offer, OfferRequest } from '@muster/shared/bus/protocol'
import { protocolVersion } from '@muster/shared/bus/protocol'
import type { Allocation } from '@muster/shared/contract/allocations'
import type { Caller } from '@muster/shared/contract/call'
import { Refusal } from '@muster/shared/errors'
import * as db from '../db/allocations.ts'
import { findKey, rememberKey } from '../db/keys.ts'
import { findMachines, type MachineRow } from '../db/machines.ts'
import type { Core } from './core.ts'
import { confirmHold, endHolds, holdMachine, holdMachines, moveMachine } from './move.ts'
import { viewOf } from './view.ts'

/** Rounds of "the offered machine is gone, take the next": each loses only machines that somebody else won. */
const holdRounds = 5
/** Alternatives tried in one statement beside those offered. */
const alternatives = 8

/** The offer of this partition, from memory: nothing is held. */
export function offerFor(core: Core, replica: { name: string; epoch: number }, request: OfferRequest): Offer {
  const { caller } = request
  const found = core.memory.candidates.find({
    requestId: request.id,
    constraints: withinGrants(request.constraints, caller),
    strategy: request.strategy,
    count: request.count,
    purpose: request.purpose,
    now: Date.now(),
  })
  return {
    v: protocolVersion,
    partition: core.partition,
    replica: replica.name,
    epoch: replica.epoch,
    machines: found.machines,
    matching: found.matching,
    ...(found.why && { why: caller.pools ? { ...found.why, nearest: found.why.nearest.filter(isWithin) } : found.why }),
  }
}

/** A machine of a pool that is not the caller's is not named to it. */
const isWithin = ({ misses }: NearMiss) => !misses.includes('pools')

/** The quotas that bind an owner, as this partition knows them. */
function limitsHere({ configuration }: Core, owner: string): Limit[] {
  return configuration.content ? limitsFor(configuration.content.documents, owner) : []
}

/** How many machines each set of owners has here. */
export function countOwned(core: Core, sets: readonly CountedSet[], allocation: string | null = null): Promise<Counted[]> {
  return Promise.all(sets.map(set => db.countOwned(core.sql, set, allocation)))
}

/** For a dry run: throws quota-exceeded where `wanted` more would be too many, whichever pool they are of. */
export async function refuseBeyondQuota(core: Core, owner: string, wanted: number): Promise<void> {
  const limits = limitsHere(core, owner).filter(({ pool }) => pool === undefined)
  const counts = await countOwned(
    core,
    limits.map(({ owners }) => ({ owners })),
  )
  for (const [index, limit] of limits.entries()) {
    const has = counts[index]?.machines ?? 0
    if (has + wanted > limit.most) throw beyondQuota(limit, { has, wanted, where: `in partition ${core.partition}` })
  }
}

/** Holds `wanted` machines: the named ones if they are still free, else the next matches. Throws no-match, quota-exceeded. */
export async function hold(core: Core, caller: Caller, input: BusCallInput<'allocation.hold'>): Promise<readonly { id: string }[]> {
  const { allocation, strategy, count, note, createdAt } = input
  const constraints = withinGrants(input.constraints, caller)
  const wish = { allocation, owner: caller.name, strategy, count, note, constraints, createdAt: new Date(createdAt) }
  const limits = limitsHere(core, caller.name)
  const [only] = input.machines
  if (input.wanted === 1 && only !== undefined && limits.length === 0) {
    const held = await holdMachine(core, { ...wish, machine: only })
    if (held) return [held]
  }
  const tried = new Set<string>()
  let machines = input.machines
  for (let round = 0; round < holdRounds; round++) {
    const others = core.memory.candidates.find({
      requestId: input.allocation,
      constraints,
      strategy: input.strategy,
      count: input.wanted + (round === 0 && machines.length >= input.wanted ? 0 : alternatives),
      purpose: 'look',
      except: new Set([...tried, ...machines]),
      now: Date.now(),
    }).machines
    const wishes = [...machines, ...others.map(({ id }) => id)]
    if (wishes.length < input.wanted) break
    const rows = await holdMachines(core, { ...wish, machines: wishes, wanted: input.wanted }, limits)
    if (rows.length > 0) return rows
    const standing = await standingHold(core, input.allocation)
    if (standing) return standing
    // Memory was wrong about some of them: look at the rows, so that the next round does not ask again for what is gone.
    for (const row of await findMachines(core.sql, wishes)) {
      core.memory.put(row)
      if (row.state !== 'ready') tried.add(row.id)
    }
    machines = machines.filter(id => !tried.has(id))
  }
  // The machines this hold took earlier are in nobody's memory as free.
  const standing = await standingHold(core, input.allocation)
  if (standing) return standing
  throw new Refusal('no-match', `partition ${core.partition} has no ${input.wanted} free machines that match any more`)
}

/** A repeated hold of the same allocation finds its machines held already. */
async function standingHold(core: Core, allocation: string): Promise<readonly { id: string }[] | undefined> {
  const row = await db.findAllocation(core.sql, allocation)
  return row?.state === 'held' ? row.machine_ids.map(id => ({ id })) : undefined
}

/** Confirms a hold; a repeat answers the same. Throws nothing-allocated when the hold is gone: it can never be confirmed any more. */
export async function confirm(core: Core, allocation: string): Promise<Allocation> {
  const confirmed = await confirmHold(core, allocation)
  if (confirmed) return allocationView(core, confirmed.allocation, confirmed.machines)
  const row = await db.findAllocation(core.sql, allocation)
  // Also after its release: a late retry must not start anew.
  if (row?.state === 'confirmed' || row?.state === 'released')
    return allocationView(core, row, await db.machinesOfAllocations(core.sql, [allocation]))
  if (row?.state === 'held') await endHolds(core, { allocation })
  throw new Refusal('nothing-allocated', `the hold ${allocation} in partition ${core.partition} is gone: it was not confirmed in time`)
}

/** Gives a hold back; what is confirmed already is released or kept, as asked. Answers how many machines. Idempotent. */
export async function drop(core: Core, actor: string, input: BusCallInput<'allocation.drop'>): Promise<number> {
  const { allocation } = input
  const freed = await endHolds(core, { allocation })
  if (input.confirmed === 'keep') return freed.length
  const machines = await db.machinesOfAllocations(core.sql, [allocation])
  for (const machine of machines) await moveMachine(core, { id: machine.id, move: 'release', actor, allocation })
  return freed.length + machines.length
}

export function recall(core: Core, key: string): Promise<KeyRecord | null> {
  return findKey(core.sql, key)
}

export function remember(core: Core, input: BusCallInput<'key.remember'>): Promise<BusCallAnswer<'key.remember'>> {
  return rememberKey(core.sql, input.record, input.replaces)
}

/** A row and its machines as the API shows them. */
export function allocationView(
  core: Core,
  row: db.Confirmed['allocation'] | db.AllocationRow,
  machines: readonly MachineRow[],
): Allocation {
  return {
    id: row.id,
    owner: row.owner,
    state: row.state === 'confirmed' && machines.length < row.count ? 'partial' : row.state === 'dropped' ? 'released' : row.state,
    strategy: row.strategy,
    count: row.count,
    note: row.note,
    createdAt: row.created_at.toISOString(),
    machines: machines.map(machine => viewOf(machine, core.partition)),
    dryRun: false,
  }
}
