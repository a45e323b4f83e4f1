// Global configuration: the documents that belong to the whole federation. They are written through a front, flow down to every partition, and
// never back. A kind of document is one row of this table; what refers to what is checked over the whole set, in one place.
import { z } from 'zod'
import { dataSources } from '../cloud-init.ts'
import { roles } from '../contract/call.ts'
import { type DescribedSubnet, described, describedSubnet } from '../contract/subnets.ts'
import { randomText } from '../ids.ts'
import { architecture, enlistedRules, erasePolicies, imageForms, label, osName, partitionName, timestamp } from '../machine.ts'
import { networksOverlap } from '../network.ts'
import { sshPublicKey } from '../ssh-key.ts'

/** The roles a person or a token can have. */
const grantedRole = z.enum(roles).exclude(['public'])
export const userName = z
  .string()
  .regex(/^[a-z0-9](?:[a-z0-9._@-]{0,62}[a-z0-9])?$/, 'must be 1 to 64 lower-case letters, digits, dots, dashes, underscores or @')
export const tokenId = z.string().regex(/^t-[0-9a-z]{12}$/, 'is not the id of a token such as t-4y3h7nqk2c5d')

/** What its owner calls an SSH key. */
export const keyName = z
  .string()
  .regex(/^[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,62}[A-Za-z0-9])?$/, 'must be 1 to 64 letters, digits, dots, dashes, underscores or @')
export const mostKeys = 50

export const groupName = z
  .string()
  .regex(/^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$/, 'must be 1 to 64 lower-case letters, digits, dots, dashes or underscores')

export const providerName = z.string().regex(/^[a-z][a-z0-9-]{0,30}$/, 'must be 1 to 31 lower-case letters, digits or dashes')
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

/** As vendors write them: one line of printable characters. */
const licenceKey = z
  .string()
  .regex(/^[\x21-\x7e](?:[\x20-\x7e]{0,998}[\x21-\x7e])?$/, 'must be one line of 1 to 1000 printable ASCII characters')

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
 * A password as it is kept: argon2id in PHC form, with OWASP's parameters and no others, so that checking any costs the same. The hash is made
 * where the password was typed (password.ts).
 */
export const passwordHash = z
  .string()
  .regex(
    /^\$argon2id\$v=19\$m=19456,t=2,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$/,
    'must be an argon2id hash as `muster user password` makes it, or what is shown in place of the one in force',
  )
/** What is shown in place of a hash: enough of its salt, which is no secret, to tell two hashes apart. Written back, it means the hash in force. */
export const shownPassword = (hash: string) => `hidden:${hash.split('$')[4]?.slice(0, 8)}`

/** Written as the mark of a user's sessions, it ends them: a mark that is not the one in force is replaced by a new one. */
export const endedMark = 'ended'

/** Protected on its way, or not leaving this computer. */
export function isSafeUrl(text: string): boolean {
  const url = URL.parse(text)
  if (!url || url.username || url.password || url.search || url.hash) return false
  const isLoopback = url.hostname === 'localhost' || url.hostname === '[::1]' || /^127\.\d+\.\d+\.\d+$/.test(url.hostname)
  return url.protocol === 'https:' || (url.protocol === 'http:' && isLoopback)
}

const claimName = z.string().min(1).max(200)

/** What may be said of a partition for it; what is left out its own server says. */
export const partitionSettings = {
  /** How disks are erased when a machine is given back, where the release does not say more. */
  erase: z.enum(erasePolicies).optional(),
  /** Whether machines that enlist are commissioned without being asked for. */
  enlisted: z.enum(enlistedRules).optional(),
  /** So many machines may wait, enlisted and not looked at by anybody. */
  enlistedMost: z.number().int().min(0).max(1_000_000).optional(),
  /** Subnets that it has, by name; those that it has beside them are its own. */
  subnets: z
    .record(label, describedSubnet)
    .refine(subnets => Object.keys(subnets).length <= 500, 'must be at most 500 subnets')
    .optional(),
}

/**
 * The kinds of documents. `name`: what a document may be called; `shape`: its fields; `refersTo`: fields that name a document of another
 * kind, which must exist; `sealed`: fields that are secrets, with their form as a person writes them. A front seals them with the key it shares
 * with the partitions, and nobody is shown them again.
 */
