// What a BMC's refusal is to the command line: its row of the exit table, and its facts in the problem document.
import { DriverError, type DriverErrorKind } from '@muster/drivers/driver'
import { CliError, type ExitName } from '../exit-codes.ts'

/** What each kind of driver error ends with. A new kind breaks the build here until it is given one. */
export const exitOfKind: { readonly [kind in DriverErrorKind]: ExitName } = {
  settings: 'usage',
  authentication: 'bmc-authentication',
  privilege: 'bmc-privilege',
  busy: 'bmc-busy',
  silent: 'bmc-silent',
  refused: 'bmc-refused',
  protocol: 'bmc-protocol',
  unsupported: 'bmc-unsupported',
  // The only caller who gives up is the person at the keyboard.
  cancelled: 'interrupted',
}

/** Waits for `work`; a driver's error is thrown on as one of this program. */
export async function asked<Result>(work: Promise<Result>): Promise<Result> {
  try {
    return await work
  } catch (error) {
    throw error instanceof DriverError ? bmcFailure(error) : error
  }
}

/** A driver's error with its ending, hint and facts. What may have happened all the same is said. */
export function bmcFailure(error: DriverError): CliError {
  const { kind, tried, target, got, outcome, retryable, hint } = error
  return new CliError(exitOfKind[kind], error.message, { cause: error, hint, facts: { retryable, kind, tried, target, got, outcome } })
}

/** A BMC or driver that has no such thing, which no BMC was asked about. */
export function unsupported({ tried, target, hint }: { tried: string; target: string; hint: string }): CliError {
  return bmcFailure(new DriverError({ kind: 'unsupported', tried, target, got: 'its power driver cannot do this', hint }))
}
