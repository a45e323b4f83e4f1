// The federated backend: one API over all partitions. How a call spreads is a field of its declaration; no call is known here by name.
import type { Backend, CallContext, ReadinessCheck } from '@muster/server/backend'
import type { Bus } from '@muster/shared/bus/bus'
import { subjects } from '@muster/shared/bus/protocol'
import type { Call, Coverage, Spread } from '@muster/shared/contract/call'
import { type CallInput, type CallName, type CallOutput, calls as contractCalls } from '@muster/shared/contract/contract'
import { goneOf, goneRefusal } from '@muster/shared/contract/log'
import { Refusal } from '@muster/shared/errors'
import { type Asked, coverageOf, lineOf } from './coverage.ts'
import type { Limits } from './limits.ts'
import { failureOf, type PartitionCalls, type Reply } from './partition-calls.ts'
import type { Presence } from './presence.ts'

/** What a front answers by itself, by the call's name. */
export type Here = {
  readonly [Name in CallName]?: (input: CallInput<Name>, context: CallContext) => CallOutput<Name> | Promise<CallOutput<Name>>
}

/** What a front knows beside what the partitions answered, by the call's name. */
export type Beside = {
  readonly [Name in CallName]?: (gathered: CallOutput<Name>) => Promise<Partial<CallOutput<Name>>>
}

export interface FederationOptions {
  readonly name: string
  readonly bus: Bus
  readonly presence: Presence
  readonly calls: PartitionCalls
  readonly limits: Limits
  readonly here: Here
  readonly beside: Beside
  /** What `best` means. */
  readonly allocate: (input: never, context: CallContext) => Promise<object>
  readonly onLogGrowth: Backend['onLogGrowth']
}

type Merging = Extract<Spread<unknown, unknown>, { merge: unknown }>

/** The backend of a front. */
export function createFederation(options: FederationOptions): Backend {
  const { name, bus, presence, here } = options
  return {
    kind: 'front',
    name,
    onLogGrowth: options.onLogGrowth,
    readiness: () => readiness(bus, presence),
    async call<Name extends CallName>(callName: Name, input: CallInput<Name>, context: CallContext): Promise<CallOutput<Name>> {
      const call = contractCalls.get(callName) as Call
      const answer = async (): Promise<unknown> => {
        switch (call.spread.kind) {
          case 'here':
          case 'global': {
            const handle = here[callName]
            if (handle) return handle(input, context)
            if (call.spread.kind === 'global') throw new Refusal('not-ready', `${callName}: this front has no MUSTER_CONFIG_KEY`)
            throw new Refusal('method-not-allowed', `${callName} is not answered by a front as a call`)
          }
          case 'owner':
            return askOwner(options, { callName, call, input, context, partition: call.spread.of(input) })
          case 'best':
            return options.allocate(input as never, context)
          case 'gather':
          case 'find':
          case 'each':
            return spreadOver(options, { callName, call, input, context, spread: call.spread })
        }
      }
      const answered = (await answer()) as CallOutput<Name>
      const more = await options.beside[callName]?.(answered)
      return more ? { ...answered, ...more } : answered
    },
  }
}

function readiness(bus: Bus, presence: Presence): ReadinessCheck[] {
  const known = presence.known()
  const present = known.filter(partition => presence.standing(partition) === 'present')
  return [
    { name: 'bus', status: bus.isConnected() ? 'ok' : 'failed', detail: bus.describe() },
    // Told, not required: a front without partitions answers truthfully that they are silent.
    { name: 'partitions', status: 'ok', detail: `${present.length} of ${known.length} present` },
  ]
}

interface OneCall {
  readonly callName: CallName
  readonly call: Call
  readonly input: unknown
  readonly context: CallContext
}

/** One hop to the partition that has it. */
async function askOwner(options: FederationOptions, request: OneCall & { partition: string | undefined }): Promise<unknown> {
  const { presence } = options
  const { callName, call, partition } = request
  if (partition === undefined || !presence.isKnown(partition)) throw unknownPartition(options, callName, partition)
  const [asked] = (await askEach(options, request, [partition])) as [Asked]
  const { reply } = asked
  if (reply.kind !== 'answered') throw failureOf(partition, callName, reply, presence.describe(partition))
  if (call.answer.safeParse(reply.answer).success) return reply.answer
  throw failureOf(partition, callName, { kind: 'garbled', reason: 'its answer is malformed' }, '')
}

