// The static addresses of machines' network documents, kept in the table of addresses: what a document has nobody else is given, and what somebody
// else has no document may have.
import { Refusal } from '@muster/shared/errors'
import { bitsOf, isInNetwork, staticAddresses } from '@muster/shared/network'
import * as db from '../db/addresses.ts'
import type { Sql } from '../db/connect.ts'
import { type AddressRange, type SubnetRow, subnetsWith } from '../db/subnets.ts'

/** Who wants an address or a name, and on whose word. */
export interface Asker {
  /** Null: no machine, or one that is not there yet. */
  machine: { id: string; hostname: string | null } | null
  mac: string | null
  name: string | null
  by: string
}

interface Placed {
  subnet: SubnetRow
  address: string
  mac: string | null
}

/**
 * Brings the table in step with the documents of a machine, in the transaction that changes them. Throws already-taken naming both owners, and
 * what {@link refuseUnusable} throws of addresses that are new.
 */
export async function recordDocuments(sql: Sql, machine: db.Documented, actor: string): Promise<void> {
  const wanted = documentAddresses(machine)
  const placed = wanted.length === 0 ? [] : placedIn(await subnetsWith(sql, wanted.map(addressOf)), wanted)
  await db.keepDocumentAddresses(sql, machine.id, placed.map(placeOf))
  if (placed.length === 0) return
  // As the database writes them: an address of IPv6 has many spellings.
  const own = new Set((await db.addressesOf(sql, machine.id)).map(keyOf))
  const fresh = placed.filter(({ subnet, address }) => !own.has(keyOf({ subnet: subnet.name, address })))
  const askerOf = (mac: string | null): Asker => ({ machine, mac, name: machine.hostname, by: actor })
  for (const { subnet, address, mac } of fresh) refuseUnusable(subnet, address, askerOf(mac))
  const rows = fresh.map(({ subnet, address, mac }) => ({ subnet: subnet.name, address, machine: machine.id, mac }))
  if ((await db.recordDocumentAddresses(sql, rows, actor)) === fresh.length) return
  const [taken] = (await db.heldAmong(sql, rows)).filter(({ machine_id }) => machine_id !== machine.id)
  if (taken) throw takenRefusal(taken, askerOf(fresh.find(placed => keyOf(taken) === keyOf(placeOf(placed)))?.mac ?? null))
}

/** Records in a new subnet what machines have of it already. Throws already-taken where two have the same. */
export async function recordAllDocuments(sql: Sql, name: string, actor: string): Promise<void> {
  const machines = await db.documentedMachines(sql)
  const wanted = machines.flatMap(machine => documentAddresses(machine).map(item => ({ ...item, machine })))
  if (wanted.length === 0) return
  const subnets = await subnetsWith(sql, wanted.map(addressOf))
  const first = new Map<string, db.Documented>()
  const rows = wanted.flatMap(item => {
    const [found] = placedIn(subnets, [item])
    if (found?.subnet.name !== name) return []
    const key = keyOf({ subnet: name, address: item.address })
    const other = first.get(key)
    if (other !== undefined && other.id !== item.machine.id) {
      const [one, two] = [other, item.machine].map(({ id, hostname }) => machineText(id, hostname))
      const facts = { subnet: name, address: item.address, holders: [other.id, item.machine.id] }
      throw new Refusal(
        'already-taken',
        `${item.address} of subnet ${name}: the network documents of ${one} and of ${two} both have it`,
        facts,
      )
    }
    first.set(key, item.machine)
    return other === undefined ? [{ subnet: name, address: item.address, machine: item.machine.id, mac: item.mac }] : []
  })
  await db.recordDocumentAddresses(sql, rows, actor)
}

function documentAddresses({ network, deployment_network }: db.Documented) {
  const all = [network, deployment_network].flatMap(document => (document === null ? [] : staticAddresses(document)))
  const seen = new Set<string>()
  return all.filter(({ address, vlan }) => {
    const key = `${bitsOf(address)} ${vlan}`
    return seen.has(key) ? false : seen.add(key)
  })
}

/** Each address in its subnet; those that are in none are nobody's business here. */
function placedIn(
  subnets: readonly SubnetRow[],
  wanted: readonly { address: string; vlan: number | null; mac: string | null }[],
): Placed[] {
  return wanted.flatMap(({ address, vlan, mac }) => {
    const subnet = subnetFor(subnets, address, vlan)
    return subnet ? [{ subnet, address, mac }] : []
  })
}

