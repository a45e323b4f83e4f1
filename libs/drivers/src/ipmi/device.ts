/** The BMC itself: Get Device ID (IPMI v2.0 20.1) and Cold Reset (20.2). */
import type { Controller } from '../driver.ts'
import { Failure } from '../failure.ts'
import { completed, type Turn, tooShort } from './client.ts'
import { commands } from './codec.ts'

/** Maker, product and firmware of the BMC. */
export async function deviceId(turn: Turn): Promise<Controller> {
  const data = completed(
    await turn.command(commands.getDeviceId),
    'Get Device ID',
    'Every BMC must answer this. Updating its firmware may help.',
  )
  const controller = parseDeviceId(data)
  if (!controller) throw tooShort('Get Device ID', data)
  return controller
}

/** Starts the BMC anew. Needs ADMINISTRATOR. Many BMCs are gone before they answer, so silence after the command is taken for its effect. */
export async function coldReset(turn: Turn): Promise<void> {
  try {
    const reply = await turn.command(commands.coldReset, { privilege: 'ADMINISTRATOR', sends: 'once' })
    completed(reply, 'Cold Reset', 'This BMC cannot be restarted over the network. Take its power away for a minute instead.')
  } catch (error) {
    if (!(error instanceof Failure) || error.facts.outcome !== 'unknown') throw error
  }
}

/** Reads the data of Get Device ID; undefined if it is shorter than 11 bytes. */
export function parseDeviceId(data: Buffer): Controller | undefined {
  if (data.length < 11) return undefined
  const major = data.readUInt8(2) & 0x7f
  const minor = data.readUInt8(3)
  const version = data.readUInt8(4)
  return {
    manufacturer: data.readUIntLE(6, 3) & 0xfffff,
    product: data.readUInt16LE(9),
    // The minor version is BCD: its hex digits are the decimal ones.
    firmware: `${major}.${minor.toString(16).padStart(2, '0')}`,
    // One digit each, the major one in the low half.
    protocol: `IPMI ${version & 0x0f}.${version >> 4}`,
  }
}
