// The judge itself: a history without fault passes, and every fault planted into it is found, by the rule that is there for it.
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { check, type Limits, usualLimits } from '../src/chaos/check.ts'
import type { AllocationRecord, Fault, History, LogEntry, MachineRecord, Release, Request } from '../src/chaos/history.ts'

type Writable<T> = { -readonly [K in keyof T]: T[K] extends readonly (infer Item)[] ? Writable<Item>[] : T[K] }
/** A history under construction. */
interface Draft {
  requests: Request[]
  releases: Release[]
  partitions: {
    name: string
    lastSeq: number
    unnumbered: number
    log: LogEntry[]
    allocations: AllocationRecord[]
    machines: MachineRecord[]
  }[]
  faults: Fault[]
  consumed: { partition: string; seqs: number[] }[]
  overdue: string[]
  endedAt: number
}

const begin = 1_000_000

/** A federation as it should be: allocations one after the other over a few machines, each step written down where it belongs. */
class Model {
  readonly draft: Draft = { requests: [], releases: [], partitions: [], faults: [], consumed: [], overdue: [], endedAt: 0 }
  #at = begin
  #count = 0

  constructor(partitions: number, machinesEach: number) {
    for (let index = 1; index <= partitions; index++) {
      const name = `p${index}`
      const machines = Array.from({ length: machinesEach }, (_, number) => ({
        id: `${name}-m0000${number}`,
        state: 'ready',
        allocation: null,
      }))
      this.draft.partitions.push({ name, lastSeq: 0, unnumbered: 0, log: [], allocations: [], machines })
      this.draft.consumed.push({ partition: name, seqs: [] })
    }
  }

