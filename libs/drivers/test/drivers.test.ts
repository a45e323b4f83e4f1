/** The list of drivers, their settings, and the promises each of them keeps. */
import { describe, expect, test } from 'vitest'
import { DriverError } from '../src/driver.ts'
import { driverOf, drivers, openPower } from '../src/drivers.ts'
import { parseBmcAddress, printBmcAddress } from '../src/ipmi/address.ts'
import { ipmi } from '../src/ipmi.ts'
import { manual } from '../src/manual.ts'
import { driverConformance } from './conformance.ts'
import { ScriptedBmc } from './scripted-bmc.ts'

driverConformance(ipmi, {
  start: async () => {
    const bmc = await ScriptedBmc.start()
    const settings = { address: bmc.address, user: 'admin', password: 'secret' }
    return {
      settings,
      wrongSettings: { ...settings, password: 'wr0ng-secret' },
      power: async () => bmc.power,
      [Symbol.asyncDispose]: () => bmc[Symbol.asyncDispose](),
    }
  },
})

driverConformance(manual, {
  cannotSwitch: 'a person does',
  start: async () => ({ settings: {}, power: async () => 'off', [Symbol.asyncDispose]: async () => {} }),
})

describe('the list of drivers', () => {
  test('names each type once', () => {
    expect(new Set(drivers.map(driver => driver.type)).size).toBe(drivers.length)
    for (const driver of drivers) expect(driverOf(driver.type)).toBe(driver)
    expect(driverOf('telepathy')).toBeUndefined()
  })

  test('opens by type', async () => {
    await using session = openPower({ type: 'manual', settings: {} })
    expect(await session.power()).toBe('unknown')
  })

  test.each([
    { power: { type: 'telepathy', settings: {} }, message: 'no such power driver' },
    { power: { type: 'manual', settings: { colour: 'red' } }, message: 'manual' },
    { power: { type: 'ipmi', settings: { address: 'http://bmc', user: 'a', password: 'b' } }, message: 'address: not an address' },
    {
      power: { type: 'ipmi', settings: { address: 'bmc', user: 'a', password: 'sesame-open-sesame-open' } },
      message: 'password: an IPMI password has at most 20 bytes',
    },
    {
      power: { type: 'ipmi', settings: { address: 'bmc', user: 'ünïcödé-ünïcödé', password: 'sesame' } },
      message: 'user: an IPMI user name has at most 16 bytes',
    },
    { power: { type: 'ipmi', settings: { address: 'bmc', user: 'a', password: 'sesame', kg: '0xsesame' } }, message: 'kg: K_g is' },
    {
      power: { type: 'ipmi', settings: { address: 'bmc', user: 'a', password: 'sesame', kg: `0x${'00'.repeat(21)}` } },
      message: 'kg: K_g is',
    },
    { power: { type: 'ipmi', settings: { address: 'bmc', user: 'a', password: 'sesame', suite: 0 } }, message: 'suite' },
  ])('refuses $power.settings of $power.type, naming the field and never the value', ({ power, message }) => {
    let error: unknown
    try {
      openPower(power)
    } catch (caught) {
      error = caught
    }
    expect(error).toBeInstanceOf(DriverError)
    expect(error).toMatchObject({ kind: 'settings', message: expect.stringContaining(message) })
    expect((error as DriverError).message).not.toContain('sesame')
  })

  test('takes user names and passwords of the full length in bytes', () => {
    const full = { address: 'bmc', user: 'u'.repeat(16), password: 'ü'.repeat(10), kg: `0x${'00'.repeat(20)}` }
    expect(ipmi.settings.parse(full)).toMatchObject({ privilege: 'OPERATOR', suite: 'auto' })
  })
})

describe('BMC addresses', () => {
  test.each([
    ['10.0.3.9', { host: '10.0.3.9', port: 623 }, '10.0.3.9'],
    ['10.0.3.9:6230', { host: '10.0.3.9', port: 6230 }, '10.0.3.9:6230'],
    ['bmc-7.lon1.example.net', { host: 'bmc-7.lon1.example.net', port: 623 }, 'bmc-7.lon1.example.net'],
    ['bmc-7:623', { host: 'bmc-7', port: 623 }, 'bmc-7'],
    ['fe80::1', { host: 'fe80::1', port: 623 }, 'fe80::1'],
    ['fe80::1%eth0', { host: 'fe80::1%eth0', port: 623 }, 'fe80::1%eth0'],
    ['[fe80::1%eth0]:6230', { host: 'fe80::1%eth0', port: 6230 }, '[fe80::1%eth0]:6230'],
    ['[::1]', { host: '::1', port: 623 }, '::1'],
  ])('%s is read and printed', (text, address, printed) => {
    expect(parseBmcAddress(text)).toEqual(address)
    expect(printBmcAddress(address)).toBe(printed)
    expect(parseBmcAddress(printed)).toEqual(address)
  })

  test.each(['', 'http://bmc', 'bmc:0', 'bmc:65536', 'bmc:', '[bmc]:623', '[::1', 'user@bmc', 'bmc/1', 'a b', '[::1]:x', '-bmc'])(
    '"%s" is none',
    text => {
      expect(parseBmcAddress(text)).toBeUndefined()
    },
  )
})
