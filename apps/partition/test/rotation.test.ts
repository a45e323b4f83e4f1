// Rotation of BMC passwords, killed at every point where a process can die: afterwards the row and the BMC agree, and nobody has seen the password.
import type { PowerSession } from '@muster/drivers/driver'
import { DriverError } from '@muster/drivers/driver'
import { machines as calls } from '@muster/shared/contract/machines'
import { expect, test } from 'vitest'
import { deleteMachine as deleteRow, type MachineRow } from '../src/db/machines.ts'
import { claimChecks, claimOrders, findSwitch, giveOrder } from '../src/db/power.ts'
import { latestRotation, type Rotation } from '../src/db/rotations.ts'
import type { Core } from '../src/domain/core.ts'
import { rotateCredentials } from '../src/domain/credentials.ts'
import { startByDefinition } from '../src/domain/definition.ts'
import { deleteMachine, updateMachine } from '../src/domain/machines.ts'
import { newPassword, runRotations } from '../src/domain/power/rotation.ts'
import { Switchboard } from '../src/domain/power/switchboard.ts'
import { openPowerSettings, storedPowerSettings } from '../src/domain/power-settings.ts'
import { addMachine, operator, reread, runPartition, startCore, type TestCore, until } from './harness.ts'
import { mortalSql } from './mortal-sql.ts'
import { redfishSettingsOf, settingsOf, startBmcs, type VirtualMachine } from './virtual-bmc.ts'

const signal = new AbortController().signal

/** A process that dies before, or in the middle of, the `at`-th thing it does. */
class Life {
  isDead = false
  steps = 0
  readonly #at: number
  constructor(at: number) {
    this.#at = at
  }

  async step<T>(act: () => PromiseLike<T>): Promise<T> {
    this.#next()
    const answer = await act()
    // It was done, and nobody heard of it.
    this.#next()
    return answer
  }

  #next(): void {
    if (this.steps++ === this.#at) this.isDead = true
    if (this.isDead) throw new Error('this process was killed')
  }
}

function mortalBoard(board: Switchboard, life: Life): Switchboard {
  const mortal = (session: PowerSession): PowerSession => {
    const { credentials } = session.capabilities
    return {
      ...session,
      power: options => life.step(() => session.power(options)),
      capabilities: {
        ...(credentials && {
          credentials: {
            rule: options => life.step(() => credentials.rule(options)),
            set: options => life.step(() => credentials.set(options)),
          },
        }),
      },
    }
  }
  return {
    use: (power: never, act: (session: PowerSession) => Promise<unknown>) => board.use(power, session => act(mortal(session))),
  } as never
}

async function machineWith(core: TestCore, bmc: VirtualMachine, settings = {}, driver = 'ipmi'): Promise<MachineRow> {
  const row = await addMachine(core, { state: 'ready', attention_at: null })
  const known = driver === 'redfish' ? redfishSettingsOf(bmc) : settingsOf(bmc)
  const stored = storedPowerSettings(core, row.id, driver, { ...known, ...settings })
  await core.sql`
    update machine_power set driver = ${driver}, settings = ${core.sql.json(stored.settings as never)}, secrets = ${stored.secrets}
    where machine_id = ${row.id}`
  return row
}

const ask = (core: Core, id: string) => rotateCredentials(core, operator, { id }, signal)
const rotationOf = async (core: Core, id: string) => (await latestRotation(core.sql, id)) as Rotation

async function passwordOf(core: Core, id: string): Promise<unknown> {
  const found = await findSwitch(core.sql, id)
  return found && openPowerSettings(core, found).password
}

/** Rotations until none is open or the process is dead. */
async function live(core: TestCore, life: Life): Promise<void> {
  const board = new Switchboard(core)
  const stopping = new AbortController()
  const own: Core = { ...core, sql: mortalSql(core.sql, act => life.step(act)) }
  const rotations = runRotations(own, mortalBoard(board, life), stopping.signal)
  const open = () => core.sql`select from credential_rotations where state in ('queued', 'running')`
  try {
    await until(async () => life.isDead || (await open()).length === 0, 40_000)
  } catch (error) {
    throw new Error(core.lines.slice(-5).join('\n'), { cause: error })
  }
  stopping.abort()
  await rotations
  await board.close()
}

