// Options made from the contract: a field of a call's input becomes a flag with the field's own name, description and choices, so that a
// new filter in the contract is a new flag here without a change.
import type { Call } from '@muster/shared/contract/call'
import { type FieldError, invalidInput, Refusal } from '@muster/shared/errors'
import { type Command, InvalidArgumentError, Option } from 'commander'
import type { z } from 'zod'
import { collect, parseCount } from './quantities.ts'

/** What options need to know of a zod schema. */
interface Def {
  readonly type: string
  readonly innerType?: z.ZodType
  readonly element?: z.ZodType
  readonly in?: z.ZodType
  readonly defaultValue?: unknown
}

const defOf = (schema: z.ZodType) => schema.def as unknown as Def

/** The schema within optional, nullable and default. */
function coreOf(schema: z.ZodType): z.ZodType {
  const { type, innerType } = defOf(schema)
  return innerType && ['optional', 'nullable', 'default', 'prefault'].includes(type) ? coreOf(innerType) : schema
}

function descriptionOf(schema: z.ZodType): string | undefined {
  const { innerType } = defOf(schema)
  return schema.description ?? (innerType && descriptionOf(innerType))
}

/** The values of an enumeration, in order; undefined where the schema is none. */
export function choicesOf(schema: z.ZodType): string[] | undefined {
  const core = coreOf(schema)
  return defOf(core).type === 'enum' ? (core as z.ZodEnum).options.map(String) : undefined
}

/** The fields of a call's input by name. */
export function fieldsOf(call: Pick<Call, 'input'>): Readonly<Record<string, z.ZodType>> {
  return (call.input as z.ZodObject).shape as Record<string, z.ZodType>
}

/** `notTag` → `not-tag`. */
export function kebab(name: string): string {
  return name.replace(/[A-Z]/g, letter => `-${letter.toLowerCase()}`)
}

/** What a flag's value is called in help. */
const placeholders: Readonly<Record<string, string>> = {
  limit: 'n',
  hostname: 'text',
  owner: 'name',
  mac: 'address',
  reason: 'text',
  note: 'text',
}

/** The flags of one field: two for a boolean (`--locked`, `--no-locked`), none for shapes that need a flag of their own making. */
export function optionsOf(name: string, schema: z.ZodType): Option[] {
  const core = coreOf(schema)
  const flag = `--${kebab(name)}`
  const text = descriptionOf(schema) ?? ''
  const value = placeholders[name] ?? kebab(name)
  switch (defOf(core).type) {
    case 'boolean':
      return [new Option(flag, text), new Option(`--no-${kebab(name)}`, `the opposite of ${flag}`)]
    case 'enum':
      return [new Option(`${flag} <${value}>`, text).choices(choicesOf(core) as string[])]
    case 'number':
    case 'int':
      return [new Option(`${flag} <${value}>`, text).argParser(given => parseCount(given))]
    case 'array': {
      const choices = choicesOf(defOf(core).element as z.ZodType)
      const note = ['may be repeated', choices && `one of ${choices.join(', ')}`].filter(Boolean).join('; ')
      return [new Option(`${flag} <${value}>`, text ? `${text}; ${note}` : note).argParser(collectFrom(choices))]
    }
    case 'string':
    // A text with a transformation, such as a MAC address.
    case 'pipe':
      return [new Option(`${flag} <${value}>`, text)]
    default:
      return []
  }
}

/** The filters of a list: every field of the call but those that page through it. */
export function addFilters(command: Command, call: Call): Command {
  for (const [name, schema] of Object.entries(fieldsOf(call)))
    if (name !== 'limit' && name !== 'cursor') for (const option of optionsOf(name, schema)) command.addOption(option)
  return command
}

function collectFrom(choices: readonly string[] | undefined) {
  return (text: string, before: string[] | undefined) => {
    const items = collect(text, before)
    const wrong = choices && items.find(item => !choices.includes(item))
    if (wrong !== undefined) throw new InvalidArgumentError(`Allowed choices are ${choices?.join(', ')}.`)
    return items
  }
}

/**
 * The input of a call after its schema, so that a mistake is told before anything is sent. Throws `invalid-input` naming each field and
 * what was given; the server checks again.
 */
export function checked<Input extends z.ZodType>(call: { readonly input: Input }, input: unknown): z.output<Input> {
  const parsed = call.input.safeParse(input)
  if (parsed.success) return parsed.data
  const refusal = invalidInput(parsed.error)
  const errors = refusal.facts.errors as FieldError[]
  throw new Refusal('invalid-input', errors.map(error => fieldText(error, input)).join('; '), refusal.facts)
}

/** `id: "lon1" is not a machine id …`. Long texts and power settings are not repeated: there are secrets among them. */
function fieldText({ field, message }: FieldError, input: unknown): string {
  const value = field.split('.').reduce<unknown>((within, name) => (within as Record<string, unknown> | undefined)?.[name], input)
  const isShown = typeof value === 'string' && value.length <= 64 && !/^(powerSettings|secrets|userData|password|idToken)\b/.test(field)
  return isShown ? `${field}: "${value}" ${message}` : `${field}: ${message}`
}

/** The options of `given` that are fields of the call's input, without those left out. */
export function inputFrom(call: Pick<Call, 'input'>, given: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const names = Object.keys(fieldsOf(call))
  return Object.fromEntries(names.filter(name => given[name] !== undefined).map(name => [name, given[name]]))
}
