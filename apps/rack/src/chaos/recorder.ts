// Asks fronts on behalf of the clients and writes down every attempt: what was known when.
import { type ProblemDocument, type Refusal, refusalOf } from '@muster/shared/errors'
import { now, type Outcome, type Release, type Request } from './history.ts'
import { BrokenLine, type Line } from './line.ts'

export interface Wish {
  readonly strategy: string
  readonly count: number
  readonly constraints: Record<string, unknown>
}

export class Recorder {
  readonly requests: Request[] = []
  readonly releases: Release[] = []
  readonly #lines: readonly Line[]
  readonly #wishes = new Map<string, Wish>()
  #acknowledged = 0

  constructor(lines: readonly Line[]) {
    this.#lines = lines
  }

  /** How many requests have been acknowledged. */
  get acknowledged(): number {
    return this.#acknowledged
  }

  open(client: number, key: string, wish: Wish): Request {
    const request: Request = { key, client, count: wish.count, attempts: [] }
    this.requests.push(request)
    this.#wishes.set(key, wish)
    return request
  }

  /** One attempt through one front. `signal`: the client walks away. */
  async attempt(request: Request, front: number, signal?: AbortSignal): Promise<Outcome> {
    const { key } = request
    const line = this.#lines[front % this.#lines.length] as Line
    const startedAt = now()
    let outcome: Outcome
    try {
      const reply = await line.post('/allocations', { ...this.#wishes.get(key), note: key }, { key, ...(signal && { signal }) })
      outcome = outcomeOf(reply.status, reply.body)
    } catch (error) {
      outcome =
        error instanceof BrokenLine
          ? { kind: 'unknown', how: 'broken', detail: error.message }
          : { kind: 'unknown', how: 'abandoned', detail: (error as Error).message }
    }
    if (outcome.kind === 'acknowledged' && !request.attempts.some(earlier => earlier.outcome.kind === 'acknowledged')) this.#acknowledged++
    request.attempts.push({ front: front % this.#lines.length, startedAt, endedAt: now(), outcome })
    return outcome
  }

  /** Gives an allocation back: asked until every partition that has a part of it has said yes. */
  async release(allocation: string, front: number, limitMs: number): Promise<void> {
    const release: Release = { allocation, requestedAt: now(), refusals: [] }
    this.releases.push(release)
    const until = Date.now() + limitMs
    for (let attempt = front; Date.now() < until; attempt++) {
      const said = await this.releaseOnce(allocation, attempt)
      if (said.kind === 'done') {
        release.answeredAt = now()
        return
      }
      if (said.kind === 'wrong') release.refusals.push(said.detail)
      await pause(20 + Math.random() * 60)
    }
  }

  /** One attempt to give it back; `wrong`: a refusal that the owner of an allocation may not get. */
  async releaseOnce(allocation: string, front: number): Promise<{ kind: 'done' | 'again' } | { kind: 'wrong'; detail: string }> {
    const line = this.#lines[front % this.#lines.length] as Line
    try {
      const { status, body } = await line.post(`/allocations/${allocation}/release`, {})
      if (status === 202) {
        const { coverage } = body as { coverage: { asked: number; partitions: { outcome: string; reason?: string }[] } }
        return { kind: coverage.partitions.every(({ outcome }) => outcome === 'answered') ? 'done' : 'again' }
      }
      const refusal = refusalOf(body as ProblemDocument)
      return passing.has(refusal.code) ? { kind: 'again' } : { kind: 'wrong', detail: `${refusal.code}: ${refusal.message}` }
    } catch {
      // Broken or silent: giving back may be asked again.
      return { kind: 'again' }
    }
  }
}

/** Refusals that faults explain and time cures. */
const passing: ReadonlySet<string> = new Set(['partition-silent', 'bus-away', 'database-away', 'deadline-passed', 'not-ready'])

function outcomeOf(status: number, body: unknown): Outcome {
  if (status === 201) {
    const { id, machines } = body as { id: string; machines: { id: string }[] }
    return { kind: 'acknowledged', allocation: id, machines: machines.map(machine => machine.id) }
  }
  const refusal = refusalOf(body as ProblemDocument)
  const detail = `${refusal.code}: ${refusal.message}`
  if (isOpen(refusal)) return { kind: 'unknown', how: 'told', detail }
  const isOfAttempt = refusal.facts.earlierAttempts === 'unknown' || atTheDoor.has(refusal.code)
  return { kind: 'refused', speaksFor: isOfAttempt ? 'attempt' : 'key', code: refusal.code, detail }
}

/** Refused before anybody looked at the request: earlier attempts with its key are not spoken of. */
const atTheDoor: ReadonlySet<string> = new Set(['not-ready', 'overloaded', 'too-many-requests'])

/** Whether a refusal leaves open what became of the request. */
function isOpen({ code, facts, message }: Refusal): boolean {
  if (code === 'partition-silent') return 'allocation' in facts
  // The front's own says "nothing was allocated"; the door's, that it may still happen.
  if (code === 'deadline-passed') return !message.includes('nothing was allocated')
  return code === 'internal' || code === 'database-away'
}

export function pause(ms: number): Promise<void> {
  return new Promise(resolve => setTimeout(resolve, ms))
}
