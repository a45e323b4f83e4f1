/** What all sessions with one BMC share: whose turn it is, and what was learned about it. Losing it costs some refused requests. */
export interface BmcMemory {
  /** Settles when the last call in line has ended: one request at a time per BMC. */
  queue: Promise<unknown>
  /** Whether the service has no sessions to log in to. */
  login: 'session' | 'basic'
  /** The form of version tag that the last change was accepted with. */
  etagForm: EtagForm | undefined
  /** Reset types that the service refused although nothing said that it would. */
  refusedResets: Set<string>
  /** Properties of Boot that it does not take. */
  refusedBootFields: Set<string>
  /** The last order, whose effect may lag 15 s behind: till then an opposite state that is read proves nothing. */
  lastOrder: { wanted: 'on' | 'off'; at: number } | undefined
}

/**
 * Ways to say which version of a resource is changed, in the order tried: the header as it came; as a strong tag (weak ones never match by
 * RFC 9110, and some services quote twice); the body's own; nothing at all; any.
 */
export const etagForms = ['header', 'strong', 'body', 'none', 'any'] as const
export type EtagForm = (typeof etagForms)[number]

/** A BMC nothing is known about. */
export function emptyMemory(): BmcMemory {
  return {
    queue: Promise.resolve(),
    login: 'session',
    etagForm: undefined,
    refusedResets: new Set(),
    refusedBootFields: new Set(),
    lastOrder: undefined,
  }
}

/** BMCs beyond this many are forgotten, oldest first. */
const memoriesMax = 10_000

/** The memory of the BMC at that origin. */
export function memoryOf(memories: Map<string, BmcMemory>, origin: string): BmcMemory {
  const memory = memories.get(origin) ?? emptyMemory()
  memories.delete(origin)
  memories.set(origin, memory)
  for (const oldest of memories.keys()) {
    if (memories.size <= memoriesMax) break
    memories.delete(oldest)
  }
  return memory
}
