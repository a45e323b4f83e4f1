// `muster login`, `logout`, `whoami`, `profile`: which server, as whom. Tokens and passwords never come from the command line and never go out.
import type { CallOutput } from '@muster/shared/contract/contract'
import { type BegunSession, session as calls } from '@muster/shared/contract/session'
import type { Command } from 'commander'
import { type Cli, examples, type Fill, formatOf, globalsOf, remark, say } from '../cli.ts'
import { caOf, clientFor, connect, readCa, readToken, serverUrl, tokenIn } from '../connection.ts'
import { attempt, CliError } from '../exit-codes.ts'
import { type Shape, showList, showOne } from '../output/show.ts'
import { fieldsText } from '../output/table.ts'
import { printable } from '../output/text.ts'
import { type Config, configPath, type Profile, readConfig, readLocalLogin, writeConfig } from '../profiles.ts'
import { checked } from '../schema-options.ts'
import { askSecretly, passwordFrom, readInput } from '../secrets.ts'

const noConfig: Config = { current: 'default', profiles: {} }
const profileName = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/

/** `muster login`. */
export const fillLogin: Fill = (command, cli) => {
  command.argument('[url]', "URL of a front or a partition; the profile's own where left out")
  command.description(
    'Log in with a token; with --user and a password; or, with --oidc, at an OpenID Connect provider. A token is tried first. It comes from --token-file, ' +
      '--token-stdin or, on a terminal, a prompt that does not show it; a password from --password-file, --password-stdin or such a prompt. Neither ' +
      'comes from the command line, where everybody could see it. At a provider one logs in in a browser on this computer or, with --device, anywhere. ' +
      'What is kept, in $XDG_CONFIG_HOME/muster/config.json, which only you can read, is the token, or that of a session, which expires. A profile ' +
      'remembers how it was logged in, so that `muster login` alone does it again.',
  )
  command
    .option('--token-stdin', 'read the token from the standard input')
    .option('--user <name>', 'log in as this user, with a password')
    .option('--password-file <file>', 'a file that holds the password, as its only line')
    .option('--password-stdin', 'read the password from the standard input')
    .option('--oidc [provider]', 'log in at an OpenID Connect provider; needs no name where there is one only')
    .option('--device', 'with --oidc: show a code to enter on any device, instead of waiting for a browser on this computer')
    .option('--lifetime <duration>', 'how long the session lasts, 24h at most')
    .option('--ca <file>', 'believe the server by certificates of this authority, and no other: the ca.crt of a server that makes its own')
    .option('--fingerprint <sha256>', 'the same, by the fingerprint of the authority that the server tells in its log')
  examples(command, [
    'login https://muster.example.org --user alice',
    'login https://muster.example.org --oidc',
    'login https://muster.example.org --oidc corp --device',
    'login https://muster.example.org --token-file ~/muster.token',
    'login https://muster.example.org:8443 --user alice --ca ca.crt',
    'login http://lon1.example.org:8080 --profile lon1 --token-stdin < token',
  ])
  command.action(async (given: string | undefined, options: LoginOptions) => {
    const globals = globalsOf(command)
    const config = (await readConfig(cli)) ?? noConfig
    const name = globals.profile ?? (cli.env.MUSTER_PROFILE || config.current)
    if (!profileName.test(name))
      throw new CliError('usage', `"${printable(name)}" is not a name for a profile: letters, digits, dots, dashes`)
    const before = config.profiles[name]
    const known = given ?? globals.url ?? (cli.env.MUSTER_URL || before?.url || (await readLocalLogin(cli))?.url)
    if (known === undefined) throw new CliError('usage', 'which server?', { hint: 'give its URL: muster login https://muster.example.org' })
    const url = serverUrl(known)
    if (!isProtected(url)) remark(cli, 'muster: this URL is not encrypted; what you log in with travels in the clear')
    // How one logs in is a matter of the server.
    const ca = await trusted(cli, options, before && serverUrl(before.url) === url ? before : undefined, url)
    const way = wayOf(options, globals.tokenFile, before && serverUrl(before.url) === url ? before : undefined)
    const found =
      way.kind === 'token'
        ? { token: await tokenFrom(cli, { tokenFile: globals.tokenFile, tokenStdin: options.tokenStdin, url }) }
        : await beginSession(cli, { url, ca, way, options })
    const { caller, server } = await attempt(`log in to ${url}`, clientFor(cli, { url, token: found.token, ca }).session.whoami({}))
    const profile = { url, token: found.token, ...(ca !== undefined && { ca }), ...('remember' in found && found.remember) }
    await writeConfig(cli, { current: name, profiles: { ...config.profiles, [name]: profile } })
    say(cli, printable(`logged in to ${server.kind} ${server.name} as ${caller.name} (${caller.role}), profile ${name}`))
    if ('session' in found) remark(cli, sessionText(found.session))
  })
}

