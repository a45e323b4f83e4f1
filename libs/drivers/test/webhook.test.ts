/** The webhook driver against a real HTTP server, and against answers msw makes up. */
import type { IncomingMessage, RequestListener } from 'node:http'
import { HttpResponse, http } from 'msw'
import { setupServer } from 'msw/node'
import { afterAll, afterEach, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { PowerSession } from '../src/driver.ts'
import { webhook } from '../src/webhook.ts'
import { driverConformance } from './conformance.ts'
import { type Certificate, certificateProgram, selfSigned, startWeb } from './fake-https.ts'
import { needs } from './needs.ts'

/** A machine with three addresses. */
function machineBehindAddresses(authorization?: string) {
  const machine = { power: 'off' as 'on' | 'off', requests: [] as IncomingMessage[] }
  const listener: RequestListener = (request, response) => {
    machine.requests.push(request)
    if (authorization && request.headers.authorization !== authorization) {
      // A careless server that repeats what it was told.
      response.writeHead(401).end(`unknown: ${request.headers.authorization}`)
      return
    }
    if (request.url === '/on' || request.url === '/off') machine.power = request.url === '/on' ? 'on' : 'off'
    response.end(`status: ${machine.power === 'on' ? 'running' : 'stopped'}\n`)
  }
  return { machine, listener }
}

const at = (base: string) => ({ onUri: `${base}/on`, offUri: `${base}/off`, queryUri: `${base}/query` })

function open(settings: Record<string, unknown>): PowerSession {
  const session = webhook.open(webhook.settings.parse(settings))
  onTestFinished(() => session.close())
  return session
}

driverConformance(webhook, {
  start: async () => {
    const { machine, listener } = machineBehindAddresses('Bearer t0ken')
    const web = await startWeb(listener)
    return {
      settings: { ...at(web.url), token: 't0ken' },
      wrongSettings: { ...at(web.url), token: 'wr0ng-t0ken' },
      power: async () => machine.power,
      [Symbol.asyncDispose]: () => web[Symbol.asyncDispose](),
    }
  },
})

describe('a webhook on a real server', () => {
  test('gets the methods and headers of the settings, and an empty body', async () => {
    const { machine, listener } = machineBehindAddresses()
    await using web = await startWeb(listener)
    const session = open({ ...at(web.url), orderMethod: 'PUT', user: 'ops', password: 'pa:ss', systemId: 'lon1-7' })
    await session.on()
    expect(await session.power()).toBe('on')
    expect(machine.requests.map(({ method, url }) => `${method} ${url}`)).toEqual(['PUT /on', 'GET /query'])
    expect(machine.requests[0]?.headers).toMatchObject({
      authorization: `Basic ${Buffer.from('ops:pa:ss').toString('base64')}`,
      'system-id': 'lon1-7',
      'content-length': '0',
    })
  })

  test('that is gone is called silent, and nothing was done', async () => {
    const web = await startWeb(() => {})
    await web[Symbol.asyncDispose]()
    await expect(open(at(web.url)).on()).rejects.toMatchObject({
      kind: 'silent',
      outcome: 'none',
      got: expect.stringContaining('nothing listens'),
    })
  })

  test('that breaks off during an order leaves the outcome unknown', async () => {
    await using web = await startWeb((_request, response) => response.destroy())
    const session = open(at(web.url))
    await expect(session.off({ how: 'hard' })).rejects.toMatchObject({ kind: 'silent', outcome: 'unknown' })
    await expect(session.power()).rejects.toMatchObject({ kind: 'silent', outcome: 'none' })
  })

  test('that never answers is left when the caller gives up', async () => {
    await using web = await startWeb(() => {})
    const signal = AbortSignal.timeout(100)
    await expect(open(at(web.url)).on({ signal })).rejects.toMatchObject({ kind: 'cancelled', outcome: 'unknown' })
  })
})

needs(certificateProgram)('a webhook on https', () => {
  let ours: Certificate
  let others: Certificate
  beforeAll(() => {
    ours = selfSigned('IP:127.0.0.1')
    others = selfSigned('DNS:elsewhere.example')
  })

  test.each([
    ['its certificate as authority', () => ({ tlsCa: ours.cert })],
    ['its pinned fingerprint', () => ({ tlsFingerprint: ours.fingerprint.toLowerCase() })],
    ['no check at all', () => ({ tlsVerify: false })],
  ])('is trusted by %s', async (_by, trust) => {
    const { listener } = machineBehindAddresses()
    await using web = await startWeb(listener, ours)
    expect(await open({ ...at(web.url), ...trust() }).power()).toBe('off')
  })

  test.each([
    ['nobody vouches for it', () => ours, () => ({}), /not trusted \(DEPTH_ZERO_SELF_SIGNED_CERT\); SHA-256 ([0-9A-F]{2}:){31}/],
    ['it is for another name', () => others, () => ({ tlsCa: others.cert }), /not trusted \(ERR_TLS_CERT_ALTNAME_INVALID\)/],
    ['another one is pinned', () => ours, () => ({ tlsFingerprint: others.fingerprint }), /another certificate than the pinned one/],
    ['another one is pinned, check or no check', () => ours, () => ({ tlsVerify: false, tlsFingerprint: others.fingerprint }), /pinned/],
  ])('is refused when %s, before any secret is sent', async (_why, certificate, trust, got) => {
    const { machine, listener } = machineBehindAddresses()
    await using web = await startWeb(listener, certificate())
    const error = await open({ ...at(web.url), token: 't0ken', ...trust() })
      .on()
      .catch(caught => caught)
    expect(error).toMatchObject({ kind: 'authentication', outcome: 'none', got: expect.stringMatching(got) })
    expect(machine.requests).toEqual([])
  })
})

describe('answers of a webhook', () => {
  const server = setupServer()
  beforeAll(() => server.listen({ onUnhandledFrame: 'error' }))
  afterEach(() => server.resetHandlers())
  afterAll(() => server.close())
  const base = 'https://switch.example'

  test.each([
    ['status: running', 'on'],
    ['{"name":"lon1-7","status":"running"}', 'on'],
    ['{"status" : "stopped"}', 'off'],
    ['status=stopped', 'off'],
  ])('%s is read as %s', async (body, state) => {
    server.use(http.get(`${base}/query`, () => new HttpResponse(body)))
    expect(await open(at(base)).power()).toBe(state)
  })

  test('are read with patterns of one’s own', async () => {
    server.use(http.post(`${base}/query`, () => HttpResponse.json({ relay: 1 })))
    expect(await open({ ...at(base), queryMethod: 'POST', onPattern: '"relay":1\\b', offPattern: '"relay":0\\b' }).power()).toBe('on')
  })

  test.each([
    ['neither', 'status: starting', 'neither onPattern nor offPattern is found in the answer "status: starting"'],
    ['both', 'status: running status: stopped', 'both patterns are found'],
  ])('that fit %s pattern make no sense', async (_which, body, got) => {
    server.use(http.get(`${base}/query`, () => new HttpResponse(body)))
    await expect(open(at(base)).power()).rejects.toMatchObject({ kind: 'protocol', got: expect.stringContaining(got) })
  })

  test('cannot hold up the process with a pattern that never ends', async () => {
    server.use(http.get(`${base}/query`, () => new HttpResponse(`${'a'.repeat(5000)}!`)))
    const startedAt = performance.now()
    await expect(open({ ...at(base), onPattern: '^(a+)+$' }).power()).rejects.toMatchObject({ kind: 'settings' })
    expect(performance.now() - startedAt).toBeLessThan(5000)
  })

  test.each([
    [301, 'refused', 'none'],
    [400, 'refused', 'none'],
    [401, 'authentication', 'none'],
    [403, 'privilege', 'none'],
    [404, 'refused', 'none'],
    [429, 'busy', 'none'],
    [500, 'protocol', 'unknown'],
    [503, 'busy', 'none'],
  ])('with status %i to an order are %s, outcome %s', async (status, kind, outcome) => {
    server.use(http.post(`${base}/on`, () => new HttpResponse('no', { status, headers: { location: `${base}/elsewhere` } })))
    await expect(open(at(base)).on()).rejects.toMatchObject({ kind, outcome, got: `HTTP ${status} (no)` })
  })

  test('that repeat the secrets are quoted without them', async () => {
    const basic = Buffer.from('ops:s3same').toString('base64')
    server.use(http.post(`${base}/on`, () => new HttpResponse(`bad: s3same and Basic ${basic}`, { status: 400 })))
    const error = await open({ ...at(base), user: 'ops', password: 's3same' })
      .on()
      .catch(caught => caught)
    expect(error.message).toBe('power on via webhook switch.example: HTTP 400 (bad: *** and Basic ***)')
  })

  test('are not read beyond 8 MiB', async () => {
    server.use(http.get(`${base}/query`, () => new HttpResponse('x'.repeat(9 * 1024 * 1024))))
    await expect(open(at(base)).power()).rejects.toMatchObject({ kind: 'protocol', got: expect.stringContaining('bytes') })
  })
})

test.each([
  [{ onUri: 'ftp://a/on' }, 'onUri'],
  [{ onUri: 'http://ops:s3same@a/on' }, 'onUri'],
  [{ onPattern: '(' }, 'onPattern'],
  [{ token: 'a', user: 'b', password: 'c' }, 'token'],
  [{ user: 'b' }, 'password'],
  [{ token: 'a\r\nX-Evil: 1' }, 'token'],
  [{ systemId: 'a\nb' }, 'systemId'],
  [{ tlsFingerprint: 'AA:BB' }, 'tlsFingerprint'],
  [{ tlsCa: 'nothing' }, 'tlsCa'],
])('a webhook with %o is refused', (wrong, field) => {
  const checked = webhook.settings.safeParse({ ...at('http://a'), ...wrong })
  expect(checked.error?.issues.map(({ path }) => path[0])).toContain(field)
})
