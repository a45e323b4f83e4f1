// A helper that runs several partitions in one process, as they are, each with a database and a link to the broker of its own.

import { findMachines } from '@muster/partition/db/machines'
import { defaultRules } from '@muster/partition/domain/core'
import { type RunningPartition, startPartition } from '@muster/partition/partition'
import { usualLimits } from '@muster/server/http/limits'
import { createLog } from '@muster/server/log'
import type { Own } from '@muster/server/process'
import { allocatedRows, openFixture, reset } from './fixture.ts'
import { beHelper } from './helper.ts'

export interface HostedPartition {
  name: string
  databaseUrl: string
}

export interface HostOptions {
  partitions: HostedPartition[]
  nats: { url: string; token: string | undefined } | undefined
  tokensFile: string
  files: string
  keyHex: string
  connections: number
}

const started: { running: RunningPartition; databaseUrl: string; carryOut: RunningPartition['core']['audit']['carryOut'] }[] = []
const stops: (() => Promise<void> | void)[] = []

const host = {
  /** Answers the partitions' URLs. */
  start: async (options: HostOptions): Promise<string[]> => {
    const log = createLog({ level: 'error', name: 'bench partitions' })
    const own: Own = (_, stop) => void stops.push(stop)
    for (const { name, databaseUrl } of options.partitions) {
      const settings = {
        partition: name,
        replica: 'bench',
        databaseUrl,
        connections: options.connections,
        nats: options.nats,
        key: Buffer.from(options.keyHex, 'hex'),
        tokensFile: options.tokensFile,
        files: options.files,
        host: '127.0.0.1',
        port: 0,
        url: undefined,
        // One caller is all the load there is.
        limits: { rateLimit: 'none', limits: usualLimits },
        rules: defaultRules,
      } as const
      const running = await startPartition({ settings, log, own, onSuperseded: () => process.exit(1) })
      started.push({ running, databaseUrl, carryOut: running.core.audit.carryOut.bind(running.core.audit) })
    }
    return started.map(({ running }) => running.url)
  },

  /** What the rows say of all its partitions together. */
  allocated: async (_: undefined) => {
    const sum = { machines: 0, allocations: 0, events: 0 }
    for (const { running } of started) {
      const rows = await allocatedRows(running.core.sql)
      for (const name of ['machines', 'allocations', 'events'] as const) sum[name] += rows[name]
    }
    return sum
  },

  /** From here on: every change with its entries, as it is, or none at all. */
  audit: (writes: 'written' | 'skipped'): void => {
    for (const { running, carryOut } of started) running.core.audit.carryOut = writes === 'written' ? carryOut : (_, work) => work()
  },

  /** All machines ready again, in the rows and in memory. */
  reset: async (_: undefined): Promise<void> => {
    for (const { running, databaseUrl } of started) {
      const sql = openFixture(databaseUrl)
      try {
        const taken = await sql<{ id: string }[]>`select id from machines where state <> 'ready'`
        await reset(sql)
        for (const row of await findMachines(
          sql,
          taken.map(({ id }) => id),
        ))
          running.core.memory.put(row)
      } finally {
        await sql.end()
      }
    }
  },
}

export type Host = typeof host

beHelper<Host>(host, async () => {
  for (let stop = stops.pop(); stop; stop = stops.pop()) await stop()
})
