/** Power and reset through #ComputerSystem.Reset (facts "Redfish": reset values, state lag). */
import type { PowerState } from '../driver.ts'
import { Failure } from '../failure.ts'
import { type JsonObject, list, object, pathOf, text, texts } from './answer.ts'
import { meaningOf, wordsOf } from './meanings.ts'
import { Patience } from './patience.ts'
import { failureOf, type Resource, type Turn } from './service.ts'
import { finished } from './tasks.ts'

/**
 * What PowerState says. On its way up a machine is not on yet, and on its way down not off yet: whoever waits for the end asks again. `Paused` has
 * power. Unknown is only what the service does not tell.
 */
const states: Readonly<Record<string, PowerState>> = { On: 'on', PoweringOn: 'off', Paused: 'on', Off: 'off', PoweringOff: 'on' }

/** Reset types that do what is ordered, best first. ForcePowerCycle is the word of Huawei, xFusion and H3C. */
const resetTypes = {
  on: ['On', 'ForceOn'],
  off: ['ForceOff'],
  soft: ['GracefulShutdown'],
  reset: ['ForceRestart', 'GracefulRestart'],
  cycle: ['PowerCycle', 'ForcePowerCycle'],
} as const
type Order = keyof typeof resetTypes

/** What the machine's state is once an order was carried out. */
const wantedBy: Readonly<Record<Order, 'on' | 'off'>> = { on: 'on', off: 'off', soft: 'off', reset: 'on', cycle: 'on' }

/** How long the effect of an order may lag behind its acceptance: until then an opposite state proves nothing. */
const lagMs = 15_000

/** The state as the service shows it. */
export async function powerState(turn: Turn): Promise<PowerState> {
  return stateOf(await turn.system())
}

function stateOf({ answer }: Resource): PowerState {
  return states[text(answer.body.PowerState) ?? ''] ?? 'unknown'
}

/** Turns the machine on; harmless when it is. */
export async function powerOn(turn: Turn): Promise<void> {
  const system = await turn.system()
  const reset = await resetOf(turn, system)
  const refusal = await order(turn, reset, 'on')
  if (!refusal || (await isAlready(turn, 'on'))) return
  // A button works both ways: only where the machine is surely off, and only where the service says that it has one.
  const hasButton = reset.offered?.includes('PushPowerButton') && stateOf(system) === 'off'
  if (!hasButton || (await press(turn, reset, { type: 'PushPowerButton', what: 'on' }))) throw refusal
}

/** Turns the machine off; harmless when it is. */
export async function powerOff(turn: Turn, how: 'hard' | 'soft'): Promise<void> {
  const reset = await resetOf(turn, await turn.system())
  const refusal = await order(turn, reset, how === 'hard' ? 'off' : 'soft')
  if (refusal && !(await isAlready(turn, 'off'))) throw refusal
}

/**
 * Power cycle or reset, sent once. Where the service has no such reset it becomes a hard off and, seen off, an on. A machine that is off is
 * turned on instead. After a lost answer the state is read: seen off during a cycle, it is under way; otherwise nobody can know.
 */
export async function restart(turn: Turn, how: 'cycle' | 'reset'): Promise<void> {
  const system = await turn.system()
  if (stateOf(system) === 'off') return powerOn(turn)
  try {
    if (!(await order(turn, await resetOf(turn, system), how))) return
  } catch (error) {
    if (!(error instanceof Failure) || error.facts.outcome !== 'unknown' || error.facts.kind === 'cancelled') throw error
    if (how === 'cycle' && (await wasSeenOff(turn))) return
    throw new Failure({
      ...error.facts,
      got: `${error.facts.got}; whether the machine was restarted is not known`,
      hint: 'Not repeated, because that could restart the machine twice. If it did not restart, ask again.',
      cause: error,
    })
  }
  await offThenOn(turn)
}

async function offThenOn(turn: Turn): Promise<void> {
  await powerOff(turn, 'hard')
  const endsAt = turn.now() + turn.timers.offMs
  while ((await powerState(turn)) !== 'off') {
    if (turn.now() > endsAt) {
      throw new Failure({
        kind: 'refused',
        got: `this BMC has no such restart, and the machine was still on ${turn.timers.offMs / 1000} s after a hard power off`,
        hint: 'Nothing more was sent. Look at the machine; then turn it off and on.',
        outcome: 'unknown',
      })
    }
    await turn.pause(turn.timers.pollMs / 2)
  }
  await powerOn(turn)
}

/** A cycle is off for at least a second: four looks within its first two find it. */
const looks = 4

async function wasSeenOff(turn: Turn): Promise<boolean> {
  for (let look = 0; look < looks; look++) {
    await turn.pause(turn.timers.pollMs / 2)
    if ((await powerState(turn)) === 'off') return true
  }
  return false
}

