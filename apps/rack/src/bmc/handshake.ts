// The BMC's half of Open Session and RAKP 1 to 4, in wire order: payload in, answer's payload out, or undefined for what a board
// drops in silence (IPMI v2.0 13.17 to 13.24; facts 4.3).
import { randomBytes } from 'node:crypto'
import {
  codesMatch,
  deriveKeys,
  type Exchange,
  encodeOpenSessionResponse,
  encodeRakp2,
  encodeRakp4,
  type Privilege,
  paddedKey,
  parseOpenSessionRequest,
  parseRakp1,
  parseRakp3,
  privileges,
  rakp2Code,
  rakp3Code,
  rakp4Check,
  roleNameOnly,
  suiteOfAlgorithms,
} from '@muster/drivers/ipmi/codec'
import type { HalfOpenSession, SessionTable } from './sessions.ts'

/** An account of the BMC: name of at most 16, password of at most 20 bytes. */
export interface BmcUser {
  name: string
  password: string
  privilege: Privilege
}

export interface HandshakeContext {
  readonly sessions: SessionTable
  readonly users: readonly BmcUser[]
  /** K_g, at most 20 bytes; absent where the password stands in for it. */
  readonly kg: Buffer | undefined
  readonly guid: Buffer
  /** False where the BMC has no resources for another session. */
  readonly hasRoom: boolean
  readonly atMs: number
  /** Hears how each login ended. */
  readonly loggedIn: (outcome: 'accepted' | 'refused') => void
}

const status = {
  noResources: 0x01,
  invalidSession: 0x02,
  invalidRole: 0x09,
  roleNotAuthorised: 0x0a,
  unauthorisedName: 0x0d,
  integrityValue: 0x0f,
  noSuite: 0x11,
} as const

/** Answers Open Session: a slot, or why not. */
export function answerOpenSession(payload: Buffer, context: HandshakeContext): Buffer | undefined {
  const request = parseOpenSessionRequest(payload)
  if (!request) return undefined
  const refuse = (code: number) => encodeOpenSessionResponse({ tag: request.tag, status: code, consoleId: request.consoleId })
  const suite = suiteOfAlgorithms(request.algorithms)
  if (!suite) return refuse(status.noSuite)
  // Level 0 asks for the highest there is; which one that is, RAKP 1 says.
  if (request.privilege > privileges.ADMINISTRATOR) return refuse(status.invalidRole)
  const session = context.hasRoom ? context.sessions.begin(request, suite, context.atMs) : undefined
  if (!session) return refuse(status.noResources)
  return encodeOpenSessionResponse({
    tag: request.tag,
    status: 0,
    privilege: request.privilege || privileges.ADMINISTRATOR,
    consoleId: request.consoleId,
    bmcId: session.id,
    algorithms: request.algorithms,
  })
}

/** Answers RAKP 1 with RAKP 2. A refusal frees the slot. */
export function answerRakp1(payload: Buffer, context: HandshakeContext): Buffer | undefined {
  const request = parseRakp1(payload)
  if (!request) return undefined
  const session = context.sessions.get(request.bmcId)
  if (session?.kind !== 'half-open') return encodeRakp2({ tag: request.tag, status: status.invalidSession, consoleId: 0 })
  // A repetition gets the same answer; another RAKP 1 for the same slot is dropped, as a second random number would be an oracle.
  if (session.rakp) return session.rakp.request.consoleRandom.equals(request.consoleRandom) ? session.rakp.answer : undefined
  const refuse = (code: number) => {
    context.sessions.end(session.id)
    context.loggedIn('refused')
    return encodeRakp2({ tag: request.tag, status: code, consoleId: session.consoleId })
  }
  const level = request.role & 0x0f
  if (level < privileges.USER || level > privileges.ADMINISTRATOR) return refuse(status.invalidRole)
  const user = context.users.find(
    account => Buffer.from(account.name).equals(request.user) && (request.role & roleNameOnly || privileges[account.privilege] === level),
  )
  if (!user) return refuse(status.unauthorisedName)
  if (level > privileges[user.privilege]) return refuse(status.roleNotAuthorised)
  const exchange: Exchange = {
    suite: session.suite,
    consoleId: session.consoleId,
    bmcId: session.id,
    // The socket's buffer is not ours to keep.
    consoleRandom: Buffer.from(request.consoleRandom),
    bmcRandom: randomBytes(16),
    guid: context.guid,
    role: request.role,
    user: Buffer.from(request.user),
  }
  const passwordKey = paddedKey(Buffer.from(user.password))
  const code = rakp2Code(exchange, passwordKey)
  const facts = { tag: request.tag, consoleId: session.consoleId, bmcRandom: exchange.bmcRandom, guid: exchange.guid }
  const answer = encodeRakp2({ ...facts, status: 0, code })
  session.rakp = {
    request: { ...request, consoleRandom: exchange.consoleRandom, user: exchange.user },
    exchange,
    passwordKey,
    limit: privileges[user.privilege],
    answer,
  }
  session.touchedAt = context.atMs
  return answer
}

/** Answers RAKP 3 with RAKP 4: the session is open, or its slot is free again. */
export function answerRakp3(payload: Buffer, context: HandshakeContext): Buffer | undefined {
  const request = parseRakp3(payload)
  if (!request) return undefined
  const session = context.sessions.get(request.bmcId)
  // Repeated before any command came: our RAKP 4 was lost.
  if (session?.kind === 'open') return session.sentSequence === 0 ? session.rakp4 : undefined
  if (!session?.rakp) return encodeRakp4({ tag: request.tag, status: status.invalidSession, consoleId: 0 })
  if (request.status !== 0) {
    // The console gave up: no answer is due, only the slot.
    context.sessions.end(session.id)
    context.loggedIn('refused')
    return undefined
  }
  const { exchange, passwordKey, limit } = session.rakp
  if (!codesMatch(rakp3Code(exchange, passwordKey), request.code)) {
    context.sessions.end(session.id)
    context.loggedIn('refused')
    return encodeRakp4({ tag: request.tag, status: status.integrityValue, consoleId: session.consoleId })
  }
  return openSession({ session, exchange, passwordKey, userLimit: limit, tag: request.tag }, context)
}

function openSession(
  login: { session: HalfOpenSession; exchange: Exchange; passwordKey: Buffer; userLimit: number; tag: number },
  context: HandshakeContext,
): Buffer {
  const { session, exchange } = login
  const keys = deriveKeys(exchange, login.passwordKey, context.kg && paddedKey(context.kg))
  const rakp4 = encodeRakp4({ tag: login.tag, status: 0, consoleId: session.consoleId, check: rakp4Check(exchange, keys) })
  context.sessions.open(session, { keys, limit: exchange.role & 0x0f, userLimit: login.userLimit, rakp4, atMs: context.atMs })
  context.loggedIn('accepted')
  return rakp4
}
