// The audit log of a federation, as an auditor reads it: through the front, with the command line.
import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { look } from '@muster/front/global/retention'
import type { AuditEntry } from '@muster/shared/audit'
import { createClient } from '@muster/shared/client'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { makeReady, type Servers, startServers, until } from './servers.ts'

const main = fileURLToPath(new URL('../../cli/src/main.ts', import.meta.url))
let servers: Servers
let folder: string

beforeAll(async () => {
  servers = await startServers(['lon1', 'par2'])
  folder = mkdtempSync(path.join(tmpdir(), 'muster-audit-'))
})
afterAll(async () => {
  rmSync(folder, { recursive: true, force: true })
  await servers[Symbol.asyncDispose]()
})

function muster(...words: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const env = { ...process.env, HOME: folder, NO_COLOR: '1', MUSTER_URL: servers.front.url, MUSTER_TOKEN: servers.front.tokens.admin }
  return new Promise(resolve =>
    execFile(process.execPath, [main, 'audit', ...words], { env, cwd: folder }, (error, stdout, stderr) =>
      resolve({ code: typeof error?.code === 'number' ? error.code : 0, stdout, stderr }),
    ),
  )
}

const exported = async () => {
  const { stdout } = await muster('export')
  return stdout
    .split('\n')
    .filter(line => line !== '')
    .map(line => JSON.parse(line) as AuditEntry)
}

test('what is asked of a front is written down where it is carried out, with the client’s address and the front’s name', async () => {
  const operator = servers.front.as.operator
  const user = servers.front.as.user
  const [lon1] = servers.partitions as [Servers['partitions'][number]]
  const machine = await operator.machines.create({ partition: 'lon1', interfaces: [{ mac: '52:54:00:bb:00:01' }] } as never)
  await makeReady(lon1, [machine.id])
  const allocation = await user.allocations.create({})
  await user.allocations.release({ id: allocation.id as string })
  await servers.front.as.admin.config.change({ put: [{ kind: 'user', name: 'carol', document: { role: 'user' } }] })

  let entries: AuditEntry[] = []
  await until(async () => {
    entries = await exported()
    const calls = new Set(entries.map(({ call }) => call))
    return ['machines.create', 'allocation.confirm', 'allocations.release', 'config.change'].every(call => calls.has(call))
  })
  const seen = entries.map(({ partition, actor, from, via, call, target, outcome }) => ({
    partition,
    actor,
    from,
    via,
    call,
    target,
    outcome,
  }))
  const here = { from: '127.0.0.1', outcome: 'ok' }
  expect(seen).toContainEqual({ ...here, partition: 'lon1', actor: 'operator', via: 'front', call: 'machines.create', target: 'lon1' })
  expect(seen).toContainEqual({
    ...here,
    partition: 'lon1',
    actor: 'user',
    via: 'front',
    call: 'allocation.confirm',
    target: allocation.id,
  })
  const released = seen.find(({ call }) => call === 'allocations.release')
  expect(released).toEqual({ ...here, partition: 'lon1', actor: 'user', via: 'front', call: 'allocations.release', target: allocation.id })
  expect(seen).toContainEqual({ ...here, partition: '(fronts)', actor: 'admin', via: null, call: 'config.change', target: 'user/carol' })
})

test('the log is right, and stays so; an entry that is changed, or taken away behind an export, is told', async () => {
  const witness = path.join(folder, 'before.jsonl')
  const { stdout: before } = await muster('export')
  writeFileSync(witness, before)
  const good = await muster('verify', '--against', witness)
  expect(good).toMatchObject({ code: 0, stderr: '' })
  expect(good.stdout).toMatch(/^\(fronts\) .*as written$/m)
  expect(good.stdout).toMatch(/^lon1 .*as written$/m)
  expect(await muster('verify', witness)).toMatchObject({ code: 0 })

  const [lon1] = servers.partitions as [Servers['partitions'][number]]
  const { sql } = lon1.core
  await sql`update audit set origin = '198.51.100.7' where seq = 1`
  const changed = await muster('verify')
  expect(changed.code).toBe(1)
  expect(changed.stdout).toMatch(/^lon1 .*entry 1 \(operator, machines.create\) or one before it is not what was written$/m)
  await sql`update audit set origin = '127.0.0.1' where seq = 1`
  expect(await muster('verify')).toMatchObject({ code: 0 })
})

