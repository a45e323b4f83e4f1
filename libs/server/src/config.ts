// A server's settings: environment variables, each with a schema, and `<NAME>_FILE` for those that are kept in a file (secrets of Docker,
// Kubernetes and systemd). Everything that is wrong is said at once.
import { X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { hostname, networkInterfaces } from 'node:os'
import { type Duration, durationMs, durationPattern, durationText } from '@muster/shared/duration'
import { Secret } from '@muster/shared/secret'
import { z } from 'zod'
import { type ConnectionLimits, type RateLimit, usualLimits, usualRate } from './http/limits.ts'

interface Variable<Value> {
  readonly name: string
  readonly schema: z.ZodType<unknown, string | undefined>
  readonly kind: 'plain' | 'secret'
  /** Only carries the type. */
  readonly value?: Value
}

/** A setting that may be printed. Its schema gets the variable's text, or undefined where it is not set (or empty). */
export function variable<Value>(name: string, schema: z.ZodType<Value, string | undefined>): Variable<Value> {
  return { name, schema, kind: 'plain' }
}

/** A setting that must not be printed: it becomes a {@link Secret}. */
export function secret<Value extends string | undefined>(
  name: string,
  schema: z.ZodType<Value, string | undefined>,
): Variable<Secret | (undefined extends Value ? undefined : never)> {
  return { name, schema, kind: 'secret' }
}

/** A whole number within limits, for {@link variable}. */
export function wholeNumber(limits: { min: number; max: number }) {
  return z
    .string()
    .regex(/^\d{1,15}$/, 'must be a whole number')
    .transform(Number)
    .pipe(z.number().min(limits.min).max(limits.max))
}

/** How long something is kept, for {@link variable}: a duration, or `for-ever` (undefined). */
export function keptFor(fallbackMs: number | undefined, least: Duration) {
  return z
    .string()
    .default(fallbackMs === undefined ? 'for-ever' : durationText(fallbackMs))
    .refine(text => text === 'for-ever' || (durationPattern.test(text) && durationMs(text) >= durationMs(least)), {
      message: `must be a duration of at least ${least}, such as 90d, or for-ever`,
    })
    .transform(text => (text === 'for-ever' ? undefined : durationMs(text)))
}

/** The public keys whose global configuration is taken, for {@link variable}; several, with commas, while one is changed for another. */
export const publicKeys = z
  .string()
  .default('')
  .transform(text => text.split(',').filter(Boolean))
  .refine(keys => keys.every(key => /^[0-9a-f]{64}$/.test(key)), 'must be Ed25519 public keys, 64 hex digits each, with commas')

/** What clients may ask of a server: see docs/limits.md. */
export const limitVariables = {
  requestsPerSecond: variable(
    'MUSTER_REQUESTS_PER_SECOND',
    wholeNumber({ min: 0, max: 1_000_000 }).optional().default(usualRate.perSecond),
  ),
  requestsAtOnce: variable('MUSTER_REQUESTS_AT_ONCE', wholeNumber({ min: 1, max: 1_000_000 }).optional().default(usualRate.atOnce)),
  connectionsMost: variable(
    'MUSTER_CONNECTIONS_MOST',
    wholeNumber({ min: 16, max: 1_000_000 }).optional().default(usualLimits.connections),
  ),
}

/** What the door takes of them. */
export function limitsOf(given: { requestsPerSecond: number; requestsAtOnce: number; connectionsMost: number }): ServerLimits {
  const { requestsPerSecond: perSecond, requestsAtOnce: atOnce, connectionsMost: connections } = given
  return { rateLimit: perSecond === 0 ? 'none' : { perSecond, atOnce }, limits: { connections } }
}

export interface ServerLimits {
  readonly rateLimit: RateLimit | 'none'
  readonly limits: Pick<ConnectionLimits, 'connections'>
}

/** HTTPS beside HTTP: a folder with tls.crt and tls.key, the port, and whether the server makes the certificate itself, for which names. */
export const tlsVariables = {
  tls: variable('MUSTER_TLS', z.enum(['files', 'own']).default('files')),
  tlsFolder: variable('MUSTER_TLS_DIR', z.string().optional()),
  tlsPort: variable('MUSTER_TLS_PORT', wholeNumber({ min: 0, max: 65_535 }).optional().default(8443)),
  tlsNames: variable(
    'MUSTER_TLS_NAMES',
    z
      .string()
      .default('')
      .transform(text => text.split(',').filter(Boolean))
      .refine(
        names => names.every(name => isIP(name) !== 0 || /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/i.test(name)),
        'must be DNS names and IP addresses, with commas',
      ),
  ),
} as const

export interface TlsGiven {
  readonly tls: 'files' | 'own'
  readonly tlsFolder: string | undefined
  readonly tlsPort: number
  readonly tlsNames: readonly string[]
  /** Where the server listens. */
  readonly host: string
  /** How it is reached, where that is set. */
  readonly url?: string | undefined
}

/** What the door takes of them; undefined: no HTTPS. Throws {@link ConfigError} where certificates are to be made nowhere. */
export function tlsOf(given: TlsGiven) {
  const { tlsFolder: folder, tlsPort: port } = given
  if (folder !== undefined) return { folder, port, own: given.tls === 'own' ? { names: ownNames(given) } : undefined }
  if (given.tls === 'own')
    throw new ConfigError(['MUSTER_TLS_DIR is not set: MUSTER_TLS=own makes certificates, and keeps them in which folder?'])
  return undefined
}

/** Names that are given, else this host's: by which it calls itself, where it listens, and how it is said to be reached. */
function ownNames({ tlsNames, host, url }: TlsGiven): string[] {
  if (tlsNames.length > 0) return [...tlsNames]
  const isEverywhere = host === '0.0.0.0' || host === '::'
  // Link-local addresses are no use without a zone, which no certificate has.
  const addresses = Object.values(networkInterfaces()).flatMap(each =>
    (each ?? []).map(({ address }) => address).filter(address => !/^fe80:/i.test(address)),
  )
  const reached = url === undefined ? [] : [new URL(url).hostname.replace(/^\[|\]$/g, '')]
  return [...new Set([...reached, hostname(), 'localhost', '127.0.0.1', '::1', ...(isEverywhere ? addresses : [host])])].map(name =>
    name.toLowerCase(),
  )
}

/** Certificates of an authority, for {@link variable}: PEM, or the name of a file that holds it. */
export const authorityPem = z
  .string()
  .transform((given, context) => {
    try {
      const pem = given.includes('-----BEGIN ') ? given : readFileSync(given, 'utf8')
      const found = pem.match(/-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g) ?? []
      for (const each of found) new X509Certificate(each)
      if (found.length > 0) return found.map(each => `${each}\n`).join('')
      context.addIssue({ code: 'custom', message: 'holds no certificate (PEM)' })
    } catch (error) {
      context.addIssue({ code: 'custom', message: (error as Error).message })
    }
    return z.NEVER
  })
  .optional()

/** The seed of an nkey of kind user, with which a server shows the broker who it is. */
export const nkeySeed = z
  .string()
  .regex(/^SU[A-Z2-7]{56}$/, 'must be the seed of an nkey (SU…): muster nats key --out FILE')
  .optional()

/** The text of a sealing key, for {@link secret}; {@link keyBytes} reads it. `what` says what it is for where it is not set. */
export function sealingKey(what: string) {
  return z.string(what).refine(text => keyBytes(text).length === 32, 'must be 32 bytes in hex or base64: openssl rand -hex 32')
}

/** A sealing key as bytes, whichever way it is written. */
export function keyBytes(text: string): Buffer {
  return Buffer.from(text, /^[0-9a-fA-F]{64}$/.test(text) ? 'hex' : 'base64')
}

export type Settings<Variables extends Record<string, Variable<unknown>>> = {
  readonly [Key in keyof Variables]: Variables[Key] extends Variable<infer Value> ? Value : never
}

/** Settings that cannot be used; the message has a line per variable. */
export class ConfigError extends Error {
  readonly problems: readonly string[]
  constructor(problems: readonly string[]) {
    super(`these settings are wrong:\n${problems.map(problem => `  ${problem}`).join('\n')}`)
    this.name = 'ConfigError'
    this.problems = problems
  }
}

export interface Config<Variables extends Record<string, Variable<unknown>>> {
  readonly settings: Settings<Variables>
  /** The settings in force, as `NAME=value`, secrets masked: fit for a log. */
  readonly lines: readonly string[]
  /** Variables that look like ours (`MUSTER_…`) and are not: a misspelling, most likely. */
  readonly unknown: readonly string[]
}

/**
 * Reads the settings from `environment`. A variable that is empty counts as not set; `NAME_FILE` names a file whose content, without its last
 * line break, is the value. Throws {@link ConfigError} naming every variable that is wrong.
 */
export function loadConfig<Variables extends Record<string, Variable<unknown>>>(
  variables: Variables,
  environment: Readonly<Record<string, string | undefined>>,
): Config<Variables> {
  const problems: string[] = []
  const lines: string[] = []
  const settings: Record<string, unknown> = {}
  for (const [key, { name, schema, kind }] of Object.entries(variables)) {
    const { text, problem } = textOf(name, environment)
    const parsed = schema.safeParse(text)
    if (problem !== undefined) problems.push(problem)
    else if (!parsed.success) {
      const reasons = parsed.error.issues.map(issue => issue.message).join(', ')
      problems.push(
        text === undefined
          ? `${name} is not set: ${reasons}`
          : `${name}${kind === 'plain' ? `="${inOneLine(withoutPassword(text))}"` : ''}: ${reasons}`,
      )
    } else {
      settings[key] = kind === 'secret' && parsed.data !== undefined ? new Secret(String(parsed.data)) : parsed.data
      // As it was written: what a schema makes of it (milliseconds, lists) reads worse.
      const written = text ?? (typeof parsed.data === 'object' ? '' : String(parsed.data ?? ''))
      const shown = kind === 'secret' && parsed.data !== undefined ? '***' : inOneLine(withoutPassword(written))
      lines.push(`${name}=${shown}${text === undefined ? ' (default)' : ''}`)
    }
  }
  if (problems.length > 0) throw new ConfigError(problems)
  const known = new Set(Object.values(variables).flatMap(({ name }) => [name, `${name}_FILE`]))
  const unknown = Object.keys(environment).filter(name => name.startsWith('MUSTER_') && !known.has(name))
  return { settings: settings as Settings<Variables>, lines, unknown }
}

/** A certificate is not for reading. */
function inOneLine(text: string): string {
  const [first = '', ...more] = text.trim().split('\n')
  return more.length > 0 ? `${first}…` : first
}

/** A setting that may be printed may hold a URL, and a URL a user's name and password. */
function withoutPassword(text: string): string {
  return text.replace(/\b([a-z][a-z0-9+.-]*:\/\/)[^/?#\s,]*@/gi, '$1***@')
}

function textOf(name: string, environment: Readonly<Record<string, string | undefined>>): { text?: string; problem?: string } {
  const text = environment[name] || undefined
  const file = environment[`${name}_FILE`] || undefined
  if (file === undefined) return text === undefined ? {} : { text }
  if (text !== undefined) return { problem: `${name} and ${name}_FILE are both set; use one` }
  try {
    return { text: readFileSync(file, 'utf8').replace(/\r?\n$/, '') }
  } catch (cause) {
    return { problem: `${name}_FILE: ${(cause as Error).message}` }
  }
}
