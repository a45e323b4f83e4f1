/** Sensors: their descriptions (SDRs) and readings (IPMI v2.0 chapters 33, 35, 36 and 43; facts 4.7). */
import { completed, type Turn, tooShort } from './client.ts'
import { commands } from './codec.ts'
import { readField, writeField } from './type-length.ts'

/** How a raw byte becomes a value: (m × raw + b × 10^bExponent) × 10^resultExponent, then the linearisation. */
export interface Conversion {
  /** How the raw byte is to be read; `none` for sensors without a value. */
  format: 'unsigned' | 'ones complement' | 'twos complement' | 'none'
  /** 10 bits, signed. */
  m: number
  /** 10 bits, signed. */
  b: number
  /** 4 bits, signed. */
  bExponent: number
  /** 4 bits, signed. */
  resultExponent: number
  /** 0 to 11; above, the factors differ by reading and the value is not computed. */
  linearisation: number
}

/** A sensor as its full (type 1) record describes it; compact records (type 2) have no conversion. */
export interface Sensor {
  recordId: number
  name: string
  number: number
  /** Temperature 1, voltage 2, current 3, fan 4 and so on (table 42-3). */
  sensorType: number
  /** 1 for thresholds; others are states. */
  eventType: number
  /** Number of the base unit (table 43-15) and whether the value is a percentage. */
  unit: number
  percentage: boolean
  conversion?: Conversion
}

/** A reading: a value with its unit, or for sensors of states the bits that are set; nothing while a sensor is not scanned. */
export interface SensorReading {
  name: string
  sensorType: number
  value?: number
  unit?: string
  /** Numbers of the set states or crossed thresholds (35.14). */
  states: number[]
}

/** Names of the units that are met in practice (IPMI v2.0 table 43-15). */
export const units: Readonly<Record<number, string>> = {
  1: '°C',
  2: '°F',
  3: 'K',
  4: 'V',
  5: 'A',
  6: 'W',
  7: 'J',
  17: 'CFM',
  18: 'rpm',
  19: 'Hz',
  20: 'µs',
  21: 'ms',
  22: 's',
}

/** All sensors of the BMC itself, with their readings. Sensors that are not there or not scanned have neither value nor states. */
export async function readSensors(turn: Turn): Promise<SensorReading[]> {
  const readings: SensorReading[] = []
  for (const sensor of await readSensorList(turn)) {
    const reply = await turn.command(commands.getSensorReading, { data: Buffer.of(sensor.number) })
    readings.push(
      reply.completionCode === 0 ? readingOf(sensor, reply.data) : { name: sensor.name, sensorType: sensor.sensorType, states: [] },
    )
  }
  return readings
}

/** The full and compact sensor records of the repository; sensors of other controllers and LUNs are left out. */
export async function readSensorList(turn: Turn): Promise<Sensor[]> {
  const sensors: Sensor[] = []
  // Pieces that every BMC can give; smaller after 0xCA.
  const reading = { reservation: await reserve(turn), pieceBytes: 16 }
  for (let id = 0, read = 0; id !== lastRecord && read < recordsMax; read++) {
    const { next, record } = await readRecord(turn, id, reading)
    const sensor = parseSensorRecord(record)
    if (sensor) sensors.push(sensor)
    if (next === id) break
    id = next
  }
  return sensors
}

/** Reads a full or compact sensor record of the BMC itself (owner 0x20, LUN 0); undefined for all else. */
export function parseSensorRecord(record: Buffer): Sensor | undefined {
  if (record.length < 32) return undefined
  const type = record.readUInt8(3)
  const nameAt = type === fullRecord ? 47 : type === compactRecord ? 31 : undefined
  if (nameAt === undefined || record.length <= nameAt) return undefined
  if (record.readUInt8(5) !== bmcOwner || (record.readUInt8(6) & 0x03) !== 0) return undefined
  const units1 = record.readUInt8(20)
  return {
    recordId: record.readUInt16LE(0),
    name: readField(record, nameAt)?.text ?? '',
    number: record.readUInt8(7),
    sensorType: record.readUInt8(12),
    eventType: record.readUInt8(13),
    unit: record.readUInt8(21),
    percentage: (units1 & 1) !== 0,
    ...(type === fullRecord && {
      conversion: {
        format: formats[units1 >> 6] ?? 'none',
        linearisation: record.readUInt8(23) & 0x7f,
        m: signed(record.readUInt8(24) | ((record.readUInt8(25) & 0xc0) << 2), 10),
        b: signed(record.readUInt8(26) | ((record.readUInt8(27) & 0xc0) << 2), 10),
        resultExponent: signed(record.readUInt8(29) >> 4, 4),
        bExponent: signed(record.readUInt8(29) & 0x0f, 4),
      },
    }),
  }
}

/** The record of a sensor, as a BMC keeps it: full with a conversion, else compact. Thresholds and masks are left at 0. */
export function encodeSensorRecord(sensor: Sensor): Buffer {
  const head = Buffer.alloc(sensor.conversion ? 47 : 31)
  const name = writeField(sensor.name)
  head.writeUInt16LE(sensor.recordId, 0)
  head.writeUInt8(0x51, 2)
  head.writeUInt8(sensor.conversion ? fullRecord : compactRecord, 3)
  head.writeUInt8(head.length + name.length - 5, 4)
  head.writeUInt8(bmcOwner, 5)
  head.writeUInt8(sensor.number, 7)
  head.writeUInt8(sensor.sensorType, 12)
  head.writeUInt8(sensor.eventType, 13)
  head.writeUInt8((formats.indexOf(sensor.conversion?.format ?? 'none') << 6) | (sensor.percentage ? 1 : 0), 20)
  head.writeUInt8(sensor.unit, 21)
  if (sensor.conversion) {
    const { m, b, bExponent, resultExponent, linearisation } = sensor.conversion
    head.writeUInt8(linearisation, 23)
    head.writeUInt8(m & 0xff, 24)
    head.writeUInt8((m >> 2) & 0xc0, 25)
    head.writeUInt8(b & 0xff, 26)
    head.writeUInt8((b >> 2) & 0xc0, 27)
    head.writeUInt8(((resultExponent & 0x0f) << 4) | (bExponent & 0x0f), 29)
  }
  return Buffer.concat([head, name])
}

