// The life of a server process: start, signals, an orderly stop, and a loud end for what nobody caught.
import type { Log } from './log.ts'

/** Registers how to stop what was just started. Called in order of start; stops run in reverse. */
export type Own = (name: string, stop: () => Promise<void> | void) => void

export interface MainOptions {
  readonly log: Log
  /** Starts everything; registers each part as soon as it runs, so that a failed start is undone too. */
  readonly start: (own: Own) => Promise<void>
  /** How long all stops together may take before the process ends regardless. */
  readonly stopLimitMs?: number
}

/**
 * Runs a server until SIGTERM or SIGINT: then stops its parts in reverse order, once, and ends with 0. A second signal ends at once with 1, as
 * do a failed start, a stop over its limit, and any error that nobody caught: a process in an unknown state must not go on.
 */
export async function runMain({ log, start, stopLimitMs = 30_000 }: MainOptions): Promise<void> {
  const parts: { name: string; stop: () => Promise<void> | void }[] = []

  const stopAll = async () => {
    for (let part = parts.pop(); part; part = parts.pop()) {
      try {
        log.debug({ part: part.name }, 'stopping')
        await part.stop()
      } catch (error) {
        // The other parts still want to be stopped.
        log.error({ err: error, part: part.name }, 'a part did not stop cleanly')
        process.exitCode = 1
      }
    }
  }

  /** From the moment somebody wants the process to end, which may be in the middle of its start. */
  const limitEnd = () => {
    const limit = setTimeout(() => {
      log.fatal({ stopLimitMs }, 'not stopped in time; ending regardless')
      process.exit(1)
    }, stopLimitMs)
    limit.unref()
  }

  const asked = new AbortController()
  for (const signal of ['SIGTERM', 'SIGINT'] as const)
    process.on(signal, () => {
      if (asked.signal.aborted) {
        log.warn({ signal }, 'a second signal: ending at once')
        process.exit(1)
      }
      log.info({ signal }, 'stopping')
      limitEnd()
      asked.abort()
    })
  for (const event of ['uncaughtException', 'unhandledRejection'] as const)
    process.on(event, error => {
      log.fatal({ err: error, event }, 'an error nobody caught; ending')
      process.exit(1)
    })

  try {
    await start((name, stopPart) => parts.push({ name, stop: stopPart }))
  } catch (error) {
    log.fatal({ err: error }, 'the start failed')
    limitEnd()
    await stopAll()
    process.exit(1)
  }
  log.info('started')
  if (!asked.signal.aborted) await new Promise<void>(resolve => asked.signal.addEventListener('abort', () => resolve(), { once: true }))
  await stopAll()
  log.info('stopped')
  process.exit()
}
