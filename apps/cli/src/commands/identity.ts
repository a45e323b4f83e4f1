// `muster user …` and `muster token …`: who may come in. Both are documents of the global configuration; a token is made here, and only its
// hash leaves this computer.
import { hash, randomBytes } from 'node:crypto'
import { roles } from '@muster/shared/contract/call'
import { config as calls } from '@muster/shared/contract/config'
import { durationMs, durationPattern } from '@muster/shared/duration'
import type { TokenDocument, UserDocument } from '@muster/shared/global/documents'
import { randomText } from '@muster/shared/ids'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { type Cli, examples, type Fill, formatOf, remark } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt, CliError } from '../exit-codes.ts'
import { type Shape, showList, showOne } from '../output/show.ts'
import { ageText } from '../output/text.ts'
import { collect } from '../quantities.ts'
import { checked } from '../schema-options.ts'
import { tellChange } from './config.ts'

const grantedRoles = roles.filter(role => role !== 'public')
const roleOption = (text: string) => new Option('--role <role>', text).choices(grantedRoles)

interface User {
  readonly name: string
  readonly document: UserDocument
}

const userShape: Shape<User> = {
  columns: [
    { title: 'NAME', text: ({ name }) => name },
    { title: 'ROLE', text: ({ document }) => document.role },
    { title: 'POOLS', text: ({ document }) => document.pools?.join(' ') ?? 'all' },
    {
      title: 'STATUS',
      text: ({ document }) => document.status,
      style: ({ document }) => (document.status === 'active' ? undefined : 'yellow'),
    },
    { title: 'DISPLAY NAME', text: ({ document }) => document.displayName, least: 10 },
  ],
  name: ({ name }) => name,
  none: 'There are no users; the tokens file of each server still lets people in.',
}

/** `muster user` with its subcommands. */
export const fillUser: Fill = (command, cli) => {
  examples(command, ['user list', 'user create alice --role operator'])
  const list = command.command('list').alias('ls').summary('list users').description('List users, with their roles.')
  examples(list, ['user list -o json'])
  list.action(async () => {
    const { client } = await connect(cli, list)
    const { documents } = await attempt('list users', client.config.get({ kind: 'user' }))
    showList(cli, formatOf(list), { items: documents as unknown as User[] }, userShape)
  })
  addUserWrite(command, cli, 'create')
  addUserWrite(command, cli, 'update')
  const remove = command.command('delete').alias('rm').summary('delete a user, and its tokens').argument('<name>', 'name of the user')
  remove.description('Deletes a user and all of its tokens. What it owns stays its own.')
  examples(remove, ['user delete bob'])
  remove.action(async (name: string) => {
    const { client } = await connect(cli, remove)
    const { documents } = await attempt('list tokens', client.config.get({ kind: 'token' }))
    const tokens = documents.filter(({ document }) => document.user === name).map(({ kind, name: id }) => ({ kind, name: id }))
    const input = checked(calls.change, { delete: [...tokens, { kind: 'user', name }], note: `user ${name} deleted` })
    tellChange(cli, remove, await attempt(`delete user ${name}`, client.config.change(input)))
  })
}

function addUserWrite(parent: Command, cli: Cli, verb: 'create' | 'update'): void {
  const summary = verb === 'create' ? 'create a user' : "change a user's role, name or status"
  const command = parent.command(verb).summary(summary).argument('<name>', 'name of the user')
  command
    .description(
      verb === 'create'
        ? 'Creates a user. It comes in with a token: muster token create.'
        : 'Changes what is given and leaves the rest. A disabled user is let in nowhere.',
    )
    .addOption(roleOption('what the user may do').makeOptionMandatory(verb === 'create'))
    .option('--pool <name>', 'limit the user to this pool; may be repeated', collect)
    .option('--display-name <text>', 'the name people read')
  if (verb === 'update') command.option('--all-pools', 'limit the user to no pool any more')
  if (verb === 'update') command.addOption(new Option('--status <status>', 'whether the user may come in').choices(['active', 'disabled']))
  examples(
    command,
    verb === 'create' ? ['user create alice --role operator --display-name "Alice A."'] : ['user update alice --status disabled'],
  )
  command.action(
    async (name: string, given: { role?: string; displayName?: string; status?: string; pool?: string[]; allPools?: true }) => {
      const { pool, allPools, ...options } = given
      if (pool && allPools) throw new CliError('usage', '--pool and --all-pools exclude each other')
      const { client } = await connect(cli, command)
      const current = await attempt('list users', client.config.get({ kind: 'user' }))
      const known = current.documents.find(user => user.name === name)
      if (verb === 'create' && known) throw new CliError('usage', `user ${name} exists; change it with: muster user update ${name}`)
      if (verb === 'update' && !known) throw new CliError('usage', `there is no user ${name}`)
      const { pools: _, ...withoutPools } = known?.document ?? {}
      const before = allPools ? withoutPools : known?.document
      const put = [{ kind: 'user', name, document: { ...before, ...options, ...(pool && { pools: pool }) } }]
      // Expected: the generation that was looked at, so that nobody's change in between is undone.
      const input = checked(calls.change, { put, expectedGeneration: current.generation, note: `user ${name} ${verb}d` })
      tellChange(cli, command, await attempt(`${verb} user ${name}`, client.config.change(input)))
    },
  )
}

