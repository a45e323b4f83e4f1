// A machine's life cycle, whole: what each state means, what power it wants, how long it may take, and what leaves it. The API,
// the engine, the deadlines, the pages, the docs and the tests are read from this table; no other module names a next state.
import { durationMs } from './duration.ts'

/** `user`: the machine is deployed and its power is its owner's business. */
export type WantedPower = 'on' | 'off' | 'user'

/** Who causes a move: a person's call, the engine's step, or the clock. */
export type Cause = 'request' | 'report' | 'deadline'

export interface Move {
  /** The next state; `origin` is the state the machine came to rescue from. */
  readonly to: State | 'origin'
  readonly by: Cause
  /** What else must hold. `unowned`: the machine belongs to no allocation; `owned`: it does. */
  readonly needs?: 'unowned' | 'owned'
}

export interface StateRow {
  readonly wantedPower: WantedPower
  /** What the server does while the machine is here; empty where it only waits for a request. */
  readonly does: string
  /** How long a transient state may last; its `deadline` move is the automatic exit. */
  readonly deadline?: `${number}${'s' | 'm'}`
  readonly deletable: 'yes' | 'no'
  readonly moves: { readonly [name in MoveName]?: Move }
}

export const states = [
  'new',
  'commissioning',
  'failed_commissioning',
  'ready',
  'reserved',
  'allocated',
  'deploying',
  'failed_deployment',
  'deployed',
  'releasing',
  'failed_releasing',
  'rescue',
  'broken',
  'retired',
] as const
export type State = (typeof states)[number]

export const moveNames = [
  'commission',
  'adopt',
  'commissioned',
  'hold',
  'confirm',
  'drop',
  'deploy',
  'deployed',
  'release',
  'released',
  'abort',
  'fail',
  'expire',
  'markBroken',
  'fix',
  'rescue',
  'exitRescue',
  'retire',
  'restore',
] as const
export type MoveName = (typeof moveNames)[number]

const request = (to: State | 'origin', needs?: Move['needs']): Move => ({ to, by: 'request', ...(needs && { needs }) })
const report = (to: State): Move => ({ to, by: 'report' })
const deadline = (to: State): Move => ({ to, by: 'deadline' })

