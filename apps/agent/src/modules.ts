// The kernel's modules that a machine in memory needs: controllers, network cards, file systems, and what these need in turn.
import { execFile } from 'node:child_process'
import { copyFile, mkdir, readFile } from 'node:fs/promises'
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
    /^drivers\/net\/(ethernet|phy|mdio|virtio_net|bonding|net_failover)/,
    /^drivers\/(block|nvme|ata|virtio|char\/ipmi|message)\//,
    /^drivers\/scsi\//,
    /^drivers\/usb\/(host|storage|common|core)\//,
    /^drivers\/hid\//,
    /^fs\/(ext4|xfs|btrfs|fat|nls|isofs)\//,
    /^drivers\/md\/(dm-mod|md-mod|raid1)\.ko/,
    /^net\/packet\//,
    /^(lib|crypto)\/(crc|lib).*\.ko/,
  ],
}
/** Never on a server that boots from the network, and large. */
const unwanted = /^drivers\/(net\/(wireless|wwan|can|hamradio|usb|arcnet|fddi|ieee802154|wan)|scsi\/(pcmcia|aic94xx|be2iscsi))\//

/** Copies them with their index. Answers how many. Throws where depmod is missing. */
export async function collectModules(options: { debian: string; tree: string; release: string; kernel: Kernel }): Promise<number> {
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
  return chosen.size
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
