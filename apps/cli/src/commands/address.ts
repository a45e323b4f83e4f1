// `muster address …`: who has which address, reserving one, and what DHCP and DNS say of one host.
import { type Address, addresses as calls, dhcpHosts as hostCalls } from '@muster/shared/contract/addresses'
import type { Coverage } from '@muster/shared/contract/call'
import type { Command } from 'commander'
import { type Cli, examples, type Fill, formatOf } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt } from '../exit-codes.ts'
import { type Shape, showList, showOne } from '../output/show.ts'
import { ageText, printable } from '../output/text.ts'
import { collect } from '../quantities.ts'
import { addFilters, checked } from '../schema-options.ts'
import { joinCoverage, pagesOf } from './pages.ts'

/** `muster address` with its subcommands. */
export const fillAddress: Fill = (command, cli) => {
  examples(command, ['address list --subnet servers', 'address reserve servers --machine lon1-4y3h7n'])
  addList(command, cli)
  addReserve(command, cli)
  addRelease(command, cli)
  addSetHost(command, cli)
  addDeleteHost(command, cli)
}

const shape = (now: number): Shape<Address> => ({
  columns: [
    { title: 'ADDRESS', text: ({ address }) => address },
    { title: 'SUBNET', text: ({ subnet }) => subnet },
    { title: 'PARTITION', text: ({ partition }) => partition, leaves: 5 },
    { title: 'MACHINE', text: ({ machine }) => machine ?? '-' },
    { title: 'NAMES', text: ({ name, aliases }) => [name ?? '-', ...aliases].join(','), least: 8 },
    { title: 'MAC', text: ({ mac }) => mac ?? '-', leaves: 2 },
    { title: 'BY', text: ({ source, by }) => (source === 'document' ? 'network document' : by), leaves: 3 },
    { title: 'AGE', text: ({ createdAt }) => ageText(createdAt, now), align: 'right', leaves: 6 },
    { title: 'NOTE', text: ({ note }) => note, least: 8, leaves: 4 },
  ],
  name: ({ address }) => address,
  none: 'No address matches.',
})

function show(cli: Cli, command: Command, address: Address, verb: string): void {
  const { machine, mac, name, aliases } = address
  const who = [machine, mac, [name ?? [], aliases].flat().join(',')].filter(Boolean).join('  ')
  const text = `${address.address}  ${verb} in ${address.subnet}${who && `  ${printable(who)}`}\n`
  showOne(cli, formatOf(command), address, { name: one => one.address, text: () => text })
}

function addList(parent: Command, cli: Cli): void {
  const command = addFilters(parent.command('list').alias('ls').summary('list addresses that somebody has'), calls.list)
  command.description(`${calls.list.summary}, by a reservation or by a machine's network document.`)
  examples(command, ['address list --subnet servers', 'address list --machine lon1-4y3h7n -o json'])
  command.action(async (options: Record<string, unknown>) => {
    const input = checked(calls.list, options)
    const { client } = await connect(cli, command)
    const items: Address[] = []
    let coverage: Coverage | undefined
    const read = (page: { limit: number; cursor?: string }) => attempt('list addresses', client.addresses.list({ ...input, ...page }))
    for await (const page of pagesOf(read, undefined)) {
      items.push(...page.items)
      coverage = joinCoverage(coverage, page.coverage)
    }
    showList(cli, formatOf(command), { items, ...{ nextCursor: null }, coverage }, shape(cli.now()))
  })
}

interface HostFlags {
  readonly partition?: string
  readonly alias?: string[]
  readonly [field: string]: unknown
}

/** The flags that say what an address is called. */
function addNames(command: Command): Command {
  return command
    .option('--partition <name>', 'its partition; needed at a front')
    .option('--name <name>', "its name in the partition's DNS zone; a machine's is its host name where left out")
    .option('--alias <name>', 'one more name that leads to it; may be repeated', collect)
    .option('--note <text>', 'what there is to remember')
}

const inputOf = ({ alias, ...rest }: HostFlags) => ({ ...rest, ...(alias && { aliases: alias }) })

function addReserve(parent: Command, cli: Cli): void {
  const command = parent.command('reserve').summary('reserve an address, the lowest free one or a given one')
  command.argument('<subnet>', 'name of the subnet').argument('[address]', 'the lowest free one where left out')
  command.description(`${calls.reserve.summary}. ${calls.reserve.description}`)
  command
    .option('--machine <id>', 'the machine that it is for')
    .option('--mac <address>', 'who gets it by DHCP; the first interface of the machine where left out')
  addNames(command)
  examples(command, [
    'address reserve servers --machine lon1-4y3h7n',
    'address reserve servers 10.0.0.20 --name nas --alias files --note "not managed by Muster"',
  ])
  command.action(async (subnet: string, address: string | undefined, flags: HostFlags) => {
    const input = checked(calls.reserve, { subnet, ...(address !== undefined && { address }), ...inputOf(flags) })
    const { client } = await connect(cli, command)
    const tried = `reserve ${address ?? 'an address'} of ${subnet}`
    show(cli, command, await attempt(tried, client.addresses.reserve(input)), 'reserved')
  })
}

function addRelease(parent: Command, cli: Cli): void {
  const command = parent.command('release').summary('give a reserved address back')
  command.argument('<subnet>', 'name of the subnet').argument('<address>', 'the address')
  command.description(`${calls.release.summary}.`).option('--partition <name>', 'its partition; needed at a front')
  examples(command, ['address release servers 10.0.0.20'])
  command.action(async (subnet: string, address: string, options: { partition?: string }) => {
    const input = checked(calls.release, { subnet, address, ...options })
    const { client } = await connect(cli, command)
    show(cli, command, await attempt(`release ${address} of ${subnet}`, client.addresses.release(input)), 'released')
  })
}

function addSetHost(parent: Command, cli: Cli): void {
  const command = parent.command('set-host').summary('say which address and names the host with a MAC address has')
  command.argument('<mac>', 'MAC address').description(`${hostCalls.set.summary}. ${hostCalls.set.description}`)
  command
    .option('--address <address>', 'the lowest free one of the subnet where left out')
    .option('--subnet <name>', 'the one that has the address where left out')
  addNames(command)
  examples(command, ['address set-host 52:54:00:12:34:56 --address 10.0.0.30 --name camera --alias door'])
  command.action(async (mac: string, flags: HostFlags) => {
    const input = checked(hostCalls.set, { mac, ...inputOf(flags) })
    const { client } = await connect(cli, command)
    show(cli, command, await attempt(`set the address of ${mac}`, client.dhcpHosts.set(input)), 'reserved')
  })
}

function addDeleteHost(parent: Command, cli: Cli): void {
  const command = parent.command('delete-host').summary('forget which address and names the host with a MAC address has')
  command.argument('<mac>', 'MAC address').description(`${hostCalls.delete.summary}.`)
  command.option('--partition <name>', 'its partition; needed at a front')
  examples(command, ['address delete-host 52:54:00:12:34:56'])
  command.action(async (mac: string, options: { partition?: string }) => {
    const input = checked(hostCalls.delete, { mac, ...options })
    const { client } = await connect(cli, command)
    const { items } = await attempt(`delete the address of ${mac}`, client.dhcpHosts.delete(input))
    for (const item of items) show(cli, command, item, 'released')
  })
}
