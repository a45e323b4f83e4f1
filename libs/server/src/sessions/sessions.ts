// Sessions of people: begun with a password or an ID token, good until they expire, their user is disabled, or their user's sessions are ended. A server keeps
// none of them: it looks at its copy of the documents at every call, so that what changes there holds at once.
import type { CallAnswer, CallInput } from '@muster/shared/contract/contract'
import { durationMs } from '@muster/shared/duration'
import { Refusal, wrongFields } from '@muster/shared/errors'
import type { Documents, UserDocument } from '@muster/shared/global/documents'
import { type Grant, grantOfUser } from '@muster/shared/global/grants'
import { passwordProblem } from '@muster/shared/password'
import type { CallContext } from '../backend.ts'
import { type FailureLimit, Failures } from '../failures.ts'
import type { Signer, Verifier } from '../global/signature.ts'
import { hashToken, type TokenOwner, type Tokens } from '../tokens.ts'
import { IdTokens } from './id-token.ts'
import { Passwords } from './passwords.ts'
import { type Person, personOf, standing } from './person.ts'
import { longestSessionMs, readSessionToken, type Session, sessionToken } from './session-token.ts'

export interface SessionsOptions {
  readonly signer: Signer
  /** Whose sessions are good here; the signer's own are to be among them. */
  readonly verifier: Verifier
  /** Where the sessions that are begun here are good. */
  readonly validAt: CallAnswer<'session.login'>['validAt']
  /** The documents in force; undefined: there are none yet. */
  readonly documents: () => Documents | undefined
  readonly log: { info(facts: object, text: string): void; warn(facts: object, text: string): void }
  readonly limits?: { readonly address: FailureLimit; readonly user: FailureLimit }
  /** The clock, in epoch milliseconds. */
  readonly now?: () => number
}

export interface Sessions {
  /** Whom sessions let in. */
  readonly tokens: Tokens
  login(input: CallInput<'session.login'>, context: Asking): Promise<CallAnswer<'session.login'>>
  providers(): CallAnswer<'session.providers'>
  exchange(input: CallInput<'session.exchange'>, context: Asking): Promise<CallAnswer<'session.exchange'>>
  /**
   * Changes the password of `user`, who has to say the one in force. `write` puts the new hash into its document in place of the old one, and answers
   * the generation; the documents in force then have it. Answers a new session, because all others are over.
   */
  changePassword(
    user: string,
    input: CallInput<'session.password'>,
    context: Asking,
    write: (hashes: { before: string; after: string }) => Promise<number>,
  ): Promise<CallAnswer<'session.password'>>
}

type Asking = Pick<CallContext, 'from' | 'signal'>

const usualSessionMs = durationMs('12h')
/** An address may stand for many people; a user is one, who knows the password after a few attempts or not at all. */
const usualLimits = { address: { failures: 20, windowMs: 60_000 }, user: { failures: 10, windowMs: 300_000 } }
/** Sessions whose signatures are remembered to be right. */
const mostRemembered = 10_000
/** Pairs of user and address that a right password came from. */
const mostProven = 10_000
/** A clock of another server may be ahead by so much. */
const clockSkewMs = 300_000

interface Remembered {
  readonly session: Session
  /** One object while its facts stay the same: the doors remember by it where a token was right from. */
  owner: TokenOwner | undefined
}

