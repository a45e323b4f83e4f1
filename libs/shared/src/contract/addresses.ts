// Calls about addresses: who has which one, giving one out, and what DHCP and DNS say of one host.
import { z } from 'zod'
import { partitionOf } from '../ids.ts'
import { hostname, label, mac, machineId, partitionName, timestamp } from '../machine.ts'
import { ipAddress } from '../network.ts'
import { declareCall } from './call.ts'
import { type Key, mergePages, pageInput, pageOf } from './page.ts'
import { partitionAtFront } from './subnets.ts'

export const address = z.object({
  id: z.number().int(),
  partition: partitionName,
  subnet: label,
  address: z.string(),
  /** `reserved`: somebody asked for it; `document`: the network document of the machine, or of its deployment, has it. */
  source: z.enum(['reserved', 'document']),
  machine: machineId.nullable(),
  /** Gets it by DHCP. */
  mac: z.string().nullable(),
  /** Its DNS name, and its other ones. */
  name: z.string().nullable(),
  aliases: z.array(z.string()),
  note: z.string(),
  by: z.string(),
  createdAt: timestamp,
  /** How lists sort. */
  place: z.string(),
})
export type Address = z.infer<typeof address>

export const addressKey = ({ place, partition, id }: Pick<Address, 'place' | 'partition' | 'id'>): Key => [place, `${partition}-${id}`]

const described = {
  name: hostname.optional().describe("its name in the partition's DNS zone; a machine's is its host name where left out"),
  aliases: z.array(hostname).max(16).default([]).describe('more names that lead to it'),
  note: z.string().max(1000).default(''),
}

const ofPartition = { kind: 'owner', of: (input: unknown) => (input as { partition?: string }).partition } as const

export const addresses = {
  list: declareCall({
    summary: 'List addresses that somebody has',
    rest: { method: 'GET', path: '/addresses' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({
      subnet: label.optional(),
      machine: machineId.optional(),
      mac: mac.optional(),
      partition: z.array(partitionName).max(100).optional(),
      ...pageInput,
    }),
    answer: pageOf(address),
    spread: {
      kind: 'gather',
      merge: (gathered, input) =>
        mergePages(gathered, { sort: 'address', limit: input.limit, cursor: input.cursor, keyOf: item => addressKey(item) }),
    },
    errors: [],
  }),
  reserve: declareCall({
    summary: 'Reserve an address: a given one, or the lowest that is free',
    description:
      'For a machine, for a MAC address, or for a named thing that Muster does not manage. A machine or MAC address is given it by DHCP; the name is served by DNS. Asking again for the same MAC address answers what it has.',
    rest: { method: 'POST', path: '/addresses' },
    status: 201,
    role: 'operator',
    input: z
      .strictObject({
        partition: partitionAtFront,
        subnet: label,
        address: ipAddress.optional().describe('the lowest free one where left out'),
        machine: machineId.optional(),
        mac: mac.optional().describe('who gets it by DHCP; the first interface of the machine where left out'),
        ...described,
      })
      .refine(({ machine, mac: port, name }) => machine !== undefined || port !== undefined || name !== undefined, {
        message: 'say whom it is for: machine, mac or name',
        path: ['name'],
      }),
    answer: address,
    spread: { kind: 'owner', of: input => input.partition ?? (input.machine && partitionOf(input.machine)) },
    errors: ['not-found', 'already-taken'],
  }),
  release: declareCall({
    summary: 'Give a reserved address back',
    rest: { method: 'DELETE', path: '/subnets/{subnet}/addresses/{address}' },
    status: 200,
    role: 'operator',
    input: z.strictObject({ subnet: label, address: ipAddress, partition: partitionAtFront }),
    answer: address,
    spread: ofPartition,
    errors: ['not-found', 'wrong-state'],
  }),
}

export const dhcpHosts = {
  set: declareCall({
    summary: 'Say which address and names the host with a MAC address has',
    description: 'In place of all that was reserved for this MAC address. DHCP and DNS follow within 3 s.',
    rest: { method: 'PUT', path: '/dhcp-hosts/{mac}' },
    status: 200,
    role: 'operator',
    input: z
      .strictObject({
        mac,
        partition: partitionAtFront,
        address: ipAddress.optional().describe('the lowest free one of the subnet where left out'),
        subnet: label.optional().describe('the one that has the address where left out'),
        ...described,
      })
      .refine(({ address: given, subnet }) => given !== undefined || subnet !== undefined, {
        message: 'say the address, or the subnet to take one from',
        path: ['address'],
      }),
    answer: address,
    spread: ofPartition,
    errors: ['not-found', 'already-taken'],
  }),
  delete: declareCall({
    summary: 'Forget which address and names the host with a MAC address has',
    rest: { method: 'DELETE', path: '/dhcp-hosts/{mac}' },
    status: 200,
    role: 'operator',
    input: z.strictObject({ mac, partition: partitionAtFront }),
    answer: z.object({ items: z.array(address) }),
    spread: ofPartition,
    errors: ['not-found'],
  }),
}
