// The kernel's modules that a machine in memory needs: controllers, network cards, file systems, and what these need in turn.
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { copyFile, mkdir, readFile, stat } from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'
import type { Kernel } from './build.ts'

const run = promisify(execFile)

/** Folders and files below lib/modules/<release>/kernel, whole. */
const wanted: Readonly<Record<Kernel, readonly RegExp[]>> = {
  cloud: [
    /^drivers\/(net|block|nvme|scsi|ata|virtio|char\/ipmi)\//,
    /^fs\/(ext4|xfs|btrfs|fat|nls|isofs)\//,
    /^drivers\/md\/(dm-mod|md-mod|raid1)\.ko/,
    /^net\/packet\//,
    /^(lib|crypto)\/(crc|lib).*\.ko/,
  ],
  generic: [
    /^drivers\/net\/(ethernet|phy|mdio|virtio_net|net_failover|vmxnet3|hyperv|xen-netfront)/,
    /^drivers\/(block|nvme|ata|virtio|char\/ipmi|message)\//,
    // NVMe disks behind Intel's Volume Management Device, and the bus over which some boards reach their BMC (SSIF).
    /^drivers\/pci\/controller\/vmd\.ko/,
    /^drivers\/i2c\/(busses\/i2c-(i801|piix4|ismt|xgene-slimpro|designware)|i2c-smbus)/,
    /^drivers\/scsi\//,
    /^drivers\/usb\/(host|storage|common|core)\//,
    // Disks that are eMMC or SD cards, on small boards.
    /^drivers\/mmc\//,
    /^drivers\/hid\//,
    /^fs\/(ext4|xfs|btrfs|fat|nls|isofs)\//,
    /^drivers\/md\/(dm-mod|md-mod|raid1)\.ko/,
    /^net\/packet\//,
    /^(lib|crypto)\/(crc|lib).*\.ko/,
  ],
}
/** Never on a server that boots from the network, and large. */
const unwanted = /^drivers\/(net\/(wireless|wwan|can|hamradio|usb|arcnet|fddi|ieee802154|wan)|scsi\/(pcmcia|aic94xx|be2iscsi))\//

/** Copies them with their index. Answers their files below `tree`. Throws where depmod is missing. */
export async function collectModules(options: { debian: string; tree: string; release: string; kernel: Kernel }): Promise<string[]> {
  const { debian, tree, release, kernel } = options
  const from = path.join(debian, 'lib/modules', release)
  const to = path.join(tree, 'lib/modules', release)
  await run('/sbin/depmod', ['-b', debian, release])
  const needs = await dependencies(path.join(from, 'modules.dep'))
  const chosen = new Set<string>()
  const queue = [...needs.keys()].filter(file => isWanted(file.replace(/^kernel\//, ''), kernel))
  for (let file = queue.pop(); file !== undefined; file = queue.pop()) {
    if (chosen.has(file)) continue
    chosen.add(file)
    queue.push(...(needs.get(file) ?? []))
  }
  for (const file of [...chosen].sort()) {
    await mkdir(path.dirname(path.join(to, file)), { recursive: true })
    await copyFile(path.join(from, file), path.join(to, file))
  }
  for (const name of ['modules.order', 'modules.builtin', 'modules.builtin.modinfo'])
    await copyFile(path.join(from, name), path.join(to, name))
  await run('/sbin/depmod', ['-b', tree, release])
  return [...chosen].map(file => path.join(to, file))
}

/**
 * Copies what of a package's firmware, unpacked below `folder`, these modules say they may ask for. Answers the files and their bytes in all. Throws where
 * modinfo is missing.
 */
export async function collectFirmware({ folder, tree, modules }: { folder: string; tree: string; modules: readonly string[] }) {
  const { stdout } = await run('/sbin/modinfo', ['--field', 'firmware', ...modules], { maxBuffer: 16 * 2 ** 20 })
  const files: string[] = []
  let bytes = 0
  for (const name of [...new Set(stdout.split('\n').filter(Boolean))].sort()) {
    const file = ['lib/firmware', 'usr/lib/firmware'].map(place => path.join(folder, place, name)).find(candidate => existsSync(candidate))
    if (file === undefined) continue
    const target = path.join(tree, 'lib/firmware', name)
    await mkdir(path.dirname(target), { recursive: true })
    // What is a link in the package is a file here.
    await copyFile(file, target)
    files.push(name)
    bytes += (await stat(target)).size
  }
  return { files, bytes }
}

function isWanted(file: string, kernel: Kernel): boolean {
  return wanted[kernel].some(pattern => pattern.test(file)) && !unwanted.test(file)
}

/** `kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko …` */
async function dependencies(file: string): Promise<Map<string, string[]>> {
  const lines = (await readFile(file, 'utf8')).split('\n').filter(Boolean)
  return new Map(
    lines.map(line => {
      const [name = '', rest = ''] = line.split(':')
      return [name, rest.trim().split(' ').filter(Boolean)]
    }),
  )
}