const immortal = () => new Life(Number.POSITIVE_INFINITY)

async function claimsRunOut(core: TestCore): Promise<void> {
  await core.sql`update machine_power set claimed_until = now() - interval '1 second' where claimed_until is not null`
  await core.sql`update credential_rotations set again_at = now()`
}

test.each(['ipmi', 'redfish'] as const)(
  'a process that dies at any step leaves a rotation that another brings to its end: %s',
  { timeout: 240_000 },
  async driver => {
    const core = await startCore()
    const [bmc] = (await startBmcs(1, { speaks: driver })) as [VirtualMachine]
    let at = 0
    for (let isComplete = false; !isComplete; at++) {
      const before = bmc.bmc.password
      const machine = await machineWith(core, bmc, {}, driver)
      await ask(core, machine.id)
      const life = new Life(at)
      await live(core, life)
      isComplete = !life.isDead
      await claimsRunOut(core)
      await live(core, immortal())
      const where = `killed at step ${at}`
      const rotation = await rotationOf(core, machine.id)
      expect(rotation, where).toMatchObject({ state: 'done', candidates: null, fault: null })
      expect(bmc.bmc.password, where).not.toBe(before)
      expect(await passwordOf(core, machine.id), where).toBe(bmc.bmc.password)
      expect(await core.sql`select from machine_power where claimed_until > now()`, where).toEqual([])
      const told = await core.sql`select data, actor from events where kind like 'credentials.%' order by id`
      expect(told, where).toMatchObject([{ actor: 'olga' }, { data: { outcome: 'done', askedBy: 'olga' } }])
      expect(JSON.stringify([told, core.lines]), where).not.toContain(bmc.bmc.password)
      await core.sql`delete from machines`
      await core.sql`delete from events`
    }
    expect(at).toBeGreaterThan(16)
  },
)

test('between old and new nobody else logs in, and a power order waits its turn', async () => {
  const core = await startCore()
  const [bmc] = (await startBmcs(1)) as [VirtualMachine]
  const machine = await machineWith(core, bmc)
  await ask(core, machine.id)
  // Killed when both are written down, and before the BMC hears.
  const life = new Life(Number.POSITIVE_INFINITY)
  bmc.bmc.faults.latencyMs = 200
  const board = new Switchboard(core)
  const stopping = new AbortController()
  const rotations = runRotations({ ...core, sql: mortalSql(core.sql, act => life.step(act)) }, mortalBoard(board, life), stopping.signal)
  await until(async () => (await rotationOf(core, machine.id)).state === 'running')
  life.isDead = true
  stopping.abort()
  await rotations
  await board.close()
  await claimsRunOut(core)
  await giveOrder(core.sql, { machine: machine.id, action: 'on', boot: null, askedBy: 'alice' })
  await core.sql`update machine_power set check_at = now() - interval '1 hour'`
  expect(await claimOrders(core.sql, { limit: 5, claimMs: 1000 })).toEqual([])
  expect(await claimChecks(core.sql, { prompt: 5, patient: 5, slow: [], claimMs: 1000 })).toEqual([])
  const change = updateMachine(core, operator, { id: machine.id, powerSettings: settingsOf(bmc) })
  await expect(change).rejects.toMatchObject({ code: 'wrong-state' })
  // With the machine both passwords would go.
  const deletion = deleteMachine(core, operator, machine.id)
  await expect(deletion).rejects.toMatchObject({ code: 'wrong-state', message: expect.stringContaining('being rotated') })
  expect(await deleteRow(core.sql, await reread(core, machine.id), 'olga')).toBe('stale')
  bmc.bmc.faults.latencyMs = 0
  await live(core, immortal())
  expect(await passwordOf(core, machine.id)).toBe(bmc.bmc.password)
  expect(await claimOrders(core.sql, { limit: 5, claimMs: 1000 })).toHaveLength(1)
  await deleteMachine(core, operator, machine.id)
})

