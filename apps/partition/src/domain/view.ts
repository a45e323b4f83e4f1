// Rows as the API shows them.
import type { Event } from '@muster/shared/contract/events'
import type { DeadLetter } from '@muster/shared/contract/webhooks'
import type { CredentialRotation, Machine, PowerOrder } from '@muster/shared/machine'
import type { EventRow } from '../db/events.ts'
import type { MachineRow } from '../db/machines.ts'
import type { PowerOrder as PowerOrderRow } from '../db/power.ts'
import type { Rotation } from '../db/rotations.ts'
import type { DeadLetter as DeadLetterRow } from '../db/webhooks.ts'

const text = (date: Date | null) => date?.toISOString() ?? null

export function viewOf(row: MachineRow, partition: string): Machine {
  return {
    id: row.id,
    partition,
    hostname: row.hostname,
    state: row.state,
    stateSince: row.state_since.toISOString(),
    power: row.power,
    powerSeenAt: text(row.power_seen_at),
    arch: row.arch,
    cpus: row.cpus,
    memoryMib: row.memory_mib,
    pool: row.pool,
    zone: row.zone,
    rack: row.rack,
    tags: row.tags,
    interfaces: row.interfaces,
    disks: row.disks,
    owner: row.owner,
    allocation: row.allocation_id,
    locked: row.locked,
    waitingFor: row.waiting_for,
    progress: row.progress,
    deadline: text(row.deadline_at),
    fault: row.fault,
    deployment: row.deployment,
    powerDriver: row.power_driver,
    note: row.note,
    version: row.version,
    createdAt: row.created_at.toISOString(),
    updatedAt: row.updated_at.toISOString(),
  }
}

export function orderViewOf(row: PowerOrderRow): PowerOrder {
  return {
    id: row.id,
    machine: row.machine_id,
    action: row.action,
    how: row.how,
    state: row.state,
    askedBy: row.asked_by,
    askedAt: row.asked_at.toISOString(),
    reason: row.reason,
    startedAt: text(row.started_at),
    endedAt: text(row.ended_at),
    fault: row.fault,
  }
}

export function rotationViewOf(row: Rotation): CredentialRotation {
  return {
    id: row.id,
    machines: row.machine_ids.length === 0 ? [row.machine_id] : row.machine_ids,
    state: row.state,
    askedBy: row.asked_by,
    askedAt: row.asked_at.toISOString(),
    startedAt: text(row.started_at),
    endedAt: text(row.ended_at),
    fault: row.fault,
  }
}

export function eventViewOf(row: EventRow, partition: string): Event {
  return {
    partition,
    seq: row.seq,
    at: row.at.toISOString(),
    kind: row.kind,
    machine: row.machine_id,
    actor: row.actor,
    data: row.data,
  }
}

export function deadLetterViewOf(row: DeadLetterRow, partition: string): DeadLetter {
  return {
    partition,
    webhook: row.webhook,
    id: row.id,
    batch: row.batch,
    from: row.after_seq + 1,
    to: row.to_seq,
    tries: row.tries,
    reason: row.reason,
    firstTriedAt: row.first_tried_at.toISOString(),
    diedAt: row.died_at.toISOString(),
    status: row.again_at === null ? 'dead' : 'replaying',
  }
}

/**
 * What tenants may see of an answer: a fault of the power names the BMC and its address, which are an operator's business; its code and its hint
 * stay. Faults stand in machines, orders, explanations and events, so it is looked for everywhere.
 */
export function withoutBmc(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutBmc)
  if (typeof value !== 'object' || value === null) return value
  const copy = Object.fromEntries(Object.entries(value).map(([name, item]) => [name, withoutBmc(item)]))
  if (typeof copy.code === 'string' && copy.code.startsWith('power-') && typeof copy.message === 'string')
    copy.message = 'the power of the machine could not be switched or read; an operator can see why'
  return copy
}
