// The program's shape: every command by name, and the file that fills it when it is asked for. Loading all of them would cost each call
// the start of the slowest.
import { Command, CommanderError, Option } from 'commander'
import { type Cli, type Fill, formats, type Globals, globalsOf } from './cli.ts'
import { CliError, Exit, type ExitName, exitTable, exitTableText } from './exit-codes.ts'

interface Noun {
  readonly name: string
  readonly alias?: string
  readonly summary: string
  readonly group: string
  readonly load: () => Promise<Fill>
}

const machines = 'Machines:'
const federation = 'Federation:'
const session = 'Session:'
const serverless = 'Without a server:'

/** Every command of `muster`, in the order of its help. */
export const nouns: readonly Noun[] = [
  {
    name: 'machine',
    summary: 'look at machines and act on them',
    group: machines,
    load: async () => (await import('./commands/machine.ts')).fillMachine,
  },
  {
    name: 'allocate',
    alias: 'acquire',
    summary: 'ask for machines',
    group: machines,
    load: async () => (await import('./commands/allocate.ts')).fillAllocate,
  },
  {
    name: 'allocation',
    summary: 'what one has, and giving it back',
    group: machines,
    load: async () => (await import('./commands/allocation.ts')).fillAllocation,
  },
  {
    name: 'power',
    summary: 'which machines are on, and which are not known to be',
    group: machines,
    load: async () => (await import('./commands/power.ts')).fillPower,
  },
  { name: 'tag', summary: 'words on machines', group: machines, load: async () => (await import('./commands/label.ts')).fillLabel('tag') },
  {
    name: 'pool',
    summary: 'who may use which machines',
    group: machines,
    load: async () => (await import('./commands/label.ts')).fillLabel('pool'),
  },
  {
    name: 'zone',
    summary: 'what fails together',
    group: machines,
    load: async () => (await import('./commands/label.ts')).fillLabel('zone'),
  },
  {
    name: 'subnet',
    summary: 'networks, and which of their addresses are not given out',
    group: machines,
    load: async () => (await import('./commands/subnet.ts')).fillSubnet,
  },
  {
    name: 'address',
    summary: 'who has which address, and reserving one',
    group: machines,
    load: async () => (await import('./commands/address.ts')).fillAddress,
  },
  { name: 'os', summary: 'what can be deployed, and where', group: machines, load: async () => (await import('./commands/os.ts')).fillOs },
  {
    name: 'script',
    summary: 'what commissioning and tests can run',
    group: machines,
    load: async () => (await import('./commands/script.ts')).fillScript,
  },
  {
    name: 'status',
    summary: 'the whole federation at a glance',
    group: federation,
    load: async () => (await import('./commands/partition.ts')).fillStatus,
  },
  {
    name: 'partition',
    summary: 'the partitions and how they are',
    group: federation,
    load: async () => (await import('./commands/partition.ts')).fillPartition,
  },
  {
    name: 'config',
    summary: 'what belongs to the whole federation',
    group: federation,
    load: async () => (await import('./commands/config.ts')).fillConfig,
  },
  {
    name: 'user',
    summary: 'who may come in',
    group: federation,
    load: async () => (await import('./commands/identity.ts')).fillUser,
  },
  {
    name: 'token',
    summary: 'tokens of users, for scripts and people',
    group: federation,
    load: async () => (await import('./commands/identity.ts')).fillToken,
  },
  {
    name: 'group',
    summary: 'sets of users, and what being in them gives',
    group: federation,
    load: async () => (await import('./commands/group.ts')).fillGroup,
  },
  {
    name: 'quota',
    summary: 'how many machines somebody may have at a time',
    group: federation,
    load: async () => (await import('./commands/quota.ts')).fillQuota,
  },
  {
    name: 'event',
    summary: 'what happened, and what happens',
    group: federation,
    load: async () => (await import('./commands/event.ts')).fillEvent,
  },
  {
    name: 'audit',
    summary: 'who changed what, from where',
    group: federation,
    load: async () => (await import('./commands/audit.ts')).fillAudit,
  },
  {
    name: 'webhook',
    summary: 'who is told of events',
    group: federation,
    load: async () => (await import('./commands/webhook.ts')).fillWebhook,
  },
  {
    name: 'doctor',
    summary: 'what is wrong on this host, and what to do',
    group: federation,
    load: async () => (await import('./commands/doctor.ts')).fillDoctor,
  },
  {
    name: 'bmc',
    summary: 'try a BMC by hand',
    group: serverless,
    load: async () => (await import('./commands/bmc.ts')).fillBmc,
  },
  {
    name: 'nats',
    summary: 'keys and permissions for the message bus',
    group: serverless,
    load: async () => (await import('./commands/nats.ts')).fillNats,
  },
  { name: 'login', summary: 'log in to a server', group: session, load: async () => (await import('./commands/session.ts')).fillLogin },
  { name: 'logout', summary: 'forget a login', group: session, load: async () => (await import('./commands/session.ts')).fillLogout },
  { name: 'whoami', summary: 'who am I, and where', group: session, load: async () => (await import('./commands/session.ts')).fillWhoami },
  {
    name: 'password',
    summary: 'change your own password',
    group: session,
    load: async () => (await import('./commands/own.ts')).fillPassword,
  },
  { name: 'key', summary: 'your own SSH keys', group: session, load: async () => (await import('./commands/own.ts')).fillKey },
  { name: 'profile', summary: 'several logins', group: session, load: async () => (await import('./commands/session.ts')).fillProfile },
]

