// Progress of things that take minutes. On a terminal: a block of lines, redrawn in place. Elsewhere: one line per change, so that a log
// of a pipeline reads well and stays short.
import type { Cli } from '../cli.ts'
import { cutTo, paint, printable } from './text.ts'

export interface Progress {
  /** What `id` is doing now. */
  update(id: string, text: string): void
  /** The end of `id`, well or not. */
  end(id: string, outcome: 'done' | 'failed', text: string): void
  /** Leaves the terminal as it was found; calling it again is harmless. */
  stop(): void
}

/** Lines that replace themselves on a terminal. */
export class LiveBlock {
  readonly #stream: NodeJS.WriteStream
  #height = 0
  constructor(stream: NodeJS.WriteStream) {
    this.#stream = stream
  }
  /** Draws `lines` over the block drawn before; what does not fit on the screen is left out and counted. */
  draw(lines: readonly string[]): void {
    const rows = Math.max(2, (this.#stream.rows || 24) - 1)
    const shown = lines.length > rows ? [...lines.slice(0, rows - 1), `… and ${lines.length - rows + 1} more`] : lines
    this.#stream.write(this.#up() + shown.map(line => `${line}\n`).join(''))
    this.#height = shown.length
  }
  /** Removes the block. */
  clear(): void {
    this.#stream.write(this.#up())
    this.#height = 0
  }
  #up(): string {
    return this.#height > 0 ? `\x1b[${this.#height}A\x1b[J` : ''
  }
}

/** Progress on stderr, fit for what stderr is. */
export function progressFor(cli: Cli): Progress {
  return cli.stderr.isTTY ? liveProgress(cli) : plainProgress(cli)
}

function plainProgress(cli: Cli): Progress {
  const last = new Map<string, string>()
  const write = (id: string, text: string) => {
    if (last.get(id) === text) return
    last.set(id, text)
    cli.stderr.write(`${printable(`${id}: ${text}`)}\n`)
  }
  return { update: write, end: (id, _, text) => write(id, text), stop: () => undefined }
}

const marks = { working: '…', done: '✔', failed: '✖' } as const
const styles = { working: 'cyan', done: 'green', failed: 'red' } as const

function liveProgress(cli: Cli): Progress {
  const block = new LiveBlock(cli.stderr)
  const lines = new Map<string, { kind: keyof typeof marks; text: string }>()
  const draw = () => {
    const width = Math.max(20, cli.stderr.columns - 2)
    // What still works or failed is what one looks for when not all lines fit.
    const order = { failed: 0, working: 1, done: 2 }
    const sorted = [...lines].sort(([, a], [, b]) => order[a.kind] - order[b.kind])
    block.draw(
      sorted.map(([id, { kind, text }]) => `${paint(cli.stderr, styles[kind], marks[kind])} ${cutTo(printable(`${id}  ${text}`), width)}`),
    )
  }
  const set = (id: string, kind: keyof typeof marks, text: string) => {
    lines.set(id, { kind, text })
    draw()
  }
  return {
    update: (id, text) => set(id, 'working', text),
    end: set,
    stop: () => undefined,
  }
}
