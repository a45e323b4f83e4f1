// The agent door: enlistment (anonymous), jobs, inventories, results and signals (with the token from the boot script).

import type { DoorEnv } from '@muster/server/http/incoming'
import { enlistment, erasure, inventory, signal } from '@muster/shared/agent'
import { invalidInput, Refusal } from '@muster/shared/errors'
import { scriptResult } from '@muster/shared/scripts'
import type { Hono } from 'hono'
import type { z } from 'zod'
import { enlist, jobOf, machineOfToken, receiveSignal, saveInventory } from '../domain/agent.ts'
import type { BootOrigins } from '../domain/boot-origin.ts'
import type { Core } from '../domain/core.ts'
import { receiveErasure } from '../domain/erase.ts'
import { receiveScriptResult } from '../domain/scripts.ts'
import { jsonBody, machineDoor } from './machine-requests.ts'

/** `baseUrl`: how machines reach this partition. */
export function agentDoor(core: Core, options: { baseUrl: string; origins: BootOrigins }): Hono<DoorEnv> {
  const app = machineDoor(core, { name: 'agent', proxies: options.origins.proxies })
  app.post('/enlist', async c => {
    const outcome = await enlist(core, checked(enlistment, await jsonBody(c.req)))
    return c.json(outcome, outcome.outcome === 'created' ? 201 : 200)
  })
  app.get('/job', async c => c.json(jobOf(core, await machineOf(core, c.req.header('authorization')), options.baseUrl)))
  app.post('/inventory', async c => {
    const machine = await machineOf(core, c.req.header('authorization'))
    await saveInventory(core, machine, checked(inventory, await jsonBody(c.req)))
    return c.body(null, 204)
  })
  app.post('/script-result', async c => {
    const machine = await machineOf(core, c.req.header('authorization'))
    await receiveScriptResult(core, machine, checked(scriptResult, await jsonBody(c.req)))
    return c.body(null, 204)
  })
  app.post('/erasure', async c => {
    const machine = await machineOf(core, c.req.header('authorization'))
    await receiveErasure(core, machine, checked(erasure, await jsonBody(c.req)))
    return c.body(null, 204)
  })
  app.post('/signal', async c => {
    const machine = await machineOf(core, c.req.header('authorization'))
    await receiveSignal(core, machine, checked(signal, await jsonBody(c.req)))
    return c.body(null, 204)
  })
  return app
}

function machineOf(core: Core, authorization: string | undefined): ReturnType<typeof machineOfToken> {
  const token = /^Bearer (\S+)$/.exec(authorization ?? '')?.[1]
  if (token === undefined) throw new Refusal('unauthenticated', 'the agent sends no token')
  return machineOfToken(core, 'agent', token)
}

function checked<Schema extends z.ZodType>(schema: Schema, value: unknown): z.output<Schema> {
  const parsed = schema.safeParse(value)
  if (!parsed.success) throw invalidInput(parsed.error)
  return parsed.data
}