test('entries that were cut off for their age are no trouble to whoever has an earlier export', async () => {
  const witness = path.join(folder, 'before-the-cut.jsonl')
  writeFileSync(witness, (await muster('export')).stdout)
  const [lon1] = servers.partitions as [Servers['partitions'][number]]
  const last = await lon1.core.audit.lastSeq()
  await until(async () => {
    await lon1.core.sql.begin(sql => lon1.core.audit.removeOld(sql as never, { keepMs: 0, limit: 100, apartMs: 0 }))
    return (await exported()).every(({ partition, seq }) => partition !== 'lon1' || seq > last)
  })
  const verified = await muster('verify', '--against', witness)
  expect(verified).toMatchObject({ code: 0, stderr: '' })
  expect(verified.stdout).toMatch(/^lon1 .*as written; cut off up to \d+ for its age$/m)
  // The last of those that went is in the export, and it was another.
  const lines = readFileSync(witness, 'utf8').replaceAll(/("partition":"lon1".*"hash":")./g, '$1f')
  writeFileSync(witness, lines.replaceAll(/("partition":"lon1".*"hash":"f)./g, '$1f'))
  expect(await muster('verify', '--against', witness)).toMatchObject({ code: 1 })
})

test('a log that was emptied is told', async () => {
  const witness = path.join(folder, 'before.jsonl')
  const [lon1] = servers.partitions as [Servers['partitions'][number]]
  await lon1.core.sql`delete from audit`
  const gone = await muster('verify', '--against', witness)
  expect(gone.code).toBe(1)
  expect(gone.stdout).toMatch(/^lon1 .*entry 1 of the earlier export is gone$/m)
})

test('a wrong password is in the log of the fronts, without the password', async () => {
  const password = 'planted-wrong-password-77'
  const client = createClient({ url: servers.front.url })
  for (let count = 0; count < 2; count++)
    await expect(client.session.login({ user: 'carol', password })).rejects.toMatchObject({ code: 'unauthenticated' })
  await servers.home.audit.settled()
  await until(async () => (await muster('list', '--fronts', '--refused')).stdout !== '')
  const { stdout } = await muster('list', '--fronts', '--refused')
  expect(stdout).toMatch(/anonymous \(public\) +127\.0\.0\.1 +door\.refused +session\.login, 2 times: log in: .* unauthenticated/)
  expect(stdout).not.toContain(password)
})

test('it is read by caller, call and target', async () => {
  const list = await muster('list', '--fronts', '--actor', 'admin')
  expect(list.stdout).toMatch(/admin \(admin\) +127\.0\.0\.1 +config\.change +user\/carol +ok: generation 1/)
  expect(await muster('list', '--call', 'machines.nothing')).toMatchObject({ code: 0, stdout: '', stderr: 'Nothing was changed.\n' })
  expect(await muster('verify', path.join(folder, 'none.jsonl'))).toMatchObject({ code: 2 })
})

test('a reader whose events one partition has removed is told so by the front, with the position to go on from', async () => {
  const [lon1] = servers.partitions as [Servers['partitions'][number]]
  const reader = servers.front.as['read-only']
  const { nextCursor } = await reader.events.list({ limit: 1 })
  expect(nextCursor).toMatch(/^lon1:1\b/)
  await lon1.core.sql`update event_retention set removed_to = 2`
  const refused = reader.events.list({ after: nextCursor })
  await expect(refused).rejects.toMatchObject({ code: 'gone', facts: { startAt: nextCursor.replace('lon1:1', 'lon1:2') } })
  expect((await reader.events.list({ after: nextCursor.replace('lon1:1', 'lon1:2') })).items[0]).toMatchObject({ seq: 3 })
  await lon1.core.sql`update event_retention set removed_to = 0`
})

test('the fronts remove join tokens that expired long ago, and partitions that gave up asking', async () => {
  const admin = servers.front.as.admin
  const join = (expiresAt: string) => ({ sha256: 'a'.repeat(64), expiresAt, createdAt: '2019-12-31T00:00:00.000Z' })
  const put = [
    { kind: 'join', name: 'j-4y3h7nqk2c5d', document: join('2020-01-01T00:00:00.000Z') },
    { kind: 'join', name: 'j-5y3h7nqk2c5d', document: join('2099-01-01T00:00:00.000Z') },
  ]
  await admin.config.change({ put } as never)
  const { home } = servers
  await home.run(
    sql => sql`
    insert into joins (name, join_id, nats_key, version, url, operating_systems, origin, seen_at)
    values ('gone', 'old', 'U', '0', '', '{}', '192.0.2.1', now() - interval '2 days'), ('here', 'new', 'U', '0', '', '{}', '192.0.2.1', now())`,
  )
  await look({ home, keepAuditMs: undefined, log: { info: () => undefined, warn: () => undefined } }, new AbortController().signal)
  expect(Object.keys((await home.newest())?.documents.join ?? {})).toEqual(['j-5y3h7nqk2c5d'])
  expect(await home.run(sql => sql`select name from joins`)).toEqual([{ name: 'here' }])
})
