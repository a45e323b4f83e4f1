// The local backend: the contract answered by one partition from its own database. Doors call `call`; the bus door calls `answer`, because a front
// adds the coverage itself.
import type { Backend, CallContext, ReadinessCheck } from '@muster/server/backend'
import { type Coverage, hasCoverage, mayAct } from '@muster/shared/contract/call'
import { type CallAnswer, type CallInput, type CallName, type CallOutput, callNamed } from '@muster/shared/contract/contract'
import { Refusal } from '@muster/shared/errors'
import { refusalOfDatabase } from '../db/connect.ts'
import { withoutBmc } from '../domain/view.ts'
import type { Handlers } from './handlers.ts'

export interface LocalBackendOptions {
  partition: string
  handlers: Handlers
  readiness: () => ReadinessCheck[]
}

export class LocalBackend implements Backend {
  readonly kind = 'partition'
  readonly name: string
  readonly #options: LocalBackendOptions
  readonly #growthListeners = new Set<() => void>()

  constructor(options: LocalBackendOptions) {
    this.name = options.partition
    this.#options = options
  }

  /** The bare answer. Throws Refusal; a database that does not answer is `database-away`. */
  async answer<Name extends CallName>(name: Name, input: CallInput<Name>, context: CallContext): Promise<CallAnswer<Name>> {
    try {
      const answer = await (
        this.#options.handlers[name] as Handlers[CallName] as (input: unknown, context: CallContext) => Promise<CallAnswer<Name>>
      )(input, context)
      return mayAct(context.caller.role, 'operator') ? answer : (withoutBmc(answer) as CallAnswer<Name>)
    } catch (error) {
      throw refusalOfDatabase(error)
    }
  }

  async call<Name extends CallName>(name: Name, input: CallInput<Name>, context: CallContext): Promise<CallOutput<Name>> {
    const call = callNamed(name)
    if (!call || !hasCoverage(call)) return (await this.answer(name, input, context)) as CallOutput<Name>
    // A filter by partition that does not name this one asks nobody here, as it would at a front.
    const asked = (input as { partition?: unknown }).partition
    if (Array.isArray(asked) && !asked.includes(this.name)) {
      const nothing = { items: [], nextCursor: null, coverage: { asked: 0, answered: 0, partitions: [] } satisfies Coverage }
      return nothing as unknown as CallOutput<Name>
    }
    const started = performance.now()
    const coverage = (): Coverage => {
      const ms = Math.round((performance.now() - started) * 10) / 10
      return { asked: 1, answered: 1, partitions: [{ name: this.name, outcome: 'answered', ms }] }
    }
    try {
      return { ...(await this.answer(name, input, context)), coverage: coverage() } as unknown as CallOutput<Name>
    } catch (error) {
      // "Not here" is an answer too, and says who gave it.
      if (error instanceof Refusal && (error.code === 'no-match' || error.code === 'not-found'))
        throw new Refusal(error.code, error.message, { ...error.facts, coverage: coverage() }, { cause: error })
      throw error
    }
  }

  onLogGrowth(listener: () => void): () => void {
    this.#growthListeners.add(listener)
    return () => this.#growthListeners.delete(listener)
  }

  /** Tells the listeners that the log has grown. */
  logHasGrown(): void {
    for (const listener of this.#growthListeners) listener()
  }

  readiness(): ReadinessCheck[] {
    return this.#options.readiness()
  }
}
