/**
 * The Wake-on-LAN driver, for machines without a BMC: a packet on their network turns them on, a program on them turns them off, and a
 * port that answers tells that they are on.
 */
import { createSocket } from 'node:dgram'
import { connect } from 'node:net'
import { z } from 'zod'
import type { PowerDriver, PowerState } from './driver.ts'
import { type Endpoint, endpointOf, endpointSetting } from './endpoint.ts'
import { Failure } from './failure.ts'
import { excerpt, exchange, isHttpUrl, refusal, tlsSettings } from './http.ts'
import { openSwitch, type Turn } from './turns.ts'

const macPattern = /^[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}$/

const settings = z.strictObject({
  macAddress: z
    .string()
    .regex(macPattern, 'not a MAC address: six pairs of hex digits with colons between')
    .describe('MAC address of the interface that listens for the packet while the machine is off'),
  broadcastAddress: z
    .ipv4('not an IPv4 address')
    .default('255.255.255.255')
    .describe(
      'Where the packet goes: the broadcast address of the machine’s network, e.g. 10.0.3.255. The default reaches one network only',
    ),
  port: z.int().min(1).max(65_535).default(9).describe('UDP port of the packet: 9 or 7, rarely another'),
  secureOn: z
    .string()
    .regex(macPattern, 'not a SecureOn password: six pairs of hex digits with colons between')
    .optional()
    .describe('SecureOn password, if the interface asks for one. It is sent readably: no protection against people on that network'),
  probe: endpointSetting()
    .optional()
    .describe(
      'host:port of a TCP service of the machine, such as its SSH port: open means on, no answer means off. Without it the power stays unknown',
    ),
  closedPort: z
    .enum(['on', 'off'])
    .default('on')
    .describe('What it means when the probed port refuses: on, for the machine itself answers so; off, where a gateway answers for it'),
  shutdownUrl: z
    .string()
    .max(2000)
    .refine(isHttpUrl, 'not an http or https address, or one with a user, password or # in it')
    .optional()
    .describe(
      'Address of a program on the machine that shuts it down: gets a POST with {"how":"soft"} or {"how":"hard"}. Without it nothing turns it off',
    ),
  shutdownToken: z
    .string()
    .min(1)
    .max(1000)
    .regex(/^[\x20-\x7e]+$/, 'only printable ASCII characters')
    .optional()
    .describe('Token for shutdownUrl, sent as "Authorization: Bearer …"'),
  ...tlsSettings,
})

type WakeOnLanSettings = z.output<typeof settings>

export interface WakeOnLanOptions {
  /** Wait for the probed port, in milliseconds; asked twice, for a lost packet is no machine that is off. */
  probeMs?: number
}

/** Makes the driver; the options are for tests. */
export function wakeOnLanDriver({ probeMs = 2000 }: WakeOnLanOptions = {}): PowerDriver<typeof settings> {
  return {
    type: 'wake-on-lan',
    title: 'Wake-on-LAN, and a program that shuts down',
    settings,
    secrets: ['secureOn', 'shutdownToken'],
    open(given, context = {}) {
      const power = (turn: Turn) => probed(turn, given, probeMs)
      const orders = {
        power,
        on: (turn: Turn) => wake(turn, given),
        off: async (turn: Turn, how: 'hard' | 'soft') => {
          // A machine that is off has no program to ask.
          if ((await power(turn)) !== 'off') await shutDown(turn, given, how)
        },
      }
      const target = `wake-on-lan ${given.macAddress}`
      // A packet that comes before the machine is off is ignored, and without a probe nobody knows when that is.
      return openSwitch({ target, context, orders: given.probe ? orders : { ...orders, cycle: cannotCycle } })
    },
  }
}

export const wakeOnLan = wakeOnLanDriver()

/** The magic packet: six bytes FF, the MAC address sixteen times, and the SecureOn password if there is one. */
export function magicPacket(macAddress: string, secureOn?: string): Buffer {
  const mac = pairs(macAddress)
  return Buffer.concat([Buffer.alloc(6, 0xff), ...Array<Buffer>(16).fill(mac), ...(secureOn === undefined ? [] : [pairs(secureOn)])])
}

const pairs = (text: string) => Buffer.from(text.replaceAll(/[:-]/g, ''), 'hex')

/** UDP may lose a packet, and nothing answers it. Waking a machine twice does no harm. */
const copies = { count: 3, pauseMs: 100 }

