// `muster machine …`: look at machines, describe them, and ask for what the life cycle allows.
import type { Client } from '@muster/shared/client'
import type { Call, Coverage } from '@muster/shared/contract/call'
import type { CallRequest } from '@muster/shared/contract/contract'
import { machines as calls } from '@muster/shared/contract/machines'
import { Refusal } from '@muster/shared/errors'
import type { CredentialRotation, Machine } from '@muster/shared/machine'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { type Cli, examples, type Fill, formatOf, remark, say } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt, CliError, type ExitName, exitTable } from '../exit-codes.ts'
import { readKeys, readText, readUserData } from '../files.ts'
import { explanationOf, machineShape, machineText } from '../output/machine-view.ts'
import { jsonText, ndjsonText, remarkCoverage, showList, showOne } from '../output/show.ts'
import { collect, collectOf, parseBytes, parseCount, parseMebibytes, parsePairs, parseSpeed, splitOnce } from '../quantities.ts'
import { addFilters, checked, choicesOf, fieldsOf, inputFrom, kebab, optionsOf } from '../schema-options.ts'
import { readInput } from '../secrets.ts'
import { judgePower, splitWait } from '../wait.ts'
import { actOnMachines, distinct, eachAtMost } from './actions.ts'
import { addCommission, addResults } from './commission.ts'
import { addDefinition } from './definition.ts'
import { addErasures } from './erasures.ts'
import { addNetwork, readDocument } from './network.ts'
import { joinCoverage, pagesOf } from './pages.ts'
import { isLive, watchMachines } from './watch.ts'

/** An id for examples. */
const anId = 'lon1-4y3h7n'

/** `muster machine` with all its subcommands. */
export const fillMachine: Fill = (command, cli) => {
  examples(command, ['machine list --state ready --tag gpu', `machine explain ${anId}`, `machine deploy ${anId} --os debian/12 --wait`])
  addList(command, cli)
  addGet(command, cli)
  addExplain(command, cli)
  addWatch(command, cli)
  addCreate(command, cli)
  addUpdate(command, cli)
  addDelete(command, cli)
  addCommission(command, cli, waitOption())
  addResults(command, cli)
  addDeploy(command, cli)
  addRescue(command, cli)
  addPower(command, cli)
  addRotateCredentials(command, cli)
  addNetwork(command, cli)
  addErasures(command, cli)
  addDefinition(command, cli)
  for (const [name, call] of plainActions()) addAction(command, cli, name, call)
}

/** The calls of the contract that ask something of one machine and need no flags of their own making here. */
function plainActions(): [name: ActionName, call: Call][] {
  const isAction = ({ rest }: Call) => rest.method === 'POST' && rest.path.startsWith('/machines/{id}/')
  return Object.entries(calls as unknown as Record<string, Call>).filter(
    ([name, call]) => isAction(call) && !['commission', 'deploy', 'power', 'rescue', 'rotateCredentials'].includes(name),
  ) as [ActionName, Call][]
}

/** An action takes the id and, some, optional texts. */
type ActionName = Exclude<
  keyof typeof calls,
  | 'list'
  | 'get'
  | 'explain'
  | 'create'
  | 'update'
  | 'delete'
  | 'commission'
  | 'scriptResults'
  | 'scriptOutput'
  | 'deploy'
  | 'power'
  | 'powerOrders'
  | 'erasures'
  | 'rescue'
  | 'rotateCredentials'
  | 'network'
  | 'setNetwork'
  | 'start'
  | 'stop'
>

/** `--wait [DURATION]`, the same for every action. */
function waitOption(): Option {
  return new Option('--wait [duration]', "until it is done or failed; as long as the state's deadline where no duration is given")
}

interface ListOptions {
  readonly limit?: number
  readonly all?: true
  readonly [filter: string]: unknown
}

