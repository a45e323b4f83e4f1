// A second process of a partition: the same name, database, key, tokens and files as the first, another replica's name and port.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { Child } from '../federation/child.ts'
import { type Federation, freePorts } from '../federation/federation.ts'

const program = new URL('../../../partition/src/main.ts', import.meta.url)

/** Starts it and waits until it is ready. It is the caller's to stop. */
export async function startReplica(
  { partitions, nats }: Pick<Federation, 'partitions' | 'nats'>,
  { dataDir, partition, replica }: { dataDir: string; partition: string; replica: string },
): Promise<{ name: string; url: string; child: Child }> {
  const first = partitions.find(({ name }) => name === partition)
  if (!first) throw new Error(`there is no partition ${partition} to start a replica of`)
  const [port] = (await freePorts(1)) as [number]
  const url = `http://127.0.0.1:${port}`
  const child = new Child({
    name: `partition ${partition} ${replica}`,
    program,
    logs: path.join(dataDir, 'logs'),
    isReady: async () => {
      const response = await fetch(`${url}/readyz`, { signal: AbortSignal.timeout(2_000) })
      await response.arrayBuffer()
      return response.ok
    },
    env: {
      MUSTER_PARTITION: partition,
      MUSTER_REPLICA: replica,
      DATABASE_URL: first.databaseUrl,
      MUSTER_KEY: readFileSync(path.join(dataDir, 'key'), 'utf8').trim(),
      MUSTER_TOKENS_FILE: path.join(dataDir, 'tokens.json'),
      MUSTER_FILES: path.join(dataDir, 'files'),
      MUSTER_ENLISTED: 'commission',
      // Simulated machines bring their controllers with them.
      MUSTER_PLACE: 'lab',
      LOG_LEVEL: 'warn',
      HOST: '127.0.0.1',
      PORT: String(port),
      NATS_URL: nats.url,
      ...(nats.token !== undefined && { NATS_TOKEN: nats.token }),
    },
  })
  await child.start()
  return { name: partition, url, child }
}
