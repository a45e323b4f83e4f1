// Allocation over the federation, case by case: what each kind of trouble comes to, and that the answer is true.
import { subjects } from '@muster/shared/bus/protocol'
import type { AllocationRequest } from '@muster/shared/contract/allocations'
import { allocationRequest } from '@muster/shared/contract/allocations'
import type { Machine } from '@muster/shared/machine'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { createFront } from '../src/front.ts'
import { alice, type Backend, complaints, contextOf, elapse, type ModelFederation, refusalFrom, startModels } from './harness.ts'
import { homeOf, ModelPartition } from './model-partition.ts'

beforeEach(() => {
  vi.useFakeTimers()
  complaints.length = 0
})
afterEach(() => {
  vi.useRealTimers()
})

const requestOf = (request: Partial<AllocationRequest> = {}): AllocationRequest => allocationRequest.parse(request)
const create = (backend: Backend, request: Partial<AllocationRequest> = {}, options: Parameters<typeof contextOf>[0] = {}) =>
  backend.call('allocations.create', requestOf(request), contextOf(options))
const sized = (...cpus: number[]): Partial<Machine>[] => cpus.map(count => ({ cpus: count }))
const ids = ({ machines }: { machines: readonly { id: string }[] }) => machines.map(({ id }) => id)
const statesIn = (models: ModelFederation) =>
  [...models.partitions.values()].flatMap(partition => [...partition.machines.values()].map(({ state }) => state))

