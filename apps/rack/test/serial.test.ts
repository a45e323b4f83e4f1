/** Serial over LAN: the project's own driver, and Debian's ipmitool, on the virtual BMC; and a bad path between them. */
import { type ChildProcess, spawn } from 'node:child_process'
import type { DriverError, PowerSession, SerialConsole } from '@muster/drivers/driver'
import { openPower } from '@muster/drivers/drivers'
import { findProgram } from '@muster/embedded/find-program'
import { afterEach, describe, expect, test } from 'vitest'
import { type Path, startUdpProxy, type UdpProxy } from '../../../libs/drivers/test/udp-proxy.ts'
import { type Bmc, startBmc } from '../src/bmc/bmc.ts'
import { BootOptions } from '../src/bmc/boot-options.ts'
import { chance } from '../src/chaos/random.ts'

const ends: (() => Promise<unknown> | unknown)[] = []
afterEach(async () => {
  for (let end = ends.pop(); end; end = ends.pop()) await end()
})

interface Place {
  bmc: Bmc
  proxy: UdpProxy
  typed: () => string
  breaks: () => number
}

async function startPlace(): Promise<Place> {
  let [typed, breaks] = ['', 0]
  const bmc = await startBmc({
    address: '127.0.0.1',
    port: 0,
    users: [{ name: 'ADMIN', password: 'secret', privilege: 'ADMINISTRATOR' }],
    guid: Buffer.alloc(16, 1),
    chassis: { power: () => 'on', control: () => 'accepted' },
    bootOptions: new BootOptions({ expiryMs: 60_000 }),
    serial: {
      typed: characters => {
        typed += characters.toString()
      },
      broken: () => {
        breaks++
      },
    },
  })
  const proxy = await startUdpProxy(bmc.port)
  ends.push(
    () => bmc.close(),
    () => proxy[Symbol.asyncDispose](),
  )
  return { bmc, proxy, typed: () => typed, breaks: () => breaks }
}

function open(port: number): PowerSession {
  const settings = { address: `127.0.0.1:${port}`, user: 'ADMIN', password: 'secret', privilege: 'ADMINISTRATOR' }
  const session = openPower({ type: 'ipmi', settings })
  ends.push(() => session.close())
  return session
}

async function consoleOf(port: number, holder: 'leave' | 'end' = 'leave'): Promise<{ line: SerialConsole; seen: () => string }> {
  const line = (await open(port).capabilities.console?.({ holder })) as SerialConsole
  ends.push(() => line.close())
  let seen = ''
  line.output.on('data', (characters: Buffer) => {
    seen += characters.toString()
  })
  return { line, seen: () => seen }
}

const kindOf = (asked: Promise<unknown>) =>
  asked.then(
    () => 'nothing',
    (error: DriverError) => error.kind,
  )
const story = Array.from({ length: 400 }, (_, index) => `line ${index} of the machine's boot\r\n`).join('')

