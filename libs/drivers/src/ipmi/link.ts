/**
 * A connected UDP socket to one BMC. Connected, because only then a closed port is reported (ECONNREFUSED within a millisecond), and
 * because datagrams of others never reach us. One wait at a time: a BMC gets one question at a time. What comes unasked, such as a console's
 * characters, goes to a listener.
 */
import { createSocket, type Socket } from 'node:dgram'
import { lookup } from 'node:dns/promises'
import { isIP } from 'node:net'
import { cancelled, Failure } from '../failure.ts'
import { type BmcAddress, printBmcAddress } from './address.ts'

/** Nothing listens on the BMC's port: its network stack said so. */
export class PortClosed extends Error {
  override readonly name = 'PortClosed'
}

/** The BMC's host name is looked up within this limit; resolvers hang for tens of seconds by themselves. */
const lookupMs = 5000

export class Link implements Disposable {
  readonly #socket: Socket
  readonly #address: BmcAddress
  #wait: { deliver: (datagram: Buffer) => 'taken' | 'not mine'; fail: (error: Error) => void } | undefined
  #listener: { hear: (datagram: Buffer) => void; lost: (error: Error) => void } | undefined

  private constructor(socket: Socket, address: BmcAddress) {
    this.#socket = socket
    this.#address = address
    socket.on('message', datagram => {
      if (this.#wait?.deliver(datagram) !== 'taken') this.#listener?.hear(datagram)
    })
    // An error between two waits belongs to a datagram nobody waits for any more, such as Close Session; a listener may still want to know.
    socket.on('error', error => (this.#wait?.fail ?? this.#listener?.lost)?.(this.#explain(error)))
  }

  /** Resolves the host and connects; no datagram is sent. Throws Failure `silent` if the name or the route is not known. */
  static async open(address: BmcAddress, signal: AbortSignal): Promise<Link> {
    if (signal.aborted) throw cancelled('none')
    const { host, family } = await resolve(address.host, signal)
    const socket = createSocket(family === 6 ? 'udp6' : 'udp4')
    try {
      await new Promise<void>((connected, fail) => {
        socket.once('error', fail)
        socket.connect(address.port, host, () => {
          socket.off('error', fail)
          connected()
        })
      })
    } catch (cause) {
      socket.close()
      throw unreachable(`no route to ${printBmcAddress(address)} (${codeOf(cause)})`, cause)
    }
    return new Link(socket, address)
  }

  /** Hands over every datagram that no wait takes, and errors that meet no wait. One listener. */
  listen(listener: { hear: (datagram: Buffer) => void; lost: (error: Error) => void }): void {
    this.#listener = listener
  }

  /** Sends without waiting for anything. */
  send(datagram: Buffer): void {
    this.#socket.send(datagram)
  }

  /**
   * Sends (or, without a datagram, only listens), and gives the first datagram that `accept` makes something of, or undefined after `waitMs`. Throws PortClosed when nothing
   * listens, Failure `silent` when the network refuses, `cancelled` when the signal fires.
   */
  exchange<T>(
    datagram: Buffer | undefined,
    options: { accept: (datagram: Buffer) => T | undefined; waitMs: number; signal: AbortSignal },
  ): Promise<T | undefined> {
    const { accept, waitMs, signal } = options
    if (signal.aborted) return Promise.reject(cancelled('none'))
    return new Promise((resolve, reject) => {
      const end = () => {
        clearTimeout(timer)
        signal.removeEventListener('abort', abort)
        this.#wait = undefined
      }
      const fail = (error: Error) => {
        end()
        reject(error)
      }
      const abort = () => fail(cancelled('unknown'))
      const timer = setTimeout(() => {
        end()
        resolve(undefined)
      }, waitMs)
      signal.addEventListener('abort', abort, { once: true })
      this.#wait = {
        fail,
        deliver: datagram => {
          const accepted = accept(datagram)
          if (accepted === undefined) return 'not mine'
          end()
          resolve(accepted)
          return 'taken'
        },
      }
      if (datagram) this.#socket.send(datagram)
    })
  }

  [Symbol.dispose](): void {
    this.#listener = undefined
    this.#wait?.fail(cancelled('unknown'))
    this.#socket.close()
  }

  #explain(error: Error): Error {
    if (codeOf(error) === 'ECONNREFUSED') return new PortClosed(`UDP port ${this.#address.port} is closed`)
    return unreachable(`the network refused the packet (${codeOf(error)})`, error)
  }
}

function unreachable(got: string, cause: unknown): Failure {
  return new Failure({
    kind: 'silent',
    got,
    hint: 'Check the BMC address and the route from this partition to the management network.',
    cause,
  })
}

function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : String(error)
}

async function resolve(host: string, signal: AbortSignal): Promise<{ host: string; family: number }> {
  const literal = isIP(host)
  if (literal) return { host, family: literal }
  const { promise, reject } = Promise.withResolvers<never>()
  const unknown = (got: string, cause?: unknown) =>
    new Failure({ kind: 'silent', got, hint: 'Check the BMC host name and the DNS servers.', cause })
  const abort = () => reject(cancelled('none'))
  const timer = setTimeout(() => reject(unknown(`the name ${host} was not resolved within ${lookupMs} ms`)), lookupMs)
  signal.addEventListener('abort', abort, { once: true })
  try {
    const found = await Promise.race([lookup(host), promise])
    return { host: found.address, family: found.family }
  } catch (error) {
    throw error instanceof Failure ? error : unknown(`the name ${host} cannot be resolved (${codeOf(error)})`, error)
  } finally {
    clearTimeout(timer)
    signal.removeEventListener('abort', abort)
  }
}
