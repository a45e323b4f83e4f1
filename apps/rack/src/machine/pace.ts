// How long things take in a machine: real figures in one table, and the pace that shortens them. A commissioning takes about three
// minutes at pace `real`, one to two seconds at `quick`.
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises'

export const paces = ['instant', 'quick', 'real'] as const
export type Pace = (typeof paces)[number]

/** Real durations in milliseconds; commissioning's steps have theirs in agent.ts. */
export const durations = {
  /** Power on to the first DHCP request: a server's POST. */
  firmware: 60_000,
  /** Kernel and ephemeral image, once fetched, to the agent's first line. */
  agentStart: 20_000,
  /** Reading disks, interfaces and DMI, and asking the BMC for its address. */
  probe: 5_000,
  /** Writing an image to disk, beside fetching it. */
  writeImage: 60_000,
  writeSeed: 5_000,
  /** Boot loader to cloud-init on an installed disk. */
  osBoot: 40_000,
  /** An operating system that was asked to shut down. */
  shutDown: 10_000,
  /** How often an installer reports, where the server does not ask for more. */
  progress: 5_000,
} as const
export type Stage = keyof typeof durations

const paceTable = {
  instant: { factor: 0, powerEffectMs: 5, cycleOffMs: 5, retry: { firstMs: 20, maxMs: 500 } },
  quick: { factor: 0.005, powerEffectMs: 50, cycleOffMs: 200, retry: { firstMs: 50, maxMs: 2_000 } },
  real: { factor: 1, powerEffectMs: 2_000, cycleOffMs: 5_000, retry: { firstMs: 1_000, maxMs: 15_000 } },
} as const satisfies Record<Pace, { factor: number; powerEffectMs: number; cycleOffMs: number; retry: { firstMs: number; maxMs: number } }>

/** One machine's clock: real durations in, shortened waits out. */
export class Pacer {
  readonly pace: Pace
  /** From a chassis order to its effect. */
  readonly powerEffectMs: number
  /** How long a power cycle leaves the machine off. */
  readonly cycleOffMs: number
  /** Waits between attempts of HTTP requests. */
  readonly retry: { firstMs: number; maxMs: number }
  readonly #random: () => number

  /** `random` (0 to 1) spreads every duration by a tenth each way: no two machines boot in step. */
  constructor(pace: Pace, options: { random: () => number; powerEffectMs?: number | undefined }) {
    this.pace = pace
    this.powerEffectMs = options.powerEffectMs ?? paceTable[pace].powerEffectMs
    this.cycleOffMs = paceTable[pace].cycleOffMs
    this.retry = paceTable[pace].retry
    this.#random = options.random
  }

  /** What `realMs` comes to at this pace. */
  scaledMs(realMs: number): number {
    return realMs * paceTable[this.pace].factor * (0.9 + 0.2 * this.#random())
  }

  /** Waits for one stage. Rejects with AbortError when the power goes. */
  async stage(stage: Stage, signal: AbortSignal): Promise<void> {
    await this.wait(durations[stage], signal)
  }

  /** Waits `realMs`, scaled. Yields to the event loop even where nothing is left of it. */
  async wait(realMs: number, signal: AbortSignal): Promise<void> {
    const ms = this.scaledMs(realMs)
    if (ms < 1) await nextTurn(undefined, { signal })
    else await sleep(ms, undefined, { signal })
  }

  /** Waits before attempt `attempt` (1 is the first repetition): doubling, capped, half of it by chance. */
  async backOff(attempt: number, signal: AbortSignal): Promise<void> {
    const ms = Math.min(this.retry.maxMs, this.retry.firstMs * 2 ** Math.min(attempt - 1, 16))
    await sleep(ms * (0.5 + 0.5 * this.#random()), undefined, { signal })
  }
}
