// How a deployed machine's network is to be: a document in our words, checked here as far as it can be without the machine. Rendered as version 2 of
// cloud-init's network configuration by the partition.
import { z } from 'zod'
import { mac } from './machine.ts'

/** Linux takes 15 characters; a leading letter and these signs are what every renderer takes. */
const deviceName = z
  .string()
  .regex(/^[a-z][a-z0-9._-]{0,14}$/, 'is not a name of at most 15 lower-case letters, digits, dots, dashes and underscores')
/** Names that mean something to the kernel or to renderers. */
const reservedNames = new Set(['lo', 'all', 'default'])

export const ipAddress = z.union([z.ipv4(), z.ipv6()], 'is not an IP address')
const addressWithLength = z.union([z.cidrv4(), z.cidrv6()], 'is not an address with its prefix length, such as 10.0.0.5/24')
export const domain = z
  .string()
  .regex(/^[a-z0-9]([a-z0-9-]{0,62}\.?)+$/i, 'is not a domain')
  .max(253)

const route = z.strictObject({ to: addressWithLength, via: ipAddress, metric: z.number().int().min(0).max(0xffff_ffff).optional() })

/** What every device may have. */
const onDevice = {
  addresses: z.array(addressWithLength).max(32).default([]),
  dhcp4: z.boolean().default(false),
  dhcp6: z.boolean().default(false),
  gateway4: z.ipv4().optional(),
  gateway6: z.ipv6().optional(),
  nameservers: z.array(ipAddress).max(8).default([]),
  search: z.array(domain).max(16).default([]),
  routes: z.array(route).max(64).default([]),
  mtu: z.number().int().min(576).max(9216).optional(),
}

export const bondModes = ['balance-rr', 'active-backup', 'balance-xor', 'broadcast', '802.3ad', 'balance-tlb', 'balance-alb'] as const

const members = z.array(deviceName).min(1).max(16)

const ethernet = z.strictObject({ mac, ...onDevice })
const bond = z.strictObject({
  interfaces: members,
  mode: z.enum(bondModes),
  /** How often the links are looked at. */
  monitorMs: z.number().int().min(1).max(60_000).default(100),
  upDelayMs: z.number().int().min(0).max(600_000).optional(),
  downDelayMs: z.number().int().min(0).max(600_000).optional(),
  lacpRate: z.enum(['slow', 'fast']).optional(),
  adSelect: z.enum(['stable', 'bandwidth', 'count']).optional(),
  minLinks: z.number().int().min(1).max(16).optional(),
  hashPolicy: z.enum(['layer2', 'layer2+3', 'layer3+4', 'encap2+3', 'encap3+4']).optional(),
  primary: deviceName.optional(),
  ...onDevice,
})
const vlan = z.strictObject({
  id: z.number().int().min(1, 'is not a VLAN id (1 to 4094)').max(4094, 'is not a VLAN id (1 to 4094)'),
  link: deviceName,
  ...onDevice,
})
const bridge = z.strictObject({
  interfaces: z.array(deviceName).max(16).default([]),
  stp: z.boolean().default(false),
  forwardDelaySeconds: z.number().int().min(2).max(30).optional(),
  ...onDevice,
})

const kinds = ['ethernets', 'bonds', 'vlans', 'bridges'] as const
type Kind = (typeof kinds)[number]

const shape = z.strictObject({
  ethernets: z.record(deviceName, ethernet),
  bonds: z.record(deviceName, bond).default({}),
  vlans: z.record(deviceName, vlan).default({}),
  bridges: z.record(deviceName, bridge).default({}),
})
type Shape = z.output<typeof shape>

/** The network of a machine. Ports are named by their MAC address and get the name they have here. */
export const networkDocument = shape.superRefine((document, context) => {
  for (const { field, message } of problemsOf(document)) context.addIssue({ code: 'custom', path: [...field], message })
})
export type NetworkDocument = z.output<typeof networkDocument>
export type NetworkDevice = Pick<Shape['ethernets'][string], keyof typeof onDevice>

interface Problem {
  field: readonly (string | number)[]
  message: string
}

interface Device {
  kind: Kind
  name: string
  settings: NetworkDevice
  field: readonly string[]
  /** The devices it is made of, and where it names them. */
  below: readonly { name: string; field: readonly (string | number)[] }[]
}

function devicesOf(document: Shape): Device[] {
  return kinds.flatMap(kind =>
    Object.entries(document[kind] as Record<string, NetworkDevice & { interfaces?: string[]; link?: string }>).map(([name, settings]) => {
      const field = [kind, name]
      const below = [
        ...(settings.interfaces ?? []).map((member, index) => ({ name: member, field: [...field, 'interfaces', index] })),
        ...(settings.link === undefined ? [] : [{ name: settings.link, field: [...field, 'link'] }]),
      ]
      return { kind, name, settings, field, below }
    }),
  )
}

/** What each kind may be made of. */
const madeOf: Record<Kind, readonly Kind[]> = {
  ethernets: [],
  bonds: ['ethernets'],
  vlans: ['ethernets', 'bonds', 'bridges'],
  bridges: ['ethernets', 'bonds', 'vlans'],
}

