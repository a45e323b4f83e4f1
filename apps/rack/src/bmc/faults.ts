// How a BMC may misbehave, as numbers: what the sad machines of the rack and the tests of reliability turn up.

export interface BmcFaults {
  /** Every datagram is worked on that much later: milliseconds, or a range to draw from. */
  latencyMs: number | readonly [min: number, max: number]
  /** Share of datagrams lost, each way, 0 to 1. */
  dropRate: number
  /** Share of answers sent twice, 0 to 1. */
  duplicateRate: number
  /** Share of requests refused for lack of resources: Open Session with status 01, commands with C0. 0 to 1. */
  busyRate: number
  /** `silent`: holds its address and never answers. */
  life: 'alive' | 'silent'
}

/** A healthy BMC. */
export const noFaults: BmcFaults = { latencyMs: 0, dropRate: 0, duplicateRate: 0, busyRate: 0, life: 'alive' }

/** A latency drawn from what the faults say. `random` gives 0 to 1. */
export function drawLatencyMs({ latencyMs }: BmcFaults, random: () => number): number {
  if (typeof latencyMs === 'number') return latencyMs
  const [min, max] = latencyMs
  return min + random() * (max - min)
}
