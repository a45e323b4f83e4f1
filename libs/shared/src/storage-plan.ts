// What an agent does to the disks of one machine so that they become as a layout says: a pure function of both. The steps are so plain that a shell can
// carry them out line by line, and in this order: disks, partitions, mirrors, groups, volumes, file systems, mounts from the root on, boot loaders.
import type { Disk } from './machine.ts'
import type { CustomLayout, DiskChoice, FileSystem, StorageLayout } from './storage.ts'

/** What something is made on. A disk goes by the layout's name for it. */
export type DeviceRef =
  | { kind: 'partition'; disk: string; number: number }
  | { kind: 'mirror'; name: string }
  | { kind: 'volume'; group: string; name: string }

export type PartitionUse = 'bios' | 'efi' | 'linux' | 'raid' | 'lvm' | 'swap'

export type StorageStep =
  /** Which of the machine's disks it is: by serial number where it has one, for names may change at any boot. */
  | { do: 'disk'; disk: string; found: Disk }
  | { do: 'partition'; disk: string; number: number; startMib: number; sizeMib: number; use: PartitionUse }
  | { do: 'mirror'; name: string; members: DeviceRef[] }
  | { do: 'group'; name: string; members: DeviceRef[] }
  | { do: 'volume'; group: string; name: string; sizeMib: number }
  | { do: 'format'; device: DeviceRef; type: FileSystem }
  | { do: 'mount'; device: DeviceRef; type: FileSystem; path: string; options: string }
  | { do: 'swap'; device: DeviceRef }
  /** GRUB for BIOS into its first partition, for UEFI into the second. */
  | { do: 'boot'; disk: string }

/** What is missing, and which field of the layout asked for it. */
export interface StorageProblem {
  field: string
  message: string
}
export type StoragePlan = { kind: 'plan'; steps: StorageStep[] } | { kind: 'unfit'; problems: StorageProblem[] }

const mib = 2 ** 20
/** The table and its copy at the end, each rounded to the unit that everything begins at. */
export const tableMib = { head: 1, tail: 1 } as const
/** GRUB's core for BIOS is found at its first sector: always the first partition. The EFI system partition is the second. */
export const bootMib = { bios: 1, efi: 256 } as const
/** What mdadm keeps for itself before the data (`--data-offset`), and LVM's label; LVM shares out in extents. */
const mirrorHeadMib = 1
const groupHeadMib = 1
export const extentMib = 4
/** Below this mkfs says no, or nothing fits. */
export const leastMib: Record<FileSystem, number> = { ext4: 16, xfs: 300, btrfs: 256, vfat: 36, swap: 1 }
/** The least that a system fits into. */
export const leastRootMib = 512
/** A partition that becomes part of a mirror or a group. */
const leastMemberMib = 16

/** The steps, or everything in the way of them. */
export function planStorage(layout: StorageLayout, disks: readonly Disk[]): StoragePlan {
  const usable = disks.filter(({ sizeBytes }) => sizeBytes > 0).toSorted(byName)
  if (layout.kind === 'custom') return planCustom(layout, usable)
  const candidates = layout.kind === 'raid1' ? equalPair(usable, layout.disk) : usable
  if (candidates === undefined) {
    const message = `needs two disks of the same kind and size${choiceText(layout.disk)}; the machine has ${disksText(usable)}`
    return { kind: 'unfit', problems: [{ field: 'disk', message }] }
  }
  const plan = planCustom(customOf(layout), candidates)
  // The fields of a ready-made layout are not those that it was made into.
  return plan.kind === 'plan' ? plan : { kind: 'unfit', problems: plan.problems.map(({ message }) => ({ field: 'disk', message })) }
}

/** As the agent takes them (install.sh): eMMC and SD cards last. */
const byName = (a: Disk, b: Disk) => isCard(a) - isCard(b) || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0)
const isCard = ({ name }: Disk) => Number(name.startsWith('mmcblk'))

