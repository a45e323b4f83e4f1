/** One question or order to an SNMP agent over UDP, with its repeats. */
import { randomInt } from 'node:crypto'
import { createSocket, type Socket } from 'node:dgram'
import { isIPv6 } from 'node:net'
import type { Endpoint } from '../endpoint.ts'
import { Failure } from '../failure.ts'
import type { Turn } from '../turns.ts'
import { BerError } from './ber.ts'
import { decodeMessage, encodeMessage, type SnmpMessage, type SnmpVersion } from './message.ts'

export interface Agent {
  endpoint: Endpoint
  version: SnmpVersion
  community: string
  /** Waits for the answer to each sending, in milliseconds. */
  waitsMs: readonly number[]
}

export interface SnmpRequest {
  type: 'get' | 'set'
  oid: string
  /** What to set. */
  value?: number
  /** `once` for what must not happen twice, such as a cycle. */
  sends: 'repeatedly' | 'once'
}

/** The integer in the agent's answer. Throws Failure. */
export async function ask(turn: Turn, agent: Agent, request: SnmpRequest): Promise<number> {
  const message: SnmpMessage = {
    version: agent.version,
    community: Buffer.from(agent.community),
    type: request.type,
    requestId: randomInt(1, 2 ** 31),
    errorStatus: 0,
    errorIndex: 0,
    bindings: [{ oid: request.oid, value: request.value === undefined ? { type: 'null' } : { type: 'integer', value: request.value } }],
  }
  const socket = await openSocket(turn, agent.endpoint)
  try {
    return valueIn(await converse(turn, socket, { agent, message, request }), request)
  } finally {
    socket.close()
  }
}

/** Names are looked up here, so that the socket can be bound to the address: then the kernel drops strangers and tells of closed ports. */
async function openSocket(turn: Turn, { host, port }: Endpoint): Promise<Socket> {
  const { promise, resolve, reject } = Promise.withResolvers<Socket>()
  const socket = createSocket(isIPv6(host) ? 'udp6' : 'udp4')
  socket.once('error', reject)
  const abort = () => reject(turn.stopped('none'))
  turn.signal.addEventListener('abort', abort, { once: true })
  if (turn.signal.aborted) abort()
  socket.connect(port, host, () => resolve(socket))
  try {
    return await promise
  } catch (error) {
    socket.close()
    if (error instanceof Failure) throw error
    const { code, message } = error as NodeJS.ErrnoException
    throw silent(`it cannot be reached (${code ?? message})`, 'none')
  } finally {
    turn.signal.removeEventListener('abort', abort)
    socket.removeListener('error', reject)
  }
}

/** Repeats carry the same request id, so that an answer to any of them will do. */
async function converse(
  turn: Turn,
  socket: Socket,
  { agent, message, request }: { agent: Agent; message: SnmpMessage; request: SnmpRequest },
): Promise<SnmpMessage> {
  const outcome = request.type === 'set' ? 'unknown' : 'none'
  const datagram = encodeMessage(message)
  const { promise, resolve, reject } = Promise.withResolvers<SnmpMessage>()
  // Settled at any time, awaited only at the end of a wait.
  promise.catch(() => {})
  let odd = ''
  socket.on('message', bytes => {
    try {
      const answer = decodeMessage(bytes)
      if (answer.type === 'response' && answer.requestId === message.requestId) resolve(answer)
    } catch (error) {
      if (!(error instanceof BerError)) return reject(error)
      odd = error.message
    }
  })
  socket.on('error', (error: NodeJS.ErrnoException) =>
    reject(
      error.code === 'ECONNREFUSED'
        ? silent('nothing listens there (port closed)', 'none')
        : silent(`the network failed (${error.code})`, outcome),
    ),
  )
  const waitsMs = request.sends === 'once' ? [agent.waitsMs.reduce((sum, ms) => sum + ms, 0)] : agent.waitsMs
  for (const waitMs of waitsMs) {
    socket.send(datagram)
    const answer = await within(promise, waitMs, turn.signal)
    if (turn.signal.aborted) throw turn.stopped(outcome)
    if (answer) return answer
  }
  if (odd !== '') {
    throw new Failure({ kind: 'protocol', got: `an answer that is not SNMP: ${odd}`, outcome, hint: 'Check the address and port.' })
  }
  throw silent(`no answer, asked ${waitsMs.length} times`, outcome)
}

