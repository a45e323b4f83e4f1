/** The driver for machines without remote power: it knows nothing and says who must act. */
import { z } from 'zod'
import { DriverError, type PowerDriver, type PowerSession } from './driver.ts'

const settings = z.strictObject({})

export const manual: PowerDriver<typeof settings> = {
  type: 'manual',
  title: 'By hand',
  settings,
  secrets: [],
  open: () => session,
}

/** One for all: it holds nothing. */
const session: PowerSession = {
  target: 'manual',
  power: async () => 'unknown',
  on: async () => refuse('power on', 'press the power button'),
  off: async ({ how }) => refuse(`power off (${how})`, how === 'hard' ? 'hold the power button, or cut the power' : 'shut the system down'),
  cycle: async () => refuse('power cycle', 'switch the machine off and on again'),
  capabilities: {},
  close: async () => {},
  [Symbol.asyncDispose]: async () => {},
}

function refuse(tried: string, act: string): never {
  throw new DriverError({
    kind: 'unsupported',
    tried,
    target: 'manual',
    got: 'this machine has no remote power control',
    hint: `A person must do it: ${act}. Or give the machine a power driver.`,
  })
}
