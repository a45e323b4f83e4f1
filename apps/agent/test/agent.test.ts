// The agent's image, built from Debian's packages and booted: a real kernel on a computer made of QEMU, against a partition that checks every word.
import { execFile, execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { builtInScripts, type JobScript, type ParameterValue, parametersOf, type ScriptHead } from '@muster/shared/scripts'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { buildAgent, imageBytesMax } from '../src/build.ts'
import { missingPrograms } from './needs.ts'
import { networkConfig, startPartition, type TestPartition } from './partition.ts'
import { emptyDisk, startMachine, type VirtualMachine } from './virtual-machine.ts'

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
]
const missing = missingPrograms(tools, 'qemu-system-x86 cpio zstd kmod e2fsprogs fdisk grub-common openssh-client')
/** Under emulation, on a computer that others use too. */
const bootLimitMs = 240_000

const noShellcheck = missingPrograms(['shellcheck'], 'shellcheck')
test.skipIf(noShellcheck !== undefined)("the agent's shell is sound", async () => {
  const files = [
    'init',
    ...['boot', 'erase', 'fetch', 'http', 'install', 'inventory', 'lease', 'say', 'scripts', 'work'].map(name => `muster/${name}.sh`),
    ...Object.keys(builtInScripts).map(name => `muster/scripts/${name}.sh`),
  ]
  // Variables go from file to file, and udhcpc gives some.
  const args = ['--shell=sh', '--severity=warning', '--exclude=SC2034,SC2154', ...files]
  const { stdout } = await run('shellcheck', args, { cwd: root }).catch((error: { stdout: string }) => error)
  expect(stdout).toBe('')
})

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  await new Promise(resolve => server.close(resolve))
  return port
}

