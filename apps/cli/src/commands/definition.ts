// `muster machine start` and `stop`: for who keeps the machines elsewhere and says all of one with each order.
import type { CallAnswer } from '@muster/shared/contract/contract'
import { machines as calls } from '@muster/shared/contract/machines'
import { type Command, Option } from 'commander'
import { type Cli, examples, formatOf } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt, Exit } from '../exit-codes.ts'
import { showOne } from '../output/show.ts'
import { printable } from '../output/text.ts'
import { parseDuration } from '../quantities.ts'
import { checked } from '../schema-options.ts'
import { readDocument } from './network.ts'

interface Flags {
  readonly file: string
  readonly partition?: string
  readonly wait?: string
}

const aDefinition = `
The file, YAML or JSON:

  hostname: web1
  interfaces: [{ mac: "52:54:00:12:34:56" }]
  powerDriver: ipmi
  powerSettings: { address: 10.0.3.9, user: admin, password: … }
  pool: web
`

/** Adds both commands. */
export function addDefinition(parent: Command, cli: Cli): void {
  const start = withFlags(parent.command('start').summary('switch one on by its whole definition'))
  start
    .description(`${calls.start.summary}. ${calls.start.description}`)
    .option('--cycle', 'off and on again')
    .addOption(new Option('--boot <device>', 'what the next boot is from').choices(['network', 'disk']))
  examples(start, ['machine start --file web1.yaml --partition lon1', 'machine start --file web1.yaml --boot network --wait 2m'])
  start.action(async (flags: Flags & { cycle?: true; boot?: string }) => {
    const { boot, cycle } = flags
    const input = checked(calls.start, {
      ...(await said(cli, flags)),
      ...(cycle && { action: 'cycle' }),
      ...(boot !== undefined && { boot }),
    })
    const { client } = await connect(cli, start)
    tell(cli, start, await attempt('start a machine', client.machines.start(input)))
  })

  const stop = withFlags(parent.command('stop').summary('switch one off by its whole definition'))
  stop.description(`${calls.stop.summary}. ${calls.stop.description}`).option('--soft', 'ask the operating system first')
  examples(stop, ['machine stop --file web1.yaml --partition lon1 --soft'])
  stop.action(async (flags: Flags & { soft?: true }) => {
    const input = checked(calls.stop, { ...(await said(cli, flags)), ...(flags.soft && { how: 'soft' }) })
    const { client } = await connect(cli, stop)
    tell(cli, stop, await attempt('stop a machine', client.machines.stop(input)))
  })
}

function withFlags(command: Command): Command {
  return command
    .requiredOption('--file <file>', 'the definition; "-" reads it from the standard input')
    .option('--partition <name>', 'the partition that it is behind; needed at a front')
    .option('--wait <duration>', 'wait until the order has ended', parseDuration)
    .addHelpText('after', aDefinition)
}

async function said(cli: Cli, { file, partition, wait }: Flags): Promise<Record<string, unknown>> {
  const definition = await readDocument(cli, file, 'definition')
  return { definition, ...(partition !== undefined && { partition }), ...(wait !== undefined && { wait }) }
}

function tell(cli: Cli, command: Command, answer: CallAnswer<'machines.start'>): void {
  showOne(cli, formatOf(command), answer, {
    name: ({ id }) => id,
    text: ({ id, hostname, outcome, order }) =>
      `${printable(`${id}  ${hostname}  ${outcome}, power ${order.action} ${order.state}${order.fault ? `: ${order.fault.message}` : ''}`)}\n`,
  })
  if (answer.order.state === 'failed') throw new Exit('failed-state')
}
