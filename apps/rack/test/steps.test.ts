// R7: a worker may die anywhere. Every call that a machine makes in each of its jobs (as one makes them that nothing befalls) is the step at which, for one
// machine each, the partition is killed (kill -9), the machine's power goes, or somebody aborts; once before the partition has heard the call, and once after
// its effect but before the answer is heard. A partition of its own process, its own machines with real BMCs between them. Judged by rows and disks.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { freshDatabase } from '@muster/embedded/test-postgres'
import { migrate } from '@muster/partition/db/migrate'
import { hashToken, newToken } from '@muster/server/tokens'
import { type Client, createClient } from '@muster/shared/client'
import { Refusal } from '@muster/shared/errors'
import type { MoveName, State } from '@muster/shared/life-cycle'
import postgres from 'postgres'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { table } from '../src/bench/table.ts'
import { Child } from '../src/federation/child.ts'
import { freePorts } from '../src/federation/federation.ts'
import { writeVirtualFiles } from '../src/federation/files.ts'
import { machineFacts } from '../src/machine/facts.ts'
import { type Rack, type RackMachine, startRack } from '../src/rack.ts'
import { HeldWire, type Side, sides } from './held-wire.ts'
import { until } from './servers.ts'

const kinds = ['kill', 'cut', 'abort'] as const
type Kind = (typeof kinds)[number]

interface Case {
  readonly kind: Kind
  readonly step: string
  readonly side: Side
}

/** Every third case, beginning anywhere, so that three runs see most of them. MUSTER_STEPS=1 takes every one. */
const every = Number(process.env.MUSTER_STEPS ?? 3)
const first = Number(process.env.MUSTER_STEPS_FIRST ?? Date.now()) % every
/** More cases than any job has: each takes a machine, and one machine nothing befalls. */
const casesMost = Math.ceil(120 / every)
const machines = 1 + casesMost
/** For one wait: a machine that does much else is slow, and what must not happen is that something stands still. */
const limitMs = 90_000

class Member {
  readonly index: number
  readonly wire = new HeldWire()
  id = ''
  /** What befalls it in the job at hand. */
  planned: Case | undefined

  constructor(index: number) {
    this.index = index
  }

  get machine(): RackMachine {
    return rack.machines[this.index] as RackMachine
  }

  get isOff(): boolean {
    return this.machine.power === 'off'
  }

  begin(planned?: Case): void {
    this.planned = planned
    this.wire.begin(planned)
  }

  async reached(): Promise<void> {
    await until(() => this.wire.isReached, limitMs).catch(() => expect.fail(`${this} never came there: ${this.wire.steps.join('; ')}`))
  }

  toString(): string {
    const { kind, side, step } = this.planned ?? {}
    return `${this.machine.name} (${kind ? `${kind} ${side} ${step}` : 'undisturbed'})`
  }
}

let rack: Rack
let partition: Child
let client: Client
let sql: postgres.Sql
let url: string
const members = Array.from({ length: machines }, (_, index) => new Member(index))
const [plain, ...others] = members as [Member, ...Member[]]
const ends: (() => Promise<unknown> | unknown)[] = []

