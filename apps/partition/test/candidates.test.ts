// The index of candidates against the plain matcher and score of libs/shared, after any history of updates.
import type { Constraints } from '@muster/shared/allocation/constraints'
import { isMatch, type Place, whyNot } from '@muster/shared/allocation/matcher'
import { costOf, scoreOf } from '@muster/shared/allocation/score'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { MachineRow } from '../src/db/machines.ts'
import { Candidates } from '../src/domain/candidates.ts'

const place: Place = { partition: 'lon1', installable: new Map([['amd64', new Set(['debian/12'])]]) }

interface Facts {
  cpus: number
  memory_mib: number
  arch: 'amd64' | 'arm64'
  pool: string
  zone: string
  rack: string
  tags: string[]
  disks: { name: string; serial: string; model: string; sizeBytes: number; kind: 'ssd' | 'hdd' }[]
  interfaces: { mac: string; name: string; speedMbps: number; subnet: string | null; ip: null }[]
  state: 'ready' | 'new' | 'allocated' | 'deployed'
  locked: boolean
}

const oneOf = <const T>(...values: T[]) => fc.constantFrom(...values)
const facts: fc.Arbitrary<Facts> = fc.record({
  cpus: oneOf(4, 8, 16),
  memory_mib: oneOf(8192, 16_384),
  arch: oneOf('amd64', 'arm64'),
  pool: oneOf('a', 'b'),
  zone: oneOf('z1', 'z2'),
  rack: oneOf('r1', 'r2', 'r3'),
  tags: fc.subarray(['gpu', 'fast', 'old']),
  disks: fc.array(
    fc.record({
      name: fc.constant('sda'),
      serial: fc.constant(''),
      model: fc.constant(''),
      sizeBytes: oneOf(1e11, 1e12),
      kind: oneOf('ssd', 'hdd'),
    }),
    { maxLength: 3 },
  ),
  interfaces: fc.array(
    fc.record({
      mac: fc.constant('52:54:00:00:00:01'),
      name: fc.constant(''),
      speedMbps: oneOf(1000, 10_000),
      subnet: oneOf('10.0.0.0/24', null),
      ip: fc.constant(null),
    }),
    { minLength: 1, maxLength: 2 },
  ),
  state: fc.oneof({ weight: 4, arbitrary: fc.constant('ready' as const) }, { weight: 1, arbitrary: oneOf('new', 'allocated', 'deployed') }),
  locked: fc.oneof({ weight: 9, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.constant(true) }),
})

const idOf = (index: number) => `lon1-00000${index.toString(36)}`

function rowOf(index: number, version: number, known: Facts): MachineRow {
  const isTaken = known.state === 'allocated' || known.state === 'deployed'
  const id = idOf(index)
  return { ...known, id, hostname: `host-${index}`, version, allocation_id: isTaken ? 'a-0123456789bcdfgh' : null } as unknown as MachineRow
}

const wishes: fc.Arbitrary<Constraints> = fc.record(
  {
    cpus: oneOf(1, 8, 16),
    memoryMib: oneOf(1, 16_384),
    arch: oneOf(['amd64' as const], ['arm64' as const], ['amd64' as const, 'arm64' as const]),
    pools: oneOf(['a'], ['b', 'c']),
    notZones: oneOf(['z1'], ['nowhere']),
    tags: oneOf(['gpu'], ['gpu', 'fast']),
    notTags: oneOf(['old'], ['nobody']),
    racks: oneOf(['r1', 'r2'], ['r3']),
    machines: oneOf([idOf(0), idOf(1), idOf(2)], [idOf(3)]),
    hostnames: oneOf(['host-1'], ['host-2', 'host-4']),
    partitions: oneOf(['lon1'], ['par2']),
    os: oneOf('debian/12', 'plan9/4'),
    disks: oneOf([{ sizeGb: 500, count: 1 }], [{ kind: 'ssd' as const, count: 1 }, { count: 1 }]),
    interfaces: oneOf([{ speedMbps: 10_000, count: 1 }], [{ subnet: '10.0.0.0/24', count: 1 }, { count: 1 }]),
  },
  { requiredKeys: [] },
) as unknown as fc.Arbitrary<Constraints>

