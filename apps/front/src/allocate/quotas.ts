// Quotas over all partitions, without a lock that all would have to reach: a request holds its machines first and counts afterwards. A hold is counted like
// any machine, so that of two requests at two fronts the one that counts later sees both, and too much is never confirmed.
import { beyondQuota, type Counted, type CountedSet, type Limit } from '@muster/shared/allocation/quotas'
import { Refusal } from '@muster/shared/errors'
import type { Limits } from '../limits.ts'
import type { Envelope, PartitionCalls } from '../partition-calls.ts'
import type { Presence } from '../presence.ts'
import { isDefinite } from './insist.ts'

export interface QuotaAsking {
  readonly calls: PartitionCalls
  readonly presence: Presence
  readonly limits: Limits
  readonly envelope: Envelope
  readonly signal: AbortSignal
}

/** `full`: what is theirs for certain leaves no room. `crowded`: with what others hold just now it does not, or nobody can say just now; asked again it may. */
export interface Beyond {
  readonly kind: 'full' | 'crowded'
  readonly refusal: Refusal
}

/** `allocation`: its machines are held under this id, and so are counted already. `pools`: those it is limited to before that. */
export interface Wanted {
  readonly wanted: number
  readonly allocation?: string | undefined
  readonly pools?: readonly string[] | undefined
}

/**
 * What stands against a request, or undefined. What silent partitions have is not counted: one that is cut off must not stop everybody's work. One that is
 * there and does not answer is no such thing: before it has, or is held silent, nothing that is held is given.
 */
export async function beyond(asking: QuotaAsking, quotas: readonly Limit[], request: Wanted): Promise<Beyond | undefined> {
  if (quotas.length === 0) return undefined
  const { wanted, allocation } = request
  const of = quotas.map(({ owners, pool }) => ({ owners: [...owners], ...(pool !== undefined && { pool }) }))
  const { counts, unheard } = await countEverywhere(asking, of, allocation)
  const found = quotas.flatMap((quota, index): Beyond[] => {
    const { machines, held, own } = counts[index] as Counted
    // Before they are held it is not known of which pool they will be, where the request leaves that open.
    const more = allocation === undefined ? (fallsUnder(quota, request) ? wanted : 0) : 0
    if (own + more === 0 || machines + more <= quota.most) return []
    const refusal = beyondQuota(quota, { has: machines - own, wanted, where: 'in all partitions that answer' })
    return [{ kind: machines - held + own + more > quota.most ? 'full' : 'crowded', refusal }]
  })
  const worst = found.find(({ kind }) => kind === 'full') ?? found[0]
  if (worst || allocation === undefined || unheard.length === 0) return worst
  const whose = [...new Set(quotas.map(quota => quota.whose))].join(' and ')
  const detail = `${unheard.join(', ')} did not say how many machines ${whose} has there, which a quota limits; nothing was allocated`
  return { kind: 'crowded', refusal: new Refusal('nothing-allocated', detail, { silent: unheard }) }
}

const fallsUnder = ({ pool }: Limit, { pools }: Wanted) => pool === undefined || (pools?.length === 1 && pools[0] === pool)

/** The counts of all partitions that answer, added up; and those that are there and do not. */
async function countEverywhere(
  { calls, presence, limits, envelope, signal }: QuotaAsking,
  of: CountedSet[],
  allocation: string | undefined,
): Promise<{ counts: Counted[]; unheard: string[] }> {
  const question = { of, ...(allocation !== undefined && { allocation }) }
  const replies = await Promise.all(
    presence.known().map(async partition => {
      const isSilent = presence.standing(partition) === 'silent'
      const timeoutMs = Math.min(isSilent ? limits.silentTryMs : limits.callMs, envelope.deadline - Date.now())
      const reply = await calls.askBus({ partition, envelope, timeoutMs, signal }, 'quota.count', question)
      return { partition, isSilent, reply }
    }),
  )
  const answers = replies.flatMap(({ reply }) =>
    reply.kind === 'answered' && reply.answer.counts.length === of.length ? [reply.answer.counts] : [],
  )
  const sum = (index: number, field: keyof Counted) => answers.reduce((total, each) => total + (each[index] as Counted)[field], 0)
  return {
    counts: of.map((_, index) => ({ machines: sum(index, 'machines'), held: sum(index, 'held'), own: sum(index, 'own') })),
    unheard: replies.flatMap(({ partition, isSilent, reply }) =>
      // One of an older release refuses the question for good.
      isSilent || isDefinite(reply) ? [] : [partition],
    ),
  }
}
