import { request } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { Refusal } from '@muster/shared/errors'
import { expect, test } from 'vitest'
import type { CallContext } from '../src/backend.ts'
import { addReady, testDoor, tokenOf } from './door-for-tests.ts'

const anAllocation = { count: 1, constraints: { cpus: 4 } }

test('a machine is created, listed, read, changed and deleted', async () => {
  const door = await testDoor()
  const made = await door.send('POST', '/machines', { body: { hostname: 'web-1', interfaces: [{ mac: 'AABB.CCDD.EE01' }] } })
  expect(made).toMatchObject({ status: 201, body: { hostname: 'web-1', state: 'new', interfaces: [{ mac: 'aa:bb:cc:dd:ee:01' }] } })
  const { id } = made.body as { id: string }
  expect(made.headers.get('location')).toBe(`/api/v1/machines/${id}`)
  expect(made.headers.get('content-type')).toBe('application/json')
  expect(made.headers.get('x-content-type-options')).toBe('nosniff')

  expect(await door.send('GET', '/machines')).toMatchObject({
    status: 200,
    body: { items: [{ id }], nextCursor: null, coverage: { asked: 1, answered: 1 } },
  })
  // The whole machine sent back may repeat the id of its path, but not name another.
  expect(await door.send('PATCH', `/machines/${id}`, { body: { id, note: 'mine' } })).toMatchObject({ status: 200, body: { note: 'mine' } })
  expect(await door.send('PATCH', `/machines/${id}`, { body: { id: 'lon1-other1', note: 'mine' } })).toMatchObject({
    status: 422,
    body: { code: 'invalid-input', errors: [{ field: 'id', message: 'is given twice, with different values' }] },
  })
  expect(await door.send('DELETE', `/machines/${id}`)).toMatchObject({ status: 204, body: undefined })
  expect(await door.send('GET', `/machines/${id}`)).toMatchObject({ status: 404, body: { code: 'not-found', retryable: false } })
})

test('a query string carries lists, numbers and truth', async () => {
  const door = await testDoor()
  let seen: unknown
  door.backend.instead.set('machines.list', input => {
    seen = input
    return { items: [], nextCursor: null, coverage: { asked: 0, answered: 0, partitions: [] } }
  })
  await door.send('GET', '/machines?state=ready,new&state=broken&tag=a%2Cb&locked=true&fault=false&limit=5&hostname=a%20b+c&sort=-cpus')
  expect(seen).toEqual({
    state: ['ready', 'new', 'broken'],
    tag: ['a', 'b'],
    locked: true,
    fault: false,
    limit: 5,
    hostname: 'a b c',
    sort: '-cpus',
  })

  const refused = async (query: string) => (await door.send('GET', `/machines?${query}`)).body
  expect(await refused('limit=five')).toMatchObject({ status: 422, errors: [{ field: 'limit' }] })
  expect(await refused('limit=0x10')).toMatchObject({ errors: [{ field: 'limit' }] })
  expect(await refused('limit=1&limit=2')).toMatchObject({ errors: [{ field: 'limit', message: 'is given more than once' }] })
  expect(await refused('locked=yes')).toMatchObject({ errors: [{ field: 'locked' }] })
  expect(await refused('state=ready&state=happy')).toMatchObject({ errors: [{ field: 'state.1' }] })
  expect(await refused('colour=red&shape=round')).toMatchObject({
    errors: [
      { field: 'colour', message: 'unknown field' },
      { field: 'shape', message: 'unknown field' },
    ],
  })
  expect(await refused('__proto__=1')).toMatchObject({ errors: [{ field: '__proto__', message: 'unknown field' }] })
  expect(await refused('hostname=%00')).toMatchObject({
    errors: [{ field: 'hostname', message: 'contains a character that cannot be stored' }],
  })
})

