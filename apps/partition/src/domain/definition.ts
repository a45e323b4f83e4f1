// Starting and stopping by whole definition: the caller keeps the machines elsewhere and says all there is to know with each order. A machine that is
// not known here is learnt from it; one that is known is brought in step first.
import { isDeepStrictEqual } from 'node:util'
import { driverOf } from '@muster/drivers/drivers'
import type { Caller } from '@muster/shared/contract/call'
import type { CallAnswer, CallInput } from '@muster/shared/contract/contract'
import { machines as calls } from '@muster/shared/contract/machines'
import { Refusal } from '@muster/shared/errors'
import type { Machine, NetworkInterface } from '@muster/shared/machine'
import * as db from '../db/machines.ts'
import { findSwitch, type PowerSwitch } from '../db/power.ts'
import type { Core } from './core.ts'
import { createMachine, orderPower, updateMachine } from './machines.ts'
import { moveMachine } from './move.ts'
import { isReplaced } from './power/rotation.ts'
import { openPowerSettings } from './power-settings.ts'
import { viewOf } from './view.ts'

type Definition = CallInput<'machines.start'>['definition']
type Learnt = CallAnswer<'machines.start'>['outcome']

/** Brings the machine in step with its definition and switches it on (or off and on). May be repeated. */
export async function startByDefinition(
  core: Core,
  caller: Caller,
  input: CallInput<'machines.start'>,
  signal: AbortSignal,
): Promise<CallAnswer<'machines.start'>> {
  const { id, outcome } = await learn(core, caller, input.definition)
  const order = { id, action: input.action, how: 'hard' as const, ...(input.wait && { wait: input.wait }) }
  return { ...(await orderPower(core, caller, order, signal, input.boot ?? null)), outcome }
}

/** The same, and switches it off. */
export async function stopByDefinition(
  core: Core,
  caller: Caller,
  input: CallInput<'machines.stop'>,
  signal: AbortSignal,
): Promise<CallAnswer<'machines.stop'>> {
  const { id, outcome } = await learn(core, caller, input.definition)
  const order = { id, action: 'off' as const, how: input.how, ...(input.wait && { wait: input.wait }) }
  return { ...(await orderPower(core, caller, order, signal)), outcome }
}

/** Throws already-exists where the definition is of two machines, and what creating and changing one throw. */
async function learn(core: Core, caller: Caller, definition: Definition): Promise<{ id: string; outcome: Learnt }> {
  const known = await knownBy(core, definition)
  if (known) return { id: known.id, outcome: await bringInStep(core, caller, known, definition) }
  if (definition.powerDriver === undefined)
    throw new Refusal('no-power-driver', 'the machine is not known here, and its definition has no powerDriver to switch it with')
  const { id } = await createMachine(core, caller, calls.create.input.parse(definition))
  await adoptMachine(core, caller, id)
  return { id, outcome: 'learnt' }
}

/** The machine that has the definition's addresses, or else its name. */
async function knownBy(core: Core, { interfaces, hostname }: Definition): Promise<db.MachineRow | undefined> {
  const found = await db.machinesByMac(
    core.sql,
    interfaces.map(({ mac }) => mac),
  )
  if (found.length > 1) {
    const names = found.map(({ id }) => id).join(' and ')
    throw new Refusal('already-exists', `the definition has MAC addresses of ${names}, which are machines of their own`)
  }
  const [machine] = found
  const named = hostname === undefined ? undefined : await db.findMachineByHostname(core.sql, hostname)
  if (machine && named && machine.id !== named.id)
    throw new Refusal('already-exists', `the MAC addresses are of ${machine.id}, and ${named.id} is called ${hostname}`)
  // By name alone only where none of its addresses is known: the network card was replaced.
  return machine ?? named
}

async function bringInStep(core: Core, caller: Caller, row: db.MachineRow, definition: Definition): Promise<Learnt> {
  // It was created, and the process died before it was taken over.
  if (row.state === 'new') await adoptMachine(core, caller, row.id)
  const change = await differencesOf(core, row, definition)
  if (Object.keys(change).length === 0) return 'known'
  await updateMachine(core, caller, { id: row.id, ...change })
  return 'changed'
}

/** What has to be changed, in the words of `machines.update`; what the definition does not say stays. */
async function differencesOf(core: Core, row: db.MachineRow, definition: Definition) {
  const { hostname, arch, pool, zone, rack, note, tags } = definition
  const plain = { hostname, arch, pool, zone, rack, note, tags }
  const changed = Object.fromEntries(
    Object.entries(plain).filter(([name, value]) => value !== undefined && !isDeepStrictEqual(value, row[name as keyof typeof plain])),
  ) as Partial<typeof plain>
  const interfaces = joined(row.interfaces, definition.interfaces)
  const { powerDriver } = definition
  const found = await findSwitch(core.sql, row.id)
  const powerSettings = await settingsMeant(core, found, definition.powerSettings ?? {})
  const isSame = powerDriver === undefined || isSwitchedBy(core, found, powerDriver, powerSettings)
  return {
    ...changed,
    ...(!isDeepStrictEqual(interfaces, row.interfaces) && { interfaces }),
    ...(!isSame && { powerDriver, powerSettings }),
  }
}

/** What is known of its interfaces, and what the definition says beside it: an agent may have found more than the caller knows. */
function joined(known: readonly NetworkInterface[], said: readonly NetworkInterface[]): NetworkInterface[] {
  const fresh = said.filter(({ mac }) => !known.some(port => port.mac === mac))
  return [...known, ...fresh]
}

/** Whether the switch is set up like this already: sealed values cannot be compared, so they are opened. */
function isSwitchedBy(core: Core, found: PowerSwitch | undefined, driver: string, settings: Record<string, unknown>): boolean {
  const wanted = driverOf(driver)?.settings.safeParse(settings)
  return found?.driver === driver && wanted?.success === true && isDeepStrictEqual(wanted.data, openPowerSettings(core, found))
}

/**
 * The settings that the definition means: who brings a password that a rotation has replaced has not heard of the one in force, and the BMC would not
 * take the old.
 */
async function settingsMeant(core: Core, found: PowerSwitch | undefined, said: Record<string, unknown>): Promise<Record<string, unknown>> {
  const { password } = said
  if (!found || typeof password !== 'string' || !(await isReplaced(core, found.machine_id, password))) return said
  return { ...said, password: openPowerSettings(core, found).password }
}

/** A machine that is in use already, as it is: deployed, its power its owner's business, its next boot from disk. */
export async function adoptMachine(core: Core, caller: Caller, id: string): Promise<Machine> {
  const { row } = await moveMachine(core, { id, move: 'adopt', actor: caller.name, patch: { owner: caller.name, netboot: false } })
  return viewOf(row, core.partition)
}
