// People with passwords: what they get for one, how long it is good, and what guessing brings.
import { changed, type Documents, noDocuments } from '@muster/shared/global/documents'
import { hashPassword, isPassword, passwordProblem } from '@muster/shared/password'
import fc from 'fast-check'
import { beforeAll, describe, expect, test } from 'vitest'
import { tokensOfAll } from '../src/global/people.ts'
import { createSigner, createVerifier } from '../src/global/signature.ts'
import { longestSessionMs, readSessionToken, sessionToken } from '../src/sessions/session-token.ts'
import { createSessions, type SessionsOptions } from '../src/sessions/sessions.ts'
import { testDoor, testTokens } from './door-for-tests.ts'
import { modelBackend } from './model-backend.ts'

const signer = createSigner('07'.repeat(32), 'session')
const verifier = createVerifier([signer.publicKey], 'session')
const password = 'correct horse battery staple'
let hash: string
beforeAll(async () => {
  hash = await hashPassword(password)
})

describe('a password', () => {
  test('is known by its hash again, however its letters were typed, and no other is', async () => {
    expect(await isPassword(password, hash)).toBe(true)
    expect(await isPassword(`${password}.`, hash)).toBe(false)
    expect(await isPassword('cafe\u0301 cafe\u0301 cafe\u0301', await hashPassword('caf\u00e9 caf\u00e9 caf\u00e9'))).toBe(true)
  })

  test('has the hash that argon2 itself makes of it', async () => {
    // echo -n password | argon2 somesalt12345678 -id -t 2 -k 19456 -p 1 -l 32 -e
    expect(await hashPassword('password', Buffer.from('somesalt12345678'))).toMatch(
      /^\$argon2id\$v=19\$m=19456,t=2,p=1\$c29tZXNhbHQxMjM0NTY3OA\$[A-Za-z0-9+/]{43}$/,
    )
  })

  test('is refused where it is short, the own name, or one letter', () => {
    expect(passwordProblem('alice', password)).toBeUndefined()
    expect(passwordProblem('alice', 'eleven char')).toContain('at least 12')
    expect(passwordProblem('alice.anderson', 'Alice.Anderson1')).toContain('name of the user')
    expect(passwordProblem('alice', 'aaaaaaaaaaaaaaaa')).toContain('repeats')
    expect(passwordProblem('alice', 'x'.repeat(1025))).toContain('at most')
  })
})

describe("a session's token", () => {
  const session = fc
    .record({
      user: fc.string({ minLength: 1, maxLength: 64 }),
      mark: fc.string({ maxLength: 20 }),
      start: fc.integer({ min: 0, max: 4_000_000_000 }),
      length: fc.integer({ min: 1, max: longestSessionMs / 1000 }),
    })
    .map(({ user, mark, start, length }) => ({ user, mark, startedAt: start * 1000, expiresAt: (start + length) * 1000 }))

  test('says what was put into it, and fits a header', () => {
    fc.assert(
      fc.property(session, one => {
        const token = sessionToken(one, signer)
        expect(readSessionToken(token, verifier)).toEqual(one)
        expect(token).toMatch(/^[\x21-\x7e]{1,1024}$/)
      }),
    )
  })

  test('with one character changed says nothing', () => {
    fc.assert(
      fc.property(session, fc.nat(), fc.constantFrom(...'abcXYZ019-_.='), (one, at, other) => {
        const token = sessionToken(one, signer)
        const place = at % token.length
        const changed = token.slice(0, place) + other + token.slice(place + 1)
        // The last character of base64url carries bits that nobody reads: another spelling of the same session.
        const isSame = (text: string) => text.split('.').map(part => Buffer.from(part, 'base64url').toString('hex'))
        fc.pre(isSame(changed).slice(1).join() !== isSame(token).slice(1).join() || changed.slice(0, 4) !== 'ms1.')
        expect(readSessionToken(changed, verifier)).toBeUndefined()
      }),
    )
  })

  test('of another key, another purpose, too long a time or more than this release knows says nothing', () => {
    const one = { user: 'alice', mark: '', startedAt: 0, expiresAt: 60_000 }
    expect(readSessionToken(sessionToken(one, createSigner('08'.repeat(32), 'session')), verifier)).toBeUndefined()
    expect(readSessionToken(sessionToken(one, signer.as('global configuration')), verifier)).toBeUndefined()
    expect(readSessionToken(sessionToken({ ...one, expiresAt: longestSessionMs + 1000 }, signer), verifier)).toBeUndefined()
    expect(readSessionToken(sessionToken({ ...one, expiresAt: 0 }, signer), verifier)).toBeUndefined()
    const { payload, key, signature } = signer.sign(JSON.stringify({ u: 'alice', m: '', i: 0, e: 60, pools: ['mine'] }))
    const parts = [Buffer.from(payload), Buffer.from(key, 'hex'), Buffer.from(signature, 'base64')]
    expect(readSessionToken(['ms1', ...parts.map(part => part.toString('base64url'))].join('.'), verifier)).toBeUndefined()
  })
})

