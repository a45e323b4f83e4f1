// What the doors know of each call before the first request comes: its path as a pattern, which of its fields a query string can carry and
// as what, and its schemas. Compiled once at start-up, because the hot path should only look things up.
import { type Call, mayAct, outputOf, type RestMethod, type Role, roles } from '@muster/shared/contract/call'
import { type CallName, calls } from '@muster/shared/contract/contract'
import { invalidInput, Refusal, wrongFields } from '@muster/shared/errors'
import type { z } from 'zod'
import { type JsonSchema, jsonSchemaOf } from './json-schema.ts'

/** As what a field is read from the text of a query string; `json`: it cannot be, only a body can carry it. */
export type QueryKind = 'text' | 'number' | 'boolean' | 'json' | { readonly listOf: 'text' | 'number' | 'boolean' | 'json' }

export interface Plan {
  readonly name: CallName
  readonly call: Call
  readonly method: RestMethod
  /** Whole path as the router writes it: `/api/v1/machines/:id`. */
  readonly route: string
  /** Matches the whole path. */
  readonly pattern: RegExp
  /** Names of the path's parameters. */
  readonly params: readonly string[]
  /** The input's fields, and how a query string carries each. */
  readonly fields: ReadonlyMap<string, QueryKind>
  readonly output: z.ZodType
  /** Where the thing just made is found: `/api/v1/machines/` for `machines.create`. */
  readonly locationBase: string | undefined
  /** Whether the input may ask to wait, which moves the deadline. */
  readonly canWait: boolean
}

export const apiPath = '/api/v1'

/** The names of `{…}` in a path. */
export function pathParams(path: string): string[] {
  return [...path.matchAll(/\{(\w+)\}/g)].map(match => match[1] as string)
}

/** A plan per call, in the order of the contract. Throws when a call is declared in a way that no door could serve safely. */
export function compilePlans(declared: ReadonlyMap<CallName, Call> = calls): Plan[] {
  const routes = new Set<string>()
  return [...declared].map(([name, call]) => {
    const plan = compilePlan(name, call, declared)
    const route = `${plan.method} ${plan.route}`
    if (routes.has(route)) throw new Error(`two calls are served at ${route}; the second is ${name}`)
    routes.add(route)
    return plan
  })
}

function compilePlan(name: CallName, call: Call, declared: ReadonlyMap<CallName, Call>): Plan {
  const { method, path } = call.rest
  // Deny by default: a role that is missing or misspelt must stop the start, not open the route.
  if (!roles.includes(call.role)) throw new Error(`${name} declares no role; it must be one of ${roles.join(', ')}`)
  const properties = jsonSchemaOf(call.input, 'input').properties ?? {}
  const params = pathParams(path)
  for (const param of params) if (!properties[param]) throw new Error(`${name} has {${param}} in its path and no such field in its input`)
  const hasGet = [...declared.values()].some(other => other.rest.method === 'GET' && other.rest.path === `${path}/{id}`)
  return {
    name,
    call,
    method,
    route: apiPath + path.replace(/\{(\w+)\}/g, ':$1'),
    pattern: new RegExp(`^${apiPath}${path.replace(/\{\w+\}/g, '[^/]+')}$`),
    params,
    fields: new Map(Object.entries(properties).map(([field, schema]) => [field, queryKindOf(schema)])),
    output: outputOf(call),
    locationBase: call.status === 201 && hasGet ? `${apiPath}${path}/` : undefined,
    canWait: properties.wait !== undefined,
  }
}

function queryKindOf(schema: JsonSchema): QueryKind {
  if (schema.type === 'array') return { listOf: scalarKindOf(schema.items ?? {}) }
  return scalarKindOf(schema)
}

