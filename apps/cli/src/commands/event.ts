// `muster event …`: what happened, from the log, and as it happens.
import { events as calls, type Event } from '@muster/shared/contract/events'
import type { Command } from 'commander'
import { type Cli, examples, type Fill, formatOf, globalsOf, remark, say } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt } from '../exit-codes.ts'
import { followEvents, startOf } from '../follow.ts'
import { ndjsonText, type Shape, showList } from '../output/show.ts'
import { printable } from '../output/text.ts'
import { parseCount } from '../quantities.ts'
import { checked } from '../schema-options.ts'

/** `muster event` with its subcommands. */
export const fillEvent: Fill = (command, cli) => {
  examples(command, ['event tail --machine lon1-4y3h7n', 'event list --since lon1:42'])
  addList(command, cli)
  addTail(command, cli)
}

interface Filter {
  readonly since?: string
  readonly machine?: string
  readonly kind?: string
  readonly limit?: number
}

const eventName = (event: Event) => `${event.partition}:${event.seq}`

const shape: Shape<Event> = {
  columns: [
    { title: 'AT', text: event => event.at },
    { title: 'POSITION', text: eventName, leaves: 2 },
    { title: 'KIND', text: event => event.kind },
    { title: 'MACHINE', text: event => event.machine ?? '', leaves: 1 },
    { title: 'ACTOR', text: event => event.actor, least: 6, leaves: 3 },
    { title: 'DATA', text: dataText, least: 12, leaves: 4 },
  ],
  name: eventName,
  none: 'No events.',
}

/** `from=ready to=reserved`: facts as words. */
function dataText(event: Event): string {
  return Object.entries(event.data)
    .map(([name, value]) => `${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`)
    .join(' ')
}

function addFilters(command: Command): Command {
  return command
    .option('--since <position>', 'behind this position: 42, lon1:42,par2:7, or end')
    .option('--machine <id>', 'of this machine only')
    .option('--kind <kind>', 'of this kind only, such as machine.moved')
}

const filterOf = ({ since, machine, kind }: Filter) => ({
  ...(since !== undefined && { after: since }),
  ...(machine !== undefined && { machine }),
  ...(kind !== undefined && { kind }),
})

function addList(parent: Command, cli: Cli): void {
  const command = parent.command('list').alias('ls').summary('what happened, oldest first')
  command.description(`${calls.list.summary}.`)
  addFilters(command).option('--limit <n>', 'at most so many (100 where left out)', text => parseCount(text, 1))
  examples(command, ['event list --limit 20', 'event list --machine lon1-4y3h7n --kind machine.moved -o json'])
  command.action(async (options: Filter) => {
    const input = checked(calls.list, { ...filterOf(options), ...(options.limit !== undefined && { limit: options.limit }) })
    const { client } = await connect(cli, command)
    const page = await attempt('list events', client.events.list(input))
    showList(cli, formatOf(command), page, shape)
    if (globalsOf(command).verbose) remark(cli, `muster: go on with --since ${page.nextCursor}`)
  })
}

function addTail(parent: Command, cli: Cli): void {
  const command = parent.command('tail').summary('events as they happen')
  command.description(
    'Events as they happen, one a line, until Ctrl-C. A connection that breaks is opened again where it broke: no event is lost.',
  )
  addFilters(command)
  examples(command, ['event tail', 'event tail --machine lon1-4y3h7n -o json', 'event tail --since lon1:42,par2:7'])
  command.action(async (options: Filter) => {
    const { after: _, ...filter } = filterOf(options)
    checked(calls.stream, filterOf(options))
    let position = ''
    const { client } = await connect(cli, command, what =>
      remark(cli, what === 'lost' ? `muster: connection lost; going on from ${position} when it is back` : 'muster: connected again'),
    )
    const format = formatOf(command)
    position = await attempt('follow events', startOf(client, options.since))
    for await (const followed of followEvents(cli, client, { ...filter, after: position })) {
      position = followed.position
      say(cli, lineOf(format, followed.event))
    }
  })
}

function lineOf(format: ReturnType<typeof formatOf>, event: Event): string {
  if (format === 'json' || format === 'ndjson') return ndjsonText(event)
  if (format === 'name') return printable(eventName(event))
  return printable(`${event.at}  ${eventName(event)}  ${event.kind}  ${event.machine ?? '-'}  ${event.actor}  ${dataText(event)}`)
}
