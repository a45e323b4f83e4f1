// The clients: each asks for machines, uses them for a moment, gives them back, and starts again. Some are badly behaved: they walk away and
// come back, ask both fronts at once, repeat what is long done.

import type { Request } from './history.ts'
import { type Chance, chance } from './random.ts'
import { pause, type Recorder, type Wish } from './recorder.ts'

export interface ClientsOptions {
  readonly recorder: Recorder
  readonly clients: number
  readonly fronts: number
  readonly seed: number
  /** Whether it is time to stop. */
  readonly isEnough: () => boolean
  readonly signal: AbortSignal
}

/** What clients did beside asking once and giving back once. */
export interface Antics {
  /** Attempts beyond the first of their key. */
  retried: number
  abandoned: number
  doubled: number
  lateKeys: number
  lateReleases: number
}

/** How long a client insists on one wish, and on giving back. Longer than a hold lives and a frozen partition sleeps. */
const insistMs = 25_000
const giveBackMs = 120_000
/** A client that no front can serve asks again, less and less often. */
const pauseMs = { first: 20, most: 400 }

export async function runClients(options: ClientsOptions): Promise<Antics> {
  const antics: Antics = { retried: 0, abandoned: 0, doubled: 0, lateKeys: 0, lateReleases: 0 }
  await Promise.all(Array.from({ length: options.clients }, (_, client) => runClient(options, client, antics)))
  return antics
}

async function runClient(options: ClientsOptions, client: number, antics: Antics): Promise<void> {
  const { recorder, seed, signal } = options
  const random = chance('client', seed, client)
  const later: Promise<void>[] = []
  for (let number = 0; !signal.aborted && !options.isEnough(); number++) {
    const request = recorder.open(client, `s${seed}-c${client}-${number}`, wish(random))
    const front = random.between(0, options.fronts - 1)
    const allocation = await insist(options, request, { front, random, antics })
    if (allocation === undefined) {
      await pause(random() * 20)
      continue
    }
    if (random.oneIn(4)) await pause(random() * 30)
    if (random.oneIn(100)) {
      // Impatient: both fronts are told to release it, at the same time.
      antics.lateReleases++
      later.push(recorder.releaseOnce(allocation, front + 1).then(() => {}))
      // What this second voice did counts from its beginning, which is now: the recorded release starts in the same turn.
    }
    await recorder.release(allocation, front, giveBackMs)
    if (random.oneIn(50)) later.push(repeatLater(options, { request, allocation, random, antics }))
    if (later.length > 20) await Promise.all(later.splice(0))
  }
  await Promise.all(later)
}

/** Asks until there is an answer that asking again would not better, or patience ends. Answers the allocation's id. */
async function insist(
  { recorder, signal }: ClientsOptions,
  request: Request,
  { front, random, antics }: { front: number; random: Chance; antics: Antics },
): Promise<string | undefined> {
  const until = Date.now() + insistMs
  let waitMs: number = pauseMs.first
  const once = async (through: number) => {
    if (request.attempts.length > 0) antics.retried++
    if (random.oneIn(60)) {
      antics.abandoned++
      return recorder.attempt(request, through, AbortSignal.timeout(random.between(0, 25)))
    }
    if (!random.oneIn(60)) return recorder.attempt(request, through)
    antics.doubled++
    const [first, second] = await Promise.all([recorder.attempt(request, through), recorder.attempt(request, through + 1)])
    return first.kind === 'acknowledged' ? first : second
  }
  for (let attempt = front; ; attempt++) {
    const outcome = await once(attempt)
    if (outcome.kind === 'acknowledged') return outcome.allocation
    if (outcome.kind === 'refused' && outcome.code === 'no-match' && !signal.aborted && random.oneIn(2)) return undefined
    if (Date.now() > until) return undefined
    // After a broken line the other front is asked at once: that is what two fronts are for.
    if (outcome.kind !== 'unknown' || outcome.how === 'told') {
      await pause(waitMs * (0.5 + random()))
      waitMs = Math.min(waitMs * 2, pauseMs.most)
    }
  }
}

/** Long after: the release once more, which must not touch the machines' next owner, and the request, which must get its old answer. */
async function repeatLater(
  { recorder }: ClientsOptions,
  { request, allocation, random, antics }: { request: Request; allocation: string; random: Chance; antics: Antics },
): Promise<void> {
  await pause(random() * 200)
  antics.lateReleases++
  await recorder.releaseOnce(allocation, random.between(0, 1))
  antics.lateKeys++
  await recorder.attempt(request, random.between(0, 1))
}

const strategies = ['first', 'best', 'best', 'spread', 'pack'] as const

/** What is asked for: mostly something that several partitions have, sometimes something scarce. */
function wish(random: Chance): Wish {
  const count = random.pick([1, 1, 1, 2, 2, 3])
  const constraints: Record<string, unknown> = {}
  if (random.oneIn(3)) constraints.tags = [`t${random.between(0, 4)}`]
  if (random.oneIn(4)) constraints.cpus = random.pick([4, 8, 16])
  if (random.oneIn(8)) constraints.notTags = [`t${random.between(0, 4)}`]
  if (random.oneIn(12)) constraints.zones = [`z${random.between(1, 3)}`]
  return { strategy: random.pick(strategies), count, constraints }
}
