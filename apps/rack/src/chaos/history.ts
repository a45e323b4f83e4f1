// What happened in a run, as the checker reads it: what clients asked and were told, what the partitions wrote down, what was broken on
// purpose. Data only. All times are milliseconds of the same host's wall clock, with fractions.

/** What a client knows after one attempt at an allocation. */
export type Outcome =
  /** The machines are the client's; a late retry sees the allocation as it stands by then, perhaps without machines. */
  | { readonly kind: 'acknowledged'; readonly allocation: string; readonly machines: readonly string[] }
  /**
   * The server said that nothing was allocated. `speaksFor`: by this attempt, where the server could not look the key up, or under the key.
   */
  | { readonly kind: 'refused'; readonly speaksFor: 'attempt' | 'key'; readonly code: string; readonly detail: string }
  /**
   * No answer, or one that leaves it open. `abandoned`: the client went away while the server may have worked on, so the next attempt
   * with the key runs beside this one; after a `broken` line nobody works on it any more.
   */
  | { readonly kind: 'unknown'; readonly how: 'broken' | 'abandoned' | 'told'; readonly detail: string }

export interface Attempt {
  /** Which front was asked, from 0. */
  readonly front: number
  readonly startedAt: number
  readonly endedAt: number
  readonly outcome: Outcome
}

/** One wish of one client, under one Idempotency-Key; all attempts at it, in the order in which they ended. */
export interface Request {
  /** Also the allocation's note, so that rows of the partitions lead back to it. */
  readonly key: string
  readonly client: number
  readonly count: number
  readonly attempts: Attempt[]
}

/** An allocation given back by its client. */
export interface Release {
  readonly allocation: string
  /** When the first attempt was sent: from then on the machines are no longer surely the client's. */
  readonly requestedAt: number
  /** When all partitions had said yes; undefined where they never did. */
  answeredAt?: number
  /** Refusals that a client in its right may not get. */
  readonly refusals: string[]
}

/** An event as the partition's database has it. `id` is the order of insertion, `seq` the number that consumers see. */
export interface LogEntry {
  readonly id: number
  readonly seq: number
  readonly at: number
  readonly kind: string
  readonly machine: string | null
  readonly move?: string
  readonly from?: string
  readonly to?: string
  readonly allocation?: string
}

export interface AllocationRecord {
  readonly id: string
  readonly state: 'held' | 'confirmed' | 'released' | 'dropped'
  /** Of the whole allocation, over all partitions. */
  readonly count: number
  readonly note: string
  readonly machines: readonly string[]
}

export interface MachineRecord {
  readonly id: string
  readonly state: string
  readonly allocation: string | null
}

/** Everything one partition's database holds at the end. */
export interface PartitionRecord {
  readonly name: string
  readonly lastSeq: number
  readonly unnumbered: number
  readonly log: readonly LogEntry[]
  readonly allocations: readonly AllocationRecord[]
  readonly machines: readonly MachineRecord[]
}

export const faultKinds = ['front', 'partition', 'broker', 'freeze', 'postgres'] as const
export type FaultKind = (typeof faultKinds)[number]

/** Something broken on purpose. */
export interface Fault {
  readonly kind: FaultKind
  /** `front 1`, `partition p2`, `broker`. */
  readonly target: string
  readonly from: number
  /** When the way back was begun: the process started again, or woken. */
  readonly restartedAt: number
  /** When it was of use again; undefined: never. */
  readonly to?: number
}

/** What a consumer of the event stream saw of one partition: numbers in the order in which they came. */
export interface Consumed {
  readonly partition: string
  readonly seqs: readonly number[]
}

export interface History {
  readonly requests: readonly Request[]
  readonly releases: readonly Release[]
  readonly partitions: readonly PartitionRecord[]
  readonly faults: readonly Fault[]
  readonly consumed: readonly Consumed[]
  /** Machines that were found past their deadline by more than the time promised, with what they were at. */
  readonly overdue: readonly string[]
  /** When the partitions' databases were read. */
  readonly endedAt: number
}

/**
 * The last word on a request: acknowledged once is acknowledged. A refusal that speaks for its own attempt leaves open what was open before
 * it.
 */
export function finalOutcome({ attempts }: Request): Outcome | undefined {
  const outcomes = attempts.map(({ outcome }) => outcome)
  const acknowledged = outcomes.find(({ kind }) => kind === 'acknowledged')
  if (acknowledged) return acknowledged
  return outcomes.findLast(outcome => outcome.kind !== 'refused' || outcome.speaksFor === 'key') ?? outcomes.at(-1)
}

/** Whether an attempt may still have been at work when a later one was answered: then the later answer does not speak for it. */
export function wasAbandoned({ attempts }: Request): boolean {
  return attempts.some(({ outcome }) => outcome.kind === 'unknown' && outcome.how === 'abandoned')
}

/** The wall clock, because the databases' events carry it too: in a long run the process's own clock would drift away from it. */
export const now = () => Date.now()
