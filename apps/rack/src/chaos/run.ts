// One run: a federation of real processes, clients at work, faults at random; then peace, every open question asked again, and the judge.
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import path from 'node:path'
import { startPostgres } from '@muster/embedded/postgres'
import { createClient } from '@muster/shared/client'
import postgres from 'postgres'
import type { Child } from '../federation/child.ts'
import { type Federation, startFederation } from '../federation/federation.ts'
import { attemptsAroundBroker, check, type Limits, usualLimits, type Verdict } from './check.ts'
import { type Antics, runClients } from './clients.ts'
import { type Books, openBooks } from './collect.ts'
import { runFaults, type Victim } from './faults.ts'
import { insertReadyMachines } from './fixture.ts'
import { type Consumed, type Fault, type FaultKind, finalOutcome, type History, now, type Request, wasAbandoned } from './history.ts'
import { openLine } from './line.ts'
import { chance } from './random.ts'
import { pause, Recorder } from './recorder.ts'
import { startReplica } from './replica.ts'

export interface ChaosOptions {
  readonly allocations: number
  readonly clients: number
  readonly fronts: number
  readonly partitions: number
  /** Over all partitions; `rackMachines` of them with a BMC, which releasing speaks to. */
  readonly machines: number
  readonly rackMachines: number
  readonly faults: readonly FaultKind[]
  readonly seed: number
  readonly freezeSeconds: readonly [number, number]
  readonly faultEveryMs: readonly [number, number]
  /** The clients go on until so many servers have been killed, also beyond their allocations. Default 0. */
  readonly leastKills?: number
  /** Processes per partition, on one database. Default 1. */
  readonly replicas?: 1 | 2
  /** The clients stop by then, whatever they have reached. */
  readonly limitMs: number
  readonly limits?: Limits
  /** `keep`: the folder with the logs and databases stays, for whoever wants to know why. */
  readonly folder?: 'keep' | 'remove'
  readonly say?: (line: string) => void
}

export interface Outcome {
  readonly seed: number
  readonly verdict: Verdict
  readonly figures: Figures
  readonly history: History
}

export interface Figures {
  readonly requests: number
  readonly acknowledged: number
  readonly machinesGiven: number
  readonly refused: number
  readonly attempts: number
  readonly seconds: number
  /** Acknowledged allocations per second, each given back too. */
  readonly rate: number
  readonly antics: Antics
  readonly faults: Record<string, number>
  readonly kills: number
  /** Requests without an answer when peace came, and how many of them had machines that nobody knew of. */
  readonly open: number
  readonly openWithMachines: number
  readonly events: number
  readonly consumed: number
  readonly holdsNotConfirmed: number
  readonly longestHoldMs: number
  readonly latencyMs: { readonly p50: number; readonly p99: number; readonly most: number }
  /** Attempts under way while a broker was away: from its return to their answers. */
  readonly brokerAnswerMs: { readonly attempts: number; readonly p50: number; readonly most: number }
  /** From a kill's end to the first answer of /readyz, by kind of server. */
  readonly backMs: Record<string, { readonly p50: number; readonly most: number }>
}

/** Everything is to be at rest so long after the last fault: holds have run out, releases are through. */
const restLimitMs = 90_000

