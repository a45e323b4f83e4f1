// The unit and integration tests of all packages, in one run: `npx vitest run libs/server`.

import { availableParallelism, tmpdir } from 'node:os'
import path from 'node:path'
import { defineConfig } from 'vitest/config'

const shared = {
  // Processes, not threads: tests start children, listen on ports and set process-wide things.
  pool: 'forks',
  // As the servers do, before anything imports it.
  setupFiles: ['tools/mend-postgres.ts'],
  // For the programs that tests start, a third of whose time to start is compiling: where Node keeps it anyway for those that ask. Named before Node
  // starts it holds for their first file too, which else waits for the stripper of types.
  env: { NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE ?? path.join(tmpdir(), 'node-compile-cache') },
  testTimeout: 30_000,
  hookTimeout: 30_000,
  // Real processes, sockets and timers on a machine that others use too: in CI a test may fail once, and vitest prints that it did. What is judged by
  // chance and program (chaos) is not tried again.
  retry: process.env.CI ? 1 : 0,
} as const

/** Tests that start whole federations and load all cores, or must not be starved: one after the other, when the rest is done. Of benchmarks only that they run is tested, whatever else does. */
const wholeFederations = ['apps/rack/test/{chaos,chaos-*,steps,story,fleet,loss,lab}.test.ts']

export default defineConfig({
  test: {
    globalSetup: ['libs/embedded/src/test-postgres.ts'],
    // Tests wait on databases, sockets and timers more than they compute: four workers on two cores.
    maxWorkers: availableParallelism() * 2,
    projects: [
      {
        test: {
          ...shared,
          name: 'packages',
          include: ['libs/*/test/**/*.test.ts', 'apps/*/test/**/*.test.ts', 'tools/test/**/*.test.ts'],
          exclude: wholeFederations,
        },
      },
      { test: { ...shared, name: 'federations', include: wholeFederations, fileParallelism: false, sequence: { groupOrder: 1 } } },
    ],
  },
})
