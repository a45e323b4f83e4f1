// Rescue of a deployed machine, as its user sees it: a shell in memory for one key, the installed disks to be had from there, and the way back.
import { execFile } from 'node:child_process'
import path from 'node:path'
import { promisify } from 'node:util'
import type { Client } from '@muster/shared/client'
import type { Computer } from './computer.ts'
import { type Login, runThere } from './shell.ts'
import { expectThat, type Teller } from './teller.ts'

const run = promisify(execFile)

export interface RescueOptions {
  readonly teller: Teller
  readonly client: Client
  readonly computer: Computer
  readonly keyFile: string
  readonly publicKey: string
  /** Where keys and host keys of this story may be. */
  readonly folder: string
  /** A file that the installed system has written, by its path there, and what is in it. */
  readonly written: { readonly file: string; readonly text: string }
}

/** What a rescue system says of itself, as `muster machine get` shows it. */
const invitation = /waiting for you: ssh root@(?<address>[^ ,]+), host key (?<hostKey>SHA256:[\w+/]+)/

/**
 * What one does who looks for a file and knows nothing of the disks: puts mirrors and volume groups together, and looks into each file system, which stays
 * as it is.
 */
const search = (file: string) => `
mdadm --assemble --scan >/dev/null 2>&1
lvm vgchange --activate y >/dev/null 2>&1
for device in $(blkid -o device); do
  mount -o ro "$device" /mnt 2>/dev/null || continue
  [ ! -e "/mnt${file}" ] || { echo "$device"; cat "/mnt${file}"; }
  umount /mnt
done`

/** Into the rescue system of the machine, which stays there. */
export async function enterRescue(options: RescueOptions, id: string): Promise<void> {
  const { teller, client, keyFile, publicKey, folder, computer, written } = options
  await teller.order('the order to rescue', () => client.machines.rescue({ id, sshKeys: [publicKey] }))
  const { waitingFor } = await teller.comesTo(id, 'rescue', { fits: machine => invitation.test(machine.waitingFor ?? '') })
  const { address = '', hostKey } = invitation.exec(waitingFor ?? '')?.groups ?? {}
  const known = path.join(folder, `${computer.name}.rescue-host`)
  const login: Login = { user: 'root', address, keyFile, knownHosts: known }
  // The rest of the line is secret.
  const mode = await teller.until('a login to the rescue system', () =>
    runThere(login, 'grep -o "muster.mode=[a-z]*" /proc/cmdline').catch(() => undefined),
  )
  expectThat(mode.trim() === 'muster.mode=rescue', 'it is the system in memory', { mode })
  const { stdout: fingerprint } = await run('ssh-keygen', ['-lf', known])
  expectThat(fingerprint.includes(`${hostKey}`), 'its host key is the one that was told', { fingerprint, hostKey })

  const other = path.join(folder, `${computer.name}.other-key`)
  await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', other])
  const refusal = await runThere({ ...login, keyFile: other }, 'true').then(
    () => 'none',
    (error: Error) => error.message,
  )
  expectThat(refusal.includes('Permission denied'), 'another key is refused', { refusal })

  const [device, ...lines] = (await runThere(login, search(written.file))).trim().split('\n')
  expectThat(lines.join('\n') === written.text, 'what the installed system wrote is read from its disk', { device, lines, written })
}

/** Back to the installed system, as far as the order goes. */
export async function leaveRescue({ teller, client }: RescueOptions, id: string): Promise<void> {
  await teller.order('the order to leave the rescue system', () => client.machines.exitRescue({ id }))
  await teller.comesTo(id, 'deployed')
}
