/**
 * What differs between vendors and cannot be learned from the service without harm, as a table: looked up by the service root's Vendor and Oem, or
 * the system's manufacturer. Everything else (reset values, ETags, which resource takes the override) is read from the service, tried, and remembered
 * per BMC, because the same board comes with several firmwares.
 */

/** A body that takes the boot override back: Enabled is always Disabled, Target as named; `unsaid` leaves Target out. */
export type ClearTarget = 'None' | 'Pxe' | 'unsaid'

export interface Vendor {
  name: string
  /** Tested against Vendor, the keys of Oem, and Manufacturer. */
  matches: RegExp
  /** IANA enterprise number; 0 where the maker of the board is not known by it. */
  iana: number
  /** `omit`: reported, but read-only. Elsewhere the mode is sent whenever it is reported. */
  bootMode: 'send' | 'omit'
  /** How to clear, best first. The others are tried when it is refused. */
  clearTargets: readonly ClearTarget[]
  /** Where a row says something special: why. */
  why?: string
}

const usual = { bootMode: 'send', clearTargets: ['None', 'unsaid', 'Pxe'] } as const

export const vendors: readonly Vendor[] = [
  {
    name: 'Dell',
    matches: /\bdell\b/i,
    iana: 674,
    ...usual,
    clearTargets: ['unsaid', 'None', 'Pxe'],
    why: 'iDRAC resets the target by itself',
  },
  {
    name: 'HPE',
    matches: /\bhpe?\b|hewlett/i,
    iana: 47196,
    bootMode: 'omit',
    clearTargets: ['Pxe', 'unsaid', 'None'],
    why: 'BootSourceOverrideMode is read-only, and Enabled is refused while Target is None',
  },
  { name: 'Lenovo', matches: /\blenovo\b/i, iana: 19046, ...usual },
  {
    name: 'Supermicro',
    matches: /super ?micro|\bsmci\b/i,
    iana: 10876,
    ...usual,
    why: 'the mode falls back to legacy unless it is sent with every change',
  },
  { name: 'Huawei', matches: /huawei|xfusion/i, iana: 2011, ...usual },
  { name: 'OpenBMC', matches: /openbmc/i, iana: 49871, ...usual },
  { name: 'ASRock Rack', matches: /asrock/i, iana: 49622, ...usual },
  { name: 'AMI', matches: /\bami\b|american megatrends|megarac/i, iana: 20974, ...usual },
]

const unknownVendor: Vendor = { name: 'unknown', matches: /^$/, iana: 0, ...usual }

/**
 * The row that fits the first of the words that any row fits, or the usual ways. Who wrote the service comes before who built the machine: an HPE
 * Cray XD670 speaks AMI's Redfish.
 */
export function vendorOf(words: readonly string[]): Vendor {
  for (const word of words) {
    const found = vendors.find(({ matches }) => matches.test(word))
    if (found) return found
  }
  return unknownVendor
}
