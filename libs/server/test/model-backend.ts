// An honest small model of a partition: machines in a Map, the real schemas, the real life cycle, no database. It is what the doors are
// tested over, so it must refuse as a partition would; it is not what a partition is tested by.

import { createHash } from 'node:crypto'
import type { Constraints } from '@muster/shared/allocation/constraints'
import { type Address, addressKey } from '@muster/shared/contract/addresses'
import { type Allocation, type AllocationRequest, allocationKey } from '@muster/shared/contract/allocations'
import type { Coverage } from '@muster/shared/contract/call'
import type { CallInput, CallName, CallOutput } from '@muster/shared/contract/contract'
import type { Event } from '@muster/shared/contract/events'
import type { LabelEntry, LabelKind } from '@muster/shared/contract/labels'
import { endOfLog, endPage, parsePosition, readUpTo } from '@muster/shared/contract/log'
import { machineKey } from '@muster/shared/contract/machines'
import { compareKeys, decodeCursor, directionOf, type Key, type Page, pageFrom, positionOf } from '@muster/shared/contract/page'
import { type Subnet, subnetKey } from '@muster/shared/contract/subnets'
import { Refusal } from '@muster/shared/errors'
import { documentsOf } from '@muster/shared/global/copy'
import { newAllocationId, newMachineId } from '@muster/shared/ids'
import { lifeCycle, type MoveName, outcomeOf, requestsIn, type State, states } from '@muster/shared/life-cycle'
import type { Machine, MachineDetail, PowerOrder } from '@muster/shared/machine'
import type { Backend, CallContext, ReadinessCheck } from '../src/backend.ts'

type Held = MachineDetail & { origin: State | null }
type Handlers = { [Name in Exclude<CallName, 'events.stream'>]: (input: CallInput<Name>, context: CallContext) => unknown }

export interface ModelBackend extends Backend {
  readonly machines: Map<string, Held>
  readonly log: Event[]
  /** Appends an event and tells the listeners. */
  note(kind: string, machine?: string | null): void
  readonly checks: ReadinessCheck[]
  /** Replaces a call, to see what the doors make of it. */
  readonly instead: Map<CallName, (input: unknown, context: CallContext) => unknown>
  /** How many listen for growth. */
  listeners(): number
}

