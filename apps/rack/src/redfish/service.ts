// A Redfish service without a socket: a request in, its answer out. The machine, its boot options and the clock are given, and are the same that
// its IPMI BMC works with; connections, latency and loss are added outside (redfish.ts).
import { createHash, timingSafeEqual } from 'node:crypto'
import { bootParameters, type ChassisControl, encodeBootFlags } from '@muster/drivers/ipmi/codec'
import type { BootOptions } from '../bmc/boot-options.ts'
import type { Chassis } from '../bmc/command-table.ts'
import type { BmcUser } from '../bmc/handshake.ts'
import type { RedfishFaults } from './faults.ts'
import {
  accountResource,
  accountServiceResource,
  bootTargets,
  collection,
  errorResource,
  eventServiceResource,
  type Json,
  managerResource,
  paths,
  powerEvent,
  resetTypes,
  rootResource,
  type Subscription,
  sessionResource,
  sessionServiceResource,
  subscriptionResource,
  systemResource,
  taskResource,
} from './resources.ts'
import { RedfishSessions } from './sessions.ts'

export interface RedfishServiceOptions {
  users: readonly BmcUser[]
  /** A user got another password, which is in its place in `users` already. */
  passwordSet?: (user: BmcUser) => void
  uuid: string
  chassis: Chassis
  bootOptions: BootOptions
  faults: RedfishFaults
  /** The machine's id; default `system`. */
  systemId?: string | undefined
  /** Other systems listed beside the machine, which only have a name. */
  otherSystems?: readonly string[] | undefined
  /** Members on a page of the list of systems. */
  pageSize?: number | undefined
  sessionLimit?: number | undefined
  sessionIdleMs?: number | undefined
}

export interface RedfishRequest {
  method: string
  /** With its query. */
  url: string
  headers: Readonly<Record<string, string | undefined>>
  body: string
}

export interface RedfishAnswer {
  status: number
  headers?: Readonly<Record<string, string>>
  body?: Json
}

export interface RedfishCounters {
  requests: number
  /** Most sessions open at once. */
  sessionsOpenMax: number
  logins: number
  /** Resets the chassis accepted, by type. */
  resets: Readonly<Record<string, number>>
}

/** What the reset types come to at the chassis. Nmi is taken and does nothing: no virtual kernel listens. */
const controls: Readonly<Record<(typeof resetTypes)[number], ChassisControl | undefined>> = {
  On: 'on',
  ForceOff: 'off',
  GracefulShutdown: 'soft',
  ForceRestart: 'reset',
  PowerCycle: 'cycle',
  Nmi: undefined,
}

/** Of a BMC with some room; iDRAC has 8, OpenBMC 64. */
const sessionLimitUsual = 8
const sessionIdleMsUsual = 1_800_000
/** A power order's effect follows within this, or the transitional state is over all the same (facts: 0 to 15 s). */
const transitionMsMax = 15_000
/** The writer of boot options as IPMI counts sessions; no IPMI session has this number. */
const bootWriter = -1

export class RedfishService {
  readonly #options: RedfishServiceOptions
  readonly #systemPath: string
  readonly #sessions: RedfishSessions
  readonly #tasks = new Map<string, { looksLeft: number; ending: 'Completed' | 'Exception' }>()
  readonly #resets: Record<string, number> = {}
  readonly #subscriptions = new Map<string, Subscription>()
  #lastSubscription = 0
  #lastEvent = 0
  #light = false
  #transition: { to: 'on' | 'off'; at: number } | undefined
  #counts = { requests: 0, logins: 0 }

