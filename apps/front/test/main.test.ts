// The front as a process: on an empty disk, with a broker that comes late, and to its end.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Broker, startBroker } from '@muster/embedded/broker'
import { connectNats } from '@muster/server/bus/nats-bus'
import { createLog } from '@muster/server/log'
import { newToken } from '@muster/server/tokens'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { frontConfig } from '../src/config.ts'
import { ModelPartition } from './model-partition.ts'

const main = path.resolve(import.meta.dirname, '../src/main.ts')
const log = createLog({ level: 'silent', name: 'test' })

describe('a front as a process', () => {
  let folder: string
  let token: string
  const children: ChildProcess[] = []
  const stops: (() => Promise<void> | void)[] = []

  beforeEach(() => {
    folder = mkdtempSync(path.join(tmpdir(), 'muster-front-'))
    const made = newToken()
    token = made.token
    writeFileSync(path.join(folder, 'tokens.json'), JSON.stringify({ tokens: [{ name: 'alice', role: 'user', sha256: made.sha256 }] }))
  })
  afterEach(async () => {
    for (const child of children.splice(0)) child.kill('SIGKILL')
    for (const stop of stops.splice(0).reverse()) await stop()
    rmSync(folder, { recursive: true, force: true })
  })

  const broker = async (port = 0): Promise<Broker> => {
    const started = await startBroker({ port, token: 'secret-of-the-bus' })
    stops.push(() => started.close())
    return started
  }

  const partition = async (url: string, name: string): Promise<ModelPartition> => {
    const bus = await connectNats({ url, token: 'secret-of-the-bus', name, log })
    const model = await new ModelPartition({ name, bus, machines: [{}] }).start()
    stops.push(
      () => bus.close(),
      () => model.stop(),
    )
    return model
  }

  /** Starts a front in an empty folder; answers its door's URL as its log tells it, and how long that took. */
  const front = async (natsUrl: string): Promise<{ url: string; ms: number; child: ChildProcess; output: () => string }> => {
    const home = mkdtempSync(path.join(folder, 'home-'))
    const startedAt = performance.now()
    const child = spawn(process.execPath, [main], {
      cwd: home,
      env: {
        PATH: process.env.PATH,
        HOME: home,
        NODE_COMPILE_CACHE: path.join(home, 'cache'),
        NATS_URL: natsUrl,
        NATS_TOKEN: 'secret-of-the-bus',
        MUSTER_PARTITIONS: 'p1,p2',
        MUSTER_TOKENS_FILE: path.join(folder, 'tokens.json'),
        MUSTER_NAME: 'front-a',
        PORT: '0',
      },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    children.push(child)
    let output = ''
    child.stderr?.on('data', chunk => {
      output += chunk
    })
    for (;;) {
      const url = /"url":"(http[^"]+)","msg":"the door is open"/.exec(output)?.[1]
      if (url) return { url, ms: performance.now() - startedAt, child, output: () => output }
      if (child.exitCode !== null || performance.now() - startedAt > 20_000) throw new Error(`the front did not start:\n${output}`)
      await sleep(10)
    }
  }

  const get = async (url: string, method = 'GET', body?: object) => {
    const response = await fetch(url, {
      method,
      headers: { authorization: `Bearer ${token}`, ...(body && { 'content-type': 'application/json' }) },
      ...(body && { body: JSON.stringify(body) }),
    })
    return { status: response.status, content: (await response.json()) as Record<string, unknown> }
  }

  test('serves from an empty disk, writes nothing there, and ends in order', async () => {
    const { url: natsUrl } = await broker()
    await partition(natsUrl, 'p1')
    const { url, ms, child, output } = await front(natsUrl)
    console.log(`a new front served after ${Math.round(ms)} ms`)
    // Presence is heard within a second; on a busy machine the first answer may be before it.
    await expect
      .poll(async () => (await get(`${url}/readyz`)).content, { timeout: 10_000 })
      .toMatchObject({ status: 'ready', checks: [{ name: 'bus' }, { detail: '1 of 2 present' }] })
    expect((await get(`${url}/api/v1/whoami`)).content).toMatchObject({
      caller: { name: 'alice' },
      server: { kind: 'front', name: 'front-a' },
    })
    const made = await get(`${url}/api/v1/allocations`, 'POST', { note: 'n' })
    expect(made).toMatchObject({
      status: 201,
      content: { state: 'confirmed', machines: [{ id: 'p1-000000' }], coverage: { asked: 2, answered: 1 } },
    })
    expect((await get(`${url}/api/v1/machines`)).content).toMatchObject({
      items: [{ id: 'p1-000000', state: 'allocated' }],
      coverage: { asked: 2 },
    })
    child.kill('SIGTERM')
    const [code] = await once(child, 'exit')
    expect(code).toBe(0)
    expect(output()).not.toContain('secret-of-the-bus')
    expect(
      readdirSync(folder)
        .filter(name => name.startsWith('home-'))
        .flatMap(name => readdirSync(path.join(folder, name))),
    ).toEqual(['cache'])
  })

  test('opens its doors without a bus, says so, and serves when it comes', async () => {
    const probe = await startBroker({ port: 0, token: 'secret-of-the-bus' })
    await probe.close()
    const natsUrl = `nats://127.0.0.1:${probe.port}`
    const { url, child } = await front(natsUrl)
    const away = await get(`${url}/readyz`)
    expect(away).toMatchObject({ status: 503, content: { checks: [{ name: 'bus', status: 'failed' }, {}] } })
    expect(await get(`${url}/api/v1/machines`)).toMatchObject({ status: 503, content: { code: 'bus-away' } })
    await broker(probe.port)
    await partition(natsUrl, 'p1')
    const deadline = Date.now() + 10_000
    while ((await get(`${url}/api/v1/machines`)).status !== 200 && Date.now() < deadline) await sleep(50)
    expect((await get(`${url}/api/v1/machines`)).content).toMatchObject({ items: [{ id: 'p1-000000' }] })
    child.kill('SIGTERM')
    await once(child, 'exit')
  })
})

