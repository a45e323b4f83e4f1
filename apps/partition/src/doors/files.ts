// Kernels and images, as the scripts name them. The library answers ranges and conditions (RFC 9110); here is a bound on how many files are on their way
// at once, so that a herd of machines does not hold up the scripts, and tags by digest, so that the pieces of an image are of one image.
import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http'
import type { Log } from '@muster/server/log'
import { Refusal } from '@muster/shared/errors'
import send from 'send'
import type { Core } from '../domain/core.ts'
import { FilePump } from './file-pump.ts'
import { refuse } from './machine-requests.ts'

export const filesPath = '/boot/files'
/** Files on their way at once: a network of 10 Gbit/s is full long before. Each costs a descriptor and a buffer, and a turn before the next script. */
const transfersMax = 128
/** Loaders that wait cost a connection each: more than a partition has machines. */
const waitingMax = 4_000
/** iPXE waits for longer; who has waited for so long is told to come again. */
const waitMs = 60_000
const againSeconds = 5

/** Serves the folder of the catalogue: GET and HEAD. */
export function filesDoor(core: Core): RequestListener {
  const door = { core, gate: new Gate(transfersMax, waitingMax), pump: new FilePump() }
  return (incoming, outgoing) => {
    serve(door, incoming, outgoing).catch((error: unknown) => {
      core.log.error({ err: error, path: incoming.url }, 'a file could not be sent')
      outgoing.destroy()
    })
  }
}

interface Door {
  readonly core: Core
  readonly gate: Gate
  readonly pump: FilePump
}

async function serve(door: Door, incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
  const { method } = incoming
  if (method !== 'GET' && method !== 'HEAD')
    return refuse(outgoing, new Refusal('method-not-allowed', `files are read, not ${method}`), { allow: 'GET, HEAD' })
  const left = new AbortController()
  outgoing.once('close', () => left.abort())
  const place = await door.gate.enter(AbortSignal.any([left.signal, AbortSignal.timeout(waitMs)]))
  if (place === 'full') {
    const refusal = new Refusal('overloaded', `${transfersMax} files are on their way to machines, and no place became free`)
    return refuse(outgoing, refusal, { 'retry-after': String(againSeconds) })
  }
  left.signal.addEventListener('abort', () => place.leave())
  if (left.signal.aborted) return place.leave()
  sendFile(door, incoming, outgoing, left.signal)
}

function sendFile({ core: { catalogue, log }, pump }: Door, incoming: IncomingMessage, outgoing: ServerResponse, left: AbortSignal): void {
  const name = incoming.url?.replace(/\?.*$/, '').slice(filesPath.length) ?? ''
  const image = catalogue.images.find(({ path: known }) => `/${known}` === name)
  // Others get one by time and size.
  if (image) outgoing.setHeader('ETag', `"${image.sha256}"`)
  const options = { root: catalogue.folder, dotfiles: 'deny', index: false, cacheControl: false } as const
  const absent = () => refuse(outgoing, new Refusal('not-found', `there is no file ${name}`))
  const sending = send(incoming, name, options)
    .on('directory', absent)
    .on('error', (error: Error & { status?: number }) => fail(error, { absent, log, name, outgoing }))
  // The library has said everything in the head by then; only the bytes are ours.
  sending.stream = (path, { start }: { start: number }) => {
    const bytes = Number(outgoing.getHeader('content-length'))
    pump.send({ path, start, bytes }, outgoing, left).catch((error: Error) => fail(error, { absent, log, name, outgoing }))
  }
  sending.pipe(outgoing)
}

function fail(
  error: Error & { status?: number },
  { absent, log, name, outgoing }: { absent: () => void; log: Log; name: string; outgoing: ServerResponse },
): void {
  const { status = 500 } = error
  if (outgoing.headersSent) {
    log.error({ err: error, file: name }, 'a file broke off on its way')
    outgoing.destroy()
  } else if (status === 416) outgoing.writeHead(416).end()
  else if (status < 500) absent()
  else {
    log.error({ err: error, file: name }, 'a file could not be read')
    refuse(outgoing, new Refusal('internal', `the file ${name} could not be read`))
  }
}

interface Place {
  /** Again is harmless. */
  leave(): void
}

/** So many at once; others wait in the order they came, so many of them at most. */
export class Gate {
  #free: number
  readonly #waiting = new Set<() => void>()
  readonly #waitingMax: number

  constructor(places: number, waitingMax: number) {
    this.#free = places
    this.#waitingMax = waitingMax
  }

  get waiting(): number {
    return this.#waiting.size
  }

  /** A place, or `full` where too many wait already, or none came before the signal. */
  async enter(signal: AbortSignal): Promise<Place | 'full'> {
    if (this.#free > 0) return this.#take()
    if (this.#waiting.size >= this.#waitingMax || signal.aborted) return 'full'
    return new Promise(resolve => {
      const turn = () => {
        signal.removeEventListener('abort', giveUp)
        this.#waiting.delete(turn)
        resolve(this.#take())
      }
      const giveUp = () => {
        this.#waiting.delete(turn)
        resolve('full')
      }
      this.#waiting.add(turn)
      signal.addEventListener('abort', giveUp, { once: true })
    })
  }

  #take(): Place {
    this.#free -= 1
    let isLeft = false
    return {
      leave: () => {
        if (isLeft) return
        isLeft = true
        this.#free += 1
        for (const turn of this.#waiting) return turn()
      },
    }
  }
}
