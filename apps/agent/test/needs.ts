// What these tests need of the machine. CI has all of it, or the proof would quietly vanish.
import { existsSync } from 'node:fs'
import { findProgram } from '@muster/embedded/find-program'

/** Why tests that need these programs cannot run; undefined where they can. Throws in CI. */
export function missingPrograms(names: readonly string[], packages: string): string | undefined {
  const missing = names.filter(name => findProgram(name) === undefined && !existsSync(`/usr/sbin/${name}`) && !existsSync(`/sbin/${name}`))
  if (missing.length === 0) return undefined
  const reason = `${missing.join(', ')} not installed (apt-get install -y ${packages})`
  if (process.env.CI) throw new Error(`${reason}; CI must prove this`)
  console.warn(`SKIPPED: ${reason}`)
  return reason
}
