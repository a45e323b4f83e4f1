/**
 * The one connection to a Redfish service: kept alive, one request at a time, nothing sent before the other end has proven who it is. node:http over
 * a socket of our own making, because neither fetch nor node:https tells the fingerprint of a certificate it refuses, and both may
 * write the request before a late check of ours could stop it.
 */
import http, { type IncomingMessage } from 'node:http'
import net, { isIP, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import tls, { type TLSSocket } from 'node:tls'
import { promisify } from 'node:util'
import { gunzip } from 'node:zlib'
import type { DriverErrorKind } from '../driver.ts'
import { cancelled, Failure } from '../failure.ts'
import { hostHeader, origin, type ServiceAddress } from './address.ts'
import type { Answer, JsonObject } from './answer.ts'
import type { Timers } from './timers.ts'

export interface ConnectionOptions {
  address: ServiceAddress
  /** `verify` by the CAs, or the SHA-256 of the certificate as 64 hex digits. */
  certificate: string
  /** PEM, instead of the CAs Node knows. */
  ca?: string | undefined
  tls: 'modern' | 'legacy'
  timers: Timers
}

export interface Request {
  method: 'GET' | 'POST' | 'PATCH' | 'DELETE'
  /** From the root of the service's origin. */
  path: string
  headers?: Readonly<Record<string, string>>
  body?: JsonObject | undefined
}

/** The service closed or reset the connection before the answer was whole. */
export class ConnectionLost extends Failure {}

/** A computer system is some 10 KiB, a large collection 200 KiB: this is a bound against nonsense. */
const bodyBytesMax = 2 * 1024 * 1024

const unzip = promisify(gunzip)

export class Connection {
  readonly #options: ConnectionOptions
  readonly #agent: http.Agent
  readonly #sockets = new Set<Socket>()

  constructor(options: ConnectionOptions) {
    this.#options = options
    this.#agent = new http.Agent({ keepAlive: true, maxSockets: 1, timeout: options.timers.socketIdleMs })
    this.#agent.createConnection = (_options, done) => {
      this.#connect().then(
        socket => done?.(null, socket),
        // The stream's type has no room for "none", though none is read after an error.
        error => done?.(error, undefined as unknown as Duplex),
      )
      return undefined
    }
  }

  /**
   * Sends one request and gives its answer, whatever the status. Throws Failure: `silent` where nothing came, `authentication` where the certificate
   * is not trusted, `protocol` where the answer is no JSON object, `cancelled`; ConnectionLost is one of `silent`.
   */
  async exchange(request: Request, { signal, limitMs }: { signal: AbortSignal; limitMs: number }): Promise<Answer> {
    const body = request.body === undefined ? undefined : Buffer.from(JSON.stringify(request.body))
    const { promise: answered, resolve, reject } = Promise.withResolvers<IncomingMessage>()
    const limit = AbortSignal.timeout(limitMs)
    const progress: { isSent: boolean } = { isSent: false }
    const outgoing = http.request({
      agent: this.#agent,
      method: request.method,
      path: request.path,
      signal: AbortSignal.any([signal, limit]),
      headers: {
        Host: hostHeader(this.#options.address),
        Accept: 'application/json',
        // Compression makes ETags weak.
        'Accept-Encoding': 'identity',
        'OData-Version': '4.0',
        'User-Agent': 'muster',
        ...(body && { 'Content-Type': 'application/json' }),
        ...(request.method !== 'GET' && { 'Content-Length': `${body?.length ?? 0}` }),
        ...request.headers,
      },
    })
    outgoing.on('response', resolve)
    outgoing.on('error', reject)
    outgoing.on('socket', () => {
      progress.isSent = true
    })
    outgoing.end(body)
    try {
      const incoming = await answered
      return { status: incoming.statusCode ?? 0, headers: plainHeaders(incoming), body: await readBody(incoming) }
    } catch (error) {
      outgoing.destroy()
      const outcome = progress.isSent && request.method !== 'GET' ? 'unknown' : 'none'
      if (signal.aborted) throw cancelled(outcome)
      if (limit.aborted) throw silent(`no answer to ${request.method} ${request.path} within ${limitMs / 1000} s`, outcome, error)
      if (error instanceof Failure) throw error.facts.outcome === undefined ? new Failure({ ...error.facts, outcome }) : error
      throw explained(error, outcome)
    }
  }

  /** Closes everything at once; requests in flight fail. */
  destroy(): void {
    this.#agent.destroy()
    for (const socket of this.#sockets) socket.destroy()
  }

  async #connect(): Promise<Socket> {
    const { address, timers } = this.#options
    const socket = address.protocol === 'https' ? this.#openTls() : net.connect({ host: address.host, port: address.port })
    socket.setNoDelay(true)
    this.#sockets.add(socket)
    socket.once('close', () => this.#sockets.delete(socket))
    const { promise: ready, resolve, reject } = Promise.withResolvers<void>()
    const timer = setTimeout(
      () => reject(silent(`no connection to ${origin(address)} within ${timers.connectMs / 1000} s`, 'none')),
      timers.connectMs,
    )
    socket.once(address.protocol === 'https' ? 'secureConnect' : 'connect', resolve)
    socket.once('error', reject)
    socket.once('close', () => reject(lostInHandshake()))
    try {
      await ready
      if (address.protocol === 'https') this.#checkCertificate(socket as TLSSocket)
      return socket
    } catch (error) {
      socket.destroy()
      throw error instanceof Failure ? error : notConnected(error, this.#options)
    } finally {
      clearTimeout(timer)
    }
  }

  #openTls(): TLSSocket {
    const { address, ca } = this.#options
    return tls.connect({
      host: address.host,
      port: address.port,
      ...(!isIP(address.host) && { servername: address.host }),
      // Judged in #checkCertificate, before a byte of ours is written.
      rejectUnauthorized: false,
      ...(ca !== undefined && { ca }),
      // What BMCs of the last decade speak: TLS 1.0 or 1.1, SHA-1 and short keys, which OpenSSL 3 leaves out from level 1 up.
      ...(this.#options.tls === 'legacy' && { minVersion: 'TLSv1' as const, ciphers: 'DEFAULT@SECLEVEL=0' }),
    })
  }

  #checkCertificate(socket: TLSSocket): void {
    const { certificate, ca } = this.#options
    const shown = socket.getPeerX509Certificate()?.fingerprint256 ?? ''
    if (certificate !== 'verify') {
      if (plainFingerprint(shown) === plainFingerprint(certificate)) return
      throw new Failure({
        kind: 'authentication',
        outcome: 'none',
        got: `the certificate shown has SHA-256 fingerprint ${shown}, and another one is pinned`,
        hint: `Somebody may be in between, or the BMC got a new certificate. Only if you know that it did, set \`certificate\` to ${shown}.`,
      })
    }
    if (socket.authorized) return
    throw new Failure({
      kind: 'authentication',
      outcome: 'none',
      got: `the certificate does not verify (${socket.authorizationError ?? 'unknown reason'}); its SHA-256 fingerprint is ${shown}`,
      hint: `If this is the BMC's own certificate, approve it: set \`certificate\` to ${shown}. ${
        ca === undefined ? 'Or give the CA that signed it as `ca`.' : 'The `ca` given did not sign it, or for another name.'
      } Nothing was sent, the password neither.`,
    })
  }
}

/** A fingerprint without colons, in small letters. */
export function plainFingerprint(text: string): string {
  return text
    .replace(/^sha-?256[:=]/i, '')
    .replaceAll(':', '')
    .toLowerCase()
}

function plainHeaders(incoming: IncomingMessage): Record<string, string> {
  return Object.fromEntries(
    Object.entries(incoming.headers).map(([name, value]) => [name, Array.isArray(value) ? (value[0] ?? '') : (value ?? '')]),
  )
}

async function readBody(incoming: IncomingMessage): Promise<JsonObject> {
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of incoming as AsyncIterable<Buffer>) {
    bytes += chunk.length
    if (bytes > bodyBytesMax) throw tooLarge()
    chunks.push(chunk)
  }
  const raw = Buffer.concat(chunks)
  // Some services compress whatever they are asked (iLO).
  const plain = incoming.headers['content-encoding'] === 'gzip' && raw.length > 0 ? await unzipped(raw) : raw
  return parseBody(plain.toString('utf8'), incoming)
}

