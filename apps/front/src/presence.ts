// Who is there: every replica of a partition tells once a second; three missed notices make it absent. Presence is a hint about whom to
// wait for. What is true is learnt by asking.
import type { Bus, BusMessage } from '@muster/shared/bus/bus'
import {
  type Presence as Notice,
  presenceLimitMs,
  presence as presenceNotice,
  protocolVersion,
  subjects,
} from '@muster/shared/bus/protocol'
import { decodeJson, encodeJson } from './json.ts'

/** `unheard`: not heard of yet, by a front too young to hold that against it. */
export type Standing = 'present' | 'leaving' | 'silent' | 'unheard'

type Held = NonNullable<Notice['configuration']>

export interface Presence {
  /** The names of all partitions of the federation, sorted: the accepted ones or, where none were configured, all seen since the start. */
  known(): readonly string[]
  isKnown(partition: string): boolean
  /** Whether the partition may take part: it is known or, where none were configured, could be once it is heard of. */
  accepts(partition: string): boolean
  standing(partition: string): Standing
  /** The copy of the global configuration that a partition last said it holds; undefined: none, or it says nothing of it. */
  configuration(partition: string): Held | undefined
  /** Whether all partitions of the federation were heard of since the start; false where nobody knows which they are. */
  isComplete(): boolean
  /** Why a partition is not present, in words: `last seen 4 s ago`. */
  describe(partition: string): string
  /** Whether an answer comes from a process that has been replaced since. A replica that nobody heard of yet is believed. */
  isStale(partition: string, replica: string, epoch: number): boolean
  /** From now on these take part; undefined: all that make themselves heard. */
  accept(partitions: readonly string[] | undefined): void
  /** Forgets what was heard of a partition: another one has its name from now on, and counts its epochs anew. */
  forget(partition: string): void
  /** Called when a partition comes, goes, or has more ready machines. Returns the way to stop listening. */
  onChange(listener: () => void): () => void
  stop(): void
}

export interface PresenceOptions {
  bus: Bus
  /** The accepted partitions; undefined: all that make themselves heard. */
  accepted: readonly string[] | undefined
  log: { warn(facts: object, text: string): void }
}

const sweepEveryMs = 500

interface Replica {
  epoch: number
  seenAt: number
  isLeaving: boolean
  ready: number
}

/** Starts listening and asks who is there. Does not wait for the link: a front starts without its bus. */
export function watchPresence(options: PresenceOptions): Presence {
  return new PresenceWatch(options)
}

class PresenceWatch implements Presence {
  readonly #bus: Bus
  readonly #log: PresenceOptions['log']
  #accepted: ReadonlySet<string> | undefined
  readonly #partitions = new Map<string, Map<string, Replica>>()
  readonly #present = new Set<string>()
  readonly #configurations = new Map<string, Held>()
  readonly #strangers = new Set<string>()
  readonly #listeners = new Set<() => void>()
  readonly #stops: (() => void)[] = []
  readonly #startedAt = Date.now()
  #known: readonly string[]
  #sweptAt = Date.now()
  #isStopped = false

