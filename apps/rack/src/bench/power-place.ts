// Where the power is read: a network namespace of its own, so that datagrams can be lost there and nowhere else. Without root, or without the
// programs for it, the host's loopback, and the BMCs lose datagrams themselves.
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { findProgram } from '@muster/embedded/find-program'

const run = promisify(execFile)

export interface Place {
  /** How, for the record. */
  readonly text: string
  /** The command that runs another one there; empty where none is needed. */
  readonly through: readonly string[]
  /** Loses a share of all datagrams there, each way; undefined where the network cannot. */
  readonly lose: ((rate: number) => Promise<void>) | undefined
  stop(): Promise<void>
}

/** Makes the place. `say` hears why it is not a namespace. */
export async function makePlace(say: (line: string) => void): Promise<Place> {
  const host: Place = { text: 'the host’s loopback', through: [], lose: undefined, stop: async () => {} }
  const ip = findProgram('ip')
  if (process.getuid?.() !== 0 || ip === undefined) {
    say('power: no network namespace: that needs root and `ip` (iproute2)')
    return host
  }
  const name = `muster-bench-${process.pid}`
  const through = [ip, 'netns', 'exec', name]
  const stop = async () => void (await run(ip, ['netns', 'delete', name]))
  try {
    await run(ip, ['netns', 'add', name])
  } catch (error) {
    say(`power: no network namespace: ${(error as Error).message.trim()}`)
    return host
  }
  try {
    await run(ip, [...through.slice(1), ip, 'link', 'set', 'lo', 'up'])
    const filter = await findFilter(through)
    if (!filter) say('power: no iptables with the statistic match')
    const lose = filter === undefined ? undefined : (rate: number) => setLoss([...through, filter], rate)
    return { text: `a network namespace${filter ? '' : ' without iptables'}`, through, lose, stop }
  } catch (error) {
    await stop()
    throw error
  }
}

/** The first iptables that can lose a share of the datagrams. */
async function findFilter(through: readonly string[]): Promise<string | undefined> {
  for (const name of ['iptables', 'iptables-nft', 'iptables-legacy']) {
    const program = findProgram(name)
    if (program === undefined) continue
    try {
      await setLoss([...through, program], 0.5)
      await setLoss([...through, program], 0)
      return program
    } catch {
      // This one speaks to a part of the kernel that is not there: the next may not.
    }
  }
  return undefined
}

/** On loopback each datagram comes in once: a rule there is a loss each way. */
async function setLoss([command, ...rest]: readonly string[], rate: number): Promise<void> {
  await run(command as string, [...rest, '-w', '-F', 'INPUT'])
  if (rate === 0) return
  const match = ['-i', 'lo', '-p', 'udp', '-m', 'statistic', '--mode', 'random', '--probability', String(rate)]
  await run(command as string, [...rest, '-w', '-A', 'INPUT', ...match, '-j', 'DROP'])
}
