/** The one-time boot device, through the boot override of IPMI (v2.0 28.12, 28.13; facts 4.6). */
import type { BootFirmware, BootNextDevice } from '../driver.ts'
import { Failure } from '../failure.ts'
import { completed, type Turn, tooShort } from './client.ts'
import { type BootFlags, bootParameters, commands, encodeBootFlags, type IpmiResponse, parseBootFlags } from './codec.ts'

/**
 * Sets the device for the next boot, reads it back, and says what was kept. Throws Failure `refused` if the BMC shows another device
 * than the one set.
 */
export async function setBootNext(
  turn: Turn,
  options: { device: BootNextDevice; firmware: BootFirmware },
): Promise<'all' | 'device only' | 'unreadable'> {
  const flags: BootFlags = { valid: true, lasting: 'once', firmware: options.firmware, device: options.device }
  await write(turn, flags)
  const found = await readFlags(turn)
  if (!found) return 'unreadable'
  if (found.device !== flags.device) {
    throw new Failure({
      kind: 'refused',
      got: `boot device set to ${flags.device}, but read back as ${found.device}`,
      hint: 'The BMC does not keep the boot override. Put the network first in the boot order of the firmware.',
    })
  }
  // pyghmi and virtualbmc drop the UEFI flag (many machines then boot legacy, or ignore the override), ipmi_sim the valid flag.
  return found.valid && found.firmware === flags.firmware ? 'all' : 'device only'
}

/** The override in force, or undefined. Throws Failure if the BMC cannot be asked. */
export async function readBootNext(turn: Turn): Promise<{ device: string; firmware: BootFirmware } | undefined> {
  const reply = await askFlags(turn)
  const data = completed(reply, 'Get System Boot Options', 'The BMC has no boot override to read.')
  const flags = parseBootFlags(data.subarray(2))
  if (!flags) throw tooShort('Get System Boot Options', data)
  return flags.valid && flags.device !== 'none' ? { device: flags.device, firmware: flags.firmware } : undefined
}

/** Takes the override back. */
export async function clearBootNext(turn: Turn): Promise<void> {
  await write(turn, { valid: false, lasting: 'once', firmware: 'legacy', device: 'none' })
}

async function write(turn: Turn, flags: BootFlags): Promise<void> {
  const set = (parameter: number, ...data: number[]) =>
    turn.command(commands.setBootOptions, { data: Buffer.of(parameter, ...data), privilege: 'OPERATOR' })
  // The frame around the flags is optional for a BMC, and each step is refused by some: only the flags themselves must succeed.
  await set(bootParameters.setInProgress, 1)
  // Otherwise the override is dropped 60 s after the command, or by the power cycle that follows.
  await set(bootParameters.keepValid, 0x1f)
  await set(bootParameters.acknowledge, 0x01, 0x01)
  const reply = await set(bootParameters.flags, ...encodeBootFlags(flags))
  await set(bootParameters.setInProgress, 2)
  await set(bootParameters.setInProgress, 0)
  completed(reply, 'Set System Boot Options', 'The BMC has no boot override. Put the network first in the boot order of the firmware.')
}

function askFlags(turn: Turn): Promise<IpmiResponse> {
  return turn.command(commands.getBootOptions, { data: Buffer.of(bootParameters.flags, 0, 0), privilege: 'OPERATOR' })
}

/** The flags, or undefined if the BMC does not give them: a set that succeeded is then believed. */
async function readFlags(turn: Turn): Promise<BootFlags | undefined> {
  const reply = await askFlags(turn)
  return reply.completionCode === 0 ? parseBootFlags(reply.data.subarray(2)) : undefined
}
