// Reading a list page by page.
import type { Coverage } from '@muster/shared/contract/call'

interface AnyPage {
  readonly items: readonly unknown[]
  readonly nextCursor: string | null
}

/** The most a page may hold. */
const largestPage = 1000

/**
 * Pages of a list until `limit` items were read (all without one). Each is handed out as it arrives, so that a pipe starts at once. Throws
 * where the server gives the same cursor twice: that would go on for ever.
 */
export async function* pagesOf<Page extends AnyPage>(
  read: (page: { limit: number; cursor?: string }) => Promise<Page>,
  limit: number | undefined,
): AsyncGenerator<Page> {
  let cursor: string | undefined
  let left = limit ?? Number.POSITIVE_INFINITY
  for (;;) {
    const page = await read({ limit: Math.min(left, largestPage), ...(cursor !== undefined && { cursor }) })
    yield page
    left -= page.items.length
    if (page.nextCursor === null || left <= 0) return
    if (page.nextCursor === cursor) throw new Error('the server gave the same page twice')
    cursor = page.nextCursor
  }
}

/** One coverage for several pages: a partition that missed one of them did not answer wholly. */
export function joinCoverage(a: Coverage | undefined, b: Coverage): Coverage {
  if (!a) return b
  const partitions = new Map(a.partitions.map(partition => [partition.name, partition]))
  for (const partition of b.partitions) {
    const known = partitions.get(partition.name)
    if (!known || known.outcome === 'answered') partitions.set(partition.name, partition)
  }
  const all = [...partitions.values()]
  return { asked: all.length, answered: all.filter(({ outcome }) => outcome === 'answered').length, partitions: all }
}
