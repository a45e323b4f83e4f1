// Logging in at an OpenID Connect provider: in a browser on this computer (authorisation code with PKCE, back to a port of the loopback interface,
// RFC 8252), or on any other device with a code that is shown (RFC 8628). Either ends with an ID token. Loaded only when it is wanted.
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { isSafeUrl } from '@muster/shared/global/documents'
import * as oidc from 'openid-client'
import { type Cli, remark } from './cli.ts'
import { CliError } from './exit-codes.ts'
import { printable } from './output/text.ts'

export interface Provider {
  readonly name: string
  readonly issuer: string
  readonly clientId: string
  readonly scopes: readonly string[]
}

/** An ID token, and the nonce that was asked to be in it. */
export interface Identified {
  readonly idToken: string
  readonly nonce?: string
}

/** A person looks for a password, or for a telephone. */
const browserLimitMs = 300_000
const requestLimitSeconds = 15

/** Has the person log in in a browser on this computer, whose address is shown. */
export async function identifyInBrowser(cli: Cli, provider: Provider): Promise<Identified> {
  const config = await discover(provider)
  const [verifier, state, nonce] = [oidc.randomPKCECodeVerifier(), oidc.randomState(), oidc.randomNonce()]
  await using callback = await listenForCallback(cli, state)
  const address = oidc.buildAuthorizationUrl(config, {
    redirect_uri: callback.url,
    scope: provider.scopes.join(' '),
    code_challenge: await oidc.calculatePKCECodeChallenge(verifier),
    code_challenge_method: 'S256',
    state,
    nonce,
  })
  remark(cli, `open this in a browser on this computer to log in at ${printable(provider.name)}:\n\n  ${printable(address.href)}\n`)
  const returned = await callback.returned
  return tried(provider, async () => {
    const checks = { pkceCodeVerifier: verifier, expectedState: state, expectedNonce: nonce, idTokenExpected: true }
    return { idToken: idTokenIn(await oidc.authorizationCodeGrant(config, returned, checks), provider), nonce }
  })
}

/** Has the person log in on any device, with a code that is shown here. */
export async function identifyByDevice(cli: Cli, provider: Provider): Promise<Identified> {
  const config = await discover(provider)
  if (!config.serverMetadata().device_authorization_endpoint)
    throw new CliError('usage', `the provider ${provider.name} offers no login by device`, {
      hint: 'log in with a browser: without --device',
    })
  return tried(provider, async () => {
    const begun = await oidc.initiateDeviceAuthorization(config, { scope: provider.scopes.join(' ') })
    remark(cli, `open ${printable(begun.verification_uri)} on any device and enter the code ${printable(begun.user_code)}`)
    if (begun.verification_uri_complete !== undefined) remark(cli, `  or open ${printable(begun.verification_uri_complete)}`)
    const limit = AbortSignal.timeout(Math.min(begun.expires_in * 1000, browserLimitMs * 2))
    const signal = AbortSignal.any([cli.signal, limit])
    return { idToken: idTokenIn(await oidc.pollDeviceAuthorizationGrant(config, begun, undefined, { signal }), provider) }
  })
}

function idTokenIn({ id_token: idToken }: { id_token?: string }, { name }: Provider): string {
  if (idToken === undefined) throw new CliError('unexpected', `the provider ${name} gave no ID token`)
  return idToken
}

async function discover(provider: Provider): Promise<oidc.Configuration> {
  const { issuer, clientId } = provider
  // The server that named it may be a stranger's: nothing but https, or what is on this computer, is spoken to.
  if (!isSafeUrl(issuer)) throw new CliError('usage', `the issuer of ${provider.name}, ${printable(issuer)}, is no https URL`)
  const execute = issuer.startsWith('http:') ? [oidc.allowInsecureRequests] : []
  return tried(provider, () => oidc.discovery(new URL(issuer), clientId, undefined, oidc.None(), { execute, timeout: requestLimitSeconds }))
}

/** A failure with who failed; what a person did by themselves stays what it is. */
async function tried<Result>({ name, issuer }: Provider, work: () => Promise<Result>): Promise<Result> {
  try {
    return await work()
  } catch (error) {
    if (error instanceof CliError) throw error
    throw new CliError('not-authorised', `log in at ${name} (${printable(issuer)}): ${reasonOf(error)}`, { cause: error })
  }
}

/** What the provider says, where it says something; openid-client's own words are about protocols. */
function reasonOf(error: unknown): string {
  if (error instanceof oidc.ResponseBodyError || error instanceof oidc.AuthorizationResponseError)
    return printable(error.error_description ?? error.error)
  const { message, cause } = error as Error
  return cause instanceof Error && cause.message ? `${message}: ${cause.message}` : message
}

interface Callback extends AsyncDisposable {
  readonly url: string
  /** The whole URL that the browser came back with. */
  readonly returned: Promise<URL>
}

const path = '/callback'

/** Waits on a port of this computer, for a browser that comes back with `state`. Whoever else comes is told nothing. */
async function listenForCallback(cli: Cli, state: string): Promise<Callback> {
  const { promise, resolve, reject } = Promise.withResolvers<URL>()
  promise.catch(() => undefined) // it may fail before anybody waits for it
  let url = ''
  const server: Server = createServer((request: IncomingMessage, response: ServerResponse) => {
    const came = URL.parse(request.url ?? '', url)
    const isOurs = request.method === 'GET' && came?.pathname === path && came.searchParams.get('state') === state
    const page = isOurs ? 'Muster has what it needs; this window can be closed.\n' : 'Nothing is here.\n'
    response.writeHead(isOurs ? 200 : 404, { 'content-type': 'text/plain; charset=utf-8', connection: 'close' }).end(page)
    if (isOurs) resolve(came)
  })
  await new Promise<void>((opened, failed) => server.once('error', failed).listen(0, '127.0.0.1', opened))
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}${path}`
  const limit = setTimeout(
    () => reject(new CliError('timed-out', `nobody came back from the browser within ${browserLimitMs / 60_000} minutes`)),
    browserLimitMs,
  )
  const onInterrupt = () => reject(new CliError('interrupted', 'interrupted'))
  cli.signal.addEventListener('abort', onInterrupt, { once: true })
  return {
    url,
    returned: promise,
    [Symbol.asyncDispose]: async () => {
      clearTimeout(limit)
      cli.signal.removeEventListener('abort', onInterrupt)
      server.closeAllConnections()
      await new Promise(closed => server.close(closed))
    },
  }
}
