// A real OpenID Connect provider (oidc-provider, certified) on a port of this computer, and a browser that fills in its forms.
import { createServer, type RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { exportJWK, generateKeyPair, type JWTPayload, SignJWT } from 'jose'
import Provider from 'oidc-provider'

export interface TestProvider extends AsyncDisposable {
  readonly issuer: string
  /** Signs an ID token as the provider would, with these claims in place of the usual ones; `undefined` leaves one out. */
  sign(claims: Readonly<Record<string, unknown>>): Promise<string>
  /** How often its keys were asked for. */
  keysAsked(): number
}

export const clientId = 'muster-cli'

/** `groups`: those of each person, by subject. `port`: where it was before. */
export async function startProvider(groups: Readonly<Record<string, readonly string[]>>, port = 0): Promise<TestProvider> {
  let serve: RequestListener = (_, response) => response.writeHead(503).end()
  let keysAsked = 0
  const server = createServer((request, response) => {
    if (request.url === '/jwks') keysAsked++
    serve(request, response)
  })
  await new Promise<void>(resolve => server.listen(port, '127.0.0.1', resolve))
  const issuer = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const { privateKey } = await generateKeyPair('RS256', { extractable: true })
  const key = { ...(await exportJWK(privateKey)), kid: 'key-1', use: 'sig', alg: 'RS256' }
  serve = new Provider(issuer, {
    clients: [
      {
        client_id: clientId,
        application_type: 'native',
        token_endpoint_auth_method: 'none',
        redirect_uris: ['http://127.0.0.1/callback'],
        grant_types: ['authorization_code', 'urn:ietf:params:oauth:grant-type:device_code'],
        response_types: ['code'],
      },
    ],
    jwks: { keys: [key] },
    cookies: { keys: ['a key of cookies for tests'] },
    features: { devInteractions: { enabled: true }, deviceFlow: { enabled: true } },
    pkce: { required: () => true },
    conformIdTokenClaims: false,
    claims: { openid: ['sub'], profile: ['preferred_username', 'groups'], email: ['email', 'email_verified'] },
    findAccount: (_: unknown, sub: string) => ({
      accountId: sub,
      claims: () => ({
        sub,
        preferred_username: sub.replace(/^sub-/, ''),
        email: `${sub}@example.org`,
        email_verified: true,
        groups: groups[sub] ?? [],
      }),
    }),
  }).callback()
  return {
    issuer,
    keysAsked: () => keysAsked,
    sign: claims => {
      const now = Math.floor(Date.now() / 1000)
      const usual = { iss: issuer, aud: clientId, sub: 'sub-alice', iat: now, exp: now + 300 }
      return new SignJWT({ ...usual, ...claims } as JWTPayload).setProtectedHeader({ alg: 'RS256', kid: 'key-1' }).sign(privateKey)
    },
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections()
      await new Promise(resolve => server.close(resolve))
    },
  }
}

/** Opens `address` and fills in forms as `login` until there are none left. Answers the last page. */
export async function browse(address: string, login: string): Promise<string> {
  const cookies = new Map<string, string>()
  let request: { url: string; form?: URLSearchParams } = { url: address }
  for (let step = 0; step < 20; step++) {
    const response = await fetch(request.url, {
      redirect: 'manual',
      headers: { cookie: [...cookies].map(([name, value]) => `${name}=${value}`).join('; ') },
      ...(request.form && { method: 'POST', body: request.form }),
    })
    for (const cookie of response.headers.getSetCookie()) {
      const [, name = '', value = ''] = /^([^=]+)=([^;]*)/.exec(cookie) ?? []
      if (value === '') cookies.delete(name)
      else cookies.set(name, value)
    }
    const location = response.headers.get('location')
    const page = await response.text()
    const form = /<form[^>]*>[\s\S]*?<\/form>/.exec(page)?.[0]
    if (location !== null) request = { url: new URL(location, request.url).href }
    else if (form !== undefined) request = filledIn(form, request.url, login)
    else return page
  }
  throw new Error(`the browser does not come to an end; it was last at ${request.url}`)
}

function filledIn(form: string, page: string, login: string): { url: string; form: URLSearchParams } {
  const attribute = (tag: string, name: string) => new RegExp(`\\b${name}="([^"]*)"`).exec(tag)?.[1]
  const fields = new URLSearchParams()
  for (const [input] of form.matchAll(/<(?:input|button)[^>]*>/g)) {
    const name = attribute(input, 'name')
    if (name === undefined || name === 'abort') continue
    fields.set(name, name === 'login' ? login : name === 'password' ? 'any' : (attribute(input, 'value') ?? ''))
  }
  const action = attribute(form.slice(0, form.indexOf('>') + 1), 'action')
  return { url: new URL(action ?? page, page).href, form: fields }
}
