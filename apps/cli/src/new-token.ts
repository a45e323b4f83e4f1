// Tokens that are made here: 256 random bits, shown once; the federation gets the hash, and until when it counts.
import { hash, randomBytes } from 'node:crypto'
import { durationMs, durationPattern } from '@muster/shared/duration'
import { InvalidArgumentError } from 'commander'
import type { Cli } from './cli.ts'

/** A token, and what its document says of it; good for so many milliseconds. */
export function newToken(cli: Cli, lifetimeMs: number) {
  const token = randomBytes(32).toString('base64url')
  const [createdAt, expiresAt] = [cli.now(), cli.now() + lifetimeMs].map(ms => new Date(ms).toISOString()) as [string, string]
  return { token, sha256: hash('sha256', token), createdAt, expiresAt }
}

/** Reads how long a token is to be good; `longest` is both the limit and what the refusal says. */
export function expiry(longest: { readonly duration: string; readonly words: string }, example: string): (text: string) => number {
  return text => {
    if (durationPattern.test(text) && durationMs(text) <= durationMs(longest.duration)) return durationMs(text)
    throw new InvalidArgumentError(`must be a duration such as ${example}, ${longest.words} at most.`)
  }
}