describe('a serial console', () => {
  test('carries characters both ways, breaks, and is over when closed', async () => {
    const { bmc, typed, breaks } = await startPlace()
    const { line, seen } = await consoleOf(bmc.port)
    bmc.serialOutput(Buffer.from(story))
    await expect.poll(seen, { timeout: 10_000 }).toBe(story)
    await line.write(Buffer.from('root\r'))
    await line.write(Buffer.alloc(1_000, 'x'))
    await line.sendBreak()
    expect(typed()).toBe(`root\r${'x'.repeat(1_000)}`)
    expect(breaks()).toBe(1)
    await line.close()
    await line.close()
    expect(bmc.sessionsOpen()).toBe(0)
    expect(await kindOf(line.write(Buffer.from('late')))).toBe('silent')
  })

  test('stands beside the power session: orders go on while it is open', async () => {
    const { bmc } = await startPlace()
    const { seen } = await consoleOf(bmc.port)
    const power = open(bmc.port)
    expect(await power.power()).toBe('on')
    bmc.serialOutput(Buffer.from('still here'))
    await expect.poll(seen).toBe('still here')
  })

  test('is held by one at a time; the next one is told, or takes it over, and then the first is told', async () => {
    const { bmc } = await startPlace()
    const first = await consoleOf(bmc.port)
    const lost = new Promise<DriverError>(resolve => first.line.output.once('error', resolve as (error: Error) => void))
    expect(await kindOf(consoleOf(bmc.port))).toBe('busy')
    const second = await consoleOf(bmc.port, 'end')
    expect(await lost).toMatchObject({ kind: 'refused', message: expect.stringContaining('ended the console') })
    bmc.serialOutput(Buffer.from('to the second'))
    await expect.poll(second.seen).toBe('to the second')
    expect(await kindOf(first.line.write(Buffer.from('x')))).toBe('refused')
  })

  test('a path that loses, doubles and reorders costs time and no character', async () => {
    const seed = Date.now() % 1_000_000
    const random = chance('serial', seed)
    const { bmc, proxy, typed } = await startPlace()
    const { line, seen } = await consoleOf(proxy.port)
    const bad: Path = datagram => {
      if (random() < 0.1) return []
      // Packets are numbered 1 to 15: a path on which one is overtaken by fifteen others is beyond the protocol.
      const once = { datagram, afterMs: 10 + (random() < 0.2 ? Math.floor(random() * 60) : 0) }
      return random() < 0.1 ? [once, { datagram, afterMs: 10 + Math.floor(random() * 80) }] : [once]
    }
    proxy.path = bad
    bmc.serialOutput(Buffer.from(story))
    const keys = Array.from({ length: 30 }, (_, index) => `command ${index}\r`).join('')
    for (const key of keys.match(/.{1,7}/gs) ?? []) await line.write(Buffer.from(key))
    expect(typed(), `seed ${seed}`).toBe(keys)
    await expect.poll(seen, { timeout: 60_000, message: `seed ${seed}` }).toBe(story)
    proxy.path = datagram => [{ datagram, afterMs: 0 }]
  }, 120_000)

  test('a BMC that disappears is noticed by who types', async () => {
    const { proxy } = await startPlace()
    const { line } = await consoleOf(proxy.port)
    proxy.path = () => []
    expect(await kindOf(line.write(Buffer.from('anybody there?')))).toBe('silent')
  }, 60_000)

  test('a reader that does not read is given no more than fits, in order; what is too much waits in the BMC, as far as that has room', async () => {
    const { bmc } = await startPlace()
    const line = (await open(bmc.port).capabilities.console?.()) as SerialConsole
    ends.push(() => line.close())
    for (let part = 0; part < 5; part++) {
      bmc.serialOutput(Buffer.alloc(60_000, String(part)))
      const wanted = Math.min((part + 1) * 60_000, 256 * 1024)
      await expect.poll(() => line.output.readableLength, { timeout: 30_000 }).toBe(wanted)
    }
    let seen = ''
    line.output.on('data', (characters: Buffer) => {
      seen += characters.toString()
    })
    await expect.poll(() => seen.length, { timeout: 30_000 }).toBe(300_000)
    expect(seen).toBe(['0', '1', '2', '3', '4'].map(digit => digit.repeat(60_000)).join(''))
  }, 120_000)

  const missing = findProgram('ipmitool') === undefined ? 'ipmitool is not installed' : undefined
  if (missing && process.env.CI) throw new Error(`${missing}; CI must prove this`)
  test.skipIf(missing !== undefined)(
    `Debian's ipmitool takes it for one${missing ? ` (${missing})` : ''}`,
    async () => {
      const { bmc, typed } = await startPlace()
      const args = [
        '-I',
        'lanplus',
        '-H',
        '127.0.0.1',
        '-p',
        String(bmc.port),
        '-U',
        'ADMIN',
        '-P',
        'secret',
        '-C',
        '17',
        'sol',
        'activate',
      ]
      // It wants a terminal.
      const child: ChildProcess = spawn('script', ['-qfec', `ipmitool ${args.join(' ')}`, '/dev/null'], {
        stdio: ['pipe', 'pipe', 'inherit'],
      })
      ends.push(() => child.kill('SIGKILL'))
      let out = ''
      child.stdout?.on('data', (characters: Buffer) => {
        out += characters.toString()
      })
      await expect.poll(() => out, { timeout: 20_000 }).toContain('SOL Session operational')
      bmc.serialOutput(Buffer.from('greetings from the machine\r\n'))
      await expect.poll(() => out, { timeout: 20_000 }).toContain('greetings from the machine')
      child.stdin?.write('hello\r')
      await expect.poll(typed, { timeout: 20_000 }).toBe('hello\r')
      child.stdin?.write('~.')
      await expect.poll(() => child.exitCode, { timeout: 20_000 }).not.toBeNull()
    },
    90_000,
  )
})
