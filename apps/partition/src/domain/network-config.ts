// A machine's network as version 2 of cloud-init's network configuration (netplan's form): a pure function of its ports and the document that
// people gave. The names are those that cloud-init 22 and netplan 0.106 both take.
import { wrongFields } from '@muster/shared/errors'
import type { NetworkInterface } from '@muster/shared/machine'
import { type NetworkDevice, type NetworkDocument, networkProblemsOn } from '@muster/shared/network'
import type { MachineRow } from '../db/machines.ts'

export type NetworkConfig = Record<string, unknown>

/** What this machine is told: by its deployment, else by what an operator set for it, else DHCP. */
export function networkOf(row: Pick<MachineRow, 'interfaces' | 'network' | 'deployment_network'>): NetworkConfig {
  return networkConfig(row.interfaces, row.deployment_network ?? row.network)
}

/** Without a document every port asks by DHCP, and only the first must come up. */
export function networkConfig(interfaces: readonly Pick<NetworkInterface, 'mac'>[], document: NetworkDocument | null): NetworkConfig {
  if (document === null) {
    const ports = interfaces.map(({ mac }, index) => [`port${index}`, { match: { macaddress: mac }, dhcp4: true, optional: index > 0 }])
    return { version: 2, ethernets: Object.fromEntries(ports) }
  }
  const each = <Device extends NetworkDevice>(devices: Record<string, Device>, own: (device: Device, name: string) => object) =>
    Object.fromEntries(Object.entries(devices).map(([name, device]) => [name, { ...own(device, name), ...onDevice(device) }]))
  const { ethernets, bonds, vlans, bridges } = document
  return {
    version: 2,
    ethernets: each(ethernets, ({ mac }, name) => ({ match: { macaddress: mac }, 'set-name': name })),
    ...given(
      'bonds',
      each(bonds, (bond, name) => ({ interfaces: bond.interfaces, macaddress: macOf(document, name), parameters: bondParameters(bond) })),
    ),
    ...given(
      'bridges',
      each(bridges, (bridge, name) => ({
        interfaces: bridge.interfaces,
        ...given('macaddress', macOf(document, name)),
        parameters: bridgeParameters(bridge),
      })),
    ),
    ...given(
      'vlans',
      each(vlans, ({ id, link }) => ({ id, link })),
    ),
  }
}

/**
 * The MAC address of the port that a device stands on first. systemd would make one up for a bond or a bridge, which DHCP knows for nobody's: the machine
 * would not get what is reserved for it. Undefined: a bridge of nothing.
 */
function macOf(document: NetworkDocument, name: string | undefined): string | undefined {
  if (name === undefined) return undefined
  const { ethernets, bonds, vlans, bridges } = document
  const below = bonds[name]?.primary ?? bonds[name]?.interfaces[0] ?? vlans[name]?.link ?? bridges[name]?.interfaces[0]
  return ethernets[name]?.mac ?? macOf(document, below)
}

/** Addresses and routes, leaving out what says nothing. */
function onDevice(device: NetworkDevice): object {
  const nameservers = { ...given('addresses', device.nameservers), ...given('search', device.search) }
  return {
    ...(device.dhcp4 && { dhcp4: true }),
    ...(device.dhcp6 && { dhcp6: true }),
    ...given('addresses', device.addresses),
    ...given('gateway4', device.gateway4),
    ...given('gateway6', device.gateway6),
    ...given('nameservers', nameservers),
    ...given('routes', device.routes),
    ...given('mtu', device.mtu),
  }
}

function bondParameters(bond: NetworkDocument['bonds'][string]): object {
  return {
    mode: bond.mode,
    'mii-monitor-interval': bond.monitorMs,
    ...given('up-delay', bond.upDelayMs),
    ...given('down-delay', bond.downDelayMs),
    ...given('lacp-rate', bond.lacpRate),
    ...given('ad-select', bond.adSelect),
    ...given('min-links', bond.minLinks),
    ...given('transmit-hash-policy', bond.hashPolicy),
    ...given('primary', bond.primary),
  }
}

function bridgeParameters({ stp, forwardDelaySeconds }: NetworkDocument['bridges'][string]): object {
  return { stp, ...given('forward-delay', forwardDelaySeconds) }
}

/** The member, unless there is nothing in it. */
function given(name: string, value: unknown): object {
  const isNothing = value === undefined || (typeof value === 'object' && value !== null && Object.keys(value).length === 0)
  return isNothing ? {} : { [name]: value }
}

/** Throws invalid-input where the document names ports that the machine has not. `within`: the field of the input it came in. */
export function refuseUnfitNetwork(document: NetworkDocument, row: Pick<MachineRow, 'interfaces'>, within: string): void {
  const errors = networkProblemsOn(document, row.interfaces).map(({ field, message }) => ({ field: `${within}.${field}`, message }))
  if (errors.length > 0) throw wrongFields(errors)
}
