// `muster config …`: what belongs to the whole federation; who changed it, and whether every partition has it.
import { config as calls, type Generation, type HeldCopy } from '@muster/shared/contract/config'
import type { CallOutput, CallRequest } from '@muster/shared/contract/contract'
import { type Difference, type DocumentKind, documentKinds } from '@muster/shared/global/documents'
import { Argument, type Command } from 'commander'
import { type Cli, examples, type Fill, formatOf, remark } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt, CliError } from '../exit-codes.ts'
import { readText } from '../files.ts'
import { type Shape, showList, showOne } from '../output/show.ts'
import { ageText, printable } from '../output/text.ts'
import { collect, parseCount } from '../quantities.ts'
import { checked } from '../schema-options.ts'

/** `muster config` with its subcommands. */
export const fillConfig: Fill = (command, cli) => {
  command.description('What belongs to the whole federation: written at a front, kept by every partition.')
  examples(command, ['config status', 'config get user', 'config history'])
  addGet(command, cli)
  addSet(command, cli)
  addDiff(command, cli)
  addHistory(command, cli)
  addRevert(command, cli)
  addStatus(command, cli)
  addRefill(command, cli)
}

type Document = CallOutput<'config.get'>['documents'][number]

const documentShape: Shape<Document> = {
  columns: [
    { title: 'KIND', text: ({ kind }) => kind },
    { title: 'NAME', text: ({ name }) => name },
    { title: 'DOCUMENT', text: ({ document }) => JSON.stringify(document), least: 20 },
  ],
  name: ({ kind, name }) => `${kind}/${name}`,
  none: 'There are no such documents.',
}

const kindArgument = () => new Argument('[kind]', 'documents of this kind').choices(documentKinds)

function addGet(parent: Command, cli: Cli): void {
  const command = parent.command('get').summary('the documents in force').addArgument(kindArgument()).argument('[name]', 'one document')
  command.description(`${calls.get.summary}. ${calls.get.description}`)
  examples(command, ['config get', 'config get user alice', 'config get token -o json'])
  command.action(async (kind: string | undefined, name: string | undefined) => {
    const input = checked(calls.get, { kind, name })
    const { client } = await connect(cli, command)
    const answer = await attempt('read the configuration', client.config.get(input))
    const format = formatOf(command)
    if (format === 'json') return showOne(cli, format, answer, { name: () => '', text: () => '' })
    showList(cli, format, { items: answer.documents }, documentShape)
    remark(cli, `generation ${answer.generation}, from ${answer.source}`)
  })
}

interface WriteOptions {
  readonly dryRun?: true
  readonly note?: string
  readonly expect?: number
}

function addWriteOptions(command: Command): void {
  command
    .option('--dry-run', 'show what would change, and change nothing')
    .option('--note <text>', 'why; kept in the history')
    .option('--expect <generation>', 'refuse when another generation is in force', parseCount)
}

const written = ({ dryRun, note, expect }: WriteOptions) => ({
  ...(dryRun && { dryRun }),
  ...(note !== undefined && { note }),
  ...(expect !== undefined && { expectedGeneration: expect }),
})

function addSet(parent: Command, cli: Cli): void {
  const command = parent
    .command('set')
    .summary('put documents from a file, delete others')
    .argument('[file]', 'documents as JSON, as `config get -o json` prints them')
  command
    .description(
      'Puts the documents of a file and deletes those named, all of them or none. Documents that the file does not name stay as they are.',
    )
    .option('--delete <kind/name>', 'delete this document; may be repeated', collect)
  addWriteOptions(command)
  examples(command, [
    'config set users.json --dry-run',
    'config set groups-and-quotas.json --note "the lab has people"',
    'config set --delete user/bob --note "has left"',
  ])
  command.action(async (file: string | undefined, options: WriteOptions & { delete?: string[] }) => {
    const put: unknown[] = file === undefined ? [] : documentsIn(await readText(file), file)
    const gone = (options.delete ?? []).map(text => {
      const [kind, ...name] = text.split('/')
      return { kind, name: name.join('/') }
    })
    if (put.length + gone.length === 0) throw new CliError('usage', 'there is nothing to change: name a file, or --delete a document')
    const input = checked(calls.change, { put, delete: gone, ...written(options) })
    const { client } = await connect(cli, command)
    tellChange(cli, command, await attempt('change the configuration', client.config.change(input)))
  })
}

/** The documents of a file: the answer of `config get -o json`, or the list in it. */
function documentsIn(text: string, file: string): unknown[] {
  let content: unknown
  try {
    content = JSON.parse(text)
  } catch (error) {
    throw new CliError('usage', `${file} is not JSON: ${(error as Error).message}`, { cause: error })
  }
  if (Array.isArray(content)) return content
  if (typeof content === 'object' && content !== null && 'documents' in content && Array.isArray(content.documents))
    return content.documents
  throw new CliError('usage', `${file} is no list of documents such as [{"kind":"user","name":"alice","document":{"role":"user"}}]`)
}

