// Calls by which a partition becomes part of the federation: it asks with a join token, an admin accepts it and says in the same step what it may install.
import { z } from 'zod'
import { difference, joinId, natsPublicKey, partitionSettings } from '../global/documents.ts'
import { osName, partitionName, timestamp } from '../machine.ts'
import { declareCall } from './call.ts'

/** What a partition says of itself when it asks. */
const application = {
  name: partitionName,
  version: z.string().max(100),
  url: z.string().max(500),
  /** The public half of the nkey it made: who it will be on the bus, and its fingerprint. */
  natsKey: natsPublicKey,
  /** What it could install. */
  operatingSystems: z.array(osName).max(200),
}

export const pendingPartition = z.object({
  ...application,
  /** The token it asks with. */
  join: joinId,
  /** The address it asks from. */
  from: z.string(),
  askedAt: timestamp,
  /** When it asked last; one that waits asks every few seconds. */
  seenAt: timestamp,
  /** What an admin should know before accepting it: that its name is taken, say. Empty where there is nothing. */
  remark: z.string(),
})
export type PendingPartition = z.infer<typeof pendingPartition>

/** Explicit, always: an empty list installs nothing, and there is no word for everything. */
const selection = z.array(osName).max(200).describe('the operating systems it may install, such as debian/12')

const done = z.object({ name: partitionName, generation: z.number().int().describe('of the global configuration that says so') })

export const enrolment = {
  ask: declareCall({
    summary: 'Ask to become part of the federation; for partition servers',
    description: 'Asked again until it is accepted. The join token is the authentication; an accepted partition is told by its key.',
    rest: { method: 'POST', path: '/enrolment' },
    status: 200,
    role: 'public',
    input: z.strictObject({ token: z.string().min(1).max(200), ...application }),
    answer: z.object({
      status: z.enum(['pending', 'accepted']),
      /** What it waits for, in words. */
      detail: z.string(),
      /** Once accepted: where the bus is, and by which keys the global configuration is signed (hex). */
      natsUrl: z.string().nullable(),
      /** By whose certificates the bus is believed, PEM; null: by those of authorities that the computer knows. */
      natsCa: z.string().nullable(),
      configKeys: z.array(z.string()),
    }),
    spread: { kind: 'global' },
    errors: ['needs-front', 'home-lost', 'newer-release', 'stale-version'],
  }),
  list: declareCall({
    summary: 'Partitions that have asked and are not accepted yet',
    rest: { method: 'GET', path: '/enrolment' },
    status: 200,
    role: 'admin',
    input: z.strictObject({}),
    answer: z.object({ items: z.array(pendingPartition), nextCursor: z.null() }),
    spread: { kind: 'global' },
    errors: ['needs-front'],
  }),
  accept: declareCall({
    summary: 'Accept a partition that has asked, and say what it may install and how it is set up',
    description:
      'Of its settings, those that are left out stay as an earlier acceptance said, or are its own. They count before the settings of its server; change them later in its document.',
    rest: { method: 'POST', path: '/enrolment/{name}/accept' },
    status: 200,
    role: 'admin',
    input: z.strictObject({
      name: partitionName,
      operatingSystems: selection,
      title: z.string().max(200).default(''),
      natsKey: natsPublicKey
        .optional()
        .describe('refuse when it asks with another key; needed where its name was accepted with another before'),
      ...partitionSettings,
      dryRun: z.boolean().default(false).describe('show what would change, and accept nothing'),
    }),
    answer: z.object({ ...done.shape, outcome: z.enum(['written', 'dry-run', 'nothing-to-do']), differences: z.array(difference) }),
    spread: { kind: 'global' },
    errors: ['needs-front', 'not-found', 'already-exists', 'stale-version', 'home-lost', 'newer-release'],
  }),
  refuse: declareCall({
    summary: 'Refuse a partition that has asked; its token is void',
    rest: { method: 'POST', path: '/enrolment/{name}/refuse' },
    status: 200,
    role: 'admin',
    input: z.strictObject({ name: partitionName }),
    answer: done,
    spread: { kind: 'global' },
    errors: ['needs-front', 'not-found', 'stale-version', 'home-lost', 'newer-release'],
  }),
  retire: declareCall({
    summary: 'Retire a partition: fronts ask it no more, and the bus lets it in no more',
    description: 'Its machines stay what they are, and its own API goes on. Accepting it again takes it back.',
    rest: { method: 'POST', path: '/enrolment/{name}/retire' },
    status: 200,
    role: 'admin',
    input: z.strictObject({ name: partitionName }),
    answer: done,
    spread: { kind: 'global' },
    errors: ['needs-front', 'not-found', 'stale-version', 'home-lost', 'newer-release'],
  }),
}
