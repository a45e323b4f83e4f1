/**
 * What a BMC's numbers mean and what to do about them, as tables: completion codes of commands (IPMI v2.0 table 5-2) and statuses of
 * the session set-up (table 13-15). The remedies come from the behaviour of real firmware (facts 4.3 and 4.6).
 */

/**
 * What a caller does with a completion code: `retry` with back-off, retry `once`, `ignore` and go on waiting (the BMC is at it),
 * ask for more `privilege`, look at the `state` (it may be as wanted), `reserve` again, ask for `fewer` bytes, or give up.
 */
export type Remedy = 'done' | 'retry' | 'once' | 'ignore' | 'privilege' | 'state' | 'reserve' | 'fewer' | 'never'

export interface CompletionCode {
  readonly meaning: string
  readonly remedy: Remedy
}

export const completionCodes: Readonly<Record<number, CompletionCode>> = {
  0: { meaning: 'completed', remedy: 'done' },
  192: { meaning: 'node busy', remedy: 'retry' },
  193: { meaning: 'invalid command', remedy: 'never' },
  194: { meaning: 'command invalid for this LUN', remedy: 'never' },
  195: { meaning: 'timeout inside the BMC', remedy: 'retry' },
  196: { meaning: 'out of space', remedy: 'never' },
  197: { meaning: 'reservation cancelled or invalid', remedy: 'reserve' },
  198: { meaning: 'request data truncated', remedy: 'never' },
  199: { meaning: 'request data length invalid', remedy: 'never' },
  200: { meaning: 'request data length limit exceeded', remedy: 'never' },
  201: { meaning: 'parameter out of range', remedy: 'never' },
  202: { meaning: 'cannot return that many bytes', remedy: 'fewer' },
  203: { meaning: 'sensor, data or record not present', remedy: 'never' },
  204: { meaning: 'invalid data field in request', remedy: 'never' },
  205: { meaning: 'command illegal for this sensor or record', remedy: 'never' },
  206: { meaning: 'response could not be provided', remedy: 'retry' },
  207: { meaning: 'duplicated request', remedy: 'ignore' },
  208: { meaning: 'SDR repository in update mode', remedy: 'retry' },
  209: { meaning: 'device in firmware update mode', remedy: 'retry' },
  210: { meaning: 'BMC initialisation in progress', remedy: 'retry' },
  211: { meaning: 'destination unavailable', remedy: 'once' },
  212: { meaning: 'insufficient privilege', remedy: 'privilege' },
  213: { meaning: 'not supported in the present state', remedy: 'state' },
  214: { meaning: 'sub-function disabled', remedy: 'never' },
  255: { meaning: 'unspecified error', remedy: 'once' },
}

/** The table's entry, or for codes of a command's or vendor's own the number and "never". */
export function completionCode(code: number): CompletionCode {
  return completionCodes[code] ?? { meaning: code >= 0x80 && code <= 0xbe ? 'code of this command alone' : 'OEM code', remedy: 'never' }
}

/** What a refusal during session set-up is about; `restart` is worth a fresh attempt, `suite` another suite. */
export type StatusCause = 'busy' | 'restart' | 'suite' | 'privilege' | 'user' | 'password' | 'protocol'

export interface SetupStatus {
  readonly meaning: string
  readonly cause: StatusCause
}

export const setupStatuses: Readonly<Record<number, SetupStatus>> = {
  1: { meaning: 'insufficient resources to create a session', cause: 'busy' },
  2: { meaning: 'invalid session id', cause: 'restart' },
  3: { meaning: 'invalid payload type', cause: 'protocol' },
  4: { meaning: 'invalid authentication algorithm', cause: 'suite' },
  5: { meaning: 'invalid integrity algorithm', cause: 'suite' },
  6: { meaning: 'no matching authentication payload', cause: 'protocol' },
  7: { meaning: 'no matching integrity payload', cause: 'protocol' },
  8: { meaning: 'inactive session id', cause: 'restart' },
  9: { meaning: 'invalid role', cause: 'privilege' },
  10: { meaning: 'role or privilege level not authorised', cause: 'privilege' },
  11: { meaning: 'insufficient resources at this role', cause: 'busy' },
  12: { meaning: 'invalid name length', cause: 'user' },
  13: { meaning: 'unauthorised name', cause: 'user' },
  14: { meaning: 'unauthorised GUID', cause: 'protocol' },
  15: { meaning: 'invalid integrity check value', cause: 'password' },
  16: { meaning: 'invalid confidentiality algorithm', cause: 'suite' },
  17: { meaning: 'no cipher suite matches', cause: 'suite' },
  18: { meaning: 'illegal or unrecognised parameter', cause: 'suite' },
}

/** The table's entry; an unknown status is a protocol error. */
export function setupStatus(status: number): SetupStatus {
  return setupStatuses[status] ?? { meaning: 'unknown status', cause: 'protocol' }
}

/** A byte as people write it in this field: 0x0D. */
export function hexByte(value: number): string {
  return `0x${value.toString(16).toUpperCase().padStart(2, '0')}`
}
