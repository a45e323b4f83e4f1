// What the doors for machines (boot, agent, metadata, events of BMCs) have in common: where they ask from, problem documents, and bodies of a bounded size.
import type { IncomingMessage, ServerResponse } from 'node:http'
import { addressOf, type DoorEnv } from '@muster/server/http/incoming'
import type { Log } from '@muster/server/log'
import { type CloudInitReport, cloudInitReport } from '@muster/shared/cloud-init'
import { nobody } from '@muster/shared/contract/call'
import { invalidInput, problemOf, Refusal } from '@muster/shared/errors'
import { type Context, Hono, type MiddlewareHandler } from 'hono'
import { bodyLimit } from 'hono/body-limit'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import { refusalOfDatabase } from '../db/connect.ts'
import { originOf } from '../domain/boot-origin.ts'
import type { Core } from '../domain/core.ts'
import type { FirstBoots } from '../domain/first-boot.ts'
import { StrangeToken } from '../domain/machine-token.ts'

/** An inventory with hundreds of disks and everything dmidecode says stays far below. */
const bodyLimitBytes = 1_000_000

/** Where a request began, told by a proxy where one of these is between. */
export function askedFrom(incoming: Pick<IncomingMessage, 'socket' | 'headers'>, proxies: readonly string[]): string {
  return originOf(addressOf(incoming), [incoming.headers['x-forwarded-for']].flat().join(','), proxies)
}

/** An app whose errors are problem documents; who comes with a strange token is counted in the audit log, under the door's name. */
export function machineDoor(
  core: Pick<Core, 'log' | 'audit'>,
  { name, proxies }: { name: string; proxies: readonly string[] },
): Hono<DoorEnv> {
  const app = new Hono<DoorEnv>()
  app.use(
    bodyLimit({
      maxSize: bodyLimitBytes,
      onError: () => {
        throw new Refusal('payload-too-large', `the body is larger than ${bodyLimitBytes} bytes`)
      },
    }),
  )
  app.onError((error, c) => {
    if (error instanceof StrangeToken)
      core.audit.refused({
        call: name,
        caller: nobody,
        from: askedFrom(c.env.incoming, proxies),
        code: error.code,
        reason: error.message,
      })
    const problem = problemOf(refusalOfMachine(error, { log: core.log, path: c.req.routePath }))
    return c.json(problem, problem.status as ContentfulStatusCode, {
      'content-type': 'application/problem+json',
      // The rest of such a body is not read, so nothing can follow it on this connection.
      ...(problem.status === 413 && { connection: 'close' }),
    })
  })
  return app
}

/** What a machine is told of an error; what is none of ours is logged. */
export function refusalOfMachine(error: unknown, { log, path }: { log: Log; path: string }): Refusal {
  const known = refusalOfDatabase(error)
  if (known instanceof Refusal) return known
  log.error({ err: error, path }, 'a request of a machine failed')
  return new Refusal('internal', 'the partition could not answer')
}

/** The problem document, for doors beneath the framework. */
export function refuse(outgoing: ServerResponse, refusal: Refusal, headers: Record<string, string> = {}): void {
  // What was said of the file it would have been: its length above all.
  for (const name of outgoing.getHeaderNames()) outgoing.removeHeader(name)
  const problem = problemOf(refusal)
  outgoing.writeHead(problem.status, { ...headers, 'content-type': 'application/problem+json' }).end(JSON.stringify(problem))
}

/** What the doors of metadata are given. `baseUrl`: how machines reach this partition. */
export interface MetadataPlace {
  readonly baseUrl: string
  readonly proxies: readonly string[]
  readonly firstBoots: FirstBoots
}

/** For answers that only one machine may see: nothing between it and here keeps them. */
export const neverKept: MiddlewareHandler<DoorEnv> = async (c, next) => {
  await next()
  c.header('cache-control', 'no-store')
}

/** The JSON body. Throws malformed. */
export async function jsonBody(request: { json: () => Promise<unknown> }): Promise<unknown> {
  try {
    return await request.json()
  } catch (cause) {
    throw new Refusal('malformed', 'the body is not JSON', {}, { cause })
  }
}

/** The report of a webhook. Throws malformed, invalid-input. */
export async function reportIn(request: { json: () => Promise<unknown> }): Promise<CloudInitReport> {
  const report = cloudInitReport.safeParse(await jsonBody(request))
  if (!report.success) throw invalidInput(report.error)
  return report.data
}

/** Bytes exactly as they are: compressed user-data must arrive as it was given. */
export function textOrBytes(c: Context, bytes: Buffer): Response {
  const isText = Buffer.from(bytes.toString('utf8')).equals(bytes)
  return c.body(new Uint8Array(bytes), 200, { 'content-type': isText ? 'text/plain; charset=utf-8' : 'application/octet-stream' })
}
