/** The PDU driver against an agent on a real UDP socket, and its codec against Debian's snmpget and snmpset. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import fc from 'fast-check'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { PowerSession } from '../src/driver.ts'
import { BerError } from '../src/snmp/ber.ts'
import { makerNames, makers } from '../src/snmp/makers.ts'
import { decodeMessage, encodeMessage, type SnmpMessage, type SnmpValue } from '../src/snmp/message.ts'
import { snmpPdu, snmpPduDriver } from '../src/snmp-pdu.ts'
import { driverConformance } from './conformance.ts'
import { community, type FakePdu, startPdu } from './fake-pdu.ts'
import { needs } from './needs.ts'

const hasty = snmpPduDriver({ waitsMs: [80, 80, 80] })

driverConformance(snmpPdu, {
  cannotAsk: 'an outlet knows no operating system',
  start: async () => {
    const pdu = await startPdu('apc', ['7'])
    return {
      // No wrongSettings: an agent keeps silent about a wrong community, as it does about everything else.
      settings: { address: pdu.address, maker: 'apc', outlet: '7', community },
      power: async () => pdu.power('7'),
      [Symbol.asyncDispose]: () => pdu[Symbol.asyncDispose](),
    }
  },
})

async function pduOf(maker: (typeof makerNames)[number], indices: string[]): Promise<FakePdu> {
  const pdu = await startPdu(maker, indices)
  onTestFinished(() => pdu[Symbol.asyncDispose]())
  return pdu
}

function open(settings: Record<string, unknown>, driver = hasty): PowerSession {
  const session = driver.open(driver.settings.parse({ community, ...settings }))
  onTestFinished(() => session.close())
  return session
}

describe.each(makerNames)('an outlet of %s', maker => {
  const lead = makers[maker].lead.map(() => '3')
  test.each(['1', '2c'])('is switched over SNMP %s, and the one beside it left alone', async version => {
    const outlet = [...lead, '12'].join('.')
    const beside = [...lead, '13'].join('.')
    const pdu = await pduOf(maker, [outlet, beside])
    const session = open({ address: pdu.address, maker, outlet, version })
    expect(await session.power()).toBe('off')
    await session.cycle()
    expect(await session.power()).toBe('on')
    await session.cycle()
    await session.off({ how: 'hard' })
    expect(await session.power()).toBe('off')
    await session.on()
    expect([pdu.power(outlet), pdu.power(beside)]).toEqual(['on', 'off'])
  })
})

test.each([
  ['raritan', '7', '1.7'],
  ['eaton', '7', '0.7'],
  ['servertech-3', '2.7', '1.2.7'],
] as const)('an outlet %s %s without its unit is %s', async (maker, outlet, index) => {
  const pdu = await pduOf(maker, [index])
  await open({ address: pdu.address, maker, outlet }).on()
  expect(pdu.power(index)).toBe('on')
})

describe('an agent', () => {
  const outlet7 = (pdu: FakePdu, over: Record<string, unknown> = {}) => open({ address: pdu.address, maker: 'apc', outlet: '7', ...over })

  test('that loses the first packets is asked again, with the same request', async () => {
    const pdu = await pduOf('apc', ['7'])
    pdu.script = () => (pdu.received.length < 3 ? [] : undefined)
    await outlet7(pdu).on()
    expect(pdu.power('7')).toBe('on')
    expect(new Set(pdu.received.map(datagram => datagram.toString('hex'))).size).toBe(1)
  })

  test('is told to cycle once only, and its silence leaves the outcome unknown', async () => {
    const pdu = await pduOf('apc', ['7'])
    pdu.objects.set('1.3.6.1.4.1.318.1.1.12.3.5.1.1.4.7', 1)
    pdu.script = request => (request.type === 'set' ? [] : undefined)
    await expect(outlet7(pdu).cycle()).rejects.toMatchObject({ kind: 'silent', outcome: 'unknown' })
    expect(pdu.received.filter(datagram => decodeMessage(datagram).type === 'set')).toHaveLength(1)
  })

  test('with another community is silent, and the hint says why', async () => {
    const pdu = await pduOf('apc', ['7'])
    const error = await outlet7(pdu, { community: 's3same' })
      .power()
      .catch(caught => caught)
    expect(error).toMatchObject({ kind: 'silent', hint: expect.stringContaining('community') })
    expect(error.message + error.hint).not.toContain('s3same')
  })

  test('that is gone is known at once', async () => {
    const pdu = await startPdu('apc', ['7'])
    await pdu[Symbol.asyncDispose]()
    await expect(open({ address: pdu.address, maker: 'apc', outlet: '7' }, snmpPdu).on()).rejects.toMatchObject({
      kind: 'silent',
      outcome: 'none',
      got: expect.stringContaining('port closed'),
    })
  })

  test('is left when the caller gives up', async () => {
    const pdu = await pduOf('apc', ['7'])
    pdu.script = () => []
    const session = open({ address: pdu.address, maker: 'apc', outlet: '7' }, snmpPdu)
    await expect(session.on({ signal: AbortSignal.timeout(50) })).rejects.toMatchObject({ kind: 'cancelled', outcome: 'unknown' })
  })

  test.each(['1', '2c'])('without that outlet says so over SNMP %s', async version => {
    const pdu = await pduOf('apc', ['7'])
    const session = open({ address: pdu.address, maker: 'apc', outlet: '8', version })
    await expect(session.power()).rejects.toMatchObject({ kind: 'refused', got: expect.stringContaining('noSuchName (2)') })
  })

  test.each([
    [3, 'badValue', 'refused'],
    [4, 'readOnly', 'privilege'],
    [5, 'genErr', 'refused'],
    [6, 'noAccess', 'privilege'],
    [13, 'resourceUnavailable', 'busy'],
    [17, 'notWritable', 'privilege'],
    [99, 'unknown', 'refused'],
  ])('answering error %i (%s) is %s', async (errorStatus, name, kind) => {
    const pdu = await pduOf('apc', ['7'])
    pdu.script = request => [encodeMessage({ ...request, type: 'response', errorStatus, errorIndex: 1 })]
    await expect(outlet7(pdu).on()).rejects.toMatchObject({ kind, got: expect.stringContaining(name) })
  })

  test('that answers noise, other requests and other objects is not believed', async () => {
    const pdu = await pduOf('apc', ['7'])
    pdu.script = request => [
      Buffer.from('hello'),
      encodeMessage({
        ...request,
        type: 'response',
        requestId: request.requestId ^ 1,
        bindings: [{ oid: '1.3.6.1', value: { type: 'integer', value: 1 } }],
      }),
      encodeMessage(request),
    ]
    await expect(outlet7(pdu).power()).rejects.toMatchObject({ kind: 'protocol', got: expect.stringContaining('not SNMP') })
    pdu.script = request => [encodeMessage({ ...request, type: 'response', bindings: [] })]
    await expect(outlet7(pdu).power()).rejects.toMatchObject({ kind: 'protocol', got: expect.stringContaining('without') })
  })

  test('whose outlet reads neither on nor off is not believed', async () => {
    const pdu = await pduOf('apc', ['7'])
    pdu.objects.set('1.3.6.1.4.1.318.1.1.12.3.5.1.1.4.7', 4)
    await expect(outlet7(pdu).power()).rejects.toMatchObject({ kind: 'protocol', got: expect.stringContaining('reads 4') })
  })
})

test.each([
  [{ outlet: '1.2' }, 'outlet'],
  [{ outlet: 'A7' }, 'outlet'],
  [{ maker: 'acme' }, 'maker'],
  [{ version: '3' }, 'version'],
  [{ community: '' }, 'community'],
  [{ address: 'udp://pdu' }, 'address'],
])('settings with %o are refused', (wrong, field) => {
  const checked = snmpPdu.settings.safeParse({ address: 'pdu', maker: 'apc', outlet: '7', community, ...wrong })
  expect(checked.error?.issues.map(({ path }) => path[0])).toEqual([field])
})

describe('the codec', () => {
  const int32 = fc.integer({ min: -0x8000_0000, max: 0x7fff_ffff })
  const arc = fc.integer({ min: 0, max: 0xffff_ffff })
  const oid = fc
    .oneof(fc.tuple(fc.constantFrom(0, 1), fc.integer({ min: 0, max: 39 })), fc.tuple(fc.constant(2), arc))
    .chain(([first, second]) => fc.array(arc, { maxLength: 20 }).map(rest => [first, second, ...rest].join('.')))
  const value: fc.Arbitrary<SnmpValue> = fc.oneof(
    int32.map(number => ({ type: 'integer' as const, value: number })),
    fc.constant({ type: 'null' as const }),
    fc.constant({ type: 'absent' as const }),
  )
  const message: fc.Arbitrary<SnmpMessage> = fc.record({
    version: fc.constantFrom('1', '2c'),
    community: fc.uint8Array({ maxLength: 300 }).map(bytes => Buffer.from(bytes)),
    type: fc.constantFrom('get', 'set', 'response'),
    requestId: int32,
    errorStatus: int32,
    errorIndex: int32,
    bindings: fc.array(fc.record({ oid, value }), { maxLength: 5 }),
  })

  test('reads what it writes', () => {
    fc.assert(
      fc.property(message, written => {
        expect(decodeMessage(encodeMessage(written))).toEqual(written)
      }),
    )
  })

  test('refuses every message that is cut short', () => {
    fc.assert(
      fc.property(message, fc.nat(), (written, cut) => {
        const bytes = encodeMessage(written)
        expect(() => decodeMessage(bytes.subarray(0, cut % bytes.length))).toThrow(BerError)
      }),
    )
  })

  test('throws nothing but BerError at damaged and made-up bytes', () => {
    const damaged = fc
      .tuple(message, fc.array(fc.tuple(fc.nat(), fc.integer({ min: 0, max: 255 })), { maxLength: 4 }))
      .map(([written, changes]) => {
        const bytes = encodeMessage(written)
        for (const [at, byte] of changes) bytes[at % bytes.length] = byte
        return bytes
      })
    const madeUp = fc.uint8Array({ maxLength: 60 }).map(bytes => Buffer.from(bytes))
    fc.assert(
      fc.property(fc.oneof(damaged, madeUp), bytes => {
        try {
          decodeMessage(bytes)
        } catch (error) {
          expect(error).toBeInstanceOf(BerError)
        }
      }),
      { numRuns: 2000 },
    )
  })

  test.each([
    [0, '00'],
    [127, '7f'],
    [128, '0080'],
    [-1, 'ff'],
    [-128, '80'],
    [-129, 'ff7f'],
    [0x7fff_ffff, '7fffffff'],
    [-0x8000_0000, '80000000'],
  ])('writes %i in the fewest bytes', (number, bytes) => {
    const written = encodeMessage({
      ...{ version: '1', community: Buffer.alloc(0), type: 'get', requestId: 1, errorStatus: 0, errorIndex: 0 },
      bindings: [{ oid: '1.3', value: { type: 'integer', value: number } }],
    })
    expect(written.toString('hex')).toMatch(new RegExp(`06012b02${(bytes.length / 2).toString(16).padStart(2, '0')}${bytes}$`))
  })

  test('reads counters of more than 31 bits, and lengths in more bytes than needed', () => {
    const bytes = Buffer.from('3029020101040470756231a282001c0201010201000201003082000f300d06052b060102014204ffffffff', 'hex')
    expect(decodeMessage(bytes).bindings).toEqual([{ oid: '1.3.6.1.2.1', value: { type: 'unsigned', value: 0xffff_ffff } }])
  })

  test('refuses to write what is no object identifier or does not fit', () => {
    const base: SnmpMessage = {
      version: '1',
      community: Buffer.alloc(0),
      type: 'get',
      requestId: 1,
      errorStatus: 0,
      errorIndex: 0,
      bindings: [],
    }
    for (const wrong of ['', '1', '3.1', '1.40', '1.3.4294967296', '1..3', 'iso.3']) {
      expect(() => encodeMessage({ ...base, bindings: [{ oid: wrong, value: { type: 'null' } }] }), wrong).toThrow(RangeError)
    }
    expect(() => encodeMessage({ ...base, requestId: 2 ** 31 })).toThrow(RangeError)
  })
})

needs('snmpget')('snmpget and snmpset of Net-SNMP', () => {
  const run = promisify(execFile)
  const state = '1.3.6.1.4.1.318.1.1.12.3.5.1.1.4.7'
  const order = '1.3.6.1.4.1.318.1.1.12.3.3.1.1.4.7'

  test.each(['1', '2c'])('understand our answers, and write over SNMP %s byte for byte what we would', async version => {
    const pdu = await pduOf('apc', ['7'])
    const common = ['-v', version, '-c', community, '-On', '-r', '0', '-t', '5', pdu.address]
    expect((await run('snmpget', [...common, state])).stdout.trim()).toBe(`.${state} = INTEGER: 2`)
    expect((await run('snmpset', [...common, order, 'i', '1'])).stdout.trim()).toBe(`.${order} = INTEGER: 1`)
    expect(pdu.power('7')).toBe('on')
    for (const datagram of pdu.received) expect(encodeMessage(decodeMessage(datagram)).toString('hex')).toBe(datagram.toString('hex'))
  })

  test('understand that there is no such outlet', async () => {
    const pdu = await pduOf('apc', ['7'])
    const common = ['-c', community, '-On', '-r', '0', '-t', '5', pdu.address]
    const { stdout } = await run('snmpget', ['-v', '2c', ...common, `${state}1`])
    expect(stdout).toMatch(/No Such (Instance|Object)/)
    await expect(run('snmpget', ['-v', '1', ...common, `${state}1`])).rejects.toMatchObject({
      stderr: expect.stringContaining('noSuchName'),
    })
  })
})
