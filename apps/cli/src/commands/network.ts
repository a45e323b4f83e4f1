// `muster machine network`: how a machine's network is to be. People write the document as YAML.
import type { CallAnswer } from '@muster/shared/contract/contract'
import { machines as calls } from '@muster/shared/contract/machines'
import type { Command } from 'commander'
import { type Cli, examples, formatOf } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt, CliError } from '../exit-codes.ts'
import { readText } from '../files.ts'
import { showOne } from '../output/show.ts'
import { checked } from '../schema-options.ts'
import { readInput } from '../secrets.ts'

interface NetworkFlags {
  readonly file?: string
  readonly clear?: true
}

export function addNetwork(parent: Command, cli: Cli): void {
  const command = parent.command('network').summary('see or say how its network is to be').argument('<id>', 'id of a machine')
  command.description(
    'Without a flag: what was said of the network of a machine, and what its cloud-init is told. With one: say it anew, from the next deployment on.\n' +
      'The document has ethernets (by mac), bonds, vlans and bridges; docs/metadata.md shows one.',
  )
  command
    .option('--file <file>', 'YAML document; "-" reads it from the standard input')
    .option('--clear', 'forget what was said: the machine asks by DHCP')
  examples(command, ['machine network lon1-4y3h7n', 'machine network lon1-4y3h7n --file network.yaml'])
  command.action(async (id: string, { file, clear }: NetworkFlags) => {
    if (file !== undefined && clear) throw new CliError('usage', 'give either --file or --clear')
    const document = file === undefined ? null : await readDocument(cli, file, 'network')
    const isChange = file !== undefined || clear === true
    const input = isChange ? checked(calls.setNetwork, { id, document }) : undefined
    checked(calls.network, { id })
    const { client } = await connect(cli, command)
    const network = await attempt(
      `network of ${id}`,
      input === undefined ? client.machines.network({ id }) : client.machines.setNetwork(input),
    )
    const { stringify } = await yaml()
    showOne(cli, formatOf(command), network, { name: () => id, text: shown => networkText(shown, stringify) })
  })
}

/** A document of this kind from a file, or from the standard input. */
export async function readDocument(cli: Cli, path: string, what: 'network' | 'storage' | 'definition' | 'settings'): Promise<unknown> {
  const text = path === '-' ? await readInput(cli) : await readText(path)
  const { parse } = await yaml()
  try {
    return parse(text, { maxAliasCount: 20 })
  } catch (error) {
    throw new CliError('usage', `read the ${what} document in ${path}: ${(error as Error).message}`, { cause: error })
  }
}

/** Loaded by those who need it: its 72 modules would cost every command on machines a tenth of its start. */
const yaml = () => import('yaml')

function networkText({ document, deployment, config }: CallAnswer<'machines.network'>, stringify: (value: unknown) => string): string {
  const parts: [title: string, value: unknown][] = [
    ['what was set for the machine', document ?? 'nothing: it asks by DHCP'],
    ...(deployment ? [['what its deployment was given instead', deployment] as [string, unknown]] : []),
    ['what its cloud-init is told', config],
  ]
  return parts.map(([title, value]) => `# ${title}\n${stringify(value)}`).join('\n')
}
