// `muster webhook …`: who is told of events, how far they were told, and what they would not take. A webhook is a document of the global configuration;
// each partition tells it of its own events.
import { randomBytes } from 'node:crypto'
import { config } from '@muster/shared/contract/config'
import type { CallOutput } from '@muster/shared/contract/contract'
import { webhooks as calls, type DeadLetter, type WebhookDelivery } from '@muster/shared/contract/webhooks'
import type { WebhookDocument } from '@muster/shared/global/documents'
import { type Command, Option } from 'commander'
import { type Cli, examples, type Fill, formatOf, remark } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt, CliError } from '../exit-codes.ts'
import { type Shape, showList, showOne } from '../output/show.ts'
import { ageText, printable } from '../output/text.ts'
import { collect, parseCount } from '../quantities.ts'
import { checked } from '../schema-options.ts'
import { readInput, readSecretFile, secretIn } from '../secrets.ts'
import { deleteDocument, tellChange } from './config.ts'

/** `muster webhook` with its subcommands. */
export const fillWebhook: Fill = (command, cli) => {
  examples(command, ['webhook create audit --to https://audit.example.org/muster', 'webhook status', 'webhook dead audit'])
  addList(command, cli)
  addWrite(command, cli, 'create')
  addWrite(command, cli, 'update')
  addDelete(command, cli)
  addStatus(command, cli)
  addDead(command, cli)
  addReplay(command, cli)
}

interface Webhook {
  readonly name: string
  readonly document: Omit<WebhookDocument, 'secret'>
}

const webhookShape: Shape<Webhook> = {
  columns: [
    { title: 'NAME', text: ({ name }) => name },
    {
      title: 'STATUS',
      text: ({ document }) => document.status,
      style: ({ document }) => (document.status === 'active' ? undefined : 'yellow'),
    },
    { title: 'EVENTS', text: ({ document }) => document.events.join(', '), least: 8 },
    { title: 'POOLS', text: ({ document }) => document.pools?.join(', ') ?? 'all', leaves: 7 },
    { title: 'URL', text: ({ document }) => document.url, least: 12 },
    { title: 'DESCRIPTION', text: ({ document }) => document.description, least: 10, leaves: 8 },
  ],
  name: ({ name }) => name,
  none: 'There are no webhooks.',
}

function addList(parent: Command, cli: Cli): void {
  const command = parent.command('list').alias('ls').summary('list webhooks')
  command.description('List webhooks. Their secrets are shown to nobody.')
  examples(command, ['webhook list', 'webhook list -o json'])
  command.action(async () => {
    const { client } = await connect(cli, command)
    const { documents } = await attempt('list webhooks', client.config.get({ kind: 'webhook' }))
    showList(cli, formatOf(command), { items: documents as unknown as Webhook[] }, webhookShape)
  })
}

interface WriteOptions {
  readonly to?: string
  readonly event?: string[]
  readonly pool?: string[]
  readonly allPools?: true
  readonly status?: string
  readonly description?: string
  readonly secretFile?: string
  readonly newSecret?: true
  readonly overlap?: number
}

