// P1: allocations through a front over many partitions, beside the least that a broadcast and a claim cost on the same machine in the same run.
import { Allocating } from './allocate.ts'
import { costing } from './cpu.ts'
import { rounded, Tally } from './figures.ts'
import { matchingShare } from './fixture.ts'
import type { Plan } from './plan.ts'
import type { Rig } from './rig.ts'
import { percent, table } from './table.ts'

/** OpenStack Ironic 21.4 with 2,000 candidates, measured on a machine like this one. */
const ironicPerSecond = { low: 0.9, high: 1.5 }
const cores = 2
/** The bare claim has machines enough for every slice. */
const floorMachines = 100_000
/** Matching machines that a case leaves untaken: it measures plenty, not want. */
const untakenShare = 0.4

export interface P1 {
  text: string
  figures: Record<string, unknown>
  faults: string[]
}

export async function measureP1(rig: Rig, plan: Plan, say: (line: string) => void): Promise<P1> {
  say(`P1: starting ${plan.partitions} partitions and a front`)
  const federated = await rig.federate(plan.partitions)
  const floor = await rig.floor(plan.partitions, Math.min(floorMachines, plan.partitions * plan.machines))
  const allocating = new Allocating(rig, federated, line => say(`P1: ${line}`))
  const room = plan.partitions * plan.machines * matchingShare * (1 - untakenShare)
  const cases: Record<string, unknown>[] = []
  const rows: (string | number)[][] = []
  const floorRows: (string | number)[][] = []
  try {
    const bare = async (kind: 'scatter' | 'claim' | 'both', extent: { concurrency: number; seconds: number }, tally?: Tally) => {
      const { result, costs } = await costing(floor.groups, () =>
        floor.asker.ask('run', { kind, count: Number.POSITIVE_INFINITY, ...extent }),
      )
      tally?.add(result, costs)
    }
    const take = (strategy: 'first' | 'best', extent: { concurrency: number; seconds: number }, tally?: Tally) =>
      allocating.slice(strategy, { count: Math.floor(room - allocating.answered), ...extent }, tally)

    say('P1: warming up')
    const warm = { concurrency: Math.max(...plan.concurrencies), seconds: plan.warmUpSeconds }
    for (const kind of ['scatter', 'claim', 'both'] as const) await bare(kind, { ...warm, seconds: plan.warmUpSeconds / 2 })
    for (const strategy of ['first', 'best'] as const) await take(strategy, warm)
    await allocating.checkAndReset()
    const idle = await allocating.idle(plan.warmUpSeconds)

    for (const concurrency of plan.concurrencies) {
      const extent = { concurrency, seconds: plan.seconds }
      const tallies = { scatter: new Tally(), claim: new Tally(), both: new Tally(), first: new Tally(), best: new Tally() }
      for (let round = 0; round < plan.rounds; round++) {
        say(`P1: ${concurrency} at once, round ${round + 1} of ${plan.rounds}`)
        await floor.asker.ask('reset', undefined)
        await bare('scatter', extent, tallies.scatter)
        await take('first', extent, tallies.first)
        await bare('both', extent, tallies.both)
        await take('best', extent, tallies.best)
        await bare('claim', { ...extent, seconds: extent.seconds / 2 }, tallies.claim)
        await allocating.checkAndReset()
      }
      // The subscribers' group counts for nothing in a claim, and so on: what a slice does not use costs it only its idling.
      const scatterCost = tallies.scatter.costOfAllBut('postgres')
      const claimCost = (tallies.claim.costEach.asker ?? 0) + (tallies.claim.costEach.postgres ?? 0)
      const floorCost = scatterCost + claimCost
      const floorRate = (cores * 1e6) / floorCost
      floorRows.push([
        concurrency,
        rounded(scatterCost),
        rounded(claimCost),
        rounded(floorRate),
        rounded(tallies.scatter.perSecond),
        rounded(tallies.claim.perSecond),
        rounded(tallies.both.perSecond),
        rounded(tallies.both.latencyMs(0.5), 2),
        rounded(tallies.both.latencyMs(0.99), 1),
      ])
      for (const strategy of ['first', 'best'] as const) {
        const tally = tallies[strategy]
        const cost = tally.costOfAllBut('client')
        const each = tally.costEach
        // What an allocation adds to what the servers cost while nobody asks: at few allocations per second the idling of 50 partitions is most of the rest.
        const idleCost = (Object.values(idle).reduce((sum, micros) => sum + micros, 0) * tally.elapsedMs) / 1000 / tally.count
        const added = cost - idleCost
        const figures = {
          strategy,
          concurrency,
          allocations: tally.count,
          perSecond: rounded(tally.perSecond, 1),
          p50Ms: rounded(tally.latencyMs(0.5), 2),
          p99Ms: rounded(tally.latencyMs(0.99), 2),
          cpuMicros: {
            ...Object.fromEntries(Object.entries(each).map(([name, value]) => [name, rounded(value)])),
            servers: rounded(cost),
            addedToIdle: rounded(added),
          },
          floor: {
            scatterCpuMicros: rounded(scatterCost),
            claimCpuMicros: rounded(claimCost),
            boundPerSecond: rounded(floorRate),
            scatterPerSecond: rounded(tallies.scatter.perSecond, 1),
            claimPerSecond: rounded(tallies.claim.perSecond, 1),
            loopPerSecond: rounded(tallies.both.perSecond, 1),
            loopP50Ms: rounded(tallies.both.latencyMs(0.5), 2),
          },
          ratioOfCpu: rounded(floorCost / added, 3),
          ratioOfCpuWithIdle: rounded(floorCost / cost, 3),
          ratioOfRate: rounded(tally.perSecond / tallies.both.perSecond, 3),
          timesIronic: [rounded(tally.perSecond / ironicPerSecond.high), rounded(tally.perSecond / ironicPerSecond.low)],
        }
        cases.push(figures)
        rows.push([
          `${strategy} × ${concurrency}`,
          rounded(tally.perSecond),
          figures.p50Ms,
          figures.p99Ms,
          rounded(each.front ?? 0),
          rounded(each.partitions ?? 0),
          rounded(each.broker ?? 0),
          rounded(each.postgres ?? 0),
          rounded(cost),
          rounded(added),
          rounded(each.client ?? 0),
          `${percent(figures.ratioOfCpu)} (${percent(figures.ratioOfCpuWithIdle)})`,
          percent(figures.ratioOfRate),
          `${figures.timesIronic[0]}–${figures.timesIronic[1]} ×`,
        ])
      }
    }
    const idleText = Object.entries(idle).map(([name, micros]) => `${name} ${rounded(micros / 1000)}`)
    const text = [
      `P1  allocations through a front: ${plan.partitions} partitions × ${plan.machines} machines (goals: ≥ 50 % of the floor, ≥ 300 × Ironic)`,
      table(
        [
          '',
          'per s',
          'p50 ms',
          'p99 ms',
          'front',
          'partitions',
          'broker',
          'postgres',
          'CPU µs',
          'above idle',
          'client',
          'of floor CPU (idle in)',
          'of floor rate',
          'Ironic',
        ],
        rows,
      ),
      `  idle, CPU ms per s (within the figures above): ${idleText.join(', ')}`,
      `  floor: bare NATS broadcast to ${plan.partitions} + bare PostgreSQL claim with its event; rate = the bare loop's, one after the other`,
      table(['at once', 'scatter µs', 'claim µs', 'bound per s', 'scatter/s', 'claim/s', 'loop/s', 'loop p50', 'p99'], floorRows),
    ].join('\n')
    return {
      text,
      figures: { partitions: plan.partitions, machines: plan.machines, idleCpuMicrosPerSecond: idle, cases },
      faults: allocating.faults,
    }
  } finally {
    await floor.stop()
    await federated.stop()
  }
}