interface Reset {
  target: string
  /** The values the service says it takes; undefined where it says nothing. */
  offered: readonly string[] | undefined
}

/** Where resets are sent, and what the service takes: named beside the action, or in its ActionInfo (OpenBMC, Supermicro, AMI). */
async function resetOf(turn: Turn, { path, answer }: Resource): Promise<Reset> {
  const action = object(object(answer.body.Actions)['#ComputerSystem.Reset'])
  const target = pathOf(text(action.target))
  if (target === undefined) {
    throw new Failure({
      kind: 'unsupported',
      got: `${path} offers no reset action`,
      hint: 'The account may lack the right to control power, or this is not the computer system itself: check `systemId`.',
    })
  }
  const offered = texts(action['ResetType@Redfish.AllowableValues']) ?? (await offeredByInfo(turn, action))
  return { target, offered: offered?.length ? offered : undefined }
}

async function offeredByInfo(turn: Turn, action: JsonObject): Promise<string[] | undefined> {
  const info = pathOf(text(action['@Redfish.ActionInfo']))
  if (info === undefined) return undefined
  const answer = await turn.send('GET', info)
  if (answer.status >= 400) {
    // Without the list the values are tried.
    turn.log('the reset values cannot be read', { got: wordsOf(answer) })
    return undefined
  }
  const parameter = list(answer.body.Parameters)
    .map(object)
    .find(({ Name }) => Name === 'ResetType')
  return texts(parameter?.AllowableValues)
}

/** Sends the first reset type for the order that the service takes. Gives the refusal where it takes none. */
async function order(turn: Turn, reset: Reset, what: Order): Promise<Failure | undefined> {
  let refusal = notOffered(reset, what)
  for (const type of resetTypes[what]) {
    if (reset.offered ? !reset.offered.includes(type) : turn.memory.refusedResets.has(type)) continue
    const refused = await press(turn, reset, { type, what })
    if (!refused) return undefined
    refusal = refused
  }
  return refusal
}

/**
 * Sends one reset type, and again while the service is busy. A refusal counts as done where the machine is as wanted. Gives the refusal where another
 * type may pass, and throws every other.
 */
async function press(turn: Turn, reset: Reset, { type, what }: { type: string; what: Order }): Promise<Failure | undefined> {
  const isRestart = what === 'cycle' || what === 'reset'
  const patience = new Patience(turn)
  for (;;) {
    const answer = await turn.send('POST', reset.target, { body: { ResetType: type }, patience: 'caller' })
    if (answer.status < 400) {
      turn.memory.lastOrder = { wanted: wantedBy[what], at: turn.now() }
      await finished(turn, answer, { what: `the reset ${type}`, limitMs: turn.timers.orderTaskMs })
      return undefined
    }
    const failure = failureOf(answer, `the reset ${type}`)
    const meaning = meaningOf(answer)
    if (meaning.kind === 'privilege' || meaning.kind === 'authentication') throw failure
    if (isRestart && failure.facts.outcome === 'unknown') throw failure
    if (!isRestart && (await isAlready(turn, wantedBy[what]))) return undefined
    if (meaning.again === 'other value' || meaning.kind === 'unsupported') {
      turn.log('the BMC does not take a reset type', { type, got: wordsOf(answer) })
      // Offered and refused is about this moment (AMI's list follows the power state); otherwise it is about the firmware.
      if (!reset.offered) turn.memory.refusedResets.add(type)
      return failure
    }
    const waitMs = patience.next(answer, meaning)
    if (waitMs === undefined) throw failure
    turn.log('repeating a reset', { type, why: wordsOf(answer), repeat: patience.repeats })
    if (meaning.again === 'after POST') turn.extend(waitMs)
    await turn.pause(waitMs)
  }
}

/**
 * On when on, off when off: some services call it an error. Not believed just after the opposite was ordered, for then the state read is the old
 * one (iDRAC10 refuses "on" for some seconds after "off").
 */
async function isAlready(turn: Turn, wanted: 'on' | 'off'): Promise<boolean> {
  if ((await powerState(turn)) !== wanted) return false
  const last = turn.memory.lastOrder
  return last === undefined || last.wanted === wanted || turn.now() - last.at > lagMs
}

function notOffered({ offered }: Reset, what: Order): Failure {
  return new Failure({
    kind: 'unsupported',
    got: offered ? `the BMC offers only these resets: ${offered.join(', ')}` : `the BMC refused ${resetTypes[what].join(' and ')}`,
    hint: what === 'soft' ? 'This BMC cannot ask the operating system: use a hard power off.' : 'Newer firmware may offer it.',
  })
}
