/** Sensors, event log and inventory: bytes there and back, and read over a session from BMCs with habits of their own. */
import fc from 'fast-check'
import { describe, expect, onTestFinished, test } from 'vitest'
import { IpmiClient } from '../src/ipmi/client.ts'
import { encodeFru, type Fru, identityOf, parseFru, readFru } from '../src/ipmi/fru.ts'
import { clearSel, encodeSelEntry, parseSelEntry, readSel, type SelEntry, type SelTime } from '../src/ipmi/sel.ts'
import { encodeSensorRecord, parseSensorRecord, readSensors, type Sensor, sensorValue } from '../src/ipmi/sensors.ts'
import { readField, writeField } from '../src/ipmi/type-length.ts'
import { ipmi, ipmiClient } from '../src/ipmi.ts'
import { type Answer, type ReceivedCommand, ScriptedBmc } from './scripted-bmc.ts'

async function clientOf(script: (command: ReceivedCommand) => Answer | undefined): Promise<{ client: IpmiClient; bmc: ScriptedBmc }> {
  const bmc = await ScriptedBmc.start()
  bmc.script = script
  const client = ipmiClient(ipmi.settings.parse({ address: bmc.address, user: 'admin', password: 'secret' }))
  expect(client).toBeInstanceOf(IpmiClient)
  onTestFinished(async () => {
    await client.close()
    await bmc[Symbol.asyncDispose]()
  })
  return { client, bmc }
}

/** Text as boards store it: printable, without the trailing spaces that fill fields. */
const text = fc.string({ maxLength: 20, unit: fc.constantFrom(...'ABCdef012-./ é') }).map(value => value.trim())
const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length }).map(array => Buffer.from(array))

describe('sensors', () => {
  const exponent = fc.integer({ min: -8, max: 7 })
  const factor = fc.integer({ min: -512, max: 511 })
  const sensor: fc.Arbitrary<Sensor> = fc.record(
    {
      recordId: fc.nat(0xfffe),
      name: text.filter(name => name.length <= 16),
      number: fc.nat(255),
      sensorType: fc.nat(255),
      eventType: fc.nat(127),
      unit: fc.nat(92),
      percentage: fc.boolean(),
      conversion: fc.record({
        format: fc.constantFrom('unsigned', 'ones complement', 'twos complement', 'none'),
        m: factor,
        b: factor,
        bExponent: exponent,
        resultExponent: exponent,
        linearisation: fc.nat(11),
      }),
    },
    { requiredKeys: ['recordId', 'name', 'number', 'sensorType', 'eventType', 'unit', 'percentage'] },
  )

  test('are described by records, there and back', () => {
    fc.assert(
      fc.property(sensor, value => {
        expect(parseSensorRecord(encodeSensorRecord(value))).toEqual(value)
      }),
    )
  })

  test.each([
    ['a CPU at 45 °C', { format: 'unsigned', m: 1, b: 0, bExponent: 0, resultExponent: 0, linearisation: 0 }, 45, 45],
    ['an inlet below zero', { format: 'twos complement', m: 1, b: 0, bExponent: 0, resultExponent: 0, linearisation: 0 }, 0xfb, -5],
    ['a value in ones complement', { format: 'ones complement', m: 1, b: 0, bExponent: 0, resultExponent: 0, linearisation: 0 }, 0xfa, -5],
    ['12 V', { format: 'unsigned', m: 63, b: 0, bExponent: 0, resultExponent: -3, linearisation: 0 }, 0xbf, 12.033],
    ['a fan', { format: 'unsigned', m: 75, b: 0, bExponent: 0, resultExponent: 0, linearisation: 0 }, 80, 6000],
    ['an offset', { format: 'unsigned', m: 2, b: -3, bExponent: 1, resultExponent: -1, linearisation: 0 }, 100, 17],
    ['a square', { format: 'unsigned', m: 1, b: 0, bExponent: 0, resultExponent: 0, linearisation: 8 }, 9, 81],
    ['a reciprocal of 0', { format: 'unsigned', m: 1, b: 0, bExponent: 0, resultExponent: 0, linearisation: 7 }, 0, undefined],
    ['a vendor curve', { format: 'unsigned', m: 1, b: 0, bExponent: 0, resultExponent: 0, linearisation: 0x70 }, 9, undefined],
    ['no value at all', { format: 'none', m: 1, b: 0, bExponent: 0, resultExponent: 0, linearisation: 0 }, 9, undefined],
  ] as const)('%s', (_, conversion, raw, value) => {
    expect(sensorValue(conversion, raw)).toBe(value)
  })

  test('are read in pieces the BMC can give, across a lost reservation', async () => {
    const linear = { format: 'unsigned', m: 1, b: 0, bExponent: 0, resultExponent: 0, linearisation: 0 } as const
    const common = { sensorType: 1, eventType: 1, unit: 1, percentage: false }
    const records = [
      encodeSensorRecord({ ...common, recordId: 0, name: 'CPU Temp', number: 1, conversion: linear }),
      encodeSensorRecord({ ...common, recordId: 7, name: 'PSU 1', number: 2, sensorType: 8, eventType: 0x6f }),
      Buffer.from('0900511102' + '0000', 'hex'),
      encodeSensorRecord({ ...common, recordId: 10, name: 'Absent', number: 3, conversion: linear }),
    ]
    const ids = [0, 7, 9, 10]
    let reservation = 0
    let lost = false
    const { client } = await clientOf(({ name, data }) => {
      if (name === 'reserveSdrRepository') return { code: 0, data: Buffer.of(++reservation, 0) }
      if (name === 'getSdr') {
        const index = ids.indexOf(data.readUInt16LE(2))
        const [at, count] = [data.readUInt8(4), data.readUInt8(5)]
        if (count > 12) return { code: 0xca }
        if (index === 1 && at > 5 && !lost) {
          lost = true
          reservation += 1
        }
        if (data.readUInt16LE(0) !== reservation) return { code: 0xc5 }
        const next = Buffer.alloc(2)
        next.writeUInt16LE(ids[index + 1] ?? 0xffff)
        return { code: 0, data: Buffer.concat([next, (records[index] ?? Buffer.alloc(0)).subarray(at, at + count)]) }
      }
      if (name !== 'getSensorReading') return undefined
      return [{ code: 0, data: Buffer.of(45, 0xc0, 0) }, { code: 0, data: Buffer.of(0, 0xc0, 0x09, 0x80) }, { code: 0xcb }][
        data.readUInt8(0) - 1
      ]
    })
    expect(await client.run('read sensors', readSensors)).toEqual([
      { name: 'CPU Temp', sensorType: 1, value: 45, unit: '°C', states: [] },
      { name: 'PSU 1', sensorType: 8, states: [0, 3] },
      { name: 'Absent', sensorType: 1, states: [] },
    ])
  })
})

