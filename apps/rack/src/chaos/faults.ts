// Breaks servers at random while clients are at work, and brings them back: one after the other with pauses, now and then two at once.
import { type Fault, type FaultKind, now } from './history.ts'
import { type Chance, chance } from './random.ts'
import { pause } from './recorder.ts'

/** Something that can be killed, or frozen, and brought back. */
export interface Victim {
  readonly name: string
  /** What is gone when all that carry this name are: two replicas of one partition are never broken together. */
  readonly service: string
  kill(): Promise<void>
  /** Resolves when it is of use again. */
  start(): Promise<void>
  signal?(signal: 'SIGSTOP' | 'SIGCONT'): void
  /** Resolves when it answers after having been frozen. */
  answers?(): Promise<void>
}

export interface FaultsOptions {
  readonly victims: { readonly [kind in FaultKind]?: readonly Victim[] }
  readonly kinds: readonly FaultKind[]
  readonly seed: number
  /** How long a partition is frozen, in seconds: at least, at most. */
  readonly freezeSeconds: readonly [number, number]
  /** How long the pause between two faults is, in milliseconds. */
  readonly everyMs: readonly [number, number]
  /** What has been broken and mended so far: grows. */
  readonly faults: Fault[]
  readonly signal: AbortSignal
  readonly say: (line: string) => void
}

/** Some 15 % of all faults have company. */
const pairsOneIn = 7

/** Breaks and mends until the signal; everything is mended when it resolves. Every kind comes once before any comes twice. */
export async function runFaults(options: FaultsOptions): Promise<void> {
  const { kinds, seed, signal, everyMs, faults } = options
  const random = chance('faults', seed)
  if (kinds.length === 0) return
  let left: FaultKind[] = []
  const nextKind = () => {
    if (left.length === 0) left = [...kinds].sort(() => random() - 0.5)
    return left.pop() as FaultKind
  }
  while (!signal.aborted) {
    await pauseUnless(random.between(...everyMs), signal)
    if (signal.aborted) break
    const victims = [pick(options, nextKind(), random)]
    if (random.oneIn(pairsOneIn)) {
      const second = pick(options, nextKind(), random)
      if (second.victim.service !== victims[0]?.victim.service) victims.push(second)
    }
    faults.push(...(await Promise.all(victims.map(each => breakAndMend(options, { ...each, random })))))
  }
}

function pick({ victims }: FaultsOptions, kind: FaultKind, random: Chance): { kind: FaultKind; victim: Victim } {
  return { kind, victim: random.pick(victims[kind] ?? []) }
}

async function breakAndMend(
  { freezeSeconds, signal, say }: FaultsOptions,
  { kind, victim, random }: { kind: FaultKind; victim: Victim; random: Chance },
): Promise<Fault> {
  const from = now()
  const isFrozen = kind === 'freeze'
  const [least, most] = freezeSeconds
  // Mostly short, now and then as long as may be.
  const awayMs = isFrozen ? (least + (most - least) * random() ** 2) * 1000 : random.pick([0, 100, 500, 1500])
  if (isFrozen) victim.signal?.('SIGSTOP')
  else await victim.kill()
  await pauseUnless(awayMs, signal)
  const restartedAt = now()
  const fault = { kind, target: victim.name, from, restartedAt }
  try {
    if (isFrozen) {
      victim.signal?.('SIGCONT')
      await victim.answers?.()
    } else await victim.start()
    const to = now()
    say(`${isFrozen ? 'froze' : 'killed'} ${victim.name}: away ${Math.round(to - from)} ms`)
    return { ...fault, to }
  } catch (error) {
    say(`${victim.name} did not come back: ${(error as Error).message}`)
    return fault
  }
}

async function pauseUnless(ms: number, signal: AbortSignal): Promise<void> {
  const until = Date.now() + ms
  while (Date.now() < until && !signal.aborted) await pause(Math.min(100, until - Date.now()))
}
