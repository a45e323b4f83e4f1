// P2: allocations on a partition's own API, beside the bare claim of a process of the same kind.
import { Allocating } from './allocate.ts'
import { costing } from './cpu.ts'
import { rounded, Tally } from './figures.ts'
import { matchingShare } from './fixture.ts'
import type { P1 } from './p1.ts'
import type { Plan } from './plan.ts'
import type { Rig } from './rig.ts'
import { percent, table } from './table.ts'

/** Of the matching machines, so many are taken in a round; then all are ready again. */
const takenShare = 0.8
/** Rounds are short, because the machines are few: more of them make up for it. */
const roundsPerRound = 4

export async function measureP2(rig: Rig, plan: Plan, say: (line: string) => void): Promise<P1> {
  say('P2: starting a partition')
  const single = await rig.single()
  const floor = await rig.floor(0, plan.machines)
  const allocating = new Allocating(rig, single, line => say(`P2: ${line}`))
  const count = Math.floor(plan.machines * matchingShare * takenShare)
  const cases: Record<string, unknown>[] = []
  const rows: (string | number)[][] = []
  const take = async (concurrency: number, tally?: Tally) => {
    await allocating.slice('best', { concurrency, count, seconds: 60 }, tally)
    await allocating.checkAndReset()
  }
  const claim = async (concurrency: number, tally?: Tally) => {
    const { result, costs } = await costing(floor.groups, () => floor.asker.ask('run', { kind: 'claim', concurrency, count, seconds: 60 }))
    tally?.add(result, costs)
    await floor.asker.ask('reset', undefined)
  }
  try {
    say('P2: warming up')
    for (let round = 0; round < roundsPerRound; round++) {
      await claim(8)
      await take(8)
    }
    for (const concurrency of plan.concurrencies) {
      say(`P2: ${concurrency} at once`)
      const tallies = { claim: new Tally(), product: new Tally() }
      for (let round = 0; round < plan.rounds * roundsPerRound; round++) {
        await claim(concurrency, tallies.claim)
        await take(concurrency, tallies.product)
      }
      const { product } = tallies
      const each = product.costEach
      const claimCost = (tallies.claim.costEach.asker ?? 0) + (tallies.claim.costEach.postgres ?? 0)
      const cost = product.costOfAllBut('client')
      const figures = {
        concurrency,
        allocations: product.count,
        perSecond: rounded(product.perSecond, 1),
        p50Ms: rounded(product.latencyMs(0.5), 2),
        p99Ms: rounded(product.latencyMs(0.99), 2),
        cpuMicros: { ...Object.fromEntries(Object.entries(each).map(([name, value]) => [name, rounded(value)])), servers: rounded(cost) },
        claimPerSecond: rounded(tallies.claim.perSecond, 1),
        claimP50Ms: rounded(tallies.claim.latencyMs(0.5), 2),
        claimCpuMicros: rounded(claimCost),
        ratioOfRate: rounded(product.perSecond / tallies.claim.perSecond, 3),
        ratioOfCpu: rounded(claimCost / cost, 3),
      }
      cases.push(figures)
      rows.push([
        concurrency,
        rounded(product.perSecond),
        figures.p50Ms,
        figures.p99Ms,
        rounded(each.partition ?? 0),
        rounded(each.postgres ?? 0),
        rounded(cost),
        rounded(each.client ?? 0),
        rounded(tallies.claim.perSecond),
        figures.claimP50Ms,
        rounded(claimCost),
        percent(figures.ratioOfRate),
        percent(figures.ratioOfCpu),
      ])
    }
    const text = [
      `P2  allocations on a partition's own API: ${plan.machines} machines (goal: ≥ 60 % of the bare claim's rate)`,
      table(
        [
          'at once',
          'per s',
          'p50 ms',
          'p99 ms',
          'partition',
          'postgres',
          'CPU µs',
          'client',
          'claim/s',
          'claim p50',
          'claim µs',
          'of its rate',
          'of its CPU',
        ],
        rows,
      ),
    ].join('\n')
    return { text, figures: { machines: plan.machines, cases }, faults: allocating.faults }
  } finally {
    await floor.stop()
    await single.stop()
  }
}
