/** What a Redfish service answered, and careful ways to look into it: every field of a BMC's JSON may be missing or of another type. */

export type JsonObject = Readonly<Record<string, unknown>>

export interface Answer {
  status: number
  headers: Readonly<Record<string, string>>
  /** The JSON object, `{}` for an empty body. */
  body: JsonObject
}

/** One message of a service (DSP0266 8.6): the registry's key without registry and version, and the text beside it. */
export interface Message {
  /** `PropertyNotWritable` of `Base.1.8.PropertyNotWritable`; some services send the last part only. */
  id: string
  text: string
  /** Names of the properties it is about, where it tells. */
  about: readonly string[]
}

/** The messages of an answer: of an error, of a task, or beside a success. */
export function messagesOf(body: JsonObject): Message[] {
  const error = object(body.error)
  const lists = [error['@Message.ExtendedInfo'], body['@Message.ExtendedInfo'], body.Messages].flatMap(list)
  const messages = lists.map(object).map(messageOf)
  // Some services put everything into the error itself.
  if (messages.length === 0 && (text(error.code) || text(error.message))) {
    return [messageOf({ MessageId: error.code, Message: error.message })]
  }
  return messages
}

function messageOf(raw: JsonObject): Message {
  const id = text(raw.MessageId) ?? text(raw.MessageID) ?? ''
  const related = list(raw.RelatedProperties).map(property => text(property)?.split(/[/.]/).pop() ?? '')
  const named = list(raw.MessageArgs).map(argument => text(argument) ?? '')
  return { id: id.split('.').pop() ?? id, text: text(raw.Message) ?? '', about: [...related, ...named] }
}

/** The value as an object; `{}` for anything else. */
export function object(value: unknown): JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as JsonObject) : {}
}

/** The value as a list; empty for anything else. */
export function list(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : []
}

/** The value as a text; undefined for anything else. */
export function text(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}

/** The texts of a list; undefined where there is none, so that an absent list is told from an empty one. */
export function texts(value: unknown): string[] | undefined {
  return Array.isArray(value) ? value.filter(one => typeof one === 'string') : undefined
}

/** The `@odata.id` a link points to. */
export function linkOf(value: unknown): string | undefined {
  return text(object(value)['@odata.id'])
}

/**
 * The path of a link, Location or `@odata.id`, with its query. Services put their own idea of their name into absolute ones, which is seldom
 * the name they were reached by: only the path counts. Undefined for what is no path at all.
 */
export function pathOf(link: string | undefined): string | undefined {
  if (link === undefined) return undefined
  const url = URL.parse(link, 'http://service')
  return url?.pathname.startsWith('/') ? url.pathname + url.search : undefined
}

/** The last part of a path, which is how people tell systems apart. */
export function lastPart(path: string): string {
  return path.replace(/\/+$/, '').split('/').pop() ?? path
}
