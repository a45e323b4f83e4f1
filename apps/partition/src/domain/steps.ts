// What the server does in each state: a pure decision from facts. A step returns an outcome; only the engine stores it. No I/O here, so every
// step may be looked at any number of times, by any replica, after any crash.
import type { FirstBoot } from '@muster/shared/cloud-init'
import { lifeCycle, type MoveName } from '@muster/shared/life-cycle'
import type { Fault } from '@muster/shared/machine'
import type { MachineRow } from '../db/machines.ts'
import type { PowerOrder } from '../db/power.ts'

export interface Facts {
  machine: MachineRow
  /** The machine's latest power order, whoever gave it. */
  order: PowerOrder | undefined
  /** The latest that the engine gave since the machine came into this state: a crash cannot make it give one twice. */
  own: PowerOrder | undefined
  /** How many it has given since then. */
  ownCount: number
  now: Date
  agentSilenceMs: number
  agentStartMs: number
}

export interface PowerWish {
  action: 'on' | 'off' | 'cycle'
  boot: 'network' | 'disk' | null
}

export type Outcome =
  /** Nothing to do until a person or a report says so. */
  | { kind: 'rest' }
  /** `drift`: the power was not what the table wants, and nobody here had ordered it. `frees`: whoever had it did nothing with it. */
  | { kind: 'order'; wish: PowerWish; reason: string; drift?: string; frees?: 'the boot script' }
  | { kind: 'wait'; reason: string; againMs: number }
  | { kind: 'move'; move: MoveName }
  | { kind: 'fail'; move: 'fail' | 'expire'; fault: Omit<Fault, 'since'> }

/** The step a machine coming back from rescue to its own system starts with. */
export const leavingRescue = 'leave rescue'

/** The engine is told by a nudge when something happens; this is only how long it trusts that. */
const lookAgainMs = 15_000
const holdLookMs = 1_000
/** Orders given to a machine that loses its power again and again on the same way. */
const powerLossLimit = 3
/** Cycles into the network of a machine whose agent does not appear. */
const agentTries = 2
/** A failed order in a state that only wants the power off: the next try. */
const retryOffMs = 60_000

/** What to do about a machine now. */
export function decide(facts: Facts): Outcome {
  const { machine, now } = facts
  // Holds end with their allocation, in one statement of their own (endHolds).
  if (machine.state === 'reserved') return { kind: 'wait', reason: 'the confirmation', againMs: holdLookMs }
  if (machine.deadline_at !== null && machine.deadline_at <= now && lifeCycle[machine.state].moves.expire)
    return { kind: 'fail', move: 'expire', fault: lateFault(machine) }
  switch (machine.state) {
    case 'commissioning':
      return viaAgent(facts, 'the agent to finish commissioning')
    case 'deploying':
      return viaAgent(facts, machine.netboot ? 'the agent to install' : 'the first boot of the installed system to phone home')
    case 'rescue':
      return viaAgent(facts, 'somebody to leave the rescue system')
    case 'releasing':
      return releasing(facts)
    case 'deployed':
      return deployed(facts)
    case 'new':
    case 'failed_commissioning':
    case 'ready':
    case 'allocated':
    case 'failed_deployment':
    case 'failed_releasing':
    case 'broken':
    case 'retired':
      return keepOff(facts)
  }
}

function lateFault(machine: MachineRow): Omit<Fault, 'since'> {
  const failed = machine.state === 'deploying' ? firstBootFault(machine.deployment?.firstBoot) : undefined
  if (failed) return { ...failed, message: `${failed.message}; it never phoned home` }
  const waited = machine.waiting_for ?? 'the engine'
  return {
    code: 'deadline-passed',
    message: `${machine.state} took longer than it may; it was waiting for ${waited}`,
    hint: 'look at the console of the machine, then try again',
  }
}

