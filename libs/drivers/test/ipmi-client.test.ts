/** How the IPMI driver behaves with BMCs that forget, refuse, keep silent, lie or are slow. */
import { createSecretKey } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import { DriverError, type PowerContext, type PowerSession } from '../src/driver.ts'
import {
  chassisControls,
  encodeBootFlags,
  encodeChassisStatus,
  encodeResponse,
  encodeV20,
  parseOpenSessionRequest,
  parseRakp1,
  parseRakp3,
  payloadTypes,
  privileges,
  seal,
} from '../src/ipmi/codec.ts'
import type { Timers } from '../src/ipmi/timers.ts'
import { ipmiDriver } from '../src/ipmi.ts'
import { freeUdpPort } from './ipmi-sim.ts'
import { type Answer, ScriptedBmc, type ScriptedBmcOptions } from './scripted-bmc.ts'

/** Shorter than the defaults where a test waits for silence, and long enough that a busy machine is not taken for a silent BMC. */
const short: Partial<Timers> = {
  setupMs: 250,
  loginMs: 6000,
  halfOpenMs: 1000,
  portClosedMs: 50,
  commandMs: 200,
  staleMs: 500,
  commandLimitMs: 1500,
  onceMs: 300,
  busyMs: 5,
  probeMs: 200,
  closeMs: 200,
}

async function startBmc(options: ScriptedBmcOptions = {}): Promise<ScriptedBmc> {
  const bmc = await ScriptedBmc.start(options)
  onTestFinished(() => bmc[Symbol.asyncDispose]())
  return bmc
}

/** A session that is closed when the test ends. Each call makes a driver of its own, which remembers nothing. */
function open(
  bmc: { address: string },
  options: { settings?: Record<string, unknown>; timers?: Partial<Timers>; context?: PowerContext } = {},
): PowerSession {
  const driver = ipmiDriver({ timers: { ...short, ...options.timers } })
  const settings = driver.settings.parse({ address: bmc.address, user: 'admin', password: 'secret', ...options.settings })
  const session = driver.open(settings, options.context)
  onTestFinished(() => session.close())
  return session
}

async function failureOf(call: Promise<unknown>): Promise<DriverError> {
  const error = await call.then(
    () => new Error('nothing was thrown'),
    caught => caught,
  )
  expect(error).toBeInstanceOf(DriverError)
  return error
}

