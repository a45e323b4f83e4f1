// `muster audit …`: who changed what, from where, and whether the log still says what was written.
import { createHash } from 'node:crypto'
import { type AuditEntry, auditEntry, ChainCheck, type ChainChecks, type ChainReport, refusedCall } from '@muster/shared/audit'
import type { Client } from '@muster/shared/client'
import { audit as calls } from '@muster/shared/contract/audit'
import type { Coverage } from '@muster/shared/contract/call'
import { isSignature } from '@muster/shared/signature'
import type { Command } from 'commander'
import { type Cli, examples, type Fill, formatOf, remark, say } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt, CliError, Exit } from '../exit-codes.ts'
import { readText } from '../files.ts'
import { jsonText, ndjsonText, remarkCoverage, type Shape, showList } from '../output/show.ts'
import { tableText } from '../output/table.ts'
import { parseCount } from '../quantities.ts'
import { checked } from '../schema-options.ts'
import { joinCoverage } from './pages.ts'

/** `muster audit` with its subcommands. */
export const fillAudit: Fill = (command, cli) => {
  command.description('Who changed what through the API, from where, and what came of it.')
  examples(command, ['audit list --actor alice', 'audit export > audit.jsonl', 'audit verify --against audit.jsonl'])
  addList(command, cli)
  addExport(command, cli)
  addVerify(command, cli)
}

const entryName = ({ partition, seq }: AuditEntry) => `${partition}:${seq}`

const shape: Shape<AuditEntry> = {
  columns: [
    { title: 'AT', text: ({ at }) => at },
    { title: 'ENTRY', text: entryName, leaves: 2 },
    { title: 'ACTOR', text: ({ actor, role }) => `${actor} (${role})`, least: 6 },
    { title: 'FROM', text: ({ from, via }) => (via === null ? from : `${from} by ${via}`), least: 8, leaves: 3 },
    { title: 'CALL', text: ({ call }) => call },
    { title: 'TARGET', text: ({ target }) => target, least: 8 },
    {
      title: 'OUTCOME',
      text: ({ outcome, result }) => (result === null ? outcome : `${outcome}: ${result}`),
      style: ({ outcome }) => (outcome === 'ok' ? undefined : 'yellow'),
    },
    { title: 'FIELDS', text: ({ fields }) => fields.join(' '), wide: true },
    { title: 'REQUEST', text: ({ requestId }) => requestId, wide: true },
  ],
  name: entryName,
  none: 'Nothing was changed.',
}

/** Attempts of one kind are counted for a minute before they are an entry that can be read. */
const noneRefused = 'Nobody was refused, or only within the last minute: attempts of a kind are counted for so long.'

interface ListOptions {
  readonly since?: string
  readonly actor?: string
  readonly call?: string
  readonly target?: string
  readonly limit?: number
  readonly fronts?: true
  readonly refused?: true
}

function addList(parent: Command, cli: Cli): void {
  const command = parent.command('list').alias('ls').summary('what was changed, oldest first')
  command
    .description(`${calls.list.summary}. ${calls.list.description}`)
    .option('--since <position>', 'behind this position: 42, lon1:42,par2:7, or end')
    .option('--actor <name>', 'by this caller only')
    .option('--call <name>', 'this call only, such as machines.deploy')
    .option('--target <id>', 'about this machine, allocation or document only')
    .option('--refused', 'attempts that were refused at the door: a wrong or expired token, a wrong password, too small a role')
    .option('--limit <n>', 'at most so many (100 where left out)', text => parseCount(text, 1))
    .option('--fronts', 'the log that the fronts share: changes of the global configuration')
  examples(command, [
    'audit list --actor alice --limit 20',
    'audit list --target lon1-4y3h7n -o wide',
    'audit list --fronts',
    'audit list --refused',
  ])
  command.action(async ({ since, fronts, refused, ...given }: ListOptions) => {
    if (refused && given.call !== undefined)
      throw new CliError('usage', '--refused and --call cannot both be given: refused attempts are entries of their own')
    const filter = { ...given, ...(refused && { call: refusedCall }) }
    const shown = refused ? { ...shape, none: noneRefused } : shape
    const { client } = await connect(cli, command)
    if (fronts) {
      const input = checked(calls.fronts, { ...filter, ...(since !== undefined && { after: parseCount(since) }) })
      showList(cli, formatOf(command), await attempt('read the log of the fronts', client.audit.fronts(input)), shown)
      return
    }
    const input = checked(calls.list, { ...filter, ...(since !== undefined && { after: since }) })
    showList(cli, formatOf(command), await attempt('read the audit log', client.audit.list(input)), shown)
  })
}

const pageSize = 1000

interface Whole {
  readonly entries: AsyncGenerator<AuditEntry>
  /** Known when the entries have been read. */
  coverage(): Coverage | undefined
}

/** All that the server can tell: the log of every partition, and that of the fronts where it is one. */
function wholeLog(client: Client, kind: 'front' | 'partition'): Whole {
  let coverage: Coverage | undefined
  async function* entries(): AsyncGenerator<AuditEntry> {
    for (let after = ''; ; ) {
      const page = await attempt('read the audit log', client.audit.list({ limit: pageSize, ...(after !== '' && { after }) }))
      coverage = joinCoverage(coverage, page.coverage)
      yield* page.items
      if (page.items.length === 0) break
      after = page.nextCursor
    }
    if (kind === 'partition') return
    for (let after = 0; ; ) {
      const { items } = await attempt('read the log of the fronts', client.audit.fronts({ limit: pageSize, after }))
      yield* items
      const last = items.at(-1)
      if (!last) return
      after = last.seq
    }
  }
  return { entries: entries(), coverage: () => coverage }
}

