// Logins: where they are kept, which of them wins, and that a token is never shown or sent to a stranger.
import { spawn, spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Refusal } from '@muster/shared/errors'
import { isPassword } from '@muster/shared/password'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { aHome, type Home } from './muster.ts'
import { startServer, type TestServer, token } from './server.ts'

let server: TestServer
let home: Home
beforeEach(async () => {
  server = await startServer()
  home = aHome()
})
afterEach(async () => {
  home[Symbol.dispose]()
  await server[Symbol.asyncDispose]()
})

// Several programs start in each test, on a machine that may be busy.
vi.setConfig({ testTimeout: 120_000 })

const configFile = () => join(home.folder, '.config', 'muster', 'config.json')
const aFile = (name: string, text: string) => {
  const path = join(home.folder, name)
  writeFileSync(path, text)
  return path
}

test('a login is tried, then kept for its owner alone, and its token is never shown', async () => {
  const login = await home.muster(['login', server.url, '--token-stdin'], { stdin: `${token}\n` })
  expect(login).toEqual({ code: 0, stdout: 'logged in to front front1 as ann (admin), profile default\n', stderr: '' })
  expect(statSync(configFile()).mode & 0o777).toBe(0o600)
  const runs = await Promise.all([home.muster(['whoami', '-v']), home.muster(['profile', 'list', '-o', 'json', '-v'])])
  for (const { code, stdout, stderr } of [login, ...runs]) {
    expect(code).toBe(0)
    expect(stdout + stderr).not.toContain(token)
  }
  expect(await home.muster(['logout'])).toMatchObject({ code: 0 })
  expect(readFileSync(configFile(), 'utf8')).not.toContain(token)
  expect(await home.muster(['whoami'])).toMatchObject({ code: 2, stderr: expect.stringContaining('no server is known') })
})

test('a token that the server refuses is not kept', async () => {
  const path = aFile('token', 'not-the-token')
  expect(await home.muster(['login', server.url, '--token-file', path])).toMatchObject({ code: 6 })
  expect(() => statSync(configFile())).toThrow()
})

test('no option takes a token, or a password of a BMC, from the command line', async () => {
  const [help, allocate, secret] = await Promise.all([
    home.muster(['login', '--help']),
    home.muster(['login', server.url, '--token', token]),
    home.muster(['machine', 'create', '--mac', '52:54:00:12:34:56', '--power-setting', 'password=hunter2']),
  ])
  expect(help.stdout).not.toMatch(/--token[ =<]/)
  expect(allocate).toMatchObject({ code: 2, stderr: expect.not.stringContaining(token) })
  expect(secret).toMatchObject({ code: 2, stderr: expect.stringContaining('does not belong on a command line') })
  expect(server.asked).toEqual([])
})

test('flags come before the environment, the environment before the profile, the profile before ./.muster', async () => {
  await using other = await startServer()
  other.answers['session.whoami'] = () => ({
    caller: { name: 'bob', role: 'user' },
    server: { kind: 'partition', name: 'lon1', version: '1' },
  })
  const tokenFile = aFile('token', token)
  const whoami = async (words: string[] = [], env: Record<string, string> = {}) =>
    (await home.muster(['whoami', '-o', 'name', '-v', ...words], { env })).stdout.trim()

  mkdirSync(join(home.folder, '.muster'))
  aFile('.muster/cli.json', JSON.stringify({ url: other.url, token }))
  const local = await home.muster(['whoami', '-o', 'name', '-v'])
  expect(local).toMatchObject({ stdout: 'bob\n', stderr: expect.stringContaining('(.muster/cli.json)') })

  expect(await home.muster(['login', server.url, '--token-file', tokenFile])).toMatchObject({ code: 0 })
  expect(await whoami()).toBe('ann')
  expect(await whoami([], { MUSTER_URL: other.url, MUSTER_TOKEN_FILE: tokenFile })).toBe('bob')
  expect(await whoami(['--url', server.url], { MUSTER_URL: other.url, MUSTER_TOKEN: token })).toBe('ann')
  expect(await whoami(['--profile', 'default'], { MUSTER_URL: other.url, MUSTER_TOKEN: token })).toBe('ann')

  expect(await home.muster(['login', other.url, '--token-file', tokenFile, '--profile', 'lon1'])).toMatchObject({ code: 0 })
  expect(await whoami()).toBe('bob')
  expect(await home.muster(['profile', 'use', 'default'])).toMatchObject({ code: 0 })
  expect(await whoami()).toBe('ann')
})

