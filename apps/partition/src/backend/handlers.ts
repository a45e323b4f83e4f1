// What this partition answers to each call of the contract: one short function per call, over the domain. The shapes come from the contract; the
// compiler refuses a call without a handler.
import type { CallContext } from '@muster/server/backend'
import { maySee } from '@muster/shared/allocation/grants'
import { addressKey } from '@muster/shared/contract/addresses'
import { allocationKey } from '@muster/shared/contract/allocations'
import type { Caller } from '@muster/shared/contract/call'
import type { CallAnswer, CallInput, CallName } from '@muster/shared/contract/contract'
import type { LabelEntry, LabelKind } from '@muster/shared/contract/labels'
import { askedFor, endOfLog, endPage, goneRefusal, pageBehind, parsePosition, readUpTo } from '@muster/shared/contract/log'
import { type MachineSort, machineKey } from '@muster/shared/contract/machines'
import { decodeCursor, directionOf, type Key, pageFrom, positionOf } from '@muster/shared/contract/page'
import type { PartitionStatus } from '@muster/shared/contract/partitions'
import { subnetKey } from '@muster/shared/contract/subnets'
import type { WebhookDelivery } from '@muster/shared/contract/webhooks'
import { Refusal, wrongFields } from '@muster/shared/errors'
import { documentsOf, ownKeysOf } from '@muster/shared/global/copy'
import type { ErasePolicy } from '@muster/shared/machine'
import * as addressRows from '../db/addresses.ts'
import * as allocationRows from '../db/allocations.ts'
import { lastSequenceNumber, listEvents } from '../db/events.ts'
import * as labelRows from '../db/labels.ts'
import * as machineRows from '../db/machines.ts'
import { networkServices } from '../db/network-services.ts'
import { liveReplicas } from '../db/replicas.ts'
import { removedEvents } from '../db/retention.ts'
import * as subnetRows from '../db/subnets.ts'
import { listCursors, listDeadLetters, replayDeadLetters } from '../db/webhooks.ts'
import * as addresses from '../domain/addresses.ts'
import { allocationView } from '../domain/allocation.ts'
import { refuseCentralSubnet, rulesView } from '../domain/central-settings.ts'
import type { Core } from '../domain/core.ts'
import { rotateCredentials } from '../domain/credentials.ts'
import { adoptMachine, startByDefinition, stopByDefinition } from '../domain/definition.ts'
import { erasePolicyFor, erasureCertificates } from '../domain/erase.ts'
import * as machines from '../domain/machines.ts'
import { existingMachine, moveMachine, refuseForeign, refuseUnmovable } from '../domain/move.ts'
import { refuseFederal, withFederal } from '../domain/places.ts'
import { listScripts, scriptOutput, scriptResults } from '../domain/scripts.ts'
import { deadLetterViewOf, eventViewOf, viewOf } from '../domain/view.ts'
import type { WebhookSender } from '../domain/webhooks/sender.ts'
import { allocateHere } from './allocate.ts'
import { withGrants } from './grants.ts'

/** What handlers know of the process they run in. */
export interface Self {
  readonly replica: { readonly name: string; readonly epoch: number }
  readonly version: string
  readonly url: string
  /** What is wrong just now, in words. */
  problems(): string[]
  /** Which of these are that something is not as the global configuration says. */
  settingsProblems(): readonly string[]
  readonly weaknesses: readonly string[]
  /** Images that are on their way. */
  fetching(): NonNullable<PartitionStatus['fetching']>
  /** What DHCP gives to anybody here. */
  dhcp(): NonNullable<PartitionStatus['dhcp']>
  readonly whyAway: machines.WhyAway
  readonly webhooks: Pick<WebhookSender, 'problems' | 'ring'>
}

export type Handlers = { readonly [Name in CallName]: (input: CallInput<Name>, context: CallContext) => Promise<CallAnswer<Name>> }

/** Replicas not seen for so long are not shown. */
const replicaShownSeconds = 30

