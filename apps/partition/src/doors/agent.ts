// The agent door: enlistment (anonymous), jobs, inventories, results and signals (with the token from the boot script, from the
// machine's address: domain/boot-origin.ts).

import type { DoorEnv } from '@muster/server/http/incoming'
import { enlistment, erasure, inventory, signal } from '@muster/shared/agent'
import { invalidInput, Refusal } from '@muster/shared/errors'
import { scriptResult } from '@muster/shared/scripts'
import type { Context, Hono } from 'hono'
import type { z } from 'zod'
import { enlist, jobOf, machineOfToken, receiveSignal, saveInventory } from '../domain/agent.ts'
import type { BootOrigins } from '../domain/boot-origin.ts'
import type { Core } from '../domain/core.ts'
import { receiveErasure } from '../domain/erase.ts'
import { receiveScriptResult } from '../domain/scripts.ts'
import { askedFrom, jsonBody, machineDoor } from './machine-requests.ts'

/** `baseUrl`: how machines reach this partition. */
export function agentDoor(core: Core, place: { readonly baseUrl: string; readonly origins: BootOrigins }): Hono<DoorEnv> {
  const { origins } = place
  const app = machineDoor(core, { name: 'agent', proxies: origins.proxies })
  const machineOf = async (c: Context<DoorEnv>) => {
    const token = /^Bearer (\S+)$/.exec(c.req.header('authorization') ?? '')?.[1]
    if (token === undefined) throw new Refusal('unauthenticated', 'the agent sends no token')
    const machine = await machineOfToken(core, 'agent', token)
    await origins.checkAgent(machine, askedFrom(c.env.incoming, origins.proxies))
    return machine
  }
  app.post('/enlist', async c => {
    const outcome = await enlist(core, checked(enlistment, await jsonBody(c.req)))
    return c.json(outcome, outcome.outcome === 'created' ? 201 : 200)
  })
  app.get('/job', async c => c.json(jobOf(core, await machineOf(c), place.baseUrl)))
  app.post('/inventory', async c => {
    const machine = await machineOf(c)
    await saveInventory(core, machine, checked(inventory, await jsonBody(c.req)))
    return c.body(null, 204)
  })
  app.post('/script-result', async c => {
    const machine = await machineOf(c)
    await receiveScriptResult(core, machine, checked(scriptResult, await jsonBody(c.req)))
    return c.body(null, 204)
  })
  app.post('/erasure', async c => {
    const machine = await machineOf(c)
    await receiveErasure(core, machine, checked(erasure, await jsonBody(c.req)))
    return c.body(null, 204)
  })
  app.post('/signal', async c => {
    const machine = await machineOf(c)
    await receiveSignal(core, machine, checked(signal, await jsonBody(c.req)))
    return c.body(null, 204)
  })
  return app
}

function checked<Schema extends z.ZodType>(schema: Schema, value: unknown): z.output<Schema> {
  const parsed = schema.safeParse(value)
  if (!parsed.success) throw invalidInput(parsed.error)
  return parsed.data
}
