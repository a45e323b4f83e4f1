// Tests that need a program of the system: skipped loudly where it is missing, failed in CI, where a silent skip would hide a hole.

import { findProgram } from '@muster/embedded/find-program'

/**
 * For `describe.skipIf(needs('nats-server'))`: false when the program is on PATH. When it is missing: true after a warning that says
 * what is not tested; throws when `CI` is set.
 */
export function needs(program: string): boolean {
  if (findProgram(program)) return false
  const message = `${program} is not on PATH: what needs it is NOT TESTED here (apt-get install -y ${program})`
  if (process.env.CI) throw new Error(message)
  console.warn(`SKIPPED: ${message}`)
  return true
}