describe('the event log', () => {
  const time: fc.Arbitrary<SelTime> = fc.oneof(
    fc.nat(0x1fff_ffff).map(secondsAfterPowerUp => ({ secondsAfterPowerUp })),
    fc.integer({ min: 0x2000_0000, max: 0xffff_ffff }).map(seconds => ({ at: new Date(seconds * 1000) })),
  )
  const entry: fc.Arbitrary<SelEntry> = fc.oneof(
    fc.record({
      kind: fc.constant('event' as const),
      id: fc.nat(0xffff),
      time,
      generator: fc.nat(0xffff),
      sensorType: fc.nat(255),
      sensor: fc.nat(255),
      direction: fc.constantFrom('asserted' as const, 'deasserted' as const),
      eventType: fc.nat(127),
      data: bytes(3),
    }),
    fc.record({
      kind: fc.constant('oem' as const),
      id: fc.nat(0xffff),
      type: fc.integer({ min: 0xc0, max: 0xdf }),
      time,
      manufacturer: fc.nat(0xffffff),
      data: bytes(6),
    }),
    fc.record({
      kind: fc.constant('oem untimed' as const),
      id: fc.nat(0xffff),
      type: fc.integer({ min: 0xe0, max: 0xff }),
      data: bytes(13),
    }),
  )

  test('has entries of three kinds, there and back', () => {
    fc.assert(
      fc.property(entry, value => {
        expect(parseSelEntry(encodeSelEntry(value))).toEqual(value)
      }),
    )
  })

  test('is read to its end, and cleared', async () => {
    let log = fc.sample(entry, 5).map((value, index) => ({ ...value, id: 10 + index }))
    let polls = 0
    const { client, bmc } = await clientOf(({ name, data }) => {
      if (name === 'getSelInfo') return { code: 0, data: Buffer.of(0x51, log.length, 0) }
      if (name === 'reserveSel') return { code: 0, data: Buffer.of(3, 0) }
      if (name === 'getSelEntry') {
        const id = data.readUInt16LE(2)
        const index = id === 0 ? 0 : log.findIndex(each => each.id === id)
        const found = log[index]
        if (!found) return { code: 0xcb }
        const next = Buffer.alloc(2)
        next.writeUInt16LE(log[index + 1]?.id ?? 0xffff)
        return { code: 0, data: Buffer.concat([next, encodeSelEntry(found)]) }
      }
      if (name !== 'clearSel') return undefined
      if (data.readUInt8(5) === 0xaa) log = []
      return { code: 0, data: Buffer.of(polls++ < 2 ? 0 : 1) }
    })
    const before = [...log]
    expect(await client.run('read event log', turn => readSel(turn))).toEqual(before)
    expect(await client.run('read event log', turn => readSel(turn, 2))).toEqual(before.slice(0, 2))
    await client.run('clear event log', turn => clearSel(turn, { limitMs: 100, pollMs: 5 }))
    expect(await client.run('read event log', turn => readSel(turn))).toEqual([])
    expect(bmc.commands.filter(({ name }) => name === 'clearSel').map(({ data }) => data.toString('hex'))).toEqual([
      '0300434c52aa',
      '0300434c5200',
      '0300434c5200',
    ])
  })

  test('that is never done clearing is "busy"', async () => {
    const { client } = await clientOf(({ name }) =>
      name === 'reserveSel' ? { code: 0, data: Buffer.of(3, 0) } : name === 'clearSel' ? { code: 0, data: Buffer.of(0) } : undefined,
    )
    await expect(client.run('clear event log', turn => clearSel(turn, { limitMs: 20, pollMs: 5 }))).rejects.toMatchObject({ kind: 'busy' })
  })

  test('of a BMC without one is "unsupported"', async () => {
    const { client } = await clientOf(() => undefined)
    await expect(client.run('read event log', turn => readSel(turn))).rejects.toMatchObject({ kind: 'unsupported' })
  })

  test('whose entries form a ring ends', async () => {
    const { client } = await clientOf(({ name }) => {
      if (name === 'getSelInfo') return { code: 0, data: Buffer.of(0x51, 9, 0) }
      const one = encodeSelEntry({ kind: 'oem untimed', id: 5, type: 0xe0, data: Buffer.alloc(13) })
      return name === 'getSelEntry' ? { code: 0, data: Buffer.concat([Buffer.of(5, 0), one]) } : undefined
    })
    expect(await client.run('read event log', turn => readSel(turn))).toHaveLength(2)
  })
})

