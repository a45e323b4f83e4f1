// `muster doctor net`: what is wrong with the network that this host serves, and what to do about it.
import { networkInterfaces } from 'node:os'
import type { Address } from '@muster/shared/contract/addresses'
import type { DhcpServer } from '@muster/shared/contract/partitions'
import { durationMs } from '@muster/shared/duration'
import { isInNetwork } from '@muster/shared/network'
import type { Command } from 'commander'
import { type Cli, examples, type Fill, formatOf } from '../cli.ts'
import { type Connection, connect } from '../connection.ts'
import { attempt, CliError, Exit } from '../exit-codes.ts'
import { discover } from '../network/discover.ts'
import { type Finding, offerFindings, portFindings, rangeFindings, servicePorts } from '../network/findings.ts'
import { holdersOf } from '../network/ports.ts'
import { showOne } from '../output/show.ts'
import { paint, printable } from '../output/text.ts'
import { collect, parseDuration } from '../quantities.ts'
import { pagesOf } from './pages.ts'
import { allSubnets } from './subnet.ts'

export const fillDoctor: Fill = (command, cli) => {
  command.description('Look for what is wrong on this host and around it, and say what to do.')
  examples(command, ['doctor net', 'doctor net --interface eno2'])
  addNet(command, cli)
}

interface NetFlags {
  readonly interface?: string[]
  readonly partition?: string
  readonly wait: string
}

function addNet(parent: Command, cli: Cli): void {
  const command = parent.command('net').summary('who serves DHCP, who has its ports, which addresses overlap')
  command
    .description(
      'Asks the networks of this host who offers addresses (it takes none), looks who has the ports of DHCP, TFTP and DNS, and compares what the partition ' +
        'gives to anybody with its subnets and with what others have. Run it as root on the host of a partition. Ends with 1 where something is bad.',
    )
    .option('--interface <name>', 'ask only there; may be repeated. Those that the partition serves, else all, where left out', collect)
    .option('--partition <name>', 'whose network it is; needed at a front')
    .option('--wait <duration>', 'how long offers are waited for; dnsmasq looks for 3 s whether an address is in use', parseDuration, '8s')
  examples(command, ['doctor net', 'doctor net --interface eno2 --wait 20s', 'doctor net -o json'])
  command.action(async (flags: NetFlags) => {
    const { client } = await connect(cli, command)
    const findings = await look(cli, client, flags)
    const isBad = findings.some(({ verdict }) => verdict === 'bad')
    const report = { ending: isBad ? 'bad' : 'ok', findings }
    showOne(cli, formatOf(command), report, { name: ({ ending }) => ending, text: () => reportText(cli, findings) })
    if (isBad) throw new Exit('unexpected')
  })
}

async function look(cli: Cli, client: Connection['client'], flags: NetFlags): Promise<Finding[]> {
  const partition = flags.partition ?? (await ownPartition(client))
  const [{ servers }, subnets, held] = await Promise.all([
    attempt(`what DHCP ${partition} serves`, client.partitions.dhcp({ name: partition })),
    allSubnets(client, [partition]),
    allAddresses(client, partition),
  ])
  const places = placesOf(flags.interface, servers)
  const own = Object.values(networkInterfaces()).flatMap(addresses => (addresses ?? []).map(({ address }) => address))
  const isServedHere = servers.some(({ addresses }) => addresses.some(address => own.includes(address)))
  const offers: Finding[] = []
  // One after the other: they share port 68.
  for (const place of places) offers.push(...(await offersOn(cli, place, servers, durationMs(flags.wait))))
  return [
    ...offers,
    ...portFindings(holdersOf([...new Set(servicePorts.map(({ port }) => port))]), { own, isServedHere }),
    ...rangeFindings(servers, subnets.items, held),
  ]
}

async function ownPartition(client: Connection['client']): Promise<string> {
  const { server } = await attempt('whoami', client.session.whoami({}))
  if (server.kind === 'partition') return server.name
  throw new CliError('usage', 'the server is a front; say whose network it is with --partition')
}

async function allAddresses(client: Connection['client'], partition: string): Promise<Address[]> {
  const items: Address[] = []
  const read = (page: { limit: number; cursor?: string }) =>
    attempt('list addresses', client.addresses.list({ partition: [partition], ...page }))
  for await (const page of pagesOf(read, undefined)) items.push(...page.items)
  return items
}

interface Place {
  name: string
  /** Undefined: it has no address of IPv4, or is not there. */
  own: string | undefined
  isServed: boolean
}

/** Where is asked: at these interfaces; else at those that the partition serves; else at all. */
function placesOf(names: readonly string[] | undefined, servers: readonly DhcpServer[]): Place[] {
  const served = new Set(servers.flatMap(({ addresses }) => addresses))
  const places = Object.entries(networkInterfaces()).flatMap(([name, addresses]): Place[] => {
    const [first] = (addresses ?? []).filter(({ family, internal }) => family === 'IPv4' && !internal)
    return first ? [{ name, own: first.address, isServed: (addresses ?? []).some(({ address }) => served.has(address)) }] : []
  })
  if (names) return names.map(name => places.find(place => place.name === name) ?? { name, own: undefined, isServed: false })
  return places.some(({ isServed }) => isServed) ? places.filter(({ isServed }) => isServed) : places
}

async function offersOn(cli: Cli, { name, own, isServed }: Place, servers: readonly DhcpServer[], waitMs: number): Promise<Finding[]> {
  const topic = `DHCP on ${name}`
  const unseen = (found: string, hint: string): Finding[] => [{ topic, verdict: 'odd', found: `not looked at: ${found}`, hint }]
  if (own === undefined)
    return unseen(
      'this host has no such interface with an IPv4 address',
      'ip address show has the interfaces; asking needs an address there',
    )
  try {
    const isBeside = servers.some(({ beside }) => beside?.some(cidr => isInNetwork(cidr, own)))
    return offerFindings(await discover({ own, waitMs, signal: cli.signal }), { topic, servers, isServedHere: isServed, isBeside })
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (code === 'EACCES') return unseen('asking needs root (UDP port 68)', 'run this as root: sudo muster doctor net')
    if (code === 'EADDRINUSE')
      return unseen('a DHCP client of this host has UDP port 68 for itself', 'see it with: ss -ulpn "sport = 68"; stop it for a moment')
    if (cli.signal.aborted) throw error
    return unseen(message, 'is the interface up?')
  }
}

const styles = { good: 'green', odd: 'yellow', bad: 'red' } as const satisfies Record<Finding['verdict'], Parameters<typeof paint>[1]>

function reportText(cli: Cli, findings: readonly Finding[]): string {
  const width = Math.max(...findings.map(({ topic }) => topic.length))
  const lines = findings.flatMap(({ topic, verdict, found, hint }) => [
    `${paint(cli.stdout, styles[verdict], verdict.padEnd(4))}  ${topic.padEnd(width)}  ${printable(found)}`,
    ...(hint === undefined ? [] : [`${' '.repeat(width + 8)}hint: ${printable(hint)}`]),
  ])
  return lines.map(line => `${line}\n`).join('')
}
