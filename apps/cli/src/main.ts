#!/usr/bin/env node
// `muster`: the command line. Reads the environment, runs one command, ends the process.
import { readFileSync } from 'node:fs'
import { enableCompileCache } from 'node:module'
import { homedir } from 'node:os'
import { join } from 'node:path'

// Before anything heavy is loaded. In the user's own folder: compiled code in a shared /tmp could come from anybody.
enableCompileCache(join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'muster', 'compile-cache'))

const interruption = new AbortController()
process.on('SIGINT', () => {
  // The second Ctrl-C does not wait for anything to end in good order.
  if (interruption.signal.aborted) process.exit(130)
  interruption.abort()
})
process.on('SIGTERM', () => process.exit(143))

// `muster machine list | head -1`: the reader has seen enough, which is no failure.
for (const stream of [process.stdout, process.stderr])
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0)
    throw error
  })

const { run } = await import('./program.ts')
const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { version: string }
const code = await run(
  {
    version,
    env: process.env,
    folder: process.cwd(),
    stdin: process.stdin,
    stdout: process.stdout,
    stderr: process.stderr,
    signal: interruption.signal,
    now: Date.now,
  },
  process.argv.slice(2),
)
// What is left, such as idle connections, would only keep the process alive. A pipe that is read slowly gets everything first.
process.stdout.write('', () => process.exit(code))
