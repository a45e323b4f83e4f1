/**
 * What every power driver promises, as tests. A driver's own test file runs them with a way to make a machine; what a driver cannot
 * do is skipped with its reason.
 */
import { describe, expect, onTestFinished, test } from 'vitest'
import { z } from 'zod'
import { DriverError, driverErrorKinds, type PowerDriver, type PowerSession } from '../src/driver.ts'

export interface Rig {
  /** A machine that is off, behind a switch of this driver. */
  start(): Promise<Machine>
  /** Why the driver cannot switch power, if so. */
  cannotSwitch?: string
  /** Why the driver cannot ask the operating system to shut down, if so. */
  cannotAsk?: string
}

export interface Machine extends AsyncDisposable {
  settings: unknown
  /** Settings with a wrong secret, where there is one. */
  wrongSettings?: unknown
  /** The machine's own view. */
  power(): Promise<'on' | 'off'>
}

/** Registers the suite for one driver. */
export function driverConformance<Schema extends z.ZodObject>(driver: PowerDriver<Schema>, rig: Rig): void {
  describe(`power driver ${driver.type}`, () => {
    test('has a closed schema with a description for every field, and secrets that are fields', () => {
      const schema = z.toJSONSchema(driver.settings, { io: 'input' })
      expect(schema.additionalProperties).toBe(false)
      for (const [field, property] of Object.entries(schema.properties ?? {})) {
        expect(property, field).toMatchObject({ description: expect.stringMatching(/\S/) })
      }
      expect(Object.keys(driver.settings.shape)).toEqual(expect.arrayContaining<string>([...driver.secrets]))
    })

    test('is opened and closed without a call, twice over', async () => {
      const { session } = await startSession(driver, rig)
      await session.close()
      await session.close()
      expect(session.target).toMatch(/\S/)
    })

    if (rig.cannotSwitch) {
      test.skip(`switches a machine (${rig.cannotSwitch})`, () => {})
      test('says that it cannot, and who must', async () => {
        const { session } = await startSession(driver, rig)
        expect(await session.power()).toBe('unknown')
        for (const call of [
          () => session.on(),
          () => session.off({ how: 'hard' }),
          () => session.off({ how: 'soft' }),
          () => session.cycle(),
        ]) {
          await expectDriverError(call(), 'unsupported')
        }
      })
      return
    }

    test('turns a machine on, and on again without harm', async () => {
      const { session, machine } = await startSession(driver, rig)
      expect(await session.power()).toBe('off')
      await session.on()
      await session.on()
      await expect.poll(() => session.power()).toBe('on')
      expect(await machine.power()).toBe('on')
    })

    if (rig.cannotAsk) {
      test.skip(`turns a machine off (soft) (${rig.cannotAsk})`, () => {})
      test('says that it cannot ask for a shutdown, and leaves the machine on', async () => {
        const { session, machine } = await startSession(driver, rig)
        await session.on()
        await expect.poll(() => session.power()).toBe('on')
        await expectDriverError(session.off({ how: 'soft' }), 'unsupported')
        expect(await machine.power()).toBe('on')
      })
    }

    test.each(rig.cannotAsk ? (['hard'] as const) : (['hard', 'soft'] as const))(
      'turns a machine off (%s), and off again without harm',
      async how => {
        const { session, machine } = await startSession(driver, rig)
        await session.on()
        await expect.poll(() => session.power()).toBe('on')
        await session.off({ how })
        await expect.poll(() => session.power()).toBe('off')
        await session.off({ how: 'hard' })
        expect(await machine.power()).toBe('off')
      },
    )

    test('cycles a machine that is on, and turns on one that is off', async () => {
      const { session, machine } = await startSession(driver, rig)
      await session.cycle()
      await expect.poll(() => machine.power()).toBe('on')
      await session.cycle()
      await expect.poll(() => machine.power(), { timeout: 10_000 }).toBe('on')
    }, 15_000)

    test('carries out calls in the order made', async () => {
      const { session, machine } = await startSession(driver, rig)
      await Promise.all([session.on(), session.off({ how: 'hard' }), session.on(), session.off({ how: 'hard' })])
      expect(await machine.power()).toBe('off')
    })

    test('ends a call whose caller gave up', async () => {
      const { session } = await startSession(driver, rig)
      await expectDriverError(session.power({ signal: AbortSignal.abort() }), 'cancelled')
      expect(await session.power()).toBe('off')
    })

    test('refuses calls after closing', async () => {
      const { session } = await startSession(driver, rig)
      await session.power()
      await session.close()
      await expectDriverError(session.power(), 'cancelled')
    })

    test('calls a wrong secret that, without showing it', async () => {
      const { machine } = await startSession(driver, rig)
      if (machine.wrongSettings === undefined) return
      await using session = driver.open(driver.settings.parse(machine.wrongSettings))
      const error = await expectDriverError(session.power(), 'authentication')
      const wrong = machine.wrongSettings as Record<string, unknown>
      for (const secret of driver.secrets) {
        if (wrong[secret] !== undefined)
          expect(JSON.stringify([error, error.message, error.stack, error.cause])).not.toContain(wrong[secret])
      }
    })
  })
}

async function startSession<Schema extends z.ZodObject>(
  driver: PowerDriver<Schema>,
  rig: Rig,
): Promise<{ session: PowerSession; machine: Machine }> {
  const machine = await rig.start()
  const session = driver.open(driver.settings.parse(machine.settings))
  onTestFinished(async () => {
    await session.close()
    await machine[Symbol.asyncDispose]()
  })
  return { session, machine }
}

async function expectDriverError(call: Promise<unknown>, kind: keyof typeof driverErrorKinds): Promise<DriverError> {
  const error = await call.then(
    () => undefined,
    caught => caught,
  )
  expect(error).toBeInstanceOf(DriverError)
  expect(error).toMatchObject({ kind, retryable: driverErrorKinds[kind].retryable })
  expect(error.message).toContain(` via ${error.target}: `)
  expect(error.hint).toMatch(/\S/)
  return error
}
