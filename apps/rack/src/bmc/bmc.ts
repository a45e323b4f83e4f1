// A BMC on the network: one UDP socket on an address of its own around one Controller, with whatever faults it was given. There is no
// timer and no work while nobody asks: thousands fit in one process.
import { createSocket, type RemoteInfo, type Socket } from 'node:dgram'
import { payloadTypes } from '@muster/drivers/ipmi/codec'
import type { BootOptions } from './boot-options.ts'
import type { BmcIdentity, Chassis } from './command-table.ts'
import { type BmcCounters, Controller, sealed } from './controller.ts'
import { type BmcFaults, drawLatencyMs, noFaults } from './faults.ts'
import type { BmcUser } from './handshake.ts'
import { deadLine, Serial, type SerialLine } from './serial.ts'
import { type SessionLimits, usualSessionLimits } from './sessions.ts'

export type { BmcUser } from './handshake.ts'

export interface BmcOptions {
  /** Where it listens: an IPv4 address of this host (Linux loopback is all of 127/8) and a port; 0 takes a free one. */
  address: string
  port: number
  users: readonly BmcUser[]
  /** A user got another password, which is in its place in `users` already. */
  passwordSet?: (user: BmcUser) => void
  /** K_g, at most 20 bytes. */
  kg?: Buffer | undefined
  /** 16 bytes; every BMC's own. */
  guid: Buffer
  identity?: BmcIdentity
  chassis: Chassis
  bootOptions: BootOptions
  /** What is behind the serial line; nobody where left out. */
  serial?: SerialLine
  faults?: Partial<BmcFaults>
  limits?: SessionLimits
  /** Epoch milliseconds. */
  now?: () => number
  /** 0 to 1, for the faults. */
  random?: () => number
  /** Receives what the socket complains about. */
  log?: (message: string, facts: Readonly<Record<string, string | number>>) => void
}

export interface Bmc extends AsyncDisposable {
  readonly address: string
  readonly port: number
  /** May be changed at any time. */
  readonly faults: BmcFaults
  readonly counters: BmcCounters
  /** Sessions open just now. */
  sessionsOpen(): number
  identify(): 'off' | 'timed' | 'on'
  /** Characters that the machine writes on its serial line, for a console that is open. */
  serialOutput(characters: Buffer): void
  /** Stops listening and forgets datagrams still being worked on. Again is harmless. */
  close(): Promise<void>
}

/** The identity of a BMC that is not there. 0xF0000 and up is no enterprise's number. */
export const virtualIdentity: BmcIdentity = { manufacturer: 0xf0755, product: 1, firmware: { major: 1, minor: 0 } }

/** Starts a BMC. Rejects with the socket's error (EADDRINUSE, EACCES below port 1024 …). */
export async function startBmc(options: BmcOptions): Promise<Bmc> {
  const faults: BmcFaults = { ...noFaults, ...options.faults }
  const now = options.now ?? Date.now
  const random = options.random ?? Math.random
  const log = options.log ?? (() => {})
  const serial = new Serial(options.serial ?? deadLine, (session, payload) => sealed(session, payloadTypes.sol, payload))
  const controller = new Controller({
    serial,
    users: options.users,
    passwordSet: options.passwordSet,
    kg: options.kg,
    guid: options.guid,
    identity: options.identity ?? virtualIdentity,
    chassis: options.chassis,
    bootOptions: options.bootOptions,
    limits: options.limits ?? usualSessionLimits,
  })
  const socket = await listen(options)
  const address = options.address
  const { port } = socket.address()
  serial.port = port
  const waiting = new Set<NodeJS.Timeout>()
  let state: 'listening' | 'closed' = 'listening'
  let lastDueAt = 0

  const happens = (rate: number) => rate > 0 && random() < rate
  const send = (answer: Buffer, to: RemoteInfo) => {
    if (state === 'closed' || happens(faults.dropRate)) return
    // A failed send is a lost datagram to everybody, but the rack's owner should hear of it.
    socket.send(answer, to.port, to.address, error => {
      if (error && state === 'listening') log('BMC could not answer', { address, port, error: error.message })
    })
  }
  const work = (datagram: Buffer, from: RemoteInfo, arrivedMs: number) => {
    const answer = controller.receive(datagram, {
      arrivedMs,
      atMs: now(),
      isBusy: happens(faults.busyRate),
      send: later => send(later, from),
    })
    if (!answer) return
    send(answer, from)
    if (happens(faults.duplicateRate)) send(answer, from)
  }
  socket.on('message', (datagram, from) => {
    if (faults.life === 'silent' || happens(faults.dropRate)) return
    const arrivedMs = now()
    const latencyMs = drawLatencyMs(faults, random)
    if (latencyMs <= 0) return work(datagram, from, arrivedMs)
    // In order of arrival, as one processor would.
    lastDueAt = Math.max(lastDueAt, arrivedMs + latencyMs)
    const timer = setTimeout(() => {
      waiting.delete(timer)
      work(datagram, from, arrivedMs)
    }, lastDueAt - arrivedMs)
    waiting.add(timer)
  })
  socket.on('error', error => log('BMC socket', { address, port, error: error.message }))

  const close = async () => {
    if (state === 'closed') return
    state = 'closed'
    serial.stop()
    for (const timer of waiting) clearTimeout(timer)
    waiting.clear()
    await new Promise<void>(resolve => socket.close(() => resolve()))
  }
  return {
    address,
    port,
    faults,
    get counters() {
      return controller.counters
    },
    sessionsOpen: () => controller.sessionsOpen(now()),
    identify: () => controller.identify(now()),
    serialOutput: characters => serial.write(characters),
    close,
    [Symbol.asyncDispose]: close,
  }
}

async function listen({ address, port }: { address: string; port: number }): Promise<Socket> {
  // Answers go to numeric addresses only: skipping the resolver saves a trip through the event loop for each.
  const socket = createSocket({ type: 'udp4', lookup: (host, _options, callback) => callback(null, host, 4) })
  await new Promise<void>((resolve, reject) => {
    const failed = (error: Error) => {
      socket.close()
      reject(error)
    }
    socket.once('error', failed)
    socket.bind({ address, port, exclusive: true }, () => {
      socket.off('error', failed)
      resolve()
    })
  })
  return socket
}
