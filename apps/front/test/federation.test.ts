// How calls spread over partitions that answer, refuse, fall silent or talk nonsense.
import { presenceLimitMs, subjects } from '@muster/shared/bus/protocol'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { alice, complaints, contextOf, elapse, refusalFrom, startModels } from './harness.ts'

beforeEach(() => {
  vi.useFakeTimers()
  complaints.length = 0
})
afterEach(() => {
  vi.useRealTimers()
})

const list = { sort: 'id' as const, limit: 100 }
const silence = presenceLimitMs + 1500
const three = { p1: [{}, {}], p2: [{}], p3: [{}] }

describe('owner', () => {
  test('one hop to the partition that the id names', async () => {
    const models = await startModels(three)
    const { backend } = await models.front()
    const machine = await elapse(backend.call('machines.get', { id: 'p2-000000' }, contextOf()))
    expect(machine).toMatchObject({ id: 'p2-000000', partition: 'p2' })
    expect([...models.partitions.values()].map(({ heard }) => heard)).toEqual([[], ['machines.get'], []])
    await models.stop()
  })

  test('an unknown partition has nothing; a silent one is named with what is known of it', async () => {
    const models = await startModels(three)
    const { backend } = await models.front()
    const unknown = await refusalFrom(elapse(backend.call('machines.get', { id: 'p9-000000' }, contextOf())))
    expect(unknown).toMatchObject({ code: 'not-found', facts: { partition: 'p9', known: ['p1', 'p2', 'p3'] } })
    models.bus('p2').cutOff()
    await vi.advanceTimersByTimeAsync(silence)
    const silent = await refusalFrom(elapse(backend.call('machines.get', { id: 'p2-000000' }, contextOf())))
    expect(silent).toMatchObject({ code: 'partition-silent', facts: { partition: 'p2' } })
    expect(silent.message).toContain('last seen 5 s ago')
    await models.stop()
  })

  test('a change is not sent to a partition that is held silent, so it certainly did not happen', async () => {
    const models = await startModels(three)
    const { backend } = await models.front()
    models.bus('p2').cutOff()
    await vi.advanceTimersByTimeAsync(silence)
    models.bus('p2').heal()
    const refusal = await refusalFrom(backend.call('machines.release', { id: 'p2-000000' }, contextOf()))
    expect(refusal.code).toBe('partition-silent')
    expect(refusal.message).toContain('it was not asked')
    await models.stop()
  })

  test('a refusal of the partition arrives as it was made', async () => {
    const models = await startModels(three)
    const { backend } = await models.front()
    const refusal = await refusalFrom(elapse(backend.call('machines.get', { id: 'p2-000009' }, contextOf())))
    expect(refusal).toMatchObject({ code: 'not-found', message: 'there is no machine p2-000009' })
    await models.stop()
  })

  test('nonsense from the partition is an internal error that names it', async () => {
    const models = await startModels(three)
    const { backend } = await models.front()
    models.partition('p2').machines.set('p2-000000', { nonsense: true } as never)
    const refusal = await refusalFrom(elapse(backend.call('machines.get', { id: 'p2-000000' }, contextOf())))
    expect(refusal).toMatchObject({ code: 'internal', facts: { partition: 'p2' } })
    await models.stop()
  })
})

