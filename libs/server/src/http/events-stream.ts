// events.stream on any backend: reads events.list behind a position again and again, at once when the log has grown, else every second.
// Nothing is queued here: a slow reader leaves the events in the log.
import type { Event } from '@muster/shared/contract/events'
import { parsePosition, positionText } from '@muster/shared/contract/log'
import { errorTable, Refusal } from '@muster/shared/errors'
import { type Asked, type Asker, ask, refusalFor } from './asking.ts'
import { type DoorContext, header } from './incoming.ts'
import type { Plan } from './plan.ts'
import { apiHeaders } from './problems.ts'

/** What a stream shows: an event with the position behind it, or, from time to time, just how far it has read. */
export type StreamItem =
  | { readonly kind: 'event'; readonly id: string; readonly event: Event }
  | { readonly kind: 'idle'; readonly id: string }

export interface StreamInput {
  readonly after?: string | undefined
  readonly machine?: string | undefined
  readonly kind?: string | undefined
}

export interface EventStreams {
  /** Answers with server-sent events. */
  respond(c: DoorContext, input: StreamInput, asker: Asker): Promise<Response>
  /**
   * The items behind `input.after`, without end; from now on where there is no position. The first reading is done when this resolves, so
   * that a refusal is one. Ends when the asker has gone or the door closes.
   */
  open(input: StreamInput, asker: Asker): Promise<AsyncGenerator<StreamItem, void>>
  /** Ends all streams. */
  close(): void
}

/** The log is looked at so often where no notice comes: notices may be lost, by design. */
const pollMs = 1000
const keepAliveMs = 15_000
/** Events read at once, and so the most that is held for one reader. */
const pageSize = 100
/** A stream ends so often; the reader comes back with its position, and with its token, which may have been revoked meanwhile. */
const longestStreamMs = 3_600_000
/** Each open stream reads the log once a second; more of them than this would be a load of its own. */
const mostStreams = 1000

export function createEventStreams(options: Asked & { listPlan: Plan; keepAliveMs?: number }): EventStreams {
  const { backend, listPlan } = options
  const closing = new AbortController()
  let openStreams = 0

  const open = async (input: StreamInput, asker: Asker) => {
    if (openStreams >= mostStreams) throw new Refusal('too-many-requests', `${mostStreams} event streams are open`, { retryAfterMs: 5000 })
    const signal = AbortSignal.any([asker.gone(), closing.signal, AbortSignal.timeout(longestStreamMs)])
    const { after = 'end', ...filter } = input
    const read = async (position: string) =>
      (await ask(options, listPlan, { ...filter, after: position, limit: pageSize }, { ...asker, gone: () => signal })) as {
        items: Event[]
        nextCursor: string
      }
    openStreams++
    const growth = noticeOf(backend)
    let hasEnded = false
    const end = () => {
      if (hasEnded) return
      hasEnded = true
      growth.stop()
      openStreams--
    }
    // Beside the generator's own end: one that was never begun does not run its `finally`.
    signal.addEventListener('abort', end, { once: true })
    try {
      const first = await read(after)
      return follow({ read, first, after, growth, signal, end, onMistake: error => mayGoOn(error, asker) })
    } catch (error) {
      end()
      throw error
    }
  }

  /** A stream outlives what passes by itself, such as a database that restarts; what will not pass ends it. */
  const mayGoOn = (error: unknown, asker: Asker) => {
    const refusal = refusalFor(error, options.log, { requestId: asker.requestId, call: 'events.stream' })
    return errorTable[refusal.code].retryable === 'yes' && refusal.code !== 'internal'
  }

  return {
    open,
    respond: async (c, input, asker) => {
      const headers = { ...apiHeaders, 'content-type': 'text/event-stream', 'x-request-id': asker.requestId, 'x-accel-buffering': 'no' }
      if (c.req.raw.method === 'HEAD') return new Response(null, { headers })
      const items = await open({ ...input, after: header(c, 'last-event-id') ?? input.after }, asker)
      return new Response(eventStream(items, options.keepAliveMs ?? keepAliveMs), { headers })
    },
    close: () => closing.abort(),
  }
}

interface Following {
  readonly read: (position: string) => Promise<{ items: Event[]; nextCursor: string }>
  readonly first: { items: Event[]; nextCursor: string }
  readonly after: string
  readonly growth: ReturnType<typeof noticeOf>
  readonly signal: AbortSignal
  readonly end: () => void
  readonly onMistake: (error: unknown) => boolean
}

async function* follow({ read, first, after, growth, signal, end, onMistake }: Following): AsyncGenerator<StreamItem, void> {
  try {
    let page = first
    let before = after
    while (!signal.aborted) {
      const position = new Map(parsePosition(before))
      for (const event of page.items) {
        position.set(event.partition, event.seq)
        yield { kind: 'event', id: positionText(position), event }
        if (signal.aborted) return
      }
      before = page.nextCursor
      yield { kind: 'idle', id: before }
      if (page.items.length < pageSize) await growth.next(pollMs, signal)
      if (signal.aborted) return
      try {
        page = await read(before)
      } catch (error) {
        if (signal.aborted || !onMistake(error)) return
        page = { items: [], nextCursor: before }
      }
    }
  } finally {
    end()
  }
}

/** Remembers notices that come while nobody waits, so that none is missed between a reading and the next wait. */
function noticeOf(backend: Asked['backend']) {
  let hasGrown = false
  let wake: (() => void) | undefined
  const stop = backend.onLogGrowth(() => {
    hasGrown = true
    wake?.()
  })
  return {
    stop,
    /** Resolves at the next notice, after `limitMs`, or on abort. */
    next: (limitMs: number, signal: AbortSignal) =>
      new Promise<void>(resolve => {
        const done = () => {
          clearTimeout(timer)
          signal.removeEventListener('abort', done)
          wake = undefined
          hasGrown = false
          resolve()
        }
        const timer = setTimeout(done, limitMs)
        wake = done
        signal.addEventListener('abort', done)
        if (hasGrown || signal.aborted) done()
      }),
  }
}

const encoder = new TextEncoder()

/**
 * The items as server-sent events. Read on demand only: while the reader's buffers are full nothing is asked of the log. Comments keep the
 * line alive; they carry the position where reading went on without an event to show (a filter), so that a reconnect goes on from there.
 */
function eventStream(items: AsyncGenerator<StreamItem, void>, everyMs: number): ReadableStream<Uint8Array> {
  let timer: NodeJS.Timeout | undefined
  let shown: string | undefined
  let reached: string | undefined
  const keepAlive = (controller: ReadableStreamDefaultController<Uint8Array>) => {
    if ((controller.desiredSize ?? 0) <= 0) return
    const moved = reached !== undefined && reached !== shown
    shown = reached
    controller.enqueue(encoder.encode(`: still here\n${moved ? `id: ${reached}\n` : ''}\n`))
  }
  return new ReadableStream({
    start: controller => {
      // An answer to look at before the first event comes: proxies and clients learn that the stream is open.
      controller.enqueue(encoder.encode(': open\nretry: 1000\n\n'))
      timer = setInterval(() => keepAlive(controller), everyMs)
    },
    pull: async controller => {
      for (;;) {
        const { value, done } = await items.next()
        if (done) {
          clearInterval(timer)
          controller.close()
          return
        }
        reached = value.id
        if (value.kind === 'idle') continue
        shown = value.id
        controller.enqueue(encoder.encode(`id: ${value.id}\ndata: ${JSON.stringify(value.event)}\n\n`))
        return
      }
    },
    cancel: async () => {
      clearInterval(timer)
      await items.return()
    },
  })
}