export function createSessions(options: SessionsOptions): Sessions {
  const { signer, verifier, documents, log, now = Date.now, limits = usualLimits } = options
  const passwords = new Passwords()
  const idTokens = new IdTokens(now)
  const remembered = new Map<string, Remembered>()
  const proven = new Set<string>()
  const addresses = new Failures({
    limit: limits.address,
    now,
    onLimit: address => log.warn({ address }, 'an address sent too many wrong passwords; it is refused for a while'),
  })
  const users = new Failures({
    limit: limits.user,
    now,
    onLimit: user => log.warn({ user }, 'too many wrong passwords for a user; it can log in only from where it did before, for a while'),
  })

  const read = (token: string): Remembered | undefined => {
    if (!token.startsWith('ms1.')) return undefined
    const key = hashToken(token)
    const known = remembered.get(key)
    if (known) return known
    const session = readSessionToken(token, verifier)
    if (!session) return undefined
    forgetFirst(remembered, mostRemembered)
    const fresh = { session, owner: undefined }
    remembered.set(key, fresh)
    return fresh
  }

  const begin = ({ grant, ...person }: Person, lifetime: string | undefined): CallAnswer<'session.login'> => {
    const startedAt = Math.floor(now() / 1000) * 1000
    const lengthMs = lifetime === undefined ? usualSessionMs : durationMs(lifetime)
    const expiresAt = startedAt + Math.max(1000, Math.floor(lengthMs / 1000) * 1000)
    const token = sessionToken({ ...person, startedAt, expiresAt }, signer)
    const caller = { name: person.user, ...grant }
    return { token, expiresAt: new Date(expiresAt).toISOString(), caller, validAt: options.validAt }
  }

  const inForce = (): Documents => {
    const known = documents()
    if (!known) throw new Refusal('not-ready', 'log in: there is no global configuration here yet, so nobody can')
    return known
  }

  /** The user that a password belongs to. Throws unauthenticated, too-many-requests, overloaded. */
  const prove = async (
    name: string,
    password: string,
    { from: address, signal }: Asking,
  ): Promise<{ user: UserDocument; grant: Grant }> => {
    const known = inForce()
    const pair = `${name} ${address}`
    refuseGuesses('from this address', addresses.refusedForMs(address))
    // Else anybody could keep a user out by guessing.
    if (!proven.has(pair)) refuseGuesses('for this user', users.refusedForMs(name))
    // Counted before they are known to be failures, so that many at once are no way around the limit.
    addresses.count(address)
    users.count(name)
    const forgive = () => {
      addresses.forgive(address)
      users.forgive(name)
    }
    const user = known.user[name]
    const hash = user?.status === 'active' ? user.password : undefined
    const isRight = await passwords.check(password, hash, signal).catch(error => {
      forgive() // nobody has learned anything
      throw error
    })
    const grant = grantOfUser(known, name)
    if (!user || !grant || !isRight)
      throw new Refusal('unauthenticated', 'log in: user and password do not belong together', { hint: loginHint })
    forgive()
    forgetFirst(proven, mostProven)
    proven.add(pair)
    return { user, grant }
  }

  return {
    tokens: {
      find: token => {
        const known = read(token)
        if (!known || outOfTime(known.session, now()) !== undefined) return undefined
        const found = standing(known.session, documents())
        if ('ended' in found) return undefined
        if (!known.owner || !isSame(known.owner, found)) known.owner = { name: known.session.user, ...found }
        return known.owner
      },
      ended: token => {
        const known = read(token)
        if (!known) return undefined
        const found = standing(known.session, documents())
        return outOfTime(known.session, now()) ?? ('ended' in found ? found.ended : undefined)
      },
    },
    login: async ({ user: name, password, lifetime }, context) => {
      refuseLongLifetime(lifetime)
      const { user, grant } = await prove(name, password, context)
      log.info({ user: name, address: context.from }, 'a user has logged in with its password')
      return begin({ user: name, mark: user.sessions ?? '', grant }, lifetime)
    },
    changePassword: async (name, { password, newPassword, lifetime }, context, write) => {
      refuseLongLifetime(lifetime)
      const problem = passwordProblem(name, newPassword) ?? (newPassword === password ? 'this is the password in force' : undefined)
      if (problem) throw wrongFields([{ field: 'newPassword', message: problem }])
      if (inForce().user[name]?.password === undefined)
        throw new Refusal('not-found', `${name} has no password here, so there is none to change`, { hint: loginHint })
      const { user } = await prove(name, password, context)
      const generation = await write({ before: user.password as string, after: await passwords.hash(newPassword, context.signal) })
      log.info({ user: name, address: context.from }, 'a user has changed its password')
      const [now, grant] = [inForce().user[name], grantOfUser(inForce(), name)]
      if (!now || !grant)
        throw new Refusal('unauthenticated', `the password was changed, and then the user ${name} was disabled or deleted`)
      return { ...begin({ user: name, mark: now.sessions ?? '', grant }, lifetime), generation }
    },
    providers: () => ({
      items: Object.entries(documents()?.oidc ?? {})
        .filter(([, { status }]) => status === 'active')
        .map(([name, { issuer, clientId, scopes }]) => ({ name, issuer, clientId, scopes })),
    }),
    exchange: async ({ provider: name, idToken, nonce, lifetime }, { from: address }) => {
      refuseLongLifetime(lifetime)
      const provider = inForce().oidc[name]
      if (provider?.status !== 'active')
        throw new Refusal('not-found', `log in: there is no provider ${name} here`, { hint: providersHint })
      refuseGuesses('from this address', addresses.refusedForMs(address))
      // Counted first, as wrong passwords are; a token that is right, whosever it is, is no guess.
      addresses.count(address)
      const claims = await idTokens.check(name, provider, { idToken, nonce }).catch(error => {
        if (error instanceof Refusal && error.code === 'provider-away') addresses.forgive(address)
        throw error
      })
      addresses.forgive(address)
      const person = inForce().oidc[name] ? personOf(inForce(), name, claims) : { refused: `there is no provider ${name} any more` }
      if ('refused' in person) {
        log.info({ provider: name, subject: claims.sub, address }, 'somebody of a provider is nobody here')
        throw new Refusal('forbidden', `log in: ${person.refused}`, { hint: bindHint(name, claims.sub) })
      }
      log.info({ user: person.user, provider: name, subject: claims.sub, address }, 'a user has logged in at a provider')
      return begin(person, lifetime)
    },
  }
}

const loginHint = 'an admin can set a new password with: muster user password NAME'

const providersHint = 'see which there are: GET /api/v1/session/providers'
const bindHint = (provider: string, subject: string | undefined) =>
  `an admin can say who you are: muster user create NAME --role user --oidc ${provider}/${subject}`

/** Why a session is over by the clock, as people are told it; undefined: it is not. */
function outOfTime({ user, startedAt, expiresAt }: Session, now: number): string | undefined {
  if (expiresAt <= now) return `the session of ${user} expired at ${new Date(expiresAt).toISOString()}`
  if (startedAt > now + clockSkewMs) return `the session of ${user} begins in the future: the clock of a server is wrong`
  return undefined
}

const isSame = (one: Grant, other: Grant) => one.role === other.role && one.pools?.join() === other.pools?.join()

function refuseLongLifetime(lifetime: string | undefined): void {
  if (lifetime === undefined || durationMs(lifetime) <= longestSessionMs) return
  const message = 'is longer than a session can last, 24h'
  throw wrongFields([{ field: 'lifetime', message }])
}

function refuseGuesses(what: string, waitMs: number): void {
  if (waitMs === 0) return
  const text = `log in: too many wrong passwords came ${what}; try again in ${Math.ceil(waitMs / 1000)} s`
  throw new Refusal('too-many-requests', text, { retryAfterMs: waitMs })
}

function forgetFirst(known: Map<string, unknown> | Set<string>, most: number): void {
  if (known.size >= most) known.delete(known.keys().next().value as string)
}
