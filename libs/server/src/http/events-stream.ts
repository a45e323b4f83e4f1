// events.stream on any backend: reads events.list behind a position again and again, at once when the log has grown, else every second.
// Nothing is queued here: a slow reader leaves the events in the log.
import { type Caller, isSameCaller } from '@muster/shared/contract/call'
import type { Event } from '@muster/shared/contract/events'
import { parsePosition, positionText } from '@muster/shared/contract/log'
import { errorTable, Refusal } from '@muster/shared/errors'
import { type Asked, type Asker, ask, askAgainMs, refusalFor } from './asking.ts'
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
   * that a refusal is one. Ends when the asker has gone or the door closes. Throws {@link Refusal} when its asker may no longer read, and for whatever else
   * ends it that asking again would not cure.
   */
  open(input: StreamInput, asker: Asker): Promise<AsyncGenerator<StreamItem, void>>
  /** Ends all streams. */
  close(): void
}

/** The log is looked at so often where no notice comes: notices may be lost, by design. */
const pollMs = askAgainMs
const keepAliveMs = 15_000
/** Events read at once, and so the most that is held for one reader. */
const pageSize = 100
/** A stream ends so often; the reader comes back with its position. */
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
    const read = async (position: string): Promise<Page> => {
      const caller = asker.again()
      const input = { ...filter, after: position, limit: pageSize }
      const answer = await ask(options, listPlan, input, { ...asker, caller, gone: () => signal })
      return { ...(answer as Pick<Page, 'items' | 'nextCursor'>), caller }
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
      return follow({ read, first, after, again: asker.again, growth, signal, end, whatEnds: error => whatEnds(error, asker) })
    } catch (error) {
      end()
      throw error
    }
  }

  /** A stream outlives what passes by itself, such as a database that restarts; what will not pass ends it. */
  const whatEnds = (error: unknown, { requestId }: Asker) => {
    const refusal = refusalFor(error, options.log, { requestId, call: 'events.stream' })
    return errorTable[refusal.code].retryable === 'yes' && refusal.code !== 'internal' ? undefined : refusal
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

/** Events as `caller` may see them. */
interface Page {
  readonly items: readonly Event[]
  readonly nextCursor: string
  readonly caller: Caller
}

interface Following {
  readonly read: (position: string) => Promise<Page>
  readonly first: Page
  readonly after: string
  /** See {@link Asker}. */
  readonly again: () => Caller
  readonly growth: ReturnType<typeof noticeOf>
  readonly signal: AbortSignal
  readonly end: () => void
  readonly whatEnds: (error: unknown) => Refusal | undefined
}

async function* follow(following: Following): AsyncGenerator<StreamItem, void> {
  const { read, first, after, again, growth, signal, end, whatEnds } = following
  try {
    let page = first
    let before = after
    while (!signal.aborted) {
      const position = new Map(parsePosition(before))
      let shown = 0
      for (const event of page.items) {
        // A reader may take its time over a page: what was read for one who might see more is not shown, but read anew.
        if (!isSameCaller(again(), page.caller)) break
        position.set(event.partition, event.seq)
        yield { kind: 'event', id: positionText(position), event }
        if (signal.aborted) return
        shown++
      }
      const isWhole = shown === page.items.length
      before = isWhole ? page.nextCursor : shown === 0 ? before : positionText(position)
      yield { kind: 'idle', id: before }
      if (isWhole && page.items.length < pageSize) await growth.next(pollMs, signal)
      if (signal.aborted) return
      try {
        page = await read(before)
      } catch (error) {
        if (signal.aborted) return
        const refusal = whatEnds(error)
        if (refusal) throw refusal
        page = { ...page, items: [], nextCursor: before }
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
        const { value, done } = await items.next().catch(error => {
          // The reader comes back, and is refused as any request is; who looks at the bare stream reads it here.
          if (!(error instanceof Refusal)) throw error
          controller.enqueue(encoder.encode(`: ${error.code}: ${error.message.replace(/\s+/g, ' ')}\n\n`))
          return { value: undefined, done: true as const }
        })
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