describe('one machine', () => {
  test('best: the least wasteful of all partitions', async () => {
    const models = await startModels({ p1: sized(16), p2: sized(8, 2), p3: sized(4) })
    const { backend } = await models.front()
    const allocation = await elapse(create(backend, { note: 'mine' }))
    expect(allocation).toMatchObject({
      owner: 'alice',
      state: 'confirmed',
      count: 1,
      note: 'mine',
      dryRun: false,
      machines: [{ id: 'p2-000001', state: 'allocated' }],
    })
    expect(allocation.coverage).toMatchObject({ asked: 3, answered: 3 })
    expect(statesIn(models).filter(state => state !== 'ready')).toEqual(['allocated'])
    expect((await elapse(backend.call('allocations.get', { id: allocation.id as string }, contextOf()))).machines).toEqual(
      allocation.machines,
    )
    await models.stop()
  })

  test('first: does not wait for the slow', async () => {
    const models = await startModels({ p1: sized(16), p2: sized(1) })
    const { backend } = await models.front()
    models.bus('p2').plan([{ slow: 500 }])
    const askedAt = Date.now()
    expect(ids(await elapse(create(backend, { strategy: 'first' })))).toEqual(['p1-000000'])
    expect(Date.now() - askedAt).toBeLessThan(100)
    await models.stop()
  })

  test('best waits for a slow present partition, but not long after the others', async () => {
    const models = await startModels({ p1: sized(16), p2: sized(1), p3: sized(2) })
    const { backend } = await models.front()
    models.bus('p2').plan([{ slow: 200 }])
    expect(ids(await elapse(create(backend)))).toEqual(['p2-000000'])
    models.partition('p2').setReady('p2-000000')
    models.bus('p2').plan(['mute'])
    const askedAt = Date.now()
    expect(ids(await elapse(create(backend)))).toEqual(['p3-000000'])
    expect(Date.now() - askedAt).toBeLessThan(400)
    await models.stop()
  })

  test('a front that has not heard of anybody yet still hears all offers', async () => {
    const models = await startModels({ p1: sized(16), p2: sized(8), p3: sized(4) })
    for (const accepted of [['p1', 'p2', 'p3'], undefined]) {
      const bus = models.broker.connect()
      const log = { info: () => undefined, warn: () => undefined }
      const front = createFront({ name: 'new', version: '0', bus, accepted, log })
      expect(ids(await elapse(create(front.backend)))).toEqual(['p3-000000'])
      models.partition('p3').setReady('p3-000000')
      const refusal = await refusalFrom(elapse(create(front.backend, { constraints: { cpus: 99 } })))
      expect(refusal).toMatchObject({ code: 'no-match', facts: { explanation: { considered: 3 } } })
      await front.stop()
      await bus.close()
    }
    await models.stop()
  })

  test('a front that wrongly holds everybody silent still hears all offers', async () => {
    const models = await startModels({ p1: sized(16), p2: sized(4) })
    const { backend, presence } = await models.front()
    for (const partition of models.partitions.values()) partition.tellPresence('leaving')
    await vi.advanceTimersByTimeAsync(1)
    expect(presence.standing('p1')).toBe('leaving')
    expect(ids(await elapse(create(backend)))).toEqual(['p2-000000'])
    await models.stop()
  })

  test('the machine offered is gone: the partition holds its next match; has it none, the next best offer is taken', async () => {
    const models = await startModels({ p1: sized(1), p2: sized(2) })
    const { backend } = await models.front()
    // It answers from an index that does not know yet: after the offer the machine breaks.
    models.bus('p1').plan(['none', { late: 50 }])
    const answer = create(backend)
    setTimeout(() => models.partition('p1').machines.delete('p1-000000'), 20)
    expect(ids(await elapse(answer))).toEqual(['p2-000000'])
    await models.stop()
  })

  test('a partition that offers and falls silent: its hold is not waited for longer than a call, and another is taken', async () => {
    const models = await startModels({ p1: sized(1), p2: sized(2) })
    const { backend } = await models.front()
    models.bus('p1').plan(['none', 'mute'])
    expect(ids(await elapse(create(backend)))).toEqual(['p2-000000'])
    expect(models.partition('p1').reserved()).toEqual([])
    await models.stop()
  })

  test('only a partition that does not answer its hold has machines: nothing is allocated, and that is said', async () => {
    const models = await startModels({ p1: sized(1) })
    const { backend } = await models.front()
    models.bus('p1').plan(['none', 'deaf'])
    const refusal = await refusalFrom(elapse(create(backend)))
    expect(refusal).toMatchObject({ code: 'nothing-allocated' })
    expect(refusal.message).toContain('p1: no answer within 2000 ms')
    await vi.advanceTimersByTimeAsync(20_000)
    expect(statesIn(models)).toEqual(['ready'])
    await models.stop()
  })

  test('an offer of a process that has been replaced is dropped', async () => {
    const models = await startModels({ p1: sized(1), p2: sized(2) }, { epoch: 5 })
    const { backend } = await models.front()
    models.partition('p1').stop()
    const zombie = await new ModelPartition({ name: 'p1', bus: models.broker.connect(), machines: sized(1), epoch: 4 }).start()
    const allocation = await elapse(create(backend))
    expect(ids(allocation)).toEqual(['p2-000000'])
    zombie.stop()
    await models.stop()
  })

  test('offers that cannot be read, or come from strangers, are dropped and counted', async () => {
    const models = await startModels({ p1: sized(4) })
    const { backend } = await models.front()
    const bus = models.broker.connect()
    const stranger = {
      v: 1,
      partition: 'evil',
      replica: 'a',
      epoch: 1,
      machines: [{ id: 'evil-000000', score: -1, rack: '', zone: '' }],
      matching: 1,
    }
    const forged = { ...stranger, partition: 'p1' }
    const answers = ['not json', JSON.stringify(stranger), JSON.stringify(forged), '{"v":1}']
    await bus.subscribe(subjects.offer, {}, ({ reply }) => {
      for (const answer of answers) reply?.(Buffer.from(answer))
    })
    expect(ids(await elapse(create(backend)))).toEqual(['p1-000000'])
    expect(complaints).toMatchObject([{ facts: { unreadable: expect.any(Number) }, text: 'offers that cannot be read were dropped' }])
    await bus.close()
    await models.stop()
  })
})

