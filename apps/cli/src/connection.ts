// Which server a command talks to, and with which token. Flags come before the environment, the environment before the profile, the
// profile before what `npm start` left in this folder. A token goes only to the server it was given for.
import { readFile } from 'node:fs/promises'
import { type Client, createClient } from '@muster/shared/client'
import { contract } from '@muster/shared/contract/contract'
import { plainFetch } from '@muster/shared/trust/plain-fetch'
import type { Command } from 'commander'
import { type Cli, globalsOf, remark } from './cli.ts'
import { CliError } from './exit-codes.ts'
import { permissionWarning, readConfig, readLocalLogin } from './profiles.ts'

export interface Login {
  readonly url: string
  readonly token: string
  /** The authority whose certificates the server is believed by, PEM. */
  readonly ca?: string | undefined
  /** Where both come from, for -v. */
  readonly from: string
}

export interface Connection extends Login {
  readonly client: Client
}

/** The contents of a token file, without the newline at its end. */
export async function readToken(path: string): Promise<string> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    throw new CliError('usage', `read the token file ${path}: ${(error as Error).message}`, { cause: error })
  }
  return tokenIn(text, `the token file ${path}`)
}

/** The token in a text that came from `source`. Says what is wrong without repeating the text. */
export function tokenIn(text: string, source: string): string {
  const token = text.trim()
  if (!/^[\x21-\x7e]+$/.test(token)) throw new CliError('usage', `${source} must hold one token and nothing else`)
  return token
}

/** The URL of a server without a slash at its end. */
export function serverUrl(text: string): string {
  const url = URL.parse(/^[a-z][a-z0-9+.-]*:\/\//i.test(text) ? text : `http://${text}`)
  if (!url || !['http:', 'https:'].includes(url.protocol) || url.username || url.search || url.hash)
    throw new CliError('usage', `"${text}" is not the URL of a server such as https://muster.example.org`)
  return url.href.replace(/\/+$/, '')
}

/** Finds server and token. Throws CliError saying what is missing and how to give it. */
export async function findLogin(cli: Cli, command: Command): Promise<Login> {
  const globals = globalsOf(command)
  const config = await readConfig(cli)
  if (config) {
    const warning = await permissionWarning(cli)
    if (warning) remark(cli, `muster: ${warning}`)
  }
  const name = globals.profile ?? (cli.env.MUSTER_PROFILE || config?.current)
  const profile = name === undefined ? undefined : config?.profiles[name]
  if (name !== undefined && !profile && (globals.profile ?? cli.env.MUSTER_PROFILE))
    throw new CliError('usage', `there is no profile "${name}"`, { hint: 'see them with: muster profile list' })
  const local = config ? undefined : await readLocalLogin(cli)

  // A profile named on the command line is meant whole; the environment's leftovers do not mix into it.
  const environment = globals.profile === undefined ? cli.env : {}
  const sources: readonly { url: string | undefined; from: string }[] = [
    { url: globals.url, from: '--url' },
    { url: environment.MUSTER_URL || undefined, from: 'MUSTER_URL' },
    { url: profile?.url, from: `profile ${name}` },
    { url: local?.url, from: '.muster/cli.json' },
  ]
  const source = sources.find(({ url }) => url !== undefined)
  if (!source?.url)
    throw new CliError('usage', 'no server is known', {
      hint: 'log in with: muster login URL --user NAME, or --token-file FILE (or set MUSTER_URL)',
    })
  const url = serverUrl(source.url)

  const tokens: readonly { token: () => Promise<string> | string; from: string; fits: boolean }[] = [
    { token: () => readToken(globals.tokenFile as string), from: '--token-file', fits: globals.tokenFile !== undefined },
    {
      token: () => tokenIn(environment.MUSTER_TOKEN as string, 'MUSTER_TOKEN'),
      from: 'MUSTER_TOKEN',
      fits: Boolean(environment.MUSTER_TOKEN),
    },
    {
      token: () => readToken(environment.MUSTER_TOKEN_FILE as string),
      from: 'MUSTER_TOKEN_FILE',
      fits: Boolean(environment.MUSTER_TOKEN_FILE),
    },
    // --url with a profile's token only where it is that profile's server: else the token would be shown to a stranger.
    ...[[name, profile] as const, ...Object.entries(config?.profiles ?? {})].map(([name, candidate]) => ({
      token: () => candidate?.token as string,
      from: `profile ${name}`,
      fits: candidate !== undefined && serverUrl(candidate.url) === url,
    })),
    { token: () => local?.token as string, from: '.muster/cli.json', fits: local !== undefined && serverUrl(local.url) === url },
  ]
  const found = tokens.find(({ fits }) => fits)
  if (!found)
    throw new CliError('not-authorised', `no token is known for ${url}`, { hint: `log in with: muster login ${url} --token-file FILE` })
  const known = [profile, ...Object.values(config?.profiles ?? {})].find(each => each?.ca !== undefined && serverUrl(each.url) === url)
  const ca = (await caOf(cli)) ?? known?.ca
  return { url, token: await found.token(), ca, from: found.from === source.from ? found.from : `${source.from}, token from ${found.from}` }
}

/** The authority that the environment names; undefined: none. */
export async function caOf(cli: Cli): Promise<string | undefined> {
  return cli.env.MUSTER_CA ? readCa(cli.env.MUSTER_CA, 'MUSTER_CA') : undefined
}

/** The certificates of a file. */
export async function readCa(path: string, from: string): Promise<string> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    throw new CliError('usage', `read the certificate of an authority (${from}): ${(error as Error).message}`, { cause: error })
  }
  if (!text.includes('-----BEGIN CERTIFICATE-----'))
    throw new CliError('usage', `${path} (${from}) holds no certificate`, { hint: 'it is the ca.crt in the MUSTER_TLS_DIR of the server' })
  return text
}

