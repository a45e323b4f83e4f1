// What every command is given: the environment, read once in main.ts, and the options that all commands share.
import type { Command } from 'commander'

export interface Cli {
  readonly version: string
  readonly env: Readonly<Record<string, string | undefined>>
  /** The current folder. */
  readonly folder: string
  readonly stdin: NodeJS.ReadStream
  readonly stdout: NodeJS.WriteStream
  readonly stderr: NodeJS.WriteStream
  /** Aborts on Ctrl-C. */
  readonly signal: AbortSignal
  /** Epoch milliseconds. */
  readonly now: () => number
}

export const formats = ['table', 'wide', 'json', 'ndjson', 'name'] as const
export type Format = (typeof formats)[number]

/** The options of `muster` itself; they may stand before or behind the command. */
export interface Globals {
  readonly url?: string
  readonly tokenFile?: string
  readonly profile?: string
  readonly output?: Format
  readonly verbose?: true
}

export function globalsOf(command: Command): Globals {
  return command.optsWithGlobals()
}

/** The output format asked for; people get tables. */
export function formatOf(command: Command): Format {
  return globalsOf(command).output ?? 'table'
}

/** A file of commands fills a command that main.ts only knows by name. */
export type Fill = (command: Command, cli: Cli) => void

/** Adds examples to a command's help. Every command has some: a test walks all of them. */
export function examples(command: Command, lines: readonly string[]): Command {
  return command.addHelpText('after', `\nExamples:\n${lines.map(line => `  $ muster ${line}`).join('\n')}`)
}

/** Writes a line (or several) to the standard output. */
export function say(cli: Cli, text: string): void {
  cli.stdout.write(text.endsWith('\n') ? text : `${text}\n`)
}

/** Writes a remark to the error output, where it does not disturb a pipe. */
export function remark(cli: Cli, text: string): void {
  cli.stderr.write(`${text}\n`)
}