describe('no match', () => {
  test('explains over all partitions, and says which of them answered', async () => {
    const models = await startModels({ p1: sized(1, 2), p2: [{ cpus: 64, pool: 'gpu' }], p3: sized(1) })
    const { backend } = await models.front()
    models.bus('p3').cutOff()
    await vi.advanceTimersByTimeAsync(5000)
    const refusal = await refusalFrom(elapse(create(backend, { constraints: { cpus: 8, pools: ['default'] } })))
    expect(refusal).toMatchObject({
      code: 'no-match',
      message: 'asked for a machine: 0 of 3 ready machines match; pools removed 1, cpus removed 2',
      facts: {
        explanation: {
          considered: 3,
          matching: 0,
          removed: [
            { constraint: 'pools', machines: 1 },
            { constraint: 'cpus', machines: 2 },
          ],
          nearest: [{ machine: 'p1-000000' }, { machine: 'p1-000001' }, { machine: 'p2-000000' }],
        },
        coverage: {
          asked: 3,
          answered: 2,
          partitions: [{ outcome: 'answered' }, { outcome: 'answered' }, { name: 'p3', outcome: 'silent' }],
        },
      },
    })
    await models.stop()
  })

  test('where no partition answers, it is silence and not a lack of machines', async () => {
    const models = await startModels({ p1: sized(1) })
    const { backend } = await models.front()
    models.bus('p1').cutOff()
    const refusal = await refusalFrom(elapse(create(backend)))
    expect(refusal).toMatchObject({ code: 'partition-silent', facts: { coverage: { asked: 1, answered: 0 } } })
    await models.stop()
  })
})

describe('several machines', () => {
  test('all or nothing over partitions; spread takes one of each', async () => {
    const models = await startModels({ p1: sized(4, 4), p2: sized(4, 4), p3: sized(4, 4) })
    const { backend } = await models.front()
    const allocation = await elapse(create(backend, { count: 3, strategy: 'spread' }))
    expect(allocation.machines.map(({ partition }) => partition)).toEqual(['p1', 'p2', 'p3'])
    expect(allocation).toMatchObject({ state: 'confirmed', count: 3, coverage: { asked: 3, answered: 3 } })
    const refusal = await refusalFrom(elapse(create(backend, { count: 4 })))
    expect(refusal).toMatchObject({ code: 'no-match', facts: { explanation: { considered: 3, matching: 3 } } })
    expect(statesIn(models).filter(state => state === 'ready')).toHaveLength(3)
    await models.stop()
  })

  test('one part cannot be held: what was held is given back at once', async () => {
    const models = await startModels({ p1: sized(4), p2: sized(4) })
    const { backend } = await models.front()
    models.bus('p2').plan(['none', 'deaf', 'none', 'none', 'none'])
    const refusal = await refusalFrom(elapse(create(backend, { count: 2 })))
    expect(refusal.code).toBe('nothing-allocated')
    expect(statesIn(models)).toEqual(['ready', 'ready'])
    await models.stop()
  })

  test('a part that is gone when it comes to confirming takes the others with it, and a new attempt is made', async () => {
    const models = await startModels({ p1: sized(4, 4), p2: sized(4, 4) }, { holdMs: 3000 })
    const { backend } = await models.front()
    for (const options of [{}, { idempotencyKey: 'order-1' }]) {
      // Heard too late: by then the hold has expired.
      models.bus('p2').planCall('allocation.confirm', { late: 3500 })
      const allocation = await elapse(create(backend, { count: 2, strategy: 'spread' }, { limitMs: 30_000, ...options }))
      expect(allocation.state).toBe('confirmed')
      expect(statesIn(models).filter(state => state === 'allocated')).toHaveLength(2)
      const found = await elapse(backend.call('allocations.get', { id: allocation.id as string }, contextOf()))
      expect(ids(found)).toEqual(ids(allocation))
      await elapse(backend.call('allocations.release', { id: allocation.id as string }, contextOf()))
    }
    await models.stop()
  })
})

