// Calls about subnets: the networks of a partition, which of their addresses are not given out, and which DHCP gives to anybody.
import { z } from 'zod'
import { label, partitionName } from '../machine.ts'
import { bitsOf, ipAddress, isInNetwork } from '../network.ts'
import { declareCall } from './call.ts'
import { type Key, mergePages, pageInput, pageOf } from './page.ts'

const addressRange = z.strictObject({ from: ipAddress, to: ipAddress, note: z.string().max(200).default('') })

/** What is said of a subnet, beside its name and where it is. */
export const described = {
  cidr: z.union([z.cidrv4(), z.cidrv6()], 'is not a network with its prefix length, such as 10.0.0.0/24'),
  vlan: z.number().int().min(1).max(4094).nullable().default(null).describe('VLAN id; null: untagged'),
  gateway: ipAddress.nullable().default(null),
  nameservers: z.array(ipAddress).max(8).default([]).describe('DNS servers'),
  reserved: z.array(addressRange).max(100).default([]).describe('addresses that are not given out, both ends included'),
  dynamic: z.array(addressRange).max(100).optional().describe('addresses that DHCP gives to anybody, both ends included'),
  description: z.string().max(1000).default(''),
}

export const subnet = z.object({
  partition: partitionName,
  name: label,
  ...described,
  /** How many of its addresses somebody has. */
  used: z.number().int(),
})
export type Subnet = z.infer<typeof subnet>

export const subnetKey = ({ name, partition }: Pick<Subnet, 'name' | 'partition'>): Key => [name, partition]

export const partitionAtFront = partitionName.optional().describe('needed at a front')
const ofSubnet = { kind: 'owner', of: (input: unknown) => (input as { partition?: string }).partition } as const
const named = { name: label, partition: partitionAtFront }

/** Prefixes short enough to have a first and a last address to spare, and long enough to be the network of one wire. */
const prefixes = { 4: { least: 8, most: 30 }, 6: { least: 32, most: 126 } } as const

const subnetPut = z.strictObject({ ...named, ...described }).superRefine(tellProblems)

/** The same without a name. */
export const describedSubnet = z.strictObject(described).superRefine(tellProblems)
export type DescribedSubnet = z.infer<typeof describedSubnet>

type Ranges = Pick<Subnet, 'cidr' | 'gateway' | 'reserved' | 'dynamic'>

function tellProblems(input: Ranges, context: z.RefinementCtx): void {
  for (const { field, message } of subnetProblems(input)) context.addIssue({ code: 'custom', path: field, message })
}

/** Everything that is wrong with a subnet by itself. */
export function subnetProblems({ cidr, gateway, reserved, dynamic = [] }: Ranges) {
  const problems: { field: (string | number)[]; message: string }[] = []
  const [address = '', length = ''] = cidr.split('/')
  const { least, most } = prefixes[address.includes(':') ? 6 : 4]
  if (Number(length) < least || Number(length) > most)
    problems.push({ field: ['cidr'], message: `has a prefix that is not between ${least} and ${most}` })
  if (bitsOf(address).slice(Number(length)).includes('1'))
    problems.push({ field: ['cidr'], message: 'is an address in a network; give the network, whose host part is zero' })
  if (gateway !== null && !isInNetwork(cidr, gateway)) problems.push({ field: ['gateway'], message: `is not in ${cidr}` })
  const ranges = [
    ...reserved.map((range, index) => ({ ...range, field: ['reserved', index], purpose: 'which is reserved' })),
    ...dynamic.map((range, index) => ({ ...range, field: ['dynamic', index], purpose: 'which DHCP gives to anybody' })),
  ].sort((a, b) => (bitsOf(a.from) < bitsOf(b.from) ? -1 : 1))
  for (const [place, { from, to, field }] of ranges.entries()) {
    const before = ranges[place - 1]
    if (!isInNetwork(cidr, from) || !isInNetwork(cidr, to)) problems.push({ field, message: `${from} to ${to} is not in ${cidr}` })
    else if (bitsOf(from) > bitsOf(to)) problems.push({ field, message: `${from} to ${to} ends before it begins` })
    else if (before && bitsOf(before.to) >= bitsOf(from))
      problems.push({
        field,
        message: `${from} to ${to} overlaps ${before.from} to ${before.to}${before.note && ` (${before.note})`}, ${before.purpose}`,
      })
  }
  for (const [index, range] of dynamic.entries())
    for (const message of dynamicProblems(range, { cidr, gateway })) problems.push({ field: ['dynamic', index], message })
  return problems
}

/** What DHCP cannot give to anybody. */
function dynamicProblems({ from, to }: { from: string; to: string }, { cidr, gateway }: Pick<Ranges, 'cidr' | 'gateway'>): string[] {
  if (cidr.includes(':')) return ['DHCP is served for IPv4 only']
  if (!isInNetwork(cidr, from) || !isInNetwork(cidr, to)) return []
  const hostOf = (address: string) => bitsOf(address).slice(Number(cidr.split('/')[1]))
  return [
    ...(hostOf(from).includes('1') ? [] : [`${from} is the address of the network itself`]),
    ...(hostOf(to).includes('0') ? [] : [`${to} is the broadcast address`]),
    ...(gateway !== null && bitsOf(from) <= bitsOf(gateway) && bitsOf(gateway) <= bitsOf(to)
      ? [`${from} to ${to} has the gateway, ${gateway}`]
      : []),
  ]
}

export const subnets = {
  list: declareCall({
    summary: 'List subnets',
    rest: { method: 'GET', path: '/subnets' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({ partition: z.array(partitionName).max(100).optional(), ...pageInput }),
    answer: pageOf(subnet),
    spread: {
      kind: 'gather',
      merge: (gathered, input) =>
        mergePages(gathered, { sort: 'name', limit: input.limit, cursor: input.cursor, keyOf: item => subnetKey(item) }),
    },
    errors: [],
  }),
  get: declareCall({
    summary: 'One subnet',
    rest: { method: 'GET', path: '/subnets/{name}' },
    status: 200,
    role: 'read-only',
    input: z.strictObject(named),
    answer: subnet,
    spread: ofSubnet,
    errors: ['not-found'],
  }),
  put: declareCall({
    summary: 'Create a subnet, or describe it anew',
    description:
      'Subnets of one VLAN do not overlap. Dynamic ranges stay as they were where they are left out; DHCP and DNS follow within 3 s. Static addresses that machines have by their network documents are recorded in it. While addresses of it are in use, its network and VLAN stay.',
    rest: { method: 'PUT', path: '/subnets/{name}' },
    status: 200,
    role: 'operator',
    input: subnetPut,
    answer: subnet,
    spread: ofSubnet,
    errors: ['not-found', 'already-exists', 'already-taken', 'wrong-state'],
  }),
  delete: declareCall({
    summary: 'Forget a subnet of which no address is reserved',
    rest: { method: 'DELETE', path: '/subnets/{name}' },
    status: 200,
    role: 'operator',
    input: z.strictObject(named),
    answer: subnet,
    spread: ofSubnet,
    errors: ['not-found', 'wrong-state'],
  }),
}
