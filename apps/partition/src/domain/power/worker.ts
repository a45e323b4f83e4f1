// The power worker carries out orders. Per switch one order at a time, in the whole partition; it observes first, acts only if what is seen
// differs from what is wanted, and believes only what it then sees. A cycle is off, then on, so that each act may be repeated after a crash.

import { setTimeout as sleep } from 'node:timers/promises'
import type { PowerSession } from '@muster/drivers/driver'
import { isDatabaseAway } from '../../db/connect.ts'
import { type ClaimedOrder, claimOrders, endClaim, holdClaim, type PowerAction, queuedAction } from '../../db/power.ts'
import { type Loop, runLoop } from '../bell.ts'
import type { Core } from '../core.ts'
import { faultOf, type Switchboard, UnchangedPower } from './switchboard.ts'

/** A worker that says nothing for so long is dead or frozen, and its order goes to another. Longer than any single call to a BMC. */
const claimMs = 45_000
/** BMCs spoken to at once. Each costs a socket and little else. */
const slots = 200
/** Pauses between looks at a BMC whose power is changing. */
const changeLook = { firstMs: 150, limitMs: 2_000 }
/** An order that the BMC has swallowed is given once more, after this part of the time it may take. */
const repeatAfter = 0.4

/** Runs the worker until the signal, then waits for the calls in flight. */
export async function runPowerWorker(core: Core, board: Switchboard, signal: AbortSignal): Promise<void> {
  const inFlight = new Set<Promise<void>>()
  const look: Loop['look'] = async () => {
    const orders = inFlight.size >= slots ? [] : await claimOrders(core.sql, { limit: Math.min(slots - inFlight.size, 50), claimMs })
    for (const order of orders) {
      const work = carryOut(core, board, order, signal)
        .catch(error =>
          core.log.error({ err: error, machine: order.machine_id }, 'a power order could not be stored; its claim will run out'),
        )
        .finally(() => {
          inFlight.delete(work)
          core.bells.power.ring()
        })
      inFlight.add(work)
    }
    return orders.length === 50 ? 'more' : 'idle'
  }
  await runLoop({ name: 'power worker', bell: core.bells.power, everyMs: 500, signal, log: core.log, look })
  await Promise.all(inFlight)
}

type Ending = { state: 'done' | 'failed' | 'superseded'; power: 'on' | 'off' | 'unknown' | null; error?: unknown }

async function carryOut(core: Core, board: Switchboard, order: ClaimedOrder, signal: AbortSignal): Promise<void> {
  let ending: Ending | 'lost'
  try {
    ending = await board.use(order.switch, session => act(core, session, order, signal))
  } catch (error) {
    // On our way out the claim is left to run out: whoever takes the order over observes first.
    if (signal.aborted) return
    // Nor does it say anything of the BMC that our own database is away: the order goes on when the claim has run out.
    if (isDatabaseAway(error)) throw error
    ending = { state: 'failed', power: null, error }
  }
  if (ending === 'lost') {
    core.log.warn({ machine: order.machine_id, order: order.id }, 'another worker has taken this power order over')
    return
  }
  const fault = ending.error === undefined ? null : faultOf(ending.error)
  await endClaim(
    core.sql,
    {
      machine: order.machine_id,
      token: order.switch.claim_token,
      power: ending.power,
      fault,
      againMs: core.rules.powerCheckMs * (0.5 + Math.random()),
    },
    { id: order.id, state: ending.state, fault },
  )
  core.bells.engine.ring()
  core.bells.log.ring()
}

async function act(core: Core, session: PowerSession, order: ClaimedOrder, signal: AbortSignal): Promise<Ending | 'lost'> {
  // What a crash had left to do: a cycle that had come to "on" does not cut the power again.
  const phases: ('off' | 'on')[] = order.action === 'cycle' ? (order.phase === 'on' ? ['on'] : ['off', 'on']) : [order.action]
  for (const phase of phases) {
    const claim = { machine: order.machine_id, token: order.switch.claim_token, claimMs, order: order.id, phase }
    if ((await holdClaim(core.sql, claim)) === 'lost') return 'lost'
    if (phase === 'on' && order.boot !== null) await setBoot(core, session, order.machine_id, order.boot, signal)
    const reached = await bring(core, session, { wanted: phase, order: order.action }, claim, signal)
    if (reached !== 'reached') return reached
  }
  return { state: 'done', power: phases.at(-1) as 'on' | 'off' }
}

/** The next boot's device. A BMC that cannot is no reason to fail: most machines try the network first anyway. */
async function setBoot(core: Core, session: PowerSession, machine: string, device: 'network' | 'disk', signal: AbortSignal): Promise<void> {
  const { bootNext } = session.capabilities
  if (!bootNext) return
  try {
    await bootNext.set({ device, firmware: 'uefi', signal })
  } catch (error) {
    if (signal.aborted) throw error
    core.log.warn({ err: error, machine }, `the boot device of ${machine} could not be set; its own boot order decides`)
  }
}

/** The power an order is to end with: one that waits for the same lets the running one finish. */
const endsIn = (action: PowerAction) => (action === 'off' ? 'off' : 'on')

/** Brings the power to `wanted` and sees it there. */
async function bring(
  core: Core,
  session: PowerSession,
  { wanted, order }: { wanted: 'on' | 'off'; order: PowerAction },
  claim: Parameters<typeof holdClaim>[1],
  signal: AbortSignal,
): Promise<'reached' | 'lost' | Ending> {
  const limitMs = core.rules.powerChangeMs
  // Counted from the first act: a slow BMC needs long to log in to, before anything can change.
  let actedAt: number | undefined
  let acted = 0
  let pauseMs = changeLook.firstMs
  for (;;) {
    const seen = await session.power({ signal })
    if (seen === wanted) return 'reached'
    const elapsedMs = actedAt === undefined ? 0 : Date.now() - actedAt
    if (elapsedMs > limitMs)
      throw new UnchangedPower(
        `power ${wanted} via ${session.target}: accepted, but after ${Math.round(limitMs / 1000)} s it still reads ${seen}`,
      )
    const heldAt = Date.now()
    if ((await holdClaim(core.sql, claim)) === 'lost') return 'lost'
    const next = await queuedAction(core.sql, claim.machine)
    if (next !== undefined && endsIn(next) !== endsIn(order)) return { state: 'superseded', power: seen }
    // A process that was frozen just now may have lost its claim meanwhile: look again before acting.
    if (Date.now() - heldAt > claimMs / 2) continue
    if (acted === 0 || (acted === 1 && elapsedMs > limitMs * repeatAfter)) {
      acted++
      actedAt ??= Date.now()
      await (wanted === 'on' ? session.on({ signal }) : session.off({ how: 'hard', signal }))
    }
    await sleep(pauseMs, undefined, { signal })
    pauseMs = Math.min(pauseMs * 1.6, changeLook.limitMs)
  }
}
