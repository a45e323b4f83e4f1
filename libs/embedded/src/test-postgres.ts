// One throwaway PostgreSQL for a whole test run, and a fresh database for each test file that asks.
// Real and shared: a test's own cluster would cost 0.7 s, a database copied from a migrated template costs about 20 ms.

import { existsSync, mkdtempSync, readdirSync, rmSync, statfsSync, statSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import { startPostgres } from './postgres.ts'

// Not os.tmpdir(): that may be a private folder (macOS, pam_namespace) which the server's own user cannot enter.
const scratch = '/tmp'
// A database is some 300 files: 10 ms to copy in memory, 100 to 400 ms on a virtual disk's ext4, fsync or not.
const memory = '/dev/shm'
const memoryWantedBytes = 2 * 1024 ** 3 // containers give 64 MB by default: of no use
const prefix = 'muster-test-'

/**
 * vitest's globalSetup: starts the cluster (fsync off) and hands its admin URL to the workers in `MUSTER_TEST_POSTGRES`. A URL that
 * is already there (a CI service, say) is used instead and nothing is started. Returns the teardown.
 */
export default async function setup(): Promise<() => Promise<void>> {
  const run = `${process.pid}_${Date.now().toString(36)}`
  process.env.MUSTER_TEST_RUN = run
  if (process.env.MUSTER_TEST_POSTGRES) return () => dropTemplates(run)
  sweep()
  const dir = mkdtempSync(path.join(scratch, `${prefix}${process.pid}-`))
  const dataDir = memoryFolder(path.basename(dir))
  // Workers × pools × a federation of partitions in one test: far above PostgreSQL's usual 100.
  const server = await startPostgres({ dir, ...(dataDir ? { dataDir } : {}), sync: 'off', maxConnections: 400 })
  process.env.MUSTER_TEST_POSTGRES = server.url('postgres')
  return async () => {
    delete process.env.MUSTER_TEST_POSTGRES
    await server.stop({ how: 'immediate' })
    rmSync(dir, { recursive: true, force: true })
    if (dataDir) rmSync(dataDir, { recursive: true, force: true })
  }
}

/** A name in memory for the data, where there is room; the binaries stay on disk, because containers forbid running them there. */
function memoryFolder(name: string): string | undefined {
  if (!existsSync(memory)) return undefined
  const { bavail, bsize } = statfsSync(memory)
  return bavail * bsize >= memoryWantedBytes ? path.join(memory, name) : undefined
}

/** Removes what killed runs left behind, so that neither disk nor memory fills with clusters. */
function sweep(): void {
  for (const folder of [scratch, memory].filter(each => existsSync(each))) {
    for (const name of readdirSync(folder)) {
      const pid = Number(new RegExp(`^${prefix}(\\d+)-`).exec(name)?.[1])
      if (pid && !isAlive(pid) && isOurs(path.join(folder, name))) rmSync(path.join(folder, name), { recursive: true, force: true })
    }
  }
}

function isOurs(folder: string): boolean {
  const uid = process.getuid?.()
  return uid === 0 || statSync(folder, { throwIfNoEntry: false })?.uid === uid
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM'
  }
}

export interface FreshDatabase extends AsyncDisposable {
  /** For postgres.js, or as a child process's DATABASE_URL. */
  url: string
  /** Drops it, cutting whoever is still connected. Idempotent. */
  drop(): Promise<void>
}

/**
 * A database of its own for one test file (or one test):
 *
 *     await using database = await freshDatabase({ template: 'partition', migrate: url => migrate(url) })
 *
 * `migrate` runs once per test run and `template`, whichever worker comes first; everyone gets a copy of the result. It must have
 * closed its connections when it resolves. Without arguments the database is empty. Throws when the global setup did not run.
 */
