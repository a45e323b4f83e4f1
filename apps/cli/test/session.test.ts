// Logins: where they are kept, which of them wins, and that a token is never shown or sent to a stranger.
import { spawn, spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, expect, test } from 'vitest'
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

test.skipIf(!hasScript)('on a terminal the token is asked for and not shown', async () => {
  const main = fileURLToPath(new URL('../src/main.ts', import.meta.url))
  const child = spawn('script', ['-qec', `${process.execPath} ${main} login ${server.url}`, '/dev/null'], {
    cwd: home.folder,
    env: { PATH: process.env.PATH, HOME: home.folder, NO_COLOR: '1' },
  })
  let shown = ''
  let hasTyped = false
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    shown += text
    if (hasTyped || !shown.includes('token for')) return
    hasTyped = true
    child.stdin.write(`${token}\r`)
  })
  const code = await new Promise(resolve => child.once('close', resolve))
  expect(shown).toContain('logged in to front front1 as ann')
  expect(shown).not.toContain(token)
  expect(code).toBe(0)
})
