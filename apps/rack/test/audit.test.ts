// The audit log of a federation, as an auditor reads it: through the front, with the command line.
import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import type { AuditEntry } from '@muster/shared/audit'
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
    return entries.length >= 4
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

  await sql`delete from audit`
  const gone = await muster('verify', '--against', witness)
  expect(gone.code).toBe(1)
  expect(gone.stdout).toMatch(/^lon1 .*entry 1 of the earlier export is gone$/m)
})

test('it is read by caller, call and target', async () => {
  const list = await muster('list', '--fronts', '--actor', 'admin')
  expect(list.stdout).toMatch(/admin \(admin\) +127\.0\.0\.1 +config\.change +user\/carol +ok: generation 1/)
  expect(await muster('list', '--call', 'machines.nothing')).toMatchObject({ code: 0, stdout: '', stderr: 'Nothing was changed.\n' })
  expect(await muster('verify', path.join(folder, 'none.jsonl'))).toMatchObject({ code: 2 })
})
