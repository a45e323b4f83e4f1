// Webhooks: told in order and without a gap, whoever dies on the way. Real HTTP receivers; signatures are checked by the library that receivers use.
import { createServer, type IncomingHttpHeaders } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { createSharedSealer, sealText } from '@muster/server/global/sealed'
import type { Event } from '@muster/shared/contract/events'
import { payloadOf } from '@muster/shared/global/copy'
import { changed, noDocuments, type WebhookDocument } from '@muster/shared/global/documents'
import { Secret } from '@muster/shared/secret'
import { Webhook } from 'standardwebhooks'
import { describe, expect, onTestFinished, test } from 'vitest'
import { numberEvents } from '../src/db/events.ts'
import { keepGlobal } from '../src/db/global.ts'
import { deleteMachine } from '../src/db/machines.ts'
import { claimWebhook, listCursors, listDeadLetters, replayDeadLetters } from '../src/db/webhooks.ts'
import type { Core } from '../src/domain/core.ts'
import { isRefusedAddress } from '../src/domain/webhooks/addresses.ts'
import { retryAfterMs } from '../src/domain/webhooks/post.ts'
import { attemptsMost, usualPace, type WebhookPace, WebhookSender } from '../src/domain/webhooks/sender.ts'
import { addMachine, partitionDatabase, runPartition, startCore, until } from './harness.ts'
import { mortalSql } from './mortal-sql.ts'

const sharedKey = Buffer.alloc(32, 5)
const secret = `whsec_${Buffer.alloc(32, 's').toString('base64')}`
const quick = { lookEveryMs: 10, attemptMs: 2_000, claimMs: 4_000, firstMs: 20, longestMs: 100, budgetMs: 60_000 }

interface Received {
  readonly id: string
  readonly body: string
  readonly headers: IncomingHttpHeaders
  readonly events: readonly Event[]
}

type Answer = { status: number; text?: string; headers?: Record<string, string> } | 'silence'

