// A fleet with bad BMCs in it: the monitor knows every healthy one, and orders to those are carried out as if the bad ones were not there. Two
// thousand with MUSTER_FLEET=2000 (about three minutes); fewer are read as often in proportion, so that the load is the same. Times are printed, counts judged.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { freshDatabase } from '@muster/embedded/test-postgres'
import { connect } from '@muster/partition/db/connect'
import { insertMachine } from '@muster/partition/db/machines'
import { migrate } from '@muster/partition/db/migrate'
import { type Core, defaultRules } from '@muster/partition/domain/core'
import { storedPowerSettings } from '@muster/partition/domain/power-settings'
import { Seal } from '@muster/partition/domain/seal'
import { startPartition } from '@muster/partition/partition'
import { createLog } from '@muster/server/log'
import { hashToken, newToken } from '@muster/server/tokens'
import { type Client, createClient } from '@muster/shared/client'
import { newMachineId } from '@muster/shared/ids'
import { expect, onTestFinished, test } from 'vitest'
import { type Rack, type RackMachine, startRack } from '../src/rack.ts'

const size = Number(process.env.MUSTER_FLEET ?? 400)
/** The default of 30 s for 2,000. */
const powerCheckMs = (defaultRules.powerCheckMs * size) / 2_000
const commands = Math.min(400, size / 2)
const commandsPerSecond = 20
const isDead = (index: number) => index % 20 === 7
const isSlow = (index: number) => index % 10 === 4
/** A BMC that answers each datagram after half a second and more: what loaded ones need for their hashes. */
const slowness = [400, 1_500] as const

interface Member {
  id: string
  index: number
  machine: RackMachine
}

interface Fleet {
  rack: Rack
  core: Core
  client: Client
  members: Member[]
}

async function startFleet(): Promise<Fleet> {
  const stops: (() => Promise<void> | void)[] = []
  onTestFinished(async () => {
    for (let stop = stops.pop(); stop; stop = stops.pop()) await stop()
  })
  const specs = Array.from({ length: size }, (_, index) => ({ index, bootUrl: 'http://127.0.0.1:9', bootOrder: 'disk only' as const }))
  const rack = await startRack({ pace: 'instant', powerEffectMs: 20, machines: specs })
  stops.push(() => rack.close())
  const database = await freshDatabase({ template: 'partition', migrate: async url => void (await migrate(url)) })
  stops.push(() => database.drop())
  const key = Buffer.alloc(32, 'fleet')
  const members = await enter(database.url, key, rack)

  const folder = mkdtempSync(path.join(tmpdir(), 'muster-fleet-'))
  stops.push(() => rmSync(folder, { recursive: true, force: true }))
  const { token } = newToken()
  const tokensFile = path.join(folder, 'tokens.json')
  writeFileSync(tokensFile, JSON.stringify({ tokens: [{ name: 'olga', role: 'operator', sha256: hashToken(token) }] }))
  const { url, core } = await startPartition({
    settings: {
      partition: 'lon1',
      replica: 'a',
      databaseUrl: database.url,
      connections: 12,
      nats: undefined,
      key,
      tokensFile,
      files: folder,
      host: '127.0.0.1',
      port: 0,
      url: undefined,
      rules: { ...defaultRules, powerCheckMs },
    },
    log: createLog({ level: 'error', name: 'fleet' }),
    own: (_, stop) => stops.push(stop),
    onSuperseded: () => {
      throw new Error('superseded')
    },
  })
  return { rack, core, client: createClient({ url, token }), members }
}

