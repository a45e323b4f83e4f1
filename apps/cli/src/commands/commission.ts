// `muster machine commission` and `muster machine results`: which scripts look into a machine and test it, and what came of them.
import type { Client } from '@muster/shared/client'
import type { CallAnswer, CallRequest } from '@muster/shared/contract/contract'
import { machines as calls } from '@muster/shared/contract/machines'
import type { ParameterValue, ScriptReport } from '@muster/shared/scripts'
import { type Command, InvalidArgumentError, type Option } from 'commander'
import { type Cli, examples, formatOf, remark } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt } from '../exit-codes.ts'
import { jsonText, ndjsonText, type Shape, showList } from '../output/show.ts'
import { printable, timeText } from '../output/text.ts'
import { collect, collectOf, parseCount, splitOnce } from '../quantities.ts'
import { checked } from '../schema-options.ts'
import { splitWait } from '../wait.ts'
import { actOnMachines, distinct, eachAtMost } from './actions.ts'
import { pagesOf } from './pages.ts'

type Parameter = readonly [script: string, name: string, value: ParameterValue]

interface CommissionFlags {
  readonly script?: string[] | false
  readonly test?: string[]
  readonly scripts?: false
  readonly tests?: false
  readonly parameter?: Parameter[]
  readonly wait?: string | true
}

export function addCommission(parent: Command, cli: Cli, waitOption: Option): void {
  const call = calls.commission
  const command = parent.command('commission').summary('look inside and test machines').argument('[id...]', 'ids of machines')
  command
    .description(
      `${call.summary}: its inventory, then commissioning scripts, then tests; one that fails fails the commissioning. What there is: muster script list`,
    )
    .option('--test <name>', "a test to run, instead of the partition's usual ones; may be repeated", collect)
    .option('--no-tests', 'run none')
    .option('--script <name>', 'a commissioning script to run, instead of all of them; may be repeated', collect)
    .option('--no-scripts', 'run none')
    .option('--parameter <script.name=value>', 'what a script is run with; may be repeated', collectOf(parseParameter))
    .addOption(waitOption)
  examples(command, [
    'machine commission lon1-4y3h7n --wait 40m',
    'machine commission lon1-4y3h7n --test memory --test cpu --parameter cpu.seconds=600',
    'machine list --state new -o name | xargs muster machine commission',
  ])
  command.action(async (given: string[], options: CommissionFlags) => {
    const { wait, ids } = splitWait(options.wait, given)
    const wanted = {
      ...chosen('tests', options.tests, options.test),
      ...chosen('scripts', options.scripts, options.script || undefined),
      ...(options.parameter && { parameters: byScript(options.parameter) }),
    }
    const inputs = new Map(distinct(ids).map(id => [id, checked(call, { id, ...wanted })]))
    const { client } = await connect(cli, command)
    const act = (id: string) => client.machines.commission(inputs.get(id) as CallRequest<'machines.commission'>)
    await actOnMachines({ cli, command, client, verb: 'commission', ids: [...inputs.keys()], act, wait })
  })
}

/** Those named; none where that was asked for; nothing said where neither was. */
function chosen(
  field: 'tests' | 'scripts',
  none: false | undefined,
  named: readonly string[] | undefined,
): Record<string, readonly string[]> {
  if (named) return { [field]: named }
  return none === false ? { [field]: [] } : {}
}

/** `memory.limitMib=64`. A value is a number or true or false where it reads like one; `"64"` in quotes is a text. */
function parseParameter(text: string): Parameter {
  const [path, value] = splitOnce(text)
  const [script, name, ...rest] = path.split('.')
  if (!script || !name || rest.length > 0 || value === undefined)
    throw new InvalidArgumentError('It has the form script.name=value, such as memory.limitMib=64.')
  return [script, name, readValue(value)]
}

function readValue(text: string): ParameterValue {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'number' || typeof value === 'boolean' || typeof value === 'string' ? value : text
  } catch {
    return text
  }
}

