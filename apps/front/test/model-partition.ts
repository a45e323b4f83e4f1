// A partition in memory that speaks the bus protocol, honestly and briefly: what the real one promises, without a database. The stories of
// the front are told over it; apps/front/test/partitions.ts tells them over real partitions too.
import type { Constraints, Strategy } from '@muster/shared/allocation/constraints'
import { type Candidate, isMatch, type Place, whyNot } from '@muster/shared/allocation/matcher'
import { homesOf, scoreOf, tieBreak } from '@muster/shared/allocation/score'
import type { Bus, BusMessage } from '@muster/shared/bus/bus'
import {
  type BusCallAnswer,
  type BusCallInput,
  type BusCallName,
  busCalls,
  callRequest,
  type KeyRecord,
  type Offer,
  offerRequest,
  presenceEveryMs,
  subjects,
} from '@muster/shared/bus/protocol'
import { type Allocation, allocationKey } from '@muster/shared/contract/allocations'
import type { Caller } from '@muster/shared/contract/call'
import { type CallAnswer, type CallInput, type CallName, callNamed } from '@muster/shared/contract/contract'
import { endOfLog, endPage, parsePosition, readUpTo } from '@muster/shared/contract/log'
import { machineKey } from '@muster/shared/contract/machines'
import { compareKeys, decodeCursor, directionOf, pageFrom, positionOf } from '@muster/shared/contract/page'
import { durationMs } from '@muster/shared/duration'
import { problemOf, Refusal } from '@muster/shared/errors'
import type { Machine } from '@muster/shared/machine'

export interface ModelOptions {
  readonly name: string
  readonly bus: Bus
  readonly machines: readonly Partial<Machine>[]
  readonly replica?: string
  readonly epoch?: number
  readonly holdMs?: number
}

interface ModelAllocation {
  readonly id: string
  readonly owner: string
  readonly strategy: Strategy
  readonly count: number
  readonly note: string
  readonly createdAt: string
  state: 'held' | 'confirmed' | 'released' | 'dropped'
  readonly expiresAt: number
}

type Handlers = { readonly [Name in CallName]?: (input: CallInput<Name>, caller: Caller) => CallAnswer<Name> } & {
  readonly [Name in BusCallName]: (input: BusCallInput<Name>, caller: Caller) => BusCallAnswer<Name>
}

export class ModelPartition {
  readonly name: string
  readonly machines = new Map<string, Machine>()
  readonly allocations = new Map<string, ModelAllocation>()
  readonly keys = new Map<string, KeyRecord>()
  readonly tags = new Map<string, string>()
  readonly events: {
    partition: string
    seq: number
    at: string
    kind: string
    machine: string | null
    actor: string
    data: Record<string, unknown>
  }[] = []
  /** Every question heard, by the name of its call. */
  readonly heard: string[] = []
  readonly cancelled: string[] = []
  readonly #options: ModelOptions
  readonly #bus: Bus
  readonly #place: Place
  readonly #stops: (() => void)[] = []
  readonly #handlers: Handlers

  constructor(options: ModelOptions) {
    this.name = options.name
    this.#options = options
    this.#bus = options.bus
    this.#place = { partition: options.name, installable: new Map([['amd64', new Set(['debian/12'])]]) }
    options.machines.forEach((facts, index) => {
      const machine = modelMachine(options.name, index, facts)
      this.machines.set(machine.id, machine)
    })
    this.#handlers = this.#makeHandlers()
  }