/** Enters the rack's machines, deployed: what their power is, is their owners' business. */
async function enter(databaseUrl: string, key: Buffer, rack: Rack): Promise<Member[]> {
  const sql = connect(databaseUrl, { connections: 4, name: 'fleet' })
  const core = { seal: new Seal(key) } as Core
  try {
    const members = await Promise.all(
      rack.machines.map(async (machine, index) => {
        const id = newMachineId('lon1')
        const { address, port, user, password } = machine.bmc
        const stored = storedPowerSettings(core, id, 'ipmi', { address: `${address}:${port}`, user, password })
        await insertMachine(
          sql,
          {
            id,
            hostname: machine.name,
            arch: 'amd64',
            cpus: 8,
            memoryMib: 16_384,
            pool: 'default',
            zone: 'z1',
            rack: 'r1',
            tags: [],
            interfaces: [{ mac: machine.bootMac, name: 'eth0', speedMbps: 10_000, subnet: null, ip: null }],
            disks: [],
            note: '',
            powerDriver: stored.driver,
            powerSettings: stored.settings,
            powerSecrets: stored.secrets,
          },
          { kind: 'machine.created', actor: 'fleet' },
        )
        return { id, index, machine }
      }),
    )
    await sql`update machines set state = 'deployed', owner = 'alice', attention_at = null`
    return members
  } finally {
    await sql.end()
  }
}

interface Seen {
  id: string
  observed: string
  ageMs: number
  failures: number
  fault: { code: string; since: string } | null
  /** From the last failure to the next read. */
  pauseMs: number
}

async function look({ core }: Fleet): Promise<Map<string, Seen>> {
  const rows = await core.sql<Seen[]>`
    select machine_id as id, observed, (extract(epoch from now() - seen_at) * 1000)::float8 as "ageMs", failures, fault,
      (extract(epoch from check_at - (fault ->> 'since')::timestamptz) * 1000)::float8 as "pauseMs" from machine_power`
  return new Map(rows.map(row => [row.id, row]))
}

async function until(what: string, limitMs: number, isSo: () => Promise<boolean>): Promise<number> {
  const startedAt = Date.now()
  while (!(await isSo())) {
    if (Date.now() - startedAt > limitMs) throw new Error(`${what}: not within ${limitMs} ms`)
    await sleep(200)
  }
  return Date.now() - startedAt
}

interface Ended {
  id: string
  action: string
  state: string
  tookMs: number
}

/** Gives orders to these, one each, at an even pace; answers what became of them. */
async function command({ client, core }: Fleet, members: readonly Member[]): Promise<Ended[]> {
  const ids = await Promise.all(
    members.map(async ({ id }, turn) => {
      await sleep((turn * 1000) / commandsPerSecond)
      const { order } = await client.machines.power({ id, action: (['on', 'off', 'cycle'] as const)[turn % 3] as 'on', how: 'hard' })
      return (order as { id: string | number }).id
    }),
  )
  const open = () => core.sql`select from power_orders where id = any(${ids.map(Number)}::bigint[]) and state in ('queued', 'running')`
  await until('the orders to healthy BMCs end', 60_000, async () => (await open()).length === 0)
  return await core.sql<Ended[]>`
    select machine_id as id, action, state, (extract(epoch from ended_at - asked_at) * 1000)::float8 as "tookMs"
    from power_orders where id = any(${ids.map(Number)}::bigint[])`
}

const quantile = (values: readonly number[], share: number) =>
  [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * share))] ?? Number.NaN
const told = (values: readonly number[]) => `p50 ${Math.round(quantile(values, 0.5))} ms, p99 ${Math.round(quantile(values, 0.99))} ms`

