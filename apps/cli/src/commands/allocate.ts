// `muster allocate`: ask for machines, and, where wished, put an operating system on them at once.
import { setTimeout as sleep } from 'node:timers/promises'
import { constraints, strategies } from '@muster/shared/allocation/constraints'
import { type Client, UnreachableError } from '@muster/shared/client'
import { type Allocation, allocations as calls } from '@muster/shared/contract/allocations'
import type { Coverage } from '@muster/shared/contract/call'
import { durationMs, durationText } from '@muster/shared/duration'
import { Refusal } from '@muster/shared/errors'
import { type Command, Option } from 'commander'
import { type Cli, examples, type Fill, formatOf, remark, say } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt, CliError } from '../exit-codes.ts'
import { readKeys } from '../files.ts'
import { machineColumns } from '../output/machine-view.ts'
import { explanationText } from '../output/problem.ts'
import { remarkCoverage, showOne } from '../output/show.ts'
import { tableText } from '../output/table.ts'
import { printable } from '../output/text.ts'
import { collect, collectOf, parseBytes, parseCount, parseDuration, parseMebibytes, parsePairs, parseSpeed } from '../quantities.ts'
import { checked, fieldsOf, optionsOf } from '../schema-options.ts'
import { actOnMachines } from './actions.ts'

/** Which flag asks for which constraint, where the names differ: a flag that may be repeated reads better in the singular. */
const flagOfNames = {
  arch: 'arch',
  tags: 'tag',
  notTags: 'notTag',
  pools: 'pool',
  notPools: 'notPool',
  zones: 'zone',
  notZones: 'notZone',
  racks: 'rack',
  notRacks: 'notRack',
  machines: 'machine',
  hostnames: 'name',
  partitions: 'partition',
  notPartitions: 'notPartition',
  os: 'os',
} as const

interface Flags {
  readonly dryRun?: true
  readonly wait?: string
  readonly count?: number
  readonly strategy?: (typeof strategies)[number]
  readonly key?: string
  readonly deploy?: string
  readonly sshKey?: string[]
  readonly note?: string
  readonly cpus?: number
  readonly memory?: number
  readonly disk?: ReturnType<typeof parseDiskWish>[]
  readonly interface?: ReturnType<typeof parseInterfaceWish>[]
  readonly [constraint: string]: unknown
}

/** `muster allocate`. */
export const fillAllocate: Fill = (command, cli) => {
  command.description(
    'Ask every partition for machines that are ready; the first or the best offer wins. All or nothing: where there are not enough, the answer ' +
      'says which constraint removed how many, and which machines nearly matched.',
  )
  for (const [name, flag] of Object.entries(flagOfNames)) {
    const schema = fieldsOf({ input: constraints })[name]
    if (schema) for (const option of optionsOf(flag, schema)) command.addOption(option)
  }
  command
    .option('--cpus <n>', 'at least so many', text => parseCount(text, 1))
    .option('--memory <size>', 'at least so much, e.g. 64GiB', parseMebibytes)
    .option('--disk <size=…,kind=…,count=…>', 'at least such disks; may be repeated', collectOf(parseDiskWish))
    .option('--interface <speed=…,subnet=…,count=…>', 'at least such interfaces; may be repeated', collectOf(parseInterfaceWish))
    .option('--count <n>', 'how many machines, all or nothing', text => parseCount(text, 1))
    .addOption(new Option('--strategy <strategy>', 'which offer wins').choices([...strategies]))
    .option(
      '--wait <duration>',
      'keep asking for so long as machines become ready; with --deploy also wait until it is done',
      parseDuration,
    )
    .option('--dry-run', 'say what would be taken, and take nothing')
    .option('--deploy <os>', 'put this operating system on them, such as debian/12; implies --os')
    .option('--ssh-key <file>', 'with --deploy: file of public keys; may be repeated', collect)
    .option('--key <key>', 'Idempotency-Key: a repeated request with the same key gets the first answer')
    .option('--note <text>', 'what they are for')
  examples(command, [
    'allocate --tag gpu --memory 64GiB',
    'allocate --count 3 --strategy spread --arch amd64 --cpus 16 --wait 10m',
    "allocate --disk 'size=500GB,kind=nvme,count=2' --interface 'speed=10G,subnet=10.0.0.0/24' --dry-run",
    'allocate --pool web --deploy debian/12 --ssh-key ~/.ssh/id_ed25519.pub --wait 1h -o name',
  ])
  command.action((options: Flags) => allocate(cli, command, options))
}

