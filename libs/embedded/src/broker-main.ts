// The embedded broker as a process of its own:  node broker-main.ts [--port 4222] [--token …]  (or MUSTER_BROKER_PORT, MUSTER_BROKER_TOKEN).
// Prints one line of JSON when it listens: {"url":…,"port":…,"token":…,"pid":…}. Ends on SIGTERM and SIGINT.

import { parseArgs } from 'node:util'
import { startBroker } from './broker.ts'

const { values } = parseArgs({ options: { port: { type: 'string' }, token: { type: 'string' } } })
const port = Number(values.port ?? process.env.MUSTER_BROKER_PORT ?? 0)
// Better by environment: arguments are for everyone to read in `ps`.
const token = values.token ?? process.env.MUSTER_BROKER_TOKEN
const broker = await startBroker({ port, ...(token ? { token } : {}), log: line => console.error(line) })
console.log(JSON.stringify({ url: broker.url, port: broker.port, token: broker.token, pid: process.pid }))
for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  process.once(signal, () => {
    void broker.close().then(() => process.exit(0))
  })
}
