// What a virtual BMC can be asked: one row per command with the privilege it needs, the data lengths it takes, and what it does.
// A command without a row is C1, data of another length C7, too little privilege D4: the table is the whole rule.
import {
  type ChassisControl,
  chassisControls,
  commands,
  encodeChassisStatus,
  encodeSolGrant,
  encodeSuiteRecords,
  payloadTypes,
  privileges,
  solActivationCodes,
  suites,
} from '@muster/drivers/ipmi/codec'
import { type BootOptions, bootOptionCodes } from './boot-options.ts'
import type { BmcUser } from './handshake.ts'
import type { Serial } from './serial.ts'
import type { OpenSession, SessionTable } from './sessions.ts'

/** The machine as its BMC sees it. */
export interface Chassis {
  power(): 'on' | 'off'
  /** Takes an order. Its effect follows later; `wrong-state` where it makes no sense now (a reset of a machine that is off). */
  control(order: ChassisControl): 'accepted' | 'wrong-state'
}

/** What Get Device ID tells. */
export interface BmcIdentity {
  /** IANA enterprise number, 20 bits. */
  manufacturer: number
  product: number
  /** Major 0 to 127, minor 0 to 99. */
  firmware: { major: number; minor: number }
}

export interface IdentifyLight {
  /** Epoch milliseconds; Infinity for until further notice, 0 for off. */
  until: number
  lasting: 'timed' | 'on'
}

export interface CommandContext {
  /** Undefined outside a session. */
  readonly session: OpenSession | undefined
  readonly sessions: SessionTable
  readonly chassis: Chassis
  readonly bootOptions: BootOptions
  readonly identity: BmcIdentity
  readonly guid: Buffer
  readonly users: readonly BmcUser[]
  readonly hasKg: boolean
  readonly light: IdentifyLight
  readonly serial: Serial
  readonly atMs: number
  /** Counts an order that the chassis accepted. */
  readonly controlled: (order: ChassisControl) => void
  /** Gives a user another password. */
  readonly passwordSet: (user: BmcUser, password: string) => void
}

export interface CommandAnswer {
  code: number
  data?: Buffer
  /** Done once the answer has been sealed: closing the session needs its keys for the answer. */
  afterwards?: () => void
}

export interface CommandRow {
  readonly netFn: number
  readonly command: number
  /** `anybody`: also outside a session. */
  readonly needs: 'anybody' | 'session' | 'USER' | 'OPERATOR' | 'ADMINISTRATOR'
  readonly bytes: { readonly min: number; readonly max: number }
  readonly run: (data: Buffer, context: CommandContext) => CommandAnswer
}

/** The row of a command, or undefined (C1). */
export function commandRow(netFn: number, command: number): CommandRow | undefined {
  return rowByNumber.get((netFn << 8) | command)
}

/** The level a row needs; 0 where any session will do. */
export function levelNeeded(row: CommandRow): number {
  return row.needs === 'anybody' || row.needs === 'session' ? 0 : privileges[row.needs]
}

export const completion = {
  ok: 0x00,
  busy: 0xc0,
  invalidCommand: 0xc1,
  lengthInvalid: 0xc7,
  invalidField: 0xcc,
  privilege: 0xd4,
  state: 0xd5,
} as const

const channel = 1
/** What one SOL packet may hold each way, its head included. */
const solPayloadBytes = 255
const presentChannel = 0x0e
const suitePageBytes = 16
const suiteRecords = encodeSuiteRecords(
  Object.values(suites).map(suite => ({
    id: suite.id,
    authentication: [suite.authentication],
    integrity: [suite.integrity],
    confidentiality: [suite.confidentiality],
  })),
)
/** The same without suites: each algorithm once, as asked for by list index bit 7 clear. */
const algorithmRecords = Buffer.from([...new Set(Object.values(suites).flatMap(algorithmBytes))].sort((a, b) => a - b))