export function handlers(core: Core, self: Self): Handlers {
  const plain =
    (verb: machines.PlainRequest) =>
    (
      input: { id: string; reason?: string; erase?: ErasePolicy | undefined; sshKeys?: string[]; ownKeys?: boolean | undefined },
      { caller }: CallContext,
    ) =>
      machines.requestMove(core, caller, verb, input)
  return withGrants(core, {
    'machines.list': (input, { caller }) => listMachines(core, input, caller),
    'machines.get': ({ id }, { caller }) => machines.machineDetail(core, caller, id),
    'machines.explain': ({ id }) => machines.explainMachine(core, id),
    'machines.create': (input, { caller }) => {
      refuseOtherPartition(core, input.partition)
      return machines.createMachine(core, caller, input)
    },
    'machines.update': (input, { caller }) => machines.updateMachine(core, caller, input),
    'machines.delete': async ({ id }, { caller }) => {
      await machines.deleteMachine(core, caller, id)
      return null
    },
    'machines.commission': (input, { caller }) => machines.commission(core, caller, input),
    'machines.adopt': ({ id }, { caller }) => adoptMachine(core, caller, id),
    'machines.start': (input, { caller, signal }) => {
      refuseOtherPartition(core, input.partition)
      return startByDefinition(core, caller, input, signal)
    },
    'machines.stop': (input, { caller, signal }) => {
      refuseOtherPartition(core, input.partition)
      return stopByDefinition(core, caller, input, signal)
    },
    'machines.abort': plain('abort'),
    'machines.deploy': (input, { caller }) => machines.deploy(core, caller, input, self.whyAway),
    'machines.release': plain('release'),
    'machines.markBroken': plain('markBroken'),
    'machines.fix': plain('fix'),
    'machines.rescue': plain('rescue'),
    'machines.exitRescue': plain('exitRescue'),
    'machines.retire': plain('retire'),
    'machines.restore': plain('restore'),
    'machines.lock': ({ id, reason }, { caller }) => machines.setLock(core, caller, { id, lock: 'locked', reason }),
    'machines.unlock': ({ id }, { caller }) => machines.setLock(core, caller, { id, lock: 'unlocked', reason: '' }),
    'machines.rotateCredentials': (input, { caller, signal }) => rotateCredentials(core, caller, input, signal),
    'machines.confirmPower': (input, { caller }) => machines.confirmPower(core, caller, input),
    'machines.network': ({ id }) => machines.machineNetwork(core, id),
    'machines.setNetwork': (input, { caller }) => machines.setNetwork(core, caller, input),
    'machines.erasures': async ({ id, limit }) => erasureCertificates(core, (await existingMachine(core, id)).id, limit),
    'machines.scriptResults': async input => {
      await existingMachine(core, input.id)
      return scriptResults(core, input)
    },
    'machines.scriptOutput': async input => {
      await existingMachine(core, input.id)
      return scriptOutput(core, input)
    },
    'machines.powerOrders': input => machines.powerOrders(core, input),
    'machines.power': (input, { caller, signal }) => machines.orderPower(core, caller, input, signal),
    'allocations.create': (input, context) => allocateHere(core, self.replica, input, context),
    'allocations.list': (input, context) => listAllocations(core, input, context),
    'allocations.get': ({ id }, context) => getAllocation(core, id, context),
    'allocations.release': (input, context) => releaseAllocation(core, input, context),
    ...subnetHandlers(core),
    ...addressHandlers(core),
    ...labelHandlers(core, 'tag'),
    ...labelHandlers(core, 'pool'),
    ...labelHandlers(core, 'zone'),
    'events.list': (input, { caller }) => eventsBehind(core, input, caller),
    // Streams are served by the door over events.list; nobody calls this one.
    'events.stream': () => Promise.reject(new Refusal('malformed', 'events.stream is a stream: read it as server-sent events')),
    'partitions.list': async (_, { caller }) => ({ items: [await statusOf(core, self, caller)], nextCursor: null }),
    'partitions.get': ({ name }, { caller }) => {
      refuseOtherPartition(core, name)
      return statusOf(core, self, caller)
    },
    'partitions.dhcp': async ({ name }) => {
      refuseOtherPartition(core, name)
      return { servers: await networkServices(core.sql) }
    },
    'partitions.status': async (_, { caller }) => {
      const status = await statusOf(core, self, caller)
      return {
        machines: status.machines,
        overdue: status.overdue,
        faulty: status.faulty,
        problems: status.problems.map(problem => ({ partition: core.partition, problem })),
      }
    },
    'operatingSystems.list': async () => ({
      items: core.catalogue.images.map(image => ({
        name: image.os,
        title: image.title,
        arch: image.arch as 'amd64' | 'arm64',
        supported: image.isSupported,
        available: image.isSelected,
        partitions: [core.partition],
      })),
      nextCursor: null,
    }),
    'audit.list': input => auditBehind(core, input),
    ...enrolmentHandlers(core),
    'audit.fronts': () => needsFront(core, 'knows nothing of the log of the fronts'),
    'scripts.list': async () => listScripts(core),
    ...configHandlers(core, self),
    'webhooks.deliveries': ({ webhook }) => webhookDeliveries(core, self, webhook),
    'webhooks.deadLetters': async input => {
      const rows = await listDeadLetters(core.sql, { webhook: input.webhook, limit: input.limit })
      return { items: rows.map(row => deadLetterViewOf(row, core.partition)), nextCursor: null }
    },
    'webhooks.replay': ({ name }) => replayWebhook(core, self, name),
    'session.login': (input, context) => core.sessions.login(input, context),
    'session.providers': async () => core.sessions.providers(),
    'session.exchange': (input, context) => core.sessions.exchange(input, context),
    'session.whoami': async (_, { caller }) => ({ caller, server: { kind: 'partition', name: core.partition, version: self.version } }),
  })
}

