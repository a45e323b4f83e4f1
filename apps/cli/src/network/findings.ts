// What `muster doctor net` makes of what it saw: pure, each finding with what to do.
import type { Address } from '@muster/shared/contract/addresses'
import type { DhcpServer } from '@muster/shared/contract/partitions'
import type { Subnet } from '@muster/shared/contract/subnets'
import { bitsOf, isInNetwork } from '@muster/shared/network'
import type { Offer } from './dhcp.ts'
import { type Holder, isMusters } from './ports.ts'

export interface Finding {
  topic: string
  /** `odd`: it works, or could not be looked at. */
  verdict: 'good' | 'odd' | 'bad'
  found: string
  /** What to do. */
  hint?: string
}

/** The ports that a partition's dnsmasq wants. */
export const servicePorts = [
  { port: 67, protocol: 'udp', service: 'DHCP' },
  { port: 69, protocol: 'udp', service: 'TFTP' },
  { port: 53, protocol: 'udp', service: 'DNS' },
  { port: 53, protocol: 'tcp', service: 'DNS' },
] as const

/** Who holds the ports. `own`: addresses of this host; `isServedHere`: by its settings, a replica on this host serves DHCP. */
export function portFindings(
  holders: readonly Holder[],
  { own, isServedHere }: { own: readonly string[]; isServedHere: boolean },
): Finding[] {
  return servicePorts.map(({ port, protocol, service }) => {
    const topic = `port ${port}/${protocol}`
    const here = holders.filter(
      // A name server for this host alone is in nobody's way.
      holder => holder.port === port && holder.protocol === protocol && (isEverywhere(holder.address) || own.includes(holder.address)),
    )
    const foreign = here.filter(holder => !isMusters(holder))
    const [first] = foreign
    if (first?.process === undefined && first)
      return {
        topic,
        verdict: 'odd',
        found: `${service}: somebody has ${first.address}:${port}, and only root can see who`,
        hint: 'run this as root',
      }
    if (first)
      return {
        topic,
        verdict: 'bad',
        found: `${service}: ${first.process?.name} (process ${first.process?.pid}) has ${first.address}:${port}`,
        hint: `stop it and keep it from starting (systemctl disable --now …), or let it serve and leave MUSTER_DHCP_INTERFACES out; docs/network.md says what it must be told`,
      }
    if (here.length > 0) return { topic, verdict: 'good', found: `${service}: the partition's dnsmasq has it` }
    if (isServedHere && port === 67)
      return {
        topic,
        verdict: 'bad',
        found: `${service}: nobody has it, though the partition serves DHCP on this host`,
        hint: 'see why with: muster partition status',
      }
    return { topic, verdict: 'good', found: `${service}: free` }
  })
}

const isEverywhere = (address: string) => address === '0.0.0.0' || address === '::'

interface Network {
  topic: string
  /** What the partition serves. */
  servers: readonly DhcpServer[]
  /** This interface is one that it serves. */
  isServedHere: boolean
  /** Another DHCP server is to give the addresses here, and the partition only says what to boot. */
  isBeside: boolean
}

/** Who offers on a network. */
export function offerFindings(offers: readonly Offer[], { topic, servers, isServedHere, isBeside }: Network): Finding[] {
  const ours = (offer: Offer) => servers.find(({ addresses }) => addresses.includes(offer.server))
  const findings = offers
    .toSorted((a, b) => (a.server < b.server ? -1 : 1))
    .map((offer): Finding => {
      const replica = ours(offer)?.replica
      const who = `${offer.server}${offer.from === offer.server ? '' : ` by ${offer.from}`}`
      if (replica !== undefined) return { topic, verdict: 'good', found: `${who} is replica ${replica}: it offers ${offerText(offer)}` }
      return isBeside ? findingBeside(topic, who, offer) : foreignFinding(topic, who, offer)
    })
  const bad = (found: string, hint: string) => findings.push({ topic, verdict: 'bad', found, hint })
  if (isServedHere && !offers.some(ours))
    bad(
      'the partition does not answer, though it serves DHCP here',
      'see why with: muster partition status; a firewall here may drop UDP 67 and 68',
    )
  if (isBeside && !offers.some(offer => offer.address !== null && !ours(offer)))
    bad(
      'nobody offers addresses, and the partition gives none here',
      'start the DHCP server of this network; or let the partition give addresses: MUSTER_DHCP_RANGES instead of MUSTER_DHCP_PROXY',
    )
  if (findings.length === 0) findings.push({ topic, verdict: 'good', found: 'nobody offers addresses' })
  return findings
}

const offerText = ({ address, bootFile }: Offer) =>
  [address === null ? 'no address' : `address ${address}`, ...(bootFile === null ? [] : [`boot file ${bootFile}`])].join(' and ')

const foreignFinding = (topic: string, who: string, offer: Offer): Finding => ({
  topic,
  verdict: 'bad',
  found: `${who} is not this partition's: it offers ${offerText(offer)}`,
  hint: `find it (ip neighbour show ${offer.from}; then its MAC address in the switch) and stop its DHCP, or keep its port from answering (DHCP snooping)`,
})

