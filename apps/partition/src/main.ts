// The partition server as a process. Settings come from the environment: see config.ts, or run it without any to be told.
import { mendPostgres } from '@muster/database/mended-postgres'
import { enableCompileCache } from '@muster/server/compile-cache'

enableCompileCache()
mendPostgres()
const { readSettings } = await import('./config.ts')
const { createLog } = await import('@muster/server/log')
const { runMain } = await import('@muster/server/process')
const { startPartition } = await import('./partition.ts')

try {
  const { settings, lines, unknown, logLevel } = readSettings(process.env)
  const log = createLog({ level: logLevel, name: `partition ${settings.partition}` })
  log.info({ settings: lines }, 'starting')
  if (unknown.length > 0) log.warn({ unknown }, 'these variables are not settings of a partition')
  await runMain({
    log,
    start: async own => {
      await startPartition({
        settings,
        log,
        own,
        onSuperseded: () => {
          log.fatal({ replica: settings.replica }, 'another process has started under the name of this replica; this one ends')
          process.exit(1)
        },
      })
    },
  })
} catch (error) {
  process.stderr.write(`${(error as Error).message}\n`)
  process.exit(2)
}