/** The program, with each command filled as soon as the command line names it. What commander has to say of mistakes goes to `said`. */
export function createProgram(cli: Cli, said: string[] = []): Command {
  const program = new Command('muster')
    .description('Bare metal, run as a federation.')
    .version(cli.version, '--version', 'show the version')
    .helpOption('-h, --help', 'show help')
    // `help machine` would show the empty command before it is filled; run() turns it into `machine --help`.
    .helpCommand(false)
    .exitOverride()
    .showSuggestionAfterError()
    .showHelpAfterError('(see --help)')
    .configureHelp({ showGlobalOptions: true, sortSubcommands: false })
    .configureOutput({
      writeOut: text => cli.stdout.write(text),
      // Told by endingOf, which knows the format that failures are wanted in.
      writeErr: text => said.push(text),
      outputError: (text, write) => write(text.replace(/^error: /, 'muster: ')),
      getOutHelpWidth: () => (cli.stdout.isTTY ? cli.stdout.columns : 120),
      getErrHelpWidth: () => (cli.stderr.isTTY ? cli.stderr.columns : 120),
      getOutHasColors: () => false,
      getErrHasColors: () => false,
    })
    .option('--url <url>', 'URL of a front or a partition (MUSTER_URL)')
    .option('--token-file <file>', 'file that holds the token (MUSTER_TOKEN_FILE, or MUSTER_TOKEN for the token itself)')
    .option('--profile <name>', 'a login of `muster login` (MUSTER_PROFILE)')
    .addOption(new Option('-o, --output <format>', 'how answers are printed').choices([...formats]))
    .option('-v, --verbose', 'say which server is used and why; with a failure, where it arose')
    .addHelpText(
      'after',
      '\nExamples:\n  $ muster login https://muster.example.org --token-file ~/muster.token\n  $ muster machine list --state ready' +
        `\n  $ muster allocate --tag gpu --memory 64GiB --deploy debian/12 --wait 1h\n\nExit codes:\n${exitTableText()}`,
    )
  const byCommand = new Map<Command, Noun>()
  for (const noun of nouns) {
    const command = program
      .command(noun.name)
      .summary(noun.summary)
      .description(`${sentence(noun.summary)}.`)
      .helpGroup(noun.group)
      .helpCommand(false)
    if (noun.alias) command.alias(noun.alias)
    byCommand.set(command, noun)
  }
  program.hook('preSubcommand', async (_, command) => {
    const noun = byCommand.get(command)
    if (!noun) return
    byCommand.delete(command)
    const fill = await noun.load()
    fill(command, cli)
  })
  return program
}

const sentence = (text: string) => text.charAt(0).toUpperCase() + text.slice(1)

/** Runs one command line (without program names); returns its exit code. Everything there is to say is written by then. */
export async function run(cli: Cli, words: readonly string[]): Promise<number> {
  const said: string[] = []
  const program = createProgram(cli, said)
  const [first, ...rest] = words
  if (first === undefined) {
    program.outputHelp()
    return exitTable.usage.code
  }
  try {
    await program.parseAsync(first === 'help' ? [...rest, '--help'] : [...words], { from: 'user' })
    return exitTable.ok.code
  } catch (error) {
    if (error instanceof CommanderError) return exitTable[await tellUsage(cli, error, { said: said.join(''), words })].code
    return exitTable[await endingOf(cli, error, globalsOf(program))].code
  }
}

async function endingOf(cli: Cli, error: unknown, globals: Globals): Promise<ExitName> {
  if (error instanceof Exit) return error.exit
  if (cli.signal.aborted) return 'interrupted'
  const { tellFailure } = await import('./output/problem.ts')
  return tellFailure(cli, error, { format: globals.output ?? 'table', verbose: globals.verbose === true })
}

/** A mistake on the command line. Showing help that was asked for, or the version, is none. */
async function tellUsage(cli: Cli, error: CommanderError, { said, words }: { said: string; words: readonly string[] }): Promise<ExitName> {
  if (error.exitCode === 0) return 'ok'
  const text = withoutSecrets(said)
  const format = formatIn(words)
  if (format !== 'json' && format !== 'ndjson') {
    cli.stderr.write(text)
    return 'usage'
  }
  const { tellFailure } = await import('./output/problem.ts')
  // Without a subcommand commander shows the help, which is no message.
  const message =
    error.code === 'commander.help'
      ? 'a subcommand is missing'
      : text
          .replace(/^muster: |\(see --help\)/g, '')
          .trim()
          .replace(/\s+/g, ' ')
  return tellFailure(cli, new CliError('usage', message, { cause: error, hint: 'see --help' }), { format, verbose: false })
}

/**
 * Commander repeats what it cannot read. Whoever put a secret there by mistake should not find it in the log of a pipeline too:
 * `--password=…` is no option, a K_g with a typing error is still one, and an address may have a password in it.
 */
function withoutSecrets(text: string): string {
  return text
    .replace(/(unknown option '--?[^='\s]+)=[^\n]*'/g, "$1'")
    .replace(/(option '--kg <hex>' argument) '[^\n]*' (is invalid)/g, '$1 $2')
    .replace(/(argument '[^='\n]*(?:pass|secret|token|key|kg)[^='\n]*)=[^\n]*' (is invalid)/gi, "$1=…' $2")
    .replace(/:\/\/[^\n]*@/g, '://…@')
}

/** The format asked for on a command line that commander could not read, undefined where it names none. */
export function formatIn(words: readonly string[]): string | undefined {
  const end = words.indexOf('--')
  const ours = end < 0 ? words : words.slice(0, end)
  return ours.reduce<string | undefined>((format, word, index) => {
    if (word === '-o' || word === '--output') return ours[index + 1]
    return /^(?:-o=?|--output=)(\w+)$/.exec(word)?.[1] ?? format
  }, undefined)
}