/** Users with a password, or without; a clock that stands still until it is moved. */
function people(options: Partial<SessionsOptions> = {}) {
  const put = (before: Documents, name: string, document: Record<string, unknown>) => {
    const outcome = changed(before, { put: [{ kind: 'user', name, document }], delete: [] })
    if ('problems' in outcome) throw new Error(JSON.stringify(outcome.problems))
    return outcome.documents
  }
  const world = { now: Date.parse('2026-11-27T12:00:00Z'), documents: noDocuments, logged: [] as string[] }
  const set = (name: string, document: Record<string, unknown>) => {
    world.documents = put(world.documents, name, document)
  }
  set('alice', { role: 'operator', password: hash })
  set('bob', { role: 'user' })
  const log = { info: () => undefined, warn: (_: object, text: string) => void world.logged.push(text) }
  const sessions = createSessions({
    signer,
    verifier,
    validAt: 'everywhere',
    documents: () => world.documents,
    log,
    now: () => world.now,
    ...options,
  })
  const login = (user: string, given = password, address = '10.0.0.1', lifetime?: string) =>
    sessions.login({ user, password: given, lifetime }, { from: address, signal: AbortSignal.timeout(10_000) })
  const refusal = (...given: Parameters<typeof login>) =>
    login(...given).then(
      () => 'let in',
      (error: { code: string; message: string }) => `${error.code}: ${error.message}`,
    )
  return { world, set, sessions, login, refusal }
}

describe('a session', () => {
  test('lets its user in with the role of the moment, until it expires', async () => {
    const { world, set, sessions, login } = people()
    const { token, expiresAt, caller } = await login('alice')
    expect({ expiresAt, caller }).toEqual({ expiresAt: '2026-11-28T00:00:00.000Z', caller: { name: 'alice', role: 'operator' } })
    const owner = sessions.tokens.find(token)
    expect(owner).toEqual({ name: 'alice', role: 'operator' })
    expect(sessions.tokens.find(token)).toBe(owner)
    set('alice', { role: 'read-only', pools: ['lab'], password: hash })
    expect(sessions.tokens.find(token)).toEqual({ name: 'alice', role: 'read-only', pools: ['lab'] })
    expect((await login('alice')).caller).toEqual({ name: 'alice', role: 'read-only', pools: ['lab'] })
    world.now += 12 * 3_600_000
    expect(sessions.tokens.find(token)).toBeUndefined()
    expect(sessions.tokens.ended?.(token)).toBe('the session of alice expired at 2026-11-28T00:00:00.000Z')
    expect((await login('alice', password, '10.0.0.1', '15m')).expiresAt).toBe('2026-11-28T00:15:00.000Z')
    await expect(login('alice', password, '10.0.0.1', '25h')).rejects.toMatchObject({ code: 'invalid-input' })
  })

  test.each([
    ['its user is disabled', { role: 'operator', status: 'disabled' }, 'is disabled'],
    ['the password becomes another', { role: 'operator', password: 'another' }, 'way to log in was changed'],
    ['the password is taken away', { role: 'operator' }, 'way to log in was changed'],
    ['an admin ends it', { role: 'operator', sessions: 'ended' }, 'were ended'],
  ])('ends when %s', async (_, document, why) => {
    const { set, sessions, login } = people()
    const { token } = await login('alice')
    const next =
      'password' in document ? await hashPassword('another password') : 'status' in document || 'sessions' in document ? hash : undefined
    set('alice', { ...document, ...(next !== undefined && { password: next }) })
    expect(sessions.tokens.find(token)).toBeUndefined()
    expect(sessions.tokens.ended?.(token)).toContain(why)
  })

  test('is not taken over by a new user of the same name', async () => {
    const { world, set, sessions, login } = people()
    const { token } = await login('alice')
    world.documents = noDocuments
    expect(sessions.tokens.find(token)).toBeUndefined()
    set('alice', { role: 'admin', password: hash })
    expect(sessions.tokens.find(token)).toBeUndefined()
  })

  test('of a partition is good there and nowhere else; of a front, wherever its key is trusted', async () => {
    const partition = createSigner('09'.repeat(32), 'session')
    const here = people({ signer: partition, verifier: createVerifier([partition.publicKey, signer.publicKey], 'session') })
    const front = people()
    front.world.documents = here.world.documents
    const [local, wide] = [await here.login('alice'), await front.login('alice')]
    expect(here.sessions.tokens.find(local.token)?.name).toBe('alice')
    expect(here.sessions.tokens.find(wide.token)?.name).toBe('alice')
    expect(front.sessions.tokens.find(local.token)).toBeUndefined()
  })
})

