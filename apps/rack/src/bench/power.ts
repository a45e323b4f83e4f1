// P5: reading the power of every BMC once: our driver with fresh and with live sessions, beside ipmipower and beside the floor, the cryptography and the
// datagrams alone. Then the same while the network loses datagrams.
import { execFile } from 'node:child_process'
import { findProgram } from '@muster/embedded/find-program'
import { costing } from './cpu.ts'
import { rounded, Tally } from './figures.ts'
import { Helper } from './helper.ts'
import type { Plan } from './plan.ts'
import type { PowerBmcs } from './power-bmcs.ts'
import { makePlace, type Place } from './power-place.ts'
import type { Polled, PowerPoller } from './power-poller.ts'
import { percent, table } from './table.ts'

/** As many as the partition's monitor reads at once. */
const concurrency = 96
const lossRate = 0.05
const account = { user: 'ADMIN', password: 'secret' }
/** ipmipower knows no other port than 623, which needs root. */
const isRoot = process.getuid?.() === 0
const port = isRoot ? 623 : 6230
const network = 2 + (process.pid % 250)
const suites = [17, 3] as const
type Suite = (typeof suites)[number]

/** What is measured, all BMCs once. */
interface Way {
  name: string
  suite: Suite
  /** What is not measured: opens the sessions that stay open. */
  before?: () => Promise<unknown>
  read: () => Promise<{ result: Polled; micros: number }>
  after?: () => Promise<unknown>
}

/** What the network does while it is measured, and that it ends. */
interface Weather {
  begin: () => Promise<void>
  end: () => Promise<void>
}

class Row {
  readonly tally = new Tally()
  readonly failures = new Map<string, number>()
  readonly way: Way

  constructor(way: Way) {
    this.way = way
  }

  async measure(weather?: Weather): Promise<void> {
    await this.way.before?.()
    await weather?.begin()
    const { result, micros } = await this.way.read()
    await weather?.end()
    await this.way.after?.()
    this.tally.add(result, { poller: micros })
    for (const [kind, count] of result.failures) this.failures.set(kind, (this.failures.get(kind) ?? 0) + count)
  }

  get failed(): number {
    return [...this.failures.values()].reduce((sum, count) => sum + count, 0)
  }

  get micros(): number {
    return this.tally.costEach.poller ?? 0
  }
}

export interface PowerFigures {
  text: string
  figures: Record<string, unknown>
  faults: string[]
}

/** Measures `plan.machines` BMCs on this host. */
export async function measurePower(plan: Plan, say: (line: string) => void): Promise<PowerFigures> {
  const count = plan.machines
  const place = await makePlace(say)
  const stops: (() => Promise<unknown>)[] = [() => place.stop()]
  try {
    say(`power: starting ${count} BMCs in ${place.text}`)
    const bmcs = new Helper<PowerBmcs>(new URL('./power-bmcs.ts', import.meta.url), 'the BMCs', place.through)
    stops.push(() => bmcs.stop())
    const addresses = await bmcs.ask('start', { count, network, port, ...account })
    const echoPort = await bmcs.ask('echo', undefined)
    const ways: Way[] = []
    for (const suite of suites) {
      const poller = new Helper<PowerPoller>(new URL('./power-poller.ts', import.meta.url), `the poller of suite ${suite}`, place.through)
      stops.push(() => poller.stop())
      await poller.ask('prepare', { addresses: addresses.map(address => `${address}:${port}`), ...account, suite })
      ways.push(...waysOf(poller, { count, echoPort, suite }))
      const peer = peerOf(place, { addresses, suite })
      if (peer) ways.push(peer)
    }
    if (!ways.some(({ name }) => name === peerName)) say('power: without ipmipower: it needs root and freeipmi-tools')

    say('power: warming up')
    for (const way of ways) await new Row(way).measure()
    const whole = ways.map(way => new Row(way))
    for (let round = 0; round < plan.rounds + 1; round++) {
      say(`power: round ${round + 1} of ${plan.rounds + 1}`)
      for (const row of whole) await row.measure()
    }
    const sessionsAtOnce = await bmcs.ask('sessionsAtOnce', undefined)

    const how = place.lose ? 'iptables in the namespace' : 'the BMCs, each datagram in and each out'
    say(`power: losing ${percent(lossRate)} each way, by ${how}`)
    const lose = (rate: number) => (place.lose ? place.lose(rate) : bmcs.ask('drop', rate))
    const weather: Weather = { begin: () => lose(lossRate), end: () => lose(0) }
    // Live ones first: logins that came to nothing are remembered for 30 s, and would slow down the opening of those.
    const lossy = [...ways.filter(({ name }) => name === 'live'), ...ways.filter(({ name }) => name === 'fresh' || name === peerName)].map(
      way => new Row(way),
    )
    for (const row of lossy) await row.measure(weather)

    return report({ count, place, how, whole, lossy, sessionsAtOnce })
  } finally {
    for (let stop = stops.pop(); stop; stop = stops.pop()) await stop()
  }
}

function waysOf(poller: Helper<PowerPoller>, { count, echoPort, suite }: { count: number; echoPort: number; suite: Suite }): Way[] {
  const cost = async (act: () => Promise<Polled>) => {
    const { result, costs } = await costing({ poller: () => [poller.pid] }, act)
    return { result, micros: costs.poller ?? 0 }
  }
  const floor = (kind: 'fresh' | 'live') => poller.ask('floor', { kind, count, concurrency, port: echoPort, suite })
  return [
    { name: 'fresh', suite, read: () => cost(() => poller.ask('fresh', concurrency)) },
    { name: 'floor of fresh', suite, read: () => cost(() => floor('fresh')) },
    {
      name: 'live',
      suite,
      before: () => poller.ask('live', concurrency),
      read: () => cost(() => poller.ask('live', concurrency)),
      after: () => poller.ask('hangUp', undefined),
    },
    { name: 'floor of live', suite, read: () => cost(() => floor('live')) },
  ]
}