type ConfigHandlers = {
  readonly [Name in Extract<CallName, `config.${string}` | `keys.${string}`> | 'session.logout' | 'session.password']: Handlers[Name]
}

/** A partition reads its copy of the global configuration; it is written at a front. */
function configHandlers(core: Core, self: Self): ConfigHandlers {
  const written = () => needsFront(core, 'keeps a copy of the global configuration')
  return {
    'config.get': async input => ({ ...documentsOf(core.configuration.content, input), source: `the copy of partition ${core.partition}` }),
    'config.copies': async () => {
      const held = core.configuration.describe()
      return { items: [{ ...held, problems: [...held.problems, ...self.settingsProblems()] }], nextCursor: null }
    },
    'config.change': written,
    'config.history': written,
    'config.diff': written,
    'config.revert': written,
    'config.refill': written,
    'session.logout': written,
    'session.password': written,
    'keys.list': async (_, { caller }) => ownKeysOf(core.configuration.content, caller.name),
    'keys.put': written,
    'keys.delete': written,
  }
}

function enrolmentHandlers(core: Core): { readonly [Name in Extract<CallName, `enrolment.${string}`>]: Handlers[Name] } {
  const asked = () => needsFront(core, 'accepts nobody into the federation')
  return {
    'enrolment.ask': asked,
    'enrolment.list': asked,
    'enrolment.accept': asked,
    'enrolment.refuse': asked,
    'enrolment.retire': asked,
  }
}

function needsFront(core: Core, what: string): Promise<never> {
  return Promise.reject(new Refusal('needs-front', `partition ${core.partition} ${what}; ask a front`))
}

/** For statements: the pools that the caller is limited to, where it is. */
const limited = ({ name, pools }: Caller) => (pools === undefined ? undefined : { name, pools })

function refuseOtherPartition(core: Core, name: string | undefined): void {
  if (name !== undefined && name !== core.partition)
    throw new Refusal('not-found', `this is partition ${core.partition}; it knows no partition ${name}`)
}

/** An input that names no other partition. */
function meantHere(core: Core) {
  return <Input extends { partition?: string | undefined }>(input: Input): Input => {
    refuseOtherPartition(core, input.partition)
    return input
  }
}

type SubnetHandlers = { readonly [Name in Extract<CallName, `subnets.${string}`>]: Handlers[Name] }

function subnetHandlers(core: Core): SubnetHandlers {
  const here = meantHere(core)
  return {
    'subnets.list': input => listSubnets(core, input),
    'subnets.get': async input => addresses.getSubnet(core, here(input).name),
    'subnets.put': async (input, { caller }) => {
      refuseCentralSubnet(core, here(input).name)
      return addresses.putSubnet(core, caller, input)
    },
    'subnets.delete': async (input, { caller }) => {
      refuseCentralSubnet(core, here(input).name)
      return addresses.deleteSubnet(core, caller, input.name)
    },
  }
}

