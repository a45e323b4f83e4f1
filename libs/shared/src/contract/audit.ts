// Calls about the audit log: who asked for which change, from where, and what came of it.
import { z } from 'zod'
import { auditEntry } from '../audit.ts'
import { declareCall } from './call.ts'
import { mergeLogs } from './log.ts'

const filter = {
  limit: z.number().int().min(1).max(1000).default(100),
  actor: z.string().max(100).optional().describe('of this caller only'),
  call: z.string().max(64).optional().describe('of this call only, such as machines.deploy'),
  target: z.string().max(300).optional().describe('about this machine, allocation or document only'),
}

const page = z.object({ items: z.array(auditEntry), nextCursor: z.string().describe('the position to go on from, as `after`') })

export const audit = {
  list: declareCall({
    summary: 'What was changed through the API, oldest first',
    description:
      'Every partition keeps its own log, in a chain of hashes that `muster audit verify` checks. An entry appears within some seconds of its end.',
    rest: { method: 'GET', path: '/audit' },
    status: 200,
    role: 'admin',
    input: z.strictObject({
      after: z.string().max(4000).optional().describe('a position: 42, or lon1:42,par2:7; end: behind all there is'),
      ...filter,
    }),
    answer: page,
    spread: { kind: 'gather', merge: mergeLogs },
    errors: [],
  }),
  fronts: declareCall({
    summary: 'What was changed in the global configuration, by whom and from where, oldest first',
    description: 'The log that the fronts share.',
    rest: { method: 'GET', path: '/audit/fronts' },
    status: 200,
    role: 'admin',
    input: z.strictObject({ after: z.number().int().min(0).default(0).describe('behind the entry of this number'), ...filter }),
    answer: z.object({ items: z.array(auditEntry), lastSeq: z.number().int() }),
    spread: { kind: 'global' },
    errors: ['needs-front'],
  }),
}
