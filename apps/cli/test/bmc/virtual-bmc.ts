// A virtual BMC of the rack on real UDP, with a machine behind it that obeys within a moment. The rack's TypeScript project refers to this
// one, so that this one cannot refer to it: its modules are loaded by address, and typed here as far as they are used.
import { randomBytes } from 'node:crypto'
import { createSocket } from 'node:dgram'
import type { AddressInfo } from 'node:net'
import type { Privilege } from '@muster/drivers/ipmi/codec'

type Control = 'off' | 'on' | 'cycle' | 'reset' | 'diagnosticInterrupt' | 'soft'

interface Bmc extends AsyncDisposable {
  readonly port: number
  readonly faults: { latencyMs: number; busyRate: number; life: 'alive' | 'silent' }
  readonly counters: { readonly commands: number; readonly controls: Readonly<Record<Control, number>> }
  sessionsOpen(): number
  identify(): 'off' | 'timed' | 'on'
  serialOutput(characters: Buffer): void
}

const rack = (path: string) => import(new URL(`../../../rack/src/bmc/${path}`, import.meta.url).href)
const { startBmc } = (await rack('bmc.ts')) as { startBmc: (options: object) => Promise<Bmc> }
const { BootOptions } = (await rack('boot-options.ts')) as { BootOptions: new (options: { expiryMs: number }) => object }

export interface VirtualBmc extends AsyncDisposable {
  readonly bmc: Bmc
  /** `ipmi://admin@127.0.0.1:PORT`. */
  url(user?: string): string
  power: 'on' | 'off'
  /** What the machine does with orders: `never` accepts and drops them. */
  obeys: 'within a moment' | 'never'
  /** The power as it was, one entry for every change. */
  readonly history: ('on' | 'off')[]
  /** What was typed on the serial console. */
  typed: string
}

/** How long the machine takes: an order is seen some looks later, and a cycle is off for longer than a look. */
const effectMs = 300
const offMs = 1200

export const password = 'planted-Secret-42'
export const kg = 'planted-kg-\u0000-77'

/** Starts one with an administrator `admin` and a user `reader` who may only look. */
export async function startVirtualBmc(options: { power?: 'on' | 'off'; kg?: Buffer; slots?: number } = {}): Promise<VirtualBmc> {
  const timers = new Set<NodeJS.Timeout>()
  const history: ('on' | 'off')[] = []
  const later = (ms: number, power: 'on' | 'off') => {
    const timer = setTimeout(() => {
      timers.delete(timer)
      if (power !== virtual.power) history.push(power)
      virtual.power = power
    }, ms)
    timers.add(timer)
  }
  const control = (order: Control) => {
    if (virtual.obeys === 'never') return 'accepted'
    if (order === 'on') later(effectMs, 'on')
    if (order === 'off' || order === 'soft') later(effectMs, 'off')
    if (order === 'cycle') {
      later(effectMs, 'off')
      later(effectMs + offMs, 'on')
    }
    return 'accepted'
  }
  const account = (name: string, privilege: Privilege) => ({ name, password, privilege })
  const bmc = await startBmc({
    address: '127.0.0.1',
    port: 0,
    users: [account('admin', 'ADMINISTRATOR'), account('reader', 'USER')],
    kg: options.kg,
    guid: randomBytes(16),
    chassis: { power: () => virtual.power, control },
    bootOptions: new BootOptions({ expiryMs: 60_000 }),
    serial: {
      typed: (characters: Buffer) => {
        virtual.typed += characters.toString()
        bmc.serialOutput(Buffer.from(`you said ${characters}`))
      },
    },
    ...(options.slots !== undefined && { limits: { slots: options.slots, idleMs: 60_000, halfOpenMs: 60_000 } }),
  })
  const virtual: VirtualBmc = {
    bmc,
    url: (user = 'admin') => `ipmi://${user}@127.0.0.1:${bmc.port}`,
    power: options.power ?? 'off',
    obeys: 'within a moment',
    history,
    typed: '',
    async [Symbol.asyncDispose]() {
      for (const timer of timers) clearTimeout(timer)
      await bmc[Symbol.asyncDispose]()
    },
  }
  return virtual
}

/** A UDP port on which nothing listens. */
export async function closedPort(): Promise<number> {
  const socket = createSocket('udp4')
  await new Promise<void>(resolve => socket.bind(0, '127.0.0.1', resolve))
  const { port } = socket.address() as AddressInfo
  await new Promise<void>(resolve => socket.close(resolve))
  return port
}