test('a definition that still holds the replaced password does not put it back; a true new one is taken', async () => {
  const core = await startCore()
  const [bmc] = (await startBmcs(1)) as [VirtualMachine]
  const definition = { interfaces: [{ mac: '02:00:00:00:78:01' }], powerDriver: 'ipmi', powerSettings: settingsOf(bmc) }
  const startIt = (powerSettings: object) =>
    startByDefinition(core, operator, calls.start.input.parse({ definition: { ...definition, powerSettings } }), signal)
  const { id } = await startIt(definition.powerSettings)
  await core.sql`delete from power_orders`
  for (const _ of ['once', 'and again']) {
    await ask(core, id)
    await live(core, immortal())
  }
  const made = bmc.bmc.password
  expect(await startIt(definition.powerSettings)).toMatchObject({ id, outcome: 'known' })
  expect(await passwordOf(core, id)).toBe(made)
  expect(await startIt({ ...definition.powerSettings, privilege: 'ADMINISTRATOR' })).toMatchObject({ outcome: 'changed' })
  expect(await passwordOf(core, id)).toBe(made)
  expect(await startIt({ ...definition.powerSettings, password: 'set by a person' })).toMatchObject({ outcome: 'changed' })
  expect(await passwordOf(core, id)).toBe('set by a person')
  const marks = JSON.stringify(await core.sql`select replaced from credential_rotations`)
  for (const password of [definition.powerSettings.password, made]) expect(marks).not.toContain(password)
})

test('machines behind one account of one BMC change together, or not at all', async () => {
  const core = await startCore()
  const [bmc, other] = (await startBmcs(2)) as [VirtualMachine, VirtualMachine]
  const machines = await Promise.all([machineWith(core, bmc), machineWith(core, bmc), machineWith(core, other)])
  const ids = machines.map(({ id }) => id) as [string, string, string]
  const before = other.bmc.password
  await ask(core, ids[0])
  await live(core, immortal())
  expect(await passwordOf(core, ids[0])).toBe(bmc.bmc.password)
  expect(await passwordOf(core, ids[1])).toBe(bmc.bmc.password)
  expect(await passwordOf(core, ids[2])).toBe(before)
  expect((await rotationOf(core, ids[0])).machine_ids).toEqual([ids[0], ids[1]].sort())

  const odd = await machineWith(core, bmc, { password: 'another' })
  const kept = bmc.bmc.password
  await ask(core, ids[0])
  await live(core, immortal())
  expect(await rotationOf(core, ids[0])).toMatchObject({ state: 'failed', fault: { message: expect.stringContaining(odd.id) } })
  expect(bmc.bmc.password).toBe(kept)
})

test('a wrong password, or a BMC that is silent before anything was set, fails and changes nothing', { timeout: 90_000 }, async () => {
  const core = await startCore()
  const [bmc] = (await startBmcs(1)) as [VirtualMachine]
  const wrong = await machineWith(core, bmc, { password: 'not-it' })
  await ask(core, wrong.id)
  await live(core, immortal())
  const failed = await rotationOf(core, wrong.id)
  expect(failed).toMatchObject({ state: 'failed', candidates: null, fault: { code: 'power-authentication' } })
  expect(await passwordOf(core, wrong.id)).toBe('not-it')
})

