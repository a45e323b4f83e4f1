// How a deployed machine's disks are to be: a document in our words, checked here as far as it can be without the machine. storage-plan.ts makes of it
// what the agent does to the disks of one machine.
import { z } from 'zod'
import { diskKind } from './machine.ts'

/** Letters and digits: the kernel's device mapper doubles dashes, and LVM gives names with an underscore a meaning. */
const name = z.string().regex(/^[a-z][a-z0-9]{0,14}$/, 'is not a name of at most 15 lower-case letters and digits')
/** A volume group becomes a folder of /dev: names that are taken there, or may be. */
const takenInDev =
  /^(sd|vd|hd|xvd|nvme|mmcblk|loop|ram|zram|tty|md|dm|sg|sr|vcs|mapper|disk|block|bus|char|cpu|dri|input|net|null|zero|full|random|urandom|kmsg|mem|port|console|ptmx|pts|shm|snd|fd|std|log|core|kvm|rtc|fuse|hpet|watchdog|mqueue|ptp|snapshot|uinput|vfio)/
/** LVM keeps these for itself. */
const volumeName = name.refine(text => !/^(snapshot|pvmove)/.test(text), 'is a name that LVM keeps for itself')

const mib = z
  .number()
  .int()
  .min(1)
  .max(2 ** 40)
const sizeMib = mib.optional().describe('the rest where left out')
const bytes = z
  .number()
  .int()
  .min(0)
  .max(2 ** 53 - 1)

/** Which disk of a machine: all of what is said. The first by name where several are. */
export const diskChoice = z.strictObject({
  serial: z.string().min(1).max(128).optional(),
  kind: diskKind.optional(),
  minBytes: bytes.optional(),
  maxBytes: bytes.optional(),
})
export type DiskChoice = z.output<typeof diskChoice>

export const rootFileSystems = ['ext4', 'xfs', 'btrfs'] as const
export const fileSystems = [...rootFileSystems, 'vfat', 'swap'] as const
export type FileSystem = (typeof fileSystems)[number]

/** What each ready-made layout may say. */
const readyMade = {
  disk: diskChoice.default({}),
  fileSystem: z.enum(rootFileSystems).default('ext4'),
  swapMib: mib.optional().describe('no swap where left out'),
}

const mountPoint = z
  .string()
  .max(200)
  .regex(/^(\/|(\/[A-Za-z0-9._-]+)+)$/, 'is not a path such as /var/lib')
  .refine(path => !path.split('/').some(part => part === '.' || part === '..'), 'has . or .. in it')
  .refine(path => !/^\/(proc|sys|dev|run|boot\/efi)(\/|$)/.test(path), 'is mounted by the system itself')
const mountOptions = z
  .string()
  .max(200)
  .regex(/^[A-Za-z0-9_=,.:@/-]+$/, 'are not mount options such as noatime,nodev')

const customShape = z.strictObject({
  kind: z.literal('custom'),
  /** Disks by a name that only this document knows. A bootable one gets GRUB, for BIOS and UEFI, in two partitions before these. */
  disks: z.record(
    name,
    z.strictObject({
      choose: diskChoice.default({}),
      bootable: z.boolean().default(false),
      partitions: z.array(z.strictObject({ name, sizeMib })).min(1).max(32),
    }),
  ),
  /** Mirrors (RAID 1) of partitions of different disks. */
  raids: z.record(name, z.strictObject({ members: z.array(name).min(2).max(8) })).default({}),
  /** Volume groups of LVM, made of partitions and mirrors. */
  groups: z
    .record(
      name,
      z.strictObject({
        members: z.array(name).min(1).max(16),
        volumes: z
          .array(z.strictObject({ name: volumeName, sizeMib }))
          .min(1)
          .max(32),
      }),
    )
    .default({}),
  fileSystems: z
    .array(
      z.strictObject({
        on: name.describe('a partition, a mirror or a volume'),
        type: z.enum(fileSystems),
        mount: mountPoint.optional(),
        options: mountOptions.optional(),
      }),
    )
    .min(1)
    .max(64),
})
export type CustomLayout = z.output<typeof customShape>

const custom = customShape.superRefine((layout, context) => {
  for (const { field, message } of problemsOf(layout)) context.addIssue({ code: 'custom', path: [...field], message })
})

/** `flat`: one disk, one file system. `lvm`: one disk, volumes. `raid1`: two equal disks, mirrored. `custom`: all said piece by piece. */
export const storageLayout = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('flat'), ...readyMade }),
  z.strictObject({ kind: z.literal('lvm'), ...readyMade, rootMib: mib.optional().describe('all of the group where left out') }),
  z.strictObject({ kind: z.literal('raid1'), ...readyMade }),
  custom,
])
export type StorageLayout = z.output<typeof storageLayout>

interface Problem {
  field: readonly (string | number)[]
  message: string
}

/** Something that a file system, a mirror or a group can be made on. */
interface Device {
  kind: 'partition' | 'mirror' | 'volume'
  name: string
  /** The disk that a partition is on. */
  disk?: string
  field: readonly (string | number)[]
}

