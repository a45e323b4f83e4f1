// What dnsmasq is told: DHCP, TFTP and DNS of one partition as its configuration, a pure function of settings, machines and subnets. doors/dnsmasq.ts
// runs it.
import path from 'node:path'
import { bitsOf, isInNetwork, networksOverlap, staticAddresses } from '@muster/shared/network'
import { z } from 'zod'
import type { Documented } from '../db/addresses.ts'

/** First-stage loaders by what a firmware says it is (DHCP option 93, RFC 4578 and IANA's list). `http`: it boots over HTTP by itself (UEFI 2.5). */
export const loaders = [
  { tag: 'bios', archs: [0], file: 'undionly.kpxe', by: 'tftp' },
  { tag: 'efi64', archs: [7, 9], file: 'snponly.efi', by: 'tftp' },
  { tag: 'efi64http', archs: [16], file: 'snponly.efi', by: 'http' },
  { tag: 'arm64', archs: [11], file: 'ipxe-arm64.efi', by: 'tftp' },
  { tag: 'arm64http', archs: [19], file: 'ipxe-arm64.efi', by: 'http' },
] as const

/** Where the loaders are, in the folder of files: TFTP and HTTP serve the same ones. */
export const loadersFolder = 'loaders'

export interface DhcpRange {
  /** Dynamic addresses, both ends included. */
  from: string
  to: string
  /** Length of the prefix. */
  prefix: number
  /** What machines are told as their router; undefined: they are told none. */
  gateway: string | undefined
  /** Whose dynamic range it is; left out: the settings say it. */
  subnet?: string
}

/** `10.0.0.100-10.0.0.199/24@10.0.0.1`; the router may be left out. A range of a network that is not at an interface here is for its relay. */
const dhcpRange = z.string().transform((text, context): DhcpRange => {
  const { from, to, length, gateway } = /^(?<from>[\d.]+)-(?<to>[\d.]+)\/(?<length>\d+)(@(?<gateway>[\d.]+))?$/.exec(text)?.groups ?? {}
  const wrong = (why: string) => {
    context.addIssue({ code: 'custom', message: `"${text}" ${why}` })
    return z.NEVER
  }
  const isAddress = (word: string | undefined): word is string => z.ipv4().safeParse(word).success
  if (!isAddress(from) || !isAddress(to) || (gateway !== undefined && !isAddress(gateway)))
    return wrong('is not FIRST-LAST/LENGTH[@ROUTER], such as 10.0.0.100-10.0.0.199/24@10.0.0.1')
  const prefix = Number(length)
  if (prefix < 8 || prefix > 30) return wrong('has a prefix that is not between 8 and 30')
  const network = `${from}/${prefix}`
  if (!isInNetwork(network, to)) return wrong(`ends outside the network of ${network}`)
  if (bitsOf(from) > bitsOf(to)) return wrong('ends before it begins')
  if (gateway !== undefined && !isInNetwork(network, gateway)) return wrong(`has a router outside the network of ${network}`)
  if (gateway !== undefined && bitsOf(from) <= bitsOf(gateway) && bitsOf(gateway) <= bitsOf(to))
    return wrong('gives the address of its router to machines')
  return { from, to, prefix, gateway }
})

/** Ranges with commas, none overlapping another. */
export const dhcpRanges = z
  .string()
  .default('')
  .transform(text => text.split(',').filter(Boolean))
  .pipe(z.array(dhcpRange))
  .superRefine((ranges, context) => {
    const sorted = ranges.toSorted((a, b) => (bitsOf(a.from) < bitsOf(b.from) ? -1 : 1))
    for (const [index, range] of sorted.entries()) {
      const before = sorted[index - 1]
      if (before && bitsOf(before.to) >= bitsOf(range.from))
        context.addIssue({ code: 'custom', message: `${before.from}-${before.to} and ${range.from}-${range.to} overlap` })
    }
  })

/** Networks beside whose DHCP server ours says what to boot: `10.0.0.0/24`, more with commas. */
export const proxiedNetworks = z
  .string()
  .default('')
  .transform(text => text.split(',').filter(Boolean))
  .pipe(
    z.array(
      z.cidrv4('is not a network with its prefix length, such as 10.0.0.0/24').superRefine((cidr, context) => {
        const [address = '', length = ''] = cidr.split('/')
        const wrong = (message: string) => context.addIssue({ code: 'custom', message: `"${cidr}" ${message}` })
        if (Number(length) < 8 || Number(length) > 30) wrong('has a prefix that is not between 8 and 30')
        else if (bitsOf(address).slice(Number(length)).includes('1'))
          wrong('is an address in a network; give the network, whose host part is zero')
      }),
    ),
  )

