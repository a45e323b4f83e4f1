// `muster partition token|pending|accept|refuse|retire`: how partitions become part of the federation, and leave it.
import { config as configCalls } from '@muster/shared/contract/config'
import { enrolment as calls, type PendingPartition } from '@muster/shared/contract/enrolment'
import { durationMs } from '@muster/shared/duration'
import { partitionSettings } from '@muster/shared/global/documents'
import { randomText } from '@muster/shared/ids'
import type { Command } from 'commander'
import { type Cli, examples, formatOf, remark } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt, CliError } from '../exit-codes.ts'
import { expiry, newToken } from '../new-token.ts'
import { type Shape, showList, showOne } from '../output/show.ts'
import { ageText } from '../output/text.ts'
import { collect } from '../quantities.ts'
import { checked } from '../schema-options.ts'
import { differenceText, dryRunText } from './config.ts'
import { readDocument } from './network.ts'

export function addEnrolment(parent: Command, cli: Cli): void {
  addToken(parent, cli)
  addPending(parent, cli)
  addAccept(parent, cli)
  addRefuse(parent, cli)
  addRetire(parent, cli)
}

function addToken(parent: Command, cli: Cli): void {
  const group = parent.command('token').summary('tokens with which partitions may ask to take part')
  group.description('Join tokens: with one, one partition server may ask to become part of the federation.')
  examples(group, ['partition token create --expires 24h'])
  const command = group.command('create').summary('make a join token')
  command
    .description(
      'Makes a join token and prints it, once, for MUSTER_JOIN_TOKEN_FILE of the new partition. The federation gets its hash only.',
    )
    .option('--name <partition>', 'the only name it may ask under')
    .option('--expires <duration>', 'how long it is good for', expiry({ duration: '30d', words: 'thirty days' }, '24h'), durationMs('24h'))
  examples(command, ['partition token create > join.token', 'partition token create --name par3 --expires 2h'])
  command.action(async ({ name, expires }: { name?: string; expires: number }) => {
    const { token, ...made } = newToken(cli, expires)
    const id = `j-${randomText(12)}`
    const document = { ...made, ...(name !== undefined && { partition: name }) }
    const input = checked(configCalls.change, { put: [{ kind: 'join', name: id, document }], note: `join token ${id} created` })
    const { client } = await connect(cli, command)
    await attempt('create a join token', client.config.change(input))
    showOne(cli, formatOf(command), { id, token, ...document, sha256: undefined }, { name: () => id, text: () => `${token}\n` })
    remark(cli, `join token ${id}, good until ${document.expiresAt.slice(0, 16)}Z for one partition; it is shown this once`)
  })
}

const pendingShape = (cli: Cli): Shape<PendingPartition> => ({
  columns: [
    { title: 'NAME', text: ({ name }) => name },
    { title: 'KEY', text: ({ natsKey }) => natsKey },
    { title: 'FROM', text: ({ from }) => from },
    { title: 'URL', text: ({ url }) => url, leaves: 5 },
    { title: 'VERSION', text: ({ version }) => version, leaves: 6 },
    { title: 'ASKED', text: ({ askedAt }) => `${ageText(askedAt, cli.now())} ago` },
    { title: 'SEEN', text: ({ seenAt }) => `${ageText(seenAt, cli.now())} ago`, wide: true },
    { title: 'CAN INSTALL', text: ({ operatingSystems }) => operatingSystems.join(' '), least: 8, leaves: 7 },
    { title: 'REMARK', text: ({ remark: text }) => text, least: 12, style: () => 'yellow' },
  ],
  name: ({ name }) => name,
  none: 'No partition waits to be accepted.',
})

function addPending(parent: Command, cli: Cli): void {
  const command = parent.command('pending').summary('partitions that wait to be accepted')
  command.description(`${calls.list.summary}. Compare the key with the one in the log of the new partition.`)
  examples(command, ['partition pending', 'partition pending -o json'])
  command.action(async () => {
    const { client } = await connect(cli, command)
    showList(cli, formatOf(command), await attempt('list partitions that wait', client.enrolment.list()), pendingShape(cli))
  })
}

interface AcceptOptions {
  readonly os?: string[]
  readonly noOs?: true
  readonly title?: string
  readonly key?: string
  readonly file?: string
  readonly dryRun?: true
}