function addWrite(parent: Command, cli: Cli, verb: 'create' | 'update'): void {
  const isNew = verb === 'create'
  const command = parent
    .command(verb)
    .summary(isNew ? 'have events sent to a URL' : 'change, pause or resume a webhook')
    .argument('<name>', 'name of the webhook')
  command
    .description(
      isNew
        ? 'Creates a webhook and prints its secret, once: with it the receiver checks signatures. Events from now on are sent, by each partition its own.'
        : 'Changes what is given and leaves the rest. Paused, it misses nothing: it is told everything when it is active again.',
    )
    .addOption(new Option('--to <url>', 'where events are posted to, http or https').makeOptionMandatory(isNew))
    .option('--event <kind>', 'only events of this kind, such as machine.moved or power.*; may be repeated; all where left out', collect)
    .option('--pool <name>', 'only events of machines of this pool; may be repeated; all events where left out', collect)
    .option('--description <text>', 'what it is for')
    .option('--secret-file <file>', 'a secret of your own, whsec_…; "-" reads it from the standard input')
  if (!isNew) {
    command.addOption(new Option('--all-pools', 'events of all pools again, and those of no machine').conflicts('pool'))
    command.addOption(new Option('--status <status>', 'whether events are sent').choices(['active', 'paused']))
    command.addOption(new Option('--new-secret', 'make another secret and print it').conflicts('secretFile'))
    command.option(
      '--overlap <hours>',
      'for so long messages are signed with the secret before too; 24 where left out, 0 ends it now',
      text => parseCount(text, 0),
    )
  }
  examples(
    command,
    isNew
      ? [
          'webhook create audit --to https://audit.example.org/muster',
          'webhook create pager --to https://p.example.org/ --event machine.moved --pool lab',
        ]
      : ['webhook update audit --status paused', 'webhook update audit --new-secret', 'webhook update audit --overlap 0'],
  )
  command.action(async (name: string, { to, secretFile, newSecret, overlap, event, pool, allPools, ...options }: WriteOptions) => {
    const given = secretFile === undefined ? undefined : await secretOf(cli, secretFile)
    const made = newSecret && `whsec_${randomBytes(32).toString('base64')}`
    const secret = given ?? made
    const { client } = await connect(cli, command)
    const current = await attempt('list webhooks', client.config.get({ kind: 'webhook' }))
    const known = current.documents.find(webhook => webhook.name === name)
    if (isNew && known) throw new CliError('usage', `webhook ${name} exists; change it with: muster webhook update ${name}`)
    if (!isNew && !known) throw new CliError('usage', `there is no webhook ${name}`)
    const { pools: before, ...kept } = known?.document ?? {}
    const pools = allPools ? undefined : (pool ?? before)
    const document = {
      ...kept,
      ...options,
      ...(to !== undefined && { url: to }),
      ...(event && { events: event }),
      ...(pools !== undefined && { pools }),
      ...(secret !== undefined && { secret }),
      ...(overlap !== undefined && { secretBeforeUntil: new Date(cli.now() + overlap * 3_600_000).toISOString() }),
    }
    // Expected: the generation that was looked at, so that nobody's change in between is undone.
    const input = checked(config.change, {
      put: [{ kind: 'webhook', name, document }],
      expectedGeneration: current.generation,
      note: `webhook ${name} ${verb}d`,
    })
    const answer = await attempt(`${verb} webhook ${name}`, client.config.change(input))
    const shown = made ?? answer.secrets[0]?.secret
    if (shown === undefined) return tellChange(cli, command, answer)
    tellSecret(cli, command, { name, secret: shown, generation: answer.generation })
  })
}

const secretOf = async (cli: Cli, file: string) =>
  file === '-' ? secretIn(await readInput(cli), 'the standard input') : readSecretFile(file)

function tellSecret(cli: Cli, command: Command, made: { name: string; secret: string; generation: number }): void {
  showOne(cli, formatOf(command), made, { name: ({ name }) => name, text: ({ secret }) => `${secret}\n` })
  remark(cli, `the secret of webhook ${made.name}, in force with generation ${made.generation}; it is shown this once`)
}

function addDelete(parent: Command, cli: Cli): void {
  const command = parent.command('delete').alias('rm').summary('send it nothing more').argument('<name>', 'name of the webhook')
  command.description('Deletes a webhook. What it was not told yet, and its dead letters, are forgotten; the events stay in the log.')
  examples(command, ['webhook delete audit'])
  command.action((name: string) => deleteDocument(cli, command, { kind: 'webhook', name }))
}

