// P7: a rack of machines whose buttons are pressed, until the last is ready: they boot, enlist, are commissioned by order of their BMCs (IPMI, every fourth Redfish), and
// are switched off. A quarter of them first, by itself: what a machine costs must not depend on how many there are.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from '@muster/partition/db/connect'
import { type Federation, startFederation } from '../federation/federation.ts'
import type { Measured } from './boot.ts'
import { type Costs, costing, postgresOf, postmasterOf } from './cpu.ts'
import { rounded } from './figures.ts'
import { openFixture } from './fixture.ts'
import type { Plan } from './plan.ts'
import { type Goal, goalsText, table } from './table.ts'

const limitMs = 20 * 60_000
const lookEveryMs = 250
/** Fewer than these say nothing of how long they take. */
const goalMachines = 2_000
/** Slices of the plan for which the machines are watched afterwards, off and ready: most of what they cost then is asking their BMCs. */
const idleSlices = 5
/** On a busy machine agents that wait for their turn are slow, not dead, and a slow machine fails nothing here. */
const partitionEnv = { MUSTER_AGENT_SILENCE: '20m', MUSTER_AGENT_START: '20m' }

interface Commissioned {
  machines: number
  seconds: number
  /** Of one machine, in microseconds, by who spent it. */
  cpuMicrosEach: Record<string, number>
  /** What the servers spend in a second while nothing happens, in microseconds. */
  idleMicrosPerSecond: number
  /** Every end but ready, by state and what was said of it, with how many there are. */
  others: Record<string, number>
}

/** Measures a quarter of `plan.machines`, then all of them. */
export async function measureCommissioning(plan: Plan, say: (line: string) => void): Promise<Measured> {
  const idleSeconds = plan.seconds * idleSlices
  const few = await commission({ machines: Math.ceil(plan.machines / 4), idleSeconds }, say)
  const many = await commission({ machines: plan.machines, idleSeconds }, say)
  const growth = {
    machines: rounded(many.machines / few.machines, 2),
    seconds: rounded(many.seconds / few.seconds, 2),
    serverCpuEach: rounded(ofServers(many.cpuMicrosEach) / ofServers(few.cpuMicrosEach), 2),
  }
  const rows = [few, many].map(({ machines, seconds, cpuMicrosEach, idleMicrosPerSecond }) => [
    machines,
    rounded(seconds, 1),
    rounded(machines / seconds, 1),
    ...['partition', 'postgres', 'rack'].map(name => rounded((cpuMicrosEach[name] ?? 0) / 1000, 1)),
    rounded(idleMicrosPerSecond / 1000),
  ])
  const goals: Goal[] = [
    {
      goal: `${goalMachines} machines in ≤ 300 s`,
      met: many.machines < goalMachines ? undefined : many.seconds <= (300 * many.machines) / goalMachines,
    },
    { goal: 'four times as many in ≤ 4.4 times as long', met: growth.seconds <= 4.4 },
  ]
  const text = `P7  from the button to ready, one partition, a BMC each
${table(['machines', 's', 'per s', 'partition ms', 'postgres ms', 'rack ms', 'idle ms/s'], rows)}
  ${growth.machines} times as many: ${growth.seconds} times as long, ${growth.serverCpuEach} times the servers’ CPU for each (what they cost while they wait counts too)
${goalsText(goals)}`
  const faults = [few, many].flatMap(({ machines, others }) =>
    Object.entries(others).map(([end, count]) => `commission: ${count} of ${machines} machines ended ${end}`),
  )
  return { text, figures: { few, many, growth, goals }, faults }
}

const ofServers = ({ partition = 0, postgres = 0 }: Costs) => partition + postgres

async function commission(
  { machines, idleSeconds }: { machines: number; idleSeconds: number },
  say: (line: string) => void,
): Promise<Commissioned> {
  const dataDir = mkdtempSync(path.join(tmpdir(), 'muster-bench-commission-'))
  let federation: Federation | undefined
  let sql: Sql | undefined
  try {
    say(`commission: ${machines} machines`)
    federation = await startFederation({
      dataDir,
      partitions: 1,
      fronts: 0,
      machines,
      port: 0,
      broker: 'always the embedded',
      partitionEnv,
    })
    const [partition] = federation.partitions as [Federation['partitions'][number]]
    const { rack } = federation
    sql = openFixture(partition.databaseUrl)
    const postmaster = postmasterOf(await backendOf(sql))
    const groups = {
      partition: () => [partition.child.pid ?? 0],
      postgres: () => postgresOf(postmaster, () => true),
      rack: () => [rack?.pid ?? 0],
    }
    const startedAt = performance.now()
    const { result: states, costs } = await costing(groups, () => settled(sql as Sql, machines, say))
    const { ready: _, ...unready } = states
    const seconds = (performance.now() - startedAt) / 1000
    const { costs: idle } = await costing(groups, () => sleep(idleSeconds * 1000))
    return {
      machines,
      seconds: rounded(seconds, 1),
      idleMicrosPerSecond: rounded(ofServers(idle) / idleSeconds),
      cpuMicrosEach: Object.fromEntries(Object.entries(costs).map(([name, micros]) => [name, rounded(micros / machines)])),
      others: Object.keys(unready).length === 0 ? {} : { ...(unready.absent && { absent: unready.absent }), ...(await unreadyOf(sql)) },
    }
  } finally {
    await sql?.end()
    await federation?.stop()
    rmSync(dataDir, { recursive: true, force: true })
  }
}

/** Looks until nothing moves any more, or the limit; answers how many machines are in which state, those that never came as `absent`. */
async function settled(sql: Sql, machines: number, say: (line: string) => void): Promise<Record<string, number>> {
  const startedAt = performance.now()
  for (let toldAt = startedAt; ; ) {
    const states = await statesOf(sql)
    const { ready = 0 } = states
    const failed = Object.entries(states).reduce((sum, [state, count]) => (state.startsWith('failed') ? sum + count : sum), 0)
    const now = performance.now()
    if (ready + failed === machines) return states
    if (now - startedAt > limitMs) {
      const known = Object.values(states).reduce((sum, count) => sum + count, 0)
      return known < machines ? { ...states, absent: machines - known } : states
    }
    if (now - toldAt > 10_000) {
      toldAt = now
      say(`commission: ${ready} of ${machines} are ready after ${rounded((now - startedAt) / 1000)} s`)
    }
    await sleep(lookEveryMs)
  }
}

async function statesOf(sql: Sql): Promise<Record<string, number>> {
  const rows = await sql<{ state: string; count: number }[]>`select state, count(*)::integer as count from machines group by state`
  return Object.fromEntries(rows.map(({ state, count }) => [state, count]))
}

/** Digits are left out of what was said: every machine has its own. */
async function unreadyOf(sql: Sql): Promise<Record<string, number>> {
  const rows = await sql<{ end: string; count: number }[]>`
    select concat_ws(': ', state, fault ->> 'code', regexp_replace(coalesce(fault ->> 'message', waiting_for), '[0-9a-z]*[0-9][0-9a-z]*', '…', 'g')) as end,
      count(*)::integer as count
    from machines where state <> 'ready' group by 1 order by 2 desc limit 20`
  return Object.fromEntries(rows.map(({ end, count }) => [end, count]))
}

async function backendOf(sql: Sql): Promise<number> {
  const [row] = await sql<{ pid: number }[]>`select pg_backend_pid() as pid`
  return (row as { pid: number }).pid
}