test(`${size} BMCs, 5 % of them dead and 10 % slow: the healthy ones notice nothing`, { timeout: 60_000 + 150 * size }, async () => {
  const fleet = await startFleet()
  const { members, rack, core } = fleet
  const dead = members.filter(({ index }) => isDead(index))
  const slow = members.filter(({ index }) => isSlow(index))
  const healthy = members.filter(({ index }) => !isDead(index) && !isSlow(index))

  const firstPollMs = await until('all BMCs are read', 60_000, async () =>
    [...(await look(fleet)).values()].every(({ ageMs }) => ageMs !== null),
  )
  const without = await command(fleet, healthy.slice(0, commands))

  for (const { machine } of dead) machine.bmc.faults.life = 'silent'
  for (const { machine } of slow) machine.bmc.faults.latencyMs = slowness
  const noticedMs = await until('every dead BMC carries a fault', powerCheckMs + 60_000, async () => {
    const seen = await look(fleet)
    return dead.every(({ id }) => (seen.get(id)?.failures ?? 0) > 0)
  })

  const ages = { healthy: [] as number[], slow: [] as number[] }
  /** Of each dead BMC that nobody orders about: how long it is left alone after its nth failure. */
  const pauses = new Map<string, number[]>()
  const alone = dead.filter((_, place) => place % 2 === 0)
  const watching = new AbortController()
  const watch = (async () => {
    for (;;) {
      const seen = await look(fleet)
      for (const { id } of healthy) ages.healthy.push(seen.get(id)?.ageMs ?? Number.POSITIVE_INFINITY)
      for (const { id } of slow) ages.slow.push(seen.get(id)?.ageMs ?? Number.POSITIVE_INFINITY)
      for (const { id } of alone) {
        const { failures, pauseMs } = seen.get(id) as Seen
        const known = pauses.get(id) ?? []
        known[failures] = pauseMs
        pauses.set(id, known)
      }
      if (watching.signal.aborted) return
      await sleep(500)
    }
  })()
  const watchedSince = Date.now()
  const busy = [...dead.filter((_, place) => place % 2 === 1), ...slow.filter((_, place) => place % 2 === 1)]
  await Promise.all(busy.map(({ id }) => fleet.client.machines.power({ id, action: 'cycle', how: 'hard' })))
  const having = await command(fleet, healthy.slice(-commands))
  // Twice as long as it takes to read all: what nobody reads shows.
  await sleep(Math.max(0, watchedSince + 2 * powerCheckMs - Date.now()))
  await until('dead BMCs are asked again', 4 * powerCheckMs + 60_000, async () =>
    alone.every(({ id }) => (pauses.get(id)?.filter(Boolean).length ?? 0) >= 2),
  )
  watching.abort()
  await watch
  const seen = await look(fleet)
  const openOfSlow = Math.max(...slow.map(({ machine }) => machine.bmc.counters.sessionsOpenMax))
  const slowKnown = slow.filter(({ id }) => seen.get(id)?.failures === 0).length

  const [p99Without, p99Having] = [without, having].map(all =>
    quantile(
      all.map(({ tookMs }) => tookMs),
      0.99,
    ),
  ) as [number, number]
  console.info(
    [
      `${size} BMCs, read every ${powerCheckMs / 1000} s; all read after ${firstPollMs} ms; the dead noticed after ${noticedMs} ms`,
      `orders to healthy BMCs: ${told(without.map(({ tookMs }) => tookMs))} alone; ${told(having.map(({ tookMs }) => tookMs))} beside ${dead.length} dead and ${slow.length} slow: ratio of p99 ${(p99Having / p99Without).toFixed(2)}`,
      `age of state: healthy ${told(ages.healthy)} (${(quantile(ages.healthy, 0.99) / powerCheckMs).toFixed(2)} of the rule), slow ${told(ages.slow)}; ${slowKnown} of ${slow.length} slow ones answer`,
      `sessions at once: slow BMCs ${openOfSlow}`,
    ].join('\n'),
  )

  expect([...without, ...having].filter(({ state }) => state !== 'done')).toEqual([])
  const endsIn = new Map([...without, ...having].map(({ id, action }) => [id, action === 'off' ? 'off' : 'on']))
  for (const { id, machine } of healthy) {
    expect(seen.get(id), machine.name).toMatchObject({ observed: endsIn.get(id) ?? 'off', failures: 0, fault: null })
    expect(machine.power, machine.name).toBe(endsIn.get(id) ?? 'off')
  }
  expect(rack.machines.filter(({ index, bmc }) => !isSlow(index) && bmc.counters.sessionsOpenMax > 1)).toEqual([])
  for (const { id } of dead) expect(seen.get(id)?.fault).toMatchObject({ code: 'power-silent' })
  for (const [id, all] of pauses) {
    const known = all.filter(Boolean)
    expect(
      known.toSorted((a, b) => a - b),
      id,
    ).toEqual(known)
  }
  expect(await core.sql`select from power_orders where state in ('queued', 'running')`.then(rows => rows.length)).toBeLessThanOrEqual(
    busy.length,
  )
})
