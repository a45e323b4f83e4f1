// As libs/server/test/needs.ts: a missing program skips loudly here, and fails in CI.

import { findProgram } from '../src/find-program.ts'

/** For `test.skipIf(needs('nats-server'))`. True, after a warning, when the program is missing; throws then when `CI` is set. */
export function needs(program: string): boolean {
  if (findProgram(program)) return false
  const message = `${program} is not on PATH: what needs it is NOT TESTED here (apt-get install -y ${program})`
  if (process.env.CI) throw new Error(message)
  console.warn(`SKIPPED: ${message}`)
  return true
}
