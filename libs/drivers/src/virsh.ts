/** The libvirt driver: a virtual machine switched by virsh on its host, reached over SSH. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { type Ended, runProgram } from './child.ts'
import type { PowerDriver, PowerState } from './driver.ts'
import { type Endpoint, endpointOf, endpointSetting } from './endpoint.ts'
import { Failure, type FailureFacts } from './failure.ts'
import { excerpt } from './http.ts'
import { openSwitch, type Turn } from './turns.ts'

const sshPort = 22

/**
 * The last word of an SSH command is a line for the shell of the far end, whatever we do. So nothing that a shell understands gets
 * into it: names and URIs have no spaces, quotes, dollars and the like, and do not begin like an option.
 */
const namePattern = /^[A-Za-z0-9_][A-Za-z0-9_.:+@-]{0,127}$/
const uriPattern = /^[a-z][a-z0-9+]*:\/\/[A-Za-z0-9_.:/-]*$/

const settings = z.strictObject({
  address: endpointSetting(sshPort).describe(
    'Host name or IP address of the host; an SSH port other than 22 after a colon, IPv6 in brackets then',
  ),
  user: z
    .string()
    .regex(/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$/, 'not a user name')
    .describe('User on the host; one that may manage libvirt, e.g. a member of the group libvirt'),
  domain: z
    .string()
    .regex(namePattern, 'not a name for this driver: letters, digits and _ . : + @ - only; use the UUID of a domain named otherwise')
    .describe('Name or UUID of the virtual machine'),
  uri: z
    .string()
    .max(200)
    .regex(uriPattern, 'not a libvirt URI without ? and #')
    .default('qemu:///system')
    .describe('libvirt connection on the host'),
  knownHosts: z
    .string()
    .max(16_384)
    .refine(text => /^\S+ +\S+ +\S+/m.test(text), 'not lines of a known_hosts file')
    .describe('Host keys to trust: lines as of ssh-keyscan HOST, compared with the host itself. A host with another key is refused'),
  keyFile: z
    .string()
    .regex(/^\/[^\0\n%$"]*$/, 'not an absolute path')
    .optional()
    .describe(
      'Private key on the partition’s server, readable by it and without passphrase. Without it the keys of its SSH agent are offered',
    ),
})

type VirshSettings = z.output<typeof settings>

/** One command on the host, the login included. */
const commandMs = 15_000

export interface VirshOptions {
  /** Wait for one command, the login included, in milliseconds. */
  limitMs?: number
}

/** Makes the driver; the options are for tests. */
export function virshDriver({ limitMs = commandMs }: VirshOptions = {}): PowerDriver<typeof settings> {
  return {
    type: 'virsh',
    title: 'libvirt by virsh over SSH',
    settings,
    secrets: [],
    open(given, context = {}) {
      const host = new VirshHost(given, limitMs)
      return openSwitch({
        target: `virsh ${given.domain} on ${given.address}`,
        context,
        orders: {
          power: turn => host.power(turn),
          on: turn => host.order(turn, 'start'),
          off: (turn, how) => host.order(turn, how === 'hard' ? 'destroy' : 'shutdown'),
          reset: async turn => host.order(turn, (await host.power(turn)) === 'off' ? 'start' : 'reset'),
          close: () => host.close(),
        },
      })
    },
  }
}

export const virsh = virshDriver()

type Order = 'start' | 'destroy' | 'shutdown' | 'reset'

/** virsh domstate's words. A domain that crashed is kept for a look at it, without running; one asleep runs as soon as it is woken. */
const states: Readonly<Record<string, PowerState>> = {
  running: 'on',
  idle: 'on',
  paused: 'on',
  'in shutdown': 'on',
  pmsuspended: 'on',
  'shut off': 'off',
  crashed: 'off',
  'no state': 'unknown',
}

/** What virsh says when the machine is already there: then the order is fulfilled. */
const fulfilled: Readonly<Record<Order, RegExp | undefined>> = {
  start: /domain is already (active|running)/i,
  destroy: /domain is not running/i,
  shutdown: /domain is not running/i,
  reset: undefined,
}

class VirshHost {
  readonly #given: VirshSettings
  readonly #limitMs: number
  #folder: Promise<string> | undefined

  constructor(given: VirshSettings, limitMs: number) {
    this.#given = given
    this.#limitMs = limitMs
  }

  async power(turn: Turn): Promise<PowerState> {
    const ended = await this.#virsh(turn, 'domstate', 'none')
    if (ended.code !== 0) throw failureOf(ended, 'none')
    const state = states[ended.stdout.trim()]
    if (state) return state
    throw new Failure({
      kind: 'protocol',
      got: `domstate says "${excerpt(ended.stdout, [])}"`,
      hint: 'The virsh of that host speaks otherwise. Its version?',
    })
  }

  async order(turn: Turn, order: Order): Promise<void> {
    const ended = await this.#virsh(turn, order, 'unknown')
    if (ended.code !== 0 && !fulfilled[order]?.test(ended.stderr)) throw failureOf(ended, 'unknown')
  }

  /** Removes the known hosts. */
  async close(): Promise<void> {
    const folder = await this.#folder?.catch(() => undefined)
    if (folder !== undefined) await rm(folder, { recursive: true, force: true })
  }

  async #virsh(turn: Turn, command: Order | 'domstate', outcome: 'none' | 'unknown'): Promise<Ended> {
    this.#folder ??= knownHostsFolder(this.#given.knownHosts)
    const file = join(await this.#folder, 'known_hosts')
    return runProgram(turn, {
      name: 'ssh',
      arguments: sshArguments(this.#given, file, command),
      limitMs: this.#limitMs,
      outcome,
      installHint: 'Install the SSH client on the partition’s server (Debian: openssh-client).',
    })
  }
}

/** ssh takes host keys from a file only. mkdtemp makes the folder ours alone. */
async function knownHostsFolder(knownHosts: string): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'muster-ssh-'))
  await writeFile(join(folder, 'known_hosts'), knownHosts.endsWith('\n') ? knownHosts : `${knownHosts}\n`, { mode: 0o600 })
  return folder
}

