// The settings of a partition: the only file beside main.ts that knows the environment.
import { hostname } from 'node:os'
import path from 'node:path'
import {
  authorityPem,
  ConfigError,
  keptFor,
  keyBytes,
  limitsOf,
  limitVariables,
  loadConfig,
  nkeySeed,
  publicKeys,
  type ServerLimits,
  sealingKey,
  secret,
  tlsOf,
  tlsVariables,
  variable,
  wholeNumber,
} from '@muster/server/config'
import type { TlsOptions } from '@muster/server/http/tls'
import { logLevels } from '@muster/server/log'
import { tokensFileHelp } from '@muster/server/tokens'
import { durationMs, durationPattern, durationText } from '@muster/shared/duration'
import { partitionNamePattern } from '@muster/shared/ids'
import { lifeCycle, type State, states } from '@muster/shared/life-cycle'
import { enlistedRules, erasePolicies } from '@muster/shared/machine'
import { domain } from '@muster/shared/network'
import { scriptName } from '@muster/shared/scripts'
import type { Secret } from '@muster/shared/secret'
import { plainFingerprint } from '@muster/shared/trust/authority'
import { z } from 'zod'
import { bootTrusts, type OriginRules } from './domain/boot-origin.ts'
import { agentParameters } from './domain/boot-plan.ts'
import { defaultRules, type Rules } from './domain/core.ts'
import { type DhcpShare, dhcpRanges, dhcpShare, type NetworkSettings, proxiedNetworks, shareOfRanges } from './domain/dnsmasq.ts'
import { type Keep, usualKeep } from './domain/retention.ts'

const duration = (fallbackMs: number) =>
  z
    .string()
    .default(durationText(fallbackMs))
    .refine(text => durationPattern.test(text), 'must be a duration such as 500ms, 30s or 2m')
    .transform(durationMs)

/** `deploying=2m,commissioning=5m`: replaces deadlines of the life-cycle table, for labs and slow hardware. */
const deadlines = z
  .string()
  .default('')
  .transform((text, context) => {
    const chosen: Partial<Record<State, number>> = {}
    for (const part of text.split(',').filter(Boolean)) {
      const [name, limit] = part.split('=', 2)
      const state = states.find(known => known === name)
      if (!state || limit === undefined || !durationPattern.test(limit) || lifeCycle[state].deadline === undefined)
        context.addIssue({ code: 'custom', message: `"${part}" is not <state>=<duration> of a state that has a deadline` })
      else chosen[state] = durationMs(limit)
    }
    return chosen
  })

const folder = (fallback: string) =>
  z
    .string()
    .default(fallback)
    .transform(written => path.resolve(written))

const words = (shape: z.ZodType<string, string>, fallback: readonly string[] = []) =>
  z
    .string()
    .default(fallback.join(','))
    .transform(text => text.split(',').filter(Boolean))
    .pipe(z.array(shape))

