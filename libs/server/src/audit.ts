// The audit log as the doors see it: changes are carried out through it.
import type { Call, Caller } from '@muster/shared/contract/call'

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
}

/** Whether a call changes something on somebody's account. Public calls are on nobody's: what becomes of them is in the log. */
export function changes(call: Pick<Call, 'rest' | 'role'>): boolean {
  return call.rest.method !== 'GET' && call.role !== 'public'
}
