// Builds the agent's image: a kernel and a memory image, from Debian's packages. The same packages and the same tree give the same bytes.
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { chmod, copyFile, cp, lstat, mkdir, mkdtemp, readdir, readFile, readlink, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type { Architecture } from '@muster/shared/machine'
import { appletsOf, librariesOf } from './elf.ts'
import { collectFirmware, collectModules } from './modules.ts'
import { fetchPackages } from './packages.ts'

const run = promisify(execFile)
const root = fileURLToPath(new URL('../root', import.meta.url))
const diskLoader = fileURLToPath(new URL('../disk-loader', import.meta.url))

/** `cloud`: virtual machines, small and quick to boot. `generic`: real network cards and controllers too. */
export const kernels = ['cloud', 'generic'] as const
export type Kernel = (typeof kernels)[number]

interface Port {
  /** Debian's packages of the kernel. */
  readonly kernels: Readonly<Record<Kernel, string>>
  readonly grubs: readonly string[]
  /** GRUB's name of UEFI on it, and the file that its UEFI boots a disk by (UEFI 2.10, 3.5.1.1). */
  readonly efi: { readonly format: string; readonly file: string }
  readonly bios: 'i386-pc' | undefined
  /** The folder of its libraries, below lib and usr/lib, and the program that loads them. */
  readonly libraries: string
  readonly ld: string
  /** The first-stage loader that goes with the image, where the partition's own Debian has none: one of the package ipxe. */
  readonly loader: { readonly file: string; readonly release: string } | undefined
}

const ports: Readonly<Record<Architecture, Port>> = {
  amd64: {
    kernels: { cloud: 'linux-image-cloud-amd64', generic: 'linux-image-amd64' },
    grubs: ['grub-efi-amd64-bin', 'grub-pc-bin'],
    efi: { format: 'x86_64-efi', file: 'BOOTX64.EFI' },
    bios: 'i386-pc',
    libraries: 'x86_64-linux-gnu',
    ld: 'lib64/ld-linux-x86-64.so.2',
    loader: undefined,
  },
  arm64: {
    kernels: { cloud: 'linux-image-cloud-arm64', generic: 'linux-image-arm64' },
    grubs: ['grub-efi-arm64-bin'],
    efi: { format: 'arm64-efi', file: 'BOOTAA64.EFI' },
    bios: undefined,
    libraries: 'aarch64-linux-gnu',
    ld: 'lib/ld-linux-aarch64.so.1',
    // The first Debian whose package has it.
    loader: { file: 'ipxe-arm64.efi', release: 'trixie' },
  },
}

/** Programs by the package they come from; the libraries they need are found by asking the loader. */
const programs: Readonly<Record<string, readonly string[]>> = {
  curl: ['usr/bin/curl'],
  jq: ['usr/bin/jq'],
  zstd: ['usr/bin/zstd'],
  'xz-utils': ['usr/bin/xz'],
  smartmontools: ['usr/sbin/smartctl'],
  ipmitool: ['usr/bin/ipmitool'],
  'dropbear-bin': ['usr/sbin/dropbear', 'usr/bin/dropbearkey'],
  'nvme-cli': ['usr/sbin/nvme'],
  hdparm: ['sbin/hdparm'],
  tcpdump: ['usr/bin/tcpdump'],
  // What root tarballs and their layouts need: busybox's tar knows no extended attributes, and its mkfs no ext4.
  tar: ['bin/tar'],
  fdisk: ['sbin/sfdisk'],
  'util-linux': ['sbin/blkid', 'sbin/wipefs', 'sbin/mkswap'],
  e2fsprogs: ['sbin/mke2fs'],
  xfsprogs: ['sbin/mkfs.xfs'],
  'btrfs-progs': ['sbin/mkfs.btrfs'],
  dosfstools: ['sbin/mkfs.fat'],
  mdadm: ['sbin/mdadm'],
  lvm2: ['sbin/lvm'],
}
const busybox = 'busybox-static'

/** The image may have so many bytes in all. */
export const imageBytesMax = 80 * 2 ** 20

export interface BuildOptions {
  /** Gets vmlinuz, initrd, disk.efi, and for arm64 a first-stage loader. */
  readonly out: string
  /** Any: nothing of it is run where it is built. */
  readonly arch: Architecture
  readonly kernel: Kernel
  /** Debian's packages of firmware; what the image's modules name of it goes in. apt must know them: most are in non-free-firmware. */
  readonly firmware?: readonly string[]
  /** Packages that were fetched stay there. */
  readonly cache: string
  readonly say: (line: string) => void
}

export interface Built {
  readonly files: readonly { readonly name: string; readonly bytes: number; readonly sha256: string }[]
}

/** Where fetched packages stay, unless somebody says otherwise: in the checkout. */
export const packageCache = fileURLToPath(new URL('../../../.muster/cache/packages', import.meta.url))

/** What goes into an image: fetched packages, by their files. Throws where apt cannot have one. */
export async function packagesOf({
  arch,
  kernel,
  firmware = [],
  cache,
}: Pick<BuildOptions, 'arch' | 'kernel' | 'firmware' | 'cache'>): Promise<string[]> {
  const { kernels, grubs, loader } = ports[arch]
  const files = await fetchPackages([kernels[kernel], busybox, ...grubs, ...Object.keys(programs), ...firmware], { arch, cache })
  return loader === undefined ? files : [...files, ...(await fetchPackages(['ipxe'], { arch, cache, release: loader.release }))]
}

/** Builds. Throws where a package cannot be had, a program is missing, or the image becomes too large; `out` is as it was then. */
export async function buildAgent({ out, arch, kernel, firmware = [], cache, say }: BuildOptions): Promise<Built> {
  const work = await mkdtemp(path.join(tmpdir(), 'muster-agent-'))
  try {
    const [debian, tree] = [path.join(work, 'debian'), path.join(work, 'tree')]
    say('fetching packages')
    const packages = await packagesOf({ arch, kernel, firmware, cache })
    say(`unpacking ${packages.length} packages`)
    await mkdir(debian)
    for (const file of packages) await run('dpkg-deb', ['-x', file, debian])

    const release = await kernelRelease(debian)
    say(`Linux ${release}`)
    await makeTree(tree)
    const port = ports[arch]
    await addPrograms(debian, tree, port)
    await makeSystemLoader(debian, path.join(tree, 'muster/grub'), port)
    const modules = await collectModules({ debian, tree, release, kernel })
    say(`${modules.length} modules`)
    for (const name of firmware) await addFirmware({ name, packages, work, tree, modules, say })
    const initrd = path.join(work, 'initrd')
    await pack(tree, initrd)
    const disk = path.join(work, 'disk.efi')
    await makeDiskLoader(debian, disk, arch)
    const loader = port.loader && { [port.loader.file]: path.join(debian, 'usr/lib/ipxe', port.loader.file) }
    return await place({ vmlinuz: path.join(debian, 'boot', `vmlinuz-${release}`), initrd, 'disk.efi': disk, ...loader }, out)
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

/** What the modules may ask for of one package of firmware. Its licence is the vendor's, and goes with it: who gives the image on gives that on too. */
async function addFirmware(options: {
  name: string
  packages: readonly string[]
  work: string
  tree: string
  modules: readonly string[]
  say: BuildOptions['say']
}): Promise<void> {
  const { name, packages, work, tree, modules, say } = options
  const file = packages.find(each => path.basename(each).startsWith(`${name}_`))
  if (file === undefined) throw new Error(`the package ${name} was not fetched`)
  const folder = path.join(work, name)
  await run('dpkg-deb', ['-x', file, folder])
  const { files, bytes } = await collectFirmware({ folder, tree, modules })
  if (files.length === 0) return say(`${name}: nothing of it, no module in the image asks for any of its files`)
  await mkdir(path.join(tree, 'lib/firmware/licences'), { recursive: true })
  await copyFile(path.join(folder, 'usr/share/doc', name, 'copyright'), path.join(tree, 'lib/firmware/licences', name))
  say(`${name}: ${files.length} files of firmware, ${(bytes / 2 ** 20).toFixed(1)} MiB unpacked`)
}

/**
 * GRUB with a script within: what UEFI machines that boot over the network are given to boot their disk with. `debian` is where GRUB's package is unpacked.
 */
export async function makeDiskLoader(debian: string, out: string, arch: Architecture): Promise<void> {
  const { efi } = ports[arch]
  const modules = [
    'memdisk',
    'tar',
    'normal',
    'part_gpt',
    'part_msdos',
    'fat',
    'search',
    'search_fs_file',
    'chain',
    'boot',
    'echo',
    'test',
    'sleep',
    'minicmd',
    'smbios',
  ]
  // A small disk within the program: what is merely embedded is read by a parser that knows no "for".
  const [folder, memdisk] = [path.join(debian, 'usr/lib/grub', efi.format), `${out}.tar`]
  await run('tar', [
    '--create',
    '--file',
    memdisk,
    '--mtime=@0',
    '--owner=0',
    '--group=0',
    '--numeric-owner',
    '--mode=0644',
    '-C',
    diskLoader,
    'grub.cfg',
  ])
  const words = ['-O', efi.format, '-d', folder, '-o', out, '-m', memdisk, '-p', '(memdisk)/', ...modules]
  await run('grub-mkimage', words, { env: { ...process.env, SOURCE_DATE_EPOCH: '0' } })
}

/** Where a layout's first partition begins (libs/shared/src/storage-plan.ts), in sectors: BIOS finds GRUB's core there. */
const coreSector = 2048
/** As large as that partition. */
const coreBytesMax = 2 ** 20

/**
 * The loaders of systems that come as a tarball, ready to be copied: for BIOS, where there is one, a first sector and a core, for UEFI one program. Both read `muster/grub.cfg`
 * in the EFI system partition of their disk, the second one.
 */
async function makeSystemLoader(debian: string, folder: string, { efi, bios }: Port): Promise<void> {
  const modules = [
    ...['part_gpt', 'fat', 'ext2', 'xfs', 'btrfs', 'lvm', 'mdraid1x', 'search', 'search_fs_uuid', 'search_fs_file', 'search_label'],
    ...[
      'normal',
      'configfile',
      'linux',
      'gzio',
      'xzio',
      'zstd',
      'echo',
      'test',
      'true',
      'regexp',
      'sleep',
      'halt',
      'reboot',
      'loadenv',
      'probe',
    ],
    ...['serial', 'terminal', 'minicmd', 'ls', 'cat', 'help', 'all_video', 'gfxterm', 'font'],
  ]
  const make = async (format: string, out: string, more: readonly string[]) => {
    const words = ['-O', format, '-d', path.join(debian, 'usr/lib/grub', format), '-o', out, '-p', '(,gpt2)/muster', ...modules, ...more]
    await run('grub-mkimage', words, { env: { ...process.env, SOURCE_DATE_EPOCH: '0' } })
  }
  await mkdir(folder, { recursive: true })
  await make(efi.format, path.join(folder, efi.file), ['chain', 'efi_gop'])
  if (bios === undefined) return
  const core = path.join(folder, 'core.img')
  await make(bios, core, ['biosdisk'])
  await placeCore(core, path.join(debian, 'usr/lib/grub', bios, 'boot.img'), path.join(folder, 'boot.img'))
}

/** What grub-bios-setup does: the first sector finds that of the core, and that one the rest (grub: boot.S, diskboot.S). */
async function placeCore(core: string, boot: string, out: string): Promise<void> {
  const image = await readFile(core)
  if (image.length > coreBytesMax) throw new Error(`GRUB's core has ${image.length} bytes, more than ${coreBytesMax}`)
  // The last block list of the first sector: where the rest is, how much of it, and the segment it is loaded to.
  image.writeBigUInt64LE(BigInt(coreSector + 1), 0x1f4)
  image.writeUInt16LE(Math.ceil(image.length / 512) - 1, 0x1fc)
  image.writeUInt16LE(0x820, 0x1fe)
  await writeFile(core, image)
  const first = Buffer.from((await readFile(boot)).subarray(0, 440))
  first.writeBigUInt64LE(BigInt(coreSector), 0x5c)
  // Which drive: the one that the firmware says.
  first.writeUInt8(0xff, 0x64)
  await writeFile(out, first)
}

async function kernelRelease(debian: string): Promise<string> {
  const names = (await readdir(path.join(debian, 'boot'))).filter(name => name.startsWith('vmlinuz-'))
  if (names.length !== 1) throw new Error(`the packages hold ${names.length} kernels, not one`)
  return (names[0] as string).slice('vmlinuz-'.length)
}

/** Folders, the agent's own files, and what they are called by. */
async function makeTree(tree: string): Promise<void> {
  for (const folder of ['bin', 'dev', 'etc', 'lib', 'proc', 'root', 'run', 'sys', 'tmp', 'usr/bin', 'usr/sbin', 'usr/lib', 'var'])
    await mkdir(path.join(tree, folder), { recursive: true })
  await cp(root, tree, { recursive: true })
  await chmod(path.join(tree, 'init'), 0o755)
  await chmod(path.join(tree, 'muster/lease.sh'), 0o755)
  await symlink('/proc/self/mounts', path.join(tree, 'etc/mtab'))
}

async function addPrograms(debian: string, tree: string, port: Port): Promise<void> {
  await copyFile(path.join(debian, 'bin/busybox'), path.join(tree, 'bin/busybox'))
  const own = new Set(
    Object.values(programs)
      .flat()
      .map(name => path.basename(name)),
  )
  for (const applet of (await appletsOf(path.join(debian, 'bin/busybox'))).filter(name => name !== 'busybox' && !own.has(name)))
    await symlink('busybox', path.join(tree, 'bin', applet))
  await symlink('bin', path.join(tree, 'sbin'))
  const files = Object.values(programs).flat()
  for (const file of files) await copyFile(path.join(debian, file), path.join(tree, file))
  await addLibraries({ debian, tree, files, port })
}

/** What the programs name, what that names in turn, and the program that loads it all. */
async function addLibraries(options: { debian: string; tree: string; files: readonly string[]; port: Port }): Promise<void> {
  const { debian, tree, files, port } = options
  await mkdir(path.dirname(path.join(tree, port.ld)), { recursive: true })
  await copyFile(await followed(path.join(debian, port.ld), debian), path.join(tree, port.ld))
  await chmod(path.join(tree, port.ld), 0o755)
  const target = path.join(tree, 'usr/lib', port.libraries)
  await mkdir(target, { recursive: true })
  await symlink(`../usr/lib/${port.libraries}`, path.join(tree, 'lib', port.libraries))
  const found = new Set<string>([path.basename(port.ld)])
  const folders = ['lib', 'usr/lib'].map(name => path.join(debian, name, port.libraries))
  const queue = files.map(file => path.join(debian, file))
  for (let file = queue.pop(); file !== undefined; file = queue.pop())
    for (const name of await librariesOf(file)) {
      if (found.has(name)) continue
      found.add(name)
      const folder = folders.find(folder => existsSync(path.join(folder, name)))
      if (!folder) throw new Error(`${path.relative(debian, file)} needs ${name}, which is in none of the packages`)
      const library = await followed(path.join(folder, name), debian)
      await copyFile(library, path.join(target, name))
      queue.push(library)
    }
}

/** The file behind a chain of links, the absolute ones taken to be within the packages. */
async function followed(file: string, debian: string): Promise<string> {
  const found = await lstat(file)
  if (!found.isSymbolicLink()) return file
  const target = await readlink(file)
  return followed(path.isAbsolute(target) ? path.join(debian, target) : path.resolve(path.dirname(file), target), debian)
}

/** A cpio archive in the kernel's form, its names in order and every file of root's and of the same time, compressed by one thread. */
async function pack(tree: string, target: string): Promise<void> {
  // Links too, which Node has no call for.
  await run('find', [tree, '-exec', 'touch', '--no-dereference', '--date=@0', '{}', '+'])
  const archive = 'find . -mindepth 1 -print0 | LC_ALL=C sort -z | cpio --null --create --format=newc --reproducible --owner=0:0 --quiet'
  await run('bash', ['-o', 'pipefail', '-c', `cd "$1" && ${archive} | zstd -q -9 -o "$2"`, 'bash', tree, target])
}

/** Both files under their names at once, or not at all as far as a file system can: the kernel last, because it is what is asked for first. */
async function place(sources: Readonly<Record<string, string>>, out: string): Promise<Built> {
  const files = await Promise.all(
    Object.entries(sources).map(async ([name, source]) => {
      const content = await readFile(source)
      return { name, source, bytes: content.length, sha256: createHash('sha256').update(content).digest('hex') }
    }),
  )
  const total = files.reduce((sum, { bytes }) => sum + bytes, 0)
  if (total > imageBytesMax) throw new Error(`the image has ${total} bytes, more than ${imageBytesMax}`)
  await mkdir(out, { recursive: true })
  for (const { name, source } of files) await copyFile(source, path.join(out, `.${name}.new`))
  for (const { name } of files.toReversed()) await rename(path.join(out, `.${name}.new`), path.join(out, name))
  await writeFile(path.join(out, 'SHA256SUMS'), files.map(({ name, sha256 }) => `${sha256}  ${name}\n`).join(''))
  return { files: files.map(({ name, bytes, sha256 }) => ({ name, bytes, sha256 })) }
}
