/** Where a BMC listens: a host or address and a UDP port, as people write it. */
import { isIPv6 } from 'node:net'

export interface BmcAddress {
  host: string
  port: number
}

/** The port of IPMI over LAN (RMCP). */
export const ipmiPort = 623

/**
 * Reads `host`, `host:port`, `10.0.3.9:6230`, `fe80::1%eth0`, `[fe80::1%eth0]` or `[fe80::1%eth0]:6230`. Undefined for anything
 * else, an URL or a port beyond 1 to 65535 included.
 */
export function parseBmcAddress(text: string): BmcAddress | undefined {
  if (isIPv6(text)) return { host: text, port: ipmiPort }
  const bracketed = /^\[([^\]]+)\](?::(\d{1,5}))?$/.exec(text)
  const plain = /^([A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}))(?::(\d{1,5}))?$/.exec(text)
  const [, host, portText] = bracketed ?? plain ?? []
  if (host === undefined || (bracketed && !isIPv6(host))) return undefined
  const port = portText === undefined ? ipmiPort : Number(portText)
  return port >= 1 && port <= 65_535 ? { host, port } : undefined
}

/** The address as messages show it; the usual port is left out. */
export function printBmcAddress({ host, port }: BmcAddress): string {
  if (port === ipmiPort) return host
  return isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`
}
