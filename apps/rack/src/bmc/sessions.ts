// The session slots of one BMC: few, and short-lived, as in real boards. Nothing here runs on a timer: what has expired is dropped when
// the next datagram arrives or somebody looks, so that thousands of idle BMCs cost nothing.
import { randomBytes } from 'node:crypto'
import type { Exchange, OpenSessionRequest, Rakp1, SessionKeys, Suite } from '@muster/drivers/ipmi/codec'
import { SequenceWindow } from './sequence-window.ts'

export interface SessionLimits {
  /** Sessions at most, half-open ones included. */
  slots: number
  /** An open session that says nothing for that long is dropped. */
  idleMs: number
  /** A login must get from one message to the next within this time. */
  halfOpenMs: number
}

/** OpenBMC's figures (facts 4.5). */
export const usualSessionLimits: SessionLimits = { slots: 15, idleMs: 60_000, halfOpenMs: 3_000 }

/** A login under way: Open Session was answered, RAKP 3 has not been accepted. */
export interface HalfOpenSession {
  kind: 'half-open'
  readonly id: number
  readonly consoleId: number
  readonly suite: Suite
  touchedAt: number
  /** Set by RAKP 1, with the answer for a console that repeats it. */
  rakp?: { request: Rakp1; exchange: Exchange; passwordKey: Buffer; limit: number; answer: Buffer }
}

/** A command carried out, kept for a console that repeats it because our answer was lost. */
export interface Answered {
  readonly key: string
  readonly at: number
  readonly payload: Buffer
}

export interface OpenSession {
  kind: 'open'
  readonly id: number
  readonly consoleId: number
  readonly keys: SessionKeys
  touchedAt: number
  /** The present privilege level; every session starts at USER. */
  privilege: number
  /** The level asked for in RAKP 1: Set Session Privilege goes no further. */
  readonly limit: number
  /** What the account itself is allowed. */
  readonly userLimit: number
  readonly window: SequenceWindow
  /** The number our last packet carried. */
  sentSequence: number
  readonly answered: Answered[]
  /** Sends a datagram to where this session's last one came from. */
  send: (datagram: Buffer) => void
  /** For a console that repeats RAKP 3. */
  readonly rakp4: Buffer
}

export type Session = HalfOpenSession | OpenSession

export class SessionTable {
  readonly #limits: SessionLimits
  readonly #sessions = new Map<number, Session>()
  readonly #ended: (id: number) => void
  #openMax = 0
  #halfOpenMax = 0

  /** `ended` hears of every session that is closed or expires. */
  constructor(limits: SessionLimits, ended: (id: number) => void) {
    this.#limits = limits
    this.#ended = ended
  }

  /** The most sessions that were ever open (logged in) at once. */
  get openMax(): number {
    return this.#openMax
  }

  /** The most logins that were ever under way at once. */
  get halfOpenMax(): number {
    return this.#halfOpenMax
  }

  /** How many are open, expired ones dropped first. */
  openCount(atMs: number): number {
    this.sweep(atMs)
    return this.#count('open')
  }

  /** The session in whichever state, by the BMC's own id. */
  get(id: number): Session | undefined {
    return this.#sessions.get(id)
  }

  /** A slot for a new login, or undefined where all are taken. */
  begin(request: OpenSessionRequest, suite: Suite, atMs: number): HalfOpenSession | undefined {
    if (this.#sessions.size >= this.#limits.slots) return undefined
    const session: HalfOpenSession = { kind: 'half-open', id: this.#freshId(), consoleId: request.consoleId, suite, touchedAt: atMs }
    this.#sessions.set(session.id, session)
    this.#halfOpenMax = Math.max(this.#halfOpenMax, this.#count('half-open'))
    return session
  }

  /** The login succeeded: its slot holds an open session from here on. */
  open(from: HalfOpenSession, facts: { keys: SessionKeys; limit: number; userLimit: number; rakp4: Buffer; atMs: number }): OpenSession {
    const session: OpenSession = {
      kind: 'open',
      id: from.id,
      consoleId: from.consoleId,
      keys: facts.keys,
      touchedAt: facts.atMs,
      privilege: Math.min(userLevel, facts.limit),
      limit: facts.limit,
      userLimit: facts.userLimit,
      window: new SequenceWindow(),
      sentSequence: 0,
      answered: [],
      send: () => undefined,
      rakp4: facts.rakp4,
    }
    this.#sessions.set(session.id, session)
    this.#openMax = Math.max(this.#openMax, this.#count('open'))
    return session
  }

  /** Whether there was such a session; it is gone now. */
  end(id: number): boolean {
    const was = this.#sessions.delete(id)
    if (was) this.#ended(id)
    return was
  }

  /** Drops what has expired by `atMs`. */
  sweep(atMs: number): void {
    for (const session of this.#sessions.values()) {
      const limitMs = session.kind === 'open' ? this.#limits.idleMs : this.#limits.halfOpenMs
      if (atMs - session.touchedAt > limitMs) this.end(session.id)
    }
  }

  #count(kind: Session['kind']): number {
    let count = 0
    for (const session of this.#sessions.values()) if (session.kind === kind) count++
    return count
  }

  #freshId(): number {
    for (;;) {
      const id = randomBytes(4).readUInt32LE()
      if (id !== 0 && !this.#sessions.has(id)) return id
    }
  }
}

const userLevel = 2
