// What somebody may do: the widest of its own grant and those of its groups. One rule for fronts and partitions, whoever asks: a session, a token, a person of a provider.
import { mayAct, type Role } from '../contract/call.ts'
import type { Documents, GroupDocument } from './documents.ts'

/** A role, in these pools; in all where they are left out. */
export interface Grant {
  readonly role: Exclude<Role, 'public'>
  readonly pools?: readonly string[]
}

interface Given {
  readonly role?: Grant['role'] | undefined
  readonly pools?: readonly string[] | undefined
}

/**
 * The widest of several grants: the strongest role, in the pools of all grants that give it. Weaker grants add nothing, so that nobody has a role in
 * a pool where no grant gives it. `atMost`: no grant counts for more than this role (a token's); the stronger ones give it too. Undefined: there is none.
 */
export function widest(grants: readonly Given[], atMost: Grant['role'] = 'admin'): Grant | undefined {
  const capped = grants.flatMap(({ role, pools }) => (role === undefined ? [] : [{ role: mayAct(role, atMost) ? atMost : role, pools }]))
  const role = capped.reduce<Grant['role'] | undefined>((best, grant) => (best && mayAct(best, grant.role) ? best : grant.role), undefined)
  if (role === undefined) return undefined
  const strongest = capped.filter(grant => grant.role === role)
  if (strongest.some(({ pools }) => pools === undefined)) return { role }
  return { role, pools: [...new Set(strongest.flatMap(({ pools }) => pools ?? []))] }
}

/** Whether the first grant reaches further than the second: a stronger role, else more pools. */
export function isWider(one: Grant, other: Grant): boolean {
  if (one.role !== other.role) return mayAct(one.role, other.role)
  return (one.pools?.length ?? Number.POSITIVE_INFINITY) > (other.pools?.length ?? Number.POSITIVE_INFINITY)
}

/** What a user may do, by its document and its groups'; with a token, at most that token's role. Undefined: there is no such user, or it is disabled. */
export function grantOfUser(documents: Documents, name: string, atMost?: Grant['role']): Grant | undefined {
  const user = documents.user[name]
  if (user?.status !== 'active') return undefined
  return widest([user, ...groupsOf(documents, name).map(group => documents.group[group] as GroupDocument)], atMost)
}

/** What somebody without a document may do that a provider says is in a group of its own. Undefined: that group means nothing here. */
export function grantOfClaim(documents: Documents, provider: string, claimed: string): Grant | undefined {
  const document = documents.oidc[provider]
  if (!document) return undefined
  const role = Object.hasOwn(document.roles, claimed) ? document.roles[claimed] : undefined
  const group = Object.hasOwn(document.groups, claimed) ? documents.group[document.groups[claimed] as string] : undefined
  return widest([{ role, pools: document.pools }, ...(group ? [group] : [])])
}

/** Looked up at every call, and the same for as long as a generation is in force. */
const members = new WeakMap<Documents['group'], ReadonlyMap<string, readonly string[]>>()

/** The names of the groups that a user is a member of. */
export function groupsOf({ group }: Pick<Documents, 'group'>, user: string): readonly string[] {
  let known = members.get(group)
  if (!known) {
    const named = Object.entries(group).flatMap(([name, document]) => document.members.map(member => ({ name, member })))
    const byMember = Map.groupBy(named, ({ member }) => member)
    known = new Map([...byMember].map(([member, found]) => [member, found.map(({ name }) => name)]))
    members.set(group, known)
  }
  return known.get(user) ?? []
}
