/** Being told by the BMC: an event subscription (DSP0266 13.5), found or made by walking the event service. */
import { Failure } from '../failure.ts'
import { type JsonObject, linkOf, list, pathOf, text, texts } from './answer.ts'
import { accepted, type Turn } from './service.ts'

/** What a change of power comes as; services before 2018 want some of these named, later ones send all where none is. */
const eventTypes = ['StatusChange', 'ResourceUpdated', 'Alert'] as const
/** A BMC keeps a dozen subscriptions. */
const subscriptionsMax = 64

/**
 * Asks the BMC to post its events to `url`. Harmless where it does already; what was asked for under the same `context` and another URL is
 * taken back. Throws Failure `unsupported` where it has no event service.
 */
export async function subscribe(turn: Turn, { url, context }: { url: string; context: string }): Promise<void> {
  const service = await eventService(turn)
  const subscriptions = subscriptionsPath(service)
  let isThere = false
  for (const path of list((await turn.get(subscriptions)).body.Members)
    .slice(0, subscriptionsMax)
    .map(member => pathOf(linkOf(member)))) {
    if (path === undefined) continue
    const { body } = await turn.get(path)
    if (text(body.Destination) === url && !isThere) isThere = true
    else if (text(body.Context) === context) accepted(await turn.send('DELETE', path), 'the end of the old subscription')
  }
  if (isThere) return
  const offered = texts(service.EventTypesForSubscription) ?? []
  const wanted = eventTypes.filter(type => offered.includes(type))
  const body = { Destination: url, Context: context, Protocol: 'Redfish', ...(wanted.length > 0 && { EventTypes: wanted }) }
  accepted(await turn.send('POST', subscriptions, { body }), 'the subscription to events')
  turn.log('the BMC posts its events', { to: new URL(url).host })
}

async function eventService(turn: Turn): Promise<JsonObject> {
  const path = pathOf(linkOf((await turn.root()).EventService))
  const service = path === undefined ? undefined : (await turn.get(path)).body
  if (service && service.ServiceEnabled !== false) return service
  throw new Failure({
    kind: 'unsupported',
    got: path === undefined ? 'the service has no EventService' : 'the EventService is switched off',
    hint: 'Nothing is lost: the power is read on a schedule.',
  })
}

function subscriptionsPath(service: JsonObject): string {
  const path = pathOf(linkOf(service.Subscriptions))
  if (path !== undefined) return path
  throw new Failure({
    kind: 'protocol',
    got: 'the EventService has no list of subscriptions',
    hint: 'The BMC does not follow the specification here. Updating its firmware may help.',
  })
}