const variables = {
  partition: variable(
    'MUSTER_PARTITION',
    z
      .string('the name of this partition, e.g. lon1')
      .regex(partitionNamePattern, 'must be a lower-case DNS label of at most 20 characters'),
  ),
  replica: variable('MUSTER_REPLICA', z.string().max(64).optional()),
  databaseUrl: secret('DATABASE_URL', z.string('the PostgreSQL of this partition, e.g. postgres://muster@db/lon1')),
  connections: variable('MUSTER_DATABASE_CONNECTIONS', wholeNumber({ min: 2, max: 200 }).optional().default(12)),
  natsUrl: variable('NATS_URL', z.string().optional()),
  natsToken: secret('NATS_TOKEN', z.string().optional()),
  natsCredentials: secret('NATS_CREDENTIALS', z.string().optional()),
  natsNkey: secret('NATS_NKEY', nkeySeed),
  natsCa: variable('NATS_CA', authorityPem),
  key: secret('MUSTER_KEY', sealingKey('32 bytes in hex or base64 that seal secrets at rest: openssl rand -hex 32')),
  sharedKey: secret('MUSTER_SHARED_KEY', sealingKey('32 bytes in hex or base64').optional()),
  configKeys: variable('MUSTER_CONFIG_PUBLIC_KEY', publicKeys),
  joinUrl: variable('MUSTER_JOIN_URL', z.url({ protocol: /^https?$/ }).optional()),
  joinToken: secret('MUSTER_JOIN_TOKEN', z.string().min(1).optional()),
  joinCa: variable('MUSTER_JOIN_CA', authorityPem),
  joinFingerprint: variable(
    'MUSTER_JOIN_FINGERPRINT',
    z
      .string()
      .refine(
        text => plainFingerprint(text) !== undefined,
        'must be the SHA-256 fingerprint of an authority: 64 hex digits, with or without colons',
      )
      .optional(),
  ),
  tokensFile: variable('MUSTER_TOKENS_FILE', z.string(tokensFileHelp)),
  files: variable('MUSTER_FILES', folder('files')),
  host: variable('HOST', z.string().default('127.0.0.1')),
  ...tlsVariables,
  port: variable('PORT', wholeNumber({ min: 0, max: 65535 }).optional().default(5250)),
  url: variable('MUSTER_URL', z.url({ protocol: /^https?$/ }).optional()),
  logLevel: variable('LOG_LEVEL', z.enum(logLevels).default('info')),
  deadlinesMs: variable('MUSTER_DEADLINES', deadlines),
  agentSilenceMs: variable('MUSTER_AGENT_SILENCE', duration(defaultRules.agentSilenceMs)),
  agentStartMs: variable('MUSTER_AGENT_START', duration(defaultRules.agentStartMs)),
  agentParameters: variable('MUSTER_AGENT_KERNEL_PARAMETERS', z.string().default(defaultRules.agentParameters).pipe(agentParameters)),
  erase: variable('MUSTER_ERASE', z.enum(erasePolicies).default(defaultRules.erase)),
  tests: variable(
    'MUSTER_TESTS',
    words(scriptName, defaultRules.tests).transform(names => (names.join() === 'none' ? [] : names)),
  ),
  powerCheckMs: variable('MUSTER_POWER_CHECK', duration(defaultRules.powerCheckMs)),
  powerTransitionMs: variable('MUSTER_POWER_TRANSITION_CHECK', duration(defaultRules.powerTransitionMs)),
  powerChangeMs: variable('MUSTER_POWER_CHANGE', duration(defaultRules.powerChangeMs)),
  powerSoftMs: variable('MUSTER_POWER_SOFT', duration(defaultRules.powerSoftMs)),
  powerRestartMs: variable('MUSTER_POWER_RESTART', duration(defaultRules.powerRestartMs)),
  bmcEvents: variable('MUSTER_BMC_EVENTS', z.enum(['subscribe', 'off']).default('subscribe')),
  enlistedMost: variable('MUSTER_ENLISTED_MOST', wholeNumber({ min: 0, max: 1_000_000 }).optional().default(defaultRules.enlistedMost)),
  enlisted: variable('MUSTER_ENLISTED', z.enum(enlistedRules).default(defaultRules.enlisted)),
  dhcpInterfaces: variable(
    'MUSTER_DHCP_INTERFACES',
    words(z.string().regex(/^[A-Za-z0-9_.-]{1,15}$/, 'is not the name of a network interface')),
  ),
  dhcpRanges: variable('MUSTER_DHCP_RANGES', dhcpRanges),
  dhcpShare: variable('MUSTER_DHCP_SHARE', dhcpShare),
  dhcpProxy: variable('MUSTER_DHCP_PROXY', proxiedNetworks),
  dnsZone: variable('MUSTER_DNS_ZONE', domain.optional()),
  dnsUpstreams: variable('MUSTER_DNS_UPSTREAMS', words(z.union([z.ipv4(), z.ipv6()], 'is not an IP address'))),
  networkFolder: variable('MUSTER_NETWORK_DIR', folder('network')),
  keepEvents: variable('MUSTER_KEEP_EVENTS', keptFor(usualKeep.eventsMs, '1d')),
  keepOrders: variable('MUSTER_KEEP_ORDERS', keptFor(usualKeep.ordersMs, '1d')),
  // A day more than keys are remembered.
  keepAllocations: variable('MUSTER_KEEP_ALLOCATIONS', keptFor(usualKeep.allocationsMs, '8d')),
  keepAudit: variable('MUSTER_KEEP_AUDIT', keptFor(usualKeep.auditMs, '30d')),
  bootTrust: variable('MUSTER_BOOT_TRUST', z.enum(bootTrusts).optional()),
  bootProxies: variable('MUSTER_BOOT_PROXIES', words(z.union([z.ipv4(), z.ipv6()], 'is not an IP address'), ['127.0.0.1', '::1'])),
  ...limitVariables,
  place: variable('MUSTER_PLACE', z.enum(['production', 'lab']).default(defaultRules.place)),
} as const