function sshArguments(given: VirshSettings, knownHostsFile: string, command: string): string[] {
  const { host, port }: Endpoint = endpointOf(given.address, sshPort)
  const options = {
    BatchMode: 'yes',
    StrictHostKeyChecking: 'yes',
    UserKnownHostsFile: `"${knownHostsFile}"`,
    GlobalKnownHostsFile: '/dev/null',
    PasswordAuthentication: 'no',
    KbdInteractiveAuthentication: 'no',
    ConnectTimeout: '10',
    LogLevel: 'ERROR',
    ForwardAgent: 'no',
    ClearAllForwardings: 'yes',
    ...(given.keyFile && { IdentitiesOnly: 'yes', IdentityFile: `"${given.keyFile}"` }),
  }
  return [
    // No configuration of whoever runs the server: what is above is all there is.
    ...['-F', '/dev/null', '-T', '-p', String(port), '-l', given.user],
    ...Object.entries(options).flatMap(([name, value]) => ['-o', `${name}=${value}`]),
    ...['--', host, `LC_ALL=C virsh -c ${given.uri} ${command} ${given.domain}`],
  ]
}

/** First match. ssh's own failures end with 255 and tell by their text only. */
const meanings: readonly (Pick<FailureFacts, 'kind' | 'hint'> & { text: RegExp; sshOnly?: true })[] = [
  {
    text: /host key verification failed|remote host identification has changed|no \S+ host key is known/i,
    sshOnly: true,
    kind: 'authentication',
    hint: 'The host shows a key that is not in knownHosts. Compare ssh-keyscan’s with the host itself, then put it there.',
  },
  {
    text: /permission denied|too many authentication failures|load key|no such identity|bad permissions|invalid format/i,
    sshOnly: true,
    kind: 'authentication',
    hint: 'Check the user, and that the key of keyFile or the agent is in its authorized_keys on the host.',
  },
  {
    text: /connection refused|timed out|no route to host|network is unreachable|could not resolve|closed by|reset by|broken pipe/i,
    sshOnly: true,
    kind: 'silent',
    hint: 'Check the address, and that the partition reaches that port.',
  },
  { text: /failed to get domain|domain not found/i, kind: 'settings', hint: 'Check the domain’s name with virsh list --all on the host.' },
  {
    text: /permission denied|authentication (unavailable|failed)|access denied|polkit/i,
    kind: 'privilege',
    hint: 'Let the user manage libvirt: make it a member of the group libvirt on the host.',
  },
  {
    text: /failed to connect to the hypervisor|failed to connect socket/i,
    kind: 'silent',
    hint: 'libvirt does not run on that host, or the uri is wrong.',
  },
  {
    text: /cannot acquire state change lock|timed out during operation/i,
    kind: 'busy',
    hint: 'Another operation on the domain is running. Try again.',
  },
  {
    text: /virsh: (command )?not found|virsh: not found/i,
    kind: 'unsupported',
    hint: 'Install virsh on the host (Debian: libvirt-clients).',
  },
]

function failureOf({ code, stderr }: Ended, outcome: 'none' | 'unknown'): Failure {
  const bySsh = code === 255
  const row = meanings.find(({ text, sshOnly }) => text.test(stderr) && (bySsh ? sshOnly : !sshOnly))
  const said = excerpt(stderr.replaceAll(/^error: /gm, ''), [])
  const got = `${bySsh ? 'ssh failed' : `virsh ended with ${code ?? 'a signal'}`}${said && `: ${said}`}`
  if (row) return new Failure({ kind: row.kind, got, hint: row.hint, outcome: bySsh && row.kind === 'silent' ? outcome : 'none' })
  if (bySsh) return new Failure({ kind: 'silent', got, hint: 'Try the same with ssh by hand, from the partition’s server.', outcome })
  return new Failure({ kind: 'refused', got, hint: 'Try the same with virsh on the host; its log knows more.', outcome: 'none' })
}
