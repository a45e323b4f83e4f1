// Asking a network who offers addresses there.
import { randomBytes, randomInt } from 'node:crypto'
import { createSocket, type Socket } from 'node:dgram'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { encodeDiscover, type Offer, parseOffer } from './dhcp.ts'

/** A busy server, or one that first looks whether an address is in use, is late; a question may be lost. */
const askAtMs = [0, 1_000, 2_000]
/** More are a flood, not servers. */
const mostOffers = 100

/**
 * Asks by the interface with this address of our own, and answers what was offered within `waitMs`, one offer per server. Throws what the system says
 * where port 68 cannot be had: EACCES without root, EADDRINUSE where a DHCP client has it for itself.
 */
export async function discover({ own, waitMs, signal }: { own: string; waitMs: number; signal: AbortSignal }): Promise<Offer[]> {
  const transaction = randomInt(2 ** 32 - 1)
  // Locally administered, and nobody's: no server has a lease for it.
  const mac = randomBytes(6)
  mac[0] = 0x02
  const offers = new Map<string, Offer>()
  // Broadcasts come only to a socket without an address, and leave by the interface of the address that a socket has.
  const [ear, mouth] = [createSocket({ type: 'udp4', reuseAddr: true }), createSocket({ type: 'udp4', reuseAddr: true })]
  try {
    ear.on('message', (message, { address: from }) => {
      const offer = parseOffer(message, { transaction, from })
      if (offer && offers.size < mostOffers) offers.set(`${offer.server} ${offer.from}`, offer)
    })
    await opened(ear, '0.0.0.0')
    await opened(mouth, own)
    mouth.setBroadcast(true)
    const began = Date.now()
    for (const atMs of askAtMs.filter(ms => ms < waitMs)) {
      await sleep(Math.max(0, began + atMs - Date.now()), undefined, { signal })
      await send(mouth, encodeDiscover({ transaction, mac }))
    }
    await sleep(Math.max(0, began + waitMs - Date.now()), undefined, { signal })
  } finally {
    for (const socket of [ear, mouth]) socket.close()
  }
  return [...offers.values()]
}

const clientPort = 68
const serverPort = 67

async function opened(socket: Socket, address: string): Promise<void> {
  socket.bind(clientPort, address)
  await once(socket, 'listening')
}

function send(socket: Socket, message: Buffer): Promise<void> {
  return new Promise((resolve, reject) => socket.send(message, serverPort, '255.255.255.255', error => (error ? reject(error) : resolve())))
}