const deliveryShape = (cli: Cli): Shape<WebhookDelivery> => ({
  columns: [
    { title: 'WEBHOOK', text: ({ webhook }) => webhook },
    { title: 'PARTITION', text: ({ partition }) => partition },
    { title: 'STATUS', text: ({ status }) => status, style: ({ status }) => (status === 'active' ? undefined : 'yellow') },
    { title: 'BEHIND', text: ({ behind }) => String(behind), align: 'right' },
    { title: 'DELIVERED', text: ({ deliveredAt }) => (deliveredAt ? `${ageText(deliveredAt, cli.now())} ago` : 'never') },
    { title: 'TRIES', text: ({ tries }) => (tries === 0 ? '' : String(tries)), align: 'right', leaves: 5 },
    {
      title: 'DEAD',
      text: ({ deadLetters }) => (deadLetters === 0 ? '' : String(deadLetters)),
      align: 'right',
      style: () => 'red',
    },
    { title: 'REASON', text: ({ reason }) => reason ?? '', least: 12, leaves: 8 },
  ],
  name: ({ webhook, partition }) => `${webhook}/${partition}`,
  none: 'No webhook is known to a partition that answers.',
})

function addStatus(parent: Command, cli: Cli): void {
  const command = parent.command('status').summary('how far each was told').argument('[name]', 'one webhook')
  command.description(`${calls.deliveries.summary}.`)
  examples(command, ['webhook status', 'webhook status audit -o json'])
  command.action(async (webhook: string | undefined) => {
    const input = checked(calls.deliveries, { webhook })
    const { client } = await connect(cli, command)
    showList(cli, formatOf(command), await attempt('ask how webhooks stand', client.webhooks.deliveries(input)), deliveryShape(cli))
  })
}

const deadShape = (cli: Cli): Shape<DeadLetter> => ({
  columns: [
    { title: 'WEBHOOK', text: ({ webhook }) => webhook },
    { title: 'PARTITION', text: ({ partition }) => partition },
    { title: 'EVENTS', text: ({ from, to }) => `${from}-${to}`, align: 'right' },
    { title: 'DIED', text: ({ diedAt }) => `${ageText(diedAt, cli.now())} ago` },
    { title: 'TRIES', text: ({ tries }) => String(tries), align: 'right' },
    { title: 'STATUS', text: ({ status }) => status, style: ({ status }) => (status === 'dead' ? undefined : 'yellow') },
    { title: 'ID', text: ({ batch }) => batch, wide: true },
    { title: 'REASON', text: ({ reason }) => reason, least: 12, leaves: 8 },
  ],
  name: ({ batch }) => batch,
  none: 'There are no dead letters.',
})

function addDead(parent: Command, cli: Cli): void {
  const command = parent.command('dead').summary('what was given up').argument('[name]', 'one webhook')
  command
    .description(`${calls.deadLetters.summary}. The events themselves: muster event list --after.`)
    .option('--limit <n>', 'at most so many of each partition (100 where left out)', text => parseCount(text, 1))
  examples(command, ['webhook dead', 'webhook dead audit -o wide'])
  command.action(async (webhook: string | undefined, { limit }: { limit?: number }) => {
    const input = checked(calls.deadLetters, { webhook, limit })
    const { client } = await connect(cli, command)
    showList(cli, formatOf(command), await attempt('list dead letters', client.webhooks.deadLetters(input)), deadShape(cli))
  })
}

function addReplay(parent: Command, cli: Cli): void {
  const command = parent.command('replay').summary('send what was given up again').argument('<name>', 'name of the webhook')
  command
    .description(`${calls.replay.summary}. ${calls.replay.description}`)
    .option('--partition <name>', 'only those of this partition; may be repeated', collect)
  examples(command, ['webhook replay audit', 'webhook replay audit --partition lon1'])
  command.action(async (name: string, { partition }: { partition?: string[] }) => {
    const input = checked(calls.replay, { name, partition })
    const { client } = await connect(cli, command)
    const answer = await attempt(`replay webhook ${name}`, client.webhooks.replay(input))
    showList(cli, formatOf(command), answer, replayShape)
  })
}

const replayShape: Shape<CallOutput<'webhooks.replay'>['items'][number]> = {
  columns: [
    { title: 'PARTITION', text: ({ partition }) => printable(partition) },
    { title: 'BATCHES', text: ({ letters }) => String(letters), align: 'right' },
  ],
  name: ({ partition }) => partition,
  none: 'No partition was asked.',
}
