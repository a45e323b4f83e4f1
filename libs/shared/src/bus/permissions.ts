// Who may say and hear what on the bus, as nats-server enforces it: a partition speaks and listens for itself only, and cannot read what others are asked or
// answered. nats-server's documentation: "Authorization", permissions.
import { subjects } from './protocol.ts'

export type BusParty = { readonly kind: 'front' } | { readonly kind: 'partition'; readonly name: string }

/** Queue group of the fronts. Partitions are in the group of their own name. */
export const frontGroup = 'fronts'

/** Where a party's answers arrive: below this, so that no other party can be allowed to read them. Ends with a dot. */
export function inboxOf(party: BusParty): string {
  return party.kind === 'front' ? '_INBOX.front.' : `_INBOX.partition.${party.name}.`
}

export interface BusPermissions {
  readonly publish: { readonly allow: readonly string[] }
  readonly subscribe: { readonly allow: readonly string[] }
  /** Answers go to whoever asked, and to nobody else. */
  readonly allow_responses: { readonly max: number; readonly expires: string }
}

/** Longer than the longest that a call may wait for its answer (an hour). */
const allow_responses = { max: 1, expires: '70m' }

export function permissionsOf(party: BusParty): BusPermissions {
  const inbox = `${inboxOf(party)}>`
  if (party.kind === 'front')
    return {
      publish: {
        allow: [subjects.presenceAsk, subjects.offer, subjects.call('*'), subjects.cancel, subjects.configuration],
      },
      subscribe: { allow: [subjects.presence('*'), subjects.log('*'), `${subjects.configurationCopy} ${frontGroup}`, inbox] },
      allow_responses,
    }
  const { name } = party
  return {
    publish: { allow: [subjects.presence(name), subjects.log(name), subjects.configurationCopy] },
    subscribe: {
      allow: [
        subjects.presenceAsk,
        `${subjects.offer} ${name}`,
        `${subjects.call(name)} ${name}`,
        subjects.cancel,
        subjects.configuration,
        inbox,
      ],
    },
    allow_responses,
  }
}

/** nats-server's `authorization` as its configuration has it: JSON is of its format. */
export function brokerConfiguration(parties: Parameters<typeof brokerAuthorization>[0]): string {
  return `authorization: ${JSON.stringify(brokerAuthorization(parties), null, 2)}\n`
}

/** nats-server's `authorization`: a user per party, known by the public half of its nkey. Who has none is not let in. */
export function brokerAuthorization(parties: readonly { party: BusParty; publicKey: string }[]) {
  return { users: parties.map(({ party, publicKey }) => ({ nkey: publicKey, permissions: permissionsOf(party) })) }
}
