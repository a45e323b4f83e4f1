// The audit log of a partition: nothing is changed without an entry, whatever dies; what was written stays as it was written.
import { createHash } from 'node:crypto'
import { type AuditEntry, ChainCheck } from '@muster/shared/audit'
import { isSignature } from '@muster/shared/signature'
import { expect, test } from 'vitest'
import { machineToken } from '../src/domain/machine-token.ts'
import { addMachine, partitionDatabase, runPartition, startCore, type TestCore, type TestPartition, until } from './harness.ts'

const checks = {
  sha256: (text: string) => createHash('sha256').update(text).digest('hex'),
  isSigned: (text: string, seal: { signature: string; key: string }) => isSignature('audit log', text, seal),
}

const whole = (core: Pick<TestCore, 'audit'>, after = 0) =>
  core.audit.list({ after, limit: 1000, actor: undefined, call: undefined, target: undefined }).then(({ items }) => items)

async function problemOf(entries: readonly AuditEntry[]): Promise<string | undefined> {
  const check = new ChainCheck(checks)
  for (const entry of entries) await check.add(entry)
  return check.report().problem
}

/** Waits until so many entries are in the chain. */
const chained = (partition: Pick<TestPartition, 'core'>, count: number) =>
  until(async () => {
    const entries = await whole(partition.core)
    return entries.length >= count && entries
  })

test('who changed what, from where, and what came of it; a look leaves no trace, and no secret is kept', async () => {
  const partition = await runPartition()
  const planted = 'planted-pass-5f2c'
  const machine = await partition.as('olga').machines.create({
    interfaces: [{ mac: '52:54:00:aa:00:01' }],
    powerDriver: 'ipmi',
    powerSettings: { address: '192.0.2.9', user: 'root', password: planted },
  } as never)
  await partition.as('rita').machines.list({})
  await expect(partition.as('olga').machines.deploy({ id: machine.id, os: 'debian/12' })).rejects.toThrow()
  await partition.as('olga').machines.lock({ id: machine.id, reason: 'audited' })

  const entries = await chained(partition, 3)
  expect(entries.map(({ seq, actor, role, from, via, call, outcome }) => ({ seq, actor, role, from, via, call, outcome }))).toEqual([
    { seq: 1, actor: 'olga', role: 'operator', from: '127.0.0.1', via: null, call: 'machines.create', outcome: 'ok' },
    { seq: 2, actor: 'olga', role: 'operator', from: '127.0.0.1', via: null, call: 'machines.deploy', outcome: 'wrong-state' },
    { seq: 3, actor: 'olga', role: 'operator', from: '127.0.0.1', via: null, call: 'machines.lock', outcome: 'ok' },
  ])
  expect(entries[0]).toMatchObject({
    target: '',
    result: machine.id,
    fields: expect.arrayContaining(['interfaces', 'powerDriver', 'powerSettings']),
  })
  expect(entries[2]).toMatchObject({ target: machine.id, fields: ['id', 'reason'] })
  expect(JSON.stringify(entries)).not.toContain(planted)
  expect(await problemOf(entries)).toBeUndefined()
})

test('only an admin reads it', async () => {
  const partition = await runPartition()
  for (const name of ['olga', 'alice', 'rita'] as const)
    await expect(partition.as(name).audit.list({})).rejects.toMatchObject({ code: 'forbidden' })
})

test('a change whose entry cannot be written is not made', async () => {
  const core = await startCore()
  await core.sql`alter table audit rename to audit_away`
  let isDone = false
  const change = core.audit.carryOut({ ...asked, call: 'machines.lock' }, async () => {
    isDone = true
  })
  await expect(change).rejects.toThrow(/audit/)
  expect(isDone).toBe(false)
})

const asked = {
  input: { id: 'lon1-4y3h7n' },
  caller: { name: 'alice', role: 'user' as const },
  from: '192.0.2.1',
  via: null,
  requestId: 'r',
}

