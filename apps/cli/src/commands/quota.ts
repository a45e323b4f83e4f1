// `muster quota …`: the most machines that somebody may have at a time, documents of the global configuration.
import { config as calls } from '@muster/shared/contract/config'
import type { QuotaDocument } from '@muster/shared/global/documents'
import { type Command, InvalidArgumentError } from 'commander'
import { type Cli, examples, type Fill, formatOf } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt, CliError } from '../exit-codes.ts'
import { type Shape, showList } from '../output/show.ts'
import { checked } from '../schema-options.ts'
import { deleteDocument, tellChange } from './config.ts'

interface Quota {
  readonly name: string
  readonly document: QuotaDocument
}

const quotaShape: Shape<Quota> = {
  columns: [
    { title: 'NAME', text: ({ name }) => name },
    { title: 'FOR', text: ({ document }) => whom(document) },
    { title: 'POOL', text: ({ document }) => document.pool ?? 'all' },
    { title: 'MACHINES', text: ({ document }) => String(document.machines), align: 'right' },
    { title: 'DESCRIPTION', text: ({ document }) => document.description, least: 10 },
  ],
  name: ({ name }) => name,
  none: 'There are no quotas: everybody may have as many machines as there are.',
}

function whom({ user, group }: Pick<QuotaDocument, 'user' | 'group'>): string {
  if (user !== undefined) return `user ${user}`
  return group === undefined ? 'everybody, each' : `group ${group}, together`
}

/** `muster quota` with its subcommands. */
export const fillQuota: Fill = (command, cli) => {
  examples(command, ['quota list', 'quota set everybody 10 --everybody', 'quota set alice 40 --user alice'])
  const list = command
    .command('list')
    .alias('ls')
    .summary('list quotas')
    .description('List quotas: who may have how many machines at a time.')
  examples(list, ['quota list', 'quota list -o json'])
  list.action(async () => {
    const { client } = await connect(cli, list)
    const { documents } = await attempt('list quotas', client.config.get({ kind: 'quota' }))
    showList(cli, formatOf(list), { items: documents as unknown as Quota[] }, quotaShape)
  })
  addSet(command, cli)
  const remove = command.command('delete').alias('rm').summary('delete a quota').argument('<name>', 'name of the quota')
  remove.description('Deletes a quota: it binds nobody any more.')
  examples(remove, ['quota delete lab-gpu'])
  remove.action((name: string) => deleteDocument(cli, remove, { kind: 'quota', name }))
}

interface SetOptions {
  readonly user?: string
  readonly group?: string
  readonly everybody?: true
  readonly pool?: string
  readonly allPools?: true
  readonly description?: string
}

function addSet(parent: Command, cli: Cli): void {
  const command = parent.command('set').summary('set a quota, or change it')
  command
    .argument('<name>', 'name of the quota')
    .argument('<machines>', 'how many, at most', machinesOf)
    .description(
      'Sets how many machines somebody may have at a time. Of a quota that is there already, what is not given stays. A smaller one takes nothing away.',
    )
    .option('--user <name>', 'for this user; in place of the one for everybody')
    .option('--group <name>', 'for the members of this group, together')
    .option('--everybody', 'for everybody, each for itself')
    .option('--pool <name>', 'count machines of this pool only')
    .option('--all-pools', 'count machines of all pools')
    .option('--description <text>', 'what it is for')
  examples(command, [
    'quota set everybody 10 --everybody',
    'quota set alice 40 --user alice',
    'quota set lab-gpu 8 --group lab --pool gpu',
    'quota set alice 60',
  ])
  command.action(async (name: string, machines: number, { user, group, everybody, pool, allPools, description }: SetOptions) => {
    if ([user, group, everybody].filter(each => each !== undefined).length > 1)
      throw new CliError('usage', '--user, --group and --everybody exclude each other')
    if (pool !== undefined && allPools) throw new CliError('usage', '--pool and --all-pools exclude each other')
    const { client } = await connect(cli, command)
    const { documents, generation } = await attempt('read the configuration', client.config.get({}))
    const isThere = (kind: string, wanted: string) => documents.some(each => each.kind === kind && each.name === wanted)
    for (const [kind, wanted] of Object.entries({ user, group }))
      if (wanted !== undefined && !isThere(kind, wanted))
        throw new CliError('not-found', `there is no ${kind} ${wanted}`, { hint: `see them with: muster ${kind} list` })
    const known = documents.find(each => each.kind === 'quota' && each.name === name)?.document as Partial<QuotaDocument> | undefined
    const isForSomebody = user !== undefined || group !== undefined || everybody
    // A slip in a name must not bind everybody.
    if (!known && !isForSomebody)
      throw new CliError('usage', `there is no quota ${name} yet: whom is it for?`, { hint: 'give --user, --group or --everybody' })
    const owner = isForSomebody ? { user, group } : { user: known?.user, group: known?.group }
    // What is undefined is left out on its way.
    const document = {
      ...known,
      ...owner,
      ...(description !== undefined && { description }),
      pool: allPools ? undefined : (pool ?? known?.pool),
      machines,
    }
    const note = `quota ${name}: ${machines} machines`
    // Expected: the generation that was looked at, so that nobody's change in between is undone.
    const input = checked(calls.change, { put: [{ kind: 'quota', name, document }], expectedGeneration: generation, note })
    tellChange(cli, command, await attempt(`set quota ${name}`, client.config.change(input)))
  })
}

function machinesOf(text: string): number {
  if (!/^\d{1,7}$/.test(text)) throw new InvalidArgumentError('must be a number of machines, such as 10.')
  return Number(text)
}
