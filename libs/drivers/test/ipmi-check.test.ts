/** What `checkBmc` says about BMCs good, odd and bad. */
import { describe, expect, onTestFinished, test } from 'vitest'
import { type BmcCheck, checkBmc, type Finding } from '../src/ipmi/check.ts'
import { encodeChassisStatus } from '../src/ipmi/codec.ts'
import { ipmi } from '../src/ipmi.ts'
import { freeUdpPort, startIpmiSim } from './ipmi-sim.ts'
import { needs } from './needs.ts'
import { ScriptedBmc } from './scripted-bmc.ts'

const timers = { setupMs: 250, loginMs: 3000, probeMs: 200, closeMs: 200, portClosedMs: 20, commandMs: 200, commandLimitMs: 1500 }

function check(address: string, over: Record<string, unknown> = {}): Promise<BmcCheck> {
  return checkBmc(ipmi.settings.parse({ address, user: 'admin', password: 'secret', ...over }), { timers })
}

function verdicts(report: BmcCheck): string[] {
  return report.findings.map(({ topic, verdict }) => `${topic}: ${verdict}`)
}

function finding(report: BmcCheck, topic: Finding['topic']): Finding | undefined {
  return report.findings.find(each => each.topic === topic)
}

async function startBmc(): Promise<ScriptedBmc> {
  const bmc = await ScriptedBmc.start()
  onTestFinished(() => bmc[Symbol.asyncDispose]())
  return bmc
}

describe('checking a BMC', () => {
  test('that does the least says what is missing and that it is usable', async () => {
    const bmc = await startBmc()
    const report = await check(bmc.address)
    expect(report.usable).toBe(true)
    expect(verdicts(report)).toEqual([
      ...['reach: good', 'suites: good', 'login: good', 'power: good', 'privilege: good'],
      ...['boot override: odd', 'controller: odd', 'event log: odd'],
    ])
    for (const { verdict, hint } of report.findings) if (verdict !== 'good') expect(hint).toMatch(/\S/)
    expect(bmc.sessionCount).toBe(0)
    expect(bmc.count('chassisControl') + bmc.count('setBootOptions')).toBe(0)
  })

  test('that lets anybody in warns of it', async () => {
    const bmc = await startBmc()
    bmc.moreSuites = [{ id: 0, authentication: [0], integrity: [0], confidentiality: [0] }]
    bmc.authCapabilities = Buffer.from('0180030200000000', 'hex')
    const security = (await check(bmc.address)).findings.filter(({ topic }) => topic === 'security')
    expect(security.map(({ verdict, found }) => [verdict, found])).toEqual([
      ['odd', expect.stringContaining('without a name')],
      ['bad', expect.stringContaining('suite 0')],
    ])
  })

  test('with a power fault tells it', async () => {
    const bmc = await startBmc()
    const status = { power: 'on', overload: true, interlock: false, fault: true, controlFault: false, restorePolicy: 'off' } as const
    bmc.script = ({ name }) => (name === 'getChassisStatus' ? { code: 0, data: encodeChassisStatus(status) } : undefined)
    expect(finding(await check(bmc.address), 'power')).toMatchObject({
      verdict: 'odd',
      found: expect.stringContaining('power fault, overload'),
    })
  })

  test('with a wrong password stops there', async () => {
    const bmc = await startBmc()
    const report = await check(bmc.address, { password: 'wr0ng' })
    expect(report.usable).toBe(false)
    expect(verdicts(report)).toEqual(['reach: good', 'suites: good', 'login: bad'])
    expect(JSON.stringify(report)).not.toContain('wr0ng')
  })

  test('with an account that only reads is not usable', async () => {
    const bmc = await startBmc()
    const report = await check(bmc.address, { privilege: 'USER' })
    expect(report.usable).toBe(false)
    expect(finding(report, 'privilege')).toMatchObject({ verdict: 'bad', hint: expect.stringContaining('OPERATOR') })
    expect(finding(report, 'power')).toMatchObject({ verdict: 'good' })
  })

  test('that speaks only IPMI 1.5 says so', async () => {
    const bmc = await startBmc()
    bmc.authCapabilities = Buffer.from('0104040000000000', 'hex')
    expect(finding(await check(bmc.address), 'reach')).toMatchObject({ verdict: 'bad', found: expect.stringContaining('1.5') })
  })

  test('where nothing listens says so, once for each question', async () => {
    const report = await check(`127.0.0.1:${await freeUdpPort()}`)
    expect(verdicts(report)).toEqual(['reach: bad', 'login: bad'])
    expect(report.findings[0]?.found).toMatch(/nothing listens/i)
  })
})

needs('ipmi_sim')('checking ipmi_sim', () => {
  test('finds a usable BMC with suite 3', async () => {
    await using sim = await startIpmiSim()
    const report = await check(`127.0.0.1:${sim.port}`)
    expect(report.usable).toBe(true)
    expect(finding(report, 'controller')).toMatchObject({ verdict: 'good', found: expect.stringContaining('firmware 9.08') })
    expect(finding(report, 'boot override')).toMatchObject({ verdict: 'good' })
    expect(finding(report, 'event log')).toMatchObject({ verdict: 'good' })
    expect(await sim.orders()).toEqual([])
  })
})