describe('logging in', () => {
  test('takes suite 17 where it is offered, and 3 where not', async () => {
    for (const [offered, used] of [
      [[17, 3], 17],
      [[3], 3],
      [[17], 17],
    ] as const) {
      const bmc = await startBmc({ suites: [...offered] })
      const log: Record<string, string | number>[] = []
      await open(bmc, { context: { log: (message, facts) => message === 'logged in' && log.push(facts) } }).power()
      expect(log).toMatchObject([{ suite: used }])
      expect(bmc.logins()).toBe(1)
    }
  })

  test('works where the question for suites is never answered', async () => {
    const bmc = await startBmc({ suites: [3] })
    bmc.answersProbe = false
    expect(await open(bmc).power()).toBe('off')
    expect(bmc.logins()).toBe(2)
  })

  test('remembers per BMC what worked, over all sessions of a driver', async () => {
    const bmc = await startBmc({ suites: [3] })
    bmc.answersProbe = false
    const driver = ipmiDriver({ timers: short })
    const settings = driver.settings.parse({ address: bmc.address, user: 'admin', password: 'secret' })
    for (let i = 0; i < 3; i++) {
      await using session = driver.open(settings)
      await session.power()
    }
    expect(bmc.logins()).toBe(4)
  })

  test('tries the other suite when a board says "no resources" to the first (Intel M50CYP)', async () => {
    const bmc = await startBmc()
    bmc.setup = (step, payload) => (step === 'open' && parseOpenSessionRequest(payload)?.algorithms.authentication === 3 ? 0x01 : undefined)
    expect(await open(bmc).power()).toBe('off')
    expect(bmc.logins()).toBe(2)
  })

  test('goes on with the suite the BMC puts in its place if the settings allow it (pyghmi), and refuses otherwise', async () => {
    const bmc = await startBmc({ suites: [17, 3] })
    bmc.substitute = 3
    expect(await open(bmc).power()).toBe('off')
    expect(await failureOf(open(bmc, { settings: { suite: 17 } }).power())).toMatchObject({
      kind: 'refused',
      message: expect.stringContaining('other algorithms'),
    })
  })

  test('starts afresh with a new console id and tag when an answer is missing, and never sends RAKP 1 or 3 twice', async () => {
    for (const step of ['open', 'rakp1', 'rakp3'] as const) {
      const bmc = await startBmc()
      let lost = 0
      bmc.setup = at => (at === step && ++lost <= 2 ? 'silence' : undefined)
      expect(await open(bmc).power()).toBe('off')
      expect(bmc.logins()).toBe(3)
      const setup = bmc.datagrams.filter(({ payloadType }) => payloadType >= 0x10)
      expect(new Set(setup.map(({ payload }) => payload.toString('hex'))).size).toBe(setup.length)
      const ids = setup.flatMap(({ payloadType, payload }) =>
        payloadType === payloadTypes.openSessionRequest ? [parseOpenSessionRequest(payload)?.consoleId] : [],
      )
      expect(new Set(ids).size).toBe(3)
    }
  })

  test('gives up on a silent BMC after six attempts in the allowed time, and says so', async () => {
    const bmc = await startBmc()
    bmc.answersProbe = false
    bmc.setup = () => 'silence'
    const machine = open(bmc, { timers: { halfOpenMs: 30_000 } })
    const error = await failureOf(machine.power())
    expect(error).toMatchObject({ kind: 'silent', retryable: true, hint: expect.stringContaining('IPMI over LAN') })
    expect(bmc.logins()).toBe(6)
    await failureOf(machine.power())
    expect(bmc.logins()).toBe(6)
  })

  test('suspects the user name when a BMC answers Open Session but not RAKP 1 (pyghmi)', async () => {
    const bmc = await startBmc()
    bmc.setup = step => (step === 'rakp1' ? 'silence' : undefined)
    const error = await failureOf(open(bmc, { timers: { halfOpenMs: 30_000 } }).power())
    expect(error).toMatchObject({ kind: 'silent', hint: expect.stringContaining('check the user name') })
  })

  test('asks for the level it needs, with the name alone to find the account, and the name not padded', async () => {
    const bmc = await startBmc()
    await open(bmc).power()
    const rakp1 = bmc.datagrams.find(({ payloadType }) => payloadType === payloadTypes.rakp1)
    expect(parseRakp1(rakp1?.payload ?? Buffer.alloc(0))).toMatchObject({ role: 0x13, user: Buffer.from('admin') })
    expect(rakp1?.payload.length).toBe(28 + 5)
  })

  test('with a wrong password ends at RAKP 2, telling the BMC once', async () => {
    const bmc = await startBmc({ password: 'other' })
    const error = await failureOf(open(bmc).power())
    expect(error).toMatchObject({ kind: 'authentication', retryable: false })
    await sleep(20)
    const third = bmc.datagrams.filter(({ payloadType }) => payloadType === payloadTypes.rakp3)
    expect(third.map(({ payload }) => parseRakp3(payload)?.status)).toEqual([0x0f])
    expect(bmc.logins()).toBe(1)
  })

  test('with a wrong K_g names the K_g, not the password', async () => {
    const bmc = await startBmc({ kg: 'the key' })
    expect(await open(bmc, { settings: { kg: 'the key' } }).power()).toBe('off')
    for (const kg of ['another key', undefined]) {
      expect(await failureOf(open(bmc, { settings: { kg } }).power())).toMatchObject({
        kind: 'authentication',
        message: expect.stringContaining('K_g'),
        hint: expect.stringContaining('K_g'),
      })
    }
  })

  test('that is refused a second time after a right RAKP 2 is an error', async () => {
    const bmc = await startBmc()
    bmc.setup = step => (step === 'rakp3' ? 0x0f : undefined)
    expect(await failureOf(open(bmc).power())).toMatchObject({ kind: 'authentication', message: expect.stringContaining('0x0F') })
    expect(bmc.logins()).toBe(2)
  })

  test.each([
    { step: 'open', status: 0x01, kind: 'busy' },
    { step: 'rakp1', status: 0x0b, kind: 'busy' },
    { step: 'rakp1', status: 0x09, kind: 'privilege' },
    { step: 'open', status: 0x0a, kind: 'privilege' },
    { step: 'rakp1', status: 0x0c, kind: 'authentication' },
    { step: 'rakp1', status: 0x0d, kind: 'authentication' },
    { step: 'open', status: 0x11, kind: 'refused' },
    { step: 'rakp1', status: 0x0e, kind: 'protocol' },
    { step: 'rakp3', status: 0x99, kind: 'protocol' },
  ])('refused at $step with status $status is "$kind"', async ({ step, status, kind }) => {
    const bmc = await startBmc()
    bmc.setup = at => (at === step ? status : undefined)
    const error = await failureOf(open(bmc).power())
    expect(error).toMatchObject({ kind, outcome: 'none' })
    expect(error.message).toContain(`0x${status.toString(16).toUpperCase().padStart(2, '0')}`)
    expect(error.hint).not.toBe('')
  })

  test.each([0x02, 0x08])('told at random that its session is unknown (status %i, Supermicro X10), starts again', async status => {
    const bmc = await startBmc()
    let times = 0
    bmc.setup = step => (step === 'rakp3' && ++times === 1 ? status : undefined)
    expect(await open(bmc).power()).toBe('off')
  })

  test('to a closed port ends within a second, saying that nothing listens', async () => {
    const startedAt = performance.now()
    const error = await failureOf(open({ address: `127.0.0.1:${await freeUdpPort()}` }, { timers: { portClosedMs: 300 } }).power())
    expect(error).toMatchObject({ kind: 'silent', message: expect.stringContaining('nothing listens') })
    expect(performance.now() - startedAt).toBeLessThan(1000)
  })

  test('to a name nobody knows says that', async () => {
    const error = await failureOf(open({ address: 'no-such-bmc.invalid' }).power())
    expect(error).toMatchObject({ kind: 'silent', message: expect.stringContaining('no-such-bmc.invalid') })
  })

  test('works over IPv6', async () => {
    const bmc = await startBmc({ host: '::1' })
    expect(bmc.address).toMatch(/^\[::1\]:/)
    expect(await open(bmc).power()).toBe('off')
  })

  test('copes with a BMC that needs longer than the first wait for its hashes', async () => {
    const bmc = await startBmc()
    bmc.hashMs = 400
    expect(await open(bmc).power()).toBe('off')
    expect(bmc.logins()).toBe(2)
  })
})

