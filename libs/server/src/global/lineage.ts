// Where a generation of the global configuration comes from. Each names, under its signature, one digest of all that came before it; so who holds
// an earlier one can tell whether a newer one follows from it, or was written by fronts whose database had been set back.
import { createHash } from 'node:crypto'
import type { CopyContent, Lineage } from '@muster/shared/global/copy'

/** A generation: its text, and what that says. */
export interface Told {
  readonly payload: string
  readonly content: CopyContent
}

/** SHA-256 in hex: of a payload, what two copies of one generation must agree on. */
export const digestOf = (text: string) => createHash('sha256').update(text).digest('hex')

const joined = (before: string, digest: string) => digestOf(`${before} ${digest}`)

/** A generation and all before it, in one digest. */
const chainOf = ({ payload, content }: Told) => joined(content.lineage?.before ?? '', digestOf(payload))

/** The lineage of what is written after `last`. Where that has none (an older release wrote it, or nobody did), a history begins with `generation`. */
export function lineageAfter(last: Told | undefined, generation: number): Lineage {
  return { since: last?.content.lineage?.since ?? generation, before: last ? chainOf(last) : '' }
}

/** The lineage of what an admin decides to follow `last`, whatever anybody holds: a history begins with `generation`. */
export function lineageAnew(last: Told, generation: number): Lineage {
  return { since: generation, before: chainOf(last) }
}

/**
 * Whether a newer generation follows from the one held; `links` are the digests of the payloads between them, oldest first. It does, too, where
 * its history began after the one held, and where it says nothing: then only its number counts, as it did before there was a lineage.
 */
export function follows(newer: CopyContent, links: readonly string[], held: Told): boolean {
  if (!newer.lineage || held.content.generation < newer.lineage.since) return true
  return links.reduce(joined, chainOf(held)) === newer.lineage.before
}
