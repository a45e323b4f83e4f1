// Rows of machines. One statement per function; a row changes only by compare-and-set on its version, together with its events.
import type { MachineSort, MachinesListInput } from '@muster/shared/contract/machines'
import type { Direction, Key } from '@muster/shared/contract/page'
import type { State } from '@muster/shared/life-cycle'
import type { Deployment, Disk, EraseMethod, Fault, NetworkInterface } from '@muster/shared/machine'
import type { NetworkDocument } from '@muster/shared/network'
import type { ScriptChoice } from '@muster/shared/scripts'
import type { StorageLayout } from '@muster/shared/storage'
import type { Sql } from './connect.ts'

/** A row of `machines` with what the monitor knows of its power, and without its secrets: see {@link findDeploymentSecrets}. */
export interface MachineRow {
  id: string
  hostname: string
  state: State
  state_since: Date
  origin_state: State | null
  last_request: string | null
  last_request_by: string | null
  version: number
  arch: 'amd64' | 'arm64'
  cpus: number
  memory_mib: number
  pool: string
  zone: string
  rack: string
  tags: string[]
  interfaces: NetworkInterface[]
  disks: Disk[]
  owner: string | null
  allocation_id: string | null
  locked: boolean
  lock_reason: string
  note: string
  run: string | null
  netboot: boolean
  disks_used: boolean
  erase: EraseMethod | null
  rescue_keys: string[]
  scripts: ScriptChoice[]
  deployment: Deployment | null
  network: NetworkDocument | null
  deployment_network: NetworkDocument | null
  deployment_storage: StorageLayout | null
  fault: Fault | null
  step: string
  waiting_for: string | null
  progress: number | null
  deadline_at: Date | null
  last_signal_at: Date | null
  attention_at: Date | null
  claim_token: number
  created_at: Date
  updated_at: Date
  power: 'on' | 'off' | 'unknown'
  power_seen_at: Date | null
  power_driver: string | null
}

const columns = [
  'id',
  'hostname',
  'state',
  'state_since',
  'origin_state',
  'last_request',
  'last_request_by',
  'version',
  'arch',
  'cpus',
  'memory_mib',
  'pool',
  'zone',
  'rack',
  'tags',
  'interfaces',
  'disks',
  'owner',
  'allocation_id',
  'locked',
  'lock_reason',
  'note',
  'run',
  'netboot',
  'disks_used',
  'erase',
  'rescue_keys',
  'scripts',
  'deployment',
  'network',
  'deployment_network',
  'deployment_storage',
  'fault',
  'step',
  'waiting_for',
  'progress',
  'deadline_at',
  'last_signal_at',
  'attention_at',
  'claim_token',
  'created_at',
  'updated_at',
] as const satisfies (keyof MachineRow)[]
type Unnamed = Exclude<keyof MachineRow, (typeof columns)[number] | 'power' | 'power_seen_at' | 'power_driver'>
// A column that is added to the row and not to the list does not compile.
const everyColumn: Unnamed extends never ? readonly string[] : never = columns
const ofMachines = everyColumn.map(name => `m.${name}`)

/** Every column of a {@link MachineRow}, for a select from machines as `m` and machine_power as `p`. Half a megabyte of user-data is not among them. */
export const machineRow = (sql: Sql) => sql`${sql(ofMachines)}, p.observed as power, p.seen_at as power_seen_at, p.driver as power_driver`

/** The machine, or undefined. */
export async function findMachine(sql: Sql, id: string): Promise<MachineRow | undefined> {
  const [row] = await sql<MachineRow[]>`
    select ${machineRow(sql)} from machines m join machine_power p on p.machine_id = m.id where m.id = ${id}`
  return row
}

/** What the user gave for this run of the machine, sealed; null where there is nothing, or the run is over. */
export async function findDeploymentSecrets(sql: Sql, machine: { id: string; run: string | null }): Promise<Buffer | null> {
  const [row] = await sql<{ deployment_secrets: Buffer | null }[]>`
    select deployment_secrets from machines where id = ${machine.id} and run = ${machine.run}`
  return row?.deployment_secrets ?? null
}

/** Those of the machines that exist, in no order. */
export function findMachines(sql: Sql, ids: readonly string[]): Promise<MachineRow[]> {
  return sql<MachineRow[]>`
    select ${machineRow(sql)} from machines m join machine_power p on p.machine_id = m.id where m.id = any(${ids as string[]})`
}

