// Following the event log. The client opens a stream that breaks again where it broke; here is only where it starts and how it ends.
import type { Client } from '@muster/shared/client'
import type { Event } from '@muster/shared/contract/events'
import type { Cli } from './cli.ts'

export interface Followed {
  readonly event: Event
  /** Where to go on from, as `--since`. */
  readonly position: string
}

/** Where to start following: the position given, else the end of the log as it is now. A server that is not there is told at once. */
export async function startOf(client: Client, since: string | undefined): Promise<string> {
  const { nextCursor } = await client.events.list({ after: since ?? 'end', limit: 1 })
  return since ?? nextCursor
}

/** Events behind `filter.after` as they happen. Never ends well: throws on Ctrl-C, and on a refusal that no reconnect would cure. */
export async function* followEvents(
  cli: Pick<Cli, 'signal'>,
  client: Client,
  { after, ...filter }: { readonly after: string; readonly machine?: string; readonly kind?: string },
): AsyncGenerator<Followed> {
  const stream = client.events.stream(filter, { lastEventId: after, signal: cli.signal })
  for await (const { id, data } of stream) yield { event: data, position: id }
  cli.signal.throwIfAborted()
}