/** The front to be accepted by. */
export interface JoinSettings {
  readonly url: string
  readonly token: Secret
  /** How it is believed: by certificates of this authority (PEM), or of the one with this SHA-256 fingerprint; else by those that this computer knows. */
  readonly ca?: string | undefined
  readonly fingerprint?: string | undefined
}

export interface PartitionSettings {
  partition: string
  replica: string
  databaseUrl: string
  connections: number
  /** `credentials`: the text of a NATS credentials file; `nkey`: the seed of one. */
  nats: { url: string; token: string | undefined; credentials?: string | undefined; nkey?: string | undefined } | undefined
  /** The authority by whose certificates the bus is believed, PEM; undefined: the one that a front handed over, or those that this computer knows. */
  natsCa?: string | undefined
  key: Buffer
  /** The key that fronts and partitions share, 32 bytes: opens the secrets of the global configuration. */
  sharedKey?: Buffer | undefined
  /** Public keys of the fronts, hex: whose global configuration is taken. */
  configKeys?: readonly string[]
  /** The front to be accepted by; undefined: what to know stands in the settings. */
  join?: JoinSettings | undefined
  tokensFile: string
  files: string
  host: string
  port: number
  /** HTTPS beside HTTP. */
  tls?: TlsOptions | undefined
  /** What clients may ask of this server; the usual where left out. */
  limits?: ServerLimits
  /** How machines and people reach this partition; undefined: where it listens. */
  url: string | undefined
  /** Whether BMCs that can are asked to post changes to `url`. Default `subscribe`. */
  bmcEvents?: 'subscribe' | 'off'
  /** DHCP, TFTP and DNS by dnsmasq; undefined: somebody else's. */
  network?: NetworkSettings | undefined
  /** How long what has ended is kept; the usual times where left out. */
  keep?: Keep | undefined
  /** Who is given boot scripts with tokens; undefined: whoever asks first. */
  bootOrigins?: Omit<OriginRules, 'served'> | undefined
  rules: Rules
}

/** Reads the settings. Throws ConfigError naming every variable that is wrong. */
export function readSettings(environment: NodeJS.ProcessEnv) {
  const { settings: given, lines, unknown } = loadConfig(variables, environment)
  const network = networkServices(given)
  const settings: PartitionSettings = {
    partition: given.partition,
    replica: given.replica ?? `${hostname()}-${given.port}`,
    databaseUrl: given.databaseUrl.reveal(),
    connections: given.connections,
    nats:
      given.natsUrl === undefined
        ? undefined
        : {
            url: given.natsUrl,
            token: given.natsToken?.reveal(),
            credentials: given.natsCredentials?.reveal(),
            nkey: given.natsNkey?.reveal(),
          },
    natsCa: given.natsCa,
    key: keyBytes(given.key.reveal()),
    sharedKey: given.sharedKey && keyBytes(given.sharedKey.reveal()),
    configKeys: given.configKeys,
    join: joinOf(given),
    tokensFile: given.tokensFile,
    files: given.files,
    host: given.host,
    port: given.port,
    tls: tlsOf(given),
    limits: limitsOf(given),
    url: given.url?.replace(/\/$/, ''),
    bmcEvents: given.bmcEvents,
    keep: { eventsMs: given.keepEvents, ordersMs: given.keepOrders, allocationsMs: given.keepAllocations, auditMs: given.keepAudit },
    network,
    // Where addresses are given here, another one is a stranger's, unless somebody says otherwise.
    bootOrigins: { trust: given.bootTrust ?? (network && network.rule !== 'proxy' ? 'none' : 'any'), proxies: given.bootProxies },
    rules: {
      deadlinesMs: given.deadlinesMs,
      agentSilenceMs: given.agentSilenceMs,
      agentStartMs: given.agentStartMs,
      agentParameters: given.agentParameters,
      erase: given.erase,
      tests: given.tests,
      powerCheckMs: given.powerCheckMs,
      powerTransitionMs: given.powerTransitionMs,
      powerChangeMs: given.powerChangeMs,
      powerSoftMs: given.powerSoftMs,
      powerRestartMs: given.powerRestartMs,
      enlisted: given.enlisted,
      enlistedMost: given.enlistedMost,
      place: given.place,
    },
  }
  return { settings, lines, unknown, logLevel: given.logLevel }
}

