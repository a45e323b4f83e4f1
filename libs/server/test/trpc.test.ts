import { type CallRequest, calls } from '@muster/shared/contract/contract'
import type { Event } from '@muster/shared/contract/events'
import type { Machine } from '@muster/shared/machine'
import { createTRPCClient, httpBatchLink, httpLink, type TRPCClientError } from '@trpc/client'
import { describe, expect, expectTypeOf, test } from 'vitest'
import type { AppRouter } from '../src/http/trpc.ts'
import { addReady, type TestDoor, type TokenRole, testDoor, tokenOf } from './door-for-tests.ts'

function clientOf(door: TestDoor, { role = 'admin', headers = {} }: { role?: TokenRole; headers?: Record<string, string> } = {}) {
  const link = { url: `${door.url}/trpc`, headers: { authorization: `Bearer ${tokenOf(role)}`, ...headers } }
  return {
    batched: createTRPCClient<AppRouter>({ links: [httpBatchLink(link)] }),
    single: createTRPCClient<AppRouter>({ links: [httpLink(link)] }),
  }
}

async function problemOf(call: Promise<unknown>) {
  try {
    await call
  } catch (error) {
    const { data } = error as TRPCClientError<AppRouter>
    return { status: data?.httpStatus, code: data?.code, problem: data?.problem }
  }
  throw new Error('the call was not refused')
}

test('the client is typed by the contract', () => {
  const client = createTRPCClient<AppRouter>({ links: [httpLink({ url: 'http://unused' })] })
  type Client = typeof client
  expectTypeOf<Client['machines']['list']['query']>().parameter(0).extract<{ limit?: number }>().toHaveProperty('state')
  expectTypeOf<Awaited<ReturnType<Client['machines']['list']['query']>>['items'][number]['state']>().toEqualTypeOf<Machine['state']>()
  expectTypeOf<Awaited<ReturnType<Client['machines']['list']['query']>>>().toHaveProperty('coverage')
  expectTypeOf<Awaited<ReturnType<Client['machines']['get']['query']>>>().not.toHaveProperty('coverage')
  expectTypeOf<Client['machines']['deploy']['mutate']>().parameter(0).toEqualTypeOf<CallRequest<'machines.deploy'>>()
  expectTypeOf<Client['events']['stream']>().toHaveProperty('subscribe')
  type OnData = NonNullable<Parameters<Client['events']['stream']['subscribe']>[1]['onData']>
  expectTypeOf<OnData>().parameter(0).toEqualTypeOf<{ id: string; data: Event }>()
  // @ts-expect-error a query is not mutated
  expectTypeOf(client.machines.list.mutate)
  // @ts-expect-error an id is needed
  expectTypeOf(client.machines.get.query).toBeCallableWith({})
  // @ts-expect-error there is no such state
  expectTypeOf(client.machines.list.query).toBeCallableWith({ state: ['happy'] })
})

