// The event log of a federation: each partition numbers its events 1, 2, 3 … without gaps; a position says how far each was read
// (`lon1:42,par2:7`). A bare number means the same place in every partition. Positions are what Last-Event-ID carries.
import { Refusal } from '../errors.ts'
import { partitionNamePattern } from '../ids.ts'
import type { Gathered } from './call.ts'

/** Partition name → last sequence number read; `*` stands for every partition not named. */
export type Position = ReadonlyMap<string, number>

/** Reads `lon1:42,par2:7` or `42`. Throws `invalid-input` for anything else. */
export function parsePosition(text: string | undefined): Position {
  const position = new Map<string, number>()
  if (text === undefined || text === '') return position
  for (const part of text.split(',')) {
    const [name, digits] = part.includes(':') ? part.split(':', 2) : ['*', part]
    if (name === undefined || digits === undefined || !/^\d{1,15}$/.test(digits) || !(name === '*' || partitionNamePattern.test(name))) {
      const message = `"${part}" is not a position such as 42 or lon1:42,par2:7`
      throw new Refusal('invalid-input', `after: ${message}`, { errors: [{ field: 'after', message }] })
    }
    position.set(name, Number(digits))
  }
  return position
}

export function positionText(position: Position): string {
  return [...position].map(([name, seq]) => (name === '*' ? `${seq}` : `${name}:${seq}`)).join(',')
}

/** The last sequence number of `partition` that was read; 0 means from the start. */
export function readUpTo(position: Position, partition: string): number {
  return position.get(partition) ?? position.get('*') ?? 0
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

/** Merges logs by time while keeping each partition's own order, and moves only the positions of what is given out. */
export function mergeLogs<Item extends LogItem>(
  gathered: Gathered<LogPage<Item>>,
  input: { after?: string | undefined; limit: number },
): LogPage<Item> {
  const position = new Map(parsePosition(input.after))
  const queues = gathered.answers.map(({ answer }) => ({ items: answer.items, next: 0 }))
  const items: Item[] = []
  while (items.length < input.limit) {
    let oldest: (typeof queues)[number] | undefined
    for (const queue of queues) {
      const head = queue.items[queue.next]
      const best = oldest?.items[oldest.next]
      if (head && (!best || head.at < best.at || (head.at === best.at && head.partition < best.partition))) oldest = queue
    }
    if (!oldest) break
    const item = oldest.items[oldest.next++] as Item
    items.push(item)
    position.set(item.partition, item.seq)
  }
  // A partition that gave nothing away (filtered to nothing, say) may still have read further than it was asked from.
  for (const { partition, answer } of gathered.answers)
    if (answer.items.length === 0)
      position.set(partition, Math.max(readUpTo(position, partition), readUpTo(parsePosition(answer.nextCursor), partition)))
  return { items, nextCursor: positionText(position) }
}