describe('guessing', () => {
  test('learns nothing about who there is: same words, and the same work', async () => {
    const { set, refusal } = people()
    set('carol', { role: 'user', status: 'disabled', password: hash })
    const wrong = 'not the password at all'
    const answers = await Promise.all([
      refusal('alice', wrong),
      refusal('bob', wrong),
      refusal('nobody', wrong),
      refusal('carol', password),
      refusal('constructor', wrong),
    ])
    expect(new Set(answers)).toEqual(new Set(['unauthenticated: log in: user and password do not belong together']))
    // Work is counted in hashes, which the clock tells: twice the one cannot hide behind the other's noise ten times over.
    const took = async (user: string) => {
      const startedAt = performance.now()
      for (let index = 0; index < 4; index++) await refusal(user, wrong, `10.1.${index}.${user.length}`)
      return performance.now() - startedAt
    }
    const [known, unknown] = [await took('alice'), await took('nobody')]
    expect(unknown / known).toBeGreaterThan(0.2)
    expect(unknown / known).toBeLessThan(5)
  })

  test('is stopped per address and per user, also by many at once; who logged in from there before still can', async () => {
    const limits = { address: { failures: 4, windowMs: 60_000 }, user: { failures: 6, windowMs: 300_000 } }
    const { world, refusal } = people({ limits })
    expect(await refusal('alice', password, 'home')).toBe('let in')
    const codes = (answers: string[]) => answers.map(answer => answer.split(':')[0])
    const burst = await Promise.all(Array.from({ length: 10 }, (_, index) => refusal('alice', `wrong password ${index}`, 'far')))
    expect(codes(burst).sort()).toEqual([...Array(6).fill('too-many-requests'), ...Array(4).fill('unauthenticated')])
    expect(await refusal('bob', password, 'far')).toContain('too-many-requests: log in: too many wrong passwords came from this address')
    for (const place of ['far2', 'far3']) await refusal('alice', 'wrong password', place)
    // A name that nobody has is refused alike: else the refusal would tell who there is.
    for (let index = 0; index < 6; index++) await refusal('nobody', 'wrong password', `place ${index}`)
    expect(await refusal('nobody', 'wrong password', 'elsewhere')).toContain(
      'too many wrong passwords came for this user; try again in 300 s',
    )
    expect(await refusal('alice', password, 'elsewhere')).toContain('for this user')
    expect(await refusal('alice', password, 'home')).toBe('let in')
    expect(world.logged).toHaveLength(3)
    world.now += 300_000
    expect(await refusal('alice', password, 'elsewhere')).toBe('let in')
  })

  test('of hundreds at once is turned away before it takes the memory', async () => {
    const limits = { address: { failures: 1000, windowMs: 60_000 }, user: { failures: 1000, windowMs: 60_000 } }
    const { refusal } = people({ limits })
    const answers = await Promise.all(Array.from({ length: 60 }, () => refusal('alice', 'wrong password')))
    expect(answers.filter(answer => answer.startsWith('overloaded')).length).toBeGreaterThanOrEqual(20)
    expect(answers.filter(answer => answer.startsWith('unauthenticated')).length).toBeGreaterThanOrEqual(30)
  })
})

test('over HTTP: a password buys a token, wrong ones buy nothing, and neither is in the log', async () => {
  const { world, sessions } = people({ limits: { address: { failures: 3, windowMs: 60_000 }, user: { failures: 3, windowMs: 60_000 } } })
  const backend = modelBackend()
  backend.instead.set('session.login', (input, context) => sessions.login(input as never, context))
  const door = await testDoor({ backend, tokens: tokensOfAll([testTokens, sessions.tokens]) })
  const post = (body: object) => door.send('POST', '/session', { role: 'none', body })
  const begun = await post({ user: 'alice', password })
  expect(begun).toMatchObject({ status: 200, body: { caller: { name: 'alice', role: 'operator' }, validAt: 'everywhere' } })
  const { token } = begun.body as { token: string }
  const whoami = () => door.send('GET', '/whoami', { role: 'none', headers: { authorization: `Bearer ${token}` } })
  expect(await whoami()).toMatchObject({ status: 200, body: { caller: { name: 'alice' } } })
  expect(await post({ user: 'alice', password: 'planted-wrong-password' })).toMatchObject({
    status: 401,
    body: { code: 'unauthenticated' },
  })
  expect((await post({ user: 'alice', password, admin: true })).status).toBe(422)
  for (let index = 0; index < 2; index++) await post({ user: 'alice', password: 'planted-wrong-password' })
  const limited = await post({ user: 'bob', password })
  expect(limited).toMatchObject({ status: 429, body: { code: 'too-many-requests' } })
  expect(Number(limited.headers.get('retry-after'))).toBeGreaterThan(0)
  world.now += 13 * 3_600_000
  for (let index = 0; index < 30; index++)
    expect(await whoami()).toMatchObject({ status: 401, body: { detail: expect.stringContaining('expired'), hint: expect.any(String) } })
  for (const secret of [password, 'planted-wrong-password', token, hash]) expect(door.lines.join('\n')).not.toContain(secret)
})
