// How the agent puts an image on a disk, and what it says where that fails: its shell, run by busybox on this computer, onto a file. Whole installations:
// agent.test.ts.
import { execFileSync, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, onTestFinished, test } from 'vitest'
import { missingPrograms } from './needs.ts'

const root = fileURLToPath(new URL('../root/muster/', import.meta.url))
const missing = missingPrograms(['busybox', 'unshare', 'zstd'], 'busybox-static util-linux zstd')
/** Larger than all pipes on the way, and packed no smaller. */
const content = randomBytes(2_000_000)
const packed = missing === undefined ? execFileSync('zstd', ['-qc1'], { input: content, maxBuffer: 2 ** 24 }) : content
const digestOf = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex')

/** Installs these bytes onto `disk`, a name in a /dev where `full` takes nothing. `lie` is shell, put before the work. */
function install(
  how: 'fetch_then_write' | 'write_while_fetching',
  { bytes = packed, disk = 'disk', sha256 = digestOf(bytes), lie = '' } = {},
) {
  const here = mkdtempSync(path.join(tmpdir(), 'muster-install-'))
  onTestFinished(() => rmSync(here, { recursive: true, force: true }))
  writeFileSync(path.join(here, 'image'), bytes)
  const text = `mkdir "$HERE/dev"; mount -t tmpfs tmpfs "$HERE/dev"
    for each in null zero full; do : >"$HERE/dev/$each"; mount --bind /dev/$each "$HERE/dev/$each"; done
    mount --rbind "$HERE/dev" /dev; mount -t tmpfs tmpfs /run; : >/dev/disk
    . "$1/install.sh"
    stand() { :; }; say() { :; }; trouble() { echo 'it broke'; }; fail() { echo "failed in $1: $2"; exit; }; check_room() { :; }
    fetch_image() { cat "$HERE/image"; }; fetch_head() { head -c 6 "$HERE/image"; }
    image=URL os=debian/12 form=disk disk=$2 wanted=$3 size=${bytes.length}
    ${lie}
    ${how}; cp /dev/disk "$HERE/written"`
  const { stdout, stderr } = spawnSync('unshare', ['--mount', 'busybox', 'sh', '-c', text, 'sh', root, disk, sha256], {
    env: { PATH: process.env.PATH, HERE: here },
    encoding: 'utf8',
    timeout: 60_000,
  })
  const written = path.join(here, 'written')
  return { said: stdout.trim(), stderr, written: existsSync(written) ? digestOf(readFileSync(written)) : undefined }
}

const ways = ['fetch_then_write', 'write_while_fetching'] as const
const isRoot = process.getuid?.() === 0
describe.skipIf(missing !== undefined || !isRoot).each(ways)('an image, by %s', { timeout: 120_000 }, how => {
  test('is on the disk byte for byte, packed or not', () => {
    expect(install(how)).toEqual({ said: '', stderr: '', written: digestOf(content) })
    expect(install(how, { bytes: content })).toEqual({ said: '', stderr: '', written: digestOf(content) })
  })

  test('that the disk does not take fails in the disk’s own words, whole as the image is', () => {
    expect(install(how, { disk: 'full' }).said).toMatch(/^failed in write: write to full: .*No space left on device/)
  })

  test('that cannot be unpacked, or whose unpacking is ended from outside, is not taken for written', () => {
    const cut = packed.subarray(0, packed.length - 8)
    expect(install(how, { bytes: cut }).said).toMatch(/^failed in write: write to disk: .*it ended with 1/)
    const lie = "unpack() { head -c 1000; sh -c 'kill -KILL $$'; }"
    expect(install(how, { lie }).said).toMatch(/^failed in write: write to disk: .*it ended with 137/)
  })

  test('that is another one, or does not come, is refused for that', () => {
    const other = digestOf(Buffer.from('another'))
    expect(install(how, { sha256: other }).said).toBe(`failed in download: image URL has SHA-256 ${digestOf(packed)}, not ${other}`)
    const lie = 'fetch_image() { head -c 20 "$HERE/image"; return 1; }'
    expect(install(how, { lie }).said).toBe('failed in download: the image was not fetched: it broke')
  })
})