function addList(parent: Command, cli: Cli): void {
  const command = parent.command('list').alias('ls').summary('list machines')
  command.description(
    'List machines. A filter may be repeated or take several values with commas; filters of different kinds must all hold.',
  )
  addFilters(command, calls.list)
  command
    .option('--limit <n>', 'at most so many (100 where left out)', text => parseCount(text, 1))
    .option('--all', 'page through all of them')
  examples(command, [
    'machine list',
    'machine list --state ready,broken --not-tag gpu --sort -memoryMib',
    'machine list --all --partition lon1 -o ndjson | jq -r .hostname',
    'machine list --fault -o name | xargs -n1 muster machine explain',
  ])
  command.action(async (options: ListOptions) => {
    const input = checked(calls.list, inputFrom(calls.list, { ...options, limit: undefined }))
    const { client } = await connect(cli, command)
    const format = formatOf(command)
    const limit = options.all ? undefined : (options.limit ?? 100)
    const items: Machine[] = []
    let coverage: Coverage | undefined
    let nextCursor: string | null = null
    const read = (page: { limit: number; cursor?: string }) => attempt('list machines', client.machines.list({ ...input, ...page }))
    for await (const page of pagesOf(read, limit)) {
      coverage = joinCoverage(coverage, page.coverage)
      nextCursor = page.nextCursor
      // A hundred thousand machines should flow through a pipe, not pile up here.
      if (format === 'ndjson') for (const item of page.items) cli.stdout.write(ndjsonText(item))
      else items.push(...page.items)
    }
    if (format === 'ndjson') remarkCoverage(cli, coverage)
    else showList(cli, format, { items, ...{ nextCursor }, coverage }, machineShape(cli.now()))
    if (nextCursor !== null && format !== 'json') remark(cli, 'There are more: give --all or a higher --limit.')
  })
}

function addGet(parent: Command, cli: Cli): void {
  const command = parent.command('get').alias('show').summary('show machines in full').argument('<id...>', 'ids of machines')
  command.description(calls.get.summary)
  examples(command, [`machine get ${anId}`, `machine get ${anId} -o json | jq .inventory`])
  command.action(async (given: string[]) => {
    const ids = distinct(given).map(id => checked(calls.get, { id }).id)
    const { client } = await connect(cli, command)
    const found = await eachAtMost(ids, id => attempt(`get ${id}`, client.machines.get({ id })))
    const format = formatOf(command)
    if (format === 'json' && found.length > 1) cli.stdout.write(jsonText({ items: found }))
    else if (format === 'wide') showList(cli, format, { items: found }, machineShape(cli.now()))
    else
      for (const [index, machine] of found.entries()) {
        if (index > 0 && format === 'table') say(cli, '')
        showOne(cli, format, machine, { name: ({ id }) => id, text: one => machineText(cli, one) })
      }
  })
}

function addExplain(parent: Command, cli: Cli): void {
  const command = parent.command('explain').summary('why is it as it is?').argument('<id>', 'id of a machine')
  command.description(calls.explain.summary)
  examples(command, [`machine explain ${anId}`])
  command.action(async (given: string) => {
    const input = checked(calls.explain, { id: given })
    const { client } = await connect(cli, command)
    const explanation = await attempt(`explain ${given}`, client.machines.explain(input))
    showOne(cli, formatOf(command), explanation, { name: ({ id }) => id, text: one => explanationOf(cli, one) })
  })
}

function addWatch(parent: Command, cli: Cli): void {
  const command = parent
    .command('watch')
    .summary('follow machines as they change')
    .argument('[id]', 'id of a machine; all that match the filters without one')
  command.description(
    'Follow machines: a terminal shows them as they are at every moment; a pipe gets a line for every change. Ends with Ctrl-C.',
  )
  addFilters(command, calls.list)
  examples(command, [`machine watch ${anId}`, 'machine watch --state deploying,commissioning', 'machine watch -o ndjson'])
  command.action(async (id: string | undefined, options: ListOptions) => {
    const filter = checked(calls.list, inputFrom(calls.list, { ...options, limit: undefined }))
    if (id !== undefined) checked(calls.get, { id })
    const format = formatOf(command)
    // A remark would stand in the middle of the table; there the time of its last change says enough.
    const onStream = (what: 'lost' | 'back') => {
      if (!isLive({ cli, format })) remark(cli, what === 'lost' ? 'muster: connection lost; it is opened again' : 'muster: connected again')
    }
    const { client } = await connect(cli, command, onStream)
    await watchMachines({ cli, client, format, id, filter })
  })
}

