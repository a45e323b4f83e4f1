// `muster group …`: sets of users, documents of the global configuration. A change is made of what stands there, and refused where somebody else was first.
import { roles } from '@muster/shared/contract/call'
import { config as calls } from '@muster/shared/contract/config'
import type { CallOutput } from '@muster/shared/contract/contract'
import type { GroupDocument } from '@muster/shared/global/documents'
import { type Command, Option } from 'commander'
import { type Cli, examples, type Fill, formatOf } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt, CliError } from '../exit-codes.ts'
import { type Shape, showList } from '../output/show.ts'
import { collect } from '../quantities.ts'
import { checked } from '../schema-options.ts'
import { deleteDocument, tellChange } from './config.ts'

type Documents = CallOutput<'config.get'>['documents']

interface Group {
  readonly name: string
  readonly document: GroupDocument
}

const groupShape: Shape<Group> = {
  columns: [
    { title: 'NAME', text: ({ name }) => name },
    { title: 'ROLE', text: ({ document }) => document.role ?? 'none' },
    { title: 'POOLS', text: ({ document }) => (document.role === undefined ? '' : (document.pools?.join(' ') ?? 'all')) },
    { title: 'MEMBERS', text: ({ document }) => document.members.join(' '), least: 20 },
    { title: 'DESCRIPTION', text: ({ document }) => document.description, least: 10 },
  ],
  name: ({ name }) => name,
  none: 'There are no groups.',
}

/** `muster group` with its subcommands. */
export const fillGroup: Fill = (command, cli) => {
  examples(command, ['group list', 'group create lab --role operator --pool lab --member alice', 'group add lab bob'])
  const list = command.command('list').alias('ls').summary('list groups').description('List groups, with what they give and to whom.')
  examples(list, ['group list', 'group list -o json'])
  list.action(async () => {
    const { client } = await connect(cli, list)
    const { documents } = await attempt('list groups', client.config.get({ kind: 'group' }))
    showList(cli, formatOf(list), { items: documents as unknown as Group[] }, groupShape)
  })
  addCreate(command, cli)
  addDelete(command, cli)
  addMembers(command, cli, 'add')
  addMembers(command, cli, 'remove')
}

function addCreate(parent: Command, cli: Cli): void {
  const command = parent.command('create').summary('make a group').argument('<name>', 'name of the group')
  command
    .description(
      'Makes a group of users. With --role its members may what it may, in its pools, beside what they may themselves; without, it is for quotas.',
    )
    .addOption(new Option('--role <role>', 'what being in it lets its members do').choices(roles.filter(role => role !== 'public')))
    .option('--pool <name>', 'limit that role to this pool; may be repeated', collect)
    .option('--member <user>', 'a user that is in it; may be repeated', collect)
    .option('--description <text>', 'what it is for')
  examples(command, [
    'group create lab --role operator --pool lab --member alice --member bob',
    'group create students --description "for quotas"',
  ])
  command.action(async (name: string, { pool: pools, member: members = [], ...options }: CreateOptions) => {
    if (pools && options.role === undefined) throw new CliError('usage', '--pool limits what --role lets members do: give a role too')
    await change(
      cli,
      command,
      `create group ${name}`,
      documents => {
        if (find(documents, name))
          throw new CliError('usage', `group ${name} exists`, { hint: `add users with: muster group add ${name} USER` })
        refuseStrangers(documents, members)
        return { ...options, pools, members: joined([], members, name) }
      },
      name,
    )
  })
}

interface CreateOptions {
  readonly role?: string
  readonly pool?: string[]
  readonly member?: string[]
  readonly description?: string
}

function addDelete(parent: Command, cli: Cli): void {
  const command = parent.command('delete').alias('rm').summary('delete a group').argument('<name>', 'name of the group')
  command.description(
    'Deletes a group: its members have nothing from it any more. Its quotas, and what providers map to it, have to go first.',
  )
  examples(command, ['group delete lab'])
  command.action((name: string) => deleteDocument(cli, command, { kind: 'group', name }))
}

function addMembers(parent: Command, cli: Cli, verb: 'add' | 'remove'): void {
  const [summary, description] = {
    add: [
      'put users into a group',
      'Puts users into a group. They may what it may within seconds, in every partition that can be reached.',
    ],
    remove: ['take users out of a group', 'Takes users out of a group, and leaves them what they have otherwise.'],
  }[verb] as [string, string]
  const command = parent.command(verb).summary(summary).description(description)
  command.argument('<name>', 'name of the group').argument('<users...>', 'names of users')
  examples(command, [`group ${verb} lab bob`, `group ${verb} lab bob carol`])
  command.action(async (name: string, users: string[]) => {
    const what = verb === 'add' ? `add ${users.join(', ')} to group ${name}` : `remove ${users.join(', ')} from group ${name}`
    await change(
      cli,
      command,
      what,
      documents => {
        const known = find(documents, name)
        if (!known) throw new CliError('not-found', `there is no group ${name}`, { hint: 'see them with: muster group list' })
        if (verb === 'add') refuseStrangers(documents, users)
        const { members } = known
        return { ...known, members: verb === 'add' ? joined(members, users, name) : left(members, users, name) }
      },
      name,
    )
  })
}

/** Writes one group, made of what stands there. Expected: the generation that was looked at, so that nobody's change in between is undone. */
async function change(cli: Cli, command: Command, what: string, make: (documents: Documents) => object, name: string): Promise<void> {
  const { client } = await connect(cli, command)
  const { documents, generation } = await attempt('read the configuration', client.config.get({}))
  // What is undefined is left out on its way.
  const put = [{ kind: 'group', name, document: make(documents) }]
  const input = checked(calls.change, { put, expectedGeneration: generation, note: what })
  tellChange(cli, command, await attempt(what, client.config.change(input)))
}

const find = (documents: Documents, wanted: string) =>
  documents.find(({ kind, name }) => kind === 'group' && name === wanted)?.document as unknown as GroupDocument | undefined

/** Throws where users do not exist. */
function refuseStrangers(documents: Documents, users: readonly string[]): void {
  const strangers = users.filter(user => !documents.some(({ kind, name }) => kind === 'user' && name === user))
  if (strangers.length === 0) return
  throw new CliError('not-found', `there is no user ${strangers.join(', ')}`, { hint: 'see who there is with: muster user list' })
}

/** Throws where one is in it already, or named twice. */
function joined(members: readonly string[], users: readonly string[], group: string): string[] {
  const all = [...members, ...users]
  const twice = users.find(user => all.indexOf(user) !== all.lastIndexOf(user))
  if (twice === undefined) return all
  throw new CliError('usage', members.includes(twice) ? `${twice} is in group ${group} already` : `${twice} is named twice`)
}

/** Throws where one is not in it. */
function left(members: readonly string[], users: readonly string[], group: string): string[] {
  const stranger = users.find(user => !members.includes(user))
  if (stranger !== undefined) throw new CliError('usage', `${stranger} is not in group ${group}`)
  return members.filter(member => !users.includes(member))
}
