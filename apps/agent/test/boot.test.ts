// How the agent comes to an address: its shell, run by busybox on this computer, with ports that are folders and a DHCP client that is a word of the shell.
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { missingPrograms } from './needs.ts'

const script = fileURLToPath(new URL('../root/muster/boot.sh', import.meta.url))
const missing = missingPrograms(['busybox'], 'busybox-static')

interface Port {
  /** After so many half seconds it has a carrier; never where left out. */
  readonly carrierAfter?: number
  /** Somebody gives addresses there. */
  readonly answers?: true
}

/** The ports, by name in order, that were asked for an address, and after how many half seconds. */
function bringUp(ports: Record<string, Port>): { asked: string[]; waited: number; stderr: string } {
  const all = Object.entries(ports)
  const made = all.map(([name]) => `mkdir -p ${name}/device; echo ${name} >${name}/address; echo 0 >${name}/carrier`)
  const linked = all.map(
    ([name, { carrierAfter }]) => `[ "$(wc -l </run/waited)" != ${carrierAfter} ] || echo 1 >/sys/class/net/${name}/carrier`,
  )
  const answering = all.filter(([, { answers }]) => answers).map(([name]) => name)
  const text = `mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /sys/class; mkdir /sys/class/net; cd /sys/class/net; . ${script}
    ${made.join('\n')}
    touch /run/waited /run/asked; BOOT_MAC=''
    say() { :; }; ip() { :; }; end() { :; }
    sleep() { echo >>/run/waited; ${linked.join('\n')}\n}
    udhcpc() { echo "$2" >>/run/asked; case $2 in ${['nobody', ...answering].join(' | ')}) ;; *) return 1 ;; esac; }
    bring_up_network; wc -l </run/waited; cat /run/asked`
  const { stdout, stderr } = spawnSync('unshare', ['--mount', 'busybox', 'sh', '-c', text], { encoding: 'utf8', timeout: 60_000 })
  const [waited, ...asked] = stdout.trim().split('\n')
  return { asked, waited: Number(waited), stderr }
}

describe.skipIf(missing !== undefined || process.getuid?.() !== 0)(
  'of its ports the agent asks for an address',
  { timeout: 60_000 },
  () => {
    test.each<[string, Record<string, Port>, string[], number]>([
      ['only those with a cable, and waits for its link', { eth0: {}, eth1: { carrierAfter: 3, answers: true }, eth2: {} }, ['eth1'], 6],
      [
        'all of them that get their link soon, in order',
        { eth0: { carrierAfter: 4 }, eth1: { carrierAfter: 3, answers: true } },
        ['eth0', 'eth1'],
        4,
      ],
      [
        'the first without any more waiting where all have links',
        { eth0: { carrierAfter: 1, answers: true }, eth1: { carrierAfter: 1 } },
        ['eth0'],
        1,
      ],
      ['every one where after ten seconds none has a link', { eth0: {}, eth1: { answers: true } }, ['eth0', 'eth1'], 20],
      [
        'in the next round one that gets its link later',
        { eth0: { carrierAfter: 1 }, eth1: { carrierAfter: 6, answers: true } },
        ['eth0', 'eth0', 'eth1'],
        6,
      ],
    ])('%s', (_, ports, asked, waited) => {
      expect(bringUp(ports)).toEqual({ asked, waited, stderr: '' })
    })
  },
)
