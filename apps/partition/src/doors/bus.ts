// The bus door: what fronts ask. Offers come from memory; calls go to the same handlers as the partition's own API. A question whose deadline has
// passed is not answered: a process that slept must not act on what nobody waits for any more.
import { changes } from '@muster/server/audit'
import type { CallContext } from '@muster/server/backend'
import type { Log } from '@muster/server/log'
import type { Bus, BusMessage, BusSubscription } from '@muster/shared/bus/bus'
import {
  type BusCallInput,
  type BusCallName,
  busCalls,
  type CallRequestMessage,
  callRequest,
  cancelNotice,
  offerRequest,
  type Presence,
  presenceEveryMs,
  protocolVersion,
  subjects,
} from '@muster/shared/bus/protocol'
import { mayAct } from '@muster/shared/contract/call'
import { type CallName, callNamed } from '@muster/shared/contract/contract'
import { invalidInput, problemOf, Refusal } from '@muster/shared/errors'
import { partOf } from '@muster/shared/global/copy'
import type { LocalBackend } from '../backend/local.ts'
import { refusalOfDatabase } from '../db/connect.ts'
import * as allocation from '../domain/allocation.ts'
import type { Core } from '../domain/core.ts'

export interface BusDoorOptions {
  core: Core
  bus: Bus
  backend: LocalBackend
  replica: { name: string; epoch: number }
  version: string
  url: string
  log: Log
}

export interface BusDoor {
  /** Tells fronts that the log has grown. */
  logHasGrown(lastSeq: number): void
  /** Says goodbye, takes no more questions, and waits for those under way; who asked to wait is answered as things stand. */
  close(): Promise<void>
}

const encoder = new TextEncoder()
const decoder = new TextDecoder()
const encode = (value: unknown) => encoder.encode(JSON.stringify(value))

/** Answers to a front stay below the broker's limit: a page that does not fit is answered in part, anything else is refused. */
const answerLimitBytes = 1_000_000
/** Items differ in size, so fewer are read than would fit if they did not. */
const partOfFit = 0.8

/** Opens the door. Subscriptions wait for the link by themselves: a partition starts, and works, without its bus. */
export function openBusDoor(options: BusDoorOptions): BusDoor {
  const { core, bus, log } = options
  const underWay = new Map<string, AbortController>()
  const answers = new Set<Promise<void>>()
  const subscriptions: BusSubscription[] = []
  let isClosing = false

  const tellPresence = (status: Presence['status']) => {
    const { candidates } = core.memory
    const notice: Presence = {
      v: protocolVersion,
      partition: core.partition,
      replica: options.replica.name,
      epoch: options.replica.epoch,
      version: options.version,
      url: options.url,
      status,
      capacity: { ready: candidates.readyCount, total: candidates.size },
      configuration: core.configuration.held,
    }
    bus.publish(subjects.presence(core.partition), encode(notice))
  }

  const onOffer = (message: BusMessage) => {
    const request = offerRequest.safeParse(parse(message.data))
    if (!request.success || isLate(request.data.deadline)) return
    message.reply?.(encode(allocation.offerFor(core, options.replica, request.data)))
  }

  const onCall = (message: BusMessage) => {
    const request = callRequest.safeParse(parse(message.data))
    if (!request.success) {
      message.reply?.(
        encode({ v: protocolVersion, problem: problemOf(new Refusal('malformed', 'the envelope of the call cannot be read')) }),
      )
      return
    }
    if (isLate(request.data.deadline)) return
    const answer = answerCall(options, request.data, underWay)
      .then(reply => message.reply?.(reply))
      .catch(error => log.error({ err: error, call: request.data.call }, 'an answer could not be sent'))
      .finally(() => answers.delete(answer))
    answers.add(answer)
  }

  const onCancel = (message: BusMessage) => {
    const notice = cancelNotice.safeParse(parse(message.data))
    if (notice.success) for (const id of notice.data.ids) underWay.get(id)?.abort(new Error('the caller has gone'))
  }

  const listen = (subject: string, group: string | undefined, handle: (message: BusMessage) => void) => {
    bus
      .subscribe(subject, group === undefined ? {} : { group }, handle)
      .then(subscription => {
        if (isClosing) subscription.stop()
        else subscriptions.push(subscription)
      })
      .catch(error => {
        if (!isClosing) log.error({ err: error, subject }, 'this partition cannot listen on the bus; fronts will find it silent')
      })
  }
  // One replica of the partition answers: they share a group.
  listen(subjects.offer, core.partition, onOffer)
  listen(subjects.call(core.partition), core.partition, onCall)
  listen(subjects.cancel, undefined, onCancel)
  listen(subjects.presenceAsk, undefined, () => {
    if (!isClosing) tellPresence('ready')
  })
  tellPresence('ready')
  const timer = setInterval(() => tellPresence('ready'), presenceEveryMs)

  return {
    logHasGrown: lastSeq => bus.publish(subjects.log(core.partition), encode({ v: protocolVersion, partition: core.partition, lastSeq })),
    close: async () => {
      isClosing = true
      clearInterval(timer)
      for (const subscription of subscriptions) subscription.stop()
      tellPresence('leaving')
      for (const canceller of underWay.values()) canceller.abort(new Error('this replica stops'))
      await Promise.all(answers)
    },
  }
}

function parse(data: Uint8Array): unknown {
  try {
    return JSON.parse(decoder.decode(data))
  } catch {
    // Not JSON: the schema refuses undefined, and with it the message.
    return undefined
  }
}

