// One action on several machines: a few at a time, one outcome each, and the exit code of the worst.
import { setTimeout as sleep } from 'node:timers/promises'
import type { Client } from '@muster/shared/client'
import { durationMs } from '@muster/shared/duration'
import { Refusal } from '@muster/shared/errors'
import type { Machine } from '@muster/shared/machine'
import type { Command } from 'commander'
import { type Cli, type Format, formatOf, globalsOf, say } from '../cli.ts'
import { attempt, CliError, Exit, type ExitName, worstOf } from '../exit-codes.ts'
import { tellFailure } from '../output/problem.ts'
import { type Progress, progressFor } from '../output/progress.ts'
import { jsonText, ndjsonText } from '../output/show.ts'
import { printable } from '../output/text.ts'
import { type Judge, judgeOf, patienceMs, waitForMachines } from '../wait.ts'

/** Calls in flight at once: enough that a hundred machines take seconds, few enough that one command is no load on a server. */
const parallel = 8

/** Runs `work` over `items`, a few at a time, keeping their order in the result. */
export async function eachAtMost<Item, Result>(
  items: readonly Item[],
  work: (item: Item) => Promise<Result>,
  limit = parallel,
): Promise<Result[]> {
  const results: Result[] = new Array(items.length)
  let next = 0
  const run = async () => {
    while (next < items.length) {
      const index = next++
      results[index] = await work(items[index] as Item)
    }
  }
  await Promise.all(Array.from({ length: Math.min(limit, items.length) }, run))
  return results
}

/** The ids without repetition: asking twice for the same thing would refuse the second. */
export function distinct(ids: readonly string[]): string[] {
  const all = [...new Set(ids)]
  if (all.length === 0) throw new CliError('usage', 'no machine is named', { hint: 'give one or more ids such as lon1-4y3h7n' })
  return all
}

export interface Action {
  readonly cli: Cli
  readonly command: Command
  readonly client: Client
  /** As in `deploy lon1-4y3h7n`. */
  readonly verb: string
  readonly ids: readonly string[]
  /** Asks for it; null where the machine is gone afterwards. */
  readonly act: (id: string) => Promise<Machine | null>
  /** `--wait`: a duration, true for the default, undefined for not at all. */
  readonly wait?: string | true | undefined
  /** What is waited for, where the life cycle does not say it. */
  readonly judge?: Judge
  /** The line of a machine that was asked; its state where left out. */
  readonly text?: (machine: Machine) => string
}

/** Acts on all machines, tells each outcome, waits where asked to, and throws {@link Exit} with the worst ending where any failed. */
export async function actOnMachines(action: Action): Promise<void> {
  const { cli, command, verb, ids, wait } = action
  const format = formatOf(command)
  const verbose = globalsOf(command).verbose === true
  const endings: ExitName[] = []
  const asked: { id: string; machine: Machine | null }[] = []
  const progress = progressFor(cli)
  const end = typeof wait === 'string' ? cli.now() + durationMs(wait) : undefined
  await eachAtMost(ids, async id => {
    try {
      const machine = await attempt(`${verb} ${id}`, wait === undefined ? action.act(id) : askUntilPossible(action, id, { progress, end }))
      asked.push({ id, machine })
      if (wait === undefined && format !== 'json') say(cli, outcomeLine(format, { id, machine }, action.text))
    } catch (error) {
      if (cli.signal.aborted) throw error
      endings.push(tellFailure(cli, error, { format, verbose }))
    }
  })
  const machines = asked.flatMap(({ machine }) => (machine ? [machine] : []))
  const seen = wait === undefined ? machines : await waitForAll(action, machines, { progress, end, endings })
  if (format === 'json' && machines.length > 0) cli.stdout.write(jsonText(ids.length === 1 ? seen[0] : { items: seen }))
  const worst = worstOf(endings)
  if (worst !== 'ok') throw new Exit(worst)
}

/** How long what is asked for is waited for that a server does not queue, where `--wait` names no time: an image may be large, and its source slow. */
const usualPatienceMs = 3_600_000
const askAgainMs = 2_000

/** Asks, and asks again while the server says that it cannot be done yet: nothing is queued there. Says what it waits for. */
async function askUntilPossible(
  { cli, act }: Action,
  id: string,
  { progress, end = cli.now() + usualPatienceMs }: { progress: Progress; end?: number | undefined },
): Promise<Machine | null> {
  for (;;) {
    try {
      return await act(id)
    } catch (error) {
      const leftMs = end - cli.now()
      if (!(error instanceof Refusal && error.code === 'not-yet-installable') || leftMs <= 0) throw error
      progress.update(id, `waiting: ${error.message}`)
      await sleep(Math.min(askAgainMs * (0.75 + Math.random() / 2), leftMs), undefined, { signal: cli.signal })
    }
  }
}

interface Waiting {
  readonly progress: Progress
  /** Epoch milliseconds; as long as the life cycle lets it last where left out. */
  readonly end: number | undefined
  readonly endings: ExitName[]
}

/** Waits for all; adds how each ended to `endings`, and returns the machines as they were seen last. */
async function waitForAll(action: Action, machines: readonly Machine[], { progress, end, endings }: Waiting): Promise<Machine[]> {
  const { cli, client, command } = action
  const format = formatOf(command)
  const awaited = await waitForMachines({
    cli,
    client,
    progress,
    machines: machines.map(machine => ({
      machine,
      judge: action.judge ?? judgeOf(machine.state),
      timeoutMs: end === undefined ? patienceMs(machine.state) : end - cli.now(),
    })),
  })
  for (const { exit } of awaited) endings.push(exit)
  if (format !== 'json')
    for (const { id, machine, exit } of awaited) if (exit === 'ok') say(cli, outcomeLine(format, { id, machine }, action.text))
  return awaited.map(({ machine }) => machine)
}

function outcomeLine(
  format: Format,
  { id, machine }: { id: string; machine: Machine | null },
  text?: (machine: Machine) => string,
): string {
  if (format === 'name') return printable(id)
  if (format === 'ndjson') return ndjsonText(machine ?? { id, deleted: true })
  return printable(`${id}  ${machine ? (text?.(machine) ?? machine.state) : 'deleted'}`)
}
