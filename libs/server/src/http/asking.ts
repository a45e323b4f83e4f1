// One asking of the backend, whichever door it came through: how long it may take, when its asker has gone, and what an error becomes.
import { type Caller, nobody } from '@muster/shared/contract/call'
import { durationMs } from '@muster/shared/duration'
import { Refusal, wrongFields } from '@muster/shared/errors'
import { type Audit, changes, noteRefusal } from '../audit.ts'
import type { Backend, CallContext } from '../backend.ts'
import type { Log } from '../log.ts'
import type { Authenticator } from './auth.ts'
import { checkRole, type Plan } from './plan.ts'
import type { Rates } from './rates.ts'

/** How long a call may take that does not ask to wait. */
export const usualLimitMs = 10_000
/** The longest anybody may ask to wait. */
const longestWaitMs = 3_600_000
/** A call that waits, and a stream, look so often whether their asker may still ask. */
export const askAgainMs = 1000
/** How long the backend may take after the deadline to say what became of the call, before the door says only that time ran out. */
const graceMs = 500

/** Milliseconds from now until nobody waits for the answer: 10 s, beyond the time the input itself asks to wait. */
export function limitMsOf(plan: Plan, input: unknown): number {
  if (!plan.canWait) return usualLimitMs
  const { wait } = input as { wait?: string }
  return usualLimitMs + (wait === undefined ? 0 : Math.min(durationMs(wait), longestWaitMs))
}

/**
 * Who asks, where that one may make the call: `authenticate` says who it is. Throws `unauthenticated`, `too-many-requests` or `forbidden`, and has that noted,
 * except where nothing was sent to be known by: that is no attempt.
 */
export function admitted(
  { audit, rates }: Pick<Asked, 'audit' | 'rates'>,
  plan: Plan,
  { authorization, from, authenticate }: { authorization: string | undefined; from: string; authenticate: () => Caller },
): Caller {
  let caller = nobody
  try {
    if (plan.call.role !== 'public') caller = authenticate()
    checkRole(plan, caller.role)
    // Whoever is not known is its address.
    const waitMs = rates?.take(caller.role === 'public' ? `from ${from}` : caller.name, Date.now()) ?? 0
    if (waitMs > 0) throw tooOften(waitMs)
    return caller
  } catch (error) {
    if (authorization !== undefined) noteRefusal(audit, { call: plan.name, caller, from }, error)
    throw error
  }
}

function tooOften(waitMs: number): Refusal {
  const text = `this caller asks more often than this server lets one caller ask; try again in ${Math.ceil(waitMs)} ms`
  return new Refusal('too-many-requests', text, { retryAfterMs: Math.ceil(waitMs) })
}

/** Who asks by now: throws `unauthenticated` or `forbidden` where the one that was admitted may no longer make the call. */
export function stillAdmitted(authenticator: Authenticator, plan: Plan, authorization: string | undefined): Caller {
  const caller = plan.call.role === 'public' ? nobody : authenticator.again(authorization)
  checkRole(plan, caller.role)
  return caller
}

/** What the doors need to answer: shared by all of them. */
export interface Asked {
  readonly backend: Backend
  readonly log: Log
  /** Who asked for which change; undefined: this server carries none out by itself. */
  readonly audit?: Audit | undefined
  /** How often a caller may ask; undefined: as often as it likes. */
  readonly rates?: Rates | undefined
  /** `answers`: every answer is checked against the contract, and a wrong one is an internal error. For tests and development: it costs CPU. */
  readonly check: 'answers' | 'nothing'
}

export interface Asker {
  readonly caller: Caller
  /** See {@link CallContext.again}. */
  readonly again: () => Caller
  /** The address at the other end. */
  readonly from: string
  readonly requestId: string
  readonly idempotencyKey: string | undefined
  /** Aborts when the asker has gone. A function, because making a signal costs more than most answers and few backends look. */
  readonly gone: () => AbortSignal
}

/** The context of one call. The signal is made when it is first looked at. */
class AskContext implements CallContext {
  readonly caller: Caller
  readonly again: () => Caller
  readonly from: string
  readonly requestId: string
  readonly deadline: number
  declare readonly idempotencyKey?: string
  readonly #gone: () => AbortSignal
  readonly #late = new AbortController()
  #signal: AbortSignal | undefined

  constructor(asker: Asker, deadline: number) {
    this.caller = asker.caller
    this.again = asker.again
    this.from = asker.from
    this.requestId = asker.requestId
    this.deadline = deadline
    this.#gone = asker.gone
    if (asker.idempotencyKey !== undefined) this.idempotencyKey = asker.idempotencyKey
  }

