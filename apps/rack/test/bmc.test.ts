/** The virtual BMC against a console made of the same codec: what a real board would refuse, drop, limit and forget. */
import { commands, encodePing, encodeRequest, encodeV15, encodeV20, parseDatagram, parseResponse } from '@muster/drivers/ipmi/codec'
import { describe, expect, test } from 'vitest'
import { startBmc, virtualIdentity } from '../src/bmc/bmc.ts'
import { BootOptions } from '../src/bmc/boot-options.ts'
import type { Chassis } from '../src/bmc/command-table.ts'
import { Controller } from '../src/bmc/controller.ts'
import { SequenceWindow } from '../src/bmc/sequence-window.ts'
import { deadLine, Serial } from '../src/bmc/serial.ts'
import { usualSessionLimits } from '../src/bmc/sessions.ts'
import { ConsoleSession, LoginRefused, logIn, openSession, udpSend } from './bmc-console.ts'

const guid = Buffer.from('00112233445566778899aabbccddeeff', 'hex')
const users = [
  { name: 'ADMIN', password: 'secret', privilege: 'ADMINISTRATOR' },
  { name: 'op', password: 'operators', privilege: 'OPERATOR' },
  { name: 'eyes', password: 'only', privilege: 'USER' },
] as const
const admin = { user: 'ADMIN', password: 'secret' }

/** A controller without a network: the test's own clock, and a switch that obeys at once. */
function bench(options: { kg?: Buffer; atMs?: number } = {}) {
  const clock = { ms: options.atMs ?? 1_000_000, isBusy: false }
  const switched: { power: 'on' | 'off' } = { power: 'off' }
  const chassis: Chassis = {
    power: () => switched.power,
    control: order => {
      if (order !== 'on' && order !== 'off' && switched.power === 'off') return 'wrong-state'
      if (order === 'on' || order === 'off') switched.power = order
      return 'accepted'
    },
  }
  const bootOptions = new BootOptions({ expiryMs: 60_000 })
  const limits = usualSessionLimits
  const serial = new Serial(deadLine, () => {
    throw new Error('nobody opened a console')
  })
  const controller = new Controller({ users, kg: options.kg, guid, identity: virtualIdentity, chassis, bootOptions, limits, serial })
  const send = (datagram: Buffer) =>
    controller.receive(datagram, { arrivedMs: clock.ms, atMs: clock.ms, isBusy: clock.isBusy, send: () => undefined })
  return { clock, switched, bootOptions, controller, send }
}

async function refusal(login: Promise<unknown>): Promise<{ at: string; status: number }> {
  const error = await login.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  if (!(error instanceof LoginRefused)) throw new Error('the login should have been refused', { cause: error })
  return { at: error.at, status: error.status }
}

describe('before a session', () => {
  test('a presence ping is answered', () => {
    const { send } = bench()
    expect(parseDatagram(send(encodePing(9)) as Buffer)).toEqual({ kind: 'pong', tag: 9, speaksIpmi: true })
  })

  test.each(['v1.5', 'v2.0'] as const)('authentication capabilities in %s framing', framing => {
    const { send } = bench({ kg: Buffer.from('group') })
    const payload = encodeRequest({ ...commands.getChannelAuthCapabilities, sequence: 5, data: Buffer.of(0x8e, 4) })
    const answer = parseDatagram(send(framing === 'v1.5' ? encodeV15(payload) : encodeV20({ payloadType: 0, payload })) as Buffer)
    if (answer.kind !== framing) throw new Error('answered in another framing')
    // Channel 1, v2.0 data present, K_g set and named users, v2.0 sessions only.
    expect(parseResponse(answer.payload)).toMatchObject({ sequence: 5, completionCode: 0, data: Buffer.of(1, 0x80, 0x24, 2, 0, 0, 0, 0) })
  })

  test('cipher suites come in pages of 16 bytes, and the last page is short', () => {
    const { send } = bench()
    const page = (index: number) => {
      const data = Buffer.of(0x0e, 0, 0x80 | index)
      const answer = parseDatagram(send(encodeV15(encodeRequest({ ...commands.getChannelCipherSuites, sequence: 1, data }))) as Buffer)
      return answer.kind === 'v1.5' ? parseResponse(answer.payload)?.data : undefined
    }
    expect(page(0)).toEqual(Buffer.from('01c003014181c011034481', 'hex'))
    expect(page(1)).toEqual(Buffer.of(1))
  })

  test('other commands need a session', () => {
    const { send } = bench()
    const answer = parseDatagram(
      send(encodeV15(encodeRequest({ ...commands.getChassisStatus, sequence: 1, data: Buffer.alloc(0) }))) as Buffer,
    )
    expect(answer.kind === 'v1.5' && parseResponse(answer.payload)?.completionCode).toBe(0xd4)
  })

  test('the cut-off and the nonsensical get no answer', () => {
    const { send } = bench()
    for (const bytes of [
      '',
      '06',
      '0600ff07',
      '0600ff0706',
      '0600ff07060000000000000000000000',
      '0600ff0700000000000000000020',
      'ff'.repeat(40),
    ])
      expect(send(Buffer.from(bytes, 'hex')), bytes).toBeUndefined()
  })
})

