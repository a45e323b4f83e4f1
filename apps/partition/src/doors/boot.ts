// The boot door, the script a machine asks for; the files that it names are files.ts. Anonymous: a machine that boots has no secret yet.
import type { DoorEnv } from '@muster/server/http/incoming'
import { Refusal } from '@muster/shared/errors'
import { normalMac } from '@muster/shared/ids'
import type { Hono } from 'hono'
import { isDatabaseAway } from '../db/connect.ts'
import { findMachineByMac } from '../db/machines.ts'
import { bootPlan, ipxeScript } from '../domain/boot-plan.ts'
import type { Core } from '../domain/core.ts'
import { machineToken } from '../domain/machine-token.ts'
import type { BootMemory } from '../domain/memory.ts'
import { machineDoor } from './machine-requests.ts'

/** `baseUrl`: how machines reach this partition. */
export function bootDoor(core: Core, options: { baseUrl: string }): Hono<DoorEnv> {
  const app = machineDoor(core.log)
  const script = async (text: string) => {
    const mac = normalMac(text)
    if (mac === undefined)
      throw new Refusal('invalid-input', `"${text}" is not a MAC address`, { errors: [{ field: 'mac', message: 'is not a MAC address' }] })
    const machine = await factsOf(core, mac)
    if (machine === 'unknown while the database is away') return retryScript(options.baseUrl, mac)
    const plan = bootPlan({ machine, hasAgent: arch => core.catalogue.hasAgent(arch) })
    const token = plan.kind === 'agent' && plan.machine ? machineToken(core.seal, 'agent', plan.machine) : null
    return ipxeScript(plan, { baseUrl: options.baseUrl, token })
  }
  app.get('/ipxe', async c => c.text(await script(c.req.query('mac') ?? '')))
  app.get('/ipxe/:mac', async c => c.text(await script(c.req.param('mac'))))
  return app
}

/** The row; without the database, what is remembered, as long as that says "boot from disk". */
async function factsOf(core: Core, mac: string): Promise<BootMemory | undefined | 'unknown while the database is away'> {
  try {
    return await findMachineByMac(core.sql, [mac])
  } catch (error) {
    if (!isDatabaseAway(error)) throw error
    const remembered = core.memory.bootFacts(mac)
    const hasWork = remembered === undefined || bootPlan({ machine: remembered, hasAgent: () => true }).kind === 'agent'
    return hasWork ? 'unknown while the database is away' : remembered
  }
}

/** The loader asks again by itself. */
const retryScript = (baseUrl: string, mac: string) =>
  `#!ipxe\necho Muster: the partition cannot look this machine up just now; asking again\nsleep 5\nchain ${baseUrl}/boot/ipxe/${mac}\n`
