// Webhooks by command line: made with a secret that is shown once, paused, watched, replayed.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { CallOutput } from '@muster/shared/contract/contract'
import { expect, test } from 'vitest'
import { eachWithServer } from './ground.ts'
import type { Home } from './muster.ts'
import { type TestServer, wholeCoverage } from './server.ts'

let server: TestServer
let home: Home
eachWithServer((own, empty) => {
  server = own
  home = empty
})

const audit = { url: 'https://a.example/hook', events: ['*'], status: 'active', description: '' }
const secret = 'whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0'

function holds(documents: Record<string, object>): void {
  const listed = Object.entries(documents).map(([name, document]) => ({ kind: 'webhook' as const, name, document: { ...document } }))
  server.answers['config.get'] = () => ({
    generation: 7,
    changedAt: '2026-01-02T03:04:05Z',
    changedBy: 'root',
    note: '',
    source: 'test',
    documents: listed,
  })
}

function takes(secrets: CallOutput<'config.change'>['secrets']): void {
  server.answers['config.change'] = () => ({ generation: 8, outcome: 'written', differences: [], secrets })
}

const lastChange = () => server.asked.findLast(({ name }) => name === 'config.change')?.input

test('create prints the secret that the front made and nothing else, so that it can go into a file', async () => {
  holds({})
  takes([{ kind: 'webhook', name: 'audit', field: 'secret', secret }])
  const { code, stdout, stderr } = await home.muster([
    'webhook',
    'create',
    'audit',
    '--to',
    audit.url,
    '--event',
    'power.*',
    '--event',
    'machine.moved',
  ])
  expect([code, stdout]).toEqual([0, `${secret}\n`])
  expect(stderr).toContain('it is shown this once')
  expect(lastChange()).toMatchObject({
    put: [{ kind: 'webhook', name: 'audit', document: { url: audit.url, events: ['power.*', 'machine.moved'] } }],
    expectedGeneration: 7,
  })
})

test('create takes a secret of one’s own from a file, and does not show it again', async () => {
  holds({})
  takes([])
  writeFileSync(join(home.folder, 'secret'), `${secret}\n`)
  const { code, stdout, stderr } = await home.muster(['webhook', 'create', 'audit', '--to', audit.url, '--secret-file', 'secret'])
  expect(code).toBe(0)
  expect(stdout + stderr).not.toContain(secret)
  expect(lastChange()).toMatchObject({ put: [{ document: { secret } }] })
})

test('update changes what is given, leaves the secret alone, or makes another', async () => {
  holds({ audit })
  takes([])
  const paused = await home.muster(['webhook', 'update', 'audit', '--status', 'paused'])
  expect(paused.code).toBe(0)
  expect(lastChange()).toMatchObject({ put: [{ name: 'audit', document: { ...audit, status: 'paused' } }] })
  expect(JSON.stringify(lastChange())).not.toContain('secret')
  const anew = await home.muster(['webhook', 'update', 'audit', '--new-secret'])
  expect(anew.stdout).toMatch(/^whsec_[A-Za-z0-9+/]{43}=\n$/)
  expect(lastChange()).toMatchObject({ put: [{ document: { ...audit, secret: anew.stdout.trim() } }] })
  expect((await home.muster(['webhook', 'update', 'other', '--status', 'paused'])).stderr).toContain('there is no webhook other')

  await home.muster(['webhook', 'update', 'audit', '--pool', 'lab', '--pool', 'web'])
  expect(lastChange()).toMatchObject({ put: [{ document: { ...audit, pools: ['lab', 'web'] } }] })
  holds({ audit: { ...audit, pools: ['lab'] } })
  await home.muster(['webhook', 'update', 'audit', '--status', 'active'])
  expect(lastChange()).toMatchObject({ put: [{ document: { ...audit, pools: ['lab'] } }] })
  await home.muster(['webhook', 'update', 'audit', '--all-pools'])
  expect(lastChange()).toMatchObject({ put: [{ document: { ...audit } }] })
  expect(JSON.stringify(lastChange())).not.toContain('pools')
})

test('status, dead and replay tell what each partition says', async () => {
  const at = new Date(Date.now() - 60_000).toISOString()
  const standing = { webhook: 'audit', status: 'active' as const, seq: 7, behind: 3, deliveredAt: at, failedAt: at, nextTryAt: at }
  const reason = 'POST https://a.example: HTTP 500'
  server.answers['webhooks.deliveries'] = () => ({
    items: [{ partition: 'lon1', ...standing, tries: 4, reason, deadLetters: 2 }],
    nextCursor: null,
    coverage: wholeCoverage,
  })
  const letter = { partition: 'lon1', webhook: 'audit', id: 1, batch: 'msg_1', from: 4, to: 7, firstTriedAt: at, diedAt: at }
  server.answers['webhooks.deadLetters'] = () => ({
    items: [{ ...letter, tries: 296, reason, status: 'dead' }],
    nextCursor: null,
    coverage: wholeCoverage,
  })
  server.answers['webhooks.replay'] = () => ({
    items: [{ partition: 'lon1', webhook: 'audit', letters: 2 }],
    nextCursor: null,
    coverage: wholeCoverage,
  })
  expect((await home.muster(['webhook', 'status'])).stdout).toMatch(/audit +lon1 +active +3 .*4 +2 +POST https:\/\/a\.example: HTTP 500/)
  expect((await home.muster(['webhook', 'dead', 'audit'])).stdout).toMatch(/audit +lon1 +4-7 .*296 +dead +POST/)
  expect((await home.muster(['webhook', 'replay', 'audit', '--partition', 'lon1'])).stdout).toMatch(/lon1 +2/)
  expect(server.asked.at(-1)).toMatchObject({ name: 'webhooks.replay', input: { name: 'audit', partition: ['lon1'] } })
})
