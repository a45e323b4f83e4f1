// The logins this user has: $XDG_CONFIG_HOME/muster/config.json, readable by its owner only because the tokens are in it.
import { mkdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import type { Cli } from './cli.ts'
import { CliError } from './exit-codes.ts'

export interface Profile {
  readonly url: string
  readonly token: string
  /** Of a session: whose it is, so that logging in again asks for the right password. */
  readonly user?: string
  /** Of a session: the OpenID Connect provider it was begun at. */
  readonly oidc?: string
  /** The authority whose certificates this server is believed by, PEM; without one, those that the computer knows. */
  readonly ca?: string
}

export interface Config {
  /** The profile used when none is named. */
  readonly current: string
  readonly profiles: Readonly<Record<string, Profile>>
}

/** Where the logins are kept. */
export function configPath(cli: Cli): string {
  return join(cli.env.XDG_CONFIG_HOME || join(cli.env.HOME || homedir(), '.config'), 'muster', 'config.json')
}

const isProfile = (value: unknown): value is Profile =>
  typeof value === 'object' && value !== null && typeof (value as Profile).url === 'string' && typeof (value as Profile).token === 'string'

function isConfig(value: unknown): value is Config {
  const { current, profiles } = (value ?? {}) as Partial<Config>
  return typeof current === 'string' && typeof profiles === 'object' && profiles !== null && Object.values(profiles).every(isProfile)
}

/** Reads JSON of a known shape; undefined where there is no such file, a failure where it is not what it should be. */
async function readJson<Shape>(path: string, isShape: (value: unknown) => value is Shape, shape: string): Promise<Shape | undefined> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new CliError('usage', `read ${path}: ${(error as Error).message}`, { cause: error })
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    // The parser's message quotes the text, and the text holds a token.
    value = undefined
  }
  if (!isShape(value)) throw new CliError('usage', `read ${path}: it is not ${shape}`, { hint: 'remove it and log in again' })
  return value
}

/** The logins, or undefined where nobody logged in yet. */
export async function readConfig(cli: Cli): Promise<Config | undefined> {
  return readJson(configPath(cli), isConfig, 'a muster configuration {"current", "profiles"}')
}

/** The login that `npm start` leaves in its folder, or undefined. */
export async function readLocalLogin(cli: Cli): Promise<Profile | undefined> {
  return readJson(join(cli.folder, '.muster', 'cli.json'), isProfile, 'a login {"url", "token"}')
}

/** Replaces the logins in one step: a reader sees the old file or the new one, and nobody else sees either. */
export async function writeConfig(cli: Cli, config: Config): Promise<void> {
  const path = configPath(cli)
  const draft = `${path}.${crypto.randomUUID()}`
  await mkdir(dirname(path), { recursive: true, mode: 0o700 })
  try {
    await writeFile(draft, `${JSON.stringify(config, null, 2)}\n`, { mode: 0o600, flag: 'wx' })
    await rename(draft, path)
  } catch (error) {
    await rm(draft, { force: true })
    throw new CliError('unexpected', `write ${path}: ${(error as Error).message}`, { cause: error })
  }
}

/** A warning where others can read the tokens, else undefined. */
export async function permissionWarning(cli: Cli): Promise<string | undefined> {
  const path = configPath(cli)
  const { mode } = await stat(path)
  return mode & 0o077 ? `${path} can be read by others (mode ${(mode & 0o777).toString(8)}); run: chmod 600 ${path}` : undefined
}