/** The flags that say how a machine's BMC is reached. No secret among them: a command line is visible to every user of a computer. */
function addPowerFlags(command: Command): Command {
  return command
    .option('--power-driver <type>', 'ipmi, manual …')
    .option('--power-setting <name=value>', 'one setting that is no secret; may be repeated', collectOf(parseSetting))
    .option('--power-settings <file>', 'JSON object of settings, passwords among them; "-" reads it from the standard input')
}

function parseSetting(text: string): readonly [string, string] {
  const [name, value] = splitOnce(text)
  if (value === undefined || name === '') throw new InvalidArgumentError('It has the form name=value.')
  if (/pass|secret|token|key/i.test(name))
    throw new InvalidArgumentError(`A secret does not belong on a command line; put "${name}" into a file for --power-settings.`)
  return [name, value]
}

interface PowerFlags {
  readonly powerDriver?: string
  readonly powerSetting?: readonly (readonly [string, string])[]
  readonly powerSettings?: string
}

async function powerSettingsOf(cli: Cli, flags: PowerFlags): Promise<Record<string, unknown> | undefined> {
  if (flags.powerSettings === undefined && flags.powerSetting === undefined) return undefined
  const fromFile = flags.powerSettings === undefined ? {} : await readObject(cli, flags.powerSettings, 'power settings')
  return { ...fromFile, ...Object.fromEntries(flags.powerSetting ?? []) }
}

/** A JSON object with secrets in it. `what` is it, in words. */
async function readObject(cli: Cli, path: string, what: string): Promise<Record<string, unknown>> {
  const where = path === '-' ? 'the standard input' : path
  const text = path === '-' ? await readInput(cli) : await readText(path)
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    // The parser's own message quotes the text, and there are passwords in it.
    value = undefined
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new CliError('usage', `read ${what} from ${where}: it is not a JSON object such as {"name": "value"}`)
  return value as Record<string, unknown>
}

function addCreate(parent: Command, cli: Cli): void {
  const { create } = calls
  const command = parent.command('create').summary('add a machine by hand')
  command.description('Add a machine by hand. Machines that boot from the network enlist by themselves.')
  for (const name of ['partition', 'hostname', 'arch', 'cpus', 'pool', 'zone', 'rack', 'note'] as const)
    for (const option of optionsOf(name, fieldsOf(create)[name] as NonNullable<ReturnType<typeof fieldsOf>[string]>))
      command.addOption(option)
  command
    .option('--memory <size>', 'e.g. 64GiB', parseMebibytes)
    .option('--mac <address>', 'an interface of which no more is known; may be repeated', collect)
    .option('--interface <mac=…,name=…,speed=…,subnet=…>', 'an interface; may be repeated', collectOf(parseInterface))
    .option('--disk <name=…,size=…,kind=…>', 'a disk; may be repeated', collectOf(parseDisk))
    .option('--tag <name>', 'may be repeated', collect)
  addPowerFlags(command)
  examples(command, [
    'machine create --partition lon1 --mac 52:54:00:12:34:56 --power-driver manual',
    "machine create --partition lon1 --hostname web1 --interface 'mac=52:54:00:12:34:56,name=eno1,speed=10G' --disk 'name=sda,size=480GB,kind=ssd' \\\n" +
      '      --power-driver ipmi --power-settings bmc.json',
  ])
  command.action(async (options: CreateFlags) => {
    const { mac = [], interface: interfaces = [], disk, tag, memory, powerSettings: _, ...rest } = options
    const settings = await powerSettingsOf(cli, options)
    const input = checked(create, {
      ...inputFrom(create, rest),
      interfaces: [...mac.map(address => ({ mac: address })), ...interfaces],
      ...(disk && { disks: disk }),
      ...(tag && { tags: tag }),
      ...(memory !== undefined && { memoryMib: memory }),
      ...(settings && { powerSettings: settings }),
    })
    const { client } = await connect(cli, command)
    const made = await attempt('create a machine', client.machines.create(input))
    showOne(cli, formatOf(command), made, { name: ({ id }) => id, text: ({ id, hostname, state }) => `${id}  ${hostname}  ${state}\n` })
  })
}

