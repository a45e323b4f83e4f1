// What every story of the lab does with its computer and the API: ask until it is so, within a limit, and note how long each step took.
import { setTimeout as sleep } from 'node:timers/promises'
import { type Client, UnreachableError } from '@muster/shared/client'
import { errorTable, Refusal } from '@muster/shared/errors'
import type { State } from '@muster/shared/life-cycle'
import type { Machine } from '@muster/shared/machine'
import type { Computer } from './computer.ts'

export interface TellerOptions {
  readonly client: Client
  readonly computer: Computer
  readonly stepLimitMs: number
  readonly say: (line: string) => void
  /** Resolves once the partition is not being killed just now. */
  readonly partitionIsUp?: () => Promise<void>
}

export interface StepTime {
  readonly step: string
  readonly ms: number
}

export class Teller {
  readonly times: StepTime[] = []
  readonly #options: TellerOptions

  constructor(options: TellerOptions) {
    this.#options = options
  }

  /** Somebody presses the button; the operator tells where the BMC is. Answers the machine's id. */
  async enlist(): Promise<string> {
    const { client, computer } = this.#options
    computer.press()
    const found = await this.until('its enlistment', async () => {
      const { items } = await client.machines.list({ mac: computer.mac })
      return items[0]
    })
    const { hostname, cpus, memoryMib } = found
    expectThat(
      hostname === `lab-${computer.name}` && cpus === 1 && memoryMib > 500,
      'it is called by its serial number, and its hardware is told',
      { hostname, cpus, memoryMib },
    )
    await this.until('its end, which it makes itself', async () => computer.power() === 'off' || undefined)
    const { address, account } = { address: computer.bmcAddress, account: computer.account }
    await this.order('its power settings', () =>
      client.machines.update({
        id: found.id,
        hostname: computer.name,
        powerDriver: 'ipmi',
        powerSettings: { address, user: account.name, password: account.password },
      }),
    )
    return found.id
  }

  async step<Answer>(name: string, act: () => Promise<Answer>): Promise<Answer> {
    const { computer, say } = this.#options
    const startedAt = performance.now()
    say(`${computer.name}: … ${name}`)
    const answer = await act()
    const ms = Math.round(performance.now() - startedAt)
    this.times.push({ step: name, ms })
    say(`${computer.name}: ${name} after ${(ms / 1000).toFixed(0)} s`)
    return answer
  }

  /**
   * Waits for the state, and for what `look` makes of the machine in it where that is given; what the machine waits for meanwhile is shown. A failure that
   * is not waited for ends the story with its fault. `meanwhile` sees the machine each time, and says whether it is another now.
   */
  async comesTo(
    id: string,
    state: State,
    {
      fits = () => true,
      meanwhile,
    }: { fits?: (machine: Machine) => boolean; meanwhile?: (machine: Machine) => Promise<'disturbed' | 'left alone'> } = {},
  ): Promise<Machine> {
    const { client, computer, say } = this.#options
    let shown = ''
    return this.until(`state ${state}`, async () => {
      const machine = await client.machines.get({ id })
      const text = `${machine.state}${machine.waitingFor ? `: ${machine.waitingFor}` : ''}`
      if (text !== shown) say(`${computer.name}:   ${text}`)
      shown = text
      if ((await meanwhile?.(machine)) === 'disturbed') return undefined
      if (machine.state === state && fits(machine)) return machine
      if (machine.state.startsWith('failed_') && machine.state !== state)
        throw new Error(`${machine.state}: ${JSON.stringify(machine.fault)}`)
      return undefined
    })
  }

  /** Asks for a change, once the partition is there: another story may be killing it just now. */
  order<Answer>(what: string, ask: () => Promise<Answer | undefined>): Promise<Answer & {}> {
    return this.until(what, async () => {
      await this.#options.partitionIsUp?.()
      return ask()
    })
  }

  async until<Answer>(what: string, look: () => Promise<Answer | undefined>): Promise<Answer & {}> {
    const { computer, stepLimitMs } = this.#options
    const until = Date.now() + stepLimitMs
    for (;;) {
      const found = await look().catch((error: unknown) => {
        if (isPassing(error)) return undefined
        throw error
      })
      if (found !== undefined && found !== null) return found
      if (Date.now() > until) throw new Error(`${computer.name}: ${what} did not come within ${stepLimitMs / 1000} s`)
      await sleep(500)
    }
  }
}

/** The partition is being killed and started again: it is away, or a front says that it is silent. */
function isPassing(error: unknown): boolean {
  if (error instanceof UnreachableError) return true
  return error instanceof Refusal && errorTable[error.code].status >= 500 && errorTable[error.code].retryable === 'yes'
}

export function expectThat(isTrue: boolean, what: string, facts: object = {}): void {
  if (!isTrue) throw new Error(`not so: ${what} ${JSON.stringify(facts)}`)
}