describe('a session', () => {
  test('starts with sequence 1 and counts every datagram, while a repeat keeps its rqSeq', async () => {
    const bmc = await startBmc()
    let silent = 2
    bmc.script = ({ name }) => (name === 'getChassisStatus' && silent-- > 0 ? 'silence' : undefined)
    await open(bmc).power()
    expect(bmc.commands.map(({ sequence }) => sequence)).toEqual([1, 2, 3])
    expect(new Set(bmc.commands.map(({ rqSeq }) => rqSeq)).size).toBe(1)
  })

  test('is kept for the next call, and closed once, when idle', async () => {
    const bmc = await startBmc()
    const machine = open(bmc, { timers: { keepAliveMs: 300 } })
    for (let i = 0; i < 3; i++) await machine.power()
    expect(bmc.logins()).toBe(1)
    expect(bmc.sessionCount).toBe(1)
    await expect.poll(() => bmc.sessionCount).toBe(0)
    expect(bmc.count('closeSession')).toBe(1)
    expect(await machine.power()).toBe('off')
    expect(bmc.logins()).toBe(2)
  })

  test('is closed after each call when told to keep nothing', async () => {
    const bmc = await startBmc()
    const machine = open(bmc, { timers: { keepAliveMs: 0 } })
    await machine.power()
    expect(bmc.sessionCount).toBe(0)
    await machine.power()
    expect(bmc.logins()).toBe(2)
  })

  test('may not be kept longer than BMCs do', () => {
    expect(() => ipmiDriver({ timers: { keepAliveMs: 25_001 } })).toThrow(RangeError)
  })

  test('is closed with one packet, even if the BMC never answers it', async () => {
    const bmc = await startBmc()
    bmc.script = ({ name }) => (name === 'closeSession' ? 'silence' : undefined)
    const machine = open(bmc)
    await machine.power()
    await machine.close()
    await machine.close()
    expect(bmc.count('closeSession')).toBe(1)
    expect(await failureOf(machine.power())).toMatchObject({ kind: 'cancelled', outcome: 'none' })
  })

  test('that the BMC forgot is replaced without the caller noticing', async () => {
    const bmc = await startBmc()
    const machine = open(bmc)
    await machine.power()
    for (const call of [() => machine.power(), () => machine.on(), () => machine.cycle(), () => machine.off({ how: 'hard' })]) {
      bmc.forgetSessions()
      await call()
    }
    expect(bmc.power).toBe('off')
    expect(bmc.logins()).toBe(5)
  })

  test('raises its privilege only when a command needs it', async () => {
    const bmc = await startBmc()
    const machine = open(bmc)
    await machine.power()
    expect(bmc.names()).toEqual(['getChassisStatus'])
    await machine.on()
    await machine.off({ how: 'hard' })
    expect(bmc.names()).toEqual(['getChassisStatus', 'setSessionPrivilege', 'chassisControl', 'chassisControl'])
    expect(bmc.commands[1]?.data).toEqual(Buffer.of(privileges.OPERATOR))
  })

  test('raises it to the allowed level when the BMC wants more than the specification', async () => {
    const bmc = await startBmc()
    let level: number = privileges.USER
    bmc.script = ({ name, data }) => {
      if (name === 'setSessionPrivilege') level = data.readUInt8(0)
      return name === 'chassisControl' && level < privileges.ADMINISTRATOR ? { code: 0xd4 } : undefined
    }
    await open(bmc, { settings: { privilege: 'ADMINISTRATOR' } }).on()
    expect(bmc.power).toBe('on')
    const error = await failureOf(open(bmc).on())
    expect(error).toMatchObject({ kind: 'privilege', message: expect.stringContaining('0xD4') })
  })

  test('refuses to switch power with settings that only read, without asking the BMC', async () => {
    const bmc = await startBmc()
    const machine = open(bmc, { settings: { privilege: 'USER' } })
    expect(await machine.power()).toBe('off')
    expect(await failureOf(machine.on())).toMatchObject({ kind: 'privilege' })
    expect(bmc.names()).toEqual(['getChassisStatus'])
  })

  test('is told when the account may not have the level', async () => {
    const bmc = await startBmc()
    bmc.script = ({ name }) => (name === 'setSessionPrivilege' ? { code: 0x81 } : undefined)
    expect(await failureOf(open(bmc).on())).toMatchObject({ kind: 'privilege', message: expect.stringContaining('0x81') })
  })

  test('has one command outstanding, however many call', async () => {
    const bmc = await startBmc()
    const machine = open(bmc)
    await Promise.all([machine.on(), machine.power(), machine.power(), machine.off({ how: 'hard' }), machine.power()])
    expect(bmc.overlaps).toBe(0)
    expect(bmc.logins()).toBe(1)
    expect(bmc.names().filter(name => name !== 'setSessionPrivilege')).toEqual([
      'chassisControl',
      'getChassisStatus',
      'getChassisStatus',
      'chassisControl',
      'getChassisStatus',
    ])
  })

  test('believes nothing forged, doubled or unprotected', async () => {
    const bmc = await startBmc()
    bmc.power = 'off'
    const lie = (sequence: number) => encodeResponse({ netFn: 1, command: 1, sequence, completionCode: 0, data: Buffer.of(1, 0, 0) })
    const replies: Buffer[] = []
    bmc.outgoing = (sealed, session) => {
      replies.push(sealed)
      const sessionId = session.exchange.consoleId
      const damaged = Buffer.from(sealed)
      damaged.writeUInt8(damaged.readUInt8(20) ^ 1, 20)
      const rqSeq = bmc.commands.at(-1)?.rqSeq ?? 0
      const foreign = { ...session.keys, signingKey: createSecretKey(Buffer.alloc(20, 7)) }
      return [
        encodeV20({ payloadType: payloadTypes.ipmi, payload: lie(rqSeq), sessionId, sequence: session.sequence }),
        seal({ payloadType: 0, sessionId, sequence: session.sequence + 1, payload: lie(rqSeq), iv: Buffer.alloc(16) }, foreign),
        seal(
          { payloadType: 0, sessionId: (sessionId ^ 1) >>> 0, sequence: session.sequence + 1, payload: lie(rqSeq), iv: Buffer.alloc(16) },
          session.keys,
        ),
        damaged,
        ...replies,
        sealed,
      ]
    }
    const machine = open(bmc)
    for (let i = 0; i < 70; i++) expect(await machine.power()).toBe('off')
    expect(bmc.count('getChassisStatus')).toBe(70)
  })
})

