// What lies between one machine and its partition: it knows the steps of the machine's job by the calls that it makes, and holds the machine at one of them.
import type { HttpRequest, Wire } from '../src/machine/http.ts'

/** `before`: the partition has not heard the call. `after`: it has, and the machine has not heard the answer. */
export const sides = ['before', 'after'] as const
export type Side = (typeof sides)[number]

export class HeldWire implements Wire {
  /** In the job at hand: the calls, in the order in which they were first made. */
  steps: string[] = []
  /** Agents' tokens, of all jobs. */
  readonly tokens = new Set<string>()
  /** Whether the machine stands at the step, or stood. */
  isReached = false
  /** Agents try again for minutes. Loaders and a first boot give up after seconds. */
  isPatient = true
  #boots = 0
  #wanted: { readonly step: string; readonly side: Side } | undefined
  #passing = Promise.withResolvers<void>()
  /** A repetition of a call is of the same step. */
  readonly #known = new WeakMap<HttpRequest, string>()

  /** A job begins, in which the machine is held once, or never. */
  begin(wanted?: { readonly step: string; readonly side: Side }): void {
    this.steps = []
    this.isReached = false
    this.#boots = 0
    this.#wanted = wanted
    this.#passing = Promise.withResolvers()
    this.#passing.promise.catch(() => undefined)
  }

  /** What is held goes on. */
  release(): void {
    this.#passing.resolve()
  }

  /** What is held is lost: its connection broke. */
  lose(): void {
    this.#passing.reject(new Error('the connection broke'))
  }

  async pass(request: HttpRequest, side: Side): Promise<void> {
    const step = this.#known.get(request) ?? this.#stepOf(request)
    this.#known.set(request, step)
    const token = /^Bearer (\S+)$/.exec(request.headers?.authorization ?? '')?.[1]
    if (token !== undefined) this.tokens.add(token)
    // What the system on the disk may still have to say is not of this job.
    if (this.#boots === 0) return
    if (!this.steps.includes(step)) this.steps.push(step)
    if (this.#wanted?.step !== step || this.#wanted.side !== side) return
    // Once: the repetition goes through.
    this.#wanted = undefined
    this.isPatient = new URL(request.url).pathname.startsWith('/agent/')
    this.isReached = true
    await this.#passing.promise
  }

  /** A call by its name, and by what it says where that is a step of its own. Each boot asks anew. */
  #stepOf({ url, body = '' }: HttpRequest): string {
    const [door, ...rest] = new URL(url).pathname.slice(1).split('/')
    if (door === 'boot') {
      if (rest[0] === 'ipxe') this.#boots++
      return `${this.#boots > 1 ? 'next ' : ''}boot ${rest[0] === 'ipxe' ? 'script' : rest.at(-1)}`
    }
    const said = body.startsWith('{') ? (JSON.parse(body) as Record<string, string>) : {}
    if (door === 'metadata') {
      if (rest.at(-1) !== 'report') return rest.slice(1).join('/')
      return said.event_type === 'finish' && said.name === 'modules-final' ? 'last report' : 'report'
    }
    if (rest[0] === 'signal') return `${said.status}: ${said.step}`
    return [...rest, said.script, said.part, said.disk].filter(Boolean).join(' ')
  }
}
