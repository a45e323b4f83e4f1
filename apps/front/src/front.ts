// A front, put together: presence, the way to the partitions, and the federated backend over them. It holds nothing: another front, or
// this one started anew, answers the same. What belongs to all partitions has its home in a database that the fronts share.
import type { Audit } from '@muster/server/audit'
import type { Backend } from '@muster/server/backend'
import type { Bus } from '@muster/shared/bus/bus'
import { callNamed } from '@muster/shared/contract/contract'
import { allocate } from './allocate/allocate.ts'
import { createFederation, watchLogs } from './federation.ts'
import { configCalls } from './global/calls.ts'
import { type Home, type HomeOptions, openHome } from './global/home.ts'
import { defaultLimits, type Limits } from './limits.ts'
import { createPartitionCalls } from './partition-calls.ts'
import { type Presence, watchPresence } from './presence.ts'

export interface FrontOptions {
  /** The front's name, as /whoami shows it. */
  readonly name: string
  readonly version: string
  readonly bus: Bus
  /** The accepted partitions. Undefined: all that make themselves heard; then Idempotency-Keys hold only while none comes or goes. */
  readonly accepted: readonly string[] | undefined
  /** Where the global configuration lives, and the key it is signed with; undefined: this front has none. */
  readonly global?: Pick<HomeOptions, 'databaseUrl' | 'signer' | 'trustedKeys'> | undefined
  readonly log: HomeOptions['log']
  readonly limits?: Partial<Limits>
}

export interface Front {
  readonly backend: Backend
  /** Writes down changes of the global configuration. Those of partitions are written down by them. */
  readonly audit: Audit | undefined
  readonly presence: Presence
  readonly home: Home | undefined
  /** Stops listening. The bus is its owner's to close. */
  stop(): Promise<void>
}

/** Starts a front over a bus. Never waits: it serves at once and refuses with `bus-away` until the link is up. */
export function createFront(options: FrontOptions): Front {
  const { name, version, bus, accepted, log } = options
  const limits = { ...defaultLimits, ...options.limits }
  const presence = watchPresence({ bus, accepted, log })
  const logs = watchLogs(bus, log)
  const calls = createPartitionCalls(bus, name)
  const home = options.global && openHome({ name, bus, presence, calls, log, ...options.global })
  const parts = { bus, presence, calls, limits, log, onLogGrowth: logs.onLogGrowth }
  const backend = createFederation({
    ...parts,
    name,
    allocate: (input, context) => allocate(parts, input, context),
    here: { 'session.whoami': (_, { caller }) => ({ caller, server: { kind: 'front', name, version } }), ...(home && configCalls(home)) },
  })
  return {
    backend,
    audit: home && options.global?.databaseUrl ? auditOf(home) : undefined,
    presence,
    home,
    stop: async () => {
      await home?.stop()
      presence.stop()
      logs.stop()
      calls.stop()
    },
  }
}

function auditOf({ audit }: Home): Audit {
  return { carryOut: (change, work) => (callNamed(change.call)?.spread.kind === 'global' ? audit.carryOut(change, work) : work()) }
}
