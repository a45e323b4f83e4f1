/**
 * One BMC as its callers see it: commands one after the other over a session that is opened when needed, kept while in use, raised
 * in privilege when a command wants it, and replaced without a word when the BMC forgot it.
 */
import { type CallOptions, DriverError, type PowerContext } from '../driver.ts'
import { Failure, unlessAborted } from '../failure.ts'
import { type BmcAddress, printBmcAddress } from './address.ts'
import { type Command, commands, completionCode, hexByte, type IpmiResponse, type Privilege, privileges } from './codec.ts'
import { Link, PortClosed } from './link.ts'
import { type BmcMemory, type Credentials, login, nothingListens, pause } from './login.ts'
import { Session } from './session.ts'
import type { Timers } from './timers.ts'

export interface ClientOptions {
  address: BmcAddress
  credentials: Credentials
  timers: Timers
  /** Shared by all clients of this BMC. */
  memory: BmcMemory
  /** Monotonic milliseconds. */
  now: () => number
  context: PowerContext
}

export interface CommandOptions {
  data?: Buffer
  /** What the command needs, USER if left out. */
  privilege?: Privilege
  /** `once` for a command that must not happen twice: then a lost reply is a Failure with outcome "unknown". */
  sends?: 'repeatedly' | 'once'
  /** For slow commands: the wait in all, in milliseconds. */
  limitMs?: number
}

/** A caller's hold on the client: its turn has come, and commands go to the BMC until the turn ends. */
export interface Turn {
  readonly signal: AbortSignal
  /** The reply, whatever its completion code, after all that can be done about busy and unprivileged answers. */
  command(command: Command, options?: CommandOptions): Promise<IpmiResponse>
  pause(ms: number): Promise<void>
}

/** Retries after a "busy" completion code: with the pauses doubling from busyMs, about 8 s in all. */
const busyRetriesMax = 5

export class IpmiClient {
  readonly target: string
  readonly timers: Timers
  readonly #options: ClientOptions
  readonly #closing = new AbortController()
  #session: Session | undefined
  #queue: Promise<unknown> = Promise.resolve()
  #waiting = 0
  #idle: NodeJS.Timeout | undefined
  #detach = () => {}

  constructor(options: ClientOptions) {
    this.target = `ipmi ${printBmcAddress(options.address)}`
    this.timers = options.timers
    this.#options = options
    const { signal } = options.context
    if (signal?.aborted) this.#closing.abort()
    else if (signal) {
      const abort = () => this.#closing.abort()
      signal.addEventListener('abort', abort, { once: true })
      this.#detach = () => signal.removeEventListener('abort', abort)
    }
  }