beforeAll(async () => {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-steps-'))
  ends.push(() => rmSync(folder, { recursive: true, force: true }))
  const database = await freshDatabase({ template: 'partition', migrate: async place => void (await migrate(place)) })
  ends.push(() => database.drop())
  const files = path.join(folder, 'files')
  writeVirtualFiles(files)
  const { token } = newToken()
  const tokensFile = path.join(folder, 'tokens.json')
  writeFileSync(tokensFile, JSON.stringify({ tokens: [{ name: 'ada', role: 'admin', sha256: hashToken(token) }] }))
  const [port] = await freePorts(1)
  url = `http://127.0.0.1:${port}`
  partition = new Child({
    name: 'partition p1',
    program: new URL('../../partition/src/main.ts', import.meta.url),
    logs: folder,
    isReady: async () => (await fetch(`${url}/readyz`, { signal: AbortSignal.timeout(2_000) })).ok,
    startLimitMs: limitMs,
    env: {
      MUSTER_PARTITION: 'p1',
      MUSTER_REPLICA: 'a',
      DATABASE_URL: database.url,
      MUSTER_KEY: '07'.repeat(32),
      MUSTER_TOKENS_FILE: tokensFile,
      MUSTER_FILES: files,
      MUSTER_URL: url,
      HOST: '127.0.0.1',
      PORT: String(port),
      MUSTER_POWER_CHECK: '2s',
      // Those that wait at their step for the others say nothing meanwhile.
      MUSTER_AGENT_SILENCE: '10m',
      MUSTER_TESTS: 'cpu,disk-health',
      // Simulated machines bring their controllers with them.
      MUSTER_PLACE: 'lab',
    },
  })
  ends.push(() => partition.stop())
  await partition.start()
  client = createClient({ url, token })
  sql = postgres(database.url, { max: 2, onnotice: () => {} })
  ends.push(() => sql.end())
  const specs = members.map(({ index, wire }) => {
    const { inventory, serial } = machineFacts({ seed: 1, index })
    const common = { model: 'm', sizeBytes: 1e9, kind: 'ssd' as const }
    const disks = ['sda', 'sdb'].map(name => ({ name, serial: `${serial}-${name}`, ...common }))
    // All alike, so that they come through the same steps.
    const alike = { arch: 'amd64' as const, interfaces: inventory.interfaces.slice(0, 1), facts: { ...inventory.facts, firmware: 'uefi' } }
    return { index, bootUrl: url, wire, inventory: { ...alike, disks } }
  })
  rack = await startRack({ pace: 'quick', machines: specs })
  ends.push(() => rack.close())
}, limitMs)

afterAll(async () => {
  for (const end of ends.reverse()) await end()
}, limitMs)

interface Row {
  id: string
  state: State
  power: 'on' | 'off'
  run: string | null
  owner: string | null
  waiting_for: string | null
  fault: { code: string; message: string } | null
  deadline_at: Date | null
  /** Whether its first boot came to its end. */
  ended: boolean
}

/** Waits until each machine's row is so. Throws with those that are not. */
async function allCome(some: readonly Member[], what: string, isSo: (row: Row, member: Member) => boolean): Promise<void> {
  let left: string[] = []
  const look = async () => {
    const rows = await sql<Row[]>`
      select m.id, m.state, p.observed as power, m.run, m.owner, m.waiting_for, m.fault, m.deadline_at,
        m.deployment->'firstBoot'->>'endedAt' is not null as ended
      from machines m join machine_power p on p.machine_id = m.id`
    const byId = new Map(rows.map(row => [row.id, row]))
    left = some.flatMap(member => {
      const row = byId.get(member.id)
      return row && isSo(row, member) ? [] : [`${member}: ${JSON.stringify(row)}; ${member.machine.power}, ${member.machine.phase}`]
    })
    return left.length === 0
  }
  await until(look, limitMs).catch((error: Error) =>
    expect.fail(`${what}: ${error.message}; ${left.length} did not:\n${left.slice(0, 8).join('\n')}`),
  )
}

interface Job {
  readonly name: string
  readonly order: (member: Member) => Promise<unknown>
  readonly isDone: (row: Row, member: Member) => boolean
  /** The moves of one that nothing befell. */
  readonly moves: readonly MoveName[]
  /** What there is once behind each order that is carried out, at most once behind one that is not. */
  readonly once?: string
  readonly undo: 'abort' | 'exitRescue'
  readonly isUndone: (row: Row, member: Member) => boolean
}

const isIn =
  (state: State) =>
  (row: Row, { isOff }: Member) =>
    row.state === state && row.power === 'off' && isOff
const isBackOnItsDisk = (row: Row, { machine }: Member) =>
  row.state === 'deployed' && row.power === 'on' && row.waiting_for === null && machine.phase === 'operating system'

