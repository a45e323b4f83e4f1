// Callers that are limited to pools: what they ask about a machine that they may not see is answered as if it were not there, before any handler looks at it. Lists are
// limited by their statements (db/), allocations by what is offered (domain/allocation.ts).
import type { CallContext } from '@muster/server/backend'
import { maySee } from '@muster/shared/allocation/grants'
import type { Caller } from '@muster/shared/contract/call'
import type { CallInput, CallName } from '@muster/shared/contract/contract'
import { Refusal } from '@muster/shared/errors'
import { findMachine } from '../db/machines.ts'
import type { Core } from '../domain/core.ts'
import type { Handlers } from './handlers.ts'

/** Calls that reach beyond the machines of any pool. */
const needAllPools: readonly CallName[] = [
  ...(['tags.put', 'tags.delete', 'pools.put', 'pools.delete', 'zones.put', 'zones.delete'] as const),
  // Networks are not of any pool.
  ...(['subnets.put', 'subnets.delete', 'addresses.reserve', 'addresses.release', 'dhcpHosts.set', 'dhcpHosts.delete'] as const),
  // A definition names its machine by an address: which one, and whose pool, is known only when it is under way.
  ...(['machines.start', 'machines.stop'] as const),
]

/** The same handlers, for callers with grants. */
export function withGrants(core: Core, handlers: Handlers): Handlers {
  const guarded = Object.entries(handlers).map(([name, handle]) => {
    const act = handle as (input: unknown, context: CallContext) => Promise<unknown>
    return [
      name,
      async (input: unknown, context: CallContext) => {
        if (!context.caller.pools) return act(input, context)
        await refuseBeyondGrants(core, name as CallName, input as CallInput<CallName>, context.caller)
        return act(input, context).catch(async (error: unknown) => {
          throw await withoutHolder(core, context.caller, error)
        })
      },
    ]
  })
  return Object.fromEntries(guarded) as Handlers
}

/** Who has an address or a name is said only where the caller may see it; that somebody has it cannot be kept from who is refused. */
async function withoutHolder(core: Core, caller: Caller, error: unknown): Promise<unknown> {
  if (!(error instanceof Refusal) || error.facts.holder === undefined) return error
  const { machine: id } = error.facts.holder as { machine?: string | null }
  const holder = id ? await findMachine(core.sql, id) : undefined
  if (holder && maySee(caller, holder)) return error
  const { address, subnet } = error.facts
  const what = address === undefined ? 'that name' : `${address} of subnet ${subnet}`
  return new Refusal(error.code, `${what} is somebody else's`, { ...(address !== undefined && { address, subnet }) })
}

async function refuseBeyondGrants(core: Core, name: CallName, input: object, caller: Caller): Promise<void> {
  const pools = caller.pools ?? []
  if (needAllPools.includes(name))
    throw new Refusal('forbidden', `${name} needs all pools; this token is limited to ${pools.join(', ') || 'none'}`)
  if (!name.startsWith('machines.')) return
  const { id, pool } = input as { id?: string; pool?: string }
  const row = id === undefined ? undefined : await findMachine(core.sql, id)
  if (row && !maySee(caller, row)) throw new Refusal('not-found', `there is no machine ${id} in partition ${core.partition}`)
  if (pool !== undefined && typeof pool === 'string' && !pools.includes(pool))
    throw new Refusal('forbidden', `this token is limited to the pools ${pools.join(', ') || 'none'}; ${pool} is none of them`)
}
