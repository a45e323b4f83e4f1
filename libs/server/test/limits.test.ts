// What a client may cost a server: how often it asks, how long it takes to ask, how many connections it holds, and what it does not take of the answers.
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { createClient } from '@muster/shared/client'
import { Refusal } from '@muster/shared/errors'
import { expect, onTestFinished, test, vi } from 'vitest'
import { Rates } from '../src/http/rates.ts'
import { testDoor, tokenOf } from './door-for-tests.ts'

/** A bare connection; what came over it, and whether it ended. */
async function open(url: string): Promise<{ socket: Socket; text: () => string; isOver: () => boolean }> {
  const { hostname, port } = new URL(url)
  const socket = connect(Number(port), hostname)
  onTestFinished(() => void socket.destroy())
  let text = ''
  let isOver = false
  socket.on('data', more => {
    text += more
  })
  socket.on('close', () => {
    isOver = true
  })
  // A reset is an end as well.
  socket.on('error', () => undefined)
  await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject))
  return { socket, text: () => text, isOver: () => isOver }
}

test('a caller that asks too often is told when to come back; others go on, and what runs no call is not counted', async () => {
  const refused: string[] = []
  const audit = {
    carryOut: <T>(_: unknown, work: () => Promise<T>) => work(),
    refused: ({ caller, call, code }: { caller: { name: string }; call: string; code: string }) =>
      void refused.push(`${caller.name} ${call} ${code}`),
  }
  const door = await testDoor({ rateLimit: { perSecond: 1, atOnce: 4 }, audit })
  const asUser = () => door.send('GET', '/partitions', { role: 'user' })
  const answers = await Promise.all(Array.from({ length: 20 }, asUser))
  expect(answers.filter(({ status }) => status === 200).length).toBeGreaterThanOrEqual(4)
  const refusals = answers.filter(({ status }) => status === 429)
  expect(refusals).not.toEqual([])
  for (const { headers, body } of refusals) {
    expect(headers.get('retry-after')).toBe('1')
    expect(body).toMatchObject({ code: 'too-many-requests', retryable: true, retryAfterMs: expect.any(Number) })
  }
  expect(new Set(refused)).toEqual(new Set(['user partitions.list too-many-requests']))
  // By tRPC it is the same caller.
  const byTrpc = () => fetch(`${door.url}/trpc/partitions.list`, { headers: { authorization: `Bearer ${tokenOf('user')}` } })
  expect((await Promise.all(Array.from({ length: 10 }, byTrpc))).map(({ status }) => status)).toContain(429)
  expect((await door.send('GET', '/partitions', { role: 'operator' })).status).toBe(200)
  for (let time = 0; time < 10; time++) expect((await fetch(`${door.url}/healthz`)).status).toBe(200)
  // The client waits as it is told: also with a call that it would not repeat otherwise, for nothing was done.
  const client = createClient({ url: door.url, token: tokenOf('user') })
  expect((await client.partitions.list({})).items).toBeDefined()
  await Promise.all(Array.from({ length: 4 }, asUser))
  await expect(client.machines.lock({ id: 'lon1-000000', reason: 'x' })).rejects.toMatchObject({ code: 'not-found' })
})

test('a caller has its rate for ever, and what it left over at once; the memory of callers is bounded', () => {
  const rates = new Rates({ perSecond: 100, atOnce: 10 })
  let taken = 0
  for (let now = 0; now < 10_000; now++) if (rates.take('alice', now) === 0) taken++
  expect(taken).toBeGreaterThanOrEqual(1_000)
  expect(taken).toBeLessThanOrEqual(1_011)
  for (let time = 0; time < 10; time++) expect(rates.take('bob', 10_000)).toBe(0)
  expect(rates.take('bob', 10_000)).toBeCloseTo(10)
  expect(rates.take('bob', 10_010)).toBe(0)
  for (let index = 0; index < 50_000; index++) rates.take(`from 2001:db8::${index.toString(16)}`, 10_010)
  expect(rates.callers).toBe(10_000)
})

test('no limit is an answer too', async () => {
  const door = await testDoor({ rateLimit: 'none' })
  for (let time = 0; time < 50; time++) expect((await door.send('GET', '/partitions')).status).toBe(200)
})

