// zod schemas as JSON Schema 2020-12, which is also what OpenAPI 3.1 speaks.
import { z } from 'zod'

/** The part of JSON Schema that zod writes and the doors read. */
export interface JsonSchema {
  $ref?: string
  type?: string
  properties?: Record<string, JsonSchema>
  required?: string[]
  additionalProperties?: JsonSchema | boolean
  propertyNames?: JsonSchema
  items?: JsonSchema
  prefixItems?: JsonSchema[]
  anyOf?: JsonSchema[]
  oneOf?: JsonSchema[]
  enum?: unknown[]
  const?: unknown
  default?: unknown
  description?: string
  pattern?: string
  format?: string
  minimum?: number
  maximum?: number
  exclusiveMinimum?: number
  minLength?: number
  maxLength?: number
  minItems?: number
  maxItems?: number
}

/**
 * The JSON Schema of what goes into `schema` (`input`: defaults may be left out) or comes out of it. Schemas found in `named` are written
 * as references into OpenAPI's `components/schemas`, except at the top.
 */
export function jsonSchemaOf(
  schema: z.ZodType,
  side: 'input' | 'output',
  named: ReadonlyMap<z.core.$ZodType, string> = new Map(),
): JsonSchema {
  const { $schema: _, ...content } = z.toJSONSchema(schema, {
    io: side,
    override: ({ zodSchema, jsonSchema }) => {
      const name = (zodSchema as z.core.$ZodType) === schema ? undefined : named.get(zodSchema)
      if (name === undefined) return
      for (const key of Object.keys(jsonSchema)) delete jsonSchema[key as keyof typeof jsonSchema]
      jsonSchema.$ref = `#/components/schemas/${name}`
    },
  })
  return content as JsonSchema
}
