// The home of the global configuration, as a front sees it: the database that the fronts share, the newest signed copy in memory, and the way
// down to the partitions. The database may be away or lost: then the front goes on with the newest copy that a partition holds, and writes
// nothing until the database holds no less.
import { setTimeout as sleep } from 'node:timers/promises'
import { digestOf, lineageAfter, lineageAnew } from '@muster/server/global/lineage'
import { tokensOfDocuments } from '@muster/server/global/people'
import { createVerifier, type Signer } from '@muster/server/global/signature'
import type { Sealer } from '@muster/server/seal'
import type { Tokens } from '@muster/server/tokens'
import { logOfFronts } from '@muster/shared/audit'
import type { Bus, BusSubscription } from '@muster/shared/bus/bus'
import { frontGroup } from '@muster/shared/bus/permissions'
import { type copyReply, copyRequest, protocolVersion, subjects } from '@muster/shared/bus/protocol'
import type { Caller } from '@muster/shared/contract/call'
import type { HeldCopy } from '@muster/shared/contract/config'
import type { CallAnswer, CallInput } from '@muster/shared/contract/contract'
import { pools } from '@muster/shared/contract/labels'
import { Refusal, wrongFields } from '@muster/shared/errors'
import {
  type CopyContent,
  fetchCopy,
  type Lineage,
  noGeneration,
  partOf,
  payloadOf,
  readPayload,
  refillJump,
  type SignedCopy,
} from '@muster/shared/global/copy'
import {
  broughtBack,
  type Change,
  changed,
  type Difference,
  type Documents,
  differences,
  isPlace,
  noDocuments,
  placeKinds,
} from '@muster/shared/global/documents'
import type { z } from 'zod'
import { decodeJson, encodeJson } from '../json.ts'
import type { PartitionCalls } from '../partition-calls.ts'
import type { Presence } from '../presence.ts'
import { AuditLog } from './db/audit.ts'
import * as db from './db/generations.ts'
import { type Held, ofAnotherHistory } from './history.ts'
import { type MadeSecret, sealedChange } from './secrets.ts'

export interface HomeOptions {
  readonly name: string
  /** The database that the fronts share; undefined: this front only reads. */
  readonly databaseUrl: string | undefined
  readonly signer: Signer
  /** Seals the secrets in documents; undefined: this front has no MUSTER_SHARED_KEY, and takes none. */
  readonly sealer?: Sealer | undefined
  /** Keys that are trusted beside the own one, hex. */
  readonly trustedKeys: readonly string[]
  readonly bus: Bus
  readonly presence: Presence
  readonly calls: PartitionCalls
  readonly log: { info(facts: object, text: string): void; warn(facts: object, text: string): void }
}

export interface Home {
  /** What is in force, as far as this front has seen: at most a second late. Undefined: nobody has written anything yet. */
  readonly content: CopyContent | undefined
  /** The same, after a look at the database, where that answers. */
  newest(): Promise<CopyContent | undefined>
  /** Where it was read. */
  readonly source: string
  readonly tokens: Tokens
  /** Who changed it, from where. */
  readonly audit: AuditLog
  change(by: Caller, change: Change, options: WriteOptions): Promise<Written>
  revert(by: Caller, to: number, options: WriteOptions): Promise<Written>
  /** Ends a loss, or a dispute of two histories: the one that `wins` is in force with a generation that no other can be newer than. */
  refill(by: Caller, options: CallInput<'config.refill'>): Promise<CallAnswer<'config.refill'>>
  /** What is in force, and how far these copies and those of the other partitions are from it. */
  compare(copies: readonly HeldCopy[]): Promise<Pick<CallAnswer<'config.copies'>, 'inForce' | 'another' | 'lastHeard'>>
  history(limit: number): Promise<Pick<CopyContent, 'generation' | 'changedAt' | 'changedBy' | 'note'>[]>
  /** Throws not-found for a generation that is not kept. */
  documentsAt(generation: number): Promise<Documents>
  /** Runs a statement in the database that the fronts share. Throws database-away, or not-ready where this front has none. */
  run<Answer>(act: (sql: db.Sql) => Promise<Answer>): Promise<Answer>
  /** Called with every generation that comes into force, and at once with the one that is. */
  onChange(listener: (content: CopyContent) => void): void
  stop(): Promise<void>
}

