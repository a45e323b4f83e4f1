// `muster user …` and `muster token …`: who may come in. Both are documents of the global configuration; a token is made here, and only its
// hash leaves this computer. So with passwords: they are hashed here.
import { roles } from '@muster/shared/contract/call'
import { config as calls } from '@muster/shared/contract/config'
import { durationMs } from '@muster/shared/duration'
import { endedMark, type GroupDocument, type TokenDocument, type UserDocument } from '@muster/shared/global/documents'
import { randomText } from '@muster/shared/ids'
import { hashPassword, shortestPassword } from '@muster/shared/password'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { type Cli, examples, type Fill, formatOf, remark } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt, CliError } from '../exit-codes.ts'
import { expiry, newToken } from '../new-token.ts'
import { type Shape, showList, showOne } from '../output/show.ts'
import { ageText } from '../output/text.ts'
import { collect } from '../quantities.ts'
import { checked } from '../schema-options.ts'
import { newPassword, type PasswordOptions } from '../secrets.ts'
import { deleteDocument, tellChange } from './config.ts'

const grantedRoles = roles.filter(role => role !== 'public')
const roleOption = (text: string) => new Option('--role <role>', text).choices(grantedRoles)

interface User {
  readonly name: string
  readonly document: UserDocument
}

interface Group {
  readonly kind: 'group'
  readonly name: string
  readonly document: GroupDocument
}
const isGroup = (document: User | Group): document is Group => 'kind' in document && document.kind === 'group'

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
    { title: 'PROVIDER', text: ({ document }) => document.oidc?.provider ?? '' },
    { title: 'PASSWORD', text: ({ document }) => (document.password === undefined ? '' : 'yes') },
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
  addUserPassword(command, cli)
  addUserLogout(command, cli)
  const remove = command.command('delete').alias('rm').summary('delete a user, and its tokens').argument('<name>', 'name of the user')
  remove.description('Deletes a user and all of its tokens, and takes it out of its groups. What it owns stays its own.')
  examples(remove, ['user delete bob'])
  remove.action(async (name: string) => {
    const { client } = await connect(cli, remove)
    const { documents, generation } = await attempt('read the configuration', client.config.get({}))
    const tokens = documents
      .filter(({ kind, document }) => kind === 'token' && document.user === name)
      .map(({ kind, name: id }) => ({ kind, name: id }))
    const groups = (documents as unknown as (User | Group)[]).filter(isGroup).filter(({ document }) => document.members.includes(name))
    const put = groups.map(({ document, ...group }) => ({
      ...group,
      document: { ...document, members: document.members.filter(member => member !== name) },
    }))
    // Expected: the generation that was looked at, so that nobody who joined a group in between is lost.
    const input = checked(calls.change, {
      put,
      delete: [...tokens, { kind: 'user', name }],
      note: `user ${name} deleted`,
      expectedGeneration: generation,
    })
    tellChange(cli, remove, await attempt(`delete user ${name}`, client.config.change(input)))
  })
}

function addUserWrite(parent: Command, cli: Cli, verb: 'create' | 'update'): void {
  const summary = verb === 'create' ? 'create a user' : "change a user's role, name or status"
  const command = parent.command(verb).summary(summary).argument('<name>', 'name of the user')
  command
    .description(
      verb === 'create'
        ? 'Creates a user. It comes in with a password (muster user password), a token (muster token create) or, with --oidc, a login at a provider.'
        : 'Changes what is given and leaves the rest. A disabled user is let in nowhere.',
    )
    .addOption(roleOption('what the user may do').makeOptionMandatory(verb === 'create'))
    .option('--pool <name>', 'limit the user to this pool; may be repeated', collect)
    .option('--display-name <text>', 'the name people read')
    .option('--oidc <provider/subject>', 'who it is at an OpenID Connect provider; `none`: nobody', binding)
  if (verb === 'update') command.option('--all-pools', 'limit the user to no pool any more')
  if (verb === 'update') command.addOption(new Option('--status <status>', 'whether the user may come in').choices(['active', 'disabled']))
  examples(
    command,
    verb === 'create'
      ? ['user create alice --role operator --display-name "Alice A."', 'user create bob --role user --oidc corp/8f14e45f']
      : ['user update alice --status disabled'],
  )
  command.action(async (name: string, { pool, allPools, oidc, ...options }: UserOptions) => {
    if (pool && allPools) throw new CliError('usage', '--pool and --all-pools exclude each other')
    const { client } = await connect(cli, command)
    const current = await attempt('list users', client.config.get({ kind: 'user' }))
    const known = current.documents.find(user => user.name === name)
    if (verb === 'create' && known) throw new CliError('usage', `user ${name} exists; change it with: muster user update ${name}`)
    if (verb === 'update' && !known) throw new CliError('usage', `there is no user ${name}`)
    const { pools: before, oidc: bound, ...user } = known?.document ?? {}
    // What becomes undefined is left out on its way.
    const document = {
      ...user,
      ...options,
      pools: allPools ? undefined : (pool ?? before),
      oidc: oidc === 'none' ? undefined : (oidc ?? bound),
    }
    const put = [{ kind: 'user', name, document }]
    // Expected: the generation that was looked at, so that nobody's change in between is undone.
    const input = checked(calls.change, { put, expectedGeneration: current.generation, note: `user ${name} ${verb}d` })
    tellChange(cli, command, await attempt(`${verb} user ${name}`, client.config.change(input)))
  })
}

