/**
 * One Redfish service as its callers see it: requests one after the other over a login that is opened when needed, shared, replaced when it
 * expired, and given back. Busy answers are waited out, redirects followed, lost connections tried once more where that is harmless.
 */
import { type CallOptions, DriverError } from '../driver.ts'
import { cancelled, Failure } from '../failure.ts'
import { printServiceAddress } from './address.ts'
import { type Answer, type JsonObject, lastPart, linkOf, messagesOf, object, pathOf, text } from './answer.ts'
import { Connection, ConnectionLost, type ConnectionOptions, type Request } from './connection.ts'
import { type Meaning, meaningOf, wordsOf } from './meanings.ts'
import type { BmcMemory } from './memory.ts'
import { Patience } from './patience.ts'
import type { Timers } from './timers.ts'

export type Log = (message: string, facts?: Readonly<Record<string, string | number>>) => void

export interface ServiceOptions extends ConnectionOptions {
  user: string
  password: string
  /** Which computer system, where the service has several. */
  systemId: string | undefined
  /** Shared by all services of this BMC. */
  memory: BmcMemory
  /** Monotonic milliseconds. */
  now: () => number
}

export interface SendOptions {
  body?: JsonObject
  headers?: Readonly<Record<string, string>>
  /** `caller`: busy answers are given back too. Default `service`: they are waited out. */
  patience?: 'service' | 'caller'
}

/** A caller's hold on the service: its turn has come, and requests go to the BMC until the turn ends. */
export interface Turn {
  readonly signal: AbortSignal
  readonly memory: BmcMemory
  readonly timers: Timers
  readonly now: () => number
  readonly log: Log
  /** The service root. */
  root(): Promise<JsonObject>
  /** The computer system as it is now. Throws Failure `settings` where it is not clear which. */
  system(): Promise<Resource>
  /** A resource that must be there. Throws Failure by what the answer means. */
  get(path: string): Promise<Answer>
  /** The answer, whatever its status. */
  send(method: Request['method'], path: string, options?: SendOptions): Promise<Answer>
  pause(ms: number): Promise<void>
  /** The turn may last that much longer than usual, for what is known to take minutes. */
  extend(ms: number): void
}

/** A resource as read. */
export interface Resource {
  path: string
  answer: Answer
}

/** The path every service starts at (DSP0266 6.2). */
const rootPath = '/redfish/v1/'
const redirectsMax = 3
/** Systems of one service: chassis with 100 blades exist. */
const pagesMax = 50

/** How far a call came. */
interface Progress {
  stage: 'nothing ordered' | 'ordered'
}

type Login = { kind: 'session'; token: string; path: string | undefined } | { kind: 'basic'; because: Failure | undefined }

export class Service {
  readonly target: string
  readonly #options: ServiceOptions
  readonly #connection: Connection
  readonly #closing = new AbortController()
  #login: Login | undefined
  /** A login under way. It is not cancelled with the call that wanted it, or its session would stay on the BMC. */
  #loggingIn: Promise<Login> | undefined
  #root: JsonObject | undefined
  #systemPath: string | undefined
  #idle: NodeJS.Timeout | undefined
  /** Of the last call: where idle logins report to. */
  #log: Log = () => {}

  constructor(options: ServiceOptions) {
    this.#options = options
    this.#connection = new Connection(options)
    this.target = `redfish ${printServiceAddress(options.address)}`
  }

