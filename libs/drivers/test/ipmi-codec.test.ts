/** The IPMI codec against known bytes of two independent implementations, and against everything else random bytes can be. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  authcode,
  type BootFlags,
  bootDevices,
  type ChassisStatus,
  codesMatch,
  commands,
  completionCode,
  deriveKeys,
  type Exchange,
  encodeBootFlags,
  encodeChassisStatus,
  encodeOpenSessionRequest,
  encodeOpenSessionResponse,
  encodePing,
  encodePong,
  encodeRakp1,
  encodeRakp2,
  encodeRakp3,
  encodeRakp4,
  encodeRequest,
  encodeResponse,
  encodeSuiteRecords,
  encodeV15,
  encodeV20,
  paddedKey,
  parseBootFlags,
  parseChassisStatus,
  parseDatagram,
  parseOpenSessionRequest,
  parseOpenSessionResponse,
  parseRakp1,
  parseRakp2,
  parseRakp3,
  parseRakp4,
  parseRequest,
  parseResponse,
  parseSuiteRecords,
  payloadTypes,
  rakp2Code,
  rakp3Code,
  rakp4Check,
  type SuiteId,
  seal,
  setupStatus,
  suiteOfAlgorithms,
  suites,
  suitesOffered,
  unseal,
  type V20Packet,
} from '../src/ipmi/codec.ts'

interface Vector {
  suite: SuiteId
  user: string
  password: string
  kg: string | null
  [name: string]: string | number | null
}

const vectors = JSON.parse(readFileSync(new URL('testdata/ipmi-vectors.json', import.meta.url), 'utf8')) as Vector[]

describe.each(vectors.map(vector => [`suite ${vector.suite}${vector.kg ? ' with K_g' : ''}`, vector] as const))(
  'known answers, %s',
  (_, vector) => {
    const bytes = (name: string) => Buffer.from(String(vector[name]), 'hex')
    const number = (name: string) => Number.parseInt(String(vector[name]), 16)
    const exchange: Exchange = {
      suite: suites[vector.suite],
      consoleId: number('sidm'),
      bmcId: number('sidc'),
      consoleRandom: bytes('rm'),
      bmcRandom: bytes('rc'),
      guid: bytes('guid'),
      role: number('role'),
      user: Buffer.from(vector.user),
    }
    const passwordKey = paddedKey(Buffer.from(vector.password))
    const kgKey = vector.kg ? paddedKey(Buffer.from(vector.kg)) : undefined
    const keys = deriveKeys(exchange, passwordKey, kgKey)

    /** Each packet of the session set-up: its bytes, our encoding, our parser. */
    const setup = [
      {
        name: 'open_request',
        payloadType: payloadTypes.openSessionRequest,
        encoded: encodeOpenSessionRequest({ tag: 1, privilege: 4, consoleId: exchange.consoleId, algorithms: exchange.suite }),
        parse: parseOpenSessionRequest,
        facts: { tag: 1, privilege: 4, consoleId: exchange.consoleId },
      },
      {
        name: 'open_response',
        payloadType: payloadTypes.openSessionResponse,
        encoded: encodeOpenSessionResponse({
          tag: 1,
          status: 0,
          privilege: 4,
          consoleId: exchange.consoleId,
          bmcId: exchange.bmcId,
          algorithms: exchange.suite,
        }),
        parse: parseOpenSessionResponse,
        facts: { tag: 1, status: 0, consoleId: exchange.consoleId, bmcId: exchange.bmcId },
      },
      {
        name: 'rakp1',
        payloadType: payloadTypes.rakp1,
        encoded: encodeRakp1({ tag: 2, ...exchange }),
        parse: parseRakp1,
        facts: { tag: 2, bmcId: exchange.bmcId, consoleRandom: exchange.consoleRandom, role: 0x14, user: exchange.user },
      },
      {
        name: 'rakp2',
        payloadType: payloadTypes.rakp2,
        encoded: encodeRakp2({ tag: 2, status: 0, ...exchange, code: rakp2Code(exchange, passwordKey) }),
        parse: parseRakp2,
        facts: {
          tag: 2,
          status: 0,
          consoleId: exchange.consoleId,
          bmcRandom: exchange.bmcRandom,
          guid: exchange.guid,
          code: bytes('rakp2_code'),
        },
      },
      {
        name: 'rakp3',
        payloadType: payloadTypes.rakp3,
        encoded: encodeRakp3({ tag: 3, status: 0, bmcId: exchange.bmcId, code: rakp3Code(exchange, passwordKey) }),
        parse: parseRakp3,
        facts: { tag: 3, status: 0, bmcId: exchange.bmcId, code: bytes('rakp3_code') },
      },
      {
        name: 'rakp4',
        payloadType: payloadTypes.rakp4,
        encoded: encodeRakp4({ tag: 3, status: 0, consoleId: exchange.consoleId, check: rakp4Check(exchange, keys) }),
        parse: parseRakp4,
        facts: { tag: 3, status: 0, consoleId: exchange.consoleId, check: bytes('rakp4_icv') },
      },
    ]

    test.each(setup)('$name is built as known and read back', ({ name, payloadType, encoded, parse, facts }) => {
      const datagram = encodeV20({ payloadType, payload: encoded })
      expect(datagram.toString('hex')).toBe(vector[name])
      const packet = parseDatagram(bytes(name))
      expect(packet).toMatchObject({ kind: 'v2.0', payloadType, sessionId: 0, sequence: 0, authenticated: false, encrypted: false })
      expect(parse((packet as V20Packet).payload)).toMatchObject(facts)
    })

    test('the keys and codes are the known ones', () => {
      expect(keys.sik).toEqual(bytes('sik'))
      expect(keys.k1).toEqual(bytes('k1'))
      expect(keys.k2).toEqual(bytes('k2'))
      expect(rakp2Code(exchange, passwordKey)).toEqual(bytes('rakp2_code'))
      expect(rakp3Code(exchange, passwordKey)).toEqual(bytes('rakp3_code'))
      expect(rakp4Check(exchange, keys)).toEqual(bytes('rakp4_icv'))
      expect(suiteOfAlgorithms(exchange.suite)).toBe(exchange.suite)
    })

    test('the status request and its answer are sealed and unsealed as known', () => {
      const request = encodeRequest({ ...commands.getChassisStatus, sequence: 1, data: Buffer.alloc(0) })
      expect(request.toString('hex')).toBe(vector.status_plain)
      const sealed = seal({ payloadType: 0, sessionId: exchange.bmcId, sequence: 1, payload: request, iv: bytes('iv') }, keys)
      expect(sealed.toString('hex')).toBe(vector.status_request_seq1)

      const answer = parseDatagram(bytes('status_response_seq1')) as V20Packet
      expect(answer).toMatchObject({ kind: 'v2.0', sessionId: exchange.consoleId, sequence: 1, authenticated: true, encrypted: true })
      const opened = unseal(answer, keys)
      const response = parseResponse((opened as { payload: Buffer }).payload)
      expect(response).toMatchObject({ netFn: 1, command: 1, sequence: 1, completionCode: 0, checksumsHold: true })
      expect(parseChassisStatus(response?.data ?? Buffer.alloc(0))).toBeDefined()
      const again = seal(
        { payloadType: 0, sessionId: exchange.consoleId, sequence: 1, payload: (opened as { payload: Buffer }).payload, iv: bytes('iv') },
        keys,
      )
      expect(again).toEqual(bytes('status_response_seq1'))
    })

    test('a changed bit anywhere in a sealed packet is refused', () => {
      const sealed = bytes('status_request_seq1')
      for (let at = 4; at < sealed.length; at++) {
        for (let bit = 0; bit < 8; bit++) {
          const corrupted = Buffer.from(sealed)
          corrupted.writeUInt8(corrupted.readUInt8(at) ^ (1 << bit), at)
          const packet = parseDatagram(corrupted)
          expect(packet.kind === 'v2.0' ? unseal(packet, keys).kind : 'refused', `byte ${at} bit ${bit}`).toBe('refused')
        }
      }
    })

    test('a sealed packet cut at any length is refused', () => {
      const sealed = bytes('status_request_seq1')
      for (let length = 0; length < sealed.length; length++) {
        const packet = parseDatagram(sealed.subarray(0, length))
        expect(packet.kind === 'v2.0' ? unseal(packet, keys).kind : packet.kind, `${length} bytes`).toBe('refused')
      }
    })

    test('four pad bytes where none are needed, as OpenBMC writes them, are taken', () => {
      const sealed = bytes('status_request_seq1')
      const trailerAt = sealed.length - exchange.suite.authcodeBytes - 4
      const covered = Buffer.concat([sealed.subarray(4, trailerAt), Buffer.from('ffffffffffff0607', 'hex')])
      const resigned = Buffer.concat([sealed.subarray(0, 4), covered, authcode(covered, keys)])
      expect(unseal(parseDatagram(resigned) as V20Packet, keys)).toEqual({ kind: 'payload', payload: bytes('status_plain') })
    })
  },
)

