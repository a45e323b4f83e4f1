/**
 * What the layers of a driver throw among themselves: a DriverError that does not yet know what was tried and on what. The session adds
 * both in one place.
 */
import type { DriverErrorKind } from './driver.ts'

export interface FailureFacts {
  kind: DriverErrorKind
  got: string
  hint: string
  outcome?: 'none' | 'unknown'
  cause?: unknown
}

export class Failure extends Error {
  override readonly name = 'Failure'
  readonly facts: FailureFacts

  constructor(facts: FailureFacts) {
    super(facts.got, facts.cause === undefined ? undefined : { cause: facts.cause })
    this.facts = facts
  }
}

/** The caller's signal fired, or the session was closed under the call; `unknown` once anything may have been sent. */
export function cancelled(outcome: 'none' | 'unknown'): Failure {
  return new Failure({
    kind: 'cancelled',
    outcome,
    got: 'cancelled by the caller',
    hint: 'Nothing is wrong; the call is no longer wanted.',
  })
}

/** Waits for what goes before, unless the caller gives up first: then throws `cancelled`. */
export async function unlessAborted(before: Promise<unknown>, signal: AbortSignal): Promise<void> {
  if (signal.aborted) throw cancelled('none')
  const { promise: aborted, reject } = Promise.withResolvers<never>()
  const abort = () => reject(cancelled('none'))
  signal.addEventListener('abort', abort, { once: true })
  try {
    await Promise.race([before, aborted])
  } finally {
    signal.removeEventListener('abort', abort)
  }
}