/** Told when the line of an event stream broke, and when it is open again. */
export type StreamNotice = (what: 'lost' | 'back') => void

/** The client for a command; with -v says where server and token come from. */
export async function connect(cli: Cli, command: Command, onStream?: StreamNotice): Promise<Connection> {
  const login = await findLogin(cli, command)
  if (globalsOf(command).verbose) remark(cli, `muster: using ${login.url} (${login.from})`)
  return { ...login, client: clientFor(cli, login, onStream) }
}

/** A client for a login that is not stored, such as one being tried; without a token, for calls that need none. Its calls end with Ctrl-C. */
export function clientFor(
  cli: Cli,
  { url, token, ca }: { url: string; token?: string; ca?: string | undefined },
  onStream?: StreamNotice,
): Client {
  const plain = plainFetch(ca)
  const client = createClient({ url, ...(token !== undefined && { token }), fetch: onStream ? noticingFetch(plain, onStream) : plain })
  return endingWith(cli.signal, client)
}

/** Every method of `client` with `signal` where the caller gives none of its own. */
function endingWith(signal: AbortSignal, client: Client): Client {
  type AnyMethod = (input: unknown, options?: object) => unknown
  const groups = Object.entries(client as unknown as Record<string, Record<string, AnyMethod>>).map(([group, methods]) => [
    group,
    Object.fromEntries(
      Object.entries(methods).map(([verb, method]) => [verb, (input: unknown, options?: object) => method(input, { signal, ...options })]),
    ),
  ])
  return Object.fromEntries(groups) as Client
}

/** The client reopens streams silently; a person who watches one should know why nothing comes. */
function noticingFetch(plain: typeof fetch, onStream: StreamNotice): typeof fetch {
  let line: 'not yet open' | 'open' | 'lost' = 'not yet open'
  return async (input, init) => {
    if (!String(input).includes(contract.events.stream.rest.path)) return plain(input, init)
    if (line === 'open') {
      line = 'lost'
      onStream('lost')
    }
    const response = await plain(input, init)
    if (response.ok) {
      if (line === 'lost') onStream('back')
      line = 'open'
    }
    return response
  }
}