const commission: Job = {
  name: 'commission',
  order: ({ id }) => client.machines.commission({ id }),
  isDone: isIn('ready'),
  moves: ['commission', 'commissioned'],
  once: 'machine.inventory',
  undo: 'abort',
  isUndone: isIn('new'),
}
const deploy: Job = {
  name: 'deploy',
  order: ({ id }) => client.machines.deploy({ id, os: 'debian/12' }),
  // It is its owner's by then: a power loss behind the last word is his.
  isDone: (row, member) => row.state === 'deployed' && (member.isOff || (isBackOnItsDisk(row, member) && row.ended)),
  moves: ['deploy', 'deployed'],
  once: 'machine.installed',
  undo: 'abort',
  isUndone: isIn('allocated'),
}
const rescue: Job = {
  name: 'rescue',
  order: ({ id }) => client.machines.rescue({ id }),
  isDone: (row, { machine }) =>
    row.state === 'rescue' &&
    row.power === 'on' &&
    row.waiting_for === 'the agent: rescue (waiting for you on the console)' &&
    machine.phase === 'agent',
  moves: ['rescue'],
  undo: 'exitRescue',
  isUndone: isBackOnItsDisk,
}
const release: Job = {
  name: 'release',
  order: ({ id }) => client.machines.release({ id }),
  isDone: isIn('ready'),
  moves: ['release', 'released'],
  once: 'machine.erased',
  undo: 'abort',
  isUndone: isIn('failed_releasing'),
}

test('every step of every job, cut off before and after its effect, and repeated', { timeout: limitMs * 6, retry: 0 }, async () => {
  console.log(`MUSTER_STEPS=${every} MUSTER_STEPS_FIRST=${first}`)
  await enlistAll()

  await disturb(commission)
  const results = await sql<{ machine_id: string; told: string[] }[]>`
    select r.machine_id, array_agg(r.script || ' ' || r.part order by r.id) as told from script_results r
    join machines m on m.id = r.machine_id and m.run = r.run group by 1`
  expect(results.length).toBe(machines)
  for (const { machine_id: id, told } of results) expect(told, id).toEqual(['cpu ', 'disk-health sda', 'disk-health sdb'])

  await Promise.all(members.map(({ machine }) => client.allocations.create({ constraints: { hostnames: [machine.name] } })))
  await disturb(deploy)
  // Those whose power went behind their last word are switched on by their owner.
  await Promise.all(members.flatMap(({ id, isOff }) => (isOff ? [client.machines.power({ id, action: 'on' })] : [])))
  await allCome(members, 'switched on', (row, member) => isBackOnItsDisk(row, member) && row.ended)
  for (const { machine } of members)
    expect(machine.disk).toMatchObject({ kind: 'installed', os: 'debian/12', instanceId: expect.any(String) })

  await disturb(rescue)
  await Promise.all(members.map(({ id }) => client.machines.exitRescue({ id })))
  await allCome(members, 'leave rescue', isBackOnItsDisk)

  await disturb(release)
  await allCome(members, 'given back', row => row.owner === null && row.run === null)
  for (const { machine } of members) expect(machine.disk).toEqual({ kind: 'empty' })
  const erased = await sql<{ machine_id: string }[]>`select machine_id from erasures group by machine_id, run having count(*) = 2`
  expect(new Set(erased.map(row => row.machine_id)).size, 'a certificate of both disks of each').toBe(machines)

  await nothingIsLeft()
  const head = ['job', 'step', ...kinds.flatMap(kind => sides.map(side => `${kind} ${side}`))]
  console.log(`R7: ${told.length} steps\n${table(head, told)}`)
})

const told: string[][] = []
let toldAtMs = Date.now()

/** What befell one job's machines, as a table's rows. */
function tell(job: string, steps: readonly string[], took: readonly Member[], end: (member: Member) => string): void {
  console.log(`${job}: ${took.length} cases, ${((Date.now() - toldAtMs) / 1000).toFixed(1)} s`)
  toldAtMs = Date.now()
  const at = (kind: Kind, side: Side, step: string) =>
    took.find(({ planned }) => planned?.kind === kind && planned.side === side && planned.step === step)
  for (const step of steps) {
    const found = kinds.flatMap(kind => sides.map(side => at(kind, side, step)))
    told.push([job, step, ...found.map(member => (member ? end(member) : ''))])
  }
}

/** Gives each case a machine, which will be held there. Answers those machines. */
function plan(job: string, befalling: readonly Kind[], steps: readonly string[]): Member[] {
  expect(steps.length, `${job}: ${steps.join('; ')}`).toBeGreaterThan(3)
  const cases = befalling
    .flatMap(kind => steps.flatMap(step => sides.map(side => ({ kind, step, side }))))
    .filter((_, index) => index % every === first)
  expect(cases.length).toBeLessThanOrEqual(casesMost)
  for (const [index, member] of others.entries()) member.begin(cases[index])
  return others.slice(0, cases.length)
}

