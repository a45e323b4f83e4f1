// What /metrics tells: Node's own figures, and how long requests took by call and status. Never a machine's id: a label per machine would be
// a time series per machine.
import { collectDefaultMetrics, Histogram, Registry } from 'prom-client'

export interface Metrics {
  /** For the server's own figures, which go out on the same page. */
  readonly registry: Registry
  /** Counts one request. `call`: the call's name, or the door's (`boot`, `trpc`). */
  observe(call: string, status: number, seconds: number): void
  /** The page, in Prometheus' text format. */
  page(): Promise<string>
}

export const metricsContentType = Registry.PROMETHEUS_CONTENT_TYPE

let processRegistry: Registry | undefined

/**
 * Figures of the process: one registry for all servers in it, made when first asked for. They hold a native timer and an observer of the
 * garbage collector that cannot be stopped, so they must not be made once per server.
 */
function processMetrics(): Registry {
  if (!processRegistry) {
    processRegistry = new Registry()
    collectDefaultMetrics({ register: processRegistry })
  }
  return processRegistry
}

/** Metrics of one server. Several servers may live in one process (tests, the rack): each has a registry of its own. */
export function createMetrics(): Metrics {
  const registry = new Registry()
  const duration = new Histogram({
    name: 'muster_http_request_seconds',
    help: 'How long requests took, by call and HTTP status.',
    labelNames: ['call', 'status'] as const,
    // From an answer out of memory to a call that waits an hour.
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 3600],
    registers: [registry],
  })
  // A labelled child is kept per pair: looking the labels up again costs more than the rest of an observation.
  const children = new Map<string, ReturnType<typeof duration.labels>>()
  return {
    registry,
    observe: (call, status, seconds) => {
      const key = `${call} ${status}`
      let child = children.get(key)
      if (!child) {
        child = duration.labels(call, String(status))
        children.set(key, child)
      }
      child.observe(seconds)
    },
    page: async () => (await processMetrics().metrics()) + (await registry.metrics()),
  }
}
