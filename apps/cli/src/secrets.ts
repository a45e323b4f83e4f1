// Secrets that people give: from a file, the standard input, or a prompt that shows nothing; never from the command line.
import { createInterface } from 'node:readline'
import { passwordProblem } from '@muster/shared/password'
import type { Cli } from './cli.ts'
import { CliError } from './exit-codes.ts'
import { readText } from './files.ts'

/** The standard input to its end. */
export async function readInput(cli: Cli): Promise<string> {
  return (await cli.stdin.toArray()).map(String).join('')
}

/** Asks on the terminal without showing what is typed; `what` names it where none was given. */
export async function askSecretly(cli: Cli, { what, question }: { what: string; question: string }): Promise<string> {
  // Without an output readline echoes nothing, while `terminal` keeps the editing keys and Ctrl-C working. It comes before the question:
  // from here on the terminal itself echoes nothing either.
  const lines = createInterface({ input: cli.stdin, terminal: true })
  cli.stderr.write(question)
  try {
    return await new Promise<string>((resolve, reject) => {
      lines.once('line', resolve)
      lines.once('SIGINT', () => reject(new CliError('interrupted', 'interrupted')))
      lines.once('close', () => reject(new CliError('usage', `no ${what} was given`)))
    })
  } finally {
    lines.close()
    cli.stderr.write('\n')
  }
}

/** A secret in a file: one line, whose end is not part of it. Spaces are: passwords may begin or end with one. */
export async function readSecretFile(path: string): Promise<string> {
  return secretIn(await readText(path), path)
}

/** The secret in a text from `source`. Says what is wrong without repeating the text. */
export function secretIn(text: string, source: string): string {
  const secret = text.replace(/\r?\n$/, '')
  if (/[\r\n]/.test(secret)) throw new CliError('usage', `${source} must hold one line and nothing else`)
  return secret
}

/** Where a password comes from; exactly one way, and never the command line. */
export interface PasswordSource {
  readonly passwordFile?: string | undefined
  readonly passwordStdin?: true | undefined
  /** What is asked on the terminal where neither is given. */
  readonly question: string
}

/** A password from a file, the standard input, or a prompt. Throws CliError where there is none to be had. */
export async function passwordFrom(cli: Cli, { passwordFile, passwordStdin, question }: PasswordSource): Promise<string> {
  if (passwordFile !== undefined && passwordStdin) throw new CliError('usage', '--password-file and --password-stdin exclude each other')
  if (passwordFile !== undefined) return readSecretFile(passwordFile)
  if (passwordStdin) return secretIn(await readInput(cli), 'the standard input')
  if (!cli.stdin.isTTY) throw new CliError('usage', 'where is the password?', { hint: 'give --password-file FILE or --password-stdin' })
  return askSecretly(cli, { what: 'password', question })
}

export interface PasswordOptions {
  readonly passwordFile?: string
  readonly passwordStdin?: true
}

/** A password that somebody chooses for `user`, asked for twice. Throws CliError where it is none that a user may take. */
export async function newPassword(cli: Cli, user: string, options: PasswordOptions): Promise<string> {
  const password = await passwordFrom(cli, { ...options, question: `new password of ${user}: ` })
  const problem = passwordProblem(user, password)
  if (problem) throw new CliError('usage', problem)
  const isTyped = options.passwordFile === undefined && !options.passwordStdin
  if (isTyped && (await askSecretly(cli, { what: 'password', question: 'the same again: ' })) !== password)
    throw new CliError('usage', 'the two are not the same; nothing was changed')
  return password
}
