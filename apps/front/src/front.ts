// A front, put together: presence, the way to the partitions, and the federated backend over them. It holds nothing: another front, or
// this one started anew, answers the same.
import type { Backend } from '@muster/server/backend'
import type { Bus } from '@muster/shared/bus/bus'
import { allocate } from './allocate/allocate.ts'
import { createFederation, watchLogs } from './federation.ts'
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
  readonly log: { warn(facts: object, text: string): void }
  readonly limits?: Partial<Limits>
}

export interface Front {
  readonly backend: Backend
  readonly presence: Presence
  /** Stops listening. The bus is its owner's to close. */
  stop(): void
}

/** Starts a front over a bus. Never waits: it serves at once and refuses with `bus-away` until the link is up. */
export function createFront(options: FrontOptions): Front {
  const { name, version, bus, accepted, log } = options
  const limits = { ...defaultLimits, ...options.limits }
  const presence = watchPresence({ bus, accepted, log })
  const logs = watchLogs(bus, log)
  const calls = createPartitionCalls(bus)
  const parts = { bus, presence, calls, limits, log, onLogGrowth: logs.onLogGrowth }
  const backend = createFederation({
    ...parts,
    name,
    allocate: (input, context) => allocate(parts, input, context),
    here: { 'session.whoami': (_, { caller }) => ({ caller, server: { kind: 'front', name, version } }) },
  })
  return {
    backend,
    presence,
    stop: () => {
      presence.stop()
      logs.stop()
      calls.stop()
    },
  }
}
