/** The manual driver tells a person what to do. */
import { expect, test } from 'vitest'
import type { PowerSession } from '../src/driver.ts'
import { manual } from '../src/manual.ts'

const instructions = 'Rack 4, height 17, outlet B7; the key is at the desk.'

test.each<[string, (session: PowerSession) => Promise<void>, string]>([
  ['power on', session => session.on(), 'A person must do it: turn the machine on at its power button.'],
  ['power off (soft)', session => session.off({ how: 'soft' }), 'A person must do it: shut the operating system down.'],
  [
    'power off (hard)',
    session => session.off({ how: 'hard' }),
    'A person must do it: turn the machine off: hold its power button for five seconds, or cut its power.',
  ],
  ['power cycle', session => session.cycle(), 'A person must do it: turn the machine off, wait ten seconds, and turn it on again.'],
])('%s says what to do, and where', async (tried, order, hint) => {
  await using session = manual.open({ instructions })
  await expect(order(session)).rejects.toMatchObject({ kind: 'unsupported', tried, target: 'manual', hint: `${hint} ${instructions}` })
})

test('without instructions a power driver is suggested', async () => {
  await using session = manual.open({})
  await expect(session.on()).rejects.toMatchObject({ hint: expect.stringMatching(/power button\. Or give the machine a power driver\.$/) })
})