  /**
   * Waits for its turn and runs `work`. Every Failure leaves here as a DriverError that says what was tried, on what. The session
   * stays open afterwards for keepAliveMs.
   */
  async run<T>(tried: string, work: (turn: Turn) => Promise<T>, options: CallOptions = {}): Promise<T> {
    const signal = options.signal ? AbortSignal.any([this.#closing.signal, options.signal]) : this.#closing.signal
    return this.told(tried, () => this.#inTurn(signal, () => work(this.#turn(signal))))
  }

  /**
   * Questions outside any session, over a link of their own, in turn like all others. Throws DriverError; a closed port is `silent`.
   */
  ask<T>(tried: string, work: (link: Link) => Promise<T>, options: CallOptions = {}): Promise<T> {
    return this.run(
      tried,
      async turn => {
        using link = await Link.open(this.#options.address, turn.signal)
        try {
          return await work(link)
        } catch (error) {
          throw error instanceof PortClosed ? nothingListens(error) : error
        }
      },
      options,
    )
  }

  /**
   * A session beside the shared one, raised to what the account is granted: for a console, which lives for hours. Its owner closes it.
   * Throws DriverError.
   */
  async openSeparate(tried: string, signal: AbortSignal): Promise<Session> {
    return this.told(tried, async () => {
      const session = await this.#login(signal)
      try {
        if (await this.#raise(session, this.#options.credentials.privilege, this.timers.commandLimitMs, signal)) return session
        throw noReply('Set Session Privilege was not answered', 'none')
      } catch (error) {
        await session.close()
        throw error
      }
    })
  }

  /** Runs `work`; every Failure leaves as a DriverError that says what was tried, on what. */
  async told<T>(tried: string, work: () => Promise<T>): Promise<T> {
    try {
      return await work()
    } catch (error) {
      if (!(error instanceof Failure)) throw error
      throw new DriverError({ tried, target: this.target, ...error.facts, cause: error })
    }
  }

  #log(message: string, facts: Readonly<Record<string, string | number>> = {}): void {
    this.#options.context.log?.(message, { bmc: this.target, ...facts })
  }

  /** Cancels what runs and waits, closes the session on the BMC. Never throws. */
  async close(): Promise<void> {
    this.#closing.abort()
    this.#detach()
    clearTimeout(this.#idle)
    await this.#queue
    await this.#closeSession()
  }

  #turn(signal: AbortSignal): Turn {
    return {
      signal,
      command: (command, options = {}) => this.#command(command, options, signal),
      pause: ms => pause(ms, signal),
    }
  }

  async #inTurn<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    const before = this.#queue
    const { promise: ended, resolve: end } = Promise.withResolvers<void>()
    this.#queue = before.then(() => ended)
    this.#waiting += 1
    clearTimeout(this.#idle)
    try {
      await unlessAborted(before, signal)
      return await work()
    } finally {
      this.#waiting -= 1
      if (this.#waiting === 0) await this.#rest()
      end()
    }
  }

  /** Nobody waits: keep the session for a while, or close it at once. */
  async #rest(): Promise<void> {
    if (!this.#session || this.#closing.signal.aborted) return
    if (this.timers.keepAliveMs === 0) return this.#closeSession()
    this.#idle = setTimeout(() => {
      // In turn, so that a call made meanwhile does not use a session that is being closed.
      const closed = this.#queue.then(() => (this.#waiting === 0 ? this.#closeSession() : undefined))
      this.#queue = closed
    }, this.timers.keepAliveMs)
  }

  async #command(command: Command, options: CommandOptions, signal: AbortSignal): Promise<IpmiResponse> {
    let busy = 0
    let unspecified = 0
    let raised = false
    for (;;) {
      const reply = await this.#exchange(command, options, signal)
      const { remedy, meaning } = completionCode(reply.completionCode)
      const inDoubt = options.sends === 'once' && !notCarriedOut.includes(reply.completionCode)
      if ((remedy === 'retry' || remedy === 'once') && inDoubt) {
        throw noReply(`sent once, answered ${hexByte(reply.completionCode)} (${meaning}); it may have been carried out`, 'unknown')
      }
      if (remedy === 'retry') {
        if (busy === busyRetriesMax) throw stayedBusy(reply.completionCode)
        await pause(this.timers.busyMs * 2 ** busy, signal)
        busy += 1
        this.#log('repeating a command', { why: meaning, repeat: busy })
      } else if (remedy === 'once' && unspecified === 0) {
        unspecified += 1
        await pause(this.timers.busyMs, signal)
      } else if (
        remedy === 'privilege' &&
        !raised &&
        this.#session &&
        this.#session.privilege < privileges[this.#options.credentials.privilege]
      ) {
        raised = true
        const answered = await this.#raise(this.#session, this.#options.credentials.privilege, this.timers.commandLimitMs, signal)
        if (!answered) {
          this.#dropSilentSession()
          throw noReply('Set Session Privilege was not answered', 'none')
        }
      } else if (remedy === 'privilege') {
        throw notPrivileged(`completion code ${hexByte(reply.completionCode)} (${meaning})`, this.#options.credentials.privilege)
      } else {
        return reply
      }
    }
  }

  /**
   * One command with its repeats. Silence in a kept session means that the BMC restarted or forgot it (they do after 30 to 60 s):
   * harmless commands then get a second session without the caller noticing.
   */
  async #exchange(command: Command, options: CommandOptions, signal: AbortSignal): Promise<IpmiResponse> {
    const sends = options.sends ?? 'repeatedly'
    const limitMs = options.limitMs ?? (sends === 'once' ? this.timers.onceMs : this.timers.commandLimitMs)
    for (;;) {
      const kept = this.#session !== undefined
      this.#session ??= await this.#login(signal)
      const session = this.#session
      const patienceMs = kept && sends === 'repeatedly' && options.limitMs === undefined ? session.staleMs : limitMs
      const ready = await this.#raise(session, options.privilege ?? 'USER', patienceMs, signal)
      const request = { ...command, data: options.data ?? Buffer.alloc(0), sends, limitMs: patienceMs, signal }
      const reply = ready ? await replyOrSilence(session.request(request)) : undefined
      if (reply) return reply

      this.#dropSilentSession()
      if (ready && sends === 'once') throw noReply('sent once, no answer; it may have been carried out', 'unknown')
      if (!kept) throw noReply('logged in, but the command was not answered', ready ? 'unknown' : 'none')
      this.#log('the kept session is silent, logging in afresh')
    }
  }

  async #login(signal: AbortSignal): Promise<Session> {
    const { credentials, memory, timers, now } = this.#options
    const startedAt = now()
    const agreed = await login({
      credentials,
      memory,
      timers,
      signal,
      now,
      openLink: () => Link.open(this.#options.address, signal),
      log: (message, facts) => this.#log(message, facts),
    })
    this.#log('logged in', { suite: agreed.keys.suite.id, ms: Math.round(now() - startedAt) })
    return new Session(agreed, { timers, now })
  }

  /** Raises the session to a level if it is below; false if the BMC keeps silent. Throws Failure `privilege` if it says no. */
  async #raise(session: Session, privilege: Privilege, limitMs: number, signal: AbortSignal): Promise<boolean> {
    const granted = this.#options.credentials.privilege
    if (privileges[privilege] > privileges[granted]) {
      throw notPrivileged(`this needs ${privilege}, and the power settings ask for ${granted} only`, granted)
    }
    const level = privileges[privilege]
    if (session.privilege >= level) return true
    const reply = await replyOrSilence(
      session.request({ ...commands.setSessionPrivilege, data: Buffer.of(level), sends: 'repeatedly', limitMs, signal }),
    )
    if (!reply) return false
    if (reply.completionCode !== 0) {
      throw notPrivileged(`Set Session Privilege to ${privilege} answered ${hexByte(reply.completionCode)}`, privilege)
    }
    session.privilege = level
    return true
  }

  async #closeSession(): Promise<void> {
    clearTimeout(this.#idle)
    const session = this.#session
    this.#session = undefined
    await session?.close()
  }

  #dropSilentSession(): void {
    this.#session?.abandon()
    this.#session = undefined
  }
}

