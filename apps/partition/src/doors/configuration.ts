// The configuration door: asks the fronts for a newer global configuration when one is announced, and from time to time, so that losing a
// notice loses seconds. Nothing but a newer, signed copy comes in; nothing goes out.
import type { Bus, BusSubscription } from '@muster/shared/bus/bus'
import { BusError } from '@muster/shared/bus/bus'
import { configurationNotice, copyReply, copyRequest, protocolVersion, subjects } from '@muster/shared/bus/protocol'
import { fetchCopy } from '@muster/shared/global/copy'
import type { z } from 'zod'
import { Bell, runLoop } from '../domain/bell.ts'
import type { Core } from '../domain/core.ts'

/** Who was away asks at the latest after this time; who is there is told at once. */
const lookEveryMs = 3_000
const askLimitMs = 2_000
/** What was announced may not have reached the front that happens to answer: it is asked again soon, a few times. */
const again = { pauseMs: 300, times: 10 }

export interface ConfigurationDoor {
  /** Ends with the last look. */
  close(): Promise<void>
}

export function openConfigurationDoor({ core, bus }: { core: Core; bus: Bus }): ConfigurationDoor {
  const { configuration, log } = core
  const bell = new Bell()
  const stopping = new AbortController()
  let subscription: BusSubscription | undefined
  let announced = 0

  const ask = async (question: Omit<z.input<typeof copyRequest>, 'v'>) => {
    const request = copyRequest.parse({ v: protocolVersion, ...question, ...(configuration.held && { digest: configuration.held.digest }) })
    const reply = await bus.request(subjects.configurationCopy, Buffer.from(JSON.stringify(request)), {
      timeoutMs: askLimitMs,
      signal: stopping.signal,
    })
    const part = copyReply.parse(JSON.parse(Buffer.from(reply).toString()))
    configuration.heard(part)
    return part
  }
  const look = async () => {
    // Another replica may have taken it.
    await configuration.reload()
    try {
      for (let time = 1; time <= again.times; time++) {
        const copy = await fetchCopy(configuration.generation, ask)
        if (copy) await configuration.take(copy)
        if (configuration.generation >= announced || stopping.signal.aborted) break
        await new Bell().wait(again.pauseMs * (0.5 + Math.random()), stopping.signal)
      }
      announced = 0
    } catch (error) {
      // No front, no link: a partition needs neither. It is asked again.
      if (!(error instanceof BusError)) throw error
    }
    return 'idle' as const
  }
  bus
    .subscribe(subjects.configuration, {}, ({ data }) => {
      const notice = configurationNotice.safeParse(parsed(data))
      if (!notice.success || notice.data.generation <= configuration.generation) return
      announced = Math.max(announced, notice.data.generation)
      bell.ring()
    })
    .then(made => {
      if (stopping.signal.aborted) made.stop()
      else subscription = made
    })
    .catch(error => {
      if (!stopping.signal.aborted) log.error({ err: error }, 'this partition cannot hear of new configurations; it asks from time to time')
    })
  const stopListening = bus.onStatus(status => status === 'up' && bell.ring())
  const loop = runLoop({ name: 'global configuration', bell, everyMs: lookEveryMs, signal: stopping.signal, log, look })
  return {
    close: async () => {
      stopping.abort()
      stopListening()
      subscription?.stop()
      await loop
    },
  }
}

function parsed(data: Uint8Array): unknown {
  try {
    return JSON.parse(Buffer.from(data).toString())
  } catch {
    // Not JSON: the schema refuses undefined.
    return undefined
  }
}