const rows: readonly CommandRow[] = [
  { ...commands.getChannelAuthCapabilities, needs: 'anybody', bytes: { min: 2, max: 2 }, run: getAuthCapabilities },
  { ...commands.getChannelCipherSuites, needs: 'anybody', bytes: { min: 3, max: 3 }, run: getCipherSuites },
  { netFn: 0x06, command: 0x37, needs: 'anybody', bytes: { min: 0, max: 0 }, run: getGuid },
  { ...commands.getDeviceGuid, needs: 'USER', bytes: { min: 0, max: 0 }, run: getGuid },
  { ...commands.getDeviceId, needs: 'USER', bytes: { min: 0, max: 0 }, run: getDeviceId },
  { ...commands.setSessionPrivilege, needs: 'session', bytes: { min: 1, max: 1 }, run: setSessionPrivilege },
  { ...commands.closeSession, needs: 'session', bytes: { min: 4, max: 5 }, run: closeSession },
  { ...commands.getUserAccess, needs: 'OPERATOR', bytes: { min: 2, max: 2 }, run: getUserAccess },
  { ...commands.getUserName, needs: 'OPERATOR', bytes: { min: 1, max: 1 }, run: getUserName },
  { ...commands.setUserPassword, needs: 'ADMINISTRATOR', bytes: { min: 18, max: 22 }, run: setUserPassword },
  { ...commands.activatePayload, needs: 'OPERATOR', bytes: { min: 6, max: 6 }, run: activatePayload },
  { ...commands.deactivatePayload, needs: 'OPERATOR', bytes: { min: 6, max: 6 }, run: deactivatePayload },
  { netFn: 0x00, command: 0x00, needs: 'USER', bytes: { min: 0, max: 0 }, run: getChassisCapabilities },
  { ...commands.getChassisStatus, needs: 'USER', bytes: { min: 0, max: 0 }, run: getChassisStatus },
  { ...commands.chassisControl, needs: 'OPERATOR', bytes: { min: 1, max: 1 }, run: chassisControl },
  { ...commands.chassisIdentify, needs: 'OPERATOR', bytes: { min: 0, max: 2 }, run: chassisIdentify },
  { ...commands.setBootOptions, needs: 'OPERATOR', bytes: { min: 1, max: 6 }, run: setBootOptions },
  { ...commands.getBootOptions, needs: 'OPERATOR', bytes: { min: 3, max: 3 }, run: getBootOptions },
]

const rowByNumber = new Map(rows.map(row => [(row.netFn << 8) | row.command, row]))

function ok(data?: Buffer): CommandAnswer {
  return { code: completion.ok, ...(data && { data }) }
}

function getAuthCapabilities(data: Buffer, context: CommandContext): CommandAnswer {
  if (!isOurChannel(data.readUInt8(0))) return { code: completion.invalidField }
  const wantsV2 = (data.readUInt8(0) & 0x80) !== 0
  const isNull = (user: BmcUser) => user.name === ''
  const userFlags =
    (context.users.some(user => !isNull(user)) ? 0x04 : 0) |
    (context.users.some(user => isNull(user) && user.password !== '') ? 0x02 : 0) |
    (context.users.some(user => isNull(user) && user.password === '') ? 0x01 : 0)
  // No v1.5 authentication type is offered: v1.5 sessions are unsupported, as in OpenBMC.
  return ok(Buffer.of(channel, wantsV2 ? 0x80 : 0, userFlags | (context.hasKg ? 0x20 : 0), wantsV2 ? 0x02 : 0, 0, 0, 0, 0))
}

function getCipherSuites(data: Buffer): CommandAnswer {
  if (!isOurChannel(data.readUInt8(0))) return { code: completion.invalidField }
  const list = data.readUInt8(2) & 0x80 ? suiteRecords : algorithmRecords
  const start = (data.readUInt8(2) & 0x3f) * suitePageBytes
  return ok(Buffer.concat([Buffer.of(channel), list.subarray(start, start + suitePageBytes)]))
}

function getGuid(_: Buffer, context: CommandContext): CommandAnswer {
  return ok(context.guid)
}

function getDeviceId(_: Buffer, { identity }: CommandContext): CommandAnswer {
  const data = Buffer.alloc(15)
  data.writeUInt8(0x20, 0)
  data.writeUInt8(0x01, 1)
  data.writeUInt8(identity.firmware.major & 0x7f, 2)
  data.writeUInt8(bcd(identity.firmware.minor), 3)
  data.writeUInt8(0x02, 4) // IPMI 2.0, digits swapped
  data.writeUInt8(0x80, 5) // a chassis device and nothing else: no sensors, no SEL
  data.writeUIntLE(identity.manufacturer & 0xfffff, 6, 3)
  data.writeUInt16LE(identity.product, 9)
  return ok(data)
}

function setSessionPrivilege(data: Buffer, { session }: CommandContext): CommandAnswer {
  if (!session) return { code: completion.privilege }
  const level = data.readUInt8(0) & 0x0f
  if (level === 0) return ok(Buffer.of(session.privilege))
  if (level < privileges.USER || level > session.userLimit) return { code: 0x80 }
  if (level > session.limit) return { code: 0x81 }
  session.privilege = level
  return ok(Buffer.of(level))
}

function closeSession(data: Buffer, { session, sessions }: CommandContext): CommandAnswer {
  const id = data.readUInt32LE(0)
  if (id === session?.id) return { code: completion.ok, afterwards: () => sessions.end(id) }
  if (!sessions.get(id)) return { code: 0x87 }
  if ((session?.privilege ?? 0) < privileges.ADMINISTRATOR) return { code: completion.privilege }
  sessions.end(id)
  return ok()
}

