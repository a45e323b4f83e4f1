import { calls } from '@muster/shared/contract/contract'
import { errorCodes } from '@muster/shared/errors'
import { expect, test } from 'vitest'
import type { OpenApiDocument } from '../src/http/openapi.ts'
import { testDoor } from './door-for-tests.ts'

async function documentOf(): Promise<{ document: OpenApiDocument; text: string }> {
  const door = await testDoor()
  const response = await fetch(`${door.url}/api/v1/openapi.json`)
  expect([response.status, response.headers.get('content-type')]).toEqual([200, 'application/json'])
  const text = await response.text()
  return { document: JSON.parse(text), text }
}

/** Every object in the document, with the path to it. */
function* objectsIn(value: unknown, path: string[] = []): Generator<{ path: string[]; object: Record<string, unknown> }> {
  if (typeof value !== 'object' || value === null) return
  if (!Array.isArray(value)) yield { path, object: value as Record<string, unknown> }
  for (const [name, item] of Object.entries(value)) yield* objectsIn(item, [...path, name])
}

test('the document is OpenAPI 3.1 in its structure', async () => {
  const { document } = await documentOf()
  expect(document.openapi).toMatch(/^3\.1\.\d+$/)
  expect(document.info).toMatchObject({ title: 'Muster', version: '0.1.0' })
  for (const name of Object.values(document.components).flatMap(part => Object.keys(part))) expect(name).toMatch(/^[a-zA-Z0-9._-]+$/)

  const ids = new Set<string>()
  for (const [path, item] of Object.entries(document.paths)) {
    expect(path).toMatch(/^\//)
    for (const [method, operation] of Object.entries(item)) {
      const where = `${method} ${path}`
      expect(['get', 'put', 'post', 'patch', 'delete'], where).toContain(method)
      expect(ids.has(operation.operationId), where).toBe(false)
      ids.add(operation.operationId)
      const declared = operation.parameters.filter(parameter => parameter.in === 'path')
      expect(declared.map(({ name }) => name).sort(), where).toEqual([...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name).sort())
      for (const { required } of declared) expect(required, where).toBe(true)
      const places = operation.parameters.map(parameter => `${parameter.in} ${parameter.name}`)
      expect(new Set(places).size, where).toBe(places.length)
      if (method === 'get' || method === 'delete') expect(operation.requestBody, where).toBeUndefined()
      expect(Object.keys(operation.responses).length, where).toBeGreaterThan(1)
      for (const [status, response] of Object.entries(operation.responses)) {
        expect(status, where).toMatch(/^[1-5]\d\d$/)
        expect(response.description, where).not.toBe('')
      }
      for (const scheme of (operation.security ?? document.security).flatMap(Object.keys))
        expect(document.components.securitySchemes).toHaveProperty(scheme)
      for (const tag of operation.tags) expect(document.tags.map(({ name }) => name)).toContain(tag)
    }
  }
  expect([...ids].sort()).toEqual([...calls.keys()].sort())
})

test('every reference leads somewhere, and no schema says what JSON Schema 2020-12 does not', async () => {
  const { document } = await documentOf()
  const known = new Set(
    Object.entries(document.components).flatMap(([kind, parts]) => Object.keys(parts).map(name => `#/components/${kind}/${name}`)),
  )
  const used = new Set<string>()
  for (const { path, object } of objectsIn(document)) {
    const { $ref } = object
    if (typeof $ref === 'string') {
      expect(known, path.join('/')).toContain($ref)
      used.add($ref)
    }
    // `nullable` and boolean `exclusiveMinimum` were 3.0's; `$schema` and `$defs` have no place inside.
    for (const old of ['nullable', '$schema', '$defs', 'definitions'])
      if (!path.includes('properties')) expect(object, path.join('/')).not.toHaveProperty(old)
    if ('exclusiveMinimum' in object) expect(typeof object.exclusiveMinimum).toBe('number')
    if (Array.isArray(object.required) && object.type === 'object')
      for (const name of object.required) expect(Object.keys((object.properties ?? {}) as object), path.join('/')).toContain(name)
  }
  const unused = [...known].filter(name => name.includes('/schemas/') && !used.has(name))
  expect(unused).toEqual([])
})

test('a machine is described once', async () => {
  const { document, text } = await documentOf()
  const list = document.paths['/machines']?.get?.responses['200']?.content?.['application/json']?.schema
  expect(list?.properties).toMatchObject({
    items: { type: 'array', items: { $ref: '#/components/schemas/Machine' } },
    coverage: { $ref: '#/components/schemas/Coverage' },
  })
  expect(document.components.schemas.Machine?.required).toContain('stateSince')
  expect(document.components.schemas.NetworkInterface?.required).toContain('speedMbps')
  expect(document.components.schemas.NetworkInterfaceInput?.required).toEqual(['mac'])
  // A machine written out is 4,000 characters; most calls answer with one.
  expect(text.length / calls.size).toBeLessThan(6_000)
})

test('what a call needs and may answer is in it', async () => {
  const { document } = await documentOf()
  const create = document.paths['/allocations']?.post
  expect(create).toMatchObject({ 'x-muster-role': 'user', 'x-muster-spread': 'best', requestBody: { required: false } })
  expect(create?.parameters).toMatchObject([{ name: 'Idempotency-Key', in: 'header', required: false }])
  expect(Object.keys(create?.responses ?? {})).toEqual(['201', '400', '401', '403', '409', '413', '415', '422', '429', '500', '503', '504'])
  expect(create?.responses['409']?.description).toContain('key-reused')
  expect(create?.responses['503']?.headers).toHaveProperty('retry-after')
  const stream = document.paths['/events/stream']?.get
  expect(stream?.responses['200']?.content).toHaveProperty(['text/event-stream', 'schema', '$ref'], '#/components/schemas/Event')
})

test('the page shows every call and every error, and loads nothing', async () => {
  const door = await testDoor()
  const response = await fetch(`${door.url}/api/v1/docs`)
  const page = await response.text()
  expect(response.headers.get('content-type')).toContain('text/html')
  expect(response.headers.get('content-security-policy')).toMatch(/^default-src 'none'; style-src 'sha256-/)
  for (const [name, call] of calls) {
    expect(page).toContain(`<section id="${name}">`)
    expect(page).toContain(`/api/v1${call.rest.path}`)
  }
  for (const code of errorCodes) expect(page).toContain(`id="error-${code}"`)
  const links = [...page.matchAll(/href="([^"]*)"/g)].map(([, link]) => link as string)
  for (const link of links) if (link.startsWith('#')) expect(page).toContain(`id="${link.slice(1)}"`)
  expect(links.filter(link => !link.startsWith('#'))).toEqual(['/api/v1/openapi.json'])
  expect(page).not.toMatch(/<script|<img|<link| src=/)
})