test('a body is JSON, an object, closed, and of bounded size', async () => {
  const door = await testDoor()
  const post = (body: string, headers: Record<string, string> = {}) => door.send('POST', '/allocations', { body, headers })
  expect(await post('{"count": 1')).toMatchObject({ status: 400, body: { code: 'malformed' } })
  expect(await post('{}', { 'content-type': 'text/plain' })).toMatchObject({ status: 415, body: { code: 'unsupported-media-type' } })
  expect(await post('{}', { 'content-encoding': 'gzip' })).toMatchObject({ status: 415 })
  expect(await post('[]')).toMatchObject({ status: 422, body: { errors: [{ field: '(input)', message: 'must be a JSON object' }] } })
  expect(await post('null')).toMatchObject({ status: 422 })
  expect(await post('{"cuont": 1}')).toMatchObject({ status: 422, body: { errors: [{ field: 'cuont', message: 'unknown field' }] } })
  expect(await post('{"constraints": {"tag": "x"}}')).toMatchObject({ status: 422, body: { errors: [{ field: 'constraints.tag' }] } })
  expect(await post('{"__proto__": {}}')).toMatchObject({ status: 422, body: { errors: [{ field: '__proto__' }] } })
  expect(await post('{"note": "a\\u0000b"}')).toMatchObject({ status: 422, body: { errors: [{ field: 'note' }] } })
  expect(await post('{"note": "\\ud800"}')).toMatchObject({ status: 422, body: { errors: [{ field: 'note' }] } })
  // Escaped text about such characters is only text.
  expect(await post('{"note": "\\\\u0000", "count": 100}')).toMatchObject({ status: 409, body: { code: 'no-match' } })
  expect(await post(JSON.stringify({ note: 'x'.repeat(1.5 * 1024 * 1024) }))).toMatchObject({
    status: 413,
    body: { code: 'payload-too-large' },
  })
  expect(await door.send('POST', '/machines/lon1-000000/release', { headers: { 'content-length': '0' } })).toMatchObject({ status: 404 })

  const bytes = await fetch(`${door.url}/api/v1/allocations`, {
    method: 'POST',
    headers: { authorization: `Bearer ${tokenOf('admin')}`, 'content-type': 'application/json' },
    body: new Uint8Array([0x7b, 0xff, 0x7d]),
  })
  expect(bytes.status).toBe(400)
})

test('a body of unstated length is read up to the limit, and no further', async () => {
  const door = await testDoor()
  const chunked = async (chunks: number) => {
    let sent = 0
    const body = new ReadableStream({
      pull: controller => {
        if (sent++ < chunks) controller.enqueue(Buffer.alloc(65_536, ' '))
        else controller.close()
      },
    })
    const headers = { authorization: `Bearer ${tokenOf('admin')}`, 'content-type': 'application/json' }
    return fetch(`${door.url}/api/v1/allocations`, { method: 'POST', headers, body, duplex: 'half' } as RequestInit)
  }
  expect((await chunked(2)).status).toBe(400)
  expect((await chunked(40)).status).toBe(413)
})

test('a path or method that is not served is a problem document too', async () => {
  const door = await testDoor()
  expect(await door.send('GET', '/machinery')).toMatchObject({ status: 404, body: { code: 'not-found', status: 404 } })
  expect(await door.send('GET', '/machines/')).toMatchObject({ status: 404 })
  const wrong = await door.send('PUT', '/machines')
  expect(wrong).toMatchObject({ status: 405, body: { code: 'method-not-allowed' } })
  expect(wrong.headers.get('allow')).toBe('GET, HEAD, POST')
  expect((await door.send('GET', '/machines/lon1-000000/power')).headers.get('allow')).toBe('POST')
  expect((await door.send('OPTIONS', '/openapi.json')).headers.get('allow')).toBe('GET, HEAD')
  expect(await door.send('DELETE', '/machines/lon1-000000', { body: { force: true } })).toMatchObject({
    status: 400,
    body: { code: 'malformed' },
  })
  const head = await fetch(`${door.url}/api/v1/machines`, { method: 'HEAD', headers: { authorization: `Bearer ${tokenOf('admin')}` } })
  expect([head.status, await head.text()]).toEqual([200, ''])
})

