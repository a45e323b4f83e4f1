// The engine: claims machines that want attention, asks steps.ts what to do, stores the answer. Any replica may run it at any time; a look that
// was overtaken by a newer version or a newer claim stores nothing.
import { forgetBoot } from '../db/boots.ts'
import { claimDueMachines, type MachineRow, saveLook } from '../db/machines.ts'
import { giveOrder, latestOrders, latestOrdersOfEngine, type PowerOrder } from '../db/power.ts'
import { type Loop, runLoop } from './bell.ts'
import type { Core } from './core.ts'
import { endHolds, moveMachine } from './move.ts'
import { decide, type Outcome } from './steps.ts'

/** A look is a few statements; a replica that needs longer has been frozen and its claim may go to another. */
const claimMs = 30_000
/** The end of an order wakes the engine; this is only how long it trusts that. */
const orderLookMs = 15_000
/** Machines looked at in one go: enough to keep the pool of connections busy. */
const batch = 50

/** Runs the engine until the signal. */
export function runEngine(core: Core, signal: AbortSignal): Promise<void> {
  const loop: Loop = { name: 'engine', bell: core.bells.engine, everyMs: 500, signal, log: core.log, look: () => lookAtDue(core) }
  return runLoop(loop)
}

/** One look: expired holds end, then every machine that is due. Answers whether there may be more. */
export async function lookAtDue(core: Core): Promise<'more' | 'idle'> {
  await endHolds(core, 'expired')
  const due = await claimDueMachines(core.sql, { limit: batch, claimMs })
  if (due.length === 0) return 'idle'
  const ids = due.map(({ id }) => id)
  // Read behind the claim, for all at once: most of what the engine asks the database is this.
  const [orders, own] = await Promise.all([latestOrders(core.sql, ids), latestOrdersOfEngine(core.sql, due)])
  const looks = await Promise.allSettled(
    due.map(machine => lookAt(core, machine, { order: orders.get(machine.id), own: own.get(machine.id) })),
  )
  for (const [index, look] of looks.entries())
    if (look.status === 'rejected')
      core.log.error({ err: look.reason, machine: due[index]?.id }, 'the engine stumbled over a machine; its claim will run out')
  return due.length === batch ? 'more' : 'idle'
}

interface Orders {
  /** The latest of all. */
  readonly order: PowerOrder | undefined
  /** The latest of those that the engine gave in this state, and how many it gave. */
  readonly own: { readonly order: PowerOrder; readonly count: number } | undefined
}

async function lookAt(core: Core, machine: MachineRow, { order, own }: Orders): Promise<void> {
  const outcome = decide({
    machine,
    order,
    own: own?.order,
    ownCount: own?.count ?? 0,
    now: new Date(),
    agentSilenceMs: core.rules.agentSilenceMs,
    agentStartMs: core.rules.agentStartMs,
  })
  await store(core, machine, outcome)
}

async function store(core: Core, machine: MachineRow, outcome: Outcome): Promise<void> {
  const look = { id: machine.id, claimToken: machine.claim_token, version: machine.version }
  switch (outcome.kind) {
    case 'rest':
      await saveLook(core.sql, { ...look, waitingFor: null, attentionMs: null })
      return
    case 'wait':
      await saveLook(core.sql, { ...look, waitingFor: outcome.reason, attentionMs: untilDeadline(machine, outcome.againMs) })
      return
    case 'order':
      if (
        !(await giveOrder(core.sql, {
          machine: machine.id,
          ...outcome.wish,
          askedBy: 'engine',
          ...(outcome.drift !== undefined && { reason: outcome.drift }),
          claimToken: machine.claim_token,
        }))
      )
        return
      if (outcome.frees) await forgetBoot(core.sql, machine.id)
      core.bells.power.ring()
      await saveLook(core.sql, { ...look, waitingFor: outcome.reason, attentionMs: untilDeadline(machine, orderLookMs) })
      return
    case 'move':
      await moveMachine(core, { id: machine.id, move: outcome.move, actor: 'engine', from: machine.state })
      return
    case 'fail':
      await moveMachine(core, { id: machine.id, move: outcome.move, actor: 'engine', from: machine.state, fault: outcome.fault })
      return
  }
}

/** A deadline is looked at when it falls due, not up to one look later. */
function untilDeadline(machine: MachineRow, againMs: number): number {
  if (machine.deadline_at === null) return againMs
  return Math.max(0, Math.min(againMs, machine.deadline_at.getTime() - Date.now()))
}