export async function freshDatabase(from?: { template: string; migrate: (url: string) => Promise<void> }): Promise<FreshDatabase> {
  const adminUrl = process.env.MUSTER_TEST_POSTGRES
  if (!adminUrl) throw new Error('MUSTER_TEST_POSTGRES is unset: is globalSetup of libs/embedded/src/test-postgres.ts in vitest.config.ts?')
  const name = `t_${process.pid}_${Date.now().toString(36)}_${Math.random().toString(36).slice(2, 8)}`
  await asAdmin(adminUrl, async sql => {
    const template = from ? await migratedTemplate({ sql, adminUrl, ...from }) : 'template0'
    // file_copy: with fsync off half the time of copying through the log.
    await sql`create database ${sql(name)} template ${sql(template)} strategy file_copy`
  })
  let dropping: Promise<void> | undefined
  const drop = () => {
    dropping ??= asAdmin(adminUrl, async sql => {
      await sql`drop database if exists ${sql(name)} with (force)`
    })
    return dropping
  }
  return { url: databaseUrl(adminUrl, name), drop, [Symbol.asyncDispose]: drop }
}

type Sql = postgres.Sql

async function migratedTemplate(options: {
  sql: Sql
  adminUrl: string
  template: string
  migrate: (url: string) => Promise<void>
}): Promise<string> {
  const { sql, adminUrl } = options
  const name = `tpl_${process.env.MUSTER_TEST_RUN}_${options.template}`
  await lock(sql, name)
  try {
    const [found] = await sql<{ finished: boolean }[]>`select datistemplate as finished from pg_database where datname = ${name}`
    if (found?.finished) return name
    // Half a template of a worker whose migration failed.
    if (found) await sql`drop database ${sql(name)} with (force)`
    await sql`create database ${sql(name)} template template0`
    await options.migrate(databaseUrl(adminUrl, name))
    // A template with a connection cannot be copied; nobody has business here any more.
    await sql`alter database ${sql(name)} with is_template true allow_connections false`
    await sql`select pg_terminate_backend(pid) from pg_stat_activity where datname = ${name}`
    return name
  } finally {
    await sql`select pg_advisory_unlock(hashtext(${name}))`
  }
}

/** Polled: a backend that blocks on a lock holds a snapshot, and that stops another one's CREATE INDEX CONCURRENTLY for ever. */
async function lock(sql: Sql, name: string): Promise<void> {
  const deadline = Date.now() + 120_000 // the slowest migration we would wait for
  for (;;) {
    const [row] = await sql<{ ours: boolean }[]>`select pg_try_advisory_lock(hashtext(${name})) as ours`
    if (row?.ours) return
    if (Date.now() > deadline) throw new Error(`another test worker has been migrating ${name} for 120 s`)
    await sleep(20)
  }
}

async function asAdmin(adminUrl: string, act: (sql: Sql) => Promise<void>): Promise<void> {
  const sql = postgres(adminUrl, { max: 1, onnotice: () => {} })
  try {
    await act(sql)
  } finally {
    await sql.end()
  }
}

async function dropTemplates(run: string): Promise<void> {
  const adminUrl = process.env.MUSTER_TEST_POSTGRES
  if (!adminUrl) return
  await asAdmin(adminUrl, async sql => {
    const names = await sql<{ name: string }[]>`select datname as name from pg_database where starts_with(datname, ${`tpl_${run}_`})`
    for (const { name } of names) {
      await sql`alter database ${sql(name)} with is_template false`
      await sql`drop database ${sql(name)} with (force)`
    }
  })
}

/** The same server, another database. Textual, because URL would re-encode the socket path in the host. */
function databaseUrl(adminUrl: string, name: string): string {
  const query = adminUrl.indexOf('?')
  const bare = query < 0 ? adminUrl : adminUrl.slice(0, query)
  const afterHost = bare.indexOf('/', bare.indexOf('://') + 3)
  return `${afterHost < 0 ? bare : bare.slice(0, afterHost)}/${name}${query < 0 ? '' : adminUrl.slice(query)}`
}