async function listSubnets(core: Core, { limit, cursor }: CallInput<'subnets.list'>): Promise<CallAnswer<'subnets.list'>> {
  const sort = 'name'
  const after = checkedKey(positionOf(decodeCursor(cursor, sort), core.partition), sort)
  // One of that name may come from another partition, and then ours is still to come.
  const from = after !== null && after[1] < core.partition ? 'at' : 'behind'
  const rows = await subnetRows.listSubnets(core.sql, { after: (after?.[0] as string | undefined) ?? null, from, limit: limit + 1 })
  return pageFrom(
    rows.map(row => addresses.subnetViewOf(row, core.partition)),
    { sort, limit, keyOf: subnetKey },
  )
}

type AddressHandlers = { readonly [Name in Extract<CallName, `addresses.${string}` | `dhcpHosts.${string}`>]: Handlers[Name] }

function addressHandlers(core: Core): AddressHandlers {
  const here = meantHere(core)
  return {
    'addresses.list': (input, { caller }) => listAddresses(core, input, caller),
    'addresses.reserve': async (input, { caller }) => addresses.reserveAddress(core, caller, here(input)),
    'addresses.release': async (input, { caller }) => addresses.releaseAddress(core, caller, here(input)),
    'dhcpHosts.set': async (input, { caller }) => addresses.setDhcpHost(core, caller, here(input)),
    'dhcpHosts.delete': async (input, { caller }) => addresses.deleteDhcpHost(core, caller, here(input).mac),
  }
}

async function listAddresses(core: Core, input: CallInput<'addresses.list'>, caller: Caller): Promise<CallAnswer<'addresses.list'>> {
  const { limit, cursor, partition: _, ...filter } = input
  const sort = 'address'
  const after = checkedKey(positionOf(decodeCursor(cursor, sort), core.partition), sort) as readonly [string, string] | null
  const rows = await addressRows.listAddresses(core.sql, {
    filter,
    prefix: core.partition,
    after,
    limit: limit + 1,
    seenBy: limited(caller),
  })
  return pageFrom(
    rows.map(row => addresses.addressViewOf(row, core.partition)),
    { sort, limit, keyOf: addressKey },
  )
}

async function listMachines(core: Core, input: CallInput<'machines.list'>, caller: Caller): Promise<CallAnswer<'machines.list'>> {
  const { sort, limit, cursor, partition: _, ...filter } = input
  const rows = await machineRows.listMachines(core.sql, {
    filter,
    sort: sort.replace(/^-/, '') as MachineSort,
    direction: directionOf(sort),
    after: checkedKey(positionOf(decodeCursor(cursor, sort), core.partition), sort),
    limit: limit + 1,
    seenBy: limited(caller),
  })
  const items = rows.map(row => viewOf(row, core.partition))
  return pageFrom(items, { sort, limit, keyOf: item => machineKey(item, sort) })
}

/** A cursor is text from outside: its value must be one that the column can be compared with. Throws invalid-input. */
function checkedKey(key: Key | null, sort: string): Key | null {
  if (key === null) return null
  const [value] = key
  const column = sort.replace(/^-/, '')
  const isNumber = column === 'cpus' || column === 'memoryMib'
  const isTime = column === 'createdAt'
  const fits = isNumber ? Number.isInteger(value) && Math.abs(value as number) < 2 ** 31 : typeof value === 'string'
  if (fits && !(isTime && Number.isNaN(Date.parse(value as string)))) return key
  const message = 'is not a cursor that Muster gave out'
  throw wrongFields([{ field: 'cursor', message }])
}

async function listAllocations(
  core: Core,
  input: CallInput<'allocations.list'>,
  { caller }: CallContext,
): Promise<CallAnswer<'allocations.list'>> {
  const sort = 'createdAt'
  const rows = await allocationRows.listAllocations(core.sql, {
    owner: caller.role === 'user' ? caller.name : input.owner,
    states: input.state,
    seenBy: limited(caller),
    after: checkedKey(positionOf(decodeCursor(input.cursor, sort), core.partition), sort),
    limit: input.limit + 1,
  })
  const owned = await allocationRows.machinesOfAllocations(
    core.sql,
    rows.map(({ id }) => id),
  )
  const items = rows.map(row =>
    allocationView(
      core,
      row,
      owned.filter(machine => machine.allocation_id === row.id),
    ),
  )
  return pageFrom(items, { sort, limit: input.limit, keyOf: allocationKey })
}

