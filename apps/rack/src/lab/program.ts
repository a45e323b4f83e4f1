// Programs of the host that make images.
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

const run = promisify(execFile)
/** A slow mirror and a few hundred megabytes. */
const limitMs = 1_200_000

/** Runs it to its end. Throws saying which program failed, and with what words. */
export async function program(name: string, args: readonly string[]): Promise<void> {
  try {
    await run(name, args, { timeout: limitMs, maxBuffer: 64 * 2 ** 20, env: { ...process.env, LC_ALL: 'C' } })
  } catch (cause) {
    const { code, stderr = '', stdout = '' } = cause as { code?: unknown; stderr?: string; stdout?: string }
    if (code === 'ENOENT') throw new Error(`${name} is not installed`, { cause })
    throw new Error(`${name}: ${(stderr.trim() || stdout.trim() || (cause as Error).message).slice(-1500)}`, { cause })
  }
}
