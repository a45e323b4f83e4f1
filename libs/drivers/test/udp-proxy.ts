/** A UDP path between a console and a BMC that one can hurt: each datagram passes a function that says what becomes of it. */
import { createSocket, type Socket } from 'node:dgram'
import { once } from 'node:events'

export type Direction = 'to BMC' | 'to console'

/** What becomes of a datagram: the datagrams to deliver, each after so many milliseconds. None: it is lost. */
export type Path = (datagram: Buffer, direction: Direction) => { datagram: Buffer; afterMs: number }[]

export interface UdpProxy extends AsyncDisposable {
  port: number
  /** Replaceable at any time. */
  path: Path
}

export const cleanPath: Path = datagram => [{ datagram, afterMs: 0 }]

export async function startUdpProxy(bmcPort: number): Promise<UdpProxy> {
  const front = createSocket('udp4')
  front.bind(0, '127.0.0.1')
  await once(front, 'listening')
  /** One socket to the BMC per console port, so that the BMC sees different consoles as different. */
  const backs = new Map<number, Socket>()
  const timers = new Set<NodeJS.Timeout>()

  const proxy: UdpProxy = {
    port: front.address().port,
    path: cleanPath,
    [Symbol.asyncDispose]: async () => {
      for (const timer of timers) clearTimeout(timer)
      for (const socket of [front, ...backs.values()]) socket.close()
    },
  }

  const deliver = (datagram: Buffer, direction: Direction, send: (datagram: Buffer) => void) => {
    for (const { datagram: bytes, afterMs } of proxy.path(datagram, direction)) {
      if (afterMs === 0) {
        send(bytes)
        continue
      }
      const timer = setTimeout(() => {
        timers.delete(timer)
        send(bytes)
      }, afterMs)
      timers.add(timer)
    }
  }

  const backFor = (consolePort: number): Socket => {
    const known = backs.get(consolePort)
    if (known) return known
    const back = createSocket('udp4')
    backs.set(consolePort, back)
    back.on('message', reply => deliver(reply, 'to console', bytes => front.send(bytes, consolePort, '127.0.0.1')))
    return back
  }

  front.on('message', (datagram, { port }) => {
    const back = backFor(port)
    deliver(datagram, 'to BMC', bytes => back.send(bytes, bmcPort, '127.0.0.1'))
  })
  return proxy
}
