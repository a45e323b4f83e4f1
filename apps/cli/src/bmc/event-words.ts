// The numbers of a BMC's event log in words: sensor types (IPMI v2.0 table 42-3), thresholds (42-2) and the sensor-specific events that
// people meet. What has no words keeps its numbers.
import type { SelEntry } from '@muster/drivers/ipmi/sel'

/** An entry of the log, as people and scripts get it. */
export interface LogEntry {
  readonly id: number
  /** When; null where the BMC had no clock, or the entry has no time. */
  readonly at: string | null
  /** Seconds since power-up, where the BMC had no clock. */
  readonly secondsAfterPowerUp: number | null
  /** What kind of sensor, and its number; null for entries of the maker's own. */
  readonly sensorType: string | null
  readonly sensor: number | null
  readonly event: string
  readonly direction: 'asserted' | 'deasserted' | null
  /** The entry's data as hex. */
  readonly data: string
}

/** Reads an entry of the log. */
export function logEntryOf(entry: SelEntry): LogEntry {
  const time = 'time' in entry ? entry.time : undefined
  const common = {
    id: entry.id,
    at: time && 'at' in time ? time.at.toISOString() : null,
    secondsAfterPowerUp: time && 'secondsAfterPowerUp' in time ? time.secondsAfterPowerUp : null,
    data: entry.data.toString('hex'),
  }
  if (entry.kind !== 'event') {
    const maker = entry.kind === 'oem' ? ` of maker ${entry.manufacturer}` : ''
    return { ...common, sensorType: null, sensor: null, direction: null, event: `entry type ${hex(entry.type)}${maker}` }
  }
  const { sensorType, sensor, direction } = entry
  return { ...common, sensorType: sensorTypes[sensorType] ?? `type ${hex(sensorType)}`, sensor, direction, event: eventOf(entry) }
}

const thresholdEvent = 0x01
const sensorSpecificEvent = 0x6f

function eventOf({ eventType, sensorType, data }: Extract<SelEntry, { kind: 'event' }>): string {
  const offset = data.readUInt8(0) & 0x0f
  const words =
    eventType === thresholdEvent ? thresholds[offset] : eventType === sensorSpecificEvent ? sensorEvents[sensorType]?.[offset] : undefined
  return words ?? `event ${hex(eventType)} offset ${offset}`
}

const hex = (value: number) => `0x${value.toString(16).padStart(2, '0')}`

const thresholds: readonly string[] = [
  'lower non-critical',
  'lower critical',
  'lower non-recoverable',
  'upper non-critical',
  'upper critical',
]
  .flatMap(limit => [`${limit}, going low`, `${limit}, going high`])
  .concat('upper non-recoverable, going low', 'upper non-recoverable, going high')

const sensorTypes: Readonly<Record<number, string>> = {
  1: 'temperature',
  2: 'voltage',
  3: 'current',
  4: 'fan',
  5: 'chassis intrusion',
  6: 'security violation',
  7: 'processor',
  8: 'power supply',
  9: 'power unit',
  10: 'cooling device',
  11: 'other units',
  12: 'memory',
  13: 'drive slot',
  14: 'memory resize',
  15: 'system firmware',
  16: 'event log',
  17: 'watchdog 1',
  18: 'system event',
  19: 'critical interrupt',
  20: 'button',
  21: 'module or board',
  22: 'microcontroller',
  23: 'add-in card',
  24: 'chassis',
  25: 'chip set',
  26: 'other FRU',
  27: 'cable',
  28: 'terminator',
  29: 'system boot',
  30: 'boot error',
  31: 'base OS boot',
  32: 'OS stop',
  33: 'slot or connector',
  34: 'ACPI power state',
  35: 'watchdog 2',
  36: 'platform alert',
  37: 'entity presence',
  38: 'monitor ASIC',
  39: 'LAN',
  40: 'management subsystem',
  41: 'battery',
  42: 'session audit',
  43: 'version change',
  44: 'FRU state',
}

const sensorEvents: Readonly<Record<number, readonly (string | undefined)[]>> = {
  5: [
    'chassis opened',
    'drive bay opened',
    'I/O area opened',
    'processor area opened',
    'LAN cable unplugged',
    'undocked',
    'fan area opened',
  ],
  7: [
    'internal error',
    'thermal trip',
    'built-in test failed',
    'hang in POST',
    'start-up failed',
    'configuration error',
    'SM BIOS error',
    'present',
  ],
  8: ['present', 'failure', 'predicted failure', 'input lost', 'input lost or out of range', 'input out of range', 'configuration error'],
  9: [
    'powered off',
    'power cycle',
    '240 VA power down',
    'interlock power down',
    'AC lost',
    'soft power control failed',
    'failure',
    'predicted failure',
  ],
  12: [
    'correctable error',
    'uncorrectable error',
    'parity error',
    'scrub failed',
    'device disabled',
    'limit of correctable errors reached',
    'present',
    'configuration error',
    'spare',
    'throttled',
    'critical overtemperature',
  ],
  13: [
    'drive present',
    'drive fault',
    'predicted failure',
    'hot spare',
    'consistency check',
    'in critical array',
    'in failed array',
    'rebuilding',
  ],
  15: ['firmware error', 'firmware hang', 'firmware progress'],
  16: [
    'limit of correctable memory errors reached',
    'logging of an event type disabled',
    'log cleared',
    'all logging disabled',
    'log full',
    'log almost full',
  ],
  18: [
    'system reconfigured',
    'OEM boot event',
    'unknown hardware failure',
    'entry added to auxiliary log',
    'action of an event filter',
    'clock changed',
  ],
  19: [
    'front panel NMI',
    'bus timeout',
    'I/O channel check NMI',
    'software NMI',
    'PCI parity error',
    'PCI system error',
    'EISA fail-safe timeout',
    'correctable bus error',
    'uncorrectable bus error',
    'fatal NMI',
    'fatal bus error',
  ],
  20: ['power button pressed', 'sleep button pressed', 'reset button pressed'],
  29: [
    'power up',
    'hard reset',
    'warm reset',
    'network boot asked for',
    'boot of diagnostics',
    'OS restarted',
    'restart for a known reason',
  ],
  30: ['nothing to boot from', 'no disk inserted', 'no network boot server found', 'invalid boot sector', 'timeout waiting for a choice'],
  31: [
    'A: boot completed',
    'C: boot completed',
    'network boot completed',
    'diagnostic boot completed',
    'CD boot completed',
    'ROM boot completed',
    'boot completed',
  ],
  32: [
    'critical stop while loading',
    'stopped by a failure',
    'stopped in good order',
    'shut down in good order',
    'agent told it to shut down',
  ],
  35: ['timer expired', 'hard reset', 'power down', 'power cycle', undefined, undefined, undefined, undefined, 'timer interrupt'],
  41: ['battery low', 'battery failed', 'battery present'],
  42: ['session activated', 'session ended', 'invalid user or password', 'user locked out after wrong passwords'],
}