async function unzipped(raw: Buffer): Promise<Buffer> {
  try {
    return await unzip(raw, { maxOutputLength: bodyBytesMax })
  } catch (cause) {
    throw unreadable('its compressed body cannot be read', cause)
  }
}

function parseBody(text: string, incoming: IncomingMessage): JsonObject {
  if (text.trim() === '') return {}
  try {
    const parsed: unknown = JSON.parse(text)
    if (typeof parsed === 'object' && parsed !== null && !Array.isArray(parsed)) return parsed as JsonObject
  } catch (cause) {
    // Services and web servers in front of them also answer errors with plain words (AMI) or pages.
    if ((incoming.statusCode ?? 0) >= 400) return text.trimStart().startsWith('<') ? {} : { error: { message: text.slice(0, 300) } }
    throw unreadable(`its body is no JSON (${incoming.headers['content-type'] ?? 'no content type'})`, cause)
  }
  throw unreadable('its body is no JSON object', undefined)
}

function tooLarge(): Failure {
  return unreadable(`its body is larger than ${bodyBytesMax / 1024 / 1024} MiB`, undefined)
}

function unreadable(what: string, cause: unknown): Failure {
  return new Failure({
    kind: 'protocol',
    got: `an answer came, but ${what}`,
    hint: 'Check that the address is that of a BMC with a Redfish service, and that no proxy is in between.',
    cause,
  })
}

