/** The virtual BMC judged by the field's own consoles: Debian's ipmitool and FreeIPMI. What they take for a BMC is one. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { findProgram } from '@muster/embedded/find-program'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { type Bmc, startBmc } from '../src/bmc/bmc.ts'
import { BootOptions } from '../src/bmc/boot-options.ts'

const run = promisify(execFile)
/** ipmipower knows no other port than 623, which needs root. */
const isRoot = process.getuid?.() === 0
const port = isRoot ? 623 : 6231
const host = `127.${2 + (process.pid % 250)}.200.1`

const power: { is: 'on' | 'off' } = { is: 'off' }
const bootOptions = new BootOptions({ expiryMs: 60_000 })
let bmc: Bmc

beforeAll(async () => {
  bmc = await startBmc({
    address: host,
    port,
    users: [
      { name: 'ADMIN', password: 'secret', privilege: 'ADMINISTRATOR' },
      { name: 'op', password: 'operators', privilege: 'OPERATOR' },
    ],
    kg: undefined,
    guid: Buffer.from('00112233445566778899aabbccddeeff', 'hex'),
    chassis: {
      power: () => power.is,
      control: order => {
        if (order !== 'on' && order !== 'off' && power.is === 'off') return 'wrong-state'
        if (order === 'on' || order === 'off') power.is = order
        return 'accepted'
      },
    },
    bootOptions,
  })
})
beforeEach(() => {
  power.is = 'off'
})
afterAll(async () => {
  // Every console said goodbye: nothing holds a slot, and none ever held two.
  expect(bmc.sessionsOpen()).toBe(0)
  expect(bmc.counters.sessionsOpenMax).toBe(1)
  await bmc.close()
})

/** Without the tool a developer's run goes on and says so; in CI it is a failure, or the proof would quietly vanish. */
function needs(tool: string, reason?: string): { skip: boolean } {
  const missing = findProgram(tool) === undefined ? `${tool} is not installed (apt-get install -y ipmitool freeipmi-tools)` : reason
  if (missing === undefined) return { skip: false }
  if (process.env.CI) throw new Error(`${missing}; CI must prove this`)
  console.warn(`SKIPPED: ${missing}`)
  return { skip: true }
}

/** What a console printed, whether it liked the answer or not. */
async function said(tool: string, args: readonly string[]): Promise<{ out: string; code: number }> {
  try {
    const { stdout, stderr } = await run(tool, args, { timeout: 20_000 })
    return { out: stdout + stderr, code: 0 }
  } catch (error) {
    const { stdout, stderr, code } = error as { stdout: string; stderr: string; code: number }
    return { out: stdout + stderr, code }
  }
}

