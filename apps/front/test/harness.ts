// A federation in one process for the tests: fronts and partitions on local buses, and the clock that drives them.
import type { Backend, CallContext } from '@muster/server/backend'
import { createLocalBroker, type LocalBroker } from '@muster/server/bus/local-bus'
import type { Caller } from '@muster/shared/contract/call'
import { Refusal } from '@muster/shared/errors'
import type { Machine } from '@muster/shared/machine'
import { vi } from 'vitest'
import { createFront, type Front, type FrontOptions } from '../src/front.ts'
import { createFaultyBus, type FaultyBus } from './faulty-bus.ts'
import { type ModelOptions, ModelPartition } from './model-partition.ts'

export const alice: Caller = { name: 'alice', role: 'user' }

/** What every test's partitions and fronts complain about; a test may look. */
export const complaints: { facts: object; text: string }[] = []
const log = { info: () => undefined, warn: (facts: object, text: string) => void complaints.push({ facts, text }) }

let requests = 0

/** The context of a call, with ten seconds to live unless said otherwise. */
export function contextOf(options: Partial<CallContext> & { limitMs?: number } = {}): CallContext {
  const { limitMs = 10_000, ...rest } = options
  const gone = new AbortController()
  const deadline = Date.now() + limitMs
  const { caller = alice } = rest
  return { caller, again: () => caller, from: '192.0.2.1', requestId: `request-${++requests}`, deadline, signal: gone.signal, ...rest }
}

export interface ModelFederation {
  readonly broker: LocalBroker
  readonly partitions: ReadonlyMap<string, ModelPartition>
  readonly buses: ReadonlyMap<string, FaultyBus>
  partition(name: string): ModelPartition
  bus(name: string): FaultyBus
  front(options?: Partial<FrontOptions>): Promise<Front>
  stop(): Promise<void>
}

/** Starts model partitions; values are their machines. Fronts accept all of them. */
export async function startModels(
  machines: Readonly<Record<string, readonly Partial<Machine>[]>>,
  options: Partial<ModelOptions> = {},
): Promise<ModelFederation> {
  const broker = createLocalBroker()
  const buses = new Map<string, FaultyBus>()
  const partitions = new Map<string, ModelPartition>()
  const stops: (() => Promise<void> | void)[] = []
  for (const [name, own] of Object.entries(machines)) {
    const bus = createFaultyBus(broker.connect())
    buses.set(name, bus)
    const partition = await new ModelPartition({ name, bus, machines: own, ...options }).start()
    partitions.set(name, partition)
    stops.push(
      () => bus.close(),
      () => partition.stop(),
    )
  }
  return {
    broker,
    partitions,
    buses,
    partition: name => partitions.get(name) as ModelPartition,
    bus: name => buses.get(name) as FaultyBus,
    front: async frontOptions => {
      const bus = broker.connect()
      const front = createFront({ name: 'front', version: '0.1.0', bus, accepted: Object.keys(machines), log, ...frontOptions })
      stops.push(
        () => bus.close(),
        () => front.stop(),
      )
      await settleMicrotasks()
      return front
    },
    stop: async () => {
      for (const stop of stops.reverse()) await stop()
    },
  }
}

/** Presence is asked and answered within microtasks on a local bus. */
async function settleMicrotasks(): Promise<void> {
  for (let turn = 0; turn < 50; turn++) await Promise.resolve()
}

/** Lets virtual time pass until `promise` has settled. For tests under fake timers. */
export async function elapse<Value>(promise: Promise<Value>): Promise<Value> {
  let isSettled = false
  const settled = () => {
    isSettled = true
  }
  promise.then(settled, settled)
  for (let step = 0; !isSettled; step++) {
    if (step > 100_000) throw new Error('nothing came of it in 1,000 s of virtual time')
    await vi.advanceTimersByTimeAsync(10)
  }
  return promise
}

/** The refusal of a call that must be refused. */
export async function refusalFrom(promise: Promise<unknown>): Promise<Refusal> {
  try {
    const answer = await promise
    throw new Error(`it was answered: ${JSON.stringify(answer)}`)
  } catch (error) {
    if (error instanceof Refusal) return error
    throw error
  }
}

export type { Backend }