/** Deletes a document, and says what that did. */
export async function deleteDocument(
  cli: Cli,
  command: Command,
  { kind, name }: { kind: DocumentKind; name: string },
  verb: 'delete' | 'revoke' = 'delete',
): Promise<void> {
  const input = checked(calls.change, { delete: [{ kind, name }], note: `${kind} ${name} ${verb}d` })
  const { client } = await connect(cli, command)
  tellChange(cli, command, await attempt(`${verb} ${kind} ${name}`, client.config.change(input)))
}

/** Says what a change did, a line per document. */
export function tellChange(cli: Cli, command: Command, answer: CallOutput<'config.change'>): void {
  showOne(cli, formatOf(command), answer, {
    name: ({ generation }) => String(generation),
    text: ({ generation, outcome, differences, secrets }) => {
      const made = secrets.map(({ kind, name, field, secret }) => printable(`${field} of ${kind}/${name}, shown this once: ${secret}`))
      const lines = [...differences.map(differenceText), ...made]
      switch (outcome) {
        case 'written':
          return `${[...lines, `generation ${generation} is in force`].join('\n')}\n`
        case 'dry-run':
          return dryRunText(generation, lines)
        case 'nothing-to-do':
          return `nothing to do: generation ${generation} says so already\n`
      }
    },
  })
}

/** What a dry run says. */
export function dryRunText(generation: number, lines: readonly string[]): string {
  return `${[`nothing was changed, generation ${generation} stays in force; it would be:`, ...lines].join('\n')}\n`
}

const signs = { added: '+', removed: '-', changed: '~' } as const

/** One document's difference, a line per field. */
export function differenceText({ kind, name, what, before, after }: Difference): string {
  const fields = [...new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})])].sort()
  const lines = fields.flatMap(field => {
    const [was, is] = [JSON.stringify(before?.[field]), JSON.stringify(after?.[field])]
    if (was === is) return []
    return [`    ${field}: ${what === 'changed' ? `${was ?? 'none'} → ${is ?? 'none'}` : (is ?? was)}`]
  })
  return printable(`${signs[what]} ${kind}/${name}`) + lines.map(line => `\n${printable(line)}`).join('')
}

function addDiff(parent: Command, cli: Cli): void {
  const command = parent
    .command('diff')
    .summary('what differs between two generations')
    .argument('<from>', 'a generation', parseCount)
    .argument('[to]', 'another; the one in force where left out', parseCount)
  command.description(`${calls.diff.summary}.`)
  examples(command, ['config diff 12', 'config diff 12 17 -o json'])
  command.action(async (from: number, to: number | undefined) => {
    const { client } = await connect(cli, command)
    const answer = await attempt('compare generations', client.config.diff({ from, ...(to !== undefined && { to }) }))
    showOne(cli, formatOf(command), answer, {
      name: ({ differences }) => differences.map(({ kind, name }) => `${kind}/${name}`).join('\n'),
      text: ({ differences, ...between }) =>
        differences.length === 0
          ? `generations ${between.from} and ${between.to} say the same\n`
          : `${differences.map(differenceText).join('\n')}\n`,
    })
  })
}

function addHistory(parent: Command, cli: Cli): void {
  const command = parent.command('history').summary('who changed it, latest first').option('--limit <n>', 'so many', parseCount)
  command.description(`${calls.history.summary}.`)
  examples(command, ['config history --limit 5'])
  command.action(async ({ limit }: { limit?: number }) => {
    const input = checked(calls.history, limit === undefined ? {} : { limit })
    const { client } = await connect(cli, command)
    showList(cli, formatOf(command), await attempt('read the history', client.config.history(input)), historyShape(cli))
  })
}

const historyShape = (cli: Cli): Shape<Generation> => ({
  columns: [
    { title: 'GENERATION', text: ({ generation }) => String(generation), align: 'right' },
    { title: 'AGE', text: ({ changedAt }) => ageText(changedAt, cli.now()), align: 'right' },
    { title: 'BY', text: ({ changedBy }) => changedBy },
    { title: 'NOTE', text: ({ note }) => note, least: 10 },
  ],
  name: ({ generation }) => String(generation),
  none: 'Nobody has written a configuration yet.',
})

function addRevert(parent: Command, cli: Cli): void {
  const command = parent
    .command('revert')
    .summary('bring back an earlier generation')
    .argument('<generation>', 'the one to bring back', parseCount)
  command.description(`${calls.revert.summary}.`)
  addWriteOptions(command)
  examples(command, ['config revert 12 --dry-run', 'config revert 12 --note "the new pool was a mistake"'])
  command.action(async (to: number, options: WriteOptions) => {
    const input = checked(calls.revert, { to, ...written(options) })
    const { client } = await connect(cli, command)
    tellChange(cli, command, await attempt(`revert to generation ${to}`, client.config.revert(input)))
  })
}

