// Subnets and addresses: what people ask of them. Choosing a free address, refusing a duplicate with both owners named.
import type { Caller } from '@muster/shared/contract/call'
import type { CallAnswer, CallInput } from '@muster/shared/contract/contract'
import { subnetProblems } from '@muster/shared/contract/subnets'
import { Refusal, wrongFields } from '@muster/shared/errors'
import { bitsOf } from '@muster/shared/network'
import * as db from '../db/addresses.ts'
import { inTransaction, isDuplicate, type Sql } from '../db/connect.ts'
import { findMachine, findMachineByHostname, findMachineByMac, type MachineRow } from '../db/machines.ts'
import * as subnetRows from '../db/subnets.ts'
import type { Core } from './core.ts'
import { existingMachine } from './move.ts'
import {
  type Asker,
  askerFacts,
  askerText,
  holderFacts,
  holderText,
  machineText,
  recordAllDocuments,
  recordDocuments,
  refuseUnusable,
  takenRefusal,
} from './static-addresses.ts'

type Address = CallAnswer<'addresses.reserve'>
type Subnet = CallAnswer<'subnets.get'>

/** Network documents may take the address that was just chosen; more often in a row than this means that something is wrong. */
const maxAttempts = 10

export const addressViewOf = (row: db.AddressRow, partition: string): Address => ({
  id: row.id,
  partition,
  subnet: row.subnet,
  address: row.address,
  source: row.source,
  machine: row.machine_id,
  mac: row.mac,
  name: row.name ?? row.hostname,
  aliases: row.aliases,
  note: row.note,
  by: row.actor,
  createdAt: row.created_at.toISOString(),
  place: row.place,
})

export const subnetViewOf = (row: subnetRows.SubnetRow, partition: string): Subnet => ({ partition, ...row })

export async function getSubnet(core: Core, name: string): Promise<Subnet> {
  return subnetViewOf(existing(core, name, await subnetRows.findSubnet(core.sql, name)), core.partition)
}

function existing(core: Core, name: string, row: subnetRows.SubnetRow | undefined): subnetRows.SubnetRow {
  if (!row) throw new Refusal('not-found', `there is no subnet ${name} in partition ${core.partition}`)
  return row
}

/** Creates or describes it. Throws what {@link putSubnets} throws. */
export async function putSubnet(core: Core, caller: Caller, input: SubnetInput): Promise<Subnet> {
  await putSubnets(core, caller, [input])
  return getSubnet(core, input.name)
}

type SubnetInput = CallInput<'subnets.put'>

/**
 * Creates or describes all of them, or none; they may exchange their networks. Throws already-exists naming a subnet that overlaps one, already-taken
 * where two machines have an address of one or somebody has what DHCP is to give to anybody, wrong-state where one would move while addresses of it
 * are in use, invalid-input where the dynamic ranges that it had are not in it any more.
 */
export async function putSubnets(core: Core, caller: Caller, inputs: readonly SubnetInput[]): Promise<void> {
  await inTransaction(core.sql, async sql => {
    // Who puts subnets takes turns by this.
    await subnetRows.holdMachineWrites(sql)
    await subnetRows.letOverlap(sql)
    const fresh: string[] = []
    for (const input of inputs) if ((await describe(sql, input, caller)) === 'elsewhere than before') fresh.push(input.name)
    for (const input of inputs) {
      refuseOverlap(input, await subnetRows.subnetsOverlapping(sql, input))
      refuseServedTwice(input, await subnetRows.servedOverlapping(sql, input.name))
    }
    for (const name of fresh) await recordAllDocuments(sql, name, caller.name)
    for (const input of inputs) await refuseWhatIsHeld(sql, input, caller)
  })
  core.bells.log.ring()
}