function silent(got: string, outcome: 'none' | 'unknown', cause?: unknown): Failure {
  return new Failure({
    kind: 'silent',
    got,
    outcome,
    hint: 'The BMC may be restarting or overloaded, or a firewall drops the packets. Observe the power state before trying again.',
    cause,
  })
}

function lostInHandshake(): Error {
  return Object.assign(new Error('closed by the other end while connecting'), { code: 'ECONNRESET' })
}

/** What an error while connecting means; nothing was sent then. */
function notConnected(error: unknown, { address }: ConnectionOptions): Failure {
  const code = codeOf(error)
  const facts = connectFacts(code, address)
  return new Failure({ ...facts, outcome: 'none', cause: error })
}

function connectFacts(code: string, address: ServiceAddress): { kind: DriverErrorKind; got: string; hint: string } {
  const where = origin(address)
  if (code === 'ECONNREFUSED') {
    return {
      kind: 'silent',
      got: `nothing listens at ${where}`,
      hint: 'Check the port. The web service of the BMC may be off or restarting.',
    }
  }
  if (code === 'ENOTFOUND' || code === 'EAI_AGAIN') {
    return {
      kind: 'silent',
      got: `the name ${address.host} cannot be resolved (${code})`,
      hint: 'Check the BMC host name and the DNS servers.',
    }
  }
  if (/WRONG_VERSION_NUMBER|PACKET_LENGTH/.test(code)) {
    return {
      kind: 'protocol',
      got: `${where} does not speak TLS (${code})`,
      hint: 'If the BMC offers plain HTTP only, write http:// before the address.',
    }
  }
  if (/^E(RR_)?(SSL|TLS|PROTO)|SSL_/.test(code)) {
    return {
      kind: 'protocol',
      got: `no common ground for TLS with ${where} (${code})`,
      hint: 'Old BMCs speak TLS 1.0 or old ciphers only: update the firmware, or set `tls` to legacy in the power settings.',
    }
  }
  return {
    kind: 'silent',
    got: `no connection to ${where} (${code})`,
    hint: 'Check the BMC address and the route from this partition to the management network.',
  }
}

/** What an error on an open connection means. */
function explained(error: unknown, outcome: 'none' | 'unknown'): Failure {
  const code = codeOf(error)
  if (code.startsWith('HPE_')) return new Failure({ ...unreadable(`it is no proper HTTP (${code})`, error).facts, outcome })
  return new ConnectionLost({ ...silent(`the connection was lost before the answer (${code})`, outcome, error).facts })
}

function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : String(error)
}
