// What a machine looks like to the outside: the shapes that lists, events and pages share.
import { z } from 'zod'
import { dataSources, firstBoot } from './cloud-init.ts'
import { durationPattern } from './duration.ts'
import { allocationIdPattern, hostnamePattern, labelPattern, machineIdPattern, normalMac, partitionNamePattern } from './ids.ts'
import { moveNames, states } from './life-cycle.ts'

export const machineId = z.string().regex(machineIdPattern, 'is not a machine id such as lon1-4y3h7n')
export const allocationId = z.string().regex(allocationIdPattern, 'is not an allocation id such as a-4y3h7nqk2c5d8f6g')
export const partitionName = z
  .string()
  .regex(partitionNamePattern, 'is not a partition name (a lower-case DNS label of at most 20 characters)')
export const label = z.string().regex(labelPattern, 'must be 1 to 64 letters, digits, dots, dashes or underscores')
export const hostname = z.string().regex(hostnamePattern, 'is not a host name (one lower-case DNS label)')
export const duration = z.string().regex(durationPattern, 'is not a duration such as 15s, 30m or 2h')
/** Any usual way of writing a MAC; becomes the lower-case, colon-separated form. `overwrite` keeps it printable as JSON Schema, unlike `transform`. */
export const mac = z
  .string()
  .regex(/^[0-9A-Fa-f]{2}(?:[:.-]?[0-9A-Fa-f]{2}){5}$/, 'is not a MAC address such as 52:54:00:12:34:56')
  .overwrite(text => normalMac(text) ?? text)
export const timestamp = z.iso.datetime()

export const architectures = ['amd64', 'arm64'] as const
export const architecture = z.enum(architectures)
export type Architecture = (typeof architectures)[number]
export const diskKinds = ['hdd', 'ssd', 'nvme'] as const
export const diskKind = z.enum(diskKinds)
export const powerStates = ['on', 'off', 'unknown'] as const
export const state = z.enum(states)

/** Why a machine failed or is late. `code` is stable; `hint` says what a person can do. */
export const fault = z.object({ code: z.string(), message: z.string(), since: timestamp, hint: z.string().optional() })
export type Fault = z.infer<typeof fault>

export const networkInterface = z.strictObject({
  mac,
  name: z.string().max(64).default(''),
  speedMbps: z.number().int().min(0).max(10_000_000).default(0),
  /** CIDR of the subnet it is plugged into, where known. */
  subnet: z.string().max(64).nullable().default(null),
  ip: z.string().max(64).nullable().default(null),
})
export type NetworkInterface = z.output<typeof networkInterface>

export const disk = z.strictObject({
  name: z.string().max(64),
  serial: z.string().max(128).default(''),
  model: z.string().max(128).default(''),
  sizeBytes: z.number().int().min(0),
  kind: diskKind,
})
export type Disk = z.output<typeof disk>

/** `debian/12`: an operating system and its release. */
export const osName = z.string().regex(/^[a-z0-9-]{1,32}\/[a-z0-9.-]{1,32}$/, 'is not an operating system such as debian/12')

/** What an image is: a whole disk, byte for byte, or a tarball of a root file system, which needs a storage layout. */
export const imageForms = ['disk', 'tar'] as const
export type ImageForm = (typeof imageForms)[number]

export const deployment = z.object({
  os: osName,
  startedAt: timestamp,
  /** When the agent began with each step, in order. */
  steps: z.array(z.object({ step: z.string(), at: timestamp })).optional(),
  installedAt: timestamp.nullable(),
  deployedAt: timestamp.nullable(),
  dataSource: z.enum(dataSources).optional(),
  firstBoot: firstBoot.optional(),
  /** SSH host keys of the installed system, as it phoned home: type and key, as in known_hosts. */
  hostKeys: z.array(z.string()).optional(),
})
export type Deployment = z.infer<typeof deployment>

export const machine = z.object({
  id: machineId,
  partition: partitionName,
  hostname,
  state,
  stateSince: timestamp,
  power: z.enum(powerStates),
  /** When the BMC last told us; null where it never did. */
  powerSeenAt: timestamp.nullable(),
  arch: architecture,
  cpus: z.number().int(),
  memoryMib: z.number().int(),
  pool: z.string(),
  zone: z.string(),
  rack: z.string(),
  tags: z.array(z.string()),
  interfaces: z.array(networkInterface),
  disks: z.array(disk),
  owner: z.string().nullable(),
  allocation: allocationId.nullable(),
  locked: z.boolean(),
  /** What the server is doing or waiting for, in words. */
  waitingFor: z.string().nullable(),
  /** 0 to 100 where the agent reports it. */
  progress: z.number().nullable(),
  deadline: timestamp.nullable(),
  fault: fault.nullable(),
  deployment: deployment.nullable(),
  powerDriver: z.string().nullable(),
  note: z.string(),
  /** Rises with each change; send it back with an update to be sure nothing came in between. */
  version: z.number().int(),
  createdAt: timestamp,
  updatedAt: timestamp,
})
export type Machine = z.infer<typeof machine>

