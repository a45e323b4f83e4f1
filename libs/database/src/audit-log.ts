// The audit log of one server. What it promises: no change without an entry. An entry is written before its change begins; PostgreSQL writes in order, so a change that
// was made durable has made its entry durable too, and nobody waits for the disk on its account (`connectAudit`). What came of it is added when the
// change has ended; a process that dies in between leaves `unknown`, which is the truth.
import { createHash } from 'node:crypto'
import {
  type AuditEntry,
  chainedText,
  cutCall,
  cutOf,
  cutTarget,
  noHash,
  type RefusedAttempt,
  refusedCall,
  sealedText,
} from '@muster/shared/audit'
import type { Caller } from '@muster/shared/contract/call'
import { Refusal } from '@muster/shared/errors'
import { Attempts, type CountedAttempts } from './attempts.ts'
import * as db from './audit.ts'
import { connect, inTransaction, type Sql } from './connect.ts'
import { Together } from './together.ts'

/** One change as it is asked for. */
export interface ChangeAsked {
  readonly call: string
  readonly input: unknown
  readonly caller: Caller
  readonly from: string
  readonly via: string | null
  readonly requestId: string
}

export interface AuditLogOptions {
  /** Whose log: the partition's name, or that of the fronts. */
  readonly partition: string
  /** This process: what an earlier one of this name has left open is closed. */
  readonly server: string
  /** Runs a statement; throws a Refusal where the database is away. */
  readonly run: <Answer>(act: (sql: Sql) => Promise<Answer>) => Promise<Answer>
  readonly sign: (text: string) => { readonly signature: string; readonly key: string }
  readonly onTrouble: (error: unknown, text: string) => void
}

/** No call may be waited for as long: its server has gone, and did not come back under its name. */
const longestCallSeconds = 70 * 60
const cutsApartMs = 24 * 3_600_000
const mostChainedAtOnce = 1_000
const mostTargets = 20
const mostTextLength = 300

/** Connections whose statements are in order and on the disk with the next change of anybody, without waiting for it. */
export function connectAudit(url: string, name: string): Sql {
  return connect(url, { connections: 2, name, durability: 'with the next change' })
}

export class AuditLog {
  readonly #options: AuditLogOptions
  readonly #opening: Together<db.OpenEntry, number>
  readonly #closing: Together<db.Ending, undefined>
  readonly #underWay = new Set<Promise<void>>()
  readonly #attempts = new Attempts()
  #writing: Promise<void> = Promise.resolve()

