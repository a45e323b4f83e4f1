// Quotas: the most machines that somebody may have at a time. Which of them bind whom is decided here; partitions count what they have, fronts what all have.
import { z } from 'zod'
import { Refusal } from '../errors.ts'
import type { Documents } from '../global/documents.ts'
import { groupsOf } from '../global/grants.ts'
import { label } from '../machine.ts'

/** Whose machines are counted together, and in which pool; in all where it is left out. */
export const countedSet = z.strictObject({ owners: z.array(z.string().max(100)).max(10_000), pool: label.optional() })
export type CountedSet = z.output<typeof countedSet>

/** `machines`: all they have; `held` of them only until a request is confirmed or given up; `own` of these for the allocation that the question names. */
export const counted = z.object({ machines: z.number().int().min(0), held: z.number().int().min(0), own: z.number().int().min(0) })
export type Counted = z.infer<typeof counted>

/** One quota as it binds an owner. */
export interface Limit extends CountedSet {
  /** The name of its document. */
  readonly quota: string
  /** Who has the machines that count, in words. */
  readonly whose: string
  readonly most: number
}

/**
 * The quotas that bind an owner: its own, its groups' (whose members count together) and, where it has none of its own for that pool or for all, the one
 * for everybody. All of them bind.
 */
export function limitsFor(documents: Pick<Documents, 'quota' | 'group'>, owner: string): Limit[] {
  const quotas = Object.entries(documents.quota)
  const groups = new Set(groupsOf(documents, owner))
  const isOwn = (pool: string | undefined) => quotas.some(([, { user, pool: other }]) => user === owner && other === pool)
  return quotas.flatMap(([quota, { user, group, pool, machines: most }]): Limit[] => {
    const set = { quota, most, ...(pool !== undefined && { pool }) }
    if (group !== undefined)
      return groups.has(group) ? [{ ...set, whose: `the group ${group}`, owners: [...(documents.group[group]?.members ?? [])] }] : []
    const binds = user === owner || (user === undefined && !isOwn(pool))
    return binds ? [{ ...set, whose: owner, owners: [owner] }] : []
  })
}

/** The refusal of `wanted` more machines beyond a quota. */
export function beyondQuota(
  { quota, whose, most, pool }: Limit,
  { has, wanted, where }: { has: number; wanted: number; where: string },
): Refusal {
  const what = pool === undefined ? '' : ` of pool ${pool}`
  const detail = `${whose} may have ${most} machines${what} at a time (quota ${quota}), has ${has} ${where}, and asks for ${wanted} more; nothing was allocated`
  return new Refusal('quota-exceeded', detail, { quota, whose, most, has, wanted, ...(pool !== undefined && { pool }) })
}