const singular: Record<Kind, string> = { ethernets: 'an ethernet port', bonds: 'a bond', vlans: 'a VLAN', bridges: 'a bridge' }

/** Everything that is wrong with a document by itself. */
function problemsOf(document: Shape): Problem[] {
  const devices = devicesOf(document)
  return [
    ...devices.flatMap(({ name, field }) =>
      reservedNames.has(name) ? [{ field, message: `"${name}" is a name with a meaning of its own` }] : [],
    ),
    ...repeated(devices.map(({ name, field }) => ({ value: name, field }))).map(({ field, first }) => ({
      field,
      message: `is the name of another device too (${first.join('.')})`,
    })),
    ...membershipProblems(devices),
    ...addressProblems(devices),
    ...repeated(Object.entries(document.ethernets).map(([name, port]) => ({ value: port.mac, field: ['ethernets', name, 'mac'] }))).map(
      ({ field, first }) => ({ field, message: `is the address of another port too (${first.join('.')})` }),
    ),
    ...repeated(
      Object.entries(document.vlans).map(([name, { id, link }]) => ({ value: `${link} ${id}`, field: ['vlans', name, 'id'] })),
    ).map(({ field, first }) => ({ field, message: `is taken on the same link (${first.join('.')})` })),
    ...bondProblems(document),
  ]
}

/** The values that an earlier one equals, with the field of the first. */
function repeated<Field extends readonly (string | number)[]>(
  values: readonly { value: string; field: Field }[],
): { field: Field; first: Field }[] {
  const seen = new Map<string, Field>()
  return values.flatMap(({ value, field }) => {
    const first = seen.get(value)
    if (first) return [{ field, first }]
    seen.set(value, field)
    return []
  })
}

function membershipProblems(devices: readonly Device[]): Problem[] {
  const byName = new Map(devices.map(device => [device.name, device]))
  const problems: Problem[] = []
  const master = new Map<string, Device>()
  for (const device of devices) {
    for (const { name, field } of device.below) {
      const member = byName.get(name)
      if (!member) problems.push({ field, message: `"${name}" is no device of this document` })
      else if (!madeOf[device.kind].includes(member.kind))
        problems.push({ field, message: `"${name}" is ${singular[member.kind]}, which ${singular[device.kind]} cannot be made of` })
      else if (isWithin(byName, member, device.name)) problems.push({ field, message: `"${name}" is itself made of "${device.name}"` })
      // A VLAN shares its link with others; members belong to one.
      if (!member || device.kind === 'vlans') continue
      const other = master.get(name)
      if (other) problems.push({ field, message: `"${name}" is a member of "${other.name}" already` })
      master.set(name, device)
      const set = settingsOfIp(member.settings)
      if (set.length > 0)
        problems.push({ field: [...member.field, set[0] as string], message: `belongs on "${device.name}", of which it is a member` })
    }
  }
  for (const vlan of devices.filter(({ kind }) => kind === 'vlans'))
    for (const { name, field } of vlan.below)
      if (master.get(name)?.kind === 'bonds')
        problems.push({ field, message: `"${name}" is a member of "${master.get(name)?.name}"; put the VLAN on that` })
  return problems
}

/** Whether `device` is made of the one called `name`, however deep. `seen` ends circles that do not lead there. */
function isWithin(byName: ReadonlyMap<string, Device>, device: Device, name: string, seen = new Set<string>()): boolean {
  if (device.name === name) return true
  if (seen.has(device.name)) return false
  seen.add(device.name)
  return device.below.some(below => {
    const next = byName.get(below.name)
    return next !== undefined && isWithin(byName, next, name, seen)
  })
}

/** The settings by which a device has a place in the network of its own. */
function settingsOfIp(settings: NetworkDevice): string[] {
  return [
    ...(settings.addresses.length > 0 ? ['addresses'] : []),
    ...(settings.dhcp4 ? ['dhcp4'] : []),
    ...(settings.dhcp6 ? ['dhcp6'] : []),
    ...(settings.gateway4 === undefined ? [] : ['gateway4']),
    ...(settings.gateway6 === undefined ? [] : ['gateway6']),
    ...(settings.routes.length > 0 ? ['routes'] : []),
  ]
}