test("a profile's token is not sent to another server", async () => {
  await using stranger = await startServer()
  await home.muster(['login', server.url, '--token-stdin'], { stdin: token })
  const ended = await home.muster(['whoami', '--url', stranger.url])
  expect(ended).toMatchObject({ code: 6, stderr: expect.stringContaining('no token is known for') })
  expect(stranger.asked).toEqual([])
})

test('a damaged configuration is told without showing what is in it', async () => {
  mkdirSync(join(home.folder, '.config', 'muster'), { recursive: true })
  writeFileSync(configFile(), `{"token": "${token}"`)
  const ended = await home.muster(['whoami'])
  expect(ended.code).toBe(2)
  expect(ended.stderr).not.toContain(token)
})

// Only a terminal is asked, and Node has no pseudo-terminal: util-linux's `script` makes one where it is installed.
const hasScript = spawnSync('script', ['--version']).stdout?.includes('util-linux')

/** Runs muster on a terminal; types `lines`, each when its question has been asked. */
async function onTerminal(words: string, typed: readonly { question: string; line: string }[]): Promise<{ shown: string; code: unknown }> {
  const main = fileURLToPath(new URL('../src/main.ts', import.meta.url))
  const child = spawn('script', ['-qec', `${process.execPath} ${main} ${words}`, '/dev/null'], {
    cwd: home.folder,
    env: { PATH: process.env.PATH, HOME: home.folder, NO_COLOR: '1', NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE },
  })
  const waiting = [...typed]
  let shown = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    shown += text
    const next = waiting[0]
    if (!next || !shown.includes(next.question)) return
    waiting.shift()
    child.stdin.write(`${next.line}\r`)
  })
  const code = await new Promise(resolve => child.once('close', resolve))
  return { shown, code }
}

test.skipIf(!hasScript)('on a terminal the token is asked for and not shown', async () => {
  const { shown, code } = await onTerminal(`login ${server.url}`, [{ question: 'token for', line: token }])
  expect(shown).toContain('logged in to front front1 as ann')
  expect(shown).not.toContain(token)
  expect(code).toBe(0)
})

const password = 'planted correct horse battery'

function letAnnIn() {
  server.answers['session.login'] = given => {
    if (given.user !== 'ann' || given.password !== password)
      throw new Refusal('unauthenticated', 'log in: user and password do not belong together')
    return { token, expiresAt: '2026-11-28T12:34:56.000Z', caller: { name: 'ann', role: 'admin' }, validAt: 'here' }
  }
}

test('a user logs in with a password from a file or a pipe, and the token of the session is kept', async () => {
  letAnnIn()
  const login = await home.muster(['login', server.url, '--user', 'ann', '--password-stdin', '--lifetime', '2h'], {
    stdin: `${password}\n`,
  })
  expect(login).toEqual({
    code: 0,
    stdout: 'logged in to front front1 as ann (admin), profile default\n',
    stderr: 'the session is good until 2026-11-28 12:34 UTC, at this partition only\n',
  })
  expect(server.asked[0]).toMatchObject({ name: 'session.login', input: { user: 'ann', lifetime: '2h' } })
  const kept = readFileSync(configFile(), 'utf8')
  expect(JSON.parse(kept).profiles.default).toEqual({ url: server.url, token, user: 'ann' })
  expect(kept).not.toContain(password)
  expect(await home.muster(['whoami', '-o', 'name'])).toMatchObject({ stdout: 'ann\n' })

  const wrong = await home.muster(['login', '--password-file', aFile('wrong', 'planted-wrong-password')])
  expect(wrong).toMatchObject({ code: 6, stderr: expect.stringContaining('do not belong together') })
  expect(wrong.stderr).not.toContain('planted-wrong-password')
  expect(readFileSync(configFile(), 'utf8')).toBe(kept)
})

test('a token, a password and a provider exclude each other, and a password is somebody', async () => {
  const refused = [['--user', 'ann', '--token-stdin'], ['--user', 'ann'], ['--password-stdin'], ['--oidc', 'corp', '--user', 'ann']]
  const ended = await Promise.all(refused.map(words => home.muster(['login', server.url, ...words], { stdin: token })))
  expect(ended.map(({ code }) => code)).toEqual([2, 2, 2, 2])
  expect(server.asked).toEqual([])
})

