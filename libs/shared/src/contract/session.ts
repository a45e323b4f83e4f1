// Who am I, and what is this server?
import { z } from 'zod'
import { caller, declareCall } from './call.ts'

export const session = {
  whoami: declareCall({
    summary: 'Who the token belongs to, and which server this is',
    rest: { method: 'GET', path: '/whoami' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({}),
    answer: z.object({ caller, server: z.object({ kind: z.enum(['front', 'partition']), name: z.string(), version: z.string() }) }),
    spread: { kind: 'here' },
    errors: [],
  }),
}
