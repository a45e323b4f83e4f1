// Names and identifiers. A machine's id carries its partition's name, so that the owner of a call needs no look-up.
import { randomBytes } from 'node:crypto'

/** Crockford's alphabet without vowels and look-alikes: readable aloud, and no id ever spells a word. */
const alphabet = '0123456789bcdfghjkmnpqrstvwxyz'

/** `length` random characters of the id alphabet (4.9 bits each), from the system's random source. */
export function randomText(length: number): string {
  let text = ''
  while (text.length < length) {
    // 240 is the largest multiple of 30 within a byte: rejecting the rest keeps every character equally likely.
    for (const byte of randomBytes(length - text.length)) if (byte < 240) text += alphabet[byte % alphabet.length]
  }
  return text
}

/** A partition's name: a DNS label without dashes at its ends, at most 20 characters. */
export const partitionNamePattern = /^[a-z](?:[a-z0-9-]{0,18}[a-z0-9])?$/
/** `<partition>-<six or more characters>`. */
export const machineIdPattern = /^[a-z](?:[a-z0-9-]{0,18}[a-z0-9])?-[0-9a-z]{6,16}$/
export const allocationIdPattern = /^a-[0-9a-z]{12,26}$/
export const macPattern = /^[0-9a-f]{2}(?::[0-9a-f]{2}){5}$/
/** RFC 1123 host name, one label. */
export const hostnamePattern = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/
/** Tags, pools, zones, racks: what people type, sort and filter by. */
export const labelPattern = /^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$/

export const newMachineId = (partition: string) => `${partition}-${randomText(6)}`
export const newAllocationId = () => `a-${randomText(16)}`

/** The partition a machine id names, or undefined where the text is no machine id. */
export function partitionOf(machineId: string): string | undefined {
  return machineIdPattern.test(machineId) ? machineId.slice(0, machineId.lastIndexOf('-')) : undefined
}

/** Lower-case, colon-separated form of a MAC written in any usual way (`AA-BB-…`, `aabb.ccdd.eeff`), or undefined. */
export function normalMac(text: string): string | undefined {
  const digits = text.toLowerCase().replace(/[:.-]/g, '')
  return /^[0-9a-f]{12}$/.test(digits) ? (digits.match(/../g) as string[]).join(':') : undefined
}
