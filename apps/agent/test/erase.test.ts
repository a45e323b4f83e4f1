// How the agent erases: its shell, run by busybox on this computer, with nvme and hdparm that are not there and a disk that is a file. On disks of QEMU:
// agent.test.ts.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, onTestFinished, test } from 'vitest'
import { missingPrograms } from './needs.ts'

const script = fileURLToPath(new URL('../root/muster/erase.sh', import.meta.url))
const missing = missingPrograms(['busybox'], 'busybox-static')

/** The end of what `hdparm -I` prints. */
const said = (...lines: string[]) =>
  [
    '/dev/sda:',
    '',
    'Commands/features:',
    '\tEnabled\tSupported:',
    '\t   *\tSecurity Mode feature set',
    ...lines,
    'Checksum: correct',
    '',
  ].join('\n')
const security = (supported: string, enabled: string, frozen: string) => [
  ...['Security: ', '\tMaster password revision code = 65534', `\t${supported}`, `\t${enabled}`, '\tnot\tlocked', `\t${frozen}`],
  ...['\tnot\texpired: security count', '\t\tsupported: enhanced erase'],
]

describe.skipIf(missing !== undefined)('a disk that speaks ATA', () => {
  test.each([
    [
      'can, within two minutes, better than plainly',
      said(
        ...security('\tsupported', 'not\tenabled', 'not\tfrozen'),
        '\t6min for SECURITY ERASE UNIT. 2min for ENHANCED SECURITY ERASE UNIT.',
      ),
      'ready 2 enhanced',
    ],
    [
      'was left with a password when the power went',
      said(
        ...security('\tsupported', '\tenabled', 'not\tfrozen'),
        '\t508min for SECURITY ERASE UNIT. 508min for ENHANCED SECURITY ERASE UNIT.',
      ),
      'enabled 508 enhanced',
    ],
    [
      'is frozen by its firmware',
      said(
        ...security('\tsupported', 'not\tenabled', '\tfrozen'),
        '\t2min for SECURITY ERASE UNIT. 2min for ENHANCED SECURITY ERASE UNIT.',
      ),
      'frozen 2 enhanced',
    ],
    [
      'can only plainly',
      said(...security('\tsupported', 'not\tenabled', 'not\tfrozen').slice(0, -1), '\t90min for SECURITY ERASE UNIT.'),
      'ready 90 ',
    ],
    ['can, and does not say how long it takes', said(...security('\tsupported', 'not\tenabled', 'not\tfrozen')), 'ready 0 enhanced'],
    ['cannot', said(...security('not\tsupported', 'not\tenabled', 'not\tfrozen').slice(0, -1)), 'none 0 '],
    ['says nothing', '', 'none 0 '],
  ])('%s', (_, input, outcome) => {
    const { stdout, stderr } = spawnSync('busybox', ['sh', '-c', `. ${script}; ata_security`], { input, encoding: 'utf8' })
    expect([stdout, stderr]).toEqual([`${outcome}\n`, ''])
  })
})

// The tools at the far end, and a disk that is a file: what they are asked goes to `asked`, what they answer comes from files beside them.
const standIns = {
  nvme: `case $1 in
    id-ctrl) cat "$HERE/id-ctrl" ;;
    # Sanitize Status: progress and status, a line of the file log for each look; the last one stays.
    get-log)
      set -- $(head -n 1 "$HERE/log")
      [ "$(wc -l <"$HERE/log")" = 1 ] || sed -i 1d "$HERE/log"
      printf "$(printf '\\\\%03o' $(($1 % 256)) $(($1 / 256)) $2 0)"; head -c 508 /dev/zero
      [ "$2" != 1 ] || "$HERE/wipe" ;;
    sanitize) echo "nvme $*" >>"$HERE/asked"; [ ! -e "$HERE/no-sanitize" ] ;;
    format) echo "nvme $*" >>"$HERE/asked"; [ ! -e "$HERE/no-format" ] || { echo 'NVMe status: Invalid Format'; exit 1; }; "$HERE/wipe" ;;
    esac`,
  hdparm: `case $1 in
    -I) cat "$HERE/identify" ;;
    *) echo "hdparm $*" >>"$HERE/asked"
      case $* in *--security-erase*) [ ! -e "$HERE/no-erase" ] || { echo 'SECURITY_ERASE: Input/output error'; exit 5; }; "$HERE/wipe" ;; esac ;;
    esac`,
  blkdiscard: `echo "blkdiscard $*" >>"$HERE/asked"; [ -e "$HERE/discards" ] || exit 1
    case $(cat "$HERE/discards") in
    truly) dd if=/dev/zero of="$1" bs=65536 count=16 conv=notrunc 2>/dev/null ;;
    'all but its end') dd if=/dev/zero of="$1" bs=65536 count=15 conv=notrunc 2>/dev/null ;;
    'and cannot be read then') : >/dev/disk ;;
    esac`,
  wipe: `dd if=/dev/zero of=/dev/disk bs=65536 count=16 conv=notrunc 2>/dev/null
    [ ! -e "$HERE/noise" ] || echo noise | dd of=/dev/disk conv=notrunc 2>/dev/null`,
}
const diskBytes = 16 * 65536

