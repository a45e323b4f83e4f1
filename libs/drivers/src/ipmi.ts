/** The IPMI driver: power, boot device and identify light of a BMC over IPMI v2.0 on the LAN. */
import { z } from 'zod'
import type { CallOptions, PowerContext, PowerDriver, PowerSession } from './driver.ts'
import { passwordRule, setPassword, userIdOf } from './ipmi/account.ts'
import { parseBmcAddress, printBmcAddress } from './ipmi/address.ts'
import { clearBootNext, readBootNext, setBootNext } from './ipmi/boot-next.ts'
import { IpmiClient, type Turn } from './ipmi/client.ts'
import { kgBytesMax, type Privilege, passwordBytesMax, userBytesMax } from './ipmi/codec.ts'
import { coldReset, deviceId } from './ipmi/device.ts'
import { identityOf, readFru } from './ipmi/fru.ts'
import type { BmcMemory, Credentials } from './ipmi/login.ts'
import { chassisStatus, identify, powerOff, powerOn, restart } from './ipmi/power.ts'
import { readSensors } from './ipmi/sensors.ts'
import { openSolConsole } from './ipmi/sol.ts'
import { defaultTimers, keepAliveMsMax, type Timers } from './ipmi/timers.ts'

const settings = z.strictObject({
  address: z
    .string()
    .refine(text => parseBmcAddress(text) !== undefined, 'not an address: write host, host:port, or [v6%zone]:port')
    .describe('Host name or IP address of the BMC; a port other than 623 after a colon, IPv6 in brackets then'),
  user: z
    .string()
    .refine(text => Buffer.byteLength(text) <= userBytesMax, `an IPMI user name has at most ${userBytesMax} bytes`)
    .describe(`User name, at most ${userBytesMax} bytes`),
  password: z
    .string()
    .refine(text => Buffer.byteLength(text) <= passwordBytesMax, `an IPMI password has at most ${passwordBytesMax} bytes`)
    .describe(`Password, at most ${passwordBytesMax} bytes`),
  kg: z
    .string()
    .refine(
      text => kgBytes(text) !== undefined,
      `K_g is a text of at most ${kgBytesMax} bytes, or 0x and at most ${2 * kgBytesMax} hex digits`,
    )
    .describe('BMC key (K_g) if one is set on the BMC: text, or 0x and hex digits')
    .optional(),
  privilege: z
    .enum(['USER', 'OPERATOR', 'ADMINISTRATOR'])
    .default('OPERATOR')
    .describe('Level to log in with: OPERATOR switches power, USER only reads'),
  suite: z
    .union([z.literal('auto'), z.literal(3), z.literal(17)])
    .default('auto')
    .describe('Cipher suite: auto takes 17 (SHA-256), else 3 (SHA-1)'),
})

export type IpmiSettings = z.output<typeof settings>

export interface IpmiOptions {
  timers?: Partial<Timers>
  /** Monotonic milliseconds. */
  now?: () => number
}

/**
 * Makes the driver. Sessions of one driver share what they learn about a BMC (the suite that works, attempts that may still hold a
 * slot). Throws RangeError for a keepAliveMs beyond what BMCs keep.
 */
export function ipmiDriver(options: IpmiOptions = {}): PowerDriver<typeof settings> {
  const timers = { ...defaultTimers, ...options.timers }
  if (timers.keepAliveMs > keepAliveMsMax) throw new RangeError(`keepAliveMs is at most ${keepAliveMsMax}: BMCs drop idle sessions`)
  const now = options.now ?? (() => performance.now())
  const memories = new Map<string, BmcMemory>()
  return {
    type: 'ipmi',
    title: 'IPMI v2.0 over LAN',
    settings,
    secrets: ['password', 'kg'],
    accountOf: ({ address, user }) => `${user} ${plainAddress(address)}`,
    open(given, context = {}) {
      const clientFor = (settings: IpmiSettings) =>
        ipmiClient(settings, { timers, now, context, memory: memoryOf(memories, settings.address) })
      return powerSession(clientFor(given), asAdministrator(given, clientFor))
    },
  }
}

export const ipmi = ipmiDriver()

