// The logins of one Redfish service: few, and ended after a while without use.
import { randomBytes } from 'node:crypto'

interface Session {
  id: string
  token: string
  user: string
  usedAt: number
}

export class RedfishSessions {
  readonly #limit: number
  readonly #idleMs: number
  readonly #sessions = new Map<string, Session>()
  #nextId = 1
  /** Most open at once so far. */
  openMax = 0

  /** `idleMs`: unused that long, a session ends. */
  constructor({ limit, idleMs }: { limit: number; idleMs: number }) {
    this.#limit = limit
    this.#idleMs = idleMs
  }

  /** Opens one, or `full`. */
  open(user: string, atMs: number): Session | 'full' {
    this.#expire(atMs)
    if (this.#sessions.size >= this.#limit) return 'full'
    const session = { id: String(this.#nextId++), token: randomBytes(16).toString('hex'), user, usedAt: atMs }
    this.#sessions.set(session.id, session)
    this.openMax = Math.max(this.openMax, this.#sessions.size)
    return session
  }

  /** The user a token stands for; using it keeps it. */
  userOf(token: string, atMs: number): string | undefined {
    const session = this.list(atMs).find(one => one.token === token)
    if (session) session.usedAt = atMs
    return session?.user
  }

  /** Ends one; false where there is none of that id. */
  end(id: string): boolean {
    return this.#sessions.delete(id)
  }

  /** Ends all, as a restart of the BMC does. */
  forgetAll(): void {
    this.#sessions.clear()
  }

  /** Those open. */
  list(atMs: number): Session[] {
    this.#expire(atMs)
    return [...this.#sessions.values()]
  }

  #expire(atMs: number): void {
    for (const [id, { usedAt }] of this.#sessions) if (atMs - usedAt > this.#idleMs) this.#sessions.delete(id)
  }
}
