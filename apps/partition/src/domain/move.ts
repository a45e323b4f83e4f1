// The one module that moves a machine's state. A move is read from the life-cycle table, stored by compare-and-set together with its event in
// one statement, and may be repeated: a request that was carried out already joins instead of failing.

import { Together } from '@muster/database/together'
import { beyondQuota, type Limit } from '@muster/shared/allocation/quotas'
import type { DataSource } from '@muster/shared/cloud-init'
import type { Caller } from '@muster/shared/contract/call'
import { Refusal } from '@muster/shared/errors'
import { randomText } from '@muster/shared/ids'
import { lifeCycle, type MoveName, outcomeOf, type State } from '@muster/shared/life-cycle'
import type { Deployment, ErasePolicy, Fault } from '@muster/shared/machine'
import { type Stage, secondsBetween, stagesOf } from '@muster/shared/stages'
import * as allocations from '../db/allocations.ts'
import { inTransaction, type Sql } from '../db/connect.ts'
import { changeMachine, findMachine, type MachineChange, type MachinePatch, type MachineRow } from '../db/machines.ts'
import { type Core, deadlineFor } from './core.ts'
import { eraseMs, eraseOf } from './erase.ts'
import { scriptsMs } from './scripts.ts'
import { recordDocuments } from './static-addresses.ts'
import { leavingRescue } from './steps.ts'

/** Machines are changed by several hands at once; more than this many collisions in a row means that something is wrong. */
const maxAttempts = 10

export interface MoveRequest {
  id: string
  move: MoveName
  /** A caller's name, `agent` or `engine`. */
  actor: string
  /** The engine's and the agent's moves name the state they saw; a machine that has left it since is not moved. */
  from?: State
  /** Who gives back an allocation names it: a machine that has gone to another owner since is not moved. */
  allocation?: string
  /** Looks at the row before the move; throws Refusal to stop it. */
  check?: (row: MachineRow) => void
  /** Kept with the move; a function is given the row that is moved. */
  patch?: MachinePatch | ((row: MachineRow) => MachinePatch)
  /** For a release; the partition's rule where left out. */
  erase?: ErasePolicy
  /** A function is given the row that is moved. */
  fault?: Omit<Fault, 'since'> | ((row: MachineRow) => Promise<Omit<Fault, 'since'> | undefined>)
  data?: Record<string, unknown>
}

/** `moved`; `joined`: an equal request had been carried out; `late`: the machine has left `from`, or `allocation`. */
export interface Moved {
  outcome: 'moved' | 'joined' | 'late'
  row: MachineRow
}

/** Moves the machine. Throws Refusal: not-found, wrong-state, machine-owned, locked, already-taken (an address), or what `check` throws. */
export async function moveMachine(core: Core, request: MoveRequest): Promise<Moved> {
  for (let attempt = 1; attempt <= maxAttempts; attempt++) {
    const row = await existingMachine(core, request.id)
    if (request.from !== undefined && row.state !== request.from) return { outcome: 'late', row }
    if (request.allocation !== undefined && row.allocation_id !== request.allocation) return { outcome: 'late', row }
    const isRequest = lifeCycle[row.state].moves[request.move]?.by === 'request'
    const next = outcomeOf(request.move, { from: row.state, origin: row.origin_state, isOwned: row.allocation_id !== null })
    if (next.kind === 'refused') {
      if (row.last_request === request.move && row.last_request_by === request.actor) return { outcome: 'joined', row }
      throw new Refusal(next.code, `${request.move} ${row.id}: ${next.reason}`, { state: row.state })
    }
    request.check?.(row)
    if (isRequest) refuseLocked(row)
    const erase = next.to === 'releasing' ? eraseOf(row, request.erase ?? core.rules.erase) : null
    const tableMs = deadlineFor(core, next.to)
    const fault = typeof request.fault === 'function' ? await request.fault(row) : request.fault
    const patch = typeof request.patch === 'function' ? request.patch(row) : request.patch
    const deadlineMs = tableMs === undefined ? undefined : tableMs + eraseMs(row, erase) + scriptsMs(core, row, patch?.scripts ?? [])
    const change: MachineChange = {
      id: row.id,
      version: row.version,
      patch: {
        ...(isRequest && { last_request: request.move, last_request_by: request.actor }),
        fault: fault ? { ...fault, since: new Date().toISOString() } : null,
        state: next.to,
        step: 'start',
        waiting_for: null,
        progress: null,
        erase,
        ...(row.rescue_keys.length > 0 && { rescue_keys: [] }),
        ...entering(next.to, request.move, row, erase),
        // Whoever works on it hears so with its next word, and stops.
        ...(request.move === 'abort' && { run: null }),
        ...patch,
      },
      deadlineMs: deadlineMs ?? null,
      attentionMs: 0,
      signal: 'none',
      claim: 'release',
      actor: request.actor,
      events: [
        {
          kind: 'machine.moved',
          data: { move: request.move, from: row.state, to: next.to, ...(fault && { fault }), ...tookOf(row), ...request.data },
        },
      ],
    }
    const changed = await changeWithAddresses(core, row, change)
    if (!changed) continue
    if (request.move === 'released' && row.allocation_id !== null) await allocations.closeAllocation(core.sql, row.allocation_id)
    noteChange(core, changed)
    core.bells.engine.ring()
    return { outcome: 'moved', row: changed }
  }
  throw new Refusal('stale-version', `${request.move} ${request.id}: it was changed ${maxAttempts} times while this was tried`)
}

