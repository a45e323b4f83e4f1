// Calls about events: immutable rows with a sequence number per partition, without gaps.
import { z } from 'zod'
import { machineId, partitionName, timestamp } from '../machine.ts'
import { declareCall, declareStream } from './call.ts'
import { mergeLogs } from './log.ts'

export const event = z.object({
  partition: partitionName,
  seq: z.number().int(),
  at: timestamp,
  /** What happened: `machine.moved`, `machine.created`, `power.changed`, `allocation.confirmed` … */
  kind: z.string(),
  machine: machineId.nullable(),
  /** Who caused it: a caller's name, `agent`, or `engine`. */
  actor: z.string(),
  data: z.record(z.string(), z.unknown()),
})
export type Event = z.infer<typeof event>

const filter = {
  after: z.string().max(4000).optional().describe('a position: 42, or lon1:42,par2:7; end: behind all there is'),
  machine: machineId.optional(),
  kind: z.string().max(64).optional(),
}

export const events = {
  list: declareCall({
    summary: 'Events behind a position, oldest first',
    description:
      'Without a position: from the oldest that is kept. Where events behind the position were removed for their age: gone, with the position to start at.',
    rest: { method: 'GET', path: '/events' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({ ...filter, limit: z.number().int().min(1).max(1000).default(100) }),
    answer: z.object({ items: z.array(event), nextCursor: z.string().describe('the position to go on from, as `after`') }),
    spread: { kind: 'gather', merge: mergeLogs },
    errors: ['gone'],
  }),
  stream: declareStream({
    summary: 'Events as they happen (server-sent events)',
    description:
      'Each event has its position as id; a client that reconnects with Last-Event-ID goes on exactly there. Without a position it starts now. A comment line is sent every 15 s. It ends when its token or session does.',
    rest: { method: 'GET', path: '/events/stream' },
    status: 200,
    role: 'read-only',
    input: z.strictObject(filter),
    answer: event,
    spread: { kind: 'here' },
    errors: ['gone'],
  }),
}
