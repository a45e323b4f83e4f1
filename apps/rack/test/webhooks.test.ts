// A webhook over a federation: written at a front, told by every partition of its own events; its secret is readable nowhere on the way.
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Event } from '@muster/shared/contract/events'
import postgres from 'postgres'
import { Webhook } from 'standardwebhooks'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { type Servers, startServers, until } from './servers.ts'

let servers: Servers
beforeAll(async () => {
  servers = await startServers(['lon1', 'par2'])
}, 60_000)
afterAll(() => servers?.[Symbol.asyncDispose]())

test('every partition tells it, with the secret that was said once; what it would not take is sent again when asked', {
  timeout: 60_000,
}, async () => {
  const admin = servers.front.as.admin
  const told: Event[] = []
  const kept: string[] = []
  let secret = ''
  let status = 410
  const server = createServer(async (request, response) => {
    const body = (await request.toArray()).join('')
    const { data } = new Webhook(secret).verify(body, request.headers as Record<string, string>) as { data: { events: Event[] } }
    kept.push(request.headers['webhook-id'] as string)
    if (status === 204) told.push(...data.events)
    response.writeHead(status).end()
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => void server.close())
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`

  const dry = await admin.config.change({ put: [{ kind: 'webhook', name: 'audit', document: { url } }], dryRun: true })
  expect(dry).toMatchObject({ outcome: 'dry-run', secrets: [], differences: [{ after: { url, secret: 'sealed' } }] })
  const written = await admin.config.change({ put: [{ kind: 'webhook', name: 'audit', document: { url } }] })
  secret = written.secrets[0]?.secret as string
  expect(written.secrets).toMatchObject([{ kind: 'webhook', name: 'audit', field: 'secret' }])
  expect(JSON.stringify(written.differences)).not.toContain(secret)
  await until(async () => (await admin.webhooks.deliveries({})).items.length === 2)

  const mac = (last: string) => [{ mac: `52:54:00:99:00:${last}` }]
  const lon = await admin.machines.create({ partition: 'lon1', hostname: 'one', interfaces: mac('01') })
  const par = await admin.machines.create({ partition: 'par2', hostname: 'two', interfaces: mac('02') })
  await until(async () => (await admin.webhooks.deadLetters({})).items.length === 2)
  status = 204
  expect(await admin.webhooks.replay({ name: 'audit' })).toMatchObject({
    items: [
      { partition: 'lon1', letters: 1 },
      { partition: 'par2', letters: 1 },
    ],
    coverage: { answered: 2 },
  })
  await until(async () => (await admin.webhooks.deadLetters({})).items.length === 0)
  expect(new Set(kept).size).toBe(2)
  expect(told.map(({ partition, machine }) => `${partition} ${machine}`).sort()).toEqual([`lon1 ${lon.id}`, `par2 ${par.id}`].sort())
  const read = await servers.front.as['read-only'].events.list({})
  expect(read.items.filter(({ machine }) => machine === lon.id || machine === par.id)).toEqual(expect.arrayContaining(told))
  expect((await admin.webhooks.deliveries({})).items).toMatchObject([
    { partition: 'lon1', behind: 0, deadLetters: 0 },
    { partition: 'par2', behind: 0, deadLetters: 0 },
  ])

  const shown = [
    await admin.config.get({}),
    await admin.config.diff({ from: 0 }),
    await admin.config.history({}),
    await admin.audit.list({}),
    await admin.audit.fronts({}),
    await servers.partitions[0]?.as.admin.config.get({}),
  ]
  const sql = postgres(servers.partitions[0]?.databaseUrl as string, { max: 1 })
  const rows = await sql`select payload from global_configuration`
  await sql.end()
  const bare = secret.slice('whsec_'.length)
  expect(JSON.stringify(rows)).toContain('sealed:')
  expect(JSON.stringify(rows)).not.toContain(bare)
  expect(JSON.stringify(shown)).not.toContain(bare)
  expect(JSON.stringify(shown)).not.toContain('sealed:')
})