function devicesOf({ disks, raids, groups }: CustomLayout): Device[] {
  return [
    ...Object.entries(disks).flatMap(([disk, { partitions }]) =>
      partitions.map((partition, index) => ({
        kind: 'partition' as const,
        name: partition.name,
        disk,
        field: ['disks', disk, 'partitions', index, 'name'],
      })),
    ),
    ...Object.keys(raids).map(raid => ({ kind: 'mirror' as const, name: raid, field: ['raids', raid] })),
    ...Object.entries(groups).flatMap(([group, { volumes }]) =>
      volumes.map((volume, index) => ({ kind: 'volume' as const, name: volume.name, field: ['groups', group, 'volumes', index, 'name'] })),
    ),
  ]
}

/** Everything that is wrong with a layout by itself. */
function problemsOf(layout: CustomLayout): Problem[] {
  const devices = devicesOf(layout)
  const byName = new Map<string, Device>()
  const problems: Problem[] = []
  for (const device of devices) {
    const first = byName.get(device.name)
    if (first) problems.push({ field: device.field, message: `is the name of a ${first.kind} too (${first.field.join('.')})` })
    else byName.set(device.name, device)
  }
  for (const group of Object.keys(layout.groups))
    if (takenInDev.test(group))
      problems.push({ field: ['groups', group], message: 'is a name that /dev has, or may have, for something else' })
  return [...problems, ...useProblems(layout, byName), ...restProblems(layout), ...mountProblems(layout), ...bootProblems(layout)]
}

/** Each device is used for one thing at most, and for one that it is fit for. */
function useProblems(layout: CustomLayout, byName: ReadonlyMap<string, Device>): Problem[] {
  const problems: Problem[] = []
  const usedBy = new Map<string, string>()
  const use = (device: string, by: string, fit: readonly Device['kind'][], field: Problem['field']) => {
    const found = byName.get(device)
    if (!found) problems.push({ field, message: `"${device}" is no device of this layout` })
    else if (!fit.includes(found.kind)) problems.push({ field, message: `"${device}" is a ${found.kind}, not a ${fit.join(' or ')}` })
    const other = usedBy.get(device)
    if (other) problems.push({ field, message: `"${device}" is used by ${other} already` })
    else usedBy.set(device, by)
    return found
  }
  for (const [raid, { members }] of Object.entries(layout.raids)) {
    const disks = new Map<string, string>()
    members.forEach((member, index) => {
      const field = ['raids', raid, 'members', index]
      const disk = use(member, `the mirror "${raid}"`, ['partition'], field)?.disk
      if (disk === undefined) return
      const twin = disks.get(disk)
      if (twin !== undefined && twin !== member) problems.push({ field, message: `"${member}" is on the same disk as "${twin}"` })
      disks.set(disk, member)
    })
  }
  for (const [group, { members }] of Object.entries(layout.groups))
    members.forEach((member, index) => {
      use(member, `the group "${group}"`, ['partition', 'mirror'], ['groups', group, 'members', index])
    })
  layout.fileSystems.forEach(({ on, type }, index) => {
    use(on, `a file system (${type})`, ['partition', 'mirror', 'volume'], ['fileSystems', index, 'on'])
  })
  return problems
}

/** One part of a whole may be "the rest". */
function restProblems({ disks, groups }: CustomLayout): Problem[] {
  const wholes = [
    ...Object.entries(disks).map(([disk, { partitions }]) => ({ parts: partitions, field: ['disks', disk, 'partitions'] })),
    ...Object.entries(groups).map(([group, { volumes }]) => ({ parts: volumes, field: ['groups', group, 'volumes'] })),
  ]
  return wholes.flatMap(({ parts, field }) => {
    const rest = parts.flatMap((part, index) => (part.sizeMib === undefined ? [{ name: part.name, index }] : []))
    return rest.slice(1).map(({ index }) => ({
      field: [...field, index, 'sizeMib'],
      message: `must be given: "${rest[0]?.name}" is the rest already`,
    }))
  })
}

function mountProblems({ fileSystems: all }: CustomLayout): Problem[] {
  const problems: Problem[] = []
  const seen = new Map<string, string>()
  all.forEach(({ on, type, mount, options }, index) => {
    const field = ['fileSystems', index, 'mount']
    if (type === 'swap') {
      if (mount !== undefined) problems.push({ field, message: 'swap is mounted nowhere' })
      return
    }
    if (mount === undefined) {
      if (options !== undefined) problems.push({ field, message: 'must be given where there are options' })
      return
    }
    const other = seen.get(mount)
    if (other !== undefined) problems.push({ field, message: `"${other}" is mounted at ${mount} already` })
    else seen.set(mount, on)
    if (mount === '/' && type === 'vfat') problems.push({ field, message: 'vfat cannot hold a root file system' })
  })
  if (!seen.has('/')) problems.push({ field: ['fileSystems'], message: 'nothing is mounted at /' })
  return problems
}

const bootProblems = ({ disks }: CustomLayout): Problem[] =>
  Object.values(disks).some(({ bootable }) => bootable) ? [] : [{ field: ['disks'], message: 'no disk is bootable' }]