/** What took how long, of the work that a move ends: the machine forgets it, the log does not. */
function tookOf({ state, state_since: since, deployment }: MachineRow): { took?: { seconds: number; stages?: Stage[] } } {
  if (!statesOfWork.has(state)) return {}
  const now = new Date().toISOString()
  const seconds = secondsBetween(since.toISOString(), now)
  return { took: { seconds, ...(state === 'deploying' && deployment && { stages: stagesOf(deployment, now) }) } }
}

const statesOfWork: ReadonlySet<State> = new Set(['commissioning', 'deploying', 'releasing'])

/** The change; where it is of the deployment's network document too, with the addresses that this has. */
async function changeWithAddresses(core: Core, row: MachineRow, change: MachineChange): Promise<MachineRow | undefined> {
  const { deployment_network: document } = change.patch
  if (document === undefined || (document === null && row.deployment_network === null)) return changeMachine(core.sql, change)
  return inTransaction(core.sql, async sql => {
    const changed = await changeMachine(sql, change)
    if (changed) await recordDocuments(sql, changed, change.actor)
    return changed
  })
}

/** What a machine forgets and gets on its way into a state, beside what every move resets. */
function entering(to: State, move: MoveName, row: MachineRow, erase: MachineRow['erase']): MachinePatch {
  const forgotten: MachinePatch = {
    run: null,
    netboot: true,
    deployment: null,
    deployment_secrets: null,
    deployment_network: null,
    deployment_storage: null,
  }
  switch (to) {
    case 'commissioning':
      return { run: newRun(), netboot: true, scripts: [] }
    case 'deploying':
      return { run: newRun(), netboot: true, disks_used: true }
    case 'rescue':
      // A deployed machine keeps its run, so that what it was told stays readable when it is back. One that was adopted has none.
      return {
        origin_state: row.state,
        run: (row.state === 'deployed' ? row.run : null) ?? newRun(),
        disks_used: row.disks_used || row.owner !== null,
      }
    case 'allocated':
      return move === 'exitRescue' ? { origin_state: null, run: null } : forgotten
    case 'ready':
      if (move === 'released') return { ...forgotten, owner: null, allocation_id: null }
      // The run stays until the next one, so that a repeated "done" of the agent is recognised; there is nothing its token could still do.
      return { origin_state: null }
    case 'deployed':
      // Its disk is to be booted again.
      return {
        disks_used: true,
        ...(move === 'exitRescue' && { origin_state: null, step: leavingRescue, ...(row.deployment === null && { run: null }) }),
      }
    case 'releasing':
      // Its metadata is nobody's from now on, whatever becomes of the machine.
      return { run: erase === null ? null : newRun(), netboot: true }
    case 'new':
    case 'reserved':
    case 'failed_commissioning':
    case 'failed_deployment':
    case 'failed_releasing':
    case 'broken':
    case 'retired':
      return {}
  }
}

const newRun = () => randomText(12)

export async function existingMachine(core: Core, id: string): Promise<MachineRow> {
  const row = await findMachine(core.sql, id)
  if (!row) throw new Refusal('not-found', `there is no machine ${id} in partition ${core.partition}`)
  return row
}

export function refuseLocked(row: MachineRow): void {
  if (row.locked) throw new Refusal('locked', `${row.id} is locked${row.lock_reason ? `: ${row.lock_reason}` : ''}; unlock it first`)
}

/** The refusals that asking for `move` would meet just now. */
export function refuseUnmovable(row: MachineRow, move: MoveName): void {
  const next = outcomeOf(move, { from: row.state, origin: row.origin_state, isOwned: row.allocation_id !== null })
  if (next.kind === 'refused') throw new Refusal(next.code, `${move} ${row.id}: ${next.reason}`, { state: row.state })
  refuseLocked(row)
}

/** Users may touch only what they own; operators everything. */
export function refuseForeign(caller: Caller, row: Pick<MachineRow, 'id' | 'owner'>): void {
  if (caller.role === 'user' && row.owner !== caller.name) throw new Refusal('forbidden', `${row.id} is not yours`)
}

/** Tells this replica's memory and its loops of a changed row; other replicas learn it from the log. */
export function noteChange(core: Core, row: MachineRow): void {
  core.memory.put(row)
  core.bells.log.ring()
}

