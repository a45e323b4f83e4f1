/** The Wake-on-LAN driver: packets caught by a real UDP socket, a machine whose port opens when one comes, a program that shuts it down. */
import { spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { connect, createServer, type Server } from 'node:net'
import { expect, onTestFinished, test } from 'vitest'
import type { PowerSession } from '../src/driver.ts'
import { magicPacket, wakeOnLan, wakeOnLanDriver } from '../src/wake-on-lan.ts'
import { driverConformance, type Machine } from './conformance.ts'
import { startWeb } from './fake-https.ts'
import { freeTcpPort } from './free-port.ts'

const macAddress = '52:54:00:ab:cd:ef'

interface Sleeper extends Machine {
  settings: Record<string, unknown>
  packets: Buffer[]
  shutdowns: string[]
}

/** A machine asleep: it opens a TCP port when the packet comes, and closes it when its program is told to. */
async function startSleeper(): Promise<Sleeper> {
  const packets: Buffer[] = []
  const shutdowns: string[] = []
  const tcpPort = await freeTcpPort()
  let ssh: Server | undefined
  const wake = () => {
    ssh ??= createServer(socket => socket.destroy()).listen(tcpPort, '127.0.0.1')
  }
  const interfaceCard = createSocket('udp4')
  interfaceCard.bind(0, '127.0.0.1')
  await once(interfaceCard, 'listening')
  interfaceCard.on('message', packet => {
    packets.push(packet)
    if (packet.equals(magicPacket(macAddress))) wake()
  })
  const program = await startWeb((request, response) => {
    if (request.headers.authorization !== 'Bearer t0ken') return void response.writeHead(401).end()
    let body = ''
    request.on('data', chunk => (body += chunk))
    request.on('end', () => {
      shutdowns.push(body)
      ssh?.close()
      ssh = undefined
      response.end()
    })
  })
  return {
    settings: {
      macAddress,
      broadcastAddress: '127.0.0.1',
      port: interfaceCard.address().port,
      probe: `127.0.0.1:${tcpPort}`,
      // The loopback refuses for a machine that is off, as a gateway would.
      closedPort: 'off',
      shutdownUrl: `${program.url}/shutdown`,
      shutdownToken: 't0ken',
    },
    packets,
    shutdowns,
    power: async () => (ssh ? 'on' : 'off'),
    [Symbol.asyncDispose]: async () => {
      interfaceCard.close()
      ssh?.close()
      await program[Symbol.asyncDispose]()
    },
  }
}

driverConformance(wakeOnLan, { start: startSleeper })

function open(settings: Record<string, unknown>, driver = wakeOnLan): PowerSession {
  const session = driver.open(driver.settings.parse(settings))
  onTestFinished(() => session.close())
  return session
}

async function sleeper(): Promise<Sleeper> {
  const machine = await startSleeper()
  onTestFinished(() => machine[Symbol.asyncDispose]())
  return machine
}

test.each([
  { secureOn: undefined, tail: '' },
  { secureOn: '01-02-03-04-05-06', tail: '010203040506' },
])('the packet is six FF, sixteen times the address, and the SecureOn password $secureOn', async ({ secureOn, tail }) => {
  const machine = await sleeper()
  await open({ ...machine.settings, macAddress: '52-54-00-AB-CD-EF', ...(secureOn && { secureOn }) }).on()
  await expect.poll(() => machine.packets.length).toBe(3)
  for (const packet of machine.packets) expect(packet.toString('hex')).toBe(`ffffffffffff${'525400abcdef'.repeat(16)}${tail}`)
})

test('the program on the machine is told how to shut down, and not called when the machine is off', async () => {
  const machine = await sleeper()
  const session = open(machine.settings)
  await session.off({ how: 'soft' })
  expect(machine.shutdowns).toEqual([])
  await session.on()
  await expect.poll(() => session.power()).toBe('on')
  await session.off({ how: 'soft' })
  expect(machine.shutdowns).toEqual(['{"how":"soft"}'])
})

test('a machine without a program cannot be turned off, and the error says what can be done', async () => {
  const machine = await sleeper()
  const { shutdownUrl: _url, shutdownToken: _token, ...rest } = machine.settings
  const session = open(rest)
  await session.on()
  await expect.poll(() => session.power()).toBe('on')
  await expect(session.off({ how: 'hard' })).rejects.toMatchObject({ kind: 'unsupported', hint: expect.stringContaining('shutdownUrl') })
})

test('a machine without a probe is unknown, and is not cycled blindly', async () => {
  const machine = await sleeper()
  const { probe: _probe, ...rest } = machine.settings
  const session = open(rest)
  expect(await session.power()).toBe('unknown')
  await expect(session.cycle()).rejects.toMatchObject({ kind: 'unsupported', hint: expect.stringContaining('probe') })
  expect(machine.packets).toEqual([])
})

test('a wrong token of the program is called that, without showing it', async () => {
  const machine = await sleeper()
  const session = open({ ...machine.settings, shutdownToken: 'wr0ng-t0ken' })
  await session.on()
  await expect.poll(() => session.power()).toBe('on')
  const error = await session.off({ how: 'soft' }).catch(caught => caught)
  expect(error).toMatchObject({ kind: 'authentication', outcome: 'none' })
  expect(error.message + error.hint).not.toContain('wr0ng')
})

test('a machine whose port refuses is on: something there answered', async () => {
  const machine = await sleeper()
  expect(await open({ ...machine.settings, closedPort: 'on' }).power()).toBe('on')
})

test('a machine that answers nothing is off', async () => {
  // Attempts beyond a full backlog are dropped, as a machine that is off drops them. The listener is another process, stopped: it accepts nobody.
  const deaf = spawn(process.execPath, [
    '-e',
    'const s=require("net").createServer().listen({port:0,host:"127.0.0.1",backlog:1},()=>console.log(s.address().port))',
  ])
  onTestFinished(() => void deaf.kill('SIGKILL'))
  const [line] = await once(deaf.stdout, 'data')
  deaf.kill('SIGSTOP')
  const port = Number(line)
  const waiting = Array.from({ length: 4 }, () => connect({ port, host: '127.0.0.1' }))
  onTestFinished(() => {
    for (const socket of waiting) socket.on('error', () => {}).destroy()
  })
  const session = open({ macAddress, probe: `127.0.0.1:${port}` }, wakeOnLanDriver({ probeMs: 150 }))
  await expect.poll(() => session.power()).toBe('off')
})

test('a probe that cannot be made is an error, and not a machine that is off', async () => {
  const session = open({ macAddress, probe: 'no-such-host.invalid:22' })
  await expect(session.power()).rejects.toMatchObject({ kind: 'silent', got: expect.stringContaining('the probe could not be made') })
})

test.each([
  [{ macAddress: '52:54:00:ab:cd' }, 'macAddress'],
  [{ secureOn: 'sesame' }, 'secureOn'],
  [{ broadcastAddress: 'everywhere' }, 'broadcastAddress'],
  [{ port: 0 }, 'port'],
  [{ probe: 'machine' }, 'probe'],
  [{ shutdownUrl: 'file:///sbin/poweroff' }, 'shutdownUrl'],
])('settings with %o are refused', (wrong, field) => {
  const checked = wakeOnLan.settings.safeParse({ macAddress, ...wrong })
  expect(checked.error?.issues.map(({ path }) => path[0])).toEqual([field])
})
