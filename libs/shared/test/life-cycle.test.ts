// The table of the life cycle, held against itself and against the design's.
import { describe, expect, test } from 'vitest'
import {
  deadlineMsOf,
  lifeCycle,
  type Move,
  type MoveName,
  moveNames,
  outcomeOf,
  requestsIn,
  type State,
  states,
  statesThatAllow,
} from '../src/life-cycle.ts'

const movesOf = (state: State) => Object.entries(lifeCycle[state].moves) as [MoveName, Move][]
const everyMove = states.flatMap(from => movesOf(from).map(([name, move]) => ({ from, name, ...move })))

/** Where `exitRescue` may lead: the states that rescue is entered from. */
const origins = statesThatAllow('rescue')
const leadsTo = (move: Move): State[] => (move.to === 'origin' ? origins : [move.to])

describe('the life cycle', () => {
  test('wants the power that the design wants, state by state', () => {
    expect(Object.fromEntries(states.map(state => [state, lifeCycle[state].wantedPower]))).toEqual({
      new: 'off',
      commissioning: 'on',
      failed_commissioning: 'off',
      ready: 'off',
      reserved: 'off',
      allocated: 'off',
      deploying: 'on',
      failed_deployment: 'off',
      deployed: 'user',
      releasing: 'off',
      failed_releasing: 'off',
      rescue: 'on',
      broken: 'off',
      retired: 'off',
    })
  })

  test('leads from each state where the design says, and nowhere else', () => {
    const leaves = Object.fromEntries(states.map(from => [from, [...new Set(movesOf(from).flatMap(([, move]) => leadsTo(move)))].sort()]))
    expect(leaves).toEqual({
      new: ['commissioning', 'deployed', 'retired'],
      commissioning: ['failed_commissioning', 'new', 'ready'],
      failed_commissioning: ['broken', 'commissioning', 'retired'],
      ready: ['broken', 'commissioning', 'rescue', 'reserved', 'retired'],
      reserved: ['allocated', 'ready'],
      allocated: ['broken', 'deploying', 'releasing', 'rescue'],
      deploying: ['allocated', 'deployed', 'failed_deployment'],
      failed_deployment: ['broken', 'deploying', 'releasing'],
      deployed: ['broken', 'releasing', 'rescue'],
      releasing: ['failed_releasing', 'ready'],
      failed_releasing: ['broken', 'releasing'],
      rescue: ['allocated', 'deployed', 'ready'],
      broken: ['ready', 'releasing', 'retired'],
      retired: ['new'],
    })
  })

  test('gives every state with work to do a deadline and an exit that nobody has to ask for', () => {
    const deadlines = Object.fromEntries(states.flatMap(state => (deadlineMsOf(state) === undefined ? [] : [[state, deadlineMsOf(state)]])))
    expect(deadlines).toEqual({ commissioning: 1_800_000, reserved: 15_000, deploying: 3_600_000, releasing: 1_800_000 })
    for (const state of states) {
      const { deadline, does, moves } = lifeCycle[state]
      const byClock = movesOf(state).filter(([, move]) => move.by === 'deadline')
      expect(
        byClock.map(([name]) => name),
        state,
      ).toEqual(deadline === undefined ? [] : ['expire'])
      // Somebody sits at the console of a rescue system for as long as it takes.
      if (does !== '' && state !== 'rescue') expect(deadline, state).toBeDefined()
      const waitsForReports = movesOf(state).some(([, move]) => move.by === 'report')
      if (waitsForReports) expect(moves.fail, `${state} can fail`).toBeDefined()
    }
  })

  test('reaches every state, and from every state every other', () => {
    for (const start of states) {
      const seen = new Set<State>([start])
      for (const from of seen) for (const [, move] of movesOf(from)) for (const to of leadsTo(move)) seen.add(to)
      expect([...seen].sort(), `from ${start}`).toEqual([...states].sort())
    }
  })

  test('names only states and moves that exist, and each of them is used', () => {
    expect(Object.keys(lifeCycle)).toEqual([...states])
    for (const move of everyMove) if (move.to !== 'origin') expect(states).toContain(move.to)
    expect([...new Set(everyMove.map(({ name }) => name))].sort()).toEqual([...moveNames].sort())
  })

  test('never lets a person delete a machine that is somebody’s or at work', () => {
    const deletable = states.filter(state => lifeCycle[state].deletable === 'yes')
    expect(deletable).toEqual(['new', 'failed_commissioning', 'ready', 'broken', 'retired'])
    for (const state of deletable) expect(deadlineMsOf(state), state).toBeUndefined()
  })

  test('offers people only requests, never what the agent or the clock decides', () => {
    for (const state of states)
      for (const name of requestsIn(state)) expect(['commissioned', 'deployed', 'released', 'fail', 'expire']).not.toContain(name)
    for (const state of ['commissioning', 'deploying', 'releasing'] as const) expect(requestsIn(state)).toEqual(['abort'])
    // Taken and confirmed is a machine by an allocation.
    expect(requestsIn('ready')).toEqual(['commission', 'markBroken', 'rescue', 'retire'])
    expect(requestsIn('reserved')).toEqual([])
  })
})

describe('outcomeOf', () => {
  test('is the table, for every state and every move', () => {
    for (const from of states)
      for (const name of moveNames)
        for (const isOwned of [true, false]) {
          const row = lifeCycle[from].moves[name]
          const outcome = outcomeOf(name, { from, origin: 'deployed', isOwned })
          const needsHold = row?.needs === undefined || (row.needs === 'owned') === isOwned
          if (row && needsHold) expect(outcome).toEqual({ kind: 'moved', to: row.to === 'origin' ? 'deployed' : row.to })
          else expect(outcome, `${name} from ${from}`).toMatchObject({ kind: 'refused', reason: expect.stringContaining(name) })
        }
  })

  test('says where a refused move would be possible', () => {
    expect(outcomeOf('deploy', { from: 'ready', origin: null, isOwned: false })).toEqual({
      kind: 'refused',
      code: 'wrong-state',
      reason: 'deploy is not possible in state ready; it is in allocated, failed_deployment',
    })
    expect(outcomeOf('fix', { from: 'broken', origin: null, isOwned: true })).toMatchObject({ code: 'machine-owned' })
  })
})
