// Kernels and images over HTTP: whole, in pieces of one file, and to a herd. Real sockets, real files.
import { createHash, randomBytes } from 'node:crypto'
import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { Gate } from '../src/doors/files.ts'
import { runPartition, type TestPartition, until, virtualFiles } from './harness.ts'

let partition: TestPartition
let folder: string
const ends: (() => Promise<void>)[] = []
/** More than the buffers of a connection take by themselves. */
const large = randomBytes(24 * 2 ** 20)
const image = path.join('images', 'debian', '12', 'amd64')

function putImage(content: Buffer): void {
  const sha256 = createHash('sha256').update(content).digest('hex')
  writeFileSync(path.join(folder, image, 'root.img'), content)
  const description = { title: 'Debian', file: 'root.img', sha256, sizeBytes: content.length }
  writeFileSync(path.join(folder, image, 'image.json'), JSON.stringify(description))
  partition?.core.catalogue.refresh()
}

beforeAll(async () => {
  folder = mkdtempSync(path.join(tmpdir(), 'muster-files-test-'))
  cpSync(virtualFiles(), folder, { recursive: true })
  putImage(large)
  partition = await runPartition({ folder }, end => void ends.push(end))
})
afterAll(async () => {
  for (const end of ends.reverse()) await end()
  rmSync(folder, { recursive: true, force: true })
})

const get = (name: string, headers: Record<string, string> = {}, method = 'GET', signal: AbortSignal | null = null) =>
  fetch(`${partition.url}/boot/files/${name}`, { method, headers, signal })
const bytesOf = async (response: Response) => Buffer.from(await response.arrayBuffer())

test('a file comes whole, by its digest, by its head only, or not again', async () => {
  const whole = await get(`${image}/root.img`)
  const tag = whole.headers.get('etag') as string
  expect([whole.status, whole.headers.get('accept-ranges'), whole.headers.get('content-length')]).toEqual([
    200,
    'bytes',
    String(large.length),
  ])
  expect(tag).toBe(`"${createHash('sha256').update(large).digest('hex')}"`)
  expect((await bytesOf(whole)).equals(large)).toBe(true)
  const head = await get(`${image}/root.img`, {}, 'HEAD')
  expect([head.status, head.headers.get('content-length'), head.headers.get('etag')]).toEqual([200, String(large.length), tag])
  // fetch would forbid a cached answer.
  const again = await new Promise<number | undefined>(resolve => {
    const headers = { 'if-none-match': `"other", ${tag}` }
    request(`${partition.url}/boot/files/${image}/root.img`, { headers }, response => resolve(response.resume().statusCode)).end()
  })
  expect(again).toBe(304)
  const kernel = await get('agent/amd64/vmlinuz')
  expect(kernel.headers.get('etag')).toMatch(/^W\/"[\w-]+"$/)
  expect((await get('agent/amd64/absent')).status).toBe(404)
})

test('pieces are of one file: a range, a rest, an end, one that is not there, and all of it where the file has changed', async () => {
  const tag = (await get(`${image}/root.img`, {}, 'HEAD')).headers.get('etag') as string
  for (const [range, from, to] of [
    ['bytes=0-1023', 0, 1024],
    ['bytes=3000000-', 3_000_000, large.length],
    ['bytes=-10', large.length - 10, large.length],
  ] as const) {
    const piece = await get(`${image}/root.img`, { range, 'if-range': tag })
    expect([piece.status, piece.headers.get('content-range')]).toEqual([206, `bytes ${from}-${to - 1}/${large.length}`])
    expect((await bytesOf(piece)).equals(large.subarray(from, to))).toBe(true)
  }
  const beyond = await get(`${image}/root.img`, { range: `bytes=${large.length}-` })
  expect([beyond.status, beyond.headers.get('content-range')]).toEqual([416, `bytes */${large.length}`])
  putImage(Buffer.concat([Buffer.from('new'), large]))
  const changed = await get(`${image}/root.img`, { range: 'bytes=1024-', 'if-range': tag })
  expect([changed.status, changed.headers.get('etag') === tag, (await bytesOf(changed)).length]).toEqual([200, false, large.length + 3])
  putImage(large)
})

test('hundreds that stop reading take every place: scripts come all the same, and who leaves gives a place back', {
  timeout: 60_000,
}, async () => {
  const { hostname, port } = new URL(partition.url)
  const sockets = Array.from({ length: 300 }, () => {
    const socket = connect(Number(port), hostname)
    socket.on('error', () => undefined)
    socket.write(`GET /boot/files/${image}/root.img HTTP/1.1\r\nHost: x\r\n\r\n`)
    socket.pause()
    return socket
  })
  // A small file is not answered any more: there is no place.
  const answers = () =>
    get('agent/amd64/vmlinuz', {}, 'GET', AbortSignal.timeout(500)).then(
      response => response.ok,
      () => false,
    )
  await until(async () => !(await answers()))
  const asked = Date.now()
  expect((await partition.ask('GET', '/boot/ipxe/52:54:00:12:34:56')).text).toContain('muster.mode=enlist')
  expect(Date.now() - asked).toBeLessThan(5_000)
  const waiting = get('agent/amd64/vmlinuz').then(response => response.text())
  expect(await Promise.race([waiting, sleep(1_000)])).toBeUndefined()
  for (const socket of sockets) socket.destroy()
  expect(await waiting).toBe('vmlinuz for amd64\n')
})

test('a gate lets in so many, then in the order they came, and refuses who cannot even wait', async () => {
  const gate = new Gate(1, 2)
  const patient = () => AbortSignal.timeout(5_000)
  const first = await gate.enter(patient())
  const order: string[] = []
  const enter = async (name: string, signal = patient()) => {
    const place = await gate.enter(signal)
    order.push(place === 'full' ? `${name} full` : name)
    return place
  }
  const [second, third] = [enter('second', AbortSignal.timeout(20)), enter('third')]
  expect(await enter('fourth')).toBe('full')
  expect(await second).toBe('full')
  if (first !== 'full') {
    first.leave()
    first.leave()
  }
  const place = await third
  expect(order).toEqual(['fourth full', 'second full', 'third'])
  expect(gate.waiting).toBe(0)
  if (place !== 'full') place.leave()
  await until(async () => (await gate.enter(AbortSignal.timeout(1))) !== 'full')
  expect(await gate.enter(AbortSignal.timeout(5))).toBe('full')
})

test('a herd of two thousand gets every script', { timeout: 120_000 }, async () => {
  const macs = Array.from(
    { length: 2_000 },
    (_, index) => `52:54:01:00:${(index >> 8).toString(16).padStart(2, '0')}:${(index & 255).toString(16).padStart(2, '0')}`,
  )
  const texts = await Promise.all(macs.map(async mac => (await partition.ask('GET', `/boot/ipxe/${mac}`)).text))
  expect(texts.filter(text => text.startsWith('#!ipxe\n') && text.includes('muster.mode=enlist'))).toHaveLength(2_000)
})
