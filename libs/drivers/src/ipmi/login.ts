/**
 * Logging in: Open Session, RAKP 1 to 4, and what to do when any of them goes wrong (IPMI v2.0 13.15 to 13.24; facts 4.2 to 4.4).
 *
 * RAKP 1 and 3 are never sent twice. BMCs answer repeats in five different ways, all bad; so when an answer is missing, the whole
 * exchange starts afresh with a new console id and tag, and late answers to the old attempt no longer match.
 */

import { cancelled, Failure } from '../failure.ts'
import {
  codesMatch,
  commands,
  deriveKeys,
  type Exchange,
  encodeOpenSessionRequest,
  encodeRakp1,
  encodeRakp3,
  encodeRequest,
  encodeV20,
  hexByte,
  type OpenSessionResponse,
  type Privilege,
  paddedKey,
  parseDatagram,
  parseOpenSessionResponse,
  parseRakp2,
  parseRakp4,
  payloadTypes,
  privileges,
  type Rakp2,
  type Rakp4,
  type Refused,
  rakp2Code,
  rakp3Code,
  rakp4Check,
  roleNameOnly,
  type SessionKeys,
  type Suite,
  type SuiteId,
  type SuiteRecord,
  seal,
  setupStatus,
  suiteOfAlgorithms,
  suites,
  suitesOffered,
} from './codec.ts'
import { askSuites } from './discovery.ts'
import { type Link, PortClosed } from './link.ts'
import { type Pace, Patience } from './patience.ts'
import { randomId, randomPortion } from './random.ts'
import type { Timers } from './timers.ts'

export interface Credentials {
  user: Buffer
  password: Buffer
  kg?: Buffer
  privilege: Privilege
  suite: SuiteId | 'auto'
}

/** What is worth remembering about one BMC from login to login. */
export interface BmcMemory extends Pace {
  /** The suite that worked last. */
  suite?: SuiteId
  /** When attempts were abandoned that may still occupy a slot of the BMC; by the client's clock, in milliseconds. */
  abandonedAt: number[]
}

export interface LoginOptions {
  credentials: Credentials
  memory: BmcMemory
  timers: Timers
  signal: AbortSignal
  now: () => number
  openLink: () => Promise<Link>
  log: (message: string, facts: Readonly<Record<string, string | number>>) => void
}

/** A session as both ends agreed on it. */
export interface Login {
  link: Link
  consoleId: number
  bmcId: number
  keys: SessionKeys
}

/**
 * Open Sessions without an answer, within halfOpenMs: each may hold one of the BMC's 4 to 15 slots. Where the loss was later we tell the BMC that
 * we gave up, and it frees the slot.
 */
const abandonedMax = 6
/** The same step fails so often in one login by loss alone in one of a million, on a path that loses a twentieth each way. */
const sameStepMax = 6

/**
 * Logs in, or throws Failure: `authentication`, `privilege`, `busy`, `silent`, `refused`, `protocol` or `cancelled`. The link of a
 * login that fails is closed.
 */
export async function login(options: LoginOptions): Promise<Login> {
  const patience = new Patience(options.timers, options.memory, options.now)
  const failures = new Map<string, number>()
  const choice = new SuiteChoice(options.credentials.suite, options.memory.suite)
  let why = 'no attempt made'
  let link = await options.openLink()
  try {
    let closedPorts = 0
    let doubted = false
    for (;;) {
      await awaitTurn(why, patience.deadline, options)
      patience.nextAttempt()
      const { attempt } = patience
      // Some boards answer a repeated set-up only from another source port (Intel Tiger 4).
      if (attempt === 3) {
        link[Symbol.dispose]()
        link = await options.openLink()
      }
      try {
        if (choice.shouldProbe) {
          const askedAt = options.now()
          const records = await askSuites(link, { probeMs: options.timers.probeMs, signal: options.signal })
          if (records) patience.answered(options.now() - askedAt)
          else patience.givenUp(probeAnswer, askedAt)
          choice.offered(records)
        }
        const result = await attemptLogin(link, choice, { ...options, patience })
        if (result.kind === 'login') {
          options.memory.suite = result.login.keys.suite.id
          patience.remember()
          return result.login
        }
        why = result.why
        options.log('login attempt failed', { attempt, why })
        if (result.kind === 'doubtful' && doubted) throw result.failure
        doubted ||= result.kind === 'doubtful'
        if (result.kind === 'again') {
          if (result.slot === 'perhaps taken') options.memory.abandonedAt.push(options.now())
          const times = (failures.get(why) ?? 0) + 1
          failures.set(why, times)
          if (times === sameStepMax) throw nothingCame(why, `${times} attempts`)
        }
      } catch (error) {
        if (!(error instanceof PortClosed)) throw error
        closedPorts += 1
        if (closedPorts > 1) throw nothingListens(error)
        await pause(options.timers.portClosedMs, options.signal)
      }
    }
  } catch (error) {
    link[Symbol.dispose]()
    throw error
  }
}

