// Choosing among offers, against the plain answer: try everything.
import type { Strategy } from '@muster/shared/allocation/constraints'
import { crowdScore, tieBreak } from '@muster/shared/allocation/score'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { choose, type Offered, type Part } from '../src/allocate/choose.ts'

const offers = fc
  .array(
    fc.array(fc.record({ score: fc.integer({ min: 0, max: 3 }), rack: fc.constantFrom('r1', 'r2'), zone: fc.constantFrom('z1', 'z2') }), {
      maxLength: 4,
    }),
    { maxLength: 4 },
  )
  .map(partitions =>
    partitions.map(
      (machines, p): Offered => ({
        partition: `p${p}`,
        machines: machines.map((machine, i) => ({ id: `p${p}-00000${i}`, ...machine })).sort((a, b) => a.score - b.score),
      }),
    ),
  )

type Flat = Offered['machines'][number] & { partition: string }
const flat = (offered: readonly Offered[]): Flat[] =>
  offered.flatMap(({ partition, machines }) => machines.map(machine => ({ ...machine, partition })))
const chosenOf = (parts: readonly Part[] | undefined) => parts?.flatMap(({ machines }) => machines)

describe('choose', () => {
  const wish = fc.record({ count: fc.integer({ min: 1, max: 6 }), requestId: fc.string({ maxLength: 5 }) })

  test('answers as many as wanted, each once and from its own partition; or nothing where the offers hold fewer', () => {
    fc.assert(
      fc.property(offers, wish, fc.constantFrom<Strategy>('first', 'best', 'spread', 'pack'), (offered, { count, requestId }, strategy) => {
        const parts = choose(offered, { count, requestId, strategy })
        expect(parts === undefined).toBe(flat(offered).length < count)
        if (!parts) return
        expect(new Set(chosenOf(parts)).size).toBe(count)
        expect(new Set(parts.map(({ partition }) => partition)).size).toBe(parts.length)
        for (const { partition, machines } of parts)
          for (const id of machines)
            expect(offered.find(offer => offer.partition === partition)?.machines.some(machine => machine.id === id)).toBe(true)
      }),
    )
  })

  test('best: no other choice has a lower sum of scores, and ties go by the hash of the request', () => {
    fc.assert(
      fc.property(offers, wish, (offered, { count, requestId }) => {
        const chosen = chosenOf(choose(offered, { count, requestId, strategy: 'best' }))
        const order = (a: Flat, b: Flat) => a.score - b.score || tieBreak(requestId, a.id) - tieBreak(requestId, b.id)
        const expected = flat(offered).sort(order).slice(0, count)
        if (flat(offered).length >= count) expect([...(chosen ?? [])].sort()).toEqual(expected.map(({ id }) => id).sort())
      }),
    )
  })

  test('first: from the first offer that has enough, else in the order they came', () => {
    fc.assert(
      fc.property(offers, wish, (offered, { count, requestId }) => {
        const chosen = chosenOf(choose(offered, { count, requestId, strategy: 'first' }))
        const sufficient = offered.find(({ machines }) => machines.length >= count)
        const all = flat(sufficient ? [sufficient] : offered)
        expect(chosen).toEqual(all.length < count ? undefined : all.slice(0, count).map(({ id }) => id))
      }),
    )
  })

  test('spread and pack: each pick is the best of all that are left, given the picks before', () => {
    fc.assert(
      fc.property(offers, wish, fc.constantFrom<Strategy>('spread', 'pack'), (offered, { count, requestId }, strategy) => {
        const parts = choose(offered, { count, requestId, strategy })
        if (!parts) return
        const left = flat(offered)
        const picked: Flat[] = []
        for (let pick = 0; pick < count; pick++) {
          const scored = left.map(machine => {
            const near = (is: (other: Flat) => boolean) => picked.filter(is).length
            const crowd = {
              rack: near(other => other.partition === machine.partition && other.rack === machine.rack),
              zone: near(other => other.zone === machine.zone),
              partition: near(other => other.partition === machine.partition),
            }
            return { machine, score: machine.score + crowdScore(crowd, strategy) }
          })
          scored.sort((a, b) => a.score - b.score || tieBreak(requestId, a.machine.id) - tieBreak(requestId, b.machine.id))
          const best = scored[0]?.machine as Flat
          picked.push(best)
          left.splice(left.indexOf(best), 1)
        }
        expect(chosenOf(parts)?.sort()).toEqual(picked.map(({ id }) => id).sort())
      }),
    )
  })

  test('three wanted, spread, over three partitions with equal machines: one of each', () => {
    const machines = (partition: string) =>
      [1, 2, 3].map(i => ({ id: `${partition}-00000${i}`, score: 0, rack: 'default', zone: 'default' }))
    const offered = ['p1', 'p2', 'p3'].map(partition => ({ partition, machines: machines(partition) }))
    expect(choose(offered, { count: 3, strategy: 'spread', requestId: 'r' })?.map(part => part.machines.length)).toEqual([1, 1, 1])
    expect(choose(offered, { count: 3, strategy: 'pack', requestId: 'r' })?.map(part => part.machines.length)).toEqual([3])
  })
})
