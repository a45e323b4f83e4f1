// `muster script …`: which scripts commissioning and tests can run, and where.
import { scripts as calls } from '@muster/shared/contract/scripts'
import type { ScriptEntry } from '@muster/shared/scripts'
import { examples, type Fill, formatOf } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt } from '../exit-codes.ts'
import { type Shape, showList } from '../output/show.ts'

const shape: Shape<ScriptEntry> = {
  columns: [
    { title: 'NAME', text: ({ name }) => name },
    { title: 'KIND', text: ({ kind }) => kind },
    { title: 'RUNS ON', text: ({ on }) => (on === 'machine' ? 'the machine' : `each ${on}`) },
    { title: 'BY DEFAULT', text: ({ default: usual }) => (usual ? 'yes' : 'no') },
    { title: 'TIMEOUT', text: ({ timeout }) => timeout, align: 'right' },
    { title: 'FROM', text: ({ source }) => source, wide: true },
    { title: 'ONLY', text: ({ only }) => onlyText(only), wide: true },
    { title: 'PARAMETERS', text: ({ parameters }) => parametersText(parameters), wide: true },
    { title: 'TITLE', text: ({ title }) => title, least: 10, leaves: 2 },
    { title: 'PARTITIONS', text: ({ partitions }) => partitions.join(','), least: 10, leaves: 1 },
  ],
  name: ({ name }) => name,
  none: 'There are no scripts anywhere.',
}

const onlyText = ({ vendor, diskKinds }: ScriptEntry['only']) =>
  [...(vendor === undefined ? [] : [vendor]), ...(diskKinds ?? [])].join(', ') || '-'

const parametersText = (parameters: ScriptEntry['parameters']) =>
  Object.entries(parameters)
    .map(([name, parameter]) => `${name}=${parameter.default}`)
    .join(' ') || '-'

/** `muster script` with its subcommands. */
export const fillScript: Fill = (parent, cli) => {
  examples(parent, ['script list'])
  const command = parent.command('list').alias('ls').summary('what commissioning and tests can run, and where')
  command.description(`${calls.list.summary}. Their parameters are in -o wide, and what these mean in -o json.`)
  examples(command, ['script list', 'script list -o json | jq ".items[] | {name, parameters}"'])
  command.action(async () => {
    const { client } = await connect(cli, command)
    showList(cli, formatOf(command), await attempt('list scripts', client.scripts.list({})), shape)
  })
}