/** `1/2`: this replica gives the first half of each range. */
export interface DhcpShare {
  part: number
  of: number
}

export const dhcpShare = z
  .string()
  .default('1/1')
  .transform((text, context): DhcpShare => {
    const [part, of] = /^([1-9])\/([1-9])$/.exec(text)?.slice(1).map(Number) ?? []
    if (part !== undefined && of !== undefined && part <= of) return { part, of }
    context.addIssue({ code: 'custom', message: `"${text}" is not PART/PARTS, such as 1/2 and 2/2 for two replicas` })
    return z.NEVER
  })

/** What one of several replicas gives: parts do not overlap, and together they are the whole. A range with fewer addresses than parts leaves some with none. */
export function shareOfRanges(ranges: readonly DhcpRange[], { part, of }: DhcpShare): DhcpRange[] {
  return ranges.flatMap(range => {
    const [first, last] = [numberOf(range.from), numberOf(range.to)]
    const count = last - first + 1
    const [from, to] = [first + Math.floor((count * (part - 1)) / of), first + Math.floor((count * part) / of) - 1]
    return from > to ? [] : [{ ...range, from: addressOf(from), to: addressOf(to) }]
  })
}

const numberOf = (address: string) => Number.parseInt(bitsOf(address), 2)
const addressOf = (number: number) => [24, 16, 8, 0].map(shift => (number >>> shift) & 255).join('.')

/** What a replica is set to serve. Ranges are those of the settings, whole: of them and of the dynamic ranges of subnets it gives its share. */
export interface NetworkSettings extends NetworkServices {
  share: DhcpShare
}

export interface NetworkServices {
  /** Network interfaces that are served; all others are left alone. */
  interfaces: readonly string[]
  ranges: readonly DhcpRange[]
  /** `ADDRESS/LENGTH`: networks whose addresses are given by a DHCP server that is not ours. */
  beside: readonly string[]
  /** `shared`: another replica gives other addresses of the same networks. `proxy`: no addresses, only what to boot, in the networks of `beside`. */
  rule: 'alone' | 'shared' | 'proxy'
  /** Machines are HOSTNAME.ZONE; undefined: no DNS. */
  zone: string | undefined
  /** Other DNS servers, asked for what is not in the zone; none: such names are not found. */
  upstreams: readonly string[]
  /** Leases and what dnsmasq is told. */
  folder: string
}

/** Names in the folder of network services. */
export const networkFiles = { config: 'dnsmasq.conf', hosts: 'hosts', names: 'names', options: 'options', leases: 'leases' } as const

export const leaseSeconds = 600

/** dnsmasq.conf. `baseUrl`: how machines reach this partition; `files`: the folder of files; `user`, `group`: who dnsmasq runs as. `present`: the loaders that are there. */
export function dnsmasqConfig(
  services: NetworkServices,
  { baseUrl, files, user, group, present }: { baseUrl: string; files: string; user: string; group: string; present: ReadonlySet<string> },
): string {
  const offered = loaders.filter(({ file }) => present.has(file))
  const lines = [
    '# Written by Muster at each start; changes are lost.',
    // It dies with its parent only while it stays who it was when it was started.
    `user=${user}`,
    `group=${group}`,
    'log-facility=-',
    'log-dhcp',
    'bind-dynamic',
    'except-interface=lo',
    ...services.interfaces.map(name => `interface=${name}`),
    ...dnsLines(services),
    `dhcp-leasefile=${path.join(services.folder, networkFiles.leases)}`,
    ...(services.rule === 'proxy' ? proxyLines(services, offered, baseUrl) : addressLines(services)),
    'enable-tftp',
    `tftp-root=${path.join(files, loadersFolder)}`,
    'dhcp-match=set:ipxe,175',
    ...offered.flatMap(({ tag, archs, file, by }) => [
      ...archs.map(arch => `dhcp-match=set:${tag},option:client-arch,${arch}`),
      `dhcp-boot=tag:!ipxe,tag:${tag},${by === 'tftp' ? file : `${baseUrl}/boot/files/${loadersFolder}/${file}`}`,
      // UEFI takes an offer for HTTP boot only from who names its vendor class back.
      ...(by === 'http' && services.rule !== 'proxy' ? [`dhcp-option-force=tag:!ipxe,tag:${tag},60,HTTPClient`] : []),
    ]),
    `dhcp-boot=tag:ipxe${services.rule === 'proxy' ? ',tag:!bios' : ''},${scriptUrl(baseUrl)}`,
    // iPXE need not wait for the answer of a ProxyDHCP server.
    ...(services.rule === 'proxy' ? [] : ['dhcp-option=tag:ipxe,175,b0:01:01']),
  ]
  return `${lines.join('\n')}\n`
}

