// The first admin of a new federation: fronts without a tokens file, on an empty database, make one token between them, show it where it was asked for and nowhere else, and none
// where there is an admin.
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { startBroker } from '@muster/embedded/broker'
import { findProgram } from '@muster/embedded/find-program'
import { freshDatabase } from '@muster/embedded/test-postgres'
import { migrateHome } from '@muster/front/global/db/generations'
import { hasAdmin } from '@muster/front/global/first-admin'
import { createClient } from '@muster/shared/client'
import { type Documents, noDocuments } from '@muster/shared/global/documents'
import { hashPassword } from '@muster/shared/password'
import { expect, onTestFinished, test, vi } from 'vitest'

const frontMain = fileURLToPath(new URL('../../front/src/main.ts', import.meta.url))
const patient = { timeout: 30_000, interval: 50 }

async function newFederation() {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-first-admin-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  const broker = await startBroker({ port: 0, token: 'bus' })
  onTestFinished(() => broker.close())
  const home = await freshDatabase({ template: 'global', migrate: migrateHome })
  onTestFinished(() => home.drop())
  const settings: Record<string, string> = {
    PATH: process.env.PATH as string,
    NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE as string,
    NATS_URL: broker.url,
    NATS_TOKEN: 'bus',
    MUSTER_CONFIG_KEY: '09'.repeat(32),
    MUSTER_GLOBAL_DATABASE_URL: home.url,
    PORT: '0',
  }
  return { folder, settings }
}

/** A front as a process. `output`: all that it wrote. */
function watched(child: ChildProcess) {
  onTestFinished(() => void child.kill('SIGKILL'))
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream?.on('data', chunk => (output += chunk))
  return {
    child,
    output: () => output,
    url: () => vi.waitUntil(() => /"url":"(http:[^"]+)"[^\n]*"the door is open"/.exec(output)?.[1], patient),
  }
}
const startFront = (env: Record<string, string>) =>
  watched(spawn(process.execPath, [frontMain], { env, stdio: ['ignore', 'pipe', 'pipe'] }))

test('two fronts start on an empty database: one makes a token, in a file for its owner, and it is good at both', {
  timeout: 120_000,
}, async () => {
  const { folder, settings } = await newFederation()
  const files = ['a', 'b'].map(name => path.join(folder, `${name}.token`))
  const fronts = files.map((file, index) => startFront({ ...settings, MUSTER_NAME: `front-${index}`, MUSTER_FIRST_TOKEN_FILE: file }))
  const urls = await Promise.all(fronts.map(front => front.url()))
  const file = await vi.waitUntil(() => files.find(each => existsSync(each) && statSync(each).size > 0), patient)
  const token = readFileSync(file, 'utf8').trim()
  expect(statSync(file).mode & 0o777).toBe(0o600)
  for (const url of urls) {
    const who = await vi.waitUntil(
      () =>
        createClient({ url, token })
          .session.whoami()
          .catch(() => undefined),
      patient,
    )
    expect(who.caller).toEqual({ name: 'first-admin', role: 'admin' })
  }
  // The other left nothing behind, and no log has it.
  await vi.waitUntil(() => files.filter(each => existsSync(each)).length === 1, patient)
  for (const front of fronts) expect(front.output()).not.toContain(token)
  const admin = createClient({ url: urls[0] as string, token })
  const tokens = (await admin.config.get({ kind: 'token' })).documents
  expect(tokens).toHaveLength(1)
  const hours = (Date.parse(String(tokens[0]?.document.expiresAt)) - Date.now()) / 3_600_000
  expect(hours).toBeGreaterThan(23)
  expect(hours).toBeLessThanOrEqual(24)
  expect((await admin.audit.fronts({})).items).toContainEqual(expect.objectContaining({ actor: 'first start', call: 'config.change' }))

  // With it the real admin is made, who ends it.
  const password = await hashPassword('a long enough password')
  await admin.config.change({ put: [{ kind: 'user', name: 'zoe', document: { role: 'admin', password } }] })
  const { token: session } = await createClient({ url: urls[0] as string }).session.login({
    user: 'zoe',
    password: 'a long enough password',
  })
  const zoe = createClient({ url: urls[0] as string, token: session })
  await zoe.config.change({
    delete: [
      { kind: 'token', name: tokens[0]?.name as string },
      { kind: 'user', name: 'first-admin' },
    ],
  })
  for (const url of urls)
    await vi.waitUntil(
      () =>
        createClient({ url, token })
          .session.whoami()
          .then(
            () => false,
            ({ code }) => code === 'unauthenticated',
          ),
      patient,
    )

  // Another start makes none: there is an admin.
  const third = startFront({ ...settings, MUSTER_NAME: 'front-2', MUSTER_FIRST_TOKEN_FILE: path.join(folder, 'c.token') })
  const url = await third.url()
  await vi.waitUntil(
    () =>
      createClient({ url, token: session })
        .session.whoami()
        .catch(() => undefined),
    patient,
  )
  expect((await zoe.config.get({ kind: 'token' })).documents).toEqual([])
  expect(existsSync(path.join(folder, 'c.token'))).toBe(false)
})

