/** Where something listens: a host or address and a port, written as everywhere in power settings. */
import { isIPv6 } from 'node:net'
import { z } from 'zod'
import { parseBmcAddress } from './ipmi/address.ts'

export interface Endpoint {
  host: string
  port: number
}

/** Reads `host`, `host:port`, an IPv6 address, or one in brackets with a port. Undefined if it is none, or has no port and there is no usual one. */
export function parseEndpoint(text: string, usualPort?: number): Endpoint | undefined {
  const address = parseBmcAddress(text)
  if (!address) return undefined
  const isPortStated = !isIPv6(text) && /:\d+$/.test(text)
  if (isPortStated) return address
  return usualPort === undefined ? undefined : { host: address.host, port: usualPort }
}

/** A setting that holds an endpoint. */
export function endpointSetting(usualPort?: number): z.ZodString {
  return z
    .string()
    .refine(
      text => parseEndpoint(text, usualPort) !== undefined,
      `not an address: write ${usualPort === undefined ? '' : 'host, '}host:port, or [v6%zone]:port`,
    )
}

/** The endpoint of a setting that has passed the schema. */
export function endpointOf(text: string, usualPort?: number): Endpoint {
  const endpoint = parseEndpoint(text, usualPort)
  if (!endpoint) throw new RangeError('the address was not checked by the settings schema')
  return endpoint
}
