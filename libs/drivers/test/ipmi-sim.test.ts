/** The IPMI driver against ipmi_sim, a BMC written by others. */
import { execFile } from 'node:child_process'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import type { PowerSession, SerialConsole } from '../src/driver.ts'
import { ipmiDriver } from '../src/ipmi.ts'
import { type IpmiSim, startIpmiSim } from './ipmi-sim.ts'
import { needs } from './needs.ts'

const driver = ipmiDriver()

function open(sim: IpmiSim, over: Record<string, unknown> = {}): PowerSession {
  return driver.open(driver.settings.parse({ address: `127.0.0.1:${sim.port}`, user: 'admin', password: 'secret', ...over }))
}

needs('ipmi_sim')('a machine behind ipmi_sim', () => {
  let sim: IpmiSim
  beforeAll(async () => {
    sim = await startIpmiSim()
  })
  afterAll(() => sim.stop())

  test('is switched on, cycled and switched off, each seen by the machine', async () => {
    await using machine = open(sim)
    expect(await machine.power()).toBe('off')
    await machine.on()
    expect(await machine.power()).toBe('on')
    await machine.on()
    await machine.cycle()
    // ipmi_sim stays off for several seconds, as boards do.
    await expect.poll(() => machine.power(), { timeout: 12_000, interval: 200 }).toBe('on')
    await machine.off({ how: 'hard' })
    expect(await machine.power()).toBe('off')
    expect(await sim.power()).toBe('off')
    expect(await sim.orders()).toEqual(['power 1', 'power 1', 'power 0', 'power 1', 'power 0'])
  }, 20_000)

  test('that is off is turned on by a cycle', async () => {
    await using machine = open(sim)
    await machine.off({ how: 'hard' })
    await machine.cycle()
    expect(await sim.power()).toBe('on')
  })

  test('hears a soft power off and a reset', async () => {
    await using machine = open(sim)
    await machine.on()
    await machine.capabilities.reset?.()
    await machine.off({ how: 'soft' })
    expect((await sim.orders()).slice(-2)).toEqual(['reset 1', 'shutdown 1'])
  })

  test('takes the network as the next boot device, and gives it back', async () => {
    await using machine = open(sim)
    // ipmi_sim keeps the device and drops the flags beside it.
    expect(await machine.capabilities.bootNext?.set({ device: 'network', firmware: 'uefi' })).toEqual({ kept: 'device only' })
    expect((await sim.orders()).at(-1)).toBe('boot pxe')
    await machine.capabilities.bootNext?.clear()
    expect((await sim.orders()).at(-1)).toBe('boot none')
    expect(await machine.capabilities.bootNext?.read()).toBeUndefined()
  })

  test('lights its identify light and says who its BMC is', async () => {
    await using machine = open(sim)
    await machine.capabilities.identify?.({ light: 5 })
    expect((await sim.orders()).at(-1)).toMatch(/^identify 5/)
    expect(await machine.capabilities.controller?.()).toEqual({
      manufacturer: 0x1291,
      product: 0x0f02,
      firmware: '9.08',
      protocol: 'IPMI 2.0',
    })
  })

  test.each([
    { wrong: 'password', over: { password: 'wrong' }, kind: 'authentication', hint: /password/ },
    { wrong: 'user', over: { user: 'nobody' }, kind: 'authentication', hint: /user name/ },
    { wrong: 'K_g', over: { kg: '0x0102' }, kind: 'authentication', hint: /K_g/ },
    { wrong: 'suite', over: { suite: 17 }, kind: 'refused', hint: /suite/ },
  ])('says in plain words that the $wrong is wrong, in under a second', async ({ over, kind, hint }) => {
    await using machine = open(sim, over)
    const startedAt = performance.now()
    const error = await machine.on().catch(caught => caught)
    expect(error).toMatchObject({ name: 'DriverError', kind, hint: expect.stringMatching(hint), target: machine.target })
    expect(error.message).toMatch(/^power on via ipmi 127\.0\.0\.1:\d+: /)
    expect(error.message + error.hint).not.toContain('secret')
    expect(performance.now() - startedAt).toBeLessThan(1000)
  })

  test('is read by an account that may only read', async () => {
    await using machine = open(sim, { user: 'reader', password: 'only', privilege: 'USER' })
    expect(['on', 'off']).toContain(await machine.power())
  })

  test('gets a new password, which logs in, while the old one does not any more', async () => {
    const sim = await startIpmiSim()
    onTestFinished(() => sim.stop())
    const before = open(sim)
    const { credentials } = before.capabilities
    expect(await credentials?.rule()).toEqual({ bytesMin: 1, bytesMax: 16 })
    await credentials?.set({ password: 'Much-better.4321' })
    await before.close()
    await using after = open(sim, { password: 'Much-better.4321' })
    expect(await after.power()).toBe('off')
    await using old = open(sim)
    await expect(old.power()).rejects.toMatchObject({ kind: 'authentication' })
  })

  test('is reached again after its BMC restarted, without the caller noticing', async () => {
    await using machine = driverWithShortPatience(sim)
    await machine.on()
    await sim.restart()
    expect(await machine.power()).toBe('on')
  })

  test('answers ten callers of one session, one after the other', async () => {
    await using machine = open(sim)
    await machine.on()
    expect(await Promise.all(Array.from({ length: 10 }, () => machine.power()))).toEqual(Array(10).fill('on'))
  })
})

