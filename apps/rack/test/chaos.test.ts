// R1, R2, R4, R5, R8, R16: three partitions, two fronts, 32 clients, servers killed and frozen at random; the history judged by program. A run
// that saw too little is no proof, so what it must have seen is asserted too. A longer one: `node apps/rack/src/chaos/main.ts --help`.
import { expect, it } from 'vitest'
import { verdictTable } from '../src/chaos/report.ts'
import { runChaos } from '../src/chaos/run.ts'

const minute = 60_000
/** Some minutes on two quiet cores, three times as long on busy ones: never a reason to fail. */
const limitMs = 20 * minute

it('20,000 allocations over a federation whose servers die keep every promise', { timeout: limitMs + 5 * minute, retry: 0 }, async () => {
  const seed = Number(process.env.MUSTER_CHAOS_SEED ?? Math.floor(Math.random() * 2 ** 31))
  console.log(`MUSTER_CHAOS_SEED=${seed}`)
  const outcome = await runChaos({
    allocations: 20_000,
    clients: 32,
    fronts: 2,
    partitions: 3,
    machines: 150,
    rackMachines: 30,
    faults: ['front', 'partition', 'broker', 'freeze'],
    seed,
    freezeSeconds: [1, 18],
    // As the promise about kills says (R2).
    faultEveryMs: [500, 5_000],
    leastKills: 30,
    limitMs,
  })
  console.log(verdictTable(outcome))
  expect(outcome.verdict.findings.flatMap(({ rule, violations }) => violations.map(violation => `${rule}: ${violation}`))).toEqual([])

  const { figures } = outcome
  expect(figures.acknowledged).toBeGreaterThanOrEqual(20_000)
  expect(figures.kills).toBeGreaterThanOrEqual(30)
  for (const kind of ['front', 'partition', 'broker', 'freeze']) expect(figures.faults[kind], kind).toBeGreaterThanOrEqual(5)
  expect(figures.machinesGiven).toBeGreaterThan(figures.acknowledged)
  // Faults were met by requests in flight, and keys were needed.
  expect(figures.antics.retried).toBeGreaterThan(500)
  expect(figures.antics.abandoned).toBeGreaterThan(100)
  expect(figures.brokerAnswerMs.attempts).toBeGreaterThan(50)
  expect(figures.holdsNotConfirmed).toBeGreaterThan(50)
  expect(figures.consumed).toBe(figures.events)
  for (const { rule, looked } of outcome.verdict.findings) expect(looked, rule).toBeGreaterThan(0)
})