async function connectWhole(cli: Cli, command: Command): Promise<Whole> {
  const { client } = await connect(cli, command)
  const { server } = await attempt('ask which server this is', client.session.whoami())
  return wholeLog(client, server.kind)
}

/** A log that is not there is not "all is well": the exit code says so. */
function refusePartial(cli: Cli, coverage: Coverage | undefined): void {
  remarkCoverage(cli, coverage)
  if (coverage && coverage.answered < coverage.asked) throw new Exit('unreachable')
}

function addExport(parent: Command, cli: Cli): void {
  const command = parent.command('export').summary('the whole log, one entry a line (JSON)')
  command.description(
    'Writes every entry of every log as a line of JSON. Kept elsewhere, it is the witness that `audit verify --against` compares with: what was taken away since, or written anew, is told.',
  )
  examples(command, ['audit export > audit-2026-11.jsonl'])
  command.action(async () => {
    const whole = await connectWhole(cli, command)
    for await (const entry of whole.entries) say(cli, ndjsonText(entry))
    refusePartial(cli, whole.coverage())
  })
}

function addVerify(parent: Command, cli: Cli): void {
  const command = parent
    .command('verify')
    .summary('check that the log says what was written')
    .argument('[file]', 'an export; the log of the server where left out')
  command
    .description(
      'Checks numbers, hashes and signatures of every log. Without a witness the last entries can have been taken away unseen: give an earlier export.',
    )
    .option('--against <file>', 'an earlier export, whose entries must all be there unchanged')
    .option('--key <hex…>', 'take signatures of these public keys only')
  examples(command, ['audit verify', 'audit verify --against audit-2026-10.jsonl', 'audit verify audit-2026-10.jsonl'])
  command.action(async (file: string | undefined, options: { against?: string; key?: string[] }) => {
    const whole = file === undefined ? await connectWhole(cli, command) : undefined
    const entries = whole?.entries ?? entriesOf(await readText(file as string), file as string)
    const witness = options.against === undefined ? [] : entriesOf(await readText(options.against), options.against)
    const reports = await verifyLogs(entries, witness, options.key)
    const rows = [...reports].map(([log, report]) => ({ log, ...report }))
    if (formatOf(command) === 'json')
      cli.stdout.write(jsonText({ logs: rows.map(row => ({ ...row, cut: row.cut ?? null, problem: row.problem ?? null })) }))
    else if (rows.length > 0) cli.stdout.write(tableText(cli, rows, reportColumns))
    else remark(cli, 'There are no entries.')
    refusePartial(cli, whole?.coverage())
    if (rows.some(({ problem }) => problem !== undefined)) throw new Exit('unexpected')
  })
}

const reportColumns = [
  { title: 'LOG', text: ({ log }: { log: string }) => log },
  { title: 'ENTRIES', text: ({ entries }: ChainReport) => String(entries), align: 'right' as const },
  { title: 'LAST', text: ({ seq }: ChainReport) => String(seq), align: 'right' as const },
  { title: 'SIGNED BY', text: ({ keys }: ChainReport) => keys.map(key => key.slice(0, 16)).join(', ') },
  {
    title: 'VERDICT',
    text: ({ problem, cut }: ChainReport) => problem ?? (cut ? `as written; cut off up to ${cut.seq} for its age` : 'as written'),
    style: ({ problem }: ChainReport) => (problem === undefined ? undefined : ('red' as const)),
  },
]

function entriesOf(text: string, file: string): AuditEntry[] {
  return text
    .split('\n')
    .filter(line => line !== '')
    .map((line, index) => {
      try {
        return auditEntry.parse(JSON.parse(line))
      } catch (error) {
        throw new CliError(
          'usage',
          `line ${index + 1} of ${file} is no entry of an audit log: ${(error as Error).message.split('\n')[0]}`,
          {
            cause: error,
          },
        )
      }
    })
}

/** Checks each log by itself, and that it holds every entry of the witness. One entry at a time: a log may be long. */
async function verifyLogs(
  entries: AsyncIterable<AuditEntry> | Iterable<AuditEntry>,
  witness: readonly AuditEntry[],
  keys: readonly string[] | undefined,
): Promise<Map<string, ChainReport>> {
  const checks: ChainChecks = {
    sha256: text => createHash('sha256').update(text).digest('hex'),
    isSigned: async (text, seal) => (keys === undefined || keys.includes(seal.key)) && (await isSignature('audit log', text, seal)),
  }
  const logs = new Map<string, ChainCheck>()
  const checkOf = (log: string) => {
    const known = logs.get(log) ?? new ChainCheck(checks)
    logs.set(log, known)
    return known
  }
  const expected = new Map(witness.map(entry => [entryName(entry), entry]))
  const broken = new Map<string, string>()
  for (const { partition } of witness) checkOf(partition)
  for await (const entry of entries) {
    await checkOf(entry.partition).add(entry)
    const before = expected.get(entryName(entry))
    if (before && before.hash !== entry.hash && !broken.has(entry.partition))
      broken.set(entry.partition, `entry ${entry.seq} of the earlier export is another now`)
    expected.delete(entryName(entry))
  }
  for (const { partition, seq, hash } of expected.values()) {
    const { cut } = checkOf(partition).report()
    const isCut = cut !== undefined && (seq < cut.seq || (seq === cut.seq && hash === cut.hash))
    if (!isCut && !broken.has(partition)) broken.set(partition, `entry ${seq} of the earlier export is gone`)
  }
  const names = [...logs.keys()].sort()
  return new Map(
    names.map(log => {
      const report = checkOf(log).report()
      return [log, { ...report, problem: report.problem ?? broken.get(log) }]
    }),
  )
}