interface CreateFlags extends PowerFlags {
  readonly mac?: string[]
  readonly interface?: ReturnType<typeof parseInterface>[]
  readonly disk?: ReturnType<typeof parseDisk>[]
  readonly tag?: string[]
  readonly memory?: number
}

const asText = (text: string) => text

function parseInterface(text: string) {
  const { speed, ...rest } = parsePairs(text, { mac: asText, name: asText, speed: parseSpeed, subnet: asText, ip: asText })
  return { ...rest, ...(speed !== undefined && { speedMbps: speed }) }
}

function parseDisk(text: string) {
  const { size, ...rest } = parsePairs(text, { name: asText, size: parseBytes, kind: asText, serial: asText, model: asText })
  return { ...rest, ...(size !== undefined && { sizeBytes: size }) }
}

interface UpdateFlags extends PowerFlags {
  readonly tag?: string[]
  readonly untag?: string[]
  readonly version?: number
}

function addUpdate(parent: Command, cli: Cli): void {
  const { update } = calls
  const command = parent.command('update').summary('change what people may set on machines').argument('<id...>', 'ids of machines')
  command.description('Change what people may set on machines. Tags are added and taken off one by one; the others stay.')
  for (const name of ['hostname', 'arch', 'pool', 'zone', 'rack', 'note'] as const)
    for (const option of optionsOf(name, fieldsOf(update)[name] as NonNullable<ReturnType<typeof fieldsOf>[string]>))
      command.addOption(option)
  command
    .option('--tag <name>', 'add a tag; may be repeated', collect)
    .option('--untag <name>', 'take a tag off; may be repeated', collect)
    .option('--if-version <n>', 'only where this is still its version', text => parseCount(text))
  addPowerFlags(command)
  examples(command, [
    `machine update ${anId} --pool web --tag gpu --untag spare`,
    `machine update ${anId} --power-driver ipmi --power-settings bmc.json`,
    `machine update ${anId} --power-driver none`,
  ])
  command.action(async (ids: string[], options: UpdateFlags & { ifVersion?: number }) => {
    const { tag, untag, powerDriver, powerSettings: _, ifVersion, ...rest } = options
    const settings = await powerSettingsOf(cli, options)
    const change = {
      ...inputFrom(update, rest),
      ...(powerDriver !== undefined && { powerDriver: powerDriver === 'none' ? null : powerDriver }),
      ...(settings && { powerSettings: settings }),
      ...(ifVersion !== undefined && { version: ifVersion }),
    }
    if (Object.keys(change).length === 0 && !tag && !untag)
      throw new CliError('usage', 'nothing to change', { hint: 'see: muster machine update --help' })
    const all = distinct(ids)
    for (const id of all) checked(update, { id, ...change })
    const { client } = await connect(cli, command)
    const act = (id: string) =>
      tag || untag ? updateTags(client, { id, ...change }, { tag, untag }) : client.machines.update(checked(update, { id, ...change }))
    await actOnMachines({ cli, command, client, verb: 'update', ids: all, act, text: machine => `updated, version ${machine.version}` })
  })
}

/** How often an update of tags starts again because somebody changed the machine in between. */
const updateTries = 5

/** Tags are set as a whole: they are read first, and written only onto the version that was read. */
async function updateTags(
  client: Client,
  change: { id: string; version?: number },
  tags: { tag: string[] | undefined; untag: string[] | undefined },
) {
  for (let tried = 1; ; tried++) {
    const machine = await client.machines.get({ id: change.id })
    const wanted = new Set([...machine.tags, ...(tags.tag ?? [])])
    for (const name of tags.untag ?? []) wanted.delete(name)
    try {
      return await client.machines.update(checked(calls.update, { version: machine.version, ...change, tags: [...wanted] }))
    } catch (error) {
      const mayRepeat = error instanceof Refusal && error.code === 'stale-version' && change.version === undefined
      if (!mayRepeat || tried === updateTries) throw error
    }
  }
}

