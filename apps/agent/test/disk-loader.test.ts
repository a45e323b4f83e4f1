// Which disk a UEFI machine boots: disk.efi, started by OVMF, beside disks whose loaders only say who they are.
import { execFile } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { makeDiskLoader } from '../src/build.ts'
import { missingPrograms } from './needs.ts'
import { emptyDisk, startMachine } from './virtual-machine.ts'

const run = promisify(execFile)
const tools = [
  'qemu-system-x86_64',
  'grub-mkimage',
  'mkfs.fat',
  'mcopy',
  '../share/OVMF/OVMF_CODE_4M.fd',
  '../lib/grub/x86_64-efi/chain.mod',
]
const missing = missingPrograms(tools, 'qemu-system-x86 grub-common grub-efi-amd64-bin dosfstools mtools ovmf')
const bootLimitMs = 360_000
/** As `startMachine` tells its firmware. */
const machine = '11111111-2222-3333-4444-555555555555'

describe.skipIf(missing !== undefined)('a UEFI machine with two disks', () => {
  let folder: string
  let start: string
  beforeAll(async () => {
    folder = mkdtempSync(path.join(tmpdir(), 'muster-disk-loader-'))
    const loader = path.join(folder, 'disk.efi')
    await makeDiskLoader('/', loader, 'amd64')
    // In the place of the network: the firmware starts the first disk.
    start = emptyDisk(path.join(folder, 'start'), 8 * 2 ** 20)
    await run('mkfs.fat', [start])
    await run('mmd', ['-i', start, '::/EFI', '::/EFI/BOOT'])
    await run('mcopy', ['-i', start, loader, '::/EFI/BOOT/BOOTX64.EFI'])
  }, 60_000)
  afterAll(() => rmSync(folder, { recursive: true, force: true }))

  /** A disk that is one EFI system partition, with these files; where a name ends in .efi it says the disk's name and stops. */
  async function disk(name: string, files: readonly string[]): Promise<string> {
    const [file, tree, config] = [
      emptyDisk(path.join(folder, name), 8 * 2 ** 20),
      path.join(folder, `${name}-tree`),
      path.join(folder, `${name}.cfg`),
    ]
    await run('mkfs.fat', [file])
    for (const each of ['EFI', 'muster']) mkdirSync(path.join(tree, each), { recursive: true })
    writeFileSync(config, `echo "this is ${name}"\nhalt\n`)
    for (const each of files) {
      const target = path.join(tree, each)
      mkdirSync(path.dirname(target), { recursive: true })
      if (/\.efi$/i.test(each))
        await run('grub-mkimage', ['-O', 'x86_64-efi', '-o', target, '-c', config, '-p', '/', 'echo', 'halt', 'serial', 'terminal'])
      else writeFileSync(target, '')
    }
    await run('mcopy', ['-s', '-i', file, path.join(tree, 'EFI'), path.join(tree, 'muster'), '::/'])
    return file
  }

  test.each<[string, string[], string[]]>([
    [
      'boots what the agent has installed, whatever an older system has on the other one',
      ['EFI/debian/grubx64.efi'],
      ['EFI/BOOT/BOOTX64.EFI', 'muster/installed'],
    ],
    [
      'boots its own, not one that came from another machine',
      ['EFI/BOOT/BOOTX64.EFI', 'muster/installed', 'muster/installed-of-another'],
      ['EFI/BOOT/BOOTX64.EFI', 'muster/installed', `muster/installed-${machine}`],
    ],
    ['boots a system that bears no mark', [], ['EFI/ubuntu/shimx64.efi']],
  ])(
    '%s',
    async (name, first, second) => {
      const disks = [start, await disk(`first-${name.length}`, first), await disk(`second-${name.length}`, second)]
      const booted = startMachine({
        folder,
        firmware: 'uefi',
        memoryMib: 256,
        disks: disks.map((file, index) => ({ file, as: 'virtio' as const, serial: `DISK-${index}` })),
      })
      try {
        await booted.ended(bootLimitMs)
      } finally {
        await booted.kill()
      }
      expect(booted.console()).toContain(`this is second-${name.length}`)
    },
    bootLimitMs * 2,
  )
})
