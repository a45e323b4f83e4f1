// Who is shut out, or limited to fewer pools, while something of theirs is open: streams of events and requests that wait, at a front and at a partition.
import { newToken } from '@muster/server/tokens'
import { createClient } from '@muster/shared/client'
import { Refusal } from '@muster/shared/errors'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { makeReady, type Servers, startServers, until } from './servers.ts'

/** What is promised: a revocation is in force everywhere within so long. */
const promisedMs = 5_000
let servers: Servers
let one: Servers['partitions'][number]

beforeAll(async () => {
  servers = await startServers(['one'])
  one = servers.partitions[0] as typeof one
})
afterAll(async () => {
  await servers?.[Symbol.asyncDispose]()
})

type Change = Parameters<Servers['front']['as']['admin']['config']['change']>[0]

async function change(input: Change): Promise<void> {
  const { generation } = await servers.front.as.admin.config.change(input)
  await until(() => one.core.configuration.generation >= generation, promisedMs)
}

let tokens = 0

/** A new user with a token of its own, and what takes both away. */
async function newUser(name: string) {
  const { token, sha256 } = newToken()
  const [createdAt, expiresAt] = [0, 3_600_000].map(inMs => new Date(Date.now() + inMs).toISOString())
  const its = { kind: 'token' as const, name: `t-${String(++tokens).padStart(12, '0')}` }
  await change({
    put: [
      { kind: 'user', name, document: { role: 'user' } },
      { ...its, document: { user: name, role: 'user', sha256, createdAt, expiresAt } },
    ],
  })
  return { token, revoke: () => change({ delete: [its, { kind: 'user', name }] }) }
}

/** Opens a stream of events, over REST or tRPC, and gives its text so far, as it grows. */
async function openStream(url: string, path: string, token: string) {
  const stop = new AbortController()
  const headers = { authorization: `Bearer ${token}`, accept: 'text/event-stream' }
  const response = await fetch(url + path, { headers, signal: stop.signal })
  expect(response.status).toBe(200)
  const stream = { text: '', ended: false }
  const read = async () => {
    for await (const chunk of response.body ?? []) stream.text += Buffer.from(chunk).toString()
  }
  const reading = read()
    .catch(() => undefined)
    .finally(() => {
      stream.ended = true
    })
  onTestFinished(async () => {
    stop.abort()
    await reading
  })
  return stream
}

let macs = 0

async function addMachine(pool = 'default'): Promise<string> {
  const mac = `02:00:00:12:00:${(macs++).toString(16).padStart(2, '0')}`
  return (await one.as.operator.machines.create({ interfaces: [{ mac }], arch: 'amd64', pool })).id
}

async function addReady(pool?: string): Promise<string> {
  const id = await addMachine(pool)
  await makeReady(one, [id])
  return id
}

/** The same stream at both servers and through both doors. */
const openStreams = (token: string) =>
  Promise.all(
    [servers.front.url, one.url].flatMap(url => ['/api/v1/events/stream', '/trpc/events.stream'].map(path => openStream(url, path, token))),
  )

const outcomeOf = (asked: Promise<unknown>) =>
  asked.then(
    () => 'answered',
    error => (error instanceof Refusal ? error.code : String(error)),
  )

const stateOf = async (id: string) => (await one.as.operator.machines.get({ id })).state

test('open streams of a user who is deleted end within five seconds, and show nothing any more', async () => {
  const eve = await newUser('eve')
  const streams = await openStreams(eve.token)
  const seen = await addMachine()
  await until(() => streams.every(({ text }) => text.includes(seen)))

  await eve.revoke()
  await until(() => streams.every(({ ended }) => ended), promisedMs)
  const after = await addMachine()
  for (const { text } of streams) {
    expect(text).not.toContain(after)
    // Why, for who looks; a client that comes back is told the same.
    expect(text).toContain('the token is not known here')
  }
})

test('open streams of a user who is limited to pools go on within these', async () => {
  const nina = await newUser('nina')
  const streams = await openStreams(nina.token)
  const before = await addMachine('prod')
  await until(() => streams.every(({ text }) => text.includes(before)))
  await change({ put: [{ kind: 'user', name: 'nina', document: { role: 'user', pools: ['lab'] } }] })
  const hidden = await addMachine('prod')
  const shown = await addMachine('lab')
  await until(() => streams.every(({ text }) => text.includes(shown)))
  for (const { text, ended } of streams) expect([text.includes(hidden), ended]).toEqual([false, false])
})

test('a request that waits ends with its user, and takes no machine', async () => {
  const mallory = await newUser('mallory')
  const waiting = [servers.front.url, one.url].flatMap(url => [
    outcomeOf(createClient({ url, token: mallory.token }).allocations.create({ wait: '1m' })),
    outcomeOf(createClient({ url, token: mallory.token }).allocations.create({ wait: '1m' }, { idempotencyKey: 'again' })),
  ])
  // They have been let in, and have looked in vain more than once: these come after them, and a second is two looks.
  for (const url of [servers.front.url, one.url]) await createClient({ url, token: mallory.token }).session.whoami()
  await new Promise(resolve => setTimeout(resolve, 1_000))
  await mallory.revoke()
  const machine = await addReady()
  const ended = await Promise.race([Promise.all(waiting), new Promise(resolve => setTimeout(resolve, promisedMs, 'still waiting'))])
  expect(ended).toEqual(['unauthenticated', 'unauthenticated', 'unauthenticated', 'unauthenticated'])
  expect(await stateOf(machine)).toBe('ready')
  await one.as.operator.machines.delete({ id: machine })
})

test('a request that waits is given machines of the pools that are left to its user, and of no others', async () => {
  const olga = await newUser('olga')
  const waiting = [servers.front.url, one.url].map(url => createClient({ url, token: olga.token }).allocations.create({ wait: '1m' }))
  await change({ put: [{ kind: 'user', name: 'olga', document: { role: 'user', pools: ['lab'] } }] })
  const other = await addReady('prod')
  const theirs = [await addReady('lab'), await addReady('lab')]
  const given = (await Promise.all(waiting)).flatMap(({ machines }) => machines.map(({ id }) => id))
  expect(given.sort()).toEqual(theirs.sort())
  expect(await stateOf(other)).toBe('ready')
})