describe('logging in', () => {
  test.each([3, 17] as const)('suite %i, without and with K_g', async suite => {
    for (const kg of [undefined, Buffer.from('a group key of ours')]) {
      const { send, controller } = bench(kg ? { kg } : {})
      const session = await logIn(send, { ...admin, suite, ...(kg && { kg }) })
      expect((await session.ask(commands.getChassisStatus))?.completionCode).toBe(0)
      expect(controller.counters).toMatchObject({ loginsAccepted: 1, sessionsOpenMax: 1 })
    }
  })

  test('what is wrong is told by the status a board would give', async () => {
    const { send, controller } = bench({ kg: Buffer.from('group') })
    expect(await refusal(logIn(send, { user: 'nobody', password: 'x' }))).toEqual({ at: 'rakp2', status: 0x0d })
    // The console sees a wrong password first: the BMC's own proof does not fit it.
    expect(await refusal(logIn(send, { user: 'ADMIN', password: 'wrong' }))).toEqual({ at: 'rakp2', status: -2 })
    expect(await refusal(logIn(send, { user: 'op', password: 'operators', privilege: 4 }))).toEqual({ at: 'rakp2', status: 0x0a })
    expect(await refusal(logIn(send, { ...admin, privilege: 3, lookup: 'name and privilege' }))).toEqual({ at: 'rakp2', status: 0x0d })
    expect(await refusal(logIn(send, { ...admin, privilege: 5 }))).toEqual({ at: 'rakp2', status: 0x09 })
    expect(await refusal(logIn(send, admin))).toEqual({ at: 'rakp4', status: -2 }) // K_g missing
    expect(controller.counters.loginsRefused).toBe(4)
  })

  test('fifteen slots; a sixteenth login is told to come back, and half-open ones are dropped after 3 s', async () => {
    const { send, clock, controller } = bench()
    for (let count = 0; count < 15; count++) await openSession(send)
    expect(await refusal(openSession(send))).toEqual({ at: 'open', status: 0x01 })
    clock.ms += 3_001
    await logIn(send, admin)
    expect(controller.counters).toMatchObject({ loginsUnderWayMax: 15, sessionsOpenMax: 1 })
  })

  test('a busy controller gives no session and says C0 in those it has', async () => {
    const { send, clock } = bench()
    const session = await logIn(send, admin)
    clock.isBusy = true
    expect(await refusal(openSession(send))).toEqual({ at: 'open', status: 0x01 })
    expect((await session.ask(commands.getChassisStatus))?.completionCode).toBe(0xc0)
  })

  test('a session that says nothing for 60 s is gone', async () => {
    const { send, clock, controller } = bench()
    const session = await logIn(send, admin)
    clock.ms += 59_000
    expect((await session.ask(commands.getChassisStatus))?.completionCode).toBe(0)
    clock.ms += 60_001
    expect(await session.ask(commands.getChassisStatus)).toBeUndefined()
    expect(controller.sessionsOpen(clock.ms)).toBe(0)
  })
})