/** Waits without doing anything; throws `cancelled` when the signal fires. */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(cancelled('none'))
    const abort = () => {
      clearTimeout(timer)
      reject(cancelled('unknown'))
    }
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', abort)
      resolve()
    }, ms)
    signal.addEventListener('abort', abort, { once: true })
  })
}

interface Waiting {
  patience: Patience
}

type Attempt =
  | { kind: 'login'; login: Login }
  | { kind: 'next suite'; why: string }
  /** Answers went missing. `slot`: whether the BMC may still hold half a session, or was told that we gave up. */
  | { kind: 'again'; why: string; slot: 'perhaps taken' | 'given back' }
  /** Worth one more attempt, but no third. */
  | { kind: 'doubtful'; why: string; failure: Failure }

/** Which suite to try, and which next: what worked before, then what the BMC says it offers, then 17 before 3. */
class SuiteChoice {
  readonly #allowed: readonly SuiteId[]
  #ids: SuiteId[]
  shouldProbe: boolean

  constructor(wanted: SuiteId | 'auto', remembered: SuiteId | undefined) {
    const preferred: SuiteId[] = remembered === undefined ? [17, 3] : [remembered, 17, 3]
    this.#ids = wanted === 'auto' ? [...new Set(preferred)] : [wanted]
    this.#allowed = [...this.#ids]
    this.shouldProbe = wanted === 'auto' && remembered === undefined
  }

