// What a front answers to the calls about the global configuration.
import type { CallContext } from '@muster/server/backend'
import type { CallInput } from '@muster/shared/contract/contract'
import { documentsOf, noGeneration } from '@muster/shared/global/copy'
import { differences } from '@muster/shared/global/documents'
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
    'config.history': async ({ limit }) => ({ items: await home.history(limit) }),
    'config.diff': async ({ from, to: asked }) => {
      const to = asked ?? (await home.newest())?.generation ?? noGeneration
      return { from, to, differences: differences(await home.documentsAt(from), await home.documentsAt(to)) }
    },
  }
}

function writeOptions({ expectedGeneration, dryRun, note }: CallInput<'config.change'> | CallInput<'config.revert'>): WriteOptions {
  return { expectedGeneration, kind: dryRun ? 'dry-run' : 'write', note }
}
