/**
 * An open session: sealed requests out, verified replies in, one at a time (IPMI v2.0 13.28 and 6.12; facts 4.4).
 */
import {
  type Command,
  commands,
  encodeRequest,
  type IpmiResponse,
  parseDatagram,
  parseResponse,
  payloadTypes,
  privileges,
  seal,
  unseal,
} from './codec.ts'
import type { Link } from './link.ts'
import type { Login } from './login.ts'
import { randomPortion } from './random.ts'
import { ReceiveWindow } from './receive-window.ts'
import type { Timers } from './timers.ts'

export interface Request extends Command {
  data: Buffer
  /** `repeatedly` until answered, or `once` for commands that must not happen twice. */
  sends: 'repeatedly' | 'once'
  /** The wait in all. */
  limitMs: number
  signal: AbortSignal
}

const duplicateCode = 0xcf

export class Session {
  readonly #link: Link
  readonly #login: Login
  readonly #timers: Timers
  readonly #now: () => number
  readonly #window = new ReceiveWindow()
  /** The last number used: the first packet carries 1. Strict BMCs drop anything else (Cisco, Dell R610). */
  #sequence = 0
  #rqSeq = 0
  /** Numbers of commands that were repeated, with how often to pass them over: late replies to them may still come. */
  readonly #resting = new Map<number, number>()
  #roundTripMs: number | undefined
  /** What Set Session Privilege has reached; sessions start at USER (IPMI v2.0 22.18). */
  privilege: number = privileges.USER

  constructor(login: Login, options: { timers: Timers; now: () => number }) {
    this.#login = login
    this.#link = login.link
    this.#timers = options.timers
    this.#now = options.now
  }

  /** After this long without an answer, a session kept from before is taken for lost; longer for BMCs known to be slow. */
  get staleMs(): number {
    return Math.max(this.#timers.staleMs, 8 * (this.#roundTripMs ?? 0))
  }

  /**
   * The BMC's reply, or undefined if there was none within `limitMs`. A repeat keeps the command's rqSeq, so that the BMC can see it
   * is one, and takes a new session sequence number. Throws what Link.exchange throws.
   */
  async request(request: Request): Promise<IpmiResponse | undefined> {
    const end = this.#now() + request.limitMs
    let rqSeq = this.#nextRqSeq()
    let waitMs = request.sends === 'once' ? request.limitMs : this.#firstWaitMs()
    for (let repeats = 0; ; repeats++) {
      const sentAt = this.#now()
      let duplicate = false
      const payload = encodeRequest({ ...request, sequence: rqSeq })
      const response = await this.#link.exchange(this.#seal(payloadTypes.ipmi, payload), {
        waitMs: Math.max(0, Math.min(waitMs, end - sentAt)),
        signal: request.signal,
        accept: datagram => {
          const opened = this.#open(datagram, payloadTypes.ipmi)
          // Checksums are not judged here: the authcode held, and some Supermicro X9 compute them wrongly.
          const reply = opened && parseResponse(opened)
          if (!reply || !isReplyTo(reply, request, rqSeq)) return undefined
          duplicate ||= reply.completionCode === duplicateCode
          return reply.completionCode === duplicateCode ? undefined : reply
        },
      })
      // Only an unrepeated question has a known answer time.
      if (response && repeats === 0) this.#measured(this.#now() - sentAt)
      if (response) return response
      if (request.sends === 'once' || this.#now() >= end) return undefined
      this.#resting.set(rqSeq, 2)
      // "Duplicated request" and no reply in the whole wait: this BMC will say nothing else about that number.
      if (duplicate) rqSeq = this.#nextRqSeq()
      waitMs *= 1.5
    }
  }

  /** Sends a payload that is no request and has no reply. */
  send(payloadType: number, payload: Buffer): void {
    this.#link.send(this.#seal(payloadType, payload))
  }

  /** Hands over the payloads of one type that the BMC sends by itself; `lost` when the network says that it is gone. */
  listen(payloadType: number, listener: { hear: (payload: Buffer) => void; lost: (error: Error) => void }): void {
    this.#link.listen({
      hear: datagram => {
        const payload = this.#open(datagram, payloadType)
        if (payload) listener.hear(payload)
      },
      lost: listener.lost,
    })
  }

  /** Close Session: sent once, one short wait, whatever comes back (many BMCs answer nothing). Closes the link. Never throws. */
  async close(): Promise<void> {
    const data = Buffer.alloc(4)
    data.writeUInt32LE(this.#login.bmcId)
    try {
      await this.request({
        ...commands.closeSession,
        data,
        sends: 'once',
        limitMs: this.#timers.closeMs,
        signal: new AbortController().signal,
      })
    } catch {
      // A closed port or a lost route: the session is gone, which is what was wanted.
    }
    this.abandon()
  }

  /** Closes the link without a word to a BMC that no longer knows the session. */
  abandon(): void {
    this.#link[Symbol.dispose]()
  }

  #seal(payloadType: number, payload: Buffer): Buffer {
    this.#sequence = (this.#sequence + 1) >>> 0 || 1
    return seal({ payloadType, sessionId: this.#login.bmcId, sequence: this.#sequence, payload, iv: randomPortion(16) }, this.#login.keys)
  }

  /** The payload of a datagram of this session that is authentic, new and of this type; undefined for all else. */
  #open(datagram: Buffer, payloadType: number): Buffer | undefined {
    const packet = parseDatagram(datagram)
    if (packet.kind !== 'v2.0' || packet.payloadType !== payloadType || packet.sessionId !== this.#login.consoleId) return undefined
    const opened = unseal(packet, this.#login.keys)
    if (opened.kind === 'refused' || !this.#window.take(packet.sequence)) return undefined
    return opened.payload
  }

  #nextRqSeq(): number {
    do {
      this.#rqSeq = (this.#rqSeq + 1) & 0x3f
    } while (this.#rests(this.#rqSeq))
    return this.#rqSeq
  }

  #rests(rqSeq: number): boolean {
    const left = this.#resting.get(rqSeq)
    if (left === undefined) return false
    if (left > 1) this.#resting.set(rqSeq, left - 1)
    else this.#resting.delete(rqSeq)
    return true
  }

  #measured(ms: number): void {
    this.#roundTripMs = this.#roundTripMs === undefined ? ms : this.#roundTripMs + (ms - this.#roundTripMs) / 8
  }

  #firstWaitMs(): number {
    return Math.max(this.#timers.commandMs, 4 * (this.#roundTripMs ?? 0))
  }
}

function isReplyTo(reply: IpmiResponse, request: Request, rqSeq: number): boolean {
  return reply.netFn === request.netFn + 1 && reply.command === request.command && reply.sequence === rqSeq
}