/** The answer, or undefined when it does not come in time or the signal fires. */
async function within<T>(answer: Promise<T>, waitMs: number, signal: AbortSignal): Promise<T | undefined> {
  const { promise: over, resolve: end } = Promise.withResolvers<undefined>()
  const stop = () => end(undefined)
  const timer = setTimeout(stop, waitMs)
  signal.addEventListener('abort', stop, { once: true })
  if (signal.aborted) stop()
  try {
    return await Promise.race([answer, over])
  } finally {
    clearTimeout(timer)
    signal.removeEventListener('abort', stop)
  }
}

function silent(got: string, outcome: 'none' | 'unknown'): Failure {
  return new Failure({
    kind: 'silent',
    got,
    outcome,
    hint: 'An agent keeps silent when the community or the version is wrong, when this address is not in its access list, or when it is gone.',
  })
}

function valueIn(answer: SnmpMessage, request: SnmpRequest): number {
  if (answer.errorStatus !== 0) throw agentError(answer.errorStatus, request)
  const value = answer.bindings.find(binding => binding.oid === request.oid)?.value
  if (value?.type === 'integer' || value?.type === 'unsigned') return value.value
  if (value?.type === 'absent') throw agentError(2, request)
  throw new Failure({
    kind: 'protocol',
    got: value ? `${request.oid} is no number` : `an answer without ${request.oid}`,
    hint: 'Check the maker: this table of outlets looks different.',
    outcome: request.type === 'set' ? 'unknown' : 'none',
  })
}

const missingHint = 'Check the outlet and the maker. With version 1, a community that may only read is answered in the same way.'
const mayNotHint = 'The community may only read. Give the one that may write, and check the write access of this address.'
const valueHint = 'Check the maker: this agent takes other values.'

/** RFC 3416 section 3; the numbers not listed do not arise from setting one integer. */
const agentErrors: Readonly<Record<number, { name: string; kind: Failure['facts']['kind']; hint: string }>> = {
  1: { name: 'tooBig', kind: 'protocol', hint: valueHint },
  2: { name: 'noSuchName', kind: 'refused', hint: missingHint },
  3: { name: 'badValue', kind: 'refused', hint: valueHint },
  4: { name: 'readOnly', kind: 'privilege', hint: mayNotHint },
  5: { name: 'genErr', kind: 'refused', hint: 'The agent failed or does not allow it now, e.g. because somebody is logged in to it.' },
  6: { name: 'noAccess', kind: 'privilege', hint: mayNotHint },
  7: { name: 'wrongType', kind: 'refused', hint: valueHint },
  10: { name: 'wrongValue', kind: 'refused', hint: valueHint },
  11: { name: 'noCreation', kind: 'refused', hint: missingHint },
  13: { name: 'resourceUnavailable', kind: 'busy', hint: 'The agent has no room just now. Try again in a minute.' },
  14: { name: 'commitFailed', kind: 'refused', hint: 'The outlet may be locked in the settings of the PDU.' },
  16: { name: 'authorizationError', kind: 'privilege', hint: mayNotHint },
  17: { name: 'notWritable', kind: 'privilege', hint: mayNotHint },
  18: { name: 'inconsistentName', kind: 'refused', hint: missingHint },
}

function agentError(status: number, request: SnmpRequest): Failure {
  const row = agentErrors[status] ?? { name: 'unknown', kind: 'refused', hint: valueHint }
  return new Failure({
    kind: row.kind,
    got: `the agent answered ${row.name} (${status}) to a ${request.type} of ${request.oid}`,
    hint: row.hint,
  })
}
