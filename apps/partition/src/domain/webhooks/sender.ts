// Tells webhooks of this partition's events: each in order, a batch at a time, over and over until it is taken or given up. The cursor moves after the
// answer, so that a process may die anywhere; a batch keeps its id over all attempts, so that a receiver knows one again that it has already had.
import { randomUUID } from 'node:crypto'
import { createSharedSealer, openText } from '@muster/server/global/sealed'
import type { WebhookDocument } from '@muster/shared/global/documents'
import { Secret } from '@muster/shared/secret'
import { lastSequenceNumber } from '../../db/events.ts'
import * as db from '../../db/webhooks.ts'
import { Bell, runLoop } from '../bell.ts'
import type { Core } from '../core.ts'
import { eventViewOf, withoutBmc } from '../view.ts'
import { type PostOutcome, post } from './post.ts'

export interface WebhookPace {
  readonly lookEveryMs: number
  /** An attempt from its first byte to the answer's. */
  readonly attemptMs: number
  /** Twice an attempt at least: nothing is sent in the second half of a claim. */
  readonly claimMs: number
  /** The first pause between attempts; each is twice the one before, up to the longest. */
  readonly firstMs: number
  readonly longestMs: number
  /** A receiver may ask for a longer pause, up to this. */
  readonly askedMostMs: number
  /** After so much trying a batch is given up. Time in which nobody tried (paused, partition down) does not count. */
  readonly budgetMs: number
}

export const usualPace: WebhookPace = {
  lookEveryMs: 500,
  attemptMs: 10_000,
  claimMs: 30_000,
  firstMs: 1_000,
  longestMs: 300_000,
  askedMostMs: 3_600_000,
  budgetMs: 24 * 3_600_000,
}

/** Events in one message, and roughly how large that may be: receivers' limits begin at a megabyte. */
const batchEvents = 100
const batchBytes = 500_000
/** Events that are looked through for wanted ones in one go. */
const windowEvents = 10_000
/** Webhooks that are told at once. */
const slots = 16
/** Dead letters kept for a webhook. When there are so many, batches wait instead of being given up: nothing is forgotten unasked. */
const deadLettersMost = 1_000

/** How many attempts fit into the budget. */
export function attemptsMost({ firstMs, longestMs, budgetMs }: Pick<WebhookPace, 'firstMs' | 'longestMs' | 'budgetMs'>): number {
  let attempts = 1
  for (let spent = 0; spent < budgetMs; attempts++) spent += Math.min(firstMs * 2 ** (attempts - 1), longestMs)
  return attempts
}

interface Target {
  readonly name: string
  readonly document: WebhookDocument
  readonly secret: Secret
  /** The secret before, and until when (epoch milliseconds) it signs too. */
  readonly before: { readonly secret: Secret; readonly until: number } | undefined
}

interface Batch {
  readonly id: string
  readonly after: number
  readonly to: number
  readonly kinds: readonly string[]
  /** Its events, where they are not all of these kinds. */
  readonly seqs: readonly number[] | null
}

export interface WebhookOptions {
  /** The key that fronts and partitions share; undefined: no secret can be opened, and nothing is sent. */
  readonly sharedKey: Buffer | undefined
  readonly pace?: Partial<WebhookPace>
}

export class WebhookSender {
  readonly #core: Pick<Core, 'partition' | 'sql' | 'configuration' | 'log'>
  readonly #sealer: ReturnType<typeof createSharedSealer> | undefined
  readonly #pace: WebhookPace
  readonly #attemptsMost: number
  readonly #bell = new Bell()
  readonly #inFlight = new Map<string, Promise<void>>()
  #seenGeneration = -1
  #targets: readonly Target[] = []
  #problems: ReadonlyMap<string, string> = new Map()

  constructor(core: Pick<Core, 'partition' | 'sql' | 'configuration' | 'log'>, { sharedKey, pace }: WebhookOptions) {
    this.#core = core
    this.#sealer = sharedKey && createSharedSealer(sharedKey)
    this.#pace = { ...usualPace, ...pace }
    this.#attemptsMost = attemptsMost(this.#pace)
  }

  /** Why nothing can be sent to a webhook, by its name. That a receiver fails is not among them: it is no fault of this partition. */
  get problems(): ReadonlyMap<string, string> {
    return this.#problems
  }

  /** The log has grown, or somebody asked for dead letters to be sent. */
  ring(): void {
    this.#bell.ring()
  }

