/**
 * A serial console over LAN: characters in numbered packets, one under way in each direction, each acknowledged and repeated until it is
 * (IPMI v2.0 15.3 to 15.11). The session is the console's own, kept alive for as long as the console lives.
 */
import { Readable } from 'node:stream'
import { DriverError, type SerialConsole } from '../driver.ts'
import { Failure } from '../failure.ts'
import { completed, type IpmiClient, tooShort } from './client.ts'
import {
  commands,
  encodeSol,
  hexByte,
  nextSolSequence,
  parseSol,
  parseSolGrant,
  payloadTypes,
  type SolPacket,
  solActivation,
  solActivationCodes,
  solDeactivation,
  solHeadBytes,
  solOperation,
  solStatus,
} from './codec.ts'
import { pause } from './login.ts'
import type { Session } from './session.ts'

const tried = 'serial console'

/** What waits here for its reader; a BMC that gets no acknowledgement holds its characters back. */
const waitingBytesMax = 256 * 1024
/** Characters in one packet: what every BMC seen takes, whatever it says. */
const packetBytesMax = 200
/** The first wait for an acknowledgement, growing by half; real BMCs wait 50 to 500 ms themselves before they repeat. */
const acknowledgeMs = 250
/** A BMC that takes nothing for so long does not listen any more. */
const writeLimitMs = 15_000
/** A pause before what was not taken is offered again: the machine's line is slower than the network. */
const refusedPauseMs = 50
/** A console that only listens says so often that it is there: BMCs drop sessions after 30 to 60 s of silence. */
const keepAliveEveryMs = 20_000
const keepAliveLimitMs = 10_000

/** Opens the console. Throws DriverError: `busy` where another has it and `holder` is `leave`. */
export async function openSolConsole(
  client: IpmiClient,
  options: { holder: 'leave' | 'end'; signal: AbortSignal },
): Promise<SerialConsole> {
  const session = await client.openSeparate(tried, options.signal)
  return client.told(tried, async () => {
    try {
      return new SolConsole(client, session, await activate(session, options))
    } catch (error) {
      await session.close()
      throw error
    }
  })
}

/** Activates SOL in the session; answers how many characters a packet may hold. */
async function activate(session: Session, { holder, signal }: { holder: 'leave' | 'end'; signal: AbortSignal }): Promise<number> {
  const ask = async (command: (typeof commands)['activatePayload' | 'deactivatePayload'], data: Buffer) => {
    const reply = await session.request({ ...command, data, sends: 'repeatedly', limitMs: 10_000, signal })
    if (!reply) throw silent('the console was asked for, and nothing came back')
    return reply
  }
  let reply = await ask(commands.activatePayload, solActivation)
  if (reply.completionCode === solActivationCodes.heldByOther && holder === 'end') {
    await ask(commands.deactivatePayload, solDeactivation)
    reply = await ask(commands.activatePayload, solActivation)
  }
  const refusal = refusals.get(reply.completionCode)
  if (refusal) throw new Failure({ ...refusal, got: `Activate Payload answered ${hexByte(reply.completionCode)} (${refusal.meaning})` })
  const data = completed(reply, 'Activate Payload', 'Serial over LAN is not offered by this BMC, or is switched off in its settings.')
  const grant = parseSolGrant(data)
  if (!grant) throw tooShort('Activate Payload', data)
  return Math.max(1, Math.min(grant.inboundBytes - solHeadBytes, packetBytesMax))
}

const heldHint = 'Somebody else has the console open. Close that one, or end it by asking for the console with --take-over.'

const refusals = new Map(
  [
    {
      code: solActivationCodes.heldByOther,
      kind: 'busy' as const,
      meaning: 'another console has it',
      hint: heldHint,
    },
    {
      code: solActivationCodes.disabled,
      kind: 'unsupported' as const,
      meaning: 'serial over LAN is switched off',
      hint: 'Switch serial over LAN on in the settings of the BMC, for this account and this channel.',
    },
    {
      code: solActivationCodes.limit,
      kind: 'busy' as const,
      meaning: 'no room for one more console',
      hint: 'The BMC has no room for one more console. Close others, or try again in a minute.',
    },
    {
      code: solActivationCodes.noEncryption,
      kind: 'refused' as const,
      meaning: 'not with encryption',
      hint: 'This BMC gives the console only without encryption, which Muster does not take: what is typed there are passwords.',
    },
  ].map(({ code, ...refusal }) => [code as number, refusal]),
)

function silent(got: string): Failure {
  return new Failure({
    kind: 'silent',
    got,
    outcome: 'unknown',
    hint: 'The BMC may be restarting or overloaded, or the path to it loses packets. Open the console again.',
  })
}

interface UnderWay {
  readonly sequence: number
  readonly answered: (packet: SolPacket) => void
}

class SolConsole implements SerialConsole {
  readonly output: Readable
  readonly #client: IpmiClient
  readonly #session: Session
  readonly #packetBytes: number
  readonly #closing = new AbortController()
  readonly #keepAlive: NodeJS.Timeout
  /** The last packet the BMC sent with characters, and how many of them were taken. */
  #heard = { sequence: 0, taken: 0 }
  #sequence = 0
  #underWay: UnderWay | undefined
  #turn: Promise<unknown> = Promise.resolve()
  #lost: Error | undefined
  #closed: Promise<void> | undefined