  constructor(options: RedfishServiceOptions) {
    this.#options = options
    this.#systemPath = `${paths.systems}/${options.systemId ?? 'system'}`
    this.#sessions = new RedfishSessions({
      limit: options.sessionLimit ?? sessionLimitUsual,
      idleMs: options.sessionIdleMs ?? sessionIdleMsUsual,
    })
  }

  /** What happened so far; a copy. */
  get counters(): RedfishCounters {
    return { ...this.#counts, sessionsOpenMax: this.#sessions.openMax, resets: { ...this.#resets } }
  }

  /** Whether the identify light is on. */
  get light(): boolean {
    return this.#light
  }

  /** Sessions open at `atMs`. */
  sessionsOpen(atMs: number): number {
    return this.#sessions.list(atMs).length
  }

  get subscriptions(): readonly Subscription[] {
    return [...this.#subscriptions.values()]
  }

  /** Ends all sessions and forgets who wanted to be told, as a restart of the BMC does. */
  restart(): void {
    this.#sessions.forgetAll()
    this.#subscriptions.clear()
  }

  /** The answer to a request at `atMs`. */
  answer(request: RedfishRequest, atMs: number): RedfishAnswer {
    this.#counts.requests += 1
    const { faults } = this.#options
    const [path = '', query = ''] = request.url.split('?')
    const at = path.replace(/\/+$/, '')
    if (at === paths.root && request.method === 'GET')
      return { status: 200, body: rootResource({ hasSessions: faults.sessions === 'offered', hasEvents: faults.events === 'offered' }) }
    if (at === '/redfish' && request.method === 'GET') return { status: 200, body: { v1: '/redfish/v1/' } }
    if (at === paths.sessions && request.method === 'POST' && faults.sessions === 'offered') return this.#logIn(request, atMs)
    const user = this.#userOf(request, atMs)
    if (!user) return refusal(401, 'NoValidSession', 'There is no valid session established with the implementation.')
    if (request.method === 'GET') return this.#read(at, query, atMs)
    if (user.privilege === 'USER') return refusal(403, 'InsufficientPrivilege', 'The account has too few privileges for this.')
    if (request.method === 'POST' && at === `${this.#systemPath}/Actions/ComputerSystem.Reset`) return this.#reset(request, atMs)
    if (request.method === 'PATCH' && at === this.#systemPath) return this.#change(request, atMs)
    if (request.method === 'POST' && at === paths.subscriptions && faults.events === 'offered') return this.#subscribe(request)
    if (request.method === 'DELETE' && at.startsWith(`${paths.subscriptions}/`))
      return this.#subscriptions.delete(at.slice(paths.subscriptions.length + 1)) ? { status: 204 } : notFound(at)
    if (request.method === 'PATCH' && at.startsWith(`${paths.accounts}/`)) return this.#changeAccount(at, user, request)
    if (request.method === 'DELETE' && at.startsWith(`${paths.sessions}/`)) {
      return this.#sessions.end(at.slice(paths.sessions.length + 1)) ? { status: 204 } : notFound(at)
    }
    return this.#read(at, query, atMs).status === 404
      ? notFound(at)
      : refusal(405, 'ActionNotSupported', `${request.method} is not supported here.`)
  }

  #userOf(request: RedfishRequest, atMs: number): BmcUser | undefined {
    const { users, faults } = this.#options
    const token = request.headers['x-auth-token']
    if (token !== undefined) {
      const name = this.#sessions.userOf(token, atMs)
      return users.find(user => user.name === name)
    }
    const basic = /^Basic (.+)$/i.exec(request.headers.authorization ?? '')?.[1]
    if (basic === undefined || faults.basic === 'refused') return undefined
    const [name = '', ...password] = Buffer.from(basic, 'base64').toString().split(':')
    return this.#login(name, password.join(':'))
  }

  #login(name: unknown, password: unknown): BmcUser | undefined {
    const user = this.#options.users.find(one => one.name === name)
    return user && typeof password === 'string' && isSame(user.password, password) ? user : undefined
  }

  #logIn(request: RedfishRequest, atMs: number): RedfishAnswer {
    const body = objectOf(request.body)
    const user = this.#login(body?.UserName, body?.Password)
    if (!user) return refusal(401, 'NoValidSession', 'Invalid username or password.')
    const session = this.#sessions.open(user.name, atMs)
    if (session === 'full') return refusal(503, 'SessionLimitExceeded', 'The number of simultaneous sessions is exceeded.')
    this.#counts.logins += 1
    const location = `${paths.sessions}/${session.id}`
    return { status: 201, headers: { 'X-Auth-Token': session.token, Location: location }, body: sessionResource(session) }
  }

  #read(path: string, query: string, atMs: number): RedfishAnswer {
    const task = path.startsWith(`${paths.tasks}/`) ? path.slice(paths.tasks.length + 1) : undefined
    if (task !== undefined) return this.#look(task)
    const body = this.#resource(path, query, atMs)
    return body ? { status: 200, headers: { ETag: etagOf(body) }, body } : notFound(path)
  }

  #resource(path: string, query: string, atMs: number): Json | undefined {
    const { otherSystems = [], pageSize, faults } = this.#options
    const members = [...otherSystems.map(id => `${paths.systems}/${id}`), this.#systemPath]
    if (path === this.#systemPath) return this.#system(atMs)
    if (path === paths.systems) {
      const skip = Number(/(?:^|&)\$skip=(\d+)/.exec(decodeURIComponent(query))?.[1] ?? 0)
      return collection({ path, type: 'ComputerSystem', members, skip, ...(pageSize !== undefined && { pageSize }) })
    }
    if (members.includes(path)) return { '@odata.id': path, Id: path.split('/').pop(), Name: 'Another system', PowerState: 'Off' }
    if (path === paths.chassis) return collection({ path, type: 'Chassis', members: [] })
    if (path === paths.accountService) return accountServiceResource(passwordLimits)
    if (path === paths.eventService && faults.events === 'offered') return eventServiceResource()
    if (path === paths.subscriptions && faults.events === 'offered')
      return collection({ path, type: 'EventDestination', members: [...this.#subscriptions.keys()].map(id => `${path}/${id}`) })
    const subscription = path.startsWith(`${paths.subscriptions}/`) && this.#subscriptions.get(path.slice(paths.subscriptions.length + 1))
    if (subscription) return subscriptionResource(subscription)
    if (path === paths.accounts) {
      const accounts = this.#options.users.map((_, index) => `${path}/${index + 1}`)
      const skip = Number(/(?:^|&)\$skip=(\d+)/.exec(decodeURIComponent(query))?.[1] ?? 0)
      return collection({ path, type: 'ManagerAccount', members: accounts, skip, ...(pageSize !== undefined && { pageSize }) })
    }
    const account = this.#accountAt(path)
    if (account) return accountResource({ path, ...account })
    if (path === paths.managers) return collection({ path, type: 'Manager', members: [paths.manager] })
    if (path === paths.manager) return managerResource()
    if (faults.sessions === 'absent') return undefined
    if (path === paths.sessionService) return sessionServiceResource()
    const sessions = this.#sessions.list(atMs)
    if (path === paths.sessions) return collection({ path, type: 'Session', members: sessions.map(({ id }) => `${path}/${id}`) })
    const session = sessions.find(({ id }) => path === `${paths.sessions}/${id}`)
    return session && sessionResource(session)
  }

  #system(atMs: number): Json {
    const { systemId = 'system', uuid, bootOptions } = this.#options
    return systemResource({ id: systemId, uuid, power: this.#powerState(atMs), light: this.#light, boot: bootOptions.read(atMs) })
  }

  #powerState(atMs: number): 'On' | 'Off' | 'PoweringOn' | 'PoweringOff' {
    const power = this.#options.chassis.power()
    const { to, at } = this.#transition ?? {}
    if (this.#options.faults.states === 'transitional' && to !== undefined && to !== power && atMs - (at ?? 0) < transitionMsMax) {
      return to === 'on' ? 'PoweringOn' : 'PoweringOff'
    }
    return power === 'on' ? 'On' : 'Off'
  }

  #reset(request: RedfishRequest, atMs: number): RedfishAnswer {
    const type = objectOf(request.body)?.ResetType
    if (typeof type !== 'string') return refusal(400, 'ActionParameterMissing', 'The action needs the parameter ResetType.', 'ResetType')
    if (!isResetType(type))
      return refusal(400, 'ActionParameterValueNotInList', `The value ${type} for ResetType is not in the list.`, 'ResetType')
    const { chassis, bootOptions } = this.#options
    const control = controls[type]
    if (control !== undefined) {
      if (chassis.control(control) === 'wrong-state') {
        return refusal(409, 'InvalidOperationForSystemState', 'The operation was not successful due to the current power state.')
      }
      bootOptions.chassisCommanded(atMs)
      if (control === 'on' || control === 'off') this.#transition = { to: control, at: atMs }
    }
    this.#resets[type] = (this.#resets[type] ?? 0) + 1
    return this.#accept()
  }

  #accept(): RedfishAnswer {
    const { faults } = this.#options
    if (faults.answers === 'at once') return { status: 204 }
    const id = String(this.#tasks.size + 1)
    this.#tasks.set(id, { looksLeft: faults.taskPolls, ending: faults.answers === 'failing tasks' ? 'Exception' : 'Completed' })
    return { status: 202, headers: { Location: `${paths.tasks}/${id}` }, body: taskResource({ id, state: 'New' }) }
  }

  #look(id: string): RedfishAnswer {
    const task = this.#tasks.get(id)
    if (!task) return notFound(`${paths.tasks}/${id}`)
    if (task.looksLeft > 0) {
      task.looksLeft -= 1
      return { status: 202, headers: { Location: `${paths.tasks}/${id}` }, body: taskResource({ id, state: 'Running' }) }
    }
    const message = task.ending === 'Exception' ? { message: 'The chassis did not react.' } : {}
    return { status: 200, body: taskResource({ id, state: task.ending, ...message }) }
  }

  #change(request: RedfishRequest, atMs: number): RedfishAnswer {
    const precondition = this.#precondition(request.headers['if-match'], this.#system(atMs))
    if (precondition) return precondition
    const body = objectOf(request.body)
    if (!body) return refusal(400, 'MalformedJSON', 'The request body was no JSON object.')
    if (typeof body.LocationIndicatorActive === 'boolean') this.#light = body.LocationIndicatorActive
    return body.Boot === undefined ? { status: 204 } : this.#changeBoot(body.Boot, atMs)
  }

  #accountAt(path: string): BmcUser | undefined {
    const [parent, number] = [path.slice(0, path.lastIndexOf('/')), path.slice(path.lastIndexOf('/') + 1)]
    return parent === paths.accounts ? this.#options.users[Number(number) - 1] : undefined
  }

  #subscribe(request: RedfishRequest): RedfishAnswer {
    const { Destination: destination, Context: context, Protocol: protocol } = objectOf(request.body) ?? {}
    if (typeof destination !== 'string' || !URL.canParse(destination))
      return refusal(400, 'PropertyMissing', 'The property Destination is required.', 'Destination')
    if (protocol !== 'Redfish') return refusal(400, 'PropertyValueNotInList', 'The value for Protocol is not in the list.', 'Protocol')
    const subscription = { id: String(++this.#lastSubscription), destination, context: typeof context === 'string' ? context : '' }
    this.#subscriptions.set(subscription.id, subscription)
    const location = `${paths.subscriptions}/${subscription.id}`
    return { status: 201, headers: { Location: location }, body: subscriptionResource(subscription) }
  }

  /** What is to be posted where, now that the power has changed. */
  powerEvents(): { to: string; body: Json }[] {
    return this.subscriptions.map(({ destination, context }) => ({
      to: destination,
      body: powerEvent({ context, systemPath: this.#systemPath, number: ++this.#lastEvent }),
    }))
  }

  #changeAccount(path: string, asked: BmcUser, request: RedfishRequest): RedfishAnswer {
    const account = this.#accountAt(path)
    if (!account) return notFound(path)
    if (asked.privilege !== 'ADMINISTRATOR') return refusal(403, 'InsufficientPrivilege', 'The account has too few privileges for this.')
    const precondition = this.#precondition(request.headers['if-match'], accountResource({ path, ...account }))
    if (precondition) return precondition
    const password = objectOf(request.body)?.Password
    if (typeof password !== 'string') return refusal(400, 'PropertyMissing', 'The property Password is needed.', 'Password')
    // Quotes the value, as services do.
    if (password.length < passwordLimits.min || password.length > passwordLimits.max)
      return refusal(400, 'PropertyValueFormatError', `The value ${password} for Password does not fit the policy.`, 'Password')
    account.password = password
    this.#options.passwordSet?.(account)
    return { status: 204 }
  }

  #precondition(ifMatch: string | undefined, now: Json): RedfishAnswer | undefined {
    const { etags } = this.#options.faults
    if (etags === 'ignored') return undefined
    if (etags === 'never match') return ifMatch === undefined ? undefined : refusal(412, 'PreconditionFailed', 'The ETag does not match.')
    if (ifMatch === undefined) return refusal(428, 'PreconditionRequired', 'The request needs an If-Match header.')
    if (ifMatch === '*' || ifMatch === etagOf(now)) return undefined
    return refusal(412, 'PreconditionFailed', 'The ETag does not match.')
  }

  #changeBoot(given: unknown, atMs: number): RedfishAnswer {
    const { bootOptions } = this.#options
    const wanted = typeof given === 'object' && given !== null ? (given as Json) : {}
    const before = bootOptions.read(atMs)
    const target = wanted.BootSourceOverrideTarget
    if (target !== undefined && !isBootTarget(target)) {
      return refusal(400, 'PropertyValueNotInList', `The value ${String(target)} is not in the list.`, 'BootSourceOverrideTarget')
    }
    const enabled = wanted.BootSourceOverrideEnabled ?? (before ? (before.lasting === 'once' ? 'Once' : 'Continuous') : 'Disabled')
    const device = target === undefined ? (before?.device ?? 'none') : bootTargets[target]
    const isValid = enabled !== 'Disabled' && device !== 'none' && device !== 'unknown'
    const flags = encodeBootFlags({
      valid: isValid,
      lasting: enabled === 'Continuous' ? 'persistent' : 'once',
      firmware: wanted.BootSourceOverrideMode === 'Legacy' ? 'legacy' : 'uefi',
      device: isValid ? device : 'none',
    })
    const by = { session: bootWriter, atMs }
    // Redfish knows no rule of 60 s.
    bootOptions.set(Buffer.of(bootParameters.keepValid, 0x1f), by)
    bootOptions.set(Buffer.concat([Buffer.of(bootParameters.flags), flags]), by)
    return this.#accept()
  }
}