  #tick(ms: number): number {
    this.#at += ms
    return this.#at
  }

  get free(): string[] {
    return this.draft.partitions.flatMap(({ machines }) => machines.filter(({ allocation }) => allocation === null).map(({ id }) => id))
  }

  partitionOf(machine: string) {
    return this.draft.partitions.find(({ name }) => machine.startsWith(`${name}-`)) as Draft['partitions'][number]
  }

  #log(machine: string, move: string, [from, to]: [string, string], allocation?: string): void {
    const partition = this.partitionOf(machine)
    const seq = ++partition.lastSeq
    partition.log.push({
      id: seq,
      seq,
      at: this.#tick(1),
      kind: 'machine.moved',
      machine,
      move,
      from,
      to,
      ...(allocation && { allocation }),
    })
    this.draft.consumed.find(({ partition: name }) => name === partition.name)?.seqs.push(seq)
    const row = partition.machines.find(({ id }) => id === machine) as Writable<MachineRecord>
    row.state = to
    row.allocation = to === 'ready' ? null : (allocation ?? row.allocation)
  }

  hold(machines: string[], allocation: string, key: string): void {
    for (const machine of machines) this.#log(machine, 'hold', ['ready', 'reserved'], allocation)
    for (const partition of this.draft.partitions) {
      const own = machines.filter(machine => this.partitionOf(machine) === partition)
      if (own.length > 0) partition.allocations.push({ id: allocation, state: 'held', count: machines.length, note: key, machines: own })
    }
  }

  setRows(allocation: string, state: AllocationRecord['state']): void {
    for (const { allocations } of this.draft.partitions)
      for (const row of allocations) if (row.id === allocation) (row as Writable<AllocationRecord>).state = state
  }

  /** A request that ends well; `gone` attempts end with a broken line before. */
  allocate(machines: string[], { gone = 0 }: { gone?: number } = {}): { request: Request; allocation: string } {
    const number = ++this.#count
    const [key, allocation] = [`k${number}`, `a-${number}`]
    const request: Request = { key, client: 0, count: machines.length, attempts: [] }
    for (let index = 0; index < gone; index++) {
      const startedAt = this.#tick(1)
      request.attempts.push({ front: 0, startedAt, endedAt: this.#tick(5), outcome: { kind: 'unknown', how: 'broken', detail: 'reset' } })
    }
    const startedAt = this.#tick(1)
    this.hold(machines, allocation, key)
    for (const machine of machines) this.#log(machine, 'confirm', ['reserved', 'allocated'], allocation)
    this.setRows(allocation, 'confirmed')
    request.attempts.push({ front: 1, startedAt, endedAt: this.#tick(1), outcome: { kind: 'acknowledged', allocation, machines } })
    this.draft.requests.push(request)
    return { request, allocation }
  }

  release({ request, allocation }: { request: Request; allocation: string }): Release {
    const release: Release = { allocation, requestedAt: this.#tick(30), refusals: [] }
    const outcome = request.attempts.at(-1)?.outcome
    const machines = outcome?.kind === 'acknowledged' ? outcome.machines : []
    for (const machine of machines) this.#log(machine, 'release', ['allocated', 'releasing'])
    release.answeredAt = this.#tick(1)
    for (const machine of machines) this.#log(machine, 'released', ['releasing', 'ready'])
    this.setRows(allocation, 'released')
    this.draft.releases.push(release)
    return release
  }

  /** A request that finds nothing, after a hold that was given back. */
  refuse(machines: string[]): Request {
    const number = ++this.#count
    const [key, allocation] = [`k${number}`, `a-${number}`]
    const startedAt = this.#tick(1)
    this.hold(machines, allocation, key)
    for (const machine of machines) this.#log(machine, 'drop', ['reserved', 'ready'], allocation)
    this.setRows(allocation, 'dropped')
    const outcome = {
      kind: 'refused',
      speaksFor: 'key',
      code: 'nothing-allocated',
      detail: 'nothing-allocated: others were faster',
    } as const
    const request: Request = {
      key,
      client: 0,
      count: machines.length,
      attempts: [{ front: 0, startedAt, endedAt: this.#tick(1), outcome }],
    }
    this.draft.requests.push(request)
    return request
  }

  wait(ms: number): void {
    this.#at += ms
  }

  expire(machines: string[], allocation: string): void {
    for (const machine of machines) this.#log(machine, 'expire', ['reserved', 'ready'], allocation)
    this.setRows(allocation, 'dropped')
  }

  end(): History {
    this.draft.endedAt = this.#at + 100
    return this.draft
  }
}

/** Three allocations given back, one kept, one refused. */
function good() {
  const model = new Model(2, 4)
  const first = model.allocate(['p1-m00000', 'p2-m00000'], { gone: 1 })
  const second = model.allocate(['p1-m00001'])
  model.release(first)
  const refused = model.refuse(['p1-m00002'])
  const third = model.allocate(['p1-m00000'])
  model.release(second)
  model.release(third)
  const kept = model.allocate(['p2-m00003'])
  return { model, first, second, third, kept, refused }
}

const limits: Limits = { ...usualLimits, clockMs: 0 }
const brokenRules = (history: History) =>
  check(history, limits).findings.flatMap(({ promise, rule, violations }) => (violations.length > 0 ? [`${promise} ${rule}`] : []))

const entryOf = (draft: Draft, partition: number, move: string, number = 0) =>
  draft.partitions[partition]?.log.filter(entry => entry.move === move)[number] as Writable<LogEntry>

describe('a history without fault', () => {
  it('passes, and every rule that has something to look at has looked', () => {
    const { findings, violations } = check(good().model.end(), limits)
    expect(findings.flatMap(each => each.violations)).toEqual([])
    expect(violations).toBe(0)
    const idle = findings.filter(({ looked }) => looked === 0).map(({ promise }) => promise)
    expect(idle).toEqual(['R4', 'R5', 'keys'])
  })

  it('passes whatever the order of allocations, refusals and releases', () => {
    const step = fc.oneof(
      {
        weight: 3,
        arbitrary: fc.record({ act: fc.constant('allocate' as const), count: fc.integer({ min: 1, max: 3 }), gone: fc.nat(2) }),
      },
      { weight: 2, arbitrary: fc.record({ act: fc.constant('release' as const), which: fc.nat() }) },
      { weight: 1, arbitrary: fc.record({ act: fc.constant('refuse' as const) }) },
    )
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), steps => {
        const model = new Model(3, 3)
        const owned: ReturnType<Model['allocate']>[] = []
        for (const each of steps) {
          if (each.act === 'allocate' && model.free.length >= each.count) owned.push(model.allocate(model.free.slice(-each.count), each))
          if (each.act === 'refuse' && model.free.length > 0) model.refuse(model.free.slice(0, 1))
          if (each.act === 'release' && owned.length > 0)
            model.release(owned.splice(each.which % owned.length, 1)[0] as (typeof owned)[number])
        }
        expect(brokenRules(model.end())).toEqual([])
      }),
    )
  })
})

describe('what is planted is found', () => {
  const plants: readonly { name: string; rule: RegExp; plant: (made: ReturnType<typeof good>) => void }[] = [
    {
      name: 'a machine acknowledged to two clients',
      rule: /^R1 no machine is surely owned by two/,
      plant: ({ first, second, model }) => {
        const owner = second.request.attempts[0] as { outcome: unknown }
        owner.outcome = { kind: 'acknowledged', allocation: second.allocation, machines: ['p1-m00000'] }
        expect(first.allocation).not.toBe(second.allocation)
        expect(model.draft.requests.length).toBe(5)
      },
    },
    {
      name: 'a hold of a machine that belongs to somebody',
      rule: /^R1 the log gives a machine to one/,
      plant: ({ model }) => {
        const draft = model.draft
        const stolen = entryOf(draft, 0, 'hold', 1)
        stolen.machine = 'p1-m00000'
      },
    },
    {
      name: 'a tenancy of another inside a client’s sure time',
      rule: /^R1 nobody has a machine in the log/,
      plant: ({ model, third }) => {
        // The client never gave it back, and yet the log has it with the next one.
        const index = model.draft.releases.findIndex(({ allocation }) => allocation === model.draft.requests[0]?.key.replace('k', 'a-'))
        model.draft.releases.splice(index, 1)
        expect(third.allocation).toBe('a-4')
      },
    },
    {
      name: 'an answer with a machine too few',
      rule: /^R1 an answer has as many machines/,
      plant: ({ first }) => {
        const attempt = first.request.attempts.at(-1) as unknown as { outcome: { machines: string[] } }
        attempt.outcome.machines = ['p1-m00000']
      },
    },
    {
      name: 'a lost acknowledgement: the log knows nothing of it',
      rule: /^R2 what was acknowledged is in the log/,
      plant: ({ model }) => {
        const [partition] = model.draft.partitions as [Draft['partitions'][number]]
        partition.log = partition.log.filter(({ machine }) => machine !== 'p1-m00001')
      },
    },
    {
      name: 'an answer before the confirmation',
      rule: /^R2 what was acknowledged is in the log/,
      plant: ({ model }) => {
        entryOf(model.draft, 1, 'confirm').at += 1_000
      },
    },
    {
      name: 'an acknowledged allocation without a row',
      rule: /^R2 what was acknowledged is in the rows/,
      plant: ({ model, kept }) => {
        for (const partition of model.draft.partitions)
          partition.allocations = partition.allocations.filter(({ id }) => id !== kept.allocation)
      },
    },
    {
      name: 'a row that fell back to held',
      rule: /^R2 what was acknowledged is in the rows/,
      plant: ({ model, kept }) => model.setRows(kept.allocation, 'held'),
    },
    {
      name: 'a machine taken away before its client gave it back',
      rule: /^R2 nothing is taken from a client/,
      plant: ({ model }) => {
        entryOf(model.draft, 0, 'release').at -= 25
      },
    },
    {
      name: 'a release that was acknowledged and never happened',
      rule: /^R2 what was given back is given back/,
      plant: ({ model, kept }) => {
        model.draft.releases.push({ allocation: kept.allocation, requestedAt: begin + 10_000, answeredAt: begin + 10_001, refusals: [] })
      },
    },
    {
      name: 'a release refused to its owner',
      rule: /^R2 what was given back is given back/,
      plant: ({ model }) => {
        model.draft.releases[0]?.refusals.push('not-found: no such allocation')
      },
    },
    {
      name: 'a front that never came back',
      rule: /^R4 whatever was killed/,
      plant: ({ model }) => {
        model.draft.faults.push({ kind: 'front', target: 'front 1', from: begin, restartedAt: begin + 1 })
      },
    },
    {
      name: 'a request that hung after the broker was back',
      rule: /^R5 after a restart of the broker/,
      plant: ({ model, kept }) => {
        const [attempt] = kept.request.attempts as unknown as [{ startedAt: number; endedAt: number }]
        const from = attempt.startedAt - 10
        model.draft.faults.push({ kind: 'broker', target: 'broker', from, restartedAt: from + 1, to: from + 20 })
        attempt.endedAt = from + 20 + limits.brokerAnswerMs + 1
      },
    },
    {
      name: 'a hold that outlived its time',
      rule: /^R5 no hold outlives/,
      plant: ({ model }) => {
        model.hold(['p1-m00003'], 'a-late', 'nobody')
        model.wait(limits.holdMs + limits.slackMs + 1)
        model.expire(['p1-m00003'], 'a-late')
      },
    },
    {
      name: 'a hold that was confirmed after its time',
      rule: /^R5 no hold outlives/,
      plant: ({ model }) => {
        entryOf(model.draft, 1, 'confirm', 1).at += limits.holdMs + limits.slackMs + 1
      },
    },
    {
      name: 'a hold that stands at the end',
      rule: /^R5 no hold outlives/,
      plant: ({ model }) => {
        model.hold(['p1-m00003'], 'a-late', 'nobody')
        model.wait(limits.holdMs + limits.slackMs + 1)
      },
    },
    {
      name: 'a machine past its deadline',
      rule: /^R8 nothing is stuck/,
      plant: ({ model }) => void model.draft.overdue.push('p1-m00001 is releasing'),
    },
    {
      name: 'a gap in the log',
      rule: /^R16 the log has no gap/,
      plant: ({ model }) => void model.draft.partitions[0]?.log.splice(3, 1),
    },
    {
      name: 'a number given twice',
      rule: /^R16 the log has no gap/,
      plant: ({ model }) => {
        ;(model.draft.partitions[0]?.log[3] as Writable<LogEntry>).seq--
      },
    },
    {
      name: 'an event that never got a number',
      rule: /^R16 the log has no gap/,
      plant: ({ model }) => {
        ;(model.draft.partitions[0] as Draft['partitions'][number]).unnumbered = 1
      },
    },
    {
      name: 'numbers of one machine out of order',
      rule: /^R16 a machine’s events have numbers/,
      plant: ({ model }) => {
        const hold = entryOf(model.draft, 1, 'hold')
        const confirm = entryOf(model.draft, 1, 'confirm')
        ;[hold.id, confirm.id] = [confirm.id, hold.id]
      },
    },
    {
      name: 'an event that a consumer missed',
      rule: /^R16 a consumer saw every event/,
      plant: ({ model }) => void model.draft.consumed[0]?.seqs.splice(2, 1),
    },
    {
      name: 'an event that a consumer saw twice',
      rule: /^R16 a consumer saw every event/,
      plant: ({ model }) => void model.draft.consumed[0]?.seqs.splice(2, 0, 3),
    },
    {
      name: 'a consumer that was left behind',
      rule: /^R16 a consumer saw every event/,
      plant: ({ model }) => void model.draft.consumed[0]?.seqs.pop(),
    },
    {
      name: 'a key that gave two allocations',
      rule: /^keys a key gives one allocation/,
      plant: ({ first, kept }) => {
        const [again] = kept.request.attempts
        first.request.attempts.push({ ...(again as (typeof kept.request.attempts)[number]) })
      },
    },
    {
      name: 'a second whole allocation of a key that nobody was told of',
      rule: /^keys a key makes at most one whole/,
      plant: ({ model, first }) => {
        const other = model.allocate(['p1-m00003'])
        model.release(other)
        for (const { allocations } of model.draft.partitions)
          for (const row of allocations) if (row.id === other.allocation) (row as Writable<AllocationRecord>).note = first.request.key
      },
    },
    {
      name: 'an allocation for a request that was refused',
      rule: /^keys a request that was refused has nothing/,
      plant: ({ model, refused }) => {
        const other = model.allocate(['p1-m00003'])
        model.release(other)
        for (const { allocations } of model.draft.partitions)
          for (const row of allocations) if (row.id === other.allocation) (row as Writable<AllocationRecord>).note = refused.key
      },
    },
    {
      name: 'a request without an answer',
      rule: /^keys every request ends/,
      plant: ({ first }) => void first.request.attempts.pop(),
    },
    {
      name: 'a mistake of the server',
      rule: /^keys every refusal is one/,
      plant: ({ first }) => {
        const attempt = first.request.attempts[0] as { outcome: unknown }
        attempt.outcome = { kind: 'unknown', how: 'told', detail: 'internal: request x failed' }
      },
    },
    {
      name: 'a machine that stays reserved for nobody',
      rule: /^end every machine is free/,
      plant: ({ model }) => void model.hold(['p1-m00003'], 'a-lost', 'nobody'),
    },
    {
      name: 'a ready machine that still names an allocation, and so is never offered again',
      rule: /^end every machine is free/,
      plant: ({ model }) => {
        ;(model.draft.partitions[0]?.machines[3] as Writable<MachineRecord>).allocation = 'a-old'
      },
    },
    {
      name: 'an allocation that could not be given back',
      rule: /^end every machine is free/,
      plant: ({ model }) => {
        delete (model.draft.releases[0] as Release).answeredAt
      },
    },
  ]
  it.each(plants)('$name', ({ rule, plant }) => {
    const made = good()
    plant(made)
    expect(brokenRules(made.model.end())).toContainEqual(expect.stringMatching(rule))
  })
})

describe('what is not a fault', () => {
  it('a hold that stood longer only because its partition was down', () => {
    const { model } = good()
    const from = model.end().endedAt
    model.hold(['p1-m00003'], 'a-late', 'nobody')
    model.wait(40_000)
    model.expire(['p1-m00003'], 'a-late')
    model.draft.faults.push({ kind: 'freeze', target: 'partition p1', from, restartedAt: from + 38_000, to: from + 39_000 })
    expect(brokenRules(model.end())).toEqual([])
  })

  it('a request that the next fault hit while the broker was just back', () => {
    const { model, kept } = good()
    const [attempt] = kept.request.attempts as unknown as [{ startedAt: number; endedAt: number }]
    const from = attempt.startedAt - 10
    attempt.endedAt = from + 20 + limits.brokerAnswerMs + 1
    model.draft.faults.push(
      { kind: 'broker', target: 'broker', from, restartedAt: from + 1, to: from + 20 },
      { kind: 'freeze', target: 'partition p2', from: from + 500, restartedAt: from + 5_000, to: from + 5_010 },
    )
    expect(brokenRules(model.end())).toEqual([])
  })

  it('a late retry that sees the allocation as it is after its release', () => {
    const { model, first } = good()
    const last = model.end().endedAt
    const outcome = { kind: 'acknowledged', allocation: first.allocation, machines: [] } as const
    first.request.attempts.push({ front: 0, startedAt: last, endedAt: last + 1, outcome })
    expect(brokenRules(model.end())).toEqual([])
  })

  it('an attempt that a client walked away from, and that ended well behind its back', () => {
    const { model, second } = good()
    const { attempts } = second.request
    const [good1] = attempts.splice(0) as [Request['attempts'][number]]
    attempts.push({ ...good1, outcome: { kind: 'unknown', how: 'abandoned', detail: 'aborted' } }, good1)
    expect(brokenRules(model.end())).toEqual([])
  })

  it('a refusal that could not speak for an attempt before it, whose client asked again until it knew', () => {
    const { model, second } = good()
    const { attempts } = second.request
    const [acknowledged] = attempts.splice(0) as [Request['attempts'][number]]
    const lost = { ...acknowledged, outcome: { kind: 'unknown', how: 'broken', detail: 'reset' } } as const
    const refused = {
      ...acknowledged,
      outcome: { kind: 'refused', speaksFor: 'attempt', code: 'nothing-allocated', detail: 'nothing-allocated: its home is silent' },
    } as const
    attempts.push(lost, refused)
    // Left at that, the request has no answer: it is not taken for refused.
    expect(brokenRules(model.end())).toContain('keys every request ends with an answer')
    expect(brokenRules(model.end())).not.toContain('keys a request that was refused has nothing')
    attempts.splice(1, 1, { ...refused, outcome: { ...refused.outcome, speaksFor: 'key' } })
    expect(brokenRules(model.end())).toContain('keys a request that was refused has nothing')
    attempts.push(acknowledged)
    expect(brokenRules(model.end())).toEqual([])
  })
})
