// The `best` spread in a federation of one: the partition's own API offers, holds and confirms by itself, without the bus.
import { createHash } from 'node:crypto'
import { type CallContext, isStillAsking } from '@muster/server/backend'
import { explain, noMatch } from '@muster/shared/allocation/explanation'
import type { KeyRecord, Offer } from '@muster/shared/bus/protocol'
import { protocolVersion } from '@muster/shared/bus/protocol'
import type { Allocation, AllocationRequest } from '@muster/shared/contract/allocations'
import type { Caller } from '@muster/shared/contract/call'
import { durationMs } from '@muster/shared/duration'
import { Refusal } from '@muster/shared/errors'
import { newAllocationId } from '@muster/shared/ids'
import { findMachines } from '../db/machines.ts'
import * as allocation from '../domain/allocation.ts'
import { Bell } from '../domain/bell.ts'
import type { Core } from '../domain/core.ts'
import { viewOf } from '../domain/view.ts'

/** While a request waits for machines to become ready, it asks again so often. */
const askAgainMs = 500
const waitLimitMs = 3_600_000

/** Allocates, explains (dry run), or refuses: no-match, quota-exceeded, key-reused, nothing-allocated, deadline-passed. */
export async function allocateHere(
  core: Core,
  replica: { name: string; epoch: number },
  input: AllocationRequest,
  context: CallContext,
): Promise<Allocation> {
  const offer = (purpose: 'take' | 'look', caller: Caller) =>
    allocation.offerFor(core, replica, {
      v: protocolVersion,
      id: context.requestId,
      deadline: context.deadline,
      caller,
      strategy: input.strategy,
      count: input.count,
      constraints: input.constraints,
      purpose,
    })
  if (input.dryRun) return dryRun(core, input, context, offer('look', context.caller))
  const key = context.idempotencyKey === undefined ? undefined : `here:${context.caller.name}:${context.idempotencyKey}`
  const earlier = key === undefined ? undefined : await earlierAnswer(core, key, input)
  if (earlier?.kind === 'answer') return earlier.allocation

  let replaces = earlier?.replaces ?? null
  const until = input.wait === undefined ? 0 : Date.now() + Math.min(durationMs(input.wait), waitLimitMs)
  const pause = new Bell()
  for (;;) {
    const caller = context.again()
    if (context.signal.aborted) throw new Refusal('deadline-passed', `${nobodyWaits}; nothing was allocated`)
    const found = offer('take', caller)
    if (found.machines.length >= input.count) {
      const taken = await take(core, { found, input, context, caller, key, replaces }).catch(async error => {
        // What fills the quota may be what this very request, sent twice, was given.
        const twin = isBeyondQuota(error) && key !== undefined ? await earlierAnswer(core, key, input) : undefined
        if (twin?.kind === 'answer') return twin.allocation
        throw error
      })
      if (taken) return taken
    }
    // What there was may have gone to this very request, sent twice.
    const twin = key === undefined ? undefined : await earlierAnswer(core, key, input)
    if (twin?.kind === 'answer') return twin.allocation
    replaces = twin?.replaces ?? null
    if (isStillAsking(context, caller) && Date.now() >= until) throw noMatch(input.count, explain([found]))
    await pause.wait(askAgainMs * (0.75 + Math.random() / 2), context.signal)
  }
}

const isBeyondQuota = (error: unknown) => error instanceof Refusal && error.code === 'quota-exceeded'

const nobodyWaits = 'the caller has gone, or its time ran out'

interface Taking {
  readonly found: Offer
  readonly input: AllocationRequest
  readonly context: CallContext
  /** Who it was offered to. */
  readonly caller: Caller
  readonly key: string | undefined
  readonly replaces: string | null
}

/** Holds, records the key, confirms. Undefined where others were faster, or the caller is another by now. */
async function take(core: Core, { found, input, context, caller, key, replaces }: Taking): Promise<Allocation | undefined> {
  const id = newAllocationId()
  const createdAt = new Date().toISOString()
  try {
    const machines = await allocation.hold(core, caller, {
      allocation: id,
      createdAt,
      strategy: input.strategy,
      count: input.count,
      note: input.note,
      constraints: input.constraints,
      wanted: input.count,
      machines: found.machines.map(machine => machine.id),
    })
    // What was offered to one who has less by now, or nothing, is not kept: the next round looks anew, or ends.
    if (!isStillAsking(context, caller)) {
      await allocation.drop(core, caller.name, { allocation: id, confirmed: 'keep' })
      return undefined
    }
    if (key !== undefined) {
      const record = {
        key,
        requestHash: hashOf(input),
        allocation: id,
        createdAt,
        parts: [{ partition: core.partition, machines: machines.map(({ id }) => id) }],
      }
      const standing = await allocation.remember(core, { record, replaces })
      if (standing.allocation !== id) {
        await allocation.drop(core, caller.name, { allocation: id, confirmed: 'keep' })
        refuseReuse(standing, input)
        return await allocation.confirm(core, standing.allocation)
      }
    }
  } catch (error) {
    if (error instanceof Refusal && error.code === 'no-match') return undefined
    throw error
  }
  const confirmed = await allocation.confirm(core, id)
  if (key !== undefined || !context.signal.aborted) return confirmed
  // Without a key nobody can ask for it again.
  await allocation.drop(core, caller.name, { allocation: id, confirmed: 'release' })
  throw new Refusal('deadline-passed', `${nobodyWaits}; what was allocated was released`)
}

/** What an earlier request with this key came to. */
async function earlierAnswer(
  core: Core,
  key: string,
  input: AllocationRequest,
): Promise<{ kind: 'answer'; allocation: Allocation } | { kind: 'none'; replaces: string | null }> {
  const record = await allocation.recall(core, key)
  if (record === null) return { kind: 'none', replaces: null }
  refuseReuse(record, input)
  try {
    return { kind: 'answer', allocation: await allocation.confirm(core, record.allocation) }
  } catch (error) {
    if (error instanceof Refusal && error.code === 'nothing-allocated') return { kind: 'none', replaces: record.allocation }
    throw error
  }
}

/** Refuses a key that stands for another request. */
function refuseReuse({ requestHash, allocation, createdAt }: KeyRecord, input: AllocationRequest): void {
  if (requestHash === hashOf(input)) return
  const facts = { allocation, usedAt: createdAt }
  throw new Refusal('key-reused', `this Idempotency-Key was used at ${createdAt} for another request`, facts)
}

/** The input has passed its schema, so its members stand in the schema's order: equal requests have equal texts. */
const hashOf = (input: AllocationRequest) => createHash('sha256').update(JSON.stringify(input)).digest('hex')

async function dryRun(core: Core, input: AllocationRequest, context: CallContext, found: Offer): Promise<Allocation> {
  if (found.machines.length < input.count) throw noMatch(input.count, explain([found]))
  await allocation.refuseBeyondQuota(core, context.caller.name, input.count)
  const rows = await findMachines(
    core.sql,
    found.machines.map(({ id }) => id),
  )
  return {
    id: null,
    owner: context.caller.name,
    state: 'released',
    strategy: input.strategy,
    count: input.count,
    note: input.note,
    createdAt: new Date().toISOString(),
    machines: rows.map(row => viewOf(row, core.partition)),
    dryRun: true,
    explanation: explain([found]),
  }
}
