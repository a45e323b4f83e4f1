// How a power order is pressed home: a ladder of ever stronger means, with a limit on each: ask the operating system, press the switch, press it
// again, restart the BMC, press once more, then a person. A table, and one pure step through it; the worker only carries out.

export type RungName = 'soft' | 'first' | 'again' | 'restart' | 'last'

export interface Rung {
  readonly name: RungName
  /** `restart`: the BMC itself, not the machine. */
  readonly act: 'soft off' | 'hard off' | 'on' | 'restart'
  /** How long its effect may take to be seen. */
  readonly limitMs: number
}

export interface LadderLimits {
  /** An operating system that shuts down cleanly. */
  readonly softMs: number
  /** A switch that was pressed. */
  readonly changeMs: number
  /** A BMC that starts anew, during which it does not answer. */
  readonly restartMs: number
}

/** A press that a BMC swallowed is repeated after this part of its time. */
const firstPart = 0.4

/** The rungs towards `wanted`. `canRestart`: the driver can restart the BMC. */
export function ladder(wanted: 'on' | 'off', how: 'soft' | 'hard', canRestart: boolean, limits: LadderLimits): Rung[] {
  const press = wanted === 'on' ? 'on' : 'hard off'
  const rungs: Rung[] = []
  if (wanted === 'off' && how === 'soft') rungs.push({ name: 'soft', act: 'soft off', limitMs: limits.softMs })
  rungs.push({ name: 'first', act: press, limitMs: limits.changeMs * firstPart })
  rungs.push({ name: 'again', act: press, limitMs: limits.changeMs * (1 - firstPart) })
  if (canRestart) {
    rungs.push({ name: 'restart', act: 'restart', limitMs: limits.restartMs })
    rungs.push({ name: 'last', act: press, limitMs: limits.changeMs })
  }
  return rungs
}

/** Where a worker that takes over begins: the rung that was written down, else the first. Observing comes before any act, so a rung may be repeated. */
export function startAt(rungs: readonly Rung[], written: RungName | undefined): number {
  const index = rungs.findIndex(({ name }) => name === written)
  return Math.max(0, index)
}