/** A client for what lies beyond the driver contract, such as sensors. The settings have passed the schema. */
export function ipmiClient(
  given: IpmiSettings,
  options: { timers?: Timers; now?: () => number; context?: PowerContext; memory?: BmcMemory } = {},
): IpmiClient {
  const address = parseBmcAddress(given.address)
  if (!address) throw new RangeError('the address was not checked by the settings schema')
  return new IpmiClient({
    address,
    credentials: credentialsOf(given),
    timers: options.timers ?? defaultTimers,
    memory: options.memory ?? { abandonedAt: [] },
    now: options.now ?? (() => performance.now()),
    context: options.context ?? {},
  })
}

/** Users are the business of an ADMINISTRATOR, and power is not: such a call has a session of its own, which ends with it. */
function asAdministrator(given: IpmiSettings, clientFor: (settings: IpmiSettings) => IpmiClient) {
  return async <T>(tried: string, work: (turn: Turn, user: Buffer) => Promise<T>, options: CallOptions = {}): Promise<T> => {
    const client = clientFor({ ...given, privilege: 'ADMINISTRATOR' })
    try {
      return await client.run(tried, turn => work(turn, Buffer.from(given.user)), options)
    } finally {
      await client.close()
    }
  }
}

function powerSession(client: IpmiClient, administer: ReturnType<typeof asAdministrator>): PowerSession {
  return {
    target: client.target,
    power: options => client.run('power status', async turn => (await chassisStatus(turn)).power, options),
    on: options => client.run('power on', powerOn, options),
    off: options => client.run(`power off (${options.how})`, turn => powerOff(turn, options.how), options),
    cycle: options => client.run('power cycle', turn => restart(turn, 'cycle'), options),
    capabilities: {
      bootNext: {
        set: options => client.run(`boot next from ${options.device}`, async turn => ({ kept: await setBootNext(turn, options) }), options),
        read: options => client.run('read boot device', readBootNext, options),
        clear: options => client.run('clear boot device', clearBootNext, options),
      },
      reset: options => client.run('reset', turn => restart(turn, 'reset'), options),
      identify: options => client.run(`identify light ${options.light}`, turn => identify(turn, options.light), options),
      controller: options => client.run('ask who the BMC is', deviceId, options),
      restartController: options => client.run('restart the BMC', coldReset, options),
      sensors: options => client.run('read sensors', readSensors, options),
      console: (options = {}) =>
        openSolConsole(client, { holder: options.holder ?? 'leave', signal: options.signal ?? new AbortController().signal }),
      identity: options => client.run('read inventory', async turn => identityOf(await readFru(turn)), options),
      credentials: {
        rule: options =>
          administer(
            'find the account',
            async (turn, user) => {
              await userIdOf(turn, user)
              return passwordRule
            },
            options,
          ),
        set: ({ password, ...options }) =>
          administer('set the password', (turn, user) => setPassword(turn, user, Buffer.from(password)), options),
      },
    },
    close: () => client.close(),
    [Symbol.asyncDispose]: () => client.close(),
  }
}

/** BMCs beyond this many are forgotten, oldest first: what is remembered only saves time. */
const memoriesMax = 10_000

function memoryOf(memories: Map<string, BmcMemory>, address: string): BmcMemory {
  const key = plainAddress(address)
  const memory = memories.get(key) ?? { abandonedAt: [] }
  memories.delete(key)
  memories.set(key, memory)
  for (const oldest of memories.keys()) {
    if (memories.size <= memoriesMax) break
    memories.delete(oldest)
  }
  return memory
}

/** The same text however it is spelled. */
function plainAddress(address: string): string {
  const parsed = parseBmcAddress(address)
  return parsed ? printBmcAddress(parsed) : address
}

function credentialsOf(given: IpmiSettings): Credentials {
  const privilege: Privilege = given.privilege
  const kg = given.kg === undefined ? undefined : kgBytes(given.kg)
  return {
    user: Buffer.from(given.user),
    password: Buffer.from(given.password),
    privilege,
    suite: given.suite,
    ...(kg && { kg }),
  }
}

/** K_g may hold zero bytes, which nobody can type: hence hex. Undefined if it does not fit. */
function kgBytes(text: string): Buffer | undefined {
  if (!text.startsWith('0x')) return Buffer.byteLength(text) <= kgBytesMax ? Buffer.from(text) : undefined
  const digits = text.slice(2)
  return digits.length % 2 === 0 && digits.length <= 2 * kgBytesMax && /^[0-9a-fA-F]*$/.test(digits)
    ? Buffer.from(digits, 'hex')
    : undefined
}