async function allocate(cli: Cli, command: Command, flags: Flags): Promise<void> {
  if (flags.deploy === undefined && flags.sshKey) throw new CliError('usage', '--ssh-key has a meaning only with --deploy')
  if (flags.dryRun && flags.deploy !== undefined) throw new CliError('usage', '--dry-run takes nothing, so there is nothing to --deploy on')
  const end = flags.wait === undefined ? undefined : cli.now() + durationMs(flags.wait)
  const request = checked(calls.create, {
    constraints: constraintsOf(flags),
    ...(flags.strategy && { strategy: flags.strategy }),
    ...(flags.count !== undefined && { count: flags.count }),
    ...(flags.dryRun && { dryRun: true }),
    ...(flags.note !== undefined && { note: flags.note }),
    ...(flags.wait !== undefined && { wait: roundOf(flags.wait) }),
  })
  const sshKeys = await readKeys(flags.sshKey ?? [])
  const { client } = await connect(cli, command)
  const tried = `allocate ${request.count === 1 ? 'a machine' : `${request.count} machines`}`
  const got = await attempt(tried, askUntil(cli, client, { request, key: flags.key, end }))
  if (flags.deploy === undefined) return showAllocation(cli, command, got)

  remark(cli, `allocation ${got.id}: ${got.machines.map(({ id }) => id).join(', ')}`)
  const os = flags.deploy
  await actOnMachines({
    cli,
    command,
    client,
    verb: 'deploy',
    ids: got.machines.map(({ id }) => id),
    act: id => client.machines.deploy({ id, os, ...(sshKeys.length > 0 && { sshKeys }) }),
    wait: end === undefined ? undefined : durationText(Math.max(1000, Math.round(end - cli.now()))),
  })
}

/** The constraints that the flags ask for. */
function constraintsOf(flags: Flags): Record<string, unknown> {
  const named = Object.entries(flagOfNames).flatMap(([name, flag]) => (flags[flag] === undefined ? [] : [[name, flags[flag]]]))
  return {
    ...(flags.deploy !== undefined && { os: flags.deploy }),
    ...Object.fromEntries(named),
    ...(flags.cpus !== undefined && { cpus: flags.cpus }),
    ...(flags.memory !== undefined && { memoryMib: flags.memory }),
    ...(flags.disk && { disks: flags.disk }),
    ...(flags.interface && { interfaces: flags.interface }),
  }
}

function parseDiskWish(text: string) {
  const { size, ...rest } = parsePairs(text, {
    size: parseBytes,
    kind: (kind: string) => kind,
    count: (count: string) => parseCount(count, 1),
  })
  return { ...rest, ...(size !== undefined && { sizeGb: size / 1e9 }) }
}

function parseInterfaceWish(text: string) {
  const { speed, ...rest } = parsePairs(text, {
    speed: parseSpeed,
    subnet: (subnet: string) => subnet,
    count: (count: string) => parseCount(count, 1),
  })
  return { ...rest, ...(speed !== undefined && { speedMbps: speed }) }
}

/** The longest that one request is left to wait: proxies and HTTP clients give up on a silent answer after a few minutes. */
const longestRoundMs = 60_000

/** `--wait` cut into equal rounds: a round that is repeated with its key must be the very same request. */
function roundOf(wait: string): string {
  const ms = durationMs(wait)
  return durationText(Math.ceil(ms / Math.ceil(ms / longestRoundMs)))
}

type Got = Allocation & { coverage: Coverage }

/** Asks, round by round, until there is an answer other than "no match" or the time is over. */
async function askUntil(
  cli: Cli,
  client: Client,
  { request, key, end }: { request: Parameters<Client['allocations']['create']>[0]; key: string | undefined; end: number | undefined },
): Promise<Got> {
  for (;;) {
    try {
      // Nothing was allocated in the round before, so a new round may have a new key; a key of the user's own stays.
      return await askOnce(cli, client, request, key ?? crypto.randomUUID())
    } catch (error) {
      const isNoMatch = error instanceof Refusal && error.code === 'no-match'
      if (!isNoMatch || end === undefined || cli.now() >= end) throw error
    }
    await sleep(200, undefined, { signal: cli.signal })
  }
}

/** One request, with a key that makes repeating it harmless: the client does so by itself where the answer is lost. */
async function askOnce(cli: Cli, client: Client, request: Parameters<Client['allocations']['create']>[0], key: string): Promise<Got> {
  try {
    return await client.allocations.create(request, { idempotencyKey: key })
  } catch (error) {
    if (error instanceof UnreachableError || cli.signal.aborted)
      remark(cli, `muster: the outcome is not known; the same request with --key ${key} gets the answer`)
    throw error
  }
}

function showAllocation(cli: Cli, command: Command, got: Got): void {
  const format = formatOf(command)
  if (format === 'name') {
    say(cli, got.machines.map(({ id }) => printable(id)).join('\n'))
    return
  }
  showOne(cli, format, got, {
    name: allocation => allocation.id ?? '',
    text: ({ id, dryRun, machines }) =>
      `${printable(dryRun ? 'dry run: these would be taken' : `allocation ${id}`)}\n${tableText(cli, machines, machineColumns(cli.now()), { wide: format === 'wide' })}`,
  })
  if (format !== 'table' && format !== 'wide') return
  if (got.explanation) say(cli, explanationText({ explanation: got.explanation }))
  remarkCoverage(cli, got.coverage)
}
