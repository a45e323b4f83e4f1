// `muster nats`: what the message bus must know of fronts and partitions, so that each can speak for itself only. Needs no server.
import { writeFile } from 'node:fs/promises'
import { type BusParty, brokerConfiguration } from '@muster/shared/bus/permissions'
import { partitionNamePattern } from '@muster/shared/ids'
import { createUser, fromPublic } from '@nats-io/nkeys'
import { type Command, InvalidArgumentError } from 'commander'
import { type Cli, examples } from '../cli.ts'
import { CliError } from '../exit-codes.ts'

interface Party {
  readonly party: BusParty
  readonly publicKey: string
}

export function fillNats(command: Command, cli: Cli): void {
  command.description(
    'Keys and permissions for nats-server: a partition cannot speak for another, nor read what it is asked. Needs no server.',
  )
  examples(command, ['nats key --out lon1.nkey', 'nats config --front UDXU… --partition lon1=UAH2… >muster-auth.conf'])
  addKey(command, cli)
  addConfig(command, cli)
}

function addKey(parent: Command, cli: Cli): void {
  const command = parent.command('key').summary('make a key for a front or a partition')
  command
    .description(
      'Makes an nkey. Its seed, a secret, goes into a file for NATS_NKEY_FILE; its public half is printed, for `muster nats config`.',
    )
    .requiredOption('--out <file>', 'where the seed goes; a file that is there is not touched')
  examples(command, ['nats key --out /etc/muster/lon1.nkey'])
  command.action(async ({ out }: { out: string }) => {
    const key = createUser()
    try {
      await writeFile(out, `${new TextDecoder().decode(key.getSeed())}\n`, { mode: 0o600, flag: 'wx' })
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException
      throw new CliError('usage', code === 'EEXIST' ? `${out} is there already, and may be in use` : `write ${out}: ${message}`, {
        cause: error,
      })
    }
    cli.stdout.write(`${key.getPublicKey()}\n`)
  })
}

function addConfig(parent: Command, cli: Cli): void {
  const command = parent.command('config').summary('permissions for nats-server')
  command
    .description(
      'Prints the `authorization` of a nats-server: who is let in, and what each may say and hear. Include it in its configuration, and reload that.',
    )
    .requiredOption('--front <key...>', 'public keys of fronts', readKey)
    .requiredOption('--partition <name=key...>', 'partitions and their public keys', readPartition)
  examples(command, [
    'nats config --front UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4 --partition lon1=UAH2… par2=UBR7… >muster-auth.conf',
    'nats key --out lon1.nkey',
  ])
  command.action((flags: { front: Party[]; partition: Party[] }) => {
    const parties = [...flags.front, ...flags.partition]
    const twice = firstTwice(parties.map(({ publicKey }) => publicKey)) ?? firstTwice(flags.partition.map(nameOf))
    if (twice !== undefined) throw new CliError('usage', `${twice} is given twice; everybody has a key of their own`)
    cli.stdout.write(brokerConfiguration(parties))
  })
}

const nameOf = ({ party }: Party) => (party.kind === 'partition' ? party.name : 'front')

function firstTwice(values: readonly string[]): string | undefined {
  return values.find((value, index) => values.indexOf(value) !== index)
}

function readKey(text: string, before: Party[] = []): Party[] {
  return [...before, { party: { kind: 'front' }, publicKey: publicKeyIn(text) }]
}

function readPartition(text: string, before: Party[] = []): Party[] {
  const [name = '', key = ''] = text.split('=', 2)
  if (!partitionNamePattern.test(name))
    throw new InvalidArgumentError(`"${text}" is not NAME=KEY, with the name of a partition such as lon1.`)
  return [...before, { party: { kind: 'partition', name }, publicKey: publicKeyIn(key) }]
}

function publicKeyIn(text: string): string {
  if (/^S/.test(text)) throw new InvalidArgumentError('that is a seed, which is a secret; give the public key, which begins with U.')
  try {
    fromPublic(text)
  } catch {
    throw new InvalidArgumentError(`"${text}" is not the public key that \`muster nats key\` printed.`)
  }
  if (!text.startsWith('U')) throw new InvalidArgumentError(`"${text}" is not the key of a user.`)
  return text
}
