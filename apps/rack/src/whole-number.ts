// Numbers as the programs of the rack take them from the command line.
import { InvalidArgumentError } from 'commander'

/** Reads a whole number from `min` to `max`, for an option. The reader throws InvalidArgumentError for anything else. */
export function wholeNumber(min: number, max: number): (text: string) => number {
  return text => {
    const value = Number(text)
    if (!/^\d+$/.test(text) || value < min || value > max) throw new InvalidArgumentError(`must be a whole number from ${min} to ${max}`)
    return value
  }
}
