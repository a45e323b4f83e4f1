/** The Redfish driver: power, boot device and identify light of a BMC over its Redfish service (DSP0266). */
import { createHash } from 'node:crypto'
import { z } from 'zod'
import type { CallOptions, PowerContext, PowerDriver, PowerSession } from './driver.ts'
import { passwordRule, setPassword } from './redfish/account.ts'
import { origin, parseServiceAddress, type ServiceAddress } from './redfish/address.ts'
import { clearBootNext, readBootNext, setBootNext } from './redfish/boot-next.ts'
import { plainFingerprint } from './redfish/connection.ts'
import { subscribe } from './redfish/events.ts'
import { controller, identify, identity } from './redfish/machine.ts'
import { type BmcMemory, memoryOf } from './redfish/memory.ts'
import { powerOff, powerOn, powerState, restart } from './redfish/power.ts'
import { type Log, Service, type Turn } from './redfish/service.ts'
import { defaultTimers, type Timers } from './redfish/timers.ts'

const settings = z.strictObject({
  address: z
    .string()
    .refine(text => parseServiceAddress(text) !== undefined, 'not an address: write host, host:port, or https://host:port')
    .describe('Host name or IP address of the BMC, with https:// and :port where wanted; http:// only where the BMC has no HTTPS'),
  user: z
    .string()
    .refine(text => !text.includes(':'), 'a user name has no colon')
    .describe('User name on the BMC'),
  password: z.string().describe('Password on the BMC'),
  systemId: z
    .string()
    .min(1)
    .describe('Which computer system, only where the service has several: the last part of its path, e.g. System.Embedded.1')
    .optional(),
  certificate: z
    .string()
    .refine(
      text => text === 'verify' || /^[0-9a-f]{64}$/.test(plainFingerprint(text)),
      'write verify, or a SHA-256 fingerprint of 64 hex digits',
    )
    .default('verify')
    .describe('verify: a CA must have signed it for this address. Or the SHA-256 fingerprint of the one certificate that is trusted'),
  ca: z
    .string()
    .refine(text => text.includes('-----BEGIN CERTIFICATE-----'), 'not a certificate in PEM form')
    .describe('The CA for verify, in PEM form, where it is not a public one')
    .optional(),
  tls: z
    .enum(['modern', 'legacy'])
    .default('modern')
    .describe('legacy: also TLS 1.0 and 1.1 with old ciphers, for old BMCs on a trusted network'),
})

export type RedfishSettings = z.output<typeof settings>

export interface RedfishOptions {
  timers?: Partial<Timers>
  /** Monotonic milliseconds. */
  now?: () => number
}

/**
 * Makes the driver. Sessions of one driver with the same settings share one connection and one login on the BMC, given back when the last of them
 * closes; all sessions with a BMC take turns, and share what was learned about it.
 */
export function redfishDriver(options: RedfishOptions = {}): PowerDriver<typeof settings> {
  const timers = { ...defaultTimers, ...options.timers }
  const now = options.now ?? (() => performance.now())
  const memories = new Map<string, BmcMemory>()
  const services = new Map<string, { service: Service; users: number }>()

  const take = (given: RedfishSettings): { service: Service; release: (log: Log) => Promise<void> } => {
    const key = keyOf(given)
    const shared = services.get(key) ?? { service: serviceOf(given, { timers, now, memories }), users: 0 }
    services.set(key, shared)
    shared.users += 1
    const release = async (log: Log) => {
      shared.users -= 1
      if (shared.users > 0) return
      services.delete(key)
      await shared.service.close(log)
    }
    return { service: shared.service, release }
  }

  return {
    type: 'redfish',
    title: 'Redfish',
    settings,
    secrets: ['password'],
    accountOf: given => `${given.user} ${origin(addressOf(given))}`,
    open: (given, context = {}) => {
      const { service, release } = take(given)
      return powerSession(service, { user: given.user, release, context })
    },
  }
}

export const redfish = redfishDriver()

function powerSession(
  service: Service,
  { user, release, context }: { user: string; release: (log: Log) => Promise<void>; context: PowerContext },
): PowerSession {
  const closing = new AbortController()
  const ended = context.signal ? AbortSignal.any([closing.signal, context.signal]) : closing.signal
  const log: Log = (message, facts = {}) => context.log?.(message, { bmc: service.target, ...facts })
  const running = new Set<Promise<unknown>>()
  const run = <T>(tried: string, work: (turn: Turn) => Promise<T>, options: CallOptions = {}): Promise<T> => {
    const signal = options.signal ? AbortSignal.any([ended, options.signal]) : ended
    const call = service.run(tried, work, { signal, log }).finally(() => running.delete(call))
    running.add(call)
    return call
  }
  let closed: Promise<void> | undefined
  const close = () => {
    closed ??= (async () => {
      closing.abort()
      await Promise.allSettled(running)
      await release(log)
    })()
    return closed
  }
  return {
    target: service.target,
    power: options => run('power status', powerState, options),
    on: options => run('power on', powerOn, options),
    off: options => run(`power off (${options.how})`, turn => powerOff(turn, options.how), options),
    cycle: options => run('power cycle', turn => restart(turn, 'cycle'), options),
    capabilities: {
      bootNext: {
        set: options => run(`boot next from ${options.device}`, async turn => ({ kept: await setBootNext(turn, options) }), options),
        read: options => run('read boot device', readBootNext, options),
        clear: options => run('clear boot device', clearBootNext, options),
      },
      reset: options => run('reset', turn => restart(turn, 'reset'), options),
      identify: options => run(`identify light ${options.light}`, turn => identify(turn, options.light), options),
      controller: options => run('ask who the BMC is', controller, options),
      identity: options => run('read inventory', identity, options),
      subscribe: options => run('subscribe to events', turn => subscribe(turn, options), options),
      credentials: {
        rule: options => run('read the rule for passwords', passwordRule, options),
        set: ({ password, ...options }) => run('set the password', turn => setPassword(turn, user, password), options),
      },
    },
    close,
    [Symbol.asyncDispose]: close,
  }
}

function serviceOf(given: RedfishSettings, shared: { timers: Timers; now: () => number; memories: Map<string, BmcMemory> }): Service {
  const address = addressOf(given)
  return new Service({
    address,
    user: given.user,
    password: given.password,
    systemId: given.systemId,
    certificate: given.certificate,
    ca: given.ca,
    tls: given.tls,
    timers: shared.timers,
    now: shared.now,
    memory: memoryOf(shared.memories, origin(address)),
  })
}

function addressOf(given: RedfishSettings): ServiceAddress {
  const address = parseServiceAddress(given.address)
  if (!address) throw new RangeError('the address was not checked by the settings schema')
  return address
}

/** Same settings, same service. Hashed, so that no password is the key of a map. */
function keyOf({ address, ...rest }: RedfishSettings): string {
  return createHash('sha256')
    .update(
      JSON.stringify([
        origin(addressOf({ address, ...rest })),
        rest.user,
        rest.password,
        rest.systemId,
        rest.certificate,
        rest.ca,
        rest.tls,
      ]),
    )
    .digest('hex')
}
