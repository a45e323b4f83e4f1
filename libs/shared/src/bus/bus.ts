// The bus between fronts and partitions, as the rest of Muster sees it: questions, answers and notices, nothing durable.
// Two implementations pass one suite (libs/server/test/bus-suite.ts): NATS, and an in-process one for a federation in one process.

/** A received message. `reply` is present when the sender waits for an answer; calling it twice sends twice. */
export interface BusMessage {
  readonly subject: string
  readonly data: Uint8Array
  readonly reply?: (data: Uint8Array) => void
}

export interface BusSubscription {
  /** Stops delivery at once. Idempotent. */
  stop(): void
}

/** Why a request got no answer: nobody listens, nobody answered in time, the link is down, or the caller gave up. */
export class BusError extends Error {
  readonly code: 'no-responders' | 'timeout' | 'disconnected' | 'cancelled'
  constructor(code: BusError['code'], message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = 'BusError'
    this.code = code
  }
}

/** All waits are bounded: every request carries its own limit in milliseconds. Delivery is at most once. */
export interface Bus {
  /** Sends a notice to every subscriber of `subject`; never throws while the link is down (the notice is lost, by design). */
  publish(subject: string, data: Uint8Array): void
  /**
   * Delivers messages of `subject` (wildcards `*` and `>` as in NATS) to `handle`. With `group`, one member of the group
   * gets each message. Survives reconnects. Resolves when the subscription is in force at the broker.
   */
  subscribe(subject: string, options: { group?: string }, handle: (message: BusMessage) => void): Promise<BusSubscription>
  /** One question, one answer. Rejects with {@link BusError}. */
  request(subject: string, data: Uint8Array, options: { timeoutMs: number; signal?: AbortSignal }): Promise<Uint8Array>
  /**
   * One question, every answer as it comes, until `isComplete` says so, `timeoutMs` passes, or `signal` aborts.
   * Yields nothing (and ends) where nobody listens. Never rejects for silence; rejects with BusError 'disconnected' when the link is down.
   */
  gather(
    subject: string,
    data: Uint8Array,
    options: { timeoutMs: number; signal?: AbortSignal; onAnswer: (data: Uint8Array) => 'more' | 'enough' },
  ): Promise<void>
  /** True while the link to the broker is up. */
  isConnected(): boolean
  /** What carries the messages, for logs and /healthz: e.g. `nats 2.9.10 at 127.0.0.1:4222` or `embedded (single host, core NATS only)`. */
  describe(): string
  /** Called with each change of the link. Returns the way to stop listening. */
  onStatus(listener: (status: 'up' | 'down') => void): () => void
  /** Unsubscribes, flushes for at most a second, closes. Idempotent. */
  close(): Promise<void>
}