test('without a terminal and a file nothing is made, and what to set is said', { timeout: 60_000 }, async () => {
  const { settings } = await newFederation()
  const front = startFront(settings)
  await vi.waitUntil(() => /nobody can come in as an admin.*set MUSTER_FIRST_TOKEN_FILE/.test(front.output()), patient)
  const { MUSTER_CONFIG_KEY: _, ...less } = settings
  const lost = startFront(less)
  await vi.waitUntil(() => lost.child.exitCode !== null, patient)
  expect(lost.output()).toMatch(/MUSTER_TOKENS_FILE is not set: a file that says who may come in: .*sha256sum/)
})

test.skipIf(findProgram('script') === undefined)(
  'on a terminal it is shown there, once, and not in the log',
  { timeout: 60_000 },
  async () => {
    const { folder, settings } = await newFederation()
    const log = path.join(folder, 'log')
    const command = `exec ${process.execPath} ${frontMain} 2>${log}`
    const front = watched(
      spawn('script', ['-qefc', command, '/dev/null'], { env: { ...settings, SHELL: '/bin/sh' }, stdio: ['pipe', 'pipe', 'pipe'] }),
    )
    const token = await vi.waitUntil(() => /shown this once:\s+([\w-]{43})\s/.exec(front.output())?.[1], patient)
    const url = await vi.waitUntil(() => /"url":"(http:[^"]+)"[^\n]*"the door is open"/.exec(readFileSync(log, 'utf8'))?.[1], patient)
    expect((await createClient({ url, token }).session.whoami()).caller.role).toBe('admin')
    expect(readFileSync(log, 'utf8')).toContain('made a first token')
    expect(readFileSync(log, 'utf8')).not.toContain(token)
  },
)

test('an admin is who can come in as one', () => {
  const now = Date.parse('2027-01-01T00:00:00Z')
  const documents = (more: Partial<Record<keyof Documents, object>>) => ({ ...noDocuments, ...more }) as Documents
  const user = { role: 'admin', status: 'active', displayName: '' }
  const token = { user: 'a', role: 'admin', expiresAt: '2027-01-01T01:00:00Z' }
  expect(hasAdmin(documents({}), now)).toBe(false)
  expect(hasAdmin(documents({ user: { a: user } }), now), 'no way in').toBe(false)
  expect(hasAdmin(documents({ user: { a: { ...user, password: 'hash' } } }), now)).toBe(true)
  expect(hasAdmin(documents({ user: { a: { ...user, password: 'hash', status: 'disabled' } } }), now)).toBe(false)
  expect(hasAdmin(documents({ user: { a: { ...user, role: 'user', password: 'hash' } } }), now)).toBe(false)
  const group = { ops: { members: ['a'], role: 'admin' } }
  expect(hasAdmin(documents({ user: { a: { ...user, role: 'user', password: 'hash' } }, group }), now), 'by its group').toBe(true)
  expect(hasAdmin(documents({ user: { a: user }, token: { t: token } }), now)).toBe(true)
  expect(hasAdmin(documents({ user: { a: user }, token: { t: { ...token, role: 'user' } } }), now)).toBe(false)
  expect(hasAdmin(documents({ user: { a: user }, token: { t: token } }), now + 3_600_000), 'expired').toBe(false)
  const oidc = { corp: { roles: { ops: 'admin' }, groups: {}, status: 'active' } }
  expect(hasAdmin(documents({ oidc }), now)).toBe(true)
  expect(hasAdmin(documents({ oidc: { corp: { ...oidc.corp, status: 'disabled' } } }), now)).toBe(false)
})