function addDelete(parent: Command, cli: Cli): void {
  const command = parent.command('delete').alias('rm').summary('forget machines that nobody uses').argument('<id...>', 'ids of machines')
  command.description(calls.delete.summary)
  examples(command, [`machine delete ${anId}`, 'machine list --state retired -o name | xargs muster machine delete'])
  command.action(async (ids: string[]) => {
    const all = distinct(ids).map(id => checked(calls.delete, { id }).id)
    const { client } = await connect(cli, command)
    const act = async (id: string) => {
      await client.machines.delete({ id })
      return null
    }
    await actOnMachines({ cli, command, client, verb: 'delete', ids: all, act })
  })
}

/** An action whose flags all come from the contract. */
/** What stands in the examples of flags that take one of a few words. */
const exampleValues: Readonly<Record<string, string>> = { power: 'on', erase: 'full' }

function addAction(parent: Command, cli: Cli, name: ActionName, call: Call): void {
  const verb = call.rest.path.slice(call.rest.path.lastIndexOf('/') + 1)
  const canWait = verb !== 'lock' && verb !== 'unlock'
  const command = parent
    .command(verb)
    .summary(call.summary.charAt(0).toLowerCase() + call.summary.slice(1))
    .argument('[id...]', 'ids of machines')
  command.description(`${call.summary}.`)
  for (const [field, schema] of Object.entries(fieldsOf(call)))
    if (field !== 'id') for (const option of optionsOf(field, schema)) command.addOption(option)
  if (canWait) command.addOption(waitOption())
  const texts = Object.keys(fieldsOf(call)).filter(field => field !== 'id')
  examples(command, [
    `machine ${verb} ${anId}${texts.map(field => ` --${kebab(field)} ${exampleValues[field] ?? '"fan 3 is loud"'}`).join('')}`,
    `machine ${verb} ${anId} par2-9k2c5d${canWait ? ' --wait 40m' : ' -o json'}`,
  ])
  command.action(async (given: string[], options: { wait?: string | true }) => {
    const { wait, ids } = splitWait(options.wait, given)
    const inputs = new Map(distinct(ids).map(id => [id, checked(call, { ...inputFrom(call, { ...options }), id }) as { id: string }]))
    const { client } = await connect(cli, command)
    // Checked against the call's own schema above; the type of one action among many is their intersection.
    const act = (id: string) => client.machines[name](inputs.get(id) as never)
    const text = (machine: Machine) => (canWait ? machine.state : machine.locked ? 'locked' : 'unlocked')
    await actOnMachines({ cli, command, client, verb, ids: [...inputs.keys()], act, wait, text })
  })
}

interface DeployFlags {
  readonly os: string
  readonly userData?: string
  readonly sshKey?: string[]
  readonly ownKeys: boolean
  readonly secrets?: string
  readonly dataSource?: string
  readonly network?: string
  readonly storage?: string
  readonly wait?: string | true
}

