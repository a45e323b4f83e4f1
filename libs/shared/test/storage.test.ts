// Storage layouts: what they say by themselves, and what is made of them on a machine. No plan may write where another part of it lives, or beyond a disk.
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { Disk } from '../src/machine.ts'
import { type CustomLayout, storageLayout } from '../src/storage.ts'
import {
  bootMib,
  type DeviceRef,
  extentMib,
  leastMib,
  leastRootMib,
  planStorage,
  type StorageStep,
  storageLine,
  tableMib,
} from '../src/storage-plan.ts'

const mib = 2 ** 20
const gib = 1024 * mib
const disk = (name: string, sizeBytes: number, more: Partial<Disk> = {}): Disk => ({
  name,
  serial: `S-${name}`,
  model: '',
  sizeBytes,
  kind: 'ssd',
  ...more,
})

const linesOf = (document: unknown, disks: readonly Disk[]) => {
  const plan = planStorage(storageLayout.parse(document), disks)
  return plan.kind === 'plan' ? plan.steps.map(storageLine) : plan.problems.map(({ field, message }) => `${field}: ${message}`)
}

describe('ready-made layouts', () => {
  test('flat: one disk, the first by name', () => {
    expect(linesOf({ kind: 'flat', swapMib: 1024 }, [disk('sdb', 10 * gib), disk('sda', 20 * gib)])).toEqual([
      'disk system sda 21474836480 S-sda',
      'partition system 1 1 1 bios',
      'partition system 2 2 256 efi',
      'partition system 3 258 1024 swap',
      'partition system 4 1282 19197 linux',
      'format part:system:4 ext4',
      'format part:system:3 swap',
      'mount part:system:4 ext4 / defaults',
      'swap part:system:3',
      'boot system',
    ])
  })

  test('flat: an eMMC only where there is no other', () => {
    expect(linesOf({ kind: 'flat' }, [disk('mmcblk0', 20 * gib), disk('sda', 20 * gib)])[0]).toBe('disk system sda 21474836480 S-sda')
    expect(linesOf({ kind: 'flat' }, [disk('mmcblk0', 20 * gib)])[0]).toBe('disk system mmcblk0 21474836480 S-mmcblk0')
  })

  test('lvm: a volume group on one disk; the root is all of it, or as large as said', () => {
    expect(
      linesOf({ kind: 'lvm', fileSystem: 'xfs', rootMib: 2050, disk: { kind: 'nvme' } }, [
        disk('sda', 9 * gib),
        disk('nvme0n1', 4 * gib, { kind: 'nvme' }),
      ]),
    ).toEqual([
      'disk system nvme0n1 4294967296 S-nvme0n1',
      'partition system 1 1 1 bios',
      'partition system 2 2 256 efi',
      'partition system 3 258 3837 lvm',
      'group system part:system:3',
      'volume system root 513',
      'format lv:system:root xfs',
      'mount lv:system:root xfs / defaults',
      'boot system',
    ])
  })

  test('raid1: two disks that could stand for each other, both with a loader', () => {
    const disks = [disk('sda', 8 * gib, { kind: 'hdd' }), disk('sdb', 4 * gib), disk('sdc', 4 * gib + 5 * mib, { serial: '' })]
    expect(linesOf({ kind: 'raid1' }, disks)).toEqual([
      'disk first sdb 4294967296 S-sdb',
      'disk second sdc 4300210176',
      'partition first 1 1 1 bios',
      'partition first 2 2 256 efi',
      'partition first 3 258 3837 raid',
      'partition second 1 1 1 bios',
      'partition second 2 2 256 efi',
      'partition second 3 258 3842 raid',
      'mirror root part:first:3 part:second:3',
      'format md:root ext4',
      'mount md:root ext4 / defaults',
      'boot first',
      'boot second',
    ])
  })
})

