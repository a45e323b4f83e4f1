// The event log of a federation: each partition numbers its events 1, 2, 3 … without gaps; a position says how far each was read
// (`lon1:42,par2:7`). A bare number means the same place in every partition not named, and `end` the end of the log of each of them, as it
// is when it is first asked. Positions are what Last-Event-ID carries.
import { z } from 'zod'
import { Refusal, wrongFields } from '../errors.ts'
import { partitionNamePattern } from '../ids.ts'
import type { Gathered } from './call.ts'

/** Partition name → last sequence number read; `*` stands for every partition not named. */
export type Position = ReadonlyMap<string, number>

/** A place behind everything: what {@link readUpTo} answers for `end`. */
export const endOfLog = Number.POSITIVE_INFINITY

/** Reads `lon1:42,par2:7`, `42`, `end` or `lon1:42,end`. Throws `invalid-input` for anything else. */
export function parsePosition(text: string | undefined): Position {
  const position = new Map<string, number>()
  if (text === undefined || text === '') return position
  for (const part of text.split(',')) {
    if (part === 'end') {
      position.set('*', endOfLog)
      continue
    }
    const [name, digits] = part.includes(':') ? part.split(':', 2) : ['*', part]
    if (name === undefined || digits === undefined || !/^\d{1,15}$/.test(digits) || !(name === '*' || partitionNamePattern.test(name))) {
      const message = `"${part}" is not a position such as 42, lon1:42,par2:7 or end`
      throw wrongFields([{ field: 'after', message }])
    }
    position.set(name, Number(digits))
  }
  return position
}

export function positionText(position: Position): string {
  return [...position].map(([name, seq]) => (name !== '*' ? `${name}:${seq}` : seq === endOfLog ? 'end' : `${seq}`)).join(',')
}

/** The last sequence number of `partition` that was read; 0 means from the start, {@link endOfLog} that {@link endPage} is the answer. */
export function readUpTo(position: Position, partition: string): number {
  return position.get(partition) ?? position.get('*') ?? 0
}

/**
 * From where on a position asks `partition` for all there is; undefined: from nowhere in particular. A number for every partition is one, except 0, which
 * stands for the beginning of what is there.
 */
export function askedFor(position: Position, partition: string): number | undefined {
  return position.get(partition) ?? (position.get('*') || undefined)
}

/** Events behind `after` are asked for, and those up to `removedTo` are no more. */
export interface Gone {
  readonly partition: string
  readonly after: number
  readonly removedTo: number
}

/**
 * The refusal for a reader who would go on in partitions behind numbers whose events were removed: what it has not read is gone, and it is told so rather
 * than given the rest as if nothing were missing.
 */
export function goneRefusal(after: string | undefined, gone: readonly Gone[]): Refusal {
  const startAt = positionText(
    new Map([...parsePosition(after), ...gone.map(({ partition, removedTo }) => [partition, removedTo] as const)]),
  )
  const texts = gone.map(
    ({ partition, after, removedTo }) => `${partition} has removed its events up to ${removedTo}, and ${after} is the last read`,
  )
  return new Refusal('gone', `${texts.join('; ')}: what is between is lost`, {
    startAt,
    gone,
    hint: `to go on with what is left, start at ${startAt}`,
  })
}

const goneFacts = z.array(z.object({ partition: z.string(), after: z.number().int().min(0), removedTo: z.number().int().min(1) }))

/** What a {@link goneRefusal} of `partition` says of itself; undefined for another refusal, and where it makes no sense. */
export function goneOf({ code, facts }: Refusal, partition: string): Gone | undefined {
  if (code !== 'gone') return undefined
  return goneFacts.safeParse(facts.gone).data?.find(gone => gone.partition === partition)
}

export interface LogItem {
  readonly partition: string
  readonly seq: number
  readonly at: string
}

export interface LogPage<Item> {
  items: Item[]
  nextCursor: string
}

/** What a partition answers to a reader who starts at the end: nothing, and where that is. */
export function endPage(partition: string, lastSeq: number): LogPage<never> {
  return { items: [], nextCursor: `${partition}:${lastSeq}` }
}

/** A page of a partition's log behind `after`. A short one was read to the end, whatever the filter hid; `lastSeq` was read before the items. */
export function pageBehind<Item extends LogItem>(
  partition: string,
  items: Item[],
  { after, limit, lastSeq }: { after: number; limit: number; lastSeq: number },
): LogPage<Item> {
  const lastItem = items.at(-1)?.seq ?? after
  return { items, nextCursor: `${partition}:${items.length === limit ? lastItem : Math.max(lastSeq, lastItem)}` }
}

/** Merges logs by time while keeping each partition's own order, and moves only the positions of what is given out. */
export function mergeLogs<Item extends LogItem>(
  gathered: Gathered<LogPage<Item>>,
  input: { after?: string | undefined; limit: number },
): LogPage<Item> {
  const position = new Map(parsePosition(input.after))
  const queues = gathered.answers.map(({ partition, answer }) => ({ partition, answer, next: 0 }))
  const items: Item[] = []
  while (items.length < input.limit) {
    let oldest: { queue: (typeof queues)[number]; head: Item } | undefined
    for (const queue of queues) {
      const head = queue.answer.items[queue.next]
      if (head && (!oldest || head.at < oldest.head.at || (head.at === oldest.head.at && queue.partition < oldest.queue.partition)))
        oldest = { queue, head }
    }
    if (!oldest) break
    oldest.queue.next++
    items.push(oldest.head)
    position.set(oldest.queue.partition, oldest.head.seq)
  }
  // A partition all of whose items were given out may have read further, past events that a filter hides: they need no second look.
  for (const { partition, answer, next } of queues)
    if (next === answer.items.length) {
      const before = readUpTo(position, partition)
      const after = readUpTo(parsePosition(answer.nextCursor), partition)
      position.set(partition, before === endOfLog ? after : Math.max(before, after))
    }
  return { items, nextCursor: positionText(position) }
}
