// A partition, put together: database, memory, workers, doors. Started by main.ts as a process, and by tests in theirs.

import { readFileSync } from 'node:fs'
import { AuditLog, connectAudit } from '@muster/database/audit-log'
import type { ReadinessCheck } from '@muster/server/backend'
import { tokensOfAll } from '@muster/server/global/people'
import { createSharedSealer } from '@muster/server/global/sealed'
import { createSigner, type Signer } from '@muster/server/global/signature'
import { type RunningDoor, startDoor } from '@muster/server/http/door'
import { createMetrics } from '@muster/server/http/metrics'
import type { Log } from '@muster/server/log'
import type { Own } from '@muster/server/process'
import { openTokens } from '@muster/server/tokens'
import type { Bus } from '@muster/shared/bus/bus'
import { Counter, Gauge } from 'prom-client'
import { handlers } from './backend/handlers.ts'
import { LocalBackend } from './backend/local.ts'
import type { PartitionSettings } from './config.ts'
import { closeEmptyAllocations } from './db/allocations.ts'
import { forgetOldLeases } from './db/boots.ts'
import { connect, refusalOfDatabase } from './db/connect.ts'
import { migrate } from './db/migrate.ts'
import { forgetOldServices, saveNetworkServices } from './db/network-services.ts'
import { claimIdentity, forgetOldReplicas, registerReplica, removeReplica, touchReplica } from './db/replicas.ts'
import { Bell, runLoop } from './domain/bell.ts'
import { BootOrigins, type OriginRules, weaknessesOf } from './domain/boot-origin.ts'
import { Catalogue, refreshCatalogue } from './domain/catalogue.ts'
import { CentralImages } from './domain/central-images.ts'
import { CentralSubnets, rulesWith } from './domain/central-settings.ts'
import type { Core } from './domain/core.ts'
import { runEngine } from './domain/engine.ts'
import { FirstBoots } from './domain/first-boot.ts'
import { LogFollower } from './domain/follower.ts'
import { GlobalCopy } from './domain/global-copy.ts'
import { Memory } from './domain/memory.ts'
import { sessionsHere } from './domain/people.ts'
import { runPowerMonitor } from './domain/power/monitor.ts'
import { runRotations } from './domain/power/rotation.ts'
import { Switchboard } from './domain/power/switchboard.ts'
import { runPowerWorker } from './domain/power/worker.ts'
import { Retention, usualKeep } from './domain/retention.ts'
import { Seal } from './domain/seal.ts'
import { WebhookSender } from './domain/webhooks/sender.ts'
import { agentDoor } from './doors/agent.ts'
import { bmcEventsDoor } from './doors/bmc-events.ts'
import { bootDoor, bootPath } from './doors/boot.ts'
import { Dnsmasq, leaseReader } from './doors/dnsmasq.ts'
import { filesDoor, filesPath } from './doors/files.ts'
import { maasDoor } from './doors/maas.ts'
import { metadataDoor } from './doors/metadata.ts'
import { Federation } from './federation.ts'

export const version: string = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')).version

/** A replica says so often that it lives; /readyz and the fence hang on it. */
const touchEveryMs = 1_000
const houseKeepingEveryMs = 60_000
const catalogueEveryMs = 5_000
const chainEveryMs = 1_000
/** What stood in a subnet's way may have gone. */
const subnetsEveryMs = 15_000
const imagesEveryMs = 15_000
const keptReplicasHours = 24

export interface PartitionOptions {
  settings: PartitionSettings
  log: Log
  /** Instead of a connection of its own, for tests in one process. */
  bus?: Bus
  own: Own
  /** Called when another process has started under this replica's name: this one must end. */
  onSuperseded: () => void
  check?: 'answers' | 'nothing'
}

export interface RunningPartition {
  readonly url: string
  /** By HTTPS, where there is. */
  readonly secureUrl: string | undefined
  readonly core: Core
}

