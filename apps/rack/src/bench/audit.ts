// What the audit log costs an allocation: the same servers in the same run, in turns with the log and as if there were none. On a partition's own API, and through a front.
import { setTimeout as sleep } from 'node:timers/promises'
import { Allocating } from './allocate.ts'
import { type Costs, costing } from './cpu.ts'
import { rounded, Tally } from './figures.ts'
import { matchingShare } from './fixture.ts'
import type { P1 } from './p1.ts'
import type { Plan } from './plan.ts'
import type { Federated, Rig } from './rig.ts'
import { table } from './table.ts'

/** Of the matching machines, so many are taken in a round. */
const takenShare = 0.8
/** The front is over so many: what it costs does not depend on them. */
export const auditPartitions = 3
/** What has ended is chained once a second: a round counts until that is done. */
const chainedMs = 1_500
const sides = ['written', 'skipped'] as const

export async function measureAudit(rig: Rig, plan: Plan, say: (line: string) => void): Promise<P1> {
  const partitions = Math.min(auditPartitions, plan.partitions)
  const cases: Case[] = []
  const faults: string[] = []
  for (const { where, machines, start } of [
    { where: 'partition', machines: plan.machines, start: () => rig.single() },
    { where: 'front', machines: plan.machines * partitions, start: () => rig.federate(partitions) },
  ]) {
    say(`audit: starting a ${where}`)
    const servers = await start()
    try {
      const count = Math.floor(machines * matchingShare * takenShare)
      for (const concurrency of plan.concurrencies.slice(0, 2)) {
        const compared = await compare(rig, servers, {
          concurrency,
          count: Math.min(count, perRound(concurrency)),
          rounds: plan.rounds,
          afterMs: Math.min(chainedMs, plan.seconds * 1000),
          say,
        })
        cases.push({ where, concurrency, ...compared.sides })
        faults.push(...compared.faults)
      }
    } finally {
      await servers.stop()
    }
  }
  const rows = cases.map(({ where, concurrency, written, skipped }) => [
    `${where} × ${concurrency}`,
    ...[written, skipped].flatMap(({ perSecond, p50Ms, cpuMicros }) => [perSecond, p50Ms, cpuMicros.servers, cpuMicros.postgres ?? 0]),
    rounded(written.cpuMicros.servers - skipped.cpuMicros.servers),
    rounded(written.p50Ms - skipped.p50Ms, 2),
    rounded(written.cpuMicros.servers / skipped.cpuMicros.servers, 2),
  ])
  const names = ['per s', 'p50 ms', 'servers µs', 'postgres µs']
  const text = `Audit log: allocations (best) with it, and as if there were none
${table(['', ...names, ...names.map(name => `${name} without`), 'adds µs', 'adds ms', 'CPU ratio'], rows)}`
  return { text, figures: { partitions, machines: plan.machines, cases }, faults }
}

interface Side {
  allocations: number
  perSecond: number
  p50Ms: number
  cpuMicros: Record<string, number> & { servers: number }
}
type Case = { where: string; concurrency: number } & Record<(typeof sides)[number], Side>

/** One at a time is slow: fewer of them say as much. */
const perRound = (concurrency: number) => (concurrency === 1 ? 200 : Number.POSITIVE_INFINITY)

async function compare(
  rig: Rig,
  servers: Federated,
  {
    concurrency,
    count,
    rounds,
    afterMs,
    say,
  }: { concurrency: number; count: number; rounds: number; afterMs: number; say: (line: string) => void },
): Promise<{ sides: Record<(typeof sides)[number], Side>; faults: string[] }> {
  const allocating = new Allocating(rig, servers, line => say(`audit: ${line}`))
  const tallies = { written: new Tally(), skipped: new Tally() }
  const costs: Record<(typeof sides)[number], Costs> = { written: {}, skipped: {} }
  const round = async (side: (typeof sides)[number], tally: Tally | undefined) => {
    await servers.audit(side)
    const measured = await costing(servers.groups, async () => {
      await allocating.slice('best', { concurrency, count, seconds: 60 }, tally)
      await sleep(afterMs)
    })
    if (tally) for (const [name, micros] of Object.entries(measured.costs)) costs[side][name] = (costs[side][name] ?? 0) + micros
    await allocating.checkAndReset()
  }
  await round('written', undefined)
  for (let number = 0; number < rounds; number++) {
    say(`audit: ${concurrency} at once, round ${number + 1} of ${rounds}`)
    for (const side of sides) await round(side, tallies[side])
  }
  const sideOf = (side: (typeof sides)[number]): Side => {
    const tally = tallies[side]
    const each = Object.entries(costs[side]).map(([name, micros]) => [name, rounded(micros / tally.count)] as const)
    return {
      allocations: tally.count,
      perSecond: rounded(tally.perSecond, 1),
      p50Ms: rounded(tally.latencyMs(0.5), 2),
      cpuMicros: { ...Object.fromEntries(each), servers: each.reduce((sum, [, micros]) => sum + micros, 0) },
    }
  }
  return { sides: { written: sideOf('written'), skipped: sideOf('skipped') }, faults: allocating.faults }
}