describe('completion codes', () => {
  /** The given answers first, then what the BMC does by itself. */
  async function bmcAnswering(name: string, answers: Answer[]): Promise<ScriptedBmc> {
    const bmc = await startBmc()
    bmc.script = command => (command.name === name ? answers.shift() : undefined)
    return bmc
  }

  test.each([0xc0, 0xc3, 0xce, 0xd0, 0xd1, 0xd2])('%i is tried again until it goes away', async code => {
    const bmc = await bmcAnswering('chassisControl', [{ code }, { code }])
    await open(bmc).on()
    expect(bmc.power).toBe('on')
    expect(bmc.count('chassisControl')).toBe(3)
  })

  test('a BMC that stays busy is "busy", after a bounded number of repeats', async () => {
    const bmc = await startBmc()
    bmc.script = ({ name }) => (name === 'chassisControl' ? { code: 0xc0 } : undefined)
    expect(await failureOf(open(bmc).on())).toMatchObject({ kind: 'busy', retryable: true, message: expect.stringContaining('0xC0') })
    expect(bmc.count('chassisControl')).toBe(6)
  })

  test.each([0xd3, 0xff])('%i is tried once more', async code => {
    const bmc = await bmcAnswering('chassisControl', [{ code }])
    await open(bmc).on()
    const stubborn = await bmcAnswering('chassisControl', [{ code }, { code }])
    expect(await failureOf(open(stubborn).on())).toMatchObject({ kind: 'refused' })
  })

  test('"duplicated request" is waited out, and a BMC that says nothing else is asked anew', async () => {
    const bmc = await startBmc()
    const seen = new Set<number>()
    bmc.script = ({ name, rqSeq }) => {
      if (name !== 'getChassisStatus' || seen.size > 1) return undefined
      const answer = seen.has(rqSeq) || seen.size === 0 ? { code: 0xcf } : undefined
      seen.add(rqSeq)
      return answer
    }
    expect(await open(bmc).power()).toBe('off')
  })

  test('on when on and off when off are fine, also for BMCs that call it an error', async () => {
    const bmc = await startBmc()
    bmc.power = 'on'
    bmc.script = ({ name }) => (name === 'chassisControl' ? { code: 0xd5 } : undefined)
    const machine = open(bmc)
    await machine.on()
    expect(await failureOf(machine.off({ how: 'hard' }))).toMatchObject({ kind: 'refused', message: expect.stringContaining('0xD5') })
    bmc.power = 'off'
    await machine.off({ how: 'hard' })
    await machine.off({ how: 'soft' })
  })

  test.each([0xc1, 0xc2, 0xd6])('%i means that the BMC cannot do it', async code => {
    const bmc = await bmcAnswering('chassisControl', [{ code }])
    expect(await failureOf(open(bmc).off({ how: 'soft' }))).toMatchObject({ kind: 'unsupported', hint: expect.stringContaining('hard') })
  })

  test('an answer that is too short is a protocol error', async () => {
    const bmc = await bmcAnswering('getChassisStatus', [{ code: 0, data: Buffer.of(1) }])
    expect(await failureOf(open(bmc).power())).toMatchObject({ kind: 'protocol' })
  })
})

