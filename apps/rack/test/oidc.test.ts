// People log in at an OpenID Connect provider: a real one, the command line's own code, a front's and a partition's doors, and a browser in this
// process. Who is not named, or brings a token that is not right, does not come in.
import { spawn } from 'node:child_process'
import { createHmac } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { createClient } from '@muster/shared/client'
import { Refusal } from '@muster/shared/errors'
import { exportSPKI, generateKeyPair, importJWK, SignJWT } from 'jose'
import { expect, onTestFinished, test, vi } from 'vitest'
import { codeOf, type Federation, startFederation } from './identity-federation.ts'
import { browse, clientId, startProvider, type TestProvider } from './identity-provider.ts'
import { until } from './servers.ts'

// Databases, servers, and processes that come and go, on a machine that may be busy.
vi.setConfig({ testTimeout: 120_000 })

const groups = { 'sub-dora': ['staff', 'ops'], 'sub-erin': ['staff'], 'sub-alice': ['ops'], 'sub-root': ['ops'] }

interface World extends Federation {
  readonly provider: TestProvider
  /** The document of the provider. */
  readonly document: Record<string, unknown>
}

/** Alice has a document that says who she is at the provider; dora is in a group that has a role; erin is nobody. */
async function startWorld(): Promise<World> {
  const provider = await startProvider(groups)
  onTestFinished(() => provider[Symbol.asyncDispose]())
  const federation = await startFederation()
  const { put, taken } = federation
  const document = { issuer: provider.issuer, clientId, nameClaim: 'preferred_username', roles: { ops: 'operator', auditors: 'read-only' } }
  await put('oidc', 'corp', document)
  await put('user', 'root', { role: 'admin' })
  await taken(await put('user', 'alice', { role: 'user', oidc: { provider: 'corp', subject: 'sub-alice' } }))
  return { ...federation, provider, document }
}

const main = fileURLToPath(import.meta.resolve('@muster/cli/main'))

/** A person at a terminal. */
function aPerson() {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-oidc-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  /** Runs muster; `meanwhile` is given what it says as long as it runs. */
  const muster = async (words: readonly string[], meanwhile: (said: string) => Promise<unknown> | undefined = () => undefined) => {
    const child = spawn(process.execPath, [main, ...words], {
      cwd: folder,
      env: { PATH: process.env.PATH, HOME: folder, NO_COLOR: '1', NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let [stdout, stderr] = ['', '']
    let doing: Promise<unknown> | undefined
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text
    })
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text
      doing ??= meanwhile(stderr)
    })
    const code = await new Promise<number | null>(resolve => child.once('close', resolve))
    return { code, stdout, stderr, page: await doing }
  }
  const kept = () => JSON.parse(readFileSync(path.join(folder, '.config', 'muster', 'config.json'), 'utf8'))
  return { muster, kept }
}

/** Opens the address that muster shows, and logs in there. */
const asBrowser = (login: string, pattern: RegExp) => (said: string) => {
  const address = pattern.exec(said)?.[1]
  return address === undefined ? undefined : browse(address, login)
}
const shownAddress = /\n\n {2}(http\S+)\n/
const deviceAddress = /or open (http\S+)\n/

async function refusalOf(asked: Promise<unknown>): Promise<string> {
  return asked.then(
    () => 'let in',
    (error: unknown) => (error instanceof Refusal ? `${error.code}: ${error.message}` : String(error)),
  )
}

test('with a browser: muster login --oidc ends with a session that is good everywhere', async () => {
  const { url, partitions, who } = await startWorld()
  const { muster, kept } = aPerson()
  const login = await muster(['login', url, '--oidc'], asBrowser('sub-alice', shownAddress))
  expect(login).toMatchObject({ code: 0, stdout: 'logged in to front front as alice (user), profile default\n' })
  expect(login.page).toContain('this window can be closed')
  const { token, oidc } = kept().profiles.default
  expect(oidc).toBe('corp')
  for (const place of [url, partitions.one.url, partitions.two.url])
    expect(await who(place, token)).toEqual({ name: 'alice', role: 'user' })
  expect(login.stdout + login.stderr).not.toContain(token)
  // The profile remembers the way.
  expect(await muster(['login'], asBrowser('sub-alice', shownAddress))).toMatchObject({ code: 0 })
})

test('with a device: muster login --oidc --device at a partition, by a group and without a document', async () => {
  const { url, partitions, who } = await startWorld()
  const { muster, kept } = aPerson()
  const login = await muster(['login', partitions.one.url, '--oidc', 'corp', '--device'], asBrowser('sub-dora', deviceAddress))
  expect(login).toMatchObject({ code: 0, stdout: 'logged in to partition one as dora (operator), profile default\n' })
  expect(login.stderr).toMatch(/enter the code [A-Z]{4}-[A-Z]{4}/)
  expect(login.stderr).toContain('at this partition only')
  const { token } = kept().profiles.default
  expect(await who(partitions.one.url, token)).toEqual({ name: 'dora', role: 'operator' })
  expect(await codeOf(who(url, token))).toBe('unauthenticated')
})

