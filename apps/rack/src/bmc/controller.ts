// One management controller without a socket: a datagram in, the answer's datagram out. All of the protocol and none of the network,
// so that latency, loss and silence are added outside (bmc.ts) and the clock is the caller's.
import { randomFillSync } from 'node:crypto'
import {
  type ChassisControl,
  chassisControls,
  encodePong,
  encodeResponse,
  encodeV15,
  encodeV20,
  type IpmiRequest,
  parseDatagram,
  parseRequest,
  payloadTypes,
  seal,
  unseal,
  type V20Packet,
} from '@muster/drivers/ipmi/codec'
import type { BootOptions } from './boot-options.ts'
import {
  type BmcIdentity,
  type Chassis,
  type CommandAnswer,
  type CommandContext,
  commandRow,
  completion,
  type IdentifyLight,
  levelNeeded,
} from './command-table.ts'
import { answerOpenSession, answerRakp1, answerRakp3, type BmcUser, type HandshakeContext } from './handshake.ts'
import type { Serial } from './serial.ts'
import { type OpenSession, type SessionLimits, SessionTable } from './sessions.ts'

export interface ControllerOptions {
  users: readonly BmcUser[]
  /** K_g, at most 20 bytes. */
  kg?: Buffer | undefined
  /** 16 bytes, hashed into every login. */
  guid: Buffer
  identity: BmcIdentity
  chassis: Chassis
  bootOptions: BootOptions
  limits: SessionLimits
  serial: Serial
  /** A user got another password. */
  passwordSet?: ((user: BmcUser) => void) | undefined
}

/** What happened at this BMC since it started. */
export interface BmcCounters {
  /** Sessions open (logged in) at once, at most: more than 1 means that a console did not keep to one session per BMC. */
  readonly sessionsOpenMax: number
  /** Logins under way at once, at most. Attempts whose answers were lost stay here for 3 s. */
  readonly loginsUnderWayMax: number
  readonly loginsAccepted: number
  readonly loginsRefused: number
  /** Commands answered inside sessions, repetitions apart. */
  readonly commands: number
  /** Repeated commands that got the first answer again and were not carried out twice. */
  readonly repeats: number
  /** Packets dropped inside a session: wrong authcode, outside the sequence window, unreadable. */
  readonly dropped: number
  /** Chassis commands carried out, by kind. */
  readonly controls: Readonly<Record<ChassisControl, number>>
}

/** A console that repeats a command does so within seconds; rqSeq comes round again after 64 commands. */
const repeatWindowMs = 5_000
const repeatsKept = 4

export class Controller {
  readonly #options: ControllerOptions
  readonly #sessions: SessionTable
  readonly #light: IdentifyLight = { until: 0, lasting: 'timed' }
  readonly #controls = Object.fromEntries(Object.keys(chassisControls).map(name => [name, 0])) as Record<ChassisControl, number>
  #counts = { loginsAccepted: 0, loginsRefused: 0, commands: 0, repeats: 0, dropped: 0 }

