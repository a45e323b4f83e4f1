// The OpenAPI 3.1 document, written from the contract: GET /api/v1/openapi.json.

import { constraints } from '@muster/shared/allocation/constraints'
import { allocation, noMatchExplanation } from '@muster/shared/contract/allocations'
import { commonErrors, coverage } from '@muster/shared/contract/call'
import { event } from '@muster/shared/contract/events'
import { labelEntry } from '@muster/shared/contract/labels'
import { operatingSystem, partitionStatus, replica } from '@muster/shared/contract/partitions'
import { type ErrorCode, errorTable, problemDocument } from '@muster/shared/errors'
import { deployment, disk, explanation, fault, machine, machineDetail, networkInterface } from '@muster/shared/machine'
import { networkDocument } from '@muster/shared/network'
import type { z } from 'zod'
import { type JsonSchema, jsonSchemaOf } from './json-schema.ts'
import { apiPath, type Plan } from './plan.ts'

/** Schemas that appear in several answers, by the name the document gives them. */
const outputs = {
  Machine: machine,
  MachineDetail: machineDetail,
  Disk: disk,
  NetworkInterface: networkInterface,
  NetworkDocument: networkDocument,
  Fault: fault,
  Deployment: deployment,
  Explanation: explanation,
  Allocation: allocation,
  NoMatchExplanation: noMatchExplanation,
  Event: event,
  LabelEntry: labelEntry,
  PartitionStatus: partitionStatus,
  Replica: replica,
  OperatingSystem: operatingSystem,
  Coverage: coverage,
  Problem: problemDocument,
} satisfies Record<string, z.ZodType>
/** The same for inputs. Apart, because one schema reads differently on the two sides: what has a default is always there in an answer. */
const inputs = {
  Constraints: constraints,
  DiskInput: disk,
  NetworkInterfaceInput: networkInterface,
  NetworkDocumentInput: networkDocument,
} satisfies Record<string, z.ZodType>

const namesOf = (schemas: Record<string, z.ZodType>) =>
  new Map(Object.entries(schemas).map(([name, schema]) => [schema as z.core.$ZodType, name]))
const outputNames = namesOf(outputs)
const inputNames = namesOf(inputs)

export interface Parameter {
  readonly name: string
  readonly in: 'path' | 'query' | 'header'
  readonly required: boolean
  readonly description?: string
  readonly schema: JsonSchema
  readonly style?: 'form'
  readonly explode?: boolean
}

interface Answer {
  readonly description: string
  readonly headers?: Record<string, unknown>
  readonly content?: Record<string, { readonly schema: JsonSchema }>
}

export interface Operation {
  readonly operationId: string
  readonly tags: readonly string[]
  readonly summary: string
  readonly description?: string
  readonly parameters: readonly Parameter[]
  readonly requestBody?: { readonly required: boolean; readonly content: { readonly 'application/json': { readonly schema: JsonSchema } } }
  readonly responses: Record<string, Answer>
  readonly security?: readonly Record<string, readonly string[]>[]
  readonly 'x-muster-role': string
  readonly 'x-muster-spread': string
}

export interface OpenApiDocument {
  readonly openapi: '3.1.0'
  readonly info: {
    readonly title: string
    readonly version: string
    readonly description: string
    readonly license: { name: string; identifier: string }
  }
  readonly servers: readonly { readonly url: string }[]
  readonly security: readonly Record<string, readonly string[]>[]
  readonly tags: readonly { readonly name: string }[]
  readonly paths: Record<string, Record<string, Operation>>
  readonly components: {
    readonly securitySchemes: Record<string, unknown>
    readonly schemas: Record<string, JsonSchema>
    readonly headers: Record<string, unknown>
  }
}

/** The document for these calls. */
export function openApiDocument(plans: readonly Plan[], version: string): OpenApiDocument {
  const paths: Record<string, Record<string, Operation>> = {}
  for (const plan of plans) {
    const { path } = plan.call.rest
    paths[path] ??= {}
    paths[path][plan.method.toLowerCase()] = operationOf(plan)
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Muster',
      version,
      description:
        'Bare metal, run as a federation. The same API is served by a partition for its own machines and by a front for all partitions; answers ' +
        'that were gathered from several partitions carry a `coverage`. Unknown fields are refused.',
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    servers: [{ url: apiPath }],
    security: [{ token: [] }],
    tags: [...new Set(plans.map(groupOf))].map(name => ({ name })),
    paths,
    components: {
      securitySchemes: { token: { type: 'http', scheme: 'bearer', description: 'An API token.' } },
      schemas: {
        ...schemasOf(outputs, 'output', outputNames),
        ...inputSchemas(),
      },
      headers: {
        RequestId: { description: 'The id of this request: the one that was sent, or a new one.', schema: { type: 'string' } },
        RetryAfter: {
          description: 'Seconds to wait before the same request is worth sending again.',
          schema: { type: 'integer', minimum: 1 },
        },
      },
    },
  }
}