/** Someone who is told: every request that bears the right signature is kept, and answered as `answer` says. */
async function startReceiver(answer: (received: Received) => Answer | Promise<Answer> = () => ({ status: 204 })) {
  const requests: Received[] = []
  let now = 0
  let most = 0
  const server = createServer(async (request, response) => {
    most = Math.max(most, ++now)
    const body = (await request.toArray()).join('')
    const headers = request.headers as Record<string, string>
    const { data } = new Webhook(secret).verify(body, headers) as { data: { events: Event[] } }
    const received = { id: headers['webhook-id'] as string, body, headers, events: data.events }
    requests.push(received)
    const said = await answer(received)
    now--
    if (said !== 'silence') response.writeHead(said.status, said.headers).end(said.text)
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(async () => {
    server.closeAllConnections()
    await new Promise(resolve => server.close(resolve))
  })
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`,
    requests,
    /** Numbers of the events in the order they came; a message that came before is left out. */
    seqs: () =>
      requests
        .filter(({ id }, index) => requests.findIndex(other => other.id === id) === index)
        .flatMap(({ events }) => events.map(({ seq }) => seq)),
    mostAtOnce: () => most,
  }
}

let generations = 0
/** Puts these webhooks, and no others, into force, as if a front had given them. */
async function configure(core: Pick<Core, 'sql' | 'configuration'>, webhooks: Record<string, Partial<WebhookDocument>>, key = sharedKey) {
  const sealer = createSharedSealer(key)
  const put = Object.entries(webhooks).map(([name, document]) => ({
    kind: 'webhook' as const,
    name,
    document: { secret: sealText(sealer, { kind: 'webhook', name, field: 'secret' }, new Secret(secret)), ...document },
  }))
  const outcome = changed(noDocuments, { put, delete: [] })
  if ('problems' in outcome) throw new Error(JSON.stringify(outcome.problems))
  const generation = ++generations
  const payload = payloadOf({ generation, changedAt: new Date().toISOString(), changedBy: 'test', note: '', documents: outcome.documents })
  await keepGlobal(core.sql, { generation, payload, signature: '', signed_by: '' }, core.configuration.generation)
  await core.configuration.reload()
}

async function addEvents(core: Pick<Core, 'sql'>, count: number, kind = 'noise', data: object = {}) {
  for (let n = 0; n < count; n++)
    await core.sql`insert into events (kind, machine_id, actor, data) values (${kind}, null, 'test', ${core.sql.json(data as never)})`
  await numberEvents(core.sql, 1000)
}

/** A sender that runs; ends with the test or when it is told to. */
function startSender(core: Core, pace: Partial<WebhookPace> = {}) {
  const sender = new WebhookSender(core, { sharedKey, pace: { ...quick, ...pace } })
  const stopping = new AbortController()
  const running = sender.run(stopping.signal)
  const stop = async () => {
    stopping.abort()
    await running
  }
  onTestFinished(stop)
  return { sender, stop }
}

const cursorOf = async (core: Pick<Core, 'sql'>, webhook: string) => (await listCursors(core.sql)).find(row => row.webhook === webhook)
const hasCursor = (core: Pick<Core, 'sql'>, webhook: string) => until(async () => (await cursorOf(core, webhook)) !== undefined)
const isTold = (core: Pick<Core, 'sql'>, webhook: string) =>
  until(async () => {
    const row = await cursorOf(core, webhook)
    return row !== undefined && row.seq === row.last_seq
  })
const upTo = (first: number, last: number) => Array.from({ length: last - first + 1 }, (_, n) => first + n)

/** A partition with one webhook, which was made when three events had happened already. */
async function told(answer?: Parameters<typeof startReceiver>[0], document: Partial<WebhookDocument> = {}, url?: string) {
  const core = await startCore(url === undefined ? {} : { url })
  const receiver = await startReceiver(answer)
  await addEvents(core, 3)
  const whole = { url: receiver.url, ...document }
  await configure(core, { audit: whole })
  return { core, receiver, document: whole }
}

describe('a webhook', () => {
  test('is told everything from its making on, once and in order, by two replicas that write and send at once', async () => {
    const databaseUrl = await partitionDatabase()
    const answer = async () => {
      await sleep(2)
      return { status: 200, text: 'ok' }
    }
    const { core, receiver } = await told(answer, {}, databaseUrl)
    const other = await startCore({ url: databaseUrl })
    await other.configuration.reload()
    startSender(core)
    startSender(other)
    await hasCursor(core, 'audit')
    await Promise.all([core, other].map(each => Promise.all(upTo(1, 12).map(() => addEvents(each, 15)))))
    await until(async () => (await numberEvents(core.sql, 1000)).lastSeq === 3 + 360)
    await isTold(core, 'audit')
    expect(receiver.seqs()).toEqual(upTo(4, 363))
    expect(new Set(receiver.requests.map(({ id }) => id)).size).toBe(receiver.requests.length)
    expect(receiver.mostAtOnce()).toBe(1)
    for (const { events, headers } of receiver.requests) {
      expect(events.length).toBeLessThanOrEqual(100)
      expect(headers['content-type']).toBe('application/json')
    }
  })

  test('that fails is tried again with the same bytes under the same id until it takes them; nothing overtakes', async () => {
    let isBroken = true
    const { core, receiver } = await told(() => ({ status: isBroken ? 500 : 200, text: 'out of\nmemory' }))
    startSender(core)
    await hasCursor(core, 'audit')
    await addEvents(core, 2)
    await until(async () => ((await cursorOf(core, 'audit'))?.tries ?? 0) >= 4)
    expect(await cursorOf(core, 'audit')).toMatchObject({
      seq: 3,
      reason: expect.stringMatching(/^POST http:\/\/127\.0\.0\.1:\d+: HTTP 500: out of memory$/),
    })
    await addEvents(core, 2)
    isBroken = false
    await isTold(core, 'audit')
    const first = receiver.requests.slice(0, -1)
    expect(first.length).toBeGreaterThan(4)
    expect(new Set(first.map(({ id }) => id)).size).toBe(1)
    expect(new Set(first.map(({ body }) => body)).size).toBe(1)
    expect(receiver.seqs()).toEqual([4, 5, 6, 7])
    expect(await cursorOf(core, 'audit')).toMatchObject({ tries: 0, reason: null, dead_letters: 0 })
  })

  test('whose secret was changed is told with both signatures, and after the overlap with the new one only', async () => {
    const before = `whsec_${Buffer.alloc(32, 'b').toString('base64')}`
    const sealed = sealText(createSharedSealer(sharedKey), { kind: 'webhook', name: 'audit', field: 'secretBefore' }, new Secret(before))
    const within = { secretBefore: sealed, secretBeforeUntil: new Date(Date.now() + 60_000).toISOString() }
    const { core, receiver, document } = await told(undefined, within)
    startSender(core)
    await hasCursor(core, 'audit')
    await addEvents(core, 1)
    await isTold(core, 'audit')
    // The receiver has checked the new one; a receiver that has the old one finds its own in the same header.
    const [first] = receiver.requests as [Received]
    expect(String(first.headers['webhook-signature']).split(' ')).toHaveLength(2)
    expect(new Webhook(before).verify(first.body, first.headers as Record<string, string>)).toBeTruthy()
    await configure(core, { audit: { ...document, secretBeforeUntil: new Date().toISOString() } })
    await core.configuration.reload()
    await until(async () => {
      await addEvents(core, 1)
      await isTold(core, 'audit')
      return !String(receiver.requests.at(-1)?.headers['webhook-signature']).includes(' ')
    })
  })

  test('that asks for a pause has it, up to a limit', async () => {
    const asked = ['1', new Date(Date.now() + 1000).toUTCString(), '86400', 'soon']
    const { core, receiver } = await told(() => {
      const wait = asked.shift()
      return wait === undefined ? { status: 204 } : { status: asked.length % 2 === 0 ? 429 : 503, headers: { 'retry-after': wait } }
    })
    startSender(core, { askedMostMs: 700 })
    await hasCursor(core, 'audit')
    await addEvents(core, 1)
    const times: number[] = []
    await until(async () => {
      if (receiver.requests.length > times.length) times.push(Date.now())
      return times.length === 5
    })
    const pauses = times.slice(1).map((at, index) => at - (times[index] as number))
    for (const pause of [pauses[0], pauses[2]]) expect(pause).toBeGreaterThanOrEqual(650)
    // What cannot be read is no request.
    expect(pauses[3]).toBeLessThan(600)
    await isTold(core, 'audit')
    expect(retryAfterMs('120', 0)).toBe(120_000)
    expect(retryAfterMs('Thu, 01 Jan 1970 00:00:30 GMT', 10_000)).toBe(20_000)
    expect(retryAfterMs('Thu, 01 Jan 1970 00:00:30 GMT', 40_000)).toBe(0)
    expect([undefined, '-3', 'soon'].map(text => retryAfterMs(text, 0))).toEqual([undefined, undefined, undefined])
  })

  test('misses nothing and has nothing twice under another id, wherever its sender dies', { timeout: 60_000 }, async () => {
    const { core, receiver } = await told()
    const first = startSender(core)
    await hasCursor(core, 'audit')
    await first.stop()
    for (const dies of ['before', 'after'] as const)
      for (let at = 1; at <= 11; at++) {
        await addEvents(core, 2)
        let statements = 0
        const dead = Promise.withResolvers<void>()
        const sql = mortalSql(core.sql, async act => {
          if (++statements > at || (statements === at && dies === 'before')) {
            dead.resolve()
            throw new Error('dead')
          }
          const answer = await act()
          if (statements === at) {
            dead.resolve()
            throw new Error('dead')
          }
          return answer
        })
        const mortal = startSender({ ...core, sql })
        await Promise.race([dead.promise, isTold(core, 'audit')])
        await mortal.stop()
        // Its claim would run out.
        await core.sql`update webhook_cursors set claimed_until = null`
        const heir = startSender(core)
        await isTold(core, 'audit')
        await heir.stop()
      }
    expect(receiver.seqs()).toEqual(upTo(4, 3 + 2 * 22))
    const bodies = new Map<string, Set<string>>()
    for (const { id, body } of receiver.requests) bodies.set(id, (bodies.get(id) ?? new Set()).add(body))
    expect([...bodies.values()].every(same => same.size === 1)).toBe(true)
    // It died between the answer and the cursor too, or this test would prove little.
    expect(receiver.requests.length).toBeGreaterThan(bodies.size)
  })

  test('is claimed by one of those that reach for it at the same moment', async () => {
    const { core } = await told()
    const sender = startSender(core)
    await hasCursor(core, 'audit')
    await sender.stop()
    const claims = await Promise.all(upTo(1, 6).map(() => claimWebhook(core.sql, { webhook: 'audit', claimMs: 5_000 })))
    expect(claims.filter(claim => claim !== undefined)).toHaveLength(1)
  })

  test('whose sender is gone is taken over when its claim has run out', async () => {
    const { core, receiver } = await told()
    const first = startSender(core)
    await hasCursor(core, 'audit')
    await first.stop()
    await core.sql`update webhook_cursors set claim_token = nextval('claim_tokens'), claimed_until = now() + interval '300 milliseconds'`
    await addEvents(core, 1)
    startSender(core)
    await isTold(core, 'audit')
    expect(receiver.seqs()).toEqual([4])
  })

  test('is told again where its sender has lost the claim before the answer came: who lost it writes nothing', async () => {
    let isFirst = true
    const { core, receiver } = await told(async () => {
      if (isFirst)
        await core.sql`update webhook_cursors set claim_token = nextval('claim_tokens'), claimed_until = now() + interval '300 milliseconds'`
      isFirst = false
      return { status: 200 }
    })
    startSender(core)
    await hasCursor(core, 'audit')
    await addEvents(core, 1)
    await isTold(core, 'audit')
    expect(receiver.requests.map(({ id }) => id)).toEqual([receiver.requests[0]?.id, receiver.requests[0]?.id])
  })

  test('that never takes a batch has it among its dead letters, is told what follows, and gets it again when somebody asks', async () => {
    let isBroken = true
    const { core, receiver } = await told(({ events }) => ({ status: isBroken && events.some(({ seq }) => seq === 5) ? 422 : 200 }))
    startSender(core, { budgetMs: 60 })
    await hasCursor(core, 'audit')
    await addEvents(core, 2)
    await until(async () => (await listDeadLetters(core.sql, { webhook: 'audit', limit: 10 })).length === 1)
    await addEvents(core, 2)
    await isTold(core, 'audit')
    const most = attemptsMost({ ...quick, budgetMs: 60 })
    const [letter] = await listDeadLetters(core.sql, { webhook: undefined, limit: 10 })
    expect(letter).toMatchObject({
      webhook: 'audit',
      after_seq: 3,
      to_seq: 5,
      tries: most,
      reason: expect.stringContaining('HTTP 422'),
      again_at: null,
    })
    expect(receiver.requests.filter(({ id }) => id === letter?.batch)).toHaveLength(most)

    // Still broken: it is tried as often again, and dead again.
    expect(await replayDeadLetters(core.sql, 'audit')).toBe(1)
    const again = await until(async () => {
      const [found] = await listDeadLetters(core.sql, { webhook: 'audit', limit: 10 })
      return found?.again_at === null && found.tries === 2 * most && found
    })
    expect(again.batch).toBe(letter?.batch)

    isBroken = false
    await replayDeadLetters(core.sql, 'audit')
    await until(async () => (await listDeadLetters(core.sql, { webhook: 'audit', limit: 10 })).length === 0)
    const last = receiver.requests.at(-1)
    expect(last?.id).toBe(letter?.batch)
    expect(last?.events.map(({ seq }) => seq)).toEqual([4, 5])
  })

  test('that says it is gone is not asked again for that batch', async () => {
    const { core, receiver } = await told(() => ({ status: 410 }))
    startSender(core)
    await hasCursor(core, 'audit')
    await addEvents(core, 1)
    await until(async () => (await cursorOf(core, 'audit'))?.dead_letters === 1)
    expect(receiver.requests).toHaveLength(1)
    expect(await cursorOf(core, 'audit')).toMatchObject({ seq: 4, reason: expect.stringContaining('410') })
  })

  test('whose dead letters are as many as are kept waits instead of losing one', async () => {
    const { core } = await told(() => ({ status: 410 }))
    startSender(core)
    await hasCursor(core, 'audit')
    await core.sql`
      insert into webhook_dead_letters (webhook, batch, after_seq, to_seq, kinds, tries, reason, first_tried_at)
      select 'audit', 'msg_' || n, 0, 1, '{*}', 1, 'x', now() from generate_series(1, 1000) as n`
    await addEvents(core, 1)
    await until(async () => ((await cursorOf(core, 'audit'))?.tries ?? 0) >= 2)
    expect(await cursorOf(core, 'audit')).toMatchObject({ seq: 3, dead_letters: 1000 })
  })

  test('hears only of the kinds it wants; its cursor goes on over the others', async () => {
    const { core, receiver } = await told(undefined, { events: ['machine.moved', 'power.*'] })
    startSender(core)
    await hasCursor(core, 'audit')
    for (const kind of ['machine.moved', 'machine.changed', 'power.ordered', 'powerful', 'power.order-ended', 'noise'])
      await addEvents(core, 1, kind)
    await isTold(core, 'audit')
    expect(receiver.requests.flatMap(({ events }) => events.map(({ kind }) => kind))).toEqual([
      'machine.moved',
      'power.ordered',
      'power.order-ended',
    ])
  })

  test('that is limited to pools hears of machines that are in them, to their end; not of others, nor of what is of no machine', async () => {
    let isBroken = true
    const { core, receiver } = await told(() => ({ status: isBroken ? 500 : 200 }), { events: ['machine.*'], pools: ['lab'] })
    const [mine, other, leaving] = [
      await addMachine(core, { pool: 'lab' }),
      await addMachine(core, { pool: 'prod' }),
      await addMachine(core, { pool: 'lab' }),
    ]
    await numberEvents(core.sql, 1000)
    startSender(core)
    await hasCursor(core, 'audit')
    const note = async (kind: string, machine: string | null, data = {}) => {
      await core.sql`insert into events (kind, machine_id, actor, data) values (${kind}, ${machine}, 'test', ${core.sql.json(data)})`
    }
    for (const machine of [mine.id, other.id, leaving.id, null]) await note('machine.changed', machine)
    await note('power.ordered', mine.id)
    await numberEvents(core.sql, 1000)
    await until(async () => ((await cursorOf(core, 'audit'))?.tries ?? 0) >= 2)
    // What is under way stays the same over all tries, wherever its machines go meanwhile.
    await core.sql`update machines set pool = 'prod' where id = ${leaving.id}`
    await note('machine.changed', leaving.id)
    isBroken = false
    expect(await deleteMachine(core.sql, mine, 'test')).toBe('deleted')
    expect(await deleteMachine(core.sql, other, 'test')).toBe('deleted')
    await numberEvents(core.sql, 1000)
    await isTold(core, 'audit')
    const [first] = receiver.requests
    const tries = receiver.requests.filter(({ id }) => id === first?.id)
    expect(tries.length).toBeGreaterThan(2)
    expect(new Set(tries.map(({ body }) => body)).size).toBe(1)
    expect(first?.events.map(({ kind, machine }) => [kind, machine])).toEqual([
      ['machine.changed', mine.id],
      ['machine.changed', leaving.id],
    ])
    const others = receiver.requests.filter(({ id }) => id !== first?.id).flatMap(({ events }) => events)
    expect(others.map(({ kind, machine }) => [kind, machine])).toEqual([['machine.deleted', mine.id]])
    expect(await cursorOf(core, 'audit')).toMatchObject({ batch_seqs: null, dead_letters: 0 })
  })

  test('whose dead letter is of some pools gets those events again, whatever has become of the machines', async () => {
    let isBroken = true
    const { core, receiver } = await told(() => ({ status: isBroken ? 422 : 200 }), { pools: ['lab'] })
    startSender(core, { budgetMs: 60 })
    await hasCursor(core, 'audit')
    const machine = await addMachine(core, { pool: 'lab' })
    await addEvents(core, 2)
    await until(async () => (await listDeadLetters(core.sql, { webhook: 'audit', limit: 10 })).length === 1)
    await core.sql`update machines set pool = 'prod'`
    isBroken = false
    await replayDeadLetters(core.sql, 'audit')
    await until(async () => (await listDeadLetters(core.sql, { webhook: 'audit', limit: 10 })).length === 0)
    expect(receiver.requests.at(-1)?.events.map(({ machine: id }) => id)).toEqual([machine.id])
  })

  test('is told what a process of the release before chose for it, which leaves the numbers of an earlier batch behind', async () => {
    const { core, receiver } = await told(undefined, { pools: ['lab'] })
    const { stop } = startSender(core)
    await hasCursor(core, 'audit')
    await stop()
    await addEvents(core, 2)
    await core.sql`
      update webhook_cursors set batch = 'msg_before', batch_to = 5, batch_kinds = '{*}', batch_seqs = '{2,3}', tries = 0, first_tried_at = now()`
    startSender(core)
    await isTold(core, 'audit')
    expect(receiver.requests.map(({ id }) => id)).toEqual(['msg_before'])
    expect(receiver.seqs()).toEqual([4, 5])
  })

  test('gets large events in several messages', async () => {
    const { core, receiver } = await told()
    const sender = startSender(core)
    await hasCursor(core, 'audit')
    await sender.stop()
    await addEvents(core, 5, 'noise', { text: 'x'.repeat(220_000) })
    startSender(core)
    await isTold(core, 'audit')
    expect(receiver.requests.map(({ events }) => events.map(({ seq }) => seq))).toEqual([[4, 5], [6, 7], [8]])
  })

  test('sees of a fault of the power what a reader sees', async () => {
    const { core, receiver } = await told()
    startSender(core)
    await hasCursor(core, 'audit')
    await addEvents(core, 1, 'machine.moved', { fault: { code: 'power-silent', message: 'power on via redfish 10.0.3.9: no answer' } })
    await isTold(core, 'audit')
    expect(receiver.requests[0]?.body).toContain('power-silent')
    expect(receiver.requests[0]?.body).not.toContain('10.0.3.9')
  })

  test('that is paused is told nothing, and afterwards everything; one that is gone is forgotten, and a new one of its name begins anew', async () => {
    const { core, receiver, document } = await told(({ events }) => ({ status: events.some(({ seq }) => seq === 6) ? 410 : 200 }))
    const other = await startReceiver()
    startSender(core)
    await hasCursor(core, 'audit')
    await configure(core, { audit: { ...document, status: 'paused' }, second: { url: other.url } })
    await hasCursor(core, 'second')
    await addEvents(core, 2)
    await isTold(core, 'second')
    expect(receiver.requests).toEqual([])
    await configure(core, { audit: document, second: { url: other.url } })
    await isTold(core, 'audit')
    expect(receiver.seqs()).toEqual([4, 5])
    await addEvents(core, 1)
    await until(async () => (await cursorOf(core, 'audit'))?.dead_letters === 1)

    await configure(core, { second: { url: other.url } })
    await until(async () => (await cursorOf(core, 'audit')) === undefined)
    expect(await listDeadLetters(core.sql, { webhook: 'audit', limit: 10 })).toEqual([])
    await addEvents(core, 1)
    await configure(core, { audit: document, second: { url: other.url } })
    await hasCursor(core, 'audit')
    await addEvents(core, 1)
    await isTold(core, 'audit')
    expect(receiver.seqs()).toEqual([4, 5, 6, 8])
    await isTold(core, 'second')
    expect(other.seqs()).toEqual([4, 5, 6, 7, 8])
  })

  test('that does not answer holds up no other, and is given no longer than an attempt may take', async () => {
    const { core, receiver } = await told()
    const silent = await startReceiver(() => 'silence')
    await configure(core, { audit: { url: receiver.url }, silent: { url: silent.url } })
    startSender(core, { attemptMs: 300, claimMs: 1_000 })
    await hasCursor(core, 'silent')
    await addEvents(core, 1)
    await isTold(core, 'audit')
    expect(await cursorOf(core, 'silent')).toMatchObject({ seq: 3 })
    const failed = await until(async () => {
      const row = await cursorOf(core, 'silent')
      return row !== undefined && row.tries >= 1 && row
    })
    expect(failed.reason).toMatch(/no answer within 0\.3 s$/)
  })
})

describe('where events are sent', () => {
  test('redirects are not followed', async () => {
    const target = await startReceiver()
    const { core } = await told(() => ({ status: 307, headers: { location: target.url } }))
    startSender(core)
    await hasCursor(core, 'audit')
    await addEvents(core, 1)
    const row = await until(async () => {
      const found = await cursorOf(core, 'audit')
      return found !== undefined && found.tries >= 1 && found
    })
    expect(row.reason).toContain('HTTP 307 (redirects are not followed')
    expect(target.requests).toEqual([])
  })

  test('addresses of metadata services are refused, however they are written; a name is resolved first', async () => {
    for (const address of [
      '169.254.169.254',
      '::ffff:169.254.169.254',
      'fe80::1',
      'fe80::1%eth0',
      'fd00:ec2::254',
      '0.0.0.0',
      '::',
      '100.100.100.200',
      '239.1.1.1',
      '255.255.255.255',
      '64:ff9b::a9fe:a9fe',
    ])
      expect(isRefusedAddress(address), address).toBe(true)
    for (const address of ['127.0.0.1', '::1', '10.0.0.7', '192.168.1.1', '203.0.113.9', 'fd12:3456::1', '2001:db8::1', '100.64.0.1'])
      expect(isRefusedAddress(address), address).toBe(false)
    const core = await startCore()
    const receiver = await startReceiver()
    const urls = {
      decimal: 'http://2852039166/',
      mapped: 'http://[::ffff:169.254.169.254]/',
      name: receiver.url.replace('127.0.0.1', 'localhost'),
    }
    await configure(core, Object.fromEntries(Object.entries(urls).map(([name, url]) => [name, { url }])))
    startSender(core)
    await hasCursor(core, 'name')
    await addEvents(core, 1)
    for (const name of ['decimal', 'mapped'])
      expect(await until(async () => (await cursorOf(core, name))?.reason ?? undefined)).toMatch(/169\.254\.169\.254|a9fe:a9fe/)
    await isTold(core, 'name')
  })
})

test('a batch is tried for a day', () => {
  expect(attemptsMost(usualPace)).toBeGreaterThan(24 * 12)
  expect(attemptsMost(usualPace)).toBeLessThan(24 * 12 + 12)
})

describe('a partition', () => {
  test('without the shared key, or with another, says so and sends nothing; with the right one it goes on where it stood', async () => {
    const databaseUrl = await partitionDatabase()
    const receiver = await startReceiver()
    const without = await runPartition({ databaseUrl })
    await configure(without.core, { audit: { url: receiver.url } })
    const problem = await until(
      async () =>
        (await without.as('rita').partitions.status({})).problems.find(({ problem: text }) => text.includes('MUSTER_SHARED_KEY'))?.problem,
    )
    expect(problem).toContain('webhook audit: MUSTER_SHARED_KEY is not set')
    await hasCursor(without.core, 'audit')
    await addEvents(without.core, 1)
    await without.stop()

    const wrong = await runPartition({ databaseUrl, sharedKey: Buffer.alloc(32, 6) })
    expect(
      await until(
        async () =>
          (await wrong.as('rita').partitions.status({})).problems.find(({ problem: text }) => text.includes('MUSTER_SHARED_KEY'))?.problem,
      ),
    ).toContain('is not the key')
    const { items } = await wrong.as('olga').webhooks.deliveries({})
    expect(items).toMatchObject([
      { partition: 'lon1', webhook: 'audit', status: 'active', behind: 1, reason: expect.stringContaining('is not the key') },
    ])
    await wrong.stop()
    expect(receiver.requests).toEqual([])

    const right = await runPartition({ databaseUrl, sharedKey })
    await isTold(right.core, 'audit')
    expect(receiver.requests.flatMap(({ events }) => events)).toHaveLength(1)
    expect((await right.as('rita').partitions.status({})).problems).toEqual([])
    const said = right.lines.join('\n')
    expect(said).not.toContain(secret.slice(6))
  })

  test('answers for operators how webhooks stand, and sends dead letters again', async () => {
    let status = 410
    const receiver = await startReceiver(() => ({ status }))
    const partition = await runPartition({ sharedKey })
    await configure(partition.core, { audit: { url: receiver.url }, quiet: { url: receiver.url, status: 'paused' } })
    await hasCursor(partition.core, 'audit')
    await addEvents(partition.core, 2)
    const olga = partition.as('olga')
    const [letter] = await until(async () => {
      const { items } = await olga.webhooks.deadLetters({ webhook: 'audit' })
      return items.length > 0 && items
    })
    expect(letter).toMatchObject({ partition: 'lon1', webhook: 'audit', from: 1, to: 2, tries: 1, status: 'dead' })
    expect((await olga.webhooks.deliveries({})).items).toMatchObject([
      { webhook: 'audit', status: 'active', behind: 0, deadLetters: 1, deliveredAt: null, reason: expect.stringContaining('410') },
      { webhook: 'quiet', status: 'paused', behind: 2, nextTryAt: null },
    ])
    expect((await olga.webhooks.deliveries({ webhook: 'quiet' })).items).toHaveLength(1)
    status = 204
    expect(await olga.webhooks.replay({ name: 'audit' })).toMatchObject({ items: [{ letters: 1 }] })
    await until(async () => (await olga.webhooks.deadLetters({})).items.length === 0)
    expect(receiver.requests.map(({ id }) => id)).toEqual([letter?.batch, letter?.batch])
    await expect(olga.webhooks.replay({ name: 'nobody' })).rejects.toMatchObject({ code: 'not-found' })
    await expect(partition.as('alice').webhooks.deliveries({})).rejects.toMatchObject({ code: 'forbidden' })
  })
})
