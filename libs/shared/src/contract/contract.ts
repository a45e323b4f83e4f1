// The contract: every call of Muster's API, declared once. Name = path in this object, e.g. `machines.list`.
import { addresses, dhcpHosts } from './addresses.ts'
import { allocations } from './allocations.ts'
import { audit } from './audit.ts'
import type { AnsweredByOne, AnswerOf, Call, Coverage, InputOf, RequestOf } from './call.ts'
import { config } from './config.ts'
import { enrolment } from './enrolment.ts'
import { events } from './events.ts'
import { pools, tags, zones } from './labels.ts'
import { machines } from './machines.ts'
import { operatingSystems, partitions } from './partitions.ts'
import { scripts } from './scripts.ts'
import { keys, session } from './session.ts'
import { subnets } from './subnets.ts'
import { webhooks } from './webhooks.ts'

export const contract = {
  machines,
  allocations,
  tags,
  pools,
  zones,
  subnets,
  addresses,
  dhcpHosts,
  events,
  partitions,
  operatingSystems,
  scripts,
  config,
  enrolment,
  audit,
  webhooks,
  session,
  keys,
}
export type Contract = typeof contract

type Names<Groups> = { [Group in keyof Groups & string]: `${Group}.${keyof Groups[Group] & string}` }[keyof Groups & string]
export type CallName = Names<Contract>

type At<Name extends CallName> = Name extends `${infer Group}.${infer Verb}`
  ? Group extends keyof Contract
    ? Verb extends keyof Contract[Group]
      ? Contract[Group][Verb]
      : never
    : never
  : never

export type CallOf<Name extends CallName> = At<Name>
/** The calls that answer with a stream of events. */
export type StreamName = { [Name in CallName]: At<Name> extends { kind: 'stream' } ? Name : never }[CallName]
export type CallInput<Name extends CallName> = InputOf<At<Name>>
export type CallRequest<Name extends CallName> = RequestOf<At<Name>>
/** What one partition answers. */
export type CallAnswer<Name extends CallName> = AnswerOf<At<Name>>
/** What a client gets: with the coverage where the call spreads. */
export type CallOutput<Name extends CallName> =
  At<Name> extends { spread: { kind: AnsweredByOne } } ? CallAnswer<Name> : CallAnswer<Name> & { coverage: Coverage }

/** Every call by name, in the order of the contract. */
export const calls: ReadonlyMap<CallName, Call> = new Map(
  Object.entries(contract).flatMap(([group, verbs]) =>
    Object.entries(verbs).map(([verb, call]) => [`${group}.${verb}` as CallName, call as unknown as Call] as const),
  ),
)

/** The declaration of a call whose name came from outside, or undefined. */
export function callNamed(name: string): Call | undefined {
  return calls.get(name as CallName)
}
