/**
 * How long the IPMI client waits for what, in milliseconds. The defaults come from measurements of two established clients and
 * from the limits of real BMCs (facts 4.4, 4.5); tests inject shorter ones.
 */
export interface Timers {
  /**
   * First wait for each answer of the session set-up, where the BMC's pace is not known; the second attempt waits twice as long, and so on. Loaded
   * BMCs need 0.5 to 1.5 s for their hashes, and the 400 ms of other clients fail there. See Patience.
   */
  setupMs: number
  /** All attempts of one login together, at a BMC that says nothing at all. */
  loginMs: number
  /** The same at a BMC that answered something: it is there, and one in four logins meets a loss on a path that loses a twentieth. */
  heardLoginMs: number
  /** An attempt abandoned at Open Session may occupy a slot of the BMC (3 s on OpenBMC, 60 s on Cisco): a few in this time. */
  halfOpenMs: number
  /** Pause before asking a closed port once more: a BMC restarting its network closes it for a moment. */
  portClosedMs: number
  /** First wait for a command's answer; grows by half with each repeat, and with the measured round trip. */
  commandMs: number
  /** After this long without an answer in a kept session, log in afresh. */
  staleMs: number
  /** One command with all its repeats. */
  commandLimitMs: number
  /** A command that must not be sent twice waits this long for its one answer. */
  onceMs: number
  /** First pause after "busy"; doubles. */
  busyMs: number
  /** Each page of Get Channel Cipher Suites, one try. */
  probeMs: number
  /** Close Session: sent once; some BMCs never answer it. */
  closeMs: number
  /**
   * An idle session is kept this long. BMCs drop it after 30 to 60 s and have only 4 to 15 slots, so at most 25,000. 0 closes after
   * each call.
   */
  keepAliveMs: number
}

export const defaultTimers: Readonly<Timers> = {
  setupMs: 1000,
  loginMs: 15_000,
  heardLoginMs: 40_000,
  halfOpenMs: 30_000,
  portClosedMs: 300,
  commandMs: 500,
  staleMs: 3000,
  commandLimitMs: 12_000,
  onceMs: 5000,
  busyMs: 250,
  probeMs: 500,
  closeMs: 300,
  keepAliveMs: 20_000,
}

export const keepAliveMsMax = 25_000