/** A ready-made layout, said piece by piece. */
export function customOf(layout: Exclude<StorageLayout, { kind: 'custom' }>): CustomLayout {
  const { disk: choose, fileSystem, swapMib } = layout
  const root = { on: 'root', type: fileSystem, mount: '/' } as const
  const common = { kind: 'custom' as const, raids: {}, groups: {} }
  const fileSystems = [root, ...(swapMib === undefined ? [] : [{ on: 'swap', type: 'swap' } as const])]
  const swap = (name = 'swap') => (swapMib === undefined ? [] : [{ name, sizeMib: swapMib }])
  switch (layout.kind) {
    case 'flat':
      return { ...common, disks: { system: { choose, bootable: true, partitions: [...swap(), { name: 'root' }] } }, fileSystems }
    case 'lvm':
      return {
        ...common,
        disks: { system: { choose, bootable: true, partitions: [{ name: 'members' }] } },
        groups: { system: { members: ['members'], volumes: [...swap(), { name: 'root', sizeMib: layout.rootMib }] } },
        fileSystems,
      }
    case 'raid1': {
      const partitions = (number: number) => [...swap(`swap${number}`), { name: `root${number}` }]
      return {
        ...common,
        disks: {
          first: { choose, bootable: true, partitions: partitions(1) },
          second: { choose, bootable: true, partitions: partitions(2) },
        },
        raids: { root: { members: ['root1', 'root2'] }, ...(swapMib !== undefined && { swap: { members: ['swap1', 'swap2'] } }) },
        fileSystems,
      }
    }
  }
}

/** The first two disks, by name, that one could take for each other: makers' sizes of one class differ by less than a hundredth. */
function equalPair(disks: readonly Disk[], choice: DiskChoice): Disk[] | undefined {
  const fit = disks.filter(disk => isChosen(disk, choice))
  for (const first of fit) {
    const second = fit.find(
      disk => disk !== first && disk.kind === first.kind && Math.abs(disk.sizeBytes - first.sizeBytes) * 100 <= first.sizeBytes,
    )
    if (second) return [first, second].toSorted(byName)
  }
  return undefined
}

function isChosen(disk: Disk, { serial, kind, minBytes, maxBytes }: DiskChoice): boolean {
  return (
    (serial === undefined || disk.serial === serial) &&
    (kind === undefined || disk.kind === kind) &&
    disk.sizeBytes >= (minBytes ?? 0) &&
    disk.sizeBytes <= (maxBytes ?? Number.POSITIVE_INFINITY)
  )
}

function planCustom(layout: CustomLayout, disks: readonly Disk[]): StoragePlan {
  const problems: StorageProblem[] = []
  const chosen = chooseDisks(layout, disks, problems)
  if (problems.length > 0) return { kind: 'unfit', problems }
  const sizes = new Map<string, number>()
  const refs = new Map<string, DeviceRef>()
  const steps: StorageStep[] = [...chosen].map(([disk, found]) => ({ do: 'disk', disk, found }))
  for (const [disk, found] of chosen) steps.push(...partitionSteps(layout, disk, found, sizes, refs))
  for (const [name, { members }] of Object.entries(layout.raids)) {
    const sizeMib = Math.min(...members.map(member => sizes.get(member) ?? 0)) - mirrorHeadMib
    if (sizeMib < leastMemberMib)
      problems.push({ field: `raids.${name}`, message: `its members ${members.join(', ')} leave it ${sizeMib} MiB, not ${leastMemberMib}` })
    sizes.set(name, sizeMib)
    refs.set(name, { kind: 'mirror', name })
    steps.push({ do: 'mirror', name, members: members.map(member => refs.get(member) as DeviceRef) })
  }
  for (const name of Object.keys(layout.groups)) steps.push(...groupSteps(layout, name, sizes, refs, problems))
  steps.push(...fileSystemSteps(layout, sizes, refs, problems))
  for (const [disk, { bootable }] of Object.entries(layout.disks)) if (bootable) steps.push({ do: 'boot', disk })
  return problems.length > 0 ? { kind: 'unfit', problems } : { kind: 'plan', steps }
}

