/**
 * The webhook driver, for every switch that has no driver: three addresses, one that turns the machine on, one that turns it off, and
 * one whose answer tells which it is.
 */
import { createContext, Script } from 'node:vm'
import { z } from 'zod'
import type { PowerDriver, PowerState } from './driver.ts'
import { Failure } from './failure.ts'
import { basicAuthorization, excerpt, exchange, type HttpAnswer, isHttpUrl, refusal, tlsSettings } from './http.ts'
import { openSwitch, type Turn } from './turns.ts'

const address = () => z.string().max(2000).refine(isHttpUrl, 'not an http or https address, or one with a user, password or # in it')
const pattern = () => z.string().min(1).max(200).refine(isPattern, 'not a regular expression')

const settings = z
  .strictObject({
    onUri: address().describe('Address that turns the machine on. Put no secret into it: addresses are shown'),
    offUri: address().describe('Address that turns the machine off, softly or hard as it likes'),
    queryUri: address().describe('Address whose answer tells the power state'),
    orderMethod: z.enum(['POST', 'PUT', 'PATCH', 'GET']).default('POST').describe('HTTP method of onUri and offUri; the body is empty'),
    queryMethod: z.enum(['GET', 'POST']).default('GET').describe('HTTP method of queryUri'),
    onPattern: pattern()
      .default('status"?\\s*[:=]\\s*"?running')
      .describe(
        'Regular expression found in the answer of queryUri when the machine is on; the default finds status: running, in JSON too',
      ),
    offPattern: pattern()
      .default('status"?\\s*[:=]\\s*"?stopped')
      .describe(
        'Regular expression found in the answer of queryUri when the machine is off; the default finds status: stopped, in JSON too',
      ),
    token: headerText().optional().describe('Token, sent as "Authorization: Bearer …"'),
    user: headerText()
      .refine(text => !text.includes(':'), 'a user name of basic authentication has no colon')
      .optional()
      .describe('User name of basic authentication, together with password'),
    password: headerText().optional().describe('Password of basic authentication'),
    systemId: headerText().optional().describe('Sent as the header System-Id, so that one address can serve many machines'),
    ...tlsSettings,
  })
  .refine(given => given.token === undefined || given.user === undefined, {
    path: ['token'],
    error: 'give a token, or a user and password',
  })
  .refine(given => (given.user === undefined) === (given.password === undefined), {
    path: ['password'],
    error: 'user and password belong together',
  })

type WebhookSettings = z.output<typeof settings>

export const webhook: PowerDriver<typeof settings> = {
  type: 'webhook',
  title: 'Webhook: three HTTP addresses',
  settings,
  secrets: ['token', 'password'],
  open: (given, context = {}) =>
    openSwitch({
      target: `webhook ${new URL(given.queryUri).host}`,
      context,
      orders: {
        power: async turn => stateOf(await call(turn, given, 'query'), given),
        on: async turn => void (await call(turn, given, 'on')),
        off: async turn => void (await call(turn, given, 'off')),
      },
    }),
}

async function call(turn: Turn, given: WebhookSettings, what: 'on' | 'off' | 'query'): Promise<HttpAnswer> {
  const purpose = what === 'query' ? 'question' : 'order'
  const answer = await exchange(turn, {
    url: new URL({ on: given.onUri, off: given.offUri, query: given.queryUri }[what]),
    method: what === 'query' ? given.queryMethod : given.orderMethod,
    headers: headersOf(given),
    trust: given,
    purpose,
  })
  if (answer.status >= 200 && answer.status <= 299) return answer
  throw refusal(answer, excerpt(answer.body || answer.statusText, secretsOf(given)), purpose)
}

function headersOf({ token, user, password, systemId }: WebhookSettings): Record<string, string> {
  return {
    ...(token !== undefined && { authorization: `Bearer ${token}` }),
    ...(user !== undefined && password !== undefined && { authorization: basicAuthorization(user, password) }),
    ...(systemId !== undefined && { 'system-id': systemId }),
  }
}

/** What an answer may echo and a message must not. */
function secretsOf({ token, user, password }: WebhookSettings): (string | undefined)[] {
  const basic = user === undefined || password === undefined ? undefined : Buffer.from(`${user}:${password}`).toString('base64')
  return [token, password, basic]
}

/** More than this of an answer is not looked at: the word is at its beginning, and patterns take their time. */
const lookedAtMax = 16_384

function stateOf({ body }: HttpAnswer, given: WebhookSettings): PowerState {
  const text = body.slice(0, lookedAtMax)
  const isOn = finds(given.onPattern, text, 'onPattern')
  const isOff = finds(given.offPattern, text, 'offPattern')
  if (isOn !== isOff) return isOn ? 'on' : 'off'
  throw new Failure({
    kind: 'protocol',
    got: `${isOn ? 'both patterns are' : 'neither onPattern nor offPattern is'} found in the answer "${excerpt(text, secretsOf(given))}"`,
    hint: 'Change onPattern and offPattern so that exactly one of them is found in each answer.',
  })
}

const test = new Script('new RegExp(pattern).test(text)')
/** Good patterns need microseconds. */
const patternMs = 200

/** A search that ends: a pattern such as (a+)+$ would otherwise hold up the whole process for years. */
function finds(pattern: string, text: string, field: string): boolean {
  try {
    return test.runInContext(createContext({ pattern, text }), { timeout: patternMs }) === true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw error
    throw new Failure({
      kind: 'settings',
      got: `${field} was still searching the answer after ${patternMs} ms`,
      hint: 'Write a pattern without a repetition inside a repetition.',
    })
  }
}

function isPattern(text: string): boolean {
  try {
    new RegExp(text)
    return true
  } catch {
    return false
  }
}

/** Text that may stand in a header: more would let a setting write headers of its own. */
function headerText(): z.ZodString {
  return z
    .string()
    .min(1)
    .max(1000)
    .regex(/^[\x20-\x7e]+$/, 'only printable ASCII characters')
}