/** Runs, and judges. Throws where the federation itself cannot be set up. */
export async function runChaos(options: ChaosOptions): Promise<Outcome> {
  const say = options.say ?? (() => {})
  await using stage = await setStage(options, say)
  const { federation, books } = stage
  const lines = federation.fronts.map(({ url }) => openLine(url, federation.token))
  const recorder = new Recorder(lines)
  const overdue = new Set<string>()
  const consumer = startConsumer(federation)
  const work = new AbortController()
  const faulty = new AbortController()
  const startedAt = now()
  const stopEarly = setTimeout(() => work.abort(), options.limitMs)
  const progress = setInterval(() => {
    const seconds = (now() - startedAt) / 1000
    say(`${seconds.toFixed(0)} s: ${recorder.acknowledged} allocations acknowledged (${(recorder.acknowledged / seconds).toFixed(0)}/s)`)
    // A database that is just away is asked again next time.
    void noteOverdue(books, overdue)
  }, 10_000)
  try {
    const faults: Fault[] = []
    const breaking = runFaults({
      ...options,
      faults,
      kinds: options.faults,
      victims: stage.victims,
      everyMs: options.faultEveryMs,
      signal: faulty.signal,
      say,
    })
    const isEnough = () => recorder.acknowledged >= options.allocations && faults.filter(isKill).length >= (options.leastKills ?? 0)
    const antics = await runClients({ ...options, recorder, isEnough, signal: work.signal })
    const seconds = (now() - startedAt) / 1000
    faulty.abort()
    await breaking
    say('peace: waiting for rest')
    await untilRest(books, recorder.requests)
    const open = recorder.requests.filter(request => isOpen(request))
    const keys = open.map(({ key }) => key)
    const leaked = new Set((await Promise.all(books.map(book => book.notesWithMachines(keys)))).flat())
    await settle(recorder, open)
    if (open.length > 0) say(`${open.length} requests were open, ${leaked.size} of them had machines`)
    await untilRest(books, [])
    const consumed = await consumer.stop(await Promise.all(books.map(async book => (await book.read()).lastSeq)))
    const partitions = await Promise.all(books.map(book => book.read()))
    const history: History = {
      requests: recorder.requests,
      releases: recorder.releases,
      partitions,
      faults,
      consumed,
      overdue: [...overdue],
      endedAt: now(),
    }
    const limits = options.limits ?? usualLimits
    return {
      seed: options.seed,
      verdict: check(history, limits),
      history,
      figures: figuresOf(history, { antics, seconds, open: open.length, openWithMachines: leaked.size }),
    }
  } finally {
    clearTimeout(stopEarly)
    clearInterval(progress)
    faulty.abort()
    work.abort()
    await consumer.stop([])
    for (const line of lines) line.close()
  }
}

/** What is stuck at this moment. A database that is just away is asked again next time. */
async function noteOverdue(books: readonly Books[], overdue: Set<string>): Promise<void> {
  for (const book of books) for (const line of await book.overdue().catch(() => [])) overdue.add(line)
}

interface Stage extends AsyncDisposable {
  readonly federation: Federation
  readonly books: readonly Books[]
  readonly victims: { readonly [kind in FaultKind]?: readonly Victim[] }
}

/** The federation, its machines ready, and ways to break every part of it. */
async function setStage(options: ChaosOptions, say: (line: string) => void): Promise<Stage> {
  const dataDir = mkdtempSync(path.join('/tmp', 'muster-chaos-'))
  // PostgreSQL's user must be able to walk in, or its data goes elsewhere and stays there.
  chmodSync(dataDir, 0o711)
  // A server of our own, so that it can be crashed and started again. Its data survives a crash of the process, not one of the host.
  const place = { dir: path.join(dataDir, 'postgres'), maxConnections: 50 + options.partitions * 40, sync: 'off' as const }
  let server = await startPostgres(place)
  if (options.faults.includes('postgres')) await commitBeforeAnswer(server.url('postgres'))
  const before = process.env.DATABASE_URL
  process.env.DATABASE_URL = server.url('postgres')
  const seconds: Awaited<ReturnType<typeof startReplica>>[] = []
  const end = async (federation?: Federation, books: readonly Books[] = []) => {
    for (const book of books) await book[Symbol.asyncDispose]()
    for (const { child } of seconds) await child.stop()
    await federation?.stop()
    await server.stop({ how: 'immediate' })
    if (options.folder === 'keep') say(`logs and databases are in ${dataDir}`)
    else rmSync(dataDir, { recursive: true, force: true })
  }
  let federation: Federation
  try {
    federation = await startFederation({
      dataDir,
      partitions: options.partitions,
      fronts: options.fronts,
      machines: options.rackMachines,
      port: 0,
      pace: 'instant',
      broker: 'always the embedded',
      partitionEnv: { LOG_LEVEL: 'warn' },
      say,
    })
  } catch (error) {
    await end()
    throw error
  } finally {
    if (before === undefined) delete process.env.DATABASE_URL
    else process.env.DATABASE_URL = before
  }
  const { partitions, fronts, broker } = federation
  const books = partitions.map(({ name, databaseUrl }) => openBooks(name, databaseUrl))
  try {
    if (options.replicas === 2)
      for (const { name } of partitions) seconds.push(await startReplica(federation, { dataDir, partition: name, replica: 'b' }))
    const random = chance('machines', options.seed)
    const inserted = options.machines - options.rackMachines
    for (const [index, { name, databaseUrl }] of partitions.entries()) {
      const share = Math.floor(inserted / partitions.length) + (index < inserted % partitions.length ? 1 : 0)
      await insertReadyMachines(databaseUrl, { partition: name, machines: share, random })
    }
    await untilReady(federation, options.machines)
  } catch (error) {
    await end(federation, books)
    throw error
  }
  const servers = [...partitions, ...seconds]
  const ofPartition = ({ name, url, child }: { name: string; url: string; child: Child }): Victim => ({
    ...victimOf(child, `partition ${name}`),
    // Two replicas answer for one partition: what one of them cannot do, the other must.
    name: seconds.length === 0 ? child.name : `replica of ${name} at ${url}`,
    signal: signal => child.signal(signal),
    answers: () => untilAnswers(`${url}/readyz`),
  })
  return {
    federation,
    books,
    victims: {
      front: fronts.map(({ child }) => victimOf(child)),
      partition: servers.map(ofPartition),
      freeze: servers.map(ofPartition),
      broker: broker ? [victimOf(broker)] : [],
      postgres: [
        {
          name: 'postgres',
          service: 'postgres',
          kill: () => server.stop({ how: 'immediate' }),
          start: async () => {
            server = await startPostgres(place)
            await Promise.all(servers.map(({ url }) => untilAnswers(`${url}/readyz`)))
          },
        },
      ],
    },
    [Symbol.asyncDispose]: () => end(federation, books),
  }
}