export interface WriteOptions {
  readonly expectedGeneration: number | undefined
  readonly kind: 'write' | 'dry-run'
  readonly note: string
}

export interface Written {
  generation: number
  outcome: 'written' | 'dry-run' | 'nothing-to-do'
  differences: Difference[]
  /** What this front made. */
  secrets: MadeSecret[]
}

/** Other fronts' changes are seen within this time; partitions hear of them at once. */
const lookEveryMs = 1_000
/** Partitions are asked for their copies no more often than this while the database is away or behind. */
const askEveryMs = 5_000
const partLimitMs = 2_000
/** So long a front that has just started waits for partitions to say what they hold, before it writes. They do so as soon as they are asked. */
const hearLimitMs = 2_000
const ofDatabase = 'the database of the fronts'
const keptGenerations = 1_000
/** A change that races with others is tried again from the start, so many times. */
const maxAttempts = 5

/** A copy, as far as this release can read it. */
interface Checked {
  readonly content: CopyContent
  /** What it cannot, in words: a change that it wrote would lose that. */
  readonly unread: readonly string[]
}

interface OfPartition extends Checked, Held {
  readonly partition: string
  readonly copy: SignedCopy
}

interface InForce extends Checked {
  readonly copy: SignedCopy
  readonly text: string
  readonly digest: string
  readonly source: string
  readonly tokens: Tokens
}

export function openHome(options: HomeOptions): Home {
  return new GlobalHome(options)
}

class GlobalHome implements Home {
  readonly #options: HomeOptions
  readonly #verifier: ReturnType<typeof createVerifier>
  readonly #sql: db.Sql | undefined
  readonly #stopping = new AbortController()
  readonly #loop: Promise<void>
  readonly #none = tokensOfDocuments(noDocuments)
  readonly #startedAt = Date.now()
  readonly audit: AuditLog
  readonly #listeners: ((content: CopyContent) => void)[] = []
  #inForce: InForce | undefined
  #isMigrated = false
  /** The highest generation that a partition said it holds when it asked for a newer one: those of older releases say so nowhere else. */
  #heardOf = noGeneration
  #askedAt = 0
  #trouble: string | undefined
  #subscription: BusSubscription | undefined

  constructor(options: HomeOptions) {
    this.#options = options
    this.#verifier = createVerifier([options.signer.publicKey, ...options.trustedKeys])
    this.#sql = options.databaseUrl === undefined ? undefined : db.connectHome(options.databaseUrl, `muster front ${options.name}`)
    const signer = options.signer.as('audit log')
    this.audit = new AuditLog({
      partition: logOfFronts,
      server: `front ${options.name}`,
      run: act => this.#home(act),
      sign: text => signer.sign(text),
      onTrouble: (error, text) => options.log.warn({ err: error }, text),
    })
    void this.#listen()
    this.#loop = this.#run()
  }

  get content(): CopyContent | undefined {
    return this.#inForce?.content
  }

  get source(): string {
    return this.#inForce?.source ?? 'nothing has been written yet'
  }

  async newest(): Promise<CopyContent | undefined> {
    try {
      await this.#readHome()
    } catch (error) {
      if (!(error instanceof Refusal)) throw error // a database that is away: what is in memory is the newest there is
    }
    return this.content
  }

