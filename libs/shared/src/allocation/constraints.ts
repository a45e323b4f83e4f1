// What may be asked of a machine. All constraints must hold; a list of names is any-of, except `tags` (all-of). Only syntax can be
// wrong here: a tag, zone or pool that nobody has is "no match", because another partition may have it.
import { z } from 'zod'
import { architecture, diskKind, hostname, label, machineId, osName, partitionName } from '../machine.ts'

const names = <T extends z.ZodType>(item: T) => z.array(item).min(1).max(100)

export const diskConstraint = z.strictObject({
  sizeGb: z.number().positive().max(10_000_000).optional().describe('at least this size, in 10^9 bytes'),
  kind: diskKind.optional(),
  count: z.number().int().min(1).max(100).default(1),
})
export const interfaceConstraint = z.strictObject({
  speedMbps: z.number().int().positive().max(10_000_000).optional().describe('at least this speed'),
  subnet: z.string().min(1).max(64).optional().describe('CIDR of the subnet it is plugged into'),
  count: z.number().int().min(1).max(100).default(1),
})

export const constraints = z.strictObject({
  arch: names(architecture).optional(),
  cpus: z.number().int().min(1).max(100_000).optional().describe('at least so many'),
  memoryMib: z.number().int().min(1).max(1_000_000_000).optional().describe('at least so much'),
  disks: z.array(diskConstraint).min(1).max(32).optional().describe('each asks for disks of its own'),
  interfaces: z.array(interfaceConstraint).min(1).max(32).optional().describe('each asks for interfaces of its own'),
  tags: names(label).optional().describe('all of them'),
  notTags: names(label).optional().describe('none of them'),
  pools: names(label).optional(),
  notPools: names(label).optional(),
  zones: names(label).optional(),
  notZones: names(label).optional(),
  racks: names(label).optional(),
  notRacks: names(label).optional(),
  machines: names(machineId).optional().describe('one of these machines'),
  hostnames: names(hostname).optional(),
  partitions: names(partitionName).optional(),
  notPartitions: names(partitionName).optional(),
  os: osName.optional().describe('can be deployed there, e.g. debian/12'),
})
export type Constraints = z.output<typeof constraints>
export type ConstraintName = keyof Constraints

export const strategies = ['first', 'best', 'spread', 'pack'] as const
/** `first`: the first offer. `best`: least waste over all. `spread`/`pack`: fewest/most machines already taken in the same rack, zone and partition. */
export type Strategy = (typeof strategies)[number]
