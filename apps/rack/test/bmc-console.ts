// A console for the tests: the other half of the protocol, made of the shared codec, with nothing hidden. Every packet can be looked
// at, repeated or spoiled, which a proper client would not allow.
import { randomBytes } from 'node:crypto'
import { createSocket } from 'node:dgram'
import {
  type Command,
  codesMatch,
  deriveKeys,
  type Exchange,
  encodeOpenSessionRequest,
  encodeRakp1,
  encodeRakp3,
  encodeRequest,
  encodeV20,
  type IpmiResponse,
  paddedKey,
  parseDatagram,
  parseOpenSessionResponse,
  parseRakp2,
  parseRakp4,
  parseResponse,
  payloadTypes,
  rakp2Code,
  rakp3Code,
  rakp4Check,
  roleNameOnly,
  type SessionKeys,
  type SuiteId,
  seal,
  suites,
  unseal,
} from '@muster/drivers/ipmi/codec'

/** Sends a datagram and gives the answer, or undefined where none came. */
export type Send = (datagram: Buffer) => Promise<Buffer | undefined> | Buffer | undefined

export interface Login {
  suite?: SuiteId
  user: string
  password: string
  kg?: Buffer
  /** 2 to 4. Default 4. */
  privilege?: number
  lookup?: 'name' | 'name and privilege'
}

/** A login that was refused: at which message, with which status; status -1 where nothing came, -2 where the BMC's proof was wrong. */
export class LoginRefused extends Error {
  readonly at: 'open' | 'rakp2' | 'rakp4'
  readonly status: number
  constructor(at: 'open' | 'rakp2' | 'rakp4', status: number) {
    super(`login refused at ${at} with status ${status}`)
    this.at = at
    this.status = status
  }
}

export async function openSession(send: Send, { suite: id = 17, consoleId = randomId() }: { suite?: SuiteId; consoleId?: number } = {}) {
  const request = encodeOpenSessionRequest({ tag: 1, privilege: 4, consoleId, algorithms: suites[id] })
  const answer = parseOpenSessionResponse(await payloadOf(send, payloadTypes.openSessionRequest, request))
  if (!answer) throw new LoginRefused('open', -1)
  if (!('bmcId' in answer)) throw new LoginRefused('open', answer.status)
  return answer
}

/** Logs in as a good console does. Throws LoginRefused. */
export async function logIn(send: Send, login: Login): Promise<ConsoleSession> {
  const suite = suites[login.suite ?? 17]
  const { consoleId, bmcId } = await openSession(send, { suite: suite.id })
  const role = (login.privilege ?? 4) | (login.lookup === 'name and privilege' ? 0 : roleNameOnly)
  const user = Buffer.from(login.user)
  const consoleRandom = randomBytes(16)
  const rakp2 = parseRakp2(await payloadOf(send, payloadTypes.rakp1, encodeRakp1({ tag: 2, bmcId, consoleRandom, role, user })))
  if (!rakp2) throw new LoginRefused('rakp2', -1)
  if (!('code' in rakp2)) throw new LoginRefused('rakp2', rakp2.status)
  const exchange: Exchange = { suite, consoleId, bmcId, consoleRandom, bmcRandom: rakp2.bmcRandom, guid: rakp2.guid, role, user }
  const key = paddedKey(Buffer.from(login.password))
  if (!codesMatch(rakp2Code(exchange, key), rakp2.code)) throw new LoginRefused('rakp2', -2)
  const rakp3 = encodeRakp3({ tag: 3, status: 0, bmcId, code: rakp3Code(exchange, key) })
  const rakp4 = parseRakp4(await payloadOf(send, payloadTypes.rakp3, rakp3))
  if (!rakp4) throw new LoginRefused('rakp4', -1)
  if (!('check' in rakp4)) throw new LoginRefused('rakp4', rakp4.status)
  const keys = deriveKeys(exchange, key, login.kg && paddedKey(login.kg))
  if (!codesMatch(rakp4Check(exchange, keys), rakp4.check)) throw new LoginRefused('rakp4', -2)
  return new ConsoleSession(send, { consoleId, bmcId, keys })
}

