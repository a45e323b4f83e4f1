// How machines look to people: the columns of a list, one machine in full, and the answer to "why is it stuck?".
import { createHash } from 'node:crypto'
import { isIP } from 'node:net'
import { requestsIn, type State, states } from '@muster/shared/life-cycle'
import type { CredentialRotation, Explanation, Machine, MachineDetail } from '@muster/shared/machine'
import { secondsBetween, stagesOf } from '@muster/shared/stages'
import type { Cli } from '../cli.ts'
import type { Shape } from './show.ts'
import { type Column, fieldsText } from './table.ts'
import { ageText, diskText, memoryText, type paint, printable, timeText } from './text.ts'

type Style = Parameters<typeof paint>[1]

/** Green: usable or in use. Yellow: on its way. Red: somebody should look. */
export function styleOf(state: State, fault: unknown): Style | undefined {
  if (fault || state.startsWith('failed_') || state === 'broken') return 'red'
  if (state === 'ready' || state === 'deployed') return 'green'
  return requestsIn(state).includes('abort') || state === 'releasing' || state === 'rescue' ? 'yellow' : undefined
}

export function machineColumns(now: number): Column<Machine>[] {
  return [
    { title: 'ID', text: machine => machine.id },
    { title: 'HOSTNAME', text: machine => machine.hostname, least: 8, leaves: 2 },
    {
      title: 'STATE',
      text: machine =>
        `${machine.state}${machine.progress === null ? '' : ` ${Math.round(machine.progress)} %`}${machine.locked ? ' (locked)' : ''}`,
      style: machine => styleOf(machine.state, machine.fault),
    },
    { title: 'POWER', text: machine => machine.power, leaves: 3 },
    { title: 'ARCH', text: machine => machine.arch, leaves: 7 },
    { title: 'CPUS', text: machine => String(machine.cpus), align: 'right', leaves: 6 },
    { title: 'MEMORY', text: machine => memoryText(machine.memoryMib), align: 'right', leaves: 5 },
    { title: 'DISKS', text: disksText, wide: true },
    { title: 'POOL', text: machine => machine.pool, least: 6, leaves: 8 },
    { title: 'ZONE', text: machine => machine.zone, least: 6, leaves: 9 },
    { title: 'RACK', text: machine => machine.rack, wide: true },
    { title: 'OWNER', text: machine => machine.owner ?? '', least: 6, leaves: 4 },
    { title: 'OS', text: machine => machine.deployment?.os ?? '', wide: true },
    { title: 'TAGS', text: machine => machine.tags.join(','), wide: true },
    { title: 'IP', text: machine => machine.interfaces.flatMap(({ ip }) => ip ?? []).join(','), wide: true },
    { title: 'SINCE', text: machine => ageText(machine.stateSince, now), align: 'right', leaves: 10 },
    { title: 'REMARK', text: machine => machine.fault?.message ?? machine.waitingFor ?? '', least: 10, leaves: 11 },
  ]
}

export function machineShape(now: number): Shape<Machine> {
  return { columns: machineColumns(now), name: machine => machine.id, none: 'No machine matches.' }
}

/** `2 × 480 GB ssd, 4 TB hdd`: equal disks together. */
function disksText(machine: Machine): string {
  const counts = new Map<string, number>()
  for (const { sizeBytes, kind } of machine.disks) {
    const text = `${diskText(sizeBytes)} ${kind}`
    counts.set(text, (counts.get(text) ?? 0) + 1)
  }
  return [...counts].map(([text, count]) => (count > 1 ? `${count} × ${text}` : text)).join(', ')
}

