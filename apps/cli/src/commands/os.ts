// `muster os …`: what can be deployed, and where.
import { operatingSystems as calls, type OperatingSystem } from '@muster/shared/contract/partitions'
import { examples, type Fill, formatOf } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt } from '../exit-codes.ts'
import { type Shape, showList } from '../output/show.ts'

const shape: Shape<OperatingSystem> = {
  columns: [
    { title: 'NAME', text: ({ name }) => name },
    { title: 'ARCH', text: ({ arch }) => arch },
    {
      title: 'AVAILABLE',
      text: ({ available }) => (available ? 'yes' : 'no'),
      style: ({ available }) => (available ? 'green' : undefined),
    },
    { title: 'SUPPORTED', text: ({ supported }) => (supported ? 'yes' : 'no'), wide: true },
    { title: 'TITLE', text: ({ title }) => title, least: 10, leaves: 2 },
    { title: 'PARTITIONS', text: ({ partitions }) => partitions.join(','), least: 10, leaves: 1 },
  ],
  name: ({ name }) => name,
  none: 'Nothing can be deployed anywhere.',
}

/** `muster os` with its subcommands. */
export const fillOs: Fill = (parent, cli) => {
  examples(parent, ['os list'])
  const command = parent.command('list').alias('ls').summary('what can be deployed, and where')
  command.description(`${calls.list.summary}.`)
  examples(command, ['os list', 'os list -o json | jq -r ".items[] | select(.available) | .name"'])
  command.action(async () => {
    const { client } = await connect(cli, command)
    showList(cli, formatOf(command), await attempt('list operating systems', client.operatingSystems.list({})), shape)
  })
}