interface LoginOptions {
  readonly tokenStdin?: true
  readonly user?: string
  readonly passwordFile?: string
  readonly passwordStdin?: true
  readonly oidc?: string | true
  readonly device?: true
  readonly lifetime?: string
  readonly ca?: string
  readonly fingerprint?: string
}

/** The authority by which the server is believed: as said now, or in the environment, or at the last login. */
async function trusted(cli: Cli, { ca, fingerprint }: LoginOptions, before: Profile | undefined, url: string): Promise<string | undefined> {
  if (ca !== undefined && fingerprint !== undefined) throw new CliError('usage', '--ca and --fingerprint say the same: give one of them')
  if (ca !== undefined) return readCa(ca, '--ca')
  if (fingerprint === undefined) return (await caOf(cli)) ?? before?.ca
  const { AuthorityError, authorityOf } = await import('@muster/shared/trust/authority')
  try {
    return await authorityOf(url, fingerprint)
  } catch (error) {
    if (!(error instanceof AuthorityError)) throw error
    throw new CliError(error.kind, error.message, { cause: error, ...(error.hint !== undefined && { hint: error.hint }) })
  }
}

/** How to log in; `provider` undefined: the only one there is. */
type Way =
  | { readonly kind: 'token' }
  | { readonly kind: 'password'; readonly user: string }
  | { readonly kind: 'oidc'; readonly provider: string | undefined }

/** The way that the options ask for; without any, the one that the profile was logged in by. */
function wayOf(options: LoginOptions, tokenFile: string | undefined, before: Profile | undefined): Way {
  const asks = (given: readonly unknown[]) => given.some(each => each !== undefined)
  const isToken = asks([tokenFile, options.tokenStdin])
  const isPassword = asks([options.user, options.passwordFile, options.passwordStdin])
  const isOidc = asks([options.oidc, options.device])
  if ([isToken, isPassword, isOidc].filter(Boolean).length > 1)
    throw new CliError('usage', 'a token, a password and a provider exclude each other: give one of them')
  if (isToken) return { kind: 'token' }
  if (isOidc || (!isPassword && before?.oidc !== undefined))
    return { kind: 'oidc', provider: typeof options.oidc === 'string' ? options.oidc : before?.oidc }
  const user = options.user ?? before?.user
  if (user !== undefined) return { kind: 'password', user }
  if (isPassword) throw new CliError('usage', 'whose password?', { hint: 'give --user NAME' })
  if (options.lifetime !== undefined) throw new CliError('usage', 'a token has its own lifetime; --lifetime is for --user and --oidc')
  return { kind: 'token' }
}

interface NewLogin {
  readonly token: string
  readonly session: BegunSession
  readonly remember: Pick<Profile, 'user' | 'oidc'>
}

async function beginSession(
  cli: Cli,
  { url, ca, way, options }: { url: string; ca: string | undefined; way: Exclude<Way, { kind: 'token' }>; options: LoginOptions },
): Promise<NewLogin> {
  const client = clientFor(cli, { url, ca })
  const lifetime = options.lifetime === undefined ? {} : { lifetime: options.lifetime }
  if (way.kind === 'password') {
    const password = await passwordFrom(cli, { ...options, question: `password of ${way.user} at ${url}: ` })
    const input = checked(calls.login, { user: way.user, password, ...lifetime })
    const session = await attempt(`log in to ${url} as ${way.user}`, client.session.login(input))
    return { token: session.token, session, remember: { user: way.user } }
  }
  const { items } = await attempt(`ask ${url} for its providers`, client.session.providers())
  const provider = chosenProvider(items, way.provider, url)
  const { identifyByDevice, identifyInBrowser } = await import('../oidc.ts')
  const identified = await (options.device ? identifyByDevice : identifyInBrowser)(cli, provider)
  const input = checked(calls.exchange, { provider: provider.name, ...identified, ...lifetime })
  const session = await attempt(`log in to ${url} with ${provider.name}`, client.session.exchange(input))
  return { token: session.token, session, remember: { oidc: provider.name } }
}

function chosenProvider(providers: CallOutput<'session.providers'>['items'], name: string | undefined, url: string) {
  const names = providers.map(each => each.name).join(', ')
  const [only, ...others] = name === undefined ? providers : providers.filter(each => each.name === name)
  if (only && others.length === 0) return only
  if (providers.length === 0) throw new CliError('usage', `${url} knows no provider`, { hint: 'log in with --user NAME' })
  throw new CliError('usage', name === undefined ? 'at which provider?' : `there is no provider ${name}`, {
    hint: `give --oidc with one of: ${names}`,
  })
}

function sessionText({ expiresAt, validAt }: BegunSession): string {
  const where = validAt === 'here' ? ', at this partition only' : ''
  return `the session is good until ${expiresAt.slice(0, 16).replace('T', ' ')} UTC${where}`
}

/** Whether nobody on the way can read along. */
function isProtected(url: string): boolean {
  const { protocol, hostname } = new URL(url)
  return protocol === 'https:' || hostname === 'localhost' || hostname === '[::1]' || hostname.startsWith('127.')
}