describe('key handling', () => {
  test('a K_g of zeros counts as none', () => {
    const exchange = someExchange(3)
    const key = paddedKey(Buffer.from('secret'))
    expect(deriveKeys(exchange, key, Buffer.alloc(20)).sik).toEqual(deriveKeys(exchange, key).sik)
  })

  test('a password of 21 bytes is an error that names the limit', () => {
    expect(() => paddedKey(Buffer.alloc(21, 1))).toThrow('at most 20 bytes, got 21')
  })

  test('codes of different length differ', () => {
    expect(codesMatch(Buffer.alloc(12), Buffer.alloc(16))).toBe(false)
    expect(codesMatch(Buffer.alloc(12), Buffer.alloc(12))).toBe(true)
  })
})

describe('round trips', () => {
  test.each([3, 17] as const)('whatever is sealed with suite %i is unsealed the same', id => {
    const keys = deriveKeys(someExchange(id), paddedKey(Buffer.from('pw')))
    fc.assert(
      fc.property(bytesOf(0, 300), bytesOf(16, 16), u32, u32, (payload, iv, sessionId, sequence) => {
        const packet = parseDatagram(seal({ payloadType: payloadTypes.sol, sessionId, sequence, payload, iv }, keys))
        expect(packet).toMatchObject({ kind: 'v2.0', payloadType: payloadTypes.sol, sessionId, sequence })
        expect(unseal(packet as V20Packet, keys)).toEqual({ kind: 'payload', payload })
      }),
    )
  })

  test('plain packets, also of the lengths that carry the legacy pad', () => {
    fc.assert(
      fc.property(bytesOf(0, 255), payload => {
        expect(parseDatagram(encodeV15(payload))).toEqual({ kind: 'v1.5', sequence: 0, sessionId: 0, payload })
        expect(parseDatagram(encodeV20({ payloadType: payloadTypes.rakp1, payload }))).toMatchObject({
          kind: 'v2.0',
          payloadType: payloadTypes.rakp1,
          authenticated: false,
          encrypted: false,
          payload,
        })
      }),
    )
    expect(encodeV15(Buffer.alloc(14)).length).toBe(29)
  })

  test('messages keep every field and both checksums', () => {
    fc.assert(
      fc.property(fc.nat(31), byte, fc.nat(63), byte, bytesOf(0, 100), (half, command, sequence, code, data) => {
        const request = { netFn: half * 2, command, sequence, data }
        expect(parseRequest(encodeRequest(request))).toEqual({ ...request, checksumsHold: true })
        const response = { netFn: half * 2 + 1, command, sequence, completionCode: code, data }
        expect(parseResponse(encodeResponse(response))).toEqual({ ...response, checksumsHold: true })
        expect(parseResponse(encodeRequest(request))).toBeUndefined()
        expect(parseRequest(encodeResponse(response))).toBeUndefined()
      }),
    )
  })

  test('a wrong checksum is told, not refused', () => {
    const message = encodeRequest({ ...commands.getDeviceId, sequence: 5, data: Buffer.of(1, 2, 3) })
    for (const at of [2, message.length - 1]) {
      const wrong = Buffer.from(message)
      wrong.writeUInt8((wrong.readUInt8(at) + 1) & 0xff, at)
      expect(parseRequest(wrong)).toMatchObject({ command: 1, checksumsHold: false })
    }
  })

  test('session set-up payloads', () => {
    const algorithms = fc.record({ authentication: fc.nat(63), integrity: fc.nat(63), confidentiality: fc.nat(63) })
    fc.assert(
      fc.property(
        byte,
        u32,
        u32,
        algorithms,
        bytesOf(16, 16),
        bytesOf(0, 16),
        bytesOf(0, 32),
        byte,
        (tag, consoleId, bmcId, offered, random, user, code, privilege) => {
          const openRequest = { tag, privilege, consoleId, algorithms: offered }
          expect(parseOpenSessionRequest(encodeOpenSessionRequest(openRequest))).toEqual(openRequest)
          const openResponse = { tag, status: 0, privilege, consoleId, bmcId, algorithms: offered } as const
          expect(parseOpenSessionResponse(encodeOpenSessionResponse(openResponse))).toEqual(openResponse)
          const rakp1 = { tag, bmcId, consoleRandom: random, role: privilege, user }
          expect(parseRakp1(encodeRakp1(rakp1))).toEqual(rakp1)
          const rakp2 = { tag, status: 0, consoleId, bmcRandom: random, guid: random, code } as const
          expect(parseRakp2(encodeRakp2(rakp2))).toEqual(rakp2)
          const rakp3 = { tag, status: privilege, bmcId, code }
          expect(parseRakp3(encodeRakp3(rakp3))).toEqual(rakp3)
          const rakp4 = { tag, status: 0, consoleId, check: code } as const
          expect(parseRakp4(encodeRakp4(rakp4))).toEqual(rakp4)
        },
      ),
    )
  })

  test('refusals of the session set-up, whole or cut to two bytes', () => {
    fc.assert(
      fc.property(byte, fc.integer({ min: 1, max: 255 }), u32, (tag, status, consoleId) => {
        const refusal = { tag, status, consoleId }
        for (const [encode, parse] of [
          [encodeOpenSessionResponse, parseOpenSessionResponse],
          [encodeRakp2, parseRakp2],
          [encodeRakp4, parseRakp4],
        ] as const) {
          expect(encode(refusal).length).toBe(8)
          expect(parse(encode(refusal))).toEqual({ tag, status })
          expect(parse(encode(refusal).subarray(0, 2))).toEqual({ tag, status })
        }
      }),
    )
  })

  test('presence ping and pong', () => {
    expect(encodePing(7).toString('hex')).toBe('0600ff06000011be80070000')
    expect(parseDatagram(encodePing(7))).toEqual({ kind: 'ping', tag: 7 })
    expect(parseDatagram(encodePong(7))).toEqual({ kind: 'pong', tag: 7, speaksIpmi: true })
  })

  test('suite records', () => {
    const list = fc.array(fc.nat(63), { maxLength: 3 })
    const record = fc.record({ id: byte, authentication: list, integrity: list, confidentiality: list })
    const oem = fc.record({ id: byte, enterprise: fc.nat(0xffffff), authentication: list, integrity: list, confidentiality: list })
    fc.assert(
      fc.property(fc.array(fc.oneof(record, oem)), records => {
        expect(parseSuiteRecords(encodeSuiteRecords(records))).toEqual(records)
      }),
    )
  })

  test('chassis status and boot flags', () => {
    const status: fc.Arbitrary<ChassisStatus> = fc.record(
      {
        power: fc.constantFrom('on', 'off'),
        overload: fc.boolean(),
        interlock: fc.boolean(),
        fault: fc.boolean(),
        controlFault: fc.boolean(),
        restorePolicy: fc.constantFrom('off', 'previous', 'on', 'unknown'),
        identify: fc.constantFrom('off', 'timed', 'on'),
      },
      { requiredKeys: ['power', 'overload', 'interlock', 'fault', 'controlFault', 'restorePolicy'] },
    )
    const flags: fc.Arbitrary<BootFlags> = fc.record({
      valid: fc.boolean(),
      lasting: fc.constantFrom('once', 'persistent'),
      firmware: fc.constantFrom('legacy', 'uefi'),
      device: fc.constantFrom(...(Object.keys(bootDevices) as (keyof typeof bootDevices)[])),
    })
    fc.assert(
      fc.property(status, value => {
        expect(parseChassisStatus(encodeChassisStatus(value))).toEqual(value)
      }),
    )
    fc.assert(
      fc.property(flags, value => {
        expect(parseBootFlags(encodeBootFlags(value))).toEqual(value)
      }),
    )
    expect(encodeBootFlags({ valid: true, lasting: 'once', firmware: 'uefi', device: 'network' }).toString('hex')).toBe('a004000000')
    expect(encodeBootFlags({ valid: true, lasting: 'once', firmware: 'legacy', device: 'network' }).toString('hex')).toBe('8004000000')
    expect(encodeBootFlags({ valid: true, lasting: 'persistent', firmware: 'uefi', device: 'network' }).toString('hex')).toBe('e004000000')
    expect(() => encodeBootFlags({ valid: true, lasting: 'once', firmware: 'uefi', device: 'unknown' })).toThrow(RangeError)
  })
})