describe.skipIf(needs('ipmitool').skip).each(['3', '17'])('ipmitool -C %s', suite => {
  const ipmitool = async (...args: string[]) =>
    await said('ipmitool', ['-I', 'lanplus', '-C', suite, '-H', host, '-p', `${port}`, '-U', 'ADMIN', '-P', 'secret', ...args])

  test('power status, on, off, cycle', async () => {
    expect(await ipmitool('power', 'status')).toEqual({ out: 'Chassis Power is off\n', code: 0 })
    expect(await ipmitool('power', 'cycle')).toMatchObject({ out: expect.stringContaining('not supported in present state'), code: 1 })
    expect(await ipmitool('power', 'on')).toEqual({ out: 'Chassis Power Control: Up/On\n', code: 0 })
    expect(await ipmitool('power', 'status')).toEqual({ out: 'Chassis Power is on\n', code: 0 })
    expect(await ipmitool('power', 'cycle')).toEqual({ out: 'Chassis Power Control: Cycle\n', code: 0 })
    expect(await ipmitool('power', 'soft')).toEqual({ out: 'Chassis Power Control: Soft\n', code: 0 })
    expect(await ipmitool('power', 'reset')).toEqual({ out: 'Chassis Power Control: Reset\n', code: 0 })
    expect(await ipmitool('power', 'off')).toEqual({ out: 'Chassis Power Control: Down/Off\n', code: 0 })
    expect(power.is).toBe('off')
  })

  test('chassis bootdev pxe, with and without UEFI', async () => {
    expect(await ipmitool('chassis', 'bootdev', 'pxe')).toEqual({ out: 'Set Boot Device to pxe\n', code: 0 })
    expect(bootOptions.read(Date.now())).toEqual({ valid: true, lasting: 'once', firmware: 'legacy', device: 'network' })
    await ipmitool('chassis', 'bootdev', 'pxe', 'options=efiboot,persistent')
    expect(bootOptions.read(Date.now())).toEqual({ valid: true, lasting: 'persistent', firmware: 'uefi', device: 'network' })
    expect((await ipmitool('chassis', 'bootparam', 'get', '5')).out).toContain('Boot Device Selector : Force PXE')
  })

  test('mc info, mc guid, chassis status, identify', async () => {
    expect((await ipmitool('mc', 'info')).out).toMatch(/IPMI Version\s+: 2\.0[\s\S]*Manufacturer ID\s+: 984917/)
    expect((await ipmitool('mc', 'guid')).code).toBe(0)
    expect((await ipmitool('chassis', 'status')).out).toMatch(/System Power\s+: off[\s\S]*Power Restore Policy : previous/)
    expect(await ipmitool('chassis', 'identify', '3')).toMatchObject({ code: 0 })
    expect(bmc.identify()).toBe('timed')
  })

  test('a wrong password, an unknown user and too high a level are refused', async () => {
    const as = async (...args: string[]) =>
      await said('ipmitool', ['-I', 'lanplus', '-C', suite, '-H', host, '-p', `${port}`, ...args, 'power', 'status'])
    const refused = { out: expect.stringContaining('Unable to establish IPMI v2 / RMCP+ session'), code: 1 }
    expect(await as('-U', 'ADMIN', '-P', 'wrong')).toMatchObject(refused)
    expect(await as('-U', 'nobody', '-P', 'secret')).toMatchObject(refused)
    expect(await as('-U', 'op', '-P', 'operators')).toMatchObject(refused)
    expect(await as('-U', 'op', '-P', 'operators', '-L', 'OPERATOR')).toEqual({ out: 'Chassis Power is off\n', code: 0 })
  })
})

const rootReason = isRoot ? undefined : 'ipmipower speaks to port 623 only, and binding that needs root'
describe.skipIf(needs('ipmipower', rootReason).skip).each(['3', '17'])('FreeIPMI, suite %s', suite => {
  const freeipmi = async (tool: string, ...args: string[]) =>
    await said(tool, ['-h', host, '-u', 'ADMIN', '-p', 'secret', '-D', 'LAN_2_0', '-I', suite, ...args])

  test('ipmipower: stat, on, cycle, off, and waits that see the effect', async () => {
    expect((await freeipmi('ipmipower', '--stat')).out).toBe(`${host}: off\n`)
    expect((await freeipmi('ipmipower', '--on', '--wait-until-on')).out).toBe(`${host}: ok\n`)
    expect((await freeipmi('ipmipower', '--stat')).out).toBe(`${host}: on\n`)
    expect((await freeipmi('ipmipower', '--cycle')).out).toBe(`${host}: ok\n`)
    expect((await freeipmi('ipmipower', '--off', '--wait-until-off')).out).toBe(`${host}: ok\n`)
    expect(power.is).toBe('off')
  })

  test('ipmi-chassis reads and controls', async () => {
    expect((await freeipmi('ipmi-chassis', '--get-chassis-status')).out).toMatch(/System Power\s+: off/)
    expect((await freeipmi('ipmi-chassis', '--chassis-control=power-up')).code).toBe(0)
    expect(power.is).toBe('on')
  })

  test('a wrong password is called by its name', async () => {
    const { out } = await said('ipmipower', ['-h', host, '-u', 'ADMIN', '-p', 'bad', '-D', 'LAN_2_0', '-I', suite, '--stat'])
    expect(out).toBe(`${host}: password invalid\n`)
  })
})
