// What a test of the command line stands on: a server of its own, and an empty home that knows it.
import { beforeEach } from 'vitest'
import { aHome, type Home } from './muster.ts'
import { startServer, type TestServer, token } from './server.ts'

/** For every test of a file: both are new, handed to `use`, and gone when it has ended. */
export function eachWithServer(use: (server: TestServer, home: Home) => void): void {
  beforeEach(async () => {
    const server = await startServer()
    const home = aHome({ MUSTER_URL: server.url, MUSTER_TOKEN: token })
    use(server, home)
    return async () => {
      home[Symbol.dispose]()
      await server[Symbol.asyncDispose]()
    }
  })
}
