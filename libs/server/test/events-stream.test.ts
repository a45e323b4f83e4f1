import { setTimeout as sleep } from 'node:timers/promises'
import { createClient } from '@muster/shared/client'
import { Refusal } from '@muster/shared/errors'
import { expect, test } from 'vitest'
import { testDoor, tokenOf } from './door-for-tests.ts'
import { type ModelBackend, modelBackend } from './model-backend.ts'

/** Opens a stream and gives its text so far, as it grows. */
async function openStream(url: string, query = '', headers: Record<string, string> = {}) {
  const stop = new AbortController()
  const response = await fetch(`${url}/api/v1/events/stream${query}`, {
    headers: { authorization: `Bearer ${tokenOf('read-only')}`, ...headers },
    signal: stop.signal,
  })
  const stream = { status: response.status, type: response.headers.get('content-type'), text: '', ended: false, stop: () => stop.abort() }
  const read = async () => {
    for await (const chunk of response.body ?? []) stream.text += Buffer.from(chunk).toString()
  }
  void read()
    .catch(() => undefined)
    .finally(() => {
      stream.ended = true
    })
  return stream
}

async function until(isTrue: () => boolean, limitMs = 5000): Promise<void> {
  const limit = Date.now() + limitMs
  while (!isTrue()) {
    if (Date.now() > limit) throw new Error('it did not come true in time')
    await sleep(5)
  }
}

const idsIn = (text: string) => [...text.matchAll(/^id: (.*)\ndata:/gm)].map(([, id]) => id)

test('without a position a stream starts now, and shows each event at once', async () => {
  const door = await testDoor()
  door.backend.note('old')
  const stream = await openStream(door.url)
  expect(stream).toMatchObject({ status: 200, type: 'text/event-stream' })
  await until(() => door.backend.listeners() === 1)
  const started = performance.now()
  door.backend.note('machine.moved', 'lon1-000000')
  await until(() => idsIn(stream.text).length === 1)
  // By the notice, not by the poll of a second.
  expect(performance.now() - started).toBeLessThan(500)
  expect(stream.text).not.toContain('"old"')
  expect(stream.text).toContain('"machine":"lon1-000000"')
  stream.stop()
  await until(() => door.backend.listeners() === 0)
})

test('Last-Event-ID goes on exactly there, before `after`', async () => {
  const door = await testDoor()
  for (let index = 1; index <= 250; index++) door.backend.note(`e${index}`)
  const whole = await openStream(door.url, '?after=0')
  await until(() => idsIn(whole.text).length === 250)
  expect(idsIn(whole.text).map(id => Number(id?.match(/lon1:(\d+)/)?.[1]))).toEqual(Array.from({ length: 250 }, (_, index) => index + 1))

  const position = idsIn(whole.text)[246] as string
  const resumed = await openStream(door.url, '?after=0', { 'last-event-id': position })
  await until(() => idsIn(resumed.text).length === 3)
  door.backend.note('e251')
  await until(() => idsIn(resumed.text).length === 4)
  expect([...resumed.text.matchAll(/"kind":"(e\d+)"/g)].map(([, kind]) => kind)).toEqual(['e248', 'e249', 'e250', 'e251'])
  whole.stop()
  resumed.stop()
})

test('a position that is none is refused before the stream begins', async () => {
  const door = await testDoor()
  for (const headers of [{ 'last-event-id': 'x y' }, {}]) {
    const answer = await door.send('GET', '/events/stream?after=yesterday', { headers })
    expect(answer).toMatchObject({ status: 422, body: { errors: [{ field: 'after' }] } })
  }
  expect(await door.send('GET', '/events/stream', { role: 'none' })).toMatchObject({ status: 401 })
  expect(door.backend.listeners()).toBe(0)
  const head = await fetch(`${door.url}/api/v1/events/stream`, { method: 'HEAD', headers: { authorization: `Bearer ${tokenOf('user')}` } })
  expect([head.status, door.backend.listeners()]).toEqual([200, 0])
})

test('comments keep the line alive, and carry a position that moved without an event to show', async () => {
  const door = await testDoor({ keepAliveMs: 20 })
  const stream = await openStream(door.url, '?kind=wanted')
  await until(() => stream.text.includes(': still here'))
  door.backend.note('unwanted')
  await until(() => stream.text.includes('id: lon1:1,end\n\n') || stream.text.includes('id: lon1:1\n\n'))
  expect(idsIn(stream.text)).toEqual([])
  stream.stop()
})

test('a stream outlives a database that is away, and ends with what will not pass', async () => {
  const door = await testDoor()
  const stream = await openStream(door.url)
  await until(() => door.backend.listeners() === 1)
  door.backend.instead.set('events.list', () => {
    throw new Refusal('database-away', 'PostgreSQL restarts')
  })
  door.backend.note('during')
  await sleep(50)
  door.backend.instead.delete('events.list')
  door.backend.note('after')
  await until(() => idsIn(stream.text).length === 2)
  door.backend.instead.set('events.list', () => {
    throw new Refusal('forbidden', 'no more')
  })
  door.backend.note('never seen')
  await until(() => stream.ended)
  expect(door.backend.listeners()).toBe(0)
})

test('a reader who does not read makes nobody hold the log for it', async () => {
  const model = modelBackend()
  for (let index = 0; index < 20_000; index++) model.note('x'.repeat(200))
  let readings = 0
  const counting: ModelBackend = {
    ...model,
    call: (name, input, context) => {
      readings++
      return model.call(name, input, context)
    },
  }
  const door = await testDoor({ backend: counting })
  const stop = new AbortController()
  await fetch(`${door.url}/api/v1/events/stream?after=0`, { headers: { authorization: `Bearer ${tokenOf('user')}` }, signal: stop.signal })
  await until(() => readings > 0)
  let before = -1
  while (before !== readings) {
    before = readings
    await sleep(200)
  }
  // 6 MB are waiting; what the sockets' buffers take is read, and not more.
  expect(readings).toBeLessThan(195)
  stop.abort()
})

test('closing the door ends its streams; the client goes on at the next door', async () => {
  const first = await testDoor()
  const { port } = new URL(first.url)
  const client = createClient({ url: first.url, token: tokenOf('user') })
  const stop = new AbortController()
  const seen: string[] = []
  const following = (async () => {
    for await (const { data } of client.events.stream({}, { signal: stop.signal })) seen.push(data.kind)
  })()
  await until(() => first.backend.listeners() === 1)
  first.backend.note('one')
  await until(() => seen.length === 1)
  const started = performance.now()
  await first.close()
  expect(performance.now() - started).toBeLessThan(1000)
  first.backend.note('two')
  const second = await testDoor({ backend: first.backend, port: Number(port) })
  second.backend.note('three')
  await until(() => seen.length === 3)
  expect(seen).toEqual(['one', 'two', 'three'])
  stop.abort()
  await following
})
