// The power monitor reads every BMC on a jittered schedule, in slots of its own: what people see is what was seen, and when. A BMC that does not
// answer is asked ever less often, so that the dead cost the living nothing.
import { isDatabaseAway } from '../../db/connect.ts'
import { claimChecks, dropClaim, endClaim, type PowerSwitch } from '../../db/power.ts'
import { Bell, runLoop } from '../bell.ts'
import type { Core } from '../core.ts'
import { faultOf, type Switchboard } from './switchboard.ts'

/**
 * Reads under way at once, and how long each may take. Prompt are those of BMCs that answered well last time: a healthy one needs milliseconds, so
 * one that has just died, or a whole rack of them, is out of the way within seconds. All others are read with patience in slots of their own.
 */
const lanes = {
  prompt: { slots: 96, limitMs: 4_000 },
  // What a driver takes to give up by itself, and less than the claim.
  patient: { slots: 128, limitMs: 35_000 },
} as const
type Lane = keyof typeof lanes
const claimMs = 45_000
/** A BMC that needs longer is read with patience next time. */
const slowMs = lanes.prompt.limitMs / 2
/** A dead BMC is asked at least so often. */
const backOffLimitMs = 600_000

/** Runs the monitor until the signal, then waits for the calls in flight. */
export async function runPowerMonitor(core: Core, board: Switchboard, signal: AbortSignal): Promise<void> {
  const inFlight: Record<Lane, Set<Promise<void>>> = { prompt: new Set(), patient: new Set() }
  const monitor = new Monitor(core, board, signal)
  const bell = new Bell()
  const room = (lane: Lane) => lanes[lane].slots - inFlight[lane].size
  const look = async (): Promise<'idle'> => {
    const free = { prompt: room('prompt'), patient: room('patient') }
    if (free.prompt === 0 && free.patient === 0) return 'idle'
    for (const power of await claimChecks(core.sql, { ...free, slow: monitor.slow, claimMs })) {
      const lane = power.is_patient ? 'patient' : 'prompt'
      const check = monitor
        .read(power, lane)
        .catch(error => core.log.error({ err: error, machine: power.machine_id }, 'what was seen of a BMC could not be stored'))
        .finally(() => {
          inFlight[lane].delete(check)
          // Somebody may be waiting for a slot. Not at the first free one: a look for each would cost more than the reading.
          if (inFlight[lane].size === lanes[lane].slots / 2) bell.ring()
        })
      inFlight[lane].add(check)
    }
    return 'idle'
  }
  await runLoop({ name: 'power monitor', bell, everyMs: 250, signal, log: core.log, look })
  await Promise.all([...inFlight.prompt, ...inFlight.patient])
}

class Monitor {
  readonly #core: Core
  readonly #board: Switchboard
  readonly #signal: AbortSignal
  /** Machines whose BMC answers, but not promptly. In memory only: to learn it anew costs one short read. */
  readonly #slow = new Set<string>()

  constructor(core: Core, board: Switchboard, signal: AbortSignal) {
    this.#core = core
    this.#board = board
    this.#signal = signal
  }

  get slow(): readonly string[] {
    return [...this.#slow]
  }

  async read(power: PowerSwitch, lane: Lane): Promise<void> {
    const { rules, sql, bells } = this.#core
    const claim = { machine: power.machine_id, token: power.claim_token }
    const startedAt = performance.now()
    const limit = AbortSignal.timeout(lanes[lane].limitMs)
    const signal = AbortSignal.any([this.#signal, limit])
    try {
      const seen = await this.#board.use(power, session => session.power({ signal }))
      if (performance.now() - startedAt > slowMs) this.#slow.add(power.machine_id)
      else this.#slow.delete(power.machine_id)
      const part = jitter()
      await endClaim(sql, {
        ...claim,
        power: seen,
        fault: null,
        againMs: rules.powerCheckMs * part,
        inTransitionMs: rules.powerTransitionMs * part,
      })
      if (seen !== power.observed) {
        bells.engine.ring()
        bells.log.ring()
      }
    } catch (error) {
      if (this.#signal.aborted) {
        await dropClaim(sql, claim)
        return
      }
      // That is no fault of the BMC.
      if (isDatabaseAway(error)) throw error
      if (lane === 'prompt' && limit.aborted) {
        // Not yet a fault: it is due still, and read with patience at the next look.
        this.#slow.add(power.machine_id)
        await dropClaim(sql, claim)
        return
      }
      // From now on its failures say so.
      this.#slow.delete(power.machine_id)
      const againMs = Math.min(rules.powerCheckMs * 2 ** Math.min(power.failures, 10), backOffLimitMs) * jitter()
      // Also in transition: a dead BMC asked more often costs the living, and tells nothing.
      await endClaim(sql, { ...claim, power: null, fault: faultOf(error), againMs, inTransitionMs: againMs })
    }
  }
}

/** Below 1: the rules say how old what is seen may be, not how old it is on average. Wide enough for 2,000 BMCs not to fall into step. */
const jitter = () => 0.7 + 0.25 * Math.random()
