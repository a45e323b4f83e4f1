// Rows as the API shows them.
import type { CredentialRotation, Machine, PowerOrder } from '@muster/shared/machine'
import type { MachineRow } from '../db/machines.ts'
import type { PowerOrder as PowerOrderRow } from '../db/power.ts'
import type { Rotation } from '../db/rotations.ts'

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