function unknownPartition({ presence }: FederationOptions, callName: CallName, partition: string | undefined): Refusal {
  const known = presence.known()
  const facts = { partition: partition ?? null, known }
  if (partition === undefined)
    return new Refusal('not-found', `${callName}: the input names no partition; one of ${known.join(', ')} is needed`, facts)
  return new Refusal('not-found', `${callName}: there is no partition ${partition}`, facts)
}

/** Asks all partitions, or those that the input names, and merges what they say. */
async function spreadOver(options: FederationOptions, request: OneCall & { spread: Merging }): Promise<object> {
  const { presence } = options
  const { callName, input } = request
  const targets = named(input)?.filter(partition => presence.isKnown(partition)) ?? presence.known()
  if (targets.length === 0 && named(input) === undefined) throw new Refusal('partition-silent', `${callName}: no partition is known yet`)

  let asked = await askEach(options, request, targets)
  const heard = () => asked.filter(({ reply }) => reply.kind === 'answered')
  // A log that cannot be gone on with makes no part of an answer: whoever reads on would take the rest for all there is.
  const gone = asked.flatMap(({ partition, reply }) => (reply.kind === 'refused' ? (goneOf(reply.refusal, partition) ?? []) : []))
  if (gone.length > 0) throw goneRefusal((input as { after?: string }).after, gone)
  if (heard().length === 0 && targets.length > 0) throw nobodyAnswered(request, asked)
  let answer = merge(request, asked)
  if (answer === undefined) {
    // Somebody sent nonsense. To find out who costs a check of every answer, which is why it is not made every time.
    asked = asked.map(each => withoutNonsense(request, each))
    if (heard().length === 0) throw nobodyAnswered(request, asked)
    answer = merge(request, asked)
  }
  if (answer === undefined) throw new Refusal('internal', `${callName}: the answers of the partitions do not fit together`)
  return { ...answer, coverage: coverage(request, asked) }
}

/** The field `partition` of an input, where it is a list: whom to ask. */
function named(input: unknown): string[] | undefined {
  const value = typeof input === 'object' && input !== null && 'partition' in input ? input.partition : undefined
  return Array.isArray(value) ? [...new Set(value as string[])] : undefined
}

/** Asks several partitions at once. Those held silent get a short try where the call changes nothing, and none otherwise. */
async function askEach(options: FederationOptions, request: OneCall, partitions: readonly string[]): Promise<Asked[]> {
  const { bus, presence, calls, limits } = options
  const { callName, call, input, context } = request
  if (!bus.isConnected()) throw new Refusal('bus-away', `${callName}: no link to the message bus (${bus.describe()})`)
  const envelope = calls.envelope(context)
  const encoded = calls.encode(envelope, callName, input)
  const cancel = () => calls.cancel(envelope.id)
  context.signal.addEventListener('abort', cancel, { once: true })
  const askOne = async (partition: string): Promise<Asked> => {
    const isSilent = presence.standing(partition) === 'silent'
    if (isSilent && call.rest.method !== 'GET') return { partition, ms: 0, reply: notAsked(presence, partition) }
    const startedAt = performance.now()
    // A call may ask its partition to wait; then the request's own deadline is the limit.
    const limitMs = isSilent ? limits.silentTryMs : canWait(input) ? Number.POSITIVE_INFINITY : limits.callMs
    const timeoutMs = Math.min(limitMs, context.deadline - Date.now())
    const reply = await calls.ask({ partition, envelope, timeoutMs, signal: context.signal }, encoded)
    const known = reply.kind === 'silent' && isSilent ? { ...reply, reason: `${reply.reason}, ${presence.describe(partition)}` } : reply
    return { partition, ms: performance.now() - startedAt, reply: known }
  }
  const asked = await Promise.all(partitions.map(askOne))
  context.signal.removeEventListener('abort', cancel)
  if (context.signal.aborted) throw new Refusal('deadline-passed', `${callName}: the caller has gone, or its time ran out`)
  return asked
}

function canWait(input: unknown): boolean {
  return typeof input === 'object' && input !== null && 'wait' in input && input.wait !== undefined
}

