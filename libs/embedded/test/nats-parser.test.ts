import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type FrameSink, NatsParser } from '../src/nats-parser.ts'

const limits = { maxPayloadBytes: 1000, maxLineBytes: 4096 }

/** What a parser makes of these chunks, one line per frame. */
function readingOf(chunks: Buffer[]): string[] {
  const said: string[] = []
  const sink: FrameSink = {
    connect: json => said.push(`connect ${json}`),
    publish: (subject, reply, chunk, start, headerEnd, end) =>
      said.push(`publish ${subject} [${reply}] ${chunk.toString('hex', start, headerEnd)} ${chunk.toString('hex', headerEnd, end)}`),
    subscribe: (subject, group, sid) => said.push(`subscribe ${subject} [${group}] ${sid}`),
    unsubscribe: (sid, max) => said.push(`unsubscribe ${sid} ${max}`),
    ping: () => said.push('ping'),
    pong: () => said.push('pong'),
    refuse: problem => said.push(`refuse ${problem}`),
  }
  const parser = new NatsParser(sink, limits)
  for (const chunk of chunks) parser.push(Buffer.from(chunk)) // a copy each: a view kept beyond the call would show
  return said
}

/** Cuts `bytes` at these places (any order, any range). */
function cut(bytes: Buffer, places: number[]): Buffer[] {
  const sorted = [0, ...places.map(place => place % (bytes.length + 1)), bytes.length].toSorted((a, b) => a - b)
  return sorted.slice(1).map((end, index) => bytes.subarray(sorted[index], end))
}

const token = fc.stringMatching(/^[a-zA-Z0-9_$-]{1,12}$/)
const subject = fc.array(token, { minLength: 1, maxLength: 4 }).map(tokens => tokens.join('.'))
const payload = fc.uint8Array({ maxLength: 200 }).map(bytes => Buffer.from(bytes))
const lineEnd = Buffer.from('\r\n')

/** A frame's bytes and what must be read from them. Payloads are any bytes, line ends and commands included. */
const frame: fc.Arbitrary<{ bytes: Buffer; read: string }> = fc.oneof(
  fc.record({ subject, reply: fc.option(subject, { nil: '' }), payload }).map(({ subject, reply, payload }) => ({
    bytes: Buffer.concat([Buffer.from(`PUB ${subject} ${reply ? `${reply} ` : ''}${payload.length}\r\n`), payload, lineEnd]),
    read: `publish ${subject} [${reply}]  ${payload.toString('hex')}`,
  })),
  fc.record({ subject, reply: fc.option(subject, { nil: '' }), header: payload, payload }).map(({ subject, reply, header, payload }) => ({
    bytes: Buffer.concat([
      Buffer.from(`HPUB ${subject} ${reply ? `${reply} ` : ''}${header.length} ${header.length + payload.length}\r\n`),
      header,
      payload,
      lineEnd,
    ]),
    read: `publish ${subject} [${reply}] ${header.toString('hex')} ${payload.toString('hex')}`,
  })),
  fc.record({ subject, group: fc.option(token, { nil: '' }), sid: token }).map(({ subject, group, sid }) => ({
    bytes: Buffer.from(`SUB ${subject} ${group ? `${group}  ` : '\t'}${sid}\r\n`),
    read: `subscribe ${subject} [${group}] ${sid}`,
  })),
  fc.record({ sid: token, max: fc.nat(1000) }).map(({ sid, max }) => ({
    bytes: Buffer.from(max ? `unsub ${sid} ${max}\r\n` : `UNSUB ${sid}\r\n`),
    read: `unsubscribe ${sid} ${max}`,
  })),
  fc.constantFrom(
    { bytes: Buffer.from('PING\r\n'), read: 'ping' },
    { bytes: Buffer.from('pong\n'), read: 'pong' },
    { bytes: Buffer.from('CONNECT {"verbose":true, "name":"a b"}\r\n'), read: 'connect {"verbose":true, "name":"a b"}' },
  ),
)

describe('the broker’s parser', () => {
  test('reads the same frames wherever the stream is cut', () => {
    fc.assert(
      fc.property(fc.array(frame, { minLength: 1, maxLength: 8 }), fc.array(fc.nat(), { maxLength: 20 }), (frames, places) => {
        const bytes = Buffer.concat(frames.map(each => each.bytes))
        expect(readingOf(cut(bytes, places))).toEqual(frames.map(each => each.read))
      }),
      { numRuns: 500 },
    )
  })

  test('reads the same frames byte by byte, and cut in two at every place', () => {
    fc.assert(
      fc.property(fc.array(frame, { minLength: 1, maxLength: 3 }), frames => {
        const bytes = Buffer.concat(frames.map(each => each.bytes))
        const expected = frames.map(each => each.read)
        expect(readingOf([...bytes].map(byte => Buffer.from([byte])))).toEqual(expected)
        for (let at = 1; at < bytes.length; at++) expect(readingOf([bytes.subarray(0, at), bytes.subarray(at)])).toEqual(expected)
      }),
      { numRuns: 30 },
    )
  })

  test('any bytes at all end in frames or one refusal, never in an exception or a growing buffer', () => {
    const piece = fc.oneof(
      fc.uint8Array({ maxLength: 300 }),
      fc
        .constantFrom('PUB ', 'HPUB a 5 3\r\n', 'SUB\r\n', 'PING\r\n', '\r\n', ' ', 'PUB a -1\r\n', 'PUB a 2\r\nxxx\r\n', 'UNSUB 1 x\r\n')
        .map(text => Buffer.from(text)),
    )
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 10 }), pieces => {
        const said = readingOf(pieces.map(each => Buffer.from(each)))
        expect(said.filter(each => each.startsWith('refuse')).length).toBeLessThanOrEqual(1)
        if (said.some(each => each.startsWith('refuse'))) expect(said.at(-1)).toMatch(/^refuse/)
      }),
      { numRuns: 500 },
    )
  })

  test.each([
    ['PUB a 1001\r\n', 'refuse Maximum Payload Violation'],
    ['PUB a 99999999999999\r\n', 'refuse Bad or Missing Size'],
    ['PUB a\r\n', 'refuse Parser Error'],
    ['HPUB a 5 3\r\n', 'refuse Bad or Missing Size'],
    ['PUB a 2\r\nabcd\r\n', 'refuse Parser Error'],
    ['GET / HTTP/1.1\r\n', 'refuse Unknown Protocol Operation'],
    ['x'.repeat(5000), 'refuse Maximum Control Line Exceeded'],
  ])('refuses %j', (text, expected) => {
    expect(readingOf([Buffer.from(text)])).toEqual([expected])
  })
})
