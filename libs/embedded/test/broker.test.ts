import { createHash } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { startBroker } from '../src/broker.ts'
import { startAnyBroker, startNatsServer } from '../src/nats-server.ts'
import { needs } from './needs.ts'

const sockets: Socket[] = []
afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy()
})

/** A client that says exactly what it is told and shows exactly what it hears. */
class RawClient {
  readonly socket: Socket
  heard = ''
  isClosed = false

  constructor(port: number) {
    this.socket = connect(port, '127.0.0.1')
    sockets.push(this.socket)
    this.socket.on('data', data => {
      this.heard += data.toString('latin1')
    })
    this.socket.on('error', () => {})
    this.socket.on('close', () => {
      this.isClosed = true
    })
  }

  say(text: string): void {
    this.socket.write(text, 'latin1')
  }

  async until(isTrue: (heard: string) => boolean): Promise<void> {
    const deadline = Date.now() + 5_000
    while (!isTrue(this.heard)) {
      if (Date.now() > deadline) throw new Error(`waited 5 s in vain; heard ${JSON.stringify(this.heard.slice(-500))}`)
      await sleep(2)
    }
  }

  /** Everything said so far has been handled: the answer to a ping comes last. */
  async settled(): Promise<void> {
    const before = this.heard.split('PONG\r\n').length
    this.say('PING\r\n')
    await this.until(heard => heard.split('PONG\r\n').length > before || this.isClosed)
  }
}

/** Connects as told, and forgets the greeting. */
async function client(port: number, token: string, options: object = {}): Promise<RawClient> {
  const made = new RawClient(port)
  made.say(
    `CONNECT ${JSON.stringify({ auth_token: token, verbose: false, headers: true, no_responders: true, protocol: 1, ...options })}\r\n`,
  )
  await made.settled()
  made.heard = ''
  return made
}

/** Stories told in the protocol itself: what each listener hears must be, byte for byte, what a nats-server says. */
const stories: Record<string, (port: number, token: string) => Promise<RawClient[]>> = {
  'publish, wildcards, replies': async (port, token) => {
    const [a, b] = [await client(port, token), await client(port, token)]
    b.say('SUB foo.* 1\r\nSUB foo.> 2\r\nSUB *.bar 3\r\nSUB other 4\r\n')
    await b.settled()
    a.say('PUB foo.bar 5\r\nhello\r\nPUB foo.bar.baz inbox.1 0\r\n\r\nPUB foo 1\r\nx\r\n')
    await a.settled()
    await b.settled()
    // The order between one client's own subscriptions is nobody's promise.
    b.heard = (b.heard.match(/MSG .*\r\n.*\r\n|PONG\r\n/g) ?? []).toSorted().join('')
    return [a, b]
  },
  'verbose says +OK': async (port, token) => {
    const a = await client(port, token, { verbose: true })
    a.say('SUB x 1\r\nPUB x 2\r\nhi\r\nUNSUB 1\r\n')
    await a.settled()
    return [a]
  },
  'unsubscribe after so many': async (port, token) => {
    const a = await client(port, token)
    a.say('SUB x 1\r\nUNSUB 1 2\r\nPUB x 1\r\n1\r\nPUB x 1\r\n2\r\nPUB x 1\r\n3\r\n')
    await a.settled()
    a.say('SUB y 2\r\nPUB y 1\r\n1\r\nPUB y 1\r\n2\r\nUNSUB 2 2\r\nPUB y 1\r\n3\r\nUNSUB 99\r\n')
    await a.settled()
    return [a]
  },
  'no echo': async (port, token) => {
    const [a, b] = [await client(port, token, { echo: false }), await client(port, token)]
    a.say('SUB x 1\r\n')
    await a.settled()
    b.say('SUB x 7\r\n')
    await b.settled()
    a.say('PUB x 1\r\na\r\n')
    await a.settled()
    b.say('PUB x 1\r\nb\r\n')
    await b.settled()
    await a.settled()
    return [a, b]
  },
  'headers, also to a client that takes none': async (port, token) => {
    const [a, b] = [await client(port, token), await client(port, token, { headers: false, no_responders: false })]
    a.say('SUB x 1\r\n')
    await a.settled()
    b.say('SUB x 1\r\n')
    await b.settled()
    const header = 'NATS/1.0\r\nA: b\r\n\r\n'
    a.say(
      `HPUB x ${header.length} ${header.length + 4}\r\n${header}body\r\nHPUB x re.ply ${header.length} ${header.length}\r\n${header}\r\n`,
    )
    await a.settled()
    await b.settled()
    return [a, b]
  },
  'nobody listens: 503 to who asked for it, silence to the others': async (port, token) => {
    const [a, b] = [await client(port, token), await client(port, token, { no_responders: false })]
    for (const each of [a, b]) {
      each.say('SUB inbox.* 9\r\nPUB nobody inbox.1 2\r\nhi\r\nPUB nobody 2\r\nhi\r\n')
      await each.settled()
    }
    a.say('UNSUB 9\r\nPUB nobody inbox.2 0\r\n\r\n')
    await a.settled()
    await b.settled()
    return [a, b]
  },
  'a queue group of one, and of the asker without echo': async (port, token) => {
    const a = await client(port, token, { echo: false })
    a.say('SUB inbox.* 1\r\nSUB work group 2\r\nPUB work inbox.1 1\r\nx\r\n')
    await a.settled()
    const b = await client(port, token)
    b.say('SUB work group 5\r\nSUB work 6\r\nPUB work 1\r\ny\r\n')
    await b.settled()
    a.heard = a.heard.replace(/MSG work 2 1\r\ny\r\n/, '')
    b.heard = b.heard.replace(/MSG work 5 1\r\ny\r\n/, '') // one of the two groups' members, at random
    return [a, b]
  },
  'a size too large': async (port, token) => {
    const a = await client(port, token)
    a.say('PUB x 1048577\r\n')
    await a.until(() => a.isClosed)
    return [a]
  },
  'an unknown command': async (port, token) => {
    const a = await client(port, token)
    a.say('HELO there\r\n')
    await a.until(() => a.isClosed)
    return [a]
  },
  'a wrong token': async port => {
    const a = new RawClient(port)
    a.say('CONNECT {"auth_token":"wrong","verbose":false}\r\nPING\r\n')
    await a.until(() => a.isClosed)
    a.heard = a.heard.replace(/^INFO .*\r\n/, '')
    return [a]
  },
  'a subscription that makes no sense': async (port, token) => {
    const a = await client(port, token)
    a.say('SUB foo..bar 1\r\nSUB foo.>.bar 2\r\nSUB fine 3\r\nPUB fine 0\r\n\r\n')
    await a.settled()
    return [a]
  },
}

