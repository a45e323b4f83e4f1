// Disks behind RAID controllers: the agent's shell, run by busybox on this computer, with a smartctl that answers as real ones did (versions 7.1 to 7.4 on
// PERC and Smart Array controllers; the fields that matter, serial numbers made up), and a /sys that is a folder.
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { inventory, raidMember } from '@muster/shared/agent'
import { beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { missingPrograms } from './needs.ts'

const root = fileURLToPath(new URL('../root/muster/', import.meta.url))
const missing = missingPrograms(['busybox', 'jq'], 'busybox-static jq')

const attributes = (...values: [id: number, value: number][]) => ({
  ata_smart_attributes: { table: values.map(([id, value]) => ({ id, raw: { value, string: String(value) } })) },
})
/** A SATA SSD behind a PERC: smartctl ends with 4, because it judged by attributes. */
const sataSsd = {
  smartctl: { exit_status: 4, messages: [{ string: 'Warning: This result is based on an Attribute check.', severity: 'warning' }] },
  device: { name: '/dev/bus/0', info_name: '/dev/bus/0 [megaraid_disk_00] [SAT]', type: 'sat+megaraid,0', protocol: 'ATA' },
  ...{ model_name: 'MZ7KH480HAHQ0D3', serial_number: 'S47NNA0N000001', firmware_version: 'HXM7904Q', rotation_rate: 0 },
  ...{ user_capacity: { blocks: 937_703_088, bytes: 480_103_981_056 }, smart_status: { passed: true } },
  ...{ power_on_time: { hours: 34_579 }, temperature: { current: 30 } },
  ...attributes([5, 0], [9, 34_579], [177, 322], [198, 0]),
  ata_device_statistics: { pages: [{ number: 7, table: [{ offset: 8, name: 'Percentage Used Endurance Indicator', value: 1 }] }] },
}
/** A SAS disk behind the same. */
const sasHdd = {
  smartctl: { exit_status: 0 },
  device: { name: '/dev/bus/0', info_name: '/dev/bus/0 [megaraid_disk_01]', type: 'megaraid,1', protocol: 'SCSI' },
  device_type: { scsi_terminology: 'Peripheral Device Type [PDT]', scsi_value: 0, name: 'disk' },
  ...{ scsi_model_name: 'TOSHIBA AL15SEB24EQY', scsi_revision: 'EF06', serial_number: 'Y0A0A0RPF1XF', rotation_rate: 10_000 },
  ...{ user_capacity: { blocks: 4_688_430_768, bytes: 2_400_476_553_216 }, smart_status: { passed: true } },
  ...{ power_on_time: { hours: 12_437, minutes: 29 }, temperature: { current: 32, drive_trip: 65 }, scsi_grown_defect_list: 0 },
}
/** A SAS SSD: how worn it is stands only in the text of smartctl 7.3. */
const sasSsd = {
  ...sasHdd,
  smartctl: { output: ['=== START OF READ SMART DATA SECTION ===', 'Percentage used endurance indicator: 97%'], exit_status: 0 },
  ...{ scsi_model_name: 'KPM5XVUG960G', serial_number: 'Z0A0A0XFT1', rotation_rate: 0 },
}
/** A SATA disk behind a Smart Array (smartctl --xall -d cciss,1 /dev/sda). */
const cciss = {
  smartctl: { exit_status: 4 },
  device: { name: '/dev/sda', info_name: '/dev/sda [cciss_disk_01] [SAT]', type: 'sat', protocol: 'ATA' },
  ...{ model_name: 'ST8000DM002-1YW112', serial_number: 'ZA10000V', firmware_version: 'DN02', rotation_rate: 7200 },
  ...{ user_capacity: { blocks: 15_628_053_168, bytes: 8_001_563_222_016 }, smart_status: { passed: true }, temperature: { current: 38 } },
  ...attributes([5, 0], [197, 8]),
}
const enclosure = { device_type: { scsi_value: 13, name: 'enclosure' }, serial_number: '7CE000P0AB', smartctl: { exit_status: 4 } }
const unable = (string: string) => ({ smartctl: { messages: [{ string, severity: 'error' }], exit_status: 2 } })

let folder: string
let sys: string
beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'muster-raid-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  sys = path.join(folder, 'root/sys')
  for (const name of ['bin', 'scratch', 'answers', 'root/sys/block', 'root/sys/class/scsi_host'])
    mkdirSync(path.join(folder, name), { recursive: true })
  // As each is asked: the device with its type, in one word. What nobody knows is refused as a controller does.
  const smartctl = `#!/usr/bin/env -S busybox sh
case $* in *--scan-open*) cat "${folder}/answers/scan"; exit 0 ;; esac
type=''
for word; do case $word in --device=*) type=\${word#*=} ;; esac; done
echo "$type \${word##*/}" >>"${folder}/asked"
[ -e "${folder}/answers/$type:\${word##*/}" ] || { echo '${JSON.stringify(unable('INQUIRY [SAT]: No such device or address'))}'; exit 2; }
cat "${folder}/answers/$type:\${word##*/}"; exit 4
`
  writeFileSync(path.join(folder, 'bin/smartctl'), smartctl, { mode: 0o755 })
  scan()
})

