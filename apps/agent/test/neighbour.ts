// A switch, as far as it says of itself what it is (LLDP, IEEE 802.1AB 8): frames on a wire made of UDP, twice a second.
import { createSocket } from 'node:dgram'
import { once } from 'node:events'

export interface Neighbour {
  readonly wire: { readonly machine: number; readonly here: number }
  readonly stop: () => void
}

export async function startNeighbour(): Promise<Neighbour> {
  const [socket, other] = [createSocket('udp4'), createSocket('udp4')]
  for (const each of [socket, other]) {
    each.bind(0, '127.0.0.1')
    await once(each, 'listening')
  }
  const [here, machine] = [socket.address().port, other.address().port]
  // Its number is the machine's from now on.
  other.close()
  socket.on('error', () => undefined)
  const timer = setInterval(() => socket.send(frame, machine, '127.0.0.1'), 500)
  const stop = () => {
    clearInterval(timer)
    socket.close()
  }
  return { wire: { machine, here }, stop }
}

/** Type in seven bits, length in nine. */
function tlv(type: number, ...parts: (string | number[])[]): Buffer {
  const value = Buffer.concat(parts.map(part => (typeof part === 'string' ? Buffer.from(part) : Buffer.from(part))))
  const head = Buffer.alloc(2)
  head.writeUInt16BE(type * 512 + value.length)
  return Buffer.concat([head, value])
}

const address = [0x00, 0x11, 0x22, 0x33, 0x44, 0x55]
const frame = Buffer.concat([
  // To the nearest bridge, which passes it to nobody; EtherType LLDP.
  Buffer.from([0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e, ...address, 0x88, 0xcc]),
  // Chassis by MAC address, port by its interface's name, two minutes to live.
  tlv(1, [4, ...address]),
  tlv(2, [5], 'Ethernet1/7'),
  tlv(3, [0, 120]),
  tlv(4, 'to "rack 7"'),
  tlv(5, 'sw-01.lon1'),
  // IEEE 802.1: the port's own VLAN.
  tlv(127, [0x00, 0x80, 0xc2, 1, 0, 42]),
  tlv(0),
])