test('a request that is none is refused by a problem document', async () => {
  const door = await testDoor()
  const answer = await new Promise<{ status: number | undefined; type: string | undefined }>((resolve, reject) => {
    const sent = request(`${door.url}/api/v1/machines`, { headers: { host: 'no host' } }, response => {
      response.resume()
      resolve({ status: response.statusCode, type: response.headers['content-type'] })
    })
    sent.on('error', reject)
    sent.end()
  })
  expect(answer).toEqual({ status: 400, type: 'application/problem+json' })
})

test('every answer carries the id of its request', async () => {
  const door = await testDoor()
  const idOf = async (headers: Record<string, string>) => (await door.send('GET', '/whoami', { headers })).headers.get('x-request-id')
  expect(await idOf({ 'x-request-id': 'mine-1' })).toBe('mine-1')
  expect(await idOf({})).toMatch(/^[0-9a-f-]{36}$/)
  expect(await idOf({ 'x-request-id': 'not sane' })).toMatch(/^[0-9a-f-]{36}$/)
  expect((await door.send('GET', '/nowhere', { headers: { 'x-request-id': 'mine-2' } })).headers.get('x-request-id')).toBe('mine-2')
})

test('an Idempotency-Key gives the first answer again, and must be visible ASCII', async () => {
  const door = await testDoor()
  addReady(door.backend, 3)
  const post = (key: string, body: object = anAllocation) =>
    door.send('POST', '/allocations', { body, headers: { 'idempotency-key': key } })
  const first = await post('k1')
  expect(first).toMatchObject({ status: 201, body: { state: 'confirmed', coverage: { asked: 1 } } })
  expect((await post('k1')).body).toEqual(first.body)
  expect(await post('k1', { count: 2 })).toMatchObject({ status: 409, body: { code: 'key-reused' } })
  for (const key of ['', 'a b', 'x'.repeat(129), 'é'])
    expect(await post(key)).toMatchObject({ status: 422, body: { errors: [{ field: 'Idempotency-Key' }] } })
})

test('a mistake of ours is logged whole and told by its id only', async () => {
  const door = await testDoor()
  door.backend.instead.set('machines.get', () => {
    throw new TypeError('the password is hunter2')
  })
  const { status, body } = await door.send('GET', '/machines/lon1-000000', { headers: { 'x-request-id': 'r1' } })
  expect({ status, body }).toMatchObject({ status: 500, body: { code: 'internal', requestId: 'r1' } })
  expect(JSON.stringify(body)).not.toContain('hunter2')
  const line = JSON.parse(door.lines.find(text => text.includes('by a mistake of ours')) as string)
  expect(line).toMatchObject({ level: 'error', requestId: 'r1', call: 'machines.get', err: { type: 'TypeError' } })
  expect(line.err.stack).toContain('rest.test.ts')
})

test('an answer that does not fit the contract is a mistake of ours, where answers are checked', async () => {
  const door = await testDoor()
  door.backend.instead.set('machines.get', () => ({ id: 'no id' }))
  expect(await door.send('GET', '/machines/lon1-000000')).toMatchObject({ status: 500 })
})

test('a refusal that may pass says when to come back', async () => {
  const door = await testDoor()
  door.backend.instead.set('partitions.list', () => {
    throw new Refusal('database-away', 'PostgreSQL does not answer', { retryAfterMs: 2500 })
  })
  const { status, headers } = await door.send('GET', '/partitions')
  expect([status, headers.get('retry-after')]).toEqual([503, '3'])
})