test('whom nobody names does not come in, nor who would be called as somebody else is', async () => {
  const { url, admin, put, provider } = await startWorld()
  const { muster } = aPerson()
  const erin = await muster(['login', url, '--oidc'], asBrowser('sub-erin', shownAddress))
  expect(erin).toMatchObject({ code: 6, stdout: '' })
  expect(erin.stderr).toContain('nobody here is "sub-erin" of corp')
  expect(erin.stderr).toContain('hint: an admin can say who you are: muster user create NAME --role user --oidc corp/sub-erin')

  const exchange = async (claims: Record<string, unknown>) =>
    refusalOf(createClient({ url }).session.exchange({ provider: 'corp', idToken: await provider.sign(claims) }))
  // In a group with a role, and named as an admin is who was made by hand.
  const root = { sub: 'sub-root', preferred_username: 'root', groups: ['ops'] }
  expect(await exchange(root)).toContain('forbidden: log in: nobody here is "sub-root" of corp: the user root is somebody else')
  expect(await exchange({ ...root, preferred_username: 'Röot' })).toContain('is no name for a user')
  expect(await exchange({ ...root, preferred_username: 'Roo', groups: 'ops' })).toBe('let in')
  expect(await exchange({ ...root, groups: ['constructor', 'toString'] })).toContain('forbidden')
  await put('user', 'alice', { role: 'user', status: 'disabled', oidc: { provider: 'corp', subject: 'sub-alice' } })
  expect(await exchange({ groups: ['ops'] })).toContain('the user alice is disabled')
  const { documents } = await admin.config.get({ kind: 'oidc' })
  expect(documents).toHaveLength(1)
})

test('an ID token that is not right is refused, for the reason that it is', async () => {
  const { url, provider, lines } = await startWorld()
  const client = createClient({ url })
  const exchange = (idToken: string, nonce?: string) =>
    refusalOf(client.session.exchange({ provider: 'corp', idToken, ...(nonce !== undefined && { nonce }) }))
  const now = Math.floor(Date.now() / 1000)
  const right = await provider.sign({})
  expect(await exchange(right)).toBe('let in')
  expect(await exchange(await provider.sign({ nonce: 'n-1' }), 'n-1')).toBe('let in')
  expect(await exchange(await provider.sign({ aud: [clientId, 'other'], azp: clientId }))).toBe('let in')

  const claims = { iss: provider.issuer, aud: clientId, sub: 'sub-alice', iat: now, exp: now + 300 }
  const { privateKey: strange } = await generateKeyPair('RS256')
  const signed = (key: Parameters<SignJWT['sign']>[0], header: { alg: string; kid?: string }) =>
    new SignJWT(claims).setProtectedHeader(header).sign(key)
  const base64 = (value: unknown) => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url')
  const unsigned = `${base64({ alg: 'none' })}.${base64(claims)}.`
  // A public key taken for the secret of a MAC: the oldest trick with JWTs.
  const { keys } = (await (await fetch(`${provider.issuer}/jwks`)).json()) as { keys: { alg: string }[] }
  const pem = await exportSPKI((await importJWK(keys[0] as object, 'RS256', { extractable: true })) as Parameters<typeof exportSPKI>[0])
  const macked = `${base64({ alg: 'HS256', kid: 'key-1' })}.${base64(claims)}`
  const [head, , tail] = right.split('.') as [string, string, string]
  const wrong: readonly (readonly [string, string, string?])[] = [
    [await provider.sign({ aud: 'another-client' }), 'unexpected "aud" claim value'],
    [await provider.sign({ aud: [clientId, 'other'] }), 'another client asked for it'],
    [await provider.sign({ azp: 'other' }), 'another client asked for it'],
    [await provider.sign({ iss: 'https://evil.example' }), `it is not from ${provider.issuer}`],
    [await provider.sign({ iat: now - 500, exp: now - 200 }), '"exp" claim timestamp check failed'],
    [await provider.sign({ iat: now - 3600, exp: now + 3600 }), '"iat" claim timestamp check failed'],
    [await provider.sign({ iat: now + 3600, exp: now + 7200 }), '"iat" claim timestamp check failed'],
    [await provider.sign({ nbf: now + 3600 }), '"nbf" claim timestamp check failed'],
    [await provider.sign({ sub: undefined }), 'missing required "sub" claim'],
    [await provider.sign({ exp: undefined }), 'missing required "exp" claim'],
    [await provider.sign({ nonce: 'n-1' }), 'its nonce is another', 'n-2'],
    [right, 'its nonce is another', 'n-2'],
    [await signed(strange, { alg: 'RS256', kid: 'key-2' }), 'no applicable key found'],
    [await signed(strange, { alg: 'RS256', kid: 'key-1' }), 'signature verification failed'],
    [unsigned, 'not signed in a way that is taken here'],
    [`${macked}.${createHmac('sha256', pem).update(macked).digest('base64url')}`, 'not signed in a way that is taken here'],
    [`${head}.${base64({ ...claims, sub: 'sub-dora' })}.${tail}`, 'signature verification failed'],
    ['not.a.token', ''],
  ]
  const asked = provider.keysAsked()
  for (const [idToken, why, nonce] of wrong) {
    const refusal = await exchange(idToken, nonce)
    expect(refusal, why).toMatch(/^unauthenticated: log in with the ID token of corp: /)
    expect(refusal).toContain(why)
  }
  // Nobody makes this server ask the provider by sending nonsense.
  expect(provider.keysAsked() - asked).toBeLessThanOrEqual(1)
  // That many are too many, from one address.
  for (let index = 0; index < 2; index++) await exchange('not.a.token')
  expect(await exchange(right)).toContain('too-many-requests')
  expect(await refusalOf(client.session.exchange({ provider: 'nowhere', idToken: right }))).toContain(
    'not-found: log in: there is no provider',
  )
  expect(lines.join('\n')).not.toContain(right.split('.')[2])
})