test('a BMC that falls silent once it may know the new password is asked again until one is true; a person may end that', {
  timeout: 180_000,
}, async () => {
  const core = await startCore()
  const [bmc] = (await startBmcs(1)) as [VirtualMachine]
  const machine = await machineWith(core, bmc)
  await ask(core, machine.id)
  const life = new Life(Number.POSITIVE_INFINITY)
  const board = new Switchboard(core)
  const fallsSilent = {
    use: (power: never, act: (session: PowerSession) => Promise<unknown>) =>
      board.use(power, session => {
        const { credentials } = session.capabilities
        const set: NonNullable<typeof credentials>['set'] = async options => {
          await credentials?.set(options)
          bmc.bmc.faults.life = 'silent'
          throw new DriverError({ kind: 'silent', outcome: 'unknown', tried: 'set', target: 'it', got: 'nothing', hint: 'wait' })
        }
        return act({ ...session, capabilities: { ...(credentials && { credentials: { ...credentials, set } }) } })
      }),
  } as never as Switchboard
  const stopping = new AbortController()
  const rotations = runRotations(core, fallsSilent, stopping.signal)
  await until(async () => (await rotationOf(core, machine.id)).tries > 0, 90_000)
  stopping.abort()
  await rotations
  await board.close()
  expect(await rotationOf(core, machine.id)).toMatchObject({
    state: 'running',
    candidates: expect.any(Buffer),
    fault: { code: 'power-silent' },
  })
  bmc.bmc.faults.life = 'alive'
  await claimsRunOut(core)
  await live(core, life)
  expect(await rotationOf(core, machine.id)).toMatchObject({ state: 'done' })
  expect(await passwordOf(core, machine.id)).toBe(bmc.bmc.password)

  await core.sql`update credential_rotations set state = 'running', machine_ids = ${[machine.id]}, fault = '{}'`
  await updateMachine(core, operator, { id: machine.id, powerSettings: settingsOf(bmc) })
  expect(await rotationOf(core, machine.id)).toMatchObject({ state: 'failed', candidates: null })
})

test('over the API: operators only, the answer tells how it ended, explain shows it, and no answer holds a password', async () => {
  const partition = await runPartition()
  const [bmc] = (await startBmcs(1)) as [VirtualMachine]
  const { id } = await addMachine(partition.core)
  const plain = await addMachine(partition.core)
  const olga = partition.as('olga').machines
  await olga.update({ id, powerDriver: 'ipmi', powerSettings: settingsOf(bmc) })
  await expect(partition.as('alice').machines.rotateCredentials({ id })).rejects.toMatchObject({ code: 'forbidden' })
  await expect(olga.rotateCredentials({ id: plain.id })).rejects.toMatchObject({ code: 'no-power-driver' })
  const before = bmc.bmc.password
  const answer = await olga.rotateCredentials({ id, wait: '60s' })
  expect(answer.rotation).toMatchObject({ state: 'done', askedBy: 'olga', machines: [id] })
  expect(bmc.bmc.password).not.toBe(before)
  await until(async () => (await olga.get({ id })).power !== 'unknown')
  const seen = JSON.stringify([answer, await olga.get({ id }), await olga.explain({ id }), partition.lines])
  expect(seen).not.toContain(bmc.bmc.password)
  await olga.update({ id, powerDriver: 'manual', powerSettings: {} })
  await expect(olga.rotateCredentials({ id })).rejects.toMatchObject({ code: 'wrong-state' })
})

test('passwords meet the rule, and a rule that allows none worth having is refused', () => {
  for (const rule of [
    { bytesMin: 1, bytesMax: 16 },
    { bytesMin: 8, bytesMax: 20 },
    { bytesMin: 24, bytesMax: 64 },
  ]) {
    const made = Array.from({ length: 200 }, () => newPassword(rule).reveal())
    expect(new Set(made).size).toBe(200)
    for (const password of made) {
      expect(password.length).toBeGreaterThanOrEqual(rule.bytesMin)
      expect(password.length).toBeLessThanOrEqual(rule.bytesMax)
      expect(password).toMatch(/^(?=.*[a-z])(?=.*[A-Z])(?=.*\d)(?=.*[-_.])[a-zA-Z]/)
    }
  }
  expect(() => newPassword({ bytesMin: 1, bytesMax: 8 })).toThrow(/8 bytes/)
  expect(String(newPassword({ bytesMin: 8, bytesMax: 20 }))).toBe('***')
})