/** A disk of the machine for each of the layout's, so that all have one where there is a way. */
function chooseDisks(layout: CustomLayout, disks: readonly Disk[], problems: StorageProblem[]): Map<string, Disk> {
  const takenBy = new Map<Disk, string>()
  const fit = new Map<string, Disk[]>()
  for (const [name, { choose }] of Object.entries(layout.disks)) {
    const field = `disks.${name}`
    const asked = disks.filter(disk => isChosen(disk, choose))
    const needed = neededMib(layout, name)
    const large = asked.filter(({ sizeBytes }) => Math.floor(sizeBytes / mib) >= needed)
    fit.set(name, large)
    if (asked.length === 0)
      problems.push({ field, message: `no disk of the machine fits${choiceText(choose)}; it has ${disksText(disks)}` })
    else if (large.length === 0) problems.push({ field, message: `needs a disk of ${needed} MiB; there is ${disksText(asked)}` })
    else if (!take(name, new Set()))
      problems.push({
        field,
        message: `no disk is left${choiceText(choose)} of at least ${needed} MiB; the machine has ${disksText(disks)}`,
      })
  }
  const found = new Map([...takenBy].map(([disk, name]) => [name, disk]))
  return new Map(Object.keys(layout.disks).flatMap(name => (found.has(name) ? [[name, found.get(name) as Disk]] : [])))

  /** Takes a disk: a free one, else one whose holder may move to another (augmenting paths). */
  function take(name: string, tried: Set<Disk>): boolean {
    const all = fit.get(name) ?? []
    for (const disk of [...all.filter(each => !takenBy.has(each)), ...all.filter(each => takenBy.has(each))]) {
      if (tried.has(disk)) continue
      tried.add(disk)
      const holder = takenBy.get(disk)
      if (holder !== undefined && !take(holder, tried)) continue
      takenBy.set(disk, name)
      return true
    }
    return false
  }
}

/** What a disk must have at least. */
function neededMib(layout: CustomLayout, name: string): number {
  const { bootable, partitions } = layout.disks[name] as CustomLayout['disks'][string]
  const parts = partitions.reduce((sum, part) => sum + (part.sizeMib ?? leastOn(layout, part.name)), 0)
  return tableMib.head + (bootable ? bootMib.bios + bootMib.efi : 0) + parts + tableMib.tail
}

/** What a device must have at least for what is made on it directly. */
function leastOn({ fileSystems }: CustomLayout, device: string): number {
  const fileSystem = fileSystems.find(({ on }) => on === device)
  if (!fileSystem) return leastMemberMib
  return fileSystem.mount === '/' ? Math.max(leastRootMib, leastMib[fileSystem.type]) : leastMib[fileSystem.type]
}

function partitionSteps(
  layout: CustomLayout,
  disk: string,
  found: Disk,
  sizes: Map<string, number>,
  refs: Map<string, DeviceRef>,
): StorageStep[] {
  const { bootable, partitions } = layout.disks[disk] as CustomLayout['disks'][string]
  const before = bootable
    ? [
        { sizeMib: bootMib.bios, use: 'bios' as const },
        { sizeMib: bootMib.efi, use: 'efi' as const },
      ]
    : []
  const wholeMib = Math.floor(found.sizeBytes / mib) - tableMib.head - tableMib.tail
  const given = [...before, ...partitions].reduce((sum, part) => sum + (part.sizeMib ?? 0), 0)
  const all = [
    ...before,
    ...partitions.map(({ name, sizeMib }) => ({ name, sizeMib: sizeMib ?? wholeMib - given, use: useOf(layout, name) })),
  ]
  let startMib: number = tableMib.head
  return all.map((part, index) => {
    const number = index + 1
    if ('name' in part) {
      sizes.set(part.name, part.sizeMib)
      refs.set(part.name, { kind: 'partition', disk, number })
    }
    const step = { do: 'partition' as const, disk, number, startMib, sizeMib: part.sizeMib, use: part.use }
    startMib += part.sizeMib
    return step
  })
}

function useOf({ raids, groups, fileSystems }: CustomLayout, partition: string): PartitionUse {
  if (Object.values(raids).some(({ members }) => members.includes(partition))) return 'raid'
  if (Object.values(groups).some(({ members }) => members.includes(partition))) return 'lvm'
  return fileSystems.some(({ on, type }) => on === partition && type === 'swap') ? 'swap' : 'linux'
}

function groupSteps(
  layout: CustomLayout,
  name: string,
  sizes: Map<string, number>,
  refs: Map<string, DeviceRef>,
  problems: StorageProblem[],
): StorageStep[] {
  const { members, volumes } = layout.groups[name] as CustomLayout['groups'][string]
  const extents = (sizeMib: number) => Math.ceil(sizeMib / extentMib)
  const whole = members.reduce((sum, member) => sum + Math.max(0, Math.floor(((sizes.get(member) ?? 0) - groupHeadMib) / extentMib)), 0)
  const needed = volumes.reduce((sum, volume) => sum + extents(volume.sizeMib ?? leastOn(layout, volume.name)), 0)
  if (needed > whole) {
    const message = `its volumes need ${needed * extentMib} MiB, and ${members.join(', ')} give ${whole * extentMib} MiB`
    problems.push({ field: `groups.${name}`, message })
  }
  const rest = whole - volumes.reduce((sum, { sizeMib }) => sum + (sizeMib === undefined ? 0 : extents(sizeMib)), 0)
  const group: StorageStep = { do: 'group', name, members: members.map(member => refs.get(member) as DeviceRef) }
  return [
    group,
    ...volumes.map(volume => {
      const sizeMib = (volume.sizeMib === undefined ? rest : extents(volume.sizeMib)) * extentMib
      sizes.set(volume.name, sizeMib)
      refs.set(volume.name, { kind: 'volume', group: name, name: volume.name })
      return { do: 'volume' as const, group: name, name: volume.name, sizeMib }
    }),
  ]
}

