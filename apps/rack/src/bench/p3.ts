// P3: what an allocation costs as the federation grows.
import { Allocating } from './allocate.ts'
import { rounded, Tally } from './figures.ts'
import { matchingShare } from './fixture.ts'
import type { P1 } from './p1.ts'
import type { Plan } from './plan.ts'
import type { Rig } from './rig.ts'
import { table } from './table.ts'

const concurrency = 8

export async function measureP3(rig: Rig, plan: Plan, say: (line: string) => void): Promise<P1> {
  const sizes: Record<string, number>[] = []
  const faults: string[] = []
  for (const partitions of plan.sizes) {
    say(`P3: ${partitions} partitions`)
    const federated = await rig.federate(partitions)
    const allocating = new Allocating(rig, federated, line => say(`P3: ${line}`))
    try {
      const count = Math.floor(partitions * plan.machines * matchingShare * 0.6)
      await allocating.slice('best', { concurrency, count, seconds: plan.warmUpSeconds }, undefined)
      await allocating.checkAndReset()
      const idle = await allocating.idle(plan.warmUpSeconds)
      const tally = new Tally()
      for (let round = 0; round < plan.rounds * 2; round++) {
        await allocating.slice('best', { concurrency, count, seconds: plan.seconds }, tally)
        await allocating.checkAndReset()
      }
      // Above what they cost anyway: 50 partitions idle fifty times as much as one, whoever asks.
      const net = (group: string) => (tally.costEach[group] ?? 0) - ((idle[group] ?? 0) * tally.elapsedMs) / 1000 / tally.count
      sizes.push({
        partitions,
        perSecond: tally.perSecond,
        front: tally.costEach.front ?? 0,
        frontPerOffer: (tally.costEach.front ?? 0) / partitions,
        partitionsTotal: net('partitions'),
        partitionPerBroadcast: net('partitions') / partitions,
        broker: net('broker'),
        postgres: net('postgres'),
      })
      faults.push(...allocating.faults)
    } finally {
      await federated.stop()
    }
  }
  const [least] = sizes as [Record<string, number>]
  const last = sizes.at(-1) as Record<string, number>
  // One partition's figure holds the hold and the confirm as well; the slope is what a further partition adds to each allocation.
  const further = Number(last.partitions) - Number(least.partitions)
  const slope = (name: string) => (further === 0 ? 0 : (Number(last[name]) - Number(least[name])) / further)
  const text = [
    `P3  cost as the fleet grows: ${plan.machines} machines a partition, best, ${concurrency} at once (goal: front grows no faster than the offers, partitions flat)`,
    table(
      ['partitions', 'per s', 'front µs', 'growth', 'offers ×', 'all partitions µs', 'per partition µs', 'broker µs', 'postgres µs'],
      sizes.map(size => [
        Number(size.partitions),
        rounded(Number(size.perSecond)),
        rounded(Number(size.front)),
        `${rounded(Number(size.front) / Number(least.front), 2)} ×`,
        `${rounded(Number(size.partitions) / Number(least.partitions), 1)} ×`,
        rounded(Number(size.partitionsTotal)),
        rounded(Number(size.partitionPerBroadcast), 1),
        rounded(Number(size.broker)),
        rounded(Number(size.postgres)),
      ]),
    ),
    `  each further partition adds, per allocation: front ${rounded(slope('front'), 1)} µs, the partition ${rounded(slope('partitionsTotal'), 1)} µs, broker ${rounded(slope('broker'), 1)} µs`,
  ].join('\n')
  const figures = {
    concurrency,
    sizes: sizes.map(size => Object.fromEntries(Object.entries(size).map(([name, value]) => [name, rounded(value, 1)]))),
    perFurtherPartition: {
      front: rounded(slope('front'), 2),
      partition: rounded(slope('partitionsTotal'), 2),
      broker: rounded(slope('broker'), 2),
    },
  }
  return { text, figures, faults }
}
