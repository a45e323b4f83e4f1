// The image for real hardware, booted next to somebody else's BMC: OpenIPMI's ipmi_sim answers the machine over its own KCS port, as a board's BMC does, and
// the agent says where that BMC is. It needs an image that no other test does: set MUSTER_TEST_GENERIC=1 to build it and run this.
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { imageBytesMax, packageCache } from '../src/build.ts'
import { imageCache, keptAgent } from '../src/built.ts'
import { missingPrograms } from './needs.ts'
import { freePort, startPartition } from './partition.ts'
import { startMachine, type VirtualMachine } from './virtual-machine.ts'

const run = promisify(execFile)
const isWanted = process.env.MUSTER_TEST_GENERIC === '1'
const tools = ['qemu-system-x86_64', 'ipmi_sim', 'cpio', 'zstd', 'depmod', 'apt-get', 'grub-mkimage', '../share/OVMF/OVMF_CODE_4M.fd']
const missing = isWanted ? missingPrograms(tools, 'qemu-system-x86 openipmi cpio zstd kmod grub-common ovmf') : 'not asked for'
const bootLimitMs = 600_000

/** Drivers that a rack of real servers needs before anything is known of it. */
const drivers = [
  ...[
    'ixgbe',
    'i40e',
    'ice',
    'igb',
    'igc',
    'e1000e',
    'bnx2',
    'bnx2x',
    'bnxt_en',
    'tg3',
    'mlx4_en',
    'mlx5_core',
    'r8169',
    'qede',
    'cxgb4',
    'sfc',
  ],
  ...['virtio_net', 'vmxnet3', 'hv_netvsc', 'be2net', 'enic', 'atlantic'],
  ...['megaraid_sas', 'mpt3sas', 'mpi3mr', 'hpsa', 'smartpqi', 'aacraid', 'arcmsr', 'nvme', 'vmd', 'ahci', 'virtio_blk', 'virtio_scsi'],
  ...['qla2xxx', 'lpfc', 'sd_mod', 'raid1', 'dm-mod'],
  ...['ipmi_msghandler', 'ipmi_devintf', 'ipmi_si', 'ipmi_ssif', 'i2c-i801'],
]

describe.skipIf(missing !== undefined)('the image for real hardware', () => {
  let folder: string
  let image: string
  let bmc: ChildProcess
  let bmcPort: number
  let machine: VirtualMachine | undefined

  beforeAll(async () => {
    folder = mkdtempSync(path.join(tmpdir(), 'muster-agent-bmc-'))
    image = await keptAgent({ arch: 'amd64', kernel: 'generic', images: imageCache, cache: packageCache, say: () => undefined })
    bmcPort = await freePort()
    bmc = await startBmc(folder, bmcPort)
  }, 1_000_000)
  afterAll(async () => {
    await machine?.kill()
    if (bmc && bmc.exitCode === null) {
      bmc.kill('SIGKILL')
      await once(bmc, 'exit')
    }
    if (folder) rmSync(folder, { recursive: true, force: true })
  })

  test('has the drivers of common servers, and stays small', async () => {
    const bytes = ['vmlinuz', 'initrd', 'disk.efi'].reduce((sum, name) => sum + statSync(path.join(image, name)).size, 0)
    expect(bytes).toBeLessThan(imageBytesMax)
    const { stdout } = await run('bash', ['-c', 'zstd -dcq "$1" | cpio --list --quiet', 'bash', path.join(image, 'initrd')], {
      maxBuffer: 2 ** 26,
    })
    const modules = new Set(stdout.split('\n').map(line => path.basename(line, '.ko')))
    expect(drivers.filter(name => !modules.has(name))).toEqual([])
  }, 60_000)

  test.each(['bios', 'uefi'] as const)(
    'enlists with where its own BMC is and without any of its secrets, under %s',
    async firmware => {
      await using partition = await startPartition()
      const args = [`muster.url=${partition.url}`, 'muster.mode=enlist']
      const system = { kernel: path.join(image, 'vmlinuz'), initrd: path.join(image, 'initrd'), args }
      machine = startMachine({ folder, system, bmcPort, ...(firmware === 'uefi' && { firmware }) })
      await machine.ended(bootLimitMs)
      expect(partition.complaints, machine.console()).toEqual([])
      expect(partition.enlistments, machine.console().slice(-3_000)).toMatchObject([
        { hostname: 'lab-0042', facts: { firmware: { type: firmware } } },
      ])
      // A driver and credentials are for people to give.
      expect(partition.enlistments[0]?.bmc).toBeUndefined()
      expect(partition.enlistments[0]?.facts.bmc).toEqual({
        address: '10.9.0.7',
        mac: '52:54:00:bc:bc:07',
        source: 'Static Address',
        netmask: '255.255.255.0',
        gateway: '10.9.0.1',
        ipmi: '2.0',
        firmware: '9.08',
        manufacturerId: '4753',
        productId: '3842 (0x0f02)',
      })
    },
    bootLimitMs * 1.2,
  )
})

