// The partition under test, as a front sees it: only what is on the bus.
import { type Bus, BusError } from '@muster/shared/bus/bus'
import {
  type BusCallName,
  callReply,
  type Offer,
  offer as offerSchema,
  type Presence,
  presence as presenceSchema,
  protocolVersion,
  subjects,
} from '@muster/shared/bus/protocol'
import type { Role } from '@muster/shared/contract/call'
import type { ProblemDocument } from '@muster/shared/errors'
import { randomText } from '@muster/shared/ids'
import type { z } from 'zod'

/** How long a partition may take to answer what costs it nothing. */
const answerMs = 5_000
/** So long after the latest a question is not answered any more. */
const silenceMs = 1_000

export interface Ask {
  readonly role?: Role
  readonly caller?: string
  /** Milliseconds from now; negative: nobody waits any more. */
  readonly deadlineMs?: number
}

export type Answer = { readonly kind: 'ok'; readonly value: unknown } | { readonly kind: 'problem'; readonly problem: ProblemDocument }

/** A promise of the protocol that was not kept. */
export class Broken extends Error {}

export class FarEnd {
  readonly name: string
  readonly bus: Bus

  constructor(bus: Bus, name: string) {
    this.bus = bus
    this.name = name
  }

  /** Asks a call. Throws Broken for an answer that is none, or that does not come. */
  async ask(call: string, input: unknown, how: Ask = {}): Promise<Answer> {
    return this.readAnswer(await this.send(subjects.call(this.name), { ...envelope(how), call, input }))
  }

  /** Asks a call and takes nothing but its answer, which must be as `schema` says. */
  async want<Schema extends z.ZodType>(
    call: BusCallName | (string & {}),
    input: unknown,
    schema: Schema,
    how: Ask = {},
  ): Promise<z.output<Schema>> {
    const answer = await this.ask(call, input, how)
    if (answer.kind === 'problem') throw new Broken(`${call} was refused: ${answer.problem.code}: ${answer.problem.detail}`)
    return as(schema, answer.value, `the answer to ${call}`)
  }

  /** Asks a call that must be refused with `code`. */
  async refused(code: string, call: string, input: unknown, how: Ask = {}): Promise<ProblemDocument> {
    const answer = await this.ask(call, input, how)
    if (answer.kind === 'ok') throw new Broken(`${call} was answered, and not refused with ${code}`)
    if (answer.problem.code !== code)
      throw new Broken(`${call} was refused with ${answer.problem.code}, not ${code}: ${answer.problem.detail}`)
    return answer.problem
  }

  /** The offers of this partition; others may be on the bus too. */
  async offers(wish: object, how: Ask = {}): Promise<Offer[]> {
    const offers: Offer[] = []
    const data = encode({ ...envelope(how), strategy: 'best', count: 1, constraints: {}, purpose: 'look', ...wish })
    const timeoutMs = how.deadlineMs !== undefined && how.deadlineMs < 0 ? silenceMs : 500
    const onAnswer = (answer: Uint8Array): 'more' => {
      const said = decode(answer)
      if (typeof said === 'object' && said !== null && 'partition' in said && said.partition === this.name)
        offers.push(as(offerSchema, said, 'its offer'))
      return 'more'
    }
    await this.bus.gather(subjects.offer, data, { timeoutMs, onAnswer })
    return offers
  }

  /** What it says on a subject for so long. */
  async listen<Schema extends z.ZodType>(
    subject: string,
    schema: Schema,
    ms: number,
    meanwhile?: () => unknown,
  ): Promise<z.output<Schema>[]> {
    const heard: unknown[] = []
    const subscription = await this.bus.subscribe(subject, {}, ({ data }) => heard.push(decode(data)))
    await Promise.all([new Promise(resolve => setTimeout(resolve, ms)), meanwhile?.()])
    subscription.stop()
    return heard.map(each => as(schema, each, `what it says on ${subject}`))
  }

  listenPresence(ms: number, meanwhile?: () => unknown): Promise<Presence[]> {
    return this.listen(subjects.presence(this.name), presenceSchema, ms, meanwhile)
  }

  /** Sends anything as a call. */
  async send(subject: string, message: unknown, timeoutMs = answerMs): Promise<unknown> {
    try {
      return decode(await this.bus.request(subject, typeof message === 'string' ? Buffer.from(message) : encode(message), { timeoutMs }))
    } catch (error) {
      if (!(error instanceof BusError)) throw error
      const what =
        error.code === 'no-responders' ? `nobody listens on ${subject}` : `no answer on ${subject} within ${timeoutMs} ms (${error.code})`
      throw new Broken(what, { cause: error })
    }
  }

  readAnswer(reply: unknown): Answer {
    const parsed = as(callReply, reply, 'its reply')
    return 'problem' in parsed ? { kind: 'problem', problem: parsed.problem } : { kind: 'ok', value: parsed.ok }
  }

  async isAnswering(): Promise<boolean> {
    return await this.ask('session.whoami', {}).then(
      () => true,
      () => false,
    )
  }

  /** Asks when it is too late, and hears nothing. */
  async isSilentWhenLate(): Promise<void> {
    const message = { ...envelope({ deadlineMs: -1 }), call: 'session.whoami', input: {} }
    const reply = await this.send(subjects.call(this.name), message, silenceMs).catch(error => error as Error)
    if (!(reply instanceof Broken)) throw new Broken('a question whose deadline has passed was answered')
  }
}

function envelope({ role = 'operator', caller = 'conformance', deadlineMs = answerMs }: Ask) {
  return { v: protocolVersion, id: `conformance~${randomText(12)}`, deadline: Date.now() + deadlineMs, caller: { name: caller, role } }
}

const encode = (value: unknown) => Buffer.from(JSON.stringify(value))

function decode(data: Uint8Array): unknown {
  const text = Buffer.from(data).toString()
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw new Broken(`it said something that is not JSON: ${text.slice(0, 200)}`, { cause })
  }
}

/** The value as the schema says. Throws Broken, naming the fields. */
function as<Schema extends z.ZodType>(schema: Schema, value: unknown, what: string): z.output<Schema> {
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  const fields = parsed.error.issues.slice(0, 5).map(({ path, message }) => `${path.join('.') || '(all of it)'}: ${message}`)
  throw new Broken(`${what} is not as the protocol says: ${fields.join('; ')}`)
}
