// The power worker carries out orders. Per switch one order at a time, in the whole partition; it observes first, acts only if what is seen
// differs from what is wanted, and believes only what it then sees. A cycle is off, then on, so that each act may be repeated after a crash.
import { setTimeout as sleep } from 'node:timers/promises'
import { DriverError, type PowerSession } from '@muster/drivers/driver'
import { isDatabaseAway } from '../../db/connect.ts'
import {
  actedOrders,
  type ClaimedOrder,
  claimOrders,
  dropClaim,
  endClaim,
  holdClaim,
  type PowerAction,
  queuedAction,
} from '../../db/power.ts'
import { type Loop, runLoop } from '../bell.ts'
import type { Core } from '../core.ts'
import { type LadderLimits, ladder, type Rung, type RungName, startAt } from './ladder.ts'
import { jitter } from './monitor.ts'
import { faultOf, type Switchboard, UnchangedPower } from './switchboard.ts'

/** How fast a worker works. */
export interface Pace {
  /** A worker that says nothing for so long is dead or frozen, and its order goes to another. Longer than any single call to a BMC. */
  readonly claimMs: number
  /** Pauses between looks at a BMC whose power is changing. */
  readonly changeLook: { readonly firstMs: number; readonly limitMs: number }
  /** Before what failed is tried again: a BMC without a free session gets time to end one (most drop theirs after a minute); other trouble passes sooner. */
  readonly troublePauses: { readonly busy: readonly number[]; readonly other: readonly number[] }
}

const usualPace: Pace = {
  claimMs: 45_000,
  changeLook: { firstMs: 150, limitMs: 2_000 },
  troublePauses: { busy: [5_000, 15_000, 60_000], other: [1_000, 4_000] },
}
/**
 * BMCs spoken to at once; each costs a socket and little else. Those that did not answer last time have slots of their own: an order to a dead one
 * takes half a minute to fail, and a hundred of them must not keep the orders to others waiting.
 */
const slots = { usual: 200, troubled: 100 }
/** Taken in one go. */
const batch = 50
/** Runs the worker until the signal, then waits for the calls in flight. `pace` is for tests of much in little time. */
export async function runPowerWorker(core: Core, board: Switchboard, signal: AbortSignal, pace = usualPace): Promise<void> {
  const inFlight = { usual: new Set<Promise<void>>(), troubled: new Set<Promise<void>>() }
  const room = (kind: keyof typeof slots) => Math.max(0, Math.min(slots[kind] - inFlight[kind].size, batch))
  const look: Loop['look'] = async () => {
    const free = { usual: room('usual'), troubled: room('troubled') }
    const isFull = free.usual === 0 && free.troubled === 0
    const orders = isFull ? [] : await claimOrders(core.sql, { limit: free.usual, troubled: free.troubled, claimMs: pace.claimMs })
    for (const order of orders) {
      const place = inFlight[order.switch.failures > 0 ? 'troubled' : 'usual']
      const work = carryOut(order, { core, board, signal, pace })
        .catch(error =>
          core.log.error({ err: error, machine: order.machine_id }, 'a power order could not be stored; its claim will run out'),
        )
        .finally(() => {
          place.delete(work)
          core.bells.power.ring()
        })
      place.add(work)
    }
    return orders.length >= batch ? 'more' : 'idle'
  }
  await runLoop({ name: 'power worker', bell: core.bells.power, everyMs: 500, signal, log: core.log, look })
  await Promise.all([...inFlight.usual, ...inFlight.troubled])
}

type Ending = { state: 'done' | 'failed' | 'superseded'; power: 'on' | 'off' | 'unknown' | null; error?: unknown }

interface Context {
  readonly core: Core
  readonly board: Switchboard
  readonly signal: AbortSignal
  readonly pace: Pace
}

async function carryOut(order: ClaimedOrder, context: Context): Promise<void> {
  const { core, board, signal } = context
  let ending: Ending | 'lost'
  try {
    ending = await board.use(order.switch, session => new Work(session, order, context).run())
  } catch (error) {
    // On our way out: whoever takes the order over observes first.
    if (signal.aborted) {
      await dropClaim(core.sql, { machine: order.machine_id, token: order.switch.claim_token })
      return
    }
    // Nor does it say anything of the BMC that our own database is away: the order goes on when the claim has run out.
    if (isDatabaseAway(error)) throw error
    ending = { state: 'failed', power: null, error }
  }
  if (ending === 'lost') {
    core.log.warn({ machine: order.machine_id, order: order.id }, 'another worker has taken this power order over')
    return
  }
  const fault = ending.error === undefined ? null : faultOf(ending.error)
  await endClaim(
    core.sql,
    {
      machine: order.machine_id,
      token: order.switch.claim_token,
      power: ending.power,
      fault,
      againMs: core.rules.powerCheckMs * jitter(),
      inTransitionMs: core.rules.powerTransitionMs,
    },
    { id: order.id, state: ending.state, fault },
  )
  core.bells.engine.ring()
  core.bells.log.ring()
}

