// tRPC, from the same contract: a query per GET, a subscription per stream, a mutation for everything else. The router's type is derived too,
// so that `createTRPCClient<AppRouter>` knows every input and answer.

import type { Caller } from '@muster/shared/contract/call'
import type { CallName, CallOf, CallOutput, CallRequest, Contract } from '@muster/shared/contract/contract'
import { type ErrorCode, errorTable, type ProblemDocument, problemOf, Refusal } from '@muster/shared/errors'
import {
  initTRPC,
  type TRPCBuiltRouter,
  type TRPCDefaultErrorShape,
  TRPCError,
  type TRPCMutationProcedure,
  type TRPCQueryProcedure,
  type TRPCSubscriptionProcedure,
  tracked,
} from '@trpc/server'
import { fetchRequestHandler } from '@trpc/server/adapters/fetch'
import type { Hono } from 'hono'
import { type Asker, admitted, ask, idempotencyKeyOf, refusalFor, requestIdOf, stillAdmitted } from './asking.ts'
import type { StreamInput } from './events-stream.ts'
import { addressOf, carriesBody, checkMediaType, type DoorContext, type DoorEnv, header, readBytes } from './incoming.ts'
import { checkCharacters, type Plan, validInput } from './plan.ts'
import { apiHeaders, problemResponse } from './problems.ts'
import type { RestOptions } from './rest.ts'

/** What a refusal looks like over tRPC: the problem document is in `data.problem`. */
export interface TrpcErrorShape extends TRPCDefaultErrorShape {
  data: TRPCDefaultErrorShape['data'] & { problem: ProblemDocument }
}

interface TrpcContext {
  readonly c: DoorContext
  readonly requestId: string
  readonly isBatch: boolean
  /** Who asks; throws where nobody is known by that token. */
  readonly caller: () => Caller
}

type Root = { ctx: TrpcContext; meta: object; errorShape: TrpcErrorShape; transformer: false }

interface Shape<Input, Output> {
  input: Input
  output: Output
  meta: object
  errorShape: TrpcErrorShape
}

/** A stream's input, and the id of the last event seen, which tRPC's links send when they reconnect. */
type StreamRequest<Name extends CallName> = CallRequest<Name> & { lastEventId?: string }

type ProcedureOf<Name extends CallName> =
  CallOf<Name> extends { kind: 'stream' }
    ? TRPCSubscriptionProcedure<Shape<StreamRequest<Name> | undefined, AsyncIterable<{ id: string; data: CallOutput<Name> }>>>
    : CallOf<Name> extends { rest: { method: 'GET' } }
      ? TRPCQueryProcedure<Shape<Given<CallRequest<Name>>, CallOutput<Name>>>
      : TRPCMutationProcedure<Shape<Given<CallRequest<Name>>, CallOutput<Name>>>

/** An input without required fields may be left out. */
type Given<Request> = Record<string, never> extends Request ? Request | undefined : Request

type AppRecord = {
  [Group in keyof Contract & string]: {
    [Verb in keyof Contract[Group] & string]: `${Group}.${Verb}` extends CallName ? ProcedureOf<`${Group}.${Verb}`> : never
  }
}

/** The type of the router, for clients: `createTRPCClient<AppRouter>({ links: [httpBatchLink({ url: `${server}/trpc` })] })`. */
export type AppRouter = TRPCBuiltRouter<Root, AppRecord>

/** Calls in one request: enough for a page of the web, and no way around the limits for the rest. */
const largestBatch = 20

const codeOfStatus = {
  400: 'BAD_REQUEST',
  401: 'UNAUTHORIZED',
  403: 'FORBIDDEN',
  404: 'NOT_FOUND',
  405: 'METHOD_NOT_SUPPORTED',
  409: 'CONFLICT',
  // tRPC has no word for gone.
  410: 'NOT_FOUND',
  413: 'PAYLOAD_TOO_LARGE',
  415: 'UNSUPPORTED_MEDIA_TYPE',
  422: 'UNPROCESSABLE_CONTENT',
  429: 'TOO_MANY_REQUESTS',
  500: 'INTERNAL_SERVER_ERROR',
  503: 'SERVICE_UNAVAILABLE',
  504: 'GATEWAY_TIMEOUT',
} as const satisfies Record<(typeof errorTable)[keyof typeof errorTable]['status'], TRPCError['code']>

/** Codes tRPC uses for what it refuses by itself, before a call of ours is reached. */
const ownRefusals: Partial<Record<TRPCError['code'], ErrorCode>> = {
  PARSE_ERROR: 'malformed',
  BAD_REQUEST: 'malformed',
  NOT_FOUND: 'not-found',
  METHOD_NOT_SUPPORTED: 'method-not-allowed',
  UNSUPPORTED_MEDIA_TYPE: 'unsupported-media-type',
}

