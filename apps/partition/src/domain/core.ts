// What every part of the domain is given: the database, the key, the memory, and the bells that wake its loops.

import type { AuditLog } from '@muster/database/audit-log'
import type { Signer } from '@muster/server/global/signature'
import type { Log } from '@muster/server/log'
import type { Sealer } from '@muster/server/seal'
import type { Sessions } from '@muster/server/sessions/sessions'
import { deadlineMsOf, type State } from '@muster/shared/life-cycle'
import type { ErasePolicy, enlistedRules } from '@muster/shared/machine'
import type { Sql } from '../db/connect.ts'
import type { Bell } from './bell.ts'
import { usualAgentParameters } from './boot-plan.ts'
import type { Catalogue } from './catalogue.ts'
import type { GlobalCopy } from './global-copy.ts'
import type { Memory } from './memory.ts'
import type { Seal } from './seal.ts'

/** The times an operator may set; the table's own are the defaults. */
export interface Rules {
  /** Replaces deadlines of the life-cycle table. */
  readonly deadlinesMs: Partial<Record<State, number>>
  /** An agent that says nothing for so long is held dead. */
  readonly agentSilenceMs: number
  /** How long a machine may take from its power-on to the first word of its agent: firmware of large servers needs ten minutes. */
  readonly agentStartMs: number
  /** What the agent's kernel is told beside the agent's own arguments: its consoles. */
  readonly agentParameters: string
  /** How disks are erased when a machine is given back, where the release does not say more. */
  readonly erase: ErasePolicy
  /** The test scripts of a commissioning that does not say which. */
  readonly tests: readonly string[]
  /** How often a BMC is read when nothing happens. */
  readonly powerCheckMs: number
  /** The same for machines on their way somewhere. */
  readonly powerTransitionMs: number
  /** How long a BMC may take to show a change of power. */
  readonly powerChangeMs: number
  /** How long an operating system may take to shut down when asked. */
  readonly powerSoftMs: number
  /** How long a BMC that was restarted may be gone. */
  readonly powerRestartMs: number
  /** Whether machines that enlist are commissioned without being asked for. */
  readonly enlisted: (typeof enlistedRules)[number]
  /** So many machines may wait, enlisted and not looked at by anybody: who may announce a machine is anybody on its network. */
  readonly enlistedMost: number
  /** A lab takes power drivers that run programs on this server. */
  readonly place: 'production' | 'lab'
}

/** What a partition does that nobody told otherwise. */
export const defaultRules: Rules = {
  deadlinesMs: {},
  agentSilenceMs: 90_000,
  // Twice, and still within the time for a commissioning.
  agentStartMs: 720_000,
  agentParameters: usualAgentParameters,
  erase: 'quick',
  // Takes seconds and harms nothing; those that load a machine are asked for.
  tests: ['disk-health'],
  powerCheckMs: 30_000,
  powerTransitionMs: 5_000,
  powerChangeMs: 60_000,
  powerSoftMs: 180_000,
  powerRestartMs: 180_000,
  enlisted: 'keep as new',
  enlistedMost: 5_000,
  place: 'production',
}

export interface Core {
  readonly partition: string
  readonly sql: Sql
  readonly seal: Seal
  /** Signs erasure certificates. */
  readonly certifier: Signer
  /** Who asked for which change. Every door carries changes out through it. */
  readonly audit: AuditLog
  readonly catalogue: Catalogue
  readonly memory: Memory
  /** The partition's copy of what belongs to the whole federation. */
  readonly configuration: GlobalCopy
  /** Opens the secrets within it; undefined: there is no MUSTER_SHARED_KEY here. */
  readonly shared: Sealer | undefined
  /** Of people who logged in, here or at a front. */
  readonly sessions: Sessions
  /** Those of this server, and before them those of its document in the global configuration. */
  readonly rules: Rules
  readonly log: Log
  readonly bells: { readonly engine: Bell; readonly power: Bell; readonly rotation: Bell; readonly log: Bell }
}

/** How long a machine may stay in `state`: the operator's figure, else the table's. */
export function deadlineFor(core: Pick<Core, 'rules'>, state: State): number | undefined {
  const fromTable = deadlineMsOf(state)
  return fromTable === undefined ? undefined : (core.rules.deadlinesMs[state] ?? fromTable)
}