describe('gather', () => {
  test('asks all, merges, and has a line for each', async () => {
    const models = await startModels(three)
    const { backend } = await models.front()
    const page = await elapse(backend.call('machines.list', list, contextOf()))
    expect(page.items.map(({ id }) => id)).toEqual(['p1-000000', 'p1-000001', 'p2-000000', 'p3-000000'])
    expect(page.coverage).toMatchObject({
      asked: 3,
      answered: 3,
      partitions: [{ name: 'p1', outcome: 'answered' }, { name: 'p2' }, { name: 'p3' }],
    })
    await models.stop()
  })

  test('a partition that stops answering costs its limit once, and next to nothing when it is known to be silent', async () => {
    const models = await startModels(three)
    const { backend } = await models.front()
    models.bus('p2').cutOff()
    const askedAt = Date.now()
    const first = await elapse(backend.call('machines.list', list, contextOf()))
    expect(Date.now() - askedAt).toBeLessThanOrEqual(2100)
    expect(first.coverage.partitions[1]).toMatchObject({ name: 'p2', outcome: 'silent', reason: 'no answer within 2000 ms' })
    await vi.advanceTimersByTimeAsync(silence)
    const askedAgainAt = Date.now()
    const second = await elapse(backend.call('machines.list', list, contextOf()))
    expect(Date.now() - askedAgainAt).toBeLessThanOrEqual(300)
    expect(second.coverage).toMatchObject({ asked: 3, answered: 2 })
    expect(second.items).toHaveLength(3)
    await models.stop()
  })

  test('a partition that was silent for one page loses nothing of the listing', async () => {
    const models = await startModels({ p1: [{}, {}, {}], p2: [{}, {}], p3: [{}, {}] })
    const { backend } = await models.front()
    const read: string[] = []
    let cursor: string | undefined
    for (let page = 0; page === 0 || cursor !== undefined; page++) {
      if (page === 1) models.bus('p1').cutOff()
      else models.bus('p1').heal()
      const input = { sort: 'id' as const, limit: 2, ...(cursor !== undefined && { cursor }) }
      const { items, nextCursor } = await elapse(backend.call('machines.list', input, contextOf()))
      read.push(...items.map(({ id }) => id))
      cursor = nextCursor ?? undefined
    }
    expect(read.sort()).toEqual(['p1-000000', 'p1-000001', 'p1-000002', 'p2-000000', 'p2-000001', 'p3-000000', 'p3-000001'])
    await models.stop()
  })

  test('the partitions named in the input are the ones asked', async () => {
    const models = await startModels(three)
    const { backend } = await models.front()
    const page = await elapse(backend.call('machines.list', { ...list, partition: ['p3', 'p9'] }, contextOf()))
    expect(page.items.map(({ id }) => id)).toEqual(['p3-000000'])
    expect(page.coverage).toMatchObject({ asked: 1, answered: 1 })
    expect(models.partition('p1').heard).toEqual([])
    const nobody = await elapse(backend.call('machines.list', { ...list, partition: ['p9'] }, contextOf()))
    expect(nobody).toMatchObject({ items: [], nextCursor: null, coverage: { asked: 0 } })
    await models.stop()
  })

  test('a partition that sends nonsense is refused, with the reason; the others are merged', async () => {
    const models = await startModels(three)
    const { backend } = await models.front()
    const { machines } = models.partition('p2')
    machines.set('p2-000000', { ...machines.get('p2-000000'), cpus: 'many' } as never)
    const page = await elapse(backend.call('machines.list', list, contextOf()))
    expect(page.items.map(({ id }) => id)).toEqual(['p1-000000', 'p1-000001', 'p3-000000'])
    expect(page.coverage.partitions[1]).toMatchObject({ name: 'p2', outcome: 'refused', reason: 'its answer is malformed' })
    await models.stop()
  })

  test('bytes that are no answer at all are nobody’s exception', async () => {
    const models = await startModels({ p1: [{}] })
    const { backend } = await models.front({ accepted: ['p1', 'p2', 'p3', 'p4', 'p5'] })
    const bus = models.broker.connect()
    const nonsense = { p2: 'not json', p3: '[]', p4: '{"v":2,"ok":{}}', p5: '{"v":1,"problem":{"code":"no-such-code"}}' }
    for (const [name, text] of Object.entries(nonsense))
      await bus.subscribe(subjects.call(name), {}, ({ reply }) => reply?.(Buffer.from(text)))
    const page = await elapse(backend.call('machines.list', list, contextOf()))
    expect(page.coverage.partitions.map(({ outcome }) => outcome)).toEqual(['answered', 'refused', 'refused', 'refused', 'refused'])
    await bus.close()
    await models.stop()
  })

  test('nobody answers: silent partitions are named; a refusal of the request itself goes before', async () => {
    const models = await startModels({ p1: [{}], p2: [{}] })
    const { backend } = await models.front()
    const refused = await refusalFrom(elapse(backend.call('machines.list', { ...list, cursor: 'nonsense' }, contextOf())))
    expect(refused).toMatchObject({ code: 'invalid-input', facts: { errors: [{ field: 'cursor' }], coverage: { asked: 2, answered: 0 } } })
    for (const name of ['p1', 'p2']) models.bus(name).cutOff()
    await vi.advanceTimersByTimeAsync(silence)
    const silent = await refusalFrom(elapse(backend.call('machines.list', list, contextOf())))
    expect(silent).toMatchObject({ code: 'partition-silent', facts: { coverage: { asked: 2, answered: 0 } } })
    expect(silent.message).toMatch(/p1: .*p2: /)
    await models.stop()
  })

  test('without a link every call is refused at once', async () => {
    const models = await startModels(three)
    const { backend } = await models.front()
    models.broker.stop()
    expect(backend.readiness()).toMatchObject([{ name: 'bus', status: 'failed' }, { name: 'partitions' }])
    for (const call of [
      backend.call('machines.list', list, contextOf()),
      backend.call('machines.get', { id: 'p1-000000' }, contextOf()),
      backend.call('allocations.create', { strategy: 'best', count: 1, constraints: {}, dryRun: false, note: '' }, contextOf()),
    ])
      expect((await refusalFrom(call)).code).toBe('bus-away')
    models.broker.start()
    await elapse(backend.call('machines.list', list, contextOf()))
    await models.stop()
  })

  test('a caller that has gone is told to the partitions, in one notice', async () => {
    const models = await startModels(three)
    const { backend } = await models.front()
    for (const bus of models.buses.values()) bus.plan(['mute'])
    const gone = new AbortController()
    const asked = refusalFrom(backend.call('machines.list', list, contextOf({ requestId: 'mine', signal: gone.signal })))
    await vi.advanceTimersByTimeAsync(10)
    gone.abort()
    expect((await asked).code).toBe('deadline-passed')
    await vi.advanceTimersByTimeAsync(100)
    const { cancelled } = models.partition('p1')
    expect(cancelled).toHaveLength(1)
    expect(cancelled[0]).toMatch(/^mine~/)
    await models.stop()
  })
})

