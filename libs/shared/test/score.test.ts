// Where idempotency keys live, and what explanations of several partitions come to.
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { explain, noMatch } from '../src/allocation/explanation.ts'
import { type Candidate, constraintNames, type Place, whyNot } from '../src/allocation/matcher.ts'
import { crowdScore, homesOf, scoreOf, tieBreak } from '../src/allocation/score.ts'

const names = (count: number, prefix = 'p') => Array.from({ length: count }, (_, i) => `${prefix}${i + 1}`)
const keys = Array.from({ length: 5000 }, (_, i) => `alice:order-${i}`)

describe('homesOf', () => {
  test('spreads the keys evenly', () => {
    const count = new Map<string, number>()
    for (const key of keys) count.set(homesOf(key, names(50))[0] as string, (count.get(homesOf(key, names(50))[0] as string) ?? 0) + 1)
    // 100 each on average; a fair spread stays within five standard deviations.
    for (const name of names(50)) expect(count.get(name) ?? 0, name).toSatisfy((keys: number) => keys > 50 && keys < 150)
  })

  test('a change of membership by one moves few keys, and the old home stays among the first three', () => {
    fc.assert(
      fc.property(fc.integer({ min: 2, max: 50 }), fc.nat(), (size, pick) => {
        const before = names(size)
        const leaving = before[pick % size] as string
        const without = before.filter(name => name !== leaving)
        const joined = [...before, 'newcomer']
        let moved = 0
        for (const key of keys.slice(0, 200)) {
          const home = homesOf(key, before)[0] as string
          expect(homesOf(key, joined).slice(0, 3)).toContain(home)
          if (homesOf(key, joined)[0] !== home) {
            moved++
            expect(homesOf(key, joined)[0]).toBe('newcomer')
          }
          if (home !== leaving) expect(homesOf(key, without)[0]).toBe(home)
          else expect(homesOf(key, without)[0]).toBe(homesOf(key, before)[1])
        }
        expect(moved).toBeLessThan((200 / (size + 1)) * 2.5 + 10)
      }),
      { numRuns: 60 },
    )
  })

  test('does not depend on the order of the partitions', () => {
    expect(homesOf('bob:1', names(9).reverse())).toEqual(homesOf('bob:1', names(9)))
  })
})

describe('tieBreak', () => {
  test('requests prefer different ones of equal machines', () => {
    const machines = names(20, 'p1-00000')
    const wins = new Map<string, number>()
    for (let request = 0; request < 2000; request++) {
      const winner = machines.reduce((best, id) => (tieBreak(`request-${request}`, id) < tieBreak(`request-${request}`, best) ? id : best))
      wins.set(winner, (wins.get(winner) ?? 0) + 1)
    }
    for (const id of machines) expect(wins.get(id) ?? 0, id).toSatisfy((count: number) => count > 50 && count < 150)
  })
})

describe('crowdScore', () => {
  test('what is added for one’s own picks equals being scored among them', () => {
    const machine = { cpus: 8, memoryMib: 8192, disks: [] }
    for (const strategy of ['spread', 'pack'] as const) {
      const [crowd, picks] = [
        { rack: 2, zone: 3, partition: 7 },
        { rack: 1, zone: 1, partition: 2 },
      ]
      const among = { rack: 3, zone: 4, partition: 9 }
      expect(scoreOf(machine, strategy, crowd) + crowdScore(picks, strategy)).toBeCloseTo(scoreOf(machine, strategy, among), 6)
    }
  })
})

describe('explain', () => {
  const candidate = fc.record({
    arch: fc.constantFrom('amd64', 'arm64'),
    cpus: fc.integer({ min: 1, max: 8 }),
    pool: fc.constantFrom('default', 'gpu'),
  })
  const place = (partition: string): Place => ({ partition, installable: new Map() })

  test('of several partitions says what one partition with all their machines would', () => {
    fc.assert(
      fc.property(fc.array(fc.array(candidate, { maxLength: 5 }), { minLength: 1, maxLength: 4 }), partitions => {
        const machines = partitions.map((list, p) =>
          list.map(
            (facts, i): Candidate => ({
              id: `p${p}-${String(i).padStart(6, '0')}`,
              hostname: 'h',
              memoryMib: 1,
              zone: 'z',
              rack: 'r',
              tags: [],
              disks: [],
              interfaces: [],
              ...facts,
            }),
          ),
        )
        const wanted = { arch: ['amd64' as const], cpus: 6, pools: ['gpu'] }
        const merged = explain(machines.map((list, p) => ({ matching: 0, why: whyNot(list, wanted, place(`p${p}`)) })))
        const whole = explain([{ matching: 0, why: whyNot(machines.flat(), wanted, place('p')) }])
        expect(merged).toEqual(whole)
        const order = merged.removed.map(({ constraint }) => (constraintNames as string[]).indexOf(constraint))
        expect(order).toEqual([...order].sort((a, b) => a - b))
      }),
    )
  })

  test('tells in words how many were wanted and what removed the others', () => {
    const explanation = explain([
      { matching: 1, why: { considered: 4, removed: { cpus: 3 }, nearest: [] } },
      { matching: 0, why: { considered: 2, removed: { cpus: 1, pools: 2 }, nearest: [{ machine: 'p2-000001', misses: ['pools'] }] } },
    ])
    expect(noMatch(2, explanation)).toMatchObject({
      code: 'no-match',
      message: 'asked for 2 machines: 1 of 6 ready machines match; pools removed 2, cpus removed 4',
      facts: { explanation: { considered: 6, matching: 1, nearest: [{ machine: 'p2-000001', misses: ['pools'] }] } },
    })
  })
})