describe('confirming', () => {
  test('a lost answer is asked for again', async () => {
    const models = await startModels({ p1: sized(4) })
    const { backend } = await models.front()
    models.bus('p1').plan(['none', 'none', 'mute', 'mute'])
    expect(ids(await elapse(create(backend)))).toEqual(['p1-000000'])
    await models.stop()
  })

  test('without a key and without an answer, the answer names what is unknown', async () => {
    const models = await startModels({ p1: sized(4) })
    const { backend } = await models.front()
    const answer = create(backend)
    models.bus('p1').plan(['none', 'none', ...Array(50).fill('mute')])
    const refusal = await refusalFrom(elapse(answer))
    expect(refusal).toMatchObject({ code: 'partition-silent', facts: { silent: ['p1'], machines: ['p1-000000'] } })
    expect(refusal.message).toContain('Either p1-000000 belong to a-')
    await models.stop()
  })

  test('without a key, what could not be confirmed but can be given back is given back', async () => {
    const models = await startModels({ p1: sized(4) })
    const { backend } = await models.front()
    // offer, hold, then every confirm in ten seconds is not heard; the drop is.
    models.bus('p1').plan(['none', 'none', 'deaf', 'deaf', 'deaf', 'deaf', 'deaf'])
    const refusal = await refusalFrom(elapse(create(backend, {}, { limitMs: 10_000 })))
    expect(refusal).toMatchObject({ code: 'nothing-allocated' })
    expect(statesIn(models)).toEqual(['ready'])
    await models.stop()
  })

  test('a caller that goes in the middle leaves nothing behind', async () => {
    const models = await startModels({ p1: sized(4) })
    const { backend } = await models.front()
    for (const plan of [
      ['none', { slow: 100 }],
      ['none', 'none', { slow: 100 }],
    ] as const) {
      const gone = new AbortController()
      models.bus('p1').plan(plan)
      const answer = refusalFrom(create(backend, {}, { signal: gone.signal }))
      setTimeout(() => gone.abort(), 50)
      expect((await elapse(answer)).code).toBe('deadline-passed')
      expect(statesIn(models)).toEqual(['ready'])
    }
    await models.stop()
  })
})

