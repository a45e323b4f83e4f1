/** Tests that need a program of somebody else's: skipped with the reason where it is missing, failed where it must not be. */
import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'
import { describe } from 'vitest'

/** How to get each program on Debian. */
const packages: Readonly<Record<string, string>> = {
  ipmi_sim: 'openipmi',
  ipmitool: 'ipmitool',
  ipmipower: 'freeipmi-tools',
  snmpget: 'snmp',
}

/**
 * `describe` for a suite that needs the program. Missing, the suite is skipped and its title says why; with CI set it fails, because
 * there a proof must not silently go away.
 */
export function needs(program: string): typeof describe | typeof describe.skip {
  if (isOnPath(program)) return describe
  const reason = `${program} is not installed (Debian: apt-get install ${packages[program] ?? program})`
  if (process.env.CI) throw new Error(`${reason}; with CI set this is an error`)
  console.warn(`SKIPPED: ${reason}`)
  return describe.skip
}

function isOnPath(program: string): boolean {
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin']
  return folders.some(folder => {
    try {
      accessSync(join(folder, program), constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}