describe('what is missing is said', () => {
  test('of the machine', () => {
    expect(linesOf({ kind: 'flat' }, [])).toEqual(['disk: no disk of the machine fits; it has no disk'])
    expect(linesOf({ kind: 'flat' }, [disk('sda', 100 * mib)])).toEqual(['disk: needs a disk of 771 MiB; there is sda (100 MiB ssd)'])
    expect(linesOf({ kind: 'flat', disk: { serial: 'X', kind: 'hdd' } }, [disk('sda', gib)])).toEqual([
      'disk: no disk of the machine fits (serial number X, kind hdd); it has sda (1024 MiB ssd)',
    ])
    expect(linesOf({ kind: 'raid1', disk: { minBytes: gib } }, [disk('sda', 4 * gib), disk('sdb', 8 * gib)])).toEqual([
      'disk: needs two disks of the same kind and size (at least 1024 MiB); the machine has sda (4096 MiB ssd), sdb (8192 MiB ssd)',
    ])
    const two = {
      ...custom(),
      disks: { a: { bootable: true, partitions: [{ name: 'root' }] }, b: { partitions: [{ name: 'data', sizeMib: 100 }] } },
    }
    expect(linesOf(two, [disk('sda', 4 * gib)])).toEqual([
      'disks.b: no disk is left of at least 102 MiB; the machine has sda (4096 MiB ssd)',
    ])
    expect(linesOf({ kind: 'lvm', rootMib: 5000 }, [disk('sda', 4 * gib)])).toEqual([
      'disk: its volumes need 5000 MiB, and members give 3836 MiB',
    ])
    const tiny = { ...custom(), disks: { a: { bootable: true, partitions: [{ name: 'root', sizeMib: 100 }] } } }
    expect(linesOf(tiny, [disk('sda', 4 * gib)])).toEqual([
      'fileSystems.0: the root file system (ext4) needs 512 MiB, and "root" has 100 MiB',
    ])
  })

  test('of the document, by field', () => {
    const wrong = (change: object) => {
      const parsed = storageLayout.safeParse({ ...custom(), ...change })
      return parsed.success ? [] : parsed.error.issues.map(({ path, message }) => `${path.join('.')}: ${message}`)
    }
    const root = { on: 'root', type: 'ext4', mount: '/' }
    const parts = (...names: string[]) => ({ a: { bootable: true, partitions: names.map(name => ({ name, sizeMib: 600 })) } })
    expect(wrong({})).toEqual([])
    expect(wrong({ colour: 'red' })).toEqual([': Unrecognized key: "colour"'])
    expect(wrong({ fileSystems: [root, { on: 'other', type: 'ext4', mount: '/' }], disks: parts('root', 'other') })).toEqual([
      'fileSystems.1.mount: "root" is mounted at / already',
    ])
    expect(wrong({ fileSystems: [root, { on: 'root', type: 'swap' }] })).toEqual([
      'fileSystems.1.on: "root" is used by a file system (ext4) already',
    ])
    expect(wrong({ fileSystems: [{ ...root, mount: '/srv' }] })).toEqual(['fileSystems: nothing is mounted at /'])
    expect(wrong({ fileSystems: [{ ...root, type: 'vfat' }] })).toEqual(['fileSystems.0.mount: vfat cannot hold a root file system'])
    expect(wrong({ disks: { a: { partitions: [{ name: 'root' }] } } })).toEqual(['disks: no disk is bootable'])
    expect(wrong({ disks: { a: { bootable: true, partitions: [{ name: 'root' }, { name: 'x' }] } } })).toEqual([
      'disks.a.partitions.1.sizeMib: must be given: "root" is the rest already',
    ])
    expect(wrong({ raids: { m: { members: ['x', 'y'] } }, disks: parts('root', 'x', 'y') })).toEqual([
      'raids.m.members.1: "y" is on the same disk as "x"',
    ])
    expect(wrong({ raids: { root: { members: ['x', 'nowhere'] } }, disks: parts('root', 'x') })).toEqual([
      'raids.root: is the name of a partition too (disks.a.partitions.0.name)',
      'raids.root.members.1: "nowhere" is no device of this layout',
    ])
    expect(wrong({ groups: { sda: { members: ['x'], volumes: [{ name: 'v' }] } }, disks: parts('root', 'x') })[0]).toContain('/dev')
    for (const mount of ['srv', '/a/../b', '/a b', '/proc/x', '/boot/efi', '/a/'])
      expect(wrong({ fileSystems: [root, { on: 'x', type: 'ext4', mount }], disks: parts('root', 'x') }), mount).toHaveLength(1)
  })
})

function custom() {
  return {
    kind: 'custom',
    disks: { a: { bootable: true, partitions: [{ name: 'root' }] } },
    fileSystems: [{ on: 'root', type: 'ext4', mount: '/' }],
  }
}

test('a disk that one part of a layout could have is left to another that can have no other', () => {
  const layout = {
    ...custom(),
    disks: {
      a: { bootable: true, partitions: [{ name: 'root' }] },
      b: { choose: { serial: 'S-sda' }, partitions: [{ name: 'data', sizeMib: 100 }] },
    },
  }
  expect(linesOf(layout, [disk('sda', 4 * gib), disk('sdb', 4 * gib)]).slice(0, 2)).toEqual([
    'disk a sdb 4294967296 S-sdb',
    'disk b sda 4294967296 S-sda',
  ])
})

