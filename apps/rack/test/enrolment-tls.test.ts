// A partition becomes part of a federation whose front and broker have certificates of authorities of their own: by the authority's file, by its fingerprint, and told what is wrong
// where neither fits. The front is a process with its settings, the broker a nats-server with certificates of openssl.
import { spawn } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { findProgram } from '@muster/embedded/find-program'
import { natsUrlIn } from '@muster/embedded/nats-server'
import { freshDatabase } from '@muster/embedded/test-postgres'
import { migrateHome } from '@muster/front/global/db/generations'
import { readSettings } from '@muster/partition/config'
import { migrate } from '@muster/partition/db/migrate'
import { startPartition } from '@muster/partition/partition'
import { createLog } from '@muster/server/log'
import { hashToken, newToken } from '@muster/server/tokens'
import { type Client, createClient } from '@muster/shared/client'
import { randomText } from '@muster/shared/ids'
import { plainFetch } from '@muster/shared/trust/plain-fetch'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { certify, makeAuthority } from '../../../libs/server/test/certificate.ts'

const program = findProgram('nats-server') && findProgram('openssl') && 'nats-server'
if (program === undefined && process.env.CI) throw new Error('no nats-server or openssl on PATH; CI must prove enrolment by TLS')
if (program === undefined) console.warn('SKIPPED: no nats-server or openssl on PATH: enrolment by TLS is NOT TESTED here')

const frontMain = fileURLToPath(new URL('../../front/src/main.ts', import.meta.url))
const { token: adminToken } = newToken()
const patient = { timeout: 30_000, interval: 50 }
const stops: (() => Promise<void> | void)[] = []
let folder: string
let tokensFile: string
/** `port`: of HTTPS; `authority`: the front's own, a file. */
let front: { port: number; authority: string; admin: Client }

beforeAll(async () => {
  if (program === undefined) return
  folder = mkdtempSync(path.join(tmpdir(), 'muster-enrolment-tls-'))
  stops.push(() => rmSync(folder, { recursive: true, force: true }))
  tokensFile = path.join(folder, 'tokens.json')
  writeFileSync(tokensFile, JSON.stringify({ tokens: [{ name: 'admin', role: 'admin', sha256: hashToken(adminToken) }] }))
  makeAuthority(folder, 'other')
  front = await startFront(await startBroker(program))
}, 60_000)
afterAll(async () => {
  for (let stop = stops.pop(); stop; stop = stops.pop()) await stop()
}, 60_000)

/** A nats-server that takes TLS only. Everybody may come in: who may is another test's. */
async function startBroker(natsServer: string): Promise<string> {
  makeAuthority(folder, 'broker')
  const { cert, key } = certify(folder, 'broker', 'IP:127.0.0.1')
  const config = path.join(folder, 'nats.conf')
  writeFileSync(config, JSON.stringify({ listen: '127.0.0.1:-1', ports_file_dir: folder, tls: { cert_file: cert, key_file: key } }))
  const server = spawn(natsServer, ['-c', config], { stdio: 'ignore' })
  stops.push(() => void server.kill('SIGKILL'))
  return vi.waitUntil(() => natsUrlIn(path.join(folder, `nats-server_${server.pid}.ports`)), patient)
}

