/**
 * The libvirt driver with a program called ssh that keeps what it was called with and plays a libvirt host: the outputs are those of
 * virsh 9.0 with LC_ALL=C and of OpenSSH 9.2.
 */
import { execFileSync } from 'node:child_process'
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import type { PowerSession } from '../src/driver.ts'
import { virsh, virshDriver } from '../src/virsh.ts'
import { driverConformance } from './conformance.ts'
import { needs } from './needs.ts'

/** Plays `virsh … COMMAND vm1`, or prints and ends as the file "says" wants; keeps each argument on a line, calls between blank lines. */
const fakeSsh = (folder: string) => `#!/bin/sh
cd ${folder}
echo $$ > pid
for argument; do printf '%s\\n' "$argument"; line=$argument; done >> calls
echo >> calls
for argument; do
  case "$argument" in UserKnownHostsFile=*) file=\${argument#*=\\"}; cp "\${file%\\"}" known-hosts-seen ;; esac
done
[ -f says ] && { . ./says; }
set -- $line
case "$5" in
  domstate) if [ -f running ]; then echo running; else echo 'shut off'; fi; echo ;;
  start)
    if [ -f running ]; then printf 'error: Failed to start domain '"'vm1'"'\\nerror: Requested operation is not valid: domain is already running\\n\\n' >&2; exit 1; fi
    touch running; printf "Domain 'vm1' started\\n\\n" ;;
  destroy|shutdown)
    if [ ! -f running ]; then printf 'error: Failed to '"$5"' domain '"'vm1'"'\\nerror: Requested operation is not valid: domain is not running\\n\\n' >&2; exit 1; fi
    rm running; printf "Domain 'vm1' destroyed\\n\\n" ;;
  reset) printf "Domain 'vm1' was reset\\n\\n" ;;
  *) echo "error: unknown command: '$5'" >&2; exit 1 ;;
esac
`

const hostKey = '10.0.3.9 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl'
const settings = { address: '10.0.3.9', user: 'muster', domain: 'vm1', knownHosts: hostKey }

interface Host {
  /** Arguments of each call. */
  calls(): string[][]
  /** A shell fragment that runs in place of virsh. */
  says(fragment: string): void
  file(name: string): string
  remove(): void
}

