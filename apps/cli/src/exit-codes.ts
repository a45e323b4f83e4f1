// The one table of exit codes: what a script can rely on. --help prints it; failures find their row here.
import type { ErrorCode } from '@muster/shared/errors'

export const exitTable = {
  ok: { code: 0, meaning: 'done' },
  unexpected: { code: 1, meaning: 'something unexpected went wrong, here or in the server' },
  usage: { code: 2, meaning: 'the command line or its input is not valid' },
  'not-found': { code: 3, meaning: 'there is no such thing' },
  refused: { code: 4, meaning: 'refused: wrong state, locked, owned by somebody else, changed meanwhile, not installable' },
  'no-match': { code: 5, meaning: 'no machine matches the request' },
  'not-authorised': { code: 6, meaning: 'no token, or one that may not do this' },
  unreachable: { code: 7, meaning: 'the server, its partition, database or bus does not answer; try again' },
  'timed-out': { code: 8, meaning: 'the time to wait ran out; the work may still go on' },
  'failed-state': { code: 9, meaning: 'the machine ended in a failed state' },
  'bmc-odd': { code: 10, meaning: 'the BMC can be used, but something about it is odd' },
  'bmc-unfit': { code: 11, meaning: 'the BMC cannot be used as it is, or lets anybody in' },
  'bmc-authentication': { code: 12, meaning: 'the BMC does not accept user, password or key' },
  'bmc-privilege': { code: 13, meaning: 'the account on the BMC may not do this' },
  'bmc-busy': { code: 14, meaning: 'the BMC has no room just now; try again' },
  'bmc-silent': { code: 15, meaning: 'the BMC does not answer' },
  'bmc-refused': { code: 16, meaning: 'the BMC said no' },
  'bmc-protocol': { code: 17, meaning: 'the answer of the BMC made no sense' },
  'bmc-unsupported': { code: 18, meaning: 'the BMC or its driver cannot do this' },
  interrupted: { code: 130, meaning: 'interrupted (Ctrl-C)' },
} as const satisfies Record<string, { code: number; meaning: string }>

export type ExitName = keyof typeof exitTable

/** What each refusal of the server ends with. A new error code breaks the build here until it is given one. */
export const exitOfError: { readonly [code in ErrorCode]: ExitName } = {
  malformed: 'usage',
  unauthenticated: 'not-authorised',
  forbidden: 'not-authorised',
  'not-found': 'not-found',
  // The server is of another release: nothing the user typed can cause it.
  'method-not-allowed': 'unexpected',
  'wrong-state': 'refused',
  locked: 'refused',
  'machine-owned': 'refused',
  'already-exists': 'refused',
  'already-taken': 'refused',
  'stale-version': 'refused',
  'no-match': 'no-match',
  'quota-exceeded': 'refused',
  'needs-front': 'refused',
  'home-lost': 'refused',
  'newer-release': 'refused',
  'key-reused': 'refused',
  gone: 'refused',
  'payload-too-large': 'usage',
  'unsupported-media-type': 'unexpected',
  'invalid-input': 'usage',
  'not-installable': 'refused',
  'not-yet-installable': 'refused',
  'no-power-driver': 'refused',
  'too-many-requests': 'unreachable',
  internal: 'unexpected',
  'not-ready': 'unreachable',
  'database-away': 'unreachable',
  'bus-away': 'unreachable',
  overloaded: 'unreachable',
  'provider-away': 'unreachable',
  'partition-silent': 'unreachable',
  'nothing-allocated': 'unreachable',
  'deadline-passed': 'timed-out',
}

/** From mildest to worst: when several machines end differently, the last of these that occurred is the exit code. */
const bySeverity: readonly ExitName[] = [
  'ok',
  'no-match',
  'not-found',
  'bmc-odd',
  'refused',
  'usage',
  'not-authorised',
  'bmc-unfit',
  'bmc-unsupported',
  'bmc-refused',
  'bmc-privilege',
  'bmc-authentication',
  'bmc-busy',
  'bmc-protocol',
  'unreachable',
  'bmc-silent',
  'timed-out',
  'failed-state',
  'unexpected',
  'interrupted',
]

/** The worst of several endings; `ok` where there are none. */
export function worstOf(names: readonly ExitName[]): ExitName {
  return names.reduce<ExitName>((worst, name) => (bySeverity.indexOf(name) > bySeverity.indexOf(worst) ? name : worst), 'ok')
}

/** The table as indented lines, for --help. */
export function exitTableText(): string {
  return Object.values(exitTable)
    .map(({ code, meaning }) => `  ${String(code).padStart(3)}  ${meaning}`)
    .join('\n')
}

/** A failure that arises in this program: its message is for people, its ending for scripts. */
export class CliError extends Error {
  readonly exit: ExitName
  readonly hint: string | undefined
  /** More members of the problem document. */
  readonly facts: Readonly<Record<string, unknown>>
  constructor(exit: ExitName, message: string, options: ErrorOptions & { hint?: string; facts?: Readonly<Record<string, unknown>> } = {}) {
    super(message, options)
    this.name = 'CliError'
    this.exit = exit
    this.hint = options.hint
    this.facts = options.facts ?? {}
  }
}

/** Ends the program; everything there is to say was said already. */
export class Exit extends Error {
  readonly exit: ExitName
  constructor(exit: ExitName) {
    super(`exit ${exit}`)
    this.name = 'Exit'
    this.exit = exit
  }
}

/** A failure with what was being tried, as the first words of the message. */
export class Attempted extends Error {
  readonly tried: string
  constructor(tried: string, cause: unknown) {
    super(`${tried}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause })
    this.name = 'Attempted'
    this.tried = tried
  }
}

/** Waits for `work`; a failure is thrown on with what was tried (`deploy lon1-4y3h7n`). */
export async function attempt<Result>(tried: string, work: Promise<Result>): Promise<Result> {
  try {
    return await work
  } catch (error) {
    throw new Attempted(tried, error)
  }
}
