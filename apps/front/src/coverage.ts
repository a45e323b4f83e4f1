// What each partition asked did: the line per partition that every spreading answer carries.
import type { Coverage } from '@muster/shared/contract/call'
import type { Reply } from './partition-calls.ts'

/** One partition's reply and how long it took. */
export interface Asked {
  readonly partition: string
  readonly ms: number
  readonly reply: Reply<unknown>
}

type Line = Coverage['partitions'][number]

/** One line. A `not-found` is an answer of a call that looks for something: this partition does not have it. */
export function lineOf({ partition, ms, reply }: Asked, spread: string): Line {
  const line = { name: partition, ms: Math.round(ms * 10) / 10 }
  switch (reply.kind) {
    case 'answered':
      return { ...line, outcome: 'answered' }
    case 'refused':
      return spread === 'find' && reply.refusal.code === 'not-found'
        ? { ...line, outcome: 'answered' }
        : { ...line, outcome: 'refused', reason: reply.refusal.message }
    case 'garbled':
      return { ...line, outcome: 'refused', reason: reply.reason }
    case 'silent':
      return { ...line, outcome: 'silent', reason: reply.reason }
  }
}

/** All lines, in the order of their names. */
export function coverageOf(lines: readonly Line[]): Coverage {
  const partitions = [...lines].sort((a, b) => (a.name < b.name ? -1 : 1))
  return { asked: partitions.length, answered: partitions.filter(line => line.outcome === 'answered').length, partitions }
}