/**
 * The reply's data if the command was carried out. Throws Failure `unsupported` or `refused` with what the code means and which
 * command it answered; `hint` is for codes the table does not explain.
 */
export function completed(reply: IpmiResponse, command: string, hint: string): Buffer {
  if (reply.completionCode === 0) return reply.data
  const { meaning } = completionCode(reply.completionCode)
  throw new Failure({
    kind: unsupportedCodes.includes(reply.completionCode) ? 'unsupported' : 'refused',
    got: `${command} answered completion code ${hexByte(reply.completionCode)} (${meaning})`,
    hint,
  })
}

/** Data shorter than the specification says. */
export function tooShort(command: string, data: Buffer): Failure {
  return new Failure({
    kind: 'protocol',
    got: `${command} answered with ${data.length} bytes, too few`,
    hint: 'The BMC does not follow the specification here. Updating its firmware may help.',
  })
}

/** Codes by which a BMC says that it has no such command. */
const unsupportedCodes = [0xc1, 0xc2, 0xd6]

/** Busy codes given before anything happened, unlike a timeout (C3) or a lost response (CE). */
const notCarriedOut = [0xc0, 0xd0, 0xd1, 0xd2]

/** A port that closes under a session is a BMC restarting: as good as silence, and a new login will tell. */
async function replyOrSilence(reply: Promise<IpmiResponse | undefined>): Promise<IpmiResponse | undefined> {
  try {
    return await reply
  } catch (error) {
    if (error instanceof PortClosed) return undefined
    throw error
  }
}

function noReply(got: string, outcome: 'none' | 'unknown'): Failure {
  return new Failure({
    kind: 'silent',
    got,
    outcome,
    hint: 'The BMC may be restarting or overloaded, or the path to it loses packets. Observe the power state before trying again.',
  })
}

function stayedBusy(code: number): Failure {
  return new Failure({
    kind: 'busy',
    got: `still completion code ${hexByte(code)} (${completionCode(code).meaning}) after ${busyRetriesMax} repeats`,
    hint: 'The BMC is busy: starting up, updating its firmware, or serving somebody else. Try again in a minute.',
  })
}

function notPrivileged(got: string, privilege: Privilege): Failure {
  return new Failure({
    kind: 'privilege',
    got,
    hint: `Power control needs OPERATOR. Give the account that level for LAN access on the BMC and set \`privilege\` in the power settings (asked for: ${privilege}).`,
  })
}
