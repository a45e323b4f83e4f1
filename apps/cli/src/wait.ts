// Waiting until machines have reached the end of what was asked of them. What that end is, is read from the life cycle's table.
import { setTimeout as sleep } from 'node:timers/promises'
import type { Client } from '@muster/shared/client'
import { durationMs, durationPattern } from '@muster/shared/duration'
import { Refusal } from '@muster/shared/errors'
import { machineIdPattern } from '@muster/shared/ids'
import { deadlineMsOf, lifeCycle, type State } from '@muster/shared/life-cycle'
import type { Fault, Machine } from '@muster/shared/machine'
import type { Cli } from './cli.ts'
import { CliError, type ExitName } from './exit-codes.ts'
import { exitOf } from './output/problem.ts'
import type { Progress } from './output/progress.ts'

/** How a machine stands against what is waited for. */
export type Verdict =
  | { readonly kind: 'waiting'; readonly text: string }
  | { readonly kind: 'done'; readonly text: string }
  | { readonly kind: 'failed'; readonly text: string; readonly fault: Fault | null }

export type Judge = (machine: Machine) => Verdict | Promise<Verdict>

export interface Awaited {
  readonly id: string
  readonly exit: ExitName
  /** As it was last seen. */
  readonly machine: Machine
}

/** Where a machine may come out of a transient state: by the engine's reports well, by failure and deadline badly. */
function endsOf(state: State): { good: Set<State>; bad: Set<State> } {
  const good = new Set<State>()
  const bad = new Set<State>()
  for (const [name, move] of Object.entries(lifeCycle[state].moves)) {
    if (move.to === 'origin') continue
    // `abort` is a person's move: the work that is waited for will not be done.
    if (move.by === 'report' && name !== 'fail') good.add(move.to)
    else bad.add(move.to)
  }
  return { good, bad }
}

/** What a machine is doing, in a few words. */
export function activityOf(machine: Machine): string {
  const progress = machine.progress === null ? '' : ` ${Math.round(machine.progress)} %`
  const waitingFor = machine.waitingFor ? `: ${machine.waitingFor}` : ''
  return `${machine.state}${progress}${waitingFor}`
}

/**
 * Judges a machine that was in `state` right after its action. A transient state is waited out. A lasting one is reached at once, except
 * that one which needs the power on (rescue) has done its work only when it is.
 */
export function judgeOf(state: State): Judge {
  const isTransient = Object.values(lifeCycle[state].moves).some(move => move.by === 'report')
  const { good, bad } = endsOf(state)
  return machine => {
    const failed = (text: string): Verdict => ({ kind: 'failed', text, fault: machine.fault })
    if (machine.state === state) {
      if (!isTransient && lifeCycle[state].wantedPower !== 'on') return { kind: 'done', text: state }
      if (!isTransient && machine.power === 'on') return { kind: 'done', text: `${state}, power on` }
      if (!isTransient && machine.fault) return failed(state)
      return { kind: 'waiting', text: activityOf(machine) }
    }
    if (bad.has(machine.state)) return failed(machine.state)
    if (good.has(machine.state) || !isTransient) return { kind: 'done', text: machine.state }
    // Between two looks it reached its end and somebody took it further: a released machine is soon reserved again. A failed
    // or broken machine was not taken further.
    const leftFrom = [...good].some(end => Object.values(lifeCycle[end].moves).some(move => move.to === machine.state))
    return leftFrom && machine.state !== 'broken' ? { kind: 'done', text: machine.state } : failed(machine.state)
  }
}