function addressProblems(devices: readonly Device[]): Problem[] {
  const problems: Problem[] = repeated(
    devices.flatMap(({ settings, field }) =>
      settings.addresses.map((text, index) => ({ value: bitsOf(text.split('/')[0] as string), field: [...field, 'addresses', index] })),
    ),
  ).map(({ field, first }) => ({ field, message: `is there twice (${first.join('.')})` }))
  for (const version of ['gateway4', 'gateway6'] as const) {
    const having = devices.filter(({ settings }) => settings[version] !== undefined)
    for (const second of having.slice(1))
      problems.push({
        field: [...second.field, version],
        message: `"${having[0]?.name}" has the default route already; give this one routes`,
      })
    for (const { settings, field } of having)
      if (!settings.addresses.some(cidr => isInNetwork(cidr, settings[version] as string)))
        problems.push({ field: [...field, version], message: 'is in the network of none of the addresses here' })
  }
  for (const { settings, field } of devices) {
    for (const [index, { to, via }] of settings.routes.entries())
      if (isVersion6(to) !== isVersion6(via))
        problems.push({ field: [...field, 'routes', index, 'via'], message: `is of another IP version than ${to}` })
    if (settings.routes.length > 0 && settings.addresses.length === 0 && !settings.dhcp4 && !settings.dhcp6)
      problems.push({ field: [...field, 'routes'], message: 'need an address here' })
    if (settings.mtu !== undefined && settings.mtu < 1280 && (settings.dhcp6 || settings.addresses.some(isVersion6)))
      problems.push({ field: [...field, 'mtu'], message: 'is below the 1280 that IPv6 needs' })
  }
  return problems
}

function bondProblems({ bonds }: Shape): Problem[] {
  return Object.entries(bonds).flatMap(([name, bond]) => {
    const onlyIn = (field: 'lacpRate' | 'adSelect' | 'minLinks' | 'hashPolicy' | 'primary', modes: readonly string[]) =>
      bond[field] === undefined || modes.includes(bond.mode)
        ? []
        : [
            {
              field: ['bonds', name, field],
              message: `is for the mode${modes.length > 1 ? 's' : ''} ${modes.join(', ')}, not ${bond.mode}`,
            },
          ]
    return [
      ...onlyIn('lacpRate', ['802.3ad']),
      ...onlyIn('adSelect', ['802.3ad']),
      ...onlyIn('minLinks', ['802.3ad']),
      ...onlyIn('hashPolicy', ['balance-xor', '802.3ad', 'balance-tlb']),
      ...onlyIn('primary', ['active-backup', 'balance-tlb', 'balance-alb']),
      ...(bond.primary === undefined || bond.interfaces.includes(bond.primary)
        ? []
        : [{ field: ['bonds', name, 'primary'], message: `"${bond.primary}" is no member` }]),
      ...(['upDelayMs', 'downDelayMs'] as const).flatMap(field =>
        (bond[field] ?? 0) % bond.monitorMs === 0
          ? []
          : [{ field: ['bonds', name, field], message: `is no multiple of monitorMs (${bond.monitorMs})` }],
      ),
    ]
  })
}

const isVersion6 = (text: string) => text.includes(':')

/** The addresses that a machine has by its document, with the VLAN of the device (null: untagged) and, on a port, its MAC address. */
export function staticAddresses(document: NetworkDocument): { address: string; vlan: number | null; mac: string | null }[] {
  return kinds.flatMap(kind =>
    Object.values(document[kind] as Record<string, NetworkDevice & { id?: number; mac?: string }>).flatMap(({ addresses, id, mac: port }) =>
      addresses.map(text => ({ address: text.split('/')[0] as string, vlan: id ?? null, mac: port ?? null })),
    ),
  )
}

/** Whether the network of `cidr` has the address. */
export function isInNetwork(cidr: string, ip: string): boolean {
  const [network = '', length = ''] = cidr.split('/')
  return isVersion6(network) === isVersion6(ip) && bitsOf(network).slice(0, Number(length)) === bitsOf(ip).slice(0, Number(length))
}

/** Whether two networks have an address in common: then one is within the other. */
export function networksOverlap(one: string, other: string): boolean {
  return isInNetwork(one, networkAddress(other)) || isInNetwork(other, networkAddress(one))
}

const networkAddress = (cidr: string) => cidr.split('/')[0] as string

/** An address as 32 or 128 binary digits. */
export function bitsOf(ip: string): string {
  if (!isVersion6(ip))
    return ip
      .split('.')
      .map(part => Number(part).toString(2).padStart(8, '0'))
      .join('')
  // `::ffff:10.0.0.1`: the last two groups may be written as IPv4.
  const text = ip.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_, a, b, c, d) => `${(a * 256 + +b).toString(16)}:${(c * 256 + +d).toString(16)}`)
  const [head = '', tail] = text.split('::')
  const groups = (part: string) => (part === '' ? [] : part.split(':'))
  const [front, back] = [groups(head), groups(tail ?? '')]
  const middle = tail === undefined ? [] : Array<string>(8 - front.length - back.length).fill('0')
  return [...front, ...middle, ...back].map(group => Number.parseInt(group, 16).toString(2).padStart(16, '0')).join('')
}

/** What is wrong with a document for the machine that has these ports. */
export function networkProblemsOn(document: NetworkDocument, interfaces: readonly { mac: string }[]): { field: string; message: string }[] {
  const known = new Set(interfaces.map(port => port.mac))
  return Object.entries(document.ethernets).flatMap(([name, port]) =>
    known.has(port.mac)
      ? []
      : [{ field: `ethernets.${name}.mac`, message: `no interface of the machine has ${port.mac}; it has ${[...known].join(', ')}` }],
  )
}
