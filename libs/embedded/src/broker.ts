// A message broker for one host, so that `npm start` needs no server: the core of NATS (publish, subscribe, queue groups, headers,
// no-responders), nothing durable, no TLS, no clustering, no accounts. Outgrown by one setting, NATS_URL.
// Single-threaded, and the hot path of every allocation: one question to 50 partitions and 50 answers back, so frames are parsed
// without copying and each socket gets one write per turn of the event loop.

import { randomBytes, timingSafeEqual } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type Server, type Socket } from 'node:net'
import { embeddedBroker } from '@muster/shared/bus/bus'
import { isSubscribable, SubjectIndex } from '@muster/shared/bus/subject-index'
import { type FrameSink, NatsParser } from './nats-parser.ts'

export interface StartBrokerOptions {
  /** Default 0: any free port. */
  port?: number
  /** Default: 256 random bits. */
  token?: string
  /** Default 127.0.0.1. */
  host?: string
  /** What one client may leave unread before it is cut. Default 64 MiB: 50 full answers of 1 MiB may arrive at a front at once. */
  maxPendingBytes?: number
  /** Default 1 MiB, as nats-server. */
  maxPayloadBytes?: number
  /** Who was cut and why, one line per call. */
  log?: (line: string) => void
  /** Consulted for NODE_ENV and MUSTER_ALLOW_EMBEDDED_BROKER only. Default: the process's. */
  env?: NodeJS.ProcessEnv
}

export interface Broker extends AsyncDisposable {
  /** Without the token, e.g. `nats://127.0.0.1:41234`. */
  readonly url: string
  readonly token: string
  readonly port: number
  stats(): BrokerStats
  /** Cuts everybody and frees the port. Idempotent. */
  close(): Promise<void>
}

/** Counted since the start; bytes are those of headers and payloads. */
export interface BrokerStats {
  connections: number
  subscriptions: number
  inMessages: number
  outMessages: number
  inBytes: number
  outBytes: number
  slowConsumers: number
}

const maxLineBytes = 4096 // nats-server's max_control_line
const connectLimitMs = 5_000 // a client that says nothing is none
const pingEveryMs = 30_000
const pingsUnanswered = 2
const eagerFlushBytes = 64 * 1024 // enough for one write; letting it grow further only costs memory
const noResponders = Buffer.from('NATS/1.0 503\r\n\r\n')

/**
 * Starts the broker. Throws when asked to listen beyond loopback or to serve in production: it has no TLS and one thread, and a
 * message lost to its restart is nobody's fault but ours. `MUSTER_ALLOW_EMBEDDED_BROKER=1` overrides both.
 */
export async function startBroker(options: StartBrokerOptions = {}): Promise<Broker> {
  const host = options.host ?? '127.0.0.1'
  refuseUnfitUse(host, options.env ?? process.env)
  const token = options.token ?? randomBytes(32).toString('base64url')
  const exchange = new Exchange({
    token,
    host,
    maxPendingBytes: options.maxPendingBytes ?? 64 * 1024 * 1024,
    maxPayloadBytes: options.maxPayloadBytes ?? 1024 * 1024,
    log: options.log ?? (() => {}),
  })
  const server = createServer({ noDelay: true }, socket => exchange.accept(socket))
  server.listen(options.port ?? 0, host)
  await once(server, 'listening')
  const port = portOf(server)
  exchange.port = port

  let closing: Promise<void> | undefined
  const broker: Broker = {
    url: `nats://${host.includes(':') ? `[${host}]` : host}:${port}`,
    token,
    port,
    stats: () => exchange.stats(),
    close: () => {
      closing ??= new Promise<void>(resolve => {
        server.close(() => resolve())
        exchange.close()
      })
      return closing
    },
    [Symbol.asyncDispose]: () => broker.close(),
  }
  return broker
}

function refuseUnfitUse(host: string, env: NodeJS.ProcessEnv): void {
  if (env.MUSTER_ALLOW_EMBEDDED_BROKER === '1') return
  const way = 'Set NATS_URL to a nats-server, or MUSTER_ALLOW_EMBEDDED_BROKER=1 if you know better.'
  if (env.NODE_ENV === 'production') throw new Error(`the embedded broker is not for production (NODE_ENV). ${way}`)
  if (host !== '::1' && host !== 'localhost' && !/^127\./.test(host)) {
    throw new Error(`the embedded broker has no TLS and listens on loopback only, not on ${host}. ${way}`)
  }
}