describe('find', () => {
  test('those who know it answer; not-found counts as an answer', async () => {
    const models = await startModels(three)
    const { backend } = await models.front()
    models.partition('p1').tags.set('gpu', 'has one')
    models.partition('p3').tags.set('gpu', '')
    const tag = await elapse(backend.call('tags.get', { name: 'gpu' }, contextOf()))
    expect(tag).toMatchObject({ name: 'gpu', description: 'has one', machines: 2, coverage: { asked: 3, answered: 3 } })
    await models.stop()
  })

  test('not-found only when all have said so; else who was silent', async () => {
    const models = await startModels(three)
    const { backend } = await models.front()
    const absent = await refusalFrom(elapse(backend.call('tags.get', { name: 'none' }, contextOf())))
    expect(absent).toMatchObject({ code: 'not-found', facts: { coverage: { asked: 3, answered: 3 } } })
    models.bus('p2').cutOff()
    const unsure = await refusalFrom(elapse(backend.call('tags.get', { name: 'none' }, contextOf())))
    expect(unsure).toMatchObject({ code: 'partition-silent', facts: { coverage: { asked: 3, answered: 2 } } })
    expect(unsure.message).toContain('p2')
    expect(unsure.message).not.toContain('p1')
    await models.stop()
  })
})

describe('each', () => {
  test('applies to all; one outcome per partition', async () => {
    const models = await startModels(three)
    const { backend } = await models.front()
    models.bus('p2').cutOff()
    const put = await elapse(backend.call('tags.put', { name: 'gpu', description: 'x' }, contextOf()))
    expect(put.coverage.partitions.map(({ outcome }) => outcome)).toEqual(['answered', 'silent', 'answered'])
    expect([...models.partitions.values()].map(({ tags }) => tags.get('gpu'))).toEqual(['x', undefined, 'x'])
    await models.stop()
  })
})

describe('here', () => {
  test('a front says who it is, even without a bus', async () => {
    const models = await startModels({})
    const { backend } = await models.front({ name: 'front-a' })
    models.broker.stop()
    expect(await backend.call('session.whoami', {}, contextOf())).toEqual({
      caller: alice,
      server: { kind: 'front', name: 'front-a', version: '0.1.0' },
    })
    await models.stop()
  })
})