const isLate = (deadline: number) => deadline <= Date.now()

async function answerCall(
  options: BusDoorOptions,
  request: CallRequestMessage,
  underWay: Map<string, AbortController>,
): Promise<Uint8Array> {
  const canceller = new AbortController()
  underWay.set(request.id, canceller)
  try {
    const limit = AbortSignal.timeout(Math.max(1, request.deadline - Date.now()))
    return await fittingAnswer(options, request, AbortSignal.any([canceller.signal, limit]))
  } catch (error) {
    const known = refusalOfDatabase(error)
    if (known instanceof Refusal) return encode({ v: protocolVersion, problem: problemOf(known) })
    options.log.error({ err: error, call: request.call, requestId: request.id }, 'a call failed')
    return encode({
      v: protocolVersion,
      problem: problemOf(
        new Refusal('internal', `partition ${options.core.partition} could not answer ${request.call} (request ${request.id})`),
      ),
    })
  } finally {
    underWay.delete(request.id)
  }
}

/** The answer, encoded. A page that is too large is read again with fewer items: whoever merges pages goes on behind the last of them. */
async function fittingAnswer(options: BusDoorOptions, request: CallRequestMessage, signal: AbortSignal): Promise<Uint8Array> {
  for (let asked = request; ; ) {
    const ok = await dispatch(options, asked, signal)
    const data = encode({ v: protocolVersion, ok })
    if (data.length <= answerLimitBytes) return data
    const items = pageSize(request.call, ok)
    if (items < 2) throw new Refusal('payload-too-large', `the answer has ${data.length} bytes, more than the bus carries`)
    const limit = Math.max(1, Math.floor(((items * answerLimitBytes) / data.length) * partOfFit))
    asked = { ...asked, input: { ...(asked.input as object), limit } }
  }
}

/** How many items an answer has that is a page, of a list that can be asked for less; 0 for any other. */
function pageSize(call: string, answer: unknown): number {
  const takesLimit = 'limit' in ((callNamed(call)?.input as { shape?: object } | undefined)?.shape ?? {})
  const isPage = typeof answer === 'object' && answer !== null && 'items' in answer && 'nextCursor' in answer
  return takesLimit && isPage && Array.isArray(answer.items) ? answer.items.length : 0
}

/** Holds are not written down: they give nothing, and end by themselves. What is confirmed is, and what is given back with it. */
function isAudited(request: CallRequestMessage): boolean {
  if (request.call === 'allocation.confirm') return true
  if (request.call === 'allocation.drop') return (request.input as { confirmed?: unknown } | null)?.confirmed === 'release'
  const call = callNamed(request.call)
  return call !== undefined && changes(call)
}

async function dispatch(options: BusDoorOptions, request: CallRequestMessage, signal: AbortSignal): Promise<unknown> {
  const { core } = options
  const schema = request.call in busCalls ? busCalls[request.call as BusCallName].input : callNamed(request.call)?.input
  const call = callNamed(request.call)
  if (!schema) throw new Refusal('not-found', `this release knows no call ${request.call}`)
  // The front has checked it too; a partition believes nobody's check but its own.
  const needs = call?.role ?? (request.call === 'config.copy' ? 'admin' : 'user')
  if (!mayAct(request.caller.role, needs)) throw new Refusal('forbidden', `${request.call} needs the role ${needs}`)
  const parsed = schema.safeParse(request.input)
  if (!parsed.success) throw invalidInput(parsed.error)
  const work = () => carryOut(options, request, parsed.data, signal)
  if (!isAudited(request)) return work()
  const { call: name, caller, id, origin } = request
  const change = {
    call: name,
    input: parsed.data,
    caller,
    from: origin?.address ?? 'unknown',
    via: origin?.front ?? 'unknown',
    requestId: id,
  }
  return core.audit.carryOut(change, () => {
    // The entry took a moment, in which a process may have slept: it must not act on what nobody waits for any more.
    if (isLate(request.deadline)) throw new Refusal('deadline-passed', `${name} came too late; nothing was done`)
    return work()
  })
}

async function carryOut(
  { core, backend }: BusDoorOptions,
  request: CallRequestMessage,
  input: unknown,
  signal: AbortSignal,
): Promise<unknown> {
  switch (request.call) {
    case 'allocation.hold': {
      const machines = await allocation.hold(core, request.caller, input as never)
      return { machines: machines.map(({ id }) => ({ id })) }
    }
    case 'allocation.confirm':
      return allocation.confirm(core, (input as { allocation: string }).allocation)
    case 'allocation.drop':
      return { dropped: await allocation.drop(core, request.caller.name, input as never) }
    case 'config.copy': {
      const { text, generation } = core.configuration
      return partOf(text === undefined ? undefined : { text, generation }, input as never)
    }
    case 'quota.count': {
      const { of, allocation: own } = input as BusCallInput<'quota.count'>
      return { counts: await allocation.countOwned(core, of, own ?? null) }
    }
    case 'key.recall':
      return allocation.recall(core, (input as { key: string }).key)
    case 'key.remember':
      return allocation.remember(core, input as never)
    default: {
      const from = request.origin?.address ?? 'unknown'
      const { caller, id: requestId, deadline } = request
      const context: CallContext = { caller, again: () => caller, from, requestId, deadline, signal }
      return backend.answer(request.call as CallName, input as never, context)
    }
  }
}
