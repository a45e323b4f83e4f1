// A copy of the global configuration, as it travels and is kept: a text and its signature. The text is signed as it stands, so nobody has to
// agree on how JSON is written. Of two copies of one history the one with the higher generation is true; generations never fall.
import { z } from 'zod'
import { Refusal } from '../errors.ts'
import { type DocumentKind, type Documents, documentKinds, noDocuments, readDocuments, shownDocument } from './documents.ts'

/** The generation of a federation whose configuration nobody has written yet. */
export const noGeneration = 0

/**
 * How far a refill of a lost database jumps ahead. A partition that is cut off may hold generations that no copy within reach knows of: they
 * must not come back as newer than what was written since.
 */
export const refillJump = 1_000_000

export const signedCopy = z.object({
  /** JSON, see {@link CopyContent}. */
  payload: z.string(),
  /** Ed25519 over the payload, base64. */
  signature: z.string().max(200),
  /** Which of the fronts' keys signed: the public key, hex. */
  key: z.string().regex(/^[0-9a-f]{64}$/),
})
export type SignedCopy = z.infer<typeof signedCopy>

/** SHA-256 in hex. */
export const copyDigest = z.string().regex(/^[0-9a-f]{64}$/)

/** A copy on its way, with what shows that it follows from the one that the other side has. */
export const offeredCopy = signedCopy.extend({
  /** The digests of the payloads between the two generations, oldest first. */
  links: z.array(copyDigest).default([]),
})
export type OfferedCopy = z.infer<typeof offeredCopy>

const lineage = z.object({
  /** The generation with which this history begins: who holds an earlier one takes this by its number alone. */
  since: z.number().int().min(1),
  /** What stands for all that came before (libs/server/src/global/lineage.ts); empty where nothing did. */
  before: copyDigest.or(z.literal('')),
})
/** Where a generation comes from. */
export type Lineage = z.infer<typeof lineage>

const payload = z.object({
  format: z.literal(1),
  generation: z.number().int().min(1),
  changedAt: z.iso.datetime(),
  changedBy: z.string(),
  note: z.string(),
  lineage: lineage.optional(),
  documents: z.unknown(),
})

export interface CopyContent {
  readonly generation: number
  readonly changedAt: string
  readonly changedBy: string
  readonly note: string
  /** Undefined: a front of a release before this field wrote it. */
  readonly lineage?: Lineage | undefined
  readonly documents: Documents
}

/** The text to sign. */
export function payloadOf(content: CopyContent): string {
  return JSON.stringify({ format: 1, ...content })
}

/** What a payload says, and what of it this release leaves out: see {@link readDocuments}. Throws where it is no payload. */
export function readPayload(text: string): { content: CopyContent; skipped: readonly string[]; beyond: readonly string[] } {
  const { documents: given, format: _, ...head } = payload.parse(JSON.parse(text))
  const { documents, ...left } = readDocuments(given)
  return { content: { ...head, documents }, ...left }
}

/** Some of a configuration's documents, as `config.get` answers them: without what is sealed, or a password. Throws not-found for one that is not there. */
export function documentsOf(
  content: CopyContent | undefined,
  { kind, name }: { kind?: DocumentKind | undefined; name?: string | undefined },
) {
  const { documents = noDocuments, generation: number = noGeneration, changedAt = null, changedBy = '', note: why = '' } = content ?? {}
  const found = documentKinds
    .filter(each => kind === undefined || each === kind)
    .flatMap(each =>
      Object.entries<object>(documents[each]).map(([own, document]) => ({
        kind: each,
        name: own,
        document: shownDocument(each, document),
      })),
    )
    .filter(each => name === undefined || each.name === name)
  if (name !== undefined && found.length === 0)
    throw new Refusal('not-found', `the global configuration (generation ${number}) has no ${kind ?? 'document'} ${name}`)
  return { generation: number, changedAt, changedBy, note: why, documents: found }
}

/** A user's own SSH keys, as `keys.list` answers them. Who has no document has none. */
export function ownKeysOf(content: CopyContent | undefined, name: string) {
  const own = content?.documents.user[name]?.sshKeys ?? {}
  return { items: Object.entries(own).map(([called, key]) => ({ name: called, key })) }
}

/** A copy may be larger than a message of the bus: it is asked for in parts of so many characters, each of a few bytes at most. */
export const copyPartLength = 200_000

/** Asking for a copy newer than `have`, part by part. */
export const copyQuestion = z.object({ have: z.number().int().min(0), part: z.number().int().min(0) })
/** `generation` is what the other side holds; without `text` it has nothing newer. */
export const copyPart = z.object({ generation: z.number().int(), parts: z.number().int(), text: z.string().optional() })
export type CopyPart = z.infer<typeof copyPart>

/** Answers one part of a copy's JSON. */
export function partOf(copy: { generation: number; text: string } | undefined, question: z.infer<typeof copyQuestion>): CopyPart {
  if (copy === undefined || copy.generation <= question.have) return { generation: copy?.generation ?? noGeneration, parts: 0 }
  const parts = Math.ceil(copy.text.length / copyPartLength)
  const text = copy.text.slice(question.part * copyPartLength, (question.part + 1) * copyPartLength)
  return { generation: copy.generation, parts, text }
}

/** The largest copy anybody takes: at a megabyte for ten thousand users, far from it. */
const mostParts = 500

/**
 * Fetches a copy newer than `have` with `ask`; undefined where there is none. A copy that changes while it is fetched is begun again, a few
 * times. Throws where what comes is no copy.
 */
export async function fetchCopy(
  have: number,
  ask: (question: z.infer<typeof copyQuestion>) => Promise<CopyPart>,
): Promise<OfferedCopy | undefined> {
  for (let attempt = 1; attempt <= 3; attempt++) {
    const first = await ask({ have, part: 0 })
    if (first.text === undefined) return undefined
    if (first.parts > mostParts) throw new Error(`a configuration of ${first.parts} parts is larger than any`)
    const texts = [first.text]
    while (texts.length < first.parts) {
      const next = await ask({ have, part: texts.length })
      if (next.text === undefined || next.generation !== first.generation) break
      texts.push(next.text)
    }
    if (texts.length === first.parts) return offeredCopy.parse(JSON.parse(texts.join('')))
  }
  throw new Error('the configuration changed each time it was fetched')
}