/** Judges a power order by what the BMC shows once no order is left. */
export function judgePower(client: Client, action: 'on' | 'off' | 'cycle'): Judge {
  const wanted = action === 'off' ? 'off' : 'on'
  return async machine => {
    const { powerOrders, power, lastFault, waitingFor } = await client.machines.explain({ id: machine.id })
    const order = powerOrders[0]
    if (order) return { kind: 'waiting', text: `power ${order.action} ${order.state}${waitingFor ? `: ${waitingFor}` : ''}` }
    if (power === wanted) return { kind: 'done', text: `power ${power}` }
    if (lastFault) return { kind: 'failed', text: `power ${power}`, fault: lastFault }
    return { kind: 'waiting', text: `power ${power}, not yet ${wanted}` }
  }
}

/** `--wait` without a duration: as long as the table lets the state last, and a little for the move out of it. */
export function patienceMs(state: State): number {
  return (deadlineMsOf(state) ?? durationMs('10m')) + durationMs('2m')
}

/**
 * `--wait` takes an optional duration, so `--wait lon1-4y3h7n` hands it the id that follows. Sorts the two out.
 */
export function splitWait(wait: string | true | undefined, ids: readonly string[]): { wait: string | true | undefined; ids: string[] } {
  if (typeof wait !== 'string' || durationPattern.test(wait)) return { wait, ids: [...ids] }
  if (machineIdPattern.test(wait)) return { wait: true, ids: [wait, ...ids] }
  throw new CliError('usage', `--wait: "${wait}" is not a duration such as 30s or 20m`)
}

/**
 * Looks at each machine until `judge` is done with it, or `timeoutMs` has passed. Says how it goes on `progress`. A server that is away for
 * a moment is waited for; a machine that is gone, or a token that may no longer look, is not.
 */
export async function waitForMachines(input: {
  cli: Cli
  client: Client
  progress: Progress
  machines: readonly { machine: Machine; judge: Judge; timeoutMs: number }[]
}): Promise<Awaited[]> {
  const { cli, client, progress, machines } = input
  // At most about 20 looks a second however many machines there are; one machine is looked at every half second at first.
  const slowestMs = Math.max(2000, machines.length * 50)
  return Promise.all(
    machines.map(async ({ machine: first, judge, timeoutMs }) => {
      const { id } = first
      const end = cli.now() + timeoutMs
      let machine: Machine | undefined = first
      let last = first
      for (let pauseMs = Math.max(500, machines.length * 50); ; pauseMs = Math.min(slowestMs, pauseMs * 1.3)) {
        try {
          if (machine === undefined) machine = await client.machines.get({ id })
          last = machine
          const verdict = await judge(machine)
          if (verdict.kind !== 'waiting') {
            progress.end(id, verdict.kind, verdict.kind === 'failed' ? failureText(verdict) : verdict.text)
            return { id, machine, exit: verdict.kind === 'done' ? 'ok' : 'failed-state' }
          }
          progress.update(id, verdict.text)
        } catch (error) {
          const ended = endedBy(error)
          if (ended) {
            progress.end(id, 'failed', ended.text)
            return { id, machine: last, exit: ended.exit }
          }
          progress.update(id, `${last.state} (${(error as Error).message})`)
        }
        machine = undefined
        const leftMs = end - cli.now()
        if (leftMs <= 0) {
          progress.end(id, 'failed', `still ${activityOf(last)}; stopped waiting`)
          return { id, machine: last, exit: 'timed-out' }
        }
        await sleep(Math.min(pauseMs, leftMs), undefined, { signal: cli.signal })
      }
    }),
  )
}

/** The ending where waiting will not mend it, undefined where it may. Throws on what is neither an answer nor a lack of one. */
function endedBy(error: unknown): { exit: ExitName; text: string } | undefined {
  const exit = exitOf(error)
  if (exit === 'unreachable' || exit === 'timed-out') return undefined
  if (error instanceof Refusal) return { exit, text: `${error.code}: ${error.message}` }
  throw error
}

function failureText({ text, fault }: Extract<Verdict, { kind: 'failed' }>): string {
  if (!fault) return text
  return `${text}: ${fault.message} (${fault.code})${fault.hint ? ` · hint: ${fault.hint}` : ''}`
}
