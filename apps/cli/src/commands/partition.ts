// `muster partition …` and `muster status`: is everybody there, and is all well?
import { partitions as calls, type PartitionStatus } from '@muster/shared/contract/partitions'
import type { Command } from 'commander'
import { type Cli, examples, type Fill, formatOf } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt } from '../exit-codes.ts'
import { countsText } from '../output/machine-view.ts'
import { coverageText, type Shape, showList, showOne } from '../output/show.ts'
import { fieldsText } from '../output/table.ts'
import { ageText } from '../output/text.ts'
import { checked } from '../schema-options.ts'
import { addEnrolment } from './enrolment.ts'

/** `muster partition` with its subcommands. */
export const fillPartition: Fill = (command, cli) => {
  examples(command, ['partition list', 'partition status lon1', 'partition accept par3 --os debian/12'])
  addList(command, cli)
  addStatus(command, cli)
  addEnrolment(command, cli)
}

const styles = { ready: 'green', degraded: 'yellow', silent: 'red' } as const
const total = ({ machines }: PartitionStatus) => Object.values(machines).reduce((sum, count) => sum + count, 0)

const shape: Shape<PartitionStatus> = {
  columns: [
    { title: 'NAME', text: ({ name }) => name },
    { title: 'STATUS', text: ({ status }) => status, style: ({ status }) => styles[status] },
    { title: 'MACHINES', text: partition => String(total(partition)), align: 'right' },
    { title: 'READY', text: ({ machines }) => String(machines.ready ?? 0), align: 'right', leaves: 5 },
    { title: 'FAULTY', text: ({ faulty }) => String(faulty), align: 'right', leaves: 3 },
    { title: 'OVERDUE', text: ({ overdue }) => String(overdue), align: 'right', leaves: 4 },
    { title: 'REPLICAS', text: ({ replicas }) => String(replicas.length), align: 'right', leaves: 6 },
    { title: 'VERSION', text: ({ version }) => version ?? '', leaves: 7 },
    { title: 'URL', text: ({ url }) => url ?? '', wide: true },
    { title: 'PROBLEMS', text: ({ problems }) => problems.join('; '), least: 12, leaves: 8 },
  ],
  name: ({ name }) => name,
  none: 'There are no partitions.',
}

function partitionText(cli: Cli, partition: PartitionStatus): string {
  return fieldsText(cli, [
    ['Name', partition.name],
    ['Status', partition.status],
    ['URL', partition.url],
    ['Version', partition.version],
    ['Machines', `${total(partition)}${total(partition) > 0 ? `: ${countsText(partition.machines)}` : ''}`],
    ['Faulty', partition.faulty],
    ['Overdue', partition.overdue],
    ...partition.replicas.map(
      replica =>
        [
          'Replica',
          `${replica.name}, version ${replica.version}, epoch ${replica.epoch}, seen ${ageText(replica.seenAt, cli.now())} ago`,
        ] as const,
    ),
    ...(partition.rules ?? []).map(
      ({ rule, value, from }) => ['Rule', `${rule}: ${value}, ${from === 'document' ? 'by its document' : 'by its server'}`] as const,
    ),
    ...(partition.dhcp ?? []).map(range => ['DHCP', dhcpText(range)] as const),
    ['Last event', partition.lastSeq],
    ...(partition.fetching ?? []).map(
      ({ name, os, arch, bytes }) => ['Fetching', `${name} (${os}, ${arch}): ${(bytes / 2 ** 20).toFixed(0)} MiB so far`] as const,
    ),
    ...partition.problems.map(problem => ['Problem', problem] as const),
    ...(partition.weaknesses ?? []).map(weakness => ['Weakness', weakness] as const),
  ])
}

function dhcpText({ from, to, subnet, overruledBy }: NonNullable<PartitionStatus['dhcp']>[number]): string {
  if (overruledBy !== null) return `${from}-${to} of MUSTER_DHCP_RANGES does not count: subnet ${overruledBy} has dynamic ranges`
  return `${from}-${to}, by ${subnet === null ? 'MUSTER_DHCP_RANGES' : `subnet ${subnet}`}`
}

function addList(parent: Command, cli: Cli): void {
  const command = parent.command('list').alias('ls').summary('list partitions, silent ones too')
  command.description(`${calls.list.summary}.`)
  examples(command, ['partition list', 'partition list -o wide'])
  command.action(async () => {
    const { client } = await connect(cli, command)
    const page = await attempt('list partitions', client.partitions.list({}))
    showList(cli, formatOf(command), page, shape)
  })
}

function addStatus(parent: Command, cli: Cli): void {
  const command = parent
    .command('status')
    .summary('one partition, asked now; all of them without a name')
    .argument('[name]', 'name of a partition')
  command.description('One partition, asked now; without a name each of them in full.')
  examples(command, ['partition status lon1', 'partition status -o json'])
  command.action(async (name: string | undefined) => {
    const input = name === undefined ? undefined : checked(calls.get, { name })
    const { client } = await connect(cli, command)
    const format = formatOf(command)
    if (input) {
      const partition = await attempt(`get partition ${name}`, client.partitions.get(input))
      return showOne(cli, format, partition, { name: one => one.name, text: one => partitionText(cli, one) })
    }
    const page = await attempt('list partitions', client.partitions.list({}))
    if (format === 'table') cli.stdout.write(page.items.map(item => partitionText(cli, item)).join('\n'))
    else showList(cli, format, page, shape)
  })
}

/** `muster status`. */
export const fillStatus: Fill = (command, cli) => {
  command.description(`${calls.status.summary}: how many machines are in each state, and what is wrong.`)
  examples(command, ['status', 'status -o json'])
  command.action(async () => {
    const { client, url } = await connect(cli, command)
    const status = await attempt('get the status', client.partitions.status({}))
    showOne(cli, formatOf(command), status, {
      name: () => url,
      text: ({ machines, overdue, faulty, problems, coverage }) =>
        fieldsText(cli, [
          ['Server', url],
          ['Machines', countsText(machines) || 'none'],
          ['Faulty', faulty],
          ['Overdue', overdue],
          ['Partitions', coverageText(coverage)],
          ...problems.map(({ partition, problem }) => ['Problem', `${partition}: ${problem}`] as const),
        ]),
    })
  })
}
