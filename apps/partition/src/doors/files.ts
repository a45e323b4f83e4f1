// Kernels and images, as the scripts name them. The library streams them, whole or by ranges; here is what it does not do: tags by digest, so that the
// pieces of a file are of one file, and a bound on how many are on their way at once, so that a herd of machines does not hold up the scripts.
import { stat } from 'node:fs/promises'
import path from 'node:path'
import { serveStatic } from '@hono/node-server/serve-static'
import type { DoorEnv } from '@muster/server/http/incoming'
import { Refusal } from '@muster/shared/errors'
import { Hono, type MiddlewareHandler } from 'hono'
import type { Core } from '../domain/core.ts'

/** Files on their way at once: a network of 10 Gbit/s is full long before. Each costs a descriptor and a buffer of 64 KiB. */
const transfersMax = 128
/** Loaders that wait cost a connection each: more than a partition has machines. */
const waitingMax = 4_000
/** iPXE waits for longer; who has waited for so long is told to come again. */
const waitMs = 60_000
const againSeconds = 5

export function filesDoor(core: Core): Hono<DoorEnv> {
  const app = new Hono<DoorEnv>()
  app.use(tagged(core))
  app.use(admitted(new Gate(transfersMax, waitingMax)))
  app.get('*', serveStatic({ root: core.catalogue.folder, rewriteRequestPath: name => name.replace(/^\/boot\/files/, '') }))
  return app
}

/** ETag, If-None-Match and If-Range (RFC 9110, 8.8.3 and 13.1): by digest for images, by time and size for what has none. */
function tagged(core: Core): MiddlewareHandler<DoorEnv> {
  return async (c, next) => {
    const name = c.req.path.replace(/^\/boot\/files\//, '')
    const tag = await tagOf(core, name)
    if (tag === undefined) return next()
    c.header('ETag', tag)
    c.header('Accept-Ranges', 'bytes')
    if (
      c.req
        .header('if-none-match')
        ?.split(/\s*,\s*/)
        .includes(tag)
    )
      return c.body(null, 304)
    const wanted = c.req.header('if-range')
    // The file is another by now: all of it, not the rest of the old one.
    if (wanted !== undefined && wanted !== tag) {
      const headers = new Headers(c.req.raw.headers)
      headers.delete('range')
      c.req.raw = new Request(c.req.raw, { headers })
    }
    return next()
  }
}

async function tagOf({ catalogue }: Core, name: string): Promise<string | undefined> {
  const image = catalogue.images.find(({ path: known }) => known === name)
  if (image) return `"${image.sha256}"`
  if (name.split('/').some(part => part === '..' || part === '')) return undefined
  const found = await stat(path.join(catalogue.folder, name)).catch(() => undefined)
  return found?.isFile() ? `"${Math.trunc(found.mtimeMs).toString(36)}-${found.size.toString(36)}"` : undefined
}

/** A place in the gate from here to the last byte, or to the end of the connection. */
function admitted(gate: Gate): MiddlewareHandler<DoorEnv> {
  return async (c, next) => {
    if (c.req.method !== 'GET') return next()
    const { outgoing } = c.env
    const left = new AbortController()
    const leave = () => left.abort()
    outgoing.once('close', leave)
    const place = await gate.enter(AbortSignal.any([left.signal, AbortSignal.timeout(waitMs)]))
    if (place === 'full') {
      outgoing.removeListener('close', leave)
      c.header('Retry-After', String(againSeconds))
      throw new Refusal('overloaded', `${transfersMax} files are on their way to machines, and no place became free`)
    }
    outgoing.removeListener('close', leave)
    if (outgoing.destroyed) place.leave()
    else outgoing.once('close', () => place.leave())
    return next()
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
