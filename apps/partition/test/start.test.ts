// Migrations and starts: what is wrong is said, before anything is touched.
import { type ChildProcess, spawn } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { freshDatabase } from '@muster/embedded/test-postgres'
import { describe, expect, onTestFinished, test } from 'vitest'
import { readSettings } from '../src/config.ts'
import { connect } from '../src/db/connect.ts'
import { migrate } from '../src/db/migrate.ts'
import { partitionDatabase, runPartition } from './harness.ts'

const names = readdirSync(new URL('../src/db/migrations/', import.meta.url)).sort()

async function emptyDatabase(): Promise<string> {
  const database = await freshDatabase()
  onTestFinished(() => database.drop())
  return database.url
}

describe('migrate', () => {
  test('brings an empty database up, and has nothing to do the second time', async () => {
    const url = await emptyDatabase()
    expect(await migrate(url)).toEqual(names)
    expect(await migrate(url)).toEqual([])
  })

  test('by five at once is done once', async () => {
    const url = await emptyDatabase()
    const applied = await Promise.all(Array.from({ length: 5 }, () => migrate(url)))
    expect(applied.flat()).toEqual(names)
  })

  test('refuses a migration whose text has changed since, by name', async () => {
    const url = await partitionDatabase()
    const sql = connect(url, { name: 'test', connections: 1 })
    await sql`update schema_migrations set digest = 'another' where number = 1`
    await sql.end()
    await expect(migrate(url)).rejects.toThrow(`migration ${names[0]} was changed after it had been applied; add a new one instead`)
  })

  test('leaves a newer schema alone: an older release runs on it', async () => {
    const url = await partitionDatabase()
    const sql = connect(url, { name: 'test', connections: 1 })
    await sql`insert into schema_migrations (number, name, digest) values (9999, '9999_later.expand.sql', 'x')`
    await sql.end()
    expect(await migrate(url)).toEqual([])
  })

  test('leaves nothing half done where a statement fails', async () => {
    const url = await emptyDatabase()
    const sql = connect(url, { name: 'test', connections: 1 })
    // The last table of the first migration is there already.
    await sql`create table replicas (name text)`
    await expect(migrate(url)).rejects.toThrow(/replicas/)
    expect(await sql`select from pg_tables where tablename = 'machines'`).toHaveLength(0)
    await sql`drop table replicas`
    await sql.end()
    expect(await migrate(url)).toEqual(names)
  })
})

describe('a partition', () => {
  test('refuses the database of another, and says whose it is', async () => {
    const databaseUrl = await partitionDatabase()
    await (await runPartition({ databaseUrl })).stop()
    await expect(runPartition({ databaseUrl, partition: 'par2' })).rejects.toThrow('this database belongs to partition lon1, not to par2')
  })

  test('refuses a key that does not open what is sealed there', async () => {
    const databaseUrl = await partitionDatabase()
    await (await runPartition({ databaseUrl })).stop()
    await expect(runPartition({ databaseUrl, key: Buffer.alloc(32, 8) })).rejects.toThrow('MUSTER_KEY is not the key')
    await (await runPartition({ databaseUrl })).stop()
  })

  test('started again under one name has a higher epoch, and the one before is told', async () => {
    const databaseUrl = await partitionDatabase()
    const first = await runPartition({ databaseUrl, replica: 'a' })
    const second = await runPartition({ databaseUrl, replica: 'a' })
    const { replicas } = await second.as('rita').partitions.get({ name: 'lon1' })
    expect(replicas).toMatchObject([{ name: 'a', epoch: 2 }])
    await expect.poll(() => first.lines.some(line => line.includes('superseded')), { timeout: 5000 }).toBe(true)
    await first.stop()
    // The late goodbye of the first one does not take the second one's row along.
    expect((await second.as('rita').partitions.get({ name: 'lon1' })).replicas).toHaveLength(1)
  })
})