function addDeploy(parent: Command, cli: Cli): void {
  const command = parent.command('deploy').summary('put an operating system on allocated machines').argument('[id...]', 'ids of machines')
  command.description(`${calls.deploy.summary}. What can be deployed where: muster os list`)
  command
    .requiredOption('--os <name>', 'such as debian/12')
    .option('--user-data <file>', "cloud-init's user-data, compressed with gzip or not")
    .option('--ssh-key <file>', 'file of public keys, one a line; may be repeated', collect)
    .option('--no-own-keys', 'leave out your own keys (muster key list)')
    .option('--secrets <file>', 'JSON object of secrets that the machine may take once each; "-" reads it from the standard input')
    .option('--network <file>', 'YAML document of its network, for this deployment; see: muster machine network --help')
    .option('--storage <file>', 'YAML document of its disks, for an image that is a root tarball; docs/boot.md shows some')
  for (const option of optionsOf('dataSource', fieldsOf(calls.deploy).dataSource as NonNullable<ReturnType<typeof fieldsOf>[string]>))
    command.addOption(option)
  command.addOption(waitOption())
  examples(command, [
    `machine deploy ${anId} --os debian/12 --ssh-key ~/.ssh/id_ed25519.pub`,
    `machine deploy ${anId} par2-9k2c5d --os debian/12 --user-data cloud.yaml --wait 1h`,
    `machine deploy ${anId} --os debian/12 --storage mirrored.yaml`,
  ])
  command.action(async (given: string[], options: DeployFlags) => {
    const { wait, ids } = splitWait(options.wait, given)
    const shared = {
      os: options.os,
      ...(options.userData !== undefined && { userData: await readUserData(options.userData) }),
      ...(options.sshKey && { sshKeys: await readKeys(options.sshKey) }),
      ...(!options.ownKeys && { ownKeys: false }),
      ...(options.secrets !== undefined && { secrets: await readObject(cli, options.secrets, 'secrets') }),
      ...(options.network !== undefined && { network: await readDocument(cli, options.network, 'network') }),
      ...(options.storage !== undefined && { storage: await readDocument(cli, options.storage, 'storage') }),
      ...(options.dataSource !== undefined && { dataSource: options.dataSource }),
    }
    const inputs = new Map(distinct(ids).map(id => [id, checked(calls.deploy, { id, ...shared })]))
    const { client } = await connect(cli, command)
    const act = (id: string) => client.machines.deploy(inputs.get(id) as CallRequest<'machines.deploy'>)
    await actOnMachines({ cli, command, client, verb: 'deploy', ids: [...inputs.keys()], act, wait })
  })
}

function addRescue(parent: Command, cli: Cli): void {
  const call = calls.rescue
  const command = parent.command('rescue').summary('boot the rescue system').argument('[id...]', 'ids of machines')
  command
    .description(
      `${call.summary}: a shell on the console, and over SSH for the keys given and your own. Where it is, machine get says once it is up.`,
    )
    .option('--ssh-key <file>', 'file of public keys that may log in as root, one a line; may be repeated', collect)
    .option('--no-own-keys', 'leave out your own keys (muster key list)')
    .addOption(waitOption())
  examples(command, [`machine rescue ${anId} --ssh-key ~/.ssh/id_ed25519.pub`, `machine exit-rescue ${anId}`])
  command.action(async (given: string[], options: { sshKey?: string[]; ownKeys: boolean; wait?: string | true }) => {
    const { wait, ids } = splitWait(options.wait, given)
    const keys = { sshKeys: await readKeys(options.sshKey ?? []), ...(!options.ownKeys && { ownKeys: false }) }
    const all = distinct(ids).map(id => checked(call, { id, ...keys }).id)
    const { client } = await connect(cli, command)
    await actOnMachines({ cli, command, client, verb: 'rescue', ids: all, act: id => client.machines.rescue({ id, ...keys }), wait })
  })
}

/** How long a rotation of a healthy BMC takes at most: some logins, each of a few seconds on a slow one. */
const rotationPatience = '2m'

