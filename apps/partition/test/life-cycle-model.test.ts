// Random lives of a machine, on real rows, against a plain model that is read from the table of the life cycle.
import type { Caller } from '@muster/shared/contract/call'
import { Refusal } from '@muster/shared/errors'
import { lifeCycle, type MoveName, moveNames, type State } from '@muster/shared/life-cycle'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import type { MachineRow } from '../src/db/machines.ts'
import { claimOrders, endClaim } from '../src/db/power.ts'
import { machineOfToken, receiveSignal } from '../src/domain/agent.ts'
import { lookAtDue } from '../src/domain/engine.ts'
import { phoneHome } from '../src/domain/first-boot.ts'
import { machineToken } from '../src/domain/machine-token.ts'
import { deploy, plainRequests, requestMove } from '../src/domain/machines.ts'
import { confirmHold, endHolds, holdMachines } from '../src/domain/move.ts'
import { addMachine, operator, reread, startCore, type TestCore } from './harness.ts'

const others: Caller = { name: 'otto', role: 'operator' }

type Act =
  | { kind: 'request'; move: (typeof plainRequests)[number] | 'deploy'; by: Caller }
  | { kind: 'hold' | 'confirm' | 'drop' | 'phone home' | 'time passes' | 'look' }
  | { kind: 'signal'; status: 'working' | 'done' | 'failed' }
  | { kind: 'power'; outcome: 'done' | 'failed' }

const act: fc.Arbitrary<Act> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      kind: fc.constant('request' as const),
      move: fc.constantFrom('deploy' as const, ...plainRequests),
      by: fc.constantFrom(operator, operator, others),
    }),
  },
  {
    weight: 5,
    arbitrary: fc.record({ kind: fc.constantFrom('hold' as const, 'confirm', 'drop', 'phone home', 'time passes', 'look', 'look') }),
  },
  {
    weight: 4,
    arbitrary: fc.record({ kind: fc.constant('signal' as const), status: fc.constantFrom('working' as const, 'done', 'done', 'failed') }),
  },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('power' as const), outcome: fc.constantFrom('done' as const, 'done', 'failed') }) },
) as fc.Arbitrary<Act>
/** The usual way, so that random lives come to the far states too. */
const usualWay: Act[] = [
  { kind: 'request', move: 'commission', by: operator },
  { kind: 'signal', status: 'done' },
  { kind: 'hold' },
  { kind: 'confirm' },
  { kind: 'request', move: 'deploy', by: operator },
  { kind: 'signal', status: 'done' },
  { kind: 'phone home' },
  { kind: 'request', move: 'rescue', by: operator },
]
const life = fc
  .tuple(fc.nat({ max: usualWay.length }), fc.array(act, { minLength: 10, maxLength: 30 }))
  .map(([start, rest]) => [...usualWay.slice(0, start), ...rest])

interface Model {
  state: State
  origin: State | null
  isOwned: boolean
  /** What a repeated request joins. */
  last: { move: string; by: string } | null
  isInstalled: boolean
  /** The engine's own order since the machine came here. */
  order: 'none' | 'open' | 'done' | 'failed'
  isLate: boolean
  moves: string[]
}

/** What the table says of a move, read without the code under test. */
function moved(model: Model, move: MoveName): State | undefined {
  const row = lifeCycle[model.state].moves[move]
  if (!row || (row.needs === 'owned' && !model.isOwned) || (row.needs === 'unowned' && model.isOwned)) return undefined
  return row.to === 'origin' ? (model.origin ?? 'ready') : row.to
}

/** Applies a move to the model. Answers whether there is one. */
function go(model: Model, move: MoveName, by?: string): boolean {
  const to = moved(model, move)
  if (to === undefined) return false
  model.moves.push(`${model.state} ${move} ${to}`)
  if (move === 'rescue') model.origin = model.state
  if (move === 'exitRescue') model.origin = null
  if (move === 'hold') model.isOwned = true
  if (to === 'ready' && (move === 'drop' || move === 'expire' || move === 'released')) model.isOwned = false
  if (move === 'drop' || (move === 'expire' && to === 'ready')) model.last = null
  else if (by !== undefined) model.last = { move, by }
  if (move === 'deploy') model.isInstalled = false
  model.state = to
  model.order = 'none'
  model.isLate = false
  return true
}

