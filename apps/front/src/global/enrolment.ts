// How a partition becomes part of the federation. It asks with a join token; an admin accepts it, by writing its document. The first of a federation is accepted by
// itself, with what it said it can install: nobody could have meant another.
import { timingSafeEqual } from 'node:crypto'
import { hashToken } from '@muster/server/tokens'
import type { Caller } from '@muster/shared/contract/call'
import type { CallAnswer, CallInput } from '@muster/shared/contract/contract'
import type { PendingPartition } from '@muster/shared/contract/enrolment'
import { Refusal } from '@muster/shared/errors'
import {
  type Change,
  type Documents,
  noDocuments,
  type PartitionDocument,
  type PartitionSettings,
  partitionSettings,
} from '@muster/shared/global/documents'
import type { Here } from '../federation.ts'
import * as db from './db/joins.ts'
import type { Home } from './home.ts'

export interface EnrolmentOptions {
  readonly home: Home
  /** Where partitions find the bus. */
  readonly natsUrl: string
  /** By whose certificates they believe it, PEM; undefined: by those that their computers know. */
  readonly natsCa: string | undefined
  /** By which keys the global configuration is signed, hex. */
  readonly configKeys: readonly string[]
  readonly log: { info(facts: object, text: string): void; warn(facts: object, text: string): void }
}

/** A partition that waits asks every few seconds; one that has not for so long has given up. */
const shownSeconds = 3600
/** In whose name the first partition is accepted. */
const itself: Caller = { name: 'enrolment', role: 'admin' }

/** One short function per call. */
export function enrolmentCalls(options: EnrolmentOptions): Here {
  const { home } = options
  return {
    'enrolment.ask': (input, { from }) => ask(options, input, from),
    'enrolment.list': async () => {
      const documents = await documentsOf(home)
      const rows = await home.run(sql => db.listJoins(sql, shownSeconds))
      return { items: rows.map(row => pendingOf(row, documents)), nextCursor: null }
    },
    'enrolment.accept': (input, { caller }) => accept(options, caller, input),
    'enrolment.refuse': (input, { caller }) => refuse(options, caller, input),
    'enrolment.retire': async ({ name }, { caller }) => {
      const { partition } = await documentsOf(home)
      const known = partition[name]
      if (!known) throw new Refusal('not-found', `no partition ${name} was accepted`)
      const document = { ...known, status: 'retired' }
      return write(home, caller, name, { put: [{ kind: 'partition', name, document }], delete: [] }, `partition ${name} retired`)
    },
  }
}

const documentsOf = async (home: Home): Promise<Documents> => (await home.newest())?.documents ?? noDocuments

async function ask(options: EnrolmentOptions, input: CallInput<'enrolment.ask'>, from: string): Promise<CallAnswer<'enrolment.ask'>> {
  const { home, log, natsUrl, natsCa = null, configKeys } = options
  const told = { natsUrl, natsCa, configKeys: [...configKeys] }
  const { name, natsKey, token } = input
  const { partition, join } = await documentsOf(home)
  const known = partition[name]
  if (known?.natsKey === natsKey) {
    if (known.status === 'retired') throw new Refusal('forbidden', `partition ${name} was retired; an admin may accept it again`)
    return { status: 'accepted', detail: `accepted at ${known.acceptedAt}`, ...told }
  }
  const id = joinOf(join, token)
  if (id === undefined)
    throw new Refusal('unauthenticated', 'the join token is not known here, was used, or has expired: muster partition token create')
  const allowed = join[id]?.partition
  if (allowed !== undefined && allowed !== name)
    throw new Refusal('forbidden', `this join token is for a partition ${allowed}, not for ${name}`)
  if (Object.keys(partition).length === 0) {
    const change = acceptance({ name, natsKey, operatingSystems: input.operatingSystems, title: '' }, id)
    await write(home, itself, name, change, `partition ${name} accepted, the first of the federation`)
    log.info({ partition: name, natsKey }, 'the first partition of the federation is accepted')
    return { status: 'accepted', detail: 'accepted as the first of the federation', ...told }
  }
  const { version, url, operatingSystems } = input
  const row = { name, join_id: id, nats_key: natsKey, version, url, operating_systems: operatingSystems, origin: from }
  const before = await home.run(sql => db.findJoin(sql, name))
  await home.run(sql => db.putJoin(sql, row))
  if (before?.nats_key !== natsKey) log.info({ partition: name, natsKey, from }, 'a partition asks to take part; it waits for an admin')
  const remark = remarkOn(name, natsKey, partition)
  return {
    status: 'pending',
    detail: remark || 'it waits for an admin: muster partition accept',
    natsUrl: null,
    natsCa: null,
    configKeys: [],
  }
}

/** The id of the join token that is good now. Every one is compared, so that the time tells nothing. */
function joinOf(joins: Documents['join'], token: string): string | undefined {
  const given = Buffer.from(hashToken(token), 'hex')
  let found: string | undefined
  for (const [id, { sha256, expiresAt }] of Object.entries(joins))
    if (timingSafeEqual(Buffer.from(sha256, 'hex'), given) && Date.parse(expiresAt) > Date.now()) found = id
  return found
}

