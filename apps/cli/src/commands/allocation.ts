// `muster allocation …`: what one has, and giving it back.
import { type Allocation, allocations as calls } from '@muster/shared/contract/allocations'
import type { Coverage } from '@muster/shared/contract/call'
import { releaseErase } from '@muster/shared/contract/machines'
import { type ErasePolicy, erasePolicies } from '@muster/shared/machine'
import { type Command, Option } from 'commander'
import { type Cli, examples, type Fill, formatOf, globalsOf, remark } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt, Exit, type ExitName, worstOf } from '../exit-codes.ts'
import { machineColumns } from '../output/machine-view.ts'
import { tellFailure } from '../output/problem.ts'
import { ndjsonText, remarkCoverage, type Shape, showList, showOne } from '../output/show.ts'
import { fieldsText, tableText } from '../output/table.ts'
import { ageText, printable, timeText } from '../output/text.ts'
import { parseCount } from '../quantities.ts'
import { checked, fieldsOf, inputFrom, optionsOf } from '../schema-options.ts'
import { distinct, eachAtMost } from './actions.ts'
import { joinCoverage, pagesOf } from './pages.ts'

const anId = 'a-4y3h7nqk2c5d8f6g'

/** `muster allocation` with its subcommands. */
export const fillAllocation: Fill = (command, cli) => {
  examples(command, ['allocation list', `allocation release ${anId}`])
  addList(command, cli)
  addGet(command, cli)
  addRelease(command, cli)
}

const shape = (now: number): Shape<Allocation> => ({
  columns: [
    { title: 'ID', text: allocation => allocation.id ?? '' },
    { title: 'STATE', text: allocation => allocation.state },
    { title: 'OWNER', text: allocation => allocation.owner, least: 6, leaves: 2 },
    { title: 'COUNT', text: allocation => String(allocation.count), align: 'right', leaves: 4 },
    { title: 'MACHINES', text: allocation => allocation.machines.map(({ id }) => id).join(','), least: 12, leaves: 5 },
    { title: 'AGE', text: allocation => ageText(allocation.createdAt, now), align: 'right', leaves: 3 },
    { title: 'NOTE', text: allocation => allocation.note, least: 8, leaves: 6 },
  ],
  name: allocation => allocation.id ?? '',
  none: 'No allocation matches.',
})

function allocationText(cli: Cli, allocation: Allocation): string {
  const fields = fieldsText(cli, [
    ['Id', allocation.id],
    ['State', allocation.state],
    ['Owner', allocation.owner],
    ['Strategy', allocation.strategy],
    ['Count', allocation.count],
    ['Created', timeText(allocation.createdAt, cli.now())],
    ['Note', allocation.note],
  ])
  return allocation.machines.length > 0 ? `${fields}\n${tableText(cli, allocation.machines, machineColumns(cli.now()))}` : fields
}

function addList(parent: Command, cli: Cli): void {
  const command = parent.command('list').alias('ls').summary('list allocations')
  command.description(`${calls.list.summary}.`)
  for (const [name, schema] of Object.entries(fieldsOf(calls.list)))
    if (name !== 'limit' && name !== 'cursor') for (const option of optionsOf(name, schema)) command.addOption(option)
  command
    .option('--limit <n>', 'at most so many (100 where left out)', text => parseCount(text, 1))
    .option('--all', 'page through all of them')
  examples(command, ['allocation list --state confirmed', 'allocation list --all --owner ci -o name'])
  command.action(async (options: { limit?: number; all?: true }) => {
    const input = checked(calls.list, inputFrom(calls.list, { ...options, limit: undefined }))
    const { client } = await connect(cli, command)
    const format = formatOf(command)
    const items: Allocation[] = []
    let coverage: Coverage | undefined
    let nextCursor: string | null = null
    const read = (page: { limit: number; cursor?: string }) => attempt('list allocations', client.allocations.list({ ...input, ...page }))
    for await (const page of pagesOf(read, options.all ? undefined : (options.limit ?? 100))) {
      coverage = joinCoverage(coverage, page.coverage)
      nextCursor = page.nextCursor
      if (format === 'ndjson') for (const item of page.items) cli.stdout.write(ndjsonText(item))
      else items.push(...page.items)
    }
    if (format === 'ndjson') remarkCoverage(cli, coverage)
    else showList(cli, format, { items, ...{ nextCursor }, coverage }, shape(cli.now()))
    if (nextCursor !== null && format !== 'json') remark(cli, 'There are more: give --all or a higher --limit.')
  })
}

function addGet(parent: Command, cli: Cli): void {
  const command = parent.command('get').alias('show').summary('one allocation and its machines').argument('<id>', 'id of an allocation')
  command.description(`${calls.get.summary} and its machines.`)
  examples(command, [`allocation get ${anId}`])
  command.action(async (id: string) => {
    const input = checked(calls.get, { id })
    const { client } = await connect(cli, command)
    const found = await attempt(`get ${id}`, client.allocations.get(input))
    showOne(cli, formatOf(command), found, { name: one => one.id ?? id, text: one => allocationText(cli, one) })
    if (formatOf(command) !== 'json') remarkCoverage(cli, found.coverage)
  })
}

function addRelease(parent: Command, cli: Cli): void {
  const command = parent.command('release').summary('give all machines of allocations back').argument('<id...>', 'ids of allocations')
  command.description(`${calls.release.summary}. To give single machines back: muster machine release ID.`)
  examples(command, [`allocation release ${anId}`, 'allocation list --owner ci -o name | xargs muster allocation release'])
  command.addOption(new Option('--erase <how>', releaseErase.description).choices([...erasePolicies]))
  command.action(async (given: string[], options: { erase?: ErasePolicy }) => {
    const inputs = distinct(given).map(id => checked(calls.release, { id, ...options }))
    const { client } = await connect(cli, command)
    const format = formatOf(command)
    const endings = await eachAtMost(inputs, async (input): Promise<ExitName> => {
      try {
        const released = await attempt(`release ${input.id}`, client.allocations.release(input))
        showOne(cli, format, released, {
          name: ({ id }) => id ?? input.id,
          text: ({ machines }) => `${input.id}  releasing ${printable(machines.map(({ id }) => id).join(', '))}\n`,
        })
        return 'ok'
      } catch (error) {
        if (cli.signal.aborted) throw error
        return tellFailure(cli, error, { format, verbose: globalsOf(command).verbose === true })
      }
    })
    const worst = worstOf(endings)
    if (worst !== 'ok') throw new Exit(worst)
  })
}