function fileSystemSteps(
  layout: CustomLayout,
  sizes: Map<string, number>,
  refs: Map<string, DeviceRef>,
  problems: StorageProblem[],
): StorageStep[] {
  const all = layout.fileSystems.map((fileSystem, index) => {
    const [least, sizeMib] = [leastOn(layout, fileSystem.on), sizes.get(fileSystem.on) ?? 0]
    if (sizeMib < least) {
      const what = fileSystem.mount === '/' ? `the root file system (${fileSystem.type})` : fileSystem.type
      problems.push({ field: `fileSystems.${index}`, message: `${what} needs ${least} MiB, and "${fileSystem.on}" has ${sizeMib} MiB` })
    }
    return { ...fileSystem, device: refs.get(fileSystem.on) as DeviceRef }
  })
  return [
    ...all.map(({ device, type }) => ({ do: 'format' as const, device, type })),
    ...all
      .flatMap(({ device, type, mount, options = 'defaults' }) =>
        mount === undefined ? [] : [{ do: 'mount' as const, device, type, path: mount, options }],
      )
      // What is mounted within another comes after it: a path is longer than those it is below.
      .toSorted((a, b) => a.path.length - b.path.length),
    ...all.flatMap(({ device, type }) => (type === 'swap' ? [{ do: 'swap' as const, device }] : [])),
  ]
}

const sizeText = (bytes: number) => `${Math.floor(bytes / mib)} MiB`
const disksText = (disks: readonly Disk[]) =>
  disks.length === 0 ? 'no disk' : disks.map(({ name, sizeBytes, kind }) => `${name} (${sizeText(sizeBytes)} ${kind})`).join(', ')

function choiceText({ serial, kind, minBytes, maxBytes }: DiskChoice): string {
  const words = [
    ...(serial === undefined ? [] : [`serial number ${serial}`]),
    ...(kind === undefined ? [] : [`kind ${kind}`]),
    ...(minBytes === undefined ? [] : [`at least ${sizeText(minBytes)}`]),
    ...(maxBytes === undefined ? [] : [`at most ${sizeText(maxBytes)}`]),
  ]
  return words.length === 0 ? '' : ` (${words.join(', ')})`
}

const refText = (ref: DeviceRef) => {
  switch (ref.kind) {
    case 'partition':
      return `part:${ref.disk}:${ref.number}`
    case 'mirror':
      return `md:${ref.name}`
    case 'volume':
      return `lv:${ref.group}:${ref.name}`
  }
}

/** A step as the agent reads it: words between single spaces, the last of `disk` being the whole serial number. */
export function storageLine(step: StorageStep): string {
  switch (step.do) {
    case 'disk':
      return `disk ${step.disk} ${step.found.name} ${step.found.sizeBytes} ${printable(step.found.serial)}`.trimEnd()
    case 'partition':
      return `partition ${step.disk} ${step.number} ${step.startMib} ${step.sizeMib} ${step.use}`
    case 'mirror':
    case 'group':
      return `${step.do} ${step.name} ${step.members.map(refText).join(' ')}`
    case 'volume':
      return `volume ${step.group} ${step.name} ${step.sizeMib / extentMib}`
    case 'format':
      return `format ${refText(step.device)} ${step.type}`
    case 'mount':
      return `mount ${refText(step.device)} ${step.type} ${step.path} ${step.options}`
    case 'swap':
      return `swap ${refText(step.device)}`
    case 'boot':
      return `boot ${step.disk}`
  }
}

/** A serial number with a sign in it that no line can hold is as good as none: the disk goes by its name. */
const printable = (serial: string) => (/^[ -~]*$/.test(serial) ? serial.trim() : '')
