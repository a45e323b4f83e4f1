/**
 * Logging in: Open Session, RAKP 1 to 4, and what to do when any of them goes wrong (IPMI v2.0 13.15 to 13.24; facts 4.2 to 4.4).
 *
 * RAKP 1 and 3 are never sent twice. BMCs answer repeats in five different ways, all bad; so when an answer is missing, the whole
 * exchange starts afresh with a new console id and tag, and late answers to the old attempt no longer match.
 */

import { cancelled, Failure } from '../failure.ts'
import {
  codesMatch,
  deriveKeys,
  type Exchange,
  encodeOpenSessionRequest,
  encodeRakp1,
  encodeRakp3,
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
  setupStatus,
  suiteOfAlgorithms,
  suites,
  suitesOffered,
} from './codec.ts'
import { askSuites } from './discovery.ts'
import { type Link, PortClosed } from './link.ts'
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
export interface BmcMemory {
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

/** Attempts whose answer went missing, within halfOpenMs: each may hold one of the BMC's 4 to 15 slots. */
const abandonedMax = 4

/**
 * Logs in, or throws Failure: `authentication`, `privilege`, `busy`, `silent`, `refused`, `protocol` or `cancelled`. The link of a
 * login that fails is closed.
 */
export async function login(options: LoginOptions): Promise<Login> {
  const deadline = options.now() + options.timers.loginMs
  const choice = new SuiteChoice(options.credentials.suite, options.memory.suite)
  let why = 'no attempt made'
  let link = await options.openLink()
  try {
    let closedPorts = 0
    let doubted = false
    for (let attempt = 1; ; attempt++) {
      await awaitTurn(why, deadline, options)
      // Some boards answer a repeated set-up only from another source port (Intel Tiger 4).
      if (attempt === 3) {
        link[Symbol.dispose]()
        link = await options.openLink()
      }
      try {
        if (choice.shouldProbe) choice.offered(await askSuites(link, { probeMs: options.timers.probeMs, signal: options.signal }))
        const result = await attemptLogin(link, choice, { ...options, deadline, waitMs: attempt * options.timers.setupMs })
        if (result.kind === 'login') {
          options.memory.suite = result.login.keys.suite.id
          return result.login
        }
        why = result.why
        options.log('login attempt failed', { attempt, why })
        if (result.kind === 'doubtful' && doubted) throw result.failure
        doubted ||= result.kind === 'doubtful'
        if (result.kind === 'again') options.memory.abandonedAt.push(options.now())
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
  /** Wait for each answer. */
  waitMs: number
  /** End of the whole login, by the client's clock. */
  deadline: number
}

type Attempt =
  | { kind: 'login'; login: Login }
  | { kind: 'next suite'; why: string }
  /** Answers went missing, and the BMC may still hold half a session. */
  | { kind: 'again'; why: string }
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
    return { kind: 'again', why: 'no answer to Open Session' }
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
  if (!rakp2) return { kind: 'again', why: noAnswerToRakp1 }
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
    link.send(
      encodeV20({
        payloadType: payloadTypes.rakp3,
        payload: encodeRakp3({ tag, status: 0x0f, bmcId: opened.bmcId, code: Buffer.alloc(0) }),
      }),
    )
    throw wrongPassword('the BMC answered RAKP 1 with a code made from another password')
  }

  const keys = deriveKeys(exchange, passwordKey, credentials.kg && paddedKey(credentials.kg))
  const rakp3 = encodeRakp3({ tag, status: 0, bmcId: opened.bmcId, code: rakp3Code(exchange, passwordKey) })
  const rakp4 = await ask<Rakp4 | Refused>(link, payloadTypes.rakp3, rakp3, payloadTypes.rakp4, options, payload => {
    const answer = parseRakp4(payload)
    return answer?.tag === tag && (!('check' in answer) || answer.consoleId === consoleId) ? answer : undefined
  })
  if (!rakp4) return { kind: 'again', why: 'no answer to RAKP 3' }
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
function ask<T>(
  link: Link,
  payloadType: number,
  payload: Buffer,
  answerType: number,
  options: LoginOptions & Waiting,
  parse: (payload: Buffer) => T | undefined,
): Promise<T | undefined> {
  const accept = (datagram: Buffer) => {
    const packet = parseDatagram(datagram)
    if (packet.kind !== 'v2.0' || packet.payloadType !== answerType || packet.encrypted || packet.authenticated) return undefined
    return parse(packet.payload)
  }
  const waitMs = Math.max(0, Math.min(options.waitMs, options.deadline - options.now()))
  return link.exchange(encodeV20({ payloadType, payload }), { accept, waitMs, signal: options.signal })
}

/** Waits until another attempt is allowed; throws `silent` when that would be after the deadline. */
async function awaitTurn(why: string, deadline: number, options: LoginOptions): Promise<void> {
  const { memory, timers, now } = options
  memory.abandonedAt = memory.abandonedAt.filter(at => now() - at < timers.halfOpenMs)
  const oldest = memory.abandonedAt.at(-abandonedMax)
  const waitMs = oldest === undefined ? 0 : oldest + timers.halfOpenMs - now()
  if (now() + waitMs < deadline) return waitMs > 0 ? pause(waitMs, options.signal) : undefined
  const seconds = Math.round(timers.halfOpenMs / 1000)
  throw new Failure({
    kind: 'silent',
    got: `${why}; ${memory.abandonedAt.length} login attempts of the last ${seconds} s came to nothing`,
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
      return { kind: 'again', why: got }
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