/** Several VLANs may have a network of the same addresses. A port without a tag may be in any VLAN, by its switch: then it must be the only one. */
function subnetFor(subnets: readonly SubnetRow[], address: string, vlan: number | null): SubnetRow | undefined {
  const having = subnets.filter(({ cidr }) => isInNetwork(cidr, address))
  const exact = having.find(subnet => subnet.vlan === vlan)
  if (exact) return exact
  return vlan === null ? (having.length === 1 ? having[0] : undefined) : having.find(subnet => subnet.vlan === null)
}

/** Throws invalid-input or already-taken where the subnet does not give that address to anybody. */
export function refuseUnusable(subnet: SubnetRow, address: string, asker: Asker): void {
  const what = `${address} of subnet ${subnet.name} (${subnet.cidr}) for ${askerText(asker)}`
  const wrong = (message: string) => new Refusal('invalid-input', `${what}: ${message}`, { errors: [{ field: 'address', message }] })
  if (!isInNetwork(subnet.cidr, address)) throw wrong('it is not in that network')
  const host = bitsOf(address).slice(Number(subnet.cidr.split('/')[1]))
  if (!host.includes('1')) throw wrong('it is the address of the network itself')
  if (!address.includes(':') && !host.includes('0')) throw wrong('it is the broadcast address')
  const facts = { subnet: subnet.name, address, asker: askerFacts(asker) }
  if (subnet.gateway !== null && bitsOf(subnet.gateway) === bitsOf(address))
    throw new Refusal('already-taken', `${what}: it is the gateway's`, { ...facts, holder: 'gateway' })
  const having = ({ from, to }: AddressRange) => bitsOf(from) <= bitsOf(address) && bitsOf(address) <= bitsOf(to)
  const [reserved, dynamic] = [subnet.reserved.find(having), subnet.dynamic.find(having)]
  const range = reserved ?? dynamic
  if (!range) return
  const words = `${range.from} to ${range.to}${range.note && ` (${range.note})`}`
  const why = reserved ? 'is reserved in the subnet and not given out' : 'is given by DHCP to anybody'
  throw new Refusal('already-taken', `${what}: ${words} ${why}`, { ...facts, holder: range })
}

/** A reserved address has its names to itself: throws already-exists where a machine is to be called by one of another's. */
export async function refuseReservedName(sql: Sql, hostname: string, asker: Asker): Promise<void> {
  const found = await db.findByName(sql, [hostname])
  if (!found || found.machine_id === asker.machine?.id) return
  const detail = `the name ${hostname} for ${askerText(asker)}: it leads to ${found.address}, which ${holderText(found)} has`
  throw new Refusal('already-exists', detail, { name: hostname, holder: holderFacts(found), asker: askerFacts(asker) })
}

/** Says who has an address and who wanted it. */
export function takenRefusal(row: db.AddressRow, asker: Asker): Refusal {
  const detail = `${row.address} of subnet ${row.subnet} for ${askerText(asker)}: ${holderText(row)} has it`
  return new Refusal('already-taken', detail, {
    ...{ subnet: row.subnet, address: row.address },
    ...{ holder: holderFacts(row), asker: askerFacts(asker) },
  })
}

export const holderFacts = ({ machine_id, mac, name, source, actor, address }: db.AddressRow) => ({
  ...{ machine: machine_id, mac, name, address, source, by: actor },
})

export const askerFacts = ({ machine, ...asker }: Asker) => ({ machine: machine?.id ?? null, ...asker })

export function askerText({ machine, mac, name, by }: Asker): string {
  return `${machine ? machineText(machine.id, machine.hostname) : (name ?? mac ?? 'a new machine')} (asked by ${by})`
}

export function holderText(row: db.AddressRow): string {
  const who = row.machine_id === null ? (row.name ?? row.mac ?? 'somebody') : machineText(row.machine_id, row.hostname)
  return `${who} (${row.source === 'document' ? 'by its network document' : `reserved by ${row.actor}`})`
}

export const machineText = (id: string, hostname: string | null) =>
  `machine ${id}${hostname === null || hostname === id ? '' : ` "${hostname}"`}`

const addressOf = ({ address }: { address: string }) => address
const placeOf = ({ subnet, address }: Placed) => ({ subnet: subnet.name, address })
const keyOf = ({ subnet, address }: { subnet: string; address: string }) => `${subnet} ${bitsOf(address)}`
