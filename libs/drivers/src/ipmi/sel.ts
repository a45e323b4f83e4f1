/** The system event log: what the BMC noted, oldest first (IPMI v2.0 chapters 31 and 32; facts 4.7). */

import { Failure } from '../failure.ts'
import { completed, type Turn, tooShort } from './client.ts'
import { commands } from './codec.ts'

/** When an entry was made: a time, or seconds since the BMC was powered up where it had no clock. */
export type SelTime = { at: Date } | { secondsAfterPowerUp: number }

export type SelEntry =
  | {
      kind: 'event'
      id: number
      time: SelTime
      /** Who generated it: the I2C address or software id, and LUN and channel above. */
      generator: number
      sensorType: number
      sensor: number
      direction: 'asserted' | 'deasserted'
      /** Threshold (1), generic (2 to 12), sensor-specific (0x6F) or OEM. */
      eventType: number
      /** 3 bytes. */
      data: Buffer
    }
  | { kind: 'oem'; id: number; type: number; time: SelTime; manufacturer: number; data: Buffer }
  | { kind: 'oem untimed'; id: number; type: number; data: Buffer }

/**
 * Reads the log, at most `limit` entries. A BMC without one throws Failure `unsupported`. Entries of unknown kinds are left out; a log
 * that is cleared meanwhile ends where it is.
 */
export async function readSel(turn: Turn, limit = 4096): Promise<SelEntry[]> {
  const info = completed(await turn.command(commands.getSelInfo), 'Get SEL Info', 'This BMC keeps no event log.')
  if (info.length < 3) throw tooShort('Get SEL Info', info)
  const entries: SelEntry[] = []
  if (info.readUInt16LE(1) === 0) return entries
  for (let id = firstEntry, read = 0; id !== noEntry && read < limit; read++) {
    const data = Buffer.alloc(6)
    data.writeUInt16LE(id, 2)
    data.writeUInt8(wholeEntry, 5)
    // Reading whole entries needs no reservation (31.5).
    const reply = await turn.command(commands.getSelEntry, { data })
    if (reply.completionCode === notPresent) break
    const answer = completed(reply, 'Get SEL Entry', 'The event log cannot be read just now.')
    if (answer.length < 18) throw tooShort('Get SEL Entry', answer)
    const entry = parseSelEntry(answer.subarray(2))
    if (entry) entries.push(entry)
    const next = answer.readUInt16LE(0)
    // A BMC that names the same entry as the next would hold us for ever.
    if (next === id) break
    id = next
  }
  return entries
}

/** Clears the log and waits until that is done, at most for `limitMs`. */
export async function clearSel(turn: Turn, options: { limitMs: number; pollMs: number } = { limitMs: 30_000, pollMs: 500 }): Promise<void> {
  const hint = 'The BMC refuses to clear its event log.'
  const reservation = completed(await turn.command(commands.reserveSel, { privilege: 'OPERATOR' }), 'Reserve SEL', hint)
  if (reservation.length < 2) throw tooShort('Reserve SEL', reservation)
  for (let waitedMs = 0, act = startErasing; waitedMs <= options.limitMs; waitedMs += options.pollMs) {
    const data = Buffer.concat([reservation.subarray(0, 2), Buffer.from('CLR'), Buffer.of(act)])
    const reply = await turn.command(commands.clearSel, { data, privilege: 'OPERATOR' })
    const progress = completed(reply, 'Clear SEL', hint)
    if (progress.length < 1) throw tooShort('Clear SEL', progress)
    if ((progress.readUInt8(0) & 0x0f) === erased) return
    act = askProgress
    await turn.pause(options.pollMs)
  }
  throw new Failure({
    kind: 'busy',
    got: `the event log was not cleared within ${options.limitMs} ms`,
    hint: 'The BMC is still at it: look again in a minute.',
    outcome: 'unknown',
  })
}

/** Reads 16 bytes of an entry; undefined if they are fewer or of an unknown type. */
export function parseSelEntry(bytes: Buffer): SelEntry | undefined {
  if (bytes.length < 16) return undefined
  const id = bytes.readUInt16LE(0)
  const type = bytes.readUInt8(2)
  if (type === 0x02) {
    const last = bytes.readUInt8(12)
    return {
      kind: 'event',
      id,
      time: timeOf(bytes.readUInt32LE(3)),
      generator: bytes.readUInt16LE(7),
      sensorType: bytes.readUInt8(10),
      sensor: bytes.readUInt8(11),
      direction: last & 0x80 ? 'deasserted' : 'asserted',
      eventType: last & 0x7f,
      data: Buffer.from(bytes.subarray(13, 16)),
    }
  }
  if (type >= 0xe0) return { kind: 'oem untimed', id, type, data: Buffer.from(bytes.subarray(3, 16)) }
  if (type < 0xc0) return undefined
  const manufacturer = bytes.readUIntLE(7, 3)
  return { kind: 'oem', id, type, time: timeOf(bytes.readUInt32LE(3)), manufacturer, data: Buffer.from(bytes.subarray(10, 16)) }
}

/** The 16 bytes of an entry, as a BMC keeps it. */
export function encodeSelEntry(entry: SelEntry): Buffer {
  const bytes = Buffer.alloc(16)
  bytes.writeUInt16LE(entry.id, 0)
  bytes.writeUInt8(entry.kind === 'event' ? 0x02 : entry.type, 2)
  if (entry.kind === 'oem untimed') {
    entry.data.copy(bytes, 3, 0, 13)
    return bytes
  }
  bytes.writeUInt32LE('at' in entry.time ? Math.floor(entry.time.at.getTime() / 1000) : entry.time.secondsAfterPowerUp, 3)
  if (entry.kind === 'oem') {
    bytes.writeUIntLE(entry.manufacturer, 7, 3)
    entry.data.copy(bytes, 10, 0, 6)
    return bytes
  }
  bytes.writeUInt16LE(entry.generator, 7)
  bytes.writeUInt8(eventRevision, 9)
  bytes.writeUInt8(entry.sensorType, 10)
  bytes.writeUInt8(entry.sensor, 11)
  bytes.writeUInt8((entry.direction === 'deasserted' ? 0x80 : 0) | entry.eventType, 12)
  entry.data.copy(bytes, 13, 0, 3)
  return bytes
}

const firstEntry = 0x0000
const noEntry = 0xffff
const wholeEntry = 0xff
const notPresent = 0xcb
const startErasing = 0xaa
const askProgress = 0x00
const erased = 1
const eventRevision = 4

/** Times below this count seconds since power-up (IPMI v2.0 37.1). */
const firstRealTime = 0x2000_0000

function timeOf(seconds: number): SelTime {
  return seconds < firstRealTime ? { secondsAfterPowerUp: seconds } : { at: new Date(seconds * 1000) }
}