test('a session that ended is told as such, with what to do; one can be ended everywhere', async () => {
  letAnnIn()
  await home.muster(['login', server.url, '--user', 'ann', '--password-stdin'], { stdin: password })
  server.answers['session.whoami'] = () => {
    throw new Refusal('unauthenticated', 'the session of ann expired at 2026-11-28T12:34:56.000Z', { hint: 'log in again: muster login' })
  }
  const ended = await home.muster(['whoami'])
  expect(ended).toMatchObject({
    code: 6,
    stderr: expect.stringMatching(/the session of ann expired at .*\n {2}hint: log in again: muster login\n/),
  })
  server.answers['session.logout'] = () => ({ generation: 7 })
  expect(await home.muster(['logout', '--everywhere'])).toMatchObject({
    code: 0,
    stderr: expect.stringContaining('all sessions are ended'),
  })
  expect(readFileSync(configFile(), 'utf8')).not.toContain(token)
})

test('one changes its own password, and the profile goes on with the new session', async () => {
  letAnnIn()
  await home.muster(['login', server.url, '--user', 'ann', '--password-stdin'], { stdin: password })
  const next = 'planted and quite another'
  const files = ['--old-password-file', aFile('old', password), '--password-file', aFile('new', `${next}\n`)]
  server.answers['session.password'] = given => {
    if (given.password !== password) throw new Refusal('unauthenticated', 'log in: user and password do not belong together')
    return {
      token: 'ms1.the.second.session',
      expiresAt: '2026-11-28T12:34:56.000Z',
      caller: { name: 'ann', role: 'user' },
      validAt: 'everywhere',
      generation: 9,
    }
  }
  expect(await home.muster(['password', ...files.slice(0, 3), aFile('short', 'short')])).toMatchObject({
    code: 2,
    stderr: expect.stringContaining('at least 12'),
  })
  const done = await home.muster(['password', ...files])
  expect(done).toMatchObject({
    code: 0,
    stdout: 'password of ann changed; all other sessions are ended\n',
    stderr: 'profile default is logged in anew\n',
  })
  expect(server.asked.at(-1)).toMatchObject({ name: 'session.password', input: { password, newPassword: next } })
  const kept = readFileSync(configFile(), 'utf8')
  expect(JSON.parse(kept).profiles.default).toEqual({ url: server.url, token: 'ms1.the.second.session', user: 'ann' })
  for (const secret of [password, next]) expect(kept + done.stdout + done.stderr).not.toContain(secret)
})

test("SSH keys of one's own are added from a file, listed and removed; a private one never leaves this computer", async () => {
  await home.muster(['login', server.url, '--token-stdin'], { stdin: token })
  const key = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB ann@laptop'
  server.answers['keys.put'] = () => ({ generation: 5 })
  server.answers['keys.list'] = () => ({ items: [{ name: 'laptop', key }] })
  server.answers['keys.delete'] = () => ({ generation: 6 })
  expect(await home.muster(['key', 'add', 'laptop', aFile('id.pub', `# mine\n${key}\n`)])).toMatchObject({
    code: 0,
    stdout: 'SSH key laptop added\n',
  })
  expect(server.asked.at(-1)).toMatchObject({ name: 'keys.put', input: { name: 'laptop', key } })
  expect((await home.muster(['key', 'list'])).stdout).toContain('ann@laptop')
  expect(await home.muster(['key', 'remove', 'laptop'])).toMatchObject({ code: 0 })
  const asked = server.asked.length
  const secret = aFile('id', '-----BEGIN OPENSSH PRIVATE KEY-----\nplanted\n-----END OPENSSH PRIVATE KEY-----\n')
  expect(await home.muster(['key', 'add', 'more', secret])).toMatchObject({ code: 2, stderr: expect.stringContaining('private key') })
  expect(await home.muster(['key', 'add', 'more', aFile('two', `${key}\n${key}\n`)])).toMatchObject({ code: 2 })
  expect(server.asked).toHaveLength(asked)
})

test('a user that is deleted leaves its groups in the same change', async () => {
  await withBob({ displayName: '', role: 'user', status: 'active' })
  const rest = { generation: 4, changedAt: null, changedBy: '', note: '', source: 'here' }
  const group = { kind: 'group' as const, name: 'lab', document: { description: '', members: ['ann', 'bob'] } }
  const other = { kind: 'group' as const, name: 'web', document: { description: '', members: ['ann'] } }
  const bob = { kind: 'user' as const, name: 'bob', document: {} }
  const its = { kind: 'token' as const, name: 't-000000000001', document: { user: 'bob' } }
  server.answers['config.get'] = () => ({ ...rest, documents: [bob, group, other, its] })
  await home.muster(['user', 'delete', 'bob'])
  expect(server.asked.at(-1)?.input).toMatchObject({
    put: [{ kind: 'group', name: 'lab', document: { members: ['ann'] } }],
    delete: [
      { kind: 'token', name: 't-000000000001' },
      { kind: 'user', name: 'bob' },
    ],
    expectedGeneration: 4,
  })
})