describe('inside a session', () => {
  test('privileges: USER at first, raised on demand, never beyond account or role', async () => {
    const { send } = bench()
    const session = await logIn(send, admin)
    expect((await session.ask(commands.chassisControl, [1]))?.completionCode).toBe(0xd4)
    expect(await session.raise(3)).toBe(0)
    expect((await session.ask(commands.chassisControl, [1]))?.completionCode).toBe(0)
    const modest = await logIn(send, { ...admin, privilege: 3 })
    expect(await modest.raise(4)).toBe(0x81)
    const eyes = await logIn(send, { user: 'eyes', password: 'only', privilege: 2 })
    expect(await eyes.raise(3)).toBe(0x80)
    expect((await eyes.ask(commands.getChassisStatus))?.completionCode).toBe(0)
  })

  test('unknown command C1, wrong length C7, wrong state D5, bad field CC', async () => {
    const { send, controller } = bench()
    const session = await logIn(send, admin)
    await session.raise(3)
    expect((await session.ask({ netFn: 0x2e, command: 1 }))?.completionCode).toBe(0xc1)
    expect((await session.ask(commands.chassisControl, []))?.completionCode).toBe(0xc7)
    expect((await session.ask(commands.chassisControl, [2]))?.completionCode).toBe(0xd5)
    expect((await session.ask(commands.chassisControl, [9]))?.completionCode).toBe(0xcc)
    expect((await session.ask(commands.chassisControl, [1]))?.completionCode).toBe(0)
    expect((await session.ask(commands.chassisControl, [2]))?.completionCode).toBe(0)
    expect(controller.counters.controls).toMatchObject({ on: 1, cycle: 1, off: 0 })
  })

  test('a repeated command gets the first answer and is carried out once', async () => {
    const { send, controller, switched, clock } = bench()
    const session = await logIn(send, admin)
    await session.raise(3)
    switched.power = 'on'
    const first = session.read(send(session.packet(commands.chassisControl, [2])) as Buffer)
    const again = session.read(send(session.packet(commands.chassisControl, [2])) as Buffer)
    expect(again).toEqual(first)
    expect(controller.counters).toMatchObject({ repeats: 1, controls: { cycle: 1 } })
    // rqSeq comes round again: later, the same number is a new command.
    clock.ms += 6_000
    send(session.packet(commands.chassisControl, [2]))
    expect(controller.counters.controls.cycle).toBe(2)
  })

  test('a packet seen before, far off or spoiled is dropped', async () => {
    const { send, controller } = bench()
    const session = await logIn(send, admin)
    const packet = session.packet(commands.getChassisStatus)
    expect(send(packet)).toBeDefined()
    expect(send(packet)).toBeUndefined()
    session.sequence = 40
    expect(send(session.packet(commands.getChassisStatus))).toBeUndefined()
    session.sequence = 2
    const spoiled = session.packet(commands.getChassisStatus)
    spoiled.writeUInt8(spoiled.readUInt8(20) ^ 1, 20)
    expect(send(spoiled)).toBeUndefined()
    expect(controller.counters.dropped).toBe(3)
  })

  test('the window: 16 ahead, 15 behind, each once, over the wrap', () => {
    const window = new SequenceWindow()
    expect([16, 33, 32, 17, 18, 18, 2, 0].map(sequence => window.take(sequence))).toEqual([
      true,
      false,
      true,
      true,
      true,
      false,
      false,
      false,
    ])
  })

  test('a session closes itself, and may be closed by an administrator only', async () => {
    const { send, controller, clock } = bench()
    const first = await logIn(send, admin)
    const second = await logIn(send, admin)
    const id = Buffer.alloc(4)
    id.writeUInt32LE(first.bmcId)
    expect((await second.ask(commands.closeSession, id))?.completionCode).toBe(0xd4)
    expect(await second.raise(4)).toBe(0)
    expect((await second.ask(commands.closeSession, id))?.completionCode).toBe(0)
    expect((await second.ask(commands.closeSession, id))?.completionCode).toBe(0x87)
    await second.close()
    expect(controller.sessionsOpen(clock.ms)).toBe(0)
  })

  test('device, GUID and identify light', async () => {
    const { send, controller, clock } = bench()
    const session = await logIn(send, admin)
    await session.raise(3)
    expect((await session.ask(commands.getDeviceId))?.data.subarray(0, 11).toString('hex')).toBe('200101000280' + '55070f' + '0100')
    expect((await session.ask({ netFn: 6, command: 0x37 }))?.data).toEqual(guid)
    await session.ask(commands.chassisIdentify, [5])
    expect(controller.identify(clock.ms)).toBe('timed')
    expect(controller.identify(clock.ms + 5_001)).toBe('off')
    await session.ask(commands.chassisIdentify, [0, 1])
    expect(controller.identify(clock.ms + 1e9)).toBe('on')
    await session.ask(commands.chassisIdentify, [0])
    expect(controller.identify(clock.ms)).toBe('off')
  })
})

