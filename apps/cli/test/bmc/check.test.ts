// `muster bmc check`, and what it reads beyond power, against BMCs healthy and odd.
import { spawn, spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { DriverError, type PowerSession } from '@muster/drivers/driver'
import { encodeChassisStatus } from '@muster/drivers/ipmi/codec'
import { encodeFru } from '@muster/drivers/ipmi/fru'
import { encodeSelEntry } from '@muster/drivers/ipmi/sel'
import { encodeSensorRecord } from '@muster/drivers/ipmi/sensors'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { z } from 'zod'
import { type Answer, type ReceivedCommand, ScriptedBmc } from '../../../../libs/drivers/test/scripted-bmc.ts'
import { checkTarget, exitOfReport } from '../../src/bmc/check.ts'
import { aHome, type Ended, type Home } from '../muster.ts'
import { closedPort, password, startVirtualBmc } from './virtual-bmc.ts'

let home: Home
let passwordFile: string
beforeAll(() => {
  home = aHome()
  passwordFile = join(home.folder, 'password')
  writeFileSync(passwordFile, password)
})
afterAll(() => home[Symbol.dispose]())

function bmc(words: readonly string[]): Promise<Ended> {
  return home.muster(['bmc', ...words, '--password-file', passwordFile])
}

const getSessionInfo = '6/61'
const ok = (hex: string): Answer => ({ code: 0, data: Buffer.from(hex, 'hex') })

/** A BMC that answers all that a check asks. */
function healthy({ name }: ReceivedCommand): Answer | undefined {
  if (name === 'getDeviceId') return ok('20010245028057010000010000000000')
  if (name === 'getBootOptions') return ok('01050000000000')
  if (name === 'getSelInfo') return ok('51000000040000000000000000')
  if (name === getSessionInfo) return ok('010401')
  return undefined
}

async function scripted(script: (command: ReceivedCommand) => Answer | undefined): Promise<{ bmc: ScriptedBmc; url: string }> {
  const scriptedBmc = await ScriptedBmc.start({ password })
  scriptedBmc.script = script
  onTestFinished(() => scriptedBmc[Symbol.asyncDispose]())
  return { bmc: scriptedBmc, url: `ipmi://admin@${scriptedBmc.address}` }
}

test('a healthy BMC is good throughout, and nothing on it is changed', async () => {
  const { bmc: server, url } = await scripted(healthy)
  const { code, stdout, stderr } = await bmc(['check', url])
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  const lines = stdout.trim().split('\n')
  expect(lines[0]).toBe(`ipmi ${server.address}`)
  expect(lines.at(-1)).toBe('Muster can use this BMC.')
  expect(lines.slice(1, -1).every(line => line.startsWith('good  '))).toBe(true)
  expect(stdout).toContain('3 of 4 session slots are free beside this session.')
  expect(stdout).toContain('The account may switch power (OPERATOR).')
  expect(server.count('chassisControl') + server.count('setBootOptions')).toBe(0)
  expect(server.sessionCount).toBe(0)
})

test('an odd BMC can be used, and each oddity has its hint', async () => {
  const status = { power: 'on', overload: false, interlock: true, fault: true, controlFault: false, restorePolicy: 'off' } as const
  const { url } = await scripted(command => {
    if (command.name === 'getChassisStatus') return { code: 0, data: encodeChassisStatus(status) }
    if (command.name === getSessionInfo) return ok('010404')
    if (command.name === 'getSelInfo') return { code: 0xc1 }
    return healthy(command)
  })
  const { code, stdout } = await bmc(['check', url, '-o', 'json'])
  expect(code).toBe(10)
  const { findings, usable, ending } = JSON.parse(stdout)
  expect({ usable, ending }).toEqual({ usable: true, ending: 'bmc-odd' })
  const odd = findings.filter(({ verdict }: { verdict: string }) => verdict === 'odd')
  expect(odd).toEqual([
    {
      topic: 'power',
      verdict: 'odd',
      found: expect.stringContaining('power fault, interlock'),
      hint: expect.stringContaining('power supplies'),
    },
    { topic: 'event log', verdict: 'odd', found: expect.stringContaining('0xC1'), hint: expect.stringMatching(/\S/) },
    { topic: 'sessions', verdict: 'odd', found: expect.stringContaining('0 of 4'), hint: expect.stringContaining('other programs') },
  ])
})

test('a BMC of the rack, which keeps no event log, is odd and can be used', async () => {
  await using virtual = await startVirtualBmc()
  const { code, stdout } = await bmc(['check', virtual.url()])
  expect(code).toBe(10)
  expect(stdout).toMatch(/^good {2}sessions +The BMC does not tell how many/m)
  expect(stdout).toMatch(/^odd {3}event log/m)
  expect(virtual.bmc.counters.controls).toMatchObject({ on: 0, off: 0, cycle: 0, soft: 0 })
  expect(virtual.bmc.sessionsOpen()).toBe(0)
})

test('a BMC that lets anybody in, or lets us do too little, or is not there, cannot be used', async () => {
  await using virtual = await startVirtualBmc()
  const { bmc: open, url } = await scripted(healthy)
  open.moreSuites = [{ id: 0, authentication: [0], integrity: [0], confidentiality: [0] }]
  const [anybody, reader, absent] = await Promise.all([
    bmc(['check', url]),
    bmc(['check', virtual.url('reader'), '--privilege', 'USER', '-o', 'json']),
    bmc(['check', `ipmi://admin@127.0.0.1:${await closedPort()}`]),
  ])
  expect(anybody).toMatchObject({ code: 11, stdout: expect.stringContaining('hint: Disable cipher suite 0 on the BMC.') })
  expect(reader.code).toBe(11)
  expect(JSON.parse(reader.stdout).findings).toContainEqual(expect.objectContaining({ topic: 'privilege', verdict: 'bad' }))
  expect(absent).toMatchObject({ code: 11, stdout: expect.stringContaining('Muster cannot use this BMC as it is.') })
})

test('a driver without a check of its own is asked what every driver promises', async () => {
  const busy = new DriverError({ kind: 'busy', tried: 'read', target: 'test bmc', got: 'no room', hint: 'Try again.' })
  const session = (facts: Partial<PowerSession>): PowerSession => ({
    ...{ target: 'test bmc', power: async () => 'on', on: async () => {}, off: async () => {}, cycle: async () => {} },
    ...{ capabilities: {}, close: async () => {}, [Symbol.asyncDispose]: async () => {}, ...facts },
  })
  const check = (facts: Partial<PowerSession>) => {
    const driver = { type: 'test', title: 'Test', settings: z.strictObject({}), secrets: [], open: () => session(facts) }
    return checkTarget({ driver, settings: {} }, { signal: new AbortController().signal })
  }
  const whole = await check({
    capabilities: {
      bootNext: { set: async () => ({ kept: 'all' }), clear: async () => {}, read: async () => ({ device: 'network', firmware: 'uefi' }) },
      controller: async () => ({ manufacturer: 1, product: 2, firmware: '3.4', protocol: 'Test 1.0' }),
      identity: () => Promise.reject(busy),
    },
  })
  expect(whole.findings.map(({ topic, verdict }) => [topic, verdict])).toEqual([
    ['power', 'good'],
    ['boot override', 'good'],
    ['controller', 'good'],
    ['identity', 'odd'],
  ])
  expect(whole.findings.at(-1)).toMatchObject({ found: 'No room.', hint: 'Try again.' })
  expect(exitOfReport(whole)).toBe('bmc-odd')
  const locked = await check({ power: () => Promise.reject(busy) })
  expect(locked).toEqual({
    target: 'test bmc',
    usable: false,
    findings: [{ topic: 'power', verdict: 'bad', found: 'No room.', hint: 'Try again.' }],
  })
  expect(exitOfReport(locked)).toBe('bmc-unfit')
})

test('the event log is read in words, and cleared when asked to', async () => {
  const at = new Date('2026-01-02T03:04:05Z')
  const entries = [
    encodeSelEntry({
      ...{ kind: 'event', id: 1, time: { at }, generator: 0x20, sensorType: 1, sensor: 3, direction: 'asserted', eventType: 1 },
      data: Buffer.of(0x59, 0x62, 0x5f),
    }),
    encodeSelEntry({
      ...{ kind: 'event', id: 2, time: { secondsAfterPowerUp: 9 }, generator: 0x20, sensorType: 8, sensor: 7, direction: 'deasserted' },
      ...{ eventType: 0x6f, data: Buffer.of(3, 0xff, 0xff) },
    }),
    encodeSelEntry({ kind: 'oem', id: 3, type: 0xc1, time: { at }, manufacturer: 343, data: Buffer.alloc(6, 0xab) }),
  ]
  const { bmc: server, url } = await scripted(({ name, data }) => {
    if (name === 'getSelInfo') return ok('51030000040000000000000000')
    if (name === 'reserveSel') return ok('0100')
    if (name === 'clearSel') return ok('01')
    if (name !== 'getSelEntry') return undefined
    const index = Math.max(0, data.readUInt16LE(2) - 1)
    const next = Buffer.alloc(2)
    next.writeUInt16LE(index + 1 < entries.length ? index + 2 : 0xffff)
    return { code: 0, data: Buffer.concat([next, entries[index] as Buffer]) }
  })
  const read = await bmc(['sel', url, '-o', 'wide'])
  expect(read.code).toBe(0)
  expect(read.stdout.split('\n').slice(1, 4)).toEqual([
    expect.stringMatching(/1 {2}2026-01-02T03:04:05.000Z {2}temperature #3 +upper critical, going high +59625f$/),
    expect.stringMatching(/2 {2}power-up \+ 9 s +power supply #7 +input lost \(over\) +03ffff$/),
    expect.stringMatching(/3 {2}2026-01-02T03:04:05.000Z +- +entry type 0xc1 of maker 343 +abababababab$/),
  ])
  expect(server.count('clearSel')).toBe(0)
  expect(await bmc(['sel', url, '--clear', '-o', 'name'])).toMatchObject({
    code: 0,
    stdout: '1\n2\n3\n',
    stderr: expect.stringContaining('cleared'),
  })
  expect(server.count('clearSel')).toBe(1)
})

test('sensors and the inventory of the factory are read', async () => {
  const linear = { format: 'unsigned', m: 1, b: 0, bExponent: 0, resultExponent: 0, linearisation: 0 } as const
  const record = encodeSensorRecord({
    ...{ recordId: 0, name: 'CPU Temp', number: 1, sensorType: 1, eventType: 1, unit: 1, percentage: false },
    conversion: linear,
  })
  const fru = encodeFru({
    product: {
      maker: 'Acme',
      name: 'Anvil 2',
      partNumber: 'A-2',
      version: '1',
      serial: 'SN\u001b[31m77',
      assetTag: '',
      file: '',
      custom: [],
    },
  })
  const { url } = await scripted(({ name, data }) => {
    if (name === 'reserveSdrRepository') return ok('0100')
    if (name === 'getSdr')
      return {
        code: 0,
        data: Buffer.concat([Buffer.of(0xff, 0xff), record.subarray(data.readUInt8(4), data.readUInt8(4) + data.readUInt8(5))]),
      }
    if (name === 'getSensorReading') return ok('2dc000')
    if (name === 'getFruInventoryInfo') return { code: 0, data: Buffer.of(fru.length & 0xff, fru.length >> 8, 0) }
    if (name !== 'readFru') return undefined
    const piece = fru.subarray(data.readUInt16LE(1), data.readUInt16LE(1) + data.readUInt8(3))
    return { code: 0, data: Buffer.concat([Buffer.of(piece.length), piece]) }
  })
  const [sensors, inventory, json] = await Promise.all([bmc(['sensors', url]), bmc(['fru', url]), bmc(['fru', url, '-o', 'json'])])
  expect(sensors.stdout).toMatch(/^CPU Temp +45 {2}°C/m)
  expect(inventory.stdout).toMatch(/^Maker +Acme$/m)
  // What is in a FRU was written by anybody: it must not command a terminal.
  expect(inventory.stdout).not.toContain('\u001b')
  expect(JSON.parse(json.stdout)).toMatchObject({ identity: { product: 'Anvil 2' }, areas: { product: { partNumber: 'A-2' } } })
})

// Only a terminal is asked, and Node has no pseudo-terminal: util-linux's `script` makes one where it is installed.
const hasScript = spawnSync('script', ['--version']).stdout?.includes('util-linux')

test.skipIf(!hasScript)('on a terminal the password is asked for and not shown', async () => {
  await using virtual = await startVirtualBmc({ power: 'on' })
  const main = fileURLToPath(new URL('../../src/main.ts', import.meta.url))
  const child = spawn('script', ['-qec', `${process.execPath} ${main} bmc power status ${virtual.url()}`, '/dev/null'], {
    cwd: home.folder,
    env: { PATH: process.env.PATH, HOME: home.folder, NO_COLOR: '1', NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE },
  })
  let shown = ''
  let hasTyped = false
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    shown += text
    if (hasTyped || !shown.includes('password of admin@127.0.0.1')) return
    hasTyped = true
    child.stdin.write(`${password}\r`)
  })
  const code = await new Promise(resolve => child.once('close', resolve))
  expect(shown).toContain('power on')
  expect(shown).not.toContain(password)
  expect(code).toBe(0)
})
