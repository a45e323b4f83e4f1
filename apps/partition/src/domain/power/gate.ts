// One BMC at its own pace: a call at a time, and no more than it can bear, however many machines share it (blades of a chassis, outlets of a PDU). A
// wrapper of the same shape as the session it guards.
import { setTimeout as sleep } from 'node:timers/promises'
import type { Capabilities, PowerSession } from '@muster/drivers/driver'

/** A BMC is a small computer: a few calls at once after a pause, then five a second. */
const bucket = { size: 20, perSecond: 5 }

export class Gate {
  #tail: Promise<unknown> = Promise.resolve()
  #tokens = bucket.size
  #filledAt = performance.now()

  /** Runs `call` when those before it have ended and the BMC may be asked again. */
  pass<T>(call: () => Promise<T>): Promise<T> {
    const turn = this.#tail.then(async () => {
      await this.#token()
      return call()
    })
    // The next one's turn comes whatever became of this one.
    this.#tail = turn.catch(() => {})
    return turn
  }

  async #token(): Promise<void> {
    const now = performance.now()
    this.#tokens = Math.min(bucket.size, this.#tokens + ((now - this.#filledAt) / 1000) * bucket.perSecond)
    this.#filledAt = now
    this.#tokens--
    if (this.#tokens < 0) await sleep((-this.#tokens / bucket.perSecond) * 1000)
  }
}

/** The session, its calls passing the gate of its BMC. */
export function gated(session: PowerSession, gate: Gate): PowerSession {
  const close = () => session.close()
  return {
    target: session.target,
    power: options => gate.pass(() => session.power(options)),
    on: options => gate.pass(() => session.on(options)),
    off: options => gate.pass(() => session.off(options)),
    cycle: options => gate.pass(() => session.cycle(options)),
    capabilities: gatedCapabilities(session.capabilities, gate),
    close,
    [Symbol.asyncDispose]: close,
  }
}

/** Capabilities are functions or objects of functions: each call of one passes. */
function gatedCapabilities(capabilities: Capabilities, gate: Gate): Capabilities {
  const guard = (value: unknown): unknown => {
    if (typeof value === 'function') return (...args: unknown[]) => gate.pass(() => value(...args) as Promise<unknown>)
    if (typeof value === 'object' && value !== null)
      return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, guard(inner)]))
    return value
  }
  return guard(capabilities) as Capabilities
}