interface UserOptions {
  readonly role?: string
  readonly displayName?: string
  readonly status?: string
  readonly pool?: string[]
  readonly allPools?: true
  readonly oidc?: Binding
}

type Binding = UserDocument['oidc'] | 'none'

/** `corp/1234`: subjects may contain slashes, names of providers do not. */
function binding(text: string): Binding {
  if (text === 'none') return 'none'
  const slash = text.indexOf('/')
  if (slash < 1 || slash === text.length - 1)
    throw new InvalidArgumentError('must be the name of a provider, a slash and the subject, such as corp/8f14e45f.')
  return { provider: text.slice(0, slash), subject: text.slice(slash + 1) }
}

function addUserPassword(parent: Command, cli: Cli): void {
  const command = parent.command('password').summary("set a user's password").argument('<name>', 'name of the user')
  command
    .description(
      `Sets the password of a user, ${shortestPassword} characters or more, and ends the sessions it has. It is asked for twice, without showing it, or comes ` +
        'from a file; it is hashed on this computer (argon2id), and only the hash leaves it.',
    )
    .option('--password-file <file>', 'a file that holds the password, as its only line')
    .option('--password-stdin', 'read the password from the standard input')
    .option('--remove', 'take the password away: the user comes in with tokens only')
  examples(command, ['user password alice', 'user password alice --password-file new.txt', 'user password alice --remove'])
  command.action(async (name: string, options: PasswordOptions & { remove?: true }) => {
    if (options.remove && (options.passwordFile ?? options.passwordStdin)) throw new CliError('usage', '--remove takes no password')
    const password = options.remove ? undefined : await newPassword(cli, name, options)
    await changeUser(cli, command, name, {
      what: options.remove ? 'password removed' : 'password set',
      change: async ({ password: _, ...user }) => (password === undefined ? user : { ...user, password: await hashPassword(password) }),
    })
  })
}

function addUserLogout(parent: Command, cli: Cli): void {
  const command = parent.command('logout').summary('end all sessions of a user').argument('<name>', 'name of the user')
  command.description(
    'Ends all sessions of a user. Partitions that can be reached know within seconds; at one that is cut off, sessions end when they expire. Tokens stay.',
  )
  examples(command, ['user logout alice'])
  command.action((name: string) =>
    changeUser(cli, command, name, { what: 'sessions ended', change: async user => ({ ...user, sessions: endedMark }) }),
  )
}

/** Changes one user as it is now; somebody else's change in between is not undone. */
async function changeUser(
  cli: Cli,
  command: Command,
  name: string,
  { what, change }: { what: string; change: (user: Record<string, unknown>) => Promise<Record<string, unknown>> },
): Promise<void> {
  const { client } = await connect(cli, command)
  const current = await attempt(`find user ${name}`, client.config.get({ kind: 'user', name }))
  const put = [{ kind: 'user', name, document: await change(current.documents[0]?.document ?? {}) }]
  const input = checked(calls.change, { put, expectedGeneration: current.generation, note: `user ${name}: ${what}` })
  tellChange(cli, command, await attempt(`change user ${name}`, client.config.change(input)))
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
    .option(
      '--expires <duration>',
      'how long it is good for',
      expiry({ duration: '3650d', words: 'ten years' }, '30d or 12h'),
      durationMs('90d'),
    )
    .option('--description <text>', 'what it is for', '')
  examples(create, ['token create alice --expires 30d --description "laptop"', 'token create ci --role user > ci.token'])
  create.action(async (user: string, options: { role?: string; pool?: string[]; expires: number; description: string }) => {
    const { client } = await connect(cli, create)
    const { documents } = await attempt(`find user ${user}`, client.config.get({ kind: 'user', name: user }))
    const { token, ...made } = newToken(cli, options.expires)
    const id = `t-${randomText(12)}`
    const document = {
      user,
      role: options.role ?? documents[0]?.document.role,
      ...(options.pool && { pools: options.pool }),
      description: options.description,
      ...made,
    }
    const input = checked(calls.change, { put: [{ kind: 'token', name: id, document }], note: `token ${id} of ${user} created` })
    await attempt(`create a token for ${user}`, client.config.change(input))
    showOne(cli, formatOf(create), { id, token, ...document, sha256: undefined }, { name: () => id, text: () => `${token}\n` })
    remark(cli, `token ${id} of ${user}, good until ${document.expiresAt.slice(0, 10)}; it is shown this once`)
  })

  const revoke = command.command('revoke').alias('delete').summary('end a token').argument('<id>', 'id of the token, as the list shows it')
  revoke.description('Ends a token. Partitions that can be reached know within seconds; one that is cut off lets it in until it expires.')
  examples(revoke, ['token revoke t-4y3h7nqk2c5d'])
  revoke.action((id: string) => deleteDocument(cli, revoke, { kind: 'token', name: id }, 'revoke'))
}