const transcript = async (story: (typeof stories)[string], port: number, token: string) =>
  (await story(port, token)).map(each => ({ heard: each.heard, isClosed: each.isClosed }))

describe('the embedded broker', () => {
  test('speaks, byte for byte', async () => {
    await using broker = await startBroker()
    const told = await transcript(stories['publish, wildcards, replies'] as never, broker.port, broker.token)
    expect(told[1]?.heard).toBe(
      [
        'MSG foo.bar 1 5\r\nhello\r\n',
        'MSG foo.bar 2 5\r\nhello\r\n',
        'MSG foo.bar 3 5\r\nhello\r\n',
        'MSG foo.bar.baz 2 inbox.1 0\r\n\r\n',
        'PONG\r\nPONG\r\n',
      ].join(''),
    )
    const nobody = await transcript(
      stories['nobody listens: 503 to who asked for it, silence to the others'] as never,
      broker.port,
      broker.token,
    )
    expect(nobody[0]?.heard).toBe('HMSG inbox.1 9 16 16\r\nNATS/1.0 503\r\n\r\n\r\nPONG\r\nPONG\r\n')
  })

  test.skipIf(needs('nats-server'))('a nats-server that ends by itself says so; one that was stopped does not', async () => {
    const dir = mkdtempSync('/tmp/muster-nats-')
    const losses: string[] = []
    const onLoss = (how: string) => void losses.push(how)
    const lost = await startNatsServer({ dir, onLoss })
    process.kill(lost.pid, 'SIGKILL')
    await vi.waitFor(() => expect(losses).toEqual(['it ended with SIGKILL']))
    await lost.stop()
    const stopped = await startNatsServer({ dir, onLoss })
    await stopped.stop()
    expect(losses).toHaveLength(1)
    rmSync(dir, { recursive: true })
  })

  describe.skipIf(needs('nats-server'))('says what nats-server says', () => {
    test.each(Object.entries(stories))('%s', async (_, story) => {
      const dir = mkdtempSync('/tmp/muster-nats-')
      await using server = await startNatsServer({ dir, token: 'suite' })
      await using broker = await startBroker({ token: 'suite' })
      const [real, ours] = [await transcript(story, server.port, 'suite'), await transcript(story, broker.port, 'suite')]
      expect(ours).toEqual(real)
      rmSync(dir, { recursive: true })
    })
  })

  test('a client that does not read is cut, and the others get everything', async () => {
    const lines: string[] = []
    await using broker = await startBroker({ maxPendingBytes: 4_000_000, log: line => lines.push(line) })
    const [slow, fast, sender] = [
      await client(broker.port, broker.token, { name: 'sleeper' }),
      await client(broker.port, broker.token),
      await client(broker.port, broker.token),
    ]
    for (const each of [slow, fast]) {
      each.say('SUB flood 1\r\n')
      await each.settled()
    }
    slow.socket.pause()
    let received = 0
    fast.socket.removeAllListeners('data').on('data', data => {
      received += data.length
    })
    const message = `PUB flood 100000\r\n${'x'.repeat(100_000)}\r\n`
    const delivered = `MSG flood 1 100000\r\n${'x'.repeat(100_000)}\r\n`.length
    for (let each = 0; each < 400; each++) {
      if (!sender.socket.write(message)) await new Promise(resolve => sender.socket.once('drain', resolve))
    }
    await fast.until(() => received >= 400 * delivered)
    expect(received).toBe(400 * delivered)
    expect(broker.stats()).toMatchObject({ slowConsumers: 1, connections: 2, subscriptions: 1 })
    expect(lines).toEqual([expect.stringMatching(/^broker: client 1 \(sleeper\) cut: slow consumer, \d+ bytes unread$/)])
  })

  test('a client that reads in gulps gets every byte in order', async () => {
    await using broker = await startBroker()
    const [reader, sender] = [await client(broker.port, broker.token), await client(broker.port, broker.token)]
    const hash = createHash('sha256')
    const expected = createHash('sha256')
    let received = 0
    let sent = 0
    reader.say('SUB x 1\r\n')
    await reader.settled()
    reader.socket.removeAllListeners('data').on('data', data => {
      hash.update(data)
      received += data.length
      if (Math.random() < 0.1) {
        reader.socket.pause()
        setTimeout(() => reader.socket.resume(), 2)
      }
    })
    for (let each = 0; each < 3000; each++) {
      const body = String(each).repeat(1 + ((each * 37) % 2500))
      const frame = `MSG x 1 ${body.length}\r\n${body}\r\n`
      expected.update(frame)
      sent += frame.length
      sender.say(`PUB x ${body.length}\r\n${body}\r\n`)
    }
    await reader.until(() => received >= sent)
    expect(hash.digest('hex')).toBe(expected.digest('hex'))
  })

  test('nothing is served to who has not shown the token', async () => {
    await using broker = await startBroker()
    for (const first of ['PING\r\n', 'SUB > 1\r\n', 'PUB x 0\r\n\r\n', 'UNSUB 1\r\n', 'CONNECT {}\r\n', 'CONNECT {"auth_token":5}\r\n']) {
      const stranger = new RawClient(broker.port)
      stranger.say(first)
      await stranger.until(() => stranger.isClosed)
      expect(stranger.heard).toMatch(/^INFO .*\r\n-ERR 'Authorization Violation'\r\n$/)
    }
    expect(broker.stats()).toMatchObject({ connections: 0, subscriptions: 0 })
  })

  test('connections and subscriptions that ended leave nothing behind', async () => {
    await using broker = await startBroker()
    for (let each = 0; each < 20; each++) {
      const visitor = await client(broker.port, broker.token)
      visitor.say(`SUB inbox.${each}.* 1\r\nSUB a.>  2\r\nSUB *.b g 3\r\n`)
      await visitor.settled()
      visitor.socket.destroy()
    }
    const last = await client(broker.port, broker.token)
    await last.until(() => broker.stats().connections === 1)
    expect(broker.stats().subscriptions).toBe(0)
  })

  test('refuses the network and production, unless told to', async () => {
    await expect(startBroker({ host: '0.0.0.0', env: {} })).rejects.toThrow('listens on loopback only, not on 0.0.0.0. Set NATS_URL')
    await expect(startBroker({ env: { NODE_ENV: 'production' } })).rejects.toThrow('not for production (NODE_ENV). Set NATS_URL')
    await using broker = await startBroker({ env: { NODE_ENV: 'production', MUSTER_ALLOW_EMBEDDED_BROKER: '1' } })
    expect(broker.url).toBe(`nats://127.0.0.1:${broker.port}`)
    expect(broker.token).toMatch(/^[\w-]{43}$/)
  })

  test('a port that is taken is an error, not a silence', async () => {
    await using broker = await startBroker()
    await expect(startBroker({ port: broker.port })).rejects.toThrow('EADDRINUSE')
  })

  test('closing cuts everybody and frees the port, twice harmlessly', async () => {
    const broker = await startBroker()
    const somebody = await client(broker.port, broker.token)
    await Promise.all([broker.close(), broker.close()])
    await somebody.until(() => somebody.isClosed)
    await using again = await startBroker({ port: broker.port })
    expect(again.port).toBe(broker.port)
  })
})

describe('the choice of a broker', () => {
  test('NATS_URL wins, and its secret stays out of the log', async () => {
    const lines: string[] = []
    const log = (line: string) => lines.push(line)
    await using broker = await startAnyBroker({ url: 'nats://secret@nats.example:4222', dir: '/nowhere', log })
    expect(broker.url).toBe('nats://secret@nats.example:4222')
    expect(lines).toEqual(['broker=nats://nats.example:4222 (NATS_URL)'])
  })

  test.skipIf(needs('nats-server'))('then a nats-server on PATH, which ends with its stop', async () => {
    const dir = mkdtempSync('/tmp/muster-nats-')
    const broker = await startAnyBroker({ dir, log: () => {} })
    expect(broker.describe()).toBe(`nats-server at ${broker.url}`)
    const somebody = await client(Number(new URL(broker.url).port), broker.token ?? '')
    await broker.stop()
    await somebody.until(() => somebody.isClosed)
    rmSync(dir, { recursive: true })
  })
})
