// A front as a process.
import { enableCompileCache } from '@muster/server/compile-cache'

enableCompileCache()
const { start } = await import('./start.ts')
await start(process.env)
