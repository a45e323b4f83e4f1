// The audit log: who asked for which change, from where, and what came of it. Each server that carries changes out keeps one; its entries are numbered and
// chained by hashes, and sealed with a signature every now and then, so that whoever holds an earlier export can tell that nothing was changed, added between, or taken away.
import { z } from 'zod'
import type { Caller } from './contract/call.ts'
import type { ErrorCode } from './errors.ts'
import { timestamp } from './machine.ts'

/** The log of the fronts, which they share, beside those of the partitions. No partition can have this name. */
export const logOfFronts = '(fronts)'

export const auditEntry = z.object({
  /** Whose log: a partition's name, or {@link logOfFronts}. */
  partition: z.string(),
  /** 1, 2, 3 … in the order in which they ended. */
  seq: z.number().int().min(1),
  /** When it was asked for. */
  at: timestamp,
  endedAt: timestamp,
  actor: z.string(),
  role: z.string(),
  /** The address it was asked from. */
  from: z.string(),
  /** The front that passed it on; null: it was asked of this server itself. */
  via: z.string().nullable(),
  /** The call's name, `machines.deploy`. */
  call: z.string(),
  /** What it was about: an id, a name, several with commas; empty where the input names nothing. */
  target: z.string(),
  /** The fields that were given; their values may be secret and are not kept. */
  fields: z.array(z.string()),
  requestId: z.string(),
  /** `ok`, a code of the error table, or `unknown`: the server that carried it out ended before it could say. */
  outcome: z.string(),
  /** What came of it, where that has an id or a generation. */
  result: z.string().nullable(),
  /** SHA-256 over the entry before's hash and this entry, hex. */
  hash: z.string().regex(/^[0-9a-f]{64}$/),
  /** A signature of this server over seq and hash; the last entry of every batch has one. */
  seal: z.object({ signature: z.string(), key: z.string() }).nullable(),
})
export type AuditEntry = z.infer<typeof auditEntry>

/** What stands before the first entry. */
export const noHash = '0'.repeat(64)

/** The text whose SHA-256 is the hash of `entry`. */
export function chainedText(previousHash: string, entry: Omit<AuditEntry, 'hash' | 'seal'>): string {
  const { partition, seq, at, endedAt, actor, role, from, via, call, target, fields, requestId, outcome, result } = entry
  return JSON.stringify([
    previousHash,
    partition,
    seq,
    at,
    endedAt,
    actor,
    role,
    from,
    via,
    call,
    target,
    fields,
    requestId,
    outcome,
    result,
  ])
}

/** The text that a seal signs. */
export function sealedText({ partition, seq, hash }: Pick<AuditEntry, 'partition' | 'seq' | 'hash'>): string {
  return `${partition} ${seq} ${hash}`
}

/** Somebody who was not let in, or not that far. */
export interface RefusedAttempt {
  readonly call: string
  /** Who it was, where that was known. */
  readonly caller: Caller
  /** The address. */
  readonly from: string
  readonly code: ErrorCode
  /** What it was told; never what it had sent. */
  readonly reason: string
}

/** The call of an entry that counts attempts of one kind that were refused at the door; its target is what was asked for. */
export const refusedCall = 'door.refused'

/** The call of the entry that says that older ones were cut off for their age, by the server itself. It is in the chain and signed like every other. */
export const cutCall = 'audit.cut'

/** Up to which entry the log was cut off, and its hash, by which the first that is left is checked. */
export interface Cut {
  readonly seq: number
  readonly hash: string
}

/** The target of a cut's entry. */
export const cutTarget = ({ seq, hash }: Cut): string => `up to ${seq}, hash ${hash}`

/** The cut that an entry speaks of; undefined: it is none. */
export function cutOf({ call, target }: Pick<AuditEntry, 'call' | 'target'>): Cut | undefined {
  const [, digits, hash] = (call === cutCall && /^up to (\d{1,15}), hash ([0-9a-f]{64})$/.exec(target)) || []
  return digits === undefined || hash === undefined ? undefined : { seq: Number(digits), hash }
}

export interface ChainReport {
  /** How many entries were looked at. */
  readonly entries: number
  /** The number of the last good one. */
  readonly seq: number
  /** The keys that signed, hex. */
  readonly keys: readonly string[]
  /** Up to where the server cut the log off for its age, by the last entry that says so; undefined: it never did. */
  readonly cut: Cut | undefined
  /** The first thing that is wrong; undefined: nothing. What comes behind it proves nothing. */
  readonly problem: string | undefined
}

export interface ChainChecks {
  sha256(text: string): string
  isSigned(text: string, seal: { signature: string; key: string }): Promise<boolean>
}

/** Numbers that are not there, and the entry behind them. */
interface Gap {
  readonly from: number
  readonly next: AuditEntry
}

/**
 * Checks one log, entry by entry from its first on. A log may be cut off at its beginning, also while it is read: the entry behind such a gap is taken at
 * its word until a later one, signed like all, says that it was cut just there, and with which hash.
 */
export class ChainCheck {
  readonly #checks: ChainChecks
  readonly #keys = new Set<string>()
  #entries = 0
  #end = { seq: 0, hash: noHash }
  #sealedUpTo = 0
  #problem: string | undefined
  #gaps: Gap[] = []
  #cut: Cut | undefined

  constructor(checks: ChainChecks) {
    this.#checks = checks
  }

  /** The next entry. After the first that is wrong they are only counted. */
  async add(entry: AuditEntry): Promise<void> {
    this.#entries++
    this.#problem ??= await this.#wrong(entry)
    if (this.#problem !== undefined) return
    if (entry.seq > this.#end.seq + 1) this.#gaps.push({ from: this.#end.seq + 1, next: entry })
    this.#end = entry
    const cut = cutOf(entry)
    if (cut) {
      this.#cut = cut
      const { sha256 } = this.#checks
      this.#gaps = this.#gaps.filter(({ next }) => next.seq !== cut.seq + 1 || sha256(chainedText(cut.hash, next)) !== next.hash)
    }
    if (entry.seal === null) return
    this.#keys.add(entry.seal.key)
    this.#sealedUpTo = entry.seq
  }

  report(): ChainReport {
    const [gap] = this.#gaps
    const { seq } = this.#end
    // Entries are signed as they are chained: an end without a signature was cut off, or put there by somebody without the key.
    const open = `entries ${this.#sealedUpTo + 1} to ${seq} bear no signature: the log ends where no server ended it`
    const problem = (gap && missing(gap)) ?? this.#problem ?? (seq > this.#sealedUpTo ? open : undefined)
    return { entries: this.#entries, seq: gap ? gap.from - 1 : seq, keys: [...this.#keys], cut: this.#cut, problem }
  }

  async #wrong(entry: AuditEntry): Promise<string | undefined> {
    const { sha256, isSigned } = this.#checks
    const { seq, hash } = this.#end
    if (entry.seq <= seq) return `entry ${entry.seq} stands behind ${seq}`
    if (entry.seq === seq + 1 && sha256(chainedText(hash, entry)) !== entry.hash)
      return `entry ${entry.seq} (${entry.actor}, ${entry.call}) or one before it is not what was written`
    if (entry.seal !== null && !(await isSigned(sealedText(entry), entry.seal))) return `the signature of entry ${entry.seq} is not right`
    return undefined
  }
}

const missing = ({ from, next: { seq } }: Gap) =>
  from === seq - 1 ? `entry ${from} is missing` : `entries ${from} to ${seq - 1} are missing`
