// The API as a page to read: GET /api/v1/docs. Written from the contract; no script and no asset from anywhere.
import { createHash } from 'node:crypto'
import { errorTable } from '@muster/shared/errors'
import type { JsonSchema } from './json-schema.ts'
import { errorsByStatus, groupOf, inputOf, inputSchemas } from './openapi.ts'
import { apiPath, type Plan } from './plan.ts'

const style = `
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem }
code, pre { font-family: ui-monospace, monospace; font-size: .9em }
pre { overflow-x: auto; padding: .75rem; border: 1px solid #8886; border-radius: .4rem }
section { border-top: 1px solid #8886; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8883 }
nav ul { columns: 18rem; padding-left: 1.2rem }
.method { font-weight: 700 }
.note { opacity: .75 }
`

/** Nothing may load but the style above, known by its hash. */
export const docsPolicy = `default-src 'none'; style-src 'sha256-${createHash('sha256').update(style).digest('base64')}'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'`

/** The page, whole. */
export function docsPage(plans: readonly Plan[], version: string): string {
  const groups = Map.groupBy(plans, groupOf)
  return `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Muster API</title><style>${style}</style></head>
<body>
<h1>Muster API</h1>
<p>Version ${escapeHtml(version)}. The same calls are served by a partition, for its own machines, and by a front, for all of them. As a document for
programs: <a href="${apiPath}/openapi.json">openapi.json</a>.</p>
<p>Send a token: <code>Authorization: Bearer &lt;token&gt;</code>. Bodies are JSON; an unknown field is refused. Lists page by cursor: send
<code>nextCursor</code> back as <code>cursor</code>. A list in a query string is repeated or written with commas. Every refusal is a problem document (RFC 9457)
with a <code>code</code> from <a href="#errors">the table of errors</a>. Answers gathered from several partitions carry a <code>coverage</code>.</p>
<nav><ul>${plans.map(plan => `<li><a href="#${plan.name}"><code>${plan.name}</code></a></li>`).join('')}</ul></nav>
${[...groups].map(([group, members]) => `<h2>${escapeHtml(group)}</h2>\n${members.map(callSection).join('\n')}`).join('\n')}
${Object.entries(inputSchemas()).map(schemaSection).join('\n')}
<section id="errors"><h2>Errors</h2>${errorsTable()}</section>
</body>
</html>
`
}

function callSection(plan: Plan): string {
  const { call } = plan
  const { parameters, body } = inputOf(plan)
  const fields = [
    ...parameters.map(({ name, in: place, required, description, schema }) => ({
      name,
      place: place as string,
      required,
      description,
      schema,
    })),
    ...Object.entries(body?.properties ?? {}).map(([name, schema]) => ({
      name,
      place: 'body',
      required: body?.required?.includes(name) ?? false,
      description: schema.description,
      schema,
    })),
  ]
  return `<section id="${plan.name}">
<h3>${escapeHtml(call.summary)}</h3>
<p><code><span class="method">${plan.method}</span> ${escapeHtml(apiPath + call.rest.path)}</code> answers ${call.status}; needs <code>${call.role}</code>; spreads as <code>${call.spread.kind}</code></p>
${call.description ? `<p>${escapeHtml(call.description)}</p>` : ''}
${fields.length > 0 ? `<table><tr><th>field</th><th>in</th><th>type</th><th></th></tr>${fields.map(fieldRow).join('')}</table>` : ''}
<pre>${escapeHtml(curlOf(plan))}</pre>
<p class="note">Refuses with ${[...errorsByStatus(plan).values()]
    .flat()
    .map(code => `<a href="#error-${code}"><code>${code}</code></a>`)
    .join(', ')}</p>
</section>`
}

interface Field {
  readonly name: string
  readonly place: string
  readonly required: boolean
  readonly description: string | undefined
  readonly schema: JsonSchema
}

function fieldRow({ name, place, required, description, schema }: Field): string {
  const meaning = [
    required ? 'required' : '',
    schema.default !== undefined ? `default ${JSON.stringify(schema.default)}` : '',
    description ?? '',
  ]
  return `<tr><td><code>${escapeHtml(name)}</code></td><td>${place}</td><td>${typeHtml(schema)}</td><td>${escapeHtml(meaning.filter(Boolean).join('; '))}</td></tr>`
}

