// Where the BMCs of a rack listen. Usually each has a loopback address of its own and all share a port, as on a real management
// network; where only 127.0.0.1 exists, each has a port of its own.

export type BmcLayout = 'address each' | 'port each'

export interface BmcPlace {
  layout: BmcLayout
  /** `address each`: the second byte of 127.N.hi.lo, 1 to 254. Not used by `port each`. */
  network: number
  /** `address each`: everybody's port. `port each`: machine 0's port; the others follow. */
  port: number
}

const perByte = 254

/** Address and port of the BMC of machine `index`. Throws RangeError beyond what the layout holds. */
export function bmcAddressOf({ layout, network, port }: BmcPlace, index: number): { address: string; port: number } {
  if (layout === 'port each') {
    if (port + index > 65_535) throw new RangeError(`machine ${index} would need port ${port + index}`)
    return { address: '127.0.0.1', port: port + index }
  }
  if (index >= perByte * perByte) throw new RangeError(`a rack holds at most ${perByte * perByte} addresses`)
  // Neither 0 nor 255 at the end: tools refuse such addresses as networks and broadcasts.
  return { address: `127.${network}.${Math.floor(index / perByte) + 1}.${(index % perByte) + 1}`, port }
}

/**
 * Places to try when none is given, best first. They begin at another point for each process, so that racks started side by side
 * seldom meet; when they do, the next is taken.
 */
export function candidatePlaces(
  wanted: { layout: BmcLayout; network?: number | undefined; port?: number | undefined },
  start: number,
): BmcPlace[] {
  const { layout } = wanted
  if (layout === 'port each') {
    if (wanted.port !== undefined) return [{ layout, network: 0, port: wanted.port }]
    return Array.from({ length: 20 }, (_, step) => ({ layout, network: 0, port: 20_000 + ((start + step) % 20) * 2_000 }))
  }
  const port = wanted.port ?? usualBmcPort
  if (wanted.network !== undefined) return [{ layout, network: wanted.network, port }]
  return Array.from({ length: networksTried }, (_, step) => ({ layout, network: 2 + ((start + step * 7) % 250), port }))
}

/** Not 623: that needs root. */
const usualBmcPort = 6230
const networksTried = 50
