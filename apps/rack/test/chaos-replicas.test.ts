// Two processes of one partition on one database share the work: one of them may die at any time, and nobody but the log notices.
import { expect, it } from 'vitest'
import { verdictTable } from '../src/chaos/report.ts'
import { runChaos } from '../src/chaos/run.ts'

it('allocations go on while one of two replicas is dead, and every event has one number', { timeout: 600_000, retry: 0 }, async () => {
  const outcome = await runChaos({
    allocations: 1_500,
    clients: 12,
    fronts: 1,
    partitions: 1,
    replicas: 2,
    machines: 40,
    rackMachines: 10,
    faults: ['partition'],
    seed: Number(process.env.MUSTER_CHAOS_SEED ?? Math.floor(Math.random() * 2 ** 31)),
    freezeSeconds: [1, 2],
    faultEveryMs: [500, 2_000],
    leastKills: 8,
    limitMs: 400_000,
  })
  console.log(verdictTable(outcome))
  expect(outcome.verdict.findings.flatMap(({ rule, violations }) => violations.map(violation => `${rule}: ${violation}`))).toEqual([])
  const { figures, history } = outcome
  expect(figures.acknowledged).toBeGreaterThanOrEqual(1_500)
  expect(figures.kills).toBeGreaterThanOrEqual(8)
  // Both have been killed, and while one was away the other went on giving machines.
  expect(new Set(history.faults.map(({ target }) => target)).size).toBe(2)
  const acknowledgedAt = history.requests.flatMap(({ attempts }) =>
    attempts.flatMap(({ endedAt, outcome: said }) => (said.kind === 'acknowledged' ? [endedAt] : [])),
  )
  const meanwhile = acknowledgedAt.filter(at => history.faults.some(({ from, restartedAt }) => at > from && at < restartedAt))
  expect(meanwhile.length).toBeGreaterThan(20)
})
