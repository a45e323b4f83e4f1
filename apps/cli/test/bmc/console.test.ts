// The serial console: the keys that are not the machine's, and the whole program at a pipe.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { Escapes } from '../../src/bmc/console.ts'
import { aHome } from '../muster.ts'
import { password, startVirtualBmc } from './virtual-bmc.ts'

/** What becomes of keys that are pressed one by one, and all at once. */
function press(keys: string): { sent: string; asked: string[] } {
  const escapes = new Escapes()
  let [sent, rest] = ['', Buffer.from(keys)]
  const asked: string[] = []
  while (rest.length > 0) {
    const typed = escapes.read(rest)
    sent += typed.send.toString()
    if (typed.asks !== 'nothing') asked.push(typed.asks)
    rest = Buffer.from(typed.rest)
  }
  return { sent, asked }
}

test.each([
  ['~.', { sent: '', asked: ['close'] }],
  ['ls ~.\r', { sent: 'ls ~.\r', asked: [] }],
  ['ls\r~.', { sent: 'ls\r', asked: ['close'] }],
  ['\r~B~~x', { sent: '\r~x', asked: ['break'] }],
  ['~a', { sent: '~a', asked: [] }],
])('the keys %j', (keys, outcome) => {
  expect(press(keys)).toEqual(outcome)
})

describe('muster bmc console at a pipe', () => {
  test('types the input, shows what the machine writes, and leaves the console free', async () => {
    await using virtual = await startVirtualBmc()
    using home = aHome()
    writeFileSync(join(home.folder, 'pw'), password)
    const words = ['bmc', 'console', virtual.url(), '--password-file', 'pw', '--privilege', 'administrator']
    const ended = await home.muster([...words, '--wait', '2s'], { stdin: 'hello machine\r' })
    expect(ended).toMatchObject({ code: 0, stdout: expect.stringContaining('you said hello machine') })
    expect(virtual.typed).toBe('hello machine\r')
    expect(virtual.bmc.sessionsOpen()).toBe(0)
    expect(ended.stderr + ended.stdout).not.toContain(password)
  })

  test('says that another has the console, with the ending for busy, and takes it over when told to', async () => {
    await using virtual = await startVirtualBmc()
    using home = aHome()
    writeFileSync(join(home.folder, 'pw'), password)
    const words = ['bmc', 'console', virtual.url(), '--password-file', 'pw', '--wait', '60s']
    const first = home.start(words)
    await first.seen('stderr', 'console of')
    const second = await home.muster(words)
    expect(second).toMatchObject({ code: 14, stderr: expect.stringContaining('another console has it') })
    const third = home.start([...words, '--take-over'])
    await third.seen('stderr', 'console of')
    expect((await first.ended).code).toBe(16)
    third.interrupt()
    expect((await third.ended).code).toBe(130)
  })
})