function addRotateCredentials(parent: Command, cli: Cli): void {
  const call = calls.rotateCredentials
  const command = parent
    .command('rotate-credentials')
    .summary("give the accounts of machines' BMCs new passwords")
    .argument('[id...]', 'ids of machines')
  command
    .description(`${call.summary}. ${call.description}`)
    .addOption(new Option('--wait [duration]', `until it has ended; ${rotationPatience} where no duration is given`))
  examples(command, [
    `machine rotate-credentials ${anId} --wait`,
    'machine list --rack r7 -o name | xargs muster machine rotate-credentials',
  ])
  command.action(async (given: string[], options: { wait?: string | true }) => {
    const { wait, ids } = splitWait(options.wait, given)
    const all = distinct(ids).map(id => checked(call, { id }).id)
    const { client } = await connect(cli, command)
    const rotations = new Map<string, CredentialRotation>()
    const act = async (id: string) => {
      const answer = await client.machines.rotateCredentials({
        id,
        ...(wait !== undefined && { wait: wait === true ? rotationPatience : wait }),
      })
      const { rotation } = answer
      const tried = `rotate the credentials of ${id}`
      if (rotation.state === 'failed')
        throw new CliError(
          exitOfFault(rotation.fault?.code),
          `${tried}: ${rotation.fault?.message ?? 'its power settings were replaced'}`,
          {
            hint: `The old password stays. ${rotation.fault?.hint ?? ''}`.trim(),
          },
        )
      if (wait !== undefined && rotation.state !== 'done')
        throw new CliError('timed-out', `${tried}: still ${rotation.state}${rotation.fault ? `, ${rotation.fault.message}` : ''}`, {
          hint: `It goes on. See: muster machine explain ${id}`,
        })
      rotations.set(id, rotation)
      return answer
    }
    const text = ({ id }: Machine) => {
      const rotation = rotations.get(id)
      return `rotation of the password ${rotation?.state}${rotation && rotation.machines.length > 1 ? `, with ${rotation.machines.filter(one => one !== id).join(', ')}` : ''}`
    }
    await actOnMachines({ cli, command, client, verb: 'rotate-credentials', ids: all, act, text })
  })
}

/** What went wrong at the BMC, as `muster bmc` would end. */
function exitOfFault(code = ''): ExitName {
  const name = code.replace(/^power-/, 'bmc-')
  return name in exitTable && name !== code ? (name as ExitName) : 'refused'
}

const powerSummaries: Readonly<Record<string, string>> = {
  on: 'switch the power on',
  off: 'switch the power off',
  cycle: 'switch it hard off, then on',
}

function addPower(parent: Command, cli: Cli): void {
  const power = parent.command('power').summary('switch the power, or see it')
  power.description(`${calls.power.summary}.`)
  examples(power, [`machine power cycle ${anId} --wait`, `machine power status ${anId}`])
  const actions = choicesOf(fieldsOf(calls.power).action as NonNullable<ReturnType<typeof fieldsOf>[string]>) as ('on' | 'off' | 'cycle')[]
  for (const action of actions) {
    const command = power
      .command(action)
      .summary(powerSummaries[action] ?? action)
      .argument('[id...]', 'ids of machines')
    command
      .description(`${calls.power.summary}: ${action}.`)
      .addOption(new Option('--wait [duration]', 'until the BMC shows it; 12m where no duration is given'))
    examples(command, [`machine power ${action} ${anId}`, `machine power ${action} ${anId} par2-9k2c5d --wait 2m`])
    command.action(async (given: string[], options: { wait?: string | true }) => {
      const { wait, ids } = splitWait(options.wait, given)
      const all = distinct(ids).map(id => checked(calls.power, { id, action }).id)
      const { client } = await connect(cli, command)
      const act = (id: string) => client.machines.power({ id, action })
      const text = (machine: Machine) => `power ${wait === undefined ? `${action} asked for` : machine.power}`
      await actOnMachines({ cli, command, client, verb: `power ${action}`, ids: all, act, wait, judge: judgePower(client, action), text })
    })
  }
  addPowerStatus(power, cli)
}

function addPowerStatus(parent: Command, cli: Cli): void {
  const command = parent.command('status').summary('what their BMCs showed last').argument('<id...>', 'ids of machines')
  command.description('The power state that the BMC of each machine showed last, and how long ago.')
  examples(command, [`machine power status ${anId}`])
  command.action(async (given: string[]) => {
    const ids = distinct(given).map(id => checked(calls.get, { id }).id)
    const { client } = await connect(cli, command)
    const act = (id: string) => client.machines.get({ id })
    const text = ({ power, powerSeenAt }: Machine) => `${power}${powerSeenAt ? `  seen ${powerSeenAt}` : '  never seen'}`
    await actOnMachines({ cli, command, client, verb: 'power status', ids, act, text })
  })
}
