// Numbered migrations: `NNNN_name.expand.sql` (safe beside the previous release) and `NNNN_name.contract.sql` (one release later). Each runs
// once, in its own transaction, checked against its digest; two replicas that start together wait for each other.
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect, type Sql } from './connect.ts'

const fileName = /^(\d{4})_[a-z0-9-]+\.(expand|contract)\.sql$/
/** Any number will do, so long as nothing else in the database takes it. */
const lockNumber = 7_305_118
/** A migration of a large table may take minutes; longer than this, somebody should look. */
const lockLimitMs = 300_000

interface Migration {
  number: number
  name: string
  sql: string
  digest: string
}

function migrationsIn(folder: URL): Migration[] {
  return readdirSync(folder)
    .filter(name => name.endsWith('.sql'))
    .sort()
    .map(name => {
      const match = fileName.exec(name)
      if (!match) throw new Error(`migrations/${name} is not named NNNN_name.expand.sql or NNNN_name.contract.sql`)
      const sql = readFileSync(new URL(name, folder), 'utf8')
      return { number: Number(match[1]), name, sql, digest: createHash('sha256').update(sql).digest('hex') }
    })
}

/**
 * Brings the database at `url` to this release's schema: the files in `folder`. Returns the names applied. A newer schema is left alone (an older binary runs on
 * an expanded one). Throws when an applied migration's text has changed since, or when the lock is not free within five minutes.
 */
export async function migrate(url: string, folder: URL): Promise<string[]> {
  const sql = connect(url, { connections: 1, name: 'muster migrate' })
  try {
    await takeLock(sql)
    await sql`create table if not exists schema_migrations (number integer primary key, name text not null, digest text not null, applied_at timestamptz not null default now())`
    const applied = new Map(
      (await sql<{ number: number; digest: string }[]>`select number, digest from schema_migrations`).map(row => [row.number, row.digest]),
    )
    const done: string[] = []
    for (const migration of migrationsIn(folder)) {
      const digest = applied.get(migration.number)
      if (digest === migration.digest) continue
      if (digest !== undefined) throw new Error(`migration ${migration.name} was changed after it had been applied; add a new one instead`)
      await sql.begin(async transaction => {
        await transaction.unsafe(migration.sql)
        await transaction`insert into schema_migrations ${transaction({ number: migration.number, name: migration.name, digest: migration.digest })}`
      })
      done.push(migration.name)
    }
    return done
  } finally {
    // Ends the session, and with it the lock.
    await sql.end({ timeout: 5 })
  }
}

/** Polled, not waited for: a session blocked on a lock holds a snapshot, and CREATE INDEX CONCURRENTLY elsewhere would wait for it for ever. */
async function takeLock(sql: Sql): Promise<void> {
  const limit = Date.now() + lockLimitMs
  for (;;) {
    const [row] = await sql<{ taken: boolean }[]>`select pg_try_advisory_lock(${lockNumber}) as taken`
    if (row?.taken) return
    if (Date.now() > limit) throw new Error('another process has been migrating this database for five minutes; gave up waiting')
    await sleep(100 + Math.random() * 100)
  }
}
