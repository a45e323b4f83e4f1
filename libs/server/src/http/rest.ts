// REST: every call of the contract at its method and path under /api/v1. JSON in, JSON out, refusals as problem documents.
import { Refusal } from '@muster/shared/errors'
import type { Hono } from 'hono'
import { type Asked, type Asker, admitted, ask, idempotencyKeyOf, refusalFor, requestIdOf, stillAdmitted } from './asking.ts'
import type { Authenticator } from './auth.ts'
import type { EventStreams, StreamInput } from './events-stream.ts'
import { addressOf, carriesBody, type DoorContext, type DoorEnv, header, readBody } from './incoming.ts'
import type { Metrics } from './metrics.ts'
import { checkCharacters, mergeInput, type Plan, readQuery, validInput } from './plan.ts'
import { apiHeaders, problemResponse } from './problems.ts'

export interface RestOptions extends Asked {
  readonly plans: readonly Plan[]
  readonly authenticator: Authenticator
  readonly metrics: Metrics
  readonly streams: EventStreams
}

/** Adds a route per call to `app`. One handler each and no middleware: the router then calls it without composing anything. */
export function addRestRoutes(app: Hono<DoorEnv>, options: RestOptions): void {
  for (const plan of options.plans) app.on(plan.method, plan.route, c => serve(c, plan, options))
}

async function serve(c: DoorContext, plan: Plan, options: RestOptions): Promise<Response> {
  const started = performance.now()
  const requestId = requestIdOf(header(c, 'x-request-id'))
  let response: Response
  try {
    response = await answer(c, plan, options, requestId)
  } catch (error) {
    const refusal = refusalFor(error, options.log, { requestId, call: plan.name })
    if (options.log.isLevelEnabled('debug')) options.log.debug({ requestId, call: plan.name, code: refusal.code }, refusal.message)
    response = problemResponse(refusal, requestId)
  }
  options.metrics.observe(plan.name, response.status, (performance.now() - started) / 1000)
  return response
}

async function answer(c: DoorContext, plan: Plan, options: RestOptions, requestId: string): Promise<Response> {
  const from = addressOf(c.env.incoming)
  const authorization = header(c, 'authorization')
  const caller = admitted(options, plan, {
    authorization,
    from,
    authenticate: () => options.authenticator.authenticate(authorization, from),
  })
  const asker: Asker = {
    caller,
    again: () => stillAdmitted(options.authenticator, plan, authorization),
    from,
    requestId,
    idempotencyKey: idempotencyKeyOf(plan, header(c, 'idempotency-key')),
    gone: () => c.req.raw.signal,
  }
  const input = validInput(plan, await readInput(c, plan))
  if (plan.call.kind === 'stream') return options.streams.respond(c, input as StreamInput, asker)

  const result = await ask(options, plan, input, asker)
  const headers: Record<string, string> = { ...apiHeaders, 'x-request-id': requestId }
  if (plan.call.status === 204) return new Response(null, { status: 204, headers })
  headers['content-type'] = 'application/json'
  const { id } = (plan.locationBase === undefined ? {} : result) as { id?: string | null }
  if (id) headers.location = plan.locationBase + id
  return new Response(JSON.stringify(result), { status: plan.call.status, headers })
}

async function readInput(c: DoorContext, plan: Plan): Promise<unknown> {
  const { url } = c.req.raw
  const question = url.indexOf('?')
  const takesBody = plan.method !== 'GET' && plan.method !== 'DELETE'
  if (!takesBody && carriesBody(c)) throw new Refusal('malformed', `${plan.method} takes no body; put the fields into the query`)
  const body = takesBody ? await readBody(c) : {}
  if (question === -1 && plan.params.length === 0) return body
  const query = question === -1 ? {} : readQuery(plan, url.slice(question + 1))
  // %00 and whatever is no UTF-8 would get through as characters that no database stores.
  if (question !== -1) checkCharacters(query)
  return mergeInput(plan.params.length === 0 ? {} : c.req.param(), query, body)
}