describe('bytes from anybody', () => {
  const keys = deriveKeys(someExchange(17), paddedKey(Buffer.from('pw')))

  test('random datagrams never throw, whatever they begin with', () => {
    const heads = ['', '0600ff07', '0600ff0706', '0600ff0706c0', '0600ff0700', '0600ff06', '0600ff06000011be'].map(head =>
      Buffer.from(head, 'hex'),
    )
    fc.assert(
      fc.property(fc.constantFrom(...heads), bytesOf(0, 200), (head, rest) => {
        const packet = parseDatagram(Buffer.concat([head, rest]))
        if (packet.kind === 'v2.0') expect(unseal(packet, keys).kind).toBe('refused')
      }),
      { numRuns: 3000 },
    )
  })

  test('random payloads never throw', () => {
    const parsers = [
      parseOpenSessionRequest,
      parseOpenSessionResponse,
      parseRakp1,
      parseRakp2,
      parseRakp3,
      parseRakp4,
      parseRequest,
      parseResponse,
      parseChassisStatus,
      parseBootFlags,
      parseSuiteRecords,
    ]
    fc.assert(
      fc.property(bytesOf(0, 80), payload => {
        for (const parse of parsers) expect(() => parse(payload)).not.toThrow()
      }),
      { numRuns: 3000 },
    )
  })

  test('well signed rubbish is refused or opened, never thrown', () => {
    fc.assert(
      fc.property(bytesOf(0, 80), bytesOf(0, 8), (encrypted, trailer) => {
        const header = encodeV20({ payloadType: 0xc0, payload: encrypted, sessionId: 1, sequence: 1 })
        const unsigned = Buffer.concat([header, trailer])
        const datagram = Buffer.concat([unsigned, authcode(unsigned.subarray(4), keys)])
        expect(['payload', 'refused']).toContain(unseal(parseDatagram(datagram) as V20Packet, keys).kind)
      }),
      { numRuns: 2000 },
    )
  })

  test.each([
    ['0600ff87', 'RMCP acknowledgement'],
    ['0500ff07', 'not RMCP'],
    ['0600ff08', 'unknown class'],
    ['0600ff0702', 'authenticated v1.5'],
    ['0600ff0709', 'unknown framing'],
    ['0600ff0706020000000000000000000000000000', 'OEM payload'],
    ['0600ff0706000000000000000000ffff', 'truncated'],
    ['0600ff06000011bf80070000', 'not a presence message'],
  ])('%s is refused: %s', (hex, reason) => {
    expect(parseDatagram(Buffer.from(hex, 'hex'))).toEqual({ kind: 'refused', reason })
  })

  test('an unprotected packet is refused inside a session', () => {
    const payload = encodeResponse({ netFn: 1, command: 1, sequence: 1, completionCode: 0, data: Buffer.of(1, 0, 0) })
    const plain = parseDatagram(encodeV20({ payloadType: 0, payload, sessionId: 1, sequence: 1 })) as V20Packet
    expect(unseal(plain, keys)).toEqual({ kind: 'refused', reason: 'not authenticated' })
    const signedOnly = parseDatagram(encodeV20({ payloadType: 0x40, payload, sessionId: 1, sequence: 1 })) as V20Packet
    expect(unseal(signedOnly, keys)).toEqual({ kind: 'refused', reason: 'not encrypted' })
  })
})