needs('ipmi_sim')('ipmi_sim and ipmitool', () => {
  needs('ipmitool')('both of others', () => {
    test('agree with the driver on the power state', async () => {
      await using sim = await startIpmiSim()
      await using machine = open(sim)
      await machine.on()
      const { stdout } = await promisify(execFile)('ipmitool', [
        ...['-I', 'lanplus', '-C', '3', '-H', '127.0.0.1', '-p', String(sim.port), '-U', 'admin', '-P', 'secret'],
        ...['chassis', 'power', 'status'],
      ])
      expect(stdout.trim()).toBe('Chassis Power is on')
    })
  })
})

needs('ipmi_sim')('a BMC with a K_g', () => {
  let sim: IpmiSim
  beforeAll(async () => {
    sim = await startIpmiSim({ kg: 'kg_key_16_bytes!' })
  })
  afterAll(() => sim.stop())

  test.each(['kg_key_16_bytes!', `0x${Buffer.from('kg_key_16_bytes!').toString('hex')}`])('opens with %s', async kg => {
    await using machine = open(sim, { kg })
    expect(await machine.power()).toBe('off')
  })

  test('says that a K_g is missing', async () => {
    await using machine = open(sim)
    await expect(machine.power()).rejects.toMatchObject({ kind: 'authentication', hint: expect.stringContaining('K_g is set on this BMC') })
  })
})

function driverWithShortPatience(sim: IpmiSim): PowerSession {
  const patient = ipmiDriver({ timers: { staleMs: 300 } })
  return patient.open(patient.settings.parse({ address: `127.0.0.1:${sim.port}`, user: 'admin', password: 'secret' }))
}

needs('ipmi_sim')('the serial line behind ipmi_sim', () => {
  test('is opened, read and typed on', async () => {
    const lines = new Set<Socket>()
    let typed = ''
    const machine = createServer(line => {
      lines.add(line)
      line.on('data', (characters: Buffer) => {
        typed += characters.toString()
      })
      line.on('error', () => lines.delete(line))
    })
    await new Promise<void>(resolve => machine.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => void machine.close())
    await using sim = await startIpmiSim({ serialPort: (machine.address() as AddressInfo).port })
    await using session = open(sim, { privilege: 'ADMINISTRATOR' })
    await using line = (await session.capabilities.console?.()) as SerialConsole
    let seen = ''
    line.output.on('data', (characters: Buffer) => {
      seen += characters.toString()
    })
    await expect.poll(() => lines.size, { timeout: 10_000 }).toBeGreaterThan(0)
    for (const each of lines) each.write('welcome to the simulated machine\r\n')
    await expect.poll(() => seen, { timeout: 10_000 }).toContain('welcome to the simulated machine')
    await line.write(Buffer.from('a command of some length, in more than one packet perhaps\r'))
    await expect.poll(() => typed, { timeout: 10_000 }).toContain('in more than one packet perhaps')
    await line.close()
    for (const each of lines) each.destroy()
  }, 60_000)
})
