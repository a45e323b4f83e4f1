// Rotation of BMC passwords: read the BMC's rule, make a password, write old and new down, set it, log in with it, forget the old. A process may die at
// any point: whoever goes on finds both written down, tries the new and then the old, and goes on from what is true.
import { randomInt } from 'node:crypto'
import { DriverError, type PasswordRule, type PowerSession } from '@muster/drivers/driver'
import { driverOf } from '@muster/drivers/drivers'
import { Secret } from '@muster/shared/secret'
import { isDatabaseAway } from '../../db/connect.ts'
import { findSwitch, type PowerSwitch } from '../../db/power.ts'
import {
  claimSwitches,
  dropSwitches,
  dueRotations,
  endRotation,
  holdSwitches,
  putOff,
  type Rotation,
  type RotationClaim,
  replacedPasswords,
  switchesOf,
  writeAhead,
} from '../../db/rotations.ts'
import { runLoop } from '../bell.ts'
import type { Core } from '../core.ts'
import { openPowerSettings, powerContext } from '../power-settings.ts'
import { faultOf, type Switchboard } from './switchboard.ts'

/** Rotations under way at once: each is a handful of logins, and nobody waits for all of a thousand at once. */
const slots = 16
const claimMs = 45_000
/** Where it is not known which password is true. BMCs lock accounts after some wrong logins, for minutes: hence ever longer pauses. */
const againMs = [5_000, 30_000, 120_000, 600_000]

/** Carries out rotations until the signal, then waits for the calls in flight. */
export async function runRotations(core: Core, board: Switchboard, signal: AbortSignal): Promise<void> {
  const inFlight = new Map<number, Promise<void>>()
  const look = async (): Promise<'idle'> => {
    const due = await dueRotations(core.sql, slots + inFlight.size)
    for (const rotation of due.filter(({ id }) => !inFlight.has(id)).slice(0, Math.max(0, slots - inFlight.size))) {
      const work = rotate(rotation, { core, board, signal })
        .catch(error => {
          if (!signal.aborted)
            core.log.error({ err: error, machine: rotation.machine_id }, 'a rotation could not be stored; its claim will run out')
        })
        .finally(() => inFlight.delete(rotation.id))
      inFlight.set(rotation.id, work)
    }
    return 'idle'
  }
  await runLoop({ name: 'credential rotation', bell: core.bells.rotation, everyMs: 500, signal, log: core.log, look })
  await Promise.all(inFlight.values())
}

interface Context {
  readonly core: Core
  readonly board: Switchboard
  readonly signal: AbortSignal
}

/** Claims every switch of the account and carries the rotation on from wherever it is. Returns at once where somebody else speaks to that BMC. */
async function rotate(rotation: Rotation, context: Context): Promise<void> {
  const { core, signal } = context
  const own = await findSwitch(core.sql, rotation.machine_id)
  if (!own) return
  const machines = await sharing(core, own)
  const switches = await claimSwitches(core.sql, machines, claimMs)
  const token = switches?.[0]?.claim_token
  if (!switches || token === undefined) return
  const claim: RotationClaim = { rotation: rotation.id, machines, token }
  let outcome: Outcome
  try {
    outcome = await new Work(rotation, switches, claim, context).run()
  } catch (error) {
    if (signal.aborted) return await dropSwitches(core.sql, claim)
    if (isDatabaseAway(error)) throw error
    outcome = { kind: 'undecided', error }
  }
  await conclude(rotation, claim, outcome, core)
  core.bells.power.ring()
  core.bells.log.ring()
}

/** The machines whose switches log in with the same account of the same BMC, itself among them. */
async function sharing(core: Core, own: PowerSwitch): Promise<string[]> {
  const account = accountOf(core, own)
  if (own.driver === null || account === undefined) return [own.machine_id]
  const others = await switchesOf(core.sql, own.driver)
  return others.filter(other => other.machine_id === own.machine_id || accountOf(core, other) === account).map(other => other.machine_id)
}

function accountOf(core: Core, power: PowerSwitch): string | undefined {
  const driver = power.driver === null ? undefined : driverOf(power.driver)
  const settings = driver?.accountOf && driver.settings.safeParse(openPowerSettings(core, power))
  return settings?.success ? driver?.accountOf?.(settings.data) : undefined
}