describe('tables', () => {
  test('suites are judged by their algorithms, not by their id', () => {
    const records = [
      { id: 17, authentication: [1], integrity: [1], confidentiality: [1] },
      { id: 3, authentication: [3], integrity: [4], confidentiality: [0] },
    ]
    expect(suitesOffered(records)).toEqual([3])
    expect(suitesOffered([...records, { id: 99, authentication: [3], integrity: [4], confidentiality: [1, 2] }])).toEqual([17, 3])
    expect(suiteOfAlgorithms({ authentication: 1, integrity: 1, confidentiality: 0 })).toBeUndefined()
  })

  test('unknown codes and statuses have an answer too', () => {
    expect(completionCode(0xd4)).toMatchObject({ remedy: 'privilege' })
    expect(completionCode(0x81)).toEqual({ meaning: 'code of this command alone', remedy: 'never' })
    expect(completionCode(0x02)).toEqual({ meaning: 'OEM code', remedy: 'never' })
    expect(setupStatus(0x0f)).toMatchObject({ cause: 'password' })
    expect(setupStatus(0x77)).toMatchObject({ cause: 'protocol' })
  })
})

const byte = fc.nat(255)
const u32 = fc.nat(0xffffffff)

function bytesOf(minLength: number, maxLength: number): fc.Arbitrary<Buffer> {
  return fc.uint8Array({ minLength, maxLength }).map(bytes => Buffer.from(bytes))
}

function someExchange(id: SuiteId): Exchange {
  return {
    suite: suites[id],
    consoleId: 1,
    bmcId: 2,
    consoleRandom: Buffer.alloc(16, 3),
    bmcRandom: Buffer.alloc(16, 4),
    guid: Buffer.alloc(16, 5),
    role: 0x14,
    user: Buffer.from('admin'),
  }
}
