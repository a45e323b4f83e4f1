// The network of an installed machine by a document: with addresses that the partition has chosen from its subnets, on a port, a VLAN, a bond. And whether
// the installed system has come to be so.
import { setTimeout as sleep } from 'node:timers/promises'
import type { Client } from '@muster/shared/client'
import type { CallRequest } from '@muster/shared/contract/contract'
import type { Computer } from './computer.ts'
import { lan, storage } from './place.ts'
import { expectThat, type Teller } from './teller.ts'

export const networkKinds = ['static', 'vlan', 'bond'] as const
export type NetworkKind = (typeof networkKinds)[number]

/** A port; a port and a VLAN on it; a bond of two ports and a VLAN on it. What the installed system must have to set it up, and how many ports the machine. */
export const networkNeeds: Readonly<Record<NetworkKind, { readonly network: 'networkd' | 'netplan'; readonly ports: 1 | 2 }>> = {
  static: { network: 'networkd', ports: 1 },
  vlan: { network: 'netplan', ports: 1 },
  bond: { network: 'netplan', ports: 2 },
}

type Document = NonNullable<CallRequest<'machines.deploy'>['network']>

/** What a machine was promised. */
export interface Promised {
  readonly kind: NetworkKind
  readonly document: Document
  /** Where it is on the switch's own network. */
  readonly address: string
  /** Where it is on the VLAN. */
  readonly onVlan: string | undefined
}

/** Says of the lab's networks what an operator would: addresses are chosen by it, and DHCP gives the dynamic ones. */
export async function describeSubnets(client: Client, partition: string): Promise<void> {
  await client.subnets.put({
    ...{ partition, name: 'lan', cidr: networkOf(lan), gateway: lan.address, nameservers: [lan.address], dynamic: [lan.dynamic] },
  })
  await client.subnets.put({ partition, name: 'storage', cidr: networkOf(storage), vlan: storage.vlan, gateway: storage.address })
}

const networkOf = ({ address, prefix }: { address: string; prefix: number }) => `${address.replace(/\d+$/, '0')}/${prefix}`

/** Reserves the addresses for the machine and writes the document that has them. */
export async function promiseNetwork(
  kind: NetworkKind,
  { teller, client, computer, id }: { teller: Teller; client: Client; computer: Computer; id: string },
): Promise<Promised> {
  const reserve = async (subnet: string, name: string) =>
    (await teller.order(`an address of ${subnet}`, () => client.addresses.reserve({ subnet, machine: id, name }))).address
  const address = await reserve('lan', computer.name)
  const onVlan = kind === 'static' ? undefined : await reserve('storage', `${computer.name}-storage`)
  const onLan = { addresses: [`${address}/${lan.prefix}`], gateway4: lan.address, nameservers: [lan.address], search: [lan.zone] }
  const own = deviceOf(kind)
  const vlans = onVlan && { storage: { id: storage.vlan, link: own, addresses: [`${onVlan}/${storage.prefix}`], mtu: storage.mtu } }
  const [left = '', right = ''] = computer.macs
  const bonds = { [own]: { interfaces: ['left', 'right'], mode: 'active-backup' as const, primary: 'left', ...onLan } }
  const devices =
    kind === 'bond'
      ? { ethernets: { left: { mac: left }, right: { mac: right } }, bonds }
      : { ethernets: { [own]: { mac: left, ...onLan } } }
  return { kind, address, onVlan, document: { ...devices, ...(vlans && { vlans }) } }
}

/** What has the address on the switch's own network. */
const deviceOf = (kind: NetworkKind) => (kind === 'bond' ? 'bond0' : 'lan0')

/** As `ip -json -details` tells a device. */
interface Device {
  readonly ifname: string
  readonly mtu: number
  readonly link?: string
  readonly master?: string
  readonly linkinfo?: { readonly info_kind?: string; readonly info_data?: Readonly<Record<string, unknown>> }
  readonly addr_info: readonly { readonly family: string; readonly scope: string; readonly local: string; readonly dynamic?: boolean }[]
}

