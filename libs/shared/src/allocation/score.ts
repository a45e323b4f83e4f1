// Scoring is shared code, so that scores of different partitions compare. Lower is better everywhere.
import type { Strategy } from './constraints.ts'
import type { Candidate } from './matcher.ts'

/**
 * What a machine is worth, in "cores": memory counts a core per 4 GiB, disks one per TB. The request's own needs are the same for
 * every candidate, so the cheapest machine that fits is the one that wastes least.
 */
export function costOf(machine: Pick<Candidate, 'cpus' | 'memoryMib' | 'disks'>): number {
  let diskBytes = 0
  for (const disk of machine.disks) diskBytes += disk.sizeBytes
  return machine.cpus + machine.memoryMib / 4096 + diskBytes / 1e12
}

/** How many machines are taken (held, allocated or in use) around a candidate. */
export interface Crowd {
  readonly rack: number
  readonly zone: number
  readonly partition: number
}

/**
 * What a crowd adds to a score: the rack weighs most, then the zone, then the partition. Linear, so that whoever picks several machines
 * may add the crowd of its own picks to a score it was given.
 */
export function crowdScore(crowd: Crowd, strategy: Strategy): number {
  if (strategy === 'first' || strategy === 'best') return 0
  const weight = crowd.rack * 1e4 + crowd.zone * 1e2 + crowd.partition
  return strategy === 'spread' ? weight : -weight
}

/**
 * The score of a machine for a strategy. `first` and `best` look at cost; `spread` and `pack` at the crowd, and cost decides between
 * equals (it stays below one unit of crowd for machines up to 10^6 "cores").
 */
export function scoreOf(machine: Pick<Candidate, 'cpus' | 'memoryMib' | 'disks'>, strategy: Strategy, crowd: Crowd): number {
  const cost = costOf(machine)
  return strategy === 'first' || strategy === 'best' ? cost : crowdScore(crowd, strategy) + cost / 1e6
}

/** A stable 32-bit hash (FNV-1a with a final mix) of a request and a machine: breaks ties so that two requests do not chase one machine. */
export function tieBreak(requestId: string, machine: string): number {
  let hash = 0x811c9dc5
  for (const text of [requestId, '/', machine])
    for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193)
  hash = Math.imul(hash ^ (hash >>> 16), 0x45d9f3b)
  return (hash ^ (hash >>> 16)) >>> 0
}

/** Which partitions keep an Idempotency-Key, best first: rendezvous hashing, so that a change of membership by one moves few keys. */
export function homesOf(key: string, partitions: readonly string[]): string[] {
  return partitions
    .map(name => ({ name, weight: tieBreak(key, name) }))
    .sort((a, b) => b.weight - a.weight || (a.name < b.name ? -1 : 1))
    .map(({ name }) => name)
}
