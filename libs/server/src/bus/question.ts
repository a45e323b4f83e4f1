// A question on its way: what a bus waits for, with a limit, a way to give up, and exactly one end. Shared by all buses, so that they
// end alike.

import { setMaxListeners } from 'node:events'
import { BusError, type BusErrorCode, type GatherEnd, type GatherOptions, type RequestOptions } from '@muster/shared/bus/bus'

/** How a question can end without an answer that suffices. */
export type QuestionEnd = BusErrorCode

/** What a bus does for a question. */
export interface Carrier {
  /** Sends it and from then on feeds {@link Question.answer} and {@link Question.end}. May throw: then nothing was sent. */
  send(question: Question): void
  /** Called once, when it is over: answers that still come are nobody's. */
  forget(question: Question): void
  describe(): string
}

export class Question {
  readonly subject: string
  readonly data: Uint8Array
  /** The carrier's own mark, e.g. the last token of an inbox. */
  token = ''
  readonly #carrier: Carrier
  readonly #onAnswer: (data: Uint8Array) => 'more' | 'enough'
  readonly #onEnd: (end: QuestionEnd | 'enough') => void
  readonly #onThrown: (error: unknown) => void
  readonly #signal: AbortSignal | undefined
  readonly #onAbort = () => this.end('cancelled')
  #timer: NodeJS.Timeout | undefined
  #isOver = false

  constructor(options: {
    subject: string
    data: Uint8Array
    carrier: Carrier
    signal: AbortSignal | undefined
    onAnswer: (data: Uint8Array) => 'more' | 'enough'
    onEnd: (end: QuestionEnd | 'enough') => void
    onThrown: (error: unknown) => void
  }) {
    this.subject = options.subject
    this.data = options.data
    this.#carrier = options.carrier
    this.#signal = options.signal
    this.#onAnswer = options.onAnswer
    this.#onEnd = options.onEnd
    this.#onThrown = options.onThrown
  }

  /** A limit that has passed already, or a signal that is aborted, ends it unsent. */
  open(timeoutMs: number): void {
    if (this.#signal?.aborted || !(timeoutMs > 0)) {
      this.end(this.#signal?.aborted ? 'cancelled' : 'timeout')
      return
    }
    // setTimeout takes 31 bits and treats more as 1 ms; 24 days are as good as for ever.
    this.#timer = setTimeout(() => this.end('timeout'), Math.min(timeoutMs, 2 ** 31 - 1))
    if (this.#signal) {
      setMaxListeners(0, this.#signal) // many questions of one caller share its signal
      this.#signal.addEventListener('abort', this.#onAbort, { once: true })
    }
    try {
      this.#carrier.send(this)
    } catch (error) {
      this.#close(() => this.#onThrown(error))
    }
  }

  answer(data: Uint8Array): void {
    if (this.#isOver) return
    try {
      if (this.#onAnswer(data) === 'enough') this.#close(() => this.#onEnd('enough'))
    } catch (error) {
      this.#close(() => this.#onThrown(error))
    }
  }

  end(end: QuestionEnd): void {
    this.#close(() => this.#onEnd(end))
  }

  #close(settle: () => void): void {
    if (this.#isOver) return
    this.#isOver = true
    clearTimeout(this.#timer)
    this.#signal?.removeEventListener('abort', this.#onAbort)
    this.#carrier.forget(this)
    settle()
  }
}

/** {@link Bus.request} over any carrier. */
export function ask(carrier: Carrier, subject: string, data: Uint8Array, options: RequestOptions): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    new Question({
      subject,
      data,
      carrier,
      signal: options.signal,
      onAnswer: answer => {
        resolve(answer)
        return 'enough'
      },
      onEnd: end => {
        if (end !== 'enough') reject(failure({ act: 'request', subject, carrier, options, end }))
      },
      onThrown: reject,
    }).open(options.timeoutMs)
  })
}

/** {@link Bus.gather} over any carrier. */
export function askAll(carrier: Carrier, subject: string, data: Uint8Array, options: GatherOptions): Promise<GatherEnd> {
  return new Promise((resolve, reject) => {
    new Question({
      subject,
      data,
      carrier,
      signal: options.signal,
      onAnswer: options.onAnswer,
      onEnd: end => {
        if (end === 'enough' || end === 'timeout' || end === 'no-responders' || end === 'cancelled') resolve(end)
        else reject(failure({ act: 'gather', subject, carrier, options, end }))
      },
      onThrown: reject,
    }).open(options.timeoutMs)
  })
}

const reasons: Record<QuestionEnd, (timeoutMs: number) => string> = {
  'no-responders': () => 'nobody listens',
  'too-large': () => 'the message is too large',
  refused: () => 'the broker’s permissions forbid it',
  disconnected: () => 'the link is down',
  timeout: timeoutMs => `no answer within ${Math.round(timeoutMs)} ms`,
  cancelled: () => 'the caller gave up',
}

function failure(what: { act: string; subject: string; carrier: Carrier; options: RequestOptions; end: QuestionEnd }): BusError {
  const { act, subject, carrier, options, end } = what
  const cause = end === 'cancelled' ? { cause: options.signal?.reason } : {}
  return new BusError(end, `${act} ${subject} via ${carrier.describe()}: ${reasons[end](options.timeoutMs)}`, cause)
}

/** The error of a message above the limit, before anything is sent. */
export function tooLarge(subject: string, data: Uint8Array, maxPayloadBytes: number): BusError {
  return new BusError('too-large', `message to ${subject} has ${data.length} bytes, the bus carries ${maxPayloadBytes}`)
}
