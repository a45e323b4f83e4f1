/**
 * What a power driver is: the four things every one promises (power, on, off, cycle), the capabilities some add, and the one kind of
 * error they throw. A driver is one file or folder; drivers.ts lists them all.
 */
import type { Readable } from 'node:stream'
import type { z } from 'zod'

/** An observed state. An error is not a power state: a BMC that does not answer throws. `unknown` is for drivers that cannot see. */
export type PowerState = 'on' | 'off' | 'unknown'

/** What a session is opened with, beside the settings. */
export interface PowerContext {
  /** Ends everything the session does; a call in flight throws `cancelled`. */
  signal?: AbortSignal
  /** Receives what a person debugging a BMC would like to know: logins, repeats, oddities. Never a secret. */
  log?: (message: string, facts: Readonly<Record<string, string | number>>) => void
}

/** Every call may be cancelled by itself. */
export interface CallOptions {
  signal?: AbortSignal
}

/** A kind of power control: how to reach a machine's switch, and what it must be told for that. */
export interface PowerDriver<Schema extends z.ZodObject = z.ZodObject> {
  /** The word in a machine's power settings, e.g. `ipmi`. */
  readonly type: string
  /** What people read in a list of drivers. */
  readonly title: string
  /** `lab`: its settings name programs to run on the server, so a partition takes them only where it is told that it is a lab. */
  readonly place?: 'lab'
  /** Closed schema of the settings: unknown fields are refused. Every field has a description; forms and docs are made of it. */
  readonly settings: Schema
  /** The settings that are sealed in the database and never shown. */
  readonly secrets: readonly (keyof z.output<Schema> & string)[]
  /**
   * Which account of which BMC these settings log in with, the same text however the address is spelled: machines that share it must learn a new
   * password together. Drivers with the capability `credentials` have it, and keep the password in a setting of that name.
   */
  accountOf?(settings: z.output<Schema>): string
  /**
   * A session with one machine's switch. Opening does no I/O: the first call connects. Whoever opens it closes it.
   */
  open(settings: z.output<Schema>, context?: PowerContext): PowerSession
}

/**
 * A conversation with one machine's switch. Calls of one session are carried out one after the other, in the order made. `on`,
 * `off` and `cycle` resolve when the switch has accepted the command: the effect follows 0 to 15 s later, so observe `power` before
 * believing it. All of them throw DriverError only.
 */
export interface PowerSession extends AsyncDisposable {
  /** Driver and address as messages name them, e.g. `ipmi 10.0.3.9`. */
  readonly target: string
  power(options?: CallOptions): Promise<PowerState>
  /** Harmless when the machine is on. */
  on(options?: CallOptions): Promise<void>
  /** `soft` asks the operating system, which may take minutes or not listen; `hard` cuts the power. Harmless when off. */
  off(options: { how: 'hard' | 'soft' } & CallOptions): Promise<void>
  /**
   * Hard off, then on; a machine that is off is turned on. Never repeated after a lost answer: then it throws with
   * `outcome: 'unknown'` unless the machine was seen going through off.
   */
  cycle(options?: CallOptions): Promise<void>
  readonly capabilities: Capabilities
  /** Ends the session and cancels what is still in flight. Never throws; calling it again is harmless. */
  close(): Promise<void>
}

/** What a driver can do beyond power. A missing capability is one the driver never has; a BMC may still refuse with `unsupported`. */
export interface Capabilities {
  readonly bootNext?: BootNext
  /** A reset without power loss; a machine that is off is turned on. The same care about repeating as in `cycle`. */
  readonly reset?: (options?: CallOptions) => Promise<void>
  /** Starts the BMC itself anew, for one that accepts orders and does not carry them out. The machine's power stays; the BMC is gone for a minute. */
  readonly restartController?: (options?: CallOptions) => Promise<void>
  /** The identify light: on for that many seconds (1 to 255), until further notice, or off. */
  readonly identify?: (options: { light: number | 'on' | 'off' } & CallOptions) => Promise<void>
  /** Who the BMC says it is. */
  readonly controller?: (options?: CallOptions) => Promise<Controller>
  /** What the machine's sensors read. Takes seconds: real BMCs need some milliseconds for each of a hundred or more. */
  readonly sensors?: (options?: CallOptions) => Promise<Reading[]>
  /** Who the machine is, as the factory wrote it; empty texts where it wrote nothing. */
  readonly identity?: (options?: CallOptions) => Promise<Identity>
  /**
   * From now on the BMC posts to `url` when its machine's power changes, and for other reasons too: a hint to look, never a fact. Harmless when it
   * does already; BMCs forget it when they restart, so it is asked again from time to time. `context`: whose subscription it is, one for each.
   */
  readonly subscribe?: (options: { url: string; context: string } & CallOptions) => Promise<void>
  /** The password of the account that the session logs in with. */
  readonly credentials?: PasswordChange
  /** The machine's serial console. `holder`: what to do where another console has it: leave it, or end that one. */
  readonly console?: (options?: { holder?: 'leave' | 'end' } & CallOptions) => Promise<SerialConsole>
}