export class ConsoleSession {
  readonly bmcId: number
  readonly #send: Send
  readonly #consoleId: number
  readonly #keys: SessionKeys
  /** The session sequence number the next packet carries, and its rqSeq: tests set them at will. */
  sequence = 1
  rqSeq = 1

  constructor(send: Send, { consoleId, bmcId, keys }: { consoleId: number; bmcId: number; keys: SessionKeys }) {
    this.#send = send
    this.bmcId = bmcId
    this.#consoleId = consoleId
    this.#keys = keys
  }

  /** Sends a command and gives the answer; undefined where the BMC kept silent. */
  async ask(command: Command, data: readonly number[] | Buffer = []): Promise<IpmiResponse | undefined> {
    const datagram = this.packet(command, data)
    this.rqSeq = (this.rqSeq + 1) % 64
    const answer = await this.#send(datagram)
    return answer && this.read(answer)
  }

  /** The next packet, sealed. Advances the session's sequence number, not rqSeq. */
  packet(command: Command, data: readonly number[] | Buffer = []): Buffer {
    const payload = encodeRequest({ ...command, sequence: this.rqSeq, data: Buffer.from(data) })
    const sequence = this.sequence++
    return seal({ payloadType: payloadTypes.ipmi, sessionId: this.bmcId, sequence, payload, iv: randomBytes(16) }, this.#keys)
  }

  read(datagram: Buffer): IpmiResponse | undefined {
    const packet = parseDatagram(datagram)
    if (packet.kind !== 'v2.0' || packet.sessionId !== this.#consoleId) return undefined
    const opened = unseal(packet, this.#keys)
    return opened.kind === 'payload' ? parseResponse(opened.payload) : undefined
  }

  async raise(level: number): Promise<number | undefined> {
    return (await this.ask(setPrivilege, [level]))?.completionCode
  }

  async close(): Promise<void> {
    const id = Buffer.alloc(4)
    id.writeUInt32LE(this.bmcId)
    await this.ask({ netFn: 6, command: 0x3c }, id)
  }
}

/** A socket of its own for one BMC; an answer is waited for `timeoutMs`. */
export async function udpSend({
  address,
  port,
  timeoutMs = 2_000,
}: {
  address: string
  port: number
  timeoutMs?: number
}): Promise<AsyncDisposable & { send: Send }> {
  const socket = createSocket('udp4')
  await new Promise<void>(resolve => socket.connect(port, address, resolve))
  const send = async (datagram: Buffer) => {
    const { promise, resolve } = Promise.withResolvers<Buffer | undefined>()
    const timer = setTimeout(() => resolve(undefined), timeoutMs)
    socket.once('message', resolve)
    socket.once('error', () => resolve(undefined))
    socket.send(datagram)
    const answer = await promise
    clearTimeout(timer)
    socket.removeAllListeners('message').removeAllListeners('error')
    return answer
  }
  return {
    send,
    [Symbol.asyncDispose]: () => new Promise<void>(resolve => socket.close(() => resolve())),
  }
}

/** One login, one command at OPERATOR, one goodbye. Returns the completion code and data; throws where there is no answer. */
export async function order(
  bmc: { address: string; port: number; user: string; password: string },
  command: Command,
  data: readonly number[] = [],
): Promise<IpmiResponse> {
  await using udp = await udpSend(bmc)
  const session = await logIn(udp.send, { user: bmc.user, password: bmc.password, suite: 3 })
  await session.raise(3)
  const answer = await session.ask(command, data)
  await session.close()
  if (!answer) throw new Error(`no answer to command ${command.netFn}/${command.command} from ${bmc.address}:${bmc.port}`)
  return answer
}

const setPrivilege = { netFn: 6, command: 0x3b }

async function payloadOf(send: Send, payloadType: number, payload: Buffer): Promise<Buffer> {
  const answer = await send(encodeV20({ payloadType, payload }))
  const packet = answer && parseDatagram(answer)
  return packet?.kind === 'v2.0' ? packet.payload : Buffer.alloc(0)
}

function randomId(): number {
  return randomBytes(4).readUInt32LE() || 1
}