async function describe(sql: Sql, input: SubnetInput, caller: Caller): Promise<'where it was' | 'elsewhere than before'> {
  const { name, cidr, vlan } = input
  await subnetRows.lockSubnet(sql, name)
  const before = await subnetRows.findSubnet(sql, name)
  const isElsewhere = before === undefined || !isSameNetwork(before.cidr, cidr) || before.vlan !== vlan
  if (before && isElsewhere && before.used > 0)
    throw new Refusal(
      'wrong-state',
      `move subnet ${name} from ${wireText(before)} to ${wireText(input)}: ${before.used} of its addresses are in use; make another subnet and move them first`,
    )
  const dynamic = input.dynamic ?? before?.dynamic ?? []
  const problems = subnetProblems({ ...input, dynamic })
  if (problems.length > 0) throw wrongFields(problems.map(({ field, message }) => ({ field: field.join('.'), message })))
  await subnetRows.putSubnet(sql, input, caller.name)
  await subnetRows.replaceRanges(sql, name, { table: 'subnet_ranges', ranges: input.reserved })
  await subnetRows.replaceRanges(sql, name, { table: 'dynamic_ranges', ranges: dynamic })
  return isElsewhere ? 'elsewhere than before' : 'where it was'
}

function refuseOverlap(input: SubnetInput, others: readonly subnetRows.SubnetRow[]): void {
  if (others.length === 0) return
  const words = others.map(other => `${other.name} (${wireText(other)})`).join(', ')
  throw new Refusal('already-exists', `subnet ${input.name} (${wireText(input)}) overlaps ${words}`, {
    subnets: others.map(other => other.name),
  })
}

function refuseServedTwice(input: SubnetInput, others: readonly subnetRows.SubnetRow[]): void {
  if (others.length === 0) return
  const words = others.map(other => `${other.name} (${wireText(other)})`).join(', ')
  throw new Refusal(
    'already-exists',
    `dynamic ranges of subnet ${input.name} (${wireText(input)}): ${words} has some too, and DHCP tells networks apart by their addresses alone`,
    { subnets: others.map(other => other.name) },
  )
}

/** What somebody has DHCP does not give to anybody. */
async function refuseWhatIsHeld(sql: Sql, { name }: SubnetInput, caller: Caller): Promise<void> {
  const [held] = await db.heldInDynamic(sql, name)
  if (!held) return
  throw new Refusal(
    'already-taken',
    `the dynamic range ${held.range} of subnet ${name} (asked by ${caller.name}): ${holderText(held)} has ${held.address}`,
    { subnet: name, range: held.range, holder: holderFacts(held), asker: { by: caller.name } },
  )
}

/** An address of IPv6 has many spellings. */
export function isSameNetwork(one: string, other: string): boolean {
  const [a, b] = [one, other].map(text => text.split('/') as [string, string])
  return a?.[1] === b?.[1] && bitsOf(a?.[0] as string) === bitsOf(b?.[0] as string)
}

const wireText = ({ cidr, vlan }: { cidr: string; vlan: number | null }) => `${cidr}${vlan === null ? ', untagged' : `, VLAN ${vlan}`}`

export async function deleteSubnet(core: Core, caller: Caller, name: string): Promise<Subnet> {
  const found = await getSubnet(core, name)
  const outcome = await inTransaction(core.sql, async sql => {
    // Nobody may come to have an address of it meanwhile: neither by a document nor by asking.
    await subnetRows.holdMachineWrites(sql)
    await subnetRows.lockSubnet(sql, name)
    return subnetRows.deleteSubnet(sql, name, caller.name)
  })
  if (outcome === 'in use') throw new Refusal('wrong-state', `delete subnet ${name}: addresses of it are reserved; release them first`)
  core.bells.log.ring()
  return found
}

/** Reserves an address. Throws already-taken naming both owners, or that the subnet is full. */
export async function reserveAddress(core: Core, caller: Caller, input: CallInput<'addresses.reserve'>): Promise<Address> {
  const machine = await machineMeant(core, input)
  const mac = input.mac ?? machine?.interfaces[0]?.mac ?? null
  const wanted = { ...input, machine, mac, actor: caller.name }
  await refuseTakenNames(core, wanted)
  return settled(core, wanted, sql => reserve(core, sql, wanted))
}

