/** A PDU with an SNMP agent on a real UDP socket, of any of the makers the driver knows; a test may put words in its mouth. */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { type Maker, type MakerName, makers } from '../src/snmp/makers.ts'
import { decodeMessage, encodeMessage, type SnmpMessage } from '../src/snmp/message.ts'

export interface FakePdu extends AsyncDisposable {
  address: string
  /** Numbers each object reads, by object identifier. */
  objects: Map<string, number>
  /** Datagrams that came, in order. */
  received: Buffer[]
  /** What becomes of a request: the datagrams that answer it, or undefined for the usual answer. */
  script: (request: SnmpMessage, datagram: Buffer) => Buffer[] | undefined
  power(index: string): 'on' | 'off'
}

export const community = 'write-me'

/** Outlets with these indices, all off. */
export async function startPdu(name: MakerName, indices: readonly string[]): Promise<FakePdu> {
  const maker: Maker = makers[name]
  const objects = new Map<string, number>()
  const [off] = maker.state.off as [number]
  const [on] = maker.state.on as [number]
  for (const index of indices) {
    for (const [oid] of [maker.on, maker.off, maker.cycle]) objects.set(`${oid}.${index}`, -1)
    objects.set(`${maker.state.oid}.${index}`, off)
  }
  const socket = createSocket('udp4')
  socket.bind(0, '127.0.0.1')
  await once(socket, 'listening')
  const pdu: FakePdu = {
    address: `127.0.0.1:${socket.address().port}`,
    objects,
    received: [],
    script: () => undefined,
    power: index => (objects.get(`${maker.state.oid}.${index}`) === on ? 'on' : 'off'),
    [Symbol.asyncDispose]: async () => void socket.close(),
  }
  socket.on('message', (datagram, { port }) => {
    pdu.received.push(datagram)
    const request = decodeMessage(datagram)
    // Real agents do not answer a wrong community.
    if (request.community.toString() !== community) return
    for (const answer of pdu.script(request, datagram) ?? [encodeMessage(usualAnswer(request))]) socket.send(answer, port, '127.0.0.1')
  })

  const usualAnswer = (request: SnmpMessage): SnmpMessage => {
    const [binding] = request.bindings
    const response: SnmpMessage = { ...request, type: 'response' }
    if (!binding || !objects.has(binding.oid)) {
      if (request.version === '2c' && request.type === 'get') {
        return { ...response, bindings: request.bindings.map(({ oid }) => ({ oid, value: { type: 'absent' } })) }
      }
      return { ...response, errorStatus: 2, errorIndex: 1 }
    }
    if (request.type === 'set' && binding.value.type === 'integer') switchOutlet(binding.oid, binding.value.value)
    return { ...response, bindings: [{ oid: binding.oid, value: { type: 'integer', value: objects.get(binding.oid) ?? 0 } }] }
  }

  const switchOutlet = (oid: string, value: number) => {
    objects.set(oid, value)
    for (const [order, becomes] of [
      [maker.on, on],
      [maker.off, off],
      [maker.cycle, on],
    ] as const) {
      if (oid.startsWith(`${order[0]}.`) && order[1] === value) objects.set(maker.state.oid + oid.slice(order[0].length), becomes)
    }
  }
  return pdu
}
