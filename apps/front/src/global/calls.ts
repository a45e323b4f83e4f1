// What a front answers to the calls about the global configuration.
import { setTimeout as sleep } from 'node:timers/promises'
import type { CallContext } from '@muster/server/backend'
import type { Caller } from '@muster/shared/contract/call'
import type { CallInput } from '@muster/shared/contract/contract'
import { Refusal } from '@muster/shared/errors'
import { documentsOf, noGeneration, ownKeysOf } from '@muster/shared/global/copy'
import { type Documents, differences, endedMark, type UserDocument } from '@muster/shared/global/documents'
import { grantOfUser } from '@muster/shared/global/grants'
import type { Beside, Here } from '../federation.ts'
import type { Home, WriteOptions } from './home.ts'

/** One short function per call. */
export function configCalls(home: Home): Here {
  return {
    'config.get': async input => ({ ...documentsOf(await home.newest(), input), source: home.source }),
    'config.change': (input, { caller }) => home.change(caller, input, writeOptions(input)),
    'config.revert': (input, { caller }) => home.revert(caller, input.to, writeOptions(input)),
    'audit.fronts': ({ after, limit, actor, call, target }) => home.audit.list({ after, limit, actor, call, target }),
    'config.refill': (input, { caller }: CallContext) => home.refill(caller, input),
    ...ownCalls(home),
    'config.history': async ({ limit }) => ({ items: await home.history(limit) }),
    'config.diff': async ({ from, to: asked }) => {
      const to = asked ?? (await home.newest())?.generation ?? noGeneration
      return { from, to, differences: differences(await home.documentsAt(from), await home.documentsAt(to)) }
    },
  }
}

/** Whether every partition has what is in force is for a front to say: a change that nobody has taken yet is in no copy. */
export function besideCopies(home: Home): Beside {
  return { 'config.copies': ({ items }) => home.compare(items) }
}

/** What people change of their own, without an admin: nothing but this. */
function ownCalls(home: Home): Here {
  return {
    'session.logout': (_, { caller }) =>
      changeOwn(home, caller, { note: `${caller.name} ended its sessions`, change: user => ({ ...user, sessions: endedMark }) }),
    'keys.list': async (_, { caller }) => ownKeysOf(await home.newest(), caller.name),
    'keys.put': ({ name, key }, { caller }) =>
      changeOwn(home, caller, {
        note: `${caller.name} added its SSH key ${name}`,
        change: (user, documents) => {
          refuseLess(caller, documents)
          return { ...user, sshKeys: { ...user.sshKeys, [name]: key } }
        },
      }),
    'keys.delete': ({ name }, { caller }) =>
      changeOwn(home, caller, {
        note: `${caller.name} removed its SSH key ${name}`,
        change: ({ sshKeys: { [name]: gone, ...rest } = {}, ...user }) => {
          if (gone === undefined) throw new Refusal('not-found', `${caller.name} has no SSH key ${name}`)
          return Object.keys(rest).length === 0 ? user : { ...user, sshKeys: rest }
        },
      }),
  }
}

/** A key comes into whatever its user deploys: a token that may do less must not become more by it. */
function refuseLess(caller: Caller, documents: Documents): void {
  const grant = grantOfUser(documents, caller.name)
  const isLess = !grant || caller.role !== grant.role || !samePools(caller.pools, grant.pools)
  if (isLess)
    throw new Refusal('forbidden', `this token may do less than ${caller.name}, so it may not add an SSH key; log in, or use a whole token`)
}

const samePools = (one: readonly string[] | undefined, other: readonly string[] | undefined) =>
  one?.toSorted().join() === other?.toSorted().join() && (one === undefined) === (other === undefined)

/** So often is a change of one's own tried where others write at the same moment. */
const mostTries = 5
const betweenTriesMs = 50

/** Writes a change of the caller's own document, on top of whatever others have written meanwhile. */
export async function changeOwn(
  home: Home,
  caller: Caller,
  { note, change }: { note: string; change: (user: UserDocument, documents: Documents) => object },
): Promise<{ generation: number }> {
  for (let tried = 1; ; tried++) {
    const content = await home.newest()
    const user = content?.documents.user[caller.name]
    if (!content || !user)
      throw new Refusal('not-found', `${caller.name} is no user of the global configuration, so it has nothing of its own to change`)
    const put = [{ kind: 'user' as const, name: caller.name, document: { ...change(user, content.documents) } }]
    try {
      const { generation } = await home.change(caller, { put, delete: [] }, { expectedGeneration: content.generation, kind: 'write', note })
      return { generation }
    } catch (error) {
      if (!(error instanceof Refusal) || error.code !== 'stale-version' || tried === mostTries) throw error
    }
    await sleep(betweenTriesMs * tried * (0.5 + Math.random()))
  }
}

function writeOptions({ expectedGeneration, dryRun, note }: CallInput<'config.change'> | CallInput<'config.revert'>): WriteOptions {
  return { expectedGeneration, kind: dryRun ? 'dry-run' : 'write', note }
}