  get suite(): Suite {
    return suites[this.#ids[0] ?? 17]
  }

  offered(records: SuiteRecord[] | undefined): void {
    this.shouldProbe = false
    // Lists are wrong in both directions, so what is not offered is tried last, not dropped.
    const offered = suitesOffered(records ?? [])
    this.#ids.sort((a, b) => Number(offered.includes(b)) - Number(offered.includes(a)))
  }

  /** A BMC may answer with another suite than asked for (pyghmi always takes 3): fine if the settings allow that one too. */
  allows(suite: Suite): boolean {
    return this.#allowed.includes(suite.id)
  }

  /** The BMC refused this suite: on to the next, or false when there is none. */
  refused(): boolean {
    if (this.#ids.length === 1) return false
    this.#ids.shift()
    return true
  }

  /** The BMC kept silent: perhaps it dislikes the suite, so the next attempt takes the other one. */
  unanswered(): void {
    this.#ids.push(...this.#ids.splice(0, 1))
  }
}

async function attemptLogin(link: Link, choice: SuiteChoice, options: LoginOptions & Waiting): Promise<Attempt> {
  const { credentials } = options
  const consoleId = randomId()
  const tag = randomPortion(1).readUInt8()

  const opened = await openSession(link, { ...options, tag, consoleId, suite: choice.suite })
  if (!opened) {
    if (options.memory.suite === undefined) choice.unanswered()
    return { kind: 'again', why: 'no answer to Open Session', slot: 'perhaps taken' }
  }
  if (!('bmcId' in opened)) {
    // 0x01 and 0x0A mean "another suite" on some boards (Intel M50CYP, X8DTG): worth one try.
    const { cause } = setupStatus(opened.status)
    const suiteMayHelp = cause === 'suite' || opened.status === 0x01 || opened.status === 0x0a
    if (suiteMayHelp && choice.refused()) return { kind: 'next suite', why: printStatus('Open Session', opened.status) }
    return restartOrThrow('Open Session', opened.status, credentials)
  }
  const suite = suiteOfAlgorithms(opened.algorithms)
  if (!suite || !choice.allows(suite)) throw wrongAlgorithms(opened)

  const passwordKey = paddedKey(credentials.password)
  const rakp1 = {
    tag,
    bmcId: opened.bmcId,
    consoleRandom: randomPortion(16),
    role: privileges[credentials.privilege] | roleNameOnly,
    user: credentials.user,
  }
  const rakp2 = await ask<Rakp2 | Refused>(link, payloadTypes.rakp1, encodeRakp1(rakp1), payloadTypes.rakp2, options, payload => {
    const answer = parseRakp2(payload)
    return answer?.tag === tag && (!('code' in answer) || answer.consoleId === consoleId) ? answer : undefined
  })
  if (!rakp2) {
    giveUp(link, { tag, bmcId: opened.bmcId })
    return { kind: 'again', why: noAnswerToRakp1, slot: 'given back' }
  }
  if (!('code' in rakp2)) return restartOrThrow('RAKP 1', rakp2.status, credentials)

  const exchange: Exchange = {
    ...rakp1,
    suite,
    consoleId,
    // Copies: the datagram's buffer would live as long as the session otherwise.
    bmcRandom: Buffer.from(rakp2.bmcRandom),
    guid: Buffer.from(rakp2.guid),
  }
  if (rakp2.code.length < suite.rakpCodeBytes) throw wrongLength('RAKP 2', rakp2.code.length, suite.rakpCodeBytes)
  if (!codesMatch(rakp2.code.subarray(0, suite.rakpCodeBytes), rakp2Code(exchange, passwordKey))) {
    // Tell the BMC once, so that it frees the slot (and counts the failure, as it should).
    refuseRakp2(link, { tag, bmcId: opened.bmcId, status: wrongIntegrityValue })
    throw wrongPassword('the BMC answered RAKP 1 with a code made from another password')
  }

  const keys = deriveKeys(exchange, passwordKey, credentials.kg && paddedKey(credentials.kg))
  const rakp3 = encodeRakp3({ tag, status: 0, bmcId: opened.bmcId, code: rakp3Code(exchange, passwordKey) })
  const rakp4 = await ask<Rakp4 | Refused>(link, payloadTypes.rakp3, rakp3, payloadTypes.rakp4, options, payload => {
    const answer = parseRakp4(payload)
    return answer?.tag === tag && (!('check' in answer) || answer.consoleId === consoleId) ? answer : undefined
  })
  if (!rakp4) {
    giveUp(link, { tag, bmcId: opened.bmcId })
    // Where only the answer was lost, the session is open.
    closeUnseen(link, opened.bmcId, keys)
    return { kind: 'again', why: 'no answer to RAKP 3', slot: 'given back' }
  }
  if (!('check' in rakp4)) {
    // The BMC proved in RAKP 2 that it has our password, so its 0x0F is not about that: a RAKP 1 doubled by the network makes some
    // BMCs compute with other random numbers. A second time it is final.
    if (rakp4.status === 0x0f) {
      const why = printStatus('RAKP 3', rakp4.status)
      return { kind: 'doubtful', why, failure: wrongPassword(`${why}, twice, although RAKP 2 showed the right password`) }
    }
    return restartOrThrow('RAKP 3', rakp4.status, credentials)
  }
  if (rakp4.check.length < suite.authcodeBytes) throw wrongLength('RAKP 4', rakp4.check.length, suite.authcodeBytes)
  if (!codesMatch(rakp4.check.subarray(0, suite.authcodeBytes), rakp4Check(exchange, keys))) throw wrongKg(credentials)
  return { kind: 'login', login: { link, consoleId, bmcId: opened.bmcId, keys } }
}

function openSession(
  link: Link,
  options: LoginOptions & Waiting & { tag: number; consoleId: number; suite: Suite },
): Promise<OpenSessionResponse | Refused | undefined> {
  const { tag, consoleId, suite } = options
  const request = encodeOpenSessionRequest({
    tag,
    privilege: privileges[options.credentials.privilege],
    consoleId,
    algorithms: suite,
  })
  return ask<OpenSessionResponse | Refused>(
    link,
    payloadTypes.openSessionRequest,
    request,
    payloadTypes.openSessionResponse,
    options,
    payload => {
      const answer = parseOpenSessionResponse(payload)
      return answer?.tag === tag && (!('bmcId' in answer) || answer.consoleId === consoleId) ? answer : undefined
    },
  )
}

/** One question of the set-up; `parse` gives undefined for answers that are not to it. */
async function ask<T>(
  link: Link,
  payloadType: number,
  payload: Buffer,
  answerType: number,
  options: LoginOptions & Waiting,
  parse: (payload: Buffer) => T | undefined,
): Promise<T | undefined> {
  const { patience, now, signal } = options
  const tag = payload.readUInt8(0)
  const accept = (datagram: Buffer) => {
    const packet = parseDatagram(datagram)
    if (packet.kind === 'v1.5') patience.stray(probeAnswer)
    if (packet.kind !== 'v2.0' || packet.encrypted || packet.authenticated) return undefined
    const answer = packet.payloadType === answerType ? parse(packet.payload) : undefined
    if (answer === undefined && packet.payload.length > 0) patience.stray(answerKey(packet.payloadType, packet.payload.readUInt8(0)))
    return answer
  }
  const datagram = encodeV20({ payloadType, payload })
  const sentAt = now()
  for (let toSend: Buffer | undefined = datagram; ; toSend = undefined) {
    const waitMs = Math.min(sentAt + patience.waitMs, patience.deadline) - now()
    if (waitMs <= 0 && toSend === undefined) break
    const answer = await link.exchange(toSend, { accept, waitMs: Math.max(0, waitMs), signal })
    if (answer === undefined) continue
    patience.answered(now() - sentAt)
    return answer
  }
  patience.givenUp(answerKey(answerType, tag), sentAt)
  return undefined
}

/** The list of suites, which may come after we stopped waiting for it. */
const probeAnswer = 'suites'

const answerKey = (payloadType: number, tag: number) => `${payloadType} ${tag}`

/** IPMI v2.0 table 13-15. */
const wrongIntegrityValue = 0x0f
const invalidSessionId = 0x02

/** RAKP 3 with a status and no code: the BMC frees the slot (IPMI v2.0 13.22). Sent once; nothing comes back. */
function refuseRakp2(link: Link, { tag, bmcId, status }: { tag: number; bmcId: number; status: number }): void {
  const payload = encodeRakp3({ tag, status, bmcId, code: Buffer.alloc(0) })
  link.send(encodeV20({ payloadType: payloadTypes.rakp3, payload }))
}

/** We begin anew, and the BMC need not keep this half of a session for us. The status says nothing about a password: no failed login is counted. */
function giveUp(link: Link, session: { tag: number; bmcId: number }): void {
  refuseRakp2(link, { ...session, status: invalidSessionId })
}

/** Close Session in a session that we never saw open. */
function closeUnseen(link: Link, bmcId: number, keys: SessionKeys): void {
  const data = Buffer.alloc(4)
  data.writeUInt32LE(bmcId)
  const payload = encodeRequest({ ...commands.closeSession, sequence: 1, data })
  link.send(seal({ payloadType: payloadTypes.ipmi, sessionId: bmcId, sequence: 1, payload, iv: randomPortion(16) }, keys))
}

/** Waits until another attempt is allowed; throws `silent` when that would be after the deadline. */
async function awaitTurn(why: string, deadline: number, options: LoginOptions): Promise<void> {
  const { memory, timers, now } = options
  memory.abandonedAt = memory.abandonedAt.filter(at => now() - at < timers.halfOpenMs)
  const oldest = memory.abandonedAt.at(-abandonedMax)
  const waitMs = oldest === undefined ? 0 : oldest + timers.halfOpenMs - now()
  if (now() + waitMs < deadline) return waitMs > 0 ? pause(waitMs, options.signal) : undefined
  throw nothingCame(why, `${memory.abandonedAt.length} login attempts of the last ${Math.round(timers.halfOpenMs / 1000)} s`)
}

function nothingCame(why: string, attempts: string): Failure {
  return new Failure({
    kind: 'silent',
    got: `${why}; ${attempts} came to nothing`,
    hint:
      why === noAnswerToRakp1
        ? 'The BMC answers Open Session, so it is there: check the user name. Some BMCs keep silent about users they do not know.'
        : 'Check that the BMC is powered and connected, that its address is right, and that IPMI over LAN is enabled: recent iDRAC, XCC and iLO ship with it off.',
  })
}

const noAnswerToRakp1 = 'no answer to RAKP 1'

/** For statuses worth a fresh start, `again`; all others end the login. */
function restartOrThrow(step: string, status: number, credentials: Credentials): Attempt {
  const { cause } = setupStatus(status)
  const got = `${step} refused with ${printStatus('status', status)}`
  switch (cause) {
    case 'restart':
      return { kind: 'again', why: got, slot: 'given back' }
    case 'busy':
      throw new Failure({
        kind: 'busy',
        got,
        hint: 'All sessions of the BMC are taken. Abandoned ones end after 3 to 60 s: try again in 5, 15, 60 s, and look for other programs that poll it.',
      })
    case 'suite':
      throw new Failure({
        kind: 'refused',
        got,
        hint: 'The BMC does not take the cipher suite asked for. Enable suite 17 (or 3) on it, or set `suite` in the power settings.',
      })
    case 'privilege':
      throw new Failure({
        kind: 'privilege',
        got,
        hint: `The account may not log in as ${credentials.privilege}, or it is disabled. Give it that level for LAN access on the BMC, or lower \`privilege\` in the power settings.`,
      })
    case 'user':
      throw new Failure({
        kind: 'authentication',
        got,
        hint: 'Check the user name (exact case, at most 16 bytes) and that the account is enabled for IPMI over LAN and not locked after wrong passwords.',
      })
    case 'password':
      throw wrongPassword(got)
    case 'protocol':
      throw new Failure({
        kind: 'protocol',
        got,
        hint: 'The BMC rejected a message that other BMCs accept. Updating its firmware may help.',
      })
  }
}

function printStatus(step: string, status: number): string {
  return `${step} ${hexByte(status)} (${setupStatus(status).meaning})`
}

function wrongPassword(got: string): Failure {
  return new Failure({
    kind: 'authentication',
    got,
    hint: 'Check the password. IPMI takes at most 20 bytes of it; some BMC pages accept more, and the rest is not used here.',
  })
}

function wrongKg(credentials: Credentials): Failure {
  return new Failure({
    kind: 'authentication',
    got: 'the password is right, but RAKP 4 was signed with another K_g',
    hint: credentials.kg
      ? 'The BMC key K_g in the power settings is not the one set on the BMC (or none is set there).'
      : 'A BMC key K_g is set on this BMC: add it to the power settings as `kg`, or clear it on the BMC.',
  })
}

function wrongAlgorithms({ algorithms }: OpenSessionResponse): Failure {
  const { authentication, integrity, confidentiality } = algorithms
  return new Failure({
    kind: 'refused',
    got: `Open Session answered with other algorithms than asked for (authentication ${authentication}, integrity ${integrity}, confidentiality ${confidentiality})`,
    hint: 'The BMC wants a session that is weaker, or other, than the power settings allow. Enable suite 17 or 3 on it.',
  })
}

function wrongLength(step: string, got: number, wanted: number): Failure {
  return new Failure({
    kind: 'protocol',
    got: `${step} carries a code of ${got} bytes where the suite has ${wanted}`,
    hint: 'The BMC computes this suite wrongly: set `suite` to the other one in the power settings.',
  })
}

/** A closed port as the caller hears it. */
export function nothingListens(cause: PortClosed): Failure {
  return new Failure({
    kind: 'silent',
    got: `nothing listens there (${cause.message})`,
    hint: 'The address answers, but IPMI over LAN is off or on another port: recent iDRAC, XCC and iLO ship with it off.',
    cause,
  })
}