const kinds = {
  /** Who may come in. Disabling a user ends all of its tokens and sessions. */
  user: {
    name: userName,
    shape: {
      displayName: z.string().max(200).default(''),
      role: grantedRole,
      status: z.enum(['active', 'disabled']).default('active'),
      pools,
      password: passwordHash.optional(),
      /** Public keys by name: put on machines that it deploys, and on the rescue systems it boots. */
      sshKeys: z
        .record(keyName, sshPublicKey)
        .refine(keys => Object.keys(keys).length <= mostKeys, `must be at most ${mostKeys} keys`)
        .optional(),
      /** Who it is at a provider: the claim `sub` of the ID tokens, which never changes. */
      oidc: z.strictObject({ provider: providerName, subject: z.string().min(1).max(255) }).optional(),
      /** Sessions bear this mark and end when it becomes another: with a new way to log in, or when anything else is written here. */
      sessions: z.string().max(20).optional(),
    },
    refersTo: {},
    sealed: {},
  },
  /** A set of users, who may what any of their groups may. See grants.ts for the rule. */
  group: {
    name: groupName,
    shape: {
      description: z.string().max(200).default(''),
      members: z.array(userName).max(10_000).default([]),
      /** What being in it adds to a user's own role; nothing where left out. */
      role: grantedRole.optional(),
      /** The pools that this role is limited to; all where left out. */
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
  /** A pool that exists everywhere. Where there are documents of this kind, there are no other pools. */
  pool: { name: label, shape: { description: z.string().max(1000).default('') }, refersTo: {}, sealed: {} },
  /** As with pools. */
  zone: { name: label, shape: { description: z.string().max(1000).default('') }, refersTo: {}, sealed: {} },
  /** The most machines that a user, the members of a group together or, where neither is named, anybody may have at a time. */
  quota: {
    name: groupName,
    shape: {
      description: z.string().max(200).default(''),
      user: userName.optional(),
      group: groupName.optional(),
      /** Machines of this pool only. */
      pool: label.optional(),
      machines: z.number().int().min(0).max(1_000_000),
    },
    refersTo: { user: 'user', group: 'group' },
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
      ...partitionSettings,
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
      /** Of machines of these pools only; all, and what is of no machine, where left out. */
      pools,
      status: z.enum(['active', 'paused']).default('active'),
      description: z.string().max(200).default(''),
      secret: sealedText,
      /** The one before, which signs beside it until then. A front keeps it when the secret changes. */
      secretBefore: sealedText.optional(),
      secretBeforeUntil: timestamp.optional(),
    },
    refersTo: {},
    sealed: { secret: webhookSecret, secretBefore: webhookSecret },
  },
  /** An image of an operating system, and where it is had: partitions that may install it fetch it themselves. */
  image: {
    name: groupName,
    shape: {
      os: osName,
      arch: architecture.default('amd64'),
      title: z.string().min(1).max(200),
      url: plainUrl,
      /** Of the file as it is had. */
      sha256,
      form: z.enum(imageForms).default('disk'),
      /** Which data source the cloud-init within it is made for. */
      dataSource: z.enum(dataSources).default('nocloud'),
    },
    refersTo: {},
    sealed: {},
  },
  /** A licence key, which machines are given that are deployed with one of these operating systems. */
  licence: {
    name: webhookName,
    shape: {
      description: z.string().max(200).default(''),
      operatingSystems: z.array(osName).min(1).max(100),
      key: sealedText,
    },
    refersTo: {},
    sealed: { key: licenceKey },
  },
  /** An OpenID Connect provider, whose ID tokens people log in with. Whom neither a user's document nor `roles` names does not come in. */
  oidc: {
    name: providerName,
    shape: {
      issuer: z.string().max(500).refine(isSafeUrl, 'must be an https URL, as the provider writes it in its ID tokens'),
      clientId: z.string().min(1).max(200),
      /** Whom ID tokens must be made for; the client where left out. */
      audience: z.string().min(1).max(200).optional(),
      scopes: z
        .array(z.string().regex(/^[\x21\x23-\x5b\x5d-\x7e]{1,100}$/, 'is not a scope'))
        .max(20)
        .refine(scopes => scopes.includes('openid'), 'must include openid')
        .default(['openid', 'profile', 'email']),
      /** What a person is called here that has no document: a claim that the provider keeps unique and people cannot choose. */
      nameClaim: claimName.optional(),
      /** The claim with a person's groups, and the role that being in a group gives; the strongest counts. */
      groupsClaim: claimName.default('groups'),
      roles: z.record(z.string().min(1).max(100), grantedRole).default({}),
      /** The group of this configuration whose role and pools being in a group of the provider gives; the group's own members are others. */
      groups: z.record(z.string().min(1).max(100), groupName).default({}),
      /** For whom `roles` lets in. */
      pools,
      status: z.enum(['active', 'disabled']).default('active'),
      /** As with users: of the sessions that `roles` let in. */
      sessions: z.string().max(20).optional(),
    },
    refersTo: {},
    sealed: {},
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
export type GroupDocument = DocumentOf<'group'>
export type QuotaDocument = DocumentOf<'quota'>
export type TokenDocument = DocumentOf<'token'>
export type PartitionDocument = DocumentOf<'partition'>
export type PartitionSettings = z.output<z.ZodObject<typeof partitionSettings>>
export type ImageDocument = DocumentOf<'image'>
export type LicenceDocument = DocumentOf<'licence'>
export type WebhookDocument = DocumentOf<'webhook'>
export type ProviderDocument = DocumentOf<'oidc'>

/** Labels of machines that may be named for the whole federation. */
export const placeKinds = ['pool', 'zone'] as const satisfies readonly DocumentKind[]

/** Where machines are that nobody has sorted yet: there is always one. */
const unsorted = 'default'

/** Whether a pool or a zone is one of those named; any is where none is named. */
export function isPlace(named: Readonly<Record<string, unknown>>, place: string): boolean {
  return place === unsorted || Object.hasOwn(named, place) || Object.keys(named).length === 0
}

/** The sealed fields of a kind: each with its form as a person writes it. */
export function sealedFieldsOf(kind: DocumentKind): Readonly<Record<string, z.ZodType<string>>> {
  return kinds[kind].sealed
}

/** A document as it is shown: without its sealed fields, and with what stands for a password. Put back, it keeps the ones it has. */
export function shownDocument(kind: DocumentKind, document: object): Record<string, unknown> {
  const shown: Record<string, unknown> = Object.fromEntries(Object.entries(document).filter(([field]) => !(field in kinds[kind].sealed)))
  if (kind === 'user' && typeof shown.password === 'string') shown.password = shownPassword(shown.password)
  return shown
}

/** All documents, by kind and name. */
export type Documents = { readonly [Kind in DocumentKind]: Readonly<Record<string, DocumentOf<Kind>>> }

function byKind<Value>(make: (kind: DocumentKind) => Value): Record<DocumentKind, Value> {
  return Object.fromEntries(documentKinds.map(kind => [kind, make(kind)])) as Record<DocumentKind, Value>
}

/** A subnet with a field of the next release must not hide the whole document. */
const readSettings = { subnets: z.record(label, z.object(described)).optional() }

/** As written: an unknown field is refused. */
const written = byKind((kind): z.ZodType => z.strictObject(kinds[kind].shape))
/** As read: a front of the next release may have written more. */
const read = byKind((kind): z.ZodType => z.object(kind === 'partition' ? { ...kinds.partition.shape, ...readSettings } : kinds[kind].shape))

/** Names are chosen by people: `constructor` is one, and must not be found where nobody put it. */
function ownRecord<Value>(entries: readonly (readonly [string, Value])[]): Record<string, Value> {
  return Object.assign(Object.create(null) as Record<string, Value>, Object.fromEntries(entries))
}

export const noDocuments: Documents = byKind(() => ownRecord<never>([]))

/**
 * The documents of a copy. Left out are kinds and fields that this release does not know (`beyond`: which, and of which documents), and documents
 * that it cannot read (`skipped`).
 */
export function readDocuments(value: unknown): { documents: Documents; skipped: string[]; beyond: string[] } {
  const skipped: string[] = []
  const beyond: string[] = []
  const given = typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}
  const documents = byKind(kind => {
    const found = Object.entries((given[kind] ?? {}) as Record<string, unknown>).flatMap(([name, content]) => {
      const parsed = read[kind].safeParse(content)
      if (parsed.success && kinds[kind].name.safeParse(name).success) {
        if (!written[kind].safeParse(content).success) beyond.push(`fields of ${kind} ${name}`)
        return [[name, parsed.data] as const]
      }
      skipped.push(`${kind} ${name}`)
      return []
    })
    return ownRecord(found)
  })
  const strange = Object.keys(given).filter(kind => !documentKinds.some(known => known === kind))
  return { documents: documents as Documents, skipped, beyond: [...strange.map(kind => `documents of kind ${kind}`), ...beyond] }
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

/**
 * The documents after a change, or everything that is wrong with it. Pure but for `newMark`; the set is checked whole, because documents refer
 * to each other.
 */
export function changed(
  before: Documents,
  change: Change,
  newMark: () => string = () => randomText(12),
): { documents: Documents } | { problems: Problem[] } {
  const problems: Problem[] = []
  const sets = byKind(kind => ownRecord<unknown>(Object.entries(before[kind])))
  change.delete.forEach(({ kind, name }, index) => {
    if (sets[kind][name] === undefined) problems.push({ field: `delete.${index}`, message: `there is no ${kind} ${name}` })
    delete sets[kind][name]
  })
  change.put.forEach(({ kind, name, document }, index) => {
    const goodName = kinds[kind].name.safeParse(name)
    if (!goodName.success) problems.push({ field: `put.${index}.name`, message: goodName.error.issues[0]?.message ?? 'is not a name' })
    const was = sets[kind][name] as Marked | undefined
    const parsed = written[kind].safeParse(was?.password === undefined ? document : withPassword(document, was.password))
    if (parsed.success) sets[kind][name] = kind === 'user' || kind === 'oidc' ? withMark(parsed.data as Marked, was, newMark) : parsed.data
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

/** The document with the hash in force where it shows what stands for that. */
function withPassword(document: Record<string, unknown>, inForce: string): Record<string, unknown> {
  return document.password === shownPassword(inForce) ? { ...document, password: inForce } : document
}

/** What sessions can hang on: a user, or a provider. */
interface Marked {
  readonly password?: string | undefined
  readonly sessions?: string | undefined
}

/** Ways to come in: sessions that were begun before one of them changed are over. */
const waysIn = ['password', 'oidc', 'issuer', 'clientId', 'audience', 'nameClaim', 'groupsClaim']

/**
 * The document with its sessions' mark. A mark that somebody writes is not taken, it asks for a new one: an old file must not bring back sessions
 * that were ended, nor a new user of an old name find the sessions of the one before.
 */
function withMark({ sessions, ...document }: Marked, was: Marked | undefined, newMark: () => string): Marked {
  const ways = (of: object | undefined) =>
    canonical(
      Object.entries(of ?? {})
        .filter(([name]) => waysIn.includes(name))
        .sort(),
    )
  const isEnded = (sessions !== undefined && sessions !== was?.sessions) || ways(document) !== ways(was)
  const mark = isEnded ? newMark() : was?.sessions
  return mark === undefined ? document : { ...document, sessions: mark }
}

/** Earlier documents brought back: sessions that were ended since stay ended. */
export function broughtBack(before: Documents, earlier: Documents, newMark: () => string = () => randomText(12)): Documents {
  const marked = <Document extends Marked>(documents: Readonly<Record<string, Document>>, now: Readonly<Record<string, Marked>>) =>
    ownRecord(
      Object.entries(documents).map(([name, document]) => {
        const isSame = document.sessions === now[name]?.sessions
        return [name, isSame ? document : { ...document, sessions: newMark() }] as const
      }),
    )
  return { ...earlier, user: marked(earlier.user, before.user), oidc: marked(earlier.oidc, before.oidc) }
}

function brokenReferences(documents: Documents): Problem[] {
  const named = documentKinds.flatMap(kind =>
    Object.entries<Readonly<Record<string, unknown>>>(documents[kind]).flatMap(([name, document]) =>
      Object.entries<DocumentKind>(kinds[kind].refersTo).flatMap(([field, other]) => {
        const wanted = document[field] === undefined ? undefined : String(document[field])
        if (wanted === undefined || documents[other][wanted]) return []
        return [{ field: `${kind} ${name}`, message: `its ${other} ${wanted} does not exist; delete the ${kind} with the ${other}` }]
      }),
    ),
  )
  return [
    ...named,
    ...brokenPools(documents),
    ...brokenSubnets(documents.partition),
    ...brokenImages(documents.image),
    ...brokenGroups(documents),
    ...brokenQuotas(documents.quota),
    ...brokenBindings(documents.user, documents.oidc),
    ...brokenProviders(documents),
  ]
}

/** Whoever is limited to pools, or has a quota for one, is so for one that there is. */
function brokenPools(documents: Documents): Problem[] {
  const limited = (['user', 'group', 'token', 'oidc', 'webhook'] as const).flatMap(kind =>
    Object.entries(documents[kind]).flatMap(([name, { pools: own }]) =>
      (own ?? []).map((pool: string) => ({ field: `${kind} ${name}`, pool })),
    ),
  )
  const counted = Object.entries(documents.quota).flatMap(([name, { pool }]) =>
    pool === undefined ? [] : [{ field: `quota ${name}`, pool }],
  )
  return [...limited, ...counted]
    .filter(({ pool }) => !isPlace(documents.pool, pool))
    .map(({ field, pool }) => ({ field, message: `its pool ${pool} does not exist` }))
}

/** An operating system is deployed by its name: there cannot be two images of it for one architecture. */
function brokenImages(images: Documents['image']): Problem[] {
  const first = new Map<string, string>()
  return Object.entries(images).flatMap(([name, { os, arch }]) => {
    const other = first.get(`${os} ${arch}`)
    first.set(`${os} ${arch}`, other ?? name)
    return other === undefined ? [] : [{ field: `image ${name}`, message: `${other} is an image of ${os} for ${arch} too` }]
  })
}

/** Subnets of one VLAN do not overlap, and of those that DHCP serves none at all: a partition could never have both. */
function brokenSubnets(partitions: Documents['partition']): Problem[] {
  return Object.entries(partitions).flatMap(([partition, { subnets }]) => {
    const all = Object.entries(subnets ?? {})
    return all.flatMap(([name, subnet], index) =>
      all
        .slice(0, index)
        .filter(
          ([, other]) => networksOverlap(other.cidr, subnet.cidr) && (other.vlan === subnet.vlan || (isServed(other) && isServed(subnet))),
        )
        .map(([otherName, other]) => ({
          field: `partition ${partition}`,
          message: `its subnet ${name} (${subnet.cidr}) overlaps its subnet ${otherName}${other.vlan === subnet.vlan ? '' : ', and both have dynamic ranges: DHCP tells networks apart by their addresses'}`,
        })),
    )
  })
}

const isServed = ({ dynamic = [] }: DescribedSubnet) => dynamic.length > 0

function brokenGroups({ group, user }: Documents): Problem[] {
  return Object.entries(group).flatMap(([name, { members, role, pools: limitedTo }]): Problem[] => {
    const field = `group ${name}`
    const strangers = members.filter(member => !user[member])
    const seen = new Set<string>()
    const twice = members.filter(member => seen.size === seen.add(member).size)
    return [
      ...strangers.map(member => ({ field, message: `its member ${member} does not exist; take a user out of its groups before it goes` })),
      ...new Set(twice).values().map(member => ({ field, message: `names ${member} twice` })),
      ...(limitedTo && role === undefined ? [{ field, message: 'has pools but no role, so they mean nothing' }] : []),
    ]
  })
}

function brokenQuotas(quotas: Documents['quota']): Problem[] {
  return Object.entries(quotas)
    .filter(([, { user, group }]) => user !== undefined && group !== undefined)
    .map(([name]) => ({ field: `quota ${name}`, message: 'is for a user or for a group, not for both' }))
}

/** A person at a provider is one user. */
function brokenBindings(users: Documents['user'], providers: Documents['oidc']): Problem[] {
  const bound = new Map<string, string>()
  return Object.entries(users).flatMap(([name, { oidc }]): Problem[] => {
    if (!oidc) return []
    const [field, person] = [`user ${name}`, `${oidc.provider}/${oidc.subject}`]
    if (!providers[oidc.provider]) return [{ field, message: `its provider ${oidc.provider} does not exist` }]
    const other = bound.get(person)
    bound.set(person, name)
    return other === undefined ? [] : [{ field, message: `${person} is the user ${other} already` }]
  })
}

/** Two providers could call two people the same: only one may say who comes in without a document. */
function brokenProviders({ oidc: providers, group }: Documents): Problem[] {
  const mapping = Object.entries(providers).filter(([, { roles: given, groups }]) => Object.keys({ ...given, ...groups }).length > 0)
  const strange = Object.entries(providers).flatMap(([name, { groups }]) =>
    Object.values(groups)
      .filter(wanted => !group[wanted])
      .map(wanted => ({ field: `oidc ${name}`, message: `its group ${wanted} does not exist` })),
  )
  const nameless = mapping.filter(([, { nameClaim }]) => nameClaim === undefined)
  return [
    ...strange,
    ...mapping
      .slice(1)
      .map(([name]) => ({ field: `oidc ${name}`, message: `gives roles to groups, as ${mapping[0]?.[0]} does: only one may` })),
    ...nameless.map(([name]) => ({
      field: `oidc ${name}`,
      message: 'gives roles to groups, so it needs nameClaim: what are these people called?',
    })),
  ]
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
      if (canonical(was) === canonical(is)) return []
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

/** Members in one order: documents that say the same are the same. */
function canonical(value: unknown): string {
  return JSON.stringify(value, (_, inner) =>
    typeof inner === 'object' && inner !== null && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([one], [other]) => (one < other ? -1 : 1)))
      : inner,
  )
}
