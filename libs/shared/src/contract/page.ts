// Lists page by cursor. A page is a run of items in one total order (the sort value, then the id); a cursor says how far each partition
// has been read. Partitions read in step share one position, so a cursor stays short however many there are; one that was silent for a
// page keeps its own position and loses nothing when it is back.
import { z } from 'zod'
import { wrongFields } from '../errors.ts'
import type { Gathered } from './call.ts'

/** The place of an item in its list: sort value and id. */
export type Key = readonly [value: string | number, id: string]
export type Direction = 'ascending' | 'descending'

const key = z.tuple([z.union([z.string().max(200), z.number()]), z.string().max(64)]).readonly()
const cursorContent = z.strictObject({
  sort: z.string().max(40),
  /** The last item that was given out, by any partition. */
  after: key.nullable(),
  /** Partitions that are not as far. */
  behind: z.record(z.string(), key.nullable()),
})
export type Cursor = z.output<typeof cursorContent>

export const pageInput = {
  limit: z.number().int().min(1).max(1000).default(100),
  cursor: z.string().max(8192).optional().describe('nextCursor of the page before'),
}

/** The shape of every list: `{ items, nextCursor }`, to which a spreading call adds `coverage`. */
export function pageOf<Item extends z.ZodType>(item: Item) {
  return z.object({ items: z.array(item), nextCursor: z.string().nullable() })
}

export function encodeCursor(cursor: Cursor): string {
  return Buffer.from(JSON.stringify(cursor)).toString('base64url')
}

/** The cursor of a request, or the start. Throws `invalid-input` where it is not one of ours or belongs to another sort. */
export function decodeCursor(text: string | undefined, sort: string): Cursor {
  if (text === undefined) return { sort, after: null, behind: {} }
  let content: unknown
  try {
    content = JSON.parse(Buffer.from(text, 'base64url').toString())
  } catch {
    content = undefined
  }
  const parsed = cursorContent.safeParse(content)
  if (parsed.success && parsed.data.sort === sort) return parsed.data
  const message = parsed.success ? `belongs to sort=${parsed.data.sort}, not to sort=${sort}` : 'is not a cursor that Muster gave out'
  throw wrongFields([{ field: 'cursor', message }])
}

/** How far `partition` has been read. */
export function positionOf(cursor: Cursor, partition: string): Key | null {
  const own = cursor.behind[partition]
  return own === undefined ? cursor.after : own
}

/** Plain code-unit order for texts (PostgreSQL's "C" collation on ASCII), numeric for numbers: the same in every partition and here. */
export function compareKeys(a: Key, b: Key, direction: Direction): number {
  const sign = direction === 'ascending' ? 1 : -1
  if (a[0] !== b[0]) return (a[0] < b[0] ? -1 : 1) * sign
  if (a[1] !== b[1]) return (a[1] < b[1] ? -1 : 1) * sign
  return 0
}

/** `-cpus` → by cpus, descending. */
export function directionOf(sort: string): Direction {
  return sort.startsWith('-') ? 'descending' : 'ascending'
}

export interface Page<Item> {
  items: Item[]
  nextCursor: string | null
}

export interface PageOrder<Item> {
  readonly sort: string
  readonly limit: number
  readonly cursor: string | undefined
  readonly keyOf: (item: Item) => Key
  /** Joins two parts of one thing that several partitions hold (equal keys). Without it keys are unique. */
  readonly join?: (a: Item, b: Item) => Item
}

/** One partition's page of rows it read one beyond the limit, so as to know whether there is more. */
export function pageFrom<Item>(itemsAndOneMore: Item[], order: Omit<PageOrder<Item>, 'cursor'>): Page<Item> {
  const items = itemsAndOneMore.slice(0, order.limit)
  const last = items.at(-1)
  const hasMore = itemsAndOneMore.length > order.limit && last !== undefined
  return { items, nextCursor: hasMore ? encodeCursor({ sort: order.sort, after: order.keyOf(last), behind: {} }) : null }
}

/**
 * Merges the pages of several partitions into one page in the same order. Every partition was given the same cursor and read from its own
 * position in it. The result's cursor continues exactly behind the last item given out. A partition may answer fewer items than the limit
 * and still have more (a message has a size limit): nothing behind its last item is given out. A listing ends when all that answered are
 * at their end; who was silent then is told by the coverage, not by a cursor, or a dead partition would keep readers asking for ever.
 */
export function mergePages<Item>(gathered: Gathered<Page<Item>>, order: PageOrder<Item>): Page<Item> {
  const direction = directionOf(order.sort)
  const later = (a: Key | null, b: Key | null): Key | null => (a === null ? b : b === null || compareKeys(a, b, direction) > 0 ? a : b)
  const all = gathered.answers
    .flatMap(({ answer }) => answer.items.map(item => ({ item, key: order.keyOf(item) })))
    .sort((a, b) => compareKeys(a.key, b.key, direction))
  const joined: typeof all = []
  for (const entry of all) {
    const before = joined.at(-1)
    if (order.join && before && compareKeys(before.key, entry.key, direction) === 0) before.item = order.join(before.item, entry.item)
    else joined.push({ ...entry })
  }
  const end = gathered.answers.reduce<Key | null>((earliest, { answer }) => {
    const last = answer.nextCursor === null ? undefined : answer.items.at(-1)
    if (last === undefined) return earliest
    const key = order.keyOf(last)
    return earliest === null || compareKeys(key, earliest, direction) < 0 ? key : earliest
  }, null)
  const page = joined.filter(({ key }) => end === null || compareKeys(key, end, direction) <= 0).slice(0, order.limit)
  const hasMore = joined.length > page.length || gathered.answers.some(({ answer }) => answer.nextCursor !== null)
  const last = page.at(-1)
  if (!hasMore || last === undefined) return { items: page.map(({ item }) => item), nextCursor: null }

  const before = decodeCursor(order.cursor, order.sort)
  const after = later(before.after, last.key)
  const behind: Record<string, Key | null> = {}
  const heard = new Set([...gathered.answers.map(({ partition }) => partition), ...gathered.silent])
  const note = (partition: string, position: Key | null) => {
    if (position === null || after === null || compareKeys(position, after, direction) !== 0) behind[partition] = position
  }
  // All an answering partition holds up to the last key was given out just now or before.
  for (const { partition } of gathered.answers) note(partition, later(positionOf(before, partition), last.key))
  for (const partition of gathered.silent) note(partition, positionOf(before, partition))
  // Another front may know partitions that this one does not.
  for (const [partition, position] of Object.entries(before.behind)) if (!heard.has(partition)) note(partition, position)
  return { items: page.map(({ item }) => item), nextCursor: encodeCursor({ sort: order.sort, after, behind }) }
}
