// What a front answers to the calls about the global configuration.
import type { CallContext } from '@muster/server/backend'
import type { Caller } from '@muster/shared/contract/call'
import type { CallInput } from '@muster/shared/contract/contract'
import { Refusal } from '@muster/shared/errors'
import { documentsOf, noGeneration } from '@muster/shared/global/copy'
import { differences, endedMark } from '@muster/shared/global/documents'
import type { Here } from '../federation.ts'
import type { Home, WriteOptions } from './home.ts'

/** One short function per call. */
export function configCalls(home: Home): Here {
  return {
    'config.get': async input => ({ ...documentsOf(await home.newest(), input), source: home.source }),
    'config.change': (input, { caller }) => home.change(caller, input, writeOptions(input)),
    'config.revert': (input, { caller }) => home.revert(caller, input.to, writeOptions(input)),
    'audit.fronts': ({ after, limit, actor, call, target }) => home.audit.list({ after, limit, actor, call, target }),
    'config.refill': ({ note }, { caller }: CallContext) => home.refill(caller, note),
    'session.logout': (_, { caller }) => endSessions(home, caller),
    'config.history': async ({ limit }) => ({ items: await home.history(limit) }),
    'config.diff': async ({ from, to: asked }) => {
      const to = asked ?? (await home.newest())?.generation ?? noGeneration
      return { from, to, differences: differences(await home.documentsAt(from), await home.documentsAt(to)) }
    },
  }
}

/** People may end their own sessions, and change nothing else. */
async function endSessions(home: Home, caller: Caller): Promise<{ generation: number }> {
  const content = await home.newest()
  const user = content?.documents.user[caller.name]
  if (!content || !user)
    throw new Refusal('not-found', `${caller.name} is no user of the global configuration, so it has no sessions to end`)
  const change = { put: [{ kind: 'user' as const, name: caller.name, document: { ...user, sessions: endedMark } }], delete: [] }
  const { generation } = await home.change(caller, change, {
    expectedGeneration: content.generation,
    kind: 'write',
    note: `${caller.name} ended its sessions`,
  })
  return { generation }
}

function writeOptions({ expectedGeneration, dryRun, note }: CallInput<'config.change'> | CallInput<'config.revert'>): WriteOptions {
  return { expectedGeneration, kind: dryRun ? 'dry-run' : 'write', note }
}