async function startFront(natsUrl: string): Promise<typeof front> {
  const home = await freshDatabase({ template: 'global', migrate: migrateHome })
  stops.push(() => home.drop())
  const child = spawn(process.execPath, [frontMain], {
    env: {
      PATH: process.env.PATH,
      NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE,
      NATS_URL: natsUrl,
      NATS_CA_FILE: path.join(folder, 'broker.crt'),
      MUSTER_TOKENS_FILE: tokensFile,
      MUSTER_CONFIG_KEY: '09'.repeat(32),
      MUSTER_GLOBAL_DATABASE_URL: home.url,
      MUSTER_TLS: 'own',
      MUSTER_TLS_DIR: path.join(folder, 'tls'),
      MUSTER_TLS_PORT: '0',
      MUSTER_TLS_NAMES: '127.0.0.1,front.example.org',
      PORT: '0',
    },
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  stops.push(() => void child.kill('SIGKILL'))
  let output = ''
  child.stderr?.on('data', chunk => {
    output += chunk
  })
  const port = await vi.waitUntil(() => /"secureUrl":"https:[^"]*:(\d+)","msg":"the door is open"/.exec(output)?.[1], patient)
  const authority = path.join(folder, 'tls', 'ca.crt')
  const admin = createClient({
    url: `https://127.0.0.1:${port}`,
    token: adminToken,
    fetch: plainFetch(readFileSync(authority, 'utf8')),
  })
  return { port: Number(port), authority, admin }
}

/** Starts a partition with these settings, as its process would. */
async function startOne(name: string, more: Record<string, string>) {
  const database = await freshDatabase({ template: 'partition', migrate: async url => void (await migrate(url)) })
  stops.push(() => database.drop())
  const own: (() => Promise<void> | void)[] = []
  stops.push(async () => {
    for (let end = own.pop(); end; end = own.pop()) await end()
  })
  const { settings } = readSettings({
    MUSTER_PARTITION: name,
    DATABASE_URL: database.url,
    MUSTER_DATABASE_CONNECTIONS: '4',
    MUSTER_KEY: '01'.repeat(32),
    MUSTER_TOKENS_FILE: tokensFile,
    MUSTER_FILES: path.join(folder, 'files'),
    MUSTER_JOIN_URL: `https://127.0.0.1:${front.port}`,
    MUSTER_JOIN_TOKEN: 'none',
    PORT: '0',
    ...more,
  })
  const running = await startPartition({
    settings,
    log: createLog({ level: 'fatal', name: 'test' }),
    own: (_, end) => own.push(end),
    onSuperseded: () => undefined,
  })
  const admin = createClient({ url: running.url, token: adminToken })
  return { ...running, problems: async () => (await admin.partitions.get({ name })).problems }
}

async function joinToken(): Promise<string> {
  const { token, sha256 } = newToken()
  const [createdAt, expiresAt] = [new Date(), new Date(Date.now() + 3_600_000)].map(date => date.toISOString())
  await front.admin.config.change({ put: [{ kind: 'join', name: `j-${randomText(12)}`, document: { sha256, createdAt, expiresAt } }] })
  return token
}

/** Fronts know it, which they do when they hear it on the bus. */
const heard = async (name: string) =>
  (await front.admin.partitions.list({})).items.some(partition => partition.name === name && partition.status !== 'silent')

test.skipIf(program === undefined)(
  'front and broker are believed by file or fingerprint, and the broker by what the front hands over',
  {
    timeout: 120_000,
  },
  async () => {
    // Accepted at once, being the first; that the broker has an authority of its own the front told it.
    await startOne('lon1', { MUSTER_JOIN_CA: front.authority, MUSTER_JOIN_TOKEN: await joinToken() })
    await vi.waitUntil(() => heard('lon1'), patient)

    const { fingerprint256 } = new X509Certificate(readFileSync(front.authority))
    const par2 = await startOne('par2', { MUSTER_JOIN_FINGERPRINT: fingerprint256, MUSTER_JOIN_TOKEN: await joinToken() })
    await vi.waitUntil(async () => (await front.admin.enrolment.list()).items.length > 0, patient)
    await front.admin.enrolment.accept({ name: 'par2', operatingSystems: [] })
    await vi.waitUntil(() => heard('par2'), patient)
    expect(await par2.problems()).toEqual([])

    // What the partition's own settings say of the broker counts before that, and what is wrong with it is told.
    const rom3 = await startOne('rom3', {
      MUSTER_JOIN_CA: front.authority,
      MUSTER_JOIN_TOKEN: await joinToken(),
      NATS_CA: path.join(folder, 'other.crt'),
    })
    await vi.waitUntil(async () => (await front.admin.enrolment.list()).items.length > 0, patient)
    await front.admin.enrolment.accept({ name: 'rom3', operatingSystems: [] })
    const problem = await vi.waitUntil(async () => (await rom3.problems()).find(text => text.includes('not on the bus')), patient)
    expect(problem).toMatch(/^not on the bus: nats at tls:.*not from the authority in NATS_CA/)
  },
)

test.skipIf(program === undefined)(
  'a front that is not believed is told where the partition shows its problems, with what to set',
  {
    timeout: 120_000,
  },
  async () => {
    const cases: [string, Record<string, string>, RegExp][] = [
      ['mad1', {}, /not from an authority that is believed here: set MUSTER_JOIN_CA .* or MUSTER_JOIN_FINGERPRINT/],
      ['mad2', { MUSTER_JOIN_CA: path.join(folder, 'other.crt') }, /not from an authority that is believed here: set MUSTER_JOIN_CA/],
      ['mad3', { MUSTER_JOIN_FINGERPRINT: 'ab'.repeat(32) }, /it shows [0-9A-F:]{95} and [0-9A-F:]{95}; correct MUSTER_JOIN_FINGERPRINT/],
      [
        'mad4',
        { MUSTER_JOIN_CA: front.authority, MUSTER_JOIN_URL: `https://localhost:${front.port}` },
        /localhost.*front\.example\.org.*one of these in MUSTER_JOIN_URL, or add this one to MUSTER_TLS_NAMES of the front/s,
      ],
    ]
    for (const [name, settings, reason] of cases) {
      const partition = await startOne(name, settings)
      expect(await vi.waitUntil(async () => (await partition.problems())[0], patient), name).toMatch(reason)
    }
  },
)