export function modelBackend(name = 'lon1', kind: Backend['kind'] = 'partition'): ModelBackend {
  const machines = new Map<string, Held>()
  const allocations = new Map<string, Allocation>()
  const keys = new Map<string, { hash: string; id: string }>()
  const labels = new Map<string, string>()
  const log: Event[] = []
  const listeners = new Set<() => void>()
  const instead: ModelBackend['instead'] = new Map()
  const checks: ReadinessCheck[] = [{ name: 'database', status: 'ok', detail: 'in memory' }]
  const at = () => new Date().toISOString()
  const coverage: Coverage = { asked: 1, answered: 1, partitions: [{ name, outcome: 'answered', ms: 0.1 }] }

  const note = (kind: string, machine: string | null = null) => {
    log.push({ partition: name, seq: log.length + 1, at: at(), kind, machine, actor: 'model', data: {} })
    for (const listener of listeners) listener()
  }
  const shown = ({ origin: _, powerSettings: __, inventory: ___, ...machine }: Held): Machine => machine
  const found = (id: string): Held => {
    const machine = machines.get(id)
    if (!machine) throw new Refusal('not-found', `there is no machine ${id}`)
    return machine
  }
  const unlocked = (id: string): Held => {
    const machine = found(id)
    if (machine.locked) throw new Refusal('locked', `machine ${id} is locked`)
    return machine
  }
  const move = (machine: Held, move: MoveName): Machine => {
    const outcome = outcomeOf(move, { from: machine.state, origin: machine.origin, isOwned: machine.allocation !== null })
    if (outcome.kind === 'refused') throw new Refusal(outcome.code, outcome.reason, { state: machine.state })
    if (outcome.to === 'rescue') machine.origin = machine.state
    machine.state = outcome.to
    machine.stateSince = machine.updatedAt = at()
    machine.version++
    note('machine.moved', machine.id)
    return shown(machine)
  }
  const asked = (verb: MoveName) => (input: { id: string }) => move(unlocked(input.id), verb)
  const paged = <Item>(
    all: Item[],
    keyOf: (item: Item) => Key,
    input: { limit: number; cursor?: string | undefined },
    sort: string,
  ): Page<Item> => {
    const direction = directionOf(sort)
    const from = positionOf(decodeCursor(input.cursor, sort), name)
    const rows = all
      .sort((a, b) => compareKeys(keyOf(a), keyOf(b), direction))
      .filter(item => from === null || compareKeys(keyOf(item), from, direction) > 0)
    return pageFrom(rows.slice(0, input.limit + 1), { sort, limit: input.limit, keyOf })
  }
  const includes = <T>(list: readonly T[] | undefined, value: T) => list === undefined || list.includes(value)
  const matches = (machine: Held, wanted: Constraints): boolean =>
    machine.state === 'ready' &&
    !machine.locked &&
    includes(wanted.arch, machine.arch) &&
    machine.cpus >= (wanted.cpus ?? 0) &&
    machine.memoryMib >= (wanted.memoryMib ?? 0) &&
    includes(wanted.pools, machine.pool) &&
    includes(wanted.zones, machine.zone) &&
    includes(wanted.machines, machine.id) &&
    includes(wanted.partitions, name) &&
    (wanted.tags ?? []).every(tag => machine.tags.includes(tag))

  const allocate = (request: AllocationRequest, context: CallContext): Allocation => {
    const hash = createHash('sha256').update(JSON.stringify(request)).digest('hex')
    const key = context.idempotencyKey && `${context.caller.name}:${context.idempotencyKey}`
    const known = key ? keys.get(key) : undefined
    if (known && known.hash !== hash) throw new Refusal('key-reused', 'this key was used for another request')
    if (known) return allocations.get(known.id) as Allocation
    const all = [...machines.values()].filter(machine => machine.state === 'ready')
    const chosen = all.filter(machine => matches(machine, request.constraints)).slice(0, request.count)
    const why = { considered: all.length, matching: chosen.length, removed: [], nearest: [] }
    if (chosen.length < request.count) throw new Refusal('no-match', `no ${request.count} machines match`, { explanation: why, coverage })
    const id = request.dryRun ? null : newAllocationId()
    if (id)
      for (const machine of chosen) {
        move(machine, 'hold')
        machine.allocation = id
        machine.owner = context.caller.name
        move(machine, 'confirm')
      }
    const made: Allocation = {
      id,
      owner: context.caller.name,
      state: 'confirmed',
      strategy: request.strategy,
      count: request.count,
      note: request.note,
      createdAt: at(),
      machines: chosen.map(shown),
      dryRun: request.dryRun,
      ...(request.dryRun && { explanation: why }),
    }
    if (id) allocations.set(id, made)
    if (id && key) keys.set(key, { hash, id })
    return made
  }

  const label = (kind: LabelKind, text: string): LabelEntry | undefined => {
    const used = [...machines.values()].filter(machine => (kind === 'tag' ? machine.tags.includes(text) : machine[kind] === text))
    const description = labels.get(`${kind} ${text}`)
    if (description === undefined && used.length === 0) return undefined
    return {
      name: text,
      description: description ?? '',
      machines: used.length,
      ready: used.filter(({ state }) => state === 'ready').length,
    }
  }
  const labelled = (kind: LabelKind, text: string): LabelEntry => {
    const entry = label(kind, text)
    if (!entry) throw new Refusal('not-found', `there is no ${kind} ${text}`)
    return entry
  }
  const labelCalls = (kind: LabelKind) => ({
    list: () => {
      const described = [...labels.keys()].filter(key => key.startsWith(`${kind} `)).map(key => key.slice(kind.length + 1))
      const used = [...machines.values()].flatMap(machine => (kind === 'tag' ? machine.tags : [machine[kind]]))
      const items = [...new Set([...described, ...used])].sort().flatMap(text => label(kind, text) ?? [])
      return { items, nextCursor: null, coverage }
    },
    get: (input: { name: string }) => ({ ...labelled(kind, input.name), coverage }),
    put: (input: { name: string; description: string }) => {
      labels.set(`${kind} ${input.name}`, input.description)
      return { ...labelled(kind, input.name), coverage }
    },
    delete: (input: { name: string }) => {
      const entry = labelled(kind, input.name)
      if (kind !== 'tag' && entry.machines > 0) throw new Refusal('wrong-state', `the ${kind} ${input.name} has machines`)
      for (const machine of machines.values()) machine.tags = machine.tags.filter(tag => kind !== 'tag' || tag !== input.name)
      labels.delete(`${kind} ${input.name}`)
      return { ...entry, coverage }
    },
  })
  const subnets = new Map<string, Subnet>()
  const addresses = new Map<number, Address>()
  let addressIds = 0
  const subnet = (text: string): Subnet => {
    const known = subnets.get(text)
    if (!known) throw new Refusal('not-found', `there is no subnet ${text}`)
    return known
  }
  const reserve = (input: Omit<CallInput<'addresses.reserve'>, 'partition'>, by: string): Address => {
    const id = ++addressIds
    const { address = `10.0.0.${(id % 250) + 1}`, machine = null, mac = null, name: dnsName = null, ...rest } = input
    if ([...addresses.values()].some(held => held.address === address)) throw new Refusal('already-taken', `${address} has a holder`)
    const { subnet: within, aliases, note: text } = rest
    const held: Address = {
      ...{ id, partition: name, subnet: within, address, source: 'reserved', machine, mac, name: dnsName, aliases, note: text, by },
      ...{ createdAt: at(), place: address },
    }
    addresses.set(id, held)
    return held
  }
  const tagCalls = labelCalls('tag')
  const poolCalls = labelCalls('pool')
  const zoneCalls = labelCalls('zone')

  const orders: PowerOrder[] = []
  const orderOf = (machine: string, input: { action: PowerOrder['action']; how: PowerOrder['how'] }): PowerOrder => {
    const at = new Date().toISOString()
    const { action, how } = input
    return {
      id: orders.length + 1,
      machine,
      action,
      how,
      state: 'done',
      askedBy: 'somebody',
      askedAt: at,
      reason: '',
      startedAt: at,
      endedAt: at,
      fault: null,
    }
  }

  const status = () => ({
    name,
    status: 'ready' as const,
    url: null,
    version: 'test',
    machines: counts(),
    overdue: 0,
    faulty: 0,
    replicas: [],
    lastSeq: log.length,
    problems: [],
  })
  const counts = () => {
    const all = [...machines.values()]
    return Object.fromEntries(
      states.map(state => [state, all.filter(machine => machine.state === state).length]).filter(([, count]) => count),
    )
  }

  const needsFront = () => Promise.reject(new Refusal('needs-front', `${name} keeps a copy of the global configuration`))
  /** The model keeps no machines for others: it switches the one that it knows by a MAC. */
  const byDefinition = (
    input: CallInput<'machines.stop'> | CallInput<'machines.start'>,
    order: { action: 'on' | 'off' | 'cycle'; how: 'soft' | 'hard' },
  ) => {
    const macs = new Set(input.definition.interfaces.map(({ mac }) => mac))
    const known = [...machines.values()].find(({ interfaces }) => interfaces.some(({ mac }) => macs.has(mac)))
    if (!known?.powerDriver) throw new Refusal('no-power-driver', 'no machine here has that MAC and a power driver')
    return { ...shown(unlocked(known.id)), outcome: 'known', order: orderOf(known.id, order) }
  }

  const handlers: Handlers = {
    'machines.list': input => {
      const items = [...machines.values()].filter(
        machine =>
          includes(input.state, machine.state) &&
          (input.tag ?? []).every(tag => machine.tags.includes(tag)) &&
          !(input.notTag ?? []).some(tag => machine.tags.includes(tag)) &&
          includes(input.pool, machine.pool) &&
          includes(input.zone, machine.zone) &&
          includes(input.rack, machine.rack) &&
          includes(input.arch, machine.arch) &&
          includes(input.partition, name) &&
          (input.owner === undefined || machine.owner === input.owner) &&
          (input.allocation === undefined || machine.allocation === input.allocation) &&
          (input.power === undefined || machine.power === input.power) &&
          (input.locked === undefined || machine.locked === input.locked) &&
          (input.fault === undefined || (machine.fault !== null) === input.fault) &&
          (input.hostname === undefined || machine.hostname.includes(input.hostname)) &&
          (input.mac === undefined || machine.interfaces.some(({ mac }) => mac === input.mac)),
      )
      return { ...paged(items.map(shown), item => machineKey(item, input.sort), input, input.sort), coverage }
    },
    'machines.get': input => {
      const { origin: _, ...detail } = found(input.id)
      return detail
    },
    'machines.explain': input => {
      const { id, state, stateSince, power, powerSeenAt, waitingFor, deadline, fault } = found(input.id)
      return {
        id,
        state,
        since: stateSince,
        does: lifeCycle[state].does,
        wantedPower: lifeCycle[state].wantedPower,
        power,
        powerSeenAt,
        waitingFor,
        deadline,
        lastFault: fault,
        nextStep: '',
        allowed: requestsIn(state),
        powerOrders: [],
      }
    },
    'machines.network': input => {
      found(input.id)
      return { document: null, deployment: null, config: { version: 2 } }
    },
    'machines.setNetwork': input => {
      found(input.id)
      return { document: input.document, deployment: null, config: { version: 2 } }
    },
    'machines.create': input => {
      const macs = new Set(input.interfaces.map(({ mac }) => mac))
      for (const other of machines.values())
        if (other.hostname === input.hostname || other.interfaces.some(({ mac }) => macs.has(mac)))
          throw new Refusal('already-exists', `machine ${other.id} has that host name or MAC`)
      if (input.partition !== undefined && input.partition !== name)
        throw new Refusal('not-found', `there is no partition ${input.partition}`)
      const id = newMachineId(name)
      const { partition: _, powerDriver, powerSettings, hostname = id, ...rest } = input
      const fresh = { ...blank(id, name), ...rest, hostname, powerDriver: powerDriver ?? null, powerSettings: powerSettings ?? null }
      machines.set(id, fresh)
      note('machine.created', id)
      return shown(fresh)
    },
    'machines.update': ({ id, version, ...changes }) => {
      const machine = unlocked(id)
      if (version !== undefined && version !== machine.version)
        throw new Refusal('stale-version', `machine ${id} is at version ${machine.version}`)
      Object.assign(machine, changes, { version: machine.version + 1, updatedAt: at() })
      note('machine.updated', id)
      return shown(machine)
    },
    'machines.delete': input => {
      const machine = unlocked(input.id)
      if (machine.allocation) throw new Refusal('machine-owned', `machine ${machine.id} belongs to ${machine.allocation}`)
      if (lifeCycle[machine.state].deletable === 'no') throw new Refusal('wrong-state', `machine ${machine.id} is ${machine.state}`)
      machines.delete(machine.id)
      note('machine.deleted', machine.id)
      return null
    },
    'machines.commission': asked('commission'),
    'machines.adopt': asked('adopt'),
    'machines.start': input => byDefinition(input, { action: input.action, how: 'hard' }),
    'machines.stop': input => byDefinition(input, { action: 'off', how: input.how }),
    'machines.abort': asked('abort'),
    'machines.deploy': asked('deploy'),
    'machines.release': asked('release'),
    'machines.markBroken': asked('markBroken'),
    'machines.fix': asked('fix'),
    'machines.rescue': asked('rescue'),
    'machines.exitRescue': asked('exitRescue'),
    'machines.retire': asked('retire'),
    'machines.restore': asked('restore'),
    'machines.lock': input => {
      found(input.id).locked = true
      return shown(found(input.id))
    },
    'machines.unlock': input => {
      found(input.id).locked = false
      return shown(found(input.id))
    },
    'machines.power': input => {
      const machine = unlocked(input.id)
      if (!machine.powerDriver) throw new Refusal('no-power-driver', `machine ${machine.id} has no power settings`)
      machine.power = input.action === 'off' ? 'off' : 'on'
      const order = orderOf(machine.id, input)
      orders.unshift(order)
      return { ...shown(machine), order }
    },
    'machines.rotateCredentials': input => {
      const machine = unlocked(input.id)
      const at = { askedBy: 'somebody', askedAt: new Date().toISOString(), startedAt: null, endedAt: null }
      return { ...shown(machine), rotation: { id: 1, machines: [machine.id], state: 'queued', fault: null, ...at } }
    },
    'machines.confirmPower': input => {
      const machine = unlocked(input.id)
      machine.power = input.power
      return shown(machine)
    },
    'machines.erasures': ({ id }) => {
      found(id)
      return { items: [] }
    },
    'machines.scriptResults': ({ id }) => {
      found(id)
      return { items: [], nextCursor: null }
    },
    'machines.scriptOutput': ({ id, result }) => {
      found(id)
      throw new Refusal('not-found', `machine ${id} has no result ${result}`)
    },
    'machines.powerOrders': input => ({ items: orders.filter(({ machine }) => machine === found(input.id).id).slice(0, input.limit) }),
    'allocations.create': (input, context) => ({ ...allocate(input, context), coverage }),
    'allocations.list': input => {
      const items = [...allocations.values()].filter(
        ({ owner, state }) =>
          (input.owner === undefined || owner === input.owner) && (input.state ?? [state]).some(wanted => wanted === state),
      )
      return { ...paged(items, allocationKey, input, 'createdAt'), coverage }
    },
    'allocations.get': input => ({ ...allocation(input.id), coverage }),
    'allocations.release': input => {
      const known = allocation(input.id)
      known.machines = known.machines.map(({ id }) => move(unlocked(id), 'release'))
      known.state = 'released'
      return { ...known, coverage }
    },
    'subnets.list': input => ({ ...paged([...subnets.values()], subnetKey, input, 'name'), coverage }),
    'subnets.get': input => subnet(input.name),
    'subnets.put': ({ partition: _, ...input }) => {
      subnets.set(input.name, { ...input, partition: name, used: 0 })
      return subnet(input.name)
    },
    'subnets.delete': input => {
      const gone = subnet(input.name)
      if ([...addresses.values()].some(held => held.subnet === gone.name)) throw new Refusal('wrong-state', `${gone.name} is in use`)
      subnets.delete(gone.name)
      return gone
    },
    'addresses.list': input => {
      const items = [...addresses.values()].filter(
        held =>
          (input.subnet === undefined || held.subnet === input.subnet) &&
          (input.machine === undefined || held.machine === input.machine) &&
          (input.mac === undefined || held.mac === input.mac),
      )
      return { ...paged(items, addressKey, input, 'address'), coverage }
    },
    'addresses.reserve': (input, { caller }) => {
      if (input.machine !== undefined) found(input.machine)
      return reserve({ ...input, subnet: subnet(input.subnet).name }, caller.name)
    },
    'addresses.release': input => {
      const gone = [...addresses.values()].find(held => held.subnet === input.subnet && held.address === input.address)
      if (!gone) throw new Refusal('not-found', `nobody has ${input.address}`)
      addresses.delete(gone.id)
      return gone
    },
    'dhcpHosts.set': (input, { caller }) => {
      for (const held of addresses.values()) if (held.mac === input.mac) addresses.delete(held.id)
      return reserve({ ...input, machine: undefined, subnet: input.subnet ?? 'default' }, caller.name)
    },
    'dhcpHosts.delete': input => {
      const items = [...addresses.values()].filter(({ mac }) => mac === input.mac)
      if (items.length === 0) throw new Refusal('not-found', `nothing is reserved for ${input.mac}`)
      for (const { id } of items) addresses.delete(id)
      return { items }
    },
    'tags.list': tagCalls.list,
    'tags.get': tagCalls.get,
    'tags.put': tagCalls.put,
    'tags.delete': tagCalls.delete,
    'pools.list': poolCalls.list,
    'pools.get': poolCalls.get,
    'pools.put': poolCalls.put,
    'pools.delete': poolCalls.delete,
    'zones.list': zoneCalls.list,
    'zones.get': zoneCalls.get,
    'zones.put': zoneCalls.put,
    'zones.delete': zoneCalls.delete,
    'events.list': input => {
      const from = readUpTo(parsePosition(input.after), name)
      if (from === endOfLog) return { ...endPage(name, log.length), coverage }
      const wanted = ({ machine, kind }: Event) =>
        (input.machine === undefined || machine === input.machine) && (input.kind === undefined || kind === input.kind)
      const items = log
        .slice(from)
        .filter(event => wanted(event))
        .slice(0, input.limit)
      const last = items.length === input.limit ? (items.at(-1) as Event).seq : Math.max(from, log.length)
      return { items, nextCursor: `${name}:${last}`, coverage }
    },
    'partitions.list': () => ({ items: [status()], nextCursor: null, coverage }),
    'partitions.get': input => {
      if (input.name !== name) throw new Refusal('not-found', `there is no partition ${input.name}`)
      return status()
    },
    'partitions.dhcp': () => ({ servers: [] }),
    'partitions.status': () => ({ machines: counts(), overdue: 0, faulty: 0, problems: [], coverage }),
    'operatingSystems.list': () => ({
      items: [{ name: 'debian/12', title: 'Debian 12', arch: 'amd64', supported: true, available: true, partitions: [name] }],
      nextCursor: null,
      coverage,
    }),
    'audit.list': () => ({ items: [], nextCursor: `${name}:0`, coverage }),
    'enrolment.ask': needsFront,
    'enrolment.list': needsFront,
    'enrolment.accept': needsFront,
    'enrolment.refuse': needsFront,
    'enrolment.retire': needsFront,
    'audit.fronts': needsFront,
    'config.get': input => ({ ...documentsOf(undefined, input), source: 'nowhere' }),
    'config.copies': () => ({ items: [], nextCursor: null, coverage }),
    'config.change': needsFront,
    'config.history': needsFront,
    'config.diff': needsFront,
    'scripts.list': () => ({ items: [], nextCursor: null, coverage }),
    'config.revert': needsFront,
    'config.refill': needsFront,
    'webhooks.deliveries': () => ({ items: [], nextCursor: null, coverage }),
    'webhooks.deadLetters': () => ({ items: [], nextCursor: null, coverage }),
    'webhooks.replay': input => {
      throw new Refusal('not-found', `there is no webhook ${input.name}`)
    },
    'session.login': () => {
      throw new Refusal('unauthenticated', 'the model knows no passwords')
    },
    'session.providers': () => ({ items: [] }),
    'session.exchange': ({ provider }) => {
      throw new Refusal('not-found', `the model knows no provider ${provider}`)
    },
    'session.logout': needsFront,
    'session.password': needsFront,
    'keys.list': () => ({ items: [] }),
    'keys.put': needsFront,
    'keys.delete': needsFront,
    'session.whoami': (_input, { caller }) => ({ caller, server: { kind, name, version: 'test' } }),
  }
  const allocation = (id: string): Allocation => {
    const known = allocations.get(id)
    if (!known) throw new Refusal('not-found', `there is no allocation ${id}`)
    return known
  }

  return {
    kind,
    name,
    machines,
    log,
    note,
    checks,
    instead,
    listeners: () => listeners.size,
    call: async <Name extends CallName>(call: Name, input: CallInput<Name>, context: CallContext) => {
      const other = instead.get(call)
      if (other) return (await other(input, context)) as CallOutput<Name>
      const handler = handlers[call as keyof Handlers] as (input: CallInput<Name>, context: CallContext) => unknown
      return handler(input, context) as CallOutput<Name>
    },
    onLogGrowth: listener => {
      listeners.add(listener)
      return () => listeners.delete(listener)
    },
    readiness: () => checks,
  }
}

/** A machine of which nothing is known but its names. */
export function blank(id: string, partition: string): Held {
  const now = new Date().toISOString()
  return {
    id,
    partition,
    hostname: id,
    state: 'new',
    stateSince: now,
    power: 'unknown',
    powerSeenAt: null,
    arch: 'amd64',
    cpus: 8,
    memoryMib: 16384,
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
    powerDriver: 'manual',
    note: '',
    version: 1,
    createdAt: now,
    updatedAt: now,
    powerSettings: null,
    inventory: null,
    origin: null,
  }
}