/** Without a sync a commit survives the crash of a server only if it was handed to the operating system before it was acknowledged. */
async function commitBeforeAnswer(url: string): Promise<void> {
  const sql = postgres(url, { max: 1, onnotice: () => {} })
  try {
    await sql`alter role current_user set synchronous_commit = on`
  } finally {
    await sql.end()
  }
}

const isKill = ({ kind }: Fault) => kind !== 'freeze'

const victimOf = (child: Child, service = child.name): Victim => ({
  name: child.name,
  service,
  kill: () => child.kill(),
  start: () => child.start(),
})

const answerLimitMs = 30_000

async function untilAnswers(url: string): Promise<void> {
  const until = Date.now() + answerLimitMs
  for (;;) {
    const response = await fetch(url, { signal: AbortSignal.timeout(2_000) }).catch(() => undefined)
    await response?.arrayBuffer()
    if (response?.ok) return
    if (Date.now() > until) throw new Error(`${url} did not answer within ${answerLimitMs / 1000} s`)
    await pause(30)
  }
}

async function untilReady({ fronts, token }: Federation, machines: number): Promise<void> {
  const client = createClient({ url: (fronts[0] as { url: string }).url, token })
  const until = Date.now() + 120_000
  for (;;) {
    const { machines: states } = await client.partitions.status({})
    if ((states.ready ?? 0) >= machines) return
    if (Date.now() > until) throw new Error(`of ${machines} machines only these became ready in time: ${JSON.stringify(states)}`)
    await pause(200)
  }
}

/** Whether a request's fate is open: nobody told the client, or an attempt it walked away from may have gone on. */
function isOpen(request: Request): boolean {
  const outcome = finalOutcome(request)
  return outcome?.kind === 'unknown' || (outcome?.kind === 'refused' && wasAbandoned(request))
}

/** Waits until all that ends by itself has ended: holds, releases, numbering. What belongs to open requests may stay. */
async function untilRest(books: readonly Books[], requests: readonly Request[]): Promise<void> {
  const mayStay = requests.filter(isOpen).reduce((sum, { count }) => sum + count, 0)
  const until = Date.now() + restLimitMs
  while (Date.now() < until) {
    const unrest = await Promise.all(books.map(book => book.unrest()))
    const total = (state: string) => unrest.reduce((sum, { states }) => sum + (states[state] ?? 0), 0)
    const passing = ['reserved', 'releasing', 'commissioning'].reduce((sum, state) => sum + total(state), 0)
    const unnumbered = unrest.reduce((sum, each) => sum + each.unnumbered, 0)
    if (passing === 0 && unnumbered === 0 && total('allocated') <= mayStay) return
    await pause(250)
  }
}

/** Asks again for every open request, with its key: the way out that a client has. What it turns out to have is given back. */
async function settle(recorder: Recorder, open: readonly Request[]): Promise<void> {
  for (const request of open)
    for (let attempt = 0; attempt < settleAttempts; attempt++) {
      const outcome = await recorder.attempt(request, attempt)
      if (outcome.kind === 'acknowledged') await recorder.release(outcome.allocation, attempt, 30_000)
      // A wish that nothing can fulfil stays so, now that everything is free.
      if (outcome.kind === 'acknowledged' || (outcome.kind === 'refused' && outcome.code === 'no-match')) break
      await pause(200)
    }
}

