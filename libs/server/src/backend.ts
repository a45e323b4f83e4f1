// What stands behind the doors of a server. Two backends pass one suite: the local one of a partition, and the federated one of a front.

import { type Caller, isSameCaller } from '@muster/shared/contract/call'
import type { CallInput, CallName, CallOutput } from '@muster/shared/contract/contract'

/** What travels with every call. */
export interface CallContext {
  readonly caller: Caller
  /**
   * Who asks as things stand now, for calls that take long: its token may have been revoked since, or its pools narrowed. Cheap. Throws `unauthenticated` or
   * `forbidden` where it may no longer ask this. In a partition that a front asks it is the caller as the front sent it: the front asks itself while it waits.
   */
  readonly again: () => Caller
  /** The address it was asked from, at the server that was asked first. */
  readonly from: string
  /** Appears in logs, events and answers (`x-request-id`). */
  readonly requestId: string
  /** Epoch milliseconds after which nobody waits for the answer. */
  readonly deadline: number
  /** Aborts when the caller has gone or the deadline has passed. */
  readonly signal: AbortSignal
  readonly idempotencyKey?: string
}

/** Whether `caller` is still who asks. Who it is instead, and whether that one may go on, is for whoever looks next. */
export function isStillAsking({ again }: Pick<CallContext, 'again'>, caller: Caller): boolean {
  try {
    return isSameCaller(again(), caller)
  } catch {
    return false
  }
}

/** One thing a server needs to be of use, as /readyz shows it. */
export interface ReadinessCheck {
  readonly name: string
  readonly status: 'ok' | 'failed'
  readonly detail: string
}

export interface Backend {
  readonly kind: 'front' | 'partition'
  readonly name: string
  /** Runs a call whose input has passed its schema; answers the whole output, coverage included. Throws Refusal. */
  call<Name extends CallName>(name: Name, input: CallInput<Name>, context: CallContext): Promise<CallOutput<Name>>
  /** Tells when the event log may have grown, so that streams look at once. Returns the way to stop listening. */
  onLogGrowth(listener: () => void): () => void
  /** The checks of /readyz, cheap enough to be asked every second. */
  readiness(): ReadinessCheck[]
}