describe('the inventory', () => {
  const custom = fc.array(text, { maxLength: 3 })
  const madeAt = fc.integer({ min: 1, max: 0xffffff }).map(minutes => new Date(Date.UTC(1996, 0, 1) + minutes * 60_000))
  const fru: fc.Arbitrary<Fru> = fc.record(
    {
      chassis: fc.record({ type: fc.nat(255), partNumber: text, serial: text, custom }),
      board: fc.record({ madeAt, maker: text, product: text, serial: text, partNumber: text, file: text, custom }),
      product: fc.record({ maker: text, name: text, partNumber: text, version: text, serial: text, assetTag: text, file: text, custom }),
    },
    { requiredKeys: [] },
  )

  test('is kept in areas, there and back', () => {
    fc.assert(
      fc.property(fru, value => {
        expect(parseFru(encodeFru(value))).toEqual(value)
      }),
    )
  })

  test('leaves out what is damaged, and never throws', () => {
    const whole = encodeFru({ chassis: { type: 23, partNumber: 'P', serial: 'S', custom: [] } })
    fc.assert(
      fc.property(fc.nat(whole.length - 1), fc.integer({ min: 1, max: 255 }), (at, change) => {
        const damaged = Buffer.from(whole)
        damaged.writeUInt8(damaged.readUInt8(at) ^ change, at)
        expect(parseFru(damaged)).toEqual({})
      }),
    )
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), random => {
        expect(() => parseFru(Buffer.from(random))).not.toThrow()
      }),
    )
  })

  test.each([{ inWords: 0 }, { inWords: 1 }])('is read in pieces the BMC can give (addressed in words: $inWords)', async ({ inWords }) => {
    const content = encodeFru({
      board: { maker: 'Maker', product: 'Board 1', serial: 'B-1', partNumber: 'P', file: '', custom: [] },
      product: {
        maker: 'Vendor',
        name: 'Server 9',
        partNumber: 'P9',
        version: '1',
        serial: 'S-9',
        assetTag: 'A',
        file: '',
        custom: ['x1'],
      },
    })
    const { client } = await clientOf(({ name, data }) => {
      if (name === 'getFruInventoryInfo') return { code: 0, data: Buffer.of(content.length & 0xff, content.length >> 8, inWords) }
      if (name !== 'readFru') return undefined
      const unit = inWords ? 2 : 1
      const at = data.readUInt16LE(1) * unit
      const count = data.readUInt8(3)
      if (count * unit > 8) return { code: 0xca }
      return { code: 0, data: Buffer.concat([Buffer.of(count), content.subarray(at, at + count * unit)]) }
    })
    const read = await client.run('read inventory', turn => readFru(turn))
    expect(read).toEqual(parseFru(content))
    expect(identityOf(read)).toEqual({ maker: 'Vendor', product: 'Server 9', serial: 'S-9', assetTag: 'A' })
  })
})

describe('fields', () => {
  test.each([
    ['8-bit text', 'c3414243', 'ABC'],
    ['BCD plus', '42123a', '123'],
    ['packed 6-bit ASCII', '8329dca6', 'IPMI'],
    ['filled up with zeros and spaces', 'c54142002020', 'AB'],
  ])('of %s', (_, hex, value) => {
    expect(readField(Buffer.from(hex, 'hex'), 0)?.text).toBe(value)
  })

  test('end at the end mark and at the end of the bytes', () => {
    expect(readField(Buffer.of(0xc1, 1), 0)).toBeUndefined()
    expect(readField(Buffer.of(0xc5, 1), 0)).toBeUndefined()
    expect(readField(Buffer.alloc(0), 0)).toBeUndefined()
    expect(readField(writeField('X'), 0)?.text).toBe('X')
  })
})