interface Token {
  readonly name: string
  readonly document: TokenDocument
}

const tokenShape = (cli: Cli): Shape<Token> => ({
  columns: [
    { title: 'ID', text: ({ name }) => name },
    { title: 'USER', text: ({ document }) => document.user },
    { title: 'ROLE', text: ({ document }) => document.role },
    { title: 'AGE', text: ({ document }) => ageText(document.createdAt, cli.now()), align: 'right' },
    {
      title: 'EXPIRES',
      text: ({ document }) => (Date.parse(document.expiresAt) > cli.now() ? document.expiresAt.slice(0, 10) : 'expired'),
      style: ({ document }) => (Date.parse(document.expiresAt) > cli.now() ? undefined : 'yellow'),
    },
    { title: 'DESCRIPTION', text: ({ document }) => document.description, least: 10 },
  ],
  name: ({ name }) => name,
  none: 'There are no tokens.',
})

const longestExpiryMs = durationMs('3650d')

function expiry(text: string): number {
  if (!durationPattern.test(text) || durationMs(text) > longestExpiryMs)
    throw new InvalidArgumentError('must be a duration such as 30d or 12h, ten years at most.')
  return durationMs(text)
}

/** `muster token` with its subcommands. */
export const fillToken: Fill = (command, cli) => {
  examples(command, ['token list', 'token create alice --role user --expires 30d'])
  const list = command.command('list').alias('ls').summary('list tokens').description('List tokens; what they are is not known to anybody.')
  examples(list, ['token list'])
  list.action(async () => {
    const { client } = await connect(cli, list)
    const { documents } = await attempt('list tokens', client.config.get({ kind: 'token' }))
    showList(cli, formatOf(list), { items: documents as unknown as Token[] }, tokenShape(cli))
  })

  const create = command.command('create').summary('make a token for a user').argument('<user>', 'whose token it is')
  create
    .description('Makes a token and prints it, once. It is made on this computer; the federation gets its hash only.')
    .addOption(roleOption("what the token may do, within what its user may; the user's role where left out"))
    .option('--pool <name>', 'limit the token to this pool; may be repeated', collect)
    .option('--expires <duration>', 'how long it is good for', expiry, durationMs('90d'))
    .option('--description <text>', 'what it is for', '')
  examples(create, ['token create alice --expires 30d --description "laptop"', 'token create ci --role user > ci.token'])
  create.action(async (user: string, options: { role?: string; pool?: string[]; expires: number; description: string }) => {
    const { client } = await connect(cli, create)
    const { documents } = await attempt(`find user ${user}`, client.config.get({ kind: 'user', name: user }))
    const [id, token] = [`t-${randomText(12)}`, randomBytes(32).toString('base64url')]
    const document = {
      user,
      role: options.role ?? documents[0]?.document.role,
      ...(options.pool && { pools: options.pool }),
      sha256: hash('sha256', token),
      description: options.description,
      createdAt: new Date(cli.now()).toISOString(),
      expiresAt: new Date(cli.now() + options.expires).toISOString(),
    }
    const input = checked(calls.change, { put: [{ kind: 'token', name: id, document }], note: `token ${id} of ${user} created` })
    await attempt(`create a token for ${user}`, client.config.change(input))
    showOne(cli, formatOf(create), { id, token, ...document, sha256: undefined }, { name: () => id, text: () => `${token}\n` })
    remark(cli, `token ${id} of ${user}, good until ${document.expiresAt.slice(0, 10)}; it is shown this once`)
  })

  const revoke = command.command('revoke').alias('delete').summary('end a token').argument('<id>', 'id of the token, as the list shows it')
  revoke.description('Ends a token. Partitions that can be reached know within seconds; one that is cut off lets it in until it expires.')
  examples(revoke, ['token revoke t-4y3h7nqk2c5d'])
  revoke.action(async (id: string) => {
    const input = checked(calls.change, { delete: [{ kind: 'token', name: id }], note: `token ${id} revoked` })
    const { client } = await connect(cli, revoke)
    tellChange(cli, revoke, await attempt(`revoke token ${id}`, client.config.change(input)))
  })
}