/** Throws ConfigError where the ways into a federation are mixed. */
function joinOf({
  joinUrl: url,
  joinToken: token,
  joinCa: ca,
  joinFingerprint: fingerprint,
  natsUrl,
}: {
  joinUrl: string | undefined
  joinToken: Secret | undefined
  joinCa: string | undefined
  joinFingerprint: string | undefined
  natsUrl: string | undefined
}): PartitionSettings['join'] {
  const believed = [ca && 'MUSTER_JOIN_CA', fingerprint && 'MUSTER_JOIN_FINGERPRINT'].filter(Boolean)
  if (url === undefined) {
    const [left] = [token && 'MUSTER_JOIN_TOKEN', ...believed].filter(Boolean)
    if (left !== undefined) throw new ConfigError([`${left} is set, but not MUSTER_JOIN_URL: which front is to be asked?`])
    return undefined
  }
  if (natsUrl !== undefined)
    throw new ConfigError(['MUSTER_JOIN_URL and NATS_URL are both set: a partition that is accepted by a front is told where the bus is'])
  if (token === undefined)
    throw new ConfigError(['MUSTER_JOIN_TOKEN is not set: MUSTER_JOIN_URL is asked with one (muster partition token create)'])
  if (believed.length > 1)
    throw new ConfigError(['MUSTER_JOIN_CA and MUSTER_JOIN_FINGERPRINT are both set, and say the same: set one of them'])
  if (believed.length > 0 && !/^https:/i.test(url))
    throw new ConfigError([`${believed[0]} is set, but MUSTER_JOIN_URL is not https: a front shows no certificate by HTTP`])
  return { url: url.replace(/\/$/, ''), token, ca, fingerprint }
}

/** Throws ConfigError where only a part of what it takes is there, or what does not go together. */
function networkServices(given: {
  dhcpInterfaces: string[]
  dhcpRanges: NetworkSettings['ranges'][number][]
  dhcpShare: DhcpShare
  dhcpProxy: string[]
  dnsZone: string | undefined
  dnsUpstreams: string[]
  networkFolder: string
  url: string | undefined
}): NetworkSettings | undefined {
  const {
    dhcpInterfaces: interfaces,
    dhcpRanges: ranges,
    dhcpShare: share,
    dhcpProxy: beside,
    dnsZone: zone,
    dnsUpstreams: upstreams,
    networkFolder: folder,
    url,
  } = given
  const isWanted = interfaces.length > 0
  const isProxy = beside.length > 0
  const problems = [
    ...(isWanted && ranges.length > 0 && shareOfRanges(ranges, share).length === 0
      ? [`MUSTER_DHCP_SHARE leaves nothing to give: no range has ${share.of} addresses or more`]
      : []),
    ...(isWanted && url === undefined
      ? ['MUSTER_URL is not set: MUSTER_DHCP_INTERFACES has DHCP served, and machines are told this URL']
      : []),
    ...(!isWanted && ranges.length > 0 ? ['MUSTER_DHCP_RANGES is set, but not MUSTER_DHCP_INTERFACES: on which networks?'] : []),
    ...(!isWanted && isProxy ? ['MUSTER_DHCP_PROXY is set, but not MUSTER_DHCP_INTERFACES: on which networks?'] : []),
    ...(!isWanted && zone !== undefined
      ? ['MUSTER_DNS_ZONE is set, but not MUSTER_DHCP_INTERFACES: names are those of machines that DHCP serves']
      : []),
    ...(zone === undefined && upstreams.length > 0 ? ['MUSTER_DNS_UPSTREAMS is set, but not MUSTER_DNS_ZONE: DNS is off'] : []),
    ...(isProxy && ranges.length > 0
      ? ['MUSTER_DHCP_PROXY and MUSTER_DHCP_RANGES are both set: another server gives the addresses, or this one does']
      : []),
    ...(isProxy && share.of > 1
      ? ['MUSTER_DHCP_SHARE is set, and with MUSTER_DHCP_PROXY there are no addresses to share; replicas all say the same']
      : []),
    ...(isProxy && url !== undefined && !url.includes('.')
      ? [
          'MUSTER_URL has no dot: beside another DHCP server dnsmasq would take it for the beginning of a name; give an address, or a name with its domain',
        ]
      : []),
    ...(isProxy && isWanted && zone !== undefined
      ? [
          'MUSTER_DNS_ZONE is set, and with MUSTER_DHCP_PROXY nobody here knows which machine has which address: let your DHCP server fill your DNS',
        ]
      : []),
  ]
  if (problems.length > 0) throw new ConfigError(problems)
  const rule = isProxy ? 'proxy' : share.of === 1 ? 'alone' : 'shared'
  return isWanted ? { interfaces, ranges, share, beside, rule, zone, upstreams, folder } : undefined
}
