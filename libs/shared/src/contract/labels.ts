// Calls about tags, pools and zones: the same four calls for each. A label exists where it is described or used; its numbers are summed
// over the partitions.
import { z } from 'zod'
import { label } from '../machine.ts'
import { declareCall, type Gathered } from './call.ts'
import type { Page } from './page.ts'
import { pageOf } from './page.ts'

export const labelKinds = ['tag', 'pool', 'zone'] as const
export type LabelKind = (typeof labelKinds)[number]

export const labelEntry = z.object({ name: label, description: z.string(), machines: z.number().int(), ready: z.number().int() })
export type LabelEntry = z.infer<typeof labelEntry>

function joinLabels(parts: readonly LabelEntry[]): LabelEntry[] {
  const byName = new Map<string, LabelEntry>()
  for (const part of parts) {
    const known = byName.get(part.name)
    if (!known) byName.set(part.name, { ...part })
    else {
      known.machines += part.machines
      known.ready += part.ready
      known.description ||= part.description
    }
  }
  return [...byName.values()].sort((a, b) => (a.name < b.name ? -1 : 1))
}

const mergeLists = ({ answers }: Gathered<Page<LabelEntry>>): Page<LabelEntry> => ({
  items: joinLabels(answers.flatMap(({ answer }) => answer.items)),
  nextCursor: null,
})
const mergeOne = ({ answers }: Gathered<LabelEntry>): LabelEntry => joinLabels(answers.map(({ answer }) => answer))[0] as LabelEntry

function labelCalls(kind: LabelKind, meaning: string) {
  const path = `/${kind}s` as const
  return {
    list: declareCall({
      summary: `List ${kind}s`,
      description: meaning,
      rest: { method: 'GET', path },
      status: 200,
      role: 'read-only',
      input: z.strictObject({}),
      answer: pageOf(labelEntry),
      spread: { kind: 'gather', merge: mergeLists },
      errors: [],
    }),
    get: declareCall({
      summary: `One ${kind}`,
      rest: { method: 'GET', path: `${path}/{name}` },
      status: 200,
      role: 'read-only',
      input: z.strictObject({ name: label }),
      answer: labelEntry,
      spread: { kind: 'find', merge: mergeOne },
      errors: ['not-found'],
    }),
    put: declareCall({
      summary: `Create or describe a ${kind}, in every partition`,
      rest: { method: 'PUT', path: `${path}/{name}` },
      status: 200,
      role: 'operator',
      input: z.strictObject({ name: label, description: z.string().max(1000).default('') }),
      answer: labelEntry,
      spread: { kind: 'each', merge: mergeOne },
      errors: [],
    }),
    delete: declareCall({
      summary: `Forget a ${kind}: tags come off all machines; a pool or zone must be empty`,
      rest: { method: 'DELETE', path: `${path}/{name}` },
      status: 200,
      role: 'operator',
      input: z.strictObject({ name: label }),
      answer: labelEntry,
      spread: { kind: 'find', merge: mergeOne },
      errors: ['not-found', 'wrong-state'],
    }),
  }
}

export const tags = labelCalls('tag', 'A tag is a word on any number of machines.')
export const pools = labelCalls('pool', 'Each machine is in one pool: who may use it.')
export const zones = labelCalls('zone', 'Each machine is in one zone: what fails together.')