/** A BMC whose LAN has an address, and that waits for its machine on this port of the loopback. */
async function startBmc(folder: string, port: number): Promise<ChildProcess> {
  const file = (name: string, content: string, mode = 0o644) => {
    writeFileSync(path.join(folder, name), content, { mode })
    return path.join(folder, name)
  }
  // Asked with "get NAME…", it answers a line for each: what ipmi_sim would else read off a network card of this host's.
  const lan = `#!/bin/sh
[ "$1" = get ] || exit 0
shift
for name; do
    case $name in
        ip_addr_src) echo ip_addr_src:static ;;
        ip_addr) echo ip_addr:10.9.0.7 ;;
        subnet_mask) echo subnet_mask:255.255.255.0 ;;
        mac_addr) echo mac_addr:52:54:00:bc:bc:07 ;;
        default_gw_ip_addr) echo default_gw_ip_addr:10.9.0.1 ;;
        backup_gw_ip_addr) echo backup_gw_ip_addr:0.0.0.0 ;;
        *_mac_addr) echo "$name:00:00:00:00:00:00" ;;
    esac
done
`
  const levels = ['callback', 'user', 'operator', 'admin'].map(level => `    allowed_auths_${level} none md2 md5 straight`)
  const config = [
    ...[
      'name "muster"',
      'set_working_mc 0x20',
      '  startlan 1',
      `    addr 127.0.0.1 ${await freePort()}`,
      '    priv_limit admin',
      ...levels,
    ],
    ...['    guid a123456789abcdefa123456789abcdef', `    lan_config_program "${file('lan', lan, 0o755)}"`, '  endlan'],
    `  serial 15 127.0.0.1 ${port} codec VM`,
    '  user 2 true "admin" "secret" admin 60 none md2 md5 straight',
    '',
  ]
  const emulation = 'mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n'
  const words = ['-c', file('lan.conf', config.join('\n')), '-f', file('bmc.emu', emulation), '-s', path.join(folder, 'state'), '-n']
  const log = path.join(folder, 'ipmi_sim.log')
  const child = spawn('bash', ['-c', 'exec ipmi_sim "$@" >"$0" 2>&1', log, ...words], { stdio: 'ignore' })
  for (let look = 0; look < 200 && child.exitCode === null; look++) {
    if (existsSync(log) && (await listens(port))) return child
    await sleep(50)
  }
  child.kill('SIGKILL')
  throw new Error(`ipmi_sim does not listen on port ${port}: ${readFileSync(log, 'utf8')}`)
}

async function listens(port: number): Promise<boolean> {
  const socket = connect(port, '127.0.0.1')
  const outcome = await Promise.race([once(socket, 'connect'), once(socket, 'error').catch(() => undefined)]).then(
    () => socket.readyState === 'open',
    () => false,
  )
  socket.destroy()
  return outcome
}
