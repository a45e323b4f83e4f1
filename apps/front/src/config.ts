// The settings of a front.
import {
  authorityPem,
  ConfigError,
  keptFor,
  limitVariables,
  loadConfig,
  nkeySeed,
  publicKeys,
  sealingKey,
  secret,
  tlsVariables,
  variable,
  wholeNumber,
} from '@muster/server/config'
import { type LogLevel, logLevels } from '@muster/server/log'
import { tokensFileHelp } from '@muster/server/tokens'
import { natsPublicKey } from '@muster/shared/global/documents'
import { partitionNamePattern } from '@muster/shared/ids'
import type { Secret } from '@muster/shared/secret'
import { z } from 'zod'

export interface FrontSettings {
  readonly name: string
  readonly natsUrl: string
  readonly natsToken: Secret | undefined
  /** The text of a NATS credentials file. */
  readonly natsCredentials: Secret | undefined
  readonly natsNkey: Secret | undefined
  /** The authority by whose certificates the broker is believed, PEM. */
  readonly natsCa: string | undefined
  /** The accepted partitions; undefined: all that make themselves heard. */
  readonly partitions: readonly string[] | undefined
  /** The Ed25519 key, 32 bytes in hex, that signs the global configuration; undefined: this front has none. */
  readonly configKey: Secret | undefined
  /** Public keys that are trusted beside it. */
  readonly configKeys: readonly string[]
  /** The key that fronts and partitions share, which seals the secrets in the global configuration. */
  readonly sharedKey: Secret | undefined
  /** The database of the global configuration, which all fronts share. */
  readonly globalDatabaseUrl: Secret | undefined
  /** Where partitions that enrol find the bus; undefined: where this front finds it. */
  readonly natsPublicUrl: string | undefined
  /** nats-server's list of who may come in, written by this front. */
  readonly brokerFile: string | undefined
  readonly brokerPidFile: string | undefined
  /** Public nkeys of the other fronts. */
  readonly brokerFronts: readonly string[]
  /** How long entries of the fronts' audit log are kept, milliseconds; undefined: for ever. */
  readonly keepAudit: number | undefined
  /** Undefined: the global configuration alone says who may come in. */
  readonly tokensFile: string | undefined
  /** Where the first token of a new federation is written; undefined: it is shown on the terminal. */
  readonly firstTokenFile: string | undefined
  readonly port: number
  readonly tls: 'files' | 'own'
  readonly tlsFolder: string | undefined
  readonly tlsPort: number
  readonly tlsNames: readonly string[]
  readonly host: string
  readonly requestsPerSecond: number
  readonly requestsAtOnce: number
  readonly connectionsMost: number
  readonly logLevel: LogLevel
}

const partitionList = z
  .string()
  .transform(text =>
    text
      .split(',')
      .map(name => name.trim())
      .filter(name => name !== ''),
  )
  .refine(names => names.every(name => partitionNamePattern.test(name)), 'must be names of partitions such as lon1,par2')
  .transform(names => [...new Set(names)])

/** nkeys of fronts, with commas. */
const natsPublicKeys = z
  .string()
  .default('')
  .transform(text => text.split(',').filter(Boolean))
  .pipe(z.array(natsPublicKey))

const variables = {
  name: variable('MUSTER_NAME', z.string().min(1).max(63).default('front')),
  natsUrl: variable('NATS_URL', z.string().min(1)),
  natsToken: secret('NATS_TOKEN', z.string().min(1).optional()),
  natsCredentials: secret('NATS_CREDENTIALS', z.string().min(1).optional()),
  natsNkey: secret('NATS_NKEY', nkeySeed),
  natsCa: variable('NATS_CA', authorityPem),
  partitions: variable('MUSTER_PARTITIONS', partitionList.optional()),
  configKey: secret(
    'MUSTER_CONFIG_KEY',
    z
      .string()
      .regex(/^[0-9a-f]{64}$/, 'must be 32 bytes in hex: openssl rand -hex 32')
      .optional(),
  ),
  configKeys: variable('MUSTER_CONFIG_PUBLIC_KEY', publicKeys),
  sharedKey: secret('MUSTER_SHARED_KEY', sealingKey('32 bytes in hex or base64').optional()),
  globalDatabaseUrl: secret('MUSTER_GLOBAL_DATABASE_URL', z.string().optional()),
  natsPublicUrl: variable('MUSTER_NATS_PUBLIC_URL', z.string().optional()),
  brokerFile: variable('MUSTER_NATS_AUTHORIZATION_FILE', z.string().optional()),
  brokerPidFile: variable('MUSTER_NATS_PID_FILE', z.string().optional()),
  brokerFronts: variable('MUSTER_NATS_FRONTS', natsPublicKeys),
  keepAudit: variable('MUSTER_KEEP_AUDIT', keptFor(undefined, '30d')),
  tokensFile: variable('MUSTER_TOKENS_FILE', z.string().min(1).optional()),
  firstTokenFile: variable('MUSTER_FIRST_TOKEN_FILE', z.string().min(1).optional()),
  ...tlsVariables,
  ...limitVariables,
  port: variable('PORT', wholeNumber({ min: 0, max: 65_535 }).default(5240)),
  host: variable('HOST', z.string().min(1).default('127.0.0.1')),
  logLevel: variable('LOG_LEVEL', z.enum(logLevels).default('info')),
}

/** Reads a front's settings; `lines` and `unknown` are for its log. Throws ConfigError naming all that are wrong. */
export function frontConfig(environment: Readonly<Record<string, string | undefined>>): {
  settings: FrontSettings
  lines: readonly string[]
  unknown: readonly string[]
} {
  const config = loadConfig(variables, environment)
  const { tokensFile, configKey, globalDatabaseUrl } = config.settings
  if (tokensFile === undefined && (configKey === undefined || globalDatabaseUrl === undefined))
    throw new ConfigError([
      `MUSTER_TOKENS_FILE is not set: ${tokensFileHelp}. It may be left out where MUSTER_CONFIG_KEY and MUSTER_GLOBAL_DATABASE_URL are set: users and tokens are kept there`,
    ])
  return config
}