/** iPXE fills its own address in. */
const scriptUrl = (baseUrl: string) => `${baseUrl}/boot/ipxe/\${net0/mac}`

function addressLines({ rule, ranges, folder }: NetworkServices): string[] {
  return [
    // Who has the word in a network denies what it does not know, and that may be the other replica's to give.
    ...(rule === 'alone' ? ['dhcp-authoritative'] : []),
    `dhcp-hostsfile=${path.join(folder, networkFiles.hosts)}`,
    // A stranger that calls itself as a machine of ours is not that in the zone.
    'dhcp-ignore-names=tag:!known',
    `dhcp-optsfile=${path.join(folder, networkFiles.options)}`,
    ...ranges.map(
      ({ from, to, prefix }, index) => `dhcp-range=set:${rangeTag(index)},${from},${to},${netmask(prefix)},${leaseSeconds / 60}m`,
    ),
  ]
}

const rangeTag = (index: number) => `net${index}`

/** PXE of UEFI takes a boot file only from port 4011, which dnsmasq opens for services; PXE of a BIOS takes the same one from a menu of one entry. */
function proxyLines({ beside }: NetworkServices, offered: readonly (typeof loaders)[number][], baseUrl: string): string[] {
  return [
    ...beside.map(cidr => {
      const [network = '', length] = cidr.split('/')
      return `dhcp-range=${network},proxy,${netmask(Number(length))}`
    }),
    // UEFI that boots over HTTP takes the URL of the offer, which dnsmasq makes for this vendor class only when it is told to.
    'dhcp-pxe-vendor=PXEClient,HTTPClient',
    ...offered
      .filter(({ by }) => by === 'tftp')
      .flatMap(({ archs, file }) => archs.map(arch => `pxe-service=tag:!ipxe,${arch},Muster,${file}`)),
    // iPXE of a BIOS does not take a file of an offer that names no server in its header, and dnsmasq names itself there only to UEFI.
    `pxe-service=tag:ipxe,0,Muster,${scriptUrl(baseUrl)}`,
  ]
}

function dnsLines({ zone, upstreams, folder }: NetworkServices): string[] {
  if (zone === undefined) return ['port=0']
  return [
    'no-resolv',
    'no-hosts',
    `addn-hosts=${path.join(folder, networkFiles.names)}`,
    `domain=${zone}`,
    `local=/${zone}/`,
    'domain-needed',
    'bogus-priv',
    ...upstreams.map(address => `server=${address}`),
  ]
}

function netmask(prefix: number): string {
  return addressOf((0xffffffff << (32 - prefix)) >>> 0)
}

/** What a lease file says is given now, addresses by MAC address. A line is an expiry in seconds (0: never), MAC address, address, name, client id. */
export function leasesIn(text: string, now: Date): Map<string, string[]> {
  const leases = new Map<string, string[]>()
  for (const line of text.split('\n')) {
    const [until = '', mac, address] = line.split(' ', 3)
    const isOver = until !== '0' && Number(until) * 1_000 < now.getTime()
    if (mac === undefined || address === undefined || isOver) continue
    leases.set(mac, [...(leases.get(mac) ?? []), address])
  }
  return leases
}

/** What dnsmasq's log line says it has given. */
export function leaseIn(line: string): { mac: string; address: string } | undefined {
  const { address, mac } = /\bDHCPACK\(\S+\) (?<address>[\d.]+) (?<mac>[0-9a-f]{2}(?::[0-9a-f]{2}){5})\b/.exec(line)?.groups ?? {}
  return address === undefined || mac === undefined ? undefined : { address, mac }
}

/** The networks of the ranges. */
export const networksOf = (ranges: readonly DhcpRange[]) => [...new Set(ranges.map(({ from, prefix }) => `${from}/${prefix}`))]

/** What is kept of a subnet that its DHCP clients are told. */
export interface ToldSubnet {
  name: string
  cidr: string
  vlan: number | null
  gateway: string | null
  nameservers: readonly string[]
  dynamic: readonly { from: string; to: string }[]
}

/**
 * What is given to anybody, by address: the dynamic ranges of subnets, and those ranges of the settings in whose network no subnet has one. The others of
 * the settings are overruled, each by a subnet.
 */