describe('boot override', () => {
  async function console() {
    const here = bench()
    const session = await logIn(here.send, admin)
    await session.raise(3)
    const set = async (...data: number[]) => (await session.ask(commands.setBootOptions, data))?.completionCode
    const get = async (parameter: number) => (await session.ask(commands.getBootOptions, [parameter, 0, 0]))?.data.toString('hex')
    return { ...here, session, set, get }
  }
  const networkOnce = [5, 0x80, 0x04, 0, 0, 0] as const
  const networkAlways = [5, 0xe0, 0x04, 0, 0, 0] as const

  test('is read back as it was set, and used up by one boot', async () => {
    const { set, get, bootOptions, clock } = await console()
    expect(await set(5, 0xa0, 0x04, 0, 0, 0)).toBe(0)
    expect(await get(5)).toBe('0105a004000000')
    expect(bootOptions.takeForBoot(clock.ms)).toEqual({ valid: true, lasting: 'once', firmware: 'uefi', device: 'network' })
    expect(bootOptions.takeForBoot(clock.ms)).toBeUndefined()
    expect(await get(5)).toBe('01052004000000')
  })

  test('a persistent one stays', async () => {
    const { set, bootOptions, clock } = await console()
    await set(3, 0x1f)
    await set(...networkAlways)
    for (let boots = 0; boots < 3; boots++) expect(bootOptions.takeForBoot(clock.ms + 1e9)?.device).toBe('network')
  })

  test('lapses after 60 s without a chassis command, unless parameter 3 or that command says otherwise', async () => {
    const { set, bootOptions, clock, session } = await console()
    await set(...networkOnce)
    expect(bootOptions.read(clock.ms + 59_999)).toBeDefined()
    expect(bootOptions.read(clock.ms + 60_000)).toBeUndefined()
    await set(...networkOnce)
    await session.ask(commands.chassisControl, [1])
    expect(bootOptions.read(clock.ms + 1e9)).toBeDefined()
    bootOptions.takeForBoot(clock.ms)
    await set(3, 0x08)
    await set(...networkOnce)
    expect(bootOptions.read(clock.ms + 1e9)).toBeDefined()
  })

  test('codes: unknown parameter 80, another writer 81, wrong length C7; the power button clears it', async () => {
    const { send, set, get, bootOptions, clock } = await console()
    expect(await set(6, 1)).toBe(0x80)
    expect((await get(6)) ?? '').toBe('')
    expect(await set(5, 0x80)).toBe(0xc7)
    expect(await set(0, 1)).toBe(0)
    const other = await logIn(send, admin)
    await other.raise(3)
    expect((await other.ask(commands.setBootOptions, [0, 1]))?.completionCode).toBe(0x81)
    await set(0, 0)
    expect((await other.ask(commands.setBootOptions, [0, 1]))?.completionCode).toBe(0)
    await set(...networkOnce)
    bootOptions.buttonPressed()
    expect(bootOptions.read(clock.ms)).toBeUndefined()
  })
})

describe('on the network', () => {
  async function network(options: Partial<Parameters<typeof startBmc>[0]>) {
    const chassis: Chassis = { power: () => 'on', control: () => 'accepted' }
    const bootOptions = new BootOptions({ expiryMs: 60_000 })
    return await startBmc({ address: '127.0.0.1', port: 0, users, guid, chassis, bootOptions, ...options })
  }

  test('a slow one answers late and its login survives its own slowness', async () => {
    await using bmc = await network({ faults: { latencyMs: [100, 150] }, limits: { ...usualSessionLimits, halfOpenMs: 60 } })
    await using udp = await udpSend(bmc)
    const startedAt = performance.now()
    const session = await logIn(udp.send, admin)
    expect(session).toBeInstanceOf(ConsoleSession)
    expect(performance.now() - startedAt).toBeGreaterThan(295)
  })

  test('a silent one holds its address and says nothing; it may come back', async () => {
    await using bmc = await network({ faults: { life: 'silent' } })
    await using udp = await udpSend({ ...bmc, timeoutMs: 100 })
    expect(await udp.send(encodePing(1))).toBeUndefined()
    bmc.faults.life = 'alive'
    expect(await udp.send(encodePing(1))).toBeDefined()
  })

  test('loss and duplicates are as frequent as asked for', async () => {
    let drawn = 0
    await using bmc = await network({ faults: { dropRate: 0.3 }, random: () => (drawn++ % 10) / 10 })
    await using udp = await udpSend({ ...bmc, timeoutMs: 50 })
    const answers = []
    for (let count = 0; count < 20; count++) answers.push(await udp.send(encodePing(count)))
    expect(answers.filter(answer => answer).length).toBeGreaterThan(5)
    expect(answers.filter(answer => !answer).length).toBeGreaterThan(5)
  })

  test('an address in use is an error at start', async () => {
    await using bmc = await network({})
    await expect(network({ port: bmc.port })).rejects.toMatchObject({ code: 'EADDRINUSE' })
  })
})