function addStatus(parent: Command, cli: Cli): void {
  const command = parent.command('status').summary('which generation every partition holds')
  command.description(`${calls.copies.summary}, since when, and how far that is from the one in force.`)
  examples(command, ['config status', 'config status -o json'])
  command.action(async () => {
    const { client } = await connect(cli, command)
    const copies = await attempt('ask for the copies', client.config.copies())
    const {
      generation,
      digest = null,
      changedAt = null,
    } = copies.inForce ?? {
      // A partition knows no more than its own copy, and a front of an older release says nothing.
      generation: Math.max(0, ...copies.items.map(item => item.generation)),
    }
    const lastHeard = (copies.lastHeard ?? []).map(held => ({ ...held, takenAt: null, heardAt: null, problems: [] }))
    const rows = [...copies.items.map(copy => ({ ...copy, isHeard: true })), ...lastHeard.map(copy => ({ ...copy, isHeard: false }))].map(
      copy => ({ ...copy, drift: driftOf(copy, { generation, digest, another: copies.another ?? [] }) }),
    )
    const format = formatOf(command)
    if (format === 'json' || format === 'ndjson') return showList(cli, format, copies, copyShape(cli))
    showList(cli, format, { ...copies, items: rows.sort((a, b) => (a.partition < b.partition ? -1 : 1)) }, copyShape(cli))
    const applied = rows.filter(({ drift, isHeard }) => drift === '' && isHeard).length
    const since = changedAt ? `, written ${ageText(changedAt, cli.now())} ago,` : ''
    remark(
      cli,
      generation === 0
        ? 'Nobody has written a configuration yet.'
        : `generation ${generation}${since} is applied on ${applied} of ${copies.coverage.asked} partitions`,
    )
  })
}

/** How far a copy is from what is in force; empty where it is the same. */
function driftOf(
  copy: Pick<HeldCopy, 'partition' | 'generation' | 'digest'>,
  inForce: { generation: number; digest: string | null; another: readonly string[] },
): string {
  const behind = inForce.generation - copy.generation
  const isOther = behind === 0 && inForce.digest !== null && copy.digest !== inForce.digest
  if (isOther || inForce.another.includes(copy.partition)) return 'another history'
  if (behind === 0) return ''
  return behind > 0 ? `behind ${behind}` : `ahead ${-behind}`
}

/** `isHeard`: it answered; otherwise this is what it last said. */
type CopyRow = HeldCopy & { readonly drift?: string; readonly isHeard?: boolean }

const copyShape = (cli: Cli): Shape<CopyRow> => ({
  columns: [
    { title: 'PARTITION', text: ({ partition }) => partition },
    { title: 'GENERATION', text: ({ generation }) => String(generation), align: 'right' },
    { title: 'AGE', text: ({ takenAt }) => (takenAt ? ageText(takenAt, cli.now()) : ''), align: 'right' },
    { title: 'DRIFT', text: ({ drift = '' }) => drift, style: () => 'yellow' },
    { title: 'HEARD', text: ({ heardAt }) => (heardAt ? `${ageText(heardAt, cli.now())} ago` : 'not since its start'), wide: true },
    {
      title: 'PROBLEMS',
      text: ({ problems, isHeard = true }) => (isHeard ? problems.join('; ') : 'silent: this is what it held when it was last heard'),
      least: 12,
      leaves: 8,
    },
  ],
  name: ({ partition }) => partition,
  none: 'There are no partitions.',
})

function addRefill(parent: Command, cli: Cli): void {
  const command = parent
    .command('refill')
    .summary('fill a lost database from a partition')
    .option('--note <text>', 'why; kept in the history')
    .option('--database-wins', 'what the database holds is true, and not what partitions hold that it does not know')
  command.description(`${calls.refill.summary}. ${calls.refill.description}`)
  examples(command, ['config refill --note "disk of the database lost"', 'config refill --database-wins --note "the old site is gone"'])
  command.action(async ({ note, databaseWins }: { note?: string; databaseWins?: true }) => {
    const { client } = await connect(cli, command)
    const input: CallRequest<'config.refill'> = { ...(note !== undefined && { note }), ...(databaseWins && { wins: 'database' }) }
    const done = await attempt('refill the configuration', client.config.refill(input))
    showOne(cli, formatOf(command), done, {
      name: ({ generation }) => String(generation),
      text: ({ outcome, generation, partition, from }) =>
        outcome === 'refilled'
          ? `generation ${generation} is in force: generation ${from}, as ${partition === null ? 'the database' : `partition ${partition}`} kept it\n`
          : `nothing to do: the database holds generation ${generation}, and no partition that answers holds a newer one, or another\n`,
    })
  })
}
