// Looks a program up the way a shell would, without running one.

import { accessSync, constants } from 'node:fs'
import path from 'node:path'

/** The first executable file called `name` on PATH, as an absolute path; undefined when there is none. */
export function findProgram(name: string, searchPath = process.env.PATH ?? ''): string | undefined {
  // Debian keeps servers in sbin, which an ordinary user's PATH leaves out.
  const folders = [...searchPath.split(path.delimiter).filter(Boolean), '/usr/local/sbin', '/usr/sbin', '/sbin']
  return folders.map(folder => path.resolve(folder, name)).find(isExecutable)
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK)
    return true
  } catch {
    return false // absent or not ours to run: either way not an answer
  }
}
