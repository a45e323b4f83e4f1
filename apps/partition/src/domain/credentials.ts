// The password of a machine's BMC: a rotation is asked for here, and carried out in power/rotation.ts.
import { driverOf } from '@muster/drivers/drivers'
import type { Caller } from '@muster/shared/contract/call'
import type { CallAnswer, CallInput } from '@muster/shared/contract/contract'
import { durationMs } from '@muster/shared/duration'
import { Refusal } from '@muster/shared/errors'
import type { Sql } from '../db/connect.ts'
import { findRotation, giveRotation, giveUpRotation, type Rotation } from '../db/rotations.ts'
import { Bell } from './bell.ts'
import type { Core } from './core.ts'
import { existingMachine, refuseLocked } from './move.ts'
import { rotationViewOf, viewOf } from './view.ts'

/** Asks for a new password, or joins the rotation that is under way. */
export async function rotateCredentials(
  core: Core,
  caller: Caller,
  input: CallInput<'machines.rotateCredentials'>,
  signal: AbortSignal,
): Promise<CallAnswer<'machines.rotateCredentials'>> {
  const row = await existingMachine(core, input.id)
  refuseLocked(row)
  if (row.power_driver === null)
    throw new Refusal('no-power-driver', `${row.id} has no power driver; set powerDriver and powerSettings first`)
  if (!driverOf(row.power_driver)?.accountOf)
    throw new Refusal('wrong-state', `${row.id} is switched by the driver ${row.power_driver}, which cannot change a password`)
  let rotation = await giveRotation(core.sql, { machine: row.id, askedBy: caller.name })
  core.bells.rotation.ring()
  core.bells.log.ring()
  if (input.wait !== undefined) rotation = await ended(core, rotation, durationMs(input.wait), signal)
  return { ...viewOf(await existingMachine(core, row.id), core.partition), rotation: rotationViewOf(rotation) }
}

async function ended(core: Core, given: Rotation, limitMs: number, signal: AbortSignal): Promise<Rotation> {
  const until = Date.now() + limitMs
  const pause = new Bell()
  let rotation = given
  while ((rotation.state === 'queued' || rotation.state === 'running') && Date.now() < until && !signal.aborted) {
    await pause.wait(200, signal)
    rotation = (await findRotation(core.sql, given.id)) ?? rotation
  }
  return rotation
}

/**
 * Somebody sets a machine's power settings: a rotation that cannot find out which password is true gives up both, because a person knows better.
 * Throws wrong-state in the middle of one that goes well, or the password just made would be lost.
 */
export async function replaceCandidates(sql: Sql, machine: string): Promise<void> {
  if ((await giveUpRotation(sql, machine)) === 'goes on')
    throw new Refusal('wrong-state', `the password of the BMC of ${machine} is being rotated just now; try again in a minute`)
}