/** Every machine that has one of these addresses, by id. */
export function machinesByMac(sql: Sql, macs: readonly string[]): Promise<MachineRow[]> {
  return sql<MachineRow[]>`
    select ${machineRow(sql)} from machines m join machine_power p on p.machine_id = m.id
    where m.id in (select machine_id from macs where mac = any(${macs as string[]})) order by m.id`
}

export async function findMachineByHostname(sql: Sql, hostname: string): Promise<MachineRow | undefined> {
  const [row] = await sql<MachineRow[]>`
    select ${machineRow(sql)} from machines m join machine_power p on p.machine_id = m.id where m.hostname = ${hostname}`
  return row
}

/** The machine that has one of these MAC addresses, or undefined. */
export async function findMachineByMac(sql: Sql, macs: readonly string[]): Promise<MachineRow | undefined> {
  const [row] = await sql<MachineRow[]>`
    select ${machineRow(sql)} from machines m join machine_power p on p.machine_id = m.id
    where m.id in (select machine_id from macs where mac = any(${macs as string[]})) order by m.id limit 1`
  return row
}

/** All that decides what a machine boots. */
export type BootRow = Pick<MachineRow, 'id' | 'state' | 'netboot' | 'erase' | 'run' | 'arch'>

/** The machines that have these MAC addresses, each with the address it was found by; addresses that nobody has are left out. */
export function bootRows(sql: Sql, macs: readonly string[]): Promise<(BootRow & { mac: string })[]> {
  return sql<(BootRow & { mac: string })[]>`
    select macs.mac, m.id, m.state, m.netboot, m.erase, m.run, m.arch
    from macs join machines m on m.id = macs.machine_id where macs.mac = any(${macs as string[]})`
}

/** What DHCP and DNS know of the machines here, by host name: all their MAC addresses but those for which an address is reserved. */
export function networkHosts(sql: Sql): Promise<{ hostname: string; macs: string[] }[]> {
  return sql<{ hostname: string; macs: string[] }[]>`
    select hostname, array_agg(mac order by mac) as macs from machines join macs on machine_id = id
    where state <> 'retired' and not exists (select from addresses where addresses.mac = macs.mac and source = 'reserved')
    group by hostname order by hostname`
}

/** Every machine: what a starting replica builds its memory from. */
export function allMachines(sql: Sql): Promise<MachineRow[]> {
  return sql<MachineRow[]>`select ${machineRow(sql)} from machines m join machine_power p on p.machine_id = m.id`
}

const sortColumns: { readonly [sort in MachineSort]: string } = {
  id: 'id',
  hostname: 'hostname',
  state: 'state',
  pool: 'pool',
  zone: 'zone',
  rack: 'rack',
  cpus: 'cpus',
  memoryMib: 'memory_mib',
  createdAt: 'created_at',
}

export interface MachinePage {
  filter: Omit<MachinesListInput, 'sort' | 'limit' | 'cursor' | 'partition'>
  sort: MachineSort
  direction: Direction
  after: Key | null
  limit: number
  seenBy?: SeenBy | undefined
}

/** Limits a list to what one caller may see: machines of these pools, and its own. */
export interface SeenBy {
  readonly name: string
  readonly pools: readonly string[]
}

/** Whether somebody may see a machine, of the table that the statement calls `m`: one of these pools, or its own. Undefined: anybody may. */
export const isSeenBy = (sql: Sql, who: SeenBy | undefined) =>
  who === undefined ? sql`true` : sql`(m.pool = any(${who.pools as string[]}) or m.owner = ${who.name})`

