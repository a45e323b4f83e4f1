// Why nothing, or too little, matched: the explanations of several partitions as one. A partition's own API uses the same functions, so
// that a federation of one explains as its partition does.
import type { NoMatchExplanation } from '../contract/allocations.ts'
import { Refusal } from '../errors.ts'
import { constraintNames, nearestOf, type WhyNot } from './matcher.ts'

/** What one partition says: how many ready machines match and, where those are too few, why. */
export interface PartialExplanation {
  readonly matching: number
  readonly why?: WhyNot | undefined
}

/** One explanation over all partitions that answered. One without a `why` has enough machines: those are all it is known to have looked at. */
export function explain(parts: readonly PartialExplanation[]): NoMatchExplanation {
  const total = (of: (part: PartialExplanation) => number) => parts.reduce((sum, part) => sum + of(part), 0)
  return {
    considered: total(part => part.why?.considered ?? part.matching),
    matching: total(part => part.matching),
    removed: constraintNames
      .map(constraint => ({ constraint, machines: total(part => part.why?.removed[constraint] ?? 0) }))
      .filter(({ machines }) => machines > 0),
    nearest: nearestOf(parts.flatMap(part => part.why?.nearest ?? [])),
  }
}

/** The refusal for a request that asks for more machines than match. */
export function noMatch(count: number, explanation: NoMatchExplanation): Refusal {
  const { considered, matching, removed } = explanation
  const wanted = count === 1 ? 'a machine' : `${count} machines`
  const reasons = removed.map(({ constraint, machines }) => `${constraint} removed ${machines}`).join(', ')
  const detail = `asked for ${wanted}: ${matching} of ${considered} ready machines match${reasons && `; ${reasons}`}`
  return new Refusal('no-match', detail, { explanation })
}
