// Whether copies that partitions hold are of the history that the fronts' database holds.
import type { CopyContent } from '@muster/shared/global/copy'

/** What somebody holds. */
export interface Held {
  readonly generation: number
  /** SHA-256 of the payload, hex. */
  readonly digest: string
}

/**
 * The copies that say something else than the database under a generation that both know. Not among them: copies that are newer than `content` (the
 * database was set back, or lost), and those from before its history began, which is newer than they by an admin's decision.
 * `digests`: of these generations, of those that the database knows.
 */
export async function ofAnotherHistory<Copy extends Held>(
  copies: readonly Copy[],
  { content, digest, digests }: { content: CopyContent; digest: string; digests(generations: number[]): Promise<readonly Held[]> },
): Promise<Copy[]> {
  const since = content.lineage?.since ?? 0
  const shared = copies.filter(({ generation }) => generation > 0 && generation >= since && generation <= content.generation)
  const earlier = [...new Set(shared.map(({ generation }) => generation).filter(generation => generation < content.generation))]
  const rows = earlier.length === 0 ? [] : await digests(earlier)
  const known = new Map(rows.map(row => [row.generation, row.digest]))
  known.set(content.generation, digest)
  return shared.filter(copy => known.has(copy.generation) && known.get(copy.generation) !== copy.digest)
}