/** At most `limit` machines behind `after` in the order of `sort`, then id. */
export function listMachines(sql: Sql, page: MachinePage): Promise<MachineRow[]> {
  const { filter } = page
  const column = sql(`m.${sortColumns[page.sort]}`)
  const isByTime = page.sort === 'createdAt'
  const anyOf = (name: string, values: readonly string[] | undefined) =>
    values === undefined ? sql`` : sql`and ${sql(`m.${name}`)} = any(${values as string[]})`
  const down = page.direction === 'descending'
  // Times go out with milliseconds, so they are compared so: a cursor cannot carry microseconds it never saw.
  const sortValue = isByTime ? sql`date_trunc('milliseconds', ${column})` : column
  const after = page.after === null ? undefined : { value: isByTime ? new Date(page.after[0]) : page.after[0], id: page.after[1] }
  return sql<MachineRow[]>`
    select ${machineRow(sql)}
    from machines m join machine_power p on p.machine_id = m.id
    where true
      ${anyOf('state', filter.state)} ${anyOf('pool', filter.pool)} ${anyOf('zone', filter.zone)}
      ${anyOf('rack', filter.rack)} ${anyOf('arch', filter.arch)}
      ${filter.tag === undefined ? sql`` : sql`and m.tags @> ${filter.tag}`}
      ${filter.notTag === undefined ? sql`` : sql`and not m.tags && ${filter.notTag}`}
      ${filter.owner === undefined ? sql`` : sql`and m.owner = ${filter.owner}`}
      ${filter.allocation === undefined ? sql`` : sql`and m.allocation_id = ${filter.allocation}`}
      ${filter.power === undefined ? sql`` : sql`and p.observed = ${filter.power}`}
      ${filter.locked === undefined ? sql`` : sql`and m.locked = ${filter.locked}`}
      ${filter.fault === undefined ? sql`` : sql`and (m.fault is not null) = ${filter.fault}`}
      ${filter.hostname === undefined ? sql`` : sql`and position(${filter.hostname} in m.hostname) > 0`}
      and ${isSeenBy(sql, page.seenBy)}
      ${filter.mac === undefined ? sql`` : sql`and m.id in (select machine_id from macs where mac = ${filter.mac})`}
      ${after === undefined ? sql`` : down ? sql`and (${sortValue}, m.id) < (${after.value}, ${after.id})` : sql`and (${sortValue}, m.id) > (${after.value}, ${after.id})`}
    order by ${down ? sql`${sortValue} desc, m.id desc` : sql`${sortValue}, m.id`}
    limit ${page.limit}`
}

export interface NewMachine {
  id: string
  hostname: string
  arch: string
  cpus: number
  memoryMib: number
  pool: string
  zone: string
  rack: string
  tags: string[]
  interfaces: NetworkInterface[]
  disks: Disk[]
  note: string
  powerDriver: string | null
  powerSettings: Record<string, unknown>
  powerSecrets: Buffer | null
  /** What else it found in itself, where it is a machine that told. */
  facts?: Record<string, unknown>
}

/** Inserts the machine with its addresses, power, facts and first event. Throws 23505 where the id, hostname or a MAC exists. */
export async function insertMachine(sql: Sql, machine: NewMachine, event: { kind: string; actor: string }): Promise<MachineRow> {
  const [row] = await sql<MachineRow[]>`
    with added as (
      insert into machines (id, hostname, state, arch, cpus, memory_mib, pool, zone, rack, tags, interfaces, disks, note, attention_at)
      values (${machine.id}, ${machine.hostname}, 'new', ${machine.arch}, ${machine.cpus}, ${machine.memoryMib}, ${machine.pool},
        ${machine.zone}, ${machine.rack}, ${machine.tags}, ${sql.json(machine.interfaces)}, ${sql.json(machine.disks)}, ${machine.note}, now())
      returning *),
    addresses as (
      insert into macs (mac, machine_id) select distinct mac, ${machine.id} from unnest(${machine.interfaces.map(({ mac }) => mac)}::text[]) as mac, added),
    power as (
      insert into machine_power (machine_id, driver, settings, secrets)
      select ${machine.id}, ${machine.powerDriver}::text, ${sql.json(machine.powerSettings as never)}, ${machine.powerSecrets}::bytea from added),
    found as (
      insert into inventories (machine_id, facts)
      select ${machine.id}, f.facts from added, (select ${machine.facts === undefined ? null : sql.json(machine.facts as never)}::jsonb as facts) as f
      where f.facts is not null),
    noted as (
      insert into events (kind, machine_id, actor, data)
      select ${event.kind}, ${machine.id}, ${event.actor}, jsonb_build_object('state', 'new', 'hostname', ${machine.hostname}::text) from added)
    select added.*, 'unknown' as power, null::timestamptz as power_seen_at, ${machine.powerDriver}::text as power_driver from added`
  return row as MachineRow
}

