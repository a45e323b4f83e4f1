// Slices of allocations through an API, each checked: no refusal, no machine given twice, and the rows say the same as the answers.

import { setTimeout as sleep } from 'node:timers/promises'
import type { AllocationRequest } from '@muster/shared/contract/allocations'
import { costing, type Groups } from './cpu.ts'
import type { Extent, Tally } from './figures.ts'
import { request } from './fixture.ts'
import type { Federated, Rig } from './rig.ts'

export class Allocating {
  readonly #rig: Rig
  readonly #target: Federated
  readonly #given = new Set<string>()
  readonly #say: (line: string) => void
  /** What went wrong: the product's wrong results, not its times. */
  readonly faults: string[] = []
  /** Answers since the last reset. */
  #answered = 0

  constructor(rig: Rig, target: Federated, say: (line: string) => void) {
    this.#rig = rig
    this.#target = target
    this.#say = say
  }

  get answered(): number {
    return this.#answered
  }

  get #groups(): Groups {
    return { client: () => [this.#rig.load.pid], ...this.#target.groups }
  }

  async slice(strategy: AllocationRequest['strategy'], extent: Extent, tally: Tally | undefined): Promise<void> {
    const { load, token } = this.#rig
    const body = JSON.stringify(request(strategy))
    const { result, costs } = await costing(this.#groups, () =>
      load.ask('run', { url: `${this.#target.url}/api/v1/allocations`, token, body, ...extent }),
    )
    for (const [kind, { count, example }] of result.refusals) this.#fault(`${count} of ${result.count} were refused: ${kind}: ${example}`)
    for (const machine of result.machines) {
      if (this.#given.has(machine)) this.#fault(`${machine} was given twice`)
      this.#given.add(machine)
    }
    this.#answered += result.count
    tally?.add(result, costs)
  }

  /** Compares the rows with the answers, and makes all machines ready again. */
  async checkAndReset(): Promise<void> {
    const rows = await this.#target.allocated()
    for (const [what, count] of Object.entries(rows))
      if (count !== this.#given.size) this.#fault(`${this.#given.size} machines were given, and the rows say ${count} ${what}`)
    await this.#target.reset()
    this.#given.clear()
    this.#answered = 0
  }

  /** What the servers cost while nobody asks, in CPU µs a second. */
  async idle(seconds: number): Promise<Record<string, number>> {
    await sleep(500)
    const startedAt = performance.now()
    const { costs } = await costing(this.#target.groups, () => sleep(seconds * 1000))
    const elapsedSeconds = (performance.now() - startedAt) / 1000
    return Object.fromEntries(Object.entries(costs).map(([name, cost]) => [name, cost / elapsedSeconds]))
  }

  #fault(text: string): void {
    this.faults.push(text)
    this.#say(`WRONG: ${text}`)
  }
}