/** In place of all that was reserved for the MAC address. Idempotent. */
export async function setDhcpHost(core: Core, caller: Caller, input: CallInput<'dhcpHosts.set'>): Promise<Address> {
  const machine = await findMachineByMac(core.sql, [input.mac])
  const subnet = input.subnet ?? (await subnetOf(core, input.address as string))
  const found = await db.reservedFor(core.sql, input.mac)
  const [same] = found.filter(row => row.subnet === subnet)
  const wanted = { ...input, subnet, address: input.address ?? same?.address, machine, isByMac: true, actor: caller.name }
  await refuseTakenNames(core, wanted)
  return settled(core, wanted, async sql => {
    for (const row of await db.reservedFor(sql, input.mac)) await release(sql, row, caller)
    return reserve(core, sql, wanted)
  })
}

export async function deleteDhcpHost(core: Core, caller: Caller, mac: string): Promise<{ items: Address[] }> {
  const gone = await inTransaction(core.sql, async sql => {
    const rows = await db.reservedFor(sql, mac)
    for (const row of rows) await release(sql, row, caller)
    return rows
  })
  if (gone.length === 0) throw new Refusal('not-found', `partition ${core.partition} has no address reserved for ${mac}`)
  core.bells.log.ring()
  return { items: gone.map(row => addressViewOf(row, core.partition)) }
}

/** Gives a reserved address back; one that a machine's network document still has stays that machine's. */
export async function releaseAddress(core: Core, caller: Caller, input: CallInput<'addresses.release'>): Promise<Address> {
  const found = await db.findAddress(core.sql, input.subnet, input.address)
  if (!found) throw new Refusal('not-found', `nobody has ${input.address} of subnet ${input.subnet} in partition ${core.partition}`)
  if (found.source === 'document') {
    const why = `${machineText(found.machine_id as string, found.hostname)} has it by its network document; change that`
    throw new Refusal('wrong-state', `release ${found.address} of subnet ${found.subnet}: ${why}`)
  }
  await inTransaction(core.sql, sql => release(sql, found, caller))
  core.bells.log.ring()
  return addressViewOf(found, core.partition)
}

async function release(sql: Sql, row: db.AddressRow, caller: Caller): Promise<void> {
  await db.releaseReserved(sql, row, caller.name)
  const machine = row.machine_id === null ? undefined : await findMachine(sql, row.machine_id)
  if (machine) await recordDocuments(sql, machine, caller.name)
}

interface Wanted {
  subnet: string
  address?: string | undefined
  machine: MachineRow | undefined
  /** The MAC address is what was asked for, not the machine that has it. */
  isByMac?: boolean
  mac: string | null
  name?: string | undefined
  aliases: readonly string[]
  note: string
  actor: string
}

const askerOf = ({ machine, mac, name, actor }: Wanted): Asker => ({ machine: machine ?? null, mac, name: name ?? null, by: actor })

/** The machine that was named, or the one whose MAC address was. Throws where they are two. */
async function machineMeant(core: Core, { machine: id, mac }: CallInput<'addresses.reserve'>): Promise<MachineRow | undefined> {
  if (id === undefined) return mac === undefined ? undefined : findMachineByMac(core.sql, [mac])
  const machine = await existingMachine(core, id)
  if (mac === undefined || machine.interfaces.some(port => port.mac === mac)) return machine
  const message = `no interface of ${id} has ${mac}; it has ${machine.interfaces.map(port => port.mac).join(', ')}`
  throw wrongFields([{ field: 'mac', message }])
}

async function subnetOf(core: Core, address: string): Promise<string> {
  const found = await subnetRows.subnetsWith(core.sql, [address])
  const [only] = found
  if (only && found.length === 1) return only.name
  if (!only) throw new Refusal('not-found', `no subnet of partition ${core.partition} has ${address}; put the subnet first`)
  const message = `${found.map(({ name }) => name).join(' and ')} both have ${address}; say which is meant`
  throw wrongFields([{ field: 'subnet', message }])
}