type Step =
  | { kind: 'put'; index: number; facts: Facts }
  | { kind: 'late'; index: number; facts: Facts }
  | { kind: 'take'; index: number; state: 'ready' | 'allocated' }
  | { kind: 'remove'; index: number }
  | { kind: 'ask'; wanted: Constraints; strategy: 'first' | 'best' | 'spread' | 'pack'; count: number; except: number[] }

const index = fc.nat({ max: 11 })
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('put' as const), index, facts }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('late' as const), index, facts }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('take' as const), index, state: oneOf('ready', 'allocated') }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('remove' as const), index }) },
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constant('ask' as const),
      wanted: wishes,
      strategy: oneOf('first', 'best', 'spread', 'pack'),
      count: fc.integer({ min: 1, max: 6 }),
      except: fc.uniqueArray(index, { maxLength: 3 }),
    }),
  },
)

describe('the index of candidates', () => {
  test('answers as the plain matcher and score do, after any history', () => {
    fc.assert(
      fc.property(fc.array(step, { minLength: 20, maxLength: 60 }), steps => {
        const index = new Candidates(place)
        const model = new Map<number, { version: number; facts: Facts }>()
        let version = 0
        for (const step of steps) {
          switch (step.kind) {
            case 'put':
              model.set(step.index, { version: ++version, facts: step.facts })
              index.put(rowOf(step.index, version, step.facts))
              break
            case 'late': {
              // What another replica saw before: older than what is known, so it changes nothing.
              const known = model.get(step.index)
              if (known) index.put(rowOf(step.index, known.version - 1, step.facts))
              break
            }
            case 'take': {
              const known = model.get(step.index)
              if (!known) break
              const facts = { ...known.facts, state: step.state }
              model.set(step.index, { version: ++version, facts })
              index.put(rowOf(step.index, version, facts))
              break
            }
            case 'remove':
              model.delete(step.index)
              index.remove(idOf(step.index))
              break
            case 'ask':
              compare(index, model, step)
          }
        }
        const rows = [...model].map(([at, { version, facts }]) => rowOf(at, version, facts))
        expect(index.size).toBe(rows.length)
        expect(index.readyCount).toBe(rows.filter(isReady).length)
      }),
      { numRuns: 300 },
    )
  })

  const isReady = (row: MachineRow) => row.state === 'ready' && !row.locked && row.allocation_id === null
  const candidateOf = (row: MachineRow) => ({ ...row, memoryMib: row.memory_mib })

  function compare(index: Candidates, model: Map<number, { version: number; facts: Facts }>, asked: Extract<Step, { kind: 'ask' }>) {
    const rows = [...model].map(([at, { version, facts }]) => rowOf(at, version, facts))
    const ready = rows.filter(isReady)
    const except = new Set(asked.except.map(idOf))
    const matches = ready.map(candidateOf).filter(row => isMatch(row, asked.wanted, place) && !except.has(row.id))
    const crowd = (of: (row: MachineRow) => boolean) => rows.filter(row => row.allocation_id !== null && of(row)).length
    const scoreBy = (row: MachineRow) =>
      scoreOf(candidateOf(row), asked.strategy, {
        rack: crowd(other => other.rack === row.rack),
        zone: crowd(other => other.zone === row.zone),
        partition: crowd(() => true),
      })
    const found = index.find({
      requestId: 'r',
      constraints: asked.wanted,
      strategy: asked.strategy,
      count: asked.count,
      purpose: 'look',
      except,
      now: 0,
    })
    expect(found.matching).toBe(matches.length)
    expect(found.machines).toHaveLength(Math.min(asked.count, matches.length))
    expect(new Set(found.machines.map(({ id }) => id)).size).toBe(found.machines.length)
    const scores = new Map(matches.map(row => [row.id, scoreBy(row)]))
    for (const { id, score } of found.machines) expect(score, id).toBe(scores.get(id))
    // The best ones, best first.
    const best = [...scores.values()].sort((a, b) => a - b).slice(0, asked.count)
    expect(found.machines.map(({ score }) => score)).toEqual(best)
    if (matches.length < asked.count && except.size === 0) expect(found.why).toEqual(whyNot(ready.map(candidateOf), asked.wanted, place))
  }

  const base: Facts = {
    cpus: 8,
    memory_mib: 16_384,
    arch: 'amd64',
    pool: 'a',
    zone: 'z1',
    rack: 'r1',
    tags: [],
    disks: [],
    interfaces: [],
    state: 'ready',
    locked: false,
  }
  const filled = (count: number, of: (index: number) => Partial<Facts> = () => ({})) => {
    const index = new Candidates(place)
    for (let at = 0; at < count; at++) index.put(rowOf(at, 1, { ...base, ...of(at) }))
    return index
  }
  const take = (
    index: Candidates,
    requestId: string,
    options: { count?: number; strategy?: 'best' | 'spread' | 'pack'; now?: number } = {},
  ) =>
    index
      .find({
        requestId,
        constraints: {},
        strategy: options.strategy ?? 'best',
        count: options.count ?? 1,
        purpose: 'take',
        now: options.now ?? 1000,
      })
      .machines.map(({ id }) => id)

  test('two requests do not chase one machine while others are free', () => {
    for (const strategy of ['best', 'spread', 'pack'] as const) {
      const index = filled(12)
      const taken = Array.from({ length: 12 }, (_, request) => take(index, `request-${request}`, { strategy })[0])
      expect(new Set(taken).size, strategy).toBe(12)
      // All are spoken for: the thirteenth gets an offer all the same, because nothing is held.
      expect(take(index, 'late', { strategy })).toHaveLength(1)
      // The first offers are forgotten soon.
      expect(take(index, 'later', { strategy, now: 5000 })).toHaveLength(1)
    }
  })

  test('a machine offered to another goes before a dearer one that is free only where nothing else fits', () => {
    const index = filled(2, at => ({ cpus: at === 0 ? 4 : 16 }))
    expect(take(index, 'one')).toEqual([idOf(0)])
    expect(take(index, 'two')).toEqual([idOf(1)])
    expect(take(index, 'three')).toEqual([idOf(0)])
  })

  test('a dry run leaves the machines free for others', () => {
    const index = filled(2, at => ({ cpus: at === 0 ? 4 : 16 }))
    for (let look = 0; look < 3; look++)
      expect(
        index.find({ requestId: `${look}`, constraints: {}, strategy: 'best', count: 1, purpose: 'look', now: 0 }).machines[0]?.id,
      ).toBe(idOf(0))
    expect(take(index, 'one')).toEqual([idOf(0)])
  })

  test('spread goes where nobody is, pack where most are', () => {
    const index = filled(9, at => ({
      rack: `r${at % 3}`,
      state: at === 0 || at === 3 || at === 1 ? 'allocated' : 'ready',
      cpus: at === 2 ? 4 : 8,
    }))
    // Rack r0 has two taken, r1 one, r2 none.
    expect(take(index, 'spread', { strategy: 'spread' })).toEqual([idOf(2)])
    expect(take(index, 'pack', { strategy: 'pack' })).toEqual([idOf(6)])
  })

  test('equal machines are offered in turn, so that partitions do not wear out their first one', () => {
    const index = filled(20)
    const first = new Set(Array.from({ length: 200 }, (_, request) => take(index, `request-${request}`, { now: request * 1000 })[0]))
    expect(first.size).toBeGreaterThan(15)
  })

  test('what can be installed changes, and with it the answer', () => {
    const installable = new Map([['amd64', new Set<string>()]])
    const index = new Candidates({ partition: 'lon1', installable })
    index.put(rowOf(0, 1, base))
    const ask = () =>
      index.find({ requestId: 'r', constraints: { os: 'debian/12' }, strategy: 'best', count: 1, purpose: 'look', now: 0 }).matching
    expect(ask()).toBe(0)
    installable.get('amd64')?.add('debian/12')
    index.forgetSets()
    expect(ask()).toBe(1)
  })

  test('costs grow with cpus, memory and disks', () => {
    const cost = (machine: Partial<Facts>) => costOf(candidateOf(rowOf(0, 1, { ...base, ...machine })))
    expect(cost({ cpus: 16 })).toBeGreaterThan(cost({}))
    expect(cost({ memory_mib: 32_768 })).toBeGreaterThan(cost({}))
    expect(cost({ disks: [{ name: 'sda', serial: '', model: '', sizeBytes: 1e12, kind: 'ssd' }] })).toBeGreaterThan(cost({}))
  })
})
