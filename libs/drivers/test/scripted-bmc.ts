/**
 * A small IPMI BMC whose answers a test writes, for behaviour no simulator offers: odd completion codes, lost sessions, refusals,
 * forged packets. It speaks the real protocol on a real socket, and keeps what it received.
 */
import { randomBytes } from 'node:crypto'
import { createSocket, type Socket } from 'node:dgram'
import { once } from 'node:events'
import {
  codesMatch,
  commands,
  deriveKeys,
  type Exchange,
  encodeChassisStatus,
  encodeOpenSessionResponse,
  encodeRakp2,
  encodeRakp4,
  encodeResponse,
  encodeSuiteRecords,
  encodeV15,
  encodeV20,
  type IpmiRequest,
  type Parsed,
  paddedKey,
  parseDatagram,
  parseOpenSessionRequest,
  parseRakp1,
  parseRakp3,
  parseRequest,
  payloadTypes,
  type Rakp1,
  rakp2Code,
  rakp3Code,
  rakp4Check,
  type SessionKeys,
  type SuiteId,
  type SuiteRecord,
  seal,
  suiteOfAlgorithms,
  suites,
  unseal,
  type V20Packet,
} from '../src/ipmi/codec.ts'

/** A command's answer: a completion code and data, or silence. */
export type Answer = { code: number; data?: Buffer } | 'silence'

export interface ScriptedBmcOptions {
  user?: string
  password?: string
  kg?: string
  /** Suites accepted, and listed when asked. */
  suites?: SuiteId[]
  host?: string
}

interface BmcSession {
  exchange: Exchange
  keys: SessionKeys
  sequence: number
  privilege: number
}

export interface ReceivedCommand {
  name: string
  data: Buffer
  sequence: number
  rqSeq: number
  sessionId: number
}

export class ScriptedBmc implements AsyncDisposable {
  readonly address: string
  power: 'on' | 'off' = 'off'
  /** Answers to commands by name, before the BMC's own: return undefined to leave it to the BMC. */
  script: (command: ReceivedCommand) => Answer | undefined = () => undefined
  /** Answers to steps of the set-up: a status to refuse with, or silence. */
  setup: (step: 'open' | 'rakp1' | 'rakp3', payload: Buffer) => number | 'silence' | undefined = () => undefined
  /** What goes out instead of a sealed reply: forgeries, doubles. */
  outgoing: (sealed: Buffer, session: BmcSession) => Buffer[] = sealed => [sealed]
  /** Replaces the suite agreed on in Open Session. */
  substitute: SuiteId | undefined
  answersProbe = true
  /** Channel 1, v2.0 data, users with names only, IPMI v2.0. */
  authCapabilities = Buffer.from('0180040200000000', 'hex')
  /** Listed before the suites accepted. */
  moreSuites: SuiteRecord[] = []
  /** How long RAKP 2 takes. */
  hashMs = 0

  readonly commands: ReceivedCommand[] = []
  readonly datagrams: { payloadType: number; payload: Buffer }[] = []
  /** Commands that arrived while another one was unanswered. */
  overlaps = 0

  readonly #options: Required<Omit<ScriptedBmcOptions, 'host'>>
  readonly #socket: Socket
  readonly #half = new Map<number, { consoleId: number; suiteId: SuiteId; privilege: number; exchange?: Exchange }>()
  readonly #sessions = new Map<number, BmcSession>()
  #outstanding = 0
  #stopped = false