/** One machine in full. */
export function machineText(cli: Cli, machine: MachineDetail | Machine): string {
  const now = cli.now()
  const time = (at: string | null | undefined) => at && timeText(at, now)
  const detail = machine as Partial<MachineDetail>
  return fieldsText(cli, [
    ['Id', machine.id],
    ['Hostname', machine.hostname],
    ['Partition', machine.partition],
    ['State', machine.state],
    ['Since', time(machine.stateSince)],
    ['Waiting for', machine.waitingFor],
    ['Progress', machine.progress === null ? null : `${Math.round(machine.progress)} %`],
    ['Deadline', time(machine.deadline)],
    ['Fault', machine.fault && `${machine.fault.message} (${machine.fault.code})`],
    ['Hint', machine.fault?.hint],
    ['Locked', machine.locked ? 'yes' : null],
    ['Power', `${machine.power}${machine.powerSeenAt ? `, seen ${ageText(machine.powerSeenAt, now)} ago` : ''}`],
    ['Power driver', machine.powerDriver],
    ['Power settings', detail.powerSettings && JSON.stringify(detail.powerSettings)],
    ...bmcFieldsOf(machine.id, detail),
    ['Owner', machine.owner],
    ['Allocation', machine.allocation],
    ['Operating system', machine.deployment?.os],
    ['Deployed', time(machine.deployment?.deployedAt)],
    ['Took', timingText(machine)],
    ['First boot', firstBootText(machine)],
    ...(machine.deployment?.hostKeys ?? []).map(key => ['SSH host key', fingerprintOf(key)] as const),
    ['Architecture', machine.arch],
    ['CPUs', machine.cpus],
    ['Memory', memoryText(machine.memoryMib)],
    ...machine.disks.map(
      disk =>
        [
          'Disk',
          [disk.name, diskText(disk.sizeBytes), disk.kind, disk.model, disk.serial, healthOf(disk.name, detail.inventory)]
            .filter(Boolean)
            .join('  '),
        ] as const,
    ),
    ...raidMembersOf(detail.inventory).map(text => ['RAID member', text] as const),
    ...machine.interfaces.map(
      port =>
        [
          'Interface',
          [port.mac, port.name, port.speedMbps ? `${port.speedMbps} Mbit/s` : '', port.subnet, port.ip].filter(Boolean).join('  '),
        ] as const,
    ),
    ...gpusOf(detail.inventory).map(text => ['GPU', text] as const),
    ...nodesOf(detail.inventory).map(text => ['NUMA node', text] as const),
    ...neighboursOf(detail.inventory).map(text => ['Neighbour', text] as const),
    ['Pool', machine.pool],
    ['Zone', machine.zone],
    ['Rack', machine.rack],
    ['Tags', machine.tags.join(', ')],
    ['Note', machine.note],
    ['Version', machine.version],
    ['Created', time(machine.createdAt)],
    ['Changed', time(machine.updatedAt)],
  ])
}

/**
 * Where the machine itself found its BMC, and, while nothing switches its power, the command that takes that over: user and password are in the file,
 * because the machine cannot know them. An inventory is whatever somebody sent who was on the machines' network: the address is shown, never used.
 */
function bmcFieldsOf(id: string, { inventory, powerDriver }: Partial<MachineDetail>): (readonly [string, string])[] {
  const found = inventory?.bmc
  if (typeof found !== 'object' || found === null) return []
  const { address, mac, ipmi, firmware } = found as Record<string, unknown>
  const word = (value: unknown, before = '') => (typeof value === 'string' && value !== '' ? `${before}${value}` : '')
  const text = [word(address), word(mac), word(ipmi, 'IPMI '), word(firmware, 'firmware ')].filter(Boolean).join('  ')
  if (text === '') return []
  const isAddress = typeof address === 'string' && isIP(address) !== 0
  const command = `muster machine update ${id} --power-driver ipmi --power-setting address=${String(address)} --power-settings FILE`
  return [['BMC found', text], ...(powerDriver === null && isAddress ? [['Use it', command] as const] : [])]
}

type Inventory = MachineDetail['inventory'] | undefined

interface Entry {
  text(this: void, name: string): string
  value(this: void, name: string): unknown
}

/** The objects in a list of the inventory. That is whatever an agent sent: what is none is left out. */
function entriesOf(inventory: Inventory, list: string): Entry[] {
  const found = inventory?.[list]
  return (Array.isArray(found) ? (found as unknown[]) : []).flatMap(each => {
    if (typeof each !== 'object' || each === null) return []
    const said = each as Record<string, unknown>
    return [{ text: (name: string) => (typeof said[name] === 'string' ? said[name] : ''), value: (name: string) => said[name] }]
  })
}

/** `eth0  sw-01  Ethernet1/7  VLAN 42`: what each port's switch said of itself (LLDP). */
function neighboursOf(inventory: Inventory): string[] {
  return entriesOf(inventory, 'lldp').map(({ text }) => {
    const vlan = text('vlan') && `VLAN ${text('vlan')}`
    return [text('port'), text('system') || text('chassis'), text('portId'), text('portDescription'), vlan].filter(Boolean).join('  ')
  })
}

/** `0000:3b:00.0  10de:20b5  nvidia`: as `lspci -n` writes vendor and device. */
function gpusOf(inventory: Inventory): string[] {
  return entriesOf(inventory, 'gpus').map(({ text }) => {
    const id = [text('vendor'), text('device')].map(number => number.replace(/^0x/, '')).join(':')
    return [text('address'), id, text('driver')].filter(Boolean).join('  ')
  })
}

/** `0  CPUs 0-15,32-47  64 GiB`. */
function nodesOf(inventory: Inventory): string[] {
  return entriesOf(inventory, 'numa').map(({ text, value }) => {
    const memoryMib = value('memoryMib')
    return [value('node'), `CPUs ${text('cpus')}`, typeof memoryMib === 'number' ? memoryText(memoryMib) : ''].join('  ')
  })
}

/** What a disk says of its own health, where it says anything. */
function healthOf(disk: string, inventory: Inventory): string {
  const found = entriesOf(inventory, 'disks').find(({ text }) => text('name') === disk)
  return found ? healthText(found) : ''
}

function healthText({ value }: Pick<Entry, 'value'>): string {
  const wear = value('wearPercent')
  return [typeof wear === 'number' ? `${wear} % worn` : '', value('healthy') === false ? 'says that it fails' : '']
    .filter(Boolean)
    .join(', ')
}

