import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Call, mayAct } from '@muster/shared/contract/call'
import { type CallName, calls } from '@muster/shared/contract/contract'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { createAuthenticator } from '../src/http/auth.ts'
import { compilePlans } from '../src/http/plan.ts'
import { createLog } from '../src/log.ts'
import { hashToken, newToken, openTokens } from '../src/tokens.ts'
import { type TestDoor, testDoor, testTokens, tokenOf, tokenRoles } from './door-for-tests.ts'

describe('every route × every role', () => {
  let door: TestDoor
  beforeAll(async () => {
    door = await testDoor({}, 'caller')
  })
  afterAll(() => door.close())

  for (const [name, call] of calls)
    test(`${name} needs ${call.role}`, async () => {
      const url = call.rest.path
        .replace('{id}', name.startsWith('allocations') ? 'a-000000000000' : 'lon1-nobody')
        .replace('{name}', 'nothing')
      for (const role of [...tokenRoles, 'none'] as const) {
        // An input that no call accepts: who may is answered before what.
        const { status } = await door.send(call.rest.method, `${url}?no-such-field=1`, { role })
        const expected = role === 'none' ? (call.role === 'public' ? 422 : 401) : mayAct(role, call.role) ? 422 : 403
        expect(`${role} ${status}`).toBe(`${role} ${expected}`)
      }
    })
})

test('a call without a role, and a role nobody has, stop the start', () => {
  const [name, call] = [...calls][0] as [CallName, Call]
  const { role: _, ...without } = call
  expect(() => compilePlans(new Map([[name, without as Call]]))).toThrow('machines.list declares no role')
  expect(() => compilePlans(new Map([[name, { ...call, role: 'root' as never }]]))).toThrow('declares no role')
  const other: CallName = 'machines.get'
  expect(() =>
    compilePlans(
      new Map([
        [name, call],
        [other, call],
      ]),
    ),
  ).toThrow('two calls are served at GET /api/v1/machines')
})

test('a token must be known, and be a bearer token', async () => {
  const door = await testDoor()
  for (const authorization of ['Bearer wrong', 'Basic dXNlcjpwYXNz', 'Bearer ', tokenOf('admin')]) {
    const answer = await door.send('GET', '/whoami', { role: 'none', headers: { authorization } })
    expect(answer).toMatchObject({ status: 401, body: { code: 'unauthenticated' } })
    expect(answer.headers.get('www-authenticate')).toContain('Bearer')
  }
  expect(await door.send('GET', '/whoami', { role: 'user' })).toMatchObject({ body: { caller: { name: 'user', role: 'user' } } })
  expect(JSON.stringify(door.lines)).not.toContain(tokenOf('admin'))
})

test('wrong tokens are limited per address; tokens that were right from there go on', () => {
  let time = 0
  const limited: string[] = []
  const auth = createAuthenticator({
    tokens: testTokens,
    limit: { failures: 3, windowMs: 60_000 },
    now: () => time,
    onLimit: address => limited.push(address),
  })
  const ask = (token: string, address: string) => {
    try {
      return auth.authenticate(`Bearer ${token}`, address).name
    } catch (error) {
      return (error as { code: string }).code
    }
  }
  expect(ask(tokenOf('user'), '10.0.0.1')).toBe('user')
  expect([1, 2, 3, 4].map(() => ask('wrong', '10.0.0.1'))).toEqual([
    'unauthenticated',
    'unauthenticated',
    'unauthenticated',
    'too-many-requests',
  ])
  expect(ask(tokenOf('user'), '10.0.0.1')).toBe('user')
  // Right, but not known to come from there: it may have been found by trying, so it is not told.
  expect(ask(tokenOf('admin'), '10.0.0.1')).toBe('too-many-requests')
  expect(ask(tokenOf('admin'), '10.0.0.2')).toBe('admin')
  expect(ask('wrong', '10.0.0.2')).toBe('unauthenticated')
  expect(limited).toEqual(['10.0.0.1'])
  time = 60_000
  expect(ask(tokenOf('admin'), '10.0.0.1')).toBe('admin')
})

test('over HTTP the limit is a 429 that says when to come back', async () => {
  const door = await testDoor({ failureLimit: { failures: 1, windowMs: 60_000 } })
  const headers = { authorization: 'Bearer wrong' }
  expect((await door.send('GET', '/whoami', { role: 'none', headers })).status).toBe(401)
  const { status, headers: answered } = await door.send('GET', '/whoami', { role: 'none', headers })
  expect(status).toBe(429)
  expect(Number(answered.get('retry-after'))).toBeGreaterThan(50)
})

test('the tokens file is read again when it changes; a broken one changes nothing', async () => {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-tokens-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  const file = path.join(folder, 'tokens.json')
  const write = (...names: string[]) =>
    writeFileSync(file, JSON.stringify({ tokens: names.map(name => ({ name, role: 'admin', sha256: hashToken(name) })) }))
  const lines: string[] = []
  const log = createLog({ level: 'info', name: 'test', destination: { write: line => void lines.push(line) } })
  expect(() => openTokens({ file, log })).toThrow(/read tokens from .*ENOENT/)
  writeFileSync(file, '{"tokens":[{"name":"a","role":"public","sha256":"00"}]}')
  expect(() => openTokens({ file, log })).toThrow(/sha256/)

  write('first')
  const tokens = openTokens({ file, log, everyMs: 10 })
  onTestFinished(tokens.close)
  expect(tokens.find('first')).toEqual({ name: 'first', role: 'admin' })
  const until = async (token: string, is: 'known' | 'unknown') => {
    for (let tries = 0; (tokens.find(token) ? 'known' : 'unknown') !== is; tries++) {
      expect(tries).toBeLessThan(200)
      await sleep(10)
    }
  }
  write('second')
  await until('second', 'known')
  expect(tokens.find('first')).toBeUndefined()
  writeFileSync(file, '{ half a fi')
  while (lines.length === 0) await sleep(10)
  expect(lines[0]).toContain('stay in force')
  expect(tokens.find('second')).toBeDefined()
  write('third')
  await until('third', 'known')
})

test('a new token has 256 bits and is found by its hash', () => {
  const { token, sha256 } = newToken()
  expect(Buffer.from(token, 'base64url')).toHaveLength(32)
  expect(hashToken(token)).toBe(sha256)
})