function portOf(server: Server): number {
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('the broker has no TCP address')
  return address.port
}

interface Subscription {
  client: Client
  sid: string
  subject: string
  /** '' = none. */
  group: string
  delivered: number
  /** 0 = no limit. */
  max: number
}

interface Limits {
  token: string
  host: string
  maxPendingBytes: number
  maxPayloadBytes: number
  log: (line: string) => void
}

/** All clients and who listens to what. */
class Exchange {
  readonly limits: Limits
  readonly index = new SubjectIndex<Subscription>()
  readonly clients = new Set<Client>()
  readonly serverId = randomBytes(16).toString('hex').toUpperCase()
  port = 0
  inMessages = 0
  outMessages = 0
  inBytes = 0
  outBytes = 0
  slowConsumers = 0
  #clientId = 0
  #dirty: Client[] = []
  // One array for all messages: routing is never re-entered.
  readonly #found: Subscription[] = []
  readonly #pinger: NodeJS.Timeout

  constructor(limits: Limits) {
    this.limits = limits
    this.#pinger = setInterval(() => {
      for (const client of this.clients) client.checkPulse()
    }, pingEveryMs)
    this.#pinger.unref()
  }

  accept(socket: Socket): void {
    const client = new Client({ exchange: this, socket, id: ++this.#clientId })
    this.clients.add(client)
  }

  close(): void {
    clearInterval(this.#pinger)
    for (const client of this.clients) client.cut()
  }

  stats(): BrokerStats {
    const { inMessages, outMessages, inBytes, outBytes, slowConsumers } = this
    let subscriptions = 0
    for (const client of this.clients) subscriptions += client.subscriptions.size
    return { connections: this.clients.size, subscriptions, inMessages, outMessages, inBytes, outBytes, slowConsumers }
  }

  /** Written at the end of this turn of the event loop, so that all that arrived in it leaves in one write per socket. */
  markDirty(client: Client): void {
    if (this.#dirty.length === 0) setImmediate(this.#flush)
    this.#dirty.push(client)
  }

  readonly #flush = () => {
    const dirty = this.#dirty
    this.#dirty = []
    for (const client of dirty) client.flush()
  }

  route(from: Client, subject: string, reply: string, chunk: Buffer, start: number, headerEnd: number, end: number): void {
    this.inMessages++
    this.inBytes += end - start
    const found = this.#found
    found.length = 0
    this.index.match(subject, found)
    // What is the same for every receiver is written once.
    const size = end - start
    const tail = reply === '' ? ` ${size}\r\n` : ` ${reply} ${size}\r\n`
    const frame: Frame = {
      subject,
      reply,
      chunk,
      start,
      headerEnd,
      end,
      head: headerEnd > start ? `HMSG ${subject} ` : `MSG ${subject} `,
      tail: headerEnd > start ? `${reply === '' ? '' : ` ${reply}`} ${headerEnd - start} ${size}\r\n` : tail,
    }
    let reached = 0
    let groups: Map<string, Subscription[]> | undefined
    for (const subscription of found) {
      const { client, group } = subscription
      if (client === from && !from.wantsEcho) continue
      if (group === '') {
        client.deliver(subscription, frame)
        reached++
        continue
      }
      groups ??= new Map()
      const members = groups.get(group)
      if (members) members.push(subscription)
      else groups.set(group, [subscription])
    }
    if (groups) {
      for (const members of groups.values()) {
        const chosen = members[Math.floor(Math.random() * members.length)] as Subscription
        chosen.client.deliver(chosen, frame)
        reached++
      }
    }
    if (reached === 0 && reply !== '' && from.wantsNoResponders) this.#tellNobodyListens(from, reply)
  }

  /** The asker learns at once that nobody will answer, instead of waiting for its limit: an empty message with status 503. */
  #tellNobodyListens(asker: Client, reply: string): void {
    const found: Subscription[] = []
    this.index.match(reply, found)
    const size = noResponders.length
    const frame = {
      subject: reply,
      reply: '',
      chunk: noResponders,
      start: 0,
      headerEnd: size,
      end: size,
      head: `HMSG ${reply} `,
      tail: ` ${size} ${size}\r\n`,
    }
    for (const subscription of found) if (subscription.client === asker) asker.deliver(subscription, frame)
  }
}

interface Frame {
  subject: string
  reply: string
  chunk: Buffer
  start: number
  headerEnd: number
  end: number
  /** Up to the receiver's sid. */
  head: string
  /** From behind the sid to the end of the line. */
  tail: string
}

class Client implements FrameSink {
  readonly subscriptions = new Map<string, Subscription>()
  wantsEcho = true
  wantsNoResponders = false
  readonly #exchange: Exchange
  readonly #socket: Socket
  readonly #parser: NatsParser
  readonly #connectTimer: NodeJS.Timeout
  #name: string
  #isVerbose = false
  #takesHeaders = false
  #isConnected = false
  #isGone = false
  #pings = 0
  #out = Buffer.allocUnsafeSlow(4096)
  #outBytes = 0

  constructor(options: { exchange: Exchange; socket: Socket; id: number }) {
    const { exchange, socket, id } = options
    this.#exchange = exchange
    this.#socket = socket
    this.#name = `client ${id}`
    this.#parser = new NatsParser(this, { maxPayloadBytes: exchange.limits.maxPayloadBytes, maxLineBytes })
    this.#connectTimer = setTimeout(() => this.refuse('Authentication Timeout'), connectLimitMs)
    socket.on('data', chunk => {
      this.#pings = 0
      this.#parser.push(chunk)
    })
    // The reason matters to nobody: either end may vanish at any time, and 'close' follows.
    socket.on('error', () => {})
    socket.on('close', () => this.#forget())
    this.#line(`INFO ${JSON.stringify(this.#info(id))}`)
    this.flush()
  }

  #info(id: number): Record<string, unknown> {
    const { limits, serverId, port } = this.#exchange
    return {
      server_id: serverId,
      server_name: embeddedBroker.name, // how clients tell it from a nats-server
      version: '2.9.0', // whose core protocol this is; clients choose features by it
      proto: 1,
      host: limits.host,
      port,
      headers: true,
      auth_required: true,
      max_payload: limits.maxPayloadBytes,
      client_id: id,
    }
  }

  // ------------------------------------------------------------ what the client says

  connect(json: string): void {
    const asked = parseConnect(json)
    if (!asked) {
      this.refuse('Parser Error')
      return
    }
    if (!isSame(asked.auth_token, this.#exchange.limits.token)) {
      this.refuse('Authorization Violation')
      return
    }
    if (asked.no_responders && !asked.headers) {
      this.refuse('No Responders Requires Headers Support')
      return
    }
    clearTimeout(this.#connectTimer)
    this.#isConnected = true
    this.#isVerbose = asked.verbose === true
    this.#takesHeaders = asked.headers === true
    this.wantsEcho = asked.echo !== false
    this.wantsNoResponders = asked.no_responders === true
    if (typeof asked.name === 'string') this.#name += ` (${asked.name})`
    this.#ok()
  }

  publish(subject: string, reply: string, chunk: Buffer, start: number, headerEnd: number, end: number): void {
    if (!this.#isConnected) {
      this.refuse('Authorization Violation')
      return
    }
    this.#ok() // before the message, which may come back to its sender: nats-server's order
    this.#exchange.route(this, subject, reply, chunk, start, headerEnd, end)
  }

  subscribe(subject: string, group: string, sid: string): void {
    if (!this.#isConnected) {
      this.refuse('Authorization Violation')
      return
    }
    if (!isSubscribable(subject)) {
      this.#line(`-ERR 'Invalid Subject'`)
      return
    }
    // A sid again is the same subscription again, as in nats-server.
    if (!this.subscriptions.has(sid)) {
      const subscription = { client: this, sid, subject, group, delivered: 0, max: 0 }
      this.subscriptions.set(sid, subscription)
      this.#exchange.index.add(subject, subscription)
    }
    this.#ok()
  }

  unsubscribe(sid: string, max: number): void {
    if (!this.#isConnected) {
      this.refuse('Authorization Violation')
      return
    }
    const subscription = this.subscriptions.get(sid)
    if (subscription) {
      subscription.max = max
      if (subscription.delivered >= max) this.#drop(subscription)
    }
    this.#ok()
  }

  ping(): void {
    if (!this.#isConnected) {
      this.refuse('Authorization Violation')
      return
    }
    this.#line('PONG')
  }

  pong(): void {
    // Any byte counts as a sign of life: see 'data'.
  }

  refuse(problem: string): void {
    if (this.#isGone) return
    this.#line(`-ERR '${problem}'`)
    this.#exchange.limits.log(`broker: ${this.#name} cut: ${problem}`)
    this.flush()
    this.#forget()
    this.#socket.destroySoon()
    // Who does not even read the reason is not waited for.
    this.#socket.setTimeout(1_000, () => this.#socket.destroy())
  }

  // ------------------------------------------------------------ what it hears

  deliver(subscription: Subscription, frame: Frame): void {
    if (this.#isGone) return
    const { chunk, end, start } = frame
    if (this.#takesHeaders || frame.headerEnd === start) {
      this.#write(frame.head + subscription.sid + frame.tail, chunk, start, end)
    } else {
      const reply = frame.reply === '' ? '' : `${frame.reply} `
      this.#write(`MSG ${frame.subject} ${subscription.sid} ${reply}${end - frame.headerEnd}\r\n`, chunk, frame.headerEnd, end)
    }
    this.#exchange.outMessages++
    this.#exchange.outBytes += end - start
    subscription.delivered++
    if (subscription.max > 0 && subscription.delivered >= subscription.max) this.#drop(subscription)
  }

  /** Called every {@link pingEveryMs}: a peer that is stopped or unplugged never closes its socket. */
  checkPulse(): void {
    if (!this.#isConnected) return
    if (this.#pings >= pingsUnanswered) {
      this.refuse('Stale Connection')
      return
    }
    this.#pings++
    this.#line('PING')
  }

  #ok(): void {
    if (this.#isVerbose) this.#line('+OK')
  }

  #line(text: string): void {
    if (this.#isGone) return
    this.#reserve(text.length + 2)
    this.#outBytes += this.#out.write(`${text}\r\n`, this.#outBytes, 'latin1')
  }

  #write(line: string, chunk: Buffer, start: number, end: number): void {
    const size = end - start
    this.#reserve(line.length + size + 2)
    const out = this.#out
    let at = this.#outBytes
    at += out.write(line, at, 'latin1')
    if (size > 0) at += chunk.copy(out, at, start, end)
    out[at] = 13
    out[at + 1] = 10
    this.#outBytes = at + 2
    if (this.#outBytes >= eagerFlushBytes) this.flush()
  }

  #reserve(bytes: number): void {
    if (this.#outBytes === 0) this.#exchange.markDirty(this)
    const needed = this.#outBytes + bytes
    if (needed <= this.#out.length) return
    const larger = Buffer.allocUnsafeSlow(Math.max(needed, this.#out.length * 2))
    this.#out.copy(larger, 0, 0, this.#outBytes)
    this.#out = larger
  }

  flush(): void {
    if (this.#outBytes === 0 || this.#isGone) return
    const socket = this.#socket
    socket.write(this.#out.subarray(0, this.#outBytes))
    this.#outBytes = 0
    // Zero: the kernel took it all during the call, and the buffer is free again. Else it belongs to the socket now.
    if (socket.writableLength === 0 && this.#out.length <= 4 * eagerFlushBytes) return
    this.#out = Buffer.allocUnsafeSlow(4096)
    if (socket.writableLength > this.#exchange.limits.maxPendingBytes) {
      this.#exchange.slowConsumers++
      this.#exchange.limits.log(`broker: ${this.#name} cut: slow consumer, ${socket.writableLength} bytes unread`)
      this.cut()
    }
  }

  // ------------------------------------------------------------ its end

  cut(): void {
    this.#forget()
    this.#socket.destroy()
  }

  #drop(subscription: Subscription): void {
    this.subscriptions.delete(subscription.sid)
    this.#exchange.index.remove(subscription.subject, subscription)
  }

  #forget(): void {
    if (this.#isGone) return
    this.#isGone = true
    clearTimeout(this.#connectTimer)
    for (const subscription of this.subscriptions.values()) this.#exchange.index.remove(subscription.subject, subscription)
    this.subscriptions.clear()
    this.#exchange.clients.delete(this)
  }
}

interface ConnectOptions {
  auth_token?: unknown
  verbose?: unknown
  headers?: unknown
  echo?: unknown
  no_responders?: unknown
  name?: unknown
}

function parseConnect(json: string): ConnectOptions | undefined {
  try {
    const value: unknown = JSON.parse(Buffer.from(json, 'latin1').toString('utf8'))
    return typeof value === 'object' && value !== null ? value : undefined
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

function isSame(given: unknown, expected: string): boolean {
  if (typeof given !== 'string') return false
  const left = Buffer.from(given)
  const right = Buffer.from(expected)
  return left.length === right.length && timingSafeEqual(left, right)
}