/** A serial console, open until it is closed or lost. It has a session of its own on the BMC. */
export interface SerialConsole extends AsyncDisposable {
  /**
   * What the machine writes. Who does not read it holds the BMC up: no more than some hundred kilobytes wait here. It ends when the console is
   * closed, and fails with a DriverError when it is lost.
   */
  readonly output: Readable
  /** Resolves when the BMC has taken all of it. Throws DriverError. */
  write(data: Buffer): Promise<void>
  /** The break signal: half a second of silence on a real line; Linux takes the key behind it as a system request. */
  sendBreak(): Promise<void>
  /** Ends the console on the BMC too. Never throws; calling it again is harmless. */
  close(): Promise<void>
}

/** The account's password. Whoever sets it keeps both values until a new session has shown which one is true. */
export interface PasswordChange {
  /** What the BMC asks of a password. */
  rule(options?: CallOptions): Promise<PasswordRule>
  /** Sets it. Setting the same twice is harmless. The session may not outlive it. */
  set(options: { password: string } & CallOptions): Promise<void>
}

export interface PasswordRule {
  readonly bytesMin: number
  readonly bytesMax: number
}

export type BootNextDevice = 'network' | 'disk'
export type BootFirmware = 'legacy' | 'uefi'

/** The one-time boot device. */
export interface BootNext {
  /**
   * Sets it for the next boot and reads it back. `kept` says what the BMC made of it: some drop the flags beside it, such as UEFI, some cannot be read.
   * A BMC that shows another device throws `refused`.
   */
  set(options: { device: BootNextDevice; firmware: BootFirmware } & CallOptions): Promise<{ kept: 'all' | 'device only' | 'unreadable' }>
  /** The override in force, or undefined when the next boot goes the machine's own way. */
  read(options?: CallOptions): Promise<{ device: string; firmware: BootFirmware } | undefined>
  /** Takes the override back. Harmless when there is none. */
  clear(options?: CallOptions): Promise<void>
}

export interface Controller {
  /** IANA enterprise number of the maker. */
  manufacturer: number
  product: number
  firmware: string
  /** The version of the protocol the BMC speaks, e.g. `IPMI 2.0`. */
  protocol: string
}

export interface Reading {
  name: string
  /** Missing for sensors of states, and while a sensor is not scanned. */
  value?: number
  unit?: string
  /** Numbers of the states that are set. */
  states: number[]
}

export interface Identity {
  maker: string
  product: string
  serial: string
  assetTag: string
}

/** What went wrong, so that a caller can decide without reading the message. */
export const driverErrorKinds = {
  settings: { retryable: false, meaning: 'the settings do not fit the driver' },
  authentication: { retryable: false, meaning: 'user, password or key is wrong' },
  privilege: { retryable: false, meaning: 'the account may not do this' },
  busy: { retryable: true, meaning: 'the BMC has no room just now' },
  silent: { retryable: true, meaning: 'no answer' },
  refused: { retryable: false, meaning: 'the BMC said no' },
  protocol: { retryable: true, meaning: 'the answer made no sense' },
  unsupported: { retryable: false, meaning: 'the BMC or the driver cannot do this' },
  cancelled: { retryable: false, meaning: 'the caller gave up' },
} as const satisfies Record<string, { retryable: boolean; meaning: string }>

export type DriverErrorKind = keyof typeof driverErrorKinds

export interface DriverErrorFacts {
  kind: DriverErrorKind
  /** What was tried: `power on`. */
  tried: string
  /** On what: `ipmi 10.0.3.9`. */
  target: string
  /** What came back: `completion code 0xD4 (insufficient privilege)`. */
  got: string
  /** What a person can do about it. */
  hint: string
  /** `unknown` if the command may have been carried out all the same; `none` if it surely was not. */
  outcome?: 'none' | 'unknown'
  cause?: unknown
}

/** The one error of every driver. The message reads "power on via ipmi 10.0.3.9: what came back" and holds no secret. */
export class DriverError extends Error {
  override readonly name = 'DriverError'
  readonly kind: DriverErrorKind
  readonly tried: string
  readonly target: string
  readonly got: string
  readonly hint: string
  readonly outcome: 'none' | 'unknown'
  /** Whether the same call may succeed later without anybody changing anything. */
  readonly retryable: boolean

  constructor(facts: DriverErrorFacts) {
    super(`${facts.tried} via ${facts.target}: ${facts.got}`, facts.cause === undefined ? undefined : { cause: facts.cause })
    this.kind = facts.kind
    this.tried = facts.tried
    this.target = facts.target
    this.got = facts.got
    this.hint = facts.hint
    this.outcome = facts.outcome ?? 'none'
    this.retryable = driverErrorKinds[facts.kind].retryable
  }
}