describe('frontConfig', () => {
  const least = { NATS_URL: 'nats://127.0.0.1:4222', MUSTER_TOKENS_FILE: '/etc/muster/tokens.json' }

  test('has the usual values, and masks what is secret', () => {
    const { settings, lines, unknown } = frontConfig({ ...least, NATS_TOKEN: 'abc', MUSTER_PARTITONS: 'x' })
    expect(settings).toMatchObject({ port: 5240, host: '127.0.0.1', name: 'front', partitions: undefined })
    expect(lines.join('\n')).not.toContain('abc')
    expect(unknown).toEqual(['MUSTER_PARTITONS'])
  })

  test('names everything that is wrong at once', () => {
    expect(frontConfig({ ...least, MUSTER_PARTITIONS: 'p1, p2,,p1' }).settings.partitions).toEqual(['p1', 'p2'])
    expect(() => frontConfig({ PORT: 'x', MUSTER_PARTITIONS: 'P 1' })).toThrow(/NATS_URL[\s\S]*MUSTER_PARTITIONS[\s\S]*PORT/)
    // Who may come in is said by a file or by the global configuration, the whole of it.
    const { MUSTER_TOKENS_FILE: _, ...without } = least
    expect(() => frontConfig({ ...without, MUSTER_CONFIG_KEY: 'ab'.repeat(32) })).toThrow(/MUSTER_TOKENS_FILE is not set/)
    const home = { MUSTER_CONFIG_KEY: 'ab'.repeat(32), MUSTER_GLOBAL_DATABASE_URL: 'postgres://home' }
    expect(frontConfig({ ...without, ...home }).settings.tokensFile).toBeUndefined()
  })
})
