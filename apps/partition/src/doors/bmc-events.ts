// The door for BMCs that tell of their own accord. What they say is not believed, and hardly read: it is a reason to look at once.
import type { DoorEnv } from '@muster/server/http/incoming'
import { Refusal } from '@muster/shared/errors'
import type { Hono } from 'hono'
import { hurryCheck } from '../db/power.ts'
import type { Core } from '../domain/core.ts'
import { StrangeToken } from '../domain/machine-token.ts'
import { machineOfEvents } from '../domain/power/events.ts'
import { machineDoor } from './machine-requests.ts'

/** Whoever posts without end makes us look once in this time, no more. */
const lookAtMostEveryMs = 1_000

export function bmcEventsDoor(core: Core, { proxies }: { proxies: readonly string[] }): Hono<DoorEnv> {
  const app = machineDoor(core, { name: 'bmc-events', proxies })
  app.post('/:token', async c => {
    const machine = machineOfEvents(core.seal, c.req.param('token'))
    if (machine === undefined) throw new StrangeToken('not-found', 'nobody is told anything here')
    // Read to its end, within the door's limit, so that the BMC's connection can be used again.
    await c.req.arrayBuffer()
    if ((await hurryCheck(core.sql, machine, lookAtMostEveryMs)) === 'no such machine')
      throw new Refusal('not-found', 'nobody is told anything here')
    return c.body(null, 204)
  })
  return app
}
