// What the agent says of an image that cannot set up the network it is to have: its shell, run by busybox on this computer, on a tree with Debian's cloud-init.
import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { missingPrograms } from './needs.ts'

const renderer = 'usr/lib/python3/dist-packages/cloudinit/net/networkd.py'
const missing = missingPrograms(['busybox', `../../${renderer}`], 'busybox-static cloud-init')
const script = fileURLToPath(new URL('../root/muster/install.sh', import.meta.url))
/** As a partition renders it. */
const network = (name: string) => fileURLToPath(new URL(`../../partition/test/testdata/network/${name}.network-config`, import.meta.url))

let tree: string
beforeEach(() => {
  tree = mkdtempSync(path.join(tmpdir(), 'muster-network-'))
  mkdirSync(path.join(tree, path.dirname(renderer)), { recursive: true })
  mkdirSync(path.join(tree, 'usr/sbin'))
})
afterEach(() => rmSync(tree, { recursive: true, force: true }))

function refusal(name: string): string {
  const text = '. "$1"; fail() { echo "$1: $2"; exit 1; }; refuse_network "$2" "$3"'
  const { stdout, stderr } = spawnSync('busybox', ['sh', '-c', text, 'sh', script, tree, network(name)], { encoding: 'utf8' })
  expect(stderr).toBe('')
  return stdout
}

test.skipIf(missing !== undefined)('a bond is refused where nothing in the image sets one up, and ports are not', () => {
  copyFileSync(`/${renderer}`, path.join(tree, renderer))
  expect(refusal('bond-vlans')).toMatch(/^seed: the network has bonds vlans, and the image's cloud-init can write only ports/)
  expect(refusal('bridge')).toMatch(/^seed: the network has bonds bridges vlans,/)
  expect(refusal('static')).toBe('')
  writeFileSync(path.join(tree, 'usr/sbin/netplan'), '')
  expect(refusal('bond-vlans')).toBe('')
})

test.skipIf(missing !== undefined)('an image without cloud-init, or with one that makes devices, is believed', () => {
  expect(refusal('bond-vlans')).toBe('')
  writeFileSync(path.join(tree, renderer), 'write_file(name + ".netdev")\n')
  expect(refusal('bond-vlans')).toBe('')
})
