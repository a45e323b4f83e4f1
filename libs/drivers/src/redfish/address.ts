/** Where a Redfish service answers: an origin as people write it, HTTPS unless they say otherwise. */
import { isIP, isIPv6 } from 'node:net'

export interface ServiceAddress {
  protocol: 'https' | 'http'
  /** A name or an IP address; an IPv6 address without brackets, perhaps with a zone. */
  host: string
  port: number
}

const usualPorts = { https: 443, http: 80 } as const

/**
 * Reads `host`, `host:port`, `https://host[:port]` and `http://host[:port]`; IPv6 in brackets, alone also bare. Undefined for anything else: user
 * names, paths, other schemes, ports beyond 1 to 65535.
 */
export function parseServiceAddress(text: string): ServiceAddress | undefined {
  const scheme = /^(https?):\/\//i.exec(text)
  const protocol = scheme?.[1]?.toLowerCase() === 'http' ? 'http' : 'https'
  const rest = text.slice(scheme?.[0].length ?? 0).replace(/\/$/, '')
  if (!scheme && isIPv6(rest)) return { protocol, host: rest, port: usualPorts[protocol] }
  const bracketed = /^\[([^\]]+)\](?::(\d{1,5}))?$/.exec(rest)
  const plain = /^([A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}))(?::(\d{1,5}))?$/.exec(rest)
  const [, host, portText] = bracketed ?? plain ?? []
  if (host === undefined || (bracketed && !isIPv6(host))) return undefined
  const port = portText === undefined ? usualPorts[protocol] : Number(portText)
  return port >= 1 && port <= 65_535 ? { protocol, host, port } : undefined
}

/** The address as messages show it: what is usual (https, port 443) is left out. */
export function printServiceAddress(address: ServiceAddress): string {
  return address.protocol === 'https' ? authority(address) : origin(address)
}

/** The same, always whole: `https://10.0.3.9`. */
export function origin(address: ServiceAddress): string {
  return `${address.protocol}://${authority(address)}`
}

/** What the Host header says. A zone is this host's own affair and is left out. */
export function hostHeader({ protocol, host, port }: ServiceAddress): string {
  return authority({ protocol, host: isIP(host) === 6 ? host.replace(/%.*$/, '') : host, port })
}

function authority({ protocol, host, port }: ServiceAddress): string {
  const name = isIPv6(host) ? `[${host}]` : host
  return port === usualPorts[protocol] ? name : `${name}:${port}`
}
