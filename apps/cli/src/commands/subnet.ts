// `muster subnet …`: the networks of a partition, which of their addresses are not given out, and which DHCP gives to anybody.
import type { Coverage } from '@muster/shared/contract/call'
import { subnets as calls, type Subnet } from '@muster/shared/contract/subnets'
import { Refusal } from '@muster/shared/errors'
import { type Command, InvalidArgumentError } from 'commander'
import { type Cli, examples, type Fill, formatOf } from '../cli.ts'
import type { Connection } from '../connection.ts'
import { connect } from '../connection.ts'
import { attempt, CliError } from '../exit-codes.ts'
import { type Shape, showList, showOne } from '../output/show.ts'
import { fieldsText } from '../output/table.ts'
import { collect, collectOf, parseCount } from '../quantities.ts'
import { addFilters, checked } from '../schema-options.ts'
import { joinCoverage, pagesOf } from './pages.ts'

/** `muster subnet` with its subcommands. */
export const fillSubnet: Fill = (command, cli) => {
  examples(command, ['subnet list', 'subnet set servers --cidr 10.0.0.0/24 --gateway 10.0.0.1 --dynamic 10.0.0.100-10.0.0.199'])
  addList(command, cli)
  addGet(command, cli)
  addSet(command, cli)
  addDelete(command, cli)
}

const rangeText = ({ from, to, note }: Subnet['reserved'][number]) => `${from}-${to}${note && `=${note}`}`

const shape: Shape<Subnet> = {
  columns: [
    { title: 'NAME', text: ({ name }) => name },
    { title: 'PARTITION', text: ({ partition }) => partition, leaves: 4 },
    { title: 'NETWORK', text: ({ cidr }) => cidr },
    { title: 'VLAN', text: ({ vlan }) => (vlan === null ? '-' : String(vlan)), align: 'right' },
    { title: 'GATEWAY', text: ({ gateway }) => gateway ?? '-', leaves: 3 },
    { title: 'USED', text: ({ used }) => String(used), align: 'right' },
    { title: 'DYNAMIC', text: ({ dynamic = [] }) => dynamic.map(rangeText).join(', '), wide: true },
    { title: 'RESERVED', text: ({ reserved }) => reserved.map(rangeText).join(', '), wide: true },
    { title: 'DESCRIPTION', text: ({ description }) => description, least: 10, leaves: 5 },
  ],
  name: ({ name }) => name,
  none: 'There are no subnets.',
}

const subnetText = (cli: Cli, subnet: Subnet) =>
  fieldsText(cli, [
    ['Name', subnet.name],
    ['Partition', subnet.partition],
    ['Network', subnet.cidr],
    ['VLAN', subnet.vlan ?? 'untagged'],
    ['Gateway', subnet.gateway],
    ...subnet.nameservers.map(server => ['DNS server', server] as const),
    ...(subnet.dynamic ?? []).map(range => ['Dynamic', rangeText(range)] as const),
    ...subnet.reserved.map(range => ['Reserved', rangeText(range)] as const),
    ['Used', subnet.used],
    ['Description', subnet.description],
  ])

const partitionFlag = ['--partition <name>', 'its partition; needed at a front'] as const

function addList(parent: Command, cli: Cli): void {
  const command = addFilters(parent.command('list').alias('ls').summary('list subnets'), calls.list)
  command.description(`${calls.list.summary}.`)
  examples(command, ['subnet list', 'subnet list --partition lon1 -o wide'])
  command.action(async (options: { partition?: string[] }) => {
    const input = checked(calls.list, options)
    const { client } = await connect(cli, command)
    showList(cli, formatOf(command), await allSubnets(client, input.partition), shape)
  })
}

/** Every subnet, of these partitions or of all. */
export async function allSubnets(client: Connection['client'], partition: string[] | undefined) {
  const items: Subnet[] = []
  let coverage: Coverage | undefined
  const read = (page: { limit: number; cursor?: string }) =>
    attempt('list subnets', client.subnets.list({ ...(partition && { partition }), ...page }))
  for await (const page of pagesOf(read, undefined)) {
    items.push(...page.items)
    coverage = joinCoverage(coverage, page.coverage)
  }
  return { items, nextCursor: null, coverage }
}

function addGet(parent: Command, cli: Cli): void {
  const command = parent.command('get').alias('show').summary('one subnet').argument('<name>', 'name of the subnet')
  command.description(`${calls.get.summary}.`).option(...partitionFlag)
  examples(command, ['subnet get servers', 'subnet get servers --partition lon1 -o json'])
  command.action(async (name: string, options: { partition?: string }) => {
    const input = checked(calls.get, { name, ...options })
    const { client } = await connect(cli, command)
    const found = await attempt(`get subnet ${name}`, client.subnets.get(input))
    showOne(cli, formatOf(command), found, { name: one => one.name, text: one => subnetText(cli, one) })
  })
}

