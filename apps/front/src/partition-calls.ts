// One call of one partition over the bus: the question, its limit, and an answer that is a value whatever happens. The only place that
// knows how calls look on the wire.
import { type Bus, BusError } from '@muster/shared/bus/bus'
import { type BusCallAnswer, type BusCallInput, type BusCallName, busCalls, protocolVersion, subjects } from '@muster/shared/bus/protocol'
import type { Caller } from '@muster/shared/contract/call'
import { problemDocument, Refusal, refusalOf } from '@muster/shared/errors'
import { randomText } from '@muster/shared/ids'
import { decodeJson, encodeJson } from './json.ts'

/**
 * What came of a call. `silent`: no answer, and `heard` says whether the partition can have heard the question. `garbled`: an answer that
 * no partition should give.
 */
export type Reply<Answer> =
  | { readonly kind: 'answered'; readonly answer: Answer }
  | { readonly kind: 'refused'; readonly refusal: Refusal }
  | { readonly kind: 'silent'; readonly reason: string; readonly heard: 'no' | 'perhaps'; readonly link: 'up' | 'down' }
  | { readonly kind: 'garbled'; readonly reason: string }

export interface Question {
  readonly partition: string
  readonly envelope: Envelope
  readonly timeoutMs: number
  /** Gives up, and tells the partition so. */
  readonly signal?: AbortSignal
}

/** Who asks, for which request, and until when an answer is of use. */
export interface Envelope {
  /** Unlike the caller's request id it is never used twice: a cancelled request does not take its own retry with it. */
  readonly id: string
  readonly deadline: number
  readonly caller: Caller
  readonly origin: { readonly address: string; readonly front: string }
}

export interface PartitionCalls {
  /** Makes the envelope of one request of a client. `id` may be anything. */
  envelope(request: { requestId: string; deadline: number; caller: Caller; from: string }): Envelope
  /** Encodes a call once, however many partitions are asked. */
  encode(envelope: Envelope, call: string, input: unknown): Uint8Array
  /** Asks with an encoded call. Never throws for what a partition or the link does. */
  ask(question: Question, encoded: Uint8Array): Promise<Reply<unknown>>
  /** Asks a call that only fronts make; its answer has passed its schema. */
  askBus<Name extends BusCallName>(question: Question, call: Name, input: BusCallInput<Name>): Promise<Reply<BusCallAnswer<Name>>>
  /** Tells the partitions that nobody waits for this request any more. */
  cancel(id: string): void
  /** Sends what is gathered, and no more after that. */
  stop(): void
}

/** Cancellations of a client that closes a connection with many requests go out in one notice. */
const cancelQuietMs = 20
/** A notice stays far below the smallest limit of a broker. */
const cancelsPerNotice = 500
const idRoom = 44

/** The way to the partitions over `bus`, for the front `front`. */
export function createPartitionCalls(bus: Bus, front: string): PartitionCalls {
  const process = randomText(5)
  let count = 0
  const gone = new Set<string>()
  let timer: NodeJS.Timeout | undefined

  const sendCancels = () => {
    clearTimeout(timer)
    timer = undefined
    const ids = [...gone]
    gone.clear()
    for (let from = 0; from < ids.length; from += cancelsPerNotice)
      bus.publish(subjects.cancel, encodeJson({ v: protocolVersion, ids: ids.slice(from, from + cancelsPerNotice) }))
  }

  const ask = async (question: Question, encoded: Uint8Array): Promise<Reply<unknown>> => {
    const { partition, timeoutMs, signal } = question
    try {
      const data = await bus.request(subjects.call(partition), encoded, { timeoutMs, ...(signal && { signal }) })
      return readReply(data)
    } catch (error) {
      if (!(error instanceof BusError)) throw error
      if (error.code === 'too-large') return { kind: 'refused', refusal: new Refusal('payload-too-large', error.message) }
      const heard = error.code === 'timeout' || error.code === 'disconnected' || error.code === 'cancelled' ? 'perhaps' : 'no'
      return { kind: 'silent', reason: silenceOf(error, timeoutMs), heard, link: error.code === 'disconnected' ? 'down' : 'up' }
    }
  }

  const calls: PartitionCalls = {
    envelope: ({ requestId, deadline, caller, from }) => ({
      id: `${requestId.slice(0, idRoom)}~${process}${(++count).toString(36)}`,
      deadline,
      caller: toldOf(caller),
      origin: { address: from, front },
    }),
    encode: (envelope, call, input) => encodeJson({ v: protocolVersion, ...envelope, call, input }),
    ask,
    askBus: async (question, call, input) => {
      const reply = await ask(question, calls.encode(question.envelope, call, input))
      if (reply.kind !== 'answered') return reply
      const parsed = busCalls[call].answer.safeParse(reply.answer)
      if (parsed.success) return { kind: 'answered', answer: parsed.data as BusCallAnswer<typeof call> }
      return { kind: 'garbled', reason: `its answer to ${call} is malformed` }
    },
    cancel: id => {
      gone.add(id)
      timer ??= setTimeout(sendCancels, cancelQuietMs)
    },
    stop: sendCancels,
  }
  return calls
}

/** A caller as partitions are told of it, whatever else its server knows. */
export function toldOf({ name, role, pools }: Caller): Caller {
  return { name, role, ...(pools && { pools }) }
}

/** Checked by hand: a schema would cost more than the parsing, and the content is checked by whoever knows the call. */
function readReply(data: Uint8Array): Reply<unknown> {
  const reply = decodeJson(data)
  if (typeof reply !== 'object' || reply === null) return { kind: 'garbled', reason: 'its reply is not a JSON object' }
  if (!('v' in reply) || reply.v !== protocolVersion) return { kind: 'garbled', reason: `its reply is not of protocol ${protocolVersion}` }
  if ('ok' in reply) return { kind: 'answered', answer: reply.ok }
  const problem = problemDocument.safeParse('problem' in reply ? reply.problem : undefined)
  return problem.success
    ? { kind: 'refused', refusal: refusalOf(problem.data) }
    : { kind: 'garbled', reason: 'its reply has neither answer nor problem' }
}

function silenceOf(error: BusError, timeoutMs: number): string {
  switch (error.code) {
    case 'no-responders':
      return 'nobody listens there'
    case 'timeout':
      return `no answer within ${Math.round(timeoutMs)} ms`
    case 'disconnected':
      return 'the link to the message bus is down'
    case 'cancelled':
      return 'the caller has gone'
    default:
      return error.message
  }
}

/** A refusal for a partition that did not answer, or answered nonsense. */
export function failureOf(partition: string, call: string, reply: Exclude<Reply<unknown>, { kind: 'answered' }>, known: string): Refusal {
  switch (reply.kind) {
    case 'refused':
      return reply.refusal
    case 'garbled':
      return new Refusal('internal', `${call} of ${partition}: ${reply.reason}`, { partition })
    case 'silent': {
      if (reply.link === 'down') return new Refusal('bus-away', `${call} of ${partition}: ${reply.reason}`, { partition })
      const effect = reply.heard === 'no' ? 'it was not asked' : 'it may have heard the question: look before asking again'
      return new Refusal('partition-silent', `${call} of ${partition}: ${reply.reason} (${known}); ${effect}`, { partition })
    }
  }
}
