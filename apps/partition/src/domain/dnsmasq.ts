// What dnsmasq is told: DHCP, TFTP and DNS of one partition as its configuration, a pure function of settings and machines. doors/dnsmasq.ts runs it.
import path from 'node:path'
import { bitsOf, isInNetwork } from '@muster/shared/network'
import { z } from 'zod'

/** First-stage loaders by what a firmware says it is (DHCP option 93, RFC 4578 and IANA's list). `http`: it boots over HTTP by itself (UEFI 2.5). */
export const loaders = [
  { tag: 'bios', archs: [0], file: 'undionly.kpxe', by: 'tftp' },
  { tag: 'efi64', archs: [7, 9], file: 'snponly.efi', by: 'tftp' },
  { tag: 'efi64http', archs: [16], file: 'snponly.efi', by: 'http' },
  { tag: 'arm64', archs: [11], file: 'snponly-arm64.efi', by: 'tftp' },
  { tag: 'arm64http', archs: [19], file: 'snponly-arm64.efi', by: 'http' },
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

export interface NetworkServices {
  /** Network interfaces that are served; all others are left alone. */
  interfaces: readonly string[]
  ranges: readonly DhcpRange[]
  /** `shared`: another replica gives other addresses of the same networks. */
  rule: 'alone' | 'shared'
  /** Machines are HOSTNAME.ZONE; undefined: no DNS. */
  zone: string | undefined
  /** Other DNS servers, asked for what is not in the zone; none: such names are not found. */
  upstreams: readonly string[]
  /** Leases and what dnsmasq is told. */
  folder: string
}

/** Names in the folder of network services. */
export const networkFiles = { config: 'dnsmasq.conf', hosts: 'hosts', names: 'names', leases: 'leases' } as const

const leaseTime = '10m'

/** dnsmasq.conf. `baseUrl`: how machines reach this partition; `files`: the folder of files; `user`, `group`: who dnsmasq runs as. `present`: the loaders that are there. */
export function dnsmasqConfig(
  services: NetworkServices,
  { baseUrl, files, user, group, present }: { baseUrl: string; files: string; user: string; group: string; present: ReadonlySet<string> },
): string {
  const inFolder = (name: string) => path.join(services.folder, name)
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
    // Who has the word in a network denies what it does not know, and that may be the other replica's to give.
    ...(services.rule === 'alone' ? ['dhcp-authoritative'] : []),
    `dhcp-leasefile=${inFolder(networkFiles.leases)}`,
    `dhcp-hostsfile=${inFolder(networkFiles.hosts)}`,
    ...services.ranges.flatMap(({ from, to, prefix, gateway }, index) => [
      `dhcp-range=set:net${index},${from},${to},${netmask(prefix)},${leaseTime}`,
      // Without a value: no router, where dnsmasq would name itself.
      `dhcp-option=tag:net${index},option:router${gateway === undefined ? '' : `,${gateway}`}`,
    ]),
    'enable-tftp',
    `tftp-root=${path.join(files, loadersFolder)}`,
    'dhcp-match=set:ipxe,175',
    ...offered.flatMap(({ tag, archs, file, by }) => [
      ...archs.map(arch => `dhcp-match=set:${tag},option:client-arch,${arch}`),
      `dhcp-boot=tag:!ipxe,tag:${tag},${by === 'tftp' ? file : `${baseUrl}/boot/files/${loadersFolder}/${file}`}`,
      // UEFI takes an offer for HTTP boot only from who names its vendor class back.
      ...(by === 'http' ? [`dhcp-option-force=tag:!ipxe,tag:${tag},60,HTTPClient`] : []),
    ]),
    // iPXE fills its own address in.
    `dhcp-boot=tag:ipxe,${baseUrl}/boot/ipxe/\${net0/mac}`,
    // iPXE need not wait for the answer of a ProxyDHCP server.
    'dhcp-option=tag:ipxe,175,b0:01:01',
  ]
  return `${lines.join('\n')}\n`
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

/** The names file, as /etc/hosts: what leads to reserved addresses, in the zone and by itself. */
export function dnsmasqNames(reserved: readonly ReservedHost[], zone: string): string {
  return reserved
    .filter(({ names }) => names.length > 0)
    .map(({ address, names }) => `${address} ${names.flatMap(name => [`${name}.${zone}`, name]).join(' ')}\n`)
    .join('')
}