function notAsked(presence: Presence, partition: string): Reply<never> {
  return { kind: 'silent', reason: presence.describe(partition), heard: 'no', link: 'up' }
}

/** The merged answer, or undefined where the answers make none. */
function merge({ call, input, spread }: OneCall & { spread: Merging }, asked: readonly Asked[]): object | undefined {
  const answers = asked.flatMap(({ partition, reply }) => (reply.kind === 'answered' ? [{ partition, answer: reply.answer }] : []))
  const silent = asked.flatMap(({ partition, reply }) => (reply.kind === 'answered' ? [] : [partition]))
  try {
    const answer = spread.merge({ answers, silent }, input)
    return call.answer.safeParse(answer).success ? (answer as object) : undefined
  } catch {
    return undefined // merges trust the shapes of answers: one that throws has met nonsense, and the caller finds out whose
  }
}

function withoutNonsense(request: OneCall & { spread: Merging }, asked: Asked): Asked {
  if (asked.reply.kind !== 'answered') return asked
  const isSense = request.call.answer.safeParse(asked.reply.answer).success && merge(request, [asked]) !== undefined
  return isSense ? asked : { ...asked, reply: { kind: 'garbled', reason: 'its answer is malformed' } }
}

function coverage({ spread }: { spread: Merging }, asked: readonly Asked[]): Coverage {
  return coverageOf(asked.map(each => lineOf(each, spread.kind)))
}

/**
 * The refusal where no partition answered. What a partition says of the request itself goes before the silence of others; that nobody has
 * a thing is only certain when all have said so.
 */
function nobodyAnswered(request: OneCall & { spread: Merging }, asked: readonly Asked[]): Refusal {
  const facts = { coverage: coverage(request, asked) }
  const refusals = asked.flatMap(({ reply }) => (reply.kind === 'refused' ? [reply.refusal] : []))
  const isAbsent = (refusal: Refusal) => request.spread.kind === 'find' && refusal.code === 'not-found'
  const telling = refusals.find(refusal => !isAbsent(refusal))
  if (telling) return new Refusal(telling.code, telling.message, { ...telling.facts, ...facts }, { cause: telling })
  const absent = refusals[0]
  if (absent && refusals.length === asked.length)
    return new Refusal('not-found', absent.message, { ...absent.facts, ...facts }, { cause: absent })
  const rest = asked.filter(({ reply }) => reply.kind !== 'refused')
  const reasons = rest.map(({ partition, reply }) => `${partition}: ${'reason' in reply ? reply.reason : ''}`)
  if (rest.some(({ reply }) => reply.kind === 'silent' && reply.link === 'down'))
    return new Refusal('bus-away', `${request.callName}: ${reasons[0]}`, facts)
  const shown = reasons.slice(0, 5).join('; ') + (reasons.length > 5 ? ` and ${reasons.length - 5} more` : '')
  return new Refusal('partition-silent', `${request.callName}: no answer from ${shown}`, facts)
}

/** Tells when the log of any partition may have grown; at most once in {@link growthQuietMs}, because every stream looks at all of them. */
export function watchLogs(
  bus: Bus,
  log: { warn(facts: object, text: string): void },
): { onLogGrowth: Backend['onLogGrowth']; stop: () => void } {
  const listeners = new Set<() => void>()
  const stops: (() => void)[] = []
  let timer: NodeJS.Timeout | undefined
  let isStopped = false
  const tell = () => {
    timer = undefined
    for (const listener of listeners) listener()
  }
  const subscribe = async () => {
    try {
      const subscription = await bus.subscribe(subjects.log('*'), {}, () => {
        if (listeners.size > 0) timer ??= setTimeout(tell, growthQuietMs)
      })
      if (isStopped) subscription.stop()
      else stops.push(() => subscription.stop())
    } catch (error) {
      if (!isStopped) log.warn({ err: error }, 'cannot listen to growing logs; streams will look by the clock only')
    }
  }
  void subscribe()
  return {
    onLogGrowth: listener => {
      listeners.add(listener)
      return () => listeners.delete(listener)
    },
    stop: () => {
      isStopped = true
      clearTimeout(timer)
      for (const stop of stops) stop()
    },
  }
}

const growthQuietMs = 50
