// Global configuration: the documents that belong to the whole federation. They are written through a front, flow down to every partition, and
// never back. A kind of document is one row of this table; what refers to what is checked over the whole set, in one place.
import { z } from 'zod'
import { roles } from '../contract/call.ts'
import { label, osName, partitionName, timestamp } from '../machine.ts'

/** The roles a person or a token can have. */
const grantedRole = z.enum(roles).exclude(['public'])
export const userName = z
  .string()
  .regex(/^[a-z0-9](?:[a-z0-9._@-]{0,62}[a-z0-9])?$/, 'must be 1 to 64 lower-case letters, digits, dots, dashes, underscores or @')
export const tokenId = z.string().regex(/^t-[0-9a-z]{12}$/, 'is not the id of a token such as t-4y3h7nqk2c5d')

export const joinId = z.string().regex(/^j-[0-9a-z]{12}$/, 'is not the id of a join token such as j-4y3h7nqk2c5d')
export const natsPublicKey = z.string().regex(/^U[A-Z2-7]{55}$/, 'is not the public half of an nkey of kind user (U…)')
/** The pools that it is limited to; all where left out. */
const pools = z.array(label).max(100).optional()
const sha256 = z.string().regex(/^[0-9a-f]{64}$/, 'is not a SHA-256 in lower-case hex')
export const webhookName = z
  .string()
  .regex(/^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?$/, 'must be 1 to 40 lower-case letters, digits or dashes, such as audit')

/** What a webhook is told of: `machine.moved`, all that begins with `power.`, or everything. */
const eventPattern = z
  .string()
  .max(64)
  .regex(/^(?:\*|[a-z]+(?:[.-][a-z]+)*(?:\.\*)?)$/, 'must be a kind of event such as machine.moved, or power.*, or *')

