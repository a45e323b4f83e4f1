// What every stage of a running machine shares, from power on to power off: its facts, its connection, its disk, its history. One
// object per machine; the signal is of the present power-on and ends everything in it.
import type { Inventory } from '@muster/shared/agent'
import type { MetadataCredentials } from '@muster/shared/cloud-init'
import type { MachineFacts } from './facts.ts'
import type { HttpClient } from './http.ts'
import type { Pacer } from './pace.ts'
import type { Behaviour } from './sad.ts'

/** What is on the machine's first disk. */
export type DiskContent =
  | { kind: 'empty' }
  /** An install was cut off: nothing there boots. */
  | { kind: 'partial'; os: string }
  | {
      kind: 'installed'
      os: string
      hostname: string
      sha256: string
      seedUrl: string
      /** Where its cloud-init is configured for the MAAS data source. */
      metadata?: MetadataCredentials
      /** cloud-init's memory of its last instance; absent before the first boot. */
      instanceId?: string
    }

/** Where a machine is in its life between power on and off. */
export type Phase = 'off' | 'firmware' | 'network boot' | 'agent' | 'operating system' | 'hung'

/** What a history tells, by name. Tests wait for these. */
export const happenings = [
  'power on',
  'power off',
  'order',
  'boot',
  'script',
  'console',
  'kernel',
  'network boot failed',
  'agent',
  'enlisted',
  'enlist refused',
  'job',
  'job refused',
  'inventory sent',
  'script ran',
  'signal',
  'fell silent',
  'image written',
  'erased',
  'reboot',
  'os booted',
  'seed read',
  'seed missing',
  'reported',
  'phoned home',
  'phone home failed',
  'hung',
  'mistake',
] as const
export type Happening = (typeof happenings)[number]

export interface HistoryEntry {
  /** 1 for the machine's first, and one more for each: a mark to wait from. */
  readonly number: number
  /** Epoch milliseconds. */
  readonly at: number
  readonly what: Happening
  readonly facts: Readonly<Record<string, string | number>>
}

/** What the machine finds in band about its BMC. */
export interface FoundBmc {
  /** `127.9.0.1:6230`. */
  readonly address: string
  readonly user: string
  readonly password: string
  /** Where it speaks Redfish too, and prefers that. */
  readonly redfish?: { readonly url: string; readonly fingerprint: string } | undefined
}

export interface Boot {
  readonly name: string
  readonly facts: MachineFacts
  readonly inventory: Inventory
  readonly behaviour: Behaviour
  /** Where the network boots from: scheme, host and port of the partition's boot door. */
  readonly bootUrl: string
  readonly bmc: FoundBmc
  /** Bytes read of a kernel or initrd at most. */
  readonly bootFileMax: number
  readonly pacer: Pacer
  readonly http: HttpClient
  /** Ends with the power. */
  readonly signal: AbortSignal
  readonly disk: DiskContent
  writeDisk(content: DiskContent): void
  enter(phase: Phase): void
  note(what: Happening, facts?: HistoryEntry['facts']): void
}

/** How a stage ended: `stay` leaves the machine on with nothing running in it. */
export type Ending = 'reboot' | 'power-off' | 'stay'
