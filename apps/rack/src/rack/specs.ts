// Which machines the command line asks for: spread over the partitions, the sad ones among them.
import type { Pace } from '../machine/pace.ts'
import type { MachineSpec } from '../rack.ts'
import type { BmcLayout } from './addresses.ts'

export interface PartitionTarget {
  name: string
  /** Its boot door. */
  url: string
}

/** The command line of main.ts, read and checked. */
export interface Arguments {
  machines: number
  partition: readonly PartitionTarget[]
  data?: string
  pace: Pace
  seed: number
  sad: readonly string[]
  bmcNetwork?: number
  bmcPort?: number
  bmcLayout: BmcLayout
  spread: number
  powerOn: boolean
  json?: boolean
}

const redfishEvery = 4

/**
 * Specs of all machines: neighbours go to different partitions in turn, every fourth speaks Redfish, and the last ones get the sad names. The same
 * arguments give the same specs. Throws RangeError where there are more sad names than machines.
 */
export function machineSpecs({ machines, partition, sad }: Pick<Arguments, 'machines' | 'partition' | 'sad'>): MachineSpec[] {
  if (sad.length > machines) throw new RangeError(`${sad.length} sad machines are asked for, but only ${machines} machines`)
  const firstSad = machines - sad.length
  return Array.from({ length: machines }, (_, index) => {
    const name = sad[index - firstSad]
    const { url } = partition[index % partition.length] as PartitionTarget
    // Sad machines misbehave in IPMI.
    const isRedfish = name === undefined && index % redfishEvery === redfishEvery - 1
    return { index, bootUrl: url, ...(isRedfish && { speaks: 'redfish' }), ...(name !== undefined && { name }) }
  })
}