const aSettingsFile = `
The file, YAML or JSON; what it leaves out is for the partition's own server to say:

  erase: full                 # or quick, none
  enlisted: commission        # or: keep as new
  enlistedMost: 200
  subnets:
    servers:
      cidr: 10.0.0.0/24
      vlan: 40
      gateway: 10.0.0.1
      nameservers: [10.0.0.2]
      reserved: [{ from: 10.0.0.100, to: 10.0.0.199, note: dhcp }]
`

function addAccept(parent: Command, cli: Cli): void {
  const command = parent.command('accept').summary('accept a partition').argument('<name>', 'its name, as `partition pending` shows it')
  command
    .description(`${calls.accept.summary}. Nothing is selected by itself: name each operating system, or say --no-os.`)
    .option('--os <name>', 'an operating system that it may install; may be repeated', collect)
    .option('--no-os', 'it may install nothing')
    .option('--title <text>', 'the name people read')
    .option('--key <key>', 'the key it must ask with; needed where its name was accepted with another one before')
    .option('--file <path>', 'its settings, as YAML or JSON; "-": from the standard input')
    .option('--dry-run', 'show what would change, and accept nothing')
    .addHelpText('after', aSettingsFile)
  examples(command, [
    'partition accept par3 --os debian/12 --os ubuntu/24.04',
    'partition accept par3 --os debian/12 --file par3.yaml --dry-run',
    'partition accept par3 --os debian/12 --key UAH2…',
  ])
  command.action(async (name: string, { os, title, key, file, dryRun }: Omit<AcceptOptions, 'os'> & { os?: string[] | boolean }) => {
    // commander's way with `--no-os`: false where it was given, true where neither was.
    if (os === undefined || os === true)
      throw new CliError('usage', `say what ${name} may install: --os debian/12, as often as needed, or --no-os`)
    const operatingSystems = os === false ? [] : os
    const settings = file === undefined ? {} : settingsIn(await readDocument(cli, file, 'settings'), file)
    const input = checked(calls.accept, {
      ...settings,
      name,
      operatingSystems,
      ...(title !== undefined && { title }),
      ...(key !== undefined && { natsKey: key }),
      ...(dryRun && { dryRun }),
    })
    const { client } = await connect(cli, command)
    const done = await attempt(`accept partition ${name}`, client.enrolment.accept(input))
    showOne(cli, formatOf(command), done, {
      name: () => name,
      text: ({ generation, outcome, differences }) =>
        outcome === 'dry-run'
          ? dryRunText(generation, differences.map(differenceText))
          : `partition ${name} is accepted, in generation ${generation} of the global configuration\n`,
    })
  })
}

/** The settings of a file, and nothing else: whom it accepts, and with which key, is said on the command line. */
function settingsIn(content: unknown, file: string): object {
  if (typeof content !== 'object' || content === null || Array.isArray(content))
    throw new CliError('usage', `${file} holds no settings such as "erase: full"`)
  const strange = Object.keys(content).filter(field => !Object.hasOwn(partitionSettings, field))
  if (strange.length > 0)
    throw new CliError('usage', `${file}: unknown ${strange.join(', ')}; it may say ${Object.keys(partitionSettings).join(', ')}`)
  return content
}

function addRefuse(parent: Command, cli: Cli): void {
  const command = parent.command('refuse').summary('refuse a partition that waits').argument('<name>', 'its name')
  command.description(`${calls.refuse.summary}.`)
  examples(command, ['partition refuse par3'])
  command.action(async (name: string) => {
    const input = checked(calls.refuse, { name })
    const { client } = await connect(cli, command)
    const done = await attempt(`refuse partition ${name}`, client.enrolment.refuse(input))
    showOne(cli, formatOf(command), done, { name: () => name, text: () => `partition ${name} is refused, and its join token is void\n` })
  })
}

function addRetire(parent: Command, cli: Cli): void {
  const command = parent.command('retire').summary('take a partition out of the federation').argument('<name>', 'its name')
  command.description(`${calls.retire.summary}. ${calls.retire.description}`)
  examples(command, ['partition retire par3', 'partition accept par3 --os debian/12'])
  command.action(async (name: string) => {
    const input = checked(calls.retire, { name })
    const { client } = await connect(cli, command)
    const done = await attempt(`retire partition ${name}`, client.enrolment.retire(input))
    showOne(cli, formatOf(command), done, {
      name: () => name,
      text: () => `partition ${name} is retired; \`muster partition accept ${name}\` takes it back\n`,
    })
  })
}
