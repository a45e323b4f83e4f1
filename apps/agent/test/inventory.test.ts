// What the agent takes for a GPU: its shell, run by busybox on this computer, on PCI devices as servers show them.
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
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