/** How a command is run on the machine at an address. */
type RunAt = (address: string, command: string) => Promise<string>

/** Looks from within whether the network is what was promised, and is reached by it. */
export async function seeNetwork(
  promised: Promised,
  { computer, runAt, isOnVlan }: { computer: Computer; runAt: RunAt; isOnVlan: boolean },
): Promise<void> {
  const { kind, address, onVlan } = promised
  const devices = await devicesOf(address, runAt)
  const device = (name: string) => devices.find(({ ifname }) => ifname === name)
  const holders = devices.flatMap(({ ifname, addr_info }) =>
    addr_info
      .filter(({ family, scope }) => family === 'inet' && scope === 'global')
      .map(({ local, dynamic }) => ({ ifname, local, dynamic })),
  )
  const own = deviceOf(kind)
  const wanted = [{ ifname: own, local: address }, ...(onVlan === undefined ? [] : [{ ifname: 'storage', local: onVlan }])]
  const isSo = (has: typeof holders) =>
    has.length === wanted.length &&
    wanted.every(({ ifname, local }) => has.some(each => each.ifname === ifname && each.local === local && each.dynamic !== true))
  expectThat(isSo(holders), 'its addresses are those that were promised, and none is from DHCP', { holders, wanted })
  const routes = JSON.parse(await runAt(address, 'ip -json route show default')) as { gateway: string; dev: string }[]
  expectThat(routes.length === 1 && routes[0]?.gateway === lan.address && routes[0].dev === own, 'its way out is the gateway', { routes })
  if (onVlan !== undefined) seeVlan(device('storage'), own)
  if (onVlan !== undefined && isOnVlan) await askOverVlan(onVlan, runAt)
  if (kind === 'bond') await seeBond(promised, { computer, runAt })
}

const devicesOf = async (address: string, runAt: RunAt) => JSON.parse(await runAt(address, 'ip -json -details address')) as Device[]

function seeVlan(device: Device | undefined, link: string): void {
  const { mtu, linkinfo } = device ?? {}
  const isVlan = linkinfo?.info_kind === 'vlan' && linkinfo.info_data?.id === storage.vlan && device?.link === link
  expectThat(isVlan && mtu === storage.mtu, 'the VLAN is on its link, with the MTU that was asked for', { device })
}

/** Frames with its tag go both ways. */
async function askOverVlan(onVlan: string, runAt: RunAt): Promise<void> {
  const neighbours = await runAt(onVlan, `ip -json neigh show dev storage to ${storage.address}`)
  expectThat(neighbours.includes('lladdr'), 'the VLAN’s gateway is a neighbour on it', { neighbours })
}

/** A cable is pulled: the machine is reached by the other one, and by the first one again when it is back. */
async function seeBond({ address }: Promised, { computer, runAt }: { computer: Computer; runAt: RunAt }): Promise<void> {
  const comesTo = async (active: string) => {
    let seen: unknown
    for (const end = Date.now() + failoverLimitMs; Date.now() < end; await sleep(500)) {
      // Over the bond itself, so while it changes sides there may be no answer.
      const devices = await devicesOf(address, runAt).catch(() => [])
      const bond = devices.find(({ ifname }) => ifname === 'bond0')
      const members = devices.filter(({ master }) => master === 'bond0').map(({ ifname }) => ifname)
      seen = { ...bond?.linkinfo, members }
      const { mode, active_slave } = bond?.linkinfo?.info_data ?? {}
      if (mode === 'active-backup' && active_slave === active && members.sort().join() === 'left,right') return
    }
    expectThat(false, `the bond is an active-backup one of both ports, and ${active} is active`, { seen })
  }
  await comesTo('left')
  computer.pullCable(0)
  await comesTo('right')
  computer.putCable(0)
  await comesTo('left')
}

/** Links are looked at every 100 ms; an emulated machine takes seconds for a login. */
const failoverLimitMs = 60_000