  readonly tokens: Tokens = { find: token => (this.#inForce?.tokens ?? this.#none).find(token) }

  change(by: Caller, change: Change, options: WriteOptions): Promise<Written> {
    return this.#write(by, options, before => {
      if (this.#inForce) refuseUnread(this.#inForce)
      const { change: sealed, made } = sealedChange(change, before, this.#options.sealer)
      const outcome = changed(before, sealed)
      if ('documents' in outcome) return { documents: outcome.documents, secrets: made }
      throw wrongFields(outcome.problems)
    })
  }

  async revert(by: Caller, to: number, options: WriteOptions): Promise<Written> {
    const documents = await this.documentsAt(to)
    const back = (before: Documents) => ({ documents: broughtBack(before, documents), secrets: [] })
    return this.#write(by, { ...options, note: options.note || `back to generation ${to}` }, back)
  }

  async refill(by: Caller, { note, wins }: CallInput<'config.refill'>): Promise<CallAnswer<'config.refill'>> {
    await this.#hearPartitions()
    const copies = await this.#askForCopies()
    await this.#readHome()
    const newest = await this.#home(db.newestGeneration)
    const others = copies.filter(({ content }) => content.generation > newest)
    others.push(...(await this.#ofAnotherHistory(copies)))
    const [other] = others.sort(newestFirst)
    if (!other) return { outcome: 'nothing-to-do', generation: newest, partition: null, from: null }
    // A change that no partition has taken yet may still be in the memory of this front.
    const { content } = this
    const inMemory = this.#inForce && newest < this.#inForce.content.generation && newestFirst(this.#inForce, other) < 0 && this.#inForce
    const row = wins === 'database' ? await this.#home(sql => db.findGeneration(sql, newest)) : undefined
    if (wins === 'database' && !row) throw new Refusal('not-ready', `${ofDatabase} is empty: it has nothing that could win`)
    const winner = row ? this.#checked(copyOf(row)) : inMemory || other
    refuseUnread(winner)
    const generation = Math.max(newest, content?.generation ?? noGeneration, other.content.generation) + refillJump
    const { payload } = row ?? (inMemory || other).copy
    const told = `refilled from generation ${winner.content.generation}, the copy of ${other.partition}`
    const next = this.#sign({
      ...winner.content,
      generation,
      changedAt: new Date().toISOString(),
      changedBy: by.name,
      note: note || (row ? `generation ${newest} of ${ofDatabase} wins over the copy of ${other.partition}` : told),
      lineage: lineageAnew({ payload, content: winner.content }, generation),
    })
    await this.#insert(next, newest)
    return { outcome: 'refilled', generation, partition: row ? null : other.partition, from: winner.content.generation }
  }

  async compare(copies: readonly HeldCopy[]) {
    const content = await this.newest()
    const lastHeard = this.#heldByPartitions().filter(({ partition }) => !copies.some(copy => copy.partition === partition))
    const known = copies.flatMap(({ partition, generation, digest }) => (digest === null ? [] : [{ partition, generation, digest }]))
    return {
      inForce: {
        generation: content?.generation ?? noGeneration,
        digest: this.#inForce?.digest ?? null,
        changedAt: content?.changedAt ?? null,
      },
      another: (await this.#othersIfKnown([...known, ...lastHeard])).map(({ partition }) => partition),
      lastHeard,
    }
  }

  async #othersIfKnown<Copy extends Held>(copies: readonly Copy[]): Promise<Copy[]> {
    try {
      return await this.#ofAnotherHistory(copies)
    } catch (error) {
      if (!(error instanceof Refusal)) throw error
      return [] // a database that is away: nobody can tell
    }
  }

  async history(limit: number) {
    const rows = await this.#home(sql => db.listGenerations(sql, limit))
    return rows.map(row => ({
      generation: row.generation,
      changedAt: row.changed_at.toISOString(),
      changedBy: row.changed_by,
      note: row.note,
    }))
  }

  async documentsAt(generation: number): Promise<Documents> {
    if (generation === noGeneration) return noDocuments
    if (generation === this.content?.generation) return this.content.documents
    const row = await this.#home(sql => db.findGeneration(sql, generation))
    if (!row) throw new Refusal('not-found', `generation ${generation} is not kept; the last ${keptGenerations} are`)
    return this.#checked(copyOf(row)).content.documents
  }

  run<Answer>(act: (sql: db.Sql) => Promise<Answer>): Promise<Answer> {
    return this.#home(act)
  }

  onChange(listener: (content: CopyContent) => void): void {
    this.#listeners.push(listener)
    if (this.content) listener(this.content)
  }

  async stop(): Promise<void> {
    this.#stopping.abort()
    this.#subscription?.stop()
    await this.#loop
    await this.audit.settled()
    await this.#sql?.end({ timeout: 2 })
  }

  async #write(
    by: Caller,
    options: WriteOptions,
    next: (before: Documents) => { documents: Documents; secrets: MadeSecret[] },
  ): Promise<Written> {
    await this.#hearPartitions()
    for (let attempt = 1; ; attempt++) {
      // Before the database is asked: it has whatever a partition holds by now.
      const held = this.#heldByPartitions()
      const heardOf = this.#heardOf
      await this.#readHome()
      const before = this.content
      const generation = before?.generation ?? noGeneration
      const newest = await this.#home(db.newestGeneration)
      const heard = Math.max(generation, heardOf, ...held.map(each => each.generation))
      if (newest < heard)
        throw new Refusal(
          'home-lost',
          `the database of the fronts holds generation ${newest}, a partition holds ${heard}: the database was lost or set back; refill it first (muster config refill)`,
        )
      const [other] = await this.#ofAnotherHistory(held)
      if (other)
        throw new Refusal(
          'home-lost',
          `partition ${other.partition} holds another generation ${other.generation} than the database of the fronts: the database was set back, and written since; say which of both is true first (muster config refill, or muster config refill --database-wins)`,
        )
      if (options.expectedGeneration !== undefined && options.expectedGeneration !== generation)
        throw new Refusal('stale-version', `generation ${generation} is in force, not ${options.expectedGeneration}`, { generation })
      const { documents, secrets } = next(before?.documents ?? noDocuments)
      const found = differences(before?.documents ?? noDocuments, documents)
      // Setting back also takes away what this release cannot read, and so cannot compare.
      if (found.length === 0 && !this.#inForce?.unread.length) return { generation, outcome: 'nothing-to-do', differences: [], secrets: [] }
      await this.#refuseLosing(found, documents)
      if (options.kind === 'dry-run') return { generation, outcome: 'dry-run', differences: found, secrets: [] }
      const signed = this.#sign({
        generation: generation + 1,
        changedAt: new Date().toISOString(),
        changedBy: by.name,
        note: options.note,
        lineage: this.#lineageOf(generation + 1),
        documents,
      })
      if ((await this.#tryInsert(signed, generation)) === 'written')
        return { generation: signed.content.generation, outcome: 'written', differences: found, secrets }
      if (options.expectedGeneration !== undefined || attempt === maxAttempts)
        throw new Refusal('stale-version', `the configuration was changed by somebody else while this was tried (${attempt} times)`)
    }
  }

  /** Throws invalid-input where machines are in pools or zones that would not exist. Partitions that do not answer are not waited for: their machines stay where they are. */
  async #refuseLosing(found: readonly Difference[], documents: Documents): Promise<void> {
    const kinds = placeKinds.filter(kind => found.some(each => each.kind === kind) && Object.keys(documents[kind]).length > 0)
    const used = await Promise.all(kinds.map(async kind => (await this.#placesInUse(kind)).map(place => ({ kind, ...place }))))
    const errors = used
      .flat()
      .filter(({ kind, name }) => !isPlace(documents[kind], name))
      .map(({ kind, name, machines, partitions }) => ({
        field: `${kind} ${name}`,
        message: `has ${machines} machines, in ${partitions.join(', ')}: move them first, or let it be`,
      }))
    if (errors.length === 0) return
    throw wrongFields(errors)
  }

  async #placesInUse(kind: (typeof placeKinds)[number]): Promise<{ name: string; machines: number; partitions: string[] }[]> {
    const { presence, calls } = this.#options
    const answers = await Promise.all(
      presence.known().map(async partition => {
        const envelope = this.#ownEnvelope(`${kind}s of ${partition}`)
        const call = `${kind}s.list` as const
        const asking = { partition, envelope, timeoutMs: partLimitMs, signal: this.#stopping.signal }
        const reply = await calls.ask(asking, calls.encode(envelope, call, {}))
        const answer = reply.kind === 'answered' ? pools.list.answer.safeParse(reply.answer) : undefined
        return (answer?.data?.items ?? []).filter(({ machines }) => machines > 0).map(entry => ({ ...entry, partition }))
      }),
    )
    return [...Map.groupBy(answers.flat(), ({ name }) => name)].map(([name, entries]) => ({
      name,
      machines: entries.reduce((sum, { machines }) => sum + machines, 0),
      partitions: entries.map(({ partition }) => partition),
    }))
  }

  /** For a question that the front asks on its own account. */
  #ownEnvelope(requestId: string) {
    const { calls, name } = this.#options
    return calls.envelope({
      requestId,
      deadline: Date.now() + partLimitMs,
      caller: { name: `front ${name}`, role: 'admin' },
      from: 'itself',
    })
  }

  #lineageOf(generation: number): Lineage {
    const last = this.#inForce
    return lineageAfter(last && { payload: last.copy.payload, content: last.content }, generation)
  }

  /** Waits until all partitions have said what they hold, or it is clear that some will not: a database that was set back is noticed before it is written. */
  async #hearPartitions(): Promise<void> {
    const { presence } = this.#options
    const { signal } = this.#stopping
    while (!presence.isComplete() && Date.now() < this.#startedAt + hearLimitMs && !signal.aborted)
      await sleep(50, undefined, { signal }).catch(() => undefined)
  }

  #heldByPartitions(): (Held & { partition: string })[] {
    const { presence } = this.#options
    return presence.known().flatMap(partition => {
      const held = presence.configuration(partition)
      return held ? [{ partition, ...held }] : []
    })
  }

  /** Those of the copies that are of another history than the database's. None, while what is in force here was read elsewhere. */
  #ofAnotherHistory<Copy extends Held>(copies: readonly Copy[]): Promise<Copy[]> {
    const inForce = this.#inForce
    if (inForce?.source !== ofDatabase) return Promise.resolve([])
    const digests = (generations: number[]) => this.#home(sql => db.digestsOf(sql, generations))
    return ofAnotherHistory(copies, { content: inForce.content, digest: inForce.digest, digests })
  }

