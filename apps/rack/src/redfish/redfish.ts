// A Redfish service on the network: one HTTPS or HTTP server around a RedfishService, with whatever faults it was given. It stands beside the IPMI
// BMC of a machine (bmc/bmc.ts) and switches the same chassis.
import http, { type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import https from 'node:https'
import type { AddressInfo, Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { type ServerCertificate, selfSignedCertificate } from './certificate.ts'
import { noRedfishFaults, type RedfishFaults } from './faults.ts'
import type { Subscription } from './resources.ts'
import { type RedfishCounters, RedfishService, type RedfishServiceOptions } from './service.ts'

export interface RedfishOptions extends Omit<RedfishServiceOptions, 'faults'> {
  /** Where it listens: an IPv4 address of this host, and a port; 0 takes a free one. */
  address: string
  port: number
  /** Default `https`, with a certificate of its own. */
  protocol?: 'https' | 'http'
  /** Default: made for `address`. */
  certificate?: ServerCertificate
  /** Beside the certificate: old versions and ciphers, for tests of old BMCs. */
  tls?: https.ServerOptions
  faults?: Partial<RedfishFaults>
  /** Epoch milliseconds. */
  now?: () => number
}

export interface Redfish extends AsyncDisposable {
  /** `https://127.0.0.1:45123`: what the driver's setting `address` takes. */
  readonly url: string
  /** Undefined over plain HTTP. */
  readonly certificate: ServerCertificate | undefined
  /** May be changed at any time. */
  readonly faults: RedfishFaults
  readonly counters: RedfishCounters
  readonly light: boolean
  /** Sessions open just now. */
  sessionsOpen(): number
  /** TCP connections since the start: more than a few for many requests means that they are not kept. */
  readonly connections: number
  /** Most requests worked on at once. */
  readonly requestsAtOnceMax: number
  /** Ends all sessions and forgets who wanted to be told, as a restart of the BMC does. */
  restart(): void
  /** Tells who wanted to be told: the machine's power has changed. */
  powerChanged(): void
  /** Who wants to be told. */
  readonly subscriptions: readonly Subscription[]
  /** Events that were posted and taken. */
  readonly told: number
  /** Stops listening and hangs up. Again is harmless. */
  close(): Promise<void>
}

/** Larger bodies are cut off with 413; a client of this service sends less than one KiB. */
const bodyBytesMax = 65_536

const eventLimitMs = 5_000

/** Starts a service. Rejects with the socket's error (EADDRINUSE, EACCES …). */
export async function startRedfish(options: RedfishOptions): Promise<Redfish> {
  const faults: RedfishFaults = { ...noRedfishFaults, ...options.faults }
  const service = new RedfishService({ ...options, faults })
  const now = options.now ?? Date.now
  const protocol = options.protocol ?? 'https'
  const certificate = protocol === 'https' ? (options.certificate ?? selfSignedCertificate(options.address)) : undefined
  const closing = new AbortController()
  const used = new WeakSet<Socket>()
  const load = { now: 0, max: 0 }
  let connections = 0
  let told = 0

  const serve = async (request: IncomingMessage, response: ServerResponse) => {
    const { socket } = request
    const body = await bodyOf(request)
    if (faults.life === 'silent') return
    if (faults.latencyMs > 0) await sleep(faults.latencyMs, undefined, { signal: closing.signal })
    const isKept = used.has(socket)
    used.add(socket)
    if (isKept && faults.resets > 0) {
      faults.resets -= 1
      socket.destroy()
      return
    }
    if (body === undefined) {
      response.writeHead(413).end()
      return
    }
    if (faults.busy > 0) {
      faults.busy -= 1
      response.writeHead(503, faults.retryAfterS === null ? {} : { 'Retry-After': String(faults.retryAfterS) }).end()
      return
    }
    const headers = Object.fromEntries(Object.entries(request.headers).map(([name, value]) => [name, String(value)]))
    const answer = service.answer({ method: request.method ?? '', url: request.url ?? '', headers, body }, now())
    if (request.method === 'POST' && faults.lostAnswers > 0 && !request.url?.includes('/Sessions')) {
      faults.lostAnswers -= 1
      socket.destroy()
      return
    }
    const text = answer.body === undefined ? '' : JSON.stringify(answer.body)
    response
      .writeHead(answer.status, { 'OData-Version': '4.0', ...(text !== '' && { 'Content-Type': 'application/json' }), ...answer.headers })
      .end(text)
  }
  const listener = (request: IncomingMessage, response: ServerResponse) => {
    load.now += 1
    load.max = Math.max(load.max, load.now)
    response.once('close', () => {
      load.now -= 1
    })
    // The client hung up, or the rack closes: there is nobody left to tell.
    serve(request, response).catch(() => request.socket.destroy())
  }
  const server = certificate
    ? https.createServer({ ...options.tls, key: certificate.key, cert: certificate.certificate }, listener)
    : http.createServer(listener)
  server.on('connection', () => {
    connections += 1
  })
  await listen(server, options)
  const { port } = server.address() as AddressInfo
  let closed: Promise<void> | undefined
  const close = () => {
    closed ??= new Promise<void>(resolve => {
      closing.abort()
      server.close(() => resolve())
      server.closeAllConnections()
    })
    return closed
  }
  return {
    url: `${protocol}://${options.address}:${port}`,
    certificate,
    faults,
    get counters() {
      return service.counters
    },
    get light() {
      return service.light
    },
    sessionsOpen: () => service.sessionsOpen(now()),
    get connections() {
      return connections
    },
    get requestsAtOnceMax() {
      return load.max
    },
    restart: () => service.restart(),
    powerChanged: () => {
      for (const { to, body } of service.powerEvents()) {
        const post = { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }
        // Told once: who did not hear it asks in their own time.
        fetch(to, { ...post, signal: AbortSignal.any([closing.signal, AbortSignal.timeout(eventLimitMs)]) }).then(
          response => {
            if (response.ok) told += 1
          },
          () => undefined,
        )
      }
    },
    get subscriptions() {
      return service.subscriptions
    },
    get told() {
      return told
    },
    close,
    [Symbol.asyncDispose]: close,
  }
}

async function listen(server: Server, { address, port }: { address: string; port: number }): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(port, address, () => {
      server.off('error', reject)
      resolve()
    })
  })
}

/** The body, or undefined where it is too large. */
async function bodyOf(request: IncomingMessage): Promise<string | undefined> {
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length
    if (bytes <= bodyBytesMax) chunks.push(chunk)
  }
  return bytes > bodyBytesMax ? undefined : Buffer.concat(chunks).toString()
}
