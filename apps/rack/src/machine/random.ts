// Random numbers that come out the same each time: from a seed and words, so that the next start of a rack finds the same machines.
import { createHash } from 'node:crypto'

/** A generator of numbers from 0 to below 1 (mulberry32) that depends on nothing but these words. */
export function seededRandom(...words: readonly (string | number)[]): () => number {
  let state = seededBytes(4, ...words).readUInt32LE()
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296
  }
}

/** Up to 32 bytes that depend on nothing but these words. */
export function seededBytes(length: number, ...words: readonly (string | number)[]): Buffer {
  return createHash('sha256').update(words.join('\0')).digest().subarray(0, length)
}
