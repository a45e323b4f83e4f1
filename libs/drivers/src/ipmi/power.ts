/** Power, reset and identify through the chassis commands (IPMI v2.0 chapter 28; facts 4.6). */
import type { PowerState } from '../driver.ts'
import { Failure } from '../failure.ts'
import { completed, type Turn, tooShort } from './client.ts'
import { type ChassisControl, type ChassisStatus, chassisControls, commands, type IpmiResponse, parseChassisStatus } from './codec.ts'

/** Get Chassis Status. */
export async function chassisStatus(turn: Turn): Promise<ChassisStatus> {
  const reply = await turn.command(commands.getChassisStatus)
  const data = completed(reply, 'Get Chassis Status', 'The BMC cannot tell its power state. Updating its firmware may help.')
  const status = parseChassisStatus(data)
  if (!status) throw tooShort('Get Chassis Status', data)
  return status
}

/** Turns the machine on; harmless when it is. */
export async function powerOn(turn: Turn): Promise<void> {
  await control(turn, 'on', 'on')
}

/** Turns the machine off; harmless when it is. */
export async function powerOff(turn: Turn, how: 'hard' | 'soft'): Promise<void> {
  await control(turn, how === 'hard' ? 'off' : 'soft', 'off')
}

/**
 * Power cycle or reset, sent once. A BMC without a cycle gets a hard off and, seen off, an on. A machine that is off is turned on instead: BMCs answer 0xD5 or do nothing. After a lost answer
 * the power state is read: seen off during a cycle, it is under way; otherwise nobody can know, and the Failure says so.
 */
export async function restart(turn: Turn, how: 'cycle' | 'reset'): Promise<void> {
  // Reading first also proves that the session lives, just before the one command that is not repeated.
  if ((await chassisStatus(turn)).power === 'off') return powerOn(turn)
  const reply = await sendRestart(turn, how)
  if (reply === 'under way') return
  // Turned off meanwhile.
  if (reply.completionCode === notInThisState && (await chassisStatus(turn)).power === 'off') return powerOn(turn)
  if (how === 'cycle' && withoutCycle.includes(reply.completionCode)) return offThenOn(turn)
  completed(reply, `Chassis Control ${how}`, 'The BMC refuses to restart the machine now. Turn it off and on instead.')
}

/** The identify light: seconds from 1 to 255, on until further notice, or off. */
export async function identify(turn: Turn, light: number | 'on' | 'off'): Promise<void> {
  const seconds = light === 'off' ? 0 : light === 'on' ? 255 : Math.min(255, Math.max(1, Math.round(light)))
  const options = { privilege: 'OPERATOR' } as const
  let reply = await turn.command(commands.chassisIdentify, { ...options, data: Buffer.of(seconds, light === 'on' ? 1 : 0) })
  // IPMI 1.5 BMCs take one byte only.
  if (reply.completionCode === 0xc7 || reply.completionCode === 0xcc) {
    reply = await turn.command(commands.chassisIdentify, { ...options, data: Buffer.of(seconds) })
  }
  completed(reply, 'Chassis Identify', 'This chassis may have no identify light.')
}

/** How BMCs without a power cycle of their own answer one (those made of pyghmi say 0xCC). */
const withoutCycle = [0xc1, 0xc2, 0xc7, 0xc9, 0xcc, 0xd6]

/** Waits until the machine is seen off, which takes boards 1 to 15 s. */
const offLooks = 30
const offLookPauseMs = 500

async function offThenOn(turn: Turn): Promise<void> {
  await powerOff(turn, 'hard')
  for (let look = 0; look < offLooks; look++) {
    if ((await chassisStatus(turn)).power === 'off') return powerOn(turn)
    await turn.pause(offLookPauseMs)
  }
  throw new Failure({
    kind: 'refused',
    got: `this BMC has no power cycle, and the machine was still on ${(offLooks * offLookPauseMs) / 1000} s after a hard power off`,
    hint: 'Nothing more was sent. Look at the machine; then turn it off and on.',
    outcome: 'unknown',
  })
}

/** "Not supported in present state": the machine may already be as wanted. */
const notInThisState = 0xd5

/** A cycle is off for at least a second, so four looks within its first two find it. */
const looks = 4
const lookPauseMs = 400

/** Sends it once. Without an answer: `under way` if a cycle is seen to be, else a Failure with outcome "unknown". */
async function sendRestart(turn: Turn, how: 'cycle' | 'reset'): Promise<IpmiResponse | 'under way'> {
  try {
    return await sendControl(turn, how, 'once')
  } catch (error) {
    if (!(error instanceof Failure) || error.facts.outcome !== 'unknown' || error.facts.kind !== 'silent') throw error
    if (how === 'cycle' && (await wasSeen(turn, 'off'))) return 'under way'
    throw new Failure({
      ...error.facts,
      got: `Chassis Control ${how}: ${error.facts.got}; the machine is on, and whether it was restarted is not known`,
      hint: 'Not repeated, because that could restart the machine twice. If it did not restart, ask again.',
      cause: error,
    })
  }
}

async function wasSeen(turn: Turn, power: PowerState): Promise<boolean> {
  for (let look = 0; look < looks; look++) {
    if (look > 0) await turn.pause(lookPauseMs)
    if ((await chassisStatus(turn)).power === power) return true
  }
  return false
}

async function control(turn: Turn, how: ChassisControl, wanted: 'on' | 'off'): Promise<void> {
  const reply = await sendControl(turn, how, 'repeatedly')
  // On when on, off when off: some BMCs call it an error.
  if (reply.completionCode === notInThisState && (await chassisStatus(turn)).power === wanted) return
  completed(
    reply,
    `Chassis Control ${how}`,
    how === 'soft'
      ? 'The BMC may not offer soft power off, or not now: use a hard one.'
      : 'The BMC refuses this now. Look at its event log.',
  )
}

function sendControl(turn: Turn, how: ChassisControl, sends: 'repeatedly' | 'once'): Promise<IpmiResponse> {
  return turn.command(commands.chassisControl, { data: Buffer.of(chassisControls[how]), privilege: 'OPERATOR', sends })
}