/** A server that is not ours, where one is to give the addresses. */
function findingBeside(topic: string, who: string, offer: Offer): Finding {
  if (offer.address !== null && offer.bootFile === null)
    return { topic, verdict: 'good', found: `${who} gives the addresses, as it should: it offers ${offerText(offer)}` }
  return {
    topic,
    verdict: 'bad',
    found: `${who} says what to boot, as the partition does here: it offers ${offerText(offer)}`,
    hint: `have it say nothing of network boot (options 66 and 67, next-server): machines may believe it first`,
  }
}

/** What does not go together of what DHCP gives to anybody, the subnets, and what others have. */
export function rangeFindings(servers: readonly DhcpServer[], subnets: readonly Subnet[], held: readonly Address[]): Finding[] {
  const ranges = servers.flatMap(({ replica, ranges: given }) =>
    given.map(range => ({ ...range, replica, topic: `range ${range.from}-${range.to}` })),
  )
  return [
    ...unservedFindings(ranges, subnets),
    ...ranges.flatMap((range, index): Finding[] => {
      const { topic } = range
      const bad = (found: string, hint: string): Finding => ({ topic, verdict: 'bad', found, hint })
      const twice = ranges
        .slice(0, index)
        .filter(other => other.replica !== range.replica && overlap(other, range))
        .map(other =>
          bad(
            `replica ${range.replica} gives addresses that replica ${other.replica} gives too (${other.from}-${other.to}), and neither knows what the other gave`,
            range.subnet === other.subnet
              ? 'let each replica give a part of the addresses: MUSTER_DHCP_SHARE=1/2 for one and 2/2 for the other'
              : 'take the range out of MUSTER_DHCP_RANGES, or update the replica that has it there: it does not know dynamic ranges of subnets',
          ),
        )
      const subnet = subnets.find(({ name, cidr }) => (range.subnet ? name === range.subnet : isInNetwork(cidr, range.from)))
      const where = range.subnet ? `--dynamic of muster subnet set ${range.subnet}` : 'MUSTER_DHCP_RANGES'
      if (!subnet)
        return [
          ...twice,
          {
            topic,
            verdict: 'odd',
            found: 'it is in no subnet, so its addresses are not looked after',
            hint: `describe the network: muster subnet set NAME --cidr …/${range.prefix}`,
          },
        ]
      const { name, cidr, gateway, reserved } = subnet
      const problems = [
        ...twice,
        ...(isInNetwork(cidr, range.to) ? [] : [bad(`it goes beyond subnet ${name} (${cidr})`, `shorten it in ${where}`)]),
        ...(cidr.endsWith(`/${range.prefix}`)
          ? []
          : [
              bad(
                `its prefix is ${range.prefix}, and subnet ${name} is ${cidr}`,
                'say the same in both: machines are told the one of MUSTER_DHCP_RANGES',
              ),
            ]),
        ...(gateway !== null && isWithin(range, gateway)
          ? [bad(`it has the gateway of subnet ${name}, ${gateway}`, `shorten it in ${where}`)]
          : []),
        ...(gateway !== null && range.gateway !== null && gateway !== range.gateway
          ? [
              bad(
                `machines are told the gateway of subnet ${name}, ${gateway}, and not the router of the range, ${range.gateway}`,
                'leave the router out of MUSTER_DHCP_RANGES, or correct the subnet: muster subnet set',
              ),
            ]
          : []),
        ...reserved
          .filter(other => overlap(other, range))
          .map(other =>
            bad(
              `subnet ${name} does not give out ${other.from}-${other.to}${other.note && ` (${other.note})`}, and DHCP gives some of it to anybody`,
              `shorten one of them: ${where}, or --reserved of muster subnet set`,
            ),
          ),
        ...held
          .filter(
            address =>
              address.subnet === name && isWithin(range, address.address) && (address.mac === null || address.source === 'document'),
          )
          .map(address =>
            bad(
              `${address.machine ?? address.name} has ${address.address} without DHCP, which gives it to anybody`,
              `give it an address outside of the range, or shorten the range in ${where}`,
            ),
          ),
      ]
      return problems.length > 0 ? problems : [{ topic, verdict: 'good', found: `it is in subnet ${name} (${cidr}), and in nobody's way` }]
    }),
  ]
}

/** Dynamic ranges of which nobody gives anything. */
function unservedFindings(served: readonly Span[], subnets: readonly Subnet[]): Finding[] {
  return subnets.flatMap(({ name, dynamic = [] }) =>
    dynamic
      .filter(range => !served.some(other => overlap(other, range)))
      .map(
        ({ from, to }): Finding => ({
          topic: `range ${from}-${to}`,
          verdict: 'bad',
          found: `DHCP is to give it to anybody in subnet ${name}, and no replica does`,
          hint: 'set MUSTER_DHCP_INTERFACES at a replica, and leave MUSTER_DHCP_PROXY out; or take it away: muster subnet set --dynamic none',
        }),
      ),
  )
}

interface Span {
  from: string
  to: string
}

const isBefore = (a: string, b: string) => bitsOf(a) < bitsOf(b)
const isWithin = ({ from, to }: Span, address: string) =>
  bitsOf(address).length === bitsOf(from).length && !isBefore(address, from) && !isBefore(to, address)
const overlap = (a: Span, b: Span) => bitsOf(a.from).length === bitsOf(b.from).length && !isBefore(a.to, b.from) && !isBefore(b.to, a.from)
