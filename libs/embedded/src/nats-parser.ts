// The client half of the NATS wire protocol, read from a stream that is cut anywhere.
// https://docs.nats.io/reference/reference-protocols/nats-protocol

/** What a client said, one call per frame. Payloads are views: valid during the call, to be copied by who keeps them. */
export interface FrameSink {
  connect(json: string): void
  /** `chunk[start, headerEnd)` are the headers (empty for PUB), `chunk[headerEnd, end)` the payload. */
  publish(subject: string, reply: string, chunk: Buffer, start: number, headerEnd: number, end: number): void
  subscribe(subject: string, group: string, sid: string): void
  /** `max` 0 = at once; else after so many deliveries since the subscription began. */
  unsubscribe(sid: string, max: number): void
  ping(): void
  pong(): void
  /** The stream makes no sense from here on; nothing more will be parsed. The text is nats-server's. */
  refuse(problem: string): void
}

export interface ParserLimits {
  maxPayloadBytes: number
  /** nats-server's max_control_line: 4096. */
  maxLineBytes: number
}

const lineFeed = 10
const carriageReturn = 13
const none = ''

/** Feeds `sink` from chunks. Copies only what a chunk boundary cuts, and each byte of that once. */
export class NatsParser {
  readonly #sink: FrameSink
  readonly #limits: ParserLimits
  #held: Buffer[] = []
  #heldBytes = 0
  /** How many bytes must be held before looking again is worth it. */
  #wanted = 0
  #refused = false

  constructor(sink: FrameSink, limits: ParserLimits) {
    this.#sink = sink
    this.#limits = limits
  }

  push(received: Buffer): void {
    if (this.#refused) return
    let chunk = received
    if (this.#heldBytes > 0) {
      this.#held.push(received)
      this.#heldBytes += received.length
      if (this.#heldBytes < this.#wanted) return
      chunk = Buffer.concat(this.#held, this.#heldBytes)
      this.#held = []
      this.#heldBytes = 0
    }
    let at = 0
    while (at < chunk.length && !this.#refused) {
      const next = this.#frame(chunk, at)
      if (next < 0) {
        this.#hold(chunk.subarray(at), -next)
        return
      }
      at = next
    }
  }

  #hold(rest: Buffer, wanted: number): void {
    this.#held = [rest]
    this.#heldBytes = rest.length
    this.#wanted = wanted
  }

  /** Handles the frame at `at` and returns where the next begins, or minus the number of bytes the frame needs at least. */
  #frame(chunk: Buffer, at: number): number {
    const feed = chunk.indexOf(lineFeed, at)
    if (feed < 0 || feed - at > this.#limits.maxLineBytes) {
      if (chunk.length - at > this.#limits.maxLineBytes) return this.#refuse('Maximum Control Line Exceeded', chunk)
      return -(chunk.length - at + 1)
    }
    // A subject's bytes go out as they came in: latin1 keeps each byte, whatever the encoding.
    const line = chunk.toString('latin1', at, chunk[feed - 1] === carriageReturn && feed > at ? feed - 1 : feed)
    const space = line.indexOf(' ')
    const operation = space < 0 ? line : line.slice(0, space)
    const body = feed + 1
    switch (operation.toUpperCase()) {
      case 'PUB':
        return this.#publish({ chunk, at, body, words: wordsOf(line), hasHeaders: false })
      case 'HPUB':
        return this.#publish({ chunk, at, body, words: wordsOf(line), hasHeaders: true })
      case 'SUB': {
        const [, subject, second, third, fourth] = wordsOf(line)
        if (subject === undefined || second === undefined || fourth !== undefined) return this.#refuse('Parser Error', chunk)
        if (third === undefined) this.#sink.subscribe(subject, none, second)
        else this.#sink.subscribe(subject, second, third)
        return body
      }
      case 'UNSUB': {
        const [, sid, max, extra] = wordsOf(line)
        const count = max === undefined ? 0 : sizeOf(max)
        if (sid === undefined || extra !== undefined || count < 0) return this.#refuse('Parser Error', chunk)
        this.#sink.unsubscribe(sid, count)
        return body
      }
      case 'PING':
        this.#sink.ping()
        return body
      case 'PONG':
        this.#sink.pong()
        return body
      case 'CONNECT':
        this.#sink.connect(line.slice(operation.length).trim())
        return body
      default:
        return this.#refuse('Unknown Protocol Operation', chunk)
    }
  }

  /** PUB subject [reply] size, HPUB subject [reply] header-size total-size; then the bytes and CR LF. */
  #publish(frame: { chunk: Buffer; at: number; body: number; words: string[]; hasHeaders: boolean }): number {
    const { chunk, at, body, words } = frame
    const sizes = frame.hasHeaders ? 2 : 1
    const hasReply = words.length === 3 + sizes
    const subject = words[1]
    const total = sizeOf(words.at(-1) ?? none)
    const header = frame.hasHeaders ? sizeOf(words.at(-2) ?? none) : 0
    if (subject === undefined || (words.length !== 2 + sizes && !hasReply)) return this.#refuse('Parser Error', chunk)
    if (total < 0 || header < 0 || header > total) return this.#refuse('Bad or Missing Size', chunk)
    if (total > this.#limits.maxPayloadBytes) return this.#refuse('Maximum Payload Violation', chunk)
    const end = body + total
    if (chunk.length < end + 2) return -(end + 2 - at)
    if (chunk[end] !== carriageReturn || chunk[end + 1] !== lineFeed) return this.#refuse('Parser Error', chunk)
    this.#sink.publish(subject, hasReply ? (words[2] as string) : none, chunk, body, body + header, end)
    return end + 2
  }

  #refuse(problem: string, chunk: Buffer): number {
    this.#refused = true
    this.#sink.refuse(problem)
    return chunk.length
  }
}

function wordsOf(line: string): string[] {
  const words = line.split(' ')
  // Every client writes single spaces; the protocol also allows several and tabs.
  return words.includes(none) || line.includes('\t') ? line.split(/[ \t]+/).filter(Boolean) : words
}

/** A decimal size, or -1. */
function sizeOf(text: string): number {
  return /^\d{1,9}$/.test(text) ? Number(text) : -1
}