  #sign(content: CopyContent): { content: CopyContent; copy: SignedCopy } {
    return { content, copy: this.#options.signer.sign(payloadOf(content)) }
  }

  async #insert(signed: { content: CopyContent; copy: SignedCopy }, expected: number): Promise<void> {
    if ((await this.#tryInsert(signed, expected)) === 'written') return
    throw new Refusal('stale-version', 'the configuration was changed by somebody else meanwhile')
  }

  async #tryInsert({ content, copy }: { content: CopyContent; copy: SignedCopy }, expected: number): Promise<'written' | 'stale'> {
    const row: db.GenerationRow = {
      generation: content.generation,
      payload: copy.payload,
      signature: copy.signature,
      signed_by: copy.key,
      changed_at: new Date(content.changedAt),
      changed_by: content.changedBy,
      note: content.note,
    }
    const outcome = await this.#home(sql => db.insertGeneration(sql, row, digestOf(row.payload), expected))
    if (outcome === 'stale') return outcome
    this.#use(copy, { content, unread: [] }, ofDatabase)
    await this.#home(sql => db.forgetOldGenerations(sql, keptGenerations))
    return outcome
  }

  /** Runs a statement of the shared database. Throws database-away, or not-ready where this front has none. */
  async #home<Answer>(act: (sql: db.Sql) => Promise<Answer>): Promise<Answer> {
    if (!this.#sql) throw new Refusal('not-ready', 'this front has no MUSTER_GLOBAL_DATABASE_URL: it reads the global configuration only')
    try {
      return await this.#migrated(this.#sql, act)
    } catch (error) {
      if (!db.isDatabaseAway(error) && !db.isDatabaseGone(error)) throw error
      const what = db.isDatabaseGone(error) ? `was refused: ${(error as Error).message}` : 'got no answer'
      throw new Refusal('database-away', `the front asked the PostgreSQL of the global configuration and ${what}`, {}, { cause: error })
    }
  }