  /**
   * Waits for its turn and runs `work`. Every Failure leaves here as a DriverError that says what was tried, on what. Meant to be called
   * through a handle that adds its own signal.
   */
  async run<T>(tried: string, work: (turn: Turn) => Promise<T>, { signal: given, log }: CallOptions & { log: Log }): Promise<T> {
    const signal = given ? AbortSignal.any([this.#closing.signal, given]) : this.#closing.signal
    const progress: Progress = { stage: 'nothing ordered' }
    this.#log = log
    try {
      return await this.#inTurn(signal, () => work(this.#turn({ signal, log, progress })))
    } catch (error) {
      if (!(error instanceof Failure)) throw error
      // Whatever went wrong after an order was accepted, such as a caller who gave up while its task ran.
      const outcome = progress.stage === 'ordered' ? { outcome: 'unknown' as const } : {}
      throw new DriverError({ tried, target: this.target, ...error.facts, ...outcome, cause: error })
    }
  }

  /** Gives the login back and hangs up, after whoever has the turn. Never throws; what cannot be given back is logged. */
  async close(log: Log): Promise<void> {
    clearTimeout(this.#idle)
    const { closeMs } = this.#options.timers
    // A login under way is let finish, or its session could not be deleted; a BMC that hangs is not waited for.
    // Its failure belongs to the call that wanted it.
    const loggingIn = Promise.resolve(this.#loggingIn).catch(() => {})
    await Promise.race([loggingIn, pauseFor(closeMs)])
    this.#closing.abort()
    const before = this.#options.memory.queue
    const closed = before.then(() => this.#logOut(log)).then(() => this.#connection.destroy())
    this.#options.memory.queue = closed
    await closed
  }

  async #inTurn<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    const { memory } = this.#options
    const before = memory.queue
    const { promise: ended, resolve: end } = Promise.withResolvers<void>()
    memory.queue = before.then(() => ended)
    clearTimeout(this.#idle)
    try {
      await orAborted(before, signal)
      return await work()
    } finally {
      // The next caller may not come in between a login's request and its answer. Its failure belongs to the call that wanted it.
      Promise.resolve(this.#loggingIn).then(
        () => end(),
        () => end(),
      )
      this.#rest()
    }
  }

  /** A login that nobody uses is given back. */
  #rest(): void {
    clearTimeout(this.#idle)
    if (this.#closing.signal.aborted) return
    this.#idle = setTimeout(() => {
      this.#options.memory.queue = this.#options.memory.queue.then(() => this.#logOut(this.#log))
    }, this.#options.timers.sessionIdleMs)
    this.#idle.unref()
  }

  #turn({ signal, log, progress }: { signal: AbortSignal; log: Log; progress: Progress }): Turn {
    const { memory, timers, now } = this.#options
    let endsAt = now() + timers.callMs
    const extend = (ms: number) => {
      endsAt += ms
    }
    const limits = { signal, log, leftMs: () => endsAt - now(), extend }
    const pause = async (ms: number) => {
      if (ms >= limits.leftMs()) throw tookTooLong(timers.callMs)
      await abortablePause(ms, signal)
    }
    const ask: Ask = (request, options) => this.#persist(request, { ...options, ...limits, pause })
    const authorized: Ask = (request, options) => this.#authorized(request, options, { ask, signal, log })
    const get = async (path: string) => accepted(await authorized({ method: 'GET', path }, {}), `GET ${path}`)
    const root = async () => {
      this.#root ??= await this.#readRoot(ask)
      return this.#root
    }
    return {
      signal,
      memory,
      timers,
      now,
      log,
      pause,
      get,
      root,
      system: async () => {
        const known = this.#systemPath
        if (known !== undefined) {
          const answer = await authorized({ method: 'GET', path: known }, {})
          if (answer.status !== 404) return { path: known, answer: accepted(answer, `GET ${known}`) }
          // Firmware updates rename systems: walk again.
          this.#root = undefined
        }
        const path = await findSystem({ root: await root(), systemId: this.#options.systemId, get })
        this.#systemPath = path
        return { path, answer: await get(path) }
      },
      send: async (method, path, { body, headers, ...options } = {}) => {
        const answer = await authorized({ method, path, ...(headers && { headers }), ...(body && { body }) }, options)
        if (method !== 'GET' && answer.status < 400) progress.stage = 'ordered'
        return answer
      },
      extend,
    }
  }

  async #readRoot(ask: Ask): Promise<JsonObject> {
    const answer = await ask({ method: 'GET', path: rootPath }, {})
    if (answer.status === 404) {
      throw new Failure({
        kind: 'unsupported',
        got: `GET ${rootPath} answered 404`,
        hint: 'There is no Redfish service at this address, or it is switched off in the BMC.',
      })
    }
    return accepted(answer, `GET ${rootPath}`).body
  }

  /** With the login; a second one where the service forgot the first. */
  async #authorized(
    request: Request,
    options: AskOptions,
    { ask, signal, log }: { ask: Ask; signal: AbortSignal; log: Log },
  ): Promise<Answer> {
    for (let attempt = 1; ; attempt++) {
      const login = await this.#loggedIn({ ask, signal, log })
      const answer = await ask({ ...request, headers: { ...this.#credentials(login), ...request.headers } }, options)
      if (answer.status !== 401) return answer
      if (login.kind === 'basic') throw login.because ?? failureOf(answer, `${request.method} ${request.path} with Basic authentication`)
      this.#login = undefined
      if (attempt === 2) throw failureOf(answer, `${request.method} ${request.path}, with a fresh session,`)
      log('the session is not valid any more, logging in afresh')
    }
  }

  #credentials(login: Login): Record<string, string> {
    if (login.kind === 'session') return { 'X-Auth-Token': login.token }
    const { user, password } = this.#options
    return { Authorization: `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}` }
  }

  async #loggedIn({ ask, signal, log }: { ask: Ask; signal: AbortSignal; log: Log }): Promise<Login> {
    if (this.#login) return this.#login
    if (this.#options.memory.login === 'basic') {
      this.#login = { kind: 'basic', because: undefined }
      return this.#login
    }
    this.#root ??= await this.#readRoot(ask)
    const root = this.#root
    this.#loggingIn ??= this.#logIn(root, log).finally(() => {
      this.#loggingIn = undefined
    })
    const login = await orAborted(this.#loggingIn, signal)
    this.#login = login
    return login
  }

  async #logIn(root: JsonObject, log: Log): Promise<Login> {
    const { user, password, timers, memory } = this.#options
    const path = await this.#sessionsPath(root)
    if (path === undefined) {
      memory.login = 'basic'
      log('the service has no sessions, using Basic authentication')
      return { kind: 'basic', because: undefined }
    }
    const body = { UserName: user, Password: password }
    const limits = { signal: this.#closing.signal, limitMs: timers.requestMs }
    const answer = without(password, await beforehand(this.#follow({ method: 'POST', path, body }, limits)))
    const token = answer.headers['x-auth-token']
    if (answer.status < 300 && token !== undefined) {
      log('logged in')
      const login: Login = { kind: 'session', token, path: pathOf(answer.headers.location ?? text(answer.body['@odata.id'])) }
      // Here and not with the caller: who gave up meanwhile must not leave a session behind.
      this.#login = login
      return login
    }
    const failure = failureOf(answer, `POST ${path}`)
    const { kind } = meaningOf(answer)
    if (answer.status >= 400 && (kind === 'authentication' || answer.status === 403)) {
      throw kind === 'authentication' ? failure : new Failure({ ...failure.facts, kind: 'privilege' })
    }
    // 404, 405, 501: none here. 503 and full tables: none now, so only this login goes the other way.
    if (kind === 'unsupported') memory.login = 'basic'
    log('no session, using Basic authentication', { why: wordsOf(answer) })
    return { kind: 'basic', because: kind === 'busy' ? failure : undefined }
  }

  /** Links.Sessions needs no login to be read; the way through SessionService may. */
  async #sessionsPath(root: JsonObject): Promise<string | undefined> {
    const linked = pathOf(linkOf(object(root.Links).Sessions))
    const service = pathOf(linkOf(root.SessionService))
    if (linked !== undefined || service === undefined) return linked
    const headers = this.#credentials({ kind: 'basic', because: undefined })
    const limits = { signal: this.#closing.signal, limitMs: this.#options.timers.requestMs }
    const answer = await this.#follow({ method: 'GET', path: service, headers }, limits)
    return answer.status < 300 ? pathOf(linkOf(answer.body.Sessions)) : undefined
  }

  async #logOut(log: Log): Promise<void> {
    const login = this.#login
    this.#login = undefined
    if (login?.kind !== 'session' || login.path === undefined) return
    const request: Request = { method: 'DELETE', path: login.path, headers: this.#credentials(login) }
    try {
      const limits = { signal: new AbortController().signal, limitMs: this.#options.timers.closeMs }
      const answer = await this.#follow(request, limits)
      // 401 and 404: it had ended by itself.
      if (answer.status >= 400 && answer.status !== 401 && answer.status !== 404)
        log('the session could not be deleted', { got: wordsOf(answer) })
    } catch (error) {
      log('the session could not be deleted', { got: error instanceof Error ? error.message : String(error) })
    }
  }

  /** One request with its repeats. */
  async #persist(request: Request, options: AskOptions & Limits): Promise<Answer> {
    const { timers, now } = this.#options
    const patience = new Patience({ timers, now })
    for (;;) {
      const limitMs = Math.min(timers.requestMs, options.leftMs())
      if (limitMs <= 0) throw tookTooLong(timers.callMs)
      const given = await this.#follow(request, { signal: options.signal, limitMs: Math.ceil(limitMs) })
      const sent = text(request.body?.Password)
      const answer = sent === undefined ? given : without(sent, given)
      if (answer.status < 400 || options.patience === 'caller') return answer
      const meaning = meaningOf(answer)
      const waitMs = patience.next(answer, meaning)
      if (waitMs === undefined) return answer
      options.log('repeating a request', { why: wordsOf(answer), repeat: patience.repeats })
      // The firmware's POST takes longer than a call may, and everybody else waits for it too.
      if (meaning.again === 'after POST') options.extend(waitMs)
      await options.pause(waitMs)
    }
  }

  /** One request, through redirects to its end. */
  async #follow(request: Request, limits: { signal: AbortSignal; limitMs: number }): Promise<Answer> {
    let { path } = request
    for (let redirects = 0; ; redirects++) {
      const answer = await this.#exchange({ ...request, path }, limits)
      const isMoved = answer.status === 307 || answer.status === 308 || (request.method === 'GET' && [301, 302].includes(answer.status))
      if (!isMoved) return answer
      const next = redirectPath(answer.headers.location, this.#options)
      if (next === undefined || redirects === redirectsMax) {
        throw new Failure({
          kind: 'protocol',
          got: `${request.method} ${path} was redirected ${next === undefined ? 'away' : 'in circles'} (${answer.headers.location ?? 'nowhere'})`,
          hint: 'A login must not travel to another address. If the BMC wants HTTPS or has another name, write that as its address.',
        })
      }
      path = next
    }
  }

  /** A kept connection may have been closed just as it was used again: what only reads is tried once more. */
  async #exchange(request: Request, limits: { signal: AbortSignal; limitMs: number }): Promise<Answer> {
    try {
      return await this.#connection.exchange(request, limits)
    } catch (error) {
      if (!(error instanceof ConnectionLost) || request.method !== 'GET') throw error
      return await this.#connection.exchange(request, limits)
    }
  }
}

type AskOptions = Pick<SendOptions, 'patience'>
type Ask = (request: Request, options: AskOptions) => Promise<Answer>
interface Limits {
  signal: AbortSignal
  log: Log
  leftMs: () => number
  extend: (ms: number) => void
  pause: (ms: number) => Promise<void>
}

/** The answer if it is a success. Throws Failure by what it means; `what` was asked. */
export function accepted(answer: Answer, what: string): Answer {
  if (answer.status < 300) return answer
  throw failureOf(answer, what)
}

/** The Failure an answer means, with what the service said. */
export function failureOf(answer: Answer, what: string, meaning: Meaning = meaningOf(answer)): Failure {
  const words = answer.status < 400 ? `${answer.status}, which makes no sense here` : wordsOf(answer)
  return new Failure({
    kind: answer.status < 400 ? 'protocol' : meaning.kind,
    got: `${what} answered ${words}`,
    hint: meaning.hint,
    outcome: leavesOpen(answer) ? 'unknown' : 'none',
  })
}

/** Errors from behind the front of a service, after which nobody knows how far it came. */
function leavesOpen({ status }: Answer): boolean {
  return status === 500 || status === 502 || status === 504
}

/** Systems, page by page, and the one wanted. Ids are the service's own: System.Embedded.1, 1, Self, system, a UUID. */
async function findSystem(options: {
  root: JsonObject
  systemId: string | undefined
  get: (path: string) => Promise<Answer>
}): Promise<string> {
  const { root, systemId, get } = options
  const start = pathOf(linkOf(root.Systems))
  if (start === undefined) {
    throw new Failure({
      kind: 'unsupported',
      got: 'the service lists no computer systems',
      hint: 'This may be the service of a chassis or a switch. Give the address of the machine itself.',
    })
  }
  const found: string[] = []
  let page: string | undefined = start
  for (let pages = 0; page !== undefined && pages < pagesMax; pages++) {
    const { body } = await get(page)
    const members = Array.isArray(body.Members) ? body.Members : []
    found.push(...members.map(member => pathOf(linkOf(member))).filter(path => path !== undefined))
    page = pathOf(text(body['Members@odata.nextLink']))
  }
  const fitting = systemId === undefined ? found : found.filter(path => lastPart(path) === systemId || path === systemId)
  const [only, ...others] = fitting
  if (only !== undefined && others.length === 0) return only
  const ids = found.map(lastPart).slice(0, 20).join(', ')
  if (only !== undefined) {
    throw new Failure({
      kind: 'settings',
      got: `the service has ${fitting.length} computer systems: ${ids}`,
      hint: 'Set `systemId` to the one that is this machine.',
    })
  }
  if (systemId !== undefined && found.length > 0) {
    throw new Failure({ kind: 'settings', got: `no computer system is called ${systemId}; there are: ${ids}`, hint: 'Correct `systemId`.' })
  }
  // After a restart of the BMC the collection is empty for a while.
  throw new Failure({
    kind: 'busy',
    got: 'the list of computer systems is empty',
    hint: 'The BMC may still be starting. Try again in a minute.',
  })
}

function redirectPath(location: string | undefined, { address }: ServiceOptions): string | undefined {
  if (location === undefined) return undefined
  const url = URL.parse(location, `${address.protocol}://muster.invalid`)
  if (!url || url.protocol !== `${address.protocol}:`) return undefined
  const samePlace =
    url.hostname === 'muster.invalid' || url.hostname.replace(/^\[|\]$/g, '') === address.host.toLowerCase().replace(/%.*$/, '')
  const port = url.port === '' ? (address.protocol === 'https' ? 443 : 80) : Number(url.port)
  const samePort = url.hostname === 'muster.invalid' || port === address.port
  return samePlace && samePort ? url.pathname + url.search : undefined
}

function tookTooLong(callMs: number): Failure {
  return new Failure({
    kind: 'busy',
    got: `not done within ${callMs / 1000} s`,
    outcome: 'unknown',
    hint: 'The BMC answers, but too slowly or always that it is busy. Observe the power state before trying again.',
  })
}

/** The answer without the password: messages about a property quote its value, and end up in logs and errors. */
function without(password: string, answer: Answer): Answer {
  if (password === '') return answer
  const quoted = JSON.stringify(password).slice(1, -1)
  return { ...answer, body: JSON.parse(JSON.stringify(answer.body).replaceAll(quoted, '***')) }
}

/** Whatever becomes of a login, the order that wanted it was not sent. */
async function beforehand<T>(login: Promise<T>): Promise<T> {
  try {
    return await login
  } catch (error) {
    throw error instanceof Failure ? new Failure({ ...error.facts, outcome: 'none' }) : error
  }
}

async function orAborted<T>(wanted: Promise<T>, signal: AbortSignal): Promise<T> {
  if (signal.aborted) throw cancelled('none')
  const { promise: aborted, reject } = Promise.withResolvers<never>()
  const abort = () => reject(cancelled('none'))
  signal.addEventListener('abort', abort, { once: true })
  try {
    return await Promise.race([wanted, aborted])
  } finally {
    signal.removeEventListener('abort', abort)
  }
}

async function abortablePause(ms: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, ms)
  try {
    await orAborted(promise, signal)
  } finally {
    clearTimeout(timer)
  }
}

function pauseFor(ms: number): Promise<void> {
  return new Promise(resolve => setTimeout(resolve, ms).unref())
}

/** Whether a message of the answer is about that property. */
export function isAbout(answer: Answer, property: string): boolean {
  return messagesOf(answer.body).some(({ about, text: words }) => about.includes(property) || words.includes(property))
}
