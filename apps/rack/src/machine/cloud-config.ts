// The little of YAML that a machine must understand of its seed: single values at the top level, and of a cloud-config the
// phone_home block and where reports go. Everything else is passed over unread, so that no user-data, however odd, can do more than be ignored.

export interface PhoneHome {
  url: string
  /** The fields to post; `all` where nothing is said. */
  post: readonly string[] | 'all'
  tries: number
}

/** cloud-init's default. */
const triesDefault = 10
const triesMax = 20

/** A scalar at the top level: `instance-id: i-1` → `i-1`. Undefined where the key is missing or holds a block. */
export function topLevelValue(text: string, key: string): string | undefined {
  const json = asJson(text)
  if (json) return typeof json[key] === 'string' ? json[key] : undefined
  for (const line of text.split(/\r?\n/)) {
    const value = valueIn(line, key)
    if (value !== undefined && !/^\s/.test(line)) return scalar(value) || undefined
  }
  return undefined
}

/** What a cloud-config says about phoning home; undefined where it says nothing or is none (it must begin with `#cloud-config`). */
export function phoneHomeOf(text: string): PhoneHome | undefined {
  if (!/^#cloud-config\b/.test(text.trimStart())) return undefined
  const json = asJson(text)
  if (json) return fromFields(fieldsOfJson(json.phone_home))
  const lines = text.split(/\r?\n/).map(withoutComment)
  const start = lines.findIndex(line => /^phone_home\s*:/.test(line))
  if (start < 0) return undefined
  const inline = (valueIn(lines[start] as string, 'phone_home') ?? '').trim()
  if (inline.startsWith('{')) return fromFields(fieldsOfJson(asJson(inline)) ?? flowFields(inline))
  const block = lines.slice(start + 1)
  const length = block.findIndex(line => /^\S/.test(line))
  return fromFields(blockFields(length < 0 ? block : block.slice(0, length)))
}

/** Where reports of a boot go. */
export interface Webhook {
  endpoint: string
  /** Its keys where it wants signed requests. */
  consumer_key?: string
  token_key?: string
  token_secret?: string
}

/** The first webhook of a cloud-config's `reporting`; undefined where it says nothing. Written as JSON, or as a block of plain lines. */
export function webhookOf(text: string): Webhook | undefined {
  if (!/^#cloud-config\b/.test(text.trimStart())) return undefined
  const json = asJson(text)
  if (json) return webhookIn(json.reporting)
  const lines = text.split(/\r?\n/).map(withoutComment)
  const start = lines.findIndex(line => /^reporting\s*:/.test(line))
  if (start < 0) return undefined
  const inline = (valueIn(lines[start] as string, 'reporting') ?? '').trim()
  if (inline !== '') return webhookIn(asJson(inline))
  const block = lines.slice(start + 1)
  const length = block.findIndex(line => /^\S/.test(line))
  const within = length < 0 ? block : block.slice(0, length)
  const member = (name: string) => within.map(line => valueIn(line, name)).find(value => value)
  return webhookIn({ block: Object.fromEntries(webhookMembers.map(name => [name, scalar(member(name) ?? '') || undefined])) })
}

const webhookMembers = ['endpoint', 'consumer_key', 'token_key', 'token_secret'] as const

function webhookIn(reporting: unknown): Webhook | undefined {
  if (typeof reporting !== 'object' || reporting === null) return undefined
  const handlers = Object.values(reporting) as (Record<string, unknown> | null)[]
  const found = handlers.find(handler => typeof handler?.endpoint === 'string')
  if (!found) return undefined
  const members = webhookMembers.filter(name => typeof found[name] === 'string').map(name => [name, found[name]])
  return Object.fromEntries(members) as unknown as Webhook
}

interface Fields {
  url?: string
  tries?: string
  post?: readonly string[]
}

function fromFields(fields: Fields | undefined): PhoneHome | undefined {
  if (!fields?.url) return undefined
  const tries = Number(fields.tries ?? triesDefault)
  const post = fields.post === undefined || fields.post[0] === 'all' ? 'all' : fields.post
  return { url: fields.url, post, tries: Number.isInteger(tries) && tries > 0 ? Math.min(tries, triesMax) : triesDefault }
}

/** JSON is YAML too, and what programs write. */
function asJson(text: string): Record<string, unknown> | undefined {
  const body = text.replace(/^\s*#[^\n]*\n/, '').trim()
  if (!body.startsWith('{')) return undefined
  try {
    return JSON.parse(body) as Record<string, unknown>
  } catch {
    return undefined // a YAML flow mapping, then: nobody writes a whole seed as one
  }
}

function fieldsOfJson(value: unknown): Fields | undefined {
  if (typeof value !== 'object' || value === null) return undefined
  const { url, post, tries } = value as Record<string, unknown>
  return {
    ...(typeof url === 'string' && { url }),
    ...(tries !== undefined && { tries: String(tries) }),
    ...(post !== undefined && { post: (Array.isArray(post) ? post : [post]).map(String) }),
  }
}

/** The indented lines below `phone_home:`. */
function blockFields(lines: readonly string[]): Fields {
  const fields: Fields = {}
  for (const [at, line] of lines.entries()) {
    const url = valueIn(line, 'url')
    if (url) fields.url = scalar(url)
    const tries = valueIn(line, 'tries')
    if (tries) fields.tries = scalar(tries)
    const post = valueIn(line, 'post')
    if (post !== undefined) fields.post = post.trim() === '' ? dashItems(lines.slice(at + 1)) : listOf(post.trim())
  }
  return fields
}

function dashItems(lines: readonly string[]): string[] {
  const items: string[] = []
  for (const line of lines) {
    const item = /^\s*-\s+(.*)$/.exec(line)?.[1]
    if (item !== undefined) items.push(scalar(item))
    else if (line.trim() !== '') break
  }
  return items
}

/** `{url: http://…, tries: 3, post: [a, b]}`. */
function flowFields(text: string): Fields {
  const field = (key: string) => new RegExp(`[{,]\\s*["']?${key}["']?\\s*:\\s*("[^"]*"|'[^']*'|\\[[^\\]]*\\]|[^,}\\s]+)`).exec(text)?.[1]
  const url = field('url')
  const tries = field('tries')
  const post = field('post')
  return { ...(url && { url: scalar(url) }), ...(tries && { tries: scalar(tries) }), ...(post && { post: listOf(post) }) }
}

/** `[a, "b"]`, or one word. */
function listOf(text: string): string[] {
  const inner = /^\[(.*)\]$/.exec(text)?.[1]
  if (inner === undefined) return [scalar(text)]
  return inner
    .split(',')
    .map(item => scalar(item))
    .filter(item => item !== '')
}

/** What stands behind `key:` on this line; empty where a block follows, undefined where the line has another key. */
function valueIn(line: string, key: string): string | undefined {
  const match = /^\s*(?:"([^"]*)"|'([^']*)'|([^\s:#"'][^:]*?))\s*:(?:\s+(.*))?$/.exec(withoutComment(line))
  return match && (match[1] ?? match[2] ?? match[3]) === key ? (match[4] ?? '') : undefined
}

/** A plain, 'single' or "double" quoted scalar as text. */
function scalar(text: string): string {
  const trimmed = text.trim()
  const single = /^'(.*)'$/s.exec(trimmed)?.[1]
  if (single !== undefined) return single.replaceAll("''", "'")
  const double = /^"(.*)"$/s.exec(trimmed)?.[1]
  if (double !== undefined) {
    try {
      return JSON.parse(trimmed) as string
    } catch {
      // YAML has more escapes than JSON; the two that matter in a path are taken below.
    }
  }
  return double !== undefined ? double.replaceAll(/\\(["\\/])/g, '$1') : trimmed
}

/** A comment starts at the line's beginning or after white space: a URL's fragment is none. */
function withoutComment(line: string): string {
  return /["'].*\s#.*["']/.test(line) ? line : line.replace(/(^|\s)#.*$/, '')
}