async function tokenFrom(cli: Cli, given: { tokenFile: string | undefined; tokenStdin: true | undefined; url: string }): Promise<string> {
  if (given.tokenFile !== undefined && given.tokenStdin) throw new CliError('usage', '--token-file and --token-stdin exclude each other')
  if (given.tokenFile !== undefined) return readToken(given.tokenFile)
  if (given.tokenStdin) return tokenIn(await readInput(cli), 'the standard input')
  if (!cli.stdin.isTTY) throw new CliError('usage', 'where is the token?', { hint: 'give --token-file FILE or --token-stdin' })
  return tokenIn(await askSecretly(cli, { what: 'token', question: `token for ${given.url}: ` }), 'the answer')
}

/** `muster logout`. */
export const fillLogout: Fill = (command, cli) => {
  command.description(
    'Forget a login: the profile named, else the current one. A token stays valid until an admin revokes it, a session until it expires; --everywhere ' +
      'ends all of your sessions, on all computers.',
  )
  command.option('--all', 'forget all logins').option('--everywhere', 'end all sessions of this user first; the server must be a front')
  examples(command, ['logout', 'logout --everywhere', 'logout --profile lon1', 'logout --all'])
  command.action(async (options: { all?: true; everywhere?: true }) => {
    const config = await readConfig(cli)
    if (!config) return remark(cli, 'Nobody was logged in.')
    if (options.everywhere) {
      const { client } = await connect(cli, command)
      await attempt('end all sessions', client.session.logout())
      remark(cli, 'all sessions are ended; partitions that can be reached know within seconds')
    }
    if (options.all) {
      await writeConfig(cli, noConfig)
      return say(cli, 'all logins forgotten')
    }
    const name = globalsOf(command).profile ?? config.current
    if (!config.profiles[name])
      throw new CliError('not-found', `there is no profile "${printable(name)}"`, { hint: 'see them with: muster profile list' })
    const { [name]: _, ...rest } = config.profiles
    const current = config.current === name ? (Object.keys(rest)[0] ?? noConfig.current) : config.current
    await writeConfig(cli, { current, profiles: rest })
    say(cli, `profile ${name} forgotten${config.current === name && rest[current] ? `; ${current} is the current one` : ''}`)
  })
}

/** `muster whoami`. */
export const fillWhoami: Fill = (command, cli) => {
  command.description('Who the token belongs to, and which server this is.')
  examples(command, ['whoami', 'whoami -v', 'whoami -o json'])
  command.action(async () => {
    const { client, url, from } = await connect(cli, command)
    const answer = await attempt('ask who I am', client.session.whoami({}))
    showOne(cli, formatOf(command), answer, {
      name: ({ caller }) => caller.name,
      text: ({ caller, server }) =>
        fieldsText(cli, [
          ['Name', caller.name],
          ['Role', caller.role],
          ['Server', `${server.kind} ${server.name}, version ${server.version}`],
          ['URL', url],
          ['Login', from],
        ]),
    })
  })
}

/** `muster profile` with its subcommands. */
export const fillProfile: Fill = (command, cli) => {
  examples(command, ['profile list', 'profile use lon1'])
  addProfileList(command, cli)
  addProfileUse(command, cli)
}

type Listed = Pick<Profile, 'url'> & { name: string; current: boolean }

const shape: Shape<Listed> = {
  columns: [
    { title: 'NAME', text: ({ name }) => name },
    { title: 'CURRENT', text: ({ current }) => (current ? 'yes' : '') },
    { title: 'URL', text: ({ url }) => url },
  ],
  name: ({ name }) => name,
  none: 'There are no profiles: log in with muster login.',
}

function addProfileList(parent: Command, cli: Cli): void {
  const command = parent.command('list').alias('ls').summary('list the logins')
  command.description('List the logins that are kept. Their tokens are not shown.')
  examples(command, ['profile list'])
  command.action(async () => {
    const { current, profiles } = (await readConfig(cli)) ?? noConfig
    const items = Object.entries(profiles).map(([name, { url }]) => ({ name, current: name === current, url }))
    if (globalsOf(command).verbose) remark(cli, `muster: from ${configPath(cli)}`)
    showList(cli, formatOf(command), { items }, shape)
  })
}

function addProfileUse(parent: Command, cli: Cli): void {
  const command = parent.command('use').summary('make a login the current one').argument('<name>', 'name of a profile')
  command.description('Make a login the current one: what is used where no --profile is given.')
  examples(command, ['profile use lon1'])
  command.action(async (name: string) => {
    const config = await readConfig(cli)
    if (!config?.profiles[name])
      throw new CliError('not-found', `there is no profile "${printable(name)}"`, { hint: 'see them with: muster profile list' })
    await writeConfig(cli, { ...config, current: name })
    say(cli, `profile ${name} is the current one: ${config.profiles[name].url}`)
  })
}
