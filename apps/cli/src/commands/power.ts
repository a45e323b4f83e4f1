// `muster power …`: the power of all machines at a glance, and above all of those that nobody knows it of.
import type { Client } from '@muster/shared/client'
import type { Coverage } from '@muster/shared/contract/call'
import { machines as calls } from '@muster/shared/contract/machines'
import { durationMs } from '@muster/shared/duration'
import { Refusal } from '@muster/shared/errors'
import type { Explanation, Machine } from '@muster/shared/machine'
import type { Command } from 'commander'
import { type Cli, examples, type Fill, formatOf } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt } from '../exit-codes.ts'
import { exitOf } from '../output/problem.ts'
import { type Shape, showList } from '../output/show.ts'
import { ageText } from '../output/text.ts'
import { parseDuration } from '../quantities.ts'
import { addFilters, checked, inputFrom } from '../schema-options.ts'
import { eachAtMost } from './actions.ts'
import { joinCoverage, pagesOf } from './pages.ts'

/** `muster power` with its subcommand. */
export const fillPower: Fill = (command, cli) => {
  examples(command, ['power status --stale', 'power status --partition lon1 --power off'])
  addStatus(command, cli)
}

/** A machine's power as it was last seen. */
export interface Seen extends Pick<Machine, 'id' | 'hostname' | 'partition' | 'power' | 'powerSeenAt' | 'powerDriver'> {
  /** Why it is not known, or what its BMC last failed at; null where all is well. */
  readonly why: string | null
  readonly hint: string | null
}

/** A partition looks at every BMC within a minute, so five minutes are several looks that came to nothing. */
const staleAfter = '5m'

interface StatusOptions {
  readonly stale?: true
  readonly olderThan: string
  readonly [filter: string]: unknown
}

function addStatus(parent: Command, cli: Cli): void {
  const command = parent.command('status').summary('what was last seen of their power')
  command.description(
    'The power of machines as their BMCs showed it last. With --stale only those of which it is not known, or was last seen long ago, and why.',
  )
  command
    .option('--stale', 'only where the power is not known, or was last seen long ago')
    .option('--older-than <duration>', 'what long ago is', parseDuration, staleAfter)
  addFilters(command, calls.list)
  examples(command, [
    'power status --stale',
    'power status --stale --older-than 1h --partition lon1 -o wide',
    'power status --stale -o name | xargs -n1 muster machine explain',
  ])
  command.action(async (options: StatusOptions) => {
    const input = checked(calls.list, inputFrom(calls.list, { ...options, limit: undefined }))
    const { client } = await connect(cli, command)
    const found: Machine[] = []
    let coverage: Coverage | undefined
    const read = (page: { limit: number; cursor?: string }) => attempt('list machines', client.machines.list({ ...input, ...page }))
    for await (const page of pagesOf(read, undefined)) {
      coverage = joinCoverage(coverage, page.coverage)
      found.push(...page.items)
    }
    const limit = { now: cli.now(), olderThanMs: durationMs(options.olderThan) }
    const shown = options.stale ? found.filter(machine => isStale(machine, limit)) : found
    // Only what is stale needs explaining: ten thousand machines that are well must not cost ten thousand calls.
    const items = await eachAtMost(shown, async machine => seenOf(machine, isStale(machine, limit) ? await explain(client, machine) : null))
    showList(cli, formatOf(command), { items, coverage }, shapeOf(limit.now, options.stale === true))
  })
}

/** Whether the power is not known, or was last seen longer ago than said. */
export function isStale(machine: Pick<Machine, 'power' | 'powerSeenAt'>, limit: { now: number; olderThanMs: number }): boolean {
  return machine.power === 'unknown' || machine.powerSeenAt === null || limit.now - Date.parse(machine.powerSeenAt) > limit.olderThanMs
}

type Explained = Pick<Explanation, 'lastFault' | 'powerOrders'> | { readonly kind: 'silent' | 'gone'; readonly text: string }

/** Its explanation, or why there is none: a machine whose partition fell silent, or which was deleted, does not end the list. */
async function explain(client: Client, { id }: Machine): Promise<Explained> {
  try {
    return await client.machines.explain({ id })
  } catch (error) {
    if (exitOf(error) === 'unreachable') return { kind: 'silent', text: (error as Error).message }
    if (error instanceof Refusal && error.code === 'not-found') return { kind: 'gone', text: 'deleted meanwhile' }
    throw error
  }
}

/** What is shown of a machine; `explained` is null where its power is known well enough. */
export function seenOf(machine: Machine, explained: Explained | null): Seen {
  const { id, hostname, partition, power, powerSeenAt, powerDriver } = machine
  return {
    id,
    hostname,
    partition,
    power,
    powerSeenAt,
    powerDriver,
    ...(explained ? reasonOf(machine, explained) : { why: null, hint: null }),
  }
}

/** Why a machine's power is not known: the most telling thing first. */
function reasonOf({ powerDriver, powerSeenAt }: Machine, explained: Explained): { why: string; hint: string | null } {
  if (powerDriver === null)
    return {
      why: 'it has no power driver',
      hint: 'tell how to reach its BMC: muster machine update ID --power-driver ipmi --power-settings FILE',
    }
  if ('kind' in explained) return { why: explained.text, hint: null }
  const { lastFault, powerOrders } = explained
  // A fault of the machine itself, such as a failed deployment, says nothing about its BMC.
  if (lastFault?.code.startsWith('power-')) return { why: `${lastFault.message} (${lastFault.code})`, hint: lastFault.hint ?? null }
  const order = powerOrders[0]
  if (order) return { why: `power ${order.action} is ${order.state}`, hint: null }
  if (powerDriver === 'manual') return { why: 'it is switched by hand', hint: 'give it a power driver where it has a BMC' }
  return {
    why: powerSeenAt === null ? 'it has not been looked at yet' : 'it has not been looked at since',
    hint: 'see whether its partition is well: muster status',
  }
}

function shapeOf(now: number, isForStale: boolean): Shape<Seen> {
  return {
    columns: [
      { title: 'ID', text: ({ id }) => id },
      { title: 'HOSTNAME', text: ({ hostname }) => hostname, least: 8, leaves: 2 },
      { title: 'POWER', text: ({ power }) => power, style: ({ power }) => (power === 'unknown' ? 'red' : undefined) },
      { title: 'SEEN', text: ({ powerSeenAt }) => (powerSeenAt === null ? 'never' : `${ageText(powerSeenAt, now)} ago`), align: 'right' },
      { title: 'DRIVER', text: ({ powerDriver }) => powerDriver ?? 'none', leaves: 3 },
      { title: 'WHY', text: ({ why }) => why ?? '', least: 20, leaves: 1 },
      { title: 'HINT', text: ({ hint }) => hint ?? '', wide: true },
    ],
    name: ({ id }) => id,
    none: isForStale ? 'The power of every machine is known.' : 'No machine matches.',
  }
}
