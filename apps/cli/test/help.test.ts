// --help of every command, found by walking the program itself: it says what it does and shows an example that the program would accept.
import type { Command } from 'commander'
import { expect, test } from 'vitest'
import type { Cli } from '../src/cli.ts'
import { createProgram, nouns } from '../src/program.ts'
import { aHome } from './muster.ts'

const cli: Cli = {
  version: '0.0.0',
  env: {},
  folder: '/',
  stdin: process.stdin,
  stdout: process.stdout,
  stderr: process.stderr,
  signal: new AbortController().signal,
  now: Date.now,
}

const program = createProgram(cli)
for (const noun of nouns) {
  const command = program.commands.find(known => known.name() === noun.name) as Command
  const fill = await noun.load()
  fill(command, cli)
}

const walk = (command: Command): Command[] => [command, ...command.commands.flatMap(walk)]
const pathOf = (command: Command): string => (command.parent?.parent ? `${pathOf(command.parent)} ${command.name()}` : command.name())
const commands = walk(program).slice(1)

function helpOf(command: Command): string {
  let text = ''
  command.configureOutput({ writeOut: more => (text += more) })
  command.outputHelp()
  return text
}

test('there are as many commands as the contract asks for', () => {
  expect(commands.map(pathOf)).toEqual(
    expect.arrayContaining(['machine mark-broken', 'machine power cycle', 'allocate', 'event tail', 'zone delete']),
  )
})

test.for(commands.map(command => [pathOf(command), command] as const))('muster %s explains itself', ([path, command]) => {
  const help = helpOf(command)
  expect(command.description()).not.toBe('')
  const lines = help
    .slice(help.indexOf('Examples:'))
    .split('\n')
    .filter(line => line.includes('$ '))
  expect(lines.length).toBeGreaterThan(0)
  expect(lines.some(line => [path, ...command.aliases()].some(name => line.includes(`muster ${name.split(' ')[0]}`)))).toBe(true)
  // An example with a flag that does not exist would be worse than none.
  for (const line of lines) for (const word of wordsOf(line)) expect(flagsAnywhere, `${path}: ${line}`).toContain(word)
})

const flagsAnywhere = walk(program).flatMap(command => command.options.flatMap(option => [option.long, option.short]))

/** The flags of the `muster` part of an example: what stands in quotes or behind a pipe is not ours. */
function wordsOf(line: string): string[] {
  const ours = line.replace(/'[^']*'|"[^"]*"/g, '').split('|')[0] as string
  return ours.split(' ').filter(word => /^--?[a-z]/.test(word) && word !== '-memoryMib')
}

test('help and version come without a server, a login, or a failure', async () => {
  using home = aHome()
  const [help, version, nested] = await Promise.all([
    home.muster(['--help']),
    home.muster(['--version']),
    home.muster(['help', 'machine', 'power', 'on']),
  ])
  expect(help).toMatchObject({ code: 0, stderr: '', stdout: expect.stringContaining('Exit codes:') })
  expect(version).toMatchObject({ code: 0, stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/) })
  expect(nested).toMatchObject({ code: 0, stdout: expect.stringContaining('muster machine power on lon1-4y3h7n') })
})
