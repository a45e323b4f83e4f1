// Network boot of firmware as far as DHCP goes (RFC 2131, PXE 2.1): asks for an address and a boot file, and then at port 4011 as PXE of UEFI does. A
// program of its own, because it runs in a name space. Prints { offers, boot }.
import { randomInt } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'

const [mac = '', arch = '', how = '', own = '', bootServer = ''] = process.argv.slice(2)
const hardware = Buffer.from(mac.replaceAll(':', ''), 'hex')
const transaction = randomInt(2 ** 32 - 1)
const isHttp = Number(arch) === 16
/** dnsmasq looks for 3 s whether an address that it offers is in use. */
const offersMs = 4_500

const option = (number: number, value: Iterable<number> | Buffer) => {
  const bytes = Buffer.from([...value])
  return Buffer.concat([Buffer.from([number, bytes.length]), bytes])
}

/** `item`: the entry of a menu that is chosen. */
function message(type: number, from: string, item: number | null = null): Buffer {
  const fixed = Buffer.alloc(240)
  fixed.set([1, 1, 6, 0])
  fixed.writeUInt32BE(transaction, 4)
  fixed.writeUInt16BE(0x8000, 10)
  fixed.set(from.split('.').map(Number), 12)
  fixed.set(hardware, 28)
  fixed.set([99, 130, 83, 99], 236)
  return Buffer.concat([
    fixed,
    option(53, [type]),
    option(55, [1, 3, 43, 54, 60, 66, 67]),
    option(60, Buffer.from(`${isHttp ? 'HTTPClient' : 'PXEClient'}:Arch:${arch.padStart(5, '0')}:UNDI:003016`)),
    option(93, [0, Number(arch)]),
    option(94, [1, 3, 16]),
    option(97, [0, ...Array(10).fill(0), ...hardware]),
    ...(how === 'as iPXE' ? [option(175, [0xb0, 1, 1])] : []),
    ...(item === null ? [] : [option(43, [71, 4, item >>> 8, item & 255, 0, 0, 255])]),
    Buffer.from([255]),
  ])
}

function optionsIn(bytes: Buffer): Map<number, Buffer> {
  const options = new Map<number, Buffer>()
  for (let at = 0; at < bytes.length && bytes[at] !== 255; ) {
    const length = bytes[at + 1] as number
    if (bytes[at] !== 0) options.set(bytes[at] as number, bytes.subarray(at + 2, at + 2 + length))
    at += bytes[at] === 0 ? 1 : 2 + length
  }
  return options
}

function answerIn(bytes: Buffer) {
  const options = optionsIn(bytes.subarray(240))
  const menu = optionsIn(options.get(43) ?? Buffer.alloc(0)).get(9)
  const text = (found: Buffer | undefined) => found?.toString('latin1').replace(/\0.*$/s, '')
  return {
    server: [...(options.get(54) ?? [])].join('.'),
    address: [...bytes.subarray(16, 20)].join('.'),
    file: text(options.get(67) ?? bytes.subarray(108, 236)) ?? '',
    vendorClass: text(options.get(60)) ?? null,
    /** Its first entry. */
    item: menu ? menu.readUInt16BE(0) : null,
  }
}

// Broadcasts come only to a socket without an address, and leave by the interface of the address that a socket has.
const [ear, mouth] = [createSocket({ type: 'udp4', reuseAddr: true }), createSocket({ type: 'udp4', reuseAddr: true })]
let heard: ReturnType<typeof answerIn>[] = []
for (const socket of [ear, mouth])
  socket.on('message', bytes => {
    if (bytes.readUInt32BE(4) === transaction) heard.push(answerIn(bytes))
  })
ear.bind(68, '0.0.0.0')
await once(ear, 'listening')
mouth.bind(68, own)
await once(mouth, 'listening')
mouth.setBroadcast(true)
mouth.send(message(1, '0.0.0.0'), 67, '255.255.255.255')
for (const end = Date.now() + offersMs; heard.length < 2 && Date.now() < end; ) await sleep(20)
const offers = heard
heard = []
if (!isHttp) {
  mouth.send(message(3, own, offers.find(({ item }) => item !== null)?.item ?? null), 4011, bootServer)
  for (const end = Date.now() + 3_000; heard.length === 0 && Date.now() < end; ) await sleep(20)
}
process.stdout.write(JSON.stringify({ offers, boot: heard[0] ?? null }))
for (const socket of [ear, mouth]) socket.close()
