/** How long the Redfish client waits for what, in milliseconds. Tests inject shorter ones. */
export interface Timers {
  /** TCP and TLS together. A BMC's processor needs 1 to 4 s for a handshake while it is busy. */
  connectMs: number
  /** One request from its first byte to the answer's last. Services that have just started take some 20 s for a computer system. */
  requestMs: number
  /** One call with all its repeats, tasks and looks. */
  callMs: number
  /** First pause before a repeat; doubles, and a quarter of it is left to chance. */
  retryMs: number
  /** All repeats of one request together, so that a service that is always busy is told from one that is busy now. */
  busyMs: number
  /** The same where the firmware holds the settings until POST is over (HPE): minutes. callMs does not count then. */
  postMs: number
  /** A longer Retry-After is cut to this. */
  retryAfterMaxMs: number
  /** Between two looks at a task or a power state, where the service does not say. */
  pollMs: number
  /** A task of a power order is left to itself after this: the order was accepted, and the power state tells the rest. */
  orderTaskMs: number
  /** A task of a settings change must be over by then. */
  settingsTaskMs: number
  /** Until a machine that was switched off is seen off, where a cycle is made of two orders. Boards take 1 to 15 s. */
  offMs: number
  /** How often a boot override is read again, each after pollMs, before it counts as not kept. */
  readBacks: number
  /** Logging out, at most. */
  closeMs: number
  /** A connection nobody uses is closed after this. */
  socketIdleMs: number
  /** A login nobody uses is given back after this: services have few (4 to 16) and keep them for half an hour. */
  sessionIdleMs: number
}

export const defaultTimers: Readonly<Timers> = {
  connectMs: 10_000,
  requestMs: 30_000,
  callMs: 120_000,
  retryMs: 1000,
  busyMs: 45_000,
  postMs: 240_000,
  retryAfterMaxMs: 30_000,
  pollMs: 1000,
  orderTaskMs: 15_000,
  settingsTaskMs: 60_000,
  offMs: 20_000,
  readBacks: 3,
  closeMs: 5000,
  socketIdleMs: 60_000,
  sessionIdleMs: 300_000,
}