describe('cycle and reset', () => {
  const controls = (bmc: ScriptedBmc) =>
    bmc.commands.filter(({ name }) => name === 'chassisControl').map(({ data }) => Object.keys(chassisControls)[data.readUInt8(0)])

  test('turn on a machine that is off', async () => {
    const bmc = await startBmc()
    await open(bmc).cycle()
    bmc.power = 'off'
    await open(bmc).capabilities.reset?.()
    expect(controls(bmc)).toEqual(['on', 'on'])
  })

  test('become hard off and on for a BMC without a cycle of its own (pyghmi)', async () => {
    const bmc = await startBmc()
    bmc.power = 'on'
    bmc.script = ({ name, data }) => (name === 'chassisControl' && data.readUInt8(0) === chassisControls.cycle ? { code: 0xcc } : undefined)
    await open(bmc).cycle()
    expect(controls(bmc)).toEqual(['cycle', 'off', 'on'])
    expect(bmc.power).toBe('on')
  })

  test('turn on a machine that went off just then', async () => {
    const bmc = await startBmc()
    bmc.power = 'on'
    bmc.script = ({ name, data }) => {
      if (name !== 'chassisControl' || data.readUInt8(0) !== chassisControls.cycle) return undefined
      bmc.power = 'off'
      return { code: 0xd5 }
    }
    await open(bmc).cycle()
    expect(controls(bmc)).toEqual(['cycle', 'on'])
  })

  test('are never sent twice: with the answer lost, a machine seen off is being cycled', async () => {
    const bmc = await startBmc()
    bmc.power = 'on'
    bmc.script = ({ name }) => {
      if (name !== 'chassisControl') return undefined
      bmc.power = 'off'
      return 'silence'
    }
    await open(bmc).cycle()
    expect(controls(bmc)).toEqual(['cycle'])
  })

  test('are never sent twice: with the answer lost and the machine on, the caller is told that nobody knows', async () => {
    const bmc = await startBmc()
    bmc.power = 'on'
    bmc.script = ({ name }) => (name === 'chassisControl' ? 'silence' : undefined)
    const machine = open(bmc)
    for (const call of [() => machine.cycle(), () => machine.capabilities.reset?.()]) {
      const error = await failureOf(Promise.resolve(call()))
      expect(error).toMatchObject({ kind: 'silent', outcome: 'unknown', message: expect.stringContaining('not known') })
    }
    expect(controls(bmc)).toEqual(['cycle', 'reset'])
  })

  test('are repeated after "busy", which says that nothing happened, but not after a timeout inside the BMC', async () => {
    const bmc = await startBmc()
    bmc.power = 'on'
    const answers: Answer[] = [{ code: 0xc0 }, { code: 0xc3 }]
    bmc.script = ({ name }) => (name === 'chassisControl' ? answers.shift() : undefined)
    expect(await failureOf(open(bmc).cycle())).toMatchObject({ kind: 'silent', outcome: 'unknown' })
    expect(controls(bmc)).toEqual(['cycle', 'cycle'])
  })
})

