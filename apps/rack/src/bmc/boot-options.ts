// The boot override a BMC keeps for the machine's firmware: parameters 0, 3, 4 and 5 of the System Boot Options (IPMI v2.0 28.12),
// with the rule that trips real consoles: flags that no chassis command follows within 60 s lapse, unless parameter 3 says otherwise.
import { type BootFlags, bootParameters, parseBootFlags } from '@muster/drivers/ipmi/codec'

/** What survives a restart of the rack: the BMC's own non-volatile memory. */
export interface SavedBootOptions {
  /** Parameter 5 as hex. */
  flags: string
  keepValid: number
  /** Epoch milliseconds at which the flags lapse; null where nothing makes them. */
  lapsesAt: number | null
}

/** Codes of Set and Get System Boot Options beside the general ones. */
export const bootOptionCodes = { ok: 0x00, notSupported: 0x80, setInProgress: 0x81, lengthInvalid: 0xc7 } as const

/** Bits of parameter 3: the events that do not clear the valid bit. */
const keepOnTimeout = 0x08
const keepOnPowerButton = 0x01
const parameterVersion = 1

export class BootOptions {
  readonly #expiryMs: number
  readonly #changed: () => void
  #flags = Buffer.alloc(5)
  #keepValid = 0
  #acknowledge = Buffer.alloc(2)
  #lapsesAt: number | null = null
  /** The session that set "in progress". */
  #writer: number | undefined
  readonly #invalid = new Set<number>()

  /** `expiryMs`: how long flags stay valid without a chassis command; 60 s by the specification. `changed` is called after each change. */
  constructor(options: { expiryMs: number; saved?: SavedBootOptions | undefined; changed?: (() => void) | undefined }) {
    this.#expiryMs = options.expiryMs
    this.#changed = options.changed ?? (() => {})
    if (!options.saved) return
    this.#flags = Buffer.from(options.saved.flags, 'hex')
    this.#keepValid = options.saved.keepValid
    this.#lapsesAt = options.saved.lapsesAt
  }

  /** What a restart must find again. */
  saved(): SavedBootOptions {
    return { flags: this.#flags.toString('hex'), keepValid: this.#keepValid, lapsesAt: this.#lapsesAt }
  }

  /** Set System Boot Options. `data` starts with the parameter selector; the answer is a completion code. */
  set(data: Buffer, by: { session: number; atMs: number }): number {
    const parameter = data.readUInt8(0) & 0x7f
    const value = data.subarray(1)
    const length = writableBytes.get(parameter)
    if (length === undefined) return bootOptionCodes.notSupported
    // Bit 7 marks the parameter invalid (or valid again); it may come without a value.
    if (data.readUInt8(0) & 0x80) this.#invalid.add(parameter)
    else this.#invalid.delete(parameter)
    if (value.length === 0) return bootOptionCodes.ok
    if (value.length !== length) return bootOptionCodes.lengthInvalid
    return this.#write(parameter, value, by)
  }

  #write(parameter: number, value: Buffer, by: { session: number; atMs: number }): number {
    const first = value.readUInt8(0)
    if (parameter === bootParameters.setInProgress) {
      if ((first & 3) === 1 && this.#writer !== undefined && this.#writer !== by.session) return bootOptionCodes.setInProgress
      this.#writer = (first & 3) === 1 ? by.session : undefined
      return bootOptionCodes.ok
    }
    if (parameter === bootParameters.keepValid) this.#keepValid = first & 0x1f
    if (parameter === bootParameters.acknowledge) this.#acknowledge = Buffer.from(value)
    if (parameter === bootParameters.flags) {
      this.#flags = Buffer.from(value)
      this.#lapsesAt = first & 0x80 && !(this.#keepValid & keepOnTimeout) ? by.atMs + this.#expiryMs : null
    }
    this.#changed()
    return bootOptionCodes.ok
  }

  /** Get System Boot Options: version, parameter with its invalid bit, value. Undefined where the parameter is not kept. */
  get(parameter: number, atMs: number): Buffer | undefined {
    this.#lapse(atMs)
    const value = this.#read(parameter)
    if (!value) return undefined
    return Buffer.concat([Buffer.of(parameterVersion, parameter | (this.#invalid.has(parameter) ? 0x80 : 0)), value])
  }

  #read(parameter: number): Buffer | undefined {
    if (parameter === bootParameters.setInProgress) return Buffer.of(this.#writer === undefined ? 0 : 1)
    if (parameter === bootParameters.keepValid) return Buffer.of(this.#keepValid)
    if (parameter === bootParameters.acknowledge) return this.#acknowledge
    if (parameter === bootParameters.flags) return this.#flags
    return undefined
  }

  /** A session ended: what it had "in progress" is not any more. */
  sessionEnded(session: number): void {
    if (this.#writer === session) this.#writer = undefined
  }

  /** A chassis command that starts the machine came in: the flags now wait for the firmware and lapse no more. */
  chassisCommanded(atMs: number): void {
    this.#lapse(atMs)
    if (this.#lapsesAt === null) return
    this.#lapsesAt = null
    this.#changed()
  }

  /** Someone pressed the power button: that clears the flags unless parameter 3 says otherwise. */
  buttonPressed(): void {
    if (!(this.#keepValid & keepOnPowerButton)) this.#clearValid()
  }

  /** The override in force, without using it up. */
  read(atMs: number): BootFlags | undefined {
    this.#lapse(atMs)
    const flags = parseBootFlags(this.#flags)
    return flags?.valid && !this.#invalid.has(bootParameters.flags) ? flags : undefined
  }

  /** What the firmware does at each boot: reads the override, and uses up one that is meant for once. */
  takeForBoot(atMs: number): BootFlags | undefined {
    const flags = this.read(atMs)
    if (flags?.lasting === 'once') this.#clearValid()
    return flags
  }

  #lapse(atMs: number): void {
    if (this.#lapsesAt !== null && atMs >= this.#lapsesAt) this.#clearValid()
  }

  #clearValid(): void {
    this.#lapsesAt = null
    const first = this.#flags.readUInt8(0)
    if (!(first & 0x80)) return
    this.#flags.writeUInt8(first & 0x7f, 0)
    this.#changed()
  }
}

const writableBytes = new Map<number, number>([
  [bootParameters.setInProgress, 1],
  [bootParameters.keepValid, 1],
  [bootParameters.acknowledge, 2],
  [bootParameters.flags, 5],
])
