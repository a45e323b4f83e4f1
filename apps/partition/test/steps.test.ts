// What the engine decides about power that is not as the table wants it: pure, so each case is a line.
import { expect, test } from 'vitest'
import type { MachineRow } from '../src/db/machines.ts'
import type { PowerOrder } from '../src/db/power.ts'
import { decide } from '../src/domain/steps.ts'

const now = new Date('2026-01-01T00:10:00Z')
const before = new Date('2026-01-01T00:09:00Z')
const after = new Date('2026-01-01T00:09:30Z')

function machine(changes: Partial<MachineRow>): MachineRow {
  const seen = { power: 'off', power_seen_at: after, power_driver: 'ipmi' }
  return {
    state: 'ready',
    step: 'start',
    netboot: true,
    deadline_at: null,
    last_signal_at: null,
    waiting_for: null,
    ...seen,
    ...changes,
  } as MachineRow
}

const order = (changes: Partial<PowerOrder>) =>
  ({ action: 'cycle', boot: 'network', state: 'done', asked_at: before, ended_at: before, fault: null, ...changes }) as PowerOrder
const facts = (row: Partial<MachineRow>, own?: PowerOrder, ownCount = own ? 1 : 0) => ({
  machine: machine(row),
  order: own,
  own,
  ownCount,
  now,
  agentSilenceMs: 60_000,
  agentStartMs: 600_000,
})

test('a machine nobody uses that is seen on is switched off, and that is drift', () => {
  expect(decide(facts({ state: 'ready', power: 'on' }))).toMatchObject({
    kind: 'order',
    wish: { action: 'off' },
    drift: 'seen on, wanted off',
  })
  expect(decide(facts({ state: 'ready', power: 'off' }))).toEqual({ kind: 'rest' })
  expect(decide(facts({ state: 'retired', power: 'on', power_driver: null }))).toEqual({ kind: 'rest' })
})

test('a machine whose agent does not appear is cycled once more before that is a fault', () => {
  const on = { state: 'commissioning', power: 'on', power_seen_at: before } as const
  const long = new Date(now.getTime() - 600_001)
  const ordered = order({ ended_at: long })
  expect(decide(facts({ ...on, power_seen_at: long }, ordered))).toMatchObject({
    kind: 'order',
    wish: { action: 'cycle', boot: 'network' },
    drift: 'no sign of the agent',
    frees: 'the boot script',
  })
  expect(decide(facts({ ...on, power_seen_at: long }, ordered, 2))).toMatchObject({ kind: 'fail', fault: { code: 'agent-missing' } })
  expect(decide(facts({ ...on, last_signal_at: now }, ordered))).toMatchObject({ kind: 'wait' })
})

test("a deployed machine's power is its owner's business", () => {
  for (const power of ['on', 'off', 'unknown'] as const) expect(decide(facts({ state: 'deployed', power }))).toEqual({ kind: 'rest' })
})

test('a machine that loses its power on its way is cycled into the network again; one that was installed, switched on', () => {
  const drift = 'seen off, wanted on'
  expect(decide(facts({ state: 'commissioning' }, order({})))).toMatchObject({
    kind: 'order',
    wish: { action: 'cycle', boot: 'network' },
    drift,
  })
  expect(decide(facts({ state: 'deploying' }, order({})))).toMatchObject({
    kind: 'order',
    wish: { action: 'cycle', boot: 'network' },
    drift,
  })
  expect(decide(facts({ state: 'deploying', netboot: false }, order({})))).toMatchObject({
    kind: 'order',
    wish: { action: 'on', boot: 'disk' },
    drift,
  })
  expect(decide(facts({ state: 'rescue' }, order({}), 9))).toMatchObject({ kind: 'order', drift })
})

test('an old look at the power is no loss of it', () => {
  expect(decide(facts({ state: 'commissioning', power_seen_at: new Date('2026-01-01T00:08:00Z') }, order({})))).toMatchObject({
    kind: 'wait',
  })
  expect(decide(facts({ state: 'commissioning' }, order({ state: 'running', ended_at: null })))).toMatchObject({ kind: 'wait' })
})

test('a machine that is off again and again fails: its power was lost where its agent had been heard, or it had its system', () => {
  const off = (row: Partial<MachineRow>) => decide(facts({ state: 'deploying', ...row }, order({}), 3))
  const heard = { last_signal_at: after, waiting_for: 'the agent: write (40 %)' }
  expect(off(heard)).toMatchObject({ kind: 'fail', fault: { code: 'power-lost', message: expect.stringContaining('3 times, at write') } })
  expect(off({ netboot: false })).toMatchObject({ kind: 'fail', fault: { code: 'power-lost' } })
  const fault = { code: 'agent-missing', message: expect.stringContaining('never heard'), hint: expect.stringContaining('console') }
  expect(off({})).toMatchObject({ kind: 'fail', move: 'fail', fault })
})

test('a machine is given back when its disks are erased, and then seen off', () => {
  const giveBack = (row: Partial<MachineRow>, own?: PowerOrder) => decide(facts({ state: 'releasing', power_driver: 'ipmi', ...row }, own))
  expect(giveBack({ erase: 'quick' })).toMatchObject({ kind: 'order', wish: { action: 'cycle', boot: 'network' } })
  expect(giveBack({ erase: 'quick', power: 'on' }, order({}))).toMatchObject({ kind: 'wait', reason: 'the agent to erase the disks' })
  // The cycle that brought the agent is not the end.
  expect(giveBack({ erase: null, power: 'on' }, order({}))).toMatchObject({ kind: 'order', wish: { action: 'off' } })
  expect(giveBack({ erase: null, power: 'off' }, order({ action: 'off', boot: null }))).toEqual({ kind: 'move', move: 'released' })
})
