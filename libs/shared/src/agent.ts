// What a booting machine and its partition say to each other over HTTP. The agent (and the virtual rack, which plays it) is the client,
// apps/partition's boot and metadata doors are the server. All answers are JSON unless noted; errors are problem documents.
//
//   GET  /boot/ipxe/<mac>            anonymous; iPXE text. An unknown MAC gets the enlistment script. The script of a machine at work is for
//                                    the first address that is given it: the one GET that writes something down. HEAD does not.
//   POST /agent/enlist               anonymous; {@link enlistment} → {@link enlisted}
//   GET  /agent/job                  Bearer agent token; {@link job}
//   POST /agent/inventory            Bearer agent token; {@link inventory} → 204
//   POST /agent/script-result        Bearer agent token; {@link scriptResult} → 204, for each script and part before the job is done
//   POST /agent/erasure              Bearer agent token; {@link erasure} → 204, for each disk before the job is done
//   POST /agent/signal               Bearer agent token; {@link signal} → 204; repeats are harmless
//   GET  /metadata/<token>/meta-data | user-data | vendor-data | network-config      cloud-init's NoCloud seed
//   POST /metadata/<token>/phone-home | report | secrets/<name>                      cloud-init's phone_home form and webhook; see docs/metadata.md
//
// Tokens are per machine and per run (one commissioning, one deployment); they die with the run. No GET changes a machine.
import { z } from 'zod'
import { dataSources, metadataCredentials } from './cloud-init.ts'
import {
  architecture,
  disk,
  diskKind,
  eraseMethods,
  erasureOutcomes,
  hostname,
  imageForms,
  machineId,
  networkInterface,
  osName,
} from './machine.ts'
import { jobScript, scriptsMax } from './scripts.ts'

/** Kernel arguments of the scripts that start the agent. `muster.token` is absent when enlisting. */
export const kernelArguments = { url: 'muster.url', token: 'muster.token', mode: 'muster.mode' } as const
export const agentModes = ['enlist', 'commission', 'install', 'erase', 'rescue'] as const
export type AgentMode = (typeof agentModes)[number]

/**
 * A disk behind a RAID controller, of which Linux sees only the logical disks; by SMART, through the controller. What it does not say is left out: all of it
 * where it does not answer.
 */
export const raidMember = z.strictObject({
  /** As smartctl asks for it: `megaraid,4`, `cciss,0`. Unique together with `host`. */
  name: z.string().max(64),
  /** The controller's driver, and its number as a SCSI host in the machine that booted. */
  controller: z.string().max(64).optional(),
  host: z.number().int().min(0).optional(),
  /** The logical disks of that controller, by the kernel's names. Of several nobody says which one it belongs to. */
  disks: z.array(z.string().max(64)).max(256),
  serial: z.string().max(128).optional(),
  model: z.string().max(128).optional(),
  firmware: z.string().max(128).optional(),
  sizeBytes: z.number().int().min(0).optional(),
  kind: diskKind.optional(),
  healthy: z.boolean().optional(),
  wearPercent: z.number().optional(),
  temperatureC: z.number().optional(),
  powerOnHours: z.number().optional(),
  criticalWarning: z.number().optional(),
  mediaErrors: z.number().optional(),
  reallocatedSectors: z.number().optional(),
  pendingSectors: z.number().optional(),
  uncorrectableSectors: z.number().optional(),
  grownDefects: z.number().optional(),
})
export type RaidMember = z.output<typeof raidMember>

/** Facts the agent reads off the machine. */
export const inventory = z.strictObject({
  arch: architecture,
  cpus: z.number().int().min(1).max(100_000),
  memoryMib: z.number().int().min(1).max(1_000_000_000),
  interfaces: z.array(networkInterface).min(1).max(64),
  disks: z.array(disk).max(256),
  /** Everything else, as found: DMI, CPU model, firmware, LLDP neighbours … kept whole and shown to operators. */
  facts: z.looseObject({ raidMembers: z.array(raidMember).max(256).optional() }).default({}),
})
export type Inventory = z.output<typeof inventory>

/** Where the machine's own BMC is, as found in band. */
export const bmcReport = z.strictObject({ driver: z.string().max(32), settings: z.record(z.string().max(64), z.unknown()) })

export const enlistment = z.strictObject({ ...inventory.shape, hostname: hostname.optional(), bmc: bmcReport.optional() })
export type Enlistment = z.output<typeof enlistment>
export const enlisted = z.strictObject({ id: machineId, outcome: z.enum(['created', 'known']) })

export const job = z.discriminatedUnion('kind', [
  z.object({
    kind: z.literal('commission'),
    machine: machineId,
    heartbeatMs: z.number().int(),
    /** In the order in which they run, after the inventory. */
    scripts: z
      .array(jobScript)
      .max(scriptsMax * 2)
      .default([]),
  }),
  z.object({
    kind: z.literal('install'),
    machine: machineId,
    hostname,
    heartbeatMs: z.number().int(),
    os: osName,
    /** `form`: a whole disk, or a root tarball, which `storage` is for: what to make of the disks, a line each (storage-plan.ts). */
    image: z.object({
      url: z.url(),
      sha256: z.string().regex(/^[0-9a-f]{64}$/),
      sizeBytes: z.number().int(),
      form: z.enum(imageForms).default('disk'),
    }),
    storage: z.array(z.string()).optional(),
    /** Directory of the NoCloud seed, to be written into the image (`seedfrom`). Ends with a slash. Its network-config is written there in any case. */
    seedUrl: z.url(),
    dataSource: z.enum(dataSources).default('nocloud'),
    /** For the data source `maas`: what to configure it with. */
    metadata: metadataCredentials.optional(),
  }),
  z.object({ kind: z.literal('erase'), machine: machineId, heartbeatMs: z.number().int(), method: z.enum(eraseMethods) }),
  /** `sshKeys`: who may log in over the network, as root. */
  z.object({ kind: z.literal('rescue'), machine: machineId, heartbeatMs: z.number().int(), sshKeys: z.array(z.string()).default([]) }),
])
export type Job = z.output<typeof job>

/**
 * What was done to one disk. By itself, and it reads as zero since: `sanitized` (NVMe Sanitize), `formatted` (NVMe Format with a secure erase) or
 * `secure-erased` (ATA). `discarded`: it was told that it holds nothing, and reads as zero since; `overwritten`: every byte; `tables`: only what makes a
 * disk readable, its first and last 16 MiB.
 */
export const erasure = z.strictObject({
  disk: z.string().max(64),
  serial: z.string().max(128),
  model: z.string().max(128),
  sizeBytes: z.number().int().min(0),
  outcome: z.enum(erasureOutcomes),
  /** Places over the whole disk that were read afterwards and hold zeros only. */
  samples: z.number().int().min(0),
  seconds: z.number().int().min(0),
})
export type Erasure = z.output<typeof erasure>

/**
 * What the agent says on its way. `working` is a heartbeat with step and percent; `done` and `failed` end the job:
 * commission done → ready; install done → the next boot is from disk; erase done → off, then ready; failed → failed_*, with `message` as the fault.
 */
export const signal = z.strictObject({
  status: z.enum(['working', 'done', 'failed']),
  step: z.string().max(64),
  message: z.string().max(4000).default(''),
  progress: z.number().min(0).max(100).optional(),
})
export type Signal = z.output<typeof signal>
