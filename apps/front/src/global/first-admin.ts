// The first admin of a new federation: where nobody could come in as one, one of its fronts makes a token, good for a day, and shows it once to whoever started it.
import { randomUUID } from 'node:crypto'
import { open, rm } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { newToken } from '@muster/server/tokens'
import type { Caller } from '@muster/shared/contract/call'
import { Refusal } from '@muster/shared/errors'
import { noGeneration } from '@muster/shared/global/copy'
import { type Change, type Documents, noDocuments } from '@muster/shared/global/documents'
import { grantOfClaim, grantOfUser } from '@muster/shared/global/grants'
import { randomText } from '@muster/shared/ids'
import type { Home } from './home.ts'

/** Where the token is shown. Never the log: what is there is kept, copied and read by others. */
export type FirstTokenPlace =
  | { readonly kind: 'terminal'; readonly write: (text: string) => void }
  | { readonly kind: 'file'; readonly file: string }
  | { readonly kind: 'none' }

export interface FirstAdminOptions {
  readonly home: Pick<Home, 'newest' | 'change' | 'audit'>
  readonly place: FirstTokenPlace
  readonly log: { info(facts: object, text: string): void; warn(facts: object, text: string): void }
  readonly signal: AbortSignal
}

/** Whose token it is. Without one nobody comes in by that name. */
const userName = 'first-admin'
const lifetimeMs = 24 * 3_600_000
const againMs = 3_000
/** In whose name it is written. */
const itself: Caller = { name: 'first start', role: 'admin' }

/**
 * Makes and shows the token, where nobody can come in as an admin; of several fronts one does. Tries for as long as the database is away. Resolves when there is an admin, by
 * this or without it, when there is nowhere to show a token, or with the signal.
 */
export async function makeFirstAdmin({ home, place, log, signal }: FirstAdminOptions): Promise<void> {
  let told: string | undefined
  while (!signal.aborted) {
    try {
      if ((await attempt(home, place, log)) === 'settled') return
    } catch (error) {
      const { message } = error as Error
      if (message !== told)
        log.warn({ trouble: message }, 'nobody can come in as an admin yet, and no first token could be made; trying on')
      told = message
    }
    await sleep(againMs * (0.7 + 0.6 * Math.random()), undefined, { signal }).catch(() => undefined) // stopped: the loop ends
  }
}

async function attempt(
  home: FirstAdminOptions['home'],
  place: FirstTokenPlace,
  log: FirstAdminOptions['log'],
): Promise<'settled' | 'again'> {
  const content = await home.newest()
  if (hasAdmin(content?.documents ?? noDocuments, Date.now())) return 'settled'
  if (place.kind === 'none') {
    log.warn(
      {},
      'nobody can come in as an admin: there is no tokens file, no such user, and no terminal to show a first token on; start this front on a terminal, or set MUSTER_FIRST_TOKEN_FILE to where it is to be written, or MUSTER_TOKENS_FILE',
    )
    return 'settled'
  }
  const shown = await openPlace(place)
  const { token, change } = firstAdmin(Date.now())
  try {
    // Of the generation that was looked at: where another front, or an admin, was first, this is refused.
    const expectedGeneration = content?.generation ?? noGeneration
    const note = `a first token, because nobody could come in as an admin; good for a day`
    const asked = { call: 'config.change', input: { ...change, note }, caller: itself, from: 'itself', via: null, requestId: randomUUID() }
    await home.audit.carryOut(asked, () => home.change(itself, change, { expectedGeneration, kind: 'write', note }))
  } catch (error) {
    await shown.leave()
    if (error instanceof Refusal && error.code === 'stale-version') return 'again'
    throw error
  }
  await shown.show(token)
  log.info(
    { user: userName, shown: place.kind === 'file' ? place.file : 'on the terminal' },
    'made a first token for an admin, good for a day',
  )
  return 'settled'
}

/** Whether somebody can come in as an admin: a user with a password, a provider or a token that is good, or those whom a provider says are admins. */
export function hasAdmin(documents: Documents, now: number): boolean {
  const { user, token, oidc } = documents
  const tokens = Object.values(token).filter(({ role, expiresAt }) => role === 'admin' && Date.parse(expiresAt) > now)
  const users = Object.entries(user).some(
    ([name, { password, oidc: bound }]) =>
      grantOfUser(documents, name)?.role === 'admin' &&
      (password !== undefined || bound !== undefined || tokens.some(({ user: owner }) => owner === name)),
  )
  const claimed = Object.entries(oidc).some(
    ([provider, { status, roles, groups }]) =>
      status === 'active' &&
      [...Object.keys(roles), ...Object.keys(groups)].some(group => grantOfClaim(documents, provider, group)?.role === 'admin'),
  )
  return users || claimed
}

function firstAdmin(now: number): { token: string; change: Change } {
  const { token, sha256 } = newToken()
  const [createdAt, expiresAt] = [now, now + lifetimeMs].map(ms => new Date(ms).toISOString())
  const document = { user: userName, role: 'admin', sha256, description: 'made at the first start', createdAt, expiresAt }
  const put = [
    { kind: 'user' as const, name: userName, document: { role: 'admin', displayName: 'whoever started the first front' } },
    { kind: 'token' as const, name: `t-${randomText(12)}`, document },
  ]
  return { token, change: { put, delete: [] } }
}

interface OpenPlace {
  show(token: string): Promise<void>
  /** Nothing is to be shown after all. */
  leave(): Promise<void>
}

/** A file is made before the token is: one that nobody could read afterwards would be lost. */
async function openPlace(place: Exclude<FirstTokenPlace, { kind: 'none' }>): Promise<OpenPlace> {
  if (place.kind === 'terminal') return { show: async token => place.write(textOf(token)), leave: async () => undefined }
  const { file } = place
  const handle = await open(file, 'wx', 0o600).catch(cause => {
    throw new Error(`make the file of MUSTER_FIRST_TOKEN_FILE: ${cause.message}; it must not be there yet`, { cause })
  })
  return {
    show: async token => {
      await handle.writeFile(`${token}\n`)
      await handle.close()
    },
    leave: async () => {
      await handle.close()
      await rm(file)
    },
  }
}

function textOf(token: string): string {
  return `
Nobody could come in as an admin, so this front made a token. It may do everything, is good for a day, and is shown this once:

    ${token}

    muster login URL --token-stdin                    # paste it there
    muster user create NAME --role admin
    muster user password NAME
    muster user delete ${userName}                    # once you have logged in as NAME

`
}
