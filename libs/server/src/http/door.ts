// The front door of a server: REST, tRPC, docs, health and metrics on one port, and whatever else the server mounts beside them.
import { createServer, type RequestListener, type Server, type ServerResponse } from 'node:http'
import type { Server as SecureServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { getRequestListener } from '@hono/node-server'
import { Refusal } from '@muster/shared/errors'
import { Hono } from 'hono'
import type { Backend } from '../backend.ts'
import type { FailureLimit } from '../failures.ts'
import type { Log } from '../log.ts'
import type { Tokens } from '../tokens.ts'
import { type Asked, refusalFor, requestIdOf } from './asking.ts'
import { createAuthenticator } from './auth.ts'
import { docsPage, docsPolicy } from './docs-page.ts'
import { createEventStreams } from './events-stream.ts'
import { type DoorContext, type DoorEnv, header } from './incoming.ts'
import { type ConnectionLimits, type RateLimit, usualLimits, usualRate } from './limits.ts'
import { createMetrics, type Metrics, metricsContentType } from './metrics.ts'
import { openApiDocument } from './openapi.ts'
import { apiPath, compilePlans, type Plan } from './plan.ts'
import { apiHeaders, problemResponse } from './problems.ts'
import { Rates } from './rates.ts'
import { addRestRoutes, type RestOptions } from './rest.ts'
import { type TlsOptions, tlsServer } from './tls.ts'
import { addTrpcRoutes } from './trpc.ts'

export interface DoorOptions {
  readonly backend: Backend
  readonly tokens: Tokens
  readonly log: Log
  readonly audit?: Asked['audit']
  readonly version: string
  /** More facts for /healthz, which answers anybody: what carries the messages, say. Never a secret. */
  readonly health?: () => Record<string, unknown>
  /** `answers`: check every answer against the contract; for tests and development. */
  readonly check?: 'answers' | 'nothing'
  readonly metrics?: Metrics
  readonly failureLimit?: FailureLimit
  /** How often one caller may ask the API; the doors that are mounted beside it have no such limit: thousands of machines ask at once. */
  readonly rateLimit?: RateLimit | 'none' | undefined
  /** Further doors, each with the name /metrics counts it under. They set their own headers and answer their own errors. */
  readonly mount?: readonly { readonly name: string; readonly path: string; readonly app: Hono<DoorEnv> }[]
  /**
   * Paths served beneath the framework, which costs more than many an answer and several times as much for each MiB: large files, and what thousands ask for at once.
   * Whatever begins with `path`; /metrics counts it under `name`.
   */
  readonly beneath?: readonly { readonly name: string; readonly path: string; readonly serve: RequestListener }[]
  readonly keepAliveMs?: number
}

export interface Door {
  readonly app: Hono<DoorEnv>
  /** Ends what would not end by itself: the event streams. */
  readonly close: () => void
}

/** Puts the doors of a server together. Throws when a call is declared without a role, or two at one place. */
export function createDoor(options: DoorOptions): Door {
  const { backend, tokens, log, version, check = 'nothing', metrics = createMetrics() } = options
  const plans = compilePlans()
  const { rateLimit = usualRate } = options
  const asked: Asked = { backend, log, audit: options.audit, check, rates: rateLimit === 'none' ? undefined : new Rates(rateLimit) }
  const listPlan = plans.find(plan => plan.name === 'events.list') as Plan
  const streams = createEventStreams({ ...asked, listPlan, ...(options.keepAliveMs !== undefined && { keepAliveMs: options.keepAliveMs }) })
  const authenticator = createAuthenticator({
    tokens,
    ...(options.failureLimit && { limit: options.failureLimit }),
    onLimit: address => log.warn({ address }, 'an address sent too many wrong tokens; it is refused for a while'),
  })
  const rest: RestOptions = { ...asked, plans, authenticator, metrics, streams }

  const app = new Hono<DoorEnv>()
  addRestRoutes(app, rest)
  addTrpcRoutes(app, rest)
  addDocs(app, plans, version)
  addHealth(app, options, metrics)
  for (const { name, path, app: mounted } of options.mount ?? []) {
    // A counter at the root would stand in the way of every route there is.
    if (path === '/') throw new Error(`mount ${name} at a path of its own, not at /`)
    app.use(`${path}/*`, async (c, next) => {
      const started = performance.now()
      await next()
      metrics.observe(name, c.res.status, (performance.now() - started) / 1000)
    })
    app.route(path, mounted)
  }
  app.notFound(c => nothingThere(c, plans))
  app.onError((error, c) => {
    const requestId = requestIdOf(header(c, 'x-request-id'))
    return problemResponse(refusalFor(error, log, { requestId, call: c.req.path }), requestId)
  })
  return { app, close: () => streams.close() }
}

function addDocs(app: Hono<DoorEnv>, plans: readonly Plan[], version: string): void {
  const document = JSON.stringify(openApiDocument(plans, version))
  const page = docsPage(plans, version)
  app.get(`${apiPath}/openapi.json`, () => new Response(document, { headers: { ...apiHeaders, 'content-type': 'application/json' } }))
  app.get(
    `${apiPath}/docs`,
    () =>
      new Response(page, { headers: { ...apiHeaders, 'content-type': 'text/html; charset=utf-8', 'content-security-policy': docsPolicy } }),
  )
}

const fixedPaths = [`${apiPath}/openapi.json`, `${apiPath}/docs`, '/healthz', '/readyz', '/metrics']

function addHealth(app: Hono<DoorEnv>, { backend, version, health }: DoorOptions, metrics: Metrics): void {
  const startedAt = new Date().toISOString()
  const json = (status: number, content: unknown) =>
    new Response(JSON.stringify(content), { status, headers: { ...apiHeaders, 'content-type': 'application/json' } })
  app.get('/healthz', () => json(200, { ...health?.(), status: 'ok', kind: backend.kind, name: backend.name, version, startedAt }))
  app.get('/readyz', () => {
    const checks = backend.readiness()
    const isReady = checks.every(({ status }) => status === 'ok')
    return json(isReady ? 200 : 503, { status: isReady ? 'ready' : 'not-ready', checks })
  })
  app.get('/metrics', async () => new Response(await metrics.page(), { headers: { ...apiHeaders, 'content-type': metricsContentType } }))
}

/** Nothing is served there: either not at all, or not with that method. */
function nothingThere(c: DoorContext, plans: readonly Plan[]): Response {
  const { path, method } = c.req
  const requestId = requestIdOf(header(c, 'x-request-id'))
  const allowed = new Set<string>(plans.filter(({ pattern }) => pattern.test(path)).map(plan => plan.method))
  if (fixedPaths.includes(path)) allowed.add('GET')
  if (path.startsWith('/trpc/')) for (const known of ['GET', 'POST']) allowed.add(known)
  if (allowed.has('GET')) allowed.add('HEAD')
  if (allowed.size === 0) return problemResponse(new Refusal('not-found', `nothing is served at ${path}`), requestId)
  const allow = [...allowed].sort().join(', ')
  return problemResponse(new Refusal('method-not-allowed', `${path} takes ${allow}, not ${method}`), requestId, { allow })
}

export interface RunningDoor {
  /** `http://127.0.0.1:8080`, with the port that was really taken. */
  readonly url: string
  readonly port: number
  /** `https://…`, where there is HTTPS too. */
  readonly secureUrl: string | undefined
  /** Stops accepting, lets requests under way finish for `drainMs` at most, then cuts them. Idempotent. */
  readonly close: () => Promise<void>
}

/** Node looks so often for heads and requests that are late. */
const lateCheckMs = 5_000

export interface ListenOptions {
  /** 0: any free port. */
  readonly port: number
  /** Default: this machine only. */
  readonly host?: string
  readonly drainMs?: number
  /** HTTPS on a port of its own, beside HTTP. */
  readonly tls?: TlsOptions | undefined
  readonly limits?: Partial<ConnectionLimits>
}

/** Opens a door on a port. Rejects when the port cannot be had. */
export async function startDoor(options: DoorOptions & ListenOptions): Promise<RunningDoor> {
  const { log, port, host = '127.0.0.1', drainMs = 10_000, metrics = createMetrics() } = options
  const limits = { ...usualLimits, ...options.limits }
  const door = createDoor({ ...options, metrics })
  const listener = getRequestListener(door.app.fetch, {
    // Reached only for requests that never became one: a Host header or a path that is no URL.
    errorHandler: error =>
      problemResponse(new Refusal('malformed', `the request cannot be read: ${(error as Error).message}`), requestIdOf(undefined)),
  })
  const serverOptions = {
    headersTimeout: limits.headMs,
    requestTimeout: limits.requestMs,
    connectionsCheckingInterval: Math.min(lateCheckMs, limits.headMs),
    // Longer than the 60 s after which common load balancers drop an idle connection, so that it is they who close it.
    keepAliveTimeout: 65_000,
    noDelay: true,
  }
  const serve: RequestListener = (incoming, outgoing) => {
    endUnread(outgoing, limits.unreadMs, log)
    const beneath = options.beneath?.find(({ path }) => incoming.url?.startsWith(path))
    if (!beneath) return void listener(incoming, outgoing)
    const started = performance.now()
    outgoing.once('close', () => metrics.observe(beneath.name, outgoing.statusCode, (performance.now() - started) / 1000))
    beneath.serve(incoming, outgoing)
  }
  const server = createServer(serverOptions, serve)
  const { tls } = options
  const secure = tls && (await tlsServer(tls, serverOptions, serve, log))
  for (const each of secure ? [server, secure] : [server]) limitConnections(each, limits.connections, log)
  const actual = await listen(server, port, host)
  const shownHost = host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host.includes(':') ? `[${host}]` : host
  const url = `http://${shownHost}:${actual}`
  let secureUrl: string | undefined
  if (secure && tls)
    try {
      secureUrl = `https://${shownHost}:${await listen(secure, tls.port, host)}`
    } catch (error) {
      server.close()
      throw error
    }
  log.info({ url, ...(secureUrl && { secureUrl }) }, 'the door is open')
  let closed: Promise<void> | undefined
  return {
    url,
    port: actual,
    secureUrl,
    close: () => {
      closed ??= closeServers(secure ? [server, secure] : [server], door, drainMs, log)
      return closed
    },
  }
}

/** Connections that wait to be taken: all machines of a partition at once. Of more, the kernel drops the greeting, and they come again only after a second. */
const backlog = 4_096

/** Ends the connection where the other end takes nothing of the answer for so long. One that waits for its answer is let be. */
function endUnread(outgoing: ServerResponse, unreadMs: number, log: Log): void {
  // With a listener of the answer's own Node leaves the connection to it.
  outgoing.setTimeout(unreadMs, () => {
    const { socket } = outgoing
    if (!socket || socket.writableLength === 0) return
    log.debug({ address: socket.remoteAddress, unreadBytes: socket.writableLength }, 'an answer is not taken; its connection is ended')
    outgoing.destroy()
  })
}

const toldApartMs = 60_000

function limitConnections(server: Server | SecureServer, most: number, log: Log): void {
  server.maxConnections = most
  let toldAt = Number.NEGATIVE_INFINITY
  server.on('drop', () => {
    if (performance.now() - toldAt < toldApartMs) return
    toldAt = performance.now()
    log.warn({ connections: most }, 'more connections came than are taken; they are closed')
  })
}

function listen(server: Server | SecureServer, port: number, host: string): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once('error', cause => reject(new Error(`listen on ${host}:${port}: ${cause.message}`, { cause })))
    server.listen({ port, host, backlog }, () => resolve((server.address() as AddressInfo).port))
  })
}

async function closeServers(servers: readonly (Server | SecureServer)[], door: Door, drainMs: number, log: Log): Promise<void> {
  const ended = Promise.all(servers.map(server => new Promise<void>(resolve => server.close(() => resolve()))))
  door.close()
  const limit = AbortSignal.timeout(drainMs)
  let isOpen = true
  void ended.then(() => {
    isOpen = false
  })
  // Node closes the connections that are idle now; one whose request ends later would idle on until its keep-alive runs out.
  while (isOpen && !limit.aborted) {
    for (const server of servers) server.closeIdleConnections()
    await Promise.race([ended, sleep(50)])
  }
  if (isOpen) {
    log.warn({ drainMs }, 'requests were still under way when the door closed; they are cut')
    for (const server of servers) server.closeAllConnections()
  }
  await ended
}