/** Puts the program first on the PATH of this process. */
function startHost(): Host {
  const folder = mkdtempSync(join(tmpdir(), 'muster-fake-ssh-'))
  writeFileSync(join(folder, 'ssh'), fakeSsh(folder))
  chmodSync(join(folder, 'ssh'), 0o755)
  vi.stubEnv('PATH', `${folder}:${process.env.PATH}`)
  return {
    calls: () =>
      readFileSync(join(folder, 'calls'), 'utf8')
        .trimEnd()
        .split('\n\n')
        .map(call => call.split('\n')),
    says: fragment => writeFileSync(join(folder, 'says'), fragment),
    file: name => join(folder, name),
    remove: () => {
      vi.unstubAllEnvs()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

function host(): Host {
  const started = startHost()
  onTestFinished(started.remove)
  return started
}

function open(over: Record<string, unknown> = {}, driver = virsh): PowerSession {
  const session = driver.open(driver.settings.parse({ ...settings, ...over }))
  onTestFinished(() => session.close())
  return session
}

driverConformance(virsh, {
  start: async () => {
    const started = startHost()
    return {
      settings,
      power: async () => (existsSync(started.file('running')) ? 'on' : 'off'),
      [Symbol.asyncDispose]: async () => started.remove(),
    }
  },
})

test('ssh is called with these arguments and no others', async () => {
  const { calls } = host()
  await open({ address: '[fe80::1%eth0]:2222', keyFile: '/etc/muster/id_ed25519', uri: 'qemu+unix:///session' }).power()
  const known = calls()[0]?.find(argument => argument.startsWith('UserKnownHostsFile='))
  expect(known).toMatch(/^UserKnownHostsFile="\/.*\/muster-ssh-\w+\/known_hosts"$/)
  expect(calls()).toEqual([
    [
      ...['-F', '/dev/null', '-T', '-p', '2222', '-l', 'muster'],
      ...['-o', 'BatchMode=yes', '-o', 'StrictHostKeyChecking=yes', '-o', known, '-o', 'GlobalKnownHostsFile=/dev/null'],
      ...['-o', 'PasswordAuthentication=no', '-o', 'KbdInteractiveAuthentication=no', '-o', 'ConnectTimeout=10', '-o', 'LogLevel=ERROR'],
      ...['-o', 'ForwardAgent=no', '-o', 'ClearAllForwardings=yes'],
      ...['-o', 'IdentitiesOnly=yes', '-o', 'IdentityFile="/etc/muster/id_ed25519"'],
      ...['--', 'fe80::1%eth0', 'LC_ALL=C virsh -c qemu+unix:///session domstate vm1'],
    ],
  ])
})

needs('ssh')('the ssh of OpenSSH', () => {
  test('reads the arguments as meant', async () => {
    const { calls } = host()
    await open({ address: '[fe80::1%eth0]:2222', keyFile: '/etc/muster/id key' }).power()
    vi.unstubAllEnvs()
    const [call = []] = calls()
    const read = execFileSync('ssh', ['-G', ...call.slice(0, -1)], { encoding: 'utf8' }).split('\n')
    const known = /"(.*)"/.exec(call.find(argument => argument.startsWith('UserKnownHostsFile=')) ?? '')?.[1]
    expect(read).toEqual(
      expect.arrayContaining([
        ...['user muster', 'hostname fe80::1%eth0', 'port 2222', 'batchmode yes', 'stricthostkeychecking true', 'identitiesonly yes'],
        ...['passwordauthentication no', 'kbdinteractiveauthentication no', 'clearallforwardings yes', 'globalknownhostsfile /dev/null'],
        ...['identityfile /etc/muster/id key', `userknownhostsfile ${known}`],
      ]),
    )
  })
})

test('the host keys are in the file while the session lasts, and gone afterwards', async () => {
  const { calls, file } = host()
  const session = open()
  await session.power()
  expect(readFileSync(file('known-hosts-seen'), 'utf8')).toBe(`${hostKey}\n`)
  const path = /"(.*)"/.exec(calls()[0]?.find(argument => argument.startsWith('UserKnownHostsFile=')) ?? '')?.[1] ?? ''
  expect(existsSync(path)).toBe(true)
  await session.close()
  expect(existsSync(path)).toBe(false)
})

test('a reset resets a machine that is on and starts one that is off', async () => {
  const { calls } = host()
  const session = open()
  await session.capabilities.reset?.()
  await session.capabilities.reset?.()
  expect(calls().map(call => call.at(-1)?.split(' ').at(-2))).toEqual(['domstate', 'start', 'domstate', 'reset'])
})

test.each([
  ['running', 'on'],
  ['idle', 'on'],
  ['paused', 'on'],
  ['in shutdown', 'on'],
  ['pmsuspended', 'on'],
  ['shut off', 'off'],
  ['crashed', 'off'],
  ['no state', 'unknown'],
])('the state "%s" is %s', async (word, state) => {
  host().says(`printf '${word}\\n\\n'; exit 0`)
  expect(await open().power()).toBe(state)
})

test('a state nobody knows makes no sense', async () => {
  host().says("printf 'laufend\\n\\n'; exit 0")
  await expect(open().power()).rejects.toMatchObject({ kind: 'protocol', got: 'domstate says "laufend"' })
})

describe('what ssh and virsh say', () => {
  test.each([
    [255, 'muster@10.0.3.9: Permission denied (publickey).', 'authentication'],
    [
      255,
      'No ED25519 host key is known for 10.0.3.9 and you have requested strict checking.\nHost key verification failed.',
      'authentication',
    ],
    [255, '@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n@@@@\nHost key verification failed.', 'authentication'],
    [255, 'Load key "/etc/muster/id": Permission denied\nmuster@10.0.3.9: Permission denied (publickey).', 'authentication'],
    [255, 'ssh: connect to host 10.0.3.9 port 22: Connection refused', 'silent'],
    [255, 'ssh: connect to host 10.0.3.9 port 22: No route to host', 'silent'],
    [255, 'ssh: connect to host 10.0.3.9 port 22: Connection timed out', 'silent'],
    [255, 'ssh: Could not resolve hostname kvm: Name or service not known', 'silent'],
    [255, 'Connection closed by 10.0.3.9 port 22', 'silent'],
    [255, '', 'silent'],
    [127, 'bash: line 1: virsh: command not found', 'unsupported'],
    [127, 'sh: 1: virsh: not found', 'unsupported'],
    [1, "error: failed to get domain 'vm1'", 'settings'],
    [
      1,
      "error: failed to connect to the hypervisor\nerror: Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission denied",
      'privilege',
    ],
    [
      1,
      "error: failed to connect to the hypervisor\nerror: Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory",
      'silent',
    ],
    [
      1,
      "error: Failed to start domain 'vm1'\nerror: Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatchDomainCreate)",
      'busy',
    ],
    [1, "error: Failed to start domain 'vm1'\nerror: Cannot access storage file '/srv/vm1.qcow2': No such file or directory", 'refused'],
  ])('ending with %i and "%s" is %s', async (code, text, kind) => {
    const { says, file } = host()
    writeFileSync(file('text'), text)
    says(`cat text >&2; exit ${code}`)
    const error = await open()
      .on()
      .catch(caught => caught)
    expect(error).toMatchObject({ kind, target: 'virsh vm1 on 10.0.3.9', outcome: kind === 'silent' && code === 255 ? 'unknown' : 'none' })
    expect(error.message).toMatch(/^power on via virsh vm1 on 10\.0\.3\.9: (ssh failed|virsh ended with \d+)/)
  })
})

describe('an ssh that does not end', () => {
  const isAlive = (pid: number) => {
    try {
      return process.kill(pid, 0)
    } catch {
      return false
    }
  }

  test('is killed after its limit', async () => {
    const { says, file } = host()
    says('exec sleep 60')
    const hasty = virshDriver({ limitMs: 500 })
    await expect(open({}, hasty).on()).rejects.toMatchObject({ kind: 'silent', outcome: 'unknown', got: expect.stringContaining('0.5 s') })
    expect(isAlive(Number(readFileSync(file('pid'), 'utf8')))).toBe(false)
  })

  test('is killed when the caller gives up, and when the session closes', async () => {
    const { says, file } = host()
    says('exec sleep 60')
    const session = open()
    await expect(session.off({ how: 'hard', signal: AbortSignal.timeout(500) })).rejects.toMatchObject({
      kind: 'cancelled',
      outcome: 'unknown',
    })
    expect(isAlive(Number(readFileSync(file('pid'), 'utf8')))).toBe(false)
    rmSync(file('pid'))
    const closed = expect(session.power()).rejects.toMatchObject({ kind: 'cancelled' })
    await expect.poll(() => existsSync(file('pid'))).toBe(true)
    await session.close()
    await closed
  })
})

test('a server without ssh is told to install it', async () => {
  vi.stubEnv('PATH', '/nowhere')
  onTestFinished(() => void vi.unstubAllEnvs())
  await expect(open().power()).rejects.toMatchObject({ kind: 'unsupported', hint: expect.stringContaining('openssh-client') })
})

test.each([
  [{ domain: 'vm1; reboot' }, 'domain'],
  [{ domain: '--help' }, 'domain'],
  [{ domain: '$(id)' }, 'domain'],
  [{ domain: 'vm1\nreboot' }, 'domain'],
  [{ uri: 'qemu:///system; id' }, 'uri'],
  [{ uri: 'qemu+ssh://a/system?command=id' }, 'uri'],
  [{ user: '-oProxyCommand=id' }, 'user'],
  [{ address: '-oProxyCommand=id' }, 'address'],
  [{ keyFile: 'id_ed25519' }, 'keyFile'],
  [{ keyFile: '/etc/"; id' }, 'keyFile'],
  [{ knownHosts: '' }, 'knownHosts'],
])('settings with %o are refused', (wrong, field) => {
  const checked = virsh.settings.safeParse({ ...settings, ...wrong })
  expect(checked.error?.issues.map(({ path }) => path[0])).toEqual([field])
})