function byScript(parameters: readonly Parameter[]): Record<string, Record<string, ParameterValue>> {
  const all: Record<string, Record<string, ParameterValue>> = {}
  for (const [script, name, value] of parameters) all[script] = { ...all[script], [name]: value }
  return all
}

interface ResultFlags {
  readonly all?: true
  readonly log?: string
  readonly limit?: number
}

export function addResults(parent: Command, cli: Cli): void {
  const call = calls.scriptResults
  const command = parent.command('results').summary('what came of scripts and tests').argument('<id>', 'id of a machine')
  command
    .description(`${call.summary}: of the last commissioning that ran any. What they found, structured, is in -o json.`)
    .option('--all', 'of all commissionings that are remembered')
    .option('--log <script>', 'what this script wrote')
    .option('--limit <n>', 'at most so many (100 where left out)', text => parseCount(text, 1))
  examples(command, [
    'machine results lon1-4y3h7n',
    'machine results lon1-4y3h7n --log memory',
    'machine results lon1-4y3h7n --all -o json | jq \'.items[] | select(.script == "disk-speed") | .result\'',
  ])
  command.action(async (id: string, { all, log, limit = 100 }: ResultFlags) => {
    const input = checked(call, { id, ...(!all && { run: 'latest' }), ...(log !== undefined && { script: log }) })
    const { client } = await connect(cli, command)
    const read = (page: { limit: number; cursor?: string }) =>
      attempt(`the results of ${id}`, client.machines.scriptResults({ ...input, ...page }))
    const items: ScriptReport[] = []
    let nextCursor: string | null = null
    for await (const page of pagesOf(read, limit)) {
      items.push(...page.items)
      nextCursor = page.nextCursor
    }
    if (log !== undefined) await showLogs(cli, command, client, items)
    else showList(cli, formatOf(command), { items, ...{ nextCursor } }, shape(cli.now()))
    if (nextCursor !== null && formatOf(command) !== 'json') remark(cli, 'There are more: give a higher --limit.')
  })
}

type Output = CallAnswer<'machines.scriptOutput'>

/** Oldest first, as they ran. */
async function showLogs(cli: Cli, command: Command, client: Client, reports: readonly ScriptReport[]): Promise<void> {
  const items = await eachAtMost([...reports].reverse(), ({ id, machine }) =>
    attempt(`the output of result ${id}`, client.machines.scriptOutput({ id: machine, result: id })),
  )
  const format = formatOf(command)
  if (format === 'json') cli.stdout.write(jsonText({ items }))
  else if (format === 'ndjson') cli.stdout.write(items.map(ndjsonText).join(''))
  else if (items.length === 0) remark(cli, 'That script has no result here.')
  else for (const item of items) cli.stdout.write(logText(item))
}

function logText({ script, part, status, message, output }: Output): string {
  const head = `==> ${script}${part && ` on ${part}`}: ${status}${message && `, ${message}`}`
  // A machine may write anything, and a terminal would obey it.
  const lines = output.split('\n').map(line => line.split('\t').map(printable).join('\t'))
  return `${printable(head)}\n${lines.join('\n').trimEnd()}\n`
}

const colours = { passed: 'green', failed: 'red', 'timed-out': 'red', skipped: undefined } as const

const shape = (now: number): Shape<ScriptReport> => ({
  columns: [
    { title: 'SCRIPT', text: ({ script }) => script },
    { title: 'KIND', text: ({ kind }) => kind, wide: true },
    { title: 'ON', text: ({ part }) => part || '-' },
    { title: 'STATUS', text: ({ status }) => status, style: ({ status }) => colours[status] },
    { title: 'TOOK', text: ({ seconds }) => `${seconds}s`, align: 'right' },
    { title: 'ENDED', text: ({ at }) => timeText(at, now), wide: true },
    { title: 'RUN', text: ({ run }) => run, wide: true },
    { title: 'SAYS', text: ({ message }) => message || '-', least: 20, leaves: 1 },
  ],
  name: ({ id }) => String(id),
  none: 'No script has run on this machine, or not in the last commissionings.',
})
