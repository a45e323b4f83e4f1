// A helper that reads the power of many BMCs: with our driver, and as the floor, which does the same cryptography and the same exchange of datagrams
// and nothing else: no packets parsed, no timers, no sessions kept.
import { createCipheriv, createDecipheriv, createHmac, createSecretKey, type KeyObject } from 'node:crypto'
import { createSocket, type Socket } from 'node:dgram'
import { DriverError, type PowerSession } from '@muster/drivers/driver'
import { ipmi } from '@muster/drivers/ipmi'
import { type Extent, repeat, type Slice } from './figures.ts'
import { beHelper } from './helper.ts'

export interface Polled extends Slice {
  /** Errors by kind and what came back. */
  failures: Map<string, number>
}

let open: (() => PowerSession)[] = []
let live: PowerSession[] = []
let sockets: Socket[] = []

const poller = {
  prepare: (options: { addresses: string[]; user: string; password: string; suite: 3 | 17 }): void => {
    const { addresses, ...rest } = options
    open = addresses.map(address => {
      const settings = ipmi.settings.parse({ address, ...rest })
      return () => ipmi.open(settings)
    })
  },

  /** Reads all once, each in a session of its own that is closed again. */
  fresh: (concurrency: number): Promise<Polled> =>
    pollAll(open, concurrency, async make => {
      const session = make()
      try {
        return await session.power()
      } finally {
        await session.close()
      }
    }),

  /** Reads all once in sessions that stay open. */
  live: (concurrency: number): Promise<Polled> => {
    if (live.length === 0) live = open.map(make => make())
    return pollAll(live, concurrency, session => session.power())
  },

  hangUp: async (_: undefined): Promise<void> => {
    await Promise.all(live.map(session => session.close()))
    live = []
  },

  /** The floor of reading `count` BMCs once. */
  floor: async (options: { kind: 'fresh' | 'live'; count: number; concurrency: number; port: number; suite: 3 | 17 }): Promise<Polled> => {
    const { kind, count, concurrency, port, suite } = options
    if (kind === 'live' && sockets.length === 0) sockets = await Promise.all(Array.from({ length: count }, () => connected(port)))
    const act = kind === 'live' ? floorOfLive(suite) : floorOfFresh(suite)
    return pollAll(
      Array.from({ length: count }, (_, index) => index),
      concurrency,
      async index => {
        if (kind === 'live') return act(sockets[index] as Socket)
        const socket = await connected(port)
        await act(socket)
        socket.close()
      },
    )
  },
}

async function pollAll<T>(all: readonly T[], concurrency: number, read: (one: T) => Promise<unknown>): Promise<Polled> {
  const failures: Polled['failures'] = new Map()
  let next = 0
  const extent: Extent = { concurrency, seconds: Number.POSITIVE_INFINITY, count: all.length }
  const slice = await repeat(extent, async () => {
    try {
      await read(all[next++] as T)
    } catch (error) {
      const kind = error instanceof DriverError ? `${error.kind} (${error.got})` : String(error)
      failures.set(kind, (failures.get(kind) ?? 0) + 1)
    }
    return true
  })
  return { ...slice, failures }
}

/** Of the datagrams of a login, by step: Open Session, RAKP 1, RAKP 3. */
const loginBytes = [48, 52, 56] as const
/** What of a sealed command is signed. */
const coveredBytes = 60
const commandBytes = 80

/** One command of a session: encrypted, signed, there and back, verified, decrypted. */
function floorOfLive(suite: 3 | 17) {
  const hash = hashOf(suite)
  const [signing, encryption] = [createSecretKey(Buffer.alloc(20, 1)), createSecretKey(Buffer.alloc(16, 2))] as const
  return (socket: Socket) => command(socket, { hash, signing, encryption })
}

/** A login, a command, and the goodbye. */
function floorOfFresh(suite: 3 | 17) {
  const hash = hashOf(suite)
  const key = Buffer.alloc(20, 3)
  const hashed = Buffer.alloc(64, 4)
  return async (socket: Socket) => {
    for (const bytes of loginBytes) await exchange(socket, Buffer.alloc(bytes))
    // RAKP 2 and 3, RAKP 4, SIK, K1, K2.
    for (let code = 0; code < 6; code++) createHmac(hash, key).update(hashed).digest()
    const keys = { hash, signing: createSecretKey(key), encryption: createSecretKey(key.subarray(0, 16)) }
    await command(socket, keys)
    await command(socket, keys)
  }
}

const hashOf = (suite: 3 | 17) => (suite === 17 ? 'sha256' : 'sha1')

async function command(socket: Socket, { hash, signing, encryption }: { hash: string; signing: KeyObject; encryption: KeyObject }) {
  const iv = Buffer.alloc(16, 5)
  const datagram = Buffer.alloc(commandBytes)
  createCipheriv('aes-128-cbc', encryption, iv).setAutoPadding(false).update(Buffer.alloc(16))
  createHmac(hash, signing).update(datagram.subarray(0, coveredBytes)).digest()
  const reply = await exchange(socket, datagram)
  createHmac(hash, signing).update(reply.subarray(0, coveredBytes)).digest()
  createDecipheriv('aes-128-cbc', encryption, iv).setAutoPadding(false).update(reply.subarray(0, 16))
}

function exchange(socket: Socket, datagram: Buffer): Promise<Buffer> {
  return new Promise(resolve => {
    socket.once('message', resolve)
    socket.send(datagram)
  })
}

function connected(port: number): Promise<Socket> {
  const socket = createSocket('udp4')
  return new Promise((resolve, reject) => {
    socket.once('error', reject)
    socket.connect(port, '127.0.0.1', () => {
      socket.off('error', reject)
      resolve(socket)
    })
  })
}

export type PowerPoller = typeof poller
beHelper<PowerPoller>(poller, async () => {
  await poller.hangUp(undefined)
  for (const socket of sockets) socket.close()
})