async function existingAllocation(core: Core, id: string, { caller }: CallContext): Promise<allocationRows.AllocationRow> {
  const row = await allocationRows.findAllocation(core.sql, id)
  if (!row || row.state === 'dropped') throw new Refusal('not-found', `partition ${core.partition} has nothing of allocation ${id}`)
  refuseForeign(caller, row)
  if (caller.pools && row.owner !== caller.name) {
    const machines = await allocationRows.machinesOfAllocations(core.sql, [id])
    if (!machines.some(machine => maySee(caller, machine)))
      throw new Refusal('not-found', `partition ${core.partition} has nothing of allocation ${id}`)
  }
  return row
}

async function getAllocation(core: Core, id: string, context: CallContext): Promise<CallAnswer<'allocations.get'>> {
  const row = await existingAllocation(core, id, context)
  return allocationView(core, row, await allocationRows.machinesOfAllocations(core.sql, [id]))
}

async function releaseAllocation(
  core: Core,
  { id, erase: asked }: CallInput<'allocations.release'>,
  context: CallContext,
): Promise<CallAnswer<'allocations.release'>> {
  const erase = erasePolicyFor(core, context.caller, asked)
  await existingAllocation(core, id, context)
  const owned = await allocationRows.machinesOfAllocations(core.sql, [id])
  const toGo = owned.filter(machine => machine.state !== 'releasing')
  // All or none as far as that can be known: a machine that cannot go stops the release before the first one moves.
  for (const machine of toGo) refuseUnmovable(machine, 'release')
  for (const machine of toGo)
    await moveMachine(core, { id: machine.id, move: 'release', actor: context.caller.name, allocation: id, erase })
  return getAllocation(core, id, context)
}

type LabelName = 'tags' | 'pools' | 'zones'
type LabelHandlers<Group extends LabelName> = { readonly [Name in Extract<CallName, `${Group}.${string}`>]: Handlers[Name] }

/** The same four calls for tags, pools and zones. */
function labelHandlers<Kind extends LabelKind>(core: Core, kind: Kind): LabelHandlers<`${Kind}s`> {
  const seen = async (caller: Caller, name?: string) => {
    const rows = await labelRows.listLabels(core.sql, kind, { ...(name !== undefined && { name }), seenBy: limited(caller) })
    const isPoolSeen = (entry: LabelEntry) => caller.pools === undefined || caller.pools.includes(entry.name) || entry.machines > 0
    return withFederal(core, kind, rows).filter(entry => kind !== 'pool' || isPoolSeen(entry))
  }
  const existing = async (name: string, caller: Caller) => {
    const [found] = (await seen(caller, name)).filter(each => each.name === name)
    if (!found) throw new Refusal('not-found', `partition ${core.partition} knows no ${kind} ${name}`)
    return found
  }
  return {
    [`${kind}s.list`]: async (_: object, { caller }: CallContext) => ({ items: await seen(caller), nextCursor: null }),
    [`${kind}s.get`]: ({ name }: { name: string }, { caller }: CallContext) => existing(name, caller),
    [`${kind}s.put`]: async (input: { name: string; description: string }, { caller }: CallContext) => {
      refuseFederal(core, kind, input.name, 'put')
      await labelRows.putLabel(core.sql, kind, input)
      return existing(input.name, caller)
    },
    [`${kind}s.delete`]: async ({ name }: { name: string }, { caller }: CallContext) => {
      refuseFederal(core, kind, name, 'delete')
      const found = await existing(name, caller)
      if (kind === 'tag')
        for (const id of await labelRows.machinesWithTag(core.sql, name)) await machines.takeOffTag(core, caller, id, name)
      else if (found.machines > 0)
        throw new Refusal('wrong-state', `${kind} ${name} still has ${found.machines} machines in partition ${core.partition}`)
      await labelRows.deleteLabel(core.sql, kind, name)
      return { ...found, machines: 0, ready: 0 }
    },
  } as unknown as LabelHandlers<`${Kind}s`>
}

