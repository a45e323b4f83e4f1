// Who may tell of a machine's power: an address that only its BMC was given. It is computed, not stored, and good for as long as the machine is here.
import type { Seal } from '../seal.ts'

const purpose = 'bmc events'

/** The path below the partition's URL. */
export function eventsPath(seal: Seal, machine: string): string {
  return `/bmc-events/${machine}.${seal.sign(`${purpose}.${machine}`)}`
}

/** The machine that a token speaks of, or undefined where it is not ours. */
export function machineOfEvents(seal: Seal, token: string): string | undefined {
  const [machine, signature, ...rest] = token.split('.')
  if (!machine || !signature || rest.length > 0) return undefined
  return seal.isSignature(signature, `${purpose}.${machine}`) ? machine : undefined
}
