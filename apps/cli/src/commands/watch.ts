// `muster machine watch`: on a terminal a table that is always right; in a pipe one line for every change.
import type { Client } from '@muster/shared/client'
import type { MachinesListInput } from '@muster/shared/contract/machines'
import { Refusal } from '@muster/shared/errors'
import type { Machine } from '@muster/shared/machine'
import { type Cli, type Format, remark, say } from '../cli.ts'
import { attempt } from '../exit-codes.ts'
import { followEvents, startOf } from '../follow.ts'
import { machineColumns } from '../output/machine-view.ts'
import { exitOf } from '../output/problem.ts'
import { LiveBlock } from '../output/progress.ts'
import { coverageText, ndjsonText } from '../output/show.ts'
import { tableText } from '../output/table.ts'
import { printable } from '../output/text.ts'
import { activityOf } from '../wait.ts'

interface Watch {
  readonly cli: Cli
  readonly client: Client
  readonly format: Format
  readonly id: string | undefined
  readonly filter: MachinesListInput
}

/** A burst of events becomes one look at the server. */
const quietMs = 250

/** Follows until interrupted. */
export async function watchMachines(watch: Watch): Promise<void> {
  const { cli, client, id } = watch
  // The position is taken before the first look: a change in between is seen twice rather than never.
  const after = await attempt('follow machines', startOf(client, undefined))
  const show = isLive(watch) ? liveTable(watch) : changedLines(watch)
  await show()
  const stop = new AbortController()
  const signal = AbortSignal.any([cli.signal, stop.signal])
  let timer: NodeJS.Timeout | undefined
  let failure: unknown
  try {
    for await (const { event } of followEvents({ signal }, client, { after, ...(id !== undefined && { machine: id }) })) {
      if (event.machine === null || timer) continue
      timer = setTimeout(() => {
        timer = undefined
        // A server that is away for a moment is looked at again with the next event; what comes back refused ends the watch.
        show().catch((error: unknown) => {
          if (exitOf(error) === 'unreachable') return
          failure = error
          stop.abort()
        })
      }, quietMs)
    }
  } catch (error) {
    throw failure ?? error
  } finally {
    clearTimeout(timer)
  }
}

/** Whether a table is redrawn in place. */
export function isLive({ cli, format }: Pick<Watch, 'cli' | 'format'>): boolean {
  return cli.stdout.isTTY && (format === 'table' || format === 'wide')
}

/** The machines as they are now: one, or the first of those that match. */
async function look({ client, id, filter }: Watch, limit: number): Promise<{ items: Machine[]; note: string | undefined }> {
  if (id !== undefined) {
    try {
      return { items: [await client.machines.get({ id })], note: undefined }
    } catch (error) {
      if (error instanceof Refusal && error.code === 'not-found') return { items: [], note: `${id} is gone` }
      throw error
    }
  }
  const { items, nextCursor, coverage } = await client.machines.list({ ...filter, limit })
  const notes = [nextCursor === null ? '' : `the first ${items.length}`, coverage.answered < coverage.asked ? coverageText(coverage) : '']
  return { items, note: notes.filter(Boolean).join('; ') || undefined }
}

function liveTable(watch: Watch): () => Promise<void> {
  const { cli, format } = watch
  const block = new LiveBlock(cli.stdout)
  return async () => {
    const { items, note } = await look(watch, Math.max(1, cli.stdout.rows - 4))
    const table = tableText(cli, items, machineColumns(cli.now()), { wide: format === 'wide' }).trimEnd()
    const time = new Date(cli.now()).toISOString().slice(11, 19)
    block.draw([...table.split('\n'), '', `${time}  ${note ? `${note}; ` : ''}Ctrl-C ends`])
  }
}

/** One line per machine whose version changed; what is there at the start comes first. */
function changedLines(watch: Watch): () => Promise<void> {
  const { cli, format } = watch
  const versions = new Map<string, number>()
  const lineOf = (machine: Machine) => {
    if (format === 'json' || format === 'ndjson') return ndjsonText(machine)
    if (format === 'name') return printable(machine.id)
    return printable(
      `${new Date(cli.now()).toISOString()}  ${machine.id}  ${machine.hostname}  ${activityOf(machine)}  power ${machine.power}`,
    )
  }
  return async () => {
    const { items, note } = await look(watch, 1000)
    for (const machine of items) {
      if (versions.get(machine.id) === machine.version) continue
      versions.set(machine.id, machine.version)
      say(cli, lineOf(machine))
    }
    const here = new Set(items.map(machine => machine.id))
    for (const id of versions.keys())
      if (!here.has(id)) {
        versions.delete(id)
        if (format === 'table' || format === 'wide') say(cli, printable(`${new Date(cli.now()).toISOString()}  ${id}  no longer matches`))
      }
    if (note) remark(cli, note)
  }
}
