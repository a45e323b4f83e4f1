// The serial line behind a BMC, and serial over LAN in front of it (IPMI v2.0 15): one console at a time; one packet under way, repeated until it is
// acknowledged. There is a timer only while characters wait for a console.
import { encodeSol, nextSolSequence, parseSol, type SolPacket, solHeadBytes, solOperation, solStatus } from '@muster/drivers/ipmi/codec'
import type { OpenSession } from './sessions.ts'

export interface SerialLine {
  /** What a console typed. */
  typed(characters: Buffer): void
  /** The break signal. */
  broken?(): void
}

/** What waits for a console at most; the oldest goes first, as in a real BMC. */
const waitingBytesMax = 64 * 1024
const packetBytes = 255 - solHeadBytes
const repeatEveryMs = 100
const repeatsMax = 7

export class Serial {
  readonly #line: SerialLine
  readonly #seal: (session: OpenSession, payload: Buffer) => Buffer
  /** Where consoles find us; known once the socket is bound. */
  port = 0
  #console: OpenSession | undefined
  #waiting = Buffer.alloc(0)
  #sequence = 0
  #underWay: { packet: SolPacket; repeats: number; timer: NodeJS.Timeout } | undefined
  #heard = { sequence: 0, taken: 0 }
  #isOverrun = false

  /** `seal` makes a datagram of a SOL payload for a session. */
  constructor(line: SerialLine, seal: (session: OpenSession, payload: Buffer) => Buffer) {
    this.#line = line
    this.#seal = seal
  }

  activate(session: OpenSession): 'active' | 'held by another' {
    if (this.#console && this.#console !== session) return 'held by another'
    this.#console = session
    this.#heard = { sequence: 0, taken: 0 }
    this.#pump()
    return 'active'
  }

  /** Ends the console, whoever has it: an administrator frees the line like this. Its holder is told. */
  deactivate(): 'ended' | 'none' {
    const session = this.#console
    if (!session) return 'none'
    this.#tell(session, { sequence: 0, acknowledged: 0, accepted: 0, flags: solStatus.deactivated, data: Buffer.alloc(0) })
    this.#release()
    return 'ended'
  }

  sessionEnded(id: number): void {
    if (this.#console?.id === id) this.#release()
  }

  /** Stops repeating: the BMC goes away. */
  stop(): void {
    this.#release()
  }

  /** Characters of the machine. Without a console they are lost, as on a real line. */
  write(characters: Buffer): void {
    if (!this.#console) return
    const all = Buffer.concat([this.#waiting, characters])
    this.#isOverrun ||= all.length > waitingBytesMax
    this.#waiting = all.subarray(Math.max(0, all.length - waitingBytesMax))
    this.#pump()
  }

  /** A SOL packet of a session. */
  hear(session: OpenSession, payload: Buffer): void {
    const packet = parseSol(payload)
    if (!packet || session !== this.#console) return
    this.#acknowledged(packet)
    if (packet.sequence === 0) return
    // A repetition is acknowledged again and not typed again.
    if (packet.sequence !== this.#heard.sequence) {
      this.#heard = { sequence: packet.sequence, taken: packet.data.length }
      if (packet.flags & solOperation.break) this.#line.broken?.()
      if (packet.data.length > 0) this.#line.typed(Buffer.from(packet.data))
    }
    this.#tell(session, { sequence: 0, acknowledged: packet.sequence, accepted: this.#heard.taken, flags: 0, data: Buffer.alloc(0) })
    this.#pump()
  }

  #acknowledged(packet: SolPacket): void {
    if (!this.#underWay || packet.acknowledged !== this.#underWay.packet.sequence) return
    clearTimeout(this.#underWay.timer)
    // What the console had no room for goes again, under a new number.
    this.#waiting = Buffer.concat([this.#underWay.packet.data.subarray(packet.accepted), this.#waiting])
    this.#underWay = undefined
    if (packet.accepted > 0 || !(packet.flags & solOperation.nack)) this.#pump()
    else setTimeout(() => this.#pump(), repeatEveryMs).unref()
  }

  #pump(): void {
    const session = this.#console
    if (!session || this.#underWay || this.#waiting.length === 0) return
    const data = Buffer.from(this.#waiting.subarray(0, packetBytes))
    this.#waiting = this.#waiting.subarray(data.length)
    this.#sequence = nextSolSequence(this.#sequence)
    const flags = this.#isOverrun ? solStatus.overrun : 0
    this.#isOverrun = false
    this.#offer(session, { sequence: this.#sequence, acknowledged: 0, accepted: 0, flags, data }, 0)
  }

  #offer(session: OpenSession, packet: SolPacket, repeats: number): void {
    this.#tell(session, packet)
    const timer = setTimeout(() => {
      if (repeats < repeatsMax) return this.#offer(session, packet, repeats + 1)
      // Nobody listens: the characters are lost, the console is not.
      this.#underWay = undefined
      this.#pump()
    }, repeatEveryMs)
    timer.unref()
    this.#underWay = { packet, repeats, timer }
  }

  #tell(session: OpenSession, packet: SolPacket): void {
    session.send(this.#seal(session, encodeSol(packet)))
  }

  #release(): void {
    if (this.#underWay) clearTimeout(this.#underWay.timer)
    this.#underWay = undefined
    this.#console = undefined
    this.#waiting = Buffer.alloc(0)
  }
}

/** Where nobody is behind the line. */
export const deadLine: SerialLine = { typed: () => undefined }