test('a serial number that would break a line is left out', () => {
  expect(linesOf({ kind: 'flat' }, [disk('sda', 2 * gib, { serial: 'A\nboot x' })])[0]).toBe('disk system sda 2147483648')
})

/** Any layout that is right by itself: partitions on some disks; some of them mirrored, some of these grouped; what is left gets file systems. */
const layouts: fc.Arbitrary<CustomLayout> = fc
  .record({
    partitions: fc.array(fc.array(fc.option(fc.integer({ min: 1, max: 3000 })), { minLength: 1, maxLength: 5 }), {
      minLength: 1,
      maxLength: 4,
    }),
    bootable: fc.array(fc.boolean(), { minLength: 4, maxLength: 4 }),
    roles: fc.array(fc.constantFrom('plain', 'mirror', 'group'), { minLength: 20, maxLength: 20 }),
    volumes: fc.array(fc.option(fc.integer({ min: 1, max: 2000 })), { minLength: 1, maxLength: 5 }),
    types: fc.array(fc.constantFrom('ext4', 'xfs', 'btrfs', 'vfat', 'swap', 'none'), { minLength: 40, maxLength: 40 }),
    paths: fc.shuffledSubarray(['/var', '/var/lib', '/var/lib/db', '/home', '/srv', '/boot', '/opt/a/b', '/opt/a'], { minLength: 8 }),
  })
  .map(({ partitions, bootable, roles, volumes, types, paths }) => {
    let count = 0
    const onlyOneRest = (sizes: (number | null)[]) =>
      sizes.map((size, index) => (size === null && sizes.indexOf(null) !== index ? 7 : size))
    const parts = partitions.map(sizes =>
      onlyOneRest(sizes).map(size => ({ name: `p${count++}`, ...(size !== null && { sizeMib: size }) })),
    )
    const roleOf = (name: string) => roles[Number(name.slice(1))]
    const forMirror = parts.flatMap(on => on.find(({ name }) => roleOf(name) === 'mirror')?.name ?? [])
    const mirrored = forMirror.length > 1 ? forMirror : []
    const grouped = parts.flat().flatMap(({ name }) => (roleOf(name) === 'group' ? [name] : []))
    const members = [...grouped, ...(mirrored.length > 0 && roles[19] === 'group' ? ['m'] : [])]
    const vols = onlyOneRest(volumes).map((size, index) => ({ name: `v${index}`, ...(size !== null && { sizeMib: size }) }))
    const free = [
      ...parts.flat().flatMap(({ name }) => (mirrored.includes(name) || members.includes(name) ? [] : [name])),
      ...(mirrored.length > 0 && !members.includes('m') ? ['m'] : []),
      ...(members.length > 0 ? vols.map(({ name }) => name) : []),
    ]
    const at = [...paths]
    return {
      kind: 'custom',
      disks: Object.fromEntries(
        parts.map((on, index) => [`d${index}`, { choose: {}, bootable: index === 0 || bootable[index], partitions: on }]),
      ),
      raids: mirrored.length > 0 ? { m: { members: mirrored } } : {},
      groups: members.length > 0 ? { g: { members, volumes: vols } } : {},
      fileSystems: free.flatMap((on, index) => {
        const type = types[index] as string
        if (index === 0) return [{ on, type: type === 'xfs' || type === 'btrfs' ? type : 'ext4', mount: '/' }]
        if (type === 'none') return []
        const mount = type === 'swap' ? undefined : at.pop()
        return [{ on, type, ...(mount && { mount }) }]
      }),
    } as CustomLayout
  })
  .filter(({ fileSystems }) => fileSystems.length > 0)

const machines = fc
  .array(
    fc.record({
      sizeBytes: fc.integer({ min: 0, max: 30_000 }).chain(size => fc.constantFrom(size * mib, size * mib + 512)),
      kind: fc.constantFrom('hdd', 'ssd', 'nvme'),
    }),
    { maxLength: 6 },
  )
  .map(all => all.map((each, index): Disk => disk(`sd${'abcdef'[index]}`, each.sizeBytes, { kind: each.kind as Disk['kind'] })))

type Of<Kind extends StorageStep['do']> = Extract<StorageStep, { do: Kind }>
const only = <Kind extends StorageStep['do']>(steps: readonly StorageStep[], kind: Kind) =>
  steps.filter((step): step is Of<Kind> => step.do === kind)