  get signal(): AbortSignal {
    this.#signal ??= AbortSignal.any([this.#gone(), this.#late.signal])
    return this.#signal
  }

  expire(): void {
    this.end(new Refusal('deadline-passed', 'the time for this request ran out'))
  }

  end(reason: unknown): void {
    this.#late.abort(reason)
  }
}

/**
 * Asks the backend, with an `input` that has passed the call's schema. Answers within the limit and its grace, whatever the backend does.
 * Throws what the backend throws; `deadline-passed` when it says nothing in time.
 */
export async function ask({ backend, log, audit, check }: Asked, plan: Plan, input: unknown, asker: Asker): Promise<unknown> {
  const limitMs = limitMsOf(plan, input)
  const context = new AskContext(asker, Date.now() + limitMs)
  const work = () => backend.call(plan.name, input as never, context)
  const change = { call: plan.name, input, caller: asker.caller, from: asker.from, via: null, requestId: asker.requestId }
  const isWritten = audit !== undefined && changes(plan.call)
  const answered = isWritten ? audit.carryOut(change, work) : work()
  // What is written down as a change says by itself that it was refused.
  if (audit && !isWritten) answered.catch(error => noteRefusal(audit, { call: plan.name, caller: asker.caller, from: asker.from }, error))
  const answer = await within(limitMs, context, plan, limitMs > usualLimitMs ? whileAdmitted(context, answered) : answered)
  if (check === 'answers') {
    const parsed = plan.output.safeParse(answer)
    if (!parsed.success) {
      log.error({ call: plan.name, requestId: asker.requestId, issues: parsed.error.issues }, 'an answer does not fit the contract')
      throw new Error(`the answer of ${plan.name} does not fit the contract: ${parsed.error.message}`)
    }
  }
  return answer
}

/** The answer of a call that waits, for as long as its asker may ask: once it may not, the call is told to end, and what it comes to is not said. */
function whileAdmitted(context: AskContext, answered: Promise<unknown>): Promise<unknown> {
  let refusal: unknown
  const timer = setInterval(() => {
    try {
      context.again()
    } catch (error) {
      clearInterval(timer)
      refusal = error
      context.end(error)
    }
  }, askAgainMs)
  const stop = () => {
    clearInterval(timer)
    if (refusal !== undefined) throw refusal
  }
  return answered.then(
    answer => {
      stop()
      return answer
    },
    error => {
      stop()
      throw error
    },
  )
}

function within(limitMs: number, context: AskContext, plan: Plan, answer: Promise<unknown>): Promise<unknown> {
  return new Promise((resolve, reject) => {
    let timer = setTimeout(() => {
      context.expire()
      timer = setTimeout(() => {
        reject(new Refusal('deadline-passed', `${plan.name} was not answered within ${limitMs / 1000} s; it may still happen`))
      }, graceMs)
    }, limitMs)
    answer.then(
      value => {
        clearTimeout(timer)
        resolve(value)
      },
      error => {
        clearTimeout(timer)
        reject(error)
      },
    )
  })
}

/**
 * The refusal an error becomes. Anything that is no refusal is a mistake of ours: it is logged whole under the request's id, and the asker
 * learns the id only. `call` is the call's name, or the path where there is none.
 */
export function refusalFor(error: unknown, log: Log, { requestId, call }: { requestId: string; call: string }): Refusal {
  if (error instanceof Refusal) return error
  log.error({ err: error, requestId, call }, 'a request failed by a mistake of ours')
  return new Refusal('internal', `request ${requestId} failed; the server's log says why`, { requestId })
}

const saneRequestId = /^[\w.:-]{1,64}$/

/** The request's id: the asker's own where it is sane, else a new one. */
export function requestIdOf(sent: string | undefined): string {
  return sent !== undefined && saneRequestId.test(sent) ? sent : crypto.randomUUID()
}

const visibleAscii = /^[\x21-\x7e]{1,128}$/

/** The Idempotency-Key of a call that takes one. Throws `invalid-input` where it is not 1 to 128 visible ASCII characters. */
export function idempotencyKeyOf(plan: Plan, sent: string | undefined): string | undefined {
  if (sent === undefined || plan.call.idempotency !== 'key') return undefined
  if (visibleAscii.test(sent)) return sent
  const message = 'must be 1 to 128 visible ASCII characters'
  throw wrongFields([{ field: 'Idempotency-Key', message }])
}
