// The power monitor reads every BMC on a jittered schedule, in slots of its own: what people see is what was seen, and when. A BMC that does not
// answer is asked ever less often, so that the dead cost the living nothing.
import { isDatabaseAway } from '../../db/connect.ts'
import { claimChecks, dropClaim, endClaim, type PowerSwitch } from '../../db/power.ts'
import { Bell, runLoop } from '../bell.ts'
import type { Core } from '../core.ts'
import { faultOf, type Switchboard } from './switchboard.ts'

const slots = 64
const claimMs = 45_000
/** A dead BMC is asked at least so often. */
const backOffLimitMs = 600_000

/** Runs the monitor until the signal, then waits for the calls in flight. */
export async function runPowerMonitor(core: Core, board: Switchboard, signal: AbortSignal): Promise<void> {
  const inFlight = new Set<Promise<void>>()
  const bell = new Bell()
  const look = async (): Promise<'idle'> => {
    const due = inFlight.size >= slots ? [] : await claimChecks(core.sql, { limit: slots - inFlight.size, claimMs })
    for (const power of due) {
      const check = read(core, board, power, signal)
        .catch(error => core.log.error({ err: error, machine: power.machine_id }, 'what was seen of a BMC could not be stored'))
        .finally(() => {
          inFlight.delete(check)
          // A slot is free: somebody may be waiting for it.
          if (inFlight.size === slots - 1) bell.ring()
        })
      inFlight.add(check)
    }
    return 'idle'
  }
  await runLoop({ name: 'power monitor', bell, everyMs: 250, signal, log: core.log, look })
  await Promise.all(inFlight)
}

async function read(core: Core, board: Switchboard, power: PowerSwitch, signal: AbortSignal): Promise<void> {
  const claim = { machine: power.machine_id, token: power.claim_token }
  const jitter = 0.5 + Math.random()
  try {
    const seen = await board.use(power, session => session.power({ signal }))
    await endClaim(core.sql, {
      ...claim,
      power: seen,
      fault: null,
      againMs: core.rules.powerCheckMs * jitter,
      inTransitionMs: core.rules.powerTransitionMs * jitter,
    })
    if (seen !== power.observed) {
      core.bells.engine.ring()
      core.bells.log.ring()
    }
  } catch (error) {
    if (signal.aborted) {
      await dropClaim(core.sql, claim)
      return
    }
    // That is no fault of the BMC.
    if (isDatabaseAway(error)) throw error
    const againMs = Math.min(core.rules.powerCheckMs * 2 ** Math.min(power.failures, 10), backOffLimitMs) * jitter
    // Also in transition: a dead BMC asked more often costs the living, and tells nothing.
    await endClaim(core.sql, { ...claim, power: null, fault: faultOf(error), againMs, inTransitionMs: againMs })
  }
}
