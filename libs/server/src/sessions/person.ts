// Who comes in, as the documents say: by a document of one's own, or by a group that a provider's document gives a role. Pure; nobody else does.
import { type Documents, type ProviderDocument, userName } from '@muster/shared/global/documents'
import { type Grant, grantOfClaim, grantOfUser, isWider } from '@muster/shared/global/grants'
import type { Session } from './session-token.ts'

/** What a session is begun with: who it is, what it hangs on, and what that person may do. */
export type Person = Pick<Session, 'user' | 'mark' | 'provider' | 'group'> & { readonly grant: Grant }

/** The person an ID token of a provider speaks of, or why it is nobody who may come in. */
export function personOf(documents: Documents, name: string, claims: Readonly<Record<string, unknown>>): Person | { refused: string } {
  const provider = documents.oidc[name] as ProviderDocument
  const bound = Object.entries(documents.user).find(([, { oidc }]) => oidc?.provider === name && oidc.subject === claims.sub)
  if (bound) {
    const [user, document] = bound
    const grant = grantOfUser(documents, user)
    if (!grant) return { refused: `the user ${user} is disabled` }
    return { user, mark: document.sessions ?? '', provider: name, grant }
  }
  const nobody = `nobody here is ${JSON.stringify(claims.sub)} of ${name}`
  const best = widestGroup(documents, name, claims)
  if (!best) return { refused: nobody }
  const user = calledBy(provider, claims)
  if (user === undefined) return { refused: `${nobody}, and its claim ${provider.nameClaim} is no name for a user` }
  // Else people could make themselves somebody who is there already.
  if (documents.user[user]) return { refused: `${nobody}: the user ${user} is somebody else, or not bound to this provider` }
  return { user, mark: provider.sessions ?? '', provider: name, ...best }
}

/** Of the provider's groups that mean something here, the one that gives most. */
function widestGroup(
  documents: Documents,
  name: string,
  claims: Readonly<Record<string, unknown>>,
): { group: string; grant: Grant } | undefined {
  const claimed = claims[(documents.oidc[name] as ProviderDocument).groupsClaim]
  const found = (Array.isArray(claimed) ? claimed : [claimed]).flatMap(group => {
    const grant = typeof group === 'string' ? grantOfClaim(documents, name, group) : undefined
    return grant ? [{ group: group as string, grant }] : []
  })
  return found.reduce<(typeof found)[number] | undefined>(
    (best, each) => (best && !isWider(each.grant, best.grant) ? best : each),
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
  if (!documents) return { ended: `there is no user ${name} here any more` }
  return group === undefined ? ofUser(session, documents) : ofGroup({ name, mark, group, by }, documents)
}

function ofUser({ user: name, mark, provider }: Session, documents: Documents): Grant | { ended: string } {
  const user = documents.user[name]
  if (!user) return { ended: `there is no user ${name} here any more` }
  const grant = grantOfUser(documents, name)
  if (!grant) return { ended: `the user ${name} is disabled` }
  if ((user.sessions ?? '') !== mark || (provider !== undefined && user.oidc?.provider !== provider))
    return { ended: `the sessions of ${name} were ended, or its way to log in was changed` }
  return grant
}

function ofGroup(
  { name, mark, group, by = '' }: { name: string; mark: string; group: string; by: string | undefined },
  documents: Documents,
): Grant | { ended: string } {
  if (documents.user[name]) return { ended: `there is a user ${name} by now, whose document says what it may` }
  if ((documents.oidc[by]?.sessions ?? '') !== mark)
    return { ended: 'the sessions of this provider were ended, or its document was changed' }
  return grantOfClaim(documents, by, group) ?? { ended: `the group ${group} has no role here any more` }
}
