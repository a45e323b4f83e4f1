// Where nothing is posted to, whoever writes it into a webhook: addresses that answer every computer of a cloud or a rack with its own secrets, and those
// that are nobody's. Checked on what a name resolves to, because a name is whatever its owner says it is at that moment.
import { type LookupAddress, lookup } from 'node:dns'
import { BlockList, isIP, type LookupFunction } from 'node:net'

/** CIDR block and what it is. Private and loopback addresses are not among them: that is where receivers of a bare-metal site live. */
const refused = [
  ['0.0.0.0', 8, 'ipv4', 'no address'],
  ['169.254.0.0', 16, 'ipv4', 'link-local: metadata services'],
  ['100.100.100.200', 32, 'ipv4', 'the metadata service of Alibaba Cloud'],
  ['168.63.129.16', 32, 'ipv4', 'the host agent of Azure'],
  ['224.0.0.0', 3, 'ipv4', 'multicast, reserved, broadcast'],
  ['::', 128, 'ipv6', 'no address'],
  ['fe80::', 10, 'ipv6', 'link-local'],
  ['fd00:ec2::', 32, 'ipv6', 'metadata services of AWS'],
  ['ff00::', 8, 'ipv6', 'multicast'],
  // The same metadata services behind translated addresses: NAT64 (RFC 6052) and 6to4 (RFC 3056).
  ['64:ff9b::a9fe:0', 112, 'ipv6', 'link-local behind NAT64'],
  ['2002:a9fe::', 32, 'ipv6', 'link-local behind 6to4'],
] as const

const blocks = new BlockList()
for (const [network, prefix, family] of refused) blocks.addSubnet(network, prefix, family)

/** Whether nothing is posted to this address. An IPv4 address within an IPv6 one (::ffff:169.254.169.254) is looked at as what it is. */
export function isRefusedAddress(address: string): boolean {
  const [bare] = address.split('%') as [string] // a resolver may add a zone: fe80::1%eth0
  return blocks.check(bare, isIP(bare) === 6 ? 'ipv6' : 'ipv4')
}

export class RefusedAddress extends Error {
  constructor(address: string) {
    super(`${address} is an address that webhooks are not sent to (link-local, metadata service or multicast)`)
    this.name = 'RefusedAddress'
  }
}

/** Resolves names as ever, and fails where one of the addresses is refused. Node does not call it for a host that is an address itself. */
export const guardedLookup: LookupFunction = (hostname, options, callback) => {
  lookup(hostname, { ...options, all: true }, (error, addresses) => {
    if (error) return callback(error, [])
    const bad = addresses.find(({ address }) => isRefusedAddress(address))
    if (bad) return callback(new RefusedAddress(bad.address), [])
    if (options.all) return callback(null, addresses)
    const [first] = addresses as [LookupAddress]
    return callback(null, first.address, first.family)
  })
}