function remarkOn(name: string, natsKey: string, partitions: Documents['partition']): string {
  const known = partitions[name]
  if (!known || known.natsKey === natsKey) return ''
  const how = `muster partition accept ${name} --key ${natsKey}`
  return known.status === 'retired'
    ? `a partition of this name was retired; an admin may accept it again: ${how}`
    : `the name is taken, by the partition with the key ${known.natsKey}; if it is the same one with a lost disk: ${how}`
}

function pendingOf(row: db.JoinRow, { partition }: Documents): PendingPartition {
  return {
    name: row.name,
    version: row.version,
    url: row.url,
    natsKey: row.nats_key,
    operatingSystems: row.operating_systems,
    join: row.join_id,
    from: row.origin,
    askedAt: row.asked_at.toISOString(),
    seenAt: row.seen_at.toISOString(),
    remark: remarkOn(row.name, row.nats_key, partition),
  }
}

async function accept(
  { home }: EnrolmentOptions,
  caller: Caller,
  input: CallInput<'enrolment.accept'>,
): Promise<CallAnswer<'enrolment.accept'>> {
  const { name, natsKey, dryRun } = input
  const known = (await documentsOf(home)).partition[name]
  const meant = { ...settingsOf(known), ...settingsOf(input), name, operatingSystems: input.operatingSystems, title: input.title }
  const row = await home.run(sql => db.findJoin(sql, name))
  if (!row) {
    // Nobody asks under this name: a retired one may be taken back as it was.
    if (known?.status !== 'retired') throw new Refusal('not-found', `no partition ${name} has asked to take part`)
    const change = acceptance({ ...meant, natsKey: known.natsKey })
    return writeAcceptance(home, caller, input, change, `partition ${name} accepted again`)
  }
  if (natsKey !== undefined && natsKey !== row.nats_key)
    throw new Refusal('already-exists', `partition ${name} asks with the key ${row.nats_key}, not with ${natsKey}`)
  if (known && known.natsKey !== row.nats_key && natsKey === undefined)
    throw new Refusal('already-exists', remarkOn(name, row.nats_key, { [name]: known }))
  const change = acceptance({ ...meant, natsKey: row.nats_key }, row.join_id)
  const done = await writeAcceptance(home, caller, input, change, `partition ${name} accepted`)
  if (!dryRun) await home.run(sql => db.deleteJoin(sql, name))
  return done
}

async function refuse(
  { home }: EnrolmentOptions,
  caller: Caller,
  { name }: CallInput<'enrolment.refuse'>,
): Promise<CallAnswer<'enrolment.refuse'>> {
  const row = await home.run(sql => db.findJoin(sql, name))
  if (!row) throw new Refusal('not-found', `no partition ${name} has asked to take part`)
  const change: Change = { put: [], delete: [{ kind: 'join', name: row.join_id }] }
  const isThere = (await documentsOf(home)).join[row.join_id] !== undefined
  const { generation } = isThere
    ? await write(home, caller, name, change, `partition ${name} refused`)
    : { generation: (await home.newest())?.generation ?? 0 }
  await home.run(sql => db.deleteJoin(sql, name))
  return { name, generation }
}

/** What is said of a partition's settings, without what is left open. */
function settingsOf(said: PartitionSettings | undefined): PartitionSettings {
  const fields = Object.keys(partitionSettings) as (keyof PartitionSettings)[]
  return Object.fromEntries(fields.flatMap(field => (said?.[field] === undefined ? [] : [[field, said[field]]])))
}

/** The document of an accepted partition; its token has done its work. */
function acceptance(
  { name, ...said }: Pick<PartitionDocument, 'natsKey' | 'operatingSystems' | 'title'> & PartitionSettings & { name: string },
  join?: string,
): Change {
  const document = { ...said, status: 'accepted', acceptedAt: new Date().toISOString() }
  return { put: [{ kind: 'partition', name, document }], delete: join === undefined ? [] : [{ kind: 'join', name: join }] }
}

async function writeAcceptance(
  home: Home,
  by: Caller,
  { name, dryRun }: CallInput<'enrolment.accept'>,
  change: Change,
  note: string,
): Promise<CallAnswer<'enrolment.accept'>> {
  const expectedGeneration = (await home.newest())?.generation ?? 0
  const written = await home.change(by, change, { expectedGeneration, kind: dryRun ? 'dry-run' : 'write', note })
  return { name, generation: written.generation, outcome: written.outcome, differences: written.differences }
}

async function write(home: Home, by: Caller, name: string, change: Change, note: string): Promise<{ name: string; generation: number }> {
  const expectedGeneration = (await home.newest())?.generation ?? 0
  const { generation } = await home.change(by, change, { expectedGeneration, kind: 'write', note })
  return { name, generation }
}