test('what a process that died was doing is written down as unknown, once another of its name starts', async () => {
  const databaseUrl = await partitionDatabase()
  const core = await startCore({ url: databaseUrl })
  // It never comes back, as after kill -9.
  void core.audit.carryOut({ ...asked, call: 'machines.release' }, () => new Promise(() => {}))
  await until(async () => (await core.sql`select from audit`).length === 1)
  expect(await core.audit.chain()).toBe('idle')
  expect(await whole(core)).toEqual([])

  const { audit } = await startCore({ url: databaseUrl })
  await audit.takeOver()
  await audit.chain()
  const [entry] = await whole({ audit })
  expect(entry).toMatchObject({ seq: 1, call: 'machines.release', target: 'lon1-4y3h7n', outcome: 'unknown' })
})

test('attempts that were counted outlive a server that is killed: their entry is there within a second, and ends when its name starts again', async () => {
  const databaseUrl = await partitionDatabase()
  const killed = await startCore({ url: databaseUrl })
  const refused = {
    caller: { name: 'anonymous', role: 'public' as const },
    from: '192.0.2.7',
    code: 'unauthenticated' as const,
    reason: 'no',
  }
  for (let count = 0; count < 3; count++) killed.audit.refused({ call: 'machines.list', ...refused })
  await killed.audit.chain()
  killed.audit.refused({ call: 'machines.list', ...refused })
  await killed.audit.chain()
  // It is still being counted, and in nobody's list.
  expect(await whole(killed)).toEqual([])

  const { audit } = await startCore({ url: databaseUrl })
  await audit.takeOver()
  await audit.chain()
  const entries = await whole({ audit })
  expect(entries).toMatchObject([{ call: 'door.refused', target: 'machines.list, 4 times: no', outcome: 'unauthenticated', result: null }])
  expect(await problemOf(entries)).toBeUndefined()
  // The one before was only held up: what it counts from now on is told as well, once.
  killed.audit.refused({ call: 'machines.list', ...refused })
  await killed.audit.chain()
  await killed.audit.settled()
  await audit.chain()
  expect((await whole({ audit })).map(({ target }) => target)).toEqual(['machines.list, 4 times: no', 'machines.list, once: no'])
})

test('two replicas chain one log: no number twice, none left out, and every entry in it', async () => {
  const databaseUrl = await partitionDatabase()
  const cores = await Promise.all([startCore({ url: databaseUrl }), startCore({ url: databaseUrl })])
  const changes = Array.from({ length: 300 }, (_, index) =>
    (cores[index % 2] as TestCore).audit.carryOut({ ...asked, call: 'machines.lock', requestId: `r${index}` }, async () => ({
      id: `m${index}`,
    })),
  )
  const chaining = (async () => {
    for (let round = 0; round < 30; round++) await Promise.all(cores.map(core => core.audit.chain()))
  })()
  await Promise.all([...changes, chaining])
  await Promise.all(cores.map(core => core.audit.settled()))
  for (const core of cores) while ((await core.audit.chain()) === 'more');
  const entries = await whole(cores[0])
  expect(entries.map(({ seq }) => seq)).toEqual(Array.from({ length: 300 }, (_, index) => index + 1))
  expect(new Set(entries.map(({ requestId }) => requestId)).size).toBe(300)
  expect(await problemOf(entries)).toBeUndefined()
})

test('whoever changes the table, or takes from it, is found out', async () => {
  const core = await startCore()
  for (let index = 0; index < 5; index++) await core.audit.carryOut({ ...asked, call: 'machines.lock' }, async () => ({ id: `m${index}` }))
  await core.audit.settled()
  await core.audit.chain()
  const before = await whole(core)
  expect(await problemOf(before)).toBeUndefined()

  await core.sql`update audit set actor = 'mallory' where seq = 3`
  expect(await problemOf(await whole(core))).toBe('entry 3 (mallory, machines.lock) or one before it is not what was written')
  await core.sql`update audit set actor = 'alice' where seq = 3`
  expect(await problemOf(await whole(core))).toBeUndefined()
  await core.sql`delete from audit where seq = 5`
  expect(await problemOf(await whole(core))).toMatch(/bear no signature/)
})