/** The columns that a change may set; what is left out stays. */
export type MachinePatch = { deployment_secrets?: Buffer | null } & Partial<
  Pick<
    MachineRow,
    | 'hostname'
    | 'state'
    | 'origin_state'
    | 'last_request'
    | 'last_request_by'
    | 'arch'
    | 'cpus'
    | 'memory_mib'
    | 'pool'
    | 'zone'
    | 'rack'
    | 'tags'
    | 'interfaces'
    | 'disks'
    | 'owner'
    | 'allocation_id'
    | 'locked'
    | 'lock_reason'
    | 'note'
    | 'run'
    | 'netboot'
    | 'disks_used'
    | 'erase'
    | 'rescue_keys'
    | 'scripts'
    | 'deployment'
    | 'network'
    | 'deployment_network'
    | 'deployment_storage'
    | 'fault'
    | 'step'
    | 'waiting_for'
    | 'progress'
  >
>

export interface NewEvent {
  kind: string
  data: Record<string, unknown>
}

export interface MachineChange {
  id: string
  /** Compare-and-set: the change applies only to this version. */
  version: number
  patch: MachinePatch
  /** From now, in milliseconds by the database's clock; null clears it; left out keeps it. */
  deadlineMs?: number | null
  attentionMs?: number | null
  /** `now`: a signal has just come; `none`: forget the last one. */
  signal?: 'now' | 'none'
  /** Ends the engine's claim, so that it looks anew. */
  claim?: 'release'
  actor: string
  events: NewEvent[]
}

const jsonColumns = new Set([
  'interfaces',
  'disks',
  'scripts',
  'deployment',
  'network',
  'deployment_network',
  'deployment_storage',
  'fault',
])

/** Changes one machine and appends its events, in one statement. Undefined where the version is not the current one. */
export async function changeMachine(sql: Sql, change: MachineChange): Promise<MachineRow | undefined> {
  // The id stands for an empty patch, which is no SQL; postgres.js wants the object right behind the word "set".
  const columns: Record<string, unknown> = { id: change.id }
  for (const [name, value] of Object.entries(change.patch))
    columns[name] = jsonColumns.has(name) && value !== null ? sql.json(value as never) : value
  const fromNow = (name: string, ms: number | null | undefined) =>
    ms === undefined ? sql`` : ms === null ? sql`, ${sql(name)} = null` : sql`, ${sql(name)} = now() + ${ms} * interval '1 millisecond'`
  const [row] = await sql<MachineRow[]>`
    with changed as (
      update machines set ${sql(columns as never)}, version = version + 1, updated_at = now()
        ${change.patch.state === undefined ? sql`` : sql`, state_since = now()`}
        ${fromNow('deadline_at', change.deadlineMs)} ${fromNow('attention_at', change.attentionMs)}
        ${change.signal === undefined ? sql`` : change.signal === 'now' ? sql`, last_signal_at = now()` : sql`, last_signal_at = null`}
        ${change.claim === undefined ? sql`` : sql`, claimed_until = null, claim_token = nextval('claim_tokens')`}
      where id = ${change.id} and version = ${change.version}
      returning *),
    noted as (
      insert into events (kind, machine_id, actor, data)
      select e.kind, ${change.id}, ${change.actor}, e.data
      from changed, jsonb_to_recordset(${sql.json(change.events as never)}) as e (kind text, data jsonb))
    select ${machineRow(sql)} from changed m join machine_power p on p.machine_id = m.id`
  return row
}

/**
 * Deletes the machine at that version, with everything of it but its events, unless a rotation of its BMC's password runs: both passwords would be
 * lost. Returns whether it did.
 */
export async function deleteMachine(sql: Sql, machine: { id: string; version: number }, actor: string): Promise<'deleted' | 'stale'> {
  const rows = await sql`
    -- The switch is locked first: see lockSwitch. Then its rotations, so that none begins to run meanwhile.
    with switch as materialized (select machine_id from machine_power where machine_id = ${machine.id} for update),
    rotation as materialized (
      select r.state from credential_rotations r, switch
      where r.state in ('queued', 'running') and (r.machine_id = switch.machine_id or switch.machine_id = any(r.machine_ids)) for update of r),
    gone as (
      delete from machines m using switch where m.id = switch.machine_id and m.version = ${machine.version}
        and not exists (select from rotation where state = 'running') returning m.id, m.pool),
    -- Its pool: who is limited to pools is told of its end too.
    noted as (
      insert into events (kind, machine_id, actor, data) select 'machine.deleted', id, ${actor}, jsonb_build_object('pool', pool) from gone)
    select id from gone`
  return rows.length === 1 ? 'deleted' : 'stale'
}

