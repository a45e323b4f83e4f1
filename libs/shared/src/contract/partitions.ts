// Calls about partitions, and what they can install.
import { z } from 'zod'
import { states } from '../life-cycle.ts'
import { architecture, label, osName, partitionName, timestamp } from '../machine.ts'
import { declareCall, type Gathered } from './call.ts'
import { type Page, pageOf } from './page.ts'

/** Rules of a partition that its document may set. */
export const centralRules = ['erase', 'enlisted', 'enlistedMost'] as const

export const replica = z.object({ name: z.string(), epoch: z.number().int(), version: z.string(), seenAt: timestamp })

export const partitionStatus = z.object({
  name: partitionName,
  /** `silent`: it did not answer. */
  status: z.enum(['ready', 'degraded', 'silent']),
  url: z.string().nullable(),
  version: z.string().nullable(),
  /** How many machines are in each state. */
  machines: z.partialRecord(z.enum(states), z.number().int()),
  /** Machines past their deadline, or with a fault. */
  overdue: z.number().int(),
  faulty: z.number().int(),
  replicas: z.array(replica),
  lastSeq: z.number().int(),
  /** What is wrong, in words; empty when all is well. */
  problems: z.array(z.string()),
  /** What works as it is set, and could be abused, in words. Left out by a server that does not know the field. */
  weaknesses: z.array(z.string()).optional(),
  /** Images of the global configuration that are on their way, with the bytes that are here. Left out by a server that does not know the field. */
  fetching: z.array(z.object({ name: z.string(), os: osName, arch: architecture, bytes: z.number().int() })).optional(),
  /** The rules that may be set for it centrally, as they hold here, and who says so. Left out by a server that does not know the field. */
  rules: z.array(z.object({ rule: z.enum(centralRules), value: z.string(), from: z.enum(['document', 'server']) })).optional(),
  /**
   * What DHCP of the replica that answers gives to anybody, by whose word: a subnet's, or (null) that of its settings, which does not count where
   * `overruledBy` names a subnet. Left out by a server that does not know the field.
   */
  dhcp: z.array(z.object({ from: z.string(), to: z.string(), subnet: label.nullable(), overruledBy: label.nullable() })).optional(),
})
export type PartitionStatus = z.infer<typeof partitionStatus>

/** What DHCP one replica serves. */
export const dhcpServer = z.object({
  replica: z.string(),
  /** Its own addresses there: by them its offers are known. */
  addresses: z.array(z.string()),
  /** What it gives to anybody, both ends included. */
  ranges: z.array(
    z.object({
      from: z.string(),
      to: z.string(),
      prefix: z.number().int(),
      gateway: z.string().nullable(),
      /** Whose dynamic range it is; null, or left out by a server that does not know the field: its settings say it. */
      subnet: label.nullable().optional(),
    }),
  ),
  /** Networks, with prefix length, whose addresses another DHCP server gives: there it only says what to boot. Left out by a server that does not know the field. */
  beside: z.array(z.string()).optional(),
  zone: z.string().nullable(),
})
export type DhcpServer = z.infer<typeof dhcpServer>

const silentStatus = (name: string): PartitionStatus => ({
  name,
  status: 'silent',
  url: null,
  version: null,
  machines: {},
  overdue: 0,
  faulty: 0,
  replicas: [],
  lastSeq: 0,
  problems: ['it does not answer'],
})

export const partitions = {
  list: declareCall({
    summary: 'List partitions; a silent one is listed too',
    rest: { method: 'GET', path: '/partitions' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({}),
    answer: pageOf(partitionStatus),
    spread: {
      kind: 'gather',
      merge: ({ answers, silent }: Gathered<Page<PartitionStatus>>) => ({
        items: [...answers.flatMap(({ answer }) => answer.items), ...silent.map(silentStatus)].sort((a, b) => (a.name < b.name ? -1 : 1)),
        nextCursor: null,
      }),
    },
    errors: [],
  }),
  get: declareCall({
    summary: 'One partition, asked now',
    rest: { method: 'GET', path: '/partitions/{name}' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({ name: partitionName }),
    answer: partitionStatus,
    spread: { kind: 'owner', of: input => input.name },
    errors: ['not-found'],
  }),
  dhcp: declareCall({
    summary: 'What DHCP the replicas of a partition serve: where, and which addresses',
    rest: { method: 'GET', path: '/partitions/{name}/dhcp' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({ name: partitionName }),
    answer: z.object({ servers: z.array(dhcpServer) }),
    spread: { kind: 'owner', of: input => input.name },
    errors: ['not-found'],
  }),
  status: declareCall({
    summary: 'The whole federation at a glance',
    rest: { method: 'GET', path: '/status' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({}),
    answer: z.object({
      machines: z.partialRecord(z.enum(states), z.number().int()),
      overdue: z.number().int(),
      faulty: z.number().int(),
      problems: z.array(z.object({ partition: partitionName, problem: z.string() })),
    }),
    spread: {
      kind: 'gather',
      merge: ({ answers, silent }) => {
        const machines: Partial<Record<(typeof states)[number], number>> = {}
        for (const { answer } of answers)
          for (const state of states) if (answer.machines[state]) machines[state] = (machines[state] ?? 0) + answer.machines[state]
        return {
          machines,
          overdue: answers.reduce((sum, { answer }) => sum + answer.overdue, 0),
          faulty: answers.reduce((sum, { answer }) => sum + answer.faulty, 0),
          problems: [
            ...answers.flatMap(({ answer }) => answer.problems),
            ...silent.map(partition => ({ partition, problem: 'it does not answer' })),
          ],
        }
      },
    },
    errors: [],
  }),
}

export const operatingSystem = z.object({
  name: osName,
  title: z.string(),
  arch: architecture,
  /** The partition knows how to install it. */
  supported: z.boolean(),
  /** The partition holds its files. In a gathered answer: at least one does. */
  available: z.boolean(),
  /** Which partitions can deploy it now. */
  partitions: z.array(partitionName),
})
export type OperatingSystem = z.infer<typeof operatingSystem>

export const operatingSystems = {
  list: declareCall({
    summary: 'What can be deployed, and where',
    rest: { method: 'GET', path: '/operating-systems' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({}),
    answer: pageOf(operatingSystem),
    spread: {
      kind: 'gather',
      merge: ({ answers }: Gathered<Page<OperatingSystem>>) => {
        const byKey = new Map<string, OperatingSystem>()
        for (const { answer } of answers)
          for (const item of answer.items) {
            const known = byKey.get(`${item.name} ${item.arch}`)
            if (!known) byKey.set(`${item.name} ${item.arch}`, { ...item, partitions: [...item.partitions] })
            else {
              known.supported ||= item.supported
              known.available ||= item.available
              known.partitions.push(...item.partitions)
            }
          }
        const items = [...byKey.values()].sort((a, b) => (`${a.name} ${a.arch}` < `${b.name} ${b.arch}` ? -1 : 1))
        for (const item of items) item.partitions.sort()
        return { items, nextCursor: null }
      },
    },
    errors: [],
  }),
}
