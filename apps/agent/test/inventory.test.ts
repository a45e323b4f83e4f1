// How the agent reads its machine: its shell, run by busybox on this computer, on files as servers show them.
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, onTestFinished, test } from 'vitest'
import { missingPrograms } from './needs.ts'

const script = fileURLToPath(new URL('../root/muster/inventory.sh', import.meta.url))
const missing = missingPrograms(['busybox', 'jq'], 'busybox-static jq')

// Class, vendor and device as the kernel gives them in /sys (numbers: pci.ids).
test.skipIf(missing !== undefined).for([
  ['NVIDIA A100, a 3D controller', '0x030200', '0x10de', '0x20b5', true],
  ['NVIDIA RTX A4000, which has a display too', '0x030000', '0x10de', '0x24b0', true],
  ['AMD Instinct MI210, a display controller of another kind', '0x038000', '0x1002', '0x740f', true],
  ['AMD Instinct MI300X, an accelerator', '0x120000', '0x1002', '0x74a1', true],
  ['Intel Gaudi 2, an accelerator', '0x120000', '0x1da3', '0x1020', true],
  ['Intel graphics of a workstation', '0x030000', '0x8086', '0x4680', true],
  ['ASPEED AST2500, what a BMC draws with', '0x030000', '0x1a03', '0x2000', false],
  ['Matrox G200eR2, the same', '0x030000', '0x102b', '0x0534', false],
  ['Matrox G200eW3, the same', '0x030000', '0x102b', '0x0536', false],
  ['Huawei Hi1711, the same', '0x030000', '0x19e5', '0x1711', false],
  ['a network card of Huawei', '0x020000', '0x19e5', '0x0222', false],
  ['QEMU with its standard display', '0x030000', '0x1234', '0x1111', false],
  ['QEMU with virtio', '0x038000', '0x1af4', '0x1050', false],
  ['a disk controller', '0x010802', '0x144d', '0xa824', false],
] as const)('%s', ([_, kind, vendor, device, isGpu]) => {
  const line = JSON.stringify({ address: '0000:3b:00.0', class: kind, vendor, device, driver: '' })
  const { stdout, stderr } = spawnSync('busybox', ['sh', '-c', '. "$1"; gpus', 'sh', script], { input: `${line}\n`, encoding: 'utf8' })
  expect([stdout, stderr]).toEqual([isGpu ? `${line}\n` : '', ''])
})