/** A secret of the Standard Webhooks specification: 24 to 64 bytes. */
const webhookSecret = z
  .string()
  .regex(/^whsec_(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/, {
    error: 'must be whsec_ and base64 behind it',
    abort: true,
  })
  .refine(text => {
    const bytes = atob(text.slice('whsec_'.length)).length
    return bytes >= 24 && bytes <= 64
  }, 'must have 24 to 64 bytes')

/** An http or https URL without a user, a password or a fragment. */
const plainUrl = z
  .url({ protocol: /^https?$/, error: 'must be an http or https URL', abort: true })
  .max(2000)
  .refine(text => {
    const url = URL.parse(text)
    return url !== null && url.username === '' && url.password === '' && url.hash === ''
  }, 'must have no user, password or # in it')

/** As a sealed field is kept: see libs/server/src/seal.ts. */
const sealedText = z
  .string()
  .max(4000)
  .regex(/^sealed:[A-Za-z0-9+/]+={0,2}$/, 'is not sealed')

/**
 * The kinds of documents. `name`: what a document may be called; `shape`: its fields, flat; `refersTo`: fields that name a document of another
 * kind, which must exist; `sealed`: fields that are secrets, with their form as a person writes them. A front seals them with the key it shares
 * with the partitions, and nobody is shown them again.
 */
const kinds = {
  /** Who may come in. Disabling a user ends all of its tokens. */
  user: {
    name: userName,
    shape: {
      displayName: z.string().max(200).default(''),
      role: grantedRole,
      status: z.enum(['active', 'disabled']).default('active'),
      pools,
    },
    refersTo: {},
    sealed: {},
  },
  /** An API token, of which only the hash is known; it can do what both its role and its user's allow, until it expires. */
  token: {
    name: tokenId,
    shape: {
      user: userName,
      role: grantedRole,
      pools,
      sha256,
      description: z.string().max(200).default(''),
      createdAt: timestamp,
      expiresAt: timestamp,
    },
    refersTo: { user: 'user' },
    sealed: {},
  },
  /** A partition of the federation. */
  partition: {
    name: partitionName,
    shape: {
      title: z.string().max(200).default(''),
      /** `retired`: fronts ask it no more, and the bus lets it in no more. */
      status: z.enum(['accepted', 'retired']).default('accepted'),
      natsKey: natsPublicKey,
      /** What it may install; nothing else is offered. */
      operatingSystems: z.array(osName).max(200),
      acceptedAt: timestamp,
    },
    refersTo: {},
    sealed: {},
  },
  /** With which one partition may ask to take part; gone once it is accepted. */
  join: {
    name: joinId,
    shape: {
      sha256,
      /** The only name it may ask under; any other where left out. */
      partition: partitionName.optional(),
      createdAt: timestamp,
      expiresAt: timestamp,
    },
    refersTo: {},
    sealed: {},
  },
  /** Who is told of events, by every partition of its own. */
  webhook: {
    name: webhookName,
    shape: {
      url: plainUrl,
      events: z.array(eventPattern).min(1).max(50).default(['*']),
      status: z.enum(['active', 'paused']).default('active'),
      description: z.string().max(200).default(''),
      secret: sealedText,
    },
    refersTo: {},
    sealed: { secret: webhookSecret },
  },
} as const satisfies Record<string, Kind>

interface Kind {
  readonly name: z.ZodType<string>
  readonly shape: z.ZodRawShape
  readonly refersTo: Readonly<Record<string, string>>
  readonly sealed: Readonly<Record<string, z.ZodType<string>>>
}

type Kinds = typeof kinds
export type DocumentKind = keyof Kinds
export const documentKinds = Object.keys(kinds) as readonly DocumentKind[]
export const documentKind = z.enum(documentKinds)

export type DocumentOf<Kind extends DocumentKind> = z.output<z.ZodObject<Kinds[Kind]['shape']>>
export type UserDocument = DocumentOf<'user'>
export type TokenDocument = DocumentOf<'token'>
export type PartitionDocument = DocumentOf<'partition'>
export type WebhookDocument = DocumentOf<'webhook'>

/** The sealed fields of a kind: each with its form as a person writes it. */
export function sealedFieldsOf(kind: DocumentKind): Readonly<Record<string, z.ZodType<string>>> {
  return kinds[kind].sealed
}

/** A document as it is shown: without its sealed fields. Put back, it keeps the ones it has. */
export function shownDocument(kind: DocumentKind, document: object): Record<string, unknown> {
  return Object.fromEntries(Object.entries(document).filter(([field]) => !(field in kinds[kind].sealed)))
}

/** All documents, by kind and name. */
export type Documents = { readonly [Kind in DocumentKind]: Readonly<Record<string, DocumentOf<Kind>>> }

function byKind<Value>(make: (kind: DocumentKind) => Value): Record<DocumentKind, Value> {
  return Object.fromEntries(documentKinds.map(kind => [kind, make(kind)])) as Record<DocumentKind, Value>
}

/** As written: an unknown field is refused. */
const written = byKind((kind): z.ZodType => z.strictObject(kinds[kind].shape))
/** As read: a front of the next release may have written more. */
const read = byKind((kind): z.ZodType => z.object(kinds[kind].shape))

/** Names are chosen by people: `constructor` is one, and must not be found where nobody put it. */
function ownRecord<Value>(entries: readonly (readonly [string, Value])[]): Record<string, Value> {
  return Object.assign(Object.create(null) as Record<string, Value>, Object.fromEntries(entries))
}

export const noDocuments: Documents = byKind(() => ownRecord<never>([]))

/** The documents of a copy. Kinds and fields that this release does not know are left out, as is a document it cannot read, which `skipped` names. */
export function readDocuments(value: unknown): { documents: Documents; skipped: string[] } {
  const skipped: string[] = []
  const given = typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}
  const documents = byKind(kind => {
    const found = Object.entries((given[kind] ?? {}) as Record<string, unknown>).flatMap(([name, content]) => {
      const parsed = read[kind].safeParse(content)
      if (parsed.success && kinds[kind].name.safeParse(name).success) return [[name, parsed.data] as const]
      skipped.push(`${kind} ${name}`)
      return []
    })
    return ownRecord(found)
  })
  return { documents: documents as Documents, skipped }
}

export const documentReference = z.strictObject({ kind: documentKind, name: z.string().max(100) })
export const documentChange = z.strictObject({ kind: documentKind, name: z.string().max(100), document: z.record(z.string(), z.unknown()) })