/** What `smartctl --scan-open` lists. */
function scan(...devices: { name: string; type: string; open_error?: string }[]): void {
  const all = devices.map(device => ({ ...device, info_name: `${device.name} [disk]`, protocol: 'SCSI' }))
  writeFileSync(
    path.join(folder, 'answers/scan'),
    JSON.stringify({ json_format_version: [1, 0], smartctl: { exit_status: 0 }, devices: all }),
  )
}
const answer = (type: string, device: string, said: object) =>
  writeFileSync(path.join(folder, 'answers', `${type}:${device}`), JSON.stringify(said))

function host(number: number, driver: string): void {
  const place = path.join(sys, `class/scsi_host/host${number}`)
  mkdirSync(place)
  writeFileSync(path.join(place, 'proc_name'), `${driver}\n`)
}

/** A disk that Linux sees; on a SCSI host where it is not NVMe. */
function disk(name: string, at: { host: number; lun?: number; serial?: string } | 'nvme'): void {
  const block = path.join(sys, 'block', name)
  mkdirSync(block)
  writeFileSync(path.join(block, 'size'), '1000215216\n')
  if (at === 'nvme') return
  const target = `target${at.host}:2:${at.lun ?? 0}`
  const place = path.join(sys, 'devices', `host${at.host}`, target, `${at.host}:2:${at.lun ?? 0}:0`)
  mkdirSync(place, { recursive: true })
  const serial = at.serial ?? '00a1b2c3d4e5f600'
  writeFileSync(path.join(place, 'vpd_pg80'), Buffer.concat([Buffer.from([0, 0x80, 0, serial.length]), Buffer.from(serial)]))
  symlinkSync(`../../devices/host${at.host}/${target}/${at.host}:2:${at.lun ?? 0}:0`, path.join(block, 'device'))
}

const environment = () => ({
  PATH: `${path.join(folder, 'bin')}:${process.env.PATH}`,
  ROOT: path.join(folder, 'root'),
  SCRATCH: path.join(folder, 'scratch'),
  RESULT: path.join(folder, 'found'),
})

/** What the inventory has of them. */
function membersFound() {
  const text = '. "$1/inventory.sh"; . "$1/smart.sh"; raid_members "$SCRATCH"'
  const { stdout, stderr } = spawnSync('busybox', ['sh', '-c', text, 'sh', root], { env: environment(), encoding: 'utf8' })
  expect(stderr).toBe('')
  return stdout
    .split('\n')
    .filter(Boolean)
    .map(line => raidMember.parse(JSON.parse(line)))
}

/** What the test disk-health makes of one disk: how it ended, its last line, and what it found. */
function judge(part: string, wearPercentMax = 100) {
  const script = path.join(root, 'scripts/disk-health.sh')
  const env = { ...environment(), PART: part, wearPercentMax: String(wearPercentMax) }
  const { status, stdout, stderr } = spawnSync('busybox', ['sh', script], { env, encoding: 'utf8' })
  expect(stderr).toBe('')
  return {
    status,
    message: stdout.trim().split('\n').at(-1),
    found: JSON.parse(readFileSync(path.join(folder, 'found'), 'utf8')) as unknown,
  }
}