describe('logs', () => {
  test('growth anywhere is told, but not once per event', async () => {
    const models = await startModels(three)
    const { backend } = await models.front()
    let told = 0
    const stop = backend.onLogGrowth(() => told++)
    for (let i = 0; i < 20; i++) models.partition('p1').record('machine.moved')
    models.partition('p2').record('machine.moved')
    await vi.advanceTimersByTimeAsync(200)
    expect(told).toBe(1)
    const { items } = await elapse(backend.call('events.list', { limit: 100 }, contextOf()))
    expect(items).toHaveLength(21)
    stop()
    models.partition('p2').record('machine.moved')
    await vi.advanceTimersByTimeAsync(200)
    expect(told).toBe(1)
    await models.stop()
  })
})

describe('presence', () => {
  test('a new front knows at once who is there', async () => {
    const models = await startModels(three)
    const { presence } = await models.front()
    expect(['p1', 'p2', 'p3'].map(name => presence.standing(name))).toEqual(['present', 'present', 'present'])
    await models.stop()
  })

  test('a partition falls silent after three missed notices, and is back with the first one', async () => {
    const models = await startModels(three)
    const { presence } = await models.front()
    let changes = 0
    presence.onChange(() => changes++)
    models.bus('p2').cutOff()
    await vi.advanceTimersByTimeAsync(presenceLimitMs - 500)
    expect(presence.standing('p2')).toBe('present')
    await vi.advanceTimersByTimeAsync(1500)
    expect(presence.standing('p2')).toBe('silent')
    expect(presence.describe('p2')).toMatch(/last seen [45] s ago/)
    expect(changes).toBe(1)
    models.bus('p2').heal()
    await vi.advanceTimersByTimeAsync(1000)
    expect(presence.standing('p2')).toBe('present')
    await models.stop()
  })

  test('a front that was stopped itself does not hold that against the partitions', async () => {
    const models = await startModels(three)
    const { presence } = await models.front()
    vi.setSystemTime(Date.now() + 60_000)
    await vi.advanceTimersByTimeAsync(600)
    expect(presence.standing('p2')).toBe('present')
    await models.stop()
  })

  test('a replica that leaves is told apart from one that is silent; another replica keeps the partition present', async () => {
    const models = await startModels(three)
    const { presence } = await models.front()
    models.partition('p2').tellPresence('leaving')
    await vi.advanceTimersByTimeAsync(1)
    expect(presence.standing('p2')).toBe('leaving')
    expect(presence.describe('p2')).toContain('shutting down')
    await models.stop()
  })

  test('what a replaced process says is stale, and its notices change nothing', async () => {
    const models = await startModels({ p1: [{}] }, { epoch: 7 })
    const { presence } = await models.front()
    expect([presence.isStale('p1', 'a', 6), presence.isStale('p1', 'a', 7), presence.isStale('p1', 'b', 1)]).toEqual([true, false, false])
    const notice = {
      v: 1,
      partition: 'p1',
      replica: 'a',
      epoch: 6,
      version: '0',
      url: '',
      status: 'leaving',
      capacity: { ready: 99, total: 99 },
    }
    const bus = models.broker.connect()
    bus.publish(subjects.presence('p1'), Buffer.from(JSON.stringify(notice)))
    // Newer, but said by somebody else.
    bus.publish(subjects.presence('p2'), Buffer.from(JSON.stringify({ ...notice, epoch: 9 })))
    await vi.advanceTimersByTimeAsync(1)
    expect(presence.standing('p1')).toBe('present')
    await models.stop()
  })

  test('one that is not accepted is ignored, and that is logged once', async () => {
    const models = await startModels(three)
    const { backend, presence } = await models.front({ accepted: ['p1', 'p2'] })
    await vi.advanceTimersByTimeAsync(5000)
    expect(presence.known()).toEqual(['p1', 'p2'])
    expect(complaints.filter(({ text }) => text.includes('not accepted'))).toHaveLength(1)
    expect((await elapse(backend.call('machines.list', list, contextOf()))).coverage.asked).toBe(2)
    await models.stop()
  })

  test('without a list of accepted ones, all that were seen are known, also when they have gone', async () => {
    const models = await startModels(three)
    const { presence } = await models.front({ accepted: undefined })
    models.bus('p2').cutOff()
    await vi.advanceTimersByTimeAsync(silence)
    expect(presence.known()).toEqual(['p1', 'p2', 'p3'])
    expect(presence.standing('p2')).toBe('silent')
    await models.stop()
  })
})