/** The router over a backend. */
export function createAppRouter(options: RestOptions): AppRouter {
  const refusalOfTrpc = (error: TRPCError, requestId: string): Refusal => {
    if (error.cause instanceof Refusal) return error.cause
    const code = ownRefusals[error.code]
    return code ? new Refusal(code, error.message) : refusalFor(error.cause ?? error, options.log, { requestId, call: 'trpc' })
  }
  const t = initTRPC.context<TrpcContext>().create({
    isDev: false,
    sse: { ping: { enabled: true, intervalMs: 15_000 } },
    errorFormatter: ({ shape, error, ctx }): TrpcErrorShape => {
      const problem = problemOf(refusalOfTrpc(error, ctx?.requestId ?? 'unknown'))
      return { ...shape, message: problem.detail, data: { ...shape.data, problem } }
    },
  })
  // Lets every input through: the contract's schema refuses it in the call, so that the refusal is the same as REST's.
  const procedure = t.procedure.input((input: unknown) => input)

  /** Runs one call: what it throws becomes tRPC's error with the refusal as its cause, and it is counted. */
  const run = async <Result>(plan: Plan, ctx: TrpcContext, work: () => Result | Promise<Result>): Promise<Result> => {
    const started = performance.now()
    let status: number = plan.call.status
    try {
      return await work()
    } catch (error) {
      const refusal = refusalFor(error, options.log, { requestId: ctx.requestId, call: plan.name })
      status = errorTable[refusal.code].status
      throw trpcErrorOf(refusal)
    } finally {
      options.metrics.observe(plan.name, status, (performance.now() - started) / 1000)
    }
  }

  const askerFor = (plan: Plan, ctx: TrpcContext, signal: AbortSignal | undefined): Asker => {
    const from = addressOf(ctx.c.env.incoming)
    const authorization = header(ctx.c, 'authorization')
    const caller = admitted(options, plan, { authorization, from, authenticate: ctx.caller })
    const sentKey = header(ctx.c, 'idempotency-key')
    // One header cannot be the key of several calls.
    if (sentKey !== undefined && ctx.isBatch)
      throw new Refusal('malformed', 'send a call that carries an Idempotency-Key by itself, not in a batch')
    return {
      caller,
      again: () => stillAdmitted(options.authenticator, plan, authorization),
      from,
      requestId: ctx.requestId,
      idempotencyKey: idempotencyKeyOf(plan, sentKey),
      gone: () => signal ?? ctx.c.req.raw.signal,
    }
  }

  const inputFor = (plan: Plan, input: unknown): unknown => {
    checkCharacters(input)
    return validInput(plan, input ?? {})
  }

  const procedureOf = (plan: Plan) => {
    if (plan.call.kind === 'stream')
      return procedure.subscription(async function* ({ ctx, input, signal }) {
        const items = await run(plan, ctx, () => {
          const asker = askerFor(plan, ctx, signal)
          const { lastEventId, ...rest } = (input ?? {}) as StreamInput & { lastEventId?: string }
          const given = inputFor(plan, rest) as StreamInput
          return options.streams.open({ ...given, after: lastEventId ?? given.after }, asker)
        })
        try {
          for await (const item of items) if (item.kind === 'event') yield tracked(item.id, item.event)
        } catch (error) {
          throw error instanceof Refusal ? trpcErrorOf(error) : error
        }
      })
    const serve = ({ ctx, input, signal }: { ctx: TrpcContext; input: unknown; signal: AbortSignal | undefined }) =>
      run(plan, ctx, () => {
        const asker = askerFor(plan, ctx, signal)
        return ask(options, plan, inputFor(plan, input), asker)
      })
    return plan.method === 'GET' ? procedure.query(serve) : procedure.mutation(serve)
  }

  const groups: Record<string, Record<string, ReturnType<typeof procedureOf>>> = {}
  for (const plan of options.plans) {
    const [group, verb] = plan.name.split('.') as [string, string]
    groups[group] ??= {}
    groups[group][verb] = procedureOf(plan)
  }
  // The loop builds what AppRecord says, which no compiler can follow; libs/server/test/trpc.test.ts holds the two together.
  return t.router(groups) as unknown as AppRouter
}

function trpcErrorOf(refusal: Refusal): TRPCError {
  return new TRPCError({ code: codeOfStatus[errorTable[refusal.code].status], message: refusal.message, cause: refusal })
}

/** Serves the router at /trpc. */
export function addTrpcRoutes(app: Hono<DoorEnv>, options: RestOptions): void {
  const router = createAppRouter(options)
  const serve = async (c: DoorContext): Promise<Response> => {
    const requestId = requestIdOf(header(c, 'x-request-id'))
    try {
      return await fetchRequestHandler({
        endpoint: '/trpc',
        req: await boundedRequest(c),
        router,
        maxBatchSize: largestBatch,
        createContext: ({ info }): TrpcContext => ({
          c,
          requestId,
          isBatch: info.isBatchCall && info.calls.length > 1,
          caller: callerOnce(c, options),
        }),
        responseMeta: () => ({ headers: { ...apiHeaders, 'x-request-id': requestId } }),
      })
    } catch (error) {
      return problemResponse(refusalFor(error, options.log, { requestId, call: 'trpc' }), requestId)
    }
  }
  app.on(['GET', 'POST'], '/trpc/*', serve)
}

/** Authenticates at most once per request, however many calls it batches: a wrong token is one failure. */
function callerOnce(c: DoorContext, { authenticator }: RestOptions): () => Caller {
  let outcome: { caller: Caller } | { error: unknown } | undefined
  return () => {
    if (!outcome)
      try {
        outcome = { caller: authenticator.authenticate(header(c, 'authorization'), addressOf(c.env.incoming)) }
      } catch (error) {
        outcome = { error }
      }
    if ('error' in outcome) throw outcome.error
    return outcome.caller
  }
}

/** The request with a body of a known and allowed size: tRPC itself reads whatever comes. */
async function boundedRequest(c: DoorContext): Promise<Request> {
  const { raw } = c.req
  if (raw.method !== 'POST' || !carriesBody(c)) return raw
  checkMediaType(c)
  const body = await readBytes(c)
  return new Request(raw.url, { method: 'POST', headers: raw.headers, body: Buffer.from(body as ArrayBuffer), signal: raw.signal })
}