/** The value of a raw byte, rounded to 6 digits; undefined where the record gives none. */
export function sensorValue(conversion: Conversion, raw: number): number | undefined {
  const x = rawNumber(conversion.format, raw)
  const linearise = linearisations[conversion.linearisation]
  if (x === undefined || !linearise) return undefined
  const value = linearise((conversion.m * x + conversion.b * 10 ** conversion.bExponent) * 10 ** conversion.resultExponent)
  return Number.isFinite(value) ? Number(value.toPrecision(6)) : undefined
}

const fullRecord = 0x01
const compactRecord = 0x02
const bmcOwner = 0x20
const lastRecord = 0xffff
/** Far beyond any board; a BMC whose records form a ring must not hold us. */
const recordsMax = 2048
const formats = ['unsigned', 'ones complement', 'twos complement', 'none'] as const
const reservationLost = 0xc5

/** Linearisation functions by number (IPMI v2.0 table 43-1, byte 24). */
const linearisations: readonly ((x: number) => number)[] = [
  x => x,
  Math.log,
  Math.log10,
  Math.log2,
  Math.exp,
  x => 10 ** x,
  x => 2 ** x,
  x => 1 / x,
  x => x ** 2,
  x => x ** 3,
  Math.sqrt,
  Math.cbrt,
]

function readingOf(sensor: Sensor, data: Buffer): SensorReading {
  const base: SensorReading = { name: sensor.name, sensorType: sensor.sensorType, states: [] }
  if (data.length < 2) return base
  const flags = data.readUInt8(1)
  const unavailable = (flags & 0x20) !== 0 || (flags & 0x40) === 0
  if (unavailable) return base
  const bits = (data.length > 2 ? data.readUInt8(2) : 0) | (data.length > 3 ? (data.readUInt8(3) & 0x7f) << 8 : 0)
  base.states = Array.from({ length: 15 }, (_, state) => state).filter(state => bits & (1 << state))
  const value = sensor.conversion && sensorValue(sensor.conversion, data.readUInt8(0))
  if (value === undefined) return base
  const unit = sensor.percentage ? '%' : units[sensor.unit]
  return { ...base, value, ...(unit && { unit }) }
}

function rawNumber(format: Conversion['format'], raw: number): number | undefined {
  if (format === 'none') return undefined
  if (format === 'unsigned' || raw < 0x80) return raw
  return format === 'twos complement' ? raw - 0x100 : raw - 0xff
}

function signed(value: number, bits: number): number {
  return value >= 1 << (bits - 1) ? value - (1 << bits) : value
}

async function reserve(turn: Turn): Promise<number> {
  const reply = await turn.command(commands.reserveSdrRepository)
  // Optional: without it, reservation 0 reads a record in one piece, and in several where the BMC does not check.
  return reply.completionCode === 0 && reply.data.length >= 2 ? reply.data.readUInt16LE(0) : 0
}

/** One record in pieces: its 5-byte header first, which tells the length. */
async function readRecord(
  turn: Turn,
  id: number,
  reading: { reservation: number; pieceBytes: number },
): Promise<{ next: number; record: Buffer }> {
  const record: Buffer[] = []
  let next = lastRecord
  let have = 0
  let wanted = 5
  // A lost reservation starts the record anew; more than a few times, somebody else is writing all the time.
  for (let restarts = 0; have < wanted; ) {
    const count = have === 0 ? 5 : Math.min(reading.pieceBytes, wanted - have)
    const data = Buffer.alloc(6)
    data.writeUInt16LE(reading.reservation, 0)
    data.writeUInt16LE(id, 2)
    data.writeUInt8(have, 4)
    data.writeUInt8(count, 5)
    const reply = await turn.command(commands.getSdr, { data })
    if (reply.completionCode === reservationLost && restarts < 5) {
      restarts += 1
      reading.reservation = await reserve(turn)
      record.length = 0
      have = 0
      wanted = 5
      continue
    }
    if (isTooMany(reply.completionCode) && reading.pieceBytes > 4 && have > 0) {
      reading.pieceBytes = Math.ceil(reading.pieceBytes / 2)
      continue
    }
    const answer = completed(reply, 'Get SDR', 'The sensor descriptions cannot be read just now.')
    if (answer.length <= 2) throw tooShort('Get SDR', answer)
    next = answer.readUInt16LE(0)
    const piece = answer.subarray(2, 2 + count)
    record.push(Buffer.from(piece))
    have += piece.length
    if (wanted === 5 && have >= 5) wanted = 5 + Buffer.concat(record).readUInt8(4)
  }
  return { next, record: Buffer.concat(record) }
}

/** Codes by which BMCs say that a piece is too large for them. */
function isTooMany(code: number): boolean {
  return code === 0xca || code === 0xc8 || code === 0xff
}