describe('over tRPC', () => {
  test('every call of the contract is there, as the kind its type says', async () => {
    const door = await testDoor()
    for (const [name, call] of calls) {
      const expected = call.rest.method === 'GET' ? 'GET' : 'POST'
      const other = expected === 'GET' ? 'POST' : 'GET'
      const response = await fetch(`${door.url}/trpc/${name}`, {
        method: other,
        headers: { 'content-type': 'application/json', authorization: `Bearer ${tokenOf('admin')}` },
        ...(other === 'POST' && { body: '{}' }),
      })
      if (call.kind !== 'stream') expect(`${name} ${response.status}`).toBe(`${name} 405`)
      await response.body?.cancel()
    }
  })

  test('machines go there and back', async () => {
    const door = await testDoor()
    const { batched, single } = clientOf(door)
    const made = await single.machines.create.mutate({ interfaces: [{ mac: '52:54:00:00:00:01' }], hostname: 'web-1' })
    const [list, got, me] = await Promise.all([
      batched.machines.list.query({ state: ['new'], limit: 10 }),
      batched.machines.get.query({ id: made.id }),
      batched.session.whoami.query(),
    ])
    expect(list).toMatchObject({ items: [{ id: made.id }], coverage: { answered: 1 } })
    expect(got.hostname).toBe('web-1')
    expect(me.caller).toEqual({ name: 'admin', role: 'admin' })
    expect(await single.machines.delete.mutate({ id: made.id })).toBeNull()
  })

  test('refusals are the same problem documents as REST gives', async () => {
    const door = await testDoor()
    const { single } = clientOf(door)
    const rest = await door.send('GET', '/machines/lon1-000000')
    expect(await problemOf(single.machines.get.query({ id: 'lon1-000000' }))).toEqual({
      status: 404,
      code: 'NOT_FOUND',
      problem: rest.body,
    })
    const invalid = await door.send('GET', '/machines?limit=0')
    expect(await problemOf(single.machines.list.query({ limit: 0 }))).toEqual({
      status: 422,
      code: 'UNPROCESSABLE_CONTENT',
      problem: invalid.body,
    })
    expect(await problemOf(single.machines.list.query({ hostname: 'a\u0000' }))).toMatchObject({
      status: 422,
      problem: { code: 'invalid-input' },
    })
    expect(await problemOf(single.machines.list.query({ colour: 'red' } as never))).toMatchObject({
      problem: { errors: [{ field: 'colour' }] },
    })
    expect(await problemOf(clientOf(door, { role: 'read-only' }).single.machines.delete.mutate({ id: 'lon1-000000' }))).toMatchObject({
      status: 403,
      problem: { code: 'forbidden' },
    })
    expect(await problemOf(clientOf(door, { headers: { authorization: 'Bearer wrong' } }).single.session.whoami.query())).toMatchObject({
      status: 401,
      problem: { code: 'unauthenticated' },
    })
    expect(await problemOf((single as never as { machines: { frob: { query(): Promise<never> } } }).machines.frob.query())).toMatchObject({
      status: 404,
      problem: { code: 'not-found' },
    })
  })

  test('a mistake of ours is told by its id only', async () => {
    const door = await testDoor()
    door.backend.instead.set('machines.get', () => {
      throw new TypeError('the password is hunter2')
    })
    const refused = await problemOf(clientOf(door, { headers: { 'x-request-id': 'r1' } }).single.machines.get.query({ id: 'lon1-000000' }))
    expect(refused).toMatchObject({ status: 500, problem: { code: 'internal', requestId: 'r1' } })
    expect(JSON.stringify(refused)).not.toContain('hunter2')
    expect(door.lines.join()).toContain('hunter2')
  })

  test('an Idempotency-Key counts, and cannot be the key of several calls', async () => {
    const door = await testDoor()
    addReady(door.backend, 3)
    const { single, batched } = clientOf(door, { headers: { 'idempotency-key': 'k1' } })
    const first = await single.allocations.create.mutate({ count: 1 })
    expect(await single.allocations.create.mutate({ count: 1 })).toEqual(first)
    const both = await Promise.all([problemOf(batched.allocations.create.mutate({})), problemOf(batched.allocations.create.mutate({}))])
    expect(both).toMatchObject([{ problem: { code: 'malformed' } }, { problem: { code: 'malformed' } }])
  })

  test('what is too large, no JSON, or too many at once is refused', async () => {
    const door = await testDoor()
    const post = async (path: string, body: string, type = 'application/json') => {
      const response = await fetch(`${door.url}/trpc/${path}`, {
        method: 'POST',
        headers: { 'content-type': type, authorization: `Bearer ${tokenOf('admin')}` },
        body,
      })
      return { status: response.status, text: await response.text() }
    }
    expect(await post('allocations.create', JSON.stringify({ note: 'x'.repeat(2_000_000) }))).toMatchObject({ status: 413 })
    expect(await post('allocations.create', 'a=b', 'application/x-www-form-urlencoded')).toMatchObject({ status: 415 })
    const broken = await post('allocations.create', '{"note":')
    expect(broken.status).toBe(400)
    expect(broken.text).toContain('"code":"malformed"')
    const many = Array.from({ length: 21 }, () => 'session.whoami').join(',')
    const response = await fetch(`${door.url}/trpc/${many}?batch=1&input={}`, { headers: { authorization: `Bearer ${tokenOf('admin')}` } })
    expect(response.status).toBe(400)
  })

  test('the stream of events is a subscription that can be resumed', async () => {
    const door = await testDoor()
    for (const kind of ['one', 'two', 'three']) door.backend.note(kind)
    const read = async (input: object, count: number) => {
      const stop = new AbortController()
      const response = await fetch(`${door.url}/trpc/events.stream?input=${encodeURIComponent(JSON.stringify(input))}`, {
        headers: { authorization: `Bearer ${tokenOf('user')}`, accept: 'text/event-stream' },
        signal: stop.signal,
      })
      let text = ''
      const reader = (response.body as ReadableStream<Uint8Array>).getReader()
      while ((text.match(/"seq"/g) ?? []).length < count) text += Buffer.from((await reader.read()).value ?? []).toString()
      stop.abort()
      return {
        kinds: [...text.matchAll(/"kind":"(\w+)"/g)].map(([, kind]) => kind),
        ids: [...text.matchAll(/^id: ?(.*)$/gm)].map(([, id]) => id),
      }
    }
    const { kinds, ids } = await read({ after: '0' }, 3)
    expect(kinds).toEqual(['one', 'two', 'three'])
    expect((await read({ after: '0', lastEventId: ids[1] }, 1)).kinds).toEqual(['three'])
    while (door.backend.listeners() > 0) await new Promise(resolve => setTimeout(resolve, 10))
  })
})