/** What inputs are made of, by the names that {@link inputOf} refers to. */
export function inputSchemas(): Record<string, JsonSchema> {
  return schemasOf(inputs, 'input', inputNames)
}

/** The part of a call's name before the dot: what it is about. */
export function groupOf(plan: Plan): string {
  return plan.name.slice(0, plan.name.indexOf('.'))
}

/** The errors a call may answer with, by status. */
export function errorsByStatus(plan: Plan): Map<number, ErrorCode[]> {
  const byStatus = new Map<number, ErrorCode[]>()
  for (const code of new Set<ErrorCode>([...plan.call.errors, ...commonErrors])) {
    if (plan.call.role === 'public' && (code === 'unauthenticated' || code === 'forbidden')) continue
    const { status } = errorTable[code]
    byStatus.set(status, [...(byStatus.get(status) ?? []), code])
  }
  return new Map([...byStatus].sort(([a], [b]) => a - b))
}

/** The fields of a call's input as parameters and body: how OpenAPI, the pages and a reader see them. */
export function inputOf(plan: Plan): { parameters: Parameter[]; body: JsonSchema | undefined } {
  const { properties = {}, required = [] } = jsonSchemaOf(plan.call.input, 'input', inputNames)
  const takesBody = plan.method !== 'GET' && plan.method !== 'DELETE'
  const parameters: Parameter[] = []
  const inBody: Record<string, JsonSchema> = {}
  for (const [name, schema] of Object.entries(properties)) {
    if (plan.params.includes(name)) parameters.push(parameterOf(name, 'path', true, schema))
    else if (takesBody) inBody[name] = schema
    else parameters.push(parameterOf(name, 'query', required.includes(name), schema))
  }
  if (plan.call.idempotency === 'key')
    parameters.push({
      name: 'Idempotency-Key',
      in: 'header',
      required: false,
      description: 'A retry with the same key gets the first answer.',
      schema: { type: 'string', minLength: 1, maxLength: 128, pattern: '^[\\x21-\\x7e]+$' },
    })
  if (plan.call.kind === 'stream')
    parameters.push({
      name: 'Last-Event-ID',
      in: 'header',
      required: false,
      description: 'The id of the last event seen; goes before `after`.',
      schema: { type: 'string' },
    })
  if (Object.keys(inBody).length === 0) return { parameters, body: undefined }
  const requiredInBody = required.filter(name => !plan.params.includes(name))
  const body: JsonSchema = { type: 'object', properties: inBody, additionalProperties: false }
  return { parameters, body: requiredInBody.length > 0 ? { ...body, required: requiredInBody } : body }
}

function parameterOf(name: string, place: 'path' | 'query', required: boolean, { description, ...schema }: JsonSchema): Parameter {
  return {
    name,
    in: place,
    required,
    ...(description !== undefined && { description }),
    schema,
    ...(schema.type === 'array' && { style: 'form' as const, explode: true }),
  }
}

function operationOf(plan: Plan): Operation {
  const { call } = plan
  const { parameters, body } = inputOf(plan)
  return {
    operationId: plan.name,
    tags: [groupOf(plan)],
    summary: call.summary,
    ...(call.description !== undefined && { description: call.description }),
    parameters,
    ...(body && { requestBody: { required: (body.required ?? []).length > 0, content: { 'application/json': { schema: body } } } }),
    responses: {
      [call.status]: successOf(plan),
      ...Object.fromEntries([...errorsByStatus(plan)].map(([status, codes]) => [String(status), problemAnswer(status, codes)])),
    },
    ...(call.role === 'public' && { security: [] }),
    'x-muster-role': call.role,
    'x-muster-spread': call.spread.kind,
  }
}

function successOf(plan: Plan): Answer {
  const headers = { 'x-request-id': { $ref: '#/components/headers/RequestId' } }
  if (plan.call.status === 204) return { description: 'Done.', headers }
  const name = outputNames.get(plan.output)
  const schema = name === undefined ? jsonSchemaOf(plan.output, 'output', outputNames) : { $ref: `#/components/schemas/${name}` }
  if (plan.call.kind === 'stream')
    return {
      description: 'Server-sent events; the data of each is this schema, in JSON.',
      headers,
      content: { 'text/event-stream': { schema } },
    }
  return { description: 'The answer.', headers, content: { 'application/json': { schema } } }
}

function problemAnswer(status: number, codes: readonly ErrorCode[]): Answer {
  const isRetryable = status === 503 || status === 429
  return {
    description: codes.map(code => `\`${code}\`: ${errorTable[code].title}`).join('. '),
    headers: {
      'x-request-id': { $ref: '#/components/headers/RequestId' },
      ...(isRetryable && { 'retry-after': { $ref: '#/components/headers/RetryAfter' } }),
    },
    content: { 'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } } },
  }
}

function schemasOf(schemas: Record<string, z.ZodType>, side: 'input' | 'output', names: ReadonlyMap<z.core.$ZodType, string>) {
  return Object.fromEntries(Object.entries(schemas).map(([name, schema]) => [name, jsonSchemaOf(schema, side, names)]))
}