/** The fault of a first boot in which steps failed, whether or not it came to its end. */
export function firstBootFault(firstBoot: FirstBoot | undefined): Omit<Fault, 'since'> | undefined {
  if (!firstBoot || firstBoot.failures.length === 0) return undefined
  return {
    code: 'cloud-init-failed',
    message: `cloud-init reported that these steps of the first boot failed: ${firstBoot.failures.join(', ')}`,
    hint: 'read /var/log/cloud-init.log and cloud-init-output.log on the machine',
  }
}

const intoNetwork: PowerWish = { action: 'cycle', boot: 'network' }

/** Power-cycle into the network, then wait for what the agent says. */
function viaAgent({ machine, own, ownCount, now, agentSilenceMs, agentStartMs }: Facts, waitsFor: string): Outcome {
  const reason = 'the power cycle into network boot'
  if (own === undefined || own.state === 'superseded') return { kind: 'order', wish: intoNetwork, reason }
  if (own.state === 'failed' && machine.state !== 'rescue') return failedOrder(own)
  if (own.state === 'queued' || own.state === 'running') return { kind: 'wait', reason, againMs: lookAgainMs }
  if (isLost(machine, own)) {
    if (ownCount >= powerLossLimit && machine.state !== 'rescue') return { kind: 'fail', move: 'fail', fault: lostFault(machine, ownCount) }
    const drift = 'seen off, wanted on'
    if (machine.netboot || machine.state === 'rescue') return { kind: 'order', wish: intoNetwork, reason, drift }
    return { kind: 'order', wish: { action: 'on', boot: 'disk' }, reason: 'the power on, for its first boot', drift }
  }
  if (machine.state === 'rescue') return { kind: 'rest' }
  const silentMs = machine.last_signal_at === null ? 0 : now.getTime() - machine.last_signal_at.getTime()
  // After the installation the agent is gone, and the new system says one thing only, at its end.
  const isAgentWanted = machine.state === 'commissioning' || machine.netboot
  const isAgentExpected = machine.last_signal_at !== null && isAgentWanted
  const startingMs = isAgentWanted && !isAgentExpected && own.ended_at !== null ? now.getTime() - own.ended_at.getTime() : 0
  // A loader that asks in the second in which nobody answers ends on the old disk, or nowhere: the next one may find us.
  if (startingMs > agentStartMs && ownCount < agentTries)
    return { kind: 'order', wish: intoNetwork, reason, drift: 'no sign of the agent', frees: 'the boot script' }
  if (startingMs > agentStartMs)
    return {
      kind: 'fail',
      move: 'fail',
      fault: {
        code: 'agent-missing',
        message: `no sign of the agent in ${Math.round(startingMs / 1000)} s since the machine was powered on into the network, and not the first time`,
        hint: 'look at its console: an address by DHCP, a loader by TFTP, then the script, kernel and image by HTTP from this partition',
      },
    }
  if (isAgentExpected && silentMs > agentSilenceMs)
    return {
      kind: 'fail',
      move: 'fail',
      fault: {
        code: 'agent-silent',
        message: `the agent was last heard ${Math.round(silentMs / 1000)} s ago${saidAt(machine)}`,
        hint: 'the machine lost power or network, or hangs: look at its console, then try again',
      },
    }
  // What the agent last said tells more than "the agent".
  const said = machine.last_signal_at === null ? null : machine.waiting_for
  return { kind: 'wait', reason: said ?? waitsFor, againMs: Math.min(lookAgainMs, isAgentExpected ? agentSilenceMs : agentStartMs) }
}

/** An agent that cannot work (no driver, no address, no job) says so on its console and goes off: who was never heard is not known to have lost its power. */
function lostFault(machine: MachineRow, times: number): Omit<Fault, 'since'> {
  if (machine.last_signal_at === null && machine.netboot)
    return {
      code: 'agent-missing',
      message: `the machine was found off ${times} times after it had been powered on into the network, and its agent was never heard`,
      hint: 'an agent that finds no network port, no DHCP server or no job says so on its console and goes off; refusals of this partition are events of the machine (machine.boot-refused, machine.agent-refused)',
    }
  return {
    code: 'power-lost',
    message: `the machine was found off ${times} times${saidAt(machine)}`,
    hint: 'somebody or something takes its power, or the partition refuses its agent (event machine.agent-refused): look at it, then try again',
  }
}

