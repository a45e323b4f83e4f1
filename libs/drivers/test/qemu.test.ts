/** The QEMU driver against a QMP server on a real socket, and a program in QEMU's name that starts it. */
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import type { PowerSession } from '../src/driver.ts'
import { qemu } from '../src/qemu.ts'
import { driverConformance } from './conformance.ts'
import { freeTcpPort } from './free-port.ts'

const greeting = '{"QMP": {"version": {"qemu": {"micro": 2, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}\r\n'

interface Lab {
  settings: { qmp: string; start: string[] }
  /** The run state, or undefined when no QEMU runs. */
  state: string | undefined
  /** Commands received, the handshake left out. */
  commands: string[]
  /** What to send in place of the usual: undefined leaves it to the usual. */
  script: (execute: string, socket: Socket) => string | undefined
  /** QEMU begins to listen. */
  run(state?: string): Promise<void>
  /** QEMU is gone. */
  quit(): Promise<void>
  /** The words of the last start. */
  words(): string[]
  remove(): Promise<void>
}

/** A folder on the PATH with a qemu-system-lab that asks this process, over a socket, to begin to listen. */
async function startLab(qmp?: string): Promise<Lab> {
  const folder = mkdtempSync(join(tmpdir(), 'muster-qemu-'))
  const path = qmp ?? join(folder, 'qmp.sock')
  const program = join(folder, 'qemu-system-lab')
  writeFileSync(
    program,
    `#!${process.execPath}
require('node:fs').writeFileSync('${folder}/words', process.argv.slice(2).join('\\n'))
if (process.argv.includes('-bad')) { console.error('qemu-system-lab: -bad: invalid option'); process.exit(1) }
if (process.argv.includes('-slow')) setTimeout(() => {}, 60000)
else require('node:net').connect('${folder}/control').on('close', () => process.exit(0)).resume()
`,
  )
  chmodSync(program, 0o755)
  vi.stubEnv('PATH', `${folder}:${process.env.PATH}`)

  let server: Server | undefined
  const sockets = new Set<Socket>()
  const quit = async () => {
    lab.state = undefined
    for (const socket of sockets) socket.destroy()
    await new Promise<void>(resolve => (server ? server.close(() => resolve()) : resolve()))
    server = undefined
  }
  const answer = (execute: string): string => {
    const ok = (value: unknown = {}) => `${JSON.stringify({ return: value, id: 'order' })}\r\n`
    const event = '{"event": "POWERDOWN", "timestamp": {"seconds": 1, "microseconds": 2}}\r\n'
    if (execute === 'query-status') return ok({ status: lab.state, running: lab.state === 'running' })
    if (execute === 'system_powerdown') setTimeout(() => void quit(), 20)
    if (execute === 'quit') setTimeout(() => void quit(), 20)
    if (execute === 'cont') lab.state = 'running'
    return event + ok()
  }
  const lab: Lab = {
    settings: { qmp: path, start: ['qemu-system-lab', '-m', '2G', '-drive', 'file=/srv/my disk.qcow2'] },
    state: undefined,
    commands: [],
    script: () => undefined,
    run: async (state = 'running') => {
      lab.state = state
      server = createServer(socket => {
        sockets.add(socket)
        socket.on('close', () => sockets.delete(socket)).on('error', () => sockets.delete(socket))
        socket.write(lab.script('', socket) ?? greeting)
        socket.setEncoding('utf8').on('data', (text: string) => {
          for (const line of text.trim().split('\n')) {
            const { execute, id } = JSON.parse(line) as { execute: string; id: string }
            if (execute === 'qmp_capabilities') socket.write(`{"return": {}, "id": "${id}"}\r\n`)
            else {
              lab.commands.push(execute)
              socket.write(lab.script(execute, socket) ?? answer(execute))
            }
          }
        })
      })
      const tcp = /:(\d+)$/.exec(path)
      await new Promise<void>(resolve => (tcp ? server?.listen(Number(tcp[1]), '127.0.0.1', resolve) : server?.listen(path, resolve)))
    },
    quit,
    words: () => readFileSync(join(folder, 'words'), 'utf8').split('\n'),
    remove: async () => {
      await quit()
      await new Promise<void>(resolve => control.close(() => resolve()))
      vi.unstubAllEnvs()
      rmSync(folder, { recursive: true, force: true })
    },
  }
  const control = createServer(socket => void lab.run().then(() => socket.end()))
  await new Promise<void>(resolve => control.listen(join(folder, 'control'), resolve))
  return lab
}

async function lab(qmp?: string): Promise<Lab> {
  const started = await startLab(qmp)
  onTestFinished(started.remove)
  return started
}

function open(settings: Record<string, unknown>): PowerSession {
  const session = qemu.open(qemu.settings.parse(settings))
  onTestFinished(() => session.close())
  return session
}

driverConformance(qemu, {
  start: async () => {
    const started = await startLab()
    return {
      settings: started.settings,
      power: async () => (started.state === 'running' ? 'on' : 'off'),
      [Symbol.asyncDispose]: started.remove,
    }
  },
})

test('QEMU is started with the words given, and told where to listen', async () => {
  const { settings, words } = await lab()
  await open(settings).on()
  expect(words()).toEqual([
    '-m',
    '2G',
    '-drive',
    'file=/srv/my disk.qcow2',
    '-qmp',
    `unix:${settings.qmp},server=on,wait=off`,
    '-daemonize',
  ])
})

