/**
 * The session of drivers that keep no connection between calls: one call after the other, each within a limit, each ended by its
 * caller's signal or by closing, and every Failure turned into a DriverError in this one place.
 */
import { type CallOptions, type Capabilities, DriverError, type PowerContext, type PowerSession, type PowerState } from './driver.ts'
import { cancelled, Failure, unlessAborted } from './failure.ts'

/** A caller's turn: what is done in it stops when the signal fires. */
export interface Turn {
  /** Fires when the caller gave up, the session was closed, or the call's limit has passed. */
  readonly signal: AbortSignal
  readonly log: NonNullable<PowerContext['log']>
  /** What to throw once the signal has fired: `cancelled`, or `silent` if it was the limit. */
  stopped(outcome: 'none' | 'unknown'): Failure
  /** Waits so many milliseconds; throws `stopped` when the signal fires first. */
  pause(ms: number, outcome: 'none' | 'unknown'): Promise<void>
}

/** What a driver must say, each within a turn. They throw Failure. */
export interface Orders {
  power(turn: Turn): Promise<PowerState>
  on(turn: Turn): Promise<void>
  off(turn: Turn, how: 'hard' | 'soft'): Promise<void>
  /** Left out: off, seen off, on. */
  cycle?(turn: Turn): Promise<void>
  reset?(turn: Turn): Promise<void>
  /** Frees what the session holds, after the last call. Must not throw. */
  close?(): Promise<void>
}

export interface SwitchOptions {
  target: string
  context: PowerContext
  orders: Orders
  /** One call in all. */
  limitMs?: number
}

/** One call, a cycle included. Below the 45 s after which a partition takes a caller for dead and gives the order to another. */
export const callLimitMs = 40_000

/** Switches follow an order after 0 to 15 s. */
const offSeenMs = 20_000
const offLook = { firstMs: 100, limitMs: 1000 }

/** Makes the session. Opening does no I/O. */
export function openSwitch({ target, context, orders, limitMs = callLimitMs }: SwitchOptions): PowerSession {
  const turns = new Turns(target, context, limitMs)
  const { cycle = partedCycle(orders), reset } = orders
  const capabilities: Capabilities = reset ? { reset: options => turns.run('reset', turn => reset(turn), options) } : {}
  const close = async () => {
    await turns.close()
    await orders.close?.()
  }
  return {
    target,
    power: options => turns.run('power status', turn => orders.power(turn), options),
    on: options => turns.run('power on', turn => orders.on(turn), options),
    off: options => turns.run(`power off (${options.how})`, turn => orders.off(turn, options.how), options),
    cycle: options => turns.run('power cycle', turn => cycle(turn), options),
    capabilities,
    close,
    [Symbol.asyncDispose]: close,
  }
}

class Turns {
  readonly #target: string
  readonly #context: PowerContext
  readonly #limitMs: number
  readonly #closing = new AbortController()
  #queue: Promise<unknown> = Promise.resolve()

  constructor(target: string, context: PowerContext, limitMs: number) {
    this.#target = target
    this.#context = context
    this.#limitMs = limitMs
  }

  /** Waits for the calls before it, then does `work`. */
  async run<T>(tried: string, work: (turn: Turn) => Promise<T>, options: CallOptions = {}): Promise<T> {
    const gaveUp = AbortSignal.any([this.#closing.signal, this.#context.signal, options.signal].filter(signal => signal !== undefined))
    const before = this.#queue
    const { promise: ended, resolve: end } = Promise.withResolvers<void>()
    this.#queue = before.then(() => ended)
    try {
      await unlessAborted(before, gaveUp)
      return await work(this.#turn(gaveUp))
    } catch (error) {
      if (!(error instanceof Failure)) throw error
      throw new DriverError({ tried, target: this.#target, ...error.facts, cause: error.facts.cause ?? error })
    } finally {
      end()
    }
  }

  #turn(gaveUp: AbortSignal): Turn {
    const signal = AbortSignal.any([gaveUp, AbortSignal.timeout(this.#limitMs)])
    const stopped = (outcome: 'none' | 'unknown') => (gaveUp.aborted ? cancelled(outcome) : overLimit(this.#limitMs, outcome))
    return {
      signal,
      stopped,
      log: (message, facts) => this.#context.log?.(message, { target: this.#target, ...facts }),
      pause: (ms, outcome) => pause(ms, signal, () => stopped(outcome)),
    }
  }

  /** Cancels what runs and waits, and waits until it has ended. */
  async close(): Promise<void> {
    this.#closing.abort()
    await this.#queue
  }
}

/** For switches with no cycle of their own. Once the power may be off, a failure leaves the outcome unknown: the machine may stay off. */
function partedCycle(orders: Orders): (turn: Turn) => Promise<void> {
  return async turn => {
    if ((await orders.power(turn)) === 'off') return orders.on(turn)
    await orders.off(turn, 'hard')
    try {
      await seenOff(orders, turn)
      await orders.on(turn)
    } catch (error) {
      if (!(error instanceof Failure)) throw error
      throw new Failure({ ...error.facts, got: `after the power was cut: ${error.facts.got}`, outcome: 'unknown', cause: error })
    }
  }
}

async function seenOff(orders: Orders, turn: Turn): Promise<void> {
  const deadline = performance.now() + offSeenMs
  let waitMs = offLook.firstMs
  for (;;) {
    const seen = await orders.power(turn)
    if (seen === 'off') return
    if (performance.now() > deadline) {
      throw new Failure({
        kind: 'protocol',
        got: `off was accepted, but after ${offSeenMs / 1000} s the power still reads ${seen}`,
        hint: 'The switch does not do what it says, or reports another machine. Compare with the machine itself.',
        outcome: 'unknown',
      })
    }
    await turn.pause(waitMs, 'unknown')
    waitMs = Math.min(waitMs * 2, offLook.limitMs)
  }
}

function overLimit(limitMs: number, outcome: 'none' | 'unknown'): Failure {
  return new Failure({
    kind: 'silent',
    got: `not done within ${limitMs / 1000} s`,
    hint: 'The far end is slow or gone. Observe the power state before trying again.',
    outcome,
  })
}

function pause(ms: number, signal: AbortSignal, stopped: () => Failure): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(stopped())
    const abort = () => {
      clearTimeout(timer)
      reject(stopped())
    }
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', abort)
      resolve()
    }, ms)
    signal.addEventListener('abort', abort, { once: true })
  })
}