  constructor(options: AuditLogOptions) {
    this.#options = options
    this.#opening = new Together(entries => options.run(sql => db.openEntries(sql, entries)))
    this.#closing = new Together(async endings => {
      await options.run(sql => db.closeEntries(sql, endings))
      return endings.map(() => undefined)
    })
  }

  /** Carries out a change between its two entries. Throws what `work` throws; database-away, before anything was done, where no entry can be written. */
  async carryOut<Answer>(asked: ChangeAsked, work: () => Promise<Answer>): Promise<Answer> {
    const id = await this.#opening.add(openEntryOf(asked, this.#options.server))
    try {
      const answer = await work()
      this.#close(id, 'ok', resultOf(answer))
      return answer
    } catch (error) {
      this.#close(id, error instanceof Refusal ? error.code : 'internal', null)
      throw error
    }
  }

  /** Counts an attempt that was refused at the door; the next {@link chain} writes down what was counted. */
  refused(attempt: RefusedAttempt): void {
    this.#attempts.note(attempt, Date.now())
  }

  /** One at a time: each goes on where the one before has brought the entries. */
  #writeAttempts(ending: 'due' | 'all'): Promise<void> {
    const written = this.#writing.then(() => this.#writeAttemptsNow(ending))
    this.#writing = written.catch(() => undefined) // told to who asked for it
    return written
  }

  async #writeAttemptsNow(ending: 'due' | 'all'): Promise<void> {
    const { run, server } = this.#options
    const attempts = this.#attempts
    const fresh = attempts.untold(Date.now(), ending).filter(({ id }) => id === undefined)
    if (fresh.length > 0) {
      const rows = fresh.map(each => attemptsEntryOf(each.attempts, server))
      const ids = await run(sql => db.openAttempts(sql, rows))
      for (const [index, each] of fresh.entries()) attempts.told({ ...each, ends: false }, ids[index] as number, Date.now())
    }
    const known = attempts.untold(Date.now(), ending).flatMap(each => (each.id === undefined ? [] : [{ each, id: each.id }]))
    if (known.length === 0) return
    // Not the time of the last: entries are numbered in the order in which they end.
    const endedAt = new Date()
    const counts = known.map(({ each, id }) => ({ id, target: targetOfAttempts(each.attempts), ended_at: each.ends ? endedAt : null }))
    const counted = await run(sql => db.countAttempts(sql, counts))
    for (const { each, id } of known) {
      if (counted.has(id)) attempts.told(each, id, Date.now())
      else attempts.ended(each, Date.now())
    }
  }

  /** Closes what the process of this name before this one left open. Call it once, before the first change. */
  async takeOver(): Promise<void> {
    await this.#options.run(sql => db.closeAbandoned(sql, { server: this.#options.server }))
  }

  /** Numbers and chains what has ended. Any process of the log may do it, at any time. */
  async chain(): Promise<'more' | 'idle'> {
    const { run, sign, partition } = this.#options
    await this.#writeAttempts('due')
    await run(sql => db.closeAbandoned(sql, { olderThanSeconds: longestCallSeconds }))
    return run(sql =>
      inTransaction(sql, async transaction => {
        const end = await db.lockEnd(transaction)
        const rows = await db.endedEntries(transaction, mostChainedAtOnce)
        if (rows.length === 0) return 'idle'
        let [seq, hash] = [end?.seq ?? 0, end?.hash ?? noHash]
        const links = rows.map(row => {
          seq++
          hash = sha256(chainedText(hash, contentOf(row, seq, partition)))
          return { id: row.id, seq, hash, signature: null as string | null, signed_by: null as string | null }
        })
        const last = links.at(-1) as (typeof links)[number]
        const { signature, key } = sign(sealedText({ partition, seq, hash }))
        links[links.length - 1] = { ...last, signature, signed_by: key }
        await db.chainEntries(transaction, links)
        return rows.length === mostChainedAtOnce ? 'more' : 'idle'
      }),
    )
  }

  /**
   * Removes at most `limit` entries that ended longer ago than `keepMs`, in the transaction given. Before the first of them goes, an entry of its own says up
   * to where the log was cut and with which hash, so that the rest can still be checked; there is one a day at most.
   */
  async removeOld(
    sql: Sql,
    { keepMs, limit, apartMs = cutsApartMs }: { keepMs: number; limit: number; apartMs?: number },
  ): Promise<number> {
    await this.#cut(sql, { keepMs, apartMs })
    const row = await db.lastCut(sql)
    const cut = row && cutOf({ call: cutCall, ...row })
    return cut === undefined ? 0 : db.removeEntries(sql, { upTo: cut.seq, limit })
  }

  async #cut(sql: Sql, { keepMs, apartMs }: { keepMs: number; apartMs: number }): Promise<void> {
    const before = await db.lastCut(sql)
    if (before && Date.now() - before.ended_at.getTime() < apartMs) return
    const end = await db.lockEnd(sql)
    const extent = await db.extentOfLog(sql)
    if (!end || !extent) return
    const isOld = async (seq: number) => (await this.#entryNumbered(sql, seq)).ended_at.getTime() < Date.now() - keepMs
    // Numbers are dense and times rise with them: found by halving, without an index that every entry would pay for.
    let [old, young] = [extent.first - 1, extent.last + 1]
    while (young - old > 1) {
      const middle = Math.floor((old + young) / 2)
      if (await isOld(middle)) old = middle
      else young = middle
    }
    const known = before && cutOf({ call: cutCall, ...before })
    if (old < extent.first || old <= (known?.seq ?? 0)) return
    const { hash } = await this.#entryNumbered(sql, old)
    await this.#addCut(sql, end, cutTarget({ seq: old, hash }))
  }

  async #entryNumbered(sql: Sql, seq: number) {
    const found = await db.entryNumbered(sql, seq)
    if (!found) throw new Error(`entry ${seq} of the audit log is missing; it is not cut before somebody has looked (muster audit verify)`)
    return found
  }

  async #addCut(sql: Sql, end: { seq: number; hash: string }, target: string): Promise<void> {
    const { partition, server, sign } = this.#options
    const at = new Date()
    const facts = { at, ended_at: at, actor: 'retention', role: 'server', origin: 'itself', via: null, call: cutCall, target, fields: [] }
    const row = { id: 0, ...facts, request_id: '', server, outcome: 'ok', result: null }
    const seq = end.seq + 1
    const hash = sha256(chainedText(end.hash, contentOf(row, seq, partition)))
    const { signature, key } = sign(sealedText({ partition, seq, hash }))
    await db.addToChain(sql, { ...row, seq, hash, signature, signed_by: key })
  }

  /** Entries behind a number, and the number of the last there is. Those that were cut off are not among them, also where they are still being removed. */
  async list(filter: db.AuditFilter): Promise<{ items: AuditEntry[]; lastSeq: number }> {
    // In this order: what is chained in between is in the list, and not passed over by a reader who goes on behind the last.
    const lastSeq = await this.lastSeq()
    const row = await this.#options.run(db.lastCut)
    const after = Math.max(filter.after, (row && cutOf({ call: cutCall, ...row })?.seq) ?? 0)
    const rows = await this.#options.run(sql => db.listEntries(sql, { ...filter, after }))
    return { items: rows.map(row => entryOf(row, this.#options.partition)), lastSeq }
  }

  async lastSeq(): Promise<number> {
    return this.#options.run(db.lastEntry)
  }

  /** Waits until what came of the changes is written, and what was refused. */
  async settled(): Promise<void> {
    await Promise.all(this.#underWay)
    await this.#writeAttempts('all').catch(error =>
      this.#options.onTrouble(error, 'attempts that were refused could not be written into the audit log'),
    )
  }

  #close(id: number, outcome: string, result: string | null): void {
    const closing = this.#closing
      .add({ id, ended_at: new Date(), outcome, result })
      .catch(error =>
        this.#options.onTrouble(error, `what came of a change could not be written into the audit log (entry ${id}: ${outcome})`),
      )
      .finally(() => this.#underWay.delete(closing))
    this.#underWay.add(closing)
  }
}

const sha256 = (text: string) => createHash('sha256').update(text).digest('hex')

function openEntryOf({ call, input, caller, from, via, requestId }: ChangeAsked, server: string): db.OpenEntry {
  const given = typeof input === 'object' && input !== null ? (input as Record<string, unknown>) : {}
  return {
    at: new Date(),
    actor: caller.name,
    role: caller.role,
    origin: from,
    via,
    call,
    target: targetOf(given).slice(0, mostTextLength),
    fields: Object.keys(given)
      .filter(field => given[field] !== undefined)
      .sort(),
    request_id: requestId,
    server,
  }
}

function attemptsEntryOf(attempts: CountedAttempts, server: string): db.AttemptsEntry {
  const { caller, from, code, firstAt } = attempts
  return {
    at: new Date(firstAt),
    actor: caller.name,
    role: caller.role,
    origin: from,
    via: null,
    call: refusedCall,
    target: targetOfAttempts(attempts),
    request_id: '',
    server,
    outcome: code,
  }
}

function targetOfAttempts({ call, count, reason }: CountedAttempts): string {
  return `${call}, ${count === 1 ? 'once' : `${count} times`}: ${reason}`.slice(0, mostTextLength)
}

/** What the input names: by id, by name, or the documents of a change. */
function targetOf(input: Record<string, unknown>): string {
  for (const field of ['id', 'allocation', 'name', 'partition']) {
    const value = input[field]
    if (typeof value === 'string') return value
  }
  const named = [input.put, input.delete].flatMap(list => (Array.isArray(list) ? list : []))
  const texts = named.map(({ kind, name }: { kind: string; name: string }) => `${kind}/${name}`)
  return texts.length > mostTargets ? `${texts.slice(0, mostTargets).join(', ')} and ${texts.length - mostTargets} more` : texts.join(', ')
}

function resultOf(answer: unknown): string | null {
  if (typeof answer !== 'object' || answer === null) return null
  if ('id' in answer && typeof answer.id === 'string') return answer.id
  return 'generation' in answer && typeof answer.generation === 'number' ? `generation ${answer.generation}` : null
}

function contentOf(row: db.AuditRow, seq: number, partition: string): Omit<AuditEntry, 'hash' | 'seal'> {
  return {
    partition,
    seq,
    at: row.at.toISOString(),
    endedAt: row.ended_at.toISOString(),
    actor: row.actor,
    role: row.role,
    from: row.origin,
    via: row.via,
    call: row.call,
    target: row.target,
    fields: row.fields,
    requestId: row.request_id,
    outcome: row.outcome,
    result: row.result,
  }
}

function entryOf(row: db.ChainedRow, partition: string): AuditEntry {
  const seal = row.signature !== null && row.signed_by !== null ? { signature: row.signature, key: row.signed_by } : null
  return { ...contentOf(row, row.seq, partition), hash: row.hash, seal }
}