test.skipIf(missing !== undefined)(
  'PCI devices, network ports, DIMMs and NUMA nodes are read off the kernel’s files, as many as there are',
  () => {
    const root = mkdtempSync(path.join(tmpdir(), 'muster-inventory-'))
    onTestFinished(() => rmSync(root, { recursive: true, force: true }))
    const write = (folder: string, files: Readonly<Record<string, string | Buffer>>) => {
      mkdirSync(path.join(root, folder), { recursive: true })
      for (const [name, content] of Object.entries(files)) writeFileSync(path.join(root, folder, name), content)
    }
    const pci = 'sys/bus/pci/devices'
    write(`${pci}/0000:00:00.0`, { class: '0x060000\n', vendor: '0x8086\n', device: '0x29c0\n' })
    write(`${pci}/0000:3b:00.0`, { class: '0x020000\n', vendor: '0x15b3\n', device: '0x1017\n' })
    symlinkSync(mkdtempSync(path.join(root, 'mlx5_core-')), path.join(root, pci, '0000:3b:00.0/driver'))
    write('sys/class/net/eth0/device', {})
    write('sys/class/net/eth0', { address: '52:54:00:00:00:01\n', speed: '25000\n' })
    write('sys/class/net/eth1/device', {})
    write('sys/class/net/eth1', { address: '52:54:00:00:00:02\n', speed: '-1\n' })
    write('sys/class/net/lo', { address: '00:00:00:00:00:00\n' })
    const dimm = Buffer.alloc(0x22)
    dimm.writeUInt8(dimm.length, 1)
    dimm.writeUInt16LE(16_384, 0x0c)
    dimm.writeUInt16LE(3200, 0x15)
    for (const [offset, text] of [
      [0x10, 1],
      [0x17, 2],
      [0x18, 3],
      [0x1a, 4],
    ] as const)
      dimm.writeUInt8(text, offset)
    const entry = (slot: string) => ({ raw: Buffer.concat([dimm, Buffer.from(`${slot}\0Maker "A" \\ B\0 S1 \0-n\0\0`)]) })
    write('sys/firmware/dmi/entries/17-0', entry('DIMM 0'))
    write('sys/firmware/dmi/entries/17-1', { raw: Buffer.alloc(0x22) })
    write('sys/firmware/dmi/entries/17-2', entry('DIMM\t2'))
    write('sys/devices/system/node/node0', { cpulist: '0-3,8-11\n', meminfo: 'Node 0 MemTotal:       32768 kB\n' })

    const told = (what: string) => {
      const { stdout, stderr } = spawnSync('busybox', ['sh', '-c', `. "$1"; ${what}`, 'sh', script], {
        env: { ...process.env, ROOT: root },
        encoding: 'utf8',
      })
      expect(stderr).toBe('')
      return stdout
        .split('\n')
        .filter(Boolean)
        .map(line => JSON.parse(line))
    }
    expect(told('pci')).toEqual([
      { address: '0000:00:00.0', class: '0x060000', vendor: '0x8086', device: '0x29c0', driver: '' },
      { address: '0000:3b:00.0', class: '0x020000', vendor: '0x15b3', device: '0x1017', driver: expect.stringMatching(/^mlx5_core-/) },
    ])
    expect(told('interfaces')).toEqual([
      { mac: '52:54:00:00:00:01', name: 'eth0', speedMbps: 25_000 },
      { mac: '52:54:00:00:00:02', name: 'eth1', speedMbps: 0 },
    ])
    const common = { sizeMib: 16_384, speedMts: 3200, manufacturer: 'Maker "A" \\ B', partNumber: '-n' }
    expect(told('dimms').map(({ serial, ...rest }) => ({ ...rest, serial: serial.trim() }))).toEqual([
      { ...common, slot: 'DIMM 0', serial: 'S1' },
      { ...common, slot: 'DIMM 2', serial: 'S1' },
    ])
    expect(told('memory_mib')).toEqual([32_768])
    expect(told('numa')).toEqual([{ node: 0, cpus: '0-3,8-11', memoryMib: 32 }])
  },
)

test.skipIf(missing !== undefined)(
  'of an eMMC its medium is a disk, and what it has beside that is none; it is installed to where there is no other',
  () => {
    const root = mkdtempSync(path.join(tmpdir(), 'muster-disks-'))
    onTestFinished(() => rmSync(root, { recursive: true, force: true }))
    const show = (...names: string[]) => {
      for (const name of names) {
        mkdirSync(path.join(root, 'sys/block', name, 'queue'), { recursive: true })
        for (const [file, text] of Object.entries({ size: '8192', removable: '0', 'queue/rotational': '0' }))
          writeFileSync(path.join(root, 'sys/block', name, file), `${text}\n`)
      }
      const text = '. "$1/inventory.sh"; . "$1/install.sh"; disks | jq -r .name; echo "to $(target_disk)"'
      const env = { PATH: process.env.PATH, ROOT: root }
      return spawnSync('busybox', ['sh', '-c', text, 'sh', path.dirname(script)], { encoding: 'utf8', env }).stdout
    }
    expect(show('mmcblk0', 'mmcblk0boot0', 'mmcblk0boot1', 'mmcblk0rpmb')).toBe('mmcblk0\nto mmcblk0\n')
    expect(show('sda')).toBe('mmcblk0\nsda\nto sda\n')
  },
)