/** Starts an installation: the move and what belongs to it. */
export function deploymentOf(os: string, dataSource: DataSource): Deployment {
  return { os, dataSource, startedAt: new Date().toISOString(), installedAt: null, deployedAt: null }
}

const nextState = (move: MoveName, from: State): { from: State; to: State } => {
  const outcome = outcomeOf(move, { from, origin: null, isOwned: true })
  if (outcome.kind === 'refused') throw new Error(outcome.reason)
  return { from, to: outcome.to }
}

/** Moves `wanted` of the machines to reserved for one allocation, or none. See db/allocations. Throws quota-exceeded where one of the limits would be passed here. */
export async function holdMachines(
  core: Core,
  hold: Omit<allocations.NewHold, 'holdMs'>,
  limits: readonly Limit[] = [],
): Promise<MachineRow[]> {
  const moved = nextState('hold', 'ready')
  const act = (sql: Sql) => allocations.holdMachines(sql, { ...hold, holdMs: deadlineFor(core, moved.to) as number }, moved)
  const rows =
    limits.length === 0 ? await act(core.sql) : await inTransaction(core.sql, sql => holdWithin(core, sql, { hold, limits, act }))
  for (const row of rows) noteChange(core, row)
  return rows
}

/** Holds and counts as one: whoever holds under the same quota meanwhile waits, so that two who find room for one are not both let in. */
async function holdWithin(
  core: Core,
  sql: Sql,
  {
    hold,
    limits,
    act,
  }: { hold: Pick<allocations.NewHold, 'allocation' | 'wanted'>; limits: readonly Limit[]; act: (sql: Sql) => Promise<MachineRow[]> },
): Promise<MachineRow[]> {
  await allocations.lockQuotas(
    sql,
    limits.map(({ quota, whose }) => `${quota} ${whose}`),
  )
  const rows = await act(sql)
  if (rows.length === 0) return rows
  for (const limit of limits) {
    const { machines, own } = await allocations.countOwned(sql, limit, hold.allocation)
    if (own > 0 && machines > limit.most)
      throw beyondQuota(limit, { has: machines - own, wanted: hold.wanted, where: `in partition ${core.partition}` })
  }
  return rows
}

/** Moves one machine to reserved for one allocation, in one statement with others who ask just then. Undefined where it is not free. */
export function holdMachine(core: Core, hold: SingleHold): Promise<allocations.Held | undefined> {
  return crowdOf(core).holds.add(hold)
}

/** Moves a hold's machines to allocated, all of them or none, in one statement with others. Undefined where it is no hold in time. */
export function confirmHold(core: Core, allocation: string): Promise<allocations.Confirmed | undefined> {
  return crowdOf(core).confirms.add(allocation)
}

type SingleHold = Omit<allocations.SingleHold, 'holdMs'>

interface Crowd {
  holds: Together<SingleHold, allocations.Held | undefined>
  confirms: Together<string, allocations.Confirmed | undefined>
}
const crowds = new WeakMap<Core, Crowd>()

function crowdOf(core: Core): Crowd {
  let crowd = crowds.get(core)
  if (!crowd) {
    crowd = { holds: new Together(holds => holdSingles(core, holds)), confirms: new Together(ids => confirmHolds(core, ids)) }
    crowds.set(core, crowd)
  }
  return crowd
}

async function holdSingles(core: Core, holds: SingleHold[]): Promise<(allocations.Held | undefined)[]> {
  const moved = nextState('hold', 'ready')
  const holdMs = deadlineFor(core, moved.to) as number
  const rows = await allocations.holdSingles(
    core.sql,
    holds.map(hold => ({ ...hold, holdMs })),
    moved,
  )
  for (const held of rows) core.memory.putHeld(held)
  if (rows.length > 0) core.bells.log.ring()
  const byAllocation = new Map(rows.map(held => [held.allocation_id, held]))
  return holds.map(({ allocation }) => byAllocation.get(allocation))
}

async function confirmHolds(core: Core, holds: readonly string[]): Promise<(allocations.Confirmed | undefined)[]> {
  const confirmed = await allocations.confirmHolds(core.sql, holds, nextState('confirm', 'reserved'))
  for (const { machines } of confirmed.values())
    for (const row of machines) {
      noteChange(core, row)
      if (row.attention_at !== null) core.bells.engine.ring()
    }
  return holds.map(hold => confirmed.get(hold))
}

/** Ends a hold before its time, or every hold whose time has passed. Answers the machines that are free again. */
export async function endHolds(core: Core, which: { allocation: string } | 'expired'): Promise<string[]> {
  const move = which === 'expired' ? 'expire' : 'drop'
  const freed = await allocations.endHolds(core.sql, which, { move, ...nextState(move, 'reserved') })
  if (freed.length > 0) core.bells.log.ring()
  return freed.map(({ id }) => id)
}
