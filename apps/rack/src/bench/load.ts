// A helper that asks for machines over HTTP. Written on bare sockets: on two cores a costlier client would take its CPU from what is measured.
import { connect, type Socket } from 'node:net'
import { type Extent, repeat, type Slice } from './figures.ts'
import { beHelper } from './helper.ts'

export interface Load extends Extent {
  url: string
  token: string
  body: string
}

export interface Loaded extends Slice {
  /** The machines that the answers named. */
  machines: string[]
  /** Answers that were no 201, by status and code; one text of each. */
  refusals: Map<string, { count: number; example: string }>
}

class Connection {
  readonly #socket: Socket
  #received: Buffer<ArrayBufferLike> = Buffer.alloc(0)
  #waiting: { resolve: (answer: { status: number; text: string }) => void; reject: (error: Error) => void } | undefined

  constructor(url: URL) {
    this.#socket = connect({ host: url.hostname, port: Number(url.port), noDelay: true })
    this.#socket.on('data', data => this.#read(data))
    this.#socket.on('error', error => this.#waiting?.reject(error))
    this.#socket.on('close', () => this.#waiting?.reject(new Error('the server closed the connection')))
  }

  ask(request: string): Promise<{ status: number; text: string }> {
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject }
      this.#socket.write(request)
    })
  }

  end(): void {
    this.#waiting = undefined
    this.#socket.destroy()
  }

  #read(data: Buffer): void {
    this.#received = this.#received.length === 0 ? data : Buffer.concat([this.#received, data])
    const end = this.#received.indexOf('\r\n\r\n')
    if (end < 0) return
    const head = this.#received.toString('latin1', 0, end)
    const length = /\r\ncontent-length: *(\d+)/i.exec(head)?.[1]
    if (length === undefined) {
      this.#waiting?.reject(new Error(`an answer without Content-Length: ${head}`))
      return
    }
    const total = end + 4 + Number(length)
    if (this.#received.length < total) return
    const answer = { status: Number(head.slice(9, 12)), text: this.#received.toString('utf8', end + 4, total) }
    this.#received = this.#received.subarray(total)
    this.#waiting?.resolve(answer)
  }
}

const load = {
  run: async ({ url, token, body, ...extent }: Load): Promise<Loaded> => {
    const target = new URL(url)
    const request =
      `POST ${target.pathname} HTTP/1.1\r\nhost: ${target.host}\r\nauthorization: Bearer ${token}\r\n` +
      `content-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
    const connections = Array.from({ length: extent.concurrency }, () => new Connection(target))
    const machines: string[] = []
    const refusals: Loaded['refusals'] = new Map()
    const slice = await repeat(extent, async strand => {
      const { status, text } = await (connections[strand] as Connection).ask(request)
      const machine = /"machines":\[\{"id":"([^"]+)"/.exec(text)?.[1]
      if (status === 201 && machine !== undefined) machines.push(machine)
      else {
        const kind = `${status} ${/"code":"([^"]+)"/.exec(text)?.[1] ?? 'unreadable'}`
        refusals.set(kind, { count: (refusals.get(kind)?.count ?? 0) + 1, example: text.slice(0, 500) })
      }
      return true
    })
    for (const connection of connections) connection.end()
    return { ...slice, machines, refusals }
  },
}

export type LoadHelper = typeof load
beHelper<LoadHelper>(load)
