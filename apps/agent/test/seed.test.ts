// What the agent writes into a system that it has put on a disk: its shell, run by busybox on this computer, with a file system in memory for the system's.
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { missingPrograms } from './needs.ts'

const here = path.dirname(fileURLToPath(new URL('../root/muster/install.sh', import.meta.url)))
const missing = missingPrograms(['busybox', 'jq'], 'busybox-static jq')
const job = JSON.stringify({ seedUrl: 'http://partition/seed/', hostname: 'web1', dataSource: 'nocloud', os: 'debian/12' })

/** What the shell says of this text, with the agent's words at hand and /run/target a file system of 64 KiB with an /etc. `fail` ends it. */
function shell(text: string): string {
  const before = `mount -t tmpfs tmpfs /run; mkdir -p /run/target; mount -t tmpfs -o size=64k tmpfs /run/target; mkdir -p /run/target/etc
    cat >/run/job; cd ${here}; for each in http scripts layout system install; do . ./$each.sh; done
    say() { echo "$*"; }; fail() { echo "failed in $*"; exit 1; }; stand() { :; }
    fetch() { echo 'version: 2' >"$2"; }; uuid_of() { echo UUID; }
    fill() { dd if=/dev/zero of=/run/target/filler bs=4096 2>/dev/null; }; read_only() { mount -o remount,ro /run/target; }\n`
  const words = ['--mount', 'busybox', 'sh', '-c', before + text]
  const { stdout, stderr } = spawnSync('unshare', words, { input: job, encoding: 'utf8', timeout: 60_000 })
  return stdout + stderr
}

describe.skipIf(missing !== undefined || process.getuid?.() !== 0)('a system that was put on a disk', { timeout: 120_000 }, () => {
  test('is given its seed', () => {
    expect(
      shell('seed_into /run/target/etc; cd /run/target/etc; cat hostname machine-id cloud/cloud.cfg.d/91*; wc -l cloud/cloud.cfg.d/90*'),
    ).toBe('web1\nnetwork:\n  version: 2\n2 cloud/cloud.cfg.d/90-muster.cfg\n')
  })

  const plan = `echo 'mount part:a:3 / ext4' >/run/plan; echo 'mirror root part:a:3 part:b:3' >>/run/plan; mdadm() { echo 'ARRAY /dev/md1'; }; kernel=6.1
    device() { echo /dev/null; }; prepare_for_boot() { mkdir -p /run/target/boot/grub /run/target/etc/mdadm; }; prepare_for_boot\n`
  test.each([
    ['its seed', 'seed_into /run/target/etc', 'failed in seed write the seed to /etc: '],
    ['its table of file systems', `${plan}write_fstab`, 'failed in boot write /etc/fstab: '],
    ['its table of mirrors', `${plan}prepare_for_layout`, 'failed in boot write /etc/mdadm/mdadm.conf: '],
    ['its menu', `${plan}write_menu`, 'failed in boot write /boot/grub/grub.cfg: '],
  ])('that is full, or can only be read, gets no half of %s: the job ends with the reason', (_, text, said) => {
    // What is there already when the file system is full.
    const [last] = text.split('\n').slice(-1)
    const first = text.split('\n').slice(0, -1).join('\n')
    expect(shell(`${first}\nfill; ${last}; echo written`)).toMatch(new RegExp(`^${said}.*No space left on device`))
    expect(shell(`${first}\nread_only; ${last}; echo written`)).toMatch(new RegExp(`^${said}.*Read-only file system`))
  })

  const tools = `mount -o remount,size=8m /run/target; mkdir -p /run/target/bin /run/target/usr/bin; cp "$(which busybox)" /run/target/bin/busybox
    for each in usr/bin/env bin/sh bin/sleep; do ln -s /bin/busybox /run/target/$each; done
    mounts() { grep -c ' /run/target/' /proc/mounts; }\n`
  test('is marked for UEFI machines, for this one alone too, and a former system on another disk is no more', () => {
    // EFI system partitions that are folders; /sys shows three disks with one each.
    const disks = `mount -t tmpfs tmpfs /sys/class; mkdir -p /sys/class/block /sys/class/dmi/id; echo 4C4C-AB >/sys/class/dmi/id/product_uuid
      for each in sda sdb sdc; do
        mkdir -p /run/block/$each/\${each}1 /run/esp/\${each}1/EFI /run/esp/\${each}1/muster; : >/run/block/$each/\${each}1/partition
        ln -s /run/block/$each/\${each}1 /run/block/$each /sys/class/block
      done
      for each in sda1 sdc1; do echo old | tee /run/esp/$each/muster/installed >/run/esp/$each/muster/installed-4c4c-aa; done
      blkid() { echo vfat; }
      mount() { case $* in *remount*) busybox mount -o bind,remount,rw /run/efi ;; *) busybox mount -o bind "/run/esp/\${5#/dev/}" /run/efi && busybox mount -o bind,remount,ro /run/efi ;; esac; }
      os=debian/12\n`
    expect(shell(`${disks}place='sda sdb'; mark_disks; cd /run/esp; for each in */muster/*; do echo "$each $(cat "$each")"; done`)).toBe(
      ['sda1/muster/installed', 'sda1/muster/installed-4c4c-ab', 'sdb1/muster/installed', 'sdb1/muster/installed-4c4c-ab', ''].join(
        ' debian/12\n',
      ),
    )
    expect(shell(`${disks}sync() { false; }; place=sda; mark_disks`)).toBe('failed in boot mark the EFI system partition /dev/sda1: \n')
  })

  test('has a tool that does not start: why is told, and nothing stays mounted', () => {
    expect(shell(`${tools}: >/run/target/sys; in_target sh -c 'echo in vain' || cat /run/chroot; mounts`)).toMatch(
      /^.*\/run\/target\/sys.*(File exists|Not a directory)\n0\n$/,
    )
  })

  test('has a tool that leaves a program behind: it ends, and the file system can be unmounted', () => {
    const leaves = `in_target sh -c 'sleep 50 & exec sleep 51 >/dev/null 2>&1 & echo started'; echo "$? $(cat /run/chroot)"; mounts; umount /run/target && echo unmounted`
    expect(shell(`${tools}${leaves}`)).toBe('0 started\n0\nunmounted\n')
  })
})
