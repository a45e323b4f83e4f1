// `muster login`, `logout`, `whoami`, `profile`: which server, as whom. A token never comes from the command line and never goes out.
import type { Command } from 'commander'
import { type Cli, examples, type Fill, formatOf, globalsOf, remark, say } from '../cli.ts'
import { clientFor, connect, readToken, serverUrl, tokenIn } from '../connection.ts'
import { attempt, CliError } from '../exit-codes.ts'
import { type Shape, showList, showOne } from '../output/show.ts'
import { fieldsText } from '../output/table.ts'
import { printable } from '../output/text.ts'
import { type Config, configPath, type Profile, readConfig, readLocalLogin, writeConfig } from '../profiles.ts'
import { askSecretly, readInput } from '../secrets.ts'

const noConfig: Config = { current: 'default', profiles: {} }
const profileName = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/

/** `muster login`. */
export const fillLogin: Fill = (command, cli) => {
  command.argument('[url]', "URL of a front or a partition; the profile's own where left out")
  command.description(
    'Log in: the token is tried, then kept in $XDG_CONFIG_HOME/muster/config.json, which only you can read. It comes from --token-file, ' +
      '--token-stdin or, on a terminal, a prompt that does not show it; never from the command line, where everybody could see it.',
  )
  command.option('--token-stdin', 'read the token from the standard input')
  examples(command, [
    'login https://muster.example.org --token-file ~/muster.token',
    'login http://lon1.example.org:8080 --profile lon1 --token-stdin < token',
  ])
  command.action(async (given: string | undefined, options: { tokenStdin?: true }) => {
    const globals = globalsOf(command)
    const config = (await readConfig(cli)) ?? noConfig
    const name = globals.profile ?? (cli.env.MUSTER_PROFILE || config.current)
    if (!profileName.test(name))
      throw new CliError('usage', `"${printable(name)}" is not a name for a profile: letters, digits, dots, dashes`)
    const known = given ?? globals.url ?? (cli.env.MUSTER_URL || config.profiles[name]?.url || (await readLocalLogin(cli))?.url)
    if (known === undefined) throw new CliError('usage', 'which server?', { hint: 'give its URL: muster login https://muster.example.org' })
    const url = serverUrl(known)
    const token = await tokenFrom(cli, { tokenFile: globals.tokenFile, tokenStdin: options.tokenStdin, url })
    const { caller, server } = await attempt(`log in to ${url}`, clientFor(cli, { url, token }).session.whoami({}))
    await writeConfig(cli, { current: name, profiles: { ...config.profiles, [name]: { url, token } } })
    say(cli, printable(`logged in to ${server.kind} ${server.name} as ${caller.name} (${caller.role}), profile ${name}`))
    if (!isProtected(url)) remark(cli, 'muster: this URL is not encrypted; the token travels in the clear')
  })
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
  command.description('Forget a login: the profile named, else the current one. The token itself stays valid until an admin revokes it.')
  command.option('--all', 'forget all logins')
  examples(command, ['logout', 'logout --profile lon1', 'logout --all'])
  command.action(async (options: { all?: true }) => {
    const config = await readConfig(cli)
    if (!config) return remark(cli, 'Nobody was logged in.')
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
