// The power monitor reads every BMC on a jittered schedule, in slots of its own: what people see is what was seen, and when. A BMC that does not
// answer is asked ever less often, so that the dead cost the living nothing.
import { isDatabaseAway } from '../../db/connect.ts'
import { claimChecks, dropClaim, endClaim, type PowerSwitch } from '../../db/power.ts'
import { Bell, runLoop } from '../bell.ts'
import type { Core } from '../core.ts'
import { eventsPath } from './events.ts'
import { faultOf, type Switchboard } from './switchboard.ts'

/**
 * Reads under way at once. Prompt are those of BMCs that answered well last time; a healthy one needs milliseconds. One that has just died, or a whole
 * rack of them, leaves its slot after `promptMs` and is waited for among the patient, where those that failed or were slow last time begin.
 */
const slots = { prompt: 96, patient: 128 } as const
const promptMs = 4_000
/** A BMC that needs longer is read among the patient next time. */
const slowMs = promptMs / 2
const claimMs = 45_000
/** Less than the claim, and more than a driver takes to give up by itself. */
const readLimitMs = 35_000
/** A dead BMC is asked at least so often. */
const backOffLimitMs = 600_000

/** BMCs forget subscriptions when they restart; one that cannot be subscribed to may be able after an update of its firmware. */
const subscribeEveryMs = 600_000

/**
 * Runs the monitor until the signal, then waits for the calls in flight. `baseUrl`: where BMCs that can tell of their own accord are to post;
 * undefined: they are only asked.
 */
export async function runPowerMonitor(core: Core, board: Switchboard, signal: AbortSignal, baseUrl?: () => string): Promise<void> {
  const inFlight = { prompt: new Set<Promise<void>>(), patient: new Set<Promise<void>>() }
  const monitor = new Monitor(core, board, signal, baseUrl)
  const bell = new Bell()
  const leave = (lane: keyof typeof slots, check: Promise<void>) => {
    const wasThere = inFlight[lane].delete(check)
    // Somebody may be waiting for a slot. Not at the first free one: a look for each would cost more than the reading.
    if (wasThere && inFlight[lane].size === slots[lane] / 2) bell.ring()
    return wasThere
  }
  const look = async (): Promise<'idle'> => {
    const free = {
      prompt: Math.max(0, slots.prompt - inFlight.prompt.size),
      patient: Math.max(0, slots.patient - inFlight.patient.size),
    }
    if (free.prompt === 0 && free.patient === 0) return 'idle'
    for (const power of await claimChecks(core.sql, { ...free, slow: monitor.slow, claimMs })) {
      const check = monitor
        .read(power)
        .catch(error => core.log.error({ err: error, machine: power.machine_id }, 'what was seen of a BMC could not be stored'))
        .finally(() => {
          clearTimeout(patience)
          leave('prompt', check)
          leave('patient', check)
        })
      // Not cut off: a login given up half way would stay behind on the BMC, beside the next one.
      const patience = setTimeout(() => {
        if (leave('prompt', check)) inFlight.patient.add(check)
      }, promptMs)
      inFlight[power.is_patient ? 'patient' : 'prompt'].add(check)
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
  /** When each BMC was last asked to post its events; the schedule stays as it is: what is pushed is seen sooner, what is lost is seen all the same. */
  readonly #subscribedAt = new Map<string, number>()
  readonly #baseUrl: (() => string) | undefined

  constructor(core: Core, board: Switchboard, signal: AbortSignal, baseUrl: (() => string) | undefined) {
    this.#baseUrl = baseUrl
    this.#core = core
    this.#board = board
    this.#signal = signal
  }

  get slow(): readonly string[] {
    return [...this.#slow]
  }

  /** From time to time, and within the claim: a BMC has one caller. Its refusal is no fault: it is asked on schedule. */
  async #subscribe(power: PowerSwitch, signal: AbortSignal): Promise<void> {
    const { machine_id: machine } = power
    const at = this.#subscribedAt.get(machine)
    if (!this.#baseUrl || (at !== undefined && Date.now() - at < subscribeEveryMs)) return
    const url = `${this.#baseUrl()}${eventsPath(this.#core.seal, machine)}`
    this.#subscribedAt.set(machine, Date.now())
    try {
      await this.#board.use(power, async session => session.capabilities.subscribe?.({ url, context: `muster ${machine}`, signal }))
    } catch (error) {
      if (this.#signal.aborted) throw error
      this.#core.log.debug({ err: error, machine }, 'this BMC does not tell of its own accord; it is asked on schedule')
    }
  }

  async read(power: PowerSwitch): Promise<void> {
    const { rules, sql, bells } = this.#core
    const claim = { machine: power.machine_id, token: power.claim_token }
    const startedAt = performance.now()
    const signal = AbortSignal.any([this.#signal, AbortSignal.timeout(readLimitMs)])
    try {
      const seen = await this.#board.use(power, session => session.power({ signal }))
      if (performance.now() - startedAt > slowMs) this.#slow.add(power.machine_id)
      else this.#slow.delete(power.machine_id)
      await this.#subscribe(power, signal)
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
      // From now on its failures say so.
      this.#slow.delete(power.machine_id)
      const againMs = Math.min(rules.powerCheckMs * 2 ** Math.min(power.failures, 10), backOffLimitMs) * jitter()
      // Also in transition: a dead BMC asked more often costs the living, and tells nothing.
      await endClaim(sql, { ...claim, power: null, fault: faultOf(error), againMs, inTransitionMs: againMs })
    }
  }
}

/** Below 1: the rules say how old what is seen may be, not how old it is on average. Wide enough for 2,000 BMCs not to fall into step. */
export const jitter = () => 0.7 + 0.25 * Math.random()