/** A PERC with two logical disks of three members, and an NVMe disk beside it. */
function perc(): void {
  host(0, 'megaraid_sas')
  disk('nvme0n1', 'nvme')
  disk('sda', { host: 0, lun: 0 })
  disk('sdb', { host: 0, lun: 1 })
  const bus = (type: string) => ({ name: '/dev/bus/0', type })
  scan({ name: '/dev/sda', type: 'scsi' }, { name: '/dev/sdb', type: 'scsi' }, bus('sat+megaraid,0'), bus('megaraid,1'), bus('megaraid,2'))
  for (const name of ['sda', 'sdb']) answer('', name, unable("DELL or MegaRaid controller, please try adding '-d megaraid,N'"))
  answer('', 'nvme0n1', { smart_status: { passed: true }, nvme_smart_health_information_log: { percentage_used: 2, critical_warning: 0 } })
  answer('sat+megaraid,0', '0', sataSsd)
  answer('megaraid,1', '0', sasHdd)
  answer('megaraid,2', '0', sasSsd)
}

describe.skipIf(missing !== undefined)('disks behind a RAID controller', { timeout: 60_000 }, () => {
  test('of MegaRAID are found with what they say, and the logical disks of their controller', () => {
    perc()
    const controller = { controller: 'megaraid_sas', host: 0, disks: ['sda', 'sdb'] }
    const found = membersFound()
    expect(found).toEqual([
      {
        ...{ name: 'megaraid,0', ...controller, serial: 'S47NNA0N000001', model: 'MZ7KH480HAHQ0D3', firmware: 'HXM7904Q' },
        ...{ sizeBytes: 480_103_981_056, kind: 'ssd', healthy: true, wearPercent: 1, temperatureC: 30, powerOnHours: 34_579 },
        ...{ reallocatedSectors: 0, uncorrectableSectors: 0 },
      },
      {
        ...{ name: 'megaraid,1', ...controller, serial: 'Y0A0A0RPF1XF', model: 'TOSHIBA AL15SEB24EQY', firmware: 'EF06' },
        ...{ sizeBytes: 2_400_476_553_216, kind: 'hdd', healthy: true, temperatureC: 32, powerOnHours: 12_437, grownDefects: 0 },
      },
      expect.objectContaining({ name: 'megaraid,2', kind: 'ssd', wearPercent: 97 }),
    ])
    // An inventory with them is taken, as is that of an agent that knows of none.
    const rest = {
      arch: 'amd64',
      cpus: 1,
      memoryMib: 1024,
      interfaces: [{ mac: '52:54:00:00:00:01', name: 'eth0', speedMbps: 0 }],
      disks: [],
    }
    expect(inventory.parse({ ...rest, facts: { raidMembers: found, kernel: '6.1' } }).facts).toEqual({ raidMembers: found, kernel: '6.1' })
    expect(inventory.parse({ ...rest, facts: { kernel: '6.1' } }).facts).toEqual({ kernel: '6.1' })
    expect(inventory.safeParse({ ...rest, facts: { raidMembers: [{ ...found[0], secret: 1 }] } }).success).toBe(false)
  })

  test('are judged once, with the first logical disk of their controller, and one that is bad is named', () => {
    perc()
    expect(judge('sda')).toEqual({
      status: 0,
      message: 'healthy: 3 of 3 members of the controller',
      found: {
        members: [
          expect.objectContaining({ name: 'megaraid,0', healthy: true, wearPercent: 1, temperatureC: 30 }),
          expect.anything(),
          expect.anything(),
        ],
      },
    })
    expect(judge('sdb')).toMatchObject({
      status: 77,
      message: 'the disk does not say how it is; the members of its controller are judged with sda',
    })
    expect(judge('nvme0n1')).toEqual({ status: 0, message: 'healthy', found: { healthy: true, wearPercent: 2, criticalWarning: 0 } })
    answer('megaraid,1', '0', {
      ...sasHdd,
      smart_status: { passed: false, scsi: { asc: 93, ascq: 16, ie_string: 'DATA CHANNEL IMPENDING FAILURE' } },
    })
    expect(judge('sda', 90)).toMatchObject({
      status: 1,
      message:
        'member megaraid,1 of sda (serial number Y0A0A0RPF1XF) says that it fails; ' +
        'member megaraid,2 of sda (serial number Z0A0A0XFT1) is worn by 97 %, more than 90 %',
      found: { members: [{ name: 'megaraid,1', healthy: false }, {}, {}] },
    })
  })

  test('that do not answer are told of, and fail nothing', () => {
    perc()
    for (const type of ['sat+megaraid,0', 'megaraid,1']) answer(type, '0', unable('INQUIRY failed'))
    expect(membersFound().map(({ name, serial, disks }) => [name, serial, disks])).toEqual([
      ['megaraid,0', undefined, ['sda', 'sdb']],
      ['megaraid,1', undefined, ['sda', 'sdb']],
      ['megaraid,2', 'Z0A0A0XFT1', ['sda', 'sdb']],
    ])
    expect(judge('sda')).toMatchObject({
      status: 0,
      message: 'healthy: 1 of 3 members of the controller; nothing is said by megaraid,0, megaraid,1',
    })
    writeFileSync(path.join(folder, 'answers/megaraid,2:0'), 'no JSON {')
    expect(judge('sda')).toMatchObject({
      status: 77,
      message: 'the disk does not say how it is, nor do the members megaraid,0, megaraid,1, megaraid,2 of its controller',
    })
  })

  test('are none where Linux sees them itself, and judged with the first disk of all where their controller has no logical one', () => {
    host(0, 'megaraid_sas')
    host(1, 'megaraid_sas')
    disk('sda', { host: 0, serial: 'S47NNA0N000001' })
    scan({ name: '/dev/bus/0', type: 'sat+megaraid,0' }, { name: '/dev/bus/1', type: 'megaraid,1' })
    answer('', 'sda', sataSsd)
    answer('sat+megaraid,0', '0', sataSsd)
    answer('megaraid,1', '1', { ...sasHdd, smart_status: { passed: false } })
    expect(membersFound()).toMatchObject([{ name: 'megaraid,1', host: 1, disks: [] }])
    expect(judge('sda')).toMatchObject({ status: 1, message: 'member megaraid,1 of sda (serial number Y0A0A0RPF1XF) says that it fails' })
  })

  test('of Smart Array are counted until nothing answers, over one logical disk and once for each controller', () => {
    host(2, 'hpsa')
    host(3, 'ahci')
    for (const name of ['sda', 'sdb']) disk(name, { host: 2, lun: name === 'sda' ? 0 : 1 })
    disk('sdc', { host: 3, serial: 'OWN' })
    answer('cciss,0', 'sda', enclosure)
    answer('cciss,1', 'sda', cciss)
    answer('cciss,3', 'sda', { ...cciss, serial_number: 'ZA10000W' })
    expect(membersFound()).toMatchObject([
      {
        ...{ name: 'cciss,1', controller: 'hpsa', host: 2, disks: ['sda', 'sdb'], serial: 'ZA10000V', kind: 'hdd', pendingSectors: 8 },
        ...{ sizeBytes: 8_001_563_222_016, temperatureC: 38 },
      },
      { name: 'cciss,3', serial: 'ZA10000W' },
    ])
    const asked = readFileSync(path.join(folder, 'asked'), 'utf8').trim().split('\n')
    expect(new Set(asked)).toEqual(new Set([0, 1, 2, 3, 4, 5, 6].map(number => `cciss,${number} sda`)))
  })

  test('are not sought where there are none', () => {
    disk('nvme0n1', 'nvme')
    expect(membersFound()).toEqual([])
    writeFileSync(path.join(folder, 'answers/scan'), '')
    expect(membersFound()).toEqual([])
  })
})