/** A DNS name leads to one thing: not to a machine's host name and to a reservation for something else. */
async function refuseTakenNames(core: Core, wanted: Wanted): Promise<void> {
  for (const name of namesOf(wanted)) {
    const other = await findMachineByHostname(core.sql, name)
    if (other && other.id !== wanted.machine?.id)
      throw new Refusal(
        'already-taken',
        `the name ${name} for ${askerText(askerOf(wanted))}: ${machineText(other.id, other.hostname)} is called so`,
        { name, holder: { machine: other.id }, asker: askerFacts(askerOf(wanted)) },
      )
  }
}

const namesOf = ({ name, aliases }: Wanted) => [...(name === undefined ? [] : [name]), ...aliases]

/** Runs the reservation in a transaction, again where a network document was faster; tells the loops, and answers how it is. */
async function settled(core: Core, wanted: Wanted, act: (sql: Sql) => Promise<db.AddressRow | 'again'>): Promise<Address> {
  try {
    for (let attempt = 1; attempt <= maxAttempts; attempt++) {
      const row = await inTransaction(core.sql, act)
      if (row === 'again') continue
      core.bells.log.ring()
      return addressViewOf(row, core.partition)
    }
  } catch (error) {
    if (!isDuplicate(error, 'dns_names_pkey')) throw error
    const names = namesOf(wanted)
    const other = await db.findByName(core.sql, names)
    if (!other) throw new Refusal('invalid-input', `aliases: one of ${names.join(', ')} is there twice`, {}, { cause: error })
    const detail = `one of the names ${names.join(', ')} for ${askerText(askerOf(wanted))}: it leads to ${other.address}, which ${holderText(other)} has`
    throw new Refusal('already-taken', detail, { names, holder: holderFacts(other), asker: askerFacts(askerOf(wanted)) })
  }
  throw new Refusal('stale-version', `an address of subnet ${wanted.subnet}: ${maxAttempts} times another was faster`)
}

async function reserve(core: Core, sql: Sql, wanted: Wanted): Promise<db.AddressRow | 'again'> {
  await subnetRows.lockSubnet(sql, wanted.subnet)
  const subnet = existing(core, wanted.subnet, await subnetRows.findSubnet(sql, wanted.subnet))
  const machine = wanted.isByMac === true ? null : (wanted.machine?.id ?? null)
  const reservation = { ...wanted, machine, name: wanted.name }
  const { mac, address } = wanted
  const asker = askerOf(wanted)
  const [known] = mac === null ? [] : (await db.reservedFor(sql, mac)).filter(row => row.subnet === subnet.name)
  if (known && (address === undefined || bitsOf(address) === bitsOf(known.address))) return known
  if (known)
    throw new Refusal(
      'already-taken',
      `${address} of subnet ${subnet.name} for ${askerText(asker)}: ${mac} has ${known.address} there already (reserved by ${known.actor})`,
      { subnet: subnet.name, address, holder: holderFacts(known), asker: askerFacts(asker) },
    )
  if (address === undefined) {
    const chosen = await db.reserveFree(sql, reservation)
    if (chosen === 'again') return 'again'
    if (chosen === 'full')
      throw new Refusal(
        'already-taken',
        `an address of subnet ${subnet.name} (${subnet.cidr}) for ${askerText(asker)}: all are taken, reserved, or given to anybody by DHCP`,
        { subnet: subnet.name, asker: askerFacts(asker) },
      )
    return (await db.findAddress(sql, subnet.name, chosen.address)) as db.AddressRow
  }
  refuseUnusable(subnet, address, asker)
  if (wanted.machine) await db.takeOverDocument(sql, { subnet: subnet.name, address, machine: wanted.machine.id })
  const outcome = await db.reserveGiven(sql, reservation, address)
  const row = await db.findAddress(sql, subnet.name, address)
  // A network document gave it back just then.
  if (!row) return 'again'
  if (outcome === 'reserved') return row
  // Asked twice: a thing with a name has it already.
  if (row.source === 'reserved' && mac === null && row.mac === null && row.name === (wanted.name ?? null)) return row
  throw takenRefusal(row, asker)
}