type Outcome =
  | { kind: 'done'; secrets: ReadonlyMap<string, Buffer>; replaced: string }
  /** The old password is true, and stays. */
  | { kind: 'failed'; error: unknown }
  /** Neither is known to be true. */
  | { kind: 'undecided'; error: unknown }
  | { kind: 'lost' }

async function conclude(rotation: Rotation, claim: RotationClaim, outcome: Outcome, core: Core): Promise<void> {
  const { sql, log } = core
  const facts = { machine: rotation.machine_id, rotation: rotation.id }
  switch (outcome.kind) {
    case 'done':
      await endRotation(sql, claim, { state: 'done', secrets: outcome.secrets, replaced: outcome.replaced })
      return
    case 'failed':
      await endRotation(sql, claim, { state: 'failed', fault: faultOf(outcome.error) })
      return
    case 'undecided':
      await putOff(sql, claim, faultOf(outcome.error), againMs[Math.min(rotation.tries, againMs.length - 1)] as number)
      log.warn({ ...facts, err: outcome.error }, 'which password the BMC has is not known yet; both are kept')
      return
    case 'lost':
      log.warn(facts, 'another worker has taken this rotation over')
  }
}

interface Candidates {
  old: string
  new: string
}

const candidatesContext = (rotation: number) => `credential rotation ${rotation}`

const replacedText = (rotation: number, password: string) => `password replaced by rotation ${rotation}: ${password}`
/** How many of a BMC's past passwords are known again. */
const knownAgain = 20

/** Whether a rotation has replaced this password of the machine's BMC: who brings it back has not heard of the new one. */
export async function isReplaced(core: Core, machine: string, password: string): Promise<boolean> {
  const marks = await replacedPasswords(core.sql, machine, knownAgain)
  return marks.some(({ id, replaced }) => core.seal.isSignature(replaced, replacedText(id, password)))
}

class Work {
  readonly #rotation: Rotation
  readonly #switches: readonly PowerSwitch[]
  readonly #claim: RotationClaim
  readonly #context: Context

  constructor(rotation: Rotation, switches: readonly PowerSwitch[], claim: RotationClaim, context: Context) {
    this.#rotation = rotation
    this.#switches = switches
    this.#claim = claim
    this.#context = context
  }

