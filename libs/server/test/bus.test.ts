import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import path from 'node:path'
import { startBroker } from '@muster/embedded/broker'
import { startNatsServer } from '@muster/embedded/nats-server'
import type { Bus } from '@muster/shared/bus/bus'
import { describe, expect, test } from 'vitest'
import { createLocalBroker } from '../src/bus/local-bus.ts'
import { type BusLog, connectNats } from '../src/bus/nats-bus.ts'
import { type BrokerUnderTest, busSuite, until } from './bus-suite.ts'
import { needs } from './needs.ts'

const quiet: BusLog = { info: () => {}, warn: () => {}, error: () => {} }
const encode = (text: string) => new TextEncoder().encode(text)

busSuite('the local bus', async () => {
  const broker = createLocalBroker()
  return {
    connect: async () => broker.connect(),
    kill: async () => broker.stop(),
    revive: async () => broker.start(),
    stop: async () => broker.stop(),
  }
})

/** The embedded broker as a process of its own, which can be killed -9. */
async function brokerProcess(options: { port: number; token: string }): Promise<{ url: string; port: number; kill: () => Promise<void> }> {
  const main = new URL('../../embedded/src/broker-main.ts', import.meta.url).pathname
  const child: ChildProcess = spawn(process.execPath, [main, '--port', String(options.port)], {
    env: { ...process.env, MUSTER_BROKER_TOKEN: options.token },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
  const ready = await new Promise<{ url: string; port: number }>((resolve, reject) => {
    child.stdout?.once('data', line => resolve(JSON.parse(String(line))))
    child.once('exit', code => reject(new Error(`the broker ended with ${code}`)))
  })
  const kill = async () => {
    child.kill('SIGKILL')
    await ended
  }
  return { ...ready, kill }
}

busSuite('NATS on the embedded broker', async (): Promise<BrokerUnderTest> => {
  const token = 'suite'
  let broker = await brokerProcess({ port: 0, token })
  const { url, port } = broker
  return {
    connect: name => connectNats({ url, token, name, log: quiet }),
    kill: () => broker.kill(),
    revive: async () => {
      broker = await brokerProcess({ port, token })
    },
    stop: () => broker.kill(),
  }
})

describe.skipIf(needs('nats-server'))('a real nats-server', () => {
  busSuite('NATS on nats-server', async (): Promise<BrokerUnderTest> => {
    const dir = mkdtempSync('/tmp/muster-nats-')
    const token = 'suite'
    let server = await startNatsServer({ dir, token })
    const { url, port } = server
    return {
      connect: name => connectNats({ url, token, name, log: quiet }),
      kill: async () => {
        process.kill(server.pid, 'SIGKILL')
        await server.stop()
      },
      revive: async () => {
        server = await startNatsServer({ dir, token, port })
      },
      stop: async () => {
        await server.stop()
        rmSync(dir, { recursive: true })
      },
    }
  })

  test('says what it is', async () => {
    const dir = mkdtempSync('/tmp/muster-nats-')
    await using server = await startNatsServer({ dir })
    const bus = await connectNats({ url: server.url, token: server.token, name: 'who', log: quiet })
    expect(bus.describe()).toMatch(new RegExp(`^nats \\d+\\.\\d+\\.\\d+ at 127\\.0\\.0\\.1:${server.port}$`))
    await bus.close()
    rmSync(dir, { recursive: true })
  })
})

describe('the bus over NATS', () => {
  test('starts without its broker and comes up when that does', async () => {
    const first = await startBroker()
    const { url, token, port } = first
    await first.close()
    const bus = await connectNats({ url, token, name: 'early', log: quiet, firstWaitMs: 50 })
    expect(bus.isConnected()).toBe(false)
    await expect(bus.request('x', encode(''), { timeoutMs: 5_000 })).rejects.toMatchObject({ code: 'disconnected' })
    const subscribing = bus.subscribe('x', {}, message => message.reply?.(encode('at last')))
    await using _broker = await startBroker({ port, token })
    await subscribing
    expect(Buffer.from(await bus.request('x', encode(''), { timeoutMs: 1_000 })).toString()).toBe('at last')
    expect(bus.describe()).toBe('embedded (single host, core NATS only)')
    await bus.close()
  })

  test('can be closed while it has never been up, and what waits for it ends', async () => {
    const bus = await connectNats({ url: 'nats://127.0.0.1:1', name: 'never', log: quiet, firstWaitMs: 10 })
    const subscribing = bus.subscribe('x', {}, () => {})
    await Promise.all([bus.close(), expect(subscribing).rejects.toThrow('the bus is closed')])
  })

  test('a wrong token at the start is an error, not an endless wait; tokens may stand in the URL', async () => {
    await using broker = await startBroker()
    await expect(connectNats({ url: broker.url, token: 'wrong', name: 'x', log: quiet })).rejects.toMatchObject({ code: 'refused' })
    const bus = await connectNats({ url: broker.url.replace('//', `//${broker.token}@`), name: 'x', log: quiet })
    expect(bus.isConnected()).toBe(true)
    await bus.close()
  })

  test.skipIf(needs('nats-server'))('what permissions forbid is refused at once, both ways', async () => {
    const dir = mkdtempSync('/tmp/muster-nats-')
    const config = path.join(dir, 'permissions.conf')
    const permissions = { publish: { deny: ['secret.>'] }, subscribe: { deny: ['secret.>'] } }
    writeFileSync(
      config,
      JSON.stringify({
        listen: '127.0.0.1:-1',
        ports_file_dir: dir,
        authorization: { users: [{ user: 'lon1', password: 'pw', permissions }] },
      }),
    )
    const child = spawn('nats-server', ['-c', config], { stdio: 'ignore' })
    const portsFile = path.join(dir, `nats-server_${child.pid}.ports`)
    await until(() => existsSync(portsFile) && readFileSync(portsFile, 'utf8').includes('nats://'), 'nats-server')
    const url = (JSON.parse(readFileSync(portsFile, 'utf8')) as { nats: [string] }).nats[0].replace('//', '//lon1:pw@')
    const bus = await connectNats({ url, name: 'x', log: quiet })
    await expect(bus.subscribe('secret.door', {}, () => {})).rejects.toMatchObject({ code: 'refused' })
    await expect(bus.request('secret.door', encode('?'), { timeoutMs: 5_000 })).rejects.toMatchObject({ code: 'refused' })
    await bus.subscribe('open.door', {}, message => message.reply?.(encode('come in')))
    expect(Buffer.from(await bus.request('open.door', encode('?'), { timeoutMs: 5_000 })).toString()).toBe('come in')
    await bus.close()
    child.kill()
    rmSync(dir, { recursive: true })
  })

  test('a broker that accepts and never speaks does not hold up the start', async () => {
    const sockets: Socket[] = []
    const mute = createServer(socket => sockets.push(socket)).listen(0, '127.0.0.1')
    await new Promise(resolve => mute.once('listening', resolve))
    const { port } = mute.address() as { port: number }
    const start = performance.now()
    const bus: Bus = await connectNats({ url: `nats://127.0.0.1:${port}`, name: 'x', log: quiet, firstWaitMs: 100 })
    expect(performance.now() - start).toBeLessThan(1_500)
    expect(bus.isConnected()).toBe(false)
    await bus.close()
    for (const socket of sockets) socket.destroy()
    mute.close()
  })
})