async function wake(turn: Turn, given: WakeOnLanSettings): Promise<void> {
  const packet = magicPacket(given.macAddress, given.secureOn)
  const socket = createSocket('udp4')
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once('error', reject)
      socket.bind(0, resolve)
    }).catch(cannotSend)
    socket.setBroadcast(true)
    for (let copy = 0; copy < copies.count; copy++) {
      if (copy > 0) await turn.pause(copies.pauseMs, 'unknown')
      await new Promise<void>((resolve, reject) => {
        socket.send(packet, given.port, given.broadcastAddress, error => (error ? reject(error) : resolve()))
      }).catch(cannotSend)
    }
  } finally {
    socket.close()
  }
}

function cannotSend(error: NodeJS.ErrnoException): never {
  throw new Failure({
    kind: 'silent',
    got: `the packet could not be sent (${error.code ?? error.message})`,
    hint: 'Check broadcastAddress, and that the partition has an interface or a route to that network.',
    outcome: 'none',
    cause: error,
  })
}

async function shutDown(turn: Turn, given: WakeOnLanSettings, how: 'hard' | 'soft'): Promise<void> {
  if (!given.shutdownUrl) {
    throw new Failure({
      kind: 'unsupported',
      got: 'Wake-on-LAN only turns machines on, and no shutdownUrl is set',
      hint: 'Shut the machine down by hand, set shutdownUrl to a program on it, or put it behind a switched outlet.',
    })
  }
  const answer = await exchange(turn, {
    url: new URL(given.shutdownUrl),
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      ...(given.shutdownToken !== undefined && { authorization: `Bearer ${given.shutdownToken}` }),
    },
    body: JSON.stringify({ how }),
    trust: given,
    purpose: 'order',
  })
  if (answer.status < 200 || answer.status > 299)
    throw refusal(answer, excerpt(answer.body || answer.statusText, [given.shutdownToken]), 'order')
}

async function cannotCycle(): Promise<never> {
  throw new Failure({
    kind: 'unsupported',
    got: 'without a probe nobody sees when the machine is off, and a packet before that is ignored',
    hint: 'Set probe to a TCP service of the machine, e.g. its SSH port.',
  })
}

async function probed(turn: Turn, given: WakeOnLanSettings, probeMs: number): Promise<PowerState> {
  if (!given.probe) return 'unknown'
  const endpoint = endpointOf(given.probe)
  const answer = (await knock(turn, endpoint, probeMs)) ?? (await knock(turn, endpoint, probeMs))
  if (answer === 'refused') return given.closedPort
  return answer === 'open' ? 'on' : 'off'
}

/** What of a failed connection says something about the machine; anything else is a fault on our own side. */
const answersByCode: Readonly<Record<string, 'refused' | undefined>> = {
  ECONNREFUSED: 'refused',
  ECONNRESET: 'refused',
  EHOSTUNREACH: undefined,
  EHOSTDOWN: undefined,
  ETIMEDOUT: undefined,
}

/** Whether the port opens, is refused, or nothing answers (undefined). Throws Failure `silent` where that cannot be known. */
function knock(turn: Turn, { host, port }: Endpoint, limitMs: number): Promise<'open' | 'refused' | undefined> {
  return new Promise((resolve, reject) => {
    if (turn.signal.aborted) return reject(turn.stopped('none'))
    const socket = connect({ host, port })
    const settle = (end: () => void) => {
      clearTimeout(timer)
      turn.signal.removeEventListener('abort', abort)
      socket.destroy()
      end()
    }
    const abort = () => settle(() => reject(turn.stopped('none')))
    const timer = setTimeout(() => settle(() => resolve(undefined)), limitMs)
    turn.signal.addEventListener('abort', abort, { once: true })
    socket.once('connect', () => settle(() => resolve('open')))
    socket.on('error', (error: NodeJS.ErrnoException) => {
      const code = error.code ?? ''
      settle(() => (code in answersByCode ? resolve(answersByCode[code]) : reject(cannotProbe(error))))
    })
  })
}

function cannotProbe(error: NodeJS.ErrnoException): Failure {
  return new Failure({
    kind: 'silent',
    got: `the probe could not be made (${error.code ?? error.message})`,
    hint: 'Check the host of probe, and that the partition has a route to it.',
    cause: error,
  })
}