const peerName = 'ipmipower'

/** FreeIPMI's, all BMCs at once, which is what it does best. */
function peerOf(place: Place, { addresses, suite }: { addresses: readonly string[]; suite: Suite }): Way | undefined {
  const program = findProgram(peerName)
  if (program === undefined || !isRoot) return undefined
  const { user, password } = account
  const asked = [program, '--driver-type=LAN_2_0', '-I', `${suite}`, '-u', user, '-p', password, '--stat', '-h', addresses.join(',')]
  // `times` of the shell tells what its children used.
  const command = [...place.through, 'bash', '-c', '"$@" 2>&1; times', 'bash', ...asked] as [string, ...string[]]
  return {
    name: peerName,
    suite,
    read: async () => {
      const startedAt = performance.now()
      const said = await output(command)
      const elapsedMs = performance.now() - startedAt
      const failures = new Map<string, number>()
      let answered = 0
      for (const line of said.split('\n')) {
        const what = /^127\.[\d.]+: (.+)$/.exec(line)?.[1]
        if (what === 'on') answered++
        else if (what !== undefined) failures.set(what, (failures.get(what) ?? 0) + 1)
      }
      const named = [...failures.values()].reduce((sum, each) => sum + each, 0)
      const unnamed = addresses.length - answered - named
      if (unnamed > 0) failures.set('said nothing', unnamed)
      const result = { count: addresses.length, elapsedMs, latenciesMs: new Float64Array(), failures }
      return { result, micros: childrenMicros(said) }
    },
  }
}

function output([program, ...args]: [string, ...string[]]): Promise<string> {
  // Its exit code tells that some BMC failed, which is counted from what it says.
  return new Promise(resolve => execFile(program, args, { maxBuffer: 64 * 2 ** 20 }, (_, stdout) => resolve(stdout)))
}

/** The second line of `times`: user and system time of the children, as `0m1.234s 0m0.567s`. */
function childrenMicros(said: string): number {
  const last = said.trimEnd().split('\n').at(-1) ?? ''
  const times = [...last.matchAll(/(\d+)m([\d.]+)s/g)]
  if (times.length !== 2) throw new Error(`the shell did not tell the times of ${peerName}: ${last}`)
  return times.reduce((sum, [, minutes, seconds]) => sum + (Number(minutes) * 60 + Number(seconds)) * 1e6, 0)
}

interface Measured {
  count: number
  place: Place
  how: string
  whole: readonly Row[]
  lossy: readonly Row[]
  sessionsAtOnce: number
}

function report({ count, place, how, whole, lossy, sessionsAtOnce }: Measured): PowerFigures {
  const faults = whole
    .filter(({ failed, way }) => failed > 0 && way.name !== peerName)
    .map(({ failures, way }) => `${way.name}, suite ${way.suite}: ${told(failures)} without any loss`)
  if (sessionsAtOnce > 1) faults.push(`a BMC had ${sessionsAtOnce} sessions at once`)
  const floorOf = ({ way }: Row) => whole.find(row => row.way.name === `floor of ${way.name}` && row.way.suite === way.suite)
  const peer = ({ way }: Row) => whole.find(row => row.way.name === peerName && row.way.suite === way.suite)
  const line = (row: Row) => {
    const { tally, micros, failures, way } = row
    const floor = floorOf(row)
    const beside = peer(row)
    const isPeer = way.name === peerName
    return [
      `${way.name}, suite ${way.suite}`,
      rounded(tally.count),
      rounded(micros, 1),
      floor ? `${rounded(micros / floor.micros, 2)} ×` : '',
      beside && !isPeer ? `${rounded(micros / beside.micros, 2)} ×` : '',
      rounded(tally.perSecond),
      isPeer ? '' : rounded(tally.latencyMs(0.5), 1),
      isPeer ? '' : rounded(tally.latencyMs(0.99)),
      rounded(tally.elapsedMs / 1000 / (tally.count / count), 2),
      failures.size === 0 ? '0' : `${rounded((row.failed / tally.count) * 100, 2)} %: ${told(failures)}`,
    ]
  }
  const head = ['', 'polls', 'CPU µs', 'of the floor', 'of ipmipower', 'per s', 'p50 ms', 'p99 ms', 's a round', 'failed']
  const text = [
    `P5  reading the power of ${count} BMCs: CPU µs of the poller per BMC, ${concurrency} at once, ipmipower all at once; in ${place.text}`,
    '    (goals: fresh ≤ 200 µs, live ≤ 60 µs, no failures at 5 % loss)',
    table(head, whole.map(line)),
    `  ${percent(lossRate)} of the datagrams lost each way, by ${how}:`,
    table(head, lossy.map(line)),
  ].join('\n')
  const figuresOf = (rows: readonly Row[]) =>
    rows.map(row => ({
      way: row.way.name,
      suite: row.way.suite,
      polls: row.tally.count,
      cpuMicros: rounded(row.micros, 1),
      perSecond: rounded(row.tally.perSecond),
      ...(row.way.name !== peerName && { p50Ms: rounded(row.tally.latencyMs(0.5), 2), p99Ms: rounded(row.tally.latencyMs(0.99), 2) }),
      failed: row.failed,
    }))
  return {
    text,
    figures: { bmcs: count, concurrency, place: place.text, lossBy: how, whole: figuresOf(whole), lossy: figuresOf(lossy), sessionsAtOnce },
    faults,
  }
}

const told = (failures: ReadonlyMap<string, number>) => [...failures].map(([kind, count]) => `${count} ${kind}`).join(', ')