/**
 * Each waits at its own step: one death is the death of the partition at all of them. Not while it speaks to a BMC: what it claimed would go on 45 s later,
 * when its claim has run out, and that is told by tests of their own.
 */
async function partitionDies(held: readonly Member[]): Promise<void> {
  await Promise.all(held.map(member => member.reached()))
  await until(async () => {
    const [row] = await sql`
      select from machines m join machine_power p on p.machine_id = m.id
      where greatest(m.claimed_until, p.claimed_until) > now()
        or exists (select from power_orders o where o.machine_id = m.id and o.state in ('queued', 'running'))`
    return row === undefined
  }, limitMs)
  await partition.kill()
  for (const { wire } of held) if (wire.isPatient) wire.lose()
  for (const { planned, machine } of held) if (planned?.kind === 'cut') machine.pressPower({ to: 'off' })
  await partition.start()
  for (const { wire } of held) wire.lose()
}

/** Has all machines do the job: one that nothing befalls, and one for each case. */
async function disturb(job: Job): Promise<void> {
  const { name, order, isDone, moves, once } = job
  plain.begin()
  await order(plain)
  await allCome([plain], name, isDone)
  const { steps } = plain.wire
  const took = plan(name, kinds, steps)
  const of = (kind: Kind | undefined) => others.filter(({ planned }) => planned?.kind === kind)
  const mark = await lastRows()
  const refused = new Set<Member>()
  await Promise.all([
    ...of(undefined).map(order),
    ...of('cut').map(async member => {
      await order(member)
      await member.reached()
      member.machine.pressPower({ to: 'off' })
    }),
    ...of('abort').map(async member => {
      await order(member)
      await member.reached()
      if ((await undo(job, member)) === 'refused') refused.add(member)
      member.wire.release()
    }),
  ])
  const undone = of('abort').filter(member => !refused.has(member))
  await allCome(undone, `${name}, aborted`, job.isUndone)
  await Promise.all([...undone, ...of('kill')].map(order))
  await partitionDies(of('kill'))
  await allCome(members, name, isDone)

  const events = await eventsAfter(mark.event)
  const cycles = await networkCyclesAfter(mark.order)
  for (const member of took) {
    const where = `${name}: ${member}`
    const own = events.get(member.id) ?? []
    const isUndone = undone.includes(member)
    const made = own.filter(({ kind }) => kind === 'machine.moved').map(({ data }) => data.move)
    expect(made, where).toEqual(isUndone ? [moves[0], job.undo, ...moves] : moves)
    // A release that was aborted when its disks were erased has nothing more to erase.
    const counts = once ? countsPerOrder(own, { kind: once, order: moves[0] as MoveName }) : []
    const isErased = job === release && isUndone && counts[0] === 1
    if (once)
      expect(counts, `${where}: ${once}`).toEqual(isErased ? [1, 0] : isUndone ? [expect.toSatisfy((count: number) => count <= 1), 1] : [1])
    // One for each time that its agent is wanted: a partition that died gives none twice.
    const count = cycles.get(member.id) ?? 0
    const most = member.planned?.kind === 'cut' || (isUndone && !isErased) ? 2 : 1
    expect(count, `${where}: power cycles into the network`).toBeLessThanOrEqual(most)
    if (member.planned?.kind === 'kill') expect(repeatedSteps(own), `${where}: steps told twice`).toEqual([])
  }
  tell(name, steps, took, member => {
    if (member.planned?.kind === 'kill') return 'goes on'
    if (member.planned?.kind === 'abort') return refused.has(member) ? 'refused: it was over' : 'aborted, done again'
    return (cycles.get(member.id) ?? 0) > 1 ? 'begins anew' : member.isOff ? 'was over, stays off' : 'boots its disk'
  })
}

/** Ends what the machine does. Where it is over already that is refused. */
async function undo(job: Job, { id }: Member): Promise<'undone' | 'refused'> {
  try {
    await client.machines[job.undo]({ id })
    return 'undone'
  } catch (error) {
    expect(error).toBeInstanceOf(Refusal)
    expect((error as Refusal).code).toBe('wrong-state')
    return 'refused'
  }
}

interface Told {
  kind: string
  data: { move?: MoveName; step?: string; message?: string }
}

