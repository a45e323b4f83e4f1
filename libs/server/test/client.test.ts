import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { createClient, UnreachableError } from '@muster/shared/client'
import { Refusal } from '@muster/shared/errors'
import type { Machine } from '@muster/shared/machine'
import { expect, expectTypeOf, onTestFinished, test } from 'vitest'
import { addReady, testDoor, tokenOf } from './door-for-tests.ts'

const clientFor = (url: string, timeoutMs = 5000) => createClient({ url, token: tokenOf('admin'), timeoutMs })

/** A server that answers each request with the next of `answers`, and remembers what it was asked. */
async function scripted(...answers: (readonly [status: number, body: string, headers?: Record<string, string>])[]) {
  const asked: { method: string | undefined; url: string | undefined; key: string | undefined }[] = []
  const server = createServer((incoming, outgoing) => {
    incoming.resume()
    asked.push({ method: incoming.method, url: incoming.url, key: incoming.headers['idempotency-key'] as string | undefined })
    const [status, body, headers] = answers[Math.min(asked.length, answers.length) - 1] as (typeof answers)[number]
    outgoing.writeHead(status, headers).end(body)
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  return { asked, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }
}

const problem = (code: string, status: number) =>
  JSON.stringify({ type: `urn:muster:error:${code}`, title: 't', status, detail: 'd', code, retryable: true })

test('the client is typed by the contract', () => {
  const client = clientFor('http://unused')
  expectTypeOf(client.machines.get).parameter(0).toEqualTypeOf<{ id: string }>()
  expectTypeOf(client.machines.list).parameter(0).extract<undefined>().toEqualTypeOf<undefined>()
  expectTypeOf<Awaited<ReturnType<typeof client.machines.list>>['items']>().toEqualTypeOf<Machine[]>()
  expectTypeOf<Awaited<ReturnType<typeof client.machines.delete>>>().toEqualTypeOf<null>()
  // @ts-expect-error an id is needed
  expectTypeOf(client.machines.get).toBeCallableWith()
  expectTypeOf(client.events.stream).returns.toHaveProperty('next')
})

test('machines go there and back', async () => {
  const door = await testDoor()
  const client = clientFor(`${door.url}/`)
  const { id } = await client.machines.create({ interfaces: [{ mac: '52:54:00:00:00:01' }], tags: ['a', 'b'] })
  expect(await client.machines.list({ tag: ['a', 'b'], state: ['new', 'ready'], limit: 3, locked: false })).toMatchObject({
    items: [{ id }],
  })
  expect(await client.machines.update({ id, note: 'mine' })).toMatchObject({ note: 'mine' })
  expect(await client.tags.put({ name: 'a.b_c' })).toMatchObject({ name: 'a.b_c' })
  expect(await client.machines.delete({ id })).toBeNull()
  const refused = await client.machines.get({ id }).catch(error => error)
  expect(refused).toBeInstanceOf(Refusal)
  expect(refused).toMatchObject({ code: 'not-found' })
  expect(await client.machines.list({ limit: 0 }).catch(error => error)).toMatchObject({
    code: 'invalid-input',
    facts: { errors: [{ field: 'limit' }] },
  })
  expect(await client.machines.get({ id: 'a/../b' }).catch(error => error)).toMatchObject({ code: 'invalid-input' })
})

test('what may pass is asked again, with the same key', async () => {
  const away = [503, problem('nothing-allocated', 503), { 'retry-after': '0' }] as const
  const { asked, url } = await scripted(away, away, [201, '{"id":null}'])
  await clientFor(url).allocations.create({})
  expect(asked.map(({ method }) => method)).toEqual(['POST', 'POST', 'POST'])
  expect(asked[0]?.key).toMatch(/^[0-9a-f-]{36}$/)
  expect(new Set(asked.map(({ key }) => key)).size).toBe(1)
})

test('an allocation over a broken line is one allocation', async () => {
  const door = await testDoor()
  addReady(door.backend, 5)
  let broken = 0
  const flaky: typeof fetch = async (input, init) => {
    const response = await fetch(input, init)
    if (broken++ > 0) return response
    await response.body?.cancel()
    throw new TypeError('fetch failed', { cause: new Error('ECONNRESET') })
  }
  const client = createClient({ url: door.url, token: tokenOf('user'), fetch: flaky })
  await client.allocations.create({ count: 2 })
  expect([...door.backend.machines.values()].filter(({ state }) => state === 'allocated')).toHaveLength(2)
})

test('a refusal that leaves open what came of the attempt before is no end of the call; of a first attempt it is', async () => {
  const open = [409, JSON.stringify({ ...JSON.parse(problem('no-match', 409)), earlierAttempts: 'unknown' })] as const
  const away = [503, problem('nothing-allocated', 503), { 'retry-after': '0' }] as const
  const { asked, url } = await scripted(away, open, open, [201, '{"id":"a-1"}'])
  expect(await clientFor(url).allocations.create({})).toEqual({ id: 'a-1' })
  expect(new Set(asked.map(({ key }) => key)).size).toBe(1)

  const first = await scripted(open)
  const refused = expect.objectContaining({ code: 'no-match', facts: expect.objectContaining({ earlierAttempts: 'unknown' }) })
  await expect(clientFor(first.url).allocations.create({})).rejects.toEqual(refused)
  expect(first.asked).toHaveLength(1)

  // Within the budget of any call, and told as what it is when that is used up.
  const never = await scripted(away, open)
  await expect(clientFor(never.url).allocations.create({})).rejects.toEqual(refused)
  expect(never.asked).toHaveLength(5)
})

test('what would not be harmless, or would not help, is asked once', async () => {
  const once = async (status: number, code: string, call: (client: ReturnType<typeof clientFor>) => Promise<unknown>) => {
    const { asked, url } = await scripted([status, problem(code, status)])
    await expect(call(clientFor(url))).rejects.toMatchObject({ code })
    return asked.length
  }
  expect(await once(503, 'database-away', client => client.machines.release({ id: 'lon1-000000' }))).toBe(1)
  expect(await once(404, 'not-found', client => client.machines.get({ id: 'lon1-000000' }))).toBe(1)
  expect(await once(409, 'no-match', client => client.allocations.create({}))).toBe(1)
})

test('attempts are bounded, and so is their time', async () => {
  const { asked, url } = await scripted([503, problem('bus-away', 503)])
  await expect(clientFor(url, 60_000).partitions.list()).rejects.toMatchObject({ code: 'bus-away' })
  expect(asked).toHaveLength(5)
  const started = performance.now()
  const late = await scripted([503, problem('bus-away', 503), { 'retry-after': '30' }])
  await expect(clientFor(late.url, 300).partitions.list()).rejects.toMatchObject({ code: 'bus-away' })
  expect(performance.now() - started).toBeLessThan(5000)
})

test('what is not Muster is unreachable, and an unknown code is read by its status', async () => {
  const proxy = await scripted([502, '<html>Bad gateway</html>'])
  await expect(clientFor(proxy.url, 300).session.whoami()).rejects.toBeInstanceOf(UnreachableError)
  await expect(clientFor('http://127.0.0.1:1', 300).session.whoami()).rejects.toThrow(/GET http:.*fetch failed: /)
  const newer = await scripted([404, problem('moved-elsewhere', 404)])
  await expect(clientFor(newer.url).session.whoami()).rejects.toMatchObject({ code: 'not-found', facts: { code: 'moved-elsewhere' } })
})

test('a caller may give up', async () => {
  const { url } = await scripted([503, problem('bus-away', 503), { 'retry-after': '3' }])
  const stop = new AbortController()
  const asking = clientFor(url, 60_000).partitions.list({}, { signal: stop.signal })
  setTimeout(() => stop.abort(new Error('enough')), 50)
  await expect(asking).rejects.toThrow('enough')
})

test('a stream that is refused for good ends with the refusal', async () => {
  const door = await testDoor()
  const client = createClient({ url: door.url, token: 'wrong' })
  await expect(client.events.stream().next()).rejects.toMatchObject({ code: 'unauthenticated' })
})