/** What a field's type is where it is an object of its own: `Constraints`. */
function schemaSection([name, { properties = {}, required = [] }]: [string, JsonSchema]): string {
  const rows = Object.entries(properties).map(([field, schema]) =>
    fieldRow({ name: field, place: '', required: required.includes(field), description: schema.description, schema }),
  )
  return `<section id="schema-${name}"><h2>${name}</h2><table><tr><th>field</th><th></th><th>type</th><th></th></tr>${rows.join('')}</table></section>`
}

/** A schema in a few words: `list of text`, `one of on, off, cycle`. */
function typeHtml(schema: JsonSchema): string {
  if (schema.$ref) {
    const name = schema.$ref.slice(schema.$ref.lastIndexOf('/') + 1)
    return `<a href="#schema-${name}">${name}</a>`
  }
  if (schema.enum) return escapeHtml(`one of ${schema.enum.join(', ')}`)
  if (schema.anyOf) return schema.anyOf.map(typeHtml).join(' or ')
  if (schema.type === 'array') return `list of ${typeHtml(schema.items ?? {})}`
  if (schema.type === 'string') return schema.pattern ? `text like <code>${escapeHtml(schema.pattern)}</code>` : 'text'
  if (schema.type === 'integer' || schema.type === 'number') {
    const { minimum, maximum } = schema
    return minimum !== undefined && maximum !== undefined ? `number, ${minimum} to ${maximum}` : 'number'
  }
  if (schema.type === 'object' && schema.properties) return `object of ${Object.keys(schema.properties).map(escapeHtml).join(', ')}`
  return schema.type ?? 'anything'
}

function curlOf(plan: Plan): string {
  const path = plan.call.rest.path.replace(/\{(\w+)\}/g, (_, name: string) => exampleParam(plan, name))
  const { body } = inputOf(plan)
  const lines = [
    `curl ${plan.method === 'GET' ? '' : `-X ${plan.method} `}"$MUSTER_URL${apiPath}${path}"`,
    `-H "Authorization: Bearer $MUSTER_TOKEN"`,
  ]
  if (plan.call.kind === 'stream') lines.push('-N')
  if (plan.call.idempotency === 'key') lines.push('-H "Idempotency-Key: $(uuidgen)"')
  if (body) {
    const content = Object.fromEntries((body.required ?? []).map(name => [name, exampleOf(body.properties?.[name] ?? {})]))
    lines.push(`-H "Content-Type: application/json" -d '${JSON.stringify(content)}'`)
  }
  return lines.join(' \\\n  ')
}

function exampleParam(plan: Plan, name: string): string {
  if (name === 'id') return plan.name.startsWith('allocations') ? 'a-4y3h7nqk2c5d8f6g' : 'lon1-4y3h7n'
  return plan.name.startsWith('partitions') ? 'lon1' : 'gpu'
}

/** A small value of the schema, to show its form. */
function exampleOf(schema: JsonSchema): unknown {
  if (schema.default !== undefined) return schema.default
  if (schema.$ref) return schema.$ref.endsWith('NetworkInterfaceInput') ? { mac: '52:54:00:12:34:56' } : {}
  if (schema.enum) return schema.enum[0]
  if (schema.type === 'array') return [exampleOf(schema.items ?? {})]
  if (schema.type === 'integer' || schema.type === 'number') return schema.minimum ?? 1
  if (schema.type === 'boolean') return true
  if (schema.pattern?.includes('\\/')) return 'debian/12'
  return schema.type === 'string' ? 'text' : {}
}

function errorsTable(): string {
  const rows = Object.entries(errorTable).map(
    ([code, { status, retryable, title }]) =>
      `<tr id="error-${code}"><td><code>${code}</code></td><td>${status}</td><td>${retryable === 'yes' ? 'may succeed later' : ''}</td><td>${escapeHtml(title)}</td></tr>`,
  )
  return `<table><tr><th>code</th><th>status</th><th>retry</th><th></th></tr>${rows.join('')}</table>`
}

function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, character => `&#${character.charCodeAt(0)};`)
}