async function lastRows(): Promise<{ event: number; order: number }> {
  const [last] = await sql<{ event: number; order: number }[]>`
    select (select coalesce(max(id), 0)::integer from events) as event, (select coalesce(max(id), 0)::integer from power_orders) as order`
  return last as { event: number; order: number }
}

async function eventsAfter(mark: number): Promise<Map<string, Told[]>> {
  const rows = await sql<(Told & { machine_id: string })[]>`select machine_id, kind, data from events where id > ${mark} order by id`
  return Map.groupBy(rows, row => row.machine_id)
}

async function networkCyclesAfter(mark: number): Promise<Map<string, number>> {
  const rows = await sql<{ machine_id: string; count: number }[]>`
    select machine_id, count(*)::integer as count from power_orders
    where id > ${mark} and asked_by = 'engine' and action = 'cycle' and boot = 'network' group by 1`
  return new Map(rows.map(row => [row.machine_id, row.count]))
}

/** How many there are of a kind behind each order, in their order. */
function countsPerOrder(events: readonly Told[], { kind, order }: { kind: string; order: MoveName }): number[] {
  const counts: number[] = []
  for (const event of events) {
    if (event.data.move === order) counts.push(0)
    if (event.kind === kind) counts.push((counts.pop() ?? 0) + 1)
  }
  return counts
}

function repeatedSteps(events: readonly Told[]): string[] {
  const steps = events.filter(({ kind }) => kind === 'machine.step').map(({ data }) => `${data.step} ${data.message}`)
  return steps.filter((step, index) => step === steps[index - 1])
}

/** Enlist: it is known once, with all that it told. Nobody can abort that. */
async function enlistAll(): Promise<void> {
  const press = ({ machine }: Member) => machine.pressPower({ to: 'on', boot: 'network' })
  const areOff = async (some: readonly Member[]) => {
    await until(() => some.every(({ isOff }) => isOff), limitMs).catch(() => {
      const left = some.filter(({ isOff }) => !isOff).map(member => `${member}: ${JSON.stringify(member.machine.history.slice(-6))}`)
      expect.fail(`${left.length} did not go off:\n${left.slice(0, 5).join('\n')}`)
    })
  }
  plain.begin()
  press(plain)
  await areOff([plain])
  const { steps } = plain.wire
  const took = plan('enlist', ['kill', 'cut'], steps)
  for (const member of others) press(member)
  await areOff(others.slice(took.length))
  await partitionDies(took)
  await until(() => took.every(({ planned, isOff }) => planned?.kind === 'kill' || isOff), limitMs)
  // Somebody presses the button again.
  for (const member of took) if (member.planned?.kind === 'cut') press(member)
  await areOff(members)
  const rows = await sql<{ id: string; mac: string }[]>`select id, interfaces->0->>'mac' as mac from machines`
  const byMac = new Map(rows.map(({ id, mac }) => [mac, id]))
  for (const member of members) member.id = byMac.get(member.machine.bootMac) as string
  expect(new Set(rows.map(({ id }) => id))).toEqual(new Set(members.map(({ id }) => id)))
  const [counted] = await sql`select count(*)::integer as events from events where kind = 'machine.enlisted'`
  expect(counted?.events).toBe(machines)
  await allCome(members, 'enlisted', isIn('new'))
  tell('enlist', steps, took, ({ planned }) => (planned?.kind === 'kill' ? 'goes on' : 'enlists again'))
}

/** Nothing is left behind: no order, no deadline, no fault, no allocation, and no token that is good for anything. */
async function nothingIsLeft(): Promise<void> {
  await allCome(members, 'at rest', row => row.waiting_for === null && row.deadline_at === null && row.fault === null)
  const [left] = await sql`
    select (select count(*)::integer from power_orders where state in ('queued', 'running')) as orders,
      (select count(*)::integer from allocations where state <> 'released') as allocations`
  expect(left).toEqual({ orders: 0, allocations: 0 })
  expect(await client.partitions.status({})).toMatchObject({ overdue: 0, faulty: 0 })
  const tokens = members.flatMap(({ wire }) => [...wire.tokens])
  expect(tokens.length).toBeGreaterThanOrEqual(machines * 3)
  const answers = new Set<number>()
  for (const token of tokens) answers.add((await fetch(`${url}/agent/job`, { headers: { authorization: `Bearer ${token}` } })).status)
  expect([...answers]).toEqual([401])
}
