// The same stories over real partitions: their own code on a real PostgreSQL, in real time.

import { mkdtempSync, writeFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { freshDatabase } from '@muster/embedded/test-postgres'
import { connect } from '@muster/partition/db/connect'
import { migrate } from '@muster/partition/db/migrate'
import { defaultRules } from '@muster/partition/domain/core'
import { startPartition } from '@muster/partition/partition'
import { createLog } from '@muster/server/log'
import type { Bus } from '@muster/shared/bus/bus'
import { describe } from 'vitest'
import { tellStories } from './stories.ts'

const holdMs = 3000

/** Starts one with machines that are ready, and answers the way to stop it. */
async function startReal({ name, bus, cpus }: { name: string; bus: Bus; cpus: readonly number[] }): Promise<() => Promise<void>> {
  const stops: (() => Promise<void> | void)[] = []
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-front-'))
  stops.push(() => rm(folder, { recursive: true, force: true }))
  const tokensFile = path.join(folder, 'tokens.json')
  writeFileSync(tokensFile, '{"tokens":[]}')
  const database = await freshDatabase({
    template: 'partition',
    migrate: async url => {
      await migrate(url)
    },
  })
  stops.push(() => database.drop())
  await addMachines(database.url, name, cpus)
  await startPartition({
    settings: {
      partition: name,
      replica: 'a',
      databaseUrl: database.url,
      connections: 4,
      nats: undefined,
      key: Buffer.alloc(32, 1),
      tokensFile,
      files: folder,
      host: '127.0.0.1',
      port: 0,
      url: undefined,
      rules: { ...defaultRules, deadlinesMs: { reserved: holdMs } },
    },
    log: createLog({ level: 'fatal', name }),
    bus,
    own: (_, stop) => void stops.push(stop),
    onSuperseded: () => {
      throw new Error(`${name} was superseded; its stories start one replica each`)
    },
  })
  return async () => {
    for (const stop of stops.reverse()) await stop()
  }
}

async function addMachines(url: string, partition: string, cpus: readonly number[]): Promise<void> {
  const sql = connect(url, { connections: 1, name: 'machines for stories' })
  for (const [index, count] of cpus.entries()) {
    const id = `${partition}-${String(index).padStart(6, '0')}`
    await sql`
      insert into machines (id, hostname, state, arch, cpus, memory_mib, pool, zone, rack)
      values (${id}, ${id}, 'ready', 'amd64', ${count}, 4096, 'default', 'default', 'default')`
    await sql`insert into machine_power (machine_id) values (${id})`
  }
  await sql.end()
}

describe('stories over real partitions', () => {
  tellStories({
    stories: 1,
    atOnce: 6,
    holdMs,
    timeoutMs: 180_000,
    start: async partitions => {
      const stops = await Promise.all(partitions.map(startReal))
      return async () => {
        await Promise.all(stops.map(stop => stop()))
      }
    },
    run: story => story(),
  })
})