/** Replaces the addresses that lead to the machine. Throws 23505 where another machine has one. */
export async function replaceMacs(sql: Sql, id: string, macs: readonly string[]): Promise<void> {
  await sql`
    with old as (delete from macs where machine_id = ${id} and not mac = any(${macs as string[]}))
    insert into macs (mac, machine_id) select distinct mac, ${id} from unnest(${macs as string[]}::text[]) as mac (mac)
    where not exists (select from macs where macs.mac = mac.mac and machine_id = ${id})`
}

/**
 * Machines that the engine should look at now, claimed for `claimMs` under a fresh token each. Their attention moves to the end of the claim: should
 * the process die they are looked at then, and news that come during the look are told from the news that led to it.
 */
export function claimDueMachines(sql: Sql, options: { limit: number; claimMs: number }): Promise<MachineRow[]> {
  return sql<MachineRow[]>`
    with due as (
      select id from machines
      where attention_at <= now() and (claimed_until is null or claimed_until < now())
      order by attention_at limit ${options.limit} for update skip locked),
    claimed as (
      update machines m set claim_token = nextval('claim_tokens'), claimed_until = now() + ${options.claimMs} * interval '1 millisecond',
        attention_at = now() + ${options.claimMs} * interval '1 millisecond'
      from due where m.id = due.id returning m.*)
    select ${machineRow(sql)} from claimed m join machine_power p on p.machine_id = m.id`
}

/**
 * What the engine found and stores without a move: what it waits for, and when to look again. No event, no new version. Only the holder of
 * the claim may: a replica that slept past its claim, or was overtaken by a move, writes nothing. A machine that changed during the look
 * keeps what it says, and news of it are looked at next. Returns whether it did.
 */
export async function saveLook(
  sql: Sql,
  look: { id: string; claimToken: number; version: number; waitingFor: string | null; attentionMs: number | null },
): Promise<'saved' | 'stale'> {
  const next = look.attentionMs === null ? sql`null::timestamptz` : sql`now() + ${look.attentionMs} * interval '1 millisecond'`
  const rows = await sql`
    update machines set claimed_until = null,
      waiting_for = case when version = ${look.version} then ${look.waitingFor}::text else waiting_for end,
      attention_at = case when version <> ${look.version} then now() when attention_at = claimed_until then ${next} else least(attention_at, ${next}) end
    where id = ${look.id} and claim_token = ${look.claimToken} returning id`
  return rows.length === 1 ? 'saved' : 'stale'
}

/** Makes the engine look at a machine at once. */
export async function drawAttention(sql: Sql, id: string): Promise<void> {
  await sql`update machines set attention_at = now() where id = ${id}`
}

/** How many machines are in each state, how many are past their deadline, how many have a fault. */
export async function countMachines(
  sql: Sql,
  seenBy?: SeenBy,
): Promise<{ states: Partial<Record<State, number>>; overdue: number; faulty: number }> {
  const rows = await sql<{ state: State; machines: number; overdue: number; faulty: number }[]>`
    select state, count(*) as machines, count(*) filter (where deadline_at < now()) as overdue, count(*) filter (where fault is not null) as faulty
    from machines m where ${isSeenBy(sql, seenBy)} group by state`
  return {
    states: Object.fromEntries(rows.map(row => [row.state, row.machines])),
    overdue: rows.reduce((sum, row) => sum + row.overdue, 0),
    faulty: rows.reduce((sum, row) => sum + row.faulty, 0),
  }
}

/** How many machines are new, counted as far as `most`. */
export async function countNew(sql: Sql, most: number): Promise<number> {
  const [row] = await sql<
    { machines: number }[]
  >`select count(*) as machines from (select from machines where state = 'new' limit ${most}) as waiting`
  return row?.machines ?? 0
}

/** The machine's inventory as last reported, or null. */
export async function findInventory(sql: Sql, id: string): Promise<Record<string, unknown> | null> {
  const [row] = await sql<{ facts: Record<string, unknown> }[]>`select facts from inventories where machine_id = ${id}`
  return row?.facts ?? null
}

export async function saveInventory(sql: Sql, id: string, facts: Record<string, unknown>): Promise<void> {
  await sql`
    insert into inventories (machine_id, facts) values (${id}, ${sql.json(facts as never)})
    on conflict (machine_id) do update set facts = excluded.facts, reported_at = now()`
}

export async function isHostnameTaken(sql: Sql, hostname: string): Promise<boolean> {
  const rows = await sql`select from machines where hostname = ${hostname}`
  return rows.length > 0
}
