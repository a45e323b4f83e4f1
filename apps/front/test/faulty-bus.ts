// A bus through which a partition hears and speaks badly: questions that never arrive, answers that are lost, and both that come late.
// It stands between any partition, a model or a real one, and its bus.
import type { Bus, BusMessage } from '@muster/shared/bus/bus'
import { problemOf, Refusal } from '@muster/shared/errors'

/**
 * What happens to one question. `deaf`: it is not heard; `mute`: it is done and not answered; `sick`: it is refused for a trouble of the
 * partition's own, before or after it was done; `late`: it is heard after so long; `slow`: its answer leaves after so long.
 */
export type Fault = 'none' | 'deaf' | 'mute' | { readonly sick: 'before' | 'after' } | { readonly late: number } | { readonly slow: number }

const trouble = Buffer.from(JSON.stringify({ v: 1, problem: problemOf(new Refusal('database-away', 'the database does not answer')) }))

export interface FaultyBus extends Bus {
  /** The faults of the questions to come, in their order; afterwards all goes well. */
  plan(faults: readonly Fault[]): void
  /** The fault of the next question of this call. */
  planCall(call: string, fault: Fault): void
  /** While cut off nothing is heard or said, and what is late by then is lost. */
  cutOff(): void
  heal(): void
}

/** Wraps `bus`. Only questions suffer faults; notices suffer from being cut off. */
export function createFaultyBus(bus: Bus): FaultyBus {
  let faults: Fault[] = []
  const callFaults = new Map<string, Fault>()
  let isCutOff = false

  const nextFault = ({ data }: BusMessage): Fault => {
    if (callFaults.size > 0) {
      const { call } = JSON.parse(Buffer.from(data).toString()) as { call?: string }
      const fault = callFaults.get(call ?? '')
      callFaults.delete(call ?? '')
      if (fault !== undefined) return fault
    }
    return faults.shift() ?? 'none'
  }

  const hear = (message: BusMessage, handle: (message: BusMessage) => void): void => {
    const { reply } = message
    if (isCutOff) return
    const fault = reply ? nextFault(message) : 'none'
    const answer = (data: Uint8Array) => {
      if (!isCutOff) reply?.(data)
    }
    const later = (ms: number, act: () => void) => {
      setTimeout(() => {
        if (!isCutOff) act()
      }, ms)
    }
    if (!reply) handle(message)
    else if (fault === 'mute') handle({ ...message, reply: () => undefined })
    else if (fault === 'none') handle({ ...message, reply: answer })
    else if (fault === 'deaf') return
    else if ('sick' in fault) {
      if (fault.sick === 'before') answer(trouble)
      else handle({ ...message, reply: () => answer(trouble) })
    } else if ('slow' in fault) handle({ ...message, reply: data => later(fault.slow, () => answer(data)) })
    else {
      // A copy: the receive buffer is not ours for so long.
      const kept = { ...message, data: message.data.slice(), reply: answer }
      later(fault.late, () => handle(kept))
    }
  }

  return {
    maxPayloadBytes: bus.maxPayloadBytes,
    publish: (subject, data) => {
      if (!isCutOff) bus.publish(subject, data)
    },
    subscribe: (subject, options, handle) => bus.subscribe(subject, options, message => hear(message, handle)),
    request: (subject, data, options) => bus.request(subject, data, options),
    gather: (subject, data, options) => bus.gather(subject, data, options),
    isConnected: () => bus.isConnected(),
    describe: () => bus.describe(),
    onStatus: listener => bus.onStatus(listener),
    close: () => bus.close(),
    plan: next => {
      faults = [...next]
    },
    planCall: (call, fault) => void callFaults.set(call, fault),
    cutOff: () => {
      isCutOff = true
    },
    heal: () => {
      isCutOff = false
      faults = []
      callFaults.clear()
    },
  }
}
