// Which session sequence numbers a BMC takes: each once, at most 15 behind and 16 ahead of the highest seen (IPMI v2.0 6.12.13).
// Stricter than the console's window on purpose: boards drop what jumps further, and a console must live with that.

const behindMax = 15
const aheadMax = 16

export class SequenceWindow {
  #highest = 0
  /** Bit n stands for highest - n. */
  #seen = 1

  /** Whether this number is new and near; it then counts as seen. Ask only after the authcode is verified. */
  take(sequence: number): boolean {
    const ahead = (sequence - this.#highest) | 0
    if (ahead > aheadMax || ahead < -behindMax || sequence === 0) return false
    if (ahead > 0) {
      this.#seen = (this.#seen << ahead) | 1
      this.#highest = sequence
      return true
    }
    const bit = 1 << -ahead
    if (this.#seen & bit) return false
    this.#seen |= bit
    return true
  }
}