/** Starts a partition; every part is handed to `own` as soon as it runs. Throws with what is wrong where it cannot start. */
export async function startPartition(options: PartitionOptions): Promise<RunningPartition> {
  const { settings, own, log } = options
  const stopping = new AbortController()
  const loops: Promise<void>[] = []

  const applied = await migrate(settings.databaseUrl)
  if (applied.length > 0) log.info({ applied }, 'the database is brought to this release')
  const sql = connect(settings.databaseUrl, { connections: settings.connections, name: `muster ${settings.partition} ${settings.replica}` })
  own('database', () => sql.end({ timeout: 5 }))
  const seal = new Seal(settings.key)
  await checkIdentity(sql, seal, settings.partition)

  const catalogue = new Catalogue({ partition: settings.partition, folder: settings.files, log })
  let rules = settings.rules
  const subnetsBell = new Bell()
  const configuration = new GlobalCopy({
    partition: settings.partition,
    sql,
    trustedKeys: settings.configKeys ?? [],
    onUse: ({ documents }) => {
      const own = documents.partition[settings.partition]
      catalogue.select(own?.operatingSystems)
      rules = rulesWith(settings.rules, own)
      subnetsBell.ring()
    },
    log,
  })
  await configuration.reload()
  catalogue.refresh()
  const auditSql = connectAudit(settings.databaseUrl, `muster audit ${settings.partition} ${settings.replica}`)
  own('connections of the audit log', () => auditSql.end({ timeout: 5 }))
  const certifier = createSigner(seal.certificateSeed(), 'erasure certificate')
  const audit = openAudit(settings, certifier.as('audit log'), auditSql, log)
  await audit.takeOver()
  own('audit log', () => audit.settled())
  const core: Core = {
    partition: settings.partition,
    sql,
    seal,
    certifier,
    audit,
    catalogue,
    memory: new Memory(catalogue),
    configuration,
    shared: settings.sharedKey && createSharedSealer(settings.sharedKey),
    sessions: sessionsHere({ seal, configuration, log }),
    get rules() {
      return rules
    },
    log,
    bells: { engine: new Bell(), power: new Bell(), rotation: new Bell(), log: new Bell() },
  }

  const subnets = new CentralSubnets(core)
  const images = new CentralImages(core)
  const webhooks = new WebhookSender(core, { sharedKey: settings.sharedKey })
  const replica = { name: settings.replica, epoch: 0 }
  const dnsmasq =
    settings.network &&
    new Dnsmasq(core, settings.network, {
      replica: settings.replica,
      // Known only once the port is: hence the late reading.
      place: {
        get baseUrl() {
          return self.url
        },
      },
    })
  // Who asks for a boot script must not be taken for a stranger because we have just started.
  await dnsmasq?.takeRanges()
  const originRules: OriginRules = {
    ...(settings.bootOrigins ?? { trust: 'any', proxies: [] }),
    get served() {
      return dnsmasq?.networks ?? []
    },
  }
  const self = {
    replica,
    version,
    url: '',
    problems: () => [
      ...backend.readiness().flatMap(({ status, detail }) => (status === 'ok' ? [] : [detail])),
      ...(dnsmasq?.problem === undefined ? [] : [dnsmasq.problem]),
      ...federation.problems(),
      ...subnets.problems,
      ...images.problems,
      ...webhooks.problems.values(),
      ...(retention.problem === undefined ? [] : [retention.problem]),
    ],
    settingsProblems: () => [...subnets.problems, ...images.problems],
    fetching: () => images.fetching,
    get weaknesses() {
      return weaknessesOf(originRules)
    },
    dhcp: () => dnsmasq?.given ?? [],
    whyAway: (os: string, arch: string) => images.whyAway(os, arch) ?? federation.whyUnconfigured(),
    webhooks,
  }
  const metrics = createMetrics()
  const retention = retentionOf(core, settings, metrics)
  let seenAt = Date.now()
  const federation = await Federation.open(core, { settings, bus: options.bus, log, own })

  const backend: LocalBackend = new LocalBackend({
    partition: settings.partition,
    handlers: handlers(core, self),
    readiness: () => readiness(seenAt),
  })
  const follower = new LogFollower(core, lastSeq => {
    backend.logHasGrown()
    federation.logHasGrown(lastSeq)
    dnsmasq?.changed()
    webhooks.ring()
  })
  await follower.start()

  addGauges(metrics.registry, core)
  const tokens = openTokens({ file: settings.tokensFile, log })
  own('tokens', () => tokens.close())
  const leased = settings.network ? leaseReader(core, settings.network) : async (macs: readonly string[]) => macs.map(() => [])
  const firstBoots = new FirstBoots(core)
  const machines = {
    origins: new BootOrigins(core, originRules, leased),
    proxies: originRules.proxies,
    firstBoots,
    // Known only once the port is: hence the late reading.
    get baseUrl() {
      return self.url
    },
  }
  const door: RunningDoor = await startDoor({
    backend,
    tokens: tokensOfAll([tokens, configuration.tokens, core.sessions.tokens]),
    log,
    audit,
    version,
    metrics,
    host: settings.host,
    port: settings.port,
    tls: settings.tls,
    ...settings.limits,
    check: options.check ?? 'nothing',
    health: () => ({ partition: settings.partition, replica: settings.replica, bus: federation.describe() }),
    beneath: [
      { name: 'boot files', path: `${filesPath}/`, serve: filesDoor(core) },
      { name: 'boot', path: bootPath, serve: bootDoor(core, machines) },
    ],
    mount: [
      { name: 'bmc events', path: '/bmc-events', app: bmcEventsDoor(core, machines) },
      { name: 'agent', path: '/agent', app: agentDoor(core, machines) },
      { name: 'metadata', path: '/metadata', app: metadataDoor(core, machines) },
      { name: 'maas', path: '/MAAS', app: maasDoor(core, machines) },
    ],
  })
  self.url = settings.url ?? door.url
  replica.epoch = await registerReplica(sql, { name: settings.replica, version, url: self.url })
  own('replica', () => removeReplica(sql, replica))

  own('reports of first boots', () => firstBoots.close())
  const board = new Switchboard(core)
  own('conversations with BMCs', () => board.close())
  own('loops', async () => {
    stopping.abort()
    await Promise.all(loops)
  })
  const every = (name: string, everyMs: number, act: () => Promise<void>) => {
    const look = async () => {
      await act()
      return 'idle' as const
    }
    loops.push(runLoop({ name, bell: new Bell(), everyMs, signal: stopping.signal, log, look }))
  }
  loops.push(
    follower.run(stopping.signal),
    runEngine(core, stopping.signal),
    runPowerWorker(core, board, stopping.signal),
    runPowerMonitor(core, board, stopping.signal, settings.bmcEvents === 'off' ? undefined : () => self.url),
    runRotations(core, board, stopping.signal),
    webhooks.run(stopping.signal),
    runLoop({
      name: 'subnets of the global configuration',
      bell: subnetsBell,
      everyMs: subnetsEveryMs,
      signal: stopping.signal,
      log,
      look: () => subnets.look(),
    }),
    // No bell: partitions hear of a new image together, and do not ask its source together.
    runLoop({
      name: 'images of the global configuration',
      bell: new Bell(),
      everyMs: imagesEveryMs,
      signal: stopping.signal,
      log,
      look: () => images.look(stopping.signal),
    }),
  )
  if (dnsmasq) {
    await dnsmasq.announce()
    loops.push(dnsmasq.run(stopping.signal))
  } else await saveNetworkServices(sql, { replica: settings.replica, addresses: [], ranges: [], beside: [], zone: null })
  every('replica', touchEveryMs, async () => {
    if ((await touchReplica(sql, replica)) === 'superseded' && !stopping.signal.aborted) options.onSuperseded()
    seenAt = Date.now()
  })
  every('house keeping', houseKeepingEveryMs, async () => {
    await closeEmptyAllocations(sql)
    await forgetOldReplicas(sql, keptReplicasHours)
    await forgetOldServices(sql)
    await forgetOldLeases(sql)
  })
  // Replicas that start together look apart from each other, and partitions on one disk too.
  every('retention', houseKeepingEveryMs * (0.75 + Math.random() / 2), () => retention.look(stopping.signal))
  loops.push(
    runLoop({ name: 'audit log', bell: new Bell(), everyMs: chainEveryMs, signal: stopping.signal, log, look: () => audit.chain() }),
  )
  every('catalogue', catalogueEveryMs, async () => {
    refreshCatalogue(core)
  })
  federation.takePart({ backend, replica, version, url: self.url })
  own('door', () => door.close())
  return { url: self.url, secureUrl: door.secureUrl, core }
}