/** What the engine does with a machine it looks at: only what the table and the outcome of its own order say. */
function look(model: Model): void {
  for (let settled = false; !settled; ) {
    settled = true
    if (model.isLate && lifeCycle[model.state].deadline !== undefined) settled = !go(model, 'expire')
    else if (model.state === 'commissioning' || model.state === 'deploying') {
      if (model.order === 'failed') settled = !go(model, 'fail')
    } else if (model.state === 'releasing') {
      if (model.order === 'done') settled = !go(model, 'released')
      if (model.order === 'failed') settled = !go(model, 'fail')
    }
  }
  const wantsOrder =
    ['commissioning', 'deploying', 'releasing', 'rescue'].includes(model.state) ||
    (model.state === 'deployed' && model.moves.at(-1)?.includes('exitRescue'))
  if (wantsOrder && model.order === 'none') model.order = 'open'
}

class Real {
  readonly #core: TestCore
  readonly id: string
  #holds = 0

  constructor(core: TestCore, id: string) {
    this.#core = core
    this.id = id
  }

  row = (): Promise<MachineRow> => reread(this.#core, this.id)

  async request(move: Extract<Act, { kind: 'request' }>['move'], by: Caller): Promise<'carried out' | 'refused'> {
    try {
      if (move === 'deploy') await deploy(this.#core, by, { id: this.id, os: 'debian/12', sshKeys: [] }, () => undefined)
      else await requestMove(this.#core, by, move, { id: this.id })
      return 'carried out'
    } catch (error) {
      if (error instanceof Refusal) return 'refused'
      throw error
    }
  }

  async hold(): Promise<number> {
    const allocation = `a-${this.id.slice(-6)}00000${this.#holds++}`.slice(0, 28)
    const hold = { allocation, owner: 'alice', strategy: 'best' as const, count: 1, note: '', constraints: {}, createdAt: new Date() }
    return (await holdMachines(this.#core, { ...hold, machines: [this.id], wanted: 1 })).length
  }

  async allocation(): Promise<string> {
    return (await this.row()).allocation_id ?? 'a-000000000000'
  }

  confirm = async () => (await confirmHold(this.#core, await this.allocation()))?.machines.length ?? 0
  drop = async () => (await endHolds(this.#core, { allocation: await this.allocation() })).length

  /** With the token of the machine's run, as the agent has it. A machine without a run has no agent. */
  async signal(status: 'working' | 'done' | 'failed'): Promise<void> {
    const { run } = await this.row()
    if (run === null) return
    const machine = await machineOfToken(this.#core, 'agent', machineToken(this.#core.seal, 'agent', { id: this.id, run }))
    await receiveSignal(this.#core, machine, { status, step: 'test', message: '' })
  }

  async phoneHome(): Promise<void> {
    const { run } = await this.row()
    if (run === null) return
    await phoneHome(
      this.#core,
      await machineOfToken(this.#core, 'metadata', machineToken(this.#core.seal, 'metadata', { id: this.id, run })),
    )
  }

  async power(outcome: 'done' | 'failed'): Promise<number> {
    const [order] = await claimOrders(this.#core.sql, { limit: 1, claimMs: 60_000 })
    if (!order) return 0
    const fault = outcome === 'failed' ? { code: 'power-silent', message: 'no answer', since: new Date().toISOString() } : null
    const seen = order.action === 'off' ? ('off' as const) : ('on' as const)
    const power = outcome === 'done' ? seen : null
    await endClaim(
      this.#core.sql,
      { machine: this.id, token: order.switch.claim_token, power, fault, againMs: 60_000, inTransitionMs: 60_000 },
      { id: order.id, state: outcome, fault },
    )
    return 1
  }

  async timePasses(): Promise<void> {
    const { sql } = this.#core
    await sql`update machines set deadline_at = now() - interval '1 second', attention_at = now() where id = ${this.id} and deadline_at is not null`
    await sql`update allocations set expires_at = now() - interval '1 second' where expires_at is not null`
  }

  async look(): Promise<void> {
    await this.#core.sql`update machines set attention_at = now() where id = ${this.id} and attention_at is not null`
    for (let again = 0; again < 4; again++) await lookAtDue(this.#core)
  }
}

test('every random life follows the table, one event per move, and repeats join', { timeout: 120_000 }, async () => {
  const core = await startCore()
  const seen = new Set<string>()
  await fc.assert(
    fc.asyncProperty(life, async acts => {
      const machine = await addMachine(core, { power: 'off' }, { powerDriver: 'manual' })
      const real = new Real(core, machine.id)
      const model: Model = {
        state: 'new',
        origin: null,
        isOwned: false,
        last: null,
        isInstalled: false,
        order: 'none',
        isLate: false,
        moves: [],
      }
      let version = machine.version
      for (const [at, act] of acts.entries()) {
        const where = `step ${at}, ${JSON.stringify(act)}, in ${model.state}`
        const movesBefore = model.moves.length
        switch (act.kind) {
          case 'request': {
            const isRepeat = model.last?.move === act.move && model.last.by === act.by.name
            const isPossible = go(model, act.move, act.by.name)
            expect(await real.request(act.move, act.by), where).toBe(isPossible || isRepeat ? 'carried out' : 'refused')
            break
          }
          case 'hold':
            expect(await real.hold(), where).toBe(model.state === 'ready' && !model.isOwned && go(model, 'hold', 'alice') ? 1 : 0)
            break
          case 'confirm':
            expect(await real.confirm(), where).toBe(!model.isLate && go(model, 'confirm', 'alice') ? 1 : 0)
            break
          case 'drop':
            expect(await real.drop(), where).toBe(go(model, 'drop') ? 1 : 0)
            break
          case 'signal':
            await real.signal(act.status)
            if (model.state === 'deploying' && !model.isInstalled && act.status === 'done') model.isInstalled = true
            else if (act.status === 'done') go(model, 'commissioned')
            else if (act.status === 'failed' && model.state === 'commissioning') go(model, 'fail')
            else if (act.status === 'failed' && model.state === 'deploying' && !model.isInstalled) go(model, 'fail')
            break
          case 'phone home':
            await real.phoneHome()
            if (model.isInstalled) go(model, 'deployed')
            break
          case 'power':
            if ((await real.power(act.outcome)) === 1 && model.order === 'open') model.order = act.outcome
            break
          case 'time passes':
            await real.timePasses()
            model.isLate = lifeCycle[model.state].deadline !== undefined
            break
          case 'look':
            await real.look()
            look(model)
            break
        }
        const row = await real.row()
        expect(row.state, where).toBe(model.state)
        expect(row.origin_state, where).toBe(model.origin)
        expect(row.allocation_id !== null, where).toBe(model.isOwned)
        expect(row.owner, where).toBe(model.isOwned ? 'alice' : null)
        expect(row.version, where).toBeGreaterThanOrEqual(version + model.moves.length - movesBefore)
        version = row.version
        // A state with a deadline has one, no other state does.
        expect(row.deadline_at !== null, where).toBe(lifeCycle[row.state].deadline !== undefined)
        // A machine failed for a reason.
        if (row.state.startsWith('failed_'))
          expect(row.fault, where).toMatchObject({ code: expect.any(String), message: expect.any(String) })
      }
      const events = await core.sql<{ data: { from: State; move: MoveName; to: State } }[]>`
        select data from events where machine_id = ${machine.id} and kind = 'machine.moved' order by id`
      expect(events.map(({ data }) => `${data.from} ${data.move} ${data.to}`)).toEqual(model.moves)
      for (const move of model.moves) seen.add(move)
      await core.sql`delete from machines`
      await core.sql`delete from allocations`
    }),
    { numRuns: 150, ...(process.env.MUSTER_SEED && { seed: Number(process.env.MUSTER_SEED) }) },
  )
  // The lives were not idle: most of the table was walked.
  const rows = Object.values(lifeCycle).reduce((sum, { moves }) => sum + Object.keys(moves).length, 0)
  expect(seen.size).toBeGreaterThan(rows * 0.6)
  expect(moveNames.length).toBe(19)
})
