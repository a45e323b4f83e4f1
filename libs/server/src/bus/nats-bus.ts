// The bus over NATS, core only: any nats-server or cluster, or the embedded broker.
// One inbox subscription per connection carries the answers of all questions: a subscription per question would cost the broker two
// more frames and a change of its routing for each of the 50 partitions asked.

import { setTimeout as sleep } from 'node:timers/promises'
import { checkServerIdentity } from 'node:tls'
import {
  type Bus,
  BusError,
  type BusMessage,
  type BusSubscription,
  embeddedBroker,
  type GatherEnd,
  type GatherOptions,
  type RequestOptions,
} from '@muster/shared/bus/bus'
import { isPublishable, isSubscribable } from '@muster/shared/bus/subject-index'
import { type Distrust, distrustOf } from '@muster/shared/trust/distrust'
import {
  AuthorizationError,
  type ConnectionOptions,
  connect,
  credsAuthenticator,
  type Msg,
  type NatsConnection,
  nkeyAuthenticator,
  nuid,
  PermissionViolationError,
  type Status,
  type Subscription,
} from '@nats-io/transport-node'
import { ask, askAll, type Carrier, type Question, tooLarge } from './question.ts'

/** The part of pino's logger used here. */
export interface BusLog {
  info(fields: object, text: string): void
  warn(fields: object, text: string): void
  error(fields: object, text: string): void
}

export interface NatsOptions {
  /** `nats://host:4222`, `tls://…`, several separated by commas; may hold `token@` or `user:password@`. */
  url: string
  token?: string | undefined
  /** The text of a NATS credentials file (JWT and nkey). */
  credentials?: string | undefined
  /** The seed of an nkey (`SU…`). */
  nkey?: string | undefined
  /** The authority whose certificates the broker is believed by, and no others, PEM; undefined: those that this computer knows. */
  ca?: string | undefined
  /** What answers arrive under, ending with a dot: what the broker's permissions let us read. Default `_INBOX.`. */
  inbox?: string | undefined
  /** Who we are, as the broker's monitoring shows it: `partition lon1 replica a`. */
  name: string
  log: BusLog
  /** How long to wait for the first connection before going on with the link down. Default 2,000. */
  firstWaitMs?: number
  /** When the broker refuses the key at the first try. `reject`, the default: it is a setting to correct. `retry`: it may not know of it yet. */
  onRefusal?: 'reject' | 'retry'
}

const dialLimitMs = 2_000
// Spread: 50 partitions lose a restarted broker in the same millisecond. Short: an outage of the bus is an outage of allocation.
const redialMs = () => 100 + Math.random() * 900
const pingEveryMs = 5_000 // a link that died without a FIN is noticed within 15 s; questions have limits of their own
const closeLimitMs = 1_000
const usualMaxPayloadBytes = 1024 * 1024

/**
 * Connects and keeps connecting, for ever, with jitter. Resolves when the link is up, or after `firstWaitMs` with the link down: a
 * partition must start without its bus. Rejects only when the broker refuses the credentials at this first try, because that is a
 * setting to correct (unless `onRefusal` says otherwise); later refusals are logged and retried, because tokens are rotated.
 */
export async function connectNats(options: NatsOptions): Promise<Bus> {
  const bus = new NatsBus(options)
  await bus.start(options.firstWaitMs ?? 2_000)
  return bus
}

interface Registration {
  subject: string
  group: string | undefined
  handle: (message: BusMessage) => void
  live: Subscription | undefined
  refusal: Error | undefined
}

class NatsBus implements Bus, Carrier {
  readonly #options: NatsOptions
  readonly #log: BusLog
  readonly #inbox: string
  readonly #questions = new Map<string, Question>()
  readonly #registrations = new Set<Registration>()
  readonly #listeners = new Set<(status: 'up' | 'down') => void>()
  readonly #closing = new AbortController()
  #connection: NatsConnection | undefined
  #isUp = false
  /** Why there was no first connection yet. */
  #problem: string | undefined
  #count = 0
  #waiting: (() => void)[] = []
  #closed: Promise<void> | undefined

  constructor(options: NatsOptions) {
    this.#options = options
    this.#log = options.log
    this.#inbox = `${options.inbox ?? '_INBOX.'}${nuid.next()}.`
  }