function scalarKindOf(schema: JsonSchema): 'text' | 'number' | 'boolean' | 'json' {
  // A nullable field takes the other kind from a query: there is no way to write null there.
  const alternatives = (schema.anyOf ?? [schema]).filter(({ type }) => type !== 'null')
  const type = alternatives.length === 1 ? alternatives[0]?.type : undefined
  if (type === 'string') return 'text'
  if (type === 'number' || type === 'integer') return 'number'
  return type === 'boolean' ? 'boolean' : 'json'
}

/** Passes `input` through the call's schema, which closes it: an unknown field is refused by name. Throws `invalid-input`. */
export function validInput(plan: Plan, input: unknown): unknown {
  const parsed = plan.call.input.safeParse(input)
  if (parsed.success) return parsed.data
  throw invalidInput(parsed.error)
}

/** The refusal of one field. */
export function refusedField(field: string, message: string): Refusal {
  return wrongFields([{ field, message }])
}

/** Refuses with `forbidden` where `has` is not enough for the call. */
export function checkRole(plan: Plan, has: Role): void {
  const { role } = plan.call
  if (!mayAct(has, role)) throw new Refusal('forbidden', `${plan.name} needs the role ${role}; this token has ${has}`, { needs: role, has })
}

const numberText = /^-?\d{1,15}(?:\.\d{1,15})?$/

/**
 * The fields a query string carries, as what the schema says they are. Lists come by repetition and by commas (`state=ready,new`). Text that
 * is not of its kind is passed on as it is: the schema's refusal names the field. Throws `invalid-input` for a single value given twice.
 */
export function readQuery(plan: Plan, search: string): Record<string, unknown> {
  const fields: Record<string, unknown> = Object.create(null)
  const query = new URLSearchParams(search)
  for (const name of new Set(query.keys())) {
    const texts = query.getAll(name)
    const kind = plan.fields.get(name) ?? 'text'
    if (typeof kind === 'object') {
      const { listOf } = kind
      fields[name] = texts.flatMap(text => text.split(',')).map(text => fromText(text, listOf))
      continue
    }
    if (texts.length > 1) throw refusedField(name, 'is given more than once')
    if (kind === 'json') throw refusedField(name, 'can only be given in the JSON body')
    fields[name] = fromText(texts[0] as string, kind)
  }
  return fields
}

function fromText(text: string, kind: 'text' | 'number' | 'boolean' | 'json'): unknown {
  if (kind === 'number') return numberText.test(text) ? Number(text) : text
  if (kind === 'boolean') return text === 'true' ? true : text === 'false' ? false : text
  return text
}

/**
 * One input from the path, the query and the body. A field given in two places must say the same in both (a client that sends a whole
 * machine back repeats the id of its path). Throws `invalid-input`.
 */
export function mergeInput(params: Record<string, string>, query: Record<string, unknown>, body: Record<string, unknown>) {
  // Without a prototype, so that a field called __proto__ is a field, and refused as unknown.
  const input: Record<string, unknown> = Object.assign(Object.create(null), body)
  for (const source of [query, params])
    for (const [name, value] of Object.entries(source)) {
      if (Object.hasOwn(input, name) && JSON.stringify(input[name]) !== JSON.stringify(value))
        throw refusedField(name, 'is given twice, with different values')
      input[name] = value
    }
  return input
}

/**
 * Refuses texts that PostgreSQL cannot store anywhere: a NUL character, or half of a surrogate pair. Without this the refusal would come
 * from the database, as a mistake of ours.
 */
export function checkCharacters(value: unknown, path: readonly string[] = []): void {
  if (typeof value === 'string') {
    if (value.includes('\u0000') || !value.isWellFormed())
      throw refusedField(path.join('.') || '(input)', 'contains a character that cannot be stored')
  } else if (Array.isArray(value)) {
    for (const [index, item] of value.entries()) checkCharacters(item, [...path, String(index)])
  } else if (typeof value === 'object' && value !== null) {
    for (const [name, item] of Object.entries(value)) {
      checkCharacters(name, path)
      checkCharacters(item, [...path, name])
    }
  }
}