test('who says nothing, or one letter at a time, or a body without end, is let go', async () => {
  const door = await testDoor({ limits: { headMs: 300, requestMs: 600 } })
  const silent = await open(door.url)
  const slow = await open(door.url)
  slow.socket.write('GET /healthz HTTP/1.1\r\n')
  const body = await open(door.url)
  const head = `POST /api/v1/allocations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${tokenOf('admin')}\r\ncontent-type: application/json\r\n`
  body.socket.write(`${head}content-length: 1000\r\n\r\n{`)
  const drip = setInterval(() => {
    if (!slow.isOver()) slow.socket.write('x')
    if (!body.isOver()) body.socket.write(' ')
  }, 50)
  onTestFinished(() => clearInterval(drip))
  await vi.waitFor(() => expect([silent, slow, body].map(({ isOver }) => isOver())).toEqual([true, true, true]), { timeout: 10_000 })
  for (const { text } of [slow, body]) expect(text()).toMatch(/^HTTP\/1\.1 408 /)
  expect((await fetch(`${door.url}/healthz`)).status).toBe(200)
})

test('a head of more than 16 KiB is refused', async () => {
  const door = await testDoor()
  const large = await open(door.url)
  large.socket.write(`GET /healthz HTTP/1.1\r\nhost: x\r\ncookie: ${'x'.repeat(17_000)}\r\n\r\n`)
  await vi.waitFor(() => expect(large.isOver()).toBe(true), { timeout: 10_000 })
  expect(large.text()).toMatch(/^HTTP\/1\.1 431 /)
})

test('who does not take its answers is let go; who waits for one is not', { timeout: 30_000 }, async () => {
  const door = await testDoor({ limits: { unreadMs: 300 } })
  door.backend.instead.set('partitions.list', async () => {
    await sleep(1_000)
    throw new Refusal('not-ready', 'after a while')
  })
  const waiting = door.send('GET', '/partitions')
  const deaf = await open(door.url)
  deaf.socket.pause()
  const asks = 400
  deaf.socket.write('GET /api/v1/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n'.repeat(asks))
  await vi.waitFor(() => expect(door.lines.some(line => line.includes('an answer is not taken'))).toBe(true), { timeout: 20_000 })
  deaf.socket.resume()
  await vi.waitFor(() => expect(deaf.isOver()).toBe(true), { timeout: 5_000 })
  expect(deaf.text().split('HTTP/1.1 200').length - 1).toBeLessThan(asks)
  expect((await waiting).status).toBe(503)
})

test('of more connections than are taken the last are closed; there is room again when one ends', async () => {
  const door = await testDoor({ limits: { connections: 3 } })
  const held = [await open(door.url), await open(door.url), await open(door.url)]
  const late = await open(door.url)
  await vi.waitFor(() => expect(late.isOver()).toBe(true))
  expect(held.map(({ isOver }) => isOver())).toEqual([false, false, false])
  expect(door.lines.some(line => line.includes('more connections came than are taken'))).toBe(true)
  held[0]?.socket.destroy()
  await vi.waitFor(async () => expect((await fetch(`${door.url}/healthz`, { headers: { connection: 'close' } })).status).toBe(200))
})

test('no page of another site reads an answer: whoever asks from one is told nothing of being allowed', async () => {
  const door = await testDoor()
  const origin = { origin: 'https://elsewhere.example' }
  const preflight = await fetch(`${door.url}/api/v1/machines`, {
    method: 'OPTIONS',
    headers: { ...origin, 'access-control-request-method': 'POST' },
  })
  expect(preflight.status).toBe(405)
  const answers = [
    preflight,
    await fetch(`${door.url}/api/v1/docs`, { headers: origin }),
    await fetch(`${door.url}/healthz`, { headers: origin }),
  ]
  const { headers } = await door.send('GET', '/machines', { headers: origin })
  for (const each of [headers, ...answers.map(answer => answer.headers)]) {
    expect([...each.keys()].filter(name => name.startsWith('access-control-'))).toEqual([])
    expect(Object.fromEntries(each)).toMatchObject({
      'x-content-type-options': 'nosniff',
      'referrer-policy': 'no-referrer',
      'content-security-policy': expect.stringContaining("frame-ancestors 'none'"),
    })
  }
})
