/**
 * Which session sequence numbers a receiver takes: each once, and late ones up to 31 behind the highest (IPMI v2.0 6.12.13). Ask only
 * after the authcode is verified: a forged packet must not move the window.
 */
export class ReceiveWindow {
  #highest = 0
  /** Bit n stands for highest - n. */
  #seen = 1

  /**
   * Whether this number is new and recent; it then counts as seen. Jumps ahead are taken up to half the number space: replies to
   * our repeats may all be lost, some boards count in twos (ASRock), and what is newer than everything seen cannot be a replay.
   */
  take(sequence: number): boolean {
    const ahead = (sequence - this.#highest) | 0
    if (ahead > 0) {
      this.#seen = ahead > 31 ? 1 : (this.#seen << ahead) | 1
      this.#highest = sequence
      return true
    }
    const bit = 1 << -ahead
    if (ahead <= -32 || this.#seen & bit) return false
    this.#seen |= bit
    return true
  }
}
