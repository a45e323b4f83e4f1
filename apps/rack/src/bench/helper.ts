// A helper process of the benchmarks: asked by message, answers by message, and ends when we do.
import { type ChildProcess, fork } from 'node:child_process'

/** What a helper can be asked: by name, an input and an answer. */
export type Asks = Record<string, (input: never) => unknown>

interface Question {
  number: number
  name: string
  input: unknown
}
type Reply = { number: number; answer: unknown } | { number: number; problem: string }

export class Helper<Can extends Asks> {
  readonly #child: ChildProcess
  readonly #waiting = new Map<number, { resolve: (answer: unknown) => void; reject: (error: Error) => void }>()
  #count = 0

  /** `through`: a command that runs it, `ip netns exec …`; it must become the helper and not start it. */
  constructor(program: URL, name: string, through: readonly string[] = []) {
    const [execPath = process.execPath, ...execArgv] = through.length === 0 ? [] : [...through, process.execPath]
    this.#child = fork(program, { execPath, execArgv, serialization: 'advanced', stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
    this.#child.on('message', message => this.#answered(message as Reply))
    this.#child.once('exit', (code, signal) => {
      for (const { reject } of this.#waiting.values()) reject(new Error(`${name} ended with ${signal ?? `exit code ${code}`}`))
      this.#waiting.clear()
    })
  }

  get pid(): number {
    return this.#child.pid as number
  }

  /** Rejects with what the helper threw, or when it ends. */
  ask<Name extends keyof Can & string>(name: Name, input: Parameters<Can[Name]>[0]): Promise<Awaited<ReturnType<Can[Name]>>> {
    const number = this.#count++
    return new Promise((resolve, reject) => {
      this.#waiting.set(number, { resolve: resolve as (answer: unknown) => void, reject })
      this.#child.send({ number, name, input } satisfies Question)
    })
  }

  /** Lets it end in order; one that does not within ten seconds is killed. */
  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return
    const ended = new Promise<void>(resolve => this.#child.once('exit', () => resolve()))
    this.#child.disconnect()
    const limit = setTimeout(() => this.#child.kill('SIGKILL'), 10_000)
    await ended
    clearTimeout(limit)
  }

  #answered(reply: Reply): void {
    const waiting = this.#waiting.get(reply.number)
    this.#waiting.delete(reply.number)
    if ('problem' in reply) waiting?.reject(new Error(reply.problem))
    else waiting?.resolve(reply.answer)
  }
}

/** The helper's side: answers questions until the parent has gone, then `stop`s and ends. */
export function beHelper<Can extends Asks>(can: Can, stop: () => Promise<void> | void = () => {}): void {
  process.on('message', async ({ number, name, input }: Question) => {
    try {
      process.send?.({ number, answer: await (can[name] as (input: unknown) => unknown)(input) } satisfies Reply)
    } catch (error) {
      process.send?.({ number, problem: error instanceof Error ? (error.stack ?? error.message) : String(error) } satisfies Reply)
    }
  })
  process.once('disconnect', async () => {
    await stop()
    process.exit()
  })
  // Ctrl-C is for the parent, who lets us end in order.
  process.on('SIGINT', () => {})
}
