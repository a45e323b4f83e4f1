// Open conversations with BMCs: one per switch, kept while it is used and closed when it is not, so that a BMC never has two callers from us.
import { DriverError, type PowerSession } from '@muster/drivers/driver'
import { driverOf } from '@muster/drivers/drivers'
import type { Fault } from '@muster/shared/machine'
import type { PowerSwitch } from '../../db/power.ts'
import type { Core } from '../core.ts'
import { openPowerSettings } from '../power-settings.ts'
import { Gate, gated } from './gate.ts'

interface Line {
  session: PowerSession
  /** Which BMC it speaks to. */
  gate: string
  /** Of the settings the session was opened with: new ones need a new session. */
  fingerprint: string
  lastUsed: number
  /** Calls under way: such a line is not closed for being idle, however long they take. */
  users: number
}

/** Conversations kept: above the BMCs of a partition there is no use, below it sessions would come and go. */
const maxLines = 4000
/** A session not used for so long is closed: most BMCs have few slots and drop it after 30–60 s anyway. */
const idleMs = 20_000

export class Switchboard {
  readonly #core: Pick<Core, 'seal' | 'log'>
  readonly #idleMs: number
  readonly #lines = new Map<string, Line>()
  /** By driver and address: several machines may be behind one BMC. */
  readonly #gates = new Map<string, { gate: Gate; lines: number }>()
  readonly #sweeper: NodeJS.Timeout

  constructor(core: Pick<Core, 'seal' | 'log'>, options: { idleMs?: number } = {}) {
    this.#core = core
    this.#idleMs = options.idleMs ?? idleMs
    this.#sweeper = setInterval(() => void this.#sweep(), this.#idleMs / 4)
    this.#sweeper.unref()
  }

  /** Speaks with this switch. Throws DriverError `settings` where the stored settings no longer fit the driver. */
  async use<T>(power: PowerSwitch, act: (session: PowerSession) => Promise<T>): Promise<T> {
    const line = await this.#line(power)
    line.users++
    try {
      return await act(line.session)
    } finally {
      line.users--
      line.lastUsed = Date.now()
    }
  }

  async #line(power: PowerSwitch): Promise<Line> {
    const fingerprint = `${power.driver} ${JSON.stringify(power.settings)} ${power.secrets?.toString('base64') ?? ''}`
    const known = this.#lines.get(power.machine_id)
    if (known?.fingerprint === fingerprint) return known
    if (known) await this.#close(power.machine_id)
    const driver = power.driver === null ? undefined : driverOf(power.driver)
    const settings = driver?.settings.safeParse(openPowerSettings(this.#core, power))
    if (!driver || !settings?.success)
      throw new DriverError({
        kind: 'settings',
        tried: 'open',
        target: `${power.driver ?? 'no driver'} of ${power.machine_id}`,
        got: driver ? 'its stored settings no longer fit the driver' : 'no such driver',
        hint: 'set powerDriver and powerSettings of the machine again',
      })
    if (this.#lines.size >= maxLines) await this.#sweep()
    const session = driver.open(settings.data as never, {
      log: (message, facts) => this.#core.log.debug({ machine: power.machine_id, ...facts }, message),
    })
    const gate = gateKey(power)
    const line = { session: gated(session, this.#gateFor(gate)), gate, fingerprint, lastUsed: Date.now(), users: 0 }
    this.#lines.set(power.machine_id, line)
    return line
  }

  #gateFor(key: string): Gate {
    let entry = this.#gates.get(key)
    if (!entry) {
      entry = { gate: new Gate(), lines: 0 }
      this.#gates.set(key, entry)
    }
    entry.lines++
    return entry.gate
  }

  /** Closes every conversation. */
  async close(): Promise<void> {
    clearInterval(this.#sweeper)
    await Promise.all([...this.#lines.keys()].map(machine => this.#close(machine)))
  }

  async #sweep(): Promise<void> {
    const limit = Date.now() - this.#idleMs
    await Promise.all(
      [...this.#lines].filter(([, line]) => line.users === 0 && line.lastUsed < limit).map(([machine]) => this.#close(machine)),
    )
  }

  async #close(machine: string): Promise<void> {
    const line = this.#lines.get(machine)
    if (!line) return
    this.#lines.delete(machine)
    const entry = this.#gates.get(line.gate)
    if (entry && --entry.lines === 0) this.#gates.delete(line.gate)
    await line.session.close()
  }
}

/** The BMC behind a switch, by driver and address. */
function gateKey(power: PowerSwitch): string {
  const { address } = power.settings
  return `${power.driver} ${typeof address === 'string' ? address : power.machine_id}`
}

/** The BMC said yes, and nothing happened. */
export class UnchangedPower extends Error {
  readonly hint = 'the BMC accepts orders that have no effect: look at the power supply of the machine, or restart its BMC'
}

/** An error of a driver, or of the worker, as a fault that people see. */
export function faultOf(error: unknown): Fault {
  const since = new Date().toISOString()
  if (error instanceof DriverError) return { code: `power-${error.kind}`, message: error.message, since, hint: error.hint }
  if (error instanceof UnchangedPower) return { code: 'power-unchanged', message: error.message, since, hint: error.hint }
  return { code: 'power-internal', message: error instanceof Error ? error.message : String(error), since }
}