/** Operators see the BMC and the raw inventory too; tenants never do. Secret settings read `***` or are absent. */
export const machineDetail = machine.extend({
  powerSettings: z.record(z.string(), z.unknown()).nullable(),
  inventory: z.record(z.string(), z.unknown()).nullable(),
})
export type MachineDetail = z.infer<typeof machineDetail>

/**
 * `quick`: disks that can erase themselves within minutes do, others that can are told that they hold nothing, of the rest the tables go. `full`: disks
 * erase themselves, or every byte is overwritten.
 */
export const eraseMethods = ['quick', 'full'] as const
export type EraseMethod = (typeof eraseMethods)[number]
export const erasePolicies = ['none', ...eraseMethods] as const
export type ErasePolicy = (typeof erasePolicies)[number]
/** What becomes of a machine that announces itself. */
export const enlistedRules = ['commission', 'keep as new'] as const
export const erasureOutcomes = ['sanitized', 'formatted', 'secure-erased', 'discarded', 'overwritten', 'tables'] as const

/** A certificate: what a partition heard from its agent about one disk, signed. */
export const erasureCertificate = z.object({
  id: z.number().int(),
  at: timestamp,
  machine: machineId,
  disk: z.string(),
  serial: z.string(),
  model: z.string(),
  sizeBytes: z.number().int(),
  outcome: z.enum(erasureOutcomes),
  samples: z.number().int(),
  seconds: z.number().int(),
  /** Whose data it was. */
  owner: z.string().nullable(),
  /** All of this as JSON, as it was signed: Ed25519 over "muster erasure certificate", a line feed, and this text. */
  payload: z.string(),
  /** Base64. */
  signature: z.string(),
  /** The partition's public key, hex. */
  key: z.string(),
})
export type ErasureCertificate = z.infer<typeof erasureCertificate>

/** An order to a machine's switch: what was asked, by whom, and what came of it. */
export const powerOrder = z.object({
  id: z.number().int(),
  machine: machineId,
  action: z.enum(['on', 'off', 'cycle']),
  /** How to switch off: `soft` asks the operating system first. */
  how: z.enum(['soft', 'hard']),
  /** `superseded`: another order took its place. */
  state: z.enum(['queued', 'running', 'done', 'failed', 'superseded']),
  askedBy: z.string(),
  askedAt: timestamp,
  /** Why, where it is not plain. */
  reason: z.string(),
  startedAt: timestamp.nullable(),
  endedAt: timestamp.nullable(),
  fault: fault.nullable(),
})
export type PowerOrder = z.infer<typeof powerOrder>

/** A change of the password that a partition logs in to a BMC with. Never the password. */
export const credentialRotation = z.object({
  id: z.number().int(),
  /** All that log in with the same account of the same BMC: they change together. */
  machines: z.array(machineId),
  /** `running`: the BMC may know either password, and both are kept until a login has shown which. `failed`: the old one stays. */
  state: z.enum(['queued', 'running', 'done', 'failed']),
  askedBy: z.string(),
  askedAt: timestamp,
  startedAt: timestamp.nullable(),
  endedAt: timestamp.nullable(),
  fault: fault.nullable(),
})
export type CredentialRotation = z.infer<typeof credentialRotation>

/** The answer to "why is it stuck?". */
export const explanation = z.object({
  id: machineId,
  state,
  since: timestamp,
  does: z.string(),
  wantedPower: z.enum(['on', 'off', 'user']),
  power: z.enum(powerStates),
  powerSeenAt: timestamp.nullable(),
  waitingFor: z.string().nullable(),
  deadline: timestamp.nullable(),
  lastFault: fault.nullable(),
  /** The address that has the boot script of its task; no other is given it. */
  bootScriptGivenTo: z.string().optional(),
  nextStep: z.string(),
  allowed: z.array(z.enum(moveNames)),
  /** The power orders under way or waiting, oldest first. */
  powerOrders: z.array(powerOrder),
  /** How long the last commissioning, deployment and release took, each where the log still has it, however it ended. */
  lastWork: z
    .array(
      z.object({
        state,
        endedAt: timestamp,
        seconds: z.number().int(),
        /** Of a deployment. */
        stages: z.array(z.object({ stage: z.string(), seconds: z.number().int() })).optional(),
      }),
    )
    .optional(),
  /** The last rotation of its BMC's password, while it is under way and after it failed. */
  credentialRotation: credentialRotation.optional(),
})
export type Explanation = z.infer<typeof explanation>