describe('the next boot device', () => {
  /** A BMC that keeps the boot flags it is given, in its own way. */
  async function bmcKeeping(keep: (flags: Buffer) => Buffer | undefined): Promise<ScriptedBmc> {
    const bmc = await startBmc()
    let flags: Buffer | undefined = Buffer.alloc(5)
    bmc.script = ({ name, data }) => {
      if (name === 'setBootOptions' && data.readUInt8(0) === 5) flags = keep(Buffer.from(data.subarray(1)))
      // Boards refuse the frame around the flags in many ways.
      else if (name === 'setBootOptions') return { code: [0x80, 0xcc, 0x81][data.readUInt8(0) % 3] ?? 0 }
      if (name !== 'getBootOptions') return undefined
      return flags ? { code: 0, data: Buffer.concat([Buffer.of(1, 5), flags]) } : { code: 0xc1 }
    }
    return bmc
  }

  test('is set once, for the firmware given, and read back', async () => {
    const bmc = await bmcKeeping(flags => flags)
    const boot = open(bmc).capabilities.bootNext
    expect(await boot?.read()).toBeUndefined()
    expect(await boot?.set({ device: 'network', firmware: 'uefi' })).toEqual({ kept: 'all' })
    expect(await boot?.read()).toEqual({ device: 'network', firmware: 'uefi' })
    expect(await boot?.set({ device: 'disk', firmware: 'legacy' })).toEqual({ kept: 'all' })
    await boot?.clear()
    expect(await boot?.read()).toBeUndefined()
    const sent = bmc.commands.filter(({ name }) => name === 'setBootOptions').map(({ data }) => data.toString('hex'))
    expect(sent.slice(0, 6)).toEqual(['0001', '031f', '040101', '05a004000000', '0002', '0000'])
    expect(sent[9]).toBe('058008000000')
    expect(sent[15]).toBe('050000000000')
  })

  test.each([
    {
      story: 'drops the UEFI flag',
      keep: (flags: Buffer) => Buffer.of(flags.readUInt8(0) & ~0x20, ...flags.subarray(1)),
      kept: 'device only',
    },
    { story: 'cannot be read', keep: () => undefined, kept: 'unreadable' },
  ])('on a BMC that $story is "$kept"', async ({ keep, kept }) => {
    const bmc = await bmcKeeping(keep)
    expect(await open(bmc).capabilities.bootNext?.set({ device: 'network', firmware: 'uefi' })).toEqual({ kept })
  })

  test('on a BMC that keeps another one is refused', async () => {
    const other = encodeBootFlags({ valid: true, lasting: 'once', firmware: 'uefi', device: 'disk' })
    const bmc = await bmcKeeping(() => other)
    const error = await failureOf(Promise.resolve(open(bmc).capabilities.bootNext?.set({ device: 'network', firmware: 'uefi' })))
    expect(error).toMatchObject({ kind: 'refused', message: expect.stringContaining('read back as disk') })
  })
})

