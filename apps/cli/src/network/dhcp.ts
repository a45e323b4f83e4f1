// DHCP as far as asking who offers needs it: one message out, one kind of message in (RFC 2131, 2132, 4578). Pure.
import { z } from 'zod'

/** What a server said to a question. */
export interface Offer {
  /** By its own word (option 54), else by where the answer came from. */
  server: string
  /** Where the answer came from: a relay, or the server. */
  from: string
  /** Offered; null: none, as from a server that only says what to boot. */
  address: string | null
  /** What it would have the machine boot. */
  bootFile: string | null
}

const magic = Buffer.from([99, 130, 83, 99])
/** Where options begin: behind the fixed fields, the names of server and file, and the magic number. */
const optionsAt = 240
const code = {
  hostName: 12,
  messageType: 53,
  server: 54,
  parameters: 55,
  vendorClass: 60,
  bootFile: 67,
  arch: 93,
  uuid: 97,
  end: 255,
} as const
const types = { discover: 1, offer: 2 } as const

/** A question as a UEFI machine asks it, so that servers that serve network boot only speak too. `transaction`: 32 bits. `mac`: six bytes. */
export function encodeDiscover({ transaction, mac }: { transaction: number; mac: Uint8Array }): Buffer {
  const message = Buffer.alloc(optionsAt)
  message.set([1, 1, 6, 0])
  message.writeUInt32BE(transaction, 4)
  // Answers are to be broadcast: nobody has the address that is offered.
  message.writeUInt16BE(0x8000, 10)
  message.set(mac, 28)
  message.set(magic, optionsAt - magic.length)
  return Buffer.concat([
    message,
    option(code.messageType, [types.discover]),
    option(code.parameters, [1, 3, 6, 12, 15, 43, 54, 60, 66, 67]),
    option(code.vendorClass, Buffer.from('PXEClient:Arch:00007:UNDI:003016')),
    option(code.arch, [0, 7]),
    option(94, [1, 3, 16]),
    option(code.uuid, [0, ...Array(10).fill(0), ...mac]),
    Buffer.from([code.end]),
  ])
}

const option = (number: number, value: ArrayLike<number>) =>
  Buffer.concat([Buffer.from([number, value.length]), Buffer.from(Array.from(value))])

/** The offer in a message, or undefined where it is none for this question, or is broken. */
export function parseOffer(message: Buffer, { transaction, from }: { transaction: number; from: string }): Offer | undefined {
  if (message.length < optionsAt || message[0] !== 2 || message.readUInt32BE(4) !== transaction) return undefined
  if (!message.subarray(optionsAt - magic.length, optionsAt).equals(magic)) return undefined
  const options = optionsOf(message)
  if (options.get(code.messageType)?.[0] !== types.offer) return undefined
  const offered = addressAt(message.subarray(16, 20))
  const file = textOf(options.get(code.bootFile) ?? message.subarray(108, 236))
  return {
    server: addressAt(options.get(code.server) ?? Buffer.alloc(0)) ?? from,
    from,
    address: offered === '0.0.0.0' ? null : (offered ?? null),
    bootFile: file === '' ? null : file,
  }
}

/** Options by number; what is cut off at the end is left out. */
function optionsOf(message: Buffer): Map<number, Buffer> {
  const options = new Map<number, Buffer>()
  for (let at = optionsAt; at < message.length && message[at] !== code.end; ) {
    const number = message[at] as number
    const length = message[at + 1]
    // Padding has no length.
    if (number === 0) at++
    else if (length === undefined || at + 2 + length > message.length) break
    else {
      options.set(number, message.subarray(at + 2, at + 2 + length))
      at += 2 + length
    }
  }
  return options
}

function addressAt(bytes: Buffer): string | undefined {
  const text = [...bytes].join('.')
  return z.ipv4().safeParse(text).success ? text : undefined
}

/** Up to the first NUL, which pads. */
function textOf(bytes: Buffer): string {
  const end = bytes.indexOf(0)
  return bytes.subarray(0, end < 0 ? bytes.length : end).toString('latin1')
}
