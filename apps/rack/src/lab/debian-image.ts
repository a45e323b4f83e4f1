// A Debian to deploy, built from its packages: boots under BIOS and UEFI, reads its metadata by cloud-init, its console is the serial line. No loop
// device and no mount outlives it, so it can be built wherever root can unpack packages.
import { execFile } from 'node:child_process'
import { createHash, randomUUID } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, mkdtemp, open, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { pipeline } from 'node:stream/promises'
import { promisify } from 'node:util'
import { takeImage } from '@muster/partition/domain/image-store'
import type { ImageForm } from '@muster/shared/machine'
import { program } from './program.ts'

const run = promisify(execFile)

export interface DebianImageOptions {
  /** A partition's files; the image comes below `images/debian/<release>/amd64`; `-tar` and `-netplan` are put behind the release. */
  readonly files: string
  readonly form: ImageForm
  /** Who sets the network up for its cloud-init. The renderer for systemd-networkd alone knows ports only: no VLAN, no bond. */
  readonly network: 'networkd' | 'netplan'
  readonly say: (line: string) => void
}

const packages: Readonly<Record<'both' | ImageForm, readonly string[]>> = {
  both: [
    ...['systemd-sysv', 'udev', 'iproute2', 'netbase', 'e2fsprogs', 'zstd', 'openssh-server', 'linux-image-cloud-amd64'],
    ...['cloud-init', 'cloud-guest-utils', 'python3-oauthlib'],
  ],
  disk: [],
  // What any layout needs of the system itself; its menu is made by its own grub-mkconfig.
  tar: ['lvm2', 'mdadm', 'grub2-common'],
}
const networkPackages: Readonly<Record<DebianImageOptions['network'], readonly string[]>> = { networkd: [], netplan: ['netplan.io'] }

const sector = 512
const mib = 2 ** 20
/** Where the parts of the disk begin, in sectors: GRUB's core for BIOS, the EFI system partition, the system. */
const layout = { core: { start: 2048, count: 2048 }, efi: { start: 4096, count: 32_768 }, system: { start: 36_864 } } as const
/** Room beside what is in the tree, until growpart takes the whole disk. */
const slackBytes = 200 * mib

