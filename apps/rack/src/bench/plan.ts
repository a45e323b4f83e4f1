// How much is measured.

export interface Plan {
  partitions: number
  /** Of each partition. */
  machines: number
  concurrencies: readonly number[]
  /** Of one slice. */
  seconds: number
  warmUpSeconds: number
  /** Slices of each kind; product and floor take turns. */
  rounds: number
  /** The sizes of the federation that P3 compares. */
  sizes: readonly number[]
}

export const wholePlan: Plan = {
  partitions: 50,
  machines: 2000,
  concurrencies: [1, 8, 32],
  seconds: 3,
  warmUpSeconds: 3,
  rounds: 2,
  sizes: [1, 5, 20, 50],
}

export const quickPlan: Plan = {
  partitions: 3,
  machines: 300,
  concurrencies: [1, 4],
  seconds: 0.3,
  warmUpSeconds: 0.2,
  rounds: 1,
  sizes: [1, 3],
}
