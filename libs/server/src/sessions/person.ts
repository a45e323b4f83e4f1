// Who comes in, as the documents say: by a document of one's own, or by a group that a provider's document gives a role. Pure; nobody else does.
import { mayAct } from '@muster/shared/contract/call'
import { type Documents, type ProviderDocument, type UserDocument, userName } from '@muster/shared/global/documents'
import type { TokenOwner } from '../tokens.ts'
import type { Session } from './session-token.ts'

/** What somebody may do. */
export type Grant = Omit<TokenOwner, 'name'>

export const grantOf = ({ role, pools }: { role: Grant['role']; pools?: readonly string[] | undefined }): Grant => ({
  role,
  ...(pools && { pools }),
})

/** What a session is begun with: who it is, what it hangs on, and what that person may do. */
export type Person = Pick<Session, 'user' | 'mark' | 'provider' | 'group'> & { readonly grant: Grant }

/** The person an ID token of a provider speaks of, or why it is nobody who may come in. */
export function personOf(documents: Documents, name: string, claims: Readonly<Record<string, unknown>>): Person | { refused: string } {
  const provider = documents.oidc[name] as ProviderDocument
  const bound = Object.entries(documents.user).find(([, { oidc }]) => oidc?.provider === name && oidc.subject === claims.sub)
  if (bound) {
    const [user, document] = bound
    if (document.status !== 'active') return { refused: `the user ${user} is disabled` }
    return { user, mark: document.sessions ?? '', provider: name, grant: grantOf(document) }
  }
  const nobody = `nobody here is ${JSON.stringify(claims.sub)} of ${name}`
  const group = strongestGroup(provider, claims)
  if (group === undefined) return { refused: nobody }
  const user = calledBy(provider, claims)
  if (user === undefined) return { refused: `${nobody}, and its claim ${provider.nameClaim} is no name for a user` }
  // Else people could make themselves somebody who is there already.
  if (documents.user[user]) return { refused: `${nobody}: the user ${user} is somebody else, or not bound to this provider` }
  return { user, mark: provider.sessions ?? '', provider: name, group, grant: grantOfGroup(provider, group) }
}

function grantOfGroup({ roles, pools }: ProviderDocument, group: string): Grant {
  return grantOf({ role: roles[group] as Grant['role'], pools })
}

function strongestGroup({ groupsClaim, roles }: ProviderDocument, claims: Readonly<Record<string, unknown>>): string | undefined {
  const claimed = claims[groupsClaim]
  const groups = (Array.isArray(claimed) ? claimed : [claimed]).filter(group => typeof group === 'string' && Object.hasOwn(roles, group))
  const roleOf = (group: string) => roles[group] as Grant['role']
  return groups.reduce<string | undefined>(
    (best, group) => (best === undefined || !mayAct(roleOf(best), roleOf(group)) ? group : best),
    undefined,
  )
}

/** An address of mail counts where the provider has seen that it is the person's. */
function calledBy({ nameClaim }: ProviderDocument, claims: Readonly<Record<string, unknown>>): string | undefined {
  if (nameClaim === undefined || (nameClaim === 'email' && claims.email_verified !== true)) return undefined
  const claim = claims[nameClaim]
  // Two subjects that differ in case are two people; addresses and account names that do are one.
  const name = typeof claim === 'string' && nameClaim !== 'sub' ? claim.toLowerCase() : claim
  const parsed = userName.safeParse(name)
  return parsed.success ? parsed.data : undefined
}

/** What a session's user may do just now, or why it is over. */
export function standing(session: Session, documents: Documents | undefined): Grant | { ended: string } {
  const { user: name, mark, provider: by, group } = session
  const provider = by === undefined ? undefined : documents?.oidc[by]
  if (by !== undefined && provider?.status !== 'active') return { ended: `people of ${by} do not log in here any more` }
  const user = documents?.user[name]
  return group === undefined ? ofUser(session, user) : ofGroup({ name, mark, group }, provider, user)
}

function ofUser({ user: name, mark, provider }: Session, user: UserDocument | undefined): Grant | { ended: string } {
  if (!user) return { ended: `there is no user ${name} here any more` }
  if (user.status !== 'active') return { ended: `the user ${name} is disabled` }
  if ((user.sessions ?? '') !== mark || (provider !== undefined && user.oidc?.provider !== provider))
    return { ended: `the sessions of ${name} were ended, or its way to log in was changed` }
  return grantOf(user)
}

function ofGroup(
  { name, mark, group }: { name: string; mark: string; group: string },
  provider: ProviderDocument | undefined,
  user: UserDocument | undefined,
): Grant | { ended: string } {
  if (user) return { ended: `there is a user ${name} by now, whose document says what it may` }
  if ((provider?.sessions ?? '') !== mark) return { ended: 'the sessions of this provider were ended, or its document was changed' }
  if (!provider || !Object.hasOwn(provider.roles, group)) return { ended: `the group ${group} has no role here any more` }
  return grantOfGroup(provider, group)
}