/** Builds the image, unless it is there. Answers how machines ask for it: `debian/12`. Throws saying which program failed, and with what. */
export async function buildDebianImage({ files, form, network, say }: DebianImageOptions): Promise<string> {
  const { release, suite, mirror } = await ownRelease()
  const os = `debian/${release}${form === 'tar' ? '-tar' : ''}${network === 'netplan' ? '-netplan' : ''}`
  const place = path.join(files, 'images', os, 'amd64')
  if (await isThere(path.join(place, 'image.json'))) return os
  const work = await mkdtemp(path.join(tmpdir(), 'muster-debian-'))
  try {
    say(`installing Debian ${release} into a folder`)
    const tree = path.join(work, 'tree')
    const uuid = randomUUID()
    await installInto(tree, {
      packages: [...packages.both, ...packages[form], ...networkPackages[network]],
      suite,
      mirror,
      settings: { ...settings, ...(form === 'tar' ? tarSettings : diskSettings(uuid)) },
      work,
    })
    say('packing it')
    const [whole, packed] = [path.join(work, 'whole'), path.join(work, 'packed')]
    if (form === 'disk') await makeDisk({ tree, disk: whole, work, uuid })
    else await program('tar', ['--create', '--numeric-owner', '--acls', '--xattrs', `--directory=${tree}`, `--file=${whole}`, '.'])
    await program('zstd', ['-q', '-T0', '-3', whole, '-o', packed])
    await takeImage({
      files,
      os,
      arch: 'amd64',
      title: `Debian ${release} (${suite})`,
      source: packed,
      sha256: await digestOf(packed),
      form,
    })
    return os
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

/** The Debian we run on, and where it gets its packages. */
async function ownRelease(): Promise<{ release: string; suite: string; mirror: string }> {
  const about = await readFile('/etc/os-release', 'utf8')
  const word = (name: string) => new RegExp(`^${name}="?([^"\n]*)"?$`, 'm').exec(about)?.[1]
  const [id, release, suite] = [word('ID'), word('VERSION_ID'), word('VERSION_CODENAME')]
  if (id !== 'debian' || !release || !suite) throw new Error('the image is built on Debian, from the packages of the same release')
  const { stdout } = await run('apt-get', ['indextargets', '--format', '$(SITE) $(RELEASE)', 'Created-By: Packages'])
  const mirror = stdout
    .split('\n')
    .map(line => line.split(' '))
    .find(([, name]) => name === suite)?.[0]
  if (!mirror) throw new Error(`apt knows no source of ${suite}`)
  return { release, suite, mirror }
}

/** What must be so before the kernel is installed, and what makes it a machine that cloud-init sets up. */
const settings = {
  // Only the drivers of virtual machines: a general memory image takes long to unpack where the processor is emulated.
  'etc/initramfs-tools/initramfs.conf': 'MODULES=list\nBUSYBOX=n\nCOMPRESS=zstd\n',
  'etc/initramfs-tools/modules': 'virtio_pci\nvirtio_blk\nvirtio_net\nvirtio_scsi\nnvme\nahci\nsd_mod\next4\n',
  'etc/apt/apt.conf.d/90-small': 'APT::Install-Recommends "false";\n',
  // What takes a minute under emulation and nobody needs: a locale, an RSA key, modules that find nothing to do and report that twice each.
  'etc/cloud/cloud.cfg.d/80-quick.cfg': `locale: false
apt: {preserve_sources_list: true}
ssh_genkeytypes: [ed25519]
cloud_init_modules: [bootcmd, write-files, growpart, resizefs, set_hostname, update_hostname, update_etc_hosts, users-groups, ssh]
cloud_config_modules: [set-passwords, runcmd]
cloud_final_modules: [scripts-vendor, scripts-per-boot, scripts-user, phone-home, final-message]
`,
}

/** Its disks and its menu are the agent's work. */
const tarSettings = {
  'etc/default/grub.d/50-lab.cfg':
    'GRUB_TIMEOUT=0\nGRUB_CMDLINE_LINUX_DEFAULT="mitigations=off"\nGRUB_CMDLINE_LINUX="console=ttyS0"\nGRUB_TERMINAL=serial\n',
}

const diskSettings = (uuid: string) => ({
  'etc/fstab': `UUID=${uuid} / ext4 errors=remount-ro 0 1\n`,
  'boot/grub/grub.cfg': `serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=0
menuentry Debian {
  linux /vmlinuz root=UUID=${uuid} ro console=ttyS0 mitigations=off
  initrd /initrd.img
}
`,
})

interface Installation {
  readonly packages: readonly string[]
  readonly suite: string
  readonly mirror: string
  /** Files that are there before the packages, which leave them as they are. */
  readonly settings: Readonly<Record<string, string>>
  readonly work: string
}

/** All packages in one pass, by the host's apt. In name spaces of its own: what it mounts is gone with it, whatever happens. */
async function installInto(tree: string, { packages, suite, mirror, settings, work }: Installation): Promise<void> {
  const before = path.join(work, 'settings')
  for (const [name, text] of Object.entries(settings)) {
    await mkdir(path.dirname(path.join(before, name)), { recursive: true })
    await writeFile(path.join(before, name), text)
  }
  const after = `set -eu
# cloud-init sets the network up through it.
chroot "$1" systemctl --quiet enable systemd-networkd serial-getty@ttyS0
# What begins work of its own beside the first boot.
chroot "$1" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer getty@tty1
# Keys and names are each machine's own.
rm -rf "$1"/etc/ssh/ssh_host_* "$1/etc/resolv.conf" "$1/etc/hostname" "$1"/usr/share/doc/* "$1"/usr/share/man/* "$1"/usr/share/locale/*`
  const words = ['--quiet', '--mode=root', '--variant=apt', `--include=${packages.join(',')}`]
  const hooks = [`--setup-hook=cp --recursive '${before}/.' "$1"`, `--customize-hook=${after}`]
  const spaces = ['--mount', '--fork', '--kill-child']
  const dpkg = ['--dpkgopt=force-confold', '--dpkgopt=force-unsafe-io']
  await program('unshare', [...spaces, 'mmdebstrap', ...words, ...dpkg, ...hooks, suite, tree, mirror])
}

async function makeDisk({ tree, disk, work, uuid }: { tree: string; disk: string; work: string; uuid: string }): Promise<void> {
  const { stdout: used } = await run('du', ['-sB1', '--apparent-size', tree])
  const systemBytes = Math.ceil((Number.parseInt(used, 10) * 1.15 + slackBytes) / mib) * mib
  const [system, efi] = [path.join(work, 'system.ext4'), path.join(work, 'efi.vfat')]
  await emptyFile(system, systemBytes)
  await program('mkfs.ext4', ['-q', '-F', '-L', 'system', '-U', uuid, '-d', tree, system])
  const grub = await makeGrub(work, uuid)
  await emptyFile(efi, layout.efi.count * sector)
  await program('mkfs.vfat', ['-n', 'EFI', efi])
  await program('mmd', ['-i', efi, '::/EFI', '::/EFI/BOOT'])
  await program('mcopy', ['-i', efi, grub.efi, '::/EFI/BOOT/BOOTX64.EFI'])

  const systemCount = systemBytes / sector
  await emptyFile(disk, (layout.system.start + systemCount + 2048) * sector)
  const table = path.join(work, 'table')
  await writeFile(
    table,
    `label: gpt
start=${layout.core.start}, size=${layout.core.count}, type=21686148-6449-6E6F-744E-656564454649, name=grub
start=${layout.efi.start}, size=${layout.efi.count}, type=U, name=efi
start=${layout.system.start}, size=${systemCount}, type=L, name=system
`,
  )
  await program('sh', ['-c', 'sfdisk --quiet "$1" <"$2"', 'sh', disk, table])
  await writeAt(disk, layout.efi.start * sector, efi)
  await writeAt(disk, layout.system.start * sector, system)
  await installBiosGrub(disk, grub)
}

interface Grub {
  readonly efi: string
  readonly boot: string
  readonly core: string
}

async function makeGrub(work: string, uuid: string): Promise<Grub> {
  const config = path.join(work, 'embedded.cfg')
  await writeFile(config, `search --fs-uuid --set=root ${uuid}\nset prefix=($root)/boot/grub\nconfigfile /boot/grub/grub.cfg\n`)
  const modules = ['part_gpt', 'ext2', 'search', 'search_fs_uuid', 'configfile', 'normal', 'linux', 'serial', 'terminal', 'echo', 'test']
  const make = async (format: string, more: readonly string[]) => {
    const out = path.join(work, `grub-${format}`)
    await program('grub-mkimage', ['-O', format, '-o', out, '-c', config, '-p', '/boot/grub', ...modules, ...more])
    return out
  }
  return {
    efi: await make('x86_64-efi', ['fat']),
    core: await make('i386-pc', ['biosdisk']),
    boot: '/usr/lib/grub/i386-pc/boot.img',
  }
}

/** What grub-bios-setup does, on a file: boot.img finds the first sector of the core, that one the rest (grub: boot.S, diskboot.S). */
async function installBiosGrub(disk: string, { boot, core }: Grub): Promise<void> {
  const image = await readFile(core)
  const sectors = Math.ceil(image.length / sector)
  if (sectors > layout.core.count) throw new Error(`GRUB has ${sectors} sectors, more than its partition`)
  // The last block list of the first sector: where the rest is, how much of it, and the segment it is loaded to.
  image.writeBigUInt64LE(BigInt(layout.core.start + 1), 0x1f4)
  image.writeUInt16LE(sectors - 1, 0x1fc)
  image.writeUInt16LE(0x820, 0x1fe)
  const first = Buffer.from((await readFile(boot)).subarray(0, 440))
  first.writeBigUInt64LE(BigInt(layout.core.start), 0x5c)
  // Which drive: the one that the firmware says.
  first.writeUInt8(0xff, 0x64)
  const target = await open(disk, 'r+')
  try {
    await target.write(first, 0, first.length, 0)
    await target.write(image, 0, image.length, layout.core.start * sector)
  } finally {
    await target.close()
  }
}

async function emptyFile(file: string, bytes: number): Promise<void> {
  await writeFile(file, '')
  await truncate(file, bytes)
}

const writeAt = (disk: string, offset: number, file: string) =>
  program('dd', [`if=${file}`, `of=${disk}`, 'bs=1M', `seek=${offset}`, 'oflag=seek_bytes', 'conv=notrunc,sparse', 'status=none'])

async function digestOf(file: string): Promise<string> {
  const hash = createHash('sha256')
  await pipeline(createReadStream(file), hash)
  return hash.digest('hex')
}

const isThere = (file: string) =>
  stat(file).then(
    () => true,
    () => false,
  )