export interface Change {
  readonly put: readonly z.output<typeof documentChange>[]
  readonly delete: readonly z.output<typeof documentReference>[]
}

export interface Problem {
  field: string
  message: string
}

/** The documents after a change, or everything that is wrong with it. Pure; the set is checked whole, because documents refer to each other. */
export function changed(before: Documents, change: Change): { documents: Documents } | { problems: Problem[] } {
  const problems: Problem[] = []
  const sets = byKind(kind => ownRecord<unknown>(Object.entries(before[kind])))
  change.delete.forEach(({ kind, name }, index) => {
    if (sets[kind][name] === undefined) problems.push({ field: `delete.${index}`, message: `there is no ${kind} ${name}` })
    delete sets[kind][name]
  })
  change.put.forEach(({ kind, name, document }, index) => {
    const goodName = kinds[kind].name.safeParse(name)
    if (!goodName.success) problems.push({ field: `put.${index}.name`, message: goodName.error.issues[0]?.message ?? 'is not a name' })
    const parsed = written[kind].safeParse(document)
    if (parsed.success) sets[kind][name] = parsed.data
    else
      for (const issue of parsed.error.issues) {
        const path = ['put', index, 'document', ...issue.path].join('.')
        if (issue.code === 'unrecognized_keys')
          for (const key of issue.keys) problems.push({ field: `${path}.${key}`, message: 'unknown field' })
        else problems.push({ field: path, message: issue.message })
      }
  })
  const documents = sets as Documents
  if (problems.length === 0) problems.push(...brokenReferences(documents))
  return problems.length > 0 ? { problems } : { documents }
}

function brokenReferences(documents: Documents): Problem[] {
  return documentKinds.flatMap(kind =>
    Object.entries<Readonly<Record<string, unknown>>>(documents[kind]).flatMap(([name, document]) =>
      Object.entries<DocumentKind>(kinds[kind].refersTo).flatMap(([field, other]) => {
        const wanted = String(document[field])
        if (documents[other][wanted]) return []
        return [{ field: `${kind} ${name}`, message: `its ${other} ${wanted} does not exist; delete the ${kind} with the ${other}` }]
      }),
    ),
  )
}

export const difference = z.object({
  kind: documentKind,
  name: z.string(),
  what: z.enum(['added', 'changed', 'removed']),
  before: z.record(z.string(), z.unknown()).nullable(),
  after: z.record(z.string(), z.unknown()).nullable(),
})
export type Difference = z.infer<typeof difference>

/** What is different, by kind and name. Of a sealed field it is said only whether it is another. */
export function differences(before: Documents, after: Documents): Difference[] {
  return documentKinds.flatMap(kind => {
    const [old, current] = [before[kind] as Record<string, object>, after[kind] as Record<string, object>]
    const names = [...new Set([...Object.keys(old), ...Object.keys(current)])].sort()
    return names.flatMap((name): Difference[] => {
      const [was, is] = [old[name], current[name]]
      if (JSON.stringify(was, sortedKeys(was)) === JSON.stringify(is, sortedKeys(is))) return []
      const what = was === undefined ? 'added' : is === undefined ? 'removed' : 'changed'
      return [{ kind, name, what, ...shownSides(kind, was as Fields, is as Fields) }]
    })
  })
}

type Fields = Readonly<Record<string, unknown>> | undefined

function shownSides(kind: DocumentKind, was: Fields, is: Fields): Pick<Difference, 'before' | 'after'> {
  const before = was ? shownDocument(kind, was) : null
  const after = is ? shownDocument(kind, is) : null
  for (const field of Object.keys(kinds[kind].sealed)) {
    if (before && was?.[field] !== undefined) before[field] = 'sealed'
    if (after && is?.[field] !== undefined) after[field] = was && was[field] !== is[field] ? 'sealed anew' : 'sealed'
  }
  return { before, after }
}

/** The members in one order: documents that say the same are the same. Documents are flat. */
const sortedKeys = (document: object | undefined) => (document ? Object.keys(document).sort() : [])
