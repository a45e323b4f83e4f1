/**
 * The data of the chassis commands: power state, power control, boot override. Both directions (IPMI v2.0 chapter 28; facts 4.6).
 */

export const chassisControls = { off: 0, on: 1, cycle: 2, reset: 3, diagnosticInterrupt: 4, soft: 5 } as const
export type ChassisControl = keyof typeof chassisControls

export interface ChassisStatus {
  power: 'on' | 'off'
  overload: boolean
  interlock: boolean
  fault: boolean
  controlFault: boolean
  /** What the machine does when mains power returns. */
  restorePolicy: 'off' | 'previous' | 'on' | 'unknown'
  /** The identify light, where the BMC says that it knows. */
  identify?: 'off' | 'timed' | 'on'
}

const restorePolicies = ['off', 'previous', 'on', 'unknown'] as const
const identifyStates = ['off', 'timed', 'on'] as const

/** Reads the data of Get Chassis Status: 3 or 4 bytes. Undefined if it is shorter. */
export function parseChassisStatus(data: Buffer): ChassisStatus | undefined {
  if (data.length < 3) return undefined
  const power = data.readUInt8(0)
  const misc = data.readUInt8(2)
  const identify = misc & 0x40 ? identifyStates[(misc >> 4) & 3] : undefined
  return {
    power: power & 1 ? 'on' : 'off',
    overload: (power & 0x02) !== 0,
    interlock: (power & 0x04) !== 0,
    fault: (power & 0x08) !== 0,
    controlFault: (power & 0x10) !== 0,
    restorePolicy: restorePolicies[(power >> 5) & 3] ?? 'unknown',
    ...(identify && { identify }),
  }
}

/** The three bytes of Get Chassis Status; the last power event is left at 0. */
export function encodeChassisStatus(status: ChassisStatus): Buffer {
  const power =
    (status.power === 'on' ? 0x01 : 0) |
    (status.overload ? 0x02 : 0) |
    (status.interlock ? 0x04 : 0) |
    (status.fault ? 0x08 : 0) |
    (status.controlFault ? 0x10 : 0) |
    (restorePolicies.indexOf(status.restorePolicy) << 5)
  return Buffer.of(power, 0, status.identify ? 0x40 | (identifyStates.indexOf(status.identify) << 4) : 0)
}

/** Parameters of Get and Set System Boot Options (IPMI v2.0 table 28-14). */
export const bootParameters = { setInProgress: 0, keepValid: 3, acknowledge: 4, flags: 5 } as const

/** Boot devices by their number in the boot flags. */
export const bootDevices = {
  none: 0,
  network: 1,
  disk: 2,
  safeDisk: 3,
  diagnostic: 4,
  cd: 5,
  setup: 6,
  remoteFloppy: 7,
  remoteCd: 8,
  remoteMedia: 9,
  remoteDisk: 11,
  floppy: 15,
} as const
export type BootDevice = keyof typeof bootDevices

export interface BootFlags {
  /** Whether the override is in force; false after it was used or cleared. */
  valid: boolean
  lasting: 'once' | 'persistent'
  firmware: 'legacy' | 'uefi'
  device: BootDevice | 'unknown'
}

/** The five bytes of boot parameter 5. Device "unknown" cannot be sent and throws RangeError. */
export function encodeBootFlags(flags: BootFlags): Buffer {
  if (flags.device === 'unknown') throw new RangeError('boot flags name no device')
  const first = (flags.valid ? 0x80 : 0) | (flags.lasting === 'persistent' ? 0x40 : 0) | (flags.firmware === 'uefi' ? 0x20 : 0)
  return Buffer.of(first, bootDevices[flags.device] << 2, 0, 0, 0)
}

/** Reads boot parameter 5; undefined if it is shorter than 2 bytes. */
export function parseBootFlags(data: Buffer): BootFlags | undefined {
  if (data.length < 2) return undefined
  const first = data.readUInt8(0)
  const number = (data.readUInt8(1) >> 2) & 0x0f
  const device = (Object.keys(bootDevices) as BootDevice[]).find(name => bootDevices[name] === number)
  return {
    valid: (first & 0x80) !== 0,
    lasting: first & 0x40 ? 'persistent' : 'once',
    firmware: first & 0x20 ? 'uefi' : 'legacy',
    device: device ?? 'unknown',
  }
}
