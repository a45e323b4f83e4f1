/** The driver for machines without remote power: it knows nothing, and says what a person must do, and where. */
import { z } from 'zod'
import type { PowerDriver } from './driver.ts'
import { Failure } from './failure.ts'
import { openSwitch } from './turns.ts'

const settings = z.strictObject({
  instructions: z
    .string()
    .min(1)
    .max(500)
    .optional()
    .describe('What a person must know to do it: where the machine stands, which outlet is its own, whom to call'),
})

/** What a person must do for each order. */
const acts = {
  on: 'turn the machine on at its power button',
  hard: 'turn the machine off: hold its power button for five seconds, or cut its power',
  soft: 'shut the operating system down',
  cycle: 'turn the machine off, wait ten seconds, and turn it on again',
} as const

export const manual: PowerDriver<typeof settings> = {
  type: 'manual',
  title: 'By hand',
  settings,
  secrets: [],
  open: ({ instructions }, context = {}) =>
    openSwitch({
      target: 'manual',
      context,
      orders: {
        power: async () => 'unknown',
        on: async () => askPerson(acts.on, instructions),
        off: async (_turn, how) => askPerson(acts[how], instructions),
        cycle: async () => askPerson(acts.cycle, instructions),
      },
    }),
}

function askPerson(act: string, instructions: string | undefined): never {
  throw new Failure({
    kind: 'unsupported',
    got: 'this machine has no remote power control',
    hint: `A person must do it: ${act}.${instructions === undefined ? ' Or give the machine a power driver.' : ` ${instructions}`}`,
  })
}
