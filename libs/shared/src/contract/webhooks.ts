// Calls about webhooks: how far each was told of events, and what it would not take. Each partition tells its own events; the webhooks themselves are
// documents of the global configuration (config.change).
import { z } from 'zod'
import { webhookName } from '../global/documents.ts'
import { partitionName, timestamp } from '../machine.ts'
import { declareCall, type Gathered } from './call.ts'
import { type Page, pageOf } from './page.ts'

export const webhookDelivery = z.object({
  partition: partitionName,
  webhook: webhookName,
  status: z.enum(['active', 'paused']),
  /** The last event of the partition that was delivered, given up or not wanted. */
  seq: z.number().int(),
  /** How many events the log goes on behind it. */
  behind: z.number().int(),
  deliveredAt: timestamp.nullable(),
  failedAt: timestamp.nullable(),
  /** Failed attempts at the batch under way. */
  tries: z.number().int(),
  /** Why it was not taken the last time, or why nothing can be sent; null when all is well. */
  reason: z.string().nullable(),
  /** When the batch is tried again; null where it is not waiting for that. */
  nextTryAt: timestamp.nullable(),
  deadLetters: z.number().int(),
})
export type WebhookDelivery = z.infer<typeof webhookDelivery>

/** A batch of events that was given up. */
export const deadLetter = z.object({
  partition: partitionName,
  webhook: webhookName,
  id: z.number().int(),
  /** The header webhook-id, the same whenever it is sent. */
  batch: z.string(),
  /** Sequence numbers of the first and last event, between which it holds those the webhook wants. */
  from: z.number().int(),
  to: z.number().int(),
  tries: z.number().int(),
  reason: z.string(),
  firstTriedAt: timestamp,
  diedAt: timestamp,
  /** `replaying`: somebody asked for it to be sent again, and that is under way. */
  status: z.enum(['dead', 'replaying']),
})
export type DeadLetter = z.infer<typeof deadLetter>

const replayed = z.object({
  partition: partitionName,
  webhook: webhookName,
  /** How many batches are being sent again. */
  letters: z.number().int(),
})

const byPartition = <Item extends { partition: string }>({ answers }: Gathered<Page<Item>>): Page<Item> => ({
  items: answers.flatMap(({ answer }) => answer.items).sort((a, b) => (a.partition < b.partition ? -1 : a.partition > b.partition ? 1 : 0)),
  nextCursor: null,
})

export const webhooks = {
  deliveries: declareCall({
    summary: 'How far each webhook was told of the events of each partition',
    rest: { method: 'GET', path: '/webhooks/deliveries' },
    status: 200,
    role: 'operator',
    input: z.strictObject({ webhook: webhookName.optional() }),
    answer: pageOf(webhookDelivery),
    spread: { kind: 'gather', merge: byPartition },
    errors: [],
  }),
  deadLetters: declareCall({
    summary: 'Batches of events that a webhook would not take, the oldest of each partition first',
    rest: { method: 'GET', path: '/webhooks/dead-letters' },
    status: 200,
    role: 'operator',
    input: z.strictObject({
      webhook: webhookName.optional(),
      limit: z.number().int().min(1).max(1000).default(100).describe('at most so many of each partition'),
    }),
    answer: pageOf(deadLetter),
    spread: { kind: 'gather', merge: byPartition },
    errors: [],
  }),
  replay: declareCall({
    summary: 'Send the dead letters of a webhook again, in all partitions or in those named',
    description: 'They are sent beside what is new, each with the webhook-id it had. What is not taken this time either is dead again.',
    rest: { method: 'POST', path: '/webhooks/{name}/replay' },
    status: 200,
    role: 'operator',
    input: z.strictObject({ name: webhookName, partition: z.array(partitionName).max(1000).optional() }),
    answer: pageOf(replayed),
    spread: { kind: 'each', merge: byPartition },
    errors: ['not-found'],
  }),
}
