// The unit and integration tests of all packages, in one run: `npx vitest run libs/server`.

import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['libs/*/test/**/*.test.ts', 'apps/*/test/**/*.test.ts', 'tools/test/**/*.test.ts'],
    globalSetup: ['libs/embedded/src/test-postgres.ts'],
    // Processes, not threads: tests start children, listen on ports and set process-wide things.
    pool: 'forks',
    // Tests wait on databases, sockets and timers more than they compute: a worker per core even on two cores.
    maxWorkers: '100%',
    testTimeout: 30_000,
    hookTimeout: 30_000,
  },
})
