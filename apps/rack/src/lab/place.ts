// The place where the lab stands: name spaces of its own, so that nothing of it is seen outside and nothing is left when it ends, however it ends.
import { execFile, spawn } from 'node:child_process'
import { promisify } from 'node:util'
import { deathTie } from '@muster/embedded/death-tie'

const run = promisify(execFile)

/** The one switch all machines are plugged into, and the partition's address on it. */
export const lan = {
  bridge: 'lab0',
  address: '10.99.0.1',
  prefix: 24,
  dynamic: { from: '10.99.0.100', to: '10.99.0.199' },
  zone: 'lab.example',
} as const

/** A VLAN on the same switch, and the partition's address on it. */
export const storage = { vlan: 7, address: '10.99.7.1', prefix: 24, mtu: 1400 } as const

/** BMCs have a network of their own. */
export const bmcAddress = (index: number) => `127.99.0.${index + 1}`

const ip = (words: string) => run('ip', words.split(' '))

/**
 * Runs a program of ours in new network, process and mount name spaces: when its first process ends, all others are killed, and its network with them.
 * Resolves with its exit code.
 */
export function runInside(program: string, args: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  // It ignores what could end it gently, and takes everything inside with it when it is killed.
  const spaces = '--net --pid --mount --fork --kill-child --mount-proc'.split(' ')
  const [command, ...words] = [...deathTie('KILL'), 'unshare', ...spaces, process.execPath, program, ...args]
  const child = spawn(command as string, words, { stdio: 'inherit', env })
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', code => resolve(code ?? 1))
  })
}

/** Lays the cables: call it inside. Answers the name of each port of the switch. */
export async function layNetwork(ports: number): Promise<string[]> {
  await ip('link set lo up')
  await ip(`link add ${lan.bridge} type bridge stp_state 0 forward_delay 0`)
  await ip(`address add ${lan.address}/${lan.prefix} dev ${lan.bridge}`)
  const taps = Array.from({ length: ports }, (_, index) => `port${index}`)
  for (const tap of taps) {
    await ip(`tuntap add ${tap} mode tap`)
    await plug(tap)
  }
  await ip(`link set ${lan.bridge} up`)
  return taps
}

/**
 * Puts the partition on the VLAN too; the switch looks at no tags, so every port is. `unknown`: the kernel here knows no VLANs, and nobody is there whom
 * machines could ask.
 */
export async function layVlan(): Promise<'laid' | 'unknown'> {
  const tagged = `${lan.bridge}.${storage.vlan}`
  try {
    await ip(`link add link ${lan.bridge} name ${tagged} type vlan id ${storage.vlan}`)
  } catch (error) {
    if ((error as { stderr?: string }).stderr?.includes('Unknown device type')) return 'unknown'
    throw error
  }
  await ip(`address add ${storage.address}/${storage.prefix} dev ${tagged}`)
  await ip(`link set ${tagged} up`)
  return 'laid'
}

export const plug = (tap: string) => ip(`link set ${tap} master ${lan.bridge} up`)
export const unplug = (tap: string) => ip(`link set ${tap} nomaster`)

/** Where a machine was last heard on the network. */
export async function addressOf(mac: string): Promise<string | undefined> {
  const { stdout } = await run('ip', ['-4', 'neigh', 'show', 'dev', lan.bridge])
  const lines = stdout.split('\n').filter(line => line.includes(mac) && !line.includes('FAILED'))
  return lines.map(line => line.split(' ')[0]).at(-1)
}
