// A front, put together: presence, the way to the partitions, and the federated backend over them. It holds nothing: another front, or
// this one started anew, answers the same. What belongs to all partitions has its home in a database that the fronts share.
import type { Audit } from '@muster/server/audit'
import type { Backend } from '@muster/server/backend'
import { tokensOfAll } from '@muster/server/global/people'
import { createVerifier } from '@muster/server/global/signature'
import { createSessions, type Sessions } from '@muster/server/sessions/sessions'
import type { Tokens } from '@muster/server/tokens'
import { limitsFor } from '@muster/shared/allocation/quotas'
import type { Bus } from '@muster/shared/bus/bus'
import { callNamed } from '@muster/shared/contract/contract'
import { Refusal } from '@muster/shared/errors'
import type { Documents, UserDocument } from '@muster/shared/global/documents'
import { allocate } from './allocate/allocate.ts'
import { createFederation, type Here, watchLogs } from './federation.ts'
import type { BrokerFile } from './global/broker-file.ts'
import { besideCopies, changeOwn, configCalls } from './global/calls.ts'
import { enrolmentCalls } from './global/enrolment.ts'
import { type Home, type HomeOptions, openHome } from './global/home.ts'
import { startRetention } from './global/retention.ts'
import { defaultLimits, type Limits } from './limits.ts'
import { createPartitionCalls, type PartitionCalls } from './partition-calls.ts'
import { type Presence, watchPresence } from './presence.ts'

export interface FrontOptions {
  /** The front's name, as /whoami shows it. */
  readonly name: string
  readonly version: string
  readonly bus: Bus
  /** The accepted partitions. Undefined: all that make themselves heard; then Idempotency-Keys hold only while none comes or goes. */
  readonly accepted: readonly string[] | undefined
  /** Where the global configuration lives, and the key it is signed with; undefined: this front has none. */
  readonly global?:
    | (Pick<HomeOptions, 'databaseUrl' | 'signer' | 'trustedKeys' | 'sealer'> & {
        readonly natsUrl?: string | undefined
        /** By whose certificates partitions that enrol believe the bus, PEM. */
        readonly natsCa?: string | undefined
        /** How long entries of the audit log are kept, milliseconds; undefined: for ever. */
        readonly keepAuditMs?: number | undefined
      })
    | undefined
  /** Is told who may come to the bus. */
  readonly broker?: BrokerFile | undefined
  readonly log: HomeOptions['log']
  readonly limits?: Partial<Limits>
}

export interface Front {
  readonly backend: Backend
  /** Writes down changes of the global configuration. Those of partitions are written down by them. */
  readonly audit: Audit | undefined
  readonly presence: Presence
  readonly home: Home | undefined
  /** Whom the global configuration lets in: by tokens, and by sessions. Nobody, where this front has none. */
  readonly tokens: Tokens
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
  const configured = options.global && configure(options, options.global, { presence, calls })
  const home = configured?.home
  const quotasOf = (owner: string) => (home?.content ? limitsFor(home.content.documents, owner) : [])
  const parts = { bus, presence, calls, limits, log, onLogGrowth: logs.onLogGrowth, quotasOf }
  const backend = createFederation({
    ...parts,
    name,
    allocate: (input, context) => allocate(parts, input, context),
    here: {
      'session.whoami': (_, { caller }) => ({ caller, server: { kind: 'front', name, version } }),
      ...configured?.here,
    },
    beside: home ? besideCopies(home) : {},
  })
  return {
    backend,
    audit: configured?.audit,
    presence,
    home,
    tokens: tokensOfAll(configured?.tokens ?? []),
    stop: async () => {
      await configured?.stop()
      presence.stop()
      logs.stop()
      calls.stop()
    },
  }
}

/** What a front has that has a global configuration. */
interface Configured {
  readonly home: Home
  readonly here: Here
  readonly tokens: readonly Tokens[]
  /** Where it is written here. */
  readonly audit: Audit | undefined
  stop(): Promise<void>
}

function configure(
  { name, bus, accepted, broker, log }: FrontOptions,
  global: NonNullable<FrontOptions['global']>,
  { presence, calls }: { presence: Presence; calls: PartitionCalls },
): Configured {
  const { signer, trustedKeys, databaseUrl, keepAuditMs, natsUrl = '', natsCa } = global
  const home = openHome({ name, bus, presence, calls, log, ...global })
  const sessions = sessionsOf(home, global, log)
  const isWritten = databaseUrl !== undefined
  const retention = isWritten ? startRetention({ home, keepAuditMs, log }) : undefined
  let before: Documents['partition'] = {}
  home.onChange(({ documents }) => {
    presence.accept(acceptedNow(accepted, documents.partition))
    for (const [partition, { natsKey }] of Object.entries(documents.partition))
      if (before[partition] && before[partition].natsKey !== natsKey) presence.forget(partition)
    before = documents.partition
    void broker?.write(documents)
  })
  return {
    home,
    here: {
      ...configCalls(home),
      ...enrolmentCalls({ home, natsUrl, natsCa, configKeys: [signer.publicKey, ...trustedKeys], log }),
      ...sessionCalls(home, sessions),
    },
    tokens: [home.tokens, sessions.tokens],
    audit: isWritten ? auditOf(home) : undefined,
    stop: async () => {
      await retention?.stop()
      await home.stop()
    },
  }
}

function auditOf({ audit }: Home): Audit {
  return {
    carryOut: (change, work) => (callNamed(change.call)?.spread.kind === 'global' ? audit.carryOut(change, work) : work()),
    refused: attempt => audit.refused(attempt),
  }
}

/** Those of the settings and those that were accepted, without those that were retired. Where nobody was ever named: everybody. */
function acceptedNow(named: readonly string[] | undefined, partitions: Documents['partition']): readonly string[] | undefined {
  const documents = Object.entries(partitions)
  if (named === undefined && documents.length === 0) return undefined
  const accepted = documents.filter(([, { status }]) => status === 'accepted').map(([name]) => name)
  const isRetired = (name: string) => partitions[name]?.status === 'retired'
  return [...new Set([...(named ?? []).filter(name => !isRetired(name)), ...accepted])]
}

function sessionCalls(home: Home, sessions: Sessions): Here {
  return {
    'session.password': (input, context) =>
      sessions.changePassword(context.caller.name, input, context, async ({ before, after }) => {
        const change = (user: UserDocument) => {
          // An admin may have given another one, or taken it away, while this one was looked at.
          if (user.password !== before) throw new Refusal('stale-version', 'the password was changed by somebody else meanwhile')
          return { ...user, password: after }
        }
        return (await changeOwn(home, context.caller, { note: `${context.caller.name} changed its password`, change })).generation
      }),
    'session.login': (input, context) => sessions.login(input, context),
    'session.providers': () => sessions.providers(),
    'session.exchange': (input, context) => sessions.exchange(input, context),
  }
}

/** Sessions are signed with the key of the global configuration, which every partition trusts already. */
function sessionsOf(home: Home, { signer, trustedKeys }: NonNullable<FrontOptions['global']>, log: HomeOptions['log']): Sessions {
  return createSessions({
    signer: signer.as('session'),
    verifier: createVerifier([signer.publicKey, ...trustedKeys], 'session'),
    validAt: 'everywhere',
    documents: () => home.content?.documents,
    log,
  })
}