/** Of iDRAC and iLO, which share it with IPMI. */
const passwordLimits = { min: 8, max: 20 } as const

function isResetType(type: string): type is (typeof resetTypes)[number] {
  return resetTypes.some(known => known === type)
}

function isBootTarget(target: unknown): target is keyof typeof bootTargets {
  return typeof target === 'string' && Object.hasOwn(bootTargets, target)
}

/** Changes with everything that is shown, the power state too: as weak as those of real services. */
function etagOf(body: Json): string {
  return `W/"${createHash('sha256').update(JSON.stringify(body)).digest('hex').slice(0, 16)}"`
}

function isSame(a: string, b: string): boolean {
  const hash = (text: string) => createHash('sha256').update(text).digest()
  return timingSafeEqual(hash(a), hash(b))
}

function objectOf(body: string): Json | undefined {
  try {
    const parsed: unknown = JSON.parse(body)
    return typeof parsed === 'object' && parsed !== null && !Array.isArray(parsed) ? (parsed as Json) : undefined
  } catch {
    // Whatever the client meant: the caller answers 400.
    return undefined
  }
}

function refusal(status: number, messageId: string, message: string, property?: string): RedfishAnswer {
  return { status, body: errorResource(messageId, message, property) }
}

function notFound(path: string): RedfishAnswer {
  return refusal(404, 'ResourceMissingAtURI', `There is no resource at ${path}.`)
}