interface SetFlags {
  readonly partition?: string
  readonly cidr?: string
  readonly vlan?: number | 'none'
  readonly gateway?: string
  readonly nameserver?: string[]
  readonly dynamic?: (Subnet['reserved'][number] | 'none')[]
  readonly reserved?: (Subnet['reserved'][number] | 'none')[]
  readonly description?: string
}

const none = 'none'

function addSet(parent: Command, cli: Cli): void {
  const command = parent.command('set').summary('create a subnet, or change it').argument('<name>', 'name of the subnet')
  command
    .description(`${calls.put.summary}. ${calls.put.description} Of a subnet that exists, what is left out stays; "${none}" takes away.`)
    .option(...partitionFlag)
    .option('--cidr <network>', 'such as 10.0.0.0/24')
    .option('--vlan <id>', `VLAN id, or "${none}"`, text => (text === none ? none : parseCount(text, 1)))
    .option('--gateway <address>', `or "${none}"`)
    .option('--nameserver <address>', `DNS server; may be repeated, or "${none}"`, collect)
    .option('--dynamic <from-to[=note]>', `addresses that DHCP gives to anybody; may be repeated, or "${none}"`, collectOf(parseRange))
    .option('--reserved <from-to[=note]>', `addresses that are not given out; may be repeated, or "${none}"`, collectOf(parseRange))
    .option('--description <text>', 'what it is for')
  examples(command, [
    'subnet set servers --cidr 10.0.0.0/24 --vlan 40 --gateway 10.0.0.1 --nameserver 10.0.0.2 --reserved 10.0.0.2-10.0.0.9=switches',
    'subnet set servers --dynamic 10.0.0.100-10.0.0.199',
    'subnet set servers --reserved none --description "hall 2"',
  ])
  command.action(async (name: string, flags: SetFlags) => {
    const { partition } = flags
    const where = checked(calls.get, { name, ...(partition && { partition }) })
    const { client } = await connect(cli, command)
    const known = await client.subnets.get(where).catch((error: unknown) => {
      if (error instanceof Refusal && error.code === 'not-found') return undefined
      throw error
    })
    if (!known && flags.cidr === undefined)
      throw new CliError('usage', `there is no subnet ${name} yet; say its network with --cidr to create it`)
    const input = checked(calls.put, { ...where, ...(known && changeable(known)), ...changes(flags) })
    const put = await attempt(`set subnet ${name}`, client.subnets.put(input))
    showOne(cli, formatOf(command), put, { name: one => one.name, text: one => subnetText(cli, one) })
  })
}

/** Dynamic ranges stay where they are not said: a server that does not know the field is not told of it. */
const changeable = ({ partition: _, used: __, dynamic: ___, ...rest }: Subnet) => rest

function changes({ cidr, vlan, gateway, nameserver, dynamic, reserved, description }: SetFlags) {
  return {
    ...(cidr !== undefined && { cidr }),
    ...(vlan !== undefined && { vlan: vlan === none ? null : vlan }),
    ...(gateway !== undefined && { gateway: gateway === none ? null : gateway }),
    ...(nameserver !== undefined && { nameservers: nameserver.filter(text => text !== none) }),
    ...(dynamic !== undefined && { dynamic: dynamic.filter(range => range !== 'none') }),
    ...(reserved !== undefined && { reserved: reserved.filter(range => range !== 'none') }),
    ...(description !== undefined && { description }),
  }
}

function parseRange(text: string): Subnet['reserved'][number] | 'none' {
  if (text === none) return none
  const { from, to, note = '' } = /^(?<from>[^-=]+)-(?<to>[^-=]+)(=(?<note>.*))?$/.exec(text)?.groups ?? {}
  if (from === undefined || to === undefined)
    throw new InvalidArgumentError(`"${text}" is not FROM-TO[=NOTE], such as 10.0.0.2-10.0.0.9=switches.`)
  return { from, to, note }
}

function addDelete(parent: Command, cli: Cli): void {
  const command = parent.command('delete').alias('rm').summary('forget a subnet').argument('<name>', 'name of the subnet')
  command.description(`${calls.delete.summary}.`).option(...partitionFlag)
  examples(command, ['subnet delete servers'])
  command.action(async (name: string, options: { partition?: string }) => {
    const input = checked(calls.delete, { name, ...options })
    const { client } = await connect(cli, command)
    const gone = await attempt(`delete subnet ${name}`, client.subnets.delete(input))
    showOne(cli, formatOf(command), gone, { name: one => one.name, text: one => `subnet ${one.name} deleted\n` })
  })
}