interface Disk {
  readonly name: 'nvme0n1' | 'sda' | 'vda'
  readonly how: 'quick' | 'full'
  /** By name, what the stand-ins find beside them. */
  readonly files: Record<string, string>
}

/** What `erase_disk` makes of a disk that is full of somebody's data: what it says of it, what it asked of whom, what people read, and what the disk holds then. */
function eraseDisk({ name, how, files }: Disk) {
  const here = mkdtempSync(path.join(tmpdir(), 'muster-erase-'))
  onTestFinished(() => rmSync(here, { recursive: true, force: true }))
  for (const [tool, text] of Object.entries(standIns))
    writeFileSync(path.join(here, tool), `#!/usr/bin/env -S busybox sh\n${text}\n`, { mode: 0o755 })
  for (const [file, text] of Object.entries(files)) writeFileSync(path.join(here, file), text)
  writeFileSync(path.join(here, 'precious'), Buffer.alloc(diskBytes, 'precious'))
  // A /dev and a /run of its own, and a kernel that is not told to forget what it holds of everybody's disks. busybox prefers its own blkdiscard to any in PATH.
  const text = `mkdir "$HERE/dev"; mount -t tmpfs tmpfs "$HERE/dev"
    for each in null zero; do : >"$HERE/dev/$each"; mount --bind /dev/$each "$HERE/dev/$each"; done
    mount --rbind "$HERE/dev" /dev; mount -t tmpfs tmpfs /run; : >/run/caches; mount --bind /run/caches /proc/sys/vm/drop_caches
    cp "$HERE/precious" /dev/disk; ln -s disk "/dev/$1"
    . "$3"
    stand() { echo "stand $2" >>"$HERE/said"; }; say() { echo "$*" >>"$HERE/said"; }; fail() { echo "failed in $*"; exit 1; }
    sleep() { :; }; blkdiscard() { "$HERE/blkdiscard" "$@"; }
    dd() { case "$*" in *of=/run/sample*) [ ! -e "$HERE/unreadable" ] || { echo 'dd: read error' >&2; return 1; } ;; esac; command dd "$@"; }
    disk=$1 how=$2 bytes=${diskBytes} number=1 total=1 place="/dev/$1"
    erase_disk; echo "$outcome $samples"; cp /dev/disk "$HERE/left"`
  const { stdout, stderr } = spawnSync('unshare', ['--mount', 'busybox', 'sh', '-c', text, 'sh', name, how, script], {
    env: { PATH: `${here}:${process.env.PATH}`, HERE: here, SAMPLES: '4' },
    encoding: 'utf8',
    timeout: 60_000,
  })
  const linesOf = (file: string) =>
    existsSync(path.join(here, file)) ? readFileSync(path.join(here, file), 'utf8').trimEnd().split('\n') : []
  const isZero = readFileSync(path.join(here, 'left')).every(byte => byte === 0)
  return { outcome: stdout.trim(), stderr, asked: linesOf('asked'), said: linesOf('said'), isZero }
}

const ready = said(
  ...security('\tsupported', 'not\tenabled', 'not\tfrozen'),
  '\t6min for SECURITY ERASE UNIT. 2min for ENHANCED SECURITY ERASE UNIT.',
)
const frozen = ready.replace('\tnot\tfrozen', '\t\tfrozen')
/** Its power went in the middle of an erasure. */
const locked = ready.replace('\tnot\tenabled', '\t\tenabled').replace('\tnot\tlocked', '\t\tlocked')
const plain = said(...security('\tsupported', 'not\tenabled', 'not\tfrozen').slice(0, -1), '\t90min for SECURITY ERASE UNIT.')
/** Names no minutes. */
const silent = said(...security('\tsupported', 'not\tenabled', 'not\tfrozen'))
/** Format with a secure erase, and Sanitize by erasing blocks and by forgetting the key. */
const nvme = (can: object, ...log: string[]) => ({ 'id-ctrl': JSON.stringify(can), log: `${log.join('\n')}\n` })
const everything = { oacs: 2, fna: 4, sanicap: 3 }
const never = '0 0'
const setPass = 'hdparm --user-master u --security-set-pass muster /dev/sda'
const enhanced = 'hdparm --user-master u --security-erase-enhanced muster /dev/sda'
const format = (secure: number) => `nvme format /dev/nvme0n1 --ses=${secure} --force --timeout=3600000`
const discard = (name: string) => `blkdiscard /dev/${name}`

