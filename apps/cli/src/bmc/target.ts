// Which BMC, as whom: an address like `ipmi://admin@10.0.3.9`, and the flags beside it, as the settings of a power driver. The password is
// in none of them: what stands on a command line can be read by everybody on the computer.
import { DriverError, type PowerDriver, type PowerSession } from '@muster/drivers/driver'
import { drivers } from '@muster/drivers/drivers'
import { type Command, InvalidArgumentError } from 'commander'
import { type Cli, globalsOf, remark } from '../cli.ts'
import { CliError } from '../exit-codes.ts'
import { printable } from '../output/text.ts'
import { collectOf, splitOnce } from '../quantities.ts'
import { askSecretly, readInput, readSecretFile, secretIn } from '../secrets.ts'
import { bmcFailure } from './failure.ts'

/** A BMC as the command line names it. */
export interface BmcUrl {
  readonly type: string
  /** Undefined where the address names nobody; empty for the user without a name (`ipmi://@HOST`). */
  readonly user: string | undefined
  /** Host, and port where one is given. */
  readonly address: string
}

/** What every command about a BMC takes beside its address. */
export interface BmcFlags {
  readonly passwordFile?: string
  readonly passwordStdin?: true
  readonly kg?: string
  readonly kgFile?: string
  readonly privilege?: string
  readonly suite?: string | number
  readonly setting?: readonly (readonly [string, unknown])[]
}

/** A driver with the settings it is opened with, which its schema has accepted. */
export interface Target {
  readonly driver: PowerDriver
  readonly settings: Readonly<Record<string, unknown>>
}

/** The drivers that log in somewhere: what has no address or no account, such as a webhook, is not tried this way. */
const addressable = drivers.filter(({ settings: { shape } }) => ['address', 'user', 'password'].every(name => name in shape))

