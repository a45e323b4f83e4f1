/**
 * A real ipmi_sim process of the OpenIPMI project: somebody else's BMC, with one management controller on a free port of 127.0.0.1. It
 * knows suite 3 but not 17, and keeps no power state of its own: a small script does, in files.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { encodePing } from '../src/ipmi/codec.ts'

export interface IpmiSim extends AsyncDisposable {
  port: number
  /** What the chassis script was asked to set, in order, e.g. `power 1`. */
  orders(): Promise<string[]>
  /** The script's own memory. */
  power(): Promise<'on' | 'off'>
  /** Ends the process and starts it afresh on the same port: it forgets all sessions. */
  restart(): Promise<void>
  stop(): Promise<void>
}

/** `kg` has 16 bytes: ipmi_sim takes no other length. `serialPort`: where the machine's serial line listens on TCP. */
export async function startIpmiSim(options: { kg?: string; serialPort?: number } = {}): Promise<IpmiSim> {
  const folder = await mkdtemp(join(tmpdir(), 'muster-ipmi-sim-'))
  const file = (name: string) => join(folder, name)
  const port = await freeUdpPort()
  await writeFile(file('power'), '0\n')
  await writeFile(file('boot'), 'none\n')
  await writeFile(file('orders'), '')
  await writeFile(file('chassis'), chassisScript(folder))
  await chmod(file('chassis'), 0o755)
  await writeFile(file('lan.conf'), lanConf({ port, chassis: file('chassis'), ...options }))
  await writeFile(file('bmc.emu'), emulation)

  let child = await spawnSim(folder, port)
  const sim: IpmiSim = {
    port,
    orders: async () => (await readFile(file('orders'), 'utf8')).split('\n').filter(Boolean),
    power: async () => ((await readFile(file('power'), 'utf8')).trim() === '1' ? 'on' : 'off'),
    restart: async () => {
      await end(child)
      child = await spawnSim(folder, port)
    },
    stop: async () => {
      await end(child)
      await rm(folder, { recursive: true, force: true })
    },
    [Symbol.asyncDispose]: () => sim.stop(),
  }
  return sim
}

/** An unused UDP port; somebody could take it before we do, which the start then reports. */
export async function freeUdpPort(): Promise<number> {
  const socket = createSocket('udp4')
  socket.bind(0, '127.0.0.1')
  await once(socket, 'listening')
  const { port } = socket.address()
  socket.close()
  return port
}

async function spawnSim(folder: string, port: number): Promise<ChildProcess> {
  const child = spawn('ipmi_sim', ['-c', join(folder, 'lan.conf'), '-f', join(folder, 'bmc.emu'), '-s', join(folder, 'state'), '-n'], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream?.on('data', (chunk: Buffer) => (output += chunk.toString()))
  for (let look = 0; look < 100; look++) {
    if (child.exitCode !== null) throw new Error(`ipmi_sim ended with ${child.exitCode}: ${output}`)
    if (await pongs(port)) return child
    await sleep(30)
  }
  child.kill()
  throw new Error(`ipmi_sim does not answer on port ${port}: ${output}`)
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const exited = once(child, 'exit')
  child.kill('SIGKILL')
  await exited
}

/** Whether a presence ping is answered within 30 ms. */
async function pongs(port: number): Promise<boolean> {
  const socket = createSocket('udp4')
  try {
    const { promise, resolve } = Promise.withResolvers<boolean>()
    socket.on('message', () => resolve(true))
    socket.on('error', () => resolve(false))
    socket.connect(port, '127.0.0.1', () => socket.send(encodePing(0)))
    return await Promise.race([promise, sleep(30, false)])
  } finally {
    socket.close()
  }
}

function lanConf(options: { port: number; chassis: string; kg?: string; serialPort?: number }): string {
  const auths = ['callback', 'user', 'operator', 'admin'].map(level => `    allowed_auths_${level} none md2 md5 straight`)
  return [
    'name "muster"',
    'set_working_mc 0x20',
    '  startlan 1',
    `    addr 127.0.0.1 ${options.port}`,
    '    priv_limit admin',
    ...auths,
    ...(options.kg ? [`    bmc_key "${options.kg}"`] : []),
    '    guid a123456789abcdefa123456789abcdef',
    '  endlan',
    ...(options.serialPort ? [`  sol "tcp:127.0.0.1:${options.serialPort}" 115200`] : []),
    `  chassis_control "${options.chassis}"`,
    '  user 2 true "admin" "secret" admin 60 none md2 md5 straight',
    '  user 3 true "reader" "only" user 60 none md2 md5 straight',
    '',
  ].join('\n')
}

const emulation = `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
sel_enable 0x20 1000 0x0a
mc_enable 0x20
`

/** Called by ipmi_sim as "get power", "set power 1", "set boot pxe", "set identify 5 0", "set reset 1", "set shutdown 1". */
function chassisScript(folder: string): string {
  if (/[^\w/.-]/.test(folder) || !existsSync(folder)) throw new Error(`not a folder for a shell script: ${folder}`)
  return `#!/bin/sh
cd ${folder}
[ "$1" = set ] && { shift; echo "$@" >> orders; set -- set "$@"; }
case "$1 $2" in
  "get power") echo "power:$(cat power)" ;;
  "get boot") echo "boot:$(cat boot)" ;;
  "set power") echo "$3" > power ;;
  "set boot") echo "$3" > boot ;;
  "set shutdown") echo 0 > power ;;
esac
exit 0
`
}
