// Which of the offered machines to take: a pure function of the offers and the request.
import type { Strategy } from '@muster/shared/allocation/constraints'
import { crowdScore, tieBreak } from '@muster/shared/allocation/score'

/** What a partition offers: machines with a score, lower is better, best first. */
export interface Offered {
  readonly partition: string
  readonly machines: readonly { readonly id: string; readonly score: number; readonly rack: string; readonly zone: string }[]
}

/** The machines to hold in one partition, best first. */
export interface Part {
  readonly partition: string
  readonly machines: readonly string[]
}

export interface Wish {
  readonly count: number
  readonly strategy: Strategy
  /** Breaks ties: requests of different ids prefer different ones of equal machines. */
  readonly requestId: string
}

/**
 * Chooses `count` machines, or answers undefined where the offers hold fewer. `first`: from the first offer that has enough, else from
 * as many as it takes, in the order they came. Others: the lowest score first; `spread` and `pack` count each pick as a neighbour of the
 * picks that follow, in its rack (of its partition), its zone (of any partition: what fails together) and its partition.
 */
export function choose(offers: readonly Offered[], wish: Wish): Part[] | undefined {
  if (offers.reduce((sum, { machines }) => sum + machines.length, 0) < wish.count) return undefined
  switch (wish.strategy) {
    case 'first':
      return partsOf(firstOf(offers, wish.count))
    case 'best':
      return partsOf(wish.count === 1 ? [lowest(candidatesOf(offers), wish, scoreOf)] : lowestScores(offers, wish))
    case 'spread':
    case 'pack':
      return partsOf(pickedInTurn(offers, wish))
  }
}

interface Candidate {
  readonly partition: string
  readonly id: string
  readonly score: number
  readonly rack: string
  readonly zone: string
}

function candidatesOf(offers: readonly Offered[]): Candidate[] {
  return offers.flatMap(({ partition, machines }) => machines.map(({ id, score, rack, zone }) => ({ partition, id, score, rack, zone })))
}

function firstOf(offers: readonly Offered[], count: number): Candidate[] {
  const sufficient = offers.find(({ machines }) => machines.length >= count)
  return candidatesOf(sufficient ? [sufficient] : offers).slice(0, count)
}

const scoreOf = (candidate: Candidate) => candidate.score

function lowestScores(offers: readonly Offered[], wish: Wish): Candidate[] {
  return candidatesOf(offers)
    .sort((a, b) => compare(a, b, wish, scoreOf))
    .slice(0, wish.count)
}

function pickedInTurn(offers: readonly Offered[], wish: Wish): Candidate[] {
  const left = new Set(candidatesOf(offers))
  const picks = new Map<string, number>()
  const around = (place: string) => picks.get(place) ?? 0
  const placesOf = ({ partition, rack, zone }: Candidate) =>
    ({ rack: `rack ${partition} ${rack}`, zone: `zone ${zone}`, partition: `partition ${partition}` }) as const
  const score = (candidate: Candidate) => {
    const { rack, zone, partition } = placesOf(candidate)
    return candidate.score + crowdScore({ rack: around(rack), zone: around(zone), partition: around(partition) }, wish.strategy)
  }
  return Array.from({ length: wish.count }, () => {
    const pick = lowest(left, wish, score)
    left.delete(pick)
    for (const place of Object.values(placesOf(pick))) picks.set(place, around(place) + 1)
    return pick
  })
}

/** The lowest of at least one candidate. */
function lowest(candidates: Iterable<Candidate>, wish: Wish, score: (candidate: Candidate) => number): Candidate {
  let best: { candidate: Candidate; score: number } | undefined
  for (const candidate of candidates) {
    const own = score(candidate)
    if (!best || own < best.score || (own === best.score && isEarlier(candidate, best.candidate, wish))) best = { candidate, score: own }
  }
  return (best as { candidate: Candidate }).candidate
}

function compare(a: Candidate, b: Candidate, wish: Wish, score: (candidate: Candidate) => number): number {
  return score(a) - score(b) || (isEarlier(a, b, wish) ? -1 : 1)
}

function isEarlier(a: Candidate, b: Candidate, { requestId }: Wish): boolean {
  const [hashA, hashB] = [tieBreak(requestId, a.id), tieBreak(requestId, b.id)]
  return hashA === hashB ? a.id < b.id : hashA < hashB
}

function partsOf(picks: readonly Candidate[]): Part[] {
  const byPartition = Map.groupBy(picks, ({ partition }) => partition)
  return [...byPartition].map(([partition, candidates]) => ({ partition, machines: candidates.map(({ id }) => id) }))
}