export function rangesInForce(
  settings: readonly DhcpRange[],
  subnets: readonly ToldSubnet[],
): { ranges: DhcpRange[]; overruled: { range: DhcpRange; by: string }[] } {
  const serving = subnets.filter(({ dynamic }) => dynamic.length > 0)
  const overruled = settings.flatMap(range => {
    const by = serving.find(({ cidr }) => networksOverlap(cidr, `${range.from}/${range.prefix}`))
    return by ? [{ range, by: by.name }] : []
  })
  const ranges = [
    ...settings.filter(range => !overruled.some(other => other.range === range)),
    ...serving.flatMap(({ name, cidr, dynamic }) =>
      dynamic.map(({ from, to }) => ({ from, to, prefix: Number(cidr.split('/')[1]), gateway: undefined, subnet: name })),
    ),
  ]
  return { ranges: ranges.sort((a, b) => (bitsOf(a.from) < bitsOf(b.from) ? -1 : 1)), overruled }
}

/**
 * The options file: per range the router and the DNS servers of its subnet; where that says nothing, what the settings say, else dnsmasq itself. The
 * first line tells for which ranges it is.
 */
export function dnsmasqOptions(ranges: readonly DhcpRange[], subnets: readonly ToldSubnet[] = []): string {
  const title = `# ${ranges.map(({ from, to, prefix, gateway }) => `${from}-${to}/${prefix}@${gateway ?? ''}`).join(' ')}`
  const lines = ranges.flatMap((range, index) => {
    const subnet = subnetOf(range, subnets)
    // A router that machines cannot reach with the prefix they are told would be worse than none.
    const known = subnet?.gateway && isInNetwork(`${range.from}/${range.prefix}`, subnet.gateway) ? subnet.gateway : range.gateway
    const nameservers = (subnet?.nameservers ?? []).filter(address => !address.includes(':'))
    const tag = `tag:${rangeTag(index)}`
    return [
      // Without a value: no router, where dnsmasq would name itself.
      `${tag},option:router${known === undefined ? '' : `,${known}`}`,
      ...(nameservers.length > 0 ? [`${tag},option:dns-server,${nameservers.join(',')}`] : []),
    ]
  })
  return [title, ...lines].map(line => `${line}\n`).join('')
}

/** That of a dynamic range has it. Of the others' DHCP clients nothing tells the VLAN: of several VLANs with one network the untagged one is meant, and where all have tags, none. */
function subnetOf({ from, subnet }: DhcpRange, subnets: readonly ToldSubnet[]): ToldSubnet | undefined {
  if (subnet !== undefined) return subnets.find(({ name }) => name === subnet)
  const having = subnets.filter(({ cidr }) => isInNetwork(cidr, from))
  return having.length === 1 ? having[0] : having.find(({ vlan }) => vlan === null)
}

/** An address that somebody has, and the names that lead to it, the first one first. */
export interface ReservedHost {
  address: string
  /** Gets it by DHCP; null: has it by other means. */
  mac: string | null
  names: readonly string[]
}

/** The hosts file: a line per machine, its MAC addresses and its name; then one per reserved address. */
export function dnsmasqHosts(
  machines: readonly { hostname: string; macs: readonly string[] }[],
  reserved: readonly ReservedHost[] = [],
): string {
  return [
    ...machines.map(({ hostname, macs }) => [...macs, hostname]),
    // DHCP is served for IPv4 only.
    ...reserved.flatMap(({ mac, address, names }) => (mac === null || address.includes(':') ? [] : [[mac, address, ...names.slice(0, 1)]])),
  ]
    .map(words => `${words.join(',')}\n`)
    .join('')
}

/** Where host names lead by machines' network documents: to the first address of what is in force, unless the name leads to a reserved one. */
export function documentedHosts(documented: readonly Omit<Documented, 'id'>[], reserved: readonly ReservedHost[]): ReservedHost[] {
  const taken = new Set(reserved.flatMap(({ names }) => names))
  return documented.flatMap(({ hostname, network, deployment_network }) => {
    const document = deployment_network ?? network
    const [first] = document === null ? [] : staticAddresses(document)
    return first === undefined || taken.has(hostname) ? [] : [{ address: first.address, mac: null, names: [hostname] }]
  })
}

/** The names file, as /etc/hosts: what leads to addresses that are not leased, in the zone and by itself. */
export function dnsmasqNames(reserved: readonly ReservedHost[], zone: string): string {
  return reserved
    .filter(({ names }) => names.length > 0)
    .map(({ address, names }) => `${address} ${names.flatMap(name => [`${name}.${zone}`, name]).join(' ')}\n`)
    .join('')
}