/** What is kept for a time only, and how much of it went. */
function retentionOf(core: Core, { keep = usualKeep }: PartitionSettings, { registry }: ReturnType<typeof createMetrics>): Retention {
  const removed = new Counter({
    name: 'muster_rows_removed_total',
    help: 'Rows that were removed because the time for which they are kept was over.',
    labelNames: ['what'] as const,
    registers: [registry],
  })
  return new Retention(core, { keep, audit: core.audit, onRemoved: (what, count) => removed.inc({ what }, count) })
}

function openAudit({ partition, replica }: PartitionSettings, signer: Signer, sql: Core['sql'], log: Log): AuditLog {
  return new AuditLog({
    partition,
    server: replica,
    run: async act => {
      try {
        return await act(sql)
      } catch (error) {
        throw refusalOfDatabase(error)
      }
    },
    sign: text => signer.sign(text),
    onTrouble: (error, text) => log.error({ err: error }, text),
  })
}

/** A database belongs to one partition, and its secrets to one key. */
async function checkIdentity(sql: Core['sql'], seal: Seal, name: string): Promise<void> {
  const context = 'key check'
  const found = await claimIdentity(sql, { name, key_check: seal.seal(name, context) })
  if (found.name !== name) throw new Error(`this database belongs to partition ${found.name}, not to ${name}`)
  try {
    seal.open(found.key_check, context)
  } catch (cause) {
    throw new Error('MUSTER_KEY is not the key that the secrets in this database are sealed with', { cause })
  }
}

/** The bus is not among the checks: a partition needs nobody. */
function readiness(seenAt: number): ReadinessCheck[] {
  const ageMs = Date.now() - seenAt
  const isSeen = ageMs < touchEveryMs * 2
  return [
    {
      name: 'database',
      status: isSeen ? 'ok' : 'failed',
      detail: isSeen ? 'PostgreSQL answers' : `PostgreSQL has not answered for ${(ageMs / 1000).toFixed(1)} s`,
    },
  ]
}

function addGauges(registry: ReturnType<typeof createMetrics>['registry'], core: Core): void {
  new Gauge({
    name: 'muster_machines',
    help: 'Machines of this partition.',
    registers: [registry],
    collect() {
      this.set(core.memory.candidates.size)
    },
  })
  new Gauge({
    name: 'muster_machines_ready',
    help: 'Machines that can be allocated now.',
    registers: [registry],
    collect() {
      this.set(core.memory.candidates.readyCount)
    },
  })
}