interface Told {
  readonly outcome: string
  readonly asked: readonly string[]
  readonly said?: readonly string[]
}

describe.skipIf(missing !== undefined || process.getuid?.() !== 0)('a disk full of data', { timeout: 120_000 }, () => {
  test.for<[string, Disk, Told]>([
    [
      'that sanitizes is waited for, and says how far it is',
      { name: 'nvme0n1', how: 'full', files: nvme(everything, never, '16384 2', '49152 2', '65535 1') },
      {
        outcome: 'sanitized 4',
        asked: ['nvme sanitize /dev/nvme0 --sanact=2', discard('nvme0n1')],
        said: ['stand /dev/nvme0n1, sanitizing: 25 %', 'stand /dev/nvme0n1, sanitizing: 75 %'],
      },
    ],
    [
      'that can only forget its key does, and where that leaves noise every byte is overwritten',
      { name: 'nvme0n1', how: 'full', files: { ...nvme({ sanicap: 1 }, never, '65535 1'), noise: '' } },
      {
        outcome: 'overwritten 4',
        asked: ['nvme sanitize /dev/nvme0 --sanact=4', discard('nvme0n1')],
        said: ['/dev/nvme0n1 does not read as zero after it erased itself (sanitized): the 64 KiB at 0 hold something'],
      },
    ],
    [
      'whose sanitizing fails is formatted',
      { name: 'nvme0n1', how: 'full', files: nvme(everything, never, '100 2', '200 3') },
      { outcome: 'formatted 4', asked: ['nvme sanitize /dev/nvme0 --sanact=2', format(1), discard('nvme0n1')] },
    ],
    [
      'that refuses to sanitize is formatted',
      { name: 'nvme0n1', how: 'full', files: { ...nvme(everything, never), 'no-sanitize': '' } },
      { outcome: 'formatted 4', asked: ['nvme sanitize /dev/nvme0 --sanact=2', format(1), discard('nvme0n1')] },
    ],
    [
      'whose sanitizing a power loss interrupted is waited for before anything else',
      { name: 'nvme0n1', how: 'quick', files: nvme(everything, '32768 2', '65535 1') },
      { outcome: 'formatted 4', asked: [format(2), discard('nvme0n1')], said: ['stand /dev/nvme0n1, sanitizing: 50 %'] },
    ],
    [
      'that does not format is overwritten; a quick erasure discards',
      { name: 'nvme0n1', how: 'full', files: { ...nvme({ oacs: 2 }, never), 'no-format': '' } },
      { outcome: 'overwritten 4', asked: [format(1)], said: ['nvme format /dev/nvme0n1: NVMe status: Invalid Format'] },
    ],
    [
      'that shows noise until it is told that nobody wants it needs no more than that',
      { name: 'nvme0n1', how: 'quick', files: { ...nvme({ oacs: 2 }, never), noise: '', discards: 'truly' } },
      { outcome: 'formatted 4', asked: [format(1), discard('nvme0n1')] },
    ],
    [
      'that speaks ATA gets a password and erases itself, better than plainly where it can',
      { name: 'sda', how: 'quick', files: { identify: ready } },
      {
        outcome: 'secure-erased 4',
        asked: [setPass, enhanced, discard('sda')],
        said: ['stand /dev/sda, erasing itself: it says 2 minutes'],
      },
    ],
    [
      'that its firmware has frozen is overwritten, and that is said',
      { name: 'sda', how: 'full', files: { identify: frozen } },
      { outcome: 'overwritten 4', asked: [], said: ['/dev/sda can erase itself, but the firmware has frozen that'] },
    ],
    [
      'that was left locked begins with the erasure',
      { name: 'sda', how: 'full', files: { identify: locked } },
      { outcome: 'secure-erased 4', asked: [enhanced, discard('sda')] },
    ],
    [
      'that fails to erase itself is freed of its password, and overwritten',
      { name: 'sda', how: 'full', files: { identify: ready, 'no-erase': '' } },
      {
        outcome: 'overwritten 4',
        asked: [setPass, enhanced, 'hdparm --user-master u --security-disable muster /dev/sda'],
        said: ['secure erase of /dev/sda: SECURITY_ERASE: Input/output error'],
      },
    ],
    [
      'that takes 90 minutes does so for a full erasure, plainly',
      { name: 'sda', how: 'full', files: { identify: plain } },
      { outcome: 'secure-erased 4', asked: [setPass, 'hdparm --user-master u --security-erase muster /dev/sda', discard('sda')] },
    ],
    [
      'and for a quick one is not asked to',
      { name: 'sda', how: 'quick', files: { identify: plain, discards: 'truly' } },
      { outcome: 'discarded 4', asked: [discard('sda')] },
    ],
    [
      'that has erased itself and cannot be read is not called zero',
      { name: 'sda', how: 'quick', files: { identify: ready, discards: 'truly', unreadable: '' } },
      {
        outcome: 'tables 0',
        asked: [setPass, enhanced, discard('sda'), discard('sda')],
        said: ['/dev/sda does not read as zero after it erased itself (secure-erased): the 64 KiB at 0 cannot be read: dd: read error'],
      },
    ],
    [
      'that says it has discarded, and still shows what it held, loses its tables',
      { name: 'vda', how: 'quick', files: { discards: 'in words only' } },
      { outcome: 'tables 0', asked: [discard('vda')] },
    ],
    [
      'that still shows its last 64 KiB, where a GPT has its copy, has not discarded',
      { name: 'vda', how: 'quick', files: { discards: 'all but its end' } },
      { outcome: 'tables 0', asked: [discard('vda')] },
    ],
    [
      'that cannot be read after it has discarded is not taken for zero',
      { name: 'vda', how: 'quick', files: { discards: 'and cannot be read then' } },
      { outcome: 'tables 0', asked: [discard('vda')] },
    ],
    [
      'that cannot be read after it erased itself is overwritten, and where it could not be read is said',
      { name: 'sda', how: 'full', files: { identify: ready, discards: 'and cannot be read then' } },
      {
        outcome: 'overwritten 4',
        asked: [setPass, enhanced, discard('sda')],
        said: [
          '/dev/sda does not read as zero after it erased itself (secure-erased): the 64 KiB at 0 cannot be read: 0+0 records in 0+0 records out ',
        ],
      },
    ],
    [
      'that does not say how long it takes to erase itself is not asked to by a quick erasure',
      { name: 'sda', how: 'quick', files: { identify: silent, discards: 'truly' } },
      { outcome: 'discarded 4', asked: [discard('sda')] },
    ],
  ])('%s', ([, disk, told]) => {
    const { outcome, asked, said: words, stderr, isZero } = eraseDisk(disk)
    expect({ outcome, asked, stderr }).toEqual({ outcome: told.outcome, asked: told.asked, stderr: '' })
    expect(words).toEqual(expect.arrayContaining([...(told.said ?? [])]))
    // So small a disk is nothing but tables.
    expect(isZero).toBe(true)
  })
})

describe.skipIf(missing !== undefined || process.getuid?.() !== 0)('a disk that erases itself has for it', () => {
  test.each([
    ['twice the time that it names, and ten minutes', plain, 10 ** 11, 90 * 120 + 600],
    ['as long as 50 MB a second take where it names none', silent, 2 * 10 ** 12, 40_000 + 600],
    [
      'or can count no further',
      silent.replace('enhanced erase', 'enhanced erase\n\t508min for ENHANCED SECURITY ERASE UNIT.'),
      20 * 10 ** 12,
      400_000 + 600,
    ],
  ])('%s', (_, identify, bytes, seconds) => {
    const text = `mount -t tmpfs tmpfs /run; cat >/run/identify; . ${script}; stand() { :; }
      hdparm() { [ "$1" != -I ] || cat /run/identify; }; timeout() { echo "$1"; }
      disk=sda how=full bytes=${bytes} number=1 total=1 place=/dev/sda; erase_ata; cat /run/erase`
    const { stdout, stderr } = spawnSync('unshare', ['--mount', 'busybox', 'sh', '-c', text], {
      input: identify,
      encoding: 'utf8',
      timeout: 60_000,
    })
    expect([stdout, stderr]).toEqual([`${seconds}\n`, ''])
  })
})