/** What the agent said last that it is at: a machine that a test brings down is down in that test. */
function saidAt({ waiting_for: waitingFor }: MachineRow): string {
  const said = /^the agent: (.*)$/s.exec(waitingFor ?? '')?.[1]
  return said === undefined ? '' : `, at ${said}`
}

/** The power went away after our order had been carried out. */
function isLost(machine: MachineRow, own: PowerOrder): boolean {
  return machine.power === 'off' && machine.power_seen_at !== null && own.ended_at !== null && machine.power_seen_at > own.ended_at
}

function failedOrder(order: PowerOrder): Outcome {
  const fault: Omit<Fault, 'since'> = order.fault ?? { code: 'power-failed', message: `power ${order.action} failed` }
  return {
    kind: 'fail',
    move: 'fail',
    fault: { code: fault.code, message: fault.message, ...(fault.hint !== undefined && { hint: fault.hint }) },
  }
}

/**
 * A machine is given back when its disks are erased and it is seen off: a machine that still runs could still write its disks and answer in its owner's
 * name.
 */
function releasing(facts: Facts): Outcome {
  const { machine } = facts
  if (machine.power_driver === null) return machine.erase === null ? { kind: 'move', move: 'released' } : cannotErase
  if (machine.erase !== null) return viaAgent(facts, 'the agent to erase the disks')
  // The cycle into the agent says nothing of the end.
  const own = facts.own?.action === 'off' ? facts.own : undefined
  if (own === undefined || own.state === 'superseded')
    return { kind: 'order', wish: { action: 'off', boot: null }, reason: 'the power off', drift: 'seen on, wanted off' }
  if (own.state === 'done') return { kind: 'move', move: 'released' }
  if (own.state === 'failed') return failedOrder(own)
  return { kind: 'wait', reason: 'the power off', againMs: lookAgainMs }
}

/** Nothing here can start its agent. */
const cannotErase: Outcome = {
  kind: 'fail',
  move: 'fail',
  fault: {
    code: 'erase-failed',
    message: 'its disks are to be erased, and nothing here can start the machine: it has no power driver',
    hint: 'give it one (`manual`, where a person presses the button) and release it again; or, as an operator, release it with --erase none',
  },
}

function deployed({ machine, own }: Facts): Outcome {
  if (machine.step !== leavingRescue || own !== undefined) return { kind: 'rest' }
  return { kind: 'order', wish: { action: 'cycle', boot: 'disk' }, reason: 'the power cycle back to its disk' }
}

/** States in which nobody uses the machine want it off; what is seen on is switched off, again and again but not in a hurry. */
function keepOff({ machine, order, now }: Facts): Outcome {
  if (machine.power_driver === null || machine.power === 'off') return { kind: 'rest' }
  if (order?.state === 'queued' || order?.state === 'running')
    return { kind: 'wait', reason: `the power ${order.action}`, againMs: lookAgainMs }
  // The monitor looks at a new machine within seconds, and its news wake the engine.
  if (machine.power === 'unknown') return { kind: 'rest' }
  const askedMs = order?.action === 'off' ? now.getTime() - order.asked_at.getTime() : Number.POSITIVE_INFINITY
  if (order?.state === 'failed' && askedMs < retryOffMs)
    return {
      kind: 'wait',
      reason: `the next try to power off (the last one ended with ${order.fault?.code ?? 'a failure'})`,
      againMs: retryOffMs - askedMs,
    }
  return { kind: 'order', wish: { action: 'off', boot: null }, reason: 'the power off', drift: 'seen on, wanted off' }
}