test('who was not let in is written down with address and reason, counted, and never with what was sent', async () => {
  const partition = await runPartition()
  const wrong = 'planted-wrong-token-81cc'
  for (let count = 0; count < 3; count++) await partition.ask('GET', '/api/v1/machines', { token: wrong })
  await expect(partition.as('rita').machines.lock({ id: 'lon1-4y3h7n', reason: 'x' })).rejects.toMatchObject({ code: 'forbidden' })
  await partition.ask('GET', '/api/v1/machines')
  // They are written when their minute is over, and when the server stops.
  await partition.core.audit.settled()
  const entries = await chained(partition, 2)
  expect(entries).toMatchObject([
    {
      actor: 'anonymous',
      role: 'public',
      from: '127.0.0.1',
      call: 'door.refused',
      target: 'machines.list, 3 times: the token is not known here',
      outcome: 'unauthenticated',
    },
    {
      actor: 'rita',
      role: 'read-only',
      call: 'door.refused',
      target: 'machines.lock, once: machines.lock needs the role user; this token has read-only',
      outcome: 'forbidden',
    },
  ])
  expect(JSON.stringify(entries)).not.toContain(wrong)
  expect(await problemOf(entries)).toBeUndefined()
})

test('who comes to a door for machines with a token that is none is written down; a machine whose work is over is not', async () => {
  const partition = await runPartition({ bootOrigins: { trust: 'any', proxies: ['127.0.0.1'] } })
  const { seal } = partition.core
  const machine = await addMachine(partition.core, { state: 'deployed', run: 'r2', owner: 'alice' })
  const [id, run, signature] = machineToken(seal, 'agent', { id: machine.id, run: 'r2' }).split('.')
  const wrong = `${id}.${run}.${signature?.split('').reverse().join('')}`
  const asks: [string, string, Record<string, string>][] = [
    ['GET', '/agent/job', { authorization: `Bearer ${wrong}` }],
    ['POST', '/agent/signal', { authorization: `Bearer ${wrong}` }],
    ['GET', `/metadata/${wrong}/user-data`, {}],
    ['GET', '/MAAS/metadata/latest/user-data', { authorization: oauth(wrong) }],
    ['POST', `/bmc-events/${wrong}`, {}],
  ]
  for (const [method, path, headers] of asks)
    expect([401, 404]).toContain((await partition.ask(method, path, { headers: { ...headers, 'x-forwarded-for': '192.0.2.5' } })).status)

  // An agent that still asks after its run, a system that was released, one whose machine is gone, and who sends nothing.
  const old = (purpose: 'agent' | 'metadata', of = machine.id) => machineToken(seal, purpose, { id: of, run: 'r1' })
  const normal: [string, string, Record<string, string>][] = [
    ['POST', '/agent/signal', { authorization: `Bearer ${old('agent')}` }],
    ['GET', `/metadata/${old('metadata')}/meta-data`, {}],
    ['GET', '/MAAS/metadata/latest/user-data', { authorization: oauth(old('metadata', 'lon1-4y3h7n')) }],
    ['GET', '/agent/job', {}],
  ]
  for (const [method, path, headers] of normal) expect(await partition.ask(method, path, { headers })).toMatchObject({ status: 401 })

  await partition.core.audit.settled()
  const entries = await chained(partition, 2)
  const common = { actor: 'anonymous', role: 'public', from: '192.0.2.5', call: 'door.refused' }
  expect(entries.toSorted((one, other) => (one.target < other.target ? -1 : 1))).toMatchObject([
    { ...common, target: 'bmc-events, once: nobody is told anything here', outcome: 'not-found' },
    { ...common, target: 'several calls, 4 times: the machine token is not known here', outcome: 'unauthenticated' },
  ])
  for (const text of [JSON.stringify(entries), ...partition.lines]) expect(text).not.toContain(wrong.slice(-20))
})

function oauth(token: string): string {
  const [consumer, key, secret] = token.split('.')
  return `OAuth oauth_consumer_key="${consumer}", oauth_token="${key}", oauth_signature_method="PLAINTEXT", oauth_signature="%26${secret}"`
}