/** Everything is up again, so the first should do. */
const settleAttempts = 10

interface Consumer {
  /** Reads on until it has seen these last numbers, in the order of the partitions, or a limit; answers what it saw. Idempotent. */
  stop(lastSeqs: readonly number[]): Promise<Consumed[]>
}

const consumerLimitMs = 30_000

/** Follows the events of all partitions through the first front, whatever happens to it. */
function startConsumer({ fronts, partitions, token }: Federation): Consumer {
  const seen = new Map<string, number[]>(partitions.map(({ name }) => [name, []]))
  const stopping = new AbortController()
  const client = createClient({ url: (fronts[0] as { url: string }).url, token })
  const reading = (async () => {
    for await (const { data } of client.events.stream({ after: '0' }, { signal: stopping.signal })) seen.get(data.partition)?.push(data.seq)
  })().catch(() => {})
  return {
    stop: async lastSeqs => {
      const until = Date.now() + consumerLimitMs
      const isThrough = () => partitions.every(({ name }, index) => (seen.get(name)?.at(-1) ?? 0) >= (lastSeqs[index] ?? 0))
      while (!stopping.signal.aborted && !isThrough() && Date.now() < until) await pause(100)
      stopping.abort()
      await reading
      return [...seen].map(([partition, seqs]) => ({ partition, seqs }))
    },
  }
}

function figuresOf(
  history: History,
  { antics, seconds, open, openWithMachines }: { antics: Antics; seconds: number; open: number; openWithMachines: number },
): Figures {
  const { requests, faults, partitions, consumed } = history
  const attempts = requests.flatMap(request => request.attempts)
  const finals = requests.map(finalOutcome)
  const acknowledged = finals.filter(outcome => outcome?.kind === 'acknowledged')
  const latencies = attempts.flatMap(({ startedAt, endedAt, outcome }) => (outcome.kind === 'acknowledged' ? [endedAt - startedAt] : []))
  const answers = attemptsAroundBroker(history).map(({ attempt, backAt }) => Math.max(0, attempt.endedAt - backAt))
  const holds = holdTimes(history)
  const byKind = Map.groupBy(faults, ({ kind }) => kind)
  return {
    requests: requests.length,
    acknowledged: acknowledged.length,
    machinesGiven: acknowledged.reduce((sum, outcome) => sum + (outcome?.kind === 'acknowledged' ? outcome.machines.length : 0), 0),
    refused: finals.filter(outcome => outcome?.kind === 'refused').length,
    attempts: attempts.length,
    seconds: Math.round(seconds),
    rate: Math.round((acknowledged.length / seconds) * 10) / 10,
    antics,
    faults: Object.fromEntries([...byKind].map(([kind, some]) => [kind, some.length])),
    kills: faults.filter(isKill).length,
    open,
    openWithMachines,
    events: partitions.reduce((sum, { log }) => sum + log.length, 0),
    consumed: consumed.reduce((sum, { seqs }) => sum + seqs.length, 0),
    holdsNotConfirmed: holds.unconfirmed,
    longestHoldMs: Math.round(holds.longestMs),
    latencyMs: { p50: quantile(latencies, 0.5), p99: quantile(latencies, 0.99), most: quantile(latencies, 1) },
    brokerAnswerMs: { attempts: answers.length, p50: quantile(answers, 0.5), most: quantile(answers, 1) },
    backMs: Object.fromEntries(
      [...byKind].map(([kind, some]) => {
        const times = some.flatMap(({ restartedAt, to }: Fault) => (to === undefined ? [] : [to - restartedAt]))
        return [kind, { p50: quantile(times, 0.5), most: quantile(times, 1) }]
      }),
    ),
  }
}

function holdTimes({ partitions }: History): { unconfirmed: number; longestMs: number } {
  let unconfirmed = 0
  let longestMs = 0
  for (const { log } of partitions) {
    const heldAt = new Map<string, number>()
    for (const { move, machine, at } of log) {
      if (machine === null) continue
      if (move === 'hold') heldAt.set(machine, at)
      else if (move === 'confirm' || move === 'drop' || move === 'expire') {
        if (move !== 'confirm') unconfirmed++
        longestMs = Math.max(longestMs, at - (heldAt.get(machine) ?? at))
      }
    }
  }
  return { unconfirmed, longestMs }
}

function quantile(numbers: readonly number[], share: number): number {
  const sorted = [...numbers].sort((a, b) => a - b)
  return Math.round((sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0) * 10) / 10
}