  constructor(options: ControllerOptions) {
    this.#options = options
    this.#sessions = new SessionTable(options.limits, id => {
      options.bootOptions.sessionEnded(id)
      options.serial.sessionEnded(id)
    })
  }

  /** What happened so far; a copy. */
  get counters(): BmcCounters {
    return {
      ...this.#counts,
      sessionsOpenMax: this.#sessions.openMax,
      loginsUnderWayMax: this.#sessions.halfOpenMax,
      controls: { ...this.#controls },
    }
  }

  /** Sessions open at `atMs`. */
  sessionsOpen(atMs: number): number {
    return this.#sessions.openCount(atMs)
  }

  /** The identify light at `atMs`. */
  identify(atMs: number): 'off' | 'timed' | 'on' {
    return this.#light.until > atMs ? this.#light.lasting : 'off'
  }

  /**
   * The answer to a datagram worked on at `atMs`, or undefined where a BMC keeps silent. `arrivedMs` is when it came, which counts for
   * what has expired: a slow controller must not drop logins for its own slowness. `isBusy` stands for a controller that refuses
   * for lack of resources: no new session, completion code C0 for every command. `send` goes back to where the datagram came from, at any time.
   */
  receive(
    datagram: Buffer,
    { arrivedMs, atMs, isBusy, send }: { arrivedMs: number; atMs: number; isBusy: boolean; send: (datagram: Buffer) => void },
  ): Buffer | undefined {
    this.#sessions.sweep(arrivedMs)
    const packet = parseDatagram(datagram)
    if (packet.kind === 'ping') return encodePong(packet.tag)
    if (packet.kind === 'v1.5') {
      const answer = packet.sessionId === 0 ? this.#outsideSession(packet.payload, { atMs, isBusy }) : undefined
      return answer && encodeV15(answer)
    }
    if (packet.kind !== 'v2.0') return undefined
    if (packet.sessionId !== 0) return this.#insideSession(packet, { atMs, isBusy, send })
    if (packet.payloadType === payloadTypes.ipmi) {
      const answer = this.#outsideSession(packet.payload, { atMs, isBusy })
      return answer && encodeV20({ payloadType: payloadTypes.ipmi, payload: answer })
    }
    return this.#setUp(packet, { atMs, isBusy })
  }

  #setUp(packet: V20Packet, { atMs, isBusy }: { atMs: number; isBusy: boolean }): Buffer | undefined {
    const step = setUpSteps.get(packet.payloadType)
    if (!step) return undefined
    const context: HandshakeContext = {
      sessions: this.#sessions,
      users: this.#options.users,
      kg: this.#options.kg,
      guid: this.#options.guid,
      hasRoom: !isBusy,
      atMs,
      loggedIn: outcome => {
        if (outcome === 'accepted') this.#counts.loginsAccepted++
        else this.#counts.loginsRefused++
      },
    }
    const payload = step.answer(packet.payload, context)
    return payload && encodeV20({ payloadType: step.payloadType, payload })
  }

  #outsideSession(payload: Buffer, at: { atMs: number; isBusy: boolean }): Buffer | undefined {
    const request = parseRequest(payload)
    if (!request?.checksumsHold) return undefined
    return response(request, this.#carryOut(request, undefined, at))
  }

  #insideSession(packet: V20Packet, at: { atMs: number; isBusy: boolean; send: (datagram: Buffer) => void }): Buffer | undefined {
    const session = this.#sessions.get(packet.sessionId)
    if (session?.kind !== 'open') return undefined
    const opened = unseal(packet, session.keys)
    const payload = opened.kind === 'payload' && session.window.take(packet.sequence) ? opened.payload : undefined
    if (payload) session.send = at.send
    if (packet.payloadType === payloadTypes.sol) {
      if (payload) {
        session.touchedAt = at.atMs
        this.#options.serial.hear(session, payload)
      } else this.#counts.dropped++
      return undefined
    }
    const request = payload && packet.payloadType === payloadTypes.ipmi ? parseRequest(payload) : undefined
    if (!request?.checksumsHold) {
      this.#counts.dropped++
      return undefined
    }
    session.touchedAt = at.atMs
    const repeated = this.#repeated(session, request, at.atMs)
    if (repeated) {
      this.#counts.repeats++
      return sealed(session, payloadTypes.ipmi, repeated)
    }
    const answer = this.#carryOut(request, session, at)
    this.#counts.commands++
    const reply = response(request, answer)
    // A busy controller did nothing: the repetition deserves a new try, not the same refusal.
    if (answer.code !== completion.busy) remember(session, request, { payload: reply, at: at.atMs })
    const datagram = sealed(session, payloadTypes.ipmi, reply)
    answer.afterwards?.()
    return datagram
  }

  #repeated(session: OpenSession, request: IpmiRequest, atMs: number): Buffer | undefined {
    const key = repeatKey(request)
    return session.answered.find(answered => answered.key === key && atMs - answered.at <= repeatWindowMs)?.payload
  }

  #carryOut(request: IpmiRequest, session: OpenSession | undefined, { atMs, isBusy }: { atMs: number; isBusy: boolean }): CommandAnswer {
    const row = commandRow(request.netFn, request.command)
    if (!session && row?.needs !== 'anybody') return { code: completion.privilege }
    if (isBusy) return { code: completion.busy }
    if (!row) return { code: completion.invalidCommand }
    if (levelNeeded(row) > (session?.privilege ?? 0)) return { code: completion.privilege }
    if (request.data.length < row.bytes.min || request.data.length > row.bytes.max) return { code: completion.lengthInvalid }
    const context: CommandContext = {
      session,
      sessions: this.#sessions,
      chassis: this.#options.chassis,
      bootOptions: this.#options.bootOptions,
      identity: this.#options.identity,
      guid: this.#options.guid,
      users: this.#options.users,
      hasKg: this.#options.kg !== undefined,
      light: this.#light,
      serial: this.#options.serial,
      atMs,
      controlled: order => {
        this.#controls[order]++
      },
      passwordSet: (user, password) => {
        user.password = password
        this.#options.passwordSet?.(user)
      },
    }
    return row.run(request.data, context)
  }
}

const setUpSteps = new Map([
  [payloadTypes.openSessionRequest as number, { payloadType: payloadTypes.openSessionResponse as number, answer: answerOpenSession }],
  [payloadTypes.rakp1, { payloadType: payloadTypes.rakp2, answer: answerRakp1 }],
  [payloadTypes.rakp3, { payloadType: payloadTypes.rakp4, answer: answerRakp3 }],
])

function response(request: IpmiRequest, answer: CommandAnswer): Buffer {
  return encodeResponse({
    netFn: request.netFn + 1,
    command: request.command,
    sequence: request.sequence,
    completionCode: answer.code,
    data: answer.data ?? empty,
  })
}

/** A payload of the session, sealed under its next number. */
export function sealed(session: OpenSession, payloadType: number, payload: Buffer): Buffer {
  // The number wraps past 0, which means "outside a session".
  session.sentSequence = session.sentSequence === 0xffffffff ? 1 : session.sentSequence + 1
  return seal({ payloadType, sessionId: session.consoleId, sequence: session.sentSequence, payload, iv: freshIv() }, session.keys)
}

function remember(session: OpenSession, request: IpmiRequest, answered: { payload: Buffer; at: number }): void {
  session.answered.push({ key: repeatKey(request), ...answered })
  if (session.answered.length > repeatsKept) session.answered.shift()
}

/** Data included: some consoles keep rqSeq at one value for all commands. */
function repeatKey(request: IpmiRequest): string {
  return `${request.sequence}/${request.netFn}/${request.command}/${request.data.toString('hex')}`
}

const empty = Buffer.alloc(0)

/** Random bytes drawn by the page: one call of the system's generator per IV costs more than the encryption (facts: 5.3 against 1.9 µs). */
const ivPool = Buffer.alloc(4096)
let ivNext = ivPool.length

function freshIv(): Buffer {
  if (ivNext === ivPool.length) {
    randomFillSync(ivPool)
    ivNext = 0
  }
  ivNext += 16
  return ivPool.subarray(ivNext - 16, ivNext)
}