  async start(): Promise<this> {
    const bus = this.#bus
    const subscriptions = await Promise.all([
      bus.subscribe(subjects.presenceAsk, {}, () => this.tellPresence()),
      bus.subscribe(subjects.offer, { group: this.name }, message => this.#onOffer(message)),
      bus.subscribe(subjects.call(this.name), { group: this.name }, message => this.#onCall(message)),
      bus.subscribe(subjects.cancel, {}, ({ data }) => void this.cancelled.push(...(parse(data) as { ids: string[] }).ids)),
    ])
    const timer = setInterval(() => this.tellPresence(), presenceEveryMs)
    this.#stops.push(() => clearInterval(timer), ...subscriptions.map(subscription => () => subscription.stop()))
    this.tellPresence()
    return this
  }

  stop(): void {
    for (const stop of this.#stops.splice(0)) stop()
  }

  tellPresence(status: 'ready' | 'leaving' = 'ready'): void {
    const { replica = 'a', epoch = 1 } = this.#options
    const ready = this.#ready().length
    this.#publish(subjects.presence(this.name), {
      v: 1,
      partition: this.name,
      replica,
      epoch,
      version: '0.1.0',
      url: `http://${this.name}`,
      status,
      capacity: { ready, total: this.machines.size },
    })
  }

  /** The machines that are held; holds that have run out have ended. */
  reserved(): Machine[] {
    this.#expire()
    return [...this.machines.values()].filter(({ state }) => state === 'reserved')
  }

  setReady(id: string): void {
    this.#set(id, { state: 'ready', allocation: null, owner: null })
    this.tellPresence()
  }

  record(kind: string, machine: string | null = null): void {
    const seq = this.events.length + 1
    this.events.push({ partition: this.name, seq, at: new Date().toISOString(), kind, machine, actor: 'engine', data: {} })
    this.#publish(subjects.log(this.name), { v: 1, partition: this.name, lastSeq: seq })
  }

  #publish(subject: string, content: object): void {
    this.#bus.publish(subject, Buffer.from(JSON.stringify(content)))
  }