  /** Runs a statement in a database that has its tables: also in one that was dropped and made anew while this front ran. */
  async #migrated<Answer>(sql: db.Sql, act: (sql: db.Sql) => Promise<Answer>): Promise<Answer> {
    const wasMigrated = this.#isMigrated
    try {
      if (!this.#isMigrated) {
        await db.migrateHome(this.#options.databaseUrl as string)
        this.#isMigrated = true
        await this.audit.takeOver()
      }
      return await act(sql)
    } catch (error) {
      if (!db.isDatabaseGone(error)) throw error
      this.#isMigrated = false
      if (!wasMigrated) throw error
      return this.#migrated(sql, act)
    }
  }

  async #run(): Promise<void> {
    const { log } = this.#options
    const { signal } = this.#stopping
    while (!signal.aborted) {
      const trouble = await this.#look().then(
        () => undefined,
        error => (error as Error).message,
      )
      if (trouble !== this.#trouble && !signal.aborted) {
        if (trouble === undefined) log.info({}, 'the global configuration is read from its database again')
        else log.warn({ trouble, source: this.source }, 'the global configuration cannot be read from its database')
        this.#trouble = trouble
      }
      // Jitter keeps fronts that start together from asking together.
      await sleep(lookEveryMs * (0.8 + 0.4 * Math.random()), undefined, { signal }).catch(() => undefined)
    }
  }

  async #look(): Promise<void> {
    try {
      await this.#readHome()
      if (this.#sql) await this.audit.chain()
    } finally {
      const heard = Math.max(this.#heardOf, ...this.#heldByPartitions().map(({ generation }) => generation))
      const isBehind = this.#source() !== 'home' || heard > (this.content?.generation ?? noGeneration)
      if (isBehind && !this.#stopping.signal.aborted && Date.now() - this.#askedAt >= askEveryMs) await this.#takeFromPartitions()
    }
  }

  #source(): 'home' | 'elsewhere' {
    return this.#trouble === undefined && this.#inForce?.source === ofDatabase ? 'home' : 'elsewhere'
  }

  /** Takes what the database holds, if that is newer, or as new as what was read elsewhere. */
  async #readHome(): Promise<void> {
    if (!this.#sql) return
    const newest = await this.#home(db.newestGeneration)
    const generation = this.content?.generation ?? noGeneration
    if (newest < generation || (newest === generation && this.#inForce?.source === ofDatabase)) return
    const row = await this.#home(sql => db.findGeneration(sql, newest))
    if (row) this.#use(copyOf(row), this.#checked(copyOf(row)), ofDatabase)
  }

  /** Takes the newest copy that a partition holds, if it is newer than what is in force. */
  async #takeFromPartitions(): Promise<void> {
    const [newest] = await this.#askForCopies()
    if (newest && newest.content.generation > (this.content?.generation ?? noGeneration))
      this.#use(newest.copy, newest, `the copy of partition ${newest.partition}`)
  }

  /** The copies of all partitions that answer, newest first. */
  async #askForCopies(): Promise<OfPartition[]> {
    const { presence, calls, log } = this.#options
    this.#askedAt = Date.now()
    const found = await Promise.all(
      presence.known().map(async partition => {
        const ask = async (question: { have: number; part: number }) => {
          const envelope = this.#ownEnvelope(`configuration of ${partition}`)
          const reply = await calls.askBus(
            { partition, envelope, timeoutMs: partLimitMs, signal: this.#stopping.signal },
            'config.copy',
            question,
          )
          if (reply.kind !== 'answered') throw new Error(`${partition} did not give its copy of the configuration (${reply.kind})`)
          return reply.answer
        }
        try {
          const copy = await fetchCopy(noGeneration, ask)
          if (!copy) return undefined
          const { links: _, ...signed } = copy
          const checked = this.#checked(signed)
          return { ...checked, partition, copy: signed, generation: checked.content.generation, digest: digestOf(copy.payload) }
        } catch (error) {
          log.warn({ partition, trouble: (error as Error).message }, 'no copy of the configuration from this partition')
          return undefined
        }
      }),
    )
    return found.filter(each => each !== undefined).sort(newestFirst)
  }

  #checked(copy: SignedCopy): Checked {
    this.#verifier.check(copy)
    const { content, skipped, beyond } = readPayload(copy.payload)
    return { content, unread: [...beyond, ...skipped] }
  }

  /** In one assignment; generations never fall. */
  #use(copy: SignedCopy, { content, unread }: Checked, source: string): void {
    if (content.generation < (this.content?.generation ?? noGeneration)) return
    const [text, digest] = [JSON.stringify(copy), digestOf(copy.payload)]
    this.#inForce = { content, unread, copy, text, digest, source, tokens: tokensOfDocuments(content.documents) }
    this.#options.bus.publish(subjects.configuration, encodeJson({ v: protocolVersion, generation: content.generation }))
    this.#options.log.info({ generation: content.generation, source }, 'a generation of the global configuration is in force')
    for (const listener of this.#listeners) listener(content)
  }

  /** A part of the copy in force, for a partition that asks, with what shows that it follows from the partition's. */
  async #answer(question: z.output<typeof copyRequest>): Promise<Omit<z.input<typeof copyReply>, 'v'>> {
    const inForce = this.#inForce
    const { have, digest } = question
    if (!inForce) return partOf(undefined, question)
    const { content, copy, source, text } = inForce
    const { generation, lineage } = content
    const isShort = have >= generation - 1 || lineage === undefined || have < lineage.since
    if (isShort && (digest === undefined || digest === inForce.digest)) return partOf({ generation, text }, question)
    try {
      const [other] = digest === undefined ? [] : await this.#ofAnotherHistory([{ generation: have, digest }])
      if (other) return { generation, parts: 0, another: true }
      if (isShort) return partOf({ generation, text }, question)
      // What is between only the database knows: without it, and while it is lost or set back, the partition has to wait.
      const links = source === ofDatabase ? await this.#home(sql => db.digestsBetween(sql, have, generation)) : []
      if (links.length !== generation - have - 1) return { generation, parts: 0 }
      return partOf({ generation, text: JSON.stringify({ ...copy, links }) }, question)
    } catch (error) {
      if (!(error instanceof Refusal)) throw error
      return isShort ? partOf({ generation, text }, question) : { generation, parts: 0 }
    }
  }

  async #listen(): Promise<void> {
    const { bus, log } = this.#options
    try {
      const subscription = await bus.subscribe(subjects.configurationCopy, { group: frontGroup }, message => {
        const question = copyRequest.safeParse(decodeJson(message.data))
        if (!question.success) return
        if (question.data.have > this.#heardOf) this.#heardOf = question.data.have
        this.#answer(question.data).then(
          answer => message.reply?.(encodeJson({ v: protocolVersion, ...answer })),
          (error: Error) => log.warn({ trouble: error.message }, 'a partition that asks for the global configuration gets no answer'),
        )
      })
      if (this.#stopping.signal.aborted) subscription.stop()
      else this.#subscription = subscription
    } catch (error) {
      if (!this.#stopping.signal.aborted) log.warn({ err: error }, 'cannot hear partitions that ask for the global configuration')
    }
  }
}

/** What a newer front wrote must not be lost by an older one that happens to be asked. To set back is to wish for what was. */
function refuseUnread({ content, unread }: Checked): void {
  if (unread.length === 0) return
  throw new Refusal(
    'newer-release',
    `generation ${content.generation} has what this front does not know and would lose: ${unread.slice(0, 5).join(', ')}${unread.length > 5 ? ` and ${unread.length - 5} more` : ''}; write it through a front of the newer release`,
  )
}

const newestFirst = (one: Checked, other: Checked) => other.content.generation - one.content.generation

const copyOf = (row: db.GenerationRow): SignedCopy => ({ payload: row.payload, signature: row.signature, key: row.signed_by })
