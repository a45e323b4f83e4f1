// One measured stretch of work: how many, how long, how much CPU. Slices of the same kind are added up.
import type { Costs } from './cpu.ts'

/** What a helper reports of one slice. */
export interface Slice {
  count: number
  elapsedMs: number
  /** Of each operation, in no order. */
  latenciesMs: Float64Array
}

/** When a slice ends: at whichever comes first. */
export interface Extent {
  concurrency: number
  seconds: number
  count: number
}

export class Tally {
  count = 0
  elapsedMs = 0
  readonly costs: Costs = {}
  readonly #latencies: number[] = []

  add({ count, elapsedMs, latenciesMs }: Slice, costs: Costs): void {
    this.count += count
    this.elapsedMs += elapsedMs
    for (const latency of latenciesMs) this.#latencies.push(latency)
    for (const [name, cost] of Object.entries(costs)) this.costs[name] = (this.costs[name] ?? 0) + cost
  }

  get perSecond(): number {
    return (this.count / this.elapsedMs) * 1000
  }

  /** CPU µs per operation, by group. */
  get costEach(): Costs {
    return Object.fromEntries(Object.entries(this.costs).map(([name, cost]) => [name, cost / this.count]))
  }

  /** CPU µs per operation of all groups but those left out. */
  costOfAllBut(...left: string[]): number {
    return Object.entries(this.costEach).reduce((sum, [name, cost]) => (left.includes(name) ? sum : sum + cost), 0)
  }

  latencyMs(share: number): number {
    this.#latencies.sort((a, b) => a - b)
    return this.#latencies[Math.min(this.#latencies.length - 1, Math.floor(this.#latencies.length * share))] ?? 0
  }
}

/** Repeats `act` in `concurrency` strands until the extent is reached. `act` answers false where there is nothing left to do. */
export async function repeat(extent: Extent, act: (strand: number) => Promise<boolean>): Promise<Slice> {
  const latencies: number[] = []
  const startedAt = performance.now()
  const endsAt = startedAt + extent.seconds * 1000
  let left = extent.count
  const strand = async (number: number) => {
    while (left > 0 && performance.now() < endsAt) {
      left--
      const askedAt = performance.now()
      if (!(await act(number))) return
      latencies.push(performance.now() - askedAt)
    }
  }
  await Promise.all(Array.from({ length: extent.concurrency }, (_, number) => strand(number)))
  return { count: latencies.length, elapsedMs: performance.now() - startedAt, latenciesMs: Float64Array.from(latencies) }
}

export const rounded = (value: number, digits = 0) => Math.round(value * 10 ** digits) / 10 ** digits
