// What clients may ask of a server's doors. Figures only: the settings read them before anything else is loaded.

/** How often one caller may ask. */
export interface RateLimit {
  /** Requests a second, for as long as one likes. */
  readonly perSecond: number
  /** Requests at once, after a pause. */
  readonly atOnce: number
}

export const usualRate: RateLimit = { perSecond: 1_000, atOnce: 5_000 }

/** What a connection may cost. */
export interface ConnectionLimits {
  /** Connections at once, of each of the ports; more are closed as they come. */
  readonly connections: number
  /** The head of a request must be in by then, from the connection's start or the request before. */
  readonly headMs: number
  /** A whole request, body included: 1.5 MB over a poor line. */
  readonly requestMs: number
  /** Who takes nothing of an answer for so long has gone, or holds it up on purpose. */
  readonly unreadMs: number
}

/** All machines of a large partition at once, each with some connections; a descriptor and some 10 KB each. */
export const usualLimits: ConnectionLimits = { connections: 16_384, headMs: 10_000, requestMs: 60_000, unreadMs: 60_000 }