test('the backend learns the deadline, and that its asker has gone', async () => {
  const door = await testDoor()
  const contexts: CallContext[] = []
  door.backend.instead.set('machines.power', async (_, context) => {
    contexts.push(context)
    await new Promise(resolve => context.signal.addEventListener('abort', resolve))
    throw new Refusal('deadline-passed', 'gone')
  })
  const gone = new AbortController()
  const asking = (body: object) =>
    fetch(`${door.url}/api/v1/machines/lon1-000000/power`, {
      method: 'POST',
      headers: { authorization: `Bearer ${tokenOf('admin')}`, 'content-type': 'application/json' },
      body: JSON.stringify(body),
      signal: gone.signal,
    }).catch(error => (error as Error).name)
  const answers = [asking({ action: 'on' }), asking({ action: 'on', wait: '5m' }), asking({ action: 'on', wait: '9d' })]
  while (contexts.length < 3) await sleep(5)
  const limits = contexts.map(({ deadline }) => Math.round((deadline - Date.now()) / 1000)).sort((a, b) => a - b)
  expect(limits).toEqual([10, 310, 3610])
  gone.abort()
  expect(await Promise.all(answers)).toEqual(['AbortError', 'AbortError', 'AbortError'])
  while (!contexts.every(({ signal }) => signal.aborted)) await sleep(5)
})

test('health, readiness and metrics answer without a token', async () => {
  const door = await testDoor({ health: () => ({ bus: 'in this process' }) })
  const get = async (path: string) => {
    const response = await fetch(`${door.url}${path}`)
    return { status: response.status, text: await response.text() }
  }
  expect(JSON.parse((await get('/healthz')).text)).toMatchObject({
    status: 'ok',
    kind: 'partition',
    name: 'lon1',
    version: '0.1.0',
    bus: 'in this process',
  })
  expect(await get('/readyz')).toMatchObject({ status: 200 })
  door.backend.checks.push({ name: 'bus', status: 'failed', detail: 'no connection' })
  const { status, text } = await get('/readyz')
  expect([status, JSON.parse(text)]).toEqual([
    503,
    {
      status: 'not-ready',
      checks: [
        { name: 'database', status: 'ok', detail: 'in memory' },
        { name: 'bus', status: 'failed', detail: 'no connection' },
      ],
    },
  ])

  await door.send('GET', '/machines/lon1-000000')
  await door.send('GET', '/machines/lon1-000000', { role: 'none' })
  const metrics = (await get('/metrics')).text
  expect(metrics).toContain('muster_http_request_seconds_count{call="machines.get",status="404"} 1')
  expect(metrics).toContain('muster_http_request_seconds_count{call="machines.get",status="401"} 1')
  expect(metrics).toContain('process_cpu_seconds_total')
  expect(metrics).not.toContain('lon1-000000')
})

test('closing lets requests under way finish, and cuts what takes too long', async () => {
  for (const { drainMs, workMs, ends } of [
    { drainMs: 5000, workMs: 300, ends: 200 },
    { drainMs: 100, workMs: 5000, ends: 'cut' },
  ]) {
    const door = await testDoor({ drainMs })
    door.backend.instead.set('session.whoami', async (_, { caller }) => {
      await sleep(workMs, undefined, { ref: false })
      return { caller, server: { kind: 'partition', name: 'lon1', version: 'test' } }
    })
    const answer = door.send('GET', '/whoami').then(
      ({ status }) => status,
      () => 'cut',
    )
    await sleep(50)
    const started = performance.now()
    await door.close()
    expect(performance.now() - started).toBeLessThan(2000)
    expect(await answer).toBe(ends)
    await expect(door.send('GET', '/whoami')).rejects.toThrow()
  }
})

test('pages of other origins are let read nothing: no preflight is answered, no header allows one', async () => {
  const door = await testDoor()
  const preflight = { 'access-control-request-method': 'POST', 'access-control-request-headers': 'authorization' }
  for (const path of ['/api/v1/machines', '/trpc/machines.list', '/healthz'])
    for (const method of ['OPTIONS', 'GET']) {
      const { status, headers } = await fetch(door.url + path, { method, headers: { origin: 'https://evil.example', ...preflight } })
      expect([...headers.keys()].filter(name => name.startsWith('access-control-'))).toEqual([])
      if (method === 'OPTIONS') expect(status).toBe(405)
    }
})