/** What a device holds, reckoned from the steps alone. */
function sizeOf(steps: readonly StorageStep[], ref: DeviceRef): number {
  if (ref.kind === 'partition')
    return only(steps, 'partition').find(({ disk: on, number }) => on === ref.disk && number === ref.number)?.sizeMib ?? 0
  if (ref.kind === 'volume') return only(steps, 'volume').find(({ group, name }) => group === ref.group && name === ref.name)?.sizeMib ?? 0
  const mirror = only(steps, 'mirror').find(({ name }) => name === ref.name)
  return Math.min(...(mirror?.members ?? []).map(member => sizeOf(steps, member))) - 1
}

test('no plan overlaps, exceeds what it is made on, uses a disk or a device twice, or mounts before what it is mounted in', () => {
  let planned = 0
  fc.assert(
    fc.property(layouts, machines, (document, disks) => {
      const layout = storageLayout.parse(document) as CustomLayout
      const plan = planStorage(layout, disks)
      if (plan.kind === 'unfit') {
        expect(plan.problems.length).toBeGreaterThan(0)
        return
      }
      planned++
      const { steps } = plan
      const found = only(steps, 'disk')
      expect(new Set(found.map(step => step.found.name)).size).toBe(Object.keys(layout.disks).length)
      for (const { disk: name, found: real } of found) {
        const parts = only(steps, 'partition').filter(step => step.disk === name)
        let free: number = tableMib.head
        for (const { startMib, sizeMib } of parts) {
          expect(startMib).toBe(free)
          expect(sizeMib).toBeGreaterThan(0)
          free = startMib + sizeMib
        }
        expect((free + tableMib.tail) * mib).toBeLessThanOrEqual(real.sizeBytes)
        // What was said is kept to the MiB.
        const own = parts.slice(layout.disks[name]?.bootable ? 2 : 0)
        layout.disks[name]?.partitions.forEach(({ sizeMib }, index) => {
          if (sizeMib !== undefined) expect(own[index]?.sizeMib).toBe(sizeMib)
        })
        if (layout.disks[name]?.bootable)
          expect(parts.slice(0, 2).map(({ startMib, sizeMib, use }) => [startMib, sizeMib, use])).toEqual([
            [1, bootMib.bios, 'bios'],
            [2, bootMib.efi, 'efi'],
          ])
      }
      for (const { name, members } of only(steps, 'group')) {
        const extents = members.reduce((sum, member) => sum + Math.floor((sizeOf(steps, member) - 1) / extentMib), 0)
        const used = only(steps, 'volume')
          .filter(({ group }) => group === name)
          .reduce((sum, { sizeMib }) => sum + sizeMib / extentMib, 0)
        expect(used).toBeLessThanOrEqual(extents)
      }
      const users = [...only(steps, 'mirror'), ...only(steps, 'group')].flatMap(({ members }) => members)
      const texts = [...users, ...only(steps, 'format').map(({ device }) => device)].map(ref => JSON.stringify(ref))
      expect(new Set(texts).size).toBe(texts.length)
      for (const { device, type } of only(steps, 'format')) expect(sizeOf(steps, device)).toBeGreaterThanOrEqual(leastMib[type])
      const mounts = only(steps, 'mount')
      expect(mounts[0]?.path).toBe('/')
      expect(sizeOf(steps, (mounts[0] as Of<'mount'>).device)).toBeGreaterThanOrEqual(leastRootMib)
      expect(mounts.map(({ path }) => path).toSorted()).toEqual(layout.fileSystems.flatMap(({ mount }) => mount ?? []).toSorted())
      mounts.forEach(({ path }, index) => {
        for (const later of mounts.slice(index + 1)) expect(path.startsWith(later.path === '/' ? '/' : `${later.path}/`)).toBe(false)
      })
      // Everything is made before it is used.
      const order = ['disk', 'partition', 'mirror', 'group', 'volume', 'format', 'mount', 'swap', 'boot']
      const places = steps.map(step => (step.do === 'volume' ? order.indexOf('group') : order.indexOf(step.do)))
      expect(places).toEqual(places.toSorted((a, b) => a - b))
      for (const step of steps) expect(storageLine(step)).toMatch(/^[ -~]+$/)
      // The same again: what two replicas tell an agent is the same.
      expect(planStorage(layout, disks.toReversed())).toEqual(plan)
    }),
    { numRuns: 1500 },
  )
  expect(planned, 'enough of the layouts fit').toBeGreaterThan(150)
})