/** `megaraid,4  of sda, sdb (megaraid_sas, host 0)  480 GB  ssd  MZ7KH480HAHQ0D3  S47NNA0N  30 °C  1 % worn`. */
function raidMembersOf(inventory: Inventory): string[] {
  return entriesOf(inventory, 'raidMembers').map(entry => {
    const { text, value } = entry
    const [disks, host, sizeBytes, temperature] = ['disks', 'host', 'sizeBytes', 'temperatureC'].map(value)
    const names = Array.isArray(disks) ? disks.filter(name => typeof name === 'string').join(', ') : ''
    const controller = [text('controller'), typeof host === 'number' ? `host ${host}` : ''].filter(Boolean).join(', ')
    return [
      text('name'),
      [names && `of ${names}`, controller && `(${controller})`].filter(Boolean).join(' '),
      typeof sizeBytes === 'number' ? diskText(sizeBytes) : '',
      ...['kind', 'model', 'serial'].map(text),
      typeof temperature === 'number' ? `${temperature} °C` : '',
      typeof value('healthy') === 'boolean' ? healthText(entry) : 'does not say how it is',
    ]
      .filter(Boolean)
      .join('  ')
  })
}

/** How long each step of the deployment took, as far as it has come. */
function timingText({ deployment }: Machine): string | undefined {
  if (!deployment) return undefined
  const { startedAt, deployedAt } = deployment
  const parts = stagesOf(deployment).map(({ stage, seconds }) => `${stage} ${seconds} s`)
  if (parts.length === 0) return undefined
  return `${deployedAt ? `${secondsBetween(startedAt, deployedAt)} s: ` : ''}${parts.join(', ')}`
}

function firstBootText({ deployment }: Machine): string | undefined {
  const firstBoot = deployment?.firstBoot
  if (!firstBoot) return undefined
  const failures = firstBoot.failures.length > 0 ? `; failed: ${firstBoot.failures.join(', ')}` : ''
  return `${firstBoot.endedAt === null ? `at ${firstBoot.step}` : 'over'}${failures}`
}

/** As ssh shows it when it meets a host for the first time. */
function fingerprintOf(key: string): string {
  const [type = '', blob = ''] = key.split(' ')
  const digest = createHash('sha256').update(Buffer.from(blob, 'base64')).digest('base64').replace(/=+$/, '')
  return `${type} SHA256:${digest}`
}

function rotationText({ state, askedBy, askedAt, fault }: CredentialRotation, now: number): string {
  return `rotation ${state}, asked by ${askedBy} ${ageText(askedAt, now)} ago${fault ? `: ${fault.message}` : ''}`
}

function workText({ endedAt, seconds, stages }: NonNullable<Explanation['lastWork']>[number], now: number): string {
  const parts = (stages ?? []).map(stage => `${stage.stage} ${stage.seconds} s`).join(', ')
  return `${seconds} s, ended ${ageText(endedAt, now)} ago${parts && `: ${parts}`}`
}

/** Why a machine is as it is, and what may be asked of it. */
export function explanationOf(cli: Cli, explanation: Explanation): string {
  const now = cli.now()
  return fieldsText(cli, [
    ['Id', explanation.id],
    ['State', explanation.state],
    ['Since', timeText(explanation.since, now)],
    ['The server', explanation.does || 'waits for a request'],
    ['Waiting for', explanation.waitingFor],
    ['Deadline', explanation.deadline && timeText(explanation.deadline, now)],
    ['Power', `${explanation.power}${explanation.powerSeenAt ? `, seen ${ageText(explanation.powerSeenAt, now)} ago` : ''}`],
    ['Wanted power', explanation.wantedPower === 'user' ? "its owner's business" : explanation.wantedPower],
    ['Password', explanation.credentialRotation && rotationText(explanation.credentialRotation, now)],
    ...explanation.powerOrders.map(
      order => ['Power order', `${order.action}, ${order.state}, asked by ${order.askedBy} ${ageText(order.askedAt, now)} ago`] as const,
    ),
    [
      'Last fault',
      explanation.lastFault &&
        `${explanation.lastFault.message} (${explanation.lastFault.code}), ${ageText(explanation.lastFault.since, now)} ago`,
    ],
    ['Hint', explanation.lastFault?.hint],
    ['Boot script', explanation.bootScriptGivenTo && `given to ${explanation.bootScriptGivenTo}`],
    ...(explanation.lastWork ?? []).map(work => [`Last ${work.state}`, workText(work, now)] as const),
    ['Next step', explanation.nextStep],
    ['Allowed', explanation.allowed.join(', ')],
  ])
}

/** `ready 12, deployed 80`: how many machines are in each state, in the order of the life cycle. */
export function countsText(counts: Partial<Record<State, number>>): string {
  return printable(states.flatMap(state => (counts[state] ? [`${state} ${counts[state]}`] : [])).join(', '))
}