/** Users are numbered from 2: number 1 is the nameless one, as on most boards. */
const firstUser = 2

function userOf(number: number, { users }: CommandContext): BmcUser | undefined {
  return users[(number & 0x3f) - firstUser]
}

function getUserAccess(data: Buffer, context: CommandContext): CommandAnswer {
  if (!isOurChannel(data.readUInt8(0))) return { code: completion.invalidField }
  const user = userOf(data.readUInt8(1), context)
  const last = context.users.length + firstUser - 1
  return ok(Buffer.of(last, context.users.length, 0, user ? 0x10 | privileges[user.privilege] : 0x0f))
}

function getUserName(data: Buffer, context: CommandContext): CommandAnswer {
  const user = userOf(data.readUInt8(0), context)
  const name = Buffer.alloc(16)
  if (!user) return { code: completion.invalidField }
  name.write(user.name)
  return ok(name)
}

function setUserPassword(data: Buffer, context: CommandContext): CommandAnswer {
  const bytes = data.readUInt8(0) & 0x80 ? 20 : 16
  const user = userOf(data.readUInt8(0), context)
  if (!user || (data.readUInt8(1) & 0x03) !== 2) return { code: completion.invalidField }
  if (data.length !== 2 + bytes) return { code: completion.lengthInvalid }
  const password = data.subarray(2)
  const end = password.indexOf(0)
  context.passwordSet(user, password.subarray(0, end < 0 ? bytes : end).toString())
  return ok()
}

function activatePayload(data: Buffer, { session, serial }: CommandContext): CommandAnswer {
  if (!session) return { code: completion.privilege }
  if (data.readUInt8(0) !== payloadTypes.sol) return { code: completion.invalidField }
  if (serial.activate(session) === 'held by another') return { code: solActivationCodes.heldByOther }
  return ok(encodeSolGrant({ inboundBytes: solPayloadBytes, outboundBytes: solPayloadBytes, port: serial.port }))
}

function deactivatePayload(data: Buffer, { serial }: CommandContext): CommandAnswer {
  if (data.readUInt8(0) !== payloadTypes.sol) return { code: completion.invalidField }
  // 0x80: it was deactivated already.
  return serial.deactivate() === 'ended' ? ok() : { code: 0x80 }
}

function getChassisCapabilities(): CommandAnswer {
  const bmcAddress = 0x20
  return ok(Buffer.of(0, bmcAddress, bmcAddress, bmcAddress, bmcAddress))
}

function getChassisStatus(_: Buffer, { chassis, light, atMs }: CommandContext): CommandAnswer {
  return ok(
    encodeChassisStatus({
      power: chassis.power(),
      overload: false,
      interlock: false,
      fault: false,
      controlFault: false,
      restorePolicy: 'previous',
      identify: light.until > atMs ? light.lasting : 'off',
    }),
  )
}

function chassisControl(data: Buffer, context: CommandContext): CommandAnswer {
  const number = data.readUInt8(0) & 0x0f
  const order = (Object.keys(chassisControls) as ChassisControl[]).find(name => chassisControls[name] === number)
  if (!order) return { code: completion.invalidField }
  if (order === 'on' || order === 'cycle' || order === 'reset') context.bootOptions.chassisCommanded(context.atMs)
  if (context.chassis.control(order) === 'wrong-state') return { code: completion.state }
  context.controlled(order)
  return ok()
}

function chassisIdentify(data: Buffer, { light, atMs }: CommandContext): CommandAnswer {
  const seconds = data.length > 0 ? data.readUInt8(0) : 15
  const isForced = data.length > 1 && (data.readUInt8(1) & 1) !== 0
  light.lasting = isForced ? 'on' : 'timed'
  light.until = isForced ? Number.POSITIVE_INFINITY : seconds === 0 ? 0 : atMs + seconds * 1000
  return ok()
}

function setBootOptions(data: Buffer, { bootOptions, session, atMs }: CommandContext): CommandAnswer {
  return { code: bootOptions.set(data, { session: session?.id ?? 0, atMs }) }
}

function getBootOptions(data: Buffer, { bootOptions, atMs }: CommandContext): CommandAnswer {
  const value = bootOptions.get(data.readUInt8(0) & 0x7f, atMs)
  return value ? ok(value) : { code: bootOptionCodes.notSupported }
}

function isOurChannel(byte: number): boolean {
  return (byte & 0x0f) === channel || (byte & 0x0f) === presentChannel
}

function bcd(value: number): number {
  return (Math.floor(value / 10) << 4) | (value % 10)
}

function algorithmBytes(suite: { authentication: number; integrity: number; confidentiality: number }): number[] {
  return [suite.authentication, 0x40 | suite.integrity, 0x80 | suite.confidentiality]
}