  #ready(): Machine[] {
    this.#expire()
    return [...this.machines.values()].filter(({ state }) => state === 'ready')
  }

  #expire(): void {
    for (const allocation of this.allocations.values())
      if (allocation.state === 'held' && Date.now() >= allocation.expiresAt) this.#end(allocation, 'dropped')
  }

  #set(id: string, change: Partial<Machine>): void {
    const machine = this.machines.get(id) as Machine
    this.machines.set(id, { ...machine, ...change, version: machine.version + 1 })
  }

  #counted({ owners, pool }: BusCallInput<'quota.count'>['of'][number], allocation: string | undefined) {
    const had = [...this.machines.values()].filter(
      each =>
        each.owner !== null && owners.includes(each.owner) && each.state !== 'releasing' && (pool === undefined || each.pool === pool),
    )
    const held = had.filter(({ state }) => state === 'reserved').length
    return { machines: had.length, held, own: had.filter(each => each.allocation === allocation).length }
  }

  #of(allocation: string): Machine[] {
    return [...this.machines.values()].filter(machine => machine.allocation === allocation).sort((a, b) => (a.id < b.id ? -1 : 1))
  }

  #end(allocation: ModelAllocation, state: 'dropped' | 'released'): number {
    const machines = this.#of(allocation.id)
    for (const { id } of machines) this.#set(id, { state: 'ready', allocation: null, owner: null })
    allocation.state = state
    return machines.length
  }

  #matches(wanted: Constraints, strategy: Strategy, requestId: string): { id: string; score: number; rack: string; zone: string }[] {
    const taken = [...this.machines.values()].filter(({ state }) => state !== 'ready')
    const crowdOf = ({ rack, zone }: Machine) => ({
      rack: taken.filter(other => other.rack === rack).length,
      zone: taken.filter(other => other.zone === zone).length,
      partition: taken.length,
    })
    return this.#ready()
      .filter(machine => isMatch(machine as Candidate, wanted, this.#place))
      .map(machine => ({ id: machine.id, score: scoreOf(machine, strategy, crowdOf(machine)), rack: machine.rack, zone: machine.zone }))
      .sort((a, b) => a.score - b.score || tieBreak(requestId, a.id) - tieBreak(requestId, b.id))
  }

  #onOffer({ data, reply }: BusMessage): void {
    this.heard.push('offer')
    const { strategy, count, constraints, id } = offerRequest.parse(parse(data))
    const matches = this.#matches(constraints, strategy, id)
    const { replica = 'a', epoch = 1 } = this.#options
    const why = matches.length < count ? { why: whyNot(this.#ready() as Candidate[], constraints, this.#place) } : {}
    const offer: Offer = { v: 1, partition: this.name, replica, epoch, machines: matches.slice(0, count), matching: matches.length, ...why }
    reply?.(Buffer.from(JSON.stringify(offer)))
  }

  #onCall({ data, reply }: BusMessage): void {
    const { call, input, caller } = callRequest.parse(parse(data))
    this.heard.push(call)
    const answer = (content: object) => reply?.(Buffer.from(JSON.stringify({ v: 1, ...content })))
    try {
      answer({ ok: this.#answer(call, input, caller) })
    } catch (error) {
      if (!(error instanceof Refusal)) throw error
      answer({ problem: problemOf(error) })
    }
  }

  #answer(call: string, input: unknown, caller: Caller): unknown {
    const schema = callNamed(call)?.input ?? busCalls[call as BusCallName]?.input
    const handler = this.#handlers[call as CallName] as ((input: unknown, caller: Caller) => unknown) | undefined
    if (!schema || !handler) throw new Refusal('not-found', `the model knows no call ${call}`)
    return handler(schema.parse(input), caller)
  }

  #view(allocation: ModelAllocation): Allocation {
    const { id, owner, strategy, count, note, createdAt } = allocation
    const machines = this.#of(id)
    const state = allocation.state === 'dropped' ? 'released' : allocation.state
    const shown = state === 'confirmed' && machines.length < count ? 'partial' : state
    return { id, owner, state: shown, strategy, count, note, createdAt, machines, dryRun: false }
  }

  #existing(id: string): ModelAllocation {
    const allocation = this.allocations.get(id)
    if (!allocation || allocation.state === 'dropped') throw new Refusal('not-found', `${this.name} has nothing of ${id}`)
    return allocation
  }

  #makeHandlers(): Handlers {
    const partition = this.name
    return {
      'machines.get': ({ id }) => {
        const machine = this.machines.get(id)
        if (!machine) throw new Refusal('not-found', `there is no machine ${id}`)
        return { ...machine, powerSettings: { address: '10.0.0.1' }, inventory: null }
      },
      'machines.list': ({ sort, limit, cursor, pool }) => {
        const [direction, after] = [directionOf(sort), positionOf(decodeCursor(cursor, sort), partition)]
        const items = [...this.machines.values()]
          .filter(machine => !pool || pool.includes(machine.pool))
          .sort((a, b) => compareKeys(machineKey(a, sort), machineKey(b, sort), direction))
          .filter(machine => after === null || compareKeys(machineKey(machine, sort), after, direction) > 0)
        return pageFrom(items.slice(0, limit + 1), { sort, limit, keyOf: item => machineKey(item, sort) })
      },
      'events.list': ({ after, limit }) => {
        const from = readUpTo(parsePosition(after), partition)
        if (from === endOfLog) return endPage(partition, this.events.length)
        const items = this.events.filter(({ seq }) => seq > from).slice(0, limit)
        return { items, nextCursor: `${partition}:${items.at(-1)?.seq ?? from}` }
      },
      'partitions.get': ({ name }) => {
        const [url, version] = [`http://${name}`, '0.1.0']
        return {
          name,
          status: 'ready',
          url,
          version,
          machines: {},
          overdue: 0,
          faulty: 0,
          replicas: [],
          lastSeq: this.events.length,
          problems: [],
        }
      },
      'tags.put': ({ name, description }) => {
        this.tags.set(name, description)
        return { name, description, machines: 0, ready: 0 }
      },
      'tags.get': ({ name }) => {
        const description = this.tags.get(name)
        if (description === undefined) throw new Refusal('not-found', `${partition} knows no tag ${name}`)
        return { name, description, machines: 1, ready: 1 }
      },
      'allocations.list': ({ limit, cursor }) => {
        const [sort, after] = ['createdAt', positionOf(decodeCursor(cursor, 'createdAt'), partition)]
        const items = [...this.allocations.values()]
          .filter(({ state }) => state !== 'dropped')
          .map(allocation => this.#view(allocation))
          .sort((a, b) => compareKeys(allocationKey(a), allocationKey(b), 'ascending'))
          .filter(item => after === null || compareKeys(allocationKey(item), after, 'ascending') > 0)
        return pageFrom(items.slice(0, limit + 1), { sort, limit, keyOf: allocationKey })
      },
      'allocations.get': ({ id }) => this.#view(this.#existing(id)),
      'allocations.release': ({ id }) => {
        const allocation = this.#existing(id)
        this.#end(allocation, 'released')
        return this.#view(allocation)
      },
      'allocation.hold': (input, caller) => {
        this.#expire()
        const standing = this.allocations.get(input.allocation)
        if (standing?.state === 'held') return { machines: this.#of(input.allocation) }
        const matches = this.#matches(input.constraints, input.strategy, input.allocation).map(({ id }) => id)
        const wishes = [...new Set([...input.machines.filter(id => matches.includes(id)), ...matches])].slice(0, input.wanted)
        if (standing || wishes.length < input.wanted)
          throw new Refusal('no-match', `${partition} has no ${input.wanted} free machines left`)
        const { allocation: id, strategy, count, note, createdAt } = input
        const expiresAt = Date.now() + (this.#options.holdMs ?? durationMs('15s'))
        this.allocations.set(id, { id, owner: caller.name, strategy, count, note, createdAt, state: 'held', expiresAt })
        for (const machine of wishes) this.#set(machine, { state: 'reserved', allocation: id, owner: caller.name })
        return { machines: this.#of(id) }
      },
      'allocation.confirm': ({ allocation: id }) => {
        this.#expire()
        const allocation = this.allocations.get(id)
        if (!allocation || allocation.state === 'dropped') throw new Refusal('nothing-allocated', `the hold ${id} in ${partition} is gone`)
        if (allocation.state === 'held') {
          for (const machine of this.#of(id)) this.#set(machine.id, { state: 'allocated' })
          allocation.state = 'confirmed'
        }
        return this.#view(allocation)
      },
      'allocation.drop': ({ allocation: id, confirmed }) => {
        const allocation = this.allocations.get(id)
        if (allocation?.state === 'held') return { dropped: this.#end(allocation, 'dropped') }
        if (allocation?.state === 'confirmed' && confirmed === 'release') return { dropped: this.#end(allocation, 'released') }
        return { dropped: 0 }
      },
      'config.copy': ({ have }) => ({ generation: have, parts: 0 }),
      'quota.count': ({ of, allocation }) => ({ counts: of.map(set => this.#counted(set, allocation)) }),
      'key.recall': ({ key }) => this.keys.get(key) ?? null,
      'key.remember': ({ record, replaces }) => {
        const standing = this.keys.get(record.key)
        if (standing && standing.allocation !== replaces) return standing
        this.keys.set(record.key, record)
        return record
      },
    }
  }
}

function parse(data: Uint8Array): unknown {
  return JSON.parse(Buffer.from(data).toString())
}

/** A ready machine; ids are stable: `p1-000001`. */
export function modelMachine(partition: string, index: number, facts: Partial<Machine> = {}): Machine {
  const at = '2026-01-01T00:00:00.000Z'
  const id = `${partition}-${String(index).padStart(6, '0')}`
  return {
    id,
    partition,
    hostname: id,
    state: 'ready',
    stateSince: at,
    power: 'off',
    powerSeenAt: at,
    arch: 'amd64',
    cpus: 4,
    memoryMib: 4096,
    pool: 'default',
    zone: 'default',
    rack: 'default',
    tags: [],
    interfaces: [],
    disks: [],
    owner: null,
    allocation: null,
    locked: false,
    waitingFor: null,
    progress: null,
    deadline: null,
    fault: null,
    deployment: null,
    powerDriver: null,
    note: '',
    version: 1,
    createdAt: at,
    updatedAt: at,
    ...facts,
  }
}

/** The home of a key, as a front with these partitions sees it. */
export function homeOf(caller: string, key: string, partitions: readonly string[]): string {
  return homesOf(`${caller}:${key}`, partitions)[0] as string
}
