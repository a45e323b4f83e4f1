// What a question to 50 partitions costs: CPU of each part from /proc, per gathering.  npx node libs/server/test/bus-cost.ts
// Parts are processes of their own, as in production: broker, two processes with 25 partitions each, and the asker (this one).

import { type ChildProcess, fork } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { findNatsServer, startNatsServer } from '@muster/embedded/nats-server'
import { type BusLog, connectNats } from '../src/bus/nats-bus.ts'

const { values } = parseArgs({
  options: { seconds: { type: 'string', default: '3' }, part: { type: 'string' }, url: { type: 'string' }, token: { type: 'string' } },
})
const log: BusLog = {
  info: () => {},
  warn: (fields, text) => console.error(text, fields),
  error: (fields, text) => console.error(text, fields),
}
const partitions = 50
const subject = 'muster.v1.offer'
const offer = new TextEncoder().encode(JSON.stringify({ v: 1, partition: 'lon1', machines: ['x'.repeat(250)], matching: 3 }).padEnd(328))
const question = new TextEncoder().encode(JSON.stringify({ v: 1, id: 'r', constraints: 'y'.repeat(230) }))

if (values.part) await answer(Number(values.part))
else await measureAll()

async function answer(part: number): Promise<void> {
  for (let index = part; index < partitions; index += 2) {
    const bus = await connectNats({ url: values.url as string, token: values.token, name: `partition ${index}`, log })
    await bus.subscribe(subject, { group: `p${index}` }, message => message.reply?.(offer))
  }
  process.send?.('ready')
  process.on('disconnect', () => process.exit(0))
}

async function measureAll(): Promise<void> {
  await measure('embedded broker', await embeddedBroker())
  if (!findNatsServer()) return console.log('no nats-server on PATH')
  const dir = mkdtempSync('/tmp/muster-cost-')
  const server = await startNatsServer({ dir })
  await measure('nats-server', { url: server.url, token: server.token, pid: server.pid, stop: () => server.stop() })
  rmSync(dir, { recursive: true })
}

async function embeddedBroker(): Promise<{ url: string; token: string; pid: number; stop: () => Promise<void> }> {
  const child = fork(new URL('../../embedded/src/broker-main.ts', import.meta.url), { stdio: ['ignore', 'pipe', 'inherit', 'ipc'] })
  const line = await new Promise<string>(resolve => child.stdout?.once('data', data => resolve(String(data))))
  const ready = JSON.parse(line) as { url: string; token: string; pid: number }
  return { ...ready, stop: async () => void child.kill() }
}

async function measure(name: string, broker: { url: string; token: string; pid: number; stop: () => Promise<void> }): Promise<void> {
  const parts = await Promise.all([0, 1].map(part => startPart(part, broker)))
  const bus = await connectNats({ url: broker.url, token: broker.token, name: 'front', log })
  console.log(`\n${name}: CPU µs per gathering of ${partitions} (asker / broker / partitions / sum), rate, latency`)
  for (const concurrency of [1, 8, 64]) {
    await run(concurrency, 500) // the compiler's share is not the product's
    const pids = [process.pid, broker.pid]
    const before = [...pids.map(cpuMicros), sum(parts)]
    const { count, elapsedMs, latencies } = await run(concurrency, Number(values.seconds) * 1000)
    const after = [...pids.map(cpuMicros), sum(parts)]
    const costs = after.map((each, index) => (each - (before[index] ?? 0)) / count)
    const total = costs.reduce((a, b) => a + b)
    latencies.sort((a, b) => a - b)
    const at = (share: number) => (latencies[Math.floor(latencies.length * share)] ?? 0).toFixed(1)
    const shown = [...costs, total].map(each => each.toFixed(0)).join(' / ')
    const rate = ((count / elapsedMs) * 1000).toFixed(0)
    console.log(`  ${String(concurrency).padStart(2)} at once: ${shown}   ${rate}/s   p50 ${at(0.5)} p99 ${at(0.99)} ms`)
  }
  await bus.close()
  for (const part of parts) part.disconnect()
  await broker.stop()

  async function run(concurrency: number, durationMs: number): Promise<{ count: number; elapsedMs: number; latencies: number[] }> {
    const latencies: number[] = []
    const start = performance.now()
    const ask = async () => {
      while (performance.now() - start < durationMs) {
        const asked = performance.now()
        let answers = 0
        const end = await bus.gather(subject, question, {
          timeoutMs: 5_000,
          onAnswer: () => (++answers === partitions ? 'enough' : 'more'),
        })
        if (end !== 'enough') throw new Error(`only ${answers} answers: ${end}`)
        latencies.push(performance.now() - asked)
      }
    }
    await Promise.all(Array.from({ length: concurrency }, ask))
    return { count: latencies.length, elapsedMs: performance.now() - start, latencies }
  }
}

function startPart(part: number, broker: { url: string; token: string }): Promise<ChildProcess> {
  const child = fork(new URL(import.meta.url), ['--part', String(part), '--url', broker.url, '--token', broker.token])
  return new Promise(resolve => child.once('message', () => resolve(child)))
}

function sum(parts: ChildProcess[]): number {
  return parts.reduce((total, part) => total + cpuMicros(part.pid as number), 0)
}

/** User and system time so far. /proc counts in ticks of 10 ms; over seconds that is precise enough. */
function cpuMicros(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? []
  return (Number(fields[11]) + Number(fields[12])) * 10_000
}
