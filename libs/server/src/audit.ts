// The audit log as the doors see it: changes are carried out through it.
import type { RefusedAttempt } from '@muster/shared/audit'
import type { Call, Caller } from '@muster/shared/contract/call'
import { type ErrorCode, Refusal } from '@muster/shared/errors'

/** Carries out a change and writes down who asked for it, from where, and what came of it. Rejects, with nothing done, where that cannot be written. */
export interface Audit {
  carryOut<Answer>(
    change: {
      readonly call: string
      readonly input: unknown
      readonly caller: Caller
      readonly from: string
      /** The front it came through; null: it was asked here. */
      readonly via: string | null
      readonly requestId: string
    },
    work: () => Promise<Answer>,
  ): Promise<Answer>
  /** Counts an attempt that was refused at the door. It is written down, with others of its kind, within a second or so. */
  refused(attempt: RefusedAttempt): void
}

/** Refusals that tell of somebody who may not come in. */
const doorCodes: ReadonlySet<ErrorCode> = new Set(['unauthenticated', 'forbidden', 'too-many-requests'])

/** Notes what `error` says of an attempt, where it says that somebody was not let in. */
export function noteRefusal(audit: Audit | undefined, attempt: Omit<RefusedAttempt, 'code' | 'reason'>, error: unknown): void {
  if (!(error instanceof Refusal && doorCodes.has(error.code))) return
  // How long one has to wait is another each time; the reason is the same.
  const [reason = ''] = error.message.split('; try again')
  audit?.refused({ ...attempt, code: error.code, reason })
}

/** Whether a call changes something on somebody's account. Public calls are on nobody's: what becomes of them is in the log. */
export function changes(call: Pick<Call, 'rest' | 'role'>): boolean {
  return call.rest.method !== 'GET' && call.role !== 'public'
}