test('QMP over TCP is the same', async () => {
  const qmp = `127.0.0.1:${await freeTcpPort()}`
  const { settings, words } = await lab(qmp)
  const session = open(settings)
  expect(await session.power()).toBe('off')
  await session.on()
  expect(words()).toContain(`tcp:${qmp},server=on,wait=off`)
  expect(await session.power()).toBe('on')
})

test.each([
  ['running', 'on'],
  ['paused', 'on'],
  ['suspended', 'on'],
  ['guest-panicked', 'on'],
  ['prelaunch', 'off'],
  ['shutdown', 'off'],
])('a machine %s is %s', async (state, power) => {
  const started = await lab()
  await started.run(state)
  expect(await open(started.settings).power()).toBe(power)
})

test.each([
  ['prelaunch', ['query-status', 'cont']],
  ['shutdown', ['query-status', 'system_reset', 'cont']],
  ['paused', ['query-status']],
])('a machine %s is turned on by %o', async (state, commands) => {
  const started = await lab()
  await started.run(state)
  await open(started.settings).on()
  expect(started.commands).toEqual(commands)
})

test('a soft off presses the power button, a hard one ends QEMU, and a reset resets', async () => {
  const started = await lab()
  const session = open(started.settings)
  await started.run()
  await session.capabilities.reset?.()
  await session.off({ how: 'soft' })
  await expect.poll(() => session.power()).toBe('off')
  await session.capabilities.reset?.()
  await session.off({ how: 'hard' })
  expect(started.commands.filter(command => command !== 'query-status')).toEqual(['system_reset', 'system_powerdown', 'quit'])
})

test('without a start command a cycle is a reset, and a machine that is off stays off', async () => {
  const started = await lab()
  const session = open({ qmp: started.settings.qmp })
  await expect(session.cycle()).rejects.toMatchObject({ kind: 'unsupported', hint: expect.stringContaining('start') })
  await started.run()
  await session.cycle()
  expect(started.commands).toContain('system_reset')
  expect(started.commands).not.toContain('quit')
})

describe('a QEMU', () => {
  test('that does not start is quoted', async () => {
    const { settings } = await lab()
    await expect(open({ ...settings, start: ['qemu-system-lab', '-bad'] }).on()).rejects.toMatchObject({
      kind: 'refused',
      got: 'qemu-system-lab ended with 1: qemu-system-lab: -bad: invalid option',
    })
  })

  test('that does not come to an end of its start is killed when the caller gives up', async () => {
    const { settings } = await lab()
    const session = open({ ...settings, start: ['qemu-system-lab', '-slow'] })
    await expect(session.on({ signal: AbortSignal.timeout(500) })).rejects.toMatchObject({ kind: 'cancelled' })
  })

  test('that is not installed is called that', async () => {
    const { settings } = await lab()
    await expect(open({ ...settings, start: ['qemu-system-none'] }).on()).rejects.toMatchObject({
      kind: 'unsupported',
      hint: expect.stringContaining('Install QEMU'),
    })
  })

  test('that serves another client keeps silent, and the hint says why', async () => {
    const started = await lab()
    started.script = execute => (execute === '' ? '\r\n' : undefined)
    await started.run()
    const session = open(started.settings)
    await expect(session.power()).rejects.toMatchObject({ kind: 'silent', outcome: 'none', hint: expect.stringContaining('one client') })
  }, 10_000)

  test('that breaks off during an order leaves the outcome unknown; during quit it has obeyed', async () => {
    const started = await lab()
    started.script = (execute, socket) => {
      if (execute !== 'system_reset' && execute !== 'quit') return undefined
      if (execute === 'quit') void started.quit()
      socket.end()
      return '\r\n'
    }
    await started.run()
    const session = open(started.settings)
    await expect(session.capabilities.reset?.()).rejects.toMatchObject({ kind: 'silent', outcome: 'unknown' })
    await session.off({ how: 'hard' })
  })

  test('that refuses is quoted, one that talks otherwise is not believed', async () => {
    const started = await lab()
    started.script = execute =>
      execute === 'system_reset' ? '{"id": "order", "error": {"class": "GenericError", "desc": "not now"}}\r\n' : undefined
    await started.run()
    const session = open(started.settings)
    await expect(session.capabilities.reset?.()).rejects.toMatchObject({
      kind: 'refused',
      got: expect.stringContaining('GenericError (not now)'),
    })
    started.script = () => 'SSH-2.0-OpenSSH_9.2\r\n'
    await expect(session.power()).rejects.toMatchObject({ kind: 'protocol', got: '"SSH-2.0-OpenSSH_9.2" is not QMP' })
  })
})

test.each([
  [{ qmp: 'qmp.sock' }, 'qmp'],
  [{ qmp: '/run/a,b' }, 'qmp'],
  [{ qmp: `/${'a'.repeat(120)}` }, 'qmp'],
  [{ start: [] }, 'start'],
  [{ start: ['/bin/sh', '-c', 'id'] }, 'start'],
  [{ start: ['../qemu-system-x86_64'] }, 'start'],
  [{ start: ['qemu-system-x86_64', '-qmp', 'stdio'] }, 'start'],
])('settings with %o are refused', (wrong, field) => {
  const checked = qemu.settings.safeParse({ qmp: '/run/qmp.sock', ...wrong })
  expect(checked.error?.issues.map(({ path }) => path[0])).toContain(field)
})
