// What the agent makes of a disk's word on erasing itself: its shell, run by busybox on this computer. That it erases is in agent.test.ts.
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { missingPrograms } from './needs.ts'

const script = fileURLToPath(new URL('../root/muster/erase.sh', import.meta.url))
const missing = missingPrograms(['busybox'], 'busybox-static')

/** The end of what `hdparm -I` prints. */
const said = (...lines: string[]) =>
  [
    '/dev/sda:',
    '',
    'Commands/features:',
    '\tEnabled\tSupported:',
    '\t   *\tSecurity Mode feature set',
    ...lines,
    'Checksum: correct',
    '',
  ].join('\n')
const security = (supported: string, enabled: string, frozen: string) => [
  ...['Security: ', '\tMaster password revision code = 65534', `\t${supported}`, `\t${enabled}`, '\tnot\tlocked', `\t${frozen}`],
  ...['\tnot\texpired: security count', '\t\tsupported: enhanced erase'],
]

describe.skipIf(missing !== undefined)('a disk that speaks ATA', () => {
  test.each([
    [
      'can, within two minutes, better than plainly',
      said(
        ...security('\tsupported', 'not\tenabled', 'not\tfrozen'),
        '\t6min for SECURITY ERASE UNIT. 2min for ENHANCED SECURITY ERASE UNIT.',
      ),
      'ready 2 enhanced',
    ],
    [
      'was left with a password when the power went',
      said(
        ...security('\tsupported', '\tenabled', 'not\tfrozen'),
        '\t508min for SECURITY ERASE UNIT. 508min for ENHANCED SECURITY ERASE UNIT.',
      ),
      'enabled 508 enhanced',
    ],
    [
      'is frozen by its firmware',
      said(
        ...security('\tsupported', 'not\tenabled', '\tfrozen'),
        '\t2min for SECURITY ERASE UNIT. 2min for ENHANCED SECURITY ERASE UNIT.',
      ),
      'frozen 2 enhanced',
    ],
    [
      'can only plainly',
      said(...security('\tsupported', 'not\tenabled', 'not\tfrozen').slice(0, -1), '\t90min for SECURITY ERASE UNIT.'),
      'ready 90 ',
    ],
    ['cannot', said(...security('not\tsupported', 'not\tenabled', 'not\tfrozen').slice(0, -1)), 'none 0 '],
    ['says nothing', '', 'none 0 '],
  ])('%s', (_, input, outcome) => {
    const { stdout, stderr } = spawnSync('busybox', ['sh', '-c', `. ${script}; ata_security`], { input, encoding: 'utf8' })
    expect([stdout, stderr]).toEqual([`${outcome}\n`, ''])
  })
})