  async run(): Promise<Outcome> {
    const { core, board, signal } = this.#context
    const current = this.#own()
    const written = this.#rotation.candidates
    if (written) return this.#goOn(core.seal.open(written, candidatesContext(this.#rotation.id)) as Candidates)
    let rule: PasswordRule
    let old: string
    try {
      rule = await board.use(current, session => changeOf(session).rule({ signal }))
      old = this.#passwordShared()
    } catch (error) {
      // Nothing was changed: the old password is as true as it was.
      if (signal.aborted || isDatabaseAway(error)) throw error
      return { kind: 'failed', error }
    }
    const candidates: Candidates = { old, new: newPassword(rule).reveal() }
    const sealed = core.seal.seal(candidates, candidatesContext(this.#rotation.id))
    if ((await writeAhead(core.sql, this.#claim, sealed)) === 'lost') return { kind: 'lost' }
    return this.#change(candidates)
  }

  /** After a crash, or when the BMC did not answer: what is true now? */
  async #goOn(candidates: Candidates): Promise<Outcome> {
    if ((await this.#hold()) === 'lost') return { kind: 'lost' }
    const refused = await this.#refusal(candidates.new)
    if (refused === undefined) return this.#done(candidates)
    const refusedOld = await this.#refusal(candidates.old)
    return refusedOld === undefined ? this.#change(candidates) : { kind: 'undecided', error: neither(refusedOld) }
  }

  async #change(candidates: Candidates): Promise<Outcome> {
    const { board, signal } = this.#context
    if ((await this.#hold()) === 'lost') return { kind: 'lost' }
    let setting: unknown
    try {
      await board.use(this.#with(candidates.old), session => changeOf(session).set({ password: candidates.new, signal }))
    } catch (error) {
      if (signal.aborted) throw error
      // Whatever came back, only a login tells what is true.
      setting = error
    }
    if ((await this.#hold()) === 'lost') return { kind: 'lost' }
    const refused = await this.#refusal(candidates.new)
    if (refused === undefined) return this.#done(candidates)
    const refusedOld = await this.#refusal(candidates.old)
    return refusedOld === undefined
      ? { kind: 'failed', error: setting ?? refused }
      : { kind: 'undecided', error: neither(setting ?? refusedOld) }
  }

  /** Why the BMC does not let us in with that password, or undefined where it does. Throws where it cannot be known. */
  async #refusal(password: string): Promise<DriverError | undefined> {
    const { board, signal } = this.#context
    try {
      await board.use(this.#with(password), session => session.power({ signal }))
      return undefined
    } catch (error) {
      if (error instanceof DriverError && error.kind === 'authentication') return error
      throw error
    }
  }

  #done({ old, new: password }: Candidates): Outcome {
    return {
      kind: 'done',
      replaced: this.#context.core.seal.sign(replacedText(this.#rotation.id, old)),
      secrets: new Map(this.#switches.map(power => [power.machine_id, this.#sealed(power, password)])),
    }
  }

  #own(): PowerSwitch {
    return this.#switches.find(({ machine_id }) => machine_id === this.#rotation.machine_id) as PowerSwitch
  }

  /** The password of the account. Throws DriverError where the machines that share it do not agree on it: then some of them are wrong. */
  #passwordShared(): string {
    const { core } = this.#context
    const password = openPowerSettings(core, this.#own()).password
    const others = this.#switches.filter(power => openPowerSettings(core, power).password !== password)
    if (typeof password === 'string' && others.length === 0) return password
    const names = others.map(({ machine_id }) => machine_id).join(', ')
    throw new DriverError({
      kind: 'settings',
      tried: 'rotate the password',
      target: `${this.#own().driver} of ${this.#own().machine_id}`,
      got: `${names} share this account of this BMC, and have another password in their settings`,
      hint: 'Set the same password in the power settings of all of them first.',
    })
  }

  #with(password: string): PowerSwitch {
    const own = this.#own()
    return { ...own, secrets: this.#sealed(own, password) }
  }

  #sealed(power: PowerSwitch, password: string): Buffer {
    const { core } = this.#context
    const secrets = power.secrets === null ? {} : (core.seal.open(power.secrets, powerContext(power.machine_id)) as object)
    return core.seal.seal({ ...secrets, password }, powerContext(power.machine_id))
  }

  #hold(): Promise<'ours' | 'lost'> {
    return holdSwitches(this.#context.core.sql, this.#claim, claimMs)
  }
}

function changeOf(session: PowerSession) {
  const { credentials } = session.capabilities
  if (credentials) return credentials
  throw new DriverError({
    kind: 'unsupported',
    tried: 'rotate the password',
    target: session.target,
    got: 'this driver cannot change a password',
    hint: 'Change it where it is kept, and then in the power settings.',
  })
}

function neither(cause: unknown): Error {
  if (!(cause instanceof DriverError) || cause.kind !== 'authentication') return cause as Error
  return new DriverError({
    kind: 'authentication',
    tried: 'log in with the old and the new password',
    target: cause.target,
    got: 'both are refused; both are kept, and tried again',
    hint: 'The BMC may have locked the account for some minutes. Otherwise set the true password in the power settings.',
    cause,
  })
}

const letters = 'abcdefghijkmnopqrstuvwxyz'
/** What BMCs ask for at most is one of each; none of these is special to a shell, JSON, a URL or a web page. */
const classes = [letters, letters.toUpperCase(), '23456789', '-_.']
/** 16 of these are 93 bits; IPMI knows no more than 20 bytes, and accounts are shared with it. */
const wishedBytes = { least: 12, most: 20 }

/** A password by chance that meets the rule. Throws DriverError where the rule allows none that is worth having. */
export function newPassword(rule: PasswordRule): Secret {
  const length = Math.max(rule.bytesMin, Math.min(rule.bytesMax, wishedBytes.most))
  if (length < wishedBytes.least || length > rule.bytesMax)
    throw new DriverError({
      kind: 'unsupported',
      tried: 'make a password',
      target: 'the BMC',
      got: `its rule asks for ${rule.bytesMin} to ${rule.bytesMax} bytes`,
      hint: `A password of less than ${wishedBytes.least} characters is not worth having: change the rule in the BMC.`,
    })
  const all = classes.join('')
  for (;;) {
    const password = Array.from({ length }, () => all[randomInt(all.length)]).join('')
    // Begins with a letter: some firmware takes a leading dash or dot for something else.
    if (/^[a-z]/i.test(password) && classes.every(some => [...password].some(one => some.includes(one)))) return new Secret(password)
  }
}
