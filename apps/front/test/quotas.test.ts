// What stands against a request by its quotas, and what is to be thought of partitions that do not say what they have.
import type { Limit } from '@muster/shared/allocation/quotas'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { beyond, type Wanted } from '../src/allocate/quotas.ts'
import { defaultLimits } from '../src/limits.ts'
import { createPartitionCalls } from '../src/partition-calls.ts'
import { watchPresence } from '../src/presence.ts'
import { contextOf, elapse, startModels } from './harness.ts'

beforeEach(() => void vi.useFakeTimers())
afterEach(() => void vi.useRealTimers())

const mine = 'a-000000000001'
const owned = (state: 'allocated' | 'reserved', allocation: string) => ({ state, owner: 'alice', allocation })
const quotaOf = (most: number): Limit => ({ quota: 'alice', whose: 'alice', owners: ['alice'], most })

async function counting() {
  const models = await startModels({
    p1: [owned('allocated', 'a-000000000009'), owned('reserved', mine)],
    p2: [owned('reserved', 'a-000000000008'), {}],
  })
  const bus = models.broker.connect()
  const log = { info: () => undefined, warn: () => undefined }
  const presence = watchPresence({ bus, accepted: ['p1', 'p2'], log })
  const calls = createPartitionCalls(bus, 'front')
  await vi.advanceTimersByTimeAsync(1)
  const ask = (most: number, wanted: Wanted) => {
    const context = contextOf({ limitMs: 60_000 })
    const asking = { calls, presence, limits: defaultLimits, envelope: calls.envelope(context), signal: context.signal }
    return elapse(beyond(asking, [quotaOf(most)], wanted))
  }
  const stop = async () => {
    calls.stop()
    presence.stop()
    await models.stop()
    await bus.close()
  }
  return { models, ask, stop }
}

test('what is theirs for certain leaves no room, or what others hold just now does not', async () => {
  const { ask, stop } = await counting()
  const held = { wanted: 1, allocation: mine }
  expect(await ask(3, held)).toBeUndefined()
  expect(await ask(2, held)).toMatchObject({ kind: 'crowded', refusal: { code: 'quota-exceeded', facts: { has: 2, wanted: 1, most: 2 } } })
  expect(await ask(1, held)).toMatchObject({ kind: 'full' })
  // Not held yet: two more than the three there are.
  expect(await ask(5, { wanted: 2 })).toBeUndefined()
  expect(await ask(4, { wanted: 2 })).toMatchObject({ kind: 'crowded' })
  expect(await ask(2, { wanted: 2 })).toMatchObject({ kind: 'full' })
  await stop()
})

test('while a partition is there and says nothing, nothing is given; once it is held silent, it is not counted', async () => {
  const { models, ask, stop } = await counting()
  const held = { wanted: 1, allocation: mine }
  models.bus('p2').plan([{ slow: 3_000 }])
  expect(await ask(3, held)).toMatchObject({ kind: 'crowded', refusal: { code: 'nothing-allocated', facts: { silent: ['p2'] } } })
  models.partition('p2').stop()
  await vi.advanceTimersByTimeAsync(10_000)
  // The machine that p2 holds would be one too many.
  expect(await ask(2, held)).toBeUndefined()
  await stop()
})
