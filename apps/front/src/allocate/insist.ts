// Asking one partition until it says something definite: for the calls whose outcome decides whether machines are somebody's. All of them
// are idempotent, so asking again is harmless.
import type { BusCallAnswer, BusCallInput, BusCallName } from '@muster/shared/bus/protocol'
import { type ErrorCode, errorTable } from '@muster/shared/errors'
import type { Limits } from '../limits.ts'
import type { Envelope, PartitionCalls, Reply } from '../partition-calls.ts'
import { jittered, pause } from '../pause.ts'

export interface Insistence {
  readonly calls: PartitionCalls
  readonly limits: Limits
  readonly envelope: Envelope
  readonly partition: string
  /** Epoch milliseconds after which it gives up; one try is always made. */
  readonly until: number
  readonly signal?: AbortSignal
}

/** A partition that refuses for a trouble of its own may or may not have done it. These retryable refusals are definite all the same. */
const definite: ReadonlySet<ErrorCode> = new Set<ErrorCode>(['no-match', 'nothing-allocated', 'stale-version'])
const leastTryMs = 50

/** Whether a reply says for certain what is the case. */
export function isDefinite(reply: Reply<unknown>): boolean {
  if (reply.kind === 'answered') return true
  return reply.kind === 'refused' && (errorTable[reply.refusal.code].retryable === 'no' || definite.has(reply.refusal.code))
}

/** Asks until the reply is definite, or the time is up: then the last reply is answered. */
export async function insist<Name extends BusCallName>(
  insistence: Insistence,
  call: Name,
  input: BusCallInput<Name>,
): Promise<Reply<BusCallAnswer<Name>>> {
  const { calls, limits, partition, until, signal } = insistence
  // The partition may still serve the question for as long as we want an answer, whatever the client's own deadline.
  const envelope = { ...insistence.envelope, deadline: Math.max(insistence.envelope.deadline, until) }
  let waitMs = limits.retryMs[0]
  for (;;) {
    const timeoutMs = Math.max(leastTryMs, Math.min(limits.callMs, until - Date.now()))
    const reply = await calls.askBus({ partition, envelope, timeoutMs, ...(signal && { signal }) }, call, input)
    const pauseMs = jittered(waitMs)
    if (isDefinite(reply) || signal?.aborted || Date.now() + pauseMs >= until) return reply
    await pause(pauseMs, signal)
    waitMs = Math.min(waitMs * 2, limits.retryMs[1])
  }
}
