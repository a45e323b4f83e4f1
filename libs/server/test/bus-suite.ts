// What every bus promises, told once and run on each: in process, over the embedded broker, over a real nats-server.

import { setTimeout as sleep } from 'node:timers/promises'
import { type Bus, BusError, type BusMessage } from '@muster/shared/bus/bus'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'

/** A broker under test, which can be taken away and brought back at the same address. */
export interface BrokerUnderTest {
  connect(name: string): Promise<Bus>
  /** Ends it without a word to its clients. */
  kill(): Promise<void>
  revive(): Promise<void>
  stop(): Promise<void>
}

const encode = (text: string) => new TextEncoder().encode(text)
const decode = (data: Uint8Array) => new TextDecoder().decode(data)

/** Until `isTrue`, at most 5 s: longer than any reconnect here. */
export async function until(isTrue: () => boolean, what: string): Promise<void> {
  const deadline = Date.now() + 5_000
  while (!isTrue()) {
    if (Date.now() > deadline) throw new Error(`waited 5 s in vain for: ${what}`)
    await sleep(2)
  }
}

async function failureOf(promise: Promise<unknown>): Promise<{ code: string; tookMs: number; message: string }> {
  const start = performance.now()
  const error = await promise.then(
    () => new Error('it succeeded'),
    (reason: unknown) => reason,
  )
  if (!(error instanceof BusError)) throw new Error('expected a BusError', { cause: error })
  return { code: error.code, tookMs: performance.now() - start, message: error.message }
}