describe('idempotency keys', () => {
  const keyed = { idempotencyKey: 'order-1' }

  test('a retry gets the same answer, also through another front, and nothing more is taken', async () => {
    const models = await startModels({ p1: sized(4, 4), p2: sized(4), p3: sized(4) })
    const [a, b] = [await models.front(), await models.front()]
    const first = await elapse(create(a.backend, { count: 2 }, keyed))
    const second = await elapse(create(b.backend, { count: 2 }, keyed))
    expect({ ...second, coverage: null }).toEqual({ ...first, coverage: null })
    expect(statesIn(models).filter(state => state === 'allocated')).toHaveLength(2)
    await models.stop()
  })

  test('a retry after the release is answered with what was, and starts nothing anew', async () => {
    const models = await startModels({ p1: sized(4, 4) })
    const { backend } = await models.front()
    const first = await elapse(create(backend, {}, keyed))
    await elapse(backend.call('allocations.release', { id: first.id as string }, contextOf()))
    expect(await elapse(create(backend, {}, keyed))).toMatchObject({ id: first.id, state: 'released' })
    expect(statesIn(models)).toEqual(['ready', 'ready'])
    await models.stop()
  })

  test('the same key with another request is refused; another caller’s same key is another key', async () => {
    const models = await startModels({ p1: sized(4, 4, 4) })
    const { backend } = await models.front()
    const first = await elapse(create(backend, {}, keyed))
    const refusal = await refusalFrom(elapse(create(backend, { note: 'other' }, keyed)))
    expect(refusal).toMatchObject({ code: 'key-reused', facts: { allocation: first.id } })
    const bob = { ...keyed, caller: { ...alice, name: 'bob' } }
    expect((await elapse(create(backend, {}, bob))).id).not.toBe(first.id)
    expect(statesIn(models).filter(state => state === 'allocated')).toHaveLength(2)
    await models.stop()
  })

  test('its home is silent: nothing is allocated, and that is said, before and after the holds', async () => {
    const models = await startModels({ p1: sized(4), p2: sized(4), p3: sized(4) })
    const { backend } = await models.front()
    const home = homeOf('alice', 'order-1', ['p1', 'p2', 'p3'])
    models.bus(home).cutOff()
    const before = await refusalFrom(elapse(create(backend, {}, keyed)))
    expect(before).toMatchObject({ code: 'nothing-allocated', facts: { partition: home, earlierAttempts: 'unknown' } })
    models.bus(home).heal()
    await vi.advanceTimersByTimeAsync(2000)
    const other = ['p1', 'p2', 'p3'].find(name => name !== home) as string
    const constraints = { partitions: [other] }
    models.bus(home).plan(['none', 'none', ...Array(20).fill('mute')])
    const after = await refusalFrom(elapse(create(backend, { constraints }, keyed)))
    expect(after).toMatchObject({ code: 'nothing-allocated', facts: { partition: home } })
    expect(after.facts).not.toHaveProperty('earlierAttempts')
    expect(statesIn(models)).toEqual(['ready', 'ready', 'ready'])
    // Its record stands, though its answer was lost. The retry finds the hold gone, and starts anew.
    models.bus(home).heal()
    expect(models.partition(home).keys.size).toBe(1)
    expect(ids(await elapse(create(backend, { constraints }, keyed)))).toEqual([`${other}-000000`])
    await models.stop()
  })

  test('the first answer was lost and the home fell silent: the retry is refused, and does not deny that the first may stand', async () => {
    const models = await startModels({ p1: sized(4), p2: sized(4), p3: sized(4) })
    const { backend } = await models.front()
    const home = homeOf('alice', 'order-1', ['p1', 'p2', 'p3'])
    const first = await elapse(create(backend, {}, keyed)) // its answer never reaches alice
    models.bus(home).cutOff()
    const retry = await refusalFrom(elapse(create(backend, {}, keyed)))
    expect(retry).toMatchObject({ code: 'nothing-allocated', facts: { earlierAttempts: 'unknown' } })
    expect(retry.message).toContain('what an earlier one with the same Idempotency-Key did is not known: repeat it')
    models.bus(home).heal()
    expect((await elapse(create(backend, {}, keyed))).id).toBe(first.id)
    await models.stop()
  })

  test('two requests at once with one key: one allocation, one answer', async () => {
    const models = await startModels({ p1: sized(4, 4), p2: sized(4, 4) })
    const [a, b] = [await models.front(), await models.front()]
    const answers = await elapse(Promise.all([a, b, a, b].map(({ backend }) => create(backend, {}, keyed))))
    expect(new Set(answers.map(({ id }) => id)).size).toBe(1)
    expect(statesIn(models).filter(state => state !== 'ready')).toEqual(['allocated'])
    await models.stop()
  })

  test('the front dies between two confirms: the retry, elsewhere, completes the same allocation', async () => {
    const models = await startModels({ p1: sized(4), p2: sized(4) })
    const [dying, other] = [await models.front(), await models.front()]
    const lost = refusalFrom(create(dying.backend, { count: 2 }, keyed))
    // p2 confirms; p1 hears of it only after the front has died.
    const p1 = models.bus('p1')
    p1.plan(['none', 'none', 'none', { late: 100_000 }])
    await vi.advanceTimersByTimeAsync(5)
    p1.cutOff()
    await elapse(lost)
    p1.heal()
    const allocation = await elapse(create(other.backend, { count: 2 }, keyed))
    expect(allocation.state).toBe('confirmed')
    expect(ids(allocation)).toEqual(['p1-000000', 'p2-000000'])
    expect(models.partition('p2').machines.get('p2-000000')?.allocation).toBe(allocation.id)
    await models.stop()
  })

  test('membership changed by one since: the retry finds the record at the old home', async () => {
    const models = await startModels({ p1: sized(4, 4), p2: sized(4), p3: sized(4), p4: sized(4) })
    const before = await models.front({ accepted: ['p1', 'p2', 'p3'] })
    const after = await models.front({ accepted: ['p1', 'p2', 'p3', 'p4'] })
    for (let order = 0; order < 12; order++) {
      const key = { idempotencyKey: `order-${order}` }
      const first = await elapse(create(before.backend, { constraints: { partitions: ['p1'] } }, key))
      const second = await elapse(create(after.backend, { constraints: { partitions: ['p1'] } }, key))
      expect(second.id).toBe(first.id)
      await elapse(backendRelease(before.backend, first.id as string))
    }
    await models.stop()
  })

  const backendRelease = (backend: Backend, id: string) => backend.call('allocations.release', { id }, contextOf())
})