test('what an admin changes ends sessions: a group without its role, a person with a document, a provider that is disabled', async () => {
  const { url, provider, partitions, put, taken, who, admin, document } = await startWorld()
  const place = partitions.two.url
  const dora = { sub: 'sub-dora', preferred_username: 'dora', groups: groups['sub-dora'] }
  const login = async (claims: Record<string, unknown>) =>
    (await createClient({ url }).session.exchange({ provider: 'corp', idToken: await provider.sign(claims) })).token
  let [asDora, asAlice] = [await login(dora), await login({})]
  expect(await who(place, asDora)).toEqual({ name: 'dora', role: 'operator' })
  await taken(await put('oidc', 'corp', { ...document, roles: { ops: 'read-only' }, pools: ['lab'] }))
  expect(await who(place, asDora)).toEqual({ name: 'dora', role: 'read-only', pools: ['lab'] })
  await taken(await put('oidc', 'corp', { ...document, roles: {} }))
  expect(await codeOf(who(place, asDora))).toBe('unauthenticated')

  await taken(await put('oidc', 'corp', document))
  expect(await codeOf(who(place, asDora))).toBe('answered')
  await taken(await put('user', 'dora', { role: 'user', status: 'disabled' }))
  expect(await codeOf(who(place, asDora))).toBe('unauthenticated')
  expect(await codeOf(login(dora))).toBe('forbidden')
  await admin.config.change({ delete: [{ kind: 'user', name: 'dora' }] })

  // Another client is another way in: who came by the old one logs in again.
  await taken(await put('oidc', 'corp', { ...document, audience: clientId }))
  asDora = await login(dora)
  expect(await who(url, asAlice)).toEqual({ name: 'alice', role: 'user' })
  await taken(await put('oidc', 'corp', { ...document, audience: clientId, status: 'disabled' }))
  for (const token of [asDora, asAlice]) expect(await codeOf(who(place, token))).toBe('unauthenticated')
  expect((await createClient({ url }).session.providers()).items).toEqual([])
  expect(await codeOf(login({}))).toBe('not-found')

  await taken(await put('oidc', 'corp', document))
  asAlice = await login({})
  await taken(await put('user', 'alice', { role: 'user' }))
  expect(await codeOf(who(place, asAlice))).toBe('unauthenticated')
})

test('a partition that cannot reach the provider says so, and lets in again when it can', async () => {
  const { partitions, provider } = await startWorld()
  const idToken = await provider.sign({})
  await provider[Symbol.asyncDispose]()
  const refusal = await refusalOf(createClient({ url: partitions.one.url }).session.exchange({ provider: 'corp', idToken }))
  expect(refusal).toMatch(/^provider-away: log in with the ID token of corp: this server asked the provider and got no answer: http/)
  expect(refusal).toContain('ECONNREFUSED')
  const { muster } = aPerson()
  const ended = await muster(['login', partitions.one.url, '--oidc'])
  expect(ended).toMatchObject({ code: 6, stderr: expect.stringContaining(`log in at corp (${provider.issuer}):`) })

  const back = await startProvider(groups, Number(new URL(provider.issuer).port))
  onTestFinished(() => back[Symbol.asyncDispose]())
  const client = createClient({ url: partitions.one.url })
  const again = async () => refusalOf(client.session.exchange({ provider: 'corp', idToken: await back.sign({}) }))
  // How often a provider that failed is asked is limited.
  await until(async () => (await again()) === 'let in')
})