/** The power an order is to end with: one that waits for the same lets the running one finish. */
const endsIn = (action: PowerAction) => (action === 'off' ? 'off' : 'on')

/** One order under way: its switch's session, and where on the ladder it is. */
class Work {
  readonly #core: Core
  readonly #session: PowerSession
  readonly #order: ClaimedOrder
  readonly #signal: AbortSignal
  readonly #pace: Pace

  constructor(session: PowerSession, order: ClaimedOrder, { core, signal, pace }: Context) {
    this.#core = core
    this.#session = session
    this.#order = order
    this.#signal = signal
    this.#pace = pace
  }

  async run(): Promise<Ending | 'lost'> {
    const order = this.#order
    const [writtenPhase, writtenRung] = (order.phase ?? '').split('.') as [string, RungName | undefined]
    // What a crash had left to do: a cycle that had come to "on" does not cut the power again.
    const phases: ('off' | 'on')[] = order.action === 'cycle' ? (writtenPhase === 'on' ? ['on'] : ['off', 'on']) : [order.action]
    for (const phase of phases) {
      if (phase === 'on' && order.boot !== null) {
        if ((await this.#keepClaim('on')) === 'lost') return 'lost'
        await this.#setBoot(order.boot)
      }
      const reached = await this.#climb(phase, phase === writtenPhase ? writtenRung : undefined)
      if (reached !== 'reached') return reached
    }
    return { state: 'done', power: phases.at(-1) as 'on' | 'off' }
  }

  /** Goes up the ladder until the power is seen as wanted. Throws when the last rung did not help: a person is next. */
  async #climb(wanted: 'on' | 'off', written: RungName | undefined): Promise<'reached' | 'lost' | Ending> {
    const { rules } = this.#core
    const canRestart = this.#session.capabilities.restartController !== undefined
    const limits = { softMs: rules.powerSoftMs, changeMs: rules.powerChangeMs, restartMs: rules.powerRestartMs }
    const rungs = ladder(wanted, this.#order.how, canRestart, limits)
    let seen = 'unknown'
    const settledAt = Date.now() + (await this.#contraryMs(wanted, limits))
    for (const rung of rungs.slice(startAt(rungs, written))) {
      const outcome = await this.#stand(wanted, rung, settledAt)
      if (outcome === 'reached' || outcome === 'lost' || typeof outcome === 'object') return outcome
      seen = outcome.slice('still '.length)
    }
    const tried = rungs.map(({ act }) => act).join(', then ')
    throw new UnchangedPower(`power ${wanted} via ${this.#session.target}: accepted, but it still reads ${seen} after ${tried}`)
  }

  /**
   * For how long the power may still turn from `wanted` by itself: an earlier order for the contrary was accepted, perhaps, and BMCs do as they
   * accepted up to 15 s later, operating systems minutes later. Seen as wanted before that, it would be called done and then turn.
   */
  async #contraryMs(wanted: 'on' | 'off', limits: LadderLimits): Promise<number> {
    const contrary = wanted === 'on' ? 'off' : 'on'
    const longestMs = Math.max(limits.softMs, limits.changeMs, limits.restartMs)
    const { machine_id: machine, id: except } = this.#order
    const earlier = await actedOrders(this.#core.sql, { machine, except, towards: contrary, withinMs: longestMs })
    const left = earlier.map(({ phase, how, endedAgoMs }) => {
      const name = phase.slice(contrary.length + 1)
      const rung = ladder(contrary, how, true, limits).find(each => each.name === name)
      return rung ? rung.limitMs - endedAgoMs : 0
    })
    return Math.max(0, ...left)
  }

  /** One rung: act once, then watch for its effect until its limit. Answers what was last seen where it had none. */
  async #stand(
    wanted: 'on' | 'off',
    rung: Rung,
    settledAt: number,
  ): Promise<'reached' | 'lost' | Ending | 'still on' | 'still off' | 'still unknown'> {
    // Counted from the act: a slow BMC needs long to log in to, before anything can change.
    let actedAt: number | undefined
    let mayTurn = Date.now() < settledAt
    let pauseMs = this.#pace.changeLook.firstMs
    for (;;) {
      // A BMC that starts anew does not answer for a while, and that is as it should be.
      const isRestarting = rung.act === 'restart' && actedAt !== undefined
      const seen = isRestarting
        ? await this.#seenOrSilent()
        : await this.#patiently(rung, () => this.#session.power({ signal: this.#signal }))
      // Seen otherwise, the contrary has come to pass.
      mayTurn &&= seen === wanted && Date.now() < settledAt
      if (seen === wanted && !mayTurn) return 'reached'
      if (actedAt !== undefined && Date.now() - actedAt > rung.limitMs) return `still ${seen}`
      const heldAt = Date.now()
      if ((await this.#keepClaim(`${wanted}.${rung.name}`)) === 'lost') return 'lost'
      const next = await queuedAction(this.#core.sql, this.#order.machine_id)
      if (next !== undefined && endsIn(next) !== endsIn(this.#order.action)) return { state: 'superseded', power: seen }
      // A process that was frozen just now may have lost its claim meanwhile: look again before acting.
      if (Date.now() - heldAt > this.#pace.claimMs / 2) continue
      if (actedAt === undefined && !mayTurn) {
        actedAt = Date.now()
        if ((await this.#act(rung)) === 'cannot') return `still ${seen}`
      }
      await sleep(pauseMs, undefined, { signal: this.#signal })
      pauseMs = Math.min(pauseMs * 1.6, this.#pace.changeLook.limitMs)
    }
  }

  async #act(rung: Rung): Promise<'done' | 'cannot'> {
    const signal = this.#signal
    switch (rung.act) {
      case 'on':
        await this.#patiently(rung, () => this.#session.on({ signal }))
        return 'done'
      case 'hard off':
        await this.#patiently(rung, () => this.#session.off({ how: 'hard', signal }))
        return 'done'
      case 'soft off':
        try {
          await this.#patiently(rung, () => this.#session.off({ how: 'soft', signal }))
          return 'done'
        } catch (error) {
          // Not every BMC can ask; the switch can be pressed all the same.
          if (error instanceof DriverError && (error.kind === 'unsupported' || error.kind === 'refused')) return 'cannot'
          throw error
        }
      case 'restart':
        this.#core.log.warn({ machine: this.#order.machine_id }, 'the BMC accepts but does not switch; restarting the BMC')
        try {
          await this.#session.capabilities.restartController?.({ signal })
          return 'done'
        } catch (error) {
          // An account that may not, or a BMC that cannot: the press is repeated without it.
          if (error instanceof DriverError && !error.retryable) return 'cannot'
          throw error
        }
    }
  }

  /** Repeats what may pass by itself (no answer, no free session), a few times and for no longer than a change of power may take. */
  async #patiently<T>(rung: Rung, ask: () => Promise<T>): Promise<T> {
    const started = Date.now()
    for (let trouble = 0; ; trouble++) {
      try {
        return await ask()
      } catch (error) {
        if (!(error instanceof DriverError) || !error.retryable || this.#signal.aborted) throw error
        const pauseMs = this.#pace.troublePauses[error.kind === 'busy' ? 'busy' : 'other'][trouble]
        if (pauseMs === undefined || Date.now() - started + pauseMs > rung.limitMs) throw error
        await sleep(pauseMs * (0.75 + Math.random() / 2), undefined, { signal: this.#signal })
        if ((await this.#keepClaim()) === 'lost') throw error
      }
    }
  }

  async #seenOrSilent(): Promise<'on' | 'off' | 'unknown'> {
    try {
      return await this.#session.power({ signal: this.#signal })
    } catch (error) {
      if (error instanceof DriverError && error.retryable) return 'unknown'
      throw error
    }
  }

  /** The next boot's device. A BMC that cannot is no reason to fail: most machines try the network first anyway. */
  async #setBoot(device: 'network' | 'disk'): Promise<void> {
    const { bootNext } = this.#session.capabilities
    if (!bootNext) return
    try {
      await bootNext.set({ device, firmware: 'uefi', signal: this.#signal })
    } catch (error) {
      if (this.#signal.aborted) throw error
      const machine = this.#order.machine_id
      this.#core.log.warn({ err: error, machine }, `the boot device of ${machine} could not be set; its own boot order decides`)
    }
  }

  /** Prolongs the claim and writes down what is about to be done. */
  async #keepClaim(phase?: string): Promise<'ours' | 'lost'> {
    const { machine_id: machine, id: order } = this.#order
    const { claimMs } = this.#pace
    const claim = { machine, token: this.#order.switch.claim_token, claimMs, order, ...(phase !== undefined && { phase }) }
    for (;;) {
      const heldAt = Date.now()
      if ((await holdClaim(this.#core.sql, claim)) === 'lost') return 'lost'
      // A process that was frozen just now may have lost it again.
      if (Date.now() - heldAt < claimMs / 2) return 'ours'
    }
  }
}
