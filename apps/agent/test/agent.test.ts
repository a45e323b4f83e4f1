// The agent's image, built from Debian's packages and booted: a real kernel on a computer made of QEMU, against a partition that checks every word. What
// needs no kernel of its own is in fetch.test.ts, erase.test.ts and scripts.test.ts; enlistment is in the lab's story (apps/rack).
import { execFile, execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { builtInScripts, type JobScript, type ParameterValue, parametersOf, type ScriptHead } from '@muster/shared/scripts'
import { storageLayout } from '@muster/shared/storage'
import { planStorage, storageLine } from '@muster/shared/storage-plan'
import { afterAll, beforeAll, describe, expect, type TestContext, test } from 'vitest'
import { buildAgent, imageBytesMax, packageCache } from '../src/build.ts'
import { imageCache, keptAgent } from '../src/built.ts'
import { missingPrograms } from './needs.ts'
import { startNeighbour } from './neighbour.ts'
import { freePort, networkConfig, startPartition, type TestPartition } from './partition.ts'
import { emptyDisk, type MachineOptions, startMachine, type VirtualMachine } from './virtual-machine.ts'

const run = promisify(execFile)
const root = fileURLToPath(new URL('../root/', import.meta.url))
const tools = [
  'qemu-system-x86_64',
  'cpio',
  'zstd',
  'depmod',
  'apt-get',
  'mkfs.ext4',
  'sfdisk',
  'debugfs',
  'grub-mkimage',
  'ssh',
  'ssh-keygen',
  'mkfs.btrfs',
  '../share/OVMF/OVMF_CODE_4M.fd',
]
const missing = missingPrograms(tools, 'qemu-system-x86 cpio zstd kmod e2fsprogs fdisk grub-common openssh-client btrfs-progs ovmf')
/** Under emulation, on a computer that others use too. */
const bootLimitMs = 360_000

const noShellcheck = missingPrograms(['shellcheck'], 'shellcheck')
test.skipIf(noShellcheck !== undefined)("the agent's shell is sound", async () => {
  const names = readdirSync(path.join(root, 'muster'), { recursive: true, encoding: 'utf8' })
  const files = ['init', ...names.filter(name => name.endsWith('.sh')).map(name => `muster/${name}`)]
  // Variables go from file to file, and udhcpc gives some.
  const args = ['--shell=sh', '--severity=warning', '--exclude=SC2034,SC2154', ...files]
  const { stdout } = await run('shellcheck', args, { cwd: root }).catch((error: { stdout: string }) => error)
  expect(stdout).toBe('')
})

/** An empty file with an owner and an extended attribute, as a tar archive says it (POSIX pax, and star's keyword for attributes). */
function markedFile(name: string, { owner, attribute, value }: { owner: number; attribute: string; value: string }): Buffer {
  const text = `SCHILY.xattr.${attribute}=${value}\n`
  // The length counts itself: two digits and a space.
  const record = Buffer.from(`${text.length + 3} ${text}`)
  const header = (type: string, size: number) => {
    const block = Buffer.alloc(512)
    const octal = (number: number, digits: number) => `${number.toString(8).padStart(digits, '0')}\0`
    block.write(
      `${name.padEnd(100, '\0')}${octal(0o644, 7)}${octal(owner, 7)}${octal(owner, 7)}${octal(size, 11)}${octal(0, 11)}${' '.repeat(8)}${type}`,
    )
    block.write('ustar\x0000', 257)
    block.write(
      `${octal(
        block.reduce((sum, byte) => sum + byte, 0),
        6,
      )} `,
      148,
    )
    return block
  }
  return Buffer.concat([header('x', record.length), record, Buffer.alloc(512 - record.length), header('0', 0)])
}

describe.skipIf(missing !== undefined)('the agent', () => {
  let folder: string
  let image: { folder: string; kernel: string; initrd: string }

  beforeAll(async () => {
    folder = mkdtempSync(path.join(tmpdir(), 'muster-agent-test-'))
    // Where the lab looks too: in CI packages are fetched once, and the image is built once.
    const built = await keptAgent({ arch: 'amd64', kernel: 'cloud', images: imageCache, cache: packageCache, say: () => undefined })
    image = { folder: built, kernel: path.join(built, 'vmlinuz'), initrd: path.join(built, 'initrd') }
  }, 1_000_000)
  afterAll(() => {
    if (folder) rmSync(folder, { recursive: true, force: true })
  })

  /** What one attempt of a test needs. All of it ends with the attempt: the next one finds no file, and no machine that still has its disks. */
  async function stage({ onTestFinished }: Pick<TestContext, 'onTestFinished'>) {
    const own = mkdtempSync(path.join(folder, 'attempt-'))
    const partition = await startPartition()
    const machines: VirtualMachine[] = []
    onTestFinished(async () => {
      for (const machine of machines) await machine.kill()
      await partition[Symbol.asyncDispose]()
      rmSync(own, { recursive: true, force: true })
    })
    const start = (options: Omit<MachineOptions, 'folder'>): VirtualMachine => {
      const machine = startMachine({ folder: own, ...options })
      machines.push(machine)
      return machine
    }
    return {
      folder: own,
      partition,
      start,
      boot: (mode: string, { words = [], ...more }: Omit<MachineOptions, 'folder' | 'system'> & { words?: readonly string[] } = {}) => {
        const args = [...words, `muster.url=${partition.url}`, `muster.mode=${mode}`, `muster.token=${partition.token}`]
        return start({ system: { kernel: image.kernel, initrd: image.initrd, args }, ...more })
      },
      disk: (name: string, bytes?: number) => disk(own, name, bytes),
    }
  }

  const disk = (own: string, name: string, bytes = 256 * 2 ** 20) => emptyDisk(path.join(own, name), bytes)
  const virtio = (file: string) => [{ file, as: 'virtio' as const, serial: 'DISK-1' }]
  // Each heartbeat costs an emulated processor a second.
  const common = { machine: 'p1-abcdef', heartbeatMs: 4_000 }
  const digestOf = (file: string) => createHash('sha256').update(readFileSync(file)).digest('hex')

  /** A small system: a partition table and a file system with /etc, packed. */
  async function makeImage(own: string): Promise<string> {
    const tree = path.join(own, 'image-tree')
    mkdirSync(path.join(tree, 'etc/cloud/cloud.cfg.d'), { recursive: true })
    mkdirSync(path.join(tree, 'var/lib/cloud/instance'), { recursive: true })
    writeFileSync(path.join(tree, 'etc/os-release'), 'ID=test\n')
    writeFileSync(path.join(tree, 'etc/filler'), Buffer.alloc(4 * 2 ** 20, 'some of it '))
    const [raw, system] = [disk(own, 'image.img', 64 * 2 ** 20), disk(own, 'image.btrfs', 60 * 2 ** 20)]
    await run('mkfs.btrfs', ['--quiet', '--mixed', '--rootdir', tree, system])
    execFileSync('sfdisk', ['--quiet', raw], { input: 'label: gpt\nstart=2048, size=122880\n' })
    const target = openSync(raw, 'r+')
    writeSync(target, readFileSync(system), 0, undefined, 2048 * 512)
    closeSync(target)
    await run('zstd', ['-q', '-f', raw, '-o', `${raw}.zst`])
    return `${raw}.zst`
  }

  const builtIn = (name: string, given: Record<string, ParameterValue> = {}): JobScript => {
    const head = builtInScripts[name] as ScriptHead
    const { values: parameters } = parametersOf(head, given)
    return { name, kind: head.kind, on: head.on, timeoutSeconds: 120, parameters, only: head.only, text: null }
  }

  const sizeBytes = 1_200 * 2 ** 20
  const mirrored = {
    kind: 'custom',
    disks: {
      a: { choose: { serial: 'DISK-0' }, bootable: true, partitions: [{ name: 'roota' }, { name: 'swap', sizeMib: 16 }] },
      b: { choose: { serial: 'DISK-1' }, bootable: true, partitions: [{ name: 'rootb', sizeMib: 560 }, { name: 'data' }] },
    },
    raids: { root: { members: ['roota', 'rootb'] } },
    groups: { vault: { members: ['data'], volumes: [{ name: 'srv' }] } },
    fileSystems: [
      { on: 'root', type: 'ext4', mount: '/' },
      { on: 'srv', type: 'xfs', mount: '/srv', options: 'noatime' },
      { on: 'swap', type: 'swap' },
    ],
  }

  /** A system that only says with what it was booted: the agent's kernel, and a memory image of busybox and one script. */
  async function makeTarball(own: string): Promise<string> {
    const [tree, memory] = [path.join(own, 'tree'), path.join(own, 'memory')]
    for (const each of ['etc', 'boot', 'sbin', 'srv']) mkdirSync(path.join(tree, each), { recursive: true })
    for (const each of ['bin', 'proc', 'dev']) mkdirSync(path.join(memory, each), { recursive: true })
    copyFileSync('/bin/busybox', path.join(memory, 'bin/busybox'))
    writeFileSync(
      path.join(memory, 'init'),
      '#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\nread -r line </proc/cmdline\necho "the system boots with $line"\n/bin/busybox poweroff -f\n',
      { mode: 0o755 },
    )
    const archive = 'find . | cpio --quiet --create --format=newc --owner=0:0 >"$1"'
    await run('sh', ['-c', archive, 'sh', path.join(tree, 'boot/initrd.img-6.1-test')], { cwd: memory })
    copyFileSync(image.kernel, path.join(tree, 'boot/vmlinuz-6.1-test'))
    for (const tool of ['mdadm', 'lvm']) writeFileSync(path.join(tree, 'sbin', tool), '#!/bin/sh\n', { mode: 0o755 })
    const [plain, tarball] = [path.join(own, 'plain'), path.join(own, 'tarball.tar')]
    await run('tar', ['--create', '--file', plain, '--owner=0', '--group=0', '.'], { cwd: tree })
    // What a user of this host may not make, or this host's disk not keep: said in the archive alone.
    writeFileSync(
      tarball,
      Buffer.concat([markedFile('etc/marked', { owner: 1234, attribute: 'user.muster', value: 'kept' }), readFileSync(plain)]),
    )
    await run('zstd', ['-q', '-f', '-1', tarball])
    return `${tarball}.zst`
  }

  const installJob = (partition: TestPartition, file: string) => {
    partition.imageFile = file
    return {
      kind: 'install' as const,
      ...common,
      hostname: 'web1',
      os: 'test/1',
      image: { url: `${partition.url}/image`, sha256: digestOf(file), sizeBytes: statSync(file).size, form: 'disk' as 'disk' | 'tar' },
      seedUrl: `${partition.url}/seed/`,
      dataSource: 'nocloud' as const,
    }
  }

  test.concurrent('two builds of the same give the same bytes, and not too many', async ({ expect }) => {
    const { files } = await buildAgent({
      out: path.join(folder, 'again'),
      arch: 'amd64',
      kernel: 'cloud',
      cache: packageCache,
      say: () => undefined,
    })
    expect(files.map(({ name, sha256 }) => `${sha256}  ${name}\n`).join('')).toBe(
      readFileSync(path.join(image.folder, 'SHA256SUMS'), 'utf8'),
    )
    expect(files.reduce((sum, { bytes }) => sum + bytes, 0)).toBeLessThan(imageBytesMax)
  }, 600_000)

  test.concurrent(
    'commissions: sends the inventory of all its hardware with the switch that it heard, runs scripts and tells of each, is heard on the way, and says that it is done',
    async ({ expect, onTestFinished }) => {
      const { partition, boot, disk } = await stage({ onTestFinished })
      const ownText = '#!/bin/sh\necho "{\\"kernel\\": \\"$(uname -s)\\"}" >"$RESULT"\necho "of $vendor"\n'
      const own = { name: 'own', kind: 'commissioning' as const, on: 'machine' as const, timeoutSeconds: 60 }
      partition.job = {
        kind: 'commission',
        ...common,
        scripts: [
          { ...own, parameters: { vendor: 'ours' }, only: { vendor: 'muster' }, text: ownText },
          { ...own, name: 'endless', timeoutSeconds: 2, parameters: {}, only: {}, text: 'yes' },
          builtIn('cpu', { seconds: 1 }),
          builtIn('memory', { limitMib: 8 }),
          builtIn('disk-health'),
          builtIn('disk-speed', { sizeMib: 8 }),
          builtIn('network', { requests: 3 }),
        ],
      }
      // A partition that starts just now.
      partition.busy = 2
      const disks = [
        { file: disk('commission-scsi'), as: 'scsi' as const, serial: 'SCSI-8' },
        { file: disk('commission-nvme'), as: 'nvme' as const, serial: 'NVME-7' },
      ]
      const neighbour = await startNeighbour()
      const machine = boot('commission', { disks, wire: neighbour.wire, cpus: 2 })
      await machine.ended(bootLimitMs * 2).finally(neighbour.stop)
      expect(partition.complaints, machine.console()).toEqual([])
      expect(partition.inventories).toMatchObject([
        {
          arch: 'amd64',
          cpus: 2,
          memoryMib: 768,
          interfaces: expect.arrayContaining([expect.objectContaining({ mac: '52:54:00:00:00:01' })]),
          disks: [
            { name: 'nvme0n1', serial: 'NVME-7', kind: 'nvme', sizeBytes: 256 * 2 ** 20 },
            { name: 'sda', serial: 'SCSI-8', sizeBytes: 256 * 2 ** 20 },
          ],
          facts: {
            dmi: { systemVendor: 'Muster', product: 'Lab', serial: 'LAB-0042' },
            firmware: { type: 'bios' },
            dimms: [{ sizeMib: 768, manufacturer: 'Maker' }],
          },
        },
      ])
      expect(JSON.stringify(partition.inventories[0]?.facts.disks)).toContain('"wearPercent":0')
      expect(
        partition.results.filter(({ script }) => script !== 'network').map(({ script, part, status }) => [script, part, status]),
        machine.console(),
      ).toEqual([
        ['own', '', 'passed'],
        ['endless', '', 'timed-out'],
        ['cpu', '', 'passed'],
        ['memory', '', 'passed'],
        ['disk-health', 'nvme0n1', 'passed'],
        // QEMU's SCSI disk has no page of its own health (SPC-4, informational exceptions).
        ['disk-health', 'sda', 'skipped'],
        ['disk-speed', 'nvme0n1', 'passed'],
        ['disk-speed', 'sda', 'passed'],
      ])
      const found = (name: string) => partition.results.find(({ script }) => script === name)
      expect(found('own')).toMatchObject({ message: 'of ours', result: { kernel: 'Linux' } })
      expect(found('endless')?.output.length).toBe(65_536)
      expect(found('cpu')?.result).toMatchObject({ cpus: 2, wrong: 0 })
      expect(found('memory')?.result).toMatchObject({ testedMib: 8, patterns: 5, wrong: 0 })
      expect(found('disk-health')?.result).toMatchObject({ healthy: true, wearPercent: 0 })
      expect(found('disk-speed')?.result).toMatchObject({ readMib: 8 })
      // The port on the wire of the switch leads to nobody else.
      const network = partition.results.filter(({ script }) => script === 'network')
      expect(network.map(({ status }) => status).sort(), machine.console()).toEqual(['passed', 'skipped'])
      expect(network.find(({ status }) => status === 'passed')?.result).toMatchObject({ reached: true, lossPercent: 0 })
      expect(partition.inventories[0]?.facts.lldp, machine.console()).toEqual([
        {
          port: expect.stringMatching(/^eth\d$/),
          chassis: '00:11:22:33:44:55',
          portId: 'Ethernet1/7',
          portDescription: 'to "rack 7"',
          system: 'sw-01.lon1',
          vlan: '42',
        },
      ])
      expect(partition.signals.at(-1)).toMatchObject({ status: 'done', step: 'commission' })
      expect(partition.signals.some(({ status, step }) => status === 'working' && step === 'inventory')).toBe(true)
      expect(partition.signals.some(({ message, progress = 0 }) => message.startsWith('test script ') && progress > 20)).toBe(true)
    },
    bootLimitMs * 3,
  )

  test.concurrent(
    'installs: the image is on the disk byte for byte, with the seed of its first boot, and the machine restarts',
    async ({ expect, onTestFinished }) => {
      const { folder, partition, boot, disk } = await stage({ onTestFinished })
      const file = await makeImage(folder)
      partition.job = installJob(partition, file)
      const target = disk('install')
      const machine = boot('install', { disks: virtio(target) })
      await machine.ended(bootLimitMs)
      expect(partition.complaints, machine.console()).toEqual([])
      expect(partition.signals.at(-1), machine.console().slice(-2_000)).toMatchObject({ status: 'done', step: 'install', progress: 100 })
      const [system, tree] = [path.join(folder, 'installed.btrfs'), path.join(folder, 'installed')]
      writeFileSync(system, readFileSync(target).subarray(2048 * 512))
      mkdirSync(tree)
      execFileSync('btrfs', ['restore', system, tree], { stdio: 'ignore' })
      const content = (name: string) => readFileSync(path.join(tree, name), 'utf8')
      expect(content('/etc/filler')).toBe(Buffer.alloc(4 * 2 ** 20, 'some of it ').toString())
      // Word for word: cloud-init's ds-identify knows the list by its line only.
      expect(content('/etc/cloud/cloud.cfg.d/90-muster.cfg')).toBe(
        `datasource_list: [NoCloud, None]\ndatasource: {"NoCloud":{"seedfrom":"${partition.url}/seed/"}}\n`,
      )
      expect(content('/etc/cloud/cloud.cfg.d/91-muster-network.cfg')).toBe(`network:\n${networkConfig.replace(/^(?=.)/gm, '  ')}`)
      expect(content('/etc/hostname')).toBe('web1\n')
      // What an earlier first boot had left in the image is gone.
      expect(existsSync(path.join(tree, 'var/lib/cloud/instance'))).toBe(false)
      // The partition table is the image's.
      execFileSync('zstd', ['-dqf', file, '-o', `${target}.raw`])
      expect(readFileSync(target).subarray(0, 1024)).toEqual(readFileSync(`${target}.raw`).subarray(0, 1024))
    },
    bootLimitMs * 2,
  )

  test.concurrent(
    'a root tarball gets the disks of its layout, though the power goes in the middle, and boots from them under BIOS and UEFI',
    async ({ expect, onTestFinished }) => {
      const { folder, partition, start, boot, disk } = await stage({ onTestFinished })
      const facts = ['vda', 'vdb'].map((name, index) => ({ name, serial: `DISK-${index}`, model: '', sizeBytes, kind: 'ssd' as const }))
      const plan = planStorage(storageLayout.parse(mirrored), facts)
      if (plan.kind === 'unfit') throw new Error(JSON.stringify(plan.problems))
      const file = await makeTarball(folder)
      const job = installJob(partition, file)
      partition.job = { ...job, image: { ...job.image, form: 'tar' }, storage: plan.steps.map(storageLine) }
      const files = facts.map(({ name }) => disk(`layout-${name}`, sizeBytes))
      const disks = files.map((each, index) => ({ file: each, as: 'virtio' as const, serial: `DISK-${index}` }))
      const first = boot('install', { disks })
      // By its own words: a heartbeat may come before and after, and not in between.
      const isMade = () => first.console().includes('writing test/1 to')
      for (const end = Date.now() + bootLimitMs; !isMade(); await new Promise(resolve => setTimeout(resolve, 100)))
        if (Date.now() > end || partition.signals.at(-1)?.status === 'failed') throw new Error(first.console().slice(-2_000))
      await first.kill()
      // Its disks are where they were not before.
      const machine = boot('install', { disks: disks.toReversed() })
      await machine.ended(bootLimitMs)
      expect(partition.complaints, machine.console()).toEqual([])
      expect(partition.signals.at(-1), machine.console().slice(-2_000)).toMatchObject({
        status: 'done',
        message: 'test/1 written to vdb vda',
      })

      // Both halves of the mirror hold all of it: a file system behind what mdadm keeps for itself.
      const parts = plan.steps.filter(step => step.do === 'partition').filter(({ use }) => use === 'raid')
      const halves = parts.map(({ startMib }, index) => `${files[index]}?offset=${(startMib + 1) * 2 ** 20}`)
      const ask = (half: string | undefined, words: string) =>
        execFileSync('debugfs', ['-R', words, half as string], { stdio: ['ignore', 'pipe', 'ignore'] }).toString()
      // And neither is called equal to the other yet: the installed system does that (md.4; superblock 1.2: resync_offset, all ones where all is).
      for (const [index, { startMib }] of parts.entries()) {
        const offset = readFileSync(files[index] as string).readBigUInt64LE(startMib * 2 ** 20 + 4096 + 0xd0)
        expect(offset).toBeLessThan((560n * 2048n) / 2n)
      }
      for (const half of halves) {
        expect(ask(half, 'cat /etc/hostname')).toBe('web1\n')
        expect(ask(half, 'cat /etc/cloud/cloud.cfg.d/90-muster.cfg')).toContain('NoCloud')
        expect(ask(half, 'cat /etc/fstab').replaceAll(/UUID=[0-9a-fA-F-]+ /g, 'UUID ')).toBe(
          [
            '# Written by Muster, from the layout of its disks.',
            'UUID / ext4 defaults 0 1',
            'UUID /srv xfs noatime 0 0',
            'UUID /boot/efi vfat umask=0077,nofail 0 2',
            'UUID none swap sw 0 0',
            '',
          ].join('\n'),
        )
        expect(ask(half, 'cat /etc/mdadm/mdadm.conf')).toMatch(
          /^HOMEHOST <system>\nARRAY \/dev\/md1 metadata=1\.2 name=web1:root UUID=\S+\n$/,
        )
        expect(ask(half, 'ea_get /etc/marked user.muster')).toContain('kept')
        expect(ask(half, 'stat /etc/marked')).toMatch(/User:\s+1234 /)
      }
      for (const firmware of [undefined, 'uefi' as const]) {
        const installed = start({ disks, ...(firmware && { firmware }) })
        await installed.ended(bootLimitMs)
        expect(installed.console().slice(-2_000)).toMatch(
          /the system boots with BOOT_IMAGE=\/boot\/vmlinuz-6\.1-test root=UUID=\S{36} ro console=ttyS0/,
        )
      }
    },
    bootLimitMs * 5,
  )

  test.concurrent(
    'erases: a disk that erases itself and one that is overwritten hold nothing of their owner, and each is told of',
    async ({ expect, onTestFinished }) => {
      const { partition, boot, disk } = await stage({ onTestFinished })
      partition.job = { kind: 'erase', ...common, method: 'full' }
      const [first, second] = [disk('erase-1', 48 * 2 ** 20), disk('erase-2', 40 * 2 ** 20 + 512)]
      for (const file of [first, second]) writeFileSync(file, Buffer.alloc(statSync(file).size, 'precious '))
      const disks = [
        { file: first, as: 'virtio' as const, serial: 'DISK-1' },
        { file: second, as: 'nvme' as const, serial: 'DISK-2' },
      ]
      const machine = boot('erase', { disks })
      await machine.ended(bootLimitMs)
      expect(partition.complaints, machine.console().slice(-2_000)).toEqual([])
      expect(partition.signals.at(-1), machine.console().slice(-2_000)).toMatchObject({ status: 'done', step: 'erase' })
      const told = partition.erasures.map(({ serial, outcome, samples }) => [serial, outcome, samples])
      expect(told.sort()).toEqual([
        ['DISK-1', 'overwritten', 64],
        // What QEMU can of it; it never forgets the key.
        ['DISK-2', 'formatted', 64],
      ])
      for (const file of [first, second])
        expect(
          readFileSync(file).every(byte => byte === 0),
          file,
        ).toBe(true)
    },
    bootLimitMs * 2,
  )

  test.concurrent(
    'is a rescue system: whose key was named logs in as root, and nobody else; it switches itself off when it hears that its run is over',
    async ({ expect, onTestFinished }) => {
      const { folder, partition, boot, disk } = await stage({ onTestFinished })
      const keys = ['mine', 'other'].map(name => path.join(folder, `rescue-${name}`))
      for (const key of keys) await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', key])
      partition.job = { kind: 'rescue', ...common, sshKeys: [readFileSync(`${keys[0]}.pub`, 'utf8').trim()] }
      const sshPort = await freePort()
      // The console that counts for the kernel is one behind which there is nothing.
      const machine = boot('rescue', { disks: virtio(disk('rescue')), sshPort, words: ['console=ttyS1'] })
      const told = () => partition.signals.find(({ message }) => message.includes('ssh root@'))?.message
      for (const end = Date.now() + bootLimitMs; told() === undefined; ) {
        if (Date.now() > end) throw new Error(machine.console().slice(-2_000))
        await new Promise(resolve => setTimeout(resolve, 500))
      }
      expect(told()).toMatch(/^waiting for you: ssh root@10\.0\.2\.15, host key SHA256:\S{43}$/)
      const known = path.join(folder, 'rescue-known')
      const login = (key: string) =>
        run('ssh', [
          ...[
            '-i',
            key,
            '-p',
            String(sshPort),
            '-o',
            'BatchMode=yes',
            '-o',
            'IdentitiesOnly=yes',
            '-o',
            'StrictHostKeyChecking=accept-new',
          ],
          ...[
            '-o',
            `UserKnownHostsFile=${known}`,
            'root@127.0.0.1',
            'id -u; cat /sys/block/vda/serial; pidof udhcpc >/dev/null && echo renews',
          ],
        ])
      expect((await login(keys[0] as string)).stdout).toBe('0\nDISK-1renews\n')
      await expect(login(keys[1] as string)).rejects.toThrow('Permission denied')
      const { stdout } = await run('ssh-keygen', ['-lf', known])
      expect(stdout).toContain(/SHA256:\S+/.exec(told() as string)?.[0])
      // Its run is over: the partition does not know its token any more.
      partition.token = 'of the next run'
      await machine.ended(bootLimitMs)
      expect(machine.console()).toMatch(/muster: this is the rescue system[\s\S]*\n[~/] # [\s\S]*this job is over/)
    },
    bootLimitMs * 2,
  )
})