describe('the settings', () => {
  const main = new URL('../src/main.ts', import.meta.url).pathname
  function start(env: Record<string, string>): Promise<{ code: number | null; text: string }> {
    const child: ChildProcess = spawn(process.execPath, [main], {
      env: { PATH: process.env.PATH ?? '', NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE, ...env },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    let text = ''
    child.stderr?.setEncoding('utf8').on('data', (part: string) => {
      text += part
    })
    return new Promise(resolve => child.once('exit', code => resolve({ code, text })))
  }

  test('missing or wrong are named, all of them at once, and nothing starts', async () => {
    const { code, text } = await start({
      MUSTER_PARTITION: 'Not A Name',
      PORT: 'eighty',
      MUSTER_KEY: 'short-and-secret',
      MUSTER_DEADLINES: 'deploying=soon',
      MUSTER_AGENT_SILENCE: '5',
    })
    expect(code).toBe(2)
    for (const variable of [
      'MUSTER_PARTITION',
      'DATABASE_URL',
      'MUSTER_KEY',
      'MUSTER_TOKENS_FILE',
      'PORT',
      'MUSTER_DEADLINES',
      'MUSTER_AGENT_SILENCE',
    ])
      expect(text, variable).toContain(variable)
    expect(text).not.toContain('short-and-secret')
  })

  test('of a database that is not there end the start with what was tried', { timeout: 60_000 }, async () => {
    const { code, text } = await start({
      MUSTER_PARTITION: 'lon1',
      DATABASE_URL: 'postgres://muster:planted-password@127.0.0.1:9/lon1',
      MUSTER_KEY: '07'.repeat(32),
      MUSTER_TOKENS_FILE: '/dev/null',
      PORT: '0',
    })
    expect(code).toBe(1)
    expect(text).toMatch(/ECONNREFUSED|connect/i)
    expect(text).not.toContain('planted-password')
  })

  test('take what a broker may want of a partition, as of a front', () => {
    const usual = { MUSTER_PARTITION: 'lon1', DATABASE_URL: 'postgres://x', MUSTER_KEY: '07'.repeat(32), MUSTER_TOKENS_FILE: 't' }
    const url = 'nats://nats.example:4222'
    const { settings, lines } = readSettings({ ...usual, NATS_URL: url, NATS_CREDENTIALS: 'a jwt and a planted seed' })
    expect(settings.nats).toEqual({ url, token: undefined, credentials: 'a jwt and a planted seed' })
    expect(lines.join('\n')).not.toContain('planted')
  })

  test('replace deadlines only of states that have one', () => {
    const usual = { MUSTER_PARTITION: 'lon1', DATABASE_URL: 'postgres://x', MUSTER_KEY: '07'.repeat(32), MUSTER_TOKENS_FILE: 't' }
    const rules = (deadlines: string) => readSettings({ ...usual, MUSTER_DEADLINES: deadlines }).settings.rules.deadlinesMs
    expect(rules('deploying=2m,reserved=500ms')).toEqual({ deploying: 120_000, reserved: 500 })
    expect(rules('')).toEqual({})
    for (const wrong of ['ready=2m', 'deploying', 'deploying=', 'nowhere=1s']) expect(() => rules(wrong), wrong).toThrow(/MUSTER_DEADLINES/)
  })

  test('name the usual tests, or none', () => {
    const usual = { MUSTER_PARTITION: 'lon1', DATABASE_URL: 'postgres://x', MUSTER_KEY: '07'.repeat(32), MUSTER_TOKENS_FILE: 't' }
    const tests = (text: string | undefined) => readSettings({ ...usual, MUSTER_TESTS: text }).settings.rules.tests
    expect([undefined, '', 'none', 'memory,cpu'].map(tests)).toEqual([['disk-health'], ['disk-health'], [], ['memory', 'cpu']])
    expect(() => tests('Not A Name')).toThrow(/MUSTER_TESTS/)
  })
})
