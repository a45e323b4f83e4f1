/** Who the BMC is: Get Device ID (IPMI v2.0 20.1). */
import type { Controller } from '../driver.ts'
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
