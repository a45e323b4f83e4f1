// A front as a process.

import { enableCompileCache } from '@muster/server/compile-cache'
import { mendPostgres } from './global/db/mended-postgres.ts'

enableCompileCache()
mendPostgres()
const { start } = await import('./start.ts')
await start(process.env)
