// Loops look at the database on a schedule; a bell only shortens the wait. Losing a ring loses time, never work.

import type { Log } from '@muster/server/log'
import { refusalOfDatabase } from '../db/connect.ts'

export class Bell {
  #waiting = new Set<() => void>()
  #isRung = false

  /** Wakes who waits; if nobody does, the next wait ends at once. */
  ring(): void {
    if (this.#waiting.size === 0) this.#isRung = true
    for (const wake of this.#waiting) wake()
  }

  /** Forgets a ring that nobody waited for: for who is about to look anyway. */
  forget(): void {
    this.#isRung = false
  }

  /** Resolves after a ring, `limitMs`, or the signal, whichever is first. */
  wait(limitMs: number, signal: AbortSignal): Promise<void> {
    if (this.#isRung || signal.aborted) {
      this.#isRung = false
      return Promise.resolve()
    }
    return new Promise(resolve => {
      const wake = () => {
        clearTimeout(timer)
        signal.removeEventListener('abort', wake)
        this.#waiting.delete(wake)
        resolve()
      }
      const timer = setTimeout(wake, limitMs)
      signal.addEventListener('abort', wake, { once: true })
      this.#waiting.add(wake)
    })
  }
}

export interface Loop {
  name: string
  bell: Bell
  /** Milliseconds between looks when nothing rings. */
  everyMs: number
  signal: AbortSignal
  log: Log
  /** One look. `more`: there is more to do at once. */
  look: () => Promise<'more' | 'idle'>
}

const troubleMs = { first: 250, limit: 5_000 }

/** Runs until the signal. An error is logged and waited out with growing, jittered pauses; the loop never ends by one. */
export async function runLoop(loop: Loop): Promise<void> {
  let pauseMs: number = troubleMs.first
  while (!loop.signal.aborted) {
    try {
      const outcome = await loop.look()
      pauseMs = troubleMs.first
      if (outcome === 'idle') await loop.bell.wait(loop.everyMs, loop.signal)
    } catch (error) {
      if (loop.signal.aborted) return
      loop.log.error({ err: refusalOfDatabase(error), loop: loop.name, againMs: pauseMs }, `${loop.name} stumbled; it goes on`)
      await new Bell().wait(pauseMs * (0.5 + Math.random()), loop.signal)
      pauseMs = Math.min(pauseMs * 2, troubleMs.limit)
    }
  }
}