export const lifeCycle: { readonly [state in State]: StateRow } = {
  new: {
    wantedPower: 'off',
    does: '',
    deletable: 'yes',
    moves: { commission: request('commissioning'), adopt: request('deployed'), retire: request('retired') },
  },
  commissioning: {
    wantedPower: 'on',
    does: 'network boot; the agent reports the inventory and runs scripts and tests',
    deadline: '30m',
    deletable: 'no',
    moves: {
      commissioned: report('ready'),
      fail: report('failed_commissioning'),
      expire: deadline('failed_commissioning'),
      abort: request('new'),
    },
  },
  failed_commissioning: {
    wantedPower: 'off',
    does: '',
    deletable: 'yes',
    moves: { commission: request('commissioning'), markBroken: request('broken'), retire: request('retired') },
  },
  ready: {
    wantedPower: 'off',
    does: '',
    deletable: 'yes',
    moves: {
      hold: request('reserved'),
      commission: request('commissioning'),
      markBroken: request('broken'),
      rescue: request('rescue'),
      retire: request('retired'),
    },
  },
  reserved: {
    wantedPower: 'off',
    does: 'held for one request',
    deadline: '15s',
    deletable: 'no',
    moves: { confirm: request('allocated'), drop: request('ready'), expire: deadline('ready') },
  },
  allocated: {
    wantedPower: 'off',
    does: '',
    deletable: 'no',
    moves: {
      deploy: request('deploying'),
      release: request('releasing'),
      markBroken: request('broken'),
      rescue: request('rescue'),
    },
  },
  deploying: {
    wantedPower: 'on',
    does: 'network boot; the agent writes the image; the first boot reads its metadata and phones home',
    deadline: '60m',
    deletable: 'no',
    moves: {
      deployed: report('deployed'),
      fail: report('failed_deployment'),
      expire: deadline('failed_deployment'),
      abort: request('allocated'),
    },
  },
  failed_deployment: {
    wantedPower: 'off',
    does: '',
    deletable: 'no',
    moves: { deploy: request('deploying'), release: request('releasing'), markBroken: request('broken') },
  },
  deployed: {
    wantedPower: 'user',
    does: '',
    deletable: 'no',
    moves: { release: request('releasing'), markBroken: request('broken'), rescue: request('rescue') },
  },
  releasing: {
    wantedPower: 'off',
    does: 'the agent erases the disks that were used; power off, then forget the deployment and its secrets',
    deadline: '30m',
    deletable: 'no',
    moves: {
      released: report('ready'),
      fail: report('failed_releasing'),
      expire: deadline('failed_releasing'),
      // Never back to its owner, who has given it up, nor on to the next one, who would find what is left.
      abort: request('failed_releasing'),
    },
  },
  failed_releasing: {
    wantedPower: 'off',
    does: '',
    deletable: 'no',
    moves: { release: request('releasing'), markBroken: request('broken') },
  },
  rescue: {
    wantedPower: 'on',
    does: 'network boot into the rescue system',
    deletable: 'no',
    moves: { exitRescue: request('origin') },
  },
  broken: {
    wantedPower: 'off',
    does: '',
    deletable: 'yes',
    moves: { fix: request('ready', 'unowned'), retire: request('retired', 'unowned'), release: request('releasing', 'owned') },
  },
  retired: {
    wantedPower: 'off',
    does: '',
    deletable: 'yes',
    moves: { restore: request('new') },
  },
}

/** The states a move may start from. */
export function statesThatAllow(move: MoveName): State[] {
  return states.filter(state => lifeCycle[state].moves[move])
}

/** Asked for by an allocation, never of one machine. */
const movesOfAllocations: ReadonlySet<MoveName> = new Set(['hold', 'confirm', 'drop'])

/** The moves a person may ask for in `state`: what pages offer and, where {@link outcomeOf} says so too, the server accepts. */
export function requestsIn(state: State): MoveName[] {
  return moveNames.filter(name => lifeCycle[state].moves[name]?.by === 'request' && !movesOfAllocations.has(name))
}

/** How long a machine may stay in `state`, in milliseconds; undefined where it may stay for ever. */
export function deadlineMsOf(state: State): number | undefined {
  const { deadline: text } = lifeCycle[state]
  return text === undefined ? undefined : durationMs(text)
}

export type MoveOutcome = { kind: 'moved'; to: State } | { kind: 'refused'; code: 'wrong-state' | 'machine-owned'; reason: string }

/**
 * Where `move` leads from `from`, or why not. Pure: the caller stores the result by compare-and-set.
 * `origin` is the state the machine came to rescue from; `isOwned`, whether an allocation holds it.
 */
export function outcomeOf(move: MoveName, facts: { from: State; origin: State | null; isOwned: boolean }): MoveOutcome {
  const row = lifeCycle[facts.from].moves[move]
  if (!row) {
    const allowed = statesThatAllow(move).join(', ')
    return { kind: 'refused', code: 'wrong-state', reason: `${move} is not possible in state ${facts.from}; it is in ${allowed}` }
  }
  if (row.needs === 'unowned' && facts.isOwned)
    return { kind: 'refused', code: 'machine-owned', reason: `${move} needs a machine without an owner; release it first` }
  if (row.needs === 'owned' && !facts.isOwned)
    return { kind: 'refused', code: 'wrong-state', reason: `${move} needs a machine with an owner; this one has none, fix it instead` }
  if (row.to !== 'origin') return { kind: 'moved', to: row.to }
  return { kind: 'moved', to: facts.origin ?? 'ready' }
}
