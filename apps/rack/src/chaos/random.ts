// Chance that can be repeated: every random choice of a run comes from its seed.
import { seededRandom } from '../machine/random.ts'

export interface Chance {
  /** From 0 up to, not including, 1. */
  (): number
  /** A whole number from `least` to `most`, both included. */
  between(least: number, most: number): number
  pick<Item>(items: readonly Item[]): Item
  /** True once in `n` on average. */
  oneIn(n: number): boolean
}

/** A stream of chance of its own for each purpose: one client more does not change what the others do. */
export function chance(...seed: (string | number)[]): Chance {
  const random = seededRandom(seed[0] as string, ...(seed.slice(1) as number[]))
  return Object.assign(() => random(), {
    between: (least: number, most: number) => least + Math.floor(random() * (most - least + 1)),
    pick: <Item>(items: readonly Item[]) => items[Math.floor(random() * items.length)] as Item,
    oneIn: (n: number) => random() * n < 1,
  })
}