  constructor(options: PresenceOptions) {
    this.#bus = options.bus
    this.#log = options.log
    this.#accepted = options.accepted && new Set(options.accepted)
    this.#known = [...(this.#accepted ?? [])].sort()
    const sweep = setInterval(() => this.#sweep(), sweepEveryMs)
    sweep.unref()
    this.#stops.push(() => clearInterval(sweep))
    this.#stops.push(this.#bus.onStatus(status => status === 'up' && this.#ask()))
    void this.#listen()
  }

  known(): readonly string[] {
    return this.#known
  }

  isKnown(partition: string): boolean {
    return this.#accepted ? this.#accepted.has(partition) : this.#partitions.has(partition)
  }

  accepts(partition: string): boolean {
    return this.#accepted?.has(partition) ?? true
  }

  accept(partitions: readonly string[] | undefined): void {
    // Said with every generation of the configuration, of which few change who takes part.
    const accepted = partitions && new Set(partitions)
    if (accepted?.size === this.#accepted?.size && [...(accepted ?? [])].every(partition => this.#accepted?.has(partition))) return
    this.#accepted = accepted
    for (const partition of this.#partitions.keys())
      if (!this.accepts(partition)) {
        this.#drop(partition)
      }
    this.#strangers.clear()
    this.#known = [...(this.#accepted ?? this.#partitions.keys())].sort()
    // Those that were not listened to are not known yet.
    this.#ask()
    this.#tell()
  }

  forget(partition: string): void {
    this.#drop(partition)
    this.#ask()
    this.#tell()
  }

  standing(partition: string): Standing {
    if (this.#present.has(partition)) return 'present'
    const replicas = this.#partitions.get(partition)
    if (!replicas) return Date.now() - this.#startedAt < presenceLimitMs ? 'unheard' : 'silent'
    return [...replicas.values()].some(replica => this.#isFresh(replica)) ? 'leaving' : 'silent'
  }

  configuration(partition: string): Held | undefined {
    return this.#configurations.get(partition)
  }

  isComplete(): boolean {
    return this.#accepted !== undefined && this.#known.every(partition => this.#partitions.has(partition))
  }

  describe(partition: string): string {
    const seenAt = Math.max(...[...(this.#partitions.get(partition)?.values() ?? [])].map(replica => replica.seenAt))
    const seen = seenAt > 0 ? `last seen ${Math.round((Date.now() - seenAt) / 1000)} s ago` : 'not seen since this front started'
    return this.standing(partition) === 'leaving' ? `it is shutting down, ${seen}` : seen
  }

  isStale(partition: string, replica: string, epoch: number): boolean {
    const known = this.#partitions.get(partition)?.get(replica)
    return known !== undefined && epoch < known.epoch
  }

  onChange(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  stop(): void {
    this.#isStopped = true
    for (const stop of this.#stops.splice(0)) stop()
  }

  #drop(partition: string): void {
    this.#partitions.delete(partition)
    this.#present.delete(partition)
    this.#configurations.delete(partition)
  }

  async #listen(): Promise<void> {
    try {
      const subscription = await this.#bus.subscribe(subjects.presence('*'), {}, message => this.#hear(message))
      if (this.#isStopped) return subscription.stop()
      this.#stops.push(() => subscription.stop())
      this.#ask()
    } catch (error) {
      if (!this.#isStopped) this.#log.warn({ err: error }, 'cannot listen to who is there; all partitions will count as silent')
    }
  }

  /** Without asking, a new front would know who is there only after a whole interval. */
  #ask(): void {
    this.#bus.publish(subjects.presenceAsk, encodeJson({ v: protocolVersion }))
  }

  #hear({ subject, data }: BusMessage): void {
    const parsed = presenceNotice.safeParse(decodeJson(data))
    if (!parsed.success) {
      this.#log.warn({ size: data.length }, 'a presence notice cannot be read')
      return
    }
    const { partition, replica, epoch, status, capacity, configuration } = parsed.data
    // The broker lets a partition speak under its own subject only; what it says of itself must agree.
    if (subject !== subjects.presence(partition)) {
      this.#log.warn({ subject, partition }, 'a presence notice speaks for another partition; it is ignored')
      return
    }
    if (!this.accepts(partition)) {
      this.#noteStranger(partition)
      return
    }
    let replicas = this.#partitions.get(partition)
    if (!replicas) {
      replicas = new Map()
      this.#partitions.set(partition, replicas)
      if (!this.#accepted) this.#known = [...this.#partitions.keys()].sort()
    }
    const before = replicas.get(replica)
    if (before && epoch < before.epoch) return
    if (configuration) this.#configurations.set(partition, configuration)
    replicas.set(replica, { epoch, seenAt: Date.now(), isLeaving: status === 'leaving', ready: capacity.ready })
    const isChanged = this.#judge(partition)
    if (isChanged || capacity.ready > (before?.ready ?? -1)) this.#tell()
  }

  #noteStranger(partition: string): void {
    if (this.#strangers.has(partition)) return
    this.#strangers.add(partition)
    this.#log.warn({ partition }, 'a partition that is not accepted makes itself heard; it is ignored')
  }

  #sweep(): void {
    const now = Date.now()
    // A front that was stopped for a while (SIGSTOP, a suspended VM) heard nobody: that is no silence of theirs.
    const pause = now - this.#sweptAt - sweepEveryMs
    this.#sweptAt = now
    let isChanged = false
    for (const [partition, replicas] of this.#partitions) {
      for (const replica of replicas.values()) if (pause > sweepEveryMs) replica.seenAt += pause
      isChanged = this.#judge(partition) || isChanged
    }
    if (isChanged) this.#tell()
  }

  #isFresh(replica: Replica): boolean {
    return Date.now() - replica.seenAt <= presenceLimitMs
  }

  #isServing(replica: Replica): boolean {
    return !replica.isLeaving && this.#isFresh(replica)
  }

  /** Sets whether the partition is present; answers whether that changed. Only notices and sweeps judge, never the mere passing of time. */
  #judge(partition: string): boolean {
    const replicas = this.#partitions.get(partition) as Map<string, Replica>
    const isPresent = [...replicas.values()].some(replica => this.#isServing(replica))
    if (isPresent === this.#present.has(partition)) return false
    if (isPresent) this.#present.add(partition)
    else this.#present.delete(partition)
    return true
  }

  #tell(): void {
    for (const listener of this.#listeners) listener()
  }
}
