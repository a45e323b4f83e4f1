/**
 * What services say, as a table: the message ids and texts of the vendors with what follows from each. Looked up from the top; an answer that fits
 * no row is judged by its HTTP status.
 */
import type { DriverErrorKind } from '../driver.ts'
import { type Answer, messagesOf } from './answer.ts'

export interface Meaning {
  /**
   * `soon`: nothing was done, and the same request may pass in seconds. `after POST`: it may pass in minutes, when the firmware is through. `other
   * value`: the value is not known to this service, another may be. `never`: as it stands.
   */
  again: 'soon' | 'after POST' | 'other value' | 'never'
  kind: DriverErrorKind
  hint: string
}

interface Row extends Meaning {
  /** Tested against the message's id and its text. */
  says: RegExp
}

const rows: readonly Row[] = [
  {
    says: /RAC0218|SessionLimitExceeded|CreateLimitReachedForResource|maximum number of (user )?sessions|MaximumSessions/i,
    again: 'never',
    kind: 'busy',
    hint: 'All sessions of the BMC are taken. Log others out on its pages, or wait: unused ones end after 20 to 30 minutes.',
  },
  {
    says: /PasswordChangeRequired/i,
    again: 'never',
    kind: 'authentication',
    hint: 'The BMC wants this account to choose a new password first. Do that on its pages, then correct the power settings.',
  },
  {
    // iLO says this with status 400.
    says: /UnauthorizedLoginAttempt|LoginFail|AuthenticationFailure|InvalidCredential|AuthorizationFail|incorrect (user ?name|password)/i,
    again: 'never',
    kind: 'authentication',
    hint: 'Check user and password. BMCs lock accounts for some minutes after several wrong ones.',
  },
  {
    says: /LicenseKeyRequired|LicenseRequired|LicenseNotInstalled|requires? (a |an )?[\w ]*license/i,
    again: 'never',
    kind: 'unsupported',
    hint: 'The BMC asks for a licence for this. Install one, or use the ipmi driver for this machine.',
  },
  {
    says: /InsufficientPrivilege|AccessDenied/i,
    again: 'never',
    kind: 'privilege',
    hint: 'Give the account the rights to log in, to control power and to change the boot device ("Operator" in most BMCs).',
  },
  {
    says: /UnableToModifyDuringSystemPOST|OperationNotAllowedDuringPOST|during POST/i,
    again: 'after POST',
    kind: 'busy',
    hint: "The machine's firmware is still starting, and the BMC changes no settings meanwhile. Try again in some minutes.",
  },
  {
    // SYS518: iDRAC has another configuration job. ActionParameterValueConflict: iDRAC10 for "on" within seconds of "off".
    says: /SYS518|ActionParameterValueConflict|ResourceInUse|ResourceInStandby|ServiceTemporarilyUnavailable|ServiceShuttingDown|ServiceInUnknownState|InvalidOperationForSystemState|ResourceNotReady|OperationTimeout|SystemResourceBusy/i,
    again: 'soon',
    kind: 'busy',
    hint: 'The BMC is busy with something else: starting, updating its firmware, or carrying out the order before. Try again in a minute.',
  },
  {
    says: /ActionParameterValueNotInList|ActionParameterValueFormatError|ActionParameterValueTypeError|ActionParameterNotSupported|ActionParameterValueError|PropertyValueNotInList|PropertyValueFormatError|PropertyValueTypeError|PropertyValueError|PropertyValueConflict|PropertyUnknown|PropertyNotWritable|UnsupportedOperation|NotAllowedValue/i,
    again: 'other value',
    kind: 'unsupported',
    hint: 'This BMC does not offer it.',
  },
  {
    says: /ActionNotSupported|OperationNotSupported|NotSupported/i,
    again: 'never',
    kind: 'unsupported',
    hint: 'This BMC does not offer it. Newer firmware may.',
  },
]

const byStatus: Readonly<Record<number, Meaning>> = {
  400: {
    again: 'other value',
    kind: 'refused',
    hint: 'The BMC does not accept this request. Its message above, or its event log, may say why.',
  },
  401: {
    again: 'never',
    kind: 'authentication',
    hint: 'Check user and password. BMCs lock accounts for some minutes after several wrong ones.',
  },
  403: { again: 'never', kind: 'privilege', hint: 'Give the account the rights to control power and to change the boot device.' },
  404: {
    again: 'never',
    kind: 'unsupported',
    hint: 'The BMC has no such resource. Its Redfish service may be off, or its firmware too old.',
  },
  405: { again: 'never', kind: 'unsupported', hint: 'This BMC does not offer it. Newer firmware may.' },
  409: { again: 'soon', kind: 'busy', hint: 'The BMC is still busy with the order before. Try again in a minute.' },
  412: {
    again: 'never',
    kind: 'refused',
    hint: 'The BMC takes no change by any form of its version tag (ETag). Updating its firmware may help.',
  },
  413: { again: 'never', kind: 'refused', hint: 'The BMC found the request too large.' },
  428: {
    again: 'never',
    kind: 'refused',
    hint: 'The BMC takes no change by any form of its version tag (ETag). Updating its firmware may help.',
  },
  429: { again: 'soon', kind: 'busy', hint: 'The BMC limits how often it is asked. Try again in a minute.' },
  501: { again: 'never', kind: 'unsupported', hint: 'This BMC does not offer it. Newer firmware may.' },
  503: { again: 'soon', kind: 'busy', hint: 'The Redfish service of the BMC is starting or overloaded. Try again in a minute.' },
}

const brokenService: Meaning = {
  again: 'soon',
  kind: 'protocol',
  hint: "The BMC's Redfish service stumbled; after firmware updates this lasts some minutes. If it stays, restart the BMC.",
}

const refusal: Meaning = {
  again: 'never',
  kind: 'refused',
  hint: 'The BMC does not accept this request. Its message above, or its event log, may say why.',
}

/** What an answer of status 400 and up means. */
export function meaningOf(answer: Answer): Meaning {
  const messages = messagesOf(answer.body)
  const row = rows.find(({ says }) => messages.some(({ id, text }) => says.test(id) || says.test(text)))
  // 401 is about who asks, whatever else is said beside it.
  if (row && (answer.status !== 401 || row.kind === 'busy' || row.kind === 'authentication')) return row
  return byStatus[answer.status] ?? (answer.status >= 500 ? brokenService : refusal)
}

/** An answer in a few words: `400 PropertyNotWritable: The property …`. The service's own text is cut, it may be anything. */
export function wordsOf(answer: Answer): string {
  const said = messagesOf(answer.body).map(({ id, text }) => [id, text.replace(/\s+/g, ' ').slice(0, 200)].filter(Boolean).join(': '))
  return [`${answer.status}`, said.filter(Boolean).slice(0, 2).join('; ')].filter(Boolean).join(' ')
}