test('an IPMI 1.5 BMC that takes one byte for the identify light gets one', async () => {
  const bmc = await startBmc()
  bmc.script = ({ name, data }) => (name === 'chassisIdentify' && data.length > 1 ? { code: 0xc7 } : undefined)
  await open(bmc).capabilities.identify?.({ light: 30 })
  expect(bmc.commands.at(-1)?.data).toEqual(Buffer.of(30))
})

describe('cancelling', () => {
  test('one call leaves the session to the others', async () => {
    const bmc = await startBmc()
    const machine = open(bmc)
    await machine.power()
    let silent = true
    bmc.script = ({ name }) => (name === 'getChassisStatus' && silent ? 'silence' : undefined)
    const caller = new AbortController()
    const cancelled = failureOf(machine.power({ signal: caller.signal }))
    const waiting = failureOf(machine.on({ signal: AbortSignal.abort() }))
    const other = machine.on()
    await sleep(20)
    silent = false
    caller.abort()
    expect(await cancelled).toMatchObject({ kind: 'cancelled', outcome: 'unknown' })
    expect(await waiting).toMatchObject({ kind: 'cancelled', outcome: 'none' })
    await other
    expect(bmc.power).toBe('on')
    expect(bmc.logins()).toBe(1)
  })

  test.each(['open', 'rakp1', 'rakp3'] as const)('a login that waits at %s ends at once', async step => {
    const bmc = await startBmc()
    bmc.setup = at => (at === step ? 'silence' : undefined)
    const caller = new AbortController()
    const machine = open(bmc, { timers: { setupMs: 5000, loginMs: 20_000 }, context: { signal: caller.signal } })
    const startedAt = performance.now()
    const failed = failureOf(machine.power())
    await sleep(40)
    caller.abort()
    expect(await failed).toMatchObject({ kind: 'cancelled' })
    expect(performance.now() - startedAt).toBeLessThan(1000)
    expect(await failureOf(machine.power())).toMatchObject({ kind: 'cancelled' })
  })

  test('closing under a call cancels it and still closes the session', async () => {
    const bmc = await startBmc()
    const machine = open(bmc)
    await machine.power()
    bmc.script = ({ name }) => (name === 'chassisControl' ? 'silence' : undefined)
    const failed = failureOf(machine.on())
    await sleep(20)
    await machine.close()
    expect(await failed).toMatchObject({ kind: 'cancelled', outcome: 'unknown' })
    expect(bmc.sessionCount).toBe(0)
  })
})

test('chassis status of a faulty machine is read whole', () => {
  const status = {
    power: 'on',
    overload: true,
    interlock: false,
    fault: true,
    controlFault: false,
    restorePolicy: 'on',
    identify: 'timed',
  } as const
  expect(encodeChassisStatus(status).toString('hex')).toBe('4b0050')
})
