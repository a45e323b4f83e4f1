// The bus between fronts and partitions, as the rest of Muster sees it: questions, answers and notices, nothing durable.
// Two implementations pass one suite (libs/server/test/bus-suite.ts): NATS, and an in-process one for a federation in one process.

/** A received message. `reply` is present when the sender waits for an answer; calling it twice sends twice. */
export interface BusMessage {
  readonly subject: string
  /** A view into a receive buffer: keep a copy, not this, of what is to live long. */
  readonly data: Uint8Array
  /** Lost silently while the link is down, like any notice. Throws BusError 'too-large'. */
  readonly reply?: (data: Uint8Array) => void
}

export interface BusSubscription {
  /** Stops delivery at once. Idempotent. */
  stop(): void
}

/**
 * Why a question got no answer.
 *
 * - `no-responders`: nobody listens; known at once, nothing was done
 * - `too-large`: above {@link Bus.maxPayloadBytes}; nothing was sent
 * - `refused`: the broker's permissions forbid the subject; nothing was done
 * - `disconnected`: the link is or went down; when it went down after sending, the question may have been heard
 * - `timeout`: nobody answered in time; it may have been heard
 * - `cancelled`: the caller gave up; it may have been heard
 */
export type BusErrorCode = 'no-responders' | 'too-large' | 'refused' | 'disconnected' | 'timeout' | 'cancelled'

export class BusError extends Error {
  readonly code: BusErrorCode
  constructor(code: BusErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = 'BusError'
    this.code = code
  }
}

/** How a gathering ended: the caller had enough, its time was up, nobody listens, or the caller's signal. */
export type GatherEnd = 'enough' | 'timeout' | 'no-responders' | 'cancelled'

export interface RequestOptions {
  timeoutMs: number
  signal?: AbortSignal
}

export interface GatherOptions extends RequestOptions {
  /** Called per answer, in order of arrival, until it says `enough`. What it throws ends the gathering and rejects it. */
  onAnswer: (data: Uint8Array) => 'more' | 'enough'
}

/** All waits are bounded: every request carries its own limit in milliseconds. Delivery is at most once. */
export interface Bus {
  /**
   * Sends a notice to every subscriber of `subject`. While the link is down the notice is lost, by design, and nothing is thrown.
   * Throws BusError 'too-large'.
   */
  publish(subject: string, data: Uint8Array): void
  /**
   * Delivers messages of `subject` (wildcards `*` and `>` as in NATS) to `handle`. With `group`, one member of the group
   * gets each message. Survives reconnects. What `handle` throws is logged and costs only that message.
   *
   * Resolves when the subscription is in force at the broker, so it waits while the link is down; do not await it where starting
   * up must go on without the bus. Rejects with BusError 'refused', or 'disconnected' when the bus is closed first.
   */
  subscribe(subject: string, options: { group?: string }, handle: (message: BusMessage) => void): Promise<BusSubscription>
  /** One question, one answer: the first that comes; later ones are ignored. Rejects with {@link BusError}. */
  request(subject: string, data: Uint8Array, options: RequestOptions): Promise<Uint8Array>
  /**
   * One question, every answer as it comes, until `onAnswer` has enough, `timeoutMs` passes, or `signal` aborts. Silence is a normal
   * end and never rejects. Rejects with BusError 'too-large', 'refused', or 'disconnected' when the link is or goes down: the answers
   * that came before have been handed over.
   */
  gather(subject: string, data: Uint8Array, options: GatherOptions): Promise<GatherEnd>
  /** The largest message, in bytes. What may grow beyond must be paged. */
  readonly maxPayloadBytes: number
  /** True while the link to the broker is up. */
  isConnected(): boolean
  /** What carries the messages, for logs and /healthz: e.g. `nats 2.9.10 at 127.0.0.1:4222` or `embedded (single host, core NATS only)`. */
  describe(): string
  /** Called with each change of the link; at `up` all subscriptions are in force again. Returns the way to stop listening. */
  onStatus(listener: (status: 'up' | 'down') => void): () => void
  /** Unsubscribes, flushes for at most a second, closes; waiting requests end with 'disconnected'. Idempotent. */
  close(): Promise<void>
}

/** The broker of libs/embedded: how it names itself to its clients, and how it is shown to people. */
export const embeddedBroker = { name: 'muster-embedded', description: 'embedded (single host, core NATS only)' } as const