test.skipIf(!hasScript)('on a terminal the password is asked for and not shown, and a profile remembers whose it is', async () => {
  letAnnIn()
  const typed = [{ question: 'password of ann at', line: password }]
  for (const words of [`login ${server.url} --user ann`, 'login']) {
    const { shown, code } = await onTerminal(words, typed)
    expect(shown).toContain('logged in to front front1 as ann')
    expect(shown).not.toContain(password)
    expect(code).toBe(0)
  }
})

/** Bob, as the configuration of the server has him; what is written is in `server.asked`. */
async function withBob(document: Record<string, unknown>) {
  await home.muster(['login', server.url, '--token-stdin'], { stdin: token })
  const rest = { generation: 4, changedAt: null, changedBy: '', note: '', source: 'here' }
  server.answers['config.get'] = () => ({ ...rest, documents: [{ kind: 'user', name: 'bob', document }] })
  server.answers['config.change'] = () => ({ generation: 5, outcome: 'written', differences: [], secrets: [] })
}

test('a password that is set is hashed here; what is wrong with one is told before anything is sent', async () => {
  await withBob({ displayName: '', role: 'user', status: 'active' })
  const set = (text: string) => home.muster(['user', 'password', 'bob', '--password-stdin'], { stdin: text })
  expect(await set('short')).toMatchObject({ code: 2, stderr: expect.stringContaining('at least 12 characters') })
  expect(await set(`${password}\n`)).toMatchObject({ code: 0, stdout: expect.stringContaining('generation 5 is in force') })
  const written = server.asked.filter(({ name }) => name === 'config.change').map(({ input }) => input)
  expect(written).toHaveLength(1)
  expect(written[0]).toMatchObject({ expectedGeneration: 4, note: 'user bob: password set' })
  const { put } = written[0] as { put: { document: Record<string, string> }[] }
  expect(await isPassword(password, put[0]?.document.password as string)).toBe(true)
  expect(JSON.stringify(written)).not.toContain(password)
})

test("a password is taken away, and a user's sessions are ended", async () => {
  const document = { displayName: '', role: 'user', status: 'active', password: 'hidden:abcdefgh' }
  await withBob(document)
  await home.muster(['user', 'password', 'bob', '--remove'])
  expect(server.asked.at(-1)?.input).toMatchObject({ put: [{ document: expect.not.objectContaining({ password: expect.anything() }) }] })
  await home.muster(['user', 'logout', 'bob'])
  expect(server.asked.at(-1)?.input).toMatchObject({ put: [{ document: { ...document, sessions: 'ended' } }] })
})

test('a user is bound to a person at a provider, whose subject may be any text, and let go of it', async () => {
  const document = { displayName: '', role: 'user', status: 'active', oidc: { provider: 'corp', subject: '1' } }
  await withBob(document)
  const written = async (...words: string[]) => {
    const { code } = await home.muster(['user', 'update', 'bob', ...words])
    const { put } = (server.asked.at(-1)?.input ?? {}) as { put?: { document: Record<string, unknown> }[] }
    return code === 0 ? put?.[0]?.document : code
  }
  expect(await written('--oidc', 'corp/auth0|a/b')).toEqual({ ...document, oidc: { provider: 'corp', subject: 'auth0|a/b' } })
  expect(await written('--role', 'operator')).toEqual({ ...document, role: 'operator' })
  expect(await written('--oidc', 'none')).not.toHaveProperty('oidc')
  expect(await written('--oidc', 'corp')).toBe(2)
})

test.skipIf(!hasScript)('a new password is asked for twice, and one that was mistyped is not set', async () => {
  await home.muster(['login', server.url, '--token-stdin'], { stdin: token })
  const { shown, code } = await onTerminal('user password bob', [
    { question: 'new password of bob', line: password },
    { question: 'the same again', line: `${password}?` },
  ])
  expect(shown).toContain('the two are not the same')
  expect(shown).not.toContain(password)
  expect(code).toBe(2)
  expect(server.asked.map(({ name }) => name)).toEqual(['session.whoami'])
})
