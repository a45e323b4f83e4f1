// Erasing: what a release owes its next owner, and the certificates of what was done. The agent does the work (apps/agent/root/muster/erase.sh).
import type { Erasure } from '@muster/shared/agent'
import { type Caller, mayAct } from '@muster/shared/contract/call'
import { Refusal } from '@muster/shared/errors'
import { type ErasePolicy, type ErasureCertificate, erasePolicies } from '@muster/shared/machine'
import { erasuresOfRun, insertErasure, listErasures } from '../db/erasures.ts'
import type { MachineRow } from '../db/machines.ts'
import type { Core } from './core.ts'

/** What a disk writes per second at least, in a full overwrite: a slow hard disk, and half of that. */
const bytesPerMs = 50_000

/** The policy asked for, or the partition's rule. Throws forbidden where somebody who is no operator asks for less. */
export function erasePolicyFor(core: Core, caller: Caller, asked: ErasePolicy | undefined): ErasePolicy {
  const rule = core.rules.erase
  if (asked === undefined) return rule
  if (erasePolicies.indexOf(asked) < erasePolicies.indexOf(rule) && !mayAct(caller.role, 'operator'))
    throw new Refusal('forbidden', `this partition erases disks (${rule}); only an operator may ask for ${asked}`)
  return asked
}

/** What is to be done before the machine is given on: nothing where nobody's data can be on it. */
export function eraseOf(row: MachineRow, policy: ErasePolicy): MachineRow['erase'] {
  return policy === 'none' || !row.disks_used ? null : policy
}

/** What a quick erasure waits for where a disk erases itself: five minutes by its own word, and some need twice what they say. */
const byItselfMs = 600_000

/** How much longer a release may take: its disks are erased one after the other, in the slowest way there is. */
export function eraseMs(row: MachineRow, erase: MachineRow['erase']): number {
  if (erase === null) return 0
  if (erase === 'quick') return row.disks.length * byItselfMs
  return row.disks.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0) / bytesPerMs
}

/** Signs and keeps what the agent says of a disk. A repeat adds nothing. Throws wrong-state where nothing is to be erased. */
export async function receiveErasure(core: Core, machine: MachineRow & { run: string }, erasure: Erasure): Promise<void> {
  if (machine.erase === null) throw new Refusal('wrong-state', `nothing of ${machine.id} is to be erased`, { state: machine.state })
  const at = new Date()
  const { id, hostname, owner, run } = machine
  const payload = JSON.stringify({ format: 1, partition: core.partition, machine: id, hostname, owner, at: at.toISOString(), ...erasure })
  const { signature, key } = core.certifier.sign(payload)
  await insertErasure(core.sql, { machine_id: id, run, disk: diskKey(machine, erasure), at, payload, signature, key })
}

/** What stands for the disks of a machine of which none is known. */
const unknownDisks = 'any disk (none of it is known)'

/** The disks of the machine that have no certificate of this run, by name. Where none is known, what the agent finds is to be erased, and that is something. */
export async function disksLeft(core: Core, machine: MachineRow): Promise<string[]> {
  const told = machine.run === null ? [] : await erasuresOfRun(core.sql, machine.id, machine.run)
  if (machine.disks.length === 0) return told.length === 0 ? [unknownDisks] : []
  const done = new Set(told.map(({ payload }) => diskKey(machine, erasureIn(payload))))
  return machine.disks.filter(({ name, serial }) => !done.has(diskKey(machine, { disk: name, serial }))).map(({ name }) => name)
}

/** What a release that ends now would leave on the disks, in words. */
export async function leftUnerased(core: Core, machine: MachineRow): Promise<string> {
  if (!machine.disks_used) return 'its disks hold nothing of an owner'
  if (machine.erase === null) return 'its disks were not to be erased'
  const left = await disksLeft(core, machine)
  if (left.length > 0) return `not erased: ${left.join(', ')}`
  return 'its disks are erased, but the agent had not ended'
}

/**
 * What tells a disk of the machine from its others: its serial number, since names may change at any boot. Several that say the same one (namespaces of one
 * NVMe controller) are told by their names within it as well.
 */
function diskKey({ disks }: Pick<MachineRow, 'disks'>, { disk, serial }: { disk: string; serial: string }): string {
  if (serial === '') return `name ${disk}`
  const isShared = disks.filter(other => other.serial === serial).length > 1
  return isShared ? `serial ${serial} ${disk.replace(/^nvme\d+(?=n\d+$)/, '')}` : `serial ${serial}`
}

const erasureIn = (payload: string) => JSON.parse(payload) as Erasure & { owner: string | null }

export async function erasureCertificates(core: Core, machine: string, limit: number): Promise<{ items: ErasureCertificate[] }> {
  const rows = await listErasures(core.sql, machine, limit)
  const items = rows.map(({ id, at, payload, signature, key }) => {
    const { disk, serial, model, sizeBytes, outcome, samples, seconds, owner } = erasureIn(payload)
    const told = { disk, serial, model, sizeBytes, outcome, samples, seconds }
    return { id, at: at.toISOString(), machine, ...told, owner, payload, signature, key }
  })
  return { items }
}
