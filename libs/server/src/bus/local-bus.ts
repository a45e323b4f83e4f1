// A bus without a broker: for a federation in one process (tests, the virtual rack) where the messages never leave it. It passes the
// same suite as NATS, outages included, so what works on it works there.

import {
  type Bus,
  BusError,
  type BusMessage,
  type BusSubscription,
  type GatherEnd,
  type GatherOptions,
  type RequestOptions,
} from '@muster/shared/bus/bus'
import { isPublishable, isSubscribable, SubjectIndex } from '@muster/shared/bus/subject-index'
import type { BusLog } from './nats-bus.ts'
import { ask, askAll, type Carrier, type Question, tooLarge } from './question.ts'

/** Where local buses meet: the broker's part. */
export interface LocalBroker {
  /** A bus of its own, as each process would have. */
  connect(options?: { log?: BusLog }): Bus
  /** An outage: all links go down until {@link start}. For tests. */
  stop(): void
  start(): void
}

/** What NATS allows by default, so that a message too large for it fails here too. */
const maxPayloadBytes = 1024 * 1024

/** Makes a broker in this process. Delivery is asynchronous and in order; data is copied, as a wire would. */
export function createLocalBroker(): LocalBroker {
  const exchange = new LocalExchange()
  return {
    connect: (options = {}) => new LocalBus(exchange, options.log),
    stop: () => exchange.setUp(false),
    start: () => exchange.setUp(true),
  }
}

interface LocalSubscription {
  bus: LocalBus
  subject: string
  group: string | undefined
  isStopped: boolean
  handle: (message: BusMessage) => void
}

class LocalExchange {
  readonly index = new SubjectIndex<LocalSubscription>()
  readonly buses = new Set<LocalBus>()
  isUp = true

  setUp(isUp: boolean): void {
    if (this.isUp === isUp) return
    this.isUp = isUp
    for (const bus of this.buses) bus.linkChanged()
  }

  /** Returns how many got it. */
  send(subject: string, data: Uint8Array, question?: Question): number {
    const found: LocalSubscription[] = []
    this.index.match(subject, found)
    const copy = data.slice()
    const groups = Map.groupBy(
      found.filter(each => each.group !== undefined),
      each => each.group,
    )
    const chosen = [...groups.values()].map(members => members[Math.floor(Math.random() * members.length)] as LocalSubscription)
    const receivers = [...found.filter(each => each.group === undefined), ...chosen]
    for (const receiver of receivers) queueMicrotask(() => this.#deliver(receiver, subject, copy, question))
    return receivers.length
  }

  #deliver(receiver: LocalSubscription, subject: string, data: Uint8Array, question: Question | undefined): void {
    if (receiver.isStopped || !this.isUp) return
    const reply = (answer: Uint8Array) => {
      if (answer.length > maxPayloadBytes) throw tooLarge('an asker', answer, maxPayloadBytes)
      const copy = answer.slice()
      queueMicrotask(() => {
        if (this.isUp) question?.answer(copy)
      })
    }
    receiver.bus.handOver(receiver, question ? { subject, data, reply } : { subject, data })
  }
}

class LocalBus implements Bus, Carrier {
  readonly maxPayloadBytes = maxPayloadBytes
  readonly #exchange: LocalExchange
  readonly #log: BusLog | undefined
  readonly #questions = new Set<Question>()
  readonly #subscriptions = new Set<LocalSubscription>()
  readonly #listeners = new Set<(status: 'up' | 'down') => void>()
  #waiting: (() => void)[] = []
  #isClosed = false

  constructor(exchange: LocalExchange, log: BusLog | undefined) {
    this.#exchange = exchange
    this.#log = log
    exchange.buses.add(this)
  }

  publish(subject: string, data: Uint8Array): void {
    this.#check(subject, data)
    if (this.isConnected()) this.#exchange.send(subject, data)
  }

  async subscribe(subject: string, options: { group?: string }, handle: (message: BusMessage) => void): Promise<BusSubscription> {
    if (!isSubscribable(subject)) throw new TypeError(`"${subject}" is no subject to subscribe to`)
    while (!this.#isClosed && !this.#exchange.isUp) await new Promise<void>(resolve => this.#waiting.push(resolve))
    if (this.#isClosed) throw new BusError('disconnected', `subscribe ${subject} via ${this.describe()}: the bus is closed`)
    const subscription: LocalSubscription = { bus: this, subject, group: options.group, isStopped: false, handle }
    this.#subscriptions.add(subscription)
    this.#exchange.index.add(subject, subscription)
    return { stop: () => this.#stop(subscription) }
  }

  request(subject: string, data: Uint8Array, options: RequestOptions): Promise<Uint8Array> {
    return ask(this, subject, data, options)
  }

  gather(subject: string, data: Uint8Array, options: GatherOptions): Promise<GatherEnd> {
    return askAll(this, subject, data, options)
  }

  isConnected(): boolean {
    return this.#exchange.isUp && !this.#isClosed
  }

  describe(): string {
    return 'local (one process)'
  }

  onStatus(listener: (status: 'up' | 'down') => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    this.#exchange.buses.delete(this)
    for (const subscription of this.#subscriptions) this.#stop(subscription)
    if (this.#exchange.isUp) this.linkChanged()
    for (const resolve of this.#waiting.splice(0)) resolve()
  }

  // ------------------------------------------------------------ for the exchange and the questions

  send(question: Question): void {
    this.#check(question.subject, question.data)
    if (!this.isConnected()) {
      question.end('disconnected')
      return
    }
    this.#questions.add(question)
    if (this.#exchange.send(question.subject, question.data, question) === 0) queueMicrotask(() => question.end('no-responders'))
  }

  forget(question: Question): void {
    this.#questions.delete(question)
  }

  linkChanged(): void {
    const isUp = this.isConnected()
    if (!isUp) for (const question of [...this.#questions]) question.end('disconnected')
    for (const resolve of this.#waiting.splice(0)) resolve()
    for (const listener of this.#listeners) listener(isUp ? 'up' : 'down')
  }

  handOver(subscription: LocalSubscription, message: BusMessage): void {
    try {
      subscription.handle(message)
    } catch (error) {
      this.#log?.error({ err: error, subject: message.subject }, 'a bus subscriber threw')
    }
  }

  #check(subject: string, data: Uint8Array): void {
    if (!isPublishable(subject)) throw new TypeError(`"${subject}" is no subject to send to`)
    if (data.length > maxPayloadBytes) throw tooLarge(subject, data, maxPayloadBytes)
  }

  #stop(subscription: LocalSubscription): void {
    subscription.isStopped = true
    this.#subscriptions.delete(subscription)
    this.#exchange.index.remove(subscription.subject, subscription)
  }
}