  async start(firstWaitMs: number): Promise<void> {
    const enough = AbortSignal.timeout(firstWaitMs)
    let refusal: Error | undefined
    const dialling = this.#dial(error => {
      if (!(error instanceof AuthorizationError) || enough.aborted || this.#options.onRefusal === 'retry') return 'again'
      refusal = error
      return 'stop'
    })
    await Promise.race([dialling, new Promise<void>(resolve => enough.addEventListener('abort', () => resolve()))])
    if (refusal) {
      await this.close()
      throw new BusError('refused', `connect to ${this.#shownUrl()}: ${refusal.message}`, { cause: refusal })
    }
  }

  /** Until the first connection stands; after that the client reconnects by itself. It could also wait here, but not be stopped. */
  async #dial(onFailure: (error: unknown) => 'again' | 'stop'): Promise<void> {
    while (!this.#closing.signal.aborted) {
      try {
        const connection = await connect(this.#connectionOptions())
        if (this.#closing.signal.aborted) return await connection.close()
        this.#attach(connection)
        return await this.#restored(connection)
      } catch (error) {
        if (onFailure(error) === 'stop') return
        const problem = reasonOf(error, this.#options.ca)
        if (problem !== this.#problem)
          this.#log.warn({ err: error, url: this.#shownUrl() }, `the bus is not reachable; trying on: ${problem}`)
        this.#problem = problem
        await sleep(redialMs(), undefined, { signal: this.#closing.signal }).catch(() => {}) // closed: the loop ends
      }
    }
  }

  #connectionOptions(): ConnectionOptions {
    const { url, token, credentials, nkey, ca, name } = this.#options
    const servers = url.split(',').map(each => each.trim())
    const [, userInfo] = /^\w+:\/\/([^/@]*)@/.exec(servers[0] ?? '') ?? []
    const [user, pass] = userInfo?.split(':').map(decodeURIComponent) ?? []
    const isTls = servers.some(server => server.startsWith('tls://'))
    return {
      servers: servers.map(server => server.replace(/\/\/[^/@]*@/, '//')),
      name,
      ...(credentials ? { authenticator: credsAuthenticator(new TextEncoder().encode(credentials)) } : {}),
      ...(nkey ? { authenticator: nkeyAuthenticator(new TextEncoder().encode(nkey)) } : {}),
      ...(user !== undefined && pass !== undefined ? { user, pass } : {}),
      ...((token ?? (pass === undefined && user)) ? { token: token ?? (user as string) } : {}),
      ...(isTls || ca !== undefined ? { tls: tlsOptions(servers, ca) } : {}),
      maxReconnectAttempts: -1,
      reconnectDelayHandler: redialMs,
      ignoreAuthErrorAbort: true,
      timeout: dialLimitMs,
      pingInterval: pingEveryMs,
      maxPingOut: 2,
      noAsyncTraces: true, // a stack trace per question costs more than the question
    }
  }

  #attach(connection: NatsConnection): void {
    this.#connection = connection
    connection.subscribe(`${this.#inbox}*`, { callback: (error, message) => this.#answered(error, message) })
    for (const registration of this.#registrations) this.#register(connection, registration)
    void this.#follow(connection)
  }

  async #follow(connection: NatsConnection): Promise<void> {
    for await (const status of connection.status()) {
      try {
        this.#noted(connection, status)
      } catch (error) {
        this.#log.error({ err: error, status: status.type }, 'a listener to the link threw')
      }
    }
    if (this.#closing.signal.aborted) return
    // The client gave up, which its settings forbid; a bus does not.
    this.#log.error({ url: this.#shownUrl() }, 'the NATS client closed itself; dialling anew')
    this.#connection = undefined
    this.#lost()
    await this.#dial(() => 'again')
  }

  #noted(connection: NatsConnection, status: Status): void {
    switch (status.type) {
      case 'disconnect':
        this.#lost()
        return
      case 'reconnect':
        void this.#restored(connection).catch(error => {
          // Down again before it was up: the next 'reconnect' follows.
          this.#log.info({ err: error }, 'the link broke while it was being restored')
        })
        return
      case 'staleConnection':
        this.#log.warn({ url: this.#shownUrl() }, 'the broker does not answer pings')
        return
      case 'error':
        this.#log.warn({ err: status.error }, 'the broker refused something')
        if (status.error instanceof PermissionViolationError) this.#forbidden(status.error.subject)
        return
      default:
        return
    }
  }

  /** Up only when the broker has confirmed every subscription: a reply to a ping comes after all that was sent before it. */
  async #restored(connection: NatsConnection): Promise<void> {
    await connection.flush()
    if (this.#isUp || this.#closing.signal.aborted) return
    this.#isUp = true
    this.#problem = undefined
    this.#log.info({ bus: this.describe() }, 'the bus is up')
    this.#tell('up')
  }

  #lost(): void {
    const wasUp = this.#isUp
    this.#isUp = false
    for (const question of [...this.#questions.values()]) question.end('disconnected')
    if (!wasUp) return
    this.#log.warn({ url: this.#shownUrl() }, 'the bus is down')
    this.#tell('down')
  }

  #tell(status: 'up' | 'down'): void {
    for (const resolve of this.#waiting.splice(0)) resolve()
    for (const listener of this.#listeners) listener(status)
  }

  #forbidden(subject: string): void {
    for (const question of [...this.#questions.values()]) if (question.subject === subject) question.end('refused')
  }

  // ------------------------------------------------------------ Bus

  get maxPayloadBytes(): number {
    return this.#connection?.info?.max_payload ?? usualMaxPayloadBytes
  }

  publish(subject: string, data: Uint8Array): void {
    this.#check(subject, data)
    this.#notify(subject, data)
  }

  #reply(subject: string, data: Uint8Array): void {
    if (data.length > this.maxPayloadBytes) throw tooLarge(subject, data, this.maxPayloadBytes)
    this.#notify(subject, data)
  }

  #notify(subject: string, data: Uint8Array): void {
    // The client would keep it for later; a late notice is worse than none.
    if (this.#isUp) this.#connection?.publish(subject, data)
  }

  async subscribe(subject: string, options: { group?: string }, handle: (message: BusMessage) => void): Promise<BusSubscription> {
    if (!isSubscribable(subject)) throw new TypeError(`"${subject}" is no subject to subscribe to`)
    if (this.#closing.signal.aborted) throw this.#closedError(subject)
    const registration: Registration = { subject, group: options.group, handle, live: undefined, refusal: undefined }
    this.#registrations.add(registration)
    if (this.#connection) this.#register(this.#connection, registration)
    try {
      await this.#inForce(registration)
    } catch (error) {
      this.#unregister(registration)
      throw error
    }
    return { stop: () => this.#unregister(registration) }
  }

  request(subject: string, data: Uint8Array, options: RequestOptions): Promise<Uint8Array> {
    return ask(this, subject, data, options)
  }

  gather(subject: string, data: Uint8Array, options: GatherOptions): Promise<GatherEnd> {
    return askAll(this, subject, data, options)
  }

  isConnected(): boolean {
    return this.#isUp
  }

  describe(): string {
    const info = this.#connection?.info
    if (!info) return `nats at ${this.#shownUrl()}${this.#problem === undefined ? '' : `: ${this.#problem}`}`
    if (info.server_name === embeddedBroker.name) return embeddedBroker.description
    return `nats ${info.version} at ${this.#connection?.getServer()}`
  }

  onStatus(listener: (status: 'up' | 'down') => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  close(): Promise<void> {
    this.#closed ??= this.#end()
    return this.#closed
  }

  async #end(): Promise<void> {
    this.#closing.abort()
    const wasUp = this.#isUp
    const connection = this.#connection
    // Answers to what we asked are of no use any more; what we answered and published still goes out below.
    this.#isUp = false
    for (const question of [...this.#questions.values()]) question.end('disconnected')
    this.#registrations.clear()
    if (connection && !connection.isClosed()) {
      const drained = wasUp ? connection.drain() : Promise.resolve()
      await Promise.race([drained, sleep(closeLimitMs, undefined, { ref: false })]).catch(error => {
        this.#log.info({ err: error }, 'the bus was closed before it was drained')
      })
      await connection.close()
    }
    if (wasUp) this.#tell('down')
    for (const resolve of this.#waiting.splice(0)) resolve()
  }

  // ------------------------------------------------------------ questions

  send(question: Question): void {
    this.#check(question.subject, question.data)
    const connection = this.#connection
    if (!connection || !this.#isUp) {
      question.end('disconnected')
      return
    }
    question.token = (this.#count++).toString(36)
    this.#questions.set(question.token, question)
    connection.publish(question.subject, question.data, { reply: this.#inbox + question.token })
  }

  forget(question: Question): void {
    this.#questions.delete(question.token)
  }

  #answered(error: Error | null, message: Msg): void {
    // Runs inside the client's read loop, which ends for good when a callback throws; Question.answer does not.
    if (error) {
      this.#log.error({ err: error }, 'the broker forbids our inbox: no question will be answered')
      return
    }
    const question = this.#questions.get(message.subject.slice(this.#inbox.length))
    if (!question) return // late, and nobody waits
    const data = message.data
    if (data.length === 0 && message.headers?.code === 503) question.end('no-responders')
    else question.answer(data)
  }

  #check(subject: string, data: Uint8Array): void {
    if (!isPublishable(subject)) throw new TypeError(`"${subject}" is no subject to send to`)
    if (data.length > this.maxPayloadBytes) throw tooLarge(subject, data, this.maxPayloadBytes)
  }

  // ------------------------------------------------------------ subscriptions

  #register(connection: NatsConnection, registration: Registration): void {
    const { subject, group } = registration
    registration.live = connection.subscribe(subject, {
      ...(group === undefined ? {} : { queue: group }),
      callback: (error, message) => {
        if (error) registration.refusal = error
        else this.#handOver(registration, message)
      },
    })
  }

  #unregister(registration: Registration): void {
    this.#registrations.delete(registration)
    if (registration.live && !registration.live.isClosed()) registration.live.unsubscribe()
    registration.live = undefined
  }

  #handOver(registration: Registration, message: Msg): void {
    if (!registration.live) return // stopped; these were under way
    const { subject, data, reply } = message
    try {
      registration.handle(reply ? { subject, data, reply: answer => this.#reply(reply, answer) } : { subject, data })
    } catch (error) {
      this.#log.error({ err: error, subject }, 'a bus subscriber threw')
    }
  }

  async #inForce(registration: Registration): Promise<void> {
    const { subject } = registration
    for (;;) {
      if (this.#closing.signal.aborted) throw this.#closedError(subject)
      if (this.#isUp && this.#connection) {
        const isConfirmed = await this.#connection.flush().then(
          () => true,
          () => false, // the link broke meanwhile: wait for the next one
        )
        if (registration.refusal) {
          throw new BusError('refused', `subscribe ${subject} via ${this.describe()}: ${registration.refusal.message}`, {
            cause: registration.refusal,
          })
        }
        if (isConfirmed) return
      }
      // A status may lag behind a broken flush; then #isUp is still true for a moment.
      if (this.#isUp || this.#closing.signal.aborted) await sleep(10)
      else await new Promise<void>(resolve => this.#waiting.push(resolve))
    }
  }

  #closedError(subject: string): BusError {
    return new BusError('disconnected', `subscribe ${subject} via ${this.describe()}: the bus is closed`)
  }

  #shownUrl(): string {
    return this.#options.url.replaceAll(/\/\/[^/@,]*@/g, '//')
  }
}

/** The client hands all of this to node:tls, and knows the type of a part of it only. */
function tlsOptions(servers: readonly string[], ca: string | undefined): NonNullable<ConnectionOptions['tls']> {
  const options = { ...(ca !== undefined && { ca }), checkServerIdentity: identityOf(servers) }
  return options
}

/**
 * A broker is who it says where its certificate is for one of the hosts that we were given. The client would ask for the name `localhost` where a host is an
 * address, because it begins TLS on a socket that is open already; and a member of a cluster that it hears of later has no name at all.
 */
function identityOf(servers: readonly string[]): typeof checkServerIdentity {
  const hosts = servers.map(server => new URL(server.includes('://') ? server : `nats://${server}`).hostname.replace(/^\[|\]$/g, ''))
  return (_, certificate) => {
    const failures = hosts.map(host => checkServerIdentity(host, certificate))
    return failures.includes(undefined) ? undefined : failures[0]
  }
}

/** What to do about a certificate of the broker, by why it is not believed. */
const advice: { readonly [why in Distrust]?: (ca: string | undefined) => string } = {
  untrusted: ca =>
    ca === undefined
      ? 'its certificate is not from an authority that is known here: set NATS_CA to a file with the certificate of its authority'
      : 'its certificate is not from the authority in NATS_CA (or the one that the front handed over): set NATS_CA to a file with the certificate of its authority',
  'out-of-time': () => 'its certificate is not good at this time: is the clock of this computer right, and was it renewed?',
  'wrong-name': () =>
    'its certificate is for other names: give the broker one of these in NATS_URL (in MUSTER_NATS_PUBLIC_URL of the front, for partitions that it accepts), or a certificate for this name',
}

/** The failure of a connection in words, and what to do about it. */
function reasonOf(error: unknown, ca: string | undefined): string {
  const { message } = error as Error
  const why = distrustOf(error)
  const told = why === undefined ? undefined : advice[why]?.(ca)
  return told === undefined ? message : `${message}; ${told}`
}