export function busSuite(name: string, start: () => Promise<BrokerUnderTest>): void {
  describe(name, () => {
    let broker: BrokerUnderTest
    const open: Bus[] = []
    let subjects = 0
    const fresh = () => `suite.${++subjects}`

    async function bus(who = 'somebody'): Promise<Bus> {
      const made = await broker.connect(who)
      open.push(made)
      return made
    }

    beforeAll(async () => {
      broker = await start()
    })
    afterEach(async () => {
      await Promise.all(open.splice(0).map(each => each.close()))
    })
    afterAll(() => broker.stop())

    test('a notice reaches every subscriber, the sender’s own included, once and in order', async () => {
      const subject = fresh()
      const [a, b] = [await bus(), await bus()]
      const heard: string[][] = [[], [], []]
      await a.subscribe(subject, {}, message => heard[0]?.push(decode(message.data)))
      await b.subscribe(subject, {}, message => heard[1]?.push(decode(message.data)))
      await b.subscribe(subject, {}, message => heard[2]?.push(decode(message.data)))
      for (const text of ['one', 'two', '']) a.publish(subject, encode(text))
      await until(() => heard.every(each => each.length === 3), 'three notices at three subscribers')
      expect(heard).toEqual([
        ['one', 'two', ''],
        ['one', 'two', ''],
        ['one', 'two', ''],
      ])
    })

    test('a notice has no way to reply, and nobody hears one sent before it subscribed', async () => {
      const subject = fresh()
      const [a, b] = [await bus(), await bus()]
      a.publish(subject, encode('early'))
      await a.subscribe(fresh(), {}, () => {}) // a round trip: only within one connection is there an order
      const heard: BusMessage[] = []
      await b.subscribe(subject, {}, message => heard.push(message))
      a.publish(subject, encode('late'))
      await until(() => heard.length > 0, 'the notice')
      expect(heard.map(message => [message.subject, decode(message.data), message.reply])).toEqual([[subject, 'late', undefined]])
    })

    test('wildcards match as in NATS', async () => {
      const root = fresh()
      const a = await bus()
      const heard: string[] = []
      for (const pattern of ['one.*', 'one.>', '*.b', 'one.b', '>', '*.*.*', 'one.*.c']) {
        await a.subscribe(`${root}.${pattern}`, {}, message => heard.push(`${pattern} < ${message.subject.slice(root.length + 1)}`))
      }
      for (const subject of ['one', 'one.b', 'one.b.c', 'two.b']) a.publish(`${root}.${subject}`, encode(''))
      await until(() => heard.length >= 12, 'twelve matches')
      await sleep(20)
      expect(heard.toSorted()).toEqual(
        [
          ...['> < one'],
          ...['one.* < one.b', 'one.> < one.b', '*.b < one.b', 'one.b < one.b', '> < one.b'],
          ...['one.> < one.b.c', '> < one.b.c', '*.*.* < one.b.c', 'one.*.c < one.b.c'],
          ...['*.b < two.b', '> < two.b'],
        ].toSorted(),
      )
    })

    test('of a queue group exactly one member gets each message, and every member gets some', async () => {
      const subject = fresh()
      const members = await Promise.all([bus(), bus(), bus()])
      const counts = [0, 0, 0]
      const seen = new Set<string>()
      for (const [index, member] of members.entries()) {
        await member.subscribe(subject, { group: 'lon1' }, message => {
          counts[index] = (counts[index] ?? 0) + 1
          seen.add(decode(message.data))
        })
      }
      const sender = await bus()
      for (let each = 0; each < 300; each++) sender.publish(subject, encode(String(each)))
      await until(() => seen.size === 300, '300 messages')
      await sleep(20)
      expect(counts.reduce((sum, count) => sum + count)).toBe(300)
      expect(Math.min(...counts)).toBeGreaterThan(30) // 100 expected; 30 is some eight deviations away
    })

    test('one group under two patterns is still one group', async () => {
      const root = fresh()
      const a = await bus()
      let count = 0
      await a.subscribe(`${root}.*`, { group: 'g' }, () => count++)
      await a.subscribe(`${root}.x`, { group: 'g' }, () => count++)
      for (let each = 0; each < 20; each++) a.publish(`${root}.x`, encode(''))
      await until(() => count >= 20, '20 messages')
      await sleep(20)
      expect(count).toBe(20)
    })

    test('a question gets its own answer, a thousand at once', async () => {
      const subject = fresh()
      const [asker, answerer] = [await bus(), await bus()]
      await answerer.subscribe(subject, {}, message => message.reply?.(encode(`${decode(message.data)}!`)))
      const asked = Array.from({ length: 1000 }, (_, index) => String(index))
      const answers = await Promise.all(asked.map(each => asker.request(subject, encode(each), { timeoutMs: 5_000 })))
      expect(answers.map(decode)).toEqual(asked.map(each => `${each}!`))
    })

    test('binary of every size up to the limit arrives unchanged', async () => {
      const subject = fresh()
      const [asker, answerer] = [await bus(), await bus()]
      await answerer.subscribe(subject, {}, message => message.reply?.(message.data))
      const sizes = [0, 1, 2, 255, 4095, 4096, 65_535, 65_536, 65_537, 300_000, asker.maxPayloadBytes - 1, asker.maxPayloadBytes]
      const sent = sizes.map(size => Uint8Array.from({ length: size }, (_, index) => (index * 31 + size) % 256))
      const received = await Promise.all(sent.map(each => asker.request(subject, each, { timeoutMs: 10_000 })))
      expect(received.map(each => each.length)).toEqual(sizes)
      for (const [index, each] of received.entries()) expect(Buffer.compare(each, sent[index] as Uint8Array)).toBe(0)
    })

    test('nobody there is known at once, not after the limit', async () => {
      const a = await bus()
      const { code, tookMs, message } = await failureOf(a.request(fresh(), encode('?'), { timeoutMs: 10_000 }))
      expect(code).toBe('no-responders')
      expect(tookMs).toBeLessThan(2_000)
      expect(message).toBe(`request suite.${subjects} via ${a.describe()}: nobody listens`)
      expect(await a.gather(fresh(), encode('?'), { timeoutMs: 10_000, onAnswer: () => 'more' })).toBe('no-responders')
    })

    test('a stopped subscription hears nothing more and counts as nobody', async () => {
      const subject = fresh()
      const [a, b] = [await bus(), await bus()]
      let count = 0
      const subscription = await a.subscribe(subject, {}, () => count++)
      subscription.stop()
      subscription.stop()
      await a.subscribe(fresh(), {}, () => {}) // in force at the broker, hence the stop before it too
      expect((await failureOf(b.request(subject, encode('?'), { timeoutMs: 1_000 }))).code).toBe('no-responders')
      expect(count).toBe(0)
    })

    test('silence ends at the limit, and says so', async () => {
      const subject = fresh()
      const [asker, silent] = [await bus(), await bus()]
      await silent.subscribe(subject, {}, () => {})
      const { code, tookMs, message } = await failureOf(asker.request(subject, encode('?'), { timeoutMs: 100 }))
      expect(code).toBe('timeout')
      expect(tookMs).toBeGreaterThanOrEqual(99)
      expect(tookMs).toBeLessThan(1_000)
      expect(message).toMatch(/no answer within 100 ms$/)
      expect((await failureOf(asker.request(subject, encode('?'), { timeoutMs: -3 }))).code).toBe('timeout')
    })

    test('the caller can give up, before and during', async () => {
      const subject = fresh()
      const [asker, silent] = [await bus(), await bus()]
      let heard = 0
      await silent.subscribe(subject, {}, () => heard++)
      const caller = new AbortController()
      const asked = failureOf(asker.request(subject, encode('?'), { timeoutMs: 10_000, signal: caller.signal }))
      const gathered = asker.gather(subject, encode('?'), { timeoutMs: 10_000, signal: caller.signal, onAnswer: () => 'more' })
      await until(() => heard === 2, 'both questions')
      caller.abort()
      expect((await asked).code).toBe('cancelled')
      expect(await gathered).toBe('cancelled')
      expect((await failureOf(asker.request(subject, encode('?'), { timeoutMs: 10_000, signal: caller.signal }))).code).toBe('cancelled')
      await sleep(20)
      expect(heard).toBe(2)
    })

    test('an answer after the end is nobody’s, and does not disturb the next question', async () => {
      const subject = fresh()
      const [asker, slow] = [await bus(), await bus()]
      const waiting: BusMessage[] = []
      await slow.subscribe(subject, {}, message => waiting.push(message))
      expect((await failureOf(asker.request(subject, encode('first'), { timeoutMs: 50 }))).code).toBe('timeout')
      const second = asker.request(subject, encode('second'), { timeoutMs: 5_000 })
      await until(() => waiting.length === 2, 'the second question')
      waiting[0]?.reply?.(encode('late'))
      waiting[1]?.reply?.(encode('in time'))
      waiting[1]?.reply?.(encode('twice'))
      expect(decode(await second)).toBe('in time')
    })

    test('a gathering collects from 50 groups, one answer each', async () => {
      const subject = fresh()
      const asker = await bus()
      const partitions = await Promise.all(Array.from({ length: 50 }, (_, index) => bus(`partition ${index}`)))
      const replica = (index: number) => (message: BusMessage) => message.reply?.(encode(String(index)))
      await Promise.all(
        partitions.flatMap((each, index) => [1, 2].map(() => each.subscribe(subject, { group: `p${index}` }, replica(index)))),
      )
      const answers: number[] = []
      const end = await asker.gather(subject, encode('?'), {
        timeoutMs: 5_000,
        onAnswer: data => (answers.push(Number(decode(data))) === 50 ? 'enough' : 'more'),
      })
      expect(end).toBe('enough')
      expect(answers.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 50 }, (_, index) => index))

      const first: number[] = []
      const stopped = asker.gather(subject, encode('?'), {
        timeoutMs: 5_000,
        onAnswer: data => {
          first.push(Number(decode(data)))
          return 'enough'
        },
      })
      expect(await stopped).toBe('enough')
      await sleep(50)
      expect(first).toHaveLength(1)
    })

    test('a gathering with some silent ends at its limit with what came', async () => {
      const subject = fresh()
      const [asker, one, two] = [await bus(), await bus(), await bus()]
      await one.subscribe(subject, {}, message => message.reply?.(encode('one')))
      await two.subscribe(subject, {}, () => {})
      const answers: string[] = []
      const onAnswer = (data: Uint8Array) => {
        answers.push(decode(data))
        return 'more' as const
      }
      expect(await asker.gather(subject, encode('?'), { timeoutMs: 150, onAnswer })).toBe('timeout')
      expect(answers).toEqual(['one'])
    })

    test('what a gathering’s caller throws reaches the caller; what a subscriber throws costs one message', async () => {
      const subject = fresh()
      const [asker, answerer] = [await bus(), await bus()]
      await answerer.subscribe(subject, {}, message => {
        if (decode(message.data) === 'bad') throw new Error('cannot read it')
        message.reply?.(encode('fine'))
      })
      const onAnswer = () => {
        throw new Error('no such offer')
      }
      await expect(asker.gather(subject, encode('?'), { timeoutMs: 5_000, onAnswer })).rejects.toThrow('no such offer')
      asker.publish(subject, encode('bad'))
      expect(decode(await asker.request(subject, encode('?'), { timeoutMs: 5_000 }))).toBe('fine')
    })

    test('a message above the limit is refused before it is sent, and the link lives', async () => {
      const subject = fresh()
      const a = await bus()
      const heard: number[] = []
      await a.subscribe(subject, {}, message => {
        heard.push(message.data.length)
        message.reply?.(encode('small'))
      })
      const huge = new Uint8Array(a.maxPayloadBytes + 1)
      expect(a.maxPayloadBytes).toBe(1024 * 1024)
      expect(() => a.publish(subject, huge)).toThrow(/has 1048577 bytes, the bus carries 1048576/)
      expect((await failureOf(a.request(subject, huge, { timeoutMs: 1_000 }))).code).toBe('too-large')
      expect((await failureOf(a.gather(subject, huge, { timeoutMs: 1_000, onAnswer: () => 'more' }))).code).toBe('too-large')
      expect(decode(await a.request(subject, encode('?'), { timeoutMs: 1_000 }))).toBe('small')
      expect(heard).toEqual([1])
    })

    test('nonsense for a subject is refused by name', async () => {
      const a = await bus()
      expect(() => a.publish('a.*', encode(''))).toThrow('"a.*" is no subject to send to')
      await expect(a.request('a b', encode(''), { timeoutMs: 100 })).rejects.toThrow('"a b" is no subject to send to')
      await expect(a.subscribe('a..b', {}, () => {})).rejects.toThrow('"a..b" is no subject to subscribe to')
    })

    test('the broker dies and comes back: definite errors meanwhile, everything in force after', async () => {
      const subject = fresh()
      const [asker, answerer] = [await bus('asker'), await bus('answerer')]
      const statuses: string[] = []
      const stop = asker.onStatus(status => statuses.push(status))
      let heard = 0
      await answerer.subscribe(subject, { group: 'lon1' }, message => {
        heard++
        if (decode(message.data) !== 'silence') message.reply?.(encode('here'))
      })
      expect(decode(await asker.request(subject, encode('?'), { timeoutMs: 2_000 }))).toBe('here')

      const underWay = failureOf(asker.request(subject, encode('silence'), { timeoutMs: 20_000 }))
      const gathering = failureOf(asker.gather(subject, encode('silence'), { timeoutMs: 20_000, onAnswer: () => 'more' }))
      await until(() => heard === 3, 'the questions under way')
      await broker.kill()
      expect((await underWay).code).toBe('disconnected')
      expect((await gathering).code).toBe('disconnected')
      expect(asker.isConnected()).toBe(false)

      const during = await failureOf(asker.request(subject, encode('?'), { timeoutMs: 500 }))
      expect(during.code).toBe('disconnected')
      expect(during.tookMs).toBeLessThanOrEqual(500)
      asker.publish(subject, encode('lost'))
      // What is asked for during the outage is kept.
      const later = fresh()
      const subscribing = answerer.subscribe(later, {}, message => message.reply?.(encode('kept')))

      await broker.revive()
      await until(() => asker.isConnected() && answerer.isConnected(), 'both links')
      expect(decode(await asker.request(subject, encode('?'), { timeoutMs: 2_000 }))).toBe('here')
      await subscribing
      expect(decode(await asker.request(later, encode('?'), { timeoutMs: 2_000 }))).toBe('kept')
      expect(heard).toBe(4)
      expect(statuses).toEqual(['down', 'up'])
      stop()
    })

    test('a closed bus ends what waits, sends what was said, and refuses the rest', async () => {
      const subject = fresh()
      const [leaving, staying] = [await bus(), await bus()]
      let heard = 0
      await staying.subscribe(subject, {}, () => heard++)
      const waiting = failureOf(leaving.request(subject, encode('?'), { timeoutMs: 10_000 }))
      for (let each = 0; each < 100; each++) leaving.publish(subject, encode('last words'))
      await leaving.close()
      await leaving.close()
      expect((await waiting).code).toBe('disconnected')
      await until(() => heard === 101, 'the last words')
      expect(leaving.isConnected()).toBe(false)
      expect((await failureOf(leaving.request(subject, encode('?'), { timeoutMs: 100 }))).code).toBe('disconnected')
      await expect(leaving.subscribe(subject, {}, () => {})).rejects.toThrow('the bus is closed')
      leaving.publish(subject, encode('nobody hears this'))
    })
  })
}