  constructor(client: IpmiClient, session: Session, packetBytes: number) {
    this.#client = client
    this.#session = session
    this.#packetBytes = packetBytes
    this.output = new Readable({ highWaterMark: waitingBytesMax, read() {} })
    // Somebody who never reads must not bring the process down by it; who reads gets it.
    this.output.on('error', () => undefined)
    session.listen(payloadTypes.sol, { hear: payload => this.#hear(payload), lost: error => this.#lose(silent(error.message)) })
    this.#keepAlive = setInterval(() => void this.#stayAlive(), keepAliveEveryMs)
    this.#keepAlive.unref()
  }

  write(data: Buffer): Promise<void> {
    return this.#inTurn(async () => {
      for (let rest = data; rest.length > 0; ) {
        const taken = await this.#deliver(rest.subarray(0, this.#packetBytes), 0)
        rest = rest.subarray(taken)
      }
    })
  }

  sendBreak(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#deliver(Buffer.alloc(0), solOperation.break)
    })
  }

  close(): Promise<void> {
    this.#closed ??= this.#end()
    return this.#closed
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #end(): Promise<void> {
    clearInterval(this.#keepAlive)
    this.#closing.abort()
    await this.#turn
    if (!this.#lost) {
      const request = { ...commands.deactivatePayload, data: solDeactivation, sends: 'once' as const, limitMs: 1_000 }
      // A BMC that is gone has ended the console by itself.
      await this.#session.request({ ...request, signal: new AbortController().signal }).catch(() => undefined)
    }
    this.output.push(null)
    await this.#session.close()
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    const done = this.#client.told(tried, async () => {
      await this.#turn
      if (this.#lost) throw this.#lost
      if (this.#closing.signal.aborted) throw silent('the console is closed')
      await work()
    })
    this.#turn = done.catch(() => undefined)
    return done
  }

  /** One packet, repeated until it is answered. Answers how many of its characters the BMC took: none of them is offered again under this number. */
  async #deliver(data: Buffer, flags: number): Promise<number> {
    const { signal } = this.#closing
    const end = performance.now() + writeLimitMs
    this.#sequence = nextSolSequence(this.#sequence)
    const sequence = this.#sequence
    const payload = encodeSol({ sequence, acknowledged: 0, accepted: 0, flags, data })
    for (let waitMs = acknowledgeMs; ; waitMs *= 1.5) {
      this.#session.send(payloadTypes.sol, payload)
      const answer = await this.#answerTo(sequence, Math.min(waitMs, end - performance.now()))
      if (this.#lost) throw this.#lost
      if (answer) {
        const taken = Math.min(answer.accepted, data.length)
        if (taken === data.length) return taken
        if (performance.now() >= end) throw silent('the BMC takes no characters')
        await pause(refusedPauseMs, signal)
        if (taken > 0) return taken
      } else if (performance.now() >= end) {
        const failure = silent('characters were sent, and the BMC did not acknowledge them')
        this.#lose(failure)
        throw failure
      }
    }
  }

  #answerTo(sequence: number, waitMs: number): Promise<SolPacket | undefined> {
    return new Promise(resolve => {
      const done = (packet?: SolPacket) => {
        clearTimeout(timer)
        this.#closing.signal.removeEventListener('abort', given)
        this.#underWay = undefined
        resolve(packet)
      }
      const given = () => {
        this.#lost ??= silent('the console is closed')
        done()
      }
      const timer = setTimeout(done, Math.max(0, waitMs))
      this.#closing.signal.addEventListener('abort', given, { once: true })
      this.#underWay = { sequence, answered: done }
    })
  }

  #hear(payload: Buffer): void {
    const packet = parseSol(payload)
    if (!packet) return
    if (packet.acknowledged !== 0 && packet.acknowledged === this.#underWay?.sequence) this.#underWay.answered(packet)
    if (packet.sequence !== 0) this.#take(packet)
    if (packet.flags & solStatus.deactivated) {
      this.#lose(
        new Failure({ kind: 'refused', got: 'the BMC ended the console: another one took it over, or the BMC restarts', hint: heldHint }),
      )
    }
  }

  /** Takes characters that are new, as far as there is room, and says how many. */
  #take({ sequence, data }: SolPacket): void {
    // One packet is under way at a time, so the number before the last is a late repetition of what was taken long ago.
    const isLate = this.#heard.sequence !== 0 && nextSolSequence(sequence) === this.#heard.sequence
    if (!isLate) {
      if (sequence !== this.#heard.sequence) this.#heard = { sequence, taken: 0 }
      const fresh = data.subarray(this.#heard.taken)
      const room = Math.max(0, waitingBytesMax - this.output.readableLength)
      const taken = fresh.subarray(0, room)
      if (taken.length > 0) this.output.push(Buffer.from(taken))
      this.#heard.taken += taken.length
    }
    const accepted = isLate ? data.length : Math.min(this.#heard.taken, data.length)
    const flags = accepted < data.length ? solOperation.nack : 0
    this.#session.send(payloadTypes.sol, encodeSol({ sequence: 0, acknowledged: sequence, accepted, flags, data: Buffer.alloc(0) }))
  }

  async #stayAlive(): Promise<void> {
    const request = { ...commands.getDeviceId, data: Buffer.alloc(0), sends: 'repeatedly' as const, limitMs: keepAliveLimitMs }
    try {
      const reply = await this.#session.request({ ...request, signal: this.#closing.signal })
      if (!reply && !this.#closing.signal.aborted) this.#lose(silent('the BMC no longer answers in the session of the console'))
    } catch (error) {
      if (!this.#closing.signal.aborted) this.#lose(silent((error as Error).message))
    }
  }

  #lose(failure: Failure): void {
    if (this.#lost || this.#closing.signal.aborted) return
    this.#lost = failure
    clearInterval(this.#keepAlive)
    this.output.destroy(new DriverError({ tried, target: this.#client.target, ...failure.facts, cause: failure }))
  }
}
