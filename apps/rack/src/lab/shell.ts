// A command on a machine, over SSH, as its user would give it.
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

const run = promisify(execFile)
const limitMs = 30_000

export interface Login {
  readonly user: string
  readonly address: string
  /** The private key, and no other that this computer may have. */
  readonly keyFile: string
  /** Takes note of the host key; left out: nothing is remembered. */
  readonly knownHosts?: string
}

/** Answers its standard output. Throws with ssh's own words where there is no login, and where the command fails or takes 30 s. */
export async function runThere({ user, address, keyFile, knownHosts = '/dev/null' }: Login, command: string): Promise<string> {
  const fixed = ['BatchMode=yes', 'IdentitiesOnly=yes', 'ConnectTimeout=5', 'LogLevel=ERROR', 'StrictHostKeyChecking=accept-new']
  const options = [...fixed, `UserKnownHostsFile=${knownHosts}`].flatMap(each => ['-o', each])
  const { stdout } = await run('ssh', [...options, '-i', keyFile, `${user}@${address}`, command], { timeout: limitMs })
  return stdout
}