describe('dry run', () => {
  test('shows what would be taken, without the BMC, and holds nothing', async () => {
    const models = await startModels({ p1: sized(16), p2: sized(2) })
    const { backend } = await models.front()
    const look = await elapse(create(backend, { dryRun: true, note: 'n' }, { idempotencyKey: 'k' }))
    expect(look).toMatchObject({
      id: null,
      dryRun: true,
      owner: 'alice',
      machines: [{ id: 'p2-000000', state: 'ready' }],
      explanation: { matching: 2 },
    })
    expect(look.machines[0]).not.toHaveProperty('powerSettings')
    expect(look.coverage).toMatchObject({ asked: 2, answered: 2 })
    expect(statesIn(models)).toEqual(['ready', 'ready'])
    expect([...models.partitions.values()].every(({ keys, allocations }) => keys.size + allocations.size === 0)).toBe(true)
    const refusal = await refusalFrom(elapse(create(backend, { dryRun: true, count: 3 })))
    expect(refusal).toMatchObject({ code: 'no-match', facts: { explanation: { matching: 2 }, coverage: { asked: 2 } } })
    await models.stop()
  })
})

describe('wait', () => {
  test('a machine that becomes ready is taken soon', async () => {
    const models = await startModels({ p1: [{ state: 'deploying' }] })
    const { backend } = await models.front()
    const answer = create(backend, { wait: '1m' }, { limitMs: 70_000 })
    await vi.advanceTimersByTimeAsync(20_000)
    models.partition('p1').setReady('p1-000000')
    const readyAt = Date.now()
    expect(ids(await elapse(answer))).toEqual(['p1-000000'])
    expect(Date.now() - readyAt).toBeLessThan(1000)
    await models.stop()
  })

  test('ends with the last explanation, and asks at a measured pace however much goes on', async () => {
    const models = await startModels({ p1: sized(1) })
    const { backend } = await models.front()
    const noise = setInterval(() => models.partition('p1').record('machine.moved'), 20)
    const askedAt = Date.now()
    const refusal = await refusalFrom(elapse(create(backend, { wait: '30s', constraints: { cpus: 8 } }, { limitMs: 40_000 })))
    clearInterval(noise)
    expect(refusal).toMatchObject({ code: 'no-match', facts: { explanation: { considered: 1 } } })
    expect(Date.now() - askedAt).toBeGreaterThanOrEqual(30_000)
    expect(Date.now() - askedAt).toBeLessThan(31_000)
    expect(models.partition('p1').heard.length).toBeLessThan(240)
    await models.stop()
  })

  test('outlives a restart of the bus', async () => {
    const models = await startModels({ p1: [{ state: 'deploying' }] })
    const { backend } = await models.front()
    const answer = create(backend, { wait: '1m' }, { limitMs: 70_000 })
    await vi.advanceTimersByTimeAsync(5000)
    models.broker.stop()
    await vi.advanceTimersByTimeAsync(5000)
    models.broker.start()
    models.partition('p1').setReady('p1-000000')
    expect(ids(await elapse(answer))).toEqual(['p1-000000'])
    await models.stop()
  })
})
