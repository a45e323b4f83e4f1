// Tools of a new system that hang or fail: the agent's shell, run by busybox on this computer, in a system that is busybox alone. Whole installations:
// agent.test.ts.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { findProgram } from '@muster/embedded/find-program'
import { describe, expect, onTestFinished, test } from 'vitest'
import { missingPrograms } from './needs.ts'

const root = fileURLToPath(new URL('../root/muster/', import.meta.url))
const missing = missingPrograms(['busybox', 'jq', 'unshare'], 'busybox-static jq util-linux')

/** Never ends, and neither does what it has started. */
const hangs = 'echo "Generating /boot/initrd.img-6.1"; sleep 1000 & echo $! >/left; sleep 1000'

/** Runs `act` with these programs in the new system's /usr/sbin. Answers what it says, how it fails, and the new system's grub.cfg. */
function inNewSystem(act: string, programs: Record<string, string>, plan: string) {
  const here = mkdtempSync(path.join(tmpdir(), 'muster-system-'))
  onTestFinished(() => rmSync(here, { recursive: true, force: true }))
  for (const [name, text] of Object.entries(programs)) writeFileSync(path.join(here, name), `#!/bin/sh\n${text}\n`, { mode: 0o755 })
  writeFileSync(path.join(here, 'plan'), plan)
  // A /run and a /dev of its own; processes too, so that what is left behind is seen, and goes.
  const text = `mount -t proc proc /proc; mount -t tmpfs tmpfs /run; mkdir "$HERE/dev"; mount -t tmpfs tmpfs "$HERE/dev"; : >"$HERE/dev/null"
    mount --bind /dev/null "$HERE/dev/null"; mount --rbind "$HERE/dev" /dev
    for name in bin usr/bin usr/sbin boot/grub etc; do mkdir -p "/run/target/$name"; done
    cp "$BUSYBOX" /run/target/bin/busybox
    for name in bin/sh bin/sleep usr/bin/env; do ln -s /bin/busybox "/run/target/$name"; done
    for name in ${Object.keys(programs).join(' ')}; do cp "$HERE/$name" /run/target/usr/sbin; done
    cp "$HERE/plan" /run/plan; echo '{"os": "debian/12"}' >/run/job
    for name in scripts layout system; do . "$1/$name.sh"; done
    say() { echo "said: $*"; }; fail() { echo "failed in $1: $2"; over; }; mdadm() { echo 'ARRAY /dev/md1'; }; uuid_of() { echo 0815; }
    over() {
        cp /run/target/boot/grub/grub.cfg "$HERE/grub.cfg" 2>/dev/null || : >"$HERE/grub.cfg"
        grep /run/target/ /proc/mounts
        [ ! -e /run/target/left ] || [ ! -e "/proc/$(cat /run/target/left)" ] || echo 'it left something running'
        exit 0
    }
    kernel=6.1; ${act}; over`
  const { stdout, stderr } = spawnSync('unshare', ['--mount', '--pid', '--fork', 'busybox', 'sh', '-c', text, 'sh', root], {
    env: { PATH: process.env.PATH, HERE: here, BUSYBOX: findProgram('busybox'), TOOL_SECONDS: '1' },
    encoding: 'utf8',
    timeout: 60_000,
  })
  return { said: stdout.split('\n').filter(Boolean), stderr, menu: readFileSync(path.join(here, 'grub.cfg'), 'utf8') }
}

const mirrored = 'mirror root part:a:3 part:b:3\nmount md:root ext4 / defaults\n'

describe.skipIf(missing !== undefined || process.getuid?.() !== 0)('a tool in a new system', { timeout: 120_000 }, () => {
  test('that hangs ends the installation with its name and its last words, and nothing of it goes on', () => {
    const took = 'it took longer than 1 s; it wrote last: Generating /boot/initrd.img-6.1'
    expect(inNewSystem('prepare_for_layout', { mdadm: '', 'update-initramfs': hangs }, mirrored)).toMatchObject({
      said: [`failed in boot: update-initramfs in the new system: ${took} `],
      stderr: '',
    })
    expect(inNewSystem('write_menu', { 'grub-mkconfig': hangs }, mirrored)).toMatchObject({
      said: [`failed in boot: grub-mkconfig in the new system: ${took} `],
      stderr: '',
    })
  })

  test('that fails does so in its own words; without a menu of its own the system gets one entry', () => {
    const full = 'echo "No space left on device" >&2; exit 1'
    expect(inNewSystem('prepare_for_layout', { mdadm: '', 'update-initramfs': full }, mirrored).said).toEqual([
      'failed in boot: update-initramfs in the new system: No space left on device ',
    ])
    const { said, menu } = inNewSystem('write_menu', { 'grub-mkconfig': full }, mirrored)
    expect(said).toEqual(['said: grub-mkconfig in the new system: No space left on device; it gets one entry instead'])
    expect(menu).toContain('linux /boot/vmlinuz-6.1 root=UUID=0815 ro')
  })

  test('of the layout that hangs is ended too', () => {
    const { said } = inNewSystem("stored 'make xfs on /dev/sda3' sh -c 'echo busy; exec sleep 1000'", {}, mirrored)
    expect(said[0]).toContain('failed in layout: make xfs on /dev/sda3: sh took longer than 1 s; it wrote last: busy')
  })
})
