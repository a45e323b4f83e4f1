// Children that do not outlive us, however we die: an orphaned database keeps its directory locked, an orphaned partition answers
// questions from a memory nobody updates.

import { spawnSync } from 'node:child_process'
import { findProgram } from './find-program.ts'

/**
 * A command prefix that makes the kernel send `signal` to a child when its parent dies, however it dies; empty where the system
 * has none (then a killed starter leaves an orphan, which the next start adopts).
 */
export function deathTie(signal: 'INT' | 'TERM' | 'KILL'): string[] {
  if (process.platform !== 'linux') return []
  const setpriv = findProgram('setpriv')
  if (!setpriv) return []
  // busybox has a setpriv without this option.
  const works = spawnSync(setpriv, ['--pdeathsig', signal, 'true'], { stdio: 'ignore' }).status === 0
  return works ? [setpriv, '--pdeathsig', signal] : []
}