/** Adds the address and the flags that say how to log in. */
export function addTarget(command: Command): Command {
  return command
    .argument('<url>', `the BMC: ${addressable.map(({ type }) => `${type}://USER@HOST[:PORT]`).join(' or ')}; IPv6 in brackets`)
    .option('--password-file <file>', 'file that holds the password on one line; asked for at the terminal without one')
    .option('--password-stdin', 'read the password from the standard input')
    .option('--kg-file <file>', "file that holds IPMI's BMC key: text, or 0x and hex digits")
    .option('--kg <hex>', 'the BMC key itself: everybody on this computer can read it while this runs, so prefer --kg-file', parseHexKey)
    .option('--privilege <level>', 'IPMI level to log in with: USER, OPERATOR or ADMINISTRATOR', text => text.toUpperCase())
    .option('--suite <number>', 'IPMI cipher suite: 17, 3 or auto', text => (/^\d+$/.test(text) ? Number(text) : text))
    .option(
      '--setting <name=value>',
      'another setting of the driver that is no secret; may be repeated (see docs/generated/power-drivers.md)',
      collectOf(parseSetting),
    )
}

function parseHexKey(text: string): string {
  const digits = text.replace(/^0x/i, '')
  if (!/^(?:[0-9a-f]{2}){1,20}$/i.test(digits)) throw new InvalidArgumentError('It has 2 to 40 hex digits, two for each byte.')
  return `0x${digits}`
}

/** A value that reads as JSON is taken as such, so that numbers and booleans reach the driver as what they are. */
function parseSetting(text: string): readonly [string, unknown] {
  const [name, value] = splitOnce(text)
  if (value === undefined || name === '') throw new InvalidArgumentError('It has the form name=value.')
  if (drivers.some(({ secrets }) => secrets.includes(name)))
    throw new InvalidArgumentError('A secret does not belong on a command line; there is a flag that reads it from a file.')
  return [name, /^(?:true|false|-?\d+)$/.test(value) ? JSON.parse(value) : value]
}

/**
 * Reads `ipmi://USER@HOST[:PORT]`. A user name with `:`, `/` or `%` is written percent-encoded. Throws CliError `usage`, which never repeats
 * the text: there may be a password in it.
 */
export function parseBmcUrl(text: string): BmcUrl {
  // The last @ ends the user: names such as admin@example.org need no encoding.
  const match = /^([a-z][a-z0-9+-]*):\/\/(?:(.*)@)?([^@/?#\s]+)\/?$/i.exec(text)
  const form = addressable.map(({ type }) => `${type}://USER@HOST[:PORT]`).join(' or ')
  if (!match) throw new CliError('usage', `that is not the address of a BMC: write ${form}`)
  const [, type = '', encoded, address = ''] = match
  if (encoded?.includes(':')) {
    throw new CliError('usage', 'a password does not belong on a command line, where everybody on the computer can read it', {
      hint: 'give --password-file or --password-stdin; change this password if it is a real one (a colon within a user name is written %3A)',
    })
  }
  if (!addressable.some(driver => driver.type === type.toLowerCase()))
    throw new CliError('usage', `no power driver is called "${printable(type)}": write ${form}`)
  // URLs write the % before the zone of an IPv6 address as %25.
  return { type: type.toLowerCase(), user: encoded === undefined ? undefined : decoded(encoded), address: address.replace('%25', '%') }
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    throw new CliError('usage', 'the user name in the address is not well encoded: write % itself as %25')
  }
}

/** The driver and its settings from address and flags; reads or asks for the password. */
export async function targetOf(cli: Cli, text: string, flags: BmcFlags): Promise<Target> {
  const { type, user, address } = parseBmcUrl(text)
  const driver = addressable.find(known => known.type === type) as PowerDriver
  if (user === undefined)
    throw new CliError('usage', 'which user?', {
      hint: `name one: ${type}://admin@${address} (the user without a name: ${type}://@${address})`,
    })
  if (flags.kg !== undefined && flags.kgFile !== undefined) throw new CliError('usage', '--kg and --kg-file exclude each other')
  const kg = flags.kgFile === undefined ? flags.kg : await readSecretFile(flags.kgFile)
  const settings = {
    address,
    user,
    ...(kg !== undefined && { kg }),
    ...(flags.privilege !== undefined && { privilege: flags.privilege }),
    ...(flags.suite !== undefined && { suite: flags.suite }),
    ...Object.fromEntries(flags.setting ?? []),
  }
  // Before a password is asked for: who has mistyped something else should not type it twice.
  checkSettings(driver, { ...settings, password: '' })
  const password = await passwordOf(cli, flags, `${user}${user && '@'}${address}`)
  checkSettings(driver, { ...settings, password })
  return { driver, settings: { ...settings, password } }
}

/** Opens a session; with -v what the driver notes goes to the error output. No I/O yet. */
export function openTarget(cli: Cli, command: Command, { driver, settings }: Target): PowerSession {
  const log = logOf(cli, command)
  return driver.open(driver.settings.parse(settings), { signal: cli.signal, ...(log && { log }) })
}

/** What a driver notes, as remarks; undefined where nobody asked for it. */
export function logOf(cli: Cli, command: Command) {
  if (!globalsOf(command).verbose) return undefined
  return (message: string, facts: Readonly<Record<string, string | number>>) => {
    const text = Object.entries(facts).map(([name, value]) => `${name} ${value}`)
    remark(cli, printable(`muster: ${message} (${text.join(', ')})`))
  }
}

/** Throws CliError `usage` naming the flag of each wrong setting, never its value. */
function checkSettings(driver: PowerDriver, settings: Readonly<Record<string, unknown>>): void {
  const checked = driver.settings.safeParse(settings)
  if (checked.success) return
  throw bmcFailure(
    new DriverError({
      kind: 'settings',
      tried: 'read the settings',
      target: driver.type,
      got: checked.error.issues.map(issue => `${issue.path.join('.') || 'settings'}: ${issue.message}`).join('; '),
      hint: `See what the driver takes in docs/generated/power-drivers.md.`,
    }),
  )
}

async function passwordOf(cli: Cli, flags: BmcFlags, whose: string): Promise<string> {
  if (flags.passwordFile !== undefined && flags.passwordStdin)
    throw new CliError('usage', '--password-file and --password-stdin exclude each other')
  if (flags.passwordFile !== undefined) return readSecretFile(flags.passwordFile)
  if (flags.passwordStdin) return secretIn(await readInput(cli), 'the standard input')
  if (!cli.stdin.isTTY) throw new CliError('usage', 'where is the password?', { hint: 'give --password-file FILE or --password-stdin' })
  return askSecretly(cli, { what: 'password', question: `password of ${printable(whose)}: ` })
}