async function eventsBehind(core: Core, input: CallInput<'events.list'>, caller: Caller): Promise<CallAnswer<'events.list'>> {
  const position = parsePosition(input.after)
  const asked = readUpTo(position, core.partition)
  const lastSeq = await lastSequenceNumber(core.sql)
  if (asked === endOfLog) return endPage(core.partition, lastSeq)
  const rows = await listEvents(core.sql, {
    after: asked,
    limit: input.limit,
    machine: input.machine,
    kind: input.kind,
    seenBy: limited(caller),
  })
  // Looked at afterwards, so that nothing is removed unseen between the two. Who names no position begins with what is there.
  const removedTo = await removedEvents(core.sql)
  const from = askedFor(position, core.partition)
  if (from !== undefined && from < removedTo) throw goneRefusal(input.after, [{ partition: core.partition, after: from, removedTo }])
  const items = rows.map(row => eventViewOf(row, core.partition))
  return pageBehind(core.partition, items, { after: asked, limit: input.limit, lastSeq })
}

async function auditBehind(core: Core, input: CallInput<'audit.list'>): Promise<CallAnswer<'audit.list'>> {
  const { after: position, limit, actor, call, target } = input
  const after = readUpTo(parsePosition(position), core.partition)
  if (after === endOfLog) return endPage(core.partition, await core.audit.lastSeq())
  const { items, lastSeq } = await core.audit.list({ after, limit, actor, call, target })
  return pageBehind(core.partition, items, { after, limit, lastSeq })
}

async function webhookDeliveries(core: Core, self: Self, only: string | undefined): Promise<CallAnswer<'webhooks.deliveries'>> {
  const documents = core.configuration.content?.documents.webhook ?? {}
  const rows = await listCursors(core.sql)
  const items = rows.flatMap((row): WebhookDelivery[] => {
    const document = documents[row.webhook]
    if (!document || (only !== undefined && row.webhook !== only)) return []
    const problem = self.webhooks.problems.get(row.webhook)
    return [
      {
        partition: core.partition,
        webhook: row.webhook,
        status: document.status,
        seq: row.seq,
        behind: row.last_seq - row.seq,
        deliveredAt: row.delivered_at?.toISOString() ?? null,
        failedAt: row.failed_at?.toISOString() ?? null,
        tries: row.tries,
        reason: problem ?? row.reason,
        nextTryAt: row.tries > 0 && document.status === 'active' && problem === undefined ? row.again_at.toISOString() : null,
        deadLetters: row.dead_letters,
      },
    ]
  })
  return { items, nextCursor: null }
}

async function replayWebhook(core: Core, self: Self, webhook: string): Promise<CallAnswer<'webhooks.replay'>> {
  if (!core.configuration.content?.documents.webhook[webhook])
    throw new Refusal('not-found', `partition ${core.partition} knows no webhook ${webhook}`)
  const letters = await replayDeadLetters(core.sql, webhook)
  self.webhooks.ring()
  return { items: [{ partition: core.partition, webhook, letters }], nextCursor: null }
}

/** The partition as it sees itself; its machines as far as the caller may see them. */
async function statusOf(core: Core, self: Self, caller: Caller): Promise<PartitionStatus> {
  const [counts, replicas, lastSeq] = await Promise.all([
    machineRows.countMachines(core.sql, limited(caller)),
    liveReplicas(core.sql, replicaShownSeconds),
    lastSequenceNumber(core.sql),
  ])
  const problems = self.problems()
  return {
    name: core.partition,
    status: problems.length === 0 ? 'ready' : 'degraded',
    url: self.url,
    version: self.version,
    machines: counts.states,
    overdue: counts.overdue,
    faulty: counts.faulty,
    replicas: replicas.map(replica => ({
      name: replica.name,
      epoch: replica.epoch,
      version: replica.version,
      seenAt: replica.seen_at.toISOString(),
    })),
    lastSeq,
    problems,
    weaknesses: [...self.weaknesses],
    fetching: self.fetching(),
    rules: rulesView(core),
    dhcp: self.dhcp(),
  }
}