  private constructor(socket: Socket, options: ScriptedBmcOptions) {
    this.#socket = socket
    this.#options = {
      user: options.user ?? 'admin',
      password: options.password ?? 'secret',
      kg: options.kg ?? '',
      suites: options.suites ?? [17, 3],
    }
    const { port, family, address } = socket.address()
    this.address = family === 'IPv6' ? `[${address}]:${port}` : `${address}:${port}`
    socket.on('message', (datagram, from) => {
      this.#receive(datagram, bytes => {
        if (!this.#stopped) socket.send(bytes, from.port, from.address)
      })
    })
  }

  static async start(options: ScriptedBmcOptions = {}): Promise<ScriptedBmc> {
    const host = options.host ?? '127.0.0.1'
    const socket = createSocket(host.includes(':') ? 'udp6' : 'udp4')
    socket.bind(0, host)
    await once(socket, 'listening')
    return new ScriptedBmc(socket, options)
  }

  get sessionCount(): number {
    return this.#sessions.size
  }

  /** As after a restart, or an idle minute. */
  forgetSessions(): void {
    this.#sessions.clear()
    this.#half.clear()
  }

  names(): string[] {
    return this.commands.map(command => command.name)
  }

  count(name: string): number {
    return this.commands.filter(command => command.name === name).length
  }

  logins(): number {
    return this.datagrams.filter(({ payloadType }) => payloadType === payloadTypes.openSessionRequest).length
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true
    this.#socket.close()
  }

  #receive(datagram: Buffer, reply: (bytes: Buffer) => void): void {
    const packet = parseDatagram(datagram)
    if (packet.kind === 'v1.5') this.#outside(parseRequest(packet.payload), reply)
    if (packet.kind !== 'v2.0') return
    this.datagrams.push({ payloadType: packet.payloadType, payload: Buffer.from(packet.payload) })
    const answer = (payloadType: number, payload: Buffer | undefined) => payload && reply(encodeV20({ payloadType, payload }))
    switch (packet.payloadType) {
      case payloadTypes.openSessionRequest:
        answer(payloadTypes.openSessionResponse, this.#open(packet.payload))
        break
      case payloadTypes.rakp1:
        setTimeout(answer, this.hashMs, payloadTypes.rakp2, this.#rakp1(packet.payload))
        break
      case payloadTypes.rakp3:
        answer(payloadTypes.rakp4, this.#rakp3(packet.payload))
        break
      case payloadTypes.ipmi:
        this.#inside(packet, reply)
    }
  }

  #outside(request: Parsed<IpmiRequest> | undefined, reply: (bytes: Buffer) => void): void {
    if (!request || !this.answersProbe) return
    const answer = (data: Buffer) => reply(encodeV15(encodeResponse({ ...request, netFn: request.netFn + 1, completionCode: 0, data })))
    if (request.command === commands.getChannelAuthCapabilities.command) answer(this.authCapabilities)
    if (request.command !== commands.getChannelCipherSuites.command) return
    const records: SuiteRecord[] = this.#options.suites.map(id => ({
      id,
      authentication: [suites[id].authentication],
      integrity: [suites[id].integrity],
      confidentiality: [suites[id].confidentiality],
    }))
    const page = encodeSuiteRecords([...this.moreSuites, ...records]).subarray(16 * ((request.data.at(-1) ?? 0) & 0x3f))
    answer(Buffer.concat([Buffer.of(1), page.subarray(0, 16)]))
  }

  #open(payload: Buffer): Buffer | undefined {
    const request = parseOpenSessionRequest(payload)
    if (!request) return undefined
    const { tag, consoleId, privilege } = request
    const refusal = this.setup('open', payload)
    if (refusal === 'silence') return undefined
    const asked = suiteOfAlgorithms(request.algorithms)
    const suiteId = this.substitute ?? asked?.id
    if (refusal !== undefined) return encodeOpenSessionResponse({ tag, status: refusal, consoleId })
    if (suiteId === undefined || (!this.substitute && !this.#options.suites.includes(suiteId))) {
      return encodeOpenSessionResponse({ tag, status: 0x11, consoleId })
    }
    const bmcId = randomBytes(4).readUInt32LE() || 1
    this.#half.set(bmcId, { consoleId, suiteId, privilege })
    return encodeOpenSessionResponse({ tag, status: 0, privilege, consoleId, bmcId, algorithms: suites[suiteId] })
  }

  #rakp1(payload: Buffer): Buffer | undefined {
    const rakp1 = parseRakp1(payload)
    const half = rakp1 && this.#half.get(rakp1.bmcId)
    if (!rakp1 || !half) return undefined
    const refusal = this.setup('rakp1', payload)
    if (refusal === 'silence') return undefined
    const status = refusal ?? (rakp1.user.toString() === this.#options.user ? undefined : 0x0d)
    if (status !== undefined) return encodeRakp2({ tag: rakp1.tag, status, consoleId: half.consoleId })
    half.exchange = this.#exchange(rakp1, half)
    const code = rakp2Code(half.exchange, this.#passwordKey())
    return encodeRakp2({ tag: rakp1.tag, status: 0, ...half.exchange, code })
  }

  #exchange(rakp1: Rakp1, half: { consoleId: number; suiteId: SuiteId }): Exchange {
    return {
      suite: suites[half.suiteId],
      consoleId: half.consoleId,
      bmcId: rakp1.bmcId,
      consoleRandom: Buffer.from(rakp1.consoleRandom),
      bmcRandom: randomBytes(16),
      guid: Buffer.alloc(16, 0xee),
      role: rakp1.role,
      user: Buffer.from(rakp1.user),
    }
  }

  #rakp3(payload: Buffer): Buffer | undefined {
    const rakp3 = parseRakp3(payload)
    const half = rakp3 && this.#half.get(rakp3.bmcId)
    if (!rakp3 || !half?.exchange) return undefined
    this.#half.delete(rakp3.bmcId)
    if (rakp3.status !== 0) return undefined
    const refusal = this.setup('rakp3', payload)
    if (refusal === 'silence') return undefined
    const { exchange } = half
    const right = codesMatch(rakp3.code, rakp3Code(exchange, this.#passwordKey()))
    const status = refusal ?? (right ? undefined : 0x0f)
    if (status !== undefined) return encodeRakp4({ tag: rakp3.tag, status, consoleId: exchange.consoleId })
    const keys = deriveKeys(exchange, this.#passwordKey(), paddedKey(Buffer.from(this.#options.kg)))
    this.#sessions.set(rakp3.bmcId, { exchange, keys, sequence: 0, privilege: 2 })
    return encodeRakp4({ tag: rakp3.tag, status: 0, consoleId: exchange.consoleId, check: rakp4Check(exchange, keys) })
  }

  #inside(packet: V20Packet, reply: (bytes: Buffer) => void): void {
    const session = this.#sessions.get(packet.sessionId)
    const opened = session && unseal(packet, session.keys)
    const request = opened?.kind === 'payload' ? parseRequest(opened.payload) : undefined
    if (!session || !request) return
    const name = nameOf(request)
    const received = {
      name,
      data: Buffer.from(request.data),
      sequence: packet.sequence,
      rqSeq: request.sequence,
      sessionId: packet.sessionId,
    }
    this.commands.push(received)
    if (this.#outstanding > 0) this.overlaps += 1
    const answer = this.script(received) ?? this.#obey(received, session)
    if (answer === 'silence') return
    this.#outstanding += 1
    setImmediate(() => {
      this.#outstanding -= 1
      session.sequence += 1
      const payload = encodeResponse({
        netFn: request.netFn + 1,
        command: request.command,
        sequence: request.sequence,
        completionCode: answer.code,
        data: answer.data ?? Buffer.alloc(0),
      })
      const { exchange, keys, sequence } = session
      const sealed = seal({ payloadType: payloadTypes.ipmi, sessionId: exchange.consoleId, sequence, payload, iv: randomBytes(16) }, keys)
      for (const bytes of this.outgoing(sealed, session)) reply(bytes)
    })
  }

  /** What an ordinary BMC does. */
  #obey(command: ReceivedCommand, session: BmcSession): Answer {
    switch (command.name) {
      case 'setSessionPrivilege':
        session.privilege = command.data.readUInt8(0)
        return { code: 0, data: Buffer.of(session.privilege) }
      case 'closeSession':
        this.#sessions.delete(command.sessionId)
        return { code: 0 }
      case 'getChassisStatus': {
        const faultless = { overload: false, interlock: false, fault: false, controlFault: false, restorePolicy: 'off' } as const
        return { code: 0, data: encodeChassisStatus({ power: this.power, ...faultless }) }
      }
      case 'chassisControl':
        if (session.privilege < 3) return { code: 0xd4 }
        this.power = [0, 5].includes(command.data.readUInt8(0)) ? 'off' : 'on'
        return { code: 0 }
      case 'chassisIdentify':
      case 'setBootOptions':
        return { code: 0 }
      default:
        return { code: 0xc1 }
    }
  }

  #passwordKey(): Buffer {
    return paddedKey(Buffer.from(this.#options.password))
  }
}

function nameOf(request: IpmiRequest): string {
  const known = Object.entries(commands).find(([, command]) => command.netFn === request.netFn && command.command === request.command)
  return known?.[0] ?? `${request.netFn}/${request.command}`
}