  /** Sends until the signal, then waits for the attempts in flight, which it ends. */
  async run(signal: AbortSignal): Promise<void> {
    const look = () => this.#look(signal)
    await runLoop({ name: 'webhooks', bell: this.#bell, everyMs: this.#pace.lookEveryMs, signal, log: this.#core.log, look })
    await Promise.all(this.#inFlight.values())
  }

  async #look(signal: AbortSignal): Promise<'idle'> {
    const { sql, log, configuration } = this.#core
    if (configuration.generation !== this.#seenGeneration) await this.#readConfiguration()
    const idle = new Map(this.#targets.filter(({ name }) => !this.#inFlight.has(name)).map(target => [target.name, target]))
    const free = slots - this.#inFlight.size
    const due = idle.size === 0 || free <= 0 ? [] : await db.dueWebhooks(sql, { names: [...idle.keys()], limit: free })
    for (const name of due) {
      const work = this.#turn(idle.get(name) as Target, signal)
        .catch(error => {
          if (!signal.aborted) log.error({ err: error, webhook: name }, 'how a webhook stands could not be stored; its claim will run out')
        })
        .finally(() => {
          this.#inFlight.delete(name)
          this.#bell.ring()
        })
      this.#inFlight.set(name, work)
    }
    return 'idle'
  }

  async #readConfiguration(): Promise<void> {
    const { configuration, sql } = this.#core
    const { generation, content } = configuration
    const documents = Object.entries(content?.documents.webhook ?? {})
    await db.keepCursors(sql, { generation, names: documents.map(([name]) => name) })
    const problems = new Map<string, string>()
    this.#targets = documents.flatMap(([name, document]) => {
      if (document.status !== 'active') return []
      const secret = this.#secretOf(name, document)
      if (secret instanceof Secret) return [{ name, document, secret, before: this.#secretBefore(name, document) }]
      problems.set(name, secret)
      return []
    })
    this.#problems = problems
    this.#seenGeneration = generation
  }

  /** The secret, or why it cannot be had. */
  #secretOf(name: string, document: WebhookDocument): Secret | string {
    if (!this.#sealer) return `webhook ${name}: MUSTER_SHARED_KEY is not set, so its secret cannot be opened; nothing is sent to it`
    try {
      return openText(this.#sealer, { kind: 'webhook', name, field: 'secret' }, document.secret)
    } catch {
      return `webhook ${name}: MUSTER_SHARED_KEY is not the key that its secret is sealed with; nothing is sent to it`
    }
  }

  #secretBefore(name: string, { secretBefore, secretBeforeUntil }: WebhookDocument): Target['before'] {
    if (!this.#sealer || secretBefore === undefined || secretBeforeUntil === undefined) return undefined
    try {
      const secret = openText(this.#sealer, { kind: 'webhook', name, field: 'secretBefore' }, secretBefore)
      return { secret, until: Date.parse(secretBeforeUntil) }
    } catch (error) {
      this.#core.log.warn(
        { err: error, webhook: name },
        'the secret before cannot be opened; messages are signed with the one in force only',
      )
      return undefined
    }
  }

  /** The next batch of a webhook, and one of its dead letters, where they are due and no other replica is at it. */
  async #turn(target: Target, signal: AbortSignal): Promise<void> {
    const { sql } = this.#core
    const { name: webhook } = target
    const startedAt = Date.now()
    const row = await db.claimWebhook(sql, { webhook, claimMs: this.#pace.claimMs })
    if (!row) return
    const claim = { webhook, token: row.claim_token }
    // A process that was frozen meanwhile may have lost the claim: another sends by now.
    const isFresh = () => !signal.aborted && Date.now() - startedAt < this.#pace.claimMs / 2
    const turn = new Turn(this.#core, { target, claim, isFresh, signal, pace: this.#pace, attemptsMost: this.#attemptsMost })
    try {
      if (row.is_due) await turn.tell(row)
      const letter = isFresh() ? await db.dueDeadLetter(sql, webhook) : undefined
      if (letter) await turn.tellAgain(letter)
    } catch (error) {
      if (!signal.aborted) throw error
    } finally {
      await db.dropWebhookClaim(sql, claim)
    }
  }
}

interface TurnOptions {
  readonly target: Target
  readonly claim: db.WebhookClaim
  readonly isFresh: () => boolean
  readonly signal: AbortSignal
  readonly pace: WebhookPace
  readonly attemptsMost: number
}

/** What is done for one webhook under one claim. */
class Turn {
  readonly #core: Pick<Core, 'partition' | 'sql' | 'log'>
  readonly #options: TurnOptions

  constructor(core: Pick<Core, 'partition' | 'sql' | 'log'>, options: TurnOptions) {
    this.#core = core
    this.#options = options
  }

  /** Sends the batch under way, or the next, and writes down what came of it. */
  async tell(row: db.WebhookCursor): Promise<void> {
    const { sql, log } = this.#core
    const { claim } = this.#options
    const batch = batchOf(row) ?? (await this.#nextBatch(row))
    const outcome = batch && (await this.#attempt(batch))
    if (!outcome) return
    const facts = { webhook: claim.webhook, batch: batch.id, tries: row.tries + 1 }
    if (outcome.kind === 'delivered') {
      if (row.tries > 0) log.info(facts, 'the webhook takes events again')
      await db.closeBatch(sql, claim)
      return
    }
    const { reason } = outcome
    if (row.tries === 0) log.warn({ ...facts, reason }, 'the webhook did not take a batch of events; it is tried again')
    if (outcome.kind === 'gone' || row.tries + 1 >= this.#options.attemptsMost) {
      // The next batch is not sent right behind it: a receiver that is gone is not hammered with all that is left.
      const againMs = this.#jittered(this.#options.pace.longestMs)
      if ((await db.giveUpBatch(sql, claim, { reason, againMs, most: deadLettersMost })) === 'given up') {
        log.error({ ...facts, reason }, 'a batch of events was given up: it is among the dead letters of the webhook')
        return
      }
    }
    await db.putOffBatch(sql, claim, { reason, againMs: this.#pauseMs(row.tries, outcome) })
  }

  /** Sends a dead letter that somebody wants sent. */
  async tellAgain(letter: db.DeadLetter): Promise<void> {
    const { sql } = this.#core
    const { claim, attemptsMost: most } = this.#options
    const outcome = await this.#attempt({
      id: letter.batch,
      after: letter.after_seq,
      to: letter.to_seq,
      kinds: letter.kinds,
      seqs: letter.seqs,
    })
    if (!outcome) return
    if (outcome.kind === 'delivered') {
      await db.forgetDeadLetter(sql, claim, letter.id)
      return
    }
    const isOver = outcome.kind === 'gone' || letter.replay_tries + 1 >= most
    const againMs = isOver ? null : this.#pauseMs(letter.replay_tries, outcome)
    await db.putOffDeadLetter(sql, claim, { id: letter.id, reason: outcome.reason, againMs })
  }

  /** What is to be sent next, written down before the first attempt; undefined where nothing in the log is wanted, or the claim is lost. */
  async #nextBatch({ seq }: db.WebhookCursor): Promise<Batch | undefined> {
    const { sql } = this.#core
    const { claim, target } = this.#options
    const { events: kinds, pools } = target.document
    const upTo = Math.min(await lastSequenceNumber(sql), seq + windowEvents)
    const events = await db.wantedEvents(sql, { after: seq, upTo, kinds, pools, limit: batchEvents })
    if (events.length === 0) {
      await db.skipTo(sql, claim, upTo)
      return undefined
    }
    const fitting = fittingCount(events.map(({ data }) => JSON.stringify(data).length))
    const isCut = fitting < events.length || events.length === batchEvents
    const to = isCut ? (events[fitting - 1]?.seq as number) : upTo
    const seqs = pools === undefined ? null : events.slice(0, fitting).map(event => event.seq)
    const batch = { id: `msg_${randomUUID()}`, to, kinds, seqs }
    return (await db.openBatch(sql, claim, batch)) === 'opened' ? { ...batch, after: seq } : undefined
  }

  async #attempt({ id, after, to, kinds, seqs }: Batch): Promise<PostOutcome | undefined> {
    const { sql, partition } = this.#core
    const { target, isFresh, signal, pace } = this.#options
    const rows = seqs ? await db.eventsNumbered(sql, seqs) : await db.wantedEvents(sql, { after, upTo: to, kinds, limit: batchEvents })
    if (!isFresh()) return undefined
    const events = rows.map(row => withoutBmc(eventViewOf(row, partition)))
    // Only of the events and their receiver, so that every attempt sends the same bytes.
    const body = JSON.stringify({
      type: 'muster.events',
      timestamp: rows.at(-1)?.at.toISOString(),
      data: { partition, webhook: target.name, events },
    })
    const secrets = [target.secret, ...(target.before && target.before.until > Date.now() ? [target.before.secret] : [])]
    return post({ url: target.document.url, id, body, secrets }, { limitMs: pace.attemptMs, signal })
  }

  /** Never shorter than the receiver asks for, within limits: it cannot stop a webhook for good. */
  #pauseMs(tries: number, outcome: PostOutcome): number {
    const { firstMs, longestMs, askedMostMs } = this.#options.pace
    const askedMs = outcome.kind === 'failed' ? Math.min(outcome.afterMs ?? 0, askedMostMs) : 0
    const pauseMs = this.#jittered(Math.min(firstMs * 2 ** tries, longestMs))
    return askedMs > pauseMs ? askedMs * (1 + Math.random() / 4) : pauseMs
  }

  /** Webhooks and partitions that failed together are not to come back together. */
  #jittered(ms: number): number {
    return ms * (0.75 + Math.random() / 2)
  }
}

function batchOf({ batch, seq, batch_to: to, batch_kinds: kinds, batch_seqs: seqs }: db.WebhookCursor): Batch | undefined {
  return batch === null || to === null || kinds === null
    ? undefined
    : { id: batch, after: seq, to, kinds, seqs: isBehind(seqs, seq) ? seqs : null }
}

/** A process of the release before leaves the numbers of an earlier batch where they are: they are not of this one. */
function isBehind(seqs: readonly number[] | null, seq: number): boolean {
  return seqs?.[0] !== undefined && seqs[0] > seq
}

/** How many of these sizes fit into a message; one does always. */
function fittingCount(sizes: readonly number[]): number {
  let bytes = 0
  const over = sizes.findIndex(size => {
    bytes += size
    return bytes > batchBytes
  })
  return over === -1 ? sizes.length : Math.max(over, 1)
}