describe.skipIf(missing !== undefined)('the agent', () => {
  let folder: string
  let image: { kernel: string; initrd: string }
  const machines: VirtualMachine[] = []
  const partitions: TestPartition[] = []

  beforeAll(async () => {
    folder = mkdtempSync(path.join(tmpdir(), 'muster-agent-test-'))
    const cache = path.join(folder, 'packages')
    const say = () => undefined
    const [first, second] = [path.join(folder, 'first'), path.join(folder, 'second')]
    const built = await buildAgent({ out: first, kernel: 'cloud', cache, say })
    const again = await buildAgent({ out: second, kernel: 'cloud', cache, say })
    expect(again.files, 'two builds of the same give the same bytes').toEqual(built.files)
    expect(built.files.reduce((sum, { bytes }) => sum + bytes, 0)).toBeLessThan(imageBytesMax)
    image = { kernel: path.join(first, 'vmlinuz'), initrd: path.join(first, 'initrd') }
  }, 600_000)
  afterAll(async () => {
    for (const machine of machines) await machine.kill()
    for (const partition of partitions) await partition[Symbol.asyncDispose]()
    if (folder) rmSync(folder, { recursive: true, force: true })
  })

  async function partitionFor(): Promise<TestPartition> {
    const partition = await startPartition()
    partitions.push(partition)
    return partition
  }

  function boot(partition: TestPartition, mode: string, more: Partial<Parameters<typeof startMachine>[0]> = {}): VirtualMachine {
    const token = mode === 'enlist' ? [] : [`muster.token=${partition.token}`]
    const machine = startMachine({ folder, ...image, args: [`muster.url=${partition.url}`, `muster.mode=${mode}`, ...token], ...more })
    machines.push(machine)
    return machine
  }

  const disk = (name: string, bytes = 256 * 2 ** 20) => emptyDisk(path.join(folder, name), bytes)
  const virtio = (file: string) => [{ file, as: 'virtio' as const, serial: 'DISK-1' }]
  const common = { machine: 'p1-abcdef', heartbeatMs: 1_000 }
  const digestOf = (file: string) => createHash('sha256').update(readFileSync(file)).digest('hex')

  /** A small system: a partition table and a file system with /etc, packed. */
  async function makeImage(name: string): Promise<string> {
    const tree = path.join(folder, `${name}-tree`)
    mkdirSync(path.join(tree, 'etc/cloud/cloud.cfg.d'), { recursive: true })
    mkdirSync(path.join(tree, 'var/lib/cloud/instance'), { recursive: true })
    writeFileSync(path.join(tree, 'etc/os-release'), 'ID=test\n')
    writeFileSync(path.join(tree, 'etc/filler'), Buffer.alloc(4 * 2 ** 20, 'some of it '))
    const [raw, system] = [disk(`${name}.img`, 64 * 2 ** 20), disk(`${name}.ext4`, 60 * 2 ** 20)]
    await run('mkfs.ext4', ['-q', '-F', '-d', tree, system])
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

  const installJob = (partition: TestPartition, file: string, sha256 = digestOf(file)) => {
    partition.imageFile = file
    return {
      kind: 'install' as const,
      ...common,
      hostname: 'web1',
      os: 'test/1',
      image: { url: `${partition.url}/image`, sha256, sizeBytes: statSync(file).size },
      seedUrl: `${partition.url}/seed/`,
      dataSource: 'nocloud' as const,
    }
  }

  test.concurrent(
    'announces a machine that nobody knows, with all its hardware, and switches it off',
    async ({ expect }) => {
      const partition = await partitionFor()
      // A partition that starts just now.
      partition.busy = 2
      const disks = [
        { file: disk('enlist-nvme'), as: 'nvme' as const, serial: 'NVME-7' },
        { file: disk('enlist-scsi'), as: 'scsi' as const, serial: 'SCSI-8' },
      ]
      const machine = boot(partition, 'enlist', { disks })
      await machine.ended(bootLimitMs)
      expect(partition.complaints, machine.console()).toEqual([])
      const [found] = partition.enlisted
      expect(found).toMatchObject({
        arch: 'amd64',
        cpus: 2,
        memoryMib: 768,
        hostname: 'lab-0042',
        interfaces: [{ mac: '52:54:00:00:00:01' }],
        facts: {
          dmi: { systemVendor: 'Muster', product: 'Lab', serial: 'LAB-0042' },
          firmware: { type: 'bios' },
          dimms: [{ sizeMib: 768, manufacturer: 'Maker' }],
        },
      })
      expect(found?.disks).toMatchObject([
        { name: 'nvme0n1', serial: 'NVME-7', kind: 'nvme', sizeBytes: 256 * 2 ** 20 },
        { name: 'sda', serial: 'SCSI-8', sizeBytes: 256 * 2 ** 20 },
      ])
      expect(JSON.stringify(found?.facts.disks)).toContain('"wearPercent":0')
      expect(machine.console()).toContain('enlisted as p1-abcdef (created): off')
    },
    bootLimitMs * 2,
  )

  test.concurrent(
    'commissions: sends the inventory with its token, runs scripts and tells of each, is heard on the way, and says that it is done',
    async ({ expect }) => {
      const partition = await partitionFor()
      const ownText = '#!/bin/sh\necho "{\\"kernel\\": \\"$(uname -s)\\"}" >"$RESULT"\necho "of $vendor"\n'
      const own = { name: 'own', kind: 'commissioning' as const, on: 'machine' as const, timeoutSeconds: 60 }
      partition.job = {
        kind: 'commission',
        ...common,
        // Each heartbeat costs an emulated processor a second.
        heartbeatMs: 4_000,
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
      const disks = [...virtio(disk('commission')), { file: disk('commission-nvme'), as: 'nvme' as const, serial: 'NVME-1' }]
      const machine = boot(partition, 'commission', { disks })
      await machine.ended(bootLimitMs * 2)
      expect(partition.complaints, machine.console()).toEqual([])
      expect(partition.inventories).toMatchObject([{ disks: [{ serial: 'NVME-1' }, { name: 'vda', serial: 'DISK-1' }] }])
      expect(
        partition.results.map(({ script, part, status }) => [script, part, status]),
        machine.console(),
      ).toEqual([
        ['own', '', 'passed'],
        ['endless', '', 'timed-out'],
        ['cpu', '', 'passed'],
        ['memory', '', 'passed'],
        ['disk-health', 'nvme0n1', 'passed'],
        ['disk-health', 'vda', 'skipped'],
        ['disk-speed', 'nvme0n1', 'passed'],
        ['disk-speed', 'vda', 'passed'],
        ['network', 'eth0', 'passed'],
      ])
      const found = (name: string) => partition.results.find(({ script }) => script === name)
      expect(found('own')).toMatchObject({ message: 'of ours', result: { kernel: 'Linux' } })
      expect(found('endless')?.output.length).toBe(65_536)
      expect(found('cpu')?.result).toMatchObject({ cpus: 2, wrong: 0 })
      expect(found('memory')?.result).toMatchObject({ testedMib: 8, patterns: 5, wrong: 0 })
      expect(found('disk-health')?.result).toMatchObject({ healthy: true, wearPercent: 0 })
      expect(found('disk-speed')?.result).toMatchObject({ readMib: 8 })
      expect(found('network')?.result).toMatchObject({ reached: true, lossPercent: 0 })
      expect(partition.signals.at(-1)).toMatchObject({ status: 'done', step: 'commission' })
      expect(partition.signals.some(({ status, step }) => status === 'working' && step === 'inventory')).toBe(true)
      expect(partition.signals.some(({ message, progress = 0 }) => message.startsWith('test script ') && progress > 20)).toBe(true)
    },
    bootLimitMs * 3,
  )

  test.concurrent(
    'installs: the image is on the disk byte for byte, with the seed of its first boot, and the machine restarts',
    async ({ expect }) => {
      const partition = await partitionFor()
      const file = await makeImage('good')
      partition.job = installJob(partition, file)
      const target = disk('install')
      const machine = boot(partition, 'install', { disks: virtio(target) })
      await machine.ended(bootLimitMs)
      expect(partition.complaints, machine.console()).toEqual([])
      expect(partition.signals.at(-1), machine.console().slice(-2_000)).toMatchObject({ status: 'done', step: 'install', progress: 100 })
      const content = (name: string) =>
        execFileSync('debugfs', ['-R', `cat ${name}`, `${target}?offset=${2048 * 512}`], {
          stdio: ['ignore', 'pipe', 'ignore'],
          maxBuffer: 16 * 2 ** 20,
        }).toString()
      expect(content('/etc/filler')).toBe(Buffer.alloc(4 * 2 ** 20, 'some of it ').toString())
      // Word for word: cloud-init's ds-identify knows the list by its line only.
      expect(content('/etc/cloud/cloud.cfg.d/90-muster.cfg')).toBe(
        `datasource_list: [NoCloud, None]\ndatasource: {"NoCloud":{"seedfrom":"${partition.url}/seed/"}}\n`,
      )
      expect(content('/etc/cloud/cloud.cfg.d/91-muster-network.cfg')).toBe(`network:\n${networkConfig.replace(/^(?=.)/gm, '  ')}`)
      expect(content('/etc/hostname')).toBe('web1\n')
      // What an earlier first boot had left in the image is gone.
      expect(content('/var/lib/cloud/instance')).toBe('')
      // The partition table is the image's.
      execFileSync('zstd', ['-dqf', file, '-o', `${target}.raw`])
      expect(readFileSync(target).subarray(0, 1024)).toEqual(readFileSync(`${target}.raw`).subarray(0, 1024))
      expect(existsSync(target)).toBe(true)
    },
    bootLimitMs * 2,
  )

  test.concurrent(
    'a wrong digest is told with both digests, and the disk is not touched',
    async ({ expect }) => {
      const partition = await partitionFor()
      partition.job = installJob(partition, await makeImage('bad'), 'f'.repeat(64))
      const target = disk('wrong-digest', 2 ** 20)
      writeFileSync(target, Buffer.alloc(2 ** 20, 'precious'))
      const machine = boot(partition, 'install', { disks: virtio(target) })
      await machine.ended(bootLimitMs)
      const last = partition.signals.at(-1)
      expect(last).toMatchObject({ status: 'failed', step: 'download', message: expect.stringContaining(`not ${'f'.repeat(64)}`) })
      expect(last?.message).toContain(digestOf(partition.imageFile as string))
      expect(readFileSync(target).equals(Buffer.alloc(2 ** 20, 'precious'))).toBe(true)
    },
    bootLimitMs * 2,
  )

  test.concurrent(
    'a disk that is too small is told with both sizes',
    async ({ expect }) => {
      const partition = await partitionFor()
      partition.job = installJob(partition, await makeImage('large'))
      const machine = boot(partition, 'install', { disks: virtio(disk('small', 8 * 2 ** 20)) })
      await machine.ended(bootLimitMs)
      expect(partition.signals.at(-1)).toMatchObject({
        status: 'failed',
        step: 'write',
        message: `the image has ${64 * 2 ** 20} bytes, /dev/vda only ${8 * 2 ** 20}`,
      })
    },
    bootLimitMs * 2,
  )

  test.concurrent(
    'erases: a disk that can discard and one that is overwritten hold nothing of their owner, and each is told of',
    async ({ expect }) => {
      const partition = await partitionFor()
      partition.job = { kind: 'erase', ...common, method: 'full' }
      const [first, second] = [disk('erase-1', 48 * 2 ** 20), disk('erase-2', 40 * 2 ** 20 + 512)]
      for (const file of [first, second]) writeFileSync(file, Buffer.alloc(statSync(file).size, 'precious '))
      const disks = [
        { file: first, as: 'virtio' as const, serial: 'DISK-1' },
        { file: second, as: 'nvme' as const, serial: 'DISK-2' },
      ]
      const machine = boot(partition, 'erase', { disks })
      await machine.ended(bootLimitMs)
      expect(partition.complaints, machine.console().slice(-2_000)).toEqual([])
      expect(partition.signals.at(-1), machine.console().slice(-2_000)).toMatchObject({ status: 'done', step: 'erase' })
      const told = partition.erasures.map(({ serial, outcome, samples }) => [serial, outcome, samples])
      expect(told.sort()).toEqual([
        ['DISK-1', 'overwritten', 64],
        ['DISK-2', 'overwritten', 64],
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
    'is a rescue system: whose key was named logs in as root, and nobody else',
    async ({ expect }) => {
      const partition = await partitionFor()
      const keys = ['mine', 'other'].map(name => path.join(folder, `rescue-${name}`))
      for (const key of keys) await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', key])
      partition.job = { kind: 'rescue', ...common, sshKeys: [readFileSync(`${keys[0]}.pub`, 'utf8').trim()] }
      const sshPort = await freePort()
      const machine = boot(partition, 'rescue', { disks: virtio(disk('rescue')), sshPort })
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
      await machine.kill()
    },
    bootLimitMs * 2,
  )
})
